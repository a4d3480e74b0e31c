"""LiteLLM's callbacks, each translated into a step of the exchange.

Every hook is defined here, on the leaf class: LiteLLM skips some of those that are inherited. Which call a hook belongs
to is told by ``current_call``, never by metadata, which the client can write.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from litellm.exceptions import APIConnectionError
from litellm.integrations.custom_logger import CustomLogger
from litellm.proxy import proxy_server

from ..host.exchange import WENT_ON
from ..host.tracing import outgoing_headers, remote_parent
from ..types import AttemptError, AttemptKind, Denial, Deployment, Endpoint, ErrorClass, Outcome, RequestContext, Usage
from . import values
from .answers import response_answer
from .auth import denial_error
from .bracket import Call, current_call
from .stream import StreamReader

if TYPE_CHECKING:
    from ..host.exchange import Exchange, OpenAttempt
    from .install import Bridge

_NO_HEADERS: Final[Mapping[str, str]] = MappingProxyType({})


class Callbacks(CustomLogger):  # type: ignore[misc]  # LiteLLM is not typed for us
    """The object that ``litellm_settings.callbacks`` names.

    Args:
        bridge: The gateway and the host.
    """

    def __init__(self, bridge: Bridge) -> None:
        super().__init__()
        self._bridge = bridge
        self._host = bridge.host

    # -- the request --------------------------------------------------------------------------------------------------

    async def async_pre_call_hook(
        self, user_api_key_dict: Any, cache: Any, data: dict[str, Any], call_type: str
    ) -> dict[str, Any] | None:
        """Open the exchange, admit the request and rewrite its target."""
        call = current_call.get()
        if call is None or call.scope is None or call.exchange is not None:
            return None
        model = data.get("model")
        if isinstance(model, str) and "," in model and not self._bridge.catalog.is_listed(model):
            # LiteLLM would call each of them at once: one admission, one account, several answers.
            raise denial_error(
                Denial(
                    status=400,
                    code="model_list_not_supported",
                    message="This gateway takes one model a request; send a request for each.",
                    param="model",
                )
            )
        if isinstance(extra := data.get("extra_body"), Mapping) and (said := sorted(_SAID_ONCE & set(extra))):
            # The SDK underneath writes these over the body that was admitted.
            raise denial_error(
                Denial(
                    status=400,
                    code="extra_body_not_supported",
                    message=f"extra_body must not contain {', '.join(said)}: say it at the top of the request.",
                    param="extra_body",
                )
            )
        ctx = _context(call, user_api_key_dict, data, call_type, self._host.clock.now())
        parent = getattr(user_api_key_dict, "parent_otel_span", None) or remote_parent(ctx.headers)
        call.metadata = _caller_metadata(data)
        exchange = call.exchange = self._host.open(ctx, parent=parent)
        denial = await exchange.admit()
        if denial is not None:
            raise denial_error(denial)
        self._apply(call, exchange, data)
        return data

    def _apply(self, call: Call, exchange: Exchange, data: dict[str, Any]) -> None:
        route = exchange.route
        if route.executor is not None and self._bridge.executor.prepare(exchange.ctx.endpoint):
            call.awaited = True
            call.executed_id = data.get("litellm_call_id")
        if route.target != data.get("model"):
            found = self._bridge.catalog.deployments(route.target)
            # A deployment is reached through its group, so that cooldowns, select and fallbacks still apply.
            one = len(found) == 1 and found[0].id == route.target
            data["model"] = found[0].group if one else route.target
        if route.fallbacks:
            data["fallbacks"] = list(route.fallbacks)

    # -- the attempts -------------------------------------------------------------------------------------------------

    async def async_filter_deployments(
        self,
        model: str,
        healthy_deployments: list[dict[str, Any]],
        messages: Any,
        request_kwargs: dict[str, Any] | None = None,
        parent_otel_span: Any = None,
    ) -> list[dict[str, Any]]:
        """Let the plugins narrow the candidates of the next attempt."""
        call = current_call.get()
        if call is None or call.exchange is None or not healthy_deployments:
            return healthy_deployments
        call.chosen = True
        found = [self._deployment(entry) for entry in healthy_deployments]
        left = {candidate.deployment.id for candidate in call.exchange.select(found, leg=call)}
        return [entry for entry, d in zip(healthy_deployments, found, strict=True) if d.id in left]

    def _deployment(self, entry: Mapping[str, Any]) -> Deployment:
        found = self._bridge.catalog.by_id(str((entry.get("model_info") or {}).get("id")))
        return found or values.deployment(entry)

    async def async_pre_call_deployment_hook(self, kwargs: dict[str, Any], call_type: Any) -> dict[str, Any] | None:
        """Open an attempt, unless LiteLLM only calls itself again for the one that is running."""
        call = current_call.get()
        if call is None or call.exchange is None:
            return None
        info = kwargs.get("model_info") or (_metadata(kwargs).get("model_info")) or {}
        deployment_id = str(info.get("id") or "")
        own = call.kind is not None
        running = call.opened if own else call.exchange.current
        if (
            running is not None
            and not running.closed
            and not call.chosen
            and deployment_id in {"", running.attempt.deployment.id}
        ):
            return None
        call.chosen = False
        call.provider_headers = None
        deployment = self._bridge.catalog.by_id(deployment_id) or values.deployment(
            {"model_name": _metadata(kwargs).get("model_group"), "litellm_params": kwargs, "model_info": info}
        )
        kind = call.kind
        if kind is None and kwargs.get("fallback_depth"):
            # Also for a first attempt: LiteLLM skips a group whose deployments are all in cooldown.
            kind = AttemptKind.FALLBACK
        if own and running is not None:
            running.end(Outcome.ERROR, error=WENT_ON)
        refusal, opened = await call.exchange.begin(deployment, kind, gateway=not own, labels=call.labels, leg=call)
        if own:
            call.opened = opened
        if refusal is not None:
            raise _refusal_error(opened.attempt.error, deployment)
        headers = outgoing_headers(opened.span)
        if headers:
            kwargs["extra_headers"] = {**(kwargs.get("extra_headers") or {}), **headers}
        if kind in _WITHOUT_COOLDOWN:
            kwargs["model_info"] = {**info, "cooldown_time": 0}
        return kwargs

    async def async_post_call_success_deployment_hook(
        self, request_data: dict[str, Any], response: Any, call_type: Any
    ) -> None:
        """Keep what the provider said; the attempt is closed when LiteLLM has priced the answer."""
        call = current_call.get()
        running = _running(call)
        if call is None or running is None or running.answered:
            return
        running.answered.update(
            headers=values.provider_headers(
                _details(request_data).get("response_headers"),
                values.hidden_params(response).get("additional_headers"),
                call.provider_headers,
            ),
            usage=values.response_usage(response),
            model=values.response_model(response),
        )

    async def async_post_call_failure_deployment_hook(
        self, request_data: Mapping[str, Any], exception: Exception, call_type: Any, fallback_depth: int | None = None
    ) -> None:
        """Close a failed attempt."""
        running = _running(current_call.get())
        if running is not None:
            self.fail(running, exception)

    def fail(self, opened: OpenAttempt, err: BaseException) -> None:
        """Close an attempt with the error that ended it."""
        headers = values.provider_headers(
            getattr(err, "litellm_response_headers", None), getattr(getattr(err, "response", None), "headers", None)
        )
        error = values.attempt_error(err, headers, self._host.clock.now())
        opened.end(Outcome.ERROR, error=error, status_code=error.status, headers=headers)

    def succeed(self, opened: OpenAttempt, response: Any, details: Mapping[str, Any] | None = None) -> None:
        """Close an attempt with the whole answer.

        Args:
            opened: The attempt.
            response: LiteLLM's answer.
            details: What LiteLLM's logging object says of the call.
        """
        hidden = values.hidden_params(response)
        answered = opened.answered
        tokens = answered.get("usage") or values.response_usage(response)
        assert tokens is None or isinstance(tokens, Usage)  # noqa: S101  # written by the hook above
        cached = bool(hidden.get("cache_hit") or (details or {}).get("cache_hit"))
        cost = 0 if cached else values.usd_micros(hidden.get("response_cost"))
        if tokens is not None and not tokens.total_tokens and values.without_usage(details or {}):
            tokens = cost = None
        if cost is None or (cost == 0 and tokens is not None and not cached):
            # LiteLLM also says 0 of a model whose price it does not know.
            cost = self._bridge.prices.cost_usd_micros(opened.attempt.deployment, tokens)
        headers = answered.get("headers") or values.provider_headers(hidden.get("additional_headers"))
        opened.end(
            Outcome.OK,
            usage=tokens,
            cost_usd_micros=cost,
            status_code=200,
            headers=headers if isinstance(headers, dict) else _NO_HEADERS,
            model=str(answered.get("model") or values.response_model(response) or "") or None,
            cached=cached,
            answer=partial(response_answer, response),
        )

    async def async_post_call_success_hook(self, data: dict[str, Any], user_api_key_dict: Any, response: Any) -> None:
        """Close the attempt of a plain request."""
        call = current_call.get()
        if call is None or call.exchange is None:
            return
        running = call.exchange.current
        if running is not None and not running.closed:
            self.succeed(running, response, _details(data))

    # -- streams ------------------------------------------------------------------------------------------------------

    def async_post_call_streaming_iterator_hook(
        self, user_api_key_dict: Any, response: Any, request_data: dict[str, Any]
    ) -> Any:
        """Pass a stream on untouched, and close its attempt when it ends, however it ends."""
        call = current_call.get()
        if call is None or call.exchange is None:
            return response
        if call.executed:
            return _executed(call, response)
        return self._watched(call, call.exchange, response, request_data)

    async def _watched(self, call: Call, exchange: Exchange, response: Any, request_data: dict[str, Any]) -> Any:
        reader = StreamReader()
        seen_content = False
        error: BaseException | None = None
        try:
            async for piece in response:
                if reader.read(piece) and not seen_content:
                    seen_content = True
                    if exchange.current is not None:
                        exchange.current.first_token()
                yield piece
        except (asyncio.CancelledError, GeneratorExit) as err:
            call.gone = True
            error = err
            raise
        except BaseException as err:
            error = err
            raise
        finally:
            running = exchange.current
            if running is not None and not running.closed:
                headers = values.provider_headers(
                    _details(request_data).get("response_headers"),
                    values.hidden_params(response).get("additional_headers"),
                    call.provider_headers,
                )
                cached = bool(_details(request_data).get("cache_hit"))
                self.end_stream(running, reader, headers, error, exchange.ctx, cached=cached)

    def end_stream(
        self,
        opened: OpenAttempt,
        reader: StreamReader,
        headers: Mapping[str, str],
        error: BaseException | None,
        ctx: RequestContext,
        *,
        cached: bool = False,
    ) -> None:
        """Close an attempt at the end of its stream; what the provider did not count is estimated."""
        deployment = opened.attempt.deployment
        tokens = reader.usage
        if tokens is None and (reader.text or reader.hidden or error is None):
            tokens = self._estimate(deployment, reader, ctx)
        facts: dict[str, Any] = {
            "usage": tokens,
            "cost_usd_micros": 0 if cached else self._bridge.prices.cost_usd_micros(deployment, tokens),
            "cached": cached,
            "headers": headers,
            "model": reader.model,
        }
        left = isinstance(error, asyncio.CancelledError | GeneratorExit)
        if (error is None or left) and (failed := _told_failure(reader)) is not None:
            # Also when the client left because of it.
            opened.end(Outcome.ERROR, status_code=200, error=failed, **facts)
        elif error is None:
            opened.end(Outcome.OK, status_code=200, answer=reader.answer, **facts)
        elif left:
            opened.end(Outcome.DISCONNECTED, **facts)
        else:
            why = values.attempt_error(error, headers, self._host.clock.now())
            opened.end(Outcome.ERROR, status_code=why.status, error=why, **facts)

    def end_left(
        self,
        opened: OpenAttempt,
        reader: StreamReader,
        ctx: RequestContext,
        outcome: Outcome,
        error: AttemptError | None = None,
    ) -> None:
        """Close an attempt of our own that nobody waits for any more. What it has used is estimated: it is paid for."""
        deployment = opened.attempt.deployment
        tokens = reader.usage or self._estimate(deployment, reader, ctx)
        cost = self._bridge.prices.cost_usd_micros(deployment, tokens)
        if error is None and (error := _told_failure(reader)) is not None:
            outcome = Outcome.ERROR
        opened.end(outcome, usage=tokens, cost_usd_micros=cost, model=reader.model, error=error)

    def _estimate(self, deployment: Deployment, reader: StreamReader, ctx: RequestContext) -> Usage:
        told = reader.partial_usage()
        tokenizer = self._bridge.tokenizer
        base = told or Usage()
        # A translated stream begins with zeros: LiteLLM knows the input only at the end.
        prompt = base.prompt_tokens or tokenizer.estimate(deployment.model, ctx.body)
        return replace(
            base,
            prompt_tokens=prompt,
            completion_tokens=tokenizer.count_text(deployment.model, reader.generated),
            estimated=True,
        )


#: What a request may say in one place only: where it goes, what it asks, and how much it may cost.
_SAID_ONCE: Final = frozenset(
    {
        "background",
        "best_of",
        "fallbacks",
        "input",
        "max_completion_tokens",
        "max_output_tokens",
        "max_tokens",
        "messages",
        "model",
        "models",
        "n",
        "prompt",
        "store",
        "stream",
        "tools",
    }
)
#: Nobody waits for these: their failures must not take a deployment from clients who do.
_WITHOUT_COOLDOWN: Final = frozenset({AttemptKind.MIRROR, AttemptKind.JUDGE})


async def _executed(call: Call, response: Any) -> Any:
    """Pass on what an executor answers; its attempts are closed by whoever started them."""
    try:
        async for piece in response:
            yield piece
    except (asyncio.CancelledError, GeneratorExit):
        call.gone = True
        raise
    finally:
        # Nobody else tells the executor that its client has gone.
        await response.aclose()


def _told_failure(reader: StreamReader) -> AttemptError | None:
    """Return why a stream has failed that said so itself."""
    if reader.failed is None:
        return None
    return AttemptError(kind=ErrorClass.SERVER, message=f"the stream ended with {reader.failed}")


def _running(call: Call | None) -> OpenAttempt | None:
    if call is None or call.exchange is None:
        return None
    running = call.opened if call.kind is not None else call.exchange.current
    return None if running is None or running.closed else running


def _metadata(kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
    for name in ("litellm_metadata", "metadata"):
        found = kwargs.get(name)
        if isinstance(found, Mapping) and "model_group" in found:
            return found
    return {}


def _details(request_data: Mapping[str, Any]) -> Mapping[str, Any]:
    return getattr(request_data.get("litellm_logging_obj"), "model_call_details", None) or {}


def _caller_metadata(data: Mapping[str, Any]) -> dict[str, Any]:
    """LiteLLM's own facts about the caller: it puts them there itself, over whatever the client has sent."""
    found = data.get("litellm_metadata") or data.get("metadata") or {}
    return {name: value for name, value in found.items() if name.startswith("user_api_key")}


