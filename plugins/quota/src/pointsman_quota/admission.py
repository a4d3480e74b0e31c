"""Admission: from a request to a reservation or a refusal."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Final, NamedTuple

from opentelemetry import trace

from pointsman.errors import StoreError
from pointsman.types import Denial, Endpoint, Reservation, Usage

from . import responses
from .ledger import PICOS
from .limits import LimitName, breaches, left, money_left, others_first
from .notices import LimitNotices
from .request_limits import InvalidRequest, choices, chooses_retries, models_named, primary_models, transcribers_named
from .scopes import USD_PICOS, target_of
from .tenants import allowed, limited_patterns

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pointsman.plugin import Services
    from pointsman.types import RequestContext, Route

    from .config import QuotaConfig
    from .estimate import Estimator
    from .ledger_client import LedgerClient, Reserved
    from .limits import Breach
    from .queue import FairQueue
    from .responses import Refused
    from .scopes import Target
    from .slots import EndedRequests
    from .statistics import Durations
    from .tenants import Caller, Directory, Tenant

#: Label on the route: who pays. Other plugins read it there.
TENANT_LABEL: Final = "tenant"
#: Label on the route: the refusal that dry-run skipped.
MARK_LABEL: Final = "quota"
#: The most combinations of a caller and patterns whose scopes are remembered.
_MOST_TARGETS: Final = 4096
_AXES: Final = ("requests", "tokens")
#: Asks whether there is a price at all.
_A_TOKEN: Final = Usage(prompt_tokens=1, completion_tokens=1)


@dataclass(slots=True)
class Counts:
    """Decisions of this worker so far."""

    admitted: int = 0
    exempt: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    would_refuse: Counter[str] = field(default_factory=Counter)


@dataclass(slots=True)
class Ask:
    """What a request wants.

    Attributes:
        ctx: The request.
        caller: Who calls.
        target: The scopes it takes from.
        take: Estimated tokens and picodollars.
        choices: How many answers it asks each model for.
        mark: The refusal that dry-run has skipped already, or None.
        dry: Whether it is a dry run, which never refuses.
        doubtful: Whether the store may have made a reservation although its answer is missing.
    """

    ctx: RequestContext
    caller: Caller
    target: Target
    take: tuple[int, int]
    choices: int
    dry: bool
    mark: str | None
    doubtful: bool = False


class Answer(NamedTuple):
    """The ledger's answer to an ``Ask``.

    Attributes:
        reserved: The outcome of the reservation.
        why: The limit that refuses, or None if it fits.
    """

    reserved: Reserved
    why: Refused | None


class Admission:
    """Decides about requests.

    Args:
        config: The plugin's section.
        services: The host's services.
        ledger: The ledger.
        estimator: Estimates requests.
        queue: The queue.
        durations: How long requests usually take.
        ended: Requests of this worker whose slots are free.
    """

    def __init__(
        self,
        config: QuotaConfig,
        services: Services,
        *,
        ledger: LedgerClient,
        estimator: Estimator,
        queue: FairQueue,
        durations: Durations,
        ended: EndedRequests,
    ) -> None:
        self._config = config
        self._services = services
        self._notices = LimitNotices(services.publish)
        self._ledger = ledger
        self._estimator = estimator
        self._queue = queue
        self._durations = durations
        self._ended = ended
        self._target_of = lru_cache(_MOST_TARGETS)(partial(target_of, gateway=config.gateway_limits))
        self.counts = Counts()

    async def admit(self, ctx: RequestContext, route: Route, directory: Directory) -> Route | Denial | None:
        """Admit a request or deny it; see ``pre_route``."""
        caller = directory.by_identity(ctx.identity, ctx.headers)
        if caller is None:
            if self._config.exempt_admin and ctx.identity.admin:
                self.counts.exempt += 1
                return None
            return self._refuse(route, responses.unknown_caller(), dry=self._config.dry_run)
        dry = self._config.dry_run or caller.tenant.dry_run
        try:
            asked = models_named(ctx.alias or ctx.model, ctx.body)
            resolved = {name: self._services.catalog.resolved(name) for name in asked}
            names = tuple(dict.fromkeys(resolved.values()))
            refused = self._refused(caller.tenant, ctx, resolved) if caller.tenant.models else []
            if refused and not dry:
                return self._refuse(route, responses.model_not_allowed(refused), dry=dry)
            models = primary_models(ctx.model)
            answers_wanted = choices(ctx.body, ctx.endpoint)
            size = await self._estimator.size(
                ctx, caller.tenant.id, names=names, models=len(models), choices=answers_wanted
            )
        except InvalidRequest as err:
            return self._refuse(route, responses.invalid_request(str(err), err.param), dry=dry)
        target = self._target_of(caller, limited_patterns(caller.tenant, names))
        usd_picos: int | None = 0
        if target.limits_money:
            reached = [name for name in (*names, route.target, *route.fallbacks) if name]
            # A connection takes no money, but the responses on it will: without a price it is not even opened.
            connects = ctx.endpoint is Endpoint.REALTIME and not ctx.generates
            priced = size._replace(usage=_A_TOKEN) if connects else size
            price = partial(self._estimator.usd_picos, ctx.endpoint, reached, tenant=caller.tenant.id, model=ctx.model)
            usd_picos = price(priced)
            if usd_picos is None:
                without_tools = price(size.without_tools)
                if self._services.unpriced == "deny":
                    tools = without_tools is not None
                    denial = responses.unpriced(ctx.model, size.usage.service_tier, tools=tools)
                    return self._refuse(route, denial, dry=dry)
                usd_picos = without_tools
            usd_picos = 0 if connects else usd_picos
        ask = Ask(
            ctx,
            caller,
            target,
            (size.prompt_tokens + size.output_tokens, usd_picos or 0),
            answers_wanted,
            dry,
            "model_not_allowed" if refused else None,
        )
        try:
            answer = await self._ask_or_wait(ask)
        except (asyncio.CancelledError, StoreError):
            # It will not be settled, and whether the store has made it is unknown.
            self._ledger.abandon(target, ctx.request_id)
            raise
        if ask.doubtful and not answer.reserved.result.done:
            self._ledger.abandon(target, ctx.request_id)
        return self._conclude(ask, answer, route)

    def _refused(self, tenant: Tenant, ctx: RequestContext, resolved: Mapping[str, str]) -> list[str]:
        """Return the models that the request names and the tenant may not use."""
        # A transcriber is the provider's model, of which nothing is reserved.
        named = {**resolved, **{name: name for name in transcribers_named(ctx.body)}}
        return [name for name, model in named.items() if not self._permits(tenant, ctx, name, model)]

    def _permits(self, tenant: Tenant, ctx: RequestContext, asked: str, name: str) -> bool:
        if not asked and not ctx.generates:
            return True  # what reads, cancels or uploads names no model, and none works for it
        # An alias of the gateway's is permitted with the model that it stands for, or by its very name.
        return asked in tenant.models or allowed(tenant, (name,))

    async def _ask_or_wait(self, ask: Ask) -> Answer:
        queue = self._queue
        if ask.dry or ask.ctx.within is not None or not ask.target.limits_concurrency:
            # It never waits, it shares a slot, or it needs none.
            return await self._ask(ask)
        lanes = ask.target.scope_keys
        priority = ask.caller.priority
        answer: Answer | None = None
        limited = (lane for lane, caps in zip(lanes, ask.target.caps, strict=True) if "concurrent" in caps)
        lane = queue.lane_ahead(limited, priority)
        if lane is None:
            answer = await self._ask(ask)
            if answer.why is None or answer.why.breach.limit is not LimitName.CONCURRENT_REQUESTS:
                return answer
            lane = lanes[answer.why.breach.scope]

        async def attempt() -> Answer | None:
            nonlocal answer
            answer = await self._ask(ask)
            waiting = answer.why is not None and answer.why.breach.limit is LimitName.CONCURRENT_REQUESTS
            return None if waiting else answer

        began = self._services.clock.monotonic()
        admitted = await queue.wait(lane, priority, attempt)
        span, scope = trace.get_current_span(), lanes.index(lane)
        if span.is_recording() and self._services.clock.monotonic() > began:
            waited_for = f"{LimitName.CONCURRENT_REQUESTS} of {ask.target.scopes[scope]}"
            span.set_attribute("pointsman.quota.waited_for", waited_for)
        return admitted or answer or await self._turn_away(ask, scope)

    async def _ask(self, ask: Ask) -> Answer:
        while True:
            slots = int(ask.ctx.within is None)
            reserved = await self._ledger.reserve(ask.target, ask.ctx.request_id, ask.take, slots=slots, force=ask.dry)
            ask.doubtful = ask.doubtful or reserved.doubtful
            if reserved.result.fits:
                return Answer(reserved, None)
            answer = self._refusal(ask, reserved, [])
            if ask.dry or answer.why is None or answer.why.breach.limit is not LimitName.CONCURRENT_REQUESTS:
                return answer
            ended = self._ended.take(ask.target.scope_keys[answer.why.breach.scope])
            if ended is None:
                return answer
            await self._ledger.free(ended.target, ended.request_id)

    async def _turn_away(self, ask: Ask, scope: int) -> Answer:
        """Refuse without trying: a slot that is free by now belongs to the requests that wait for it."""
        reserved = await self._ledger.reserve(ask.target, ask.ctx.request_id, ask.take, look=True)
        cap = ask.target.caps[scope]["concurrent"]
        return self._refusal(ask, reserved, [others_first(scope, cap, reserved.result.scopes[scope], reserved.now_ms)])

    def _refusal(self, ask: Ask, reserved: Reserved, known: list[Breach]) -> Answer:
        states, now_ms = reserved.result.scopes, reserved.now_ms
        found = breaches(states, ask.target.caps, self._ledger.period_at, ask.take, now_ms)
        if ask.ctx.within is not None:
            found = [breach for breach in found if breach.limit is not LimitName.CONCURRENT_REQUESTS]
        typical_ms = self._durations.typical_ms(ask.caller.tenant.id)
        return Answer(reserved, responses.refused(found + known, ask.target.scopes, typical_ms))

    def _conclude(self, ask: Ask, answer: Answer, route: Route) -> Route | Denial:
        reserved = answer.reserved
        taken = (1, ask.take[0]) if reserved.result.done else (0, 0)
        axes = left(reserved.result.scopes, ask.target.caps, self._ledger.period_at, taken, reserved.now_ms)
        headers = responses.limit_headers(*axes)
        span = trace.get_current_span()
        if span.is_recording():
            taken_picos = ask.take[1] if reserved.result.done else 0
            remains = {name: axis and axis.remaining for name, axis in zip(_AXES, axes, strict=True)}
            remains["usd_micros"] = money_left(reserved.result.scopes, ask.target.caps, taken_picos)
            span.set_attributes(
                {
                    "pointsman.quota.tenant": ask.caller.tenant.id,
                    **({"pointsman.quota.limit": answer.why.mark} if answer.why else {}),
                    "pointsman.quota.local": reserved.local,
                    **(
                        {
                            "pointsman.quota.reserved_tokens": ask.take[0],
                            "pointsman.quota.reserved_usd_micros": -(-ask.take[1] // PICOS),
                        }
                        if reserved.result.done
                        else {}
                    ),
                    **{f"pointsman.quota.remaining_{n}": most for n, most in remains.items() if most is not None},
                }
            )
        if answer.why is not None and not ask.dry:
            self.counts.refused[answer.why.mark] += 1
            denial = responses.over_limit(answer.why, headers, ask.take)
            # A request that is larger than a limit says nothing about its use.
            if answer.why.retry_after_ms is not None:
                self._notices.reached(ask.caller.tenant.id, answer.why.mark, denial, self._services.clock.now())
            return denial
        self.counts.admitted += 1
        labels = {TENANT_LABEL: ask.caller.tenant.id}
        if (mark := ask.mark or (answer.why.mark if answer.why else None)) is not None:
            self.counts.would_refuse[mark] += 1
            labels[MARK_LABEL] = f"would-refuse {mark}"
            headers |= responses.would_refuse(mark)
        return replace(
            route,
            labels={**route.labels, **labels},
            headers={**route.headers, **headers},
            reservations=(*route.reservations, self._reservation(ask, reserved)),
        )

    def _reservation(self, ask: Ask, reserved: Reserved) -> Reservation:
        return Reservation(
            plugin=self._services.plugin,
            id=ask.ctx.request_id,
            expires_at=float(reserved.expires_s),
            amounts={"tokens": ask.take[0], "usd_micros": -(-ask.take[1] // PICOS)},
            data={
                **ask.target.data,
                "local": reserved.local or ask.doubtful,
                "choices": ask.choices,
                USD_PICOS: ask.take[1],
                "retries": chooses_retries(ask.ctx),
                **({} if ask.ctx.within is None else {"slots": 0}),
            },
        )

    def _refuse(self, route: Route, denial: Denial, *, dry: bool) -> Route | Denial:
        trace.get_current_span().set_attribute("pointsman.quota.limit", denial.code)
        if not dry:
            self.counts.refused[denial.code] += 1
            return denial
        self.counts.would_refuse[denial.code] += 1
        labels = {MARK_LABEL: f"would-refuse {denial.code}"}
        return route.with_labels(**labels).with_headers(responses.would_refuse(denial.code))
