"""Looks after background responses and batches until it is known what they have used.

The request of such a response stays open, and keeps its reservation, though its client has its answer and its slot is free.
That of a batch is settled at once with nothing: what its file asks for is not known, and it may take a day. A read of the
client's that shows the usage is charged with it; where no client reads, a worker does, for a batch in a request of its own.
A worker that stops leaves a note in the store, from which the next one goes on.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from litellm.proxy import proxy_server

from ..host.deferred import Origin, key_of
from ..types import Deployment, Endpoint, Identity, Outcome, RequestContext, Usage
from . import batches, stored_answers
from .call import current_call
from .request_values import hidden_params
from .usage_units import answer_usage

if TYPE_CHECKING:
    from ..host.attempt import OpenAttempt
    from ..host.exchange import Exchange
    from ..host.host import Host
    from .catalog import RouterCatalog
    from .prices import CostMap

log: Final = logging.getLogger("pointsman")

_OK: Final = 200
_NOT_FOUND: Final = 404
#: The longest pause between two looks, in seconds.
_MOST_PAUSE_S: Final = 300.0

#: How long providers may work for a batch: the only completion window that they offer.
_BATCH_S: Final = 86_400.0

Read = Callable[[str], Awaitable[Any]]
LookAtBatch = Callable[[str, str, str], Awaitable[batches.Used | None]]


@dataclass(slots=True, eq=False)
class _Followed:
    """A request whose response is not complete.

    Attributes:
        exchange: The request.
        opened: Its attempt, closed, with unknown usage.
        known: Whether what is known is charged: nothing is, where another one has.
    """

    exchange: Exchange
    opened: OpenAttempt
    known: bool = False


class Background:
    """The background responses and batches of one worker.

    Args:
        host: Opens requests, and has the store.
        catalog: The deployments.
        prices: What a response costs.
        read: Reads a stored response by the gateway's id of it.
        look_at_batch: As ``batches.look``.
    """

    def __init__(
        self,
        host: Host,
        catalog: RouterCatalog,
        prices: CostMap,
        read: Read | None = None,
        look_at_batch: LookAtBatch = batches.look,
    ) -> None:
        self._host = host
        self._catalog = catalog
        self._prices = prices
        self._read = read or _read
        self._look_at_batch = look_at_batch
        self._followed: dict[str, _Followed] = {}

    async def adopt(self) -> None:
        """Look after what earlier workers have left."""
        for key, origin in await self._host.deferred.pending():
            if origin.answer:
                self._spawn(key, origin)

    async def follow_batch(
        self, exchange: Exchange, opened: OpenAttempt, response: Any, answer_id: str, *, key: Any
    ) -> bool:
        """Look after a batch that has been created; return whether it is charged when its usage is known.

        Args:
            exchange: Its request.
            opened: Its attempt.
            response: LiteLLM's answer.
            answer_id: The provider's id of it.
            key: LiteLLM's ``UserAPIKeyAuth``.
        """
        answer, account = str(response.id), ""
        if not opened.attempt.deployment.id and (model := batches.asked_model(answer)) is not None:
            for deployment in self._catalog.deployments(model)[:1]:
                opened.attempt = replace(opened.attempt, deployment=deployment)
        elif not opened.attempt.deployment.id:
            account = batches.account_of(key, opened.attempt.deployment.provider)
        origin = _origin(
            exchange,
            opened,
            answer if batches.is_kept(answer) else "",
            endpoint=str(Endpoint.BATCHES),
            provider=opened.attempt.deployment.provider,
            account=account,
        )
        if not await self._host.deferred.remember(answer_id, origin):
            return False
        if origin.answer:
            self._spawn(key_of(answer_id), origin)
        return True

    async def follow(self, exchange: Exchange, opened: OpenAttempt, response: Any, answer_id: str) -> bool:
        """Look after a response that has been accepted; return whether it is, so that its request stays open.

        Args:
            exchange: Its request.
            opened: Its attempt.
            response: LiteLLM's answer.
            answer_id: The provider's id of it.
        """
        origin = _origin(exchange, opened, str(response.id))
        if not await self._host.deferred.remember(answer_id, origin):
            return False
        key = key_of(answer_id)
        headers = hidden_params(response).get("additional_headers")
        opened.works_later = True
        opened.end(Outcome.OK, status_code=_OK, headers=headers if isinstance(headers, dict) else None)
        followed = self._followed[key] = _Followed(exchange, opened)
        exchange.on_close(lambda: self._closed(key, followed))
        self._spawn(key, origin)
        return True

    def charged(self, answer_id: str) -> None:
        """Note that a read has been charged with a response."""
        if (followed := self._followed.get(key_of(answer_id))) is not None:
            followed.exchange.close(_OK)

    def _closed(self, key: str, followed: _Followed) -> None:
        self._followed.pop(key, None)
        if not followed.known:
            # Charged elsewhere, or by the next worker: the note says so.
            followed.opened.found(Usage(), 0)

    def _spawn(self, key: str, origin: Origin) -> None:
        self._host.spawn(self._watch(key, origin), name="background response")

    async def _watch(self, key: str, origin: Origin) -> None:
        # What is done from here on belongs to no client's request.
        current_call.set(None)
        host, settings = self._host, self._host.settings.host
        ends, pause_s = host.clock.monotonic() + settings.background_wait_s, settings.background_look_s
        if origin.endpoint == Endpoint.BATCHES:
            ends += _BATCH_S
        while True:
            await host.clock.sleep(min(pause_s, max(0.0, ends - host.clock.monotonic())))
            pause_s = min(_MOST_PAUSE_S, pause_s * 2)
            if not await host.deferred.is_pending(key):
                break
            answer, gone = await self._look(origin)
            if (answer is not None or gone or host.clock.monotonic() >= ends) and (
                claimed := await host.deferred.claim_key(key)
            ) is not None:
                await self._charge(key, claimed, answer)
                return
        if (followed := self._followed.get(key)) is not None:
            followed.exchange.close(_OK)

    async def _look(self, origin: Origin) -> tuple[Any, bool]:
        """Return the response if it is complete, or what the batch has used, and whether it is not there any more."""
        try:
            if origin.endpoint == Endpoint.BATCHES:
                return await self._look_at_batch(
                    origin.answer, origin.deployment or origin.account, origin.provider
                ), False
            response = await self._read(origin.answer)
        except Exception as err:  # noqa: BLE001  # whatever LiteLLM or a provider raises: it is looked at again
            log.debug("a background response or batch cannot be looked at: %s", type(err).__name__)
            return None, getattr(err, "status_code", None) == _NOT_FOUND
        return (None, False) if stored_answers.is_working(response) else (response, False)

    async def _charge(self, key: str, origin: Origin, answer: Any) -> None:
        """Charge a response or a batch with what it has used; by its reservation, where that is not known."""
        followed = self._followed.get(key) or await self._reopened(origin)
        deployment, gateway_cost = followed.opened.attempt.deployment, None
        if isinstance(answer, batches.Used):
            usage, gateway_cost = answer.usage, answer.cost_usd
        else:
            usage = None if answer is None else answer_usage(Endpoint.RESPONSES, answer, {})
            if usage is None and getattr(answer, "status", None) == "failed":
                usage = Usage()
        cost = self._prices.cost_usd_micros(deployment, usage)
        if cost is None and gateway_cost is not None:
            cost = round(gateway_cost * 1_000_000)
        followed.opened.found(usage, cost, gateway_cost)
        followed.known = True
        followed.exchange.close(_OK)

    async def _reopened(self, origin: Origin) -> _Followed:
        """Return a request in place of one whose worker has ended."""
        ctx = RequestContext(
            request_id=self._host.new_id(),
            endpoint=Endpoint(origin.endpoint or Endpoint.RESPONSES),
            model=origin.model,
            stream=False,
            identity=Identity(
                tenant=origin.tenant or None,
                key_hash=origin.key_hash or None,
                key_alias=origin.key_alias or None,
                user_id=origin.user_id or None,
                team_id=origin.team_id or None,
                org_id=origin.org_id or None,
            ),
            received_at=self._host.clock.now(),
        )
        exchange = self._host.open(ctx)
        await exchange.admit()
        # It has been used, whether there is still a budget for it or not.
        exchange.denial = None
        deployment = self._catalog.by_id(origin.deployment) or Deployment(
            id=origin.deployment, group=origin.model, provider=origin.provider, model=origin.model
        )
        _, opened = await exchange.begin(deployment, gateway=True)
        opened.works_later = True
        opened.end(Outcome.OK, status_code=_OK)
        exchange.answered()
        return _Followed(exchange, opened)


def _origin(exchange: Exchange, opened: OpenAttempt, answer: str, **more: str) -> Origin:
    """Return the note about an answer.

    Args:
        exchange: Its request.
        opened: Its attempt.
        answer: The gateway's id of it; empty where no worker looks after it.
        more: Further fields.
    """
    caller = exchange.ctx.identity
    return Origin(
        exchange.ctx.model or opened.attempt.deployment.group,
        opened.attempt.deployment.id,
        answer,
        *(text or "" for text in (caller.tenant, caller.key_hash, caller.key_alias)),
        *(text or "" for text in (caller.user_id, caller.team_id, caller.org_id)),
        **more,
    )


async def _read(answer: str) -> Any:
    llm_router: Any = proxy_server.llm_router
    return await llm_router.aget_responses(response_id=answer)