def _context(call: Call, key: Any, data: Mapping[str, Any], call_type: str, now: float) -> RequestContext:
    assert call.scope is not None  # noqa: S101  # a client request has one
    header_name = (proxy_server.general_settings or {}).get("litellm_key_header_name")
    extra = frozenset({str(header_name).lower()}) if header_name else frozenset[str]()
    headers = values.request_headers(call.scope["headers"], extra)
    body = (data.get("proxy_server_request") or {}).get("body")
    body = body if isinstance(body, dict) else data
    user = body.get("user")
    metadata = body.get("metadata")
    if not isinstance(user, str):
        user = (
            metadata.get("user_id") if isinstance(metadata, dict) and isinstance(metadata.get("user_id"), str) else None
        )
    session = headers.get("x-litellm-session-id") or headers.get("x-session-id") or data.get("litellm_session_id")
    return RequestContext(
        request_id=call.request_id,
        call_id=data.get("litellm_call_id"),
        endpoint=values.ENDPOINTS.get(str(getattr(call_type, "value", call_type)), Endpoint.OTHER),
        model=str(data.get("model") or ""),
        stream=data.get("stream") is True,
        identity=values.identity(key, user, call.identity),
        client_host=client[0] if (client := call.scope.get("client")) else None,
        session_id=session if isinstance(session, str) else None,
        headers=headers,
        body=MappingProxyType(body),
        received_at=now,
    )


def _refusal_error(error: AttemptError | None, deployment: Deployment) -> Exception:
    """Return the error for a refused attempt: one that LiteLLM retries and falls back from without a cooldown."""
    message = error.message if error else "refused"
    error_for_litellm: Exception = APIConnectionError(
        message=f"pointsman: APIConnectionError: attempt on {deployment.id} refused by {message}",
        llm_provider=deployment.provider,
        model=deployment.model,
    )
    return error_for_litellm
