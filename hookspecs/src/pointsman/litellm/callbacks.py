"""LiteLLM's callbacks, each translated into a step of the exchange.

Every hook is defined here, on the leaf class: LiteLLM skips some of those that are inherited. The call that a hook
belongs to is the one in ``current_call``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from litellm.exceptions import APIConnectionError
from litellm.integrations.custom_logger import CustomLogger
from litellm.proxy import proxy_server

from ..frozen import replace
from ..host.endings import refusal_denial
from ..host.tracing import outgoing_headers
from ..sessions import end_user_of, goes_on_from, session_of
from ..types import AttemptError, AttemptKind, Denial, Deployment, Endpoint, RequestContext
from . import bodies, endpoints, kept_objects, request_values, stored_answers
from .answers import response_id
from .auth import denial_error
from .call import Call, ClientCall, EndedError, client_call, current_call
from .client_settings import MOST_SETTING_CHARS, SETTINGS, cap_retries, misshapen, too_long, wrong_timeout
from .fallbacks import fallback_rule, follow_route, own_fallbacks
from .raw_answers import heard_objects, is_broken
from .stream import StreamReader

if TYPE_CHECKING:
    from ..host.attempt import OpenAttempt
    from ..host.exchange import Exchange
    from ..host.host import Host
    from ..types import Refusal
    from .background import Background
    from .catalog import RouterCatalog
    from .closing import Closer
    from .executor import Executor
    from .guard import Guard
    from .selection import Selection


class Callbacks(CustomLogger):  # type: ignore[misc]  # LiteLLM is not typed for us
    """The object that ``litellm_settings.callbacks`` names.

    Args:
        host: The started host, once requests come.
        catalog: The deployments.
        executor: Runs the routes that a plugin executes.
        closer: Closes the attempts.
        selection: Runs ``select``.
        guard: Stops attempts of requests that are not metered.
        background: Looks after background responses.
    """

    def __init__(
        self,
        host: Host,
        catalog: RouterCatalog,
        executor: Executor,
        closer: Closer,
        *,
        selection: Selection,
        guard: Guard,
        background: Background,
    ) -> None:
        super().__init__()
        self._host = host
        self._catalog = catalog
        self._executor = executor
        self._closer = closer
        self._selection = selection
        self._guard = guard
        self._background = background

    # -- the request --------------------------------------------------------------------------------------------------

    async def async_pre_call_hook(
        self, user_api_key_dict: Any, cache: Any, data: dict[str, Any], call_type: str
    ) -> dict[str, Any] | None:
        """Open the exchange, admit the request and rewrite its target."""
        call = client_call()
        if call is None or call.exchange is not None:
            return None
        unfit = _unfit(data, self._catalog, self._host.settings.host.client_retries) or self._guard.polled(
            call, data, call_type
        )
        if unfit is not None:
            raise denial_error(unfit)
        exchange = await self._admit(call, user_api_key_dict, data, call_type)
        if exchange.ctx.endpoint is Endpoint.PASS_THROUGH:
            # What is sent to the provider is the client's; and LiteLLM makes one attempt, about which it asks no callback.
            await self._pass_through(call, exchange, data)
            return data
        if endpoints.in_file(call_type):
            return data
        self._apply(call, exchange, data)
        if call.socket is not None and (denial := await call.socket.open(exchange, data)) is not None:
            raise denial_error(denial)
        return data

    async def _admit(self, call: ClientCall, key: Any, data: dict[str, Any], call_type: str) -> Exchange:
        """Open the exchange of a request.

        Raises:
            DenialError: it is not admitted.
        """
        age_s = call.age_s
        ctx = _context(call, key, data, call_type, self._catalog, received_at=self._host.clock.now() - age_s)
        looked, method, path = None, str(call.scope.get("method") or ""), call.path
        if goes_on_from(ctx.endpoint, ctx.body):
            # What the model reads again belongs to the request, so that it is known before plugins are asked.
            looked = await kept_objects.look(self._host.owners, ctx, method, path)
            ctx = replace(ctx, carried_tokens=looked.carried_tokens)
        exchange = self._host.open(ctx, span=call.span, age_s=age_s)
        call.open(exchange, data.get("litellm_metadata") or data.get("metadata") or {})
        denial = await exchange.admit()
        if (
            ctx.model
            and ctx.endpoint is not Endpoint.PASS_THROUGH
            and not self._catalog.reachable(exchange.route.target)
        ):
            exchange.know_no_model()
        if denial is None and call.socket is not None:
            denial = exchange.refuse_unfit()
        if denial is not None:
            raise denial_error(denial)
        looked = looked or await kept_objects.look(self._host.owners, ctx, method, path)
        if looked.denial is not None:
            exchange.denial = looked.denial
            call.refuse(looked.denial)
            raise EndedError
        if exchange.reply is not None:
            call.answer(exchange.reply)
            raise EndedError
        return exchange

    async def admit_counting(self, key: Any, body: Mapping[str, Any]) -> None:
        """Admit a request that counts tokens, once it is authenticated: LiteLLM asks no callback before it counts.

        Args:
            key: LiteLLM's ``UserAPIKeyAuth``.
            body: The request.

        Raises:
            DenialError: it is not admitted.
        """
        call = client_call()
        if call is None or call.exchange is not None:
            return
        path = call.path
        if endpoints.counts_tokens(path):
            data = {**body, "model": endpoints.asked_model(path, body.get("model"))}
            await self._admit(call, key, data, "count_tokens")

    async def _pass_through(self, call: ClientCall, exchange: Exchange, data: dict[str, Any]) -> None:
        ctx = exchange.ctx
        provider = endpoints.path_provider(call.path)
        deployment = Deployment(id=f"pass-through/{provider}", group=ctx.model, provider=provider, model=ctx.model)
        self._guard.beginning(call, exchange, deployment)
        await self._begin(call, deployment, data, fallback=False)

    async def _begin(
        self, call: Call, deployment: Deployment, arguments: dict[str, Any], *, fallback: bool
    ) -> OpenAttempt:
        """Open an attempt and let plugins change what it sends.

        Raises:
            APIConnectionError: a plugin refuses the attempt; LiteLLM retries and falls back.
            EndedError: a plugin ends the request.
        """
        refusal, opened = await call.begin(deployment, fallback=fallback)
        if refusal is None:
            refusal = await self._transform(call, opened, arguments)
        if refusal is not None:
            raise self._refused(call, refusal, opened, deployment)
        return opened

    async def _transform(self, call: Call, opened: OpenAttempt, arguments: dict[str, Any]) -> Refusal | None:
        exchange = call.exchange
        assert exchange is not None  # noqa: S101  # an attempt has one
        if not exchange.hooks.transform_request:
            return None
        before = bodies.taken(arguments, exchange.ctx)
        refusal, after = await exchange.prepare(opened, before)
        if refusal is None and after is not before:
            bodies.put(arguments, before, after)
        return refusal

    def _refused(self, call: Call, refusal: Refusal, opened: OpenAttempt, deployment: Deployment) -> BaseException:
        """Return what ends a refused attempt; a refusal that forbids another attempt ends the request."""
        if refusal.retryable or not isinstance(call, ClientCall):
            return _refusal_error(opened.attempt.error, deployment)
        call.refuse(refusal_denial(refusal))
        return EndedError()

    def _apply(self, call: ClientCall, exchange: Exchange, data: dict[str, Any]) -> None:
        route = exchange.route
        if route.target != data.get("model"):
            found = self._catalog.deployments(route.target)
            # A deployment is reached through its group, so that cooldowns, select and fallbacks still apply.
            one = len(found) == 1 and found[0].id == route.target
            data["model"] = found[0].group if one else route.target
        if self._catalog.deployments(data.get("model") or ""):
            # They would go before the deployment's own provider, and make its attempts fail for everyone.
            for name in _PROVIDER_FIELDS:
                data.pop(name, None)
        if self._executor.prepare(exchange.ctx.endpoint) and route.executor is not None:
            call.await_executor(data.get("litellm_call_id"))
        if route.timeout_s is not None:
            data["timeout"] = route.timeout_s
        if route.retries is not None:
            data["num_retries"] = route.retries
        fallbacks = own_fallbacks(data)
        call.brings_fallbacks = fallbacks is not None
        if follow_route(data, route, asked=exchange.ctx.model, catalog=self._catalog):
            fallbacks = own_fallbacks(data)
        call.ask(data.get("model"), fallbacks, disable_fallbacks=data.get("disable_fallbacks"))

    async def async_filter_listed_models(self, user_api_key_dict: Any, model_names: Sequence[str]) -> Sequence[str]:
        """Hide what a tenant must not use; LiteLLM shows a deployment to every key that asks for it by its id."""
        call = client_call()
        models = None if call is None or call.identity is None else call.identity.models
        return model_names if models is None else [name for name in model_names if self._catalog.matches(name, models)]

    # -- the attempts -------------------------------------------------------------------------------------------------

    async def async_filter_deployments(
        self,
        model: str,
        healthy_deployments: list[dict[str, Any]],
        messages: Any,
        request_kwargs: dict[str, Any] | None = None,
        parent_otel_span: Any = None,
    ) -> list[dict[str, Any]]:
        """Let the plugins narrow the candidates of the next attempt, unless they do it after LiteLLM's later filters."""
        return await self._selection.filter(model, healthy_deployments, messages, request_kwargs)

    async def async_pre_call_deployment_hook(self, kwargs: dict[str, Any], call_type: Any) -> dict[str, Any] | None:
        """Open an attempt, unless LiteLLM only calls itself again for the one that is running."""
        call = current_call.get()
        if call is None:
            return None
        if call.exchange is None:
            self._guard.check()
            return None
        socket = call.socket if isinstance(call, ClientCall) else None
        if socket is not None and socket.connected:
            return None
        info = kwargs.get("model_info") or (_metadata(kwargs).get("model_info")) or {}
        deployment_id = str(info.get("id") or "")
        if call.continues(deployment_id) or (call.exchange.closed and not call.exchange.ctx.generates):
            # What a request that reads leaves to the background, such as looking at the results of a batch, is reading too.
            return None
        if (running := call.running) is not None and running.answered:
            # One request may ask several models, one after another.
            self._closer.finish(running, call.exchange.ctx)
        deployment = self._catalog.serving(
            {"model_name": _metadata(kwargs).get("model_group"), "litellm_params": kwargs, "model_info": info}
        )
        if running is not None and call.failure is not None:
            self._closer.fail_unreported(running, call.failure, call.exchange.ctx, call.provider_headers, call.reader)
        if isinstance(call, ClientCall):
            self._guard.beginning(call, call.exchange, deployment)
        opened = await self._begin(call, deployment, kwargs, fallback=bool(kwargs.get("fallback_depth")))
        self._add_headers(call, opened, kwargs)
        if socket is not None and (denial := await socket.chosen()) is not None:
            raise denial_error(denial)
        if not call.cools_down:
            kwargs["model_info"] = {**info, "cooldown_time": 0}
        return kwargs

    def _add_headers(self, call: Call, opened: OpenAttempt, kwargs: dict[str, Any]) -> None:
        """Add the route's headers, and those that make the provider's spans findable from ours, and LiteLLM's."""
        assert call.exchange is not None  # noqa: S101  # an attempt has one
        headers = dict(call.exchange.route.upstream_headers)
        if opened.span is not None:
            facts = {"litellm.call_id": str(kwargs.get("litellm_call_id") or "")}
            if opened.attempt.kind is AttemptKind.FALLBACK and isinstance(call, ClientCall):
                facts["pointsman.fallback.rule"] = fallback_rule(call, opened.attempt.deployment.group)
            self._host.tracing.set(opened.span, facts)
            headers |= outgoing_headers(opened.span)
        if headers:
            kwargs["extra_headers"] = {**(kwargs.get("extra_headers") or {}), **headers}
        if call.exchange.ctx.endpoint in _WITHOUT_EXTRA_HEADERS:
            call.unsent_headers = headers

    def log_pre_api_call(self, model: str, messages: Any, kwargs: Mapping[str, Any]) -> None:
        """Note that LiteLLM is about to ask a provider, however it reaches it; for answers from its cache it does not."""
        if (call := current_call.get()) is not None:
            call.prepares()

    async def async_post_call_success_deployment_hook(
        self, request_data: dict[str, Any], response: Any, call_type: Any
    ) -> None:
        """Keep what the provider reports; the attempt is closed when LiteLLM has priced the answer."""
        call = current_call.get()
        running = None if call is None else call.running
        if call is not None and call.exchange is not None and running is not None:
            self._closer.keep(running, response, _headers(call, request_data, response), call.exchange.ctx)

    async def async_post_call_failure_deployment_hook(
        self, request_data: Mapping[str, Any], exception: Exception, call_type: Any, fallback_depth: int | None = None
    ) -> None:
        """Close a failed attempt."""
        call = current_call.get()
        running = None if call is None else call.running
        if running is not None:
            self._closer.fail(running, exception)

    async def async_post_call_success_hook(self, data: dict[str, Any], user_api_key_dict: Any, response: Any) -> None:
        """Close the attempt of a plain request."""
        call = client_call()
        exchange = None if call is None else call.exchange
        if call is None or exchange is None:
            return
        ctx = exchange.ctx
        method, path = str(call.scope.get("method") or ""), call.path
        await kept_objects.answered(self._host.owners, ctx, method, path, response)
        if (running := call.running) is None:
            return
        later = ctx.endpoint in stored_answers.STORED and await self._charged_later(
            call, running, response, user_api_key_dict
        )
        if call.followed:
            return
        cached = request_values.from_cache(data.get("litellm_logging_obj"))
        # Not the context of before: what is charged now has changed it.
        self._closer.succeed(running, response, exchange.ctx, cached=cached, later=later)

    async def _charged_later(self, call: ClientCall, running: OpenAttempt, response: Any, key: Any) -> bool:
        """Return whether an answer is charged when its usage is seen; a read that sees it first is charged."""
        deferred, exchange = self._host.deferred, call.exchange
        assert exchange is not None  # noqa: S101  # it has an attempt
        if (pending := stored_answers.later(exchange.ctx, response)) is not None:
            if exchange.ctx.endpoint is Endpoint.RESPONSES:
                call.followed = await self._background.follow(exchange, running, response, pending)
                return call.followed
            return await self._background.follow_batch(exchange, running, response, pending, key=key)
        if (shown := stored_answers.complete(exchange.ctx, response)) is not None:
            origin = await deferred.claim(shown)
            if origin is not None:
                exchange.charge(origin.model, self._catalog.by_id(origin.deployment))
                self._background.charged(shown)
        return False

    async def async_log_success_event(
        self, kwargs: Mapping[str, Any], response_obj: Any, start_time: Any, end_time: Any
    ) -> None:
        """Note the cost that LiteLLM has logged; it does so in the background, when the answer is out."""
        call = current_call.get()
        logged = kwargs.get("standard_logging_object")
        if call is None or not isinstance(logged, dict) or (isinstance(call, ClientCall) and call.followed):
            return
        opened = _logged(call, kwargs).latest
        # A guardrail may ask another model on behalf of the same request.
        if opened is not None and logged.get("model_id") in {opened.attempt.deployment.id, "", None}:
            self._closer.log(opened, logged, response_obj)

    async def async_log_failure_event(
        self, kwargs: Mapping[str, Any], response_obj: Any, start_time: Any, end_time: Any
    ) -> None:
        """Note why LiteLLM says that a call has failed, in case that no callback of the attempt is told, and what it cost.

        A stream that did not reach its end may have cost something.
        """
        call = current_call.get()
        logged, error = kwargs.get("standard_logging_object"), kwargs.get("exception")
        if call is None or not isinstance(logged, Mapping):
            return
        call = _logged(call, kwargs)
        model_id, running = logged.get("model_id"), call.running
        if (
            running is not None
            and isinstance(error, Exception)
            and model_id in {running.attempt.deployment.id, "", None}
        ):
            call.failure = error
        if (failed := call.failed_on(model_id)) is not None:
            self._closer.log_failure(failed, logged)

    def finish(self, call: ClientCall) -> None:
        """Close what is still open when the answer is out."""
        if (exchange := call.exchange) is None:
            return
        self._finish(call, exchange)
        if exchange.ctx.generates:
            self._note_objects(call, exchange)

    def _finish(self, call: ClientCall, exchange: Exchange) -> None:
        if (running := call.running) is None:
            return
        if call.failure is not None and call.status >= _FIRST_ERROR and not call.gone:
            self._closer.fail_unreported(running, call.failure, exchange.ctx, call.provider_headers, call.reader)
        elif call.passes_through and is_broken(running.listeners):
            self._closer.finish_pass_through(running, exchange.ctx, call.status)
        elif running.answered or (0 < call.status < _FIRST_ERROR and not call.gone):
            self._closer.finish(running, exchange.ctx)
        elif call.passes_through:
            self._closer.finish_pass_through(running, exchange.ctx, call.status)

    def _note_objects(self, call: ClientCall, exchange: Exchange) -> None:
        """Note in the background whose it is what the answers to a request have made."""
        ctx = exchange.ctx
        if ctx.identity.tenant is None:
            return
        kept = endpoints.answers_are_kept(ctx.endpoint, call.path)
        # LiteLLM guards these itself; but where a plugin has reserved something, it reserves what a later request reads again.
        guarded = (
            ctx.endpoint is Endpoint.RESPONSES
            and ctx.body.get("store") is not False
            and bool(exchange.route.reservations)
        )
        for opened in exchange.attempts:
            ids = [*heard_objects(opened.listeners, kept=kept or guarded)]
            if guarded:
                # Where it translates another API, LiteLLM's own id is not the provider's.
                ids.append(response_id(opened.answered.get("response")) or "")
                if opened is exchange.current and call.reader is not None:
                    ids.append(call.reader.id or "")
            if any(ids):
                usage = opened.attempt.usage
                noting = kept_objects.made(self._host.owners, ctx, ids, 0 if usage is None else usage.total_tokens)
                self._host.spawn(noting, name="note objects")

    # -- streams ------------------------------------------------------------------------------------------------------

    def async_post_call_streaming_iterator_hook(
        self, user_api_key_dict: Any, response: Any, request_data: dict[str, Any]
    ) -> Any:
        """Pass a stream on untouched, and close its attempt when it ends, however it ends."""
        call = client_call()
        if call is None or call.exchange is None:
            return response
        if call.executed:
            return _executed(call, response)
        return self._watched(call, call.exchange, response, request_data)

    async def _watched(self, call: ClientCall, exchange: Exchange, response: Any, request_data: dict[str, Any]) -> Any:
        seen: StreamReader | None = None
        error: BaseException | None = None
        try:
            async for piece in response:
                # LiteLLM may have gone on to another attempt, which has a reader of its own.
                if (reader := call.reader) is None:
                    reader = call.reader = StreamReader()
                if reader.read(piece) and reader is not seen:
                    seen = reader
                    if (running := call.running) is not None:
                        running.first_token()
                yield piece
        except (asyncio.CancelledError, GeneratorExit) as err:
            call.leave()
            error = err
            raise
        except BaseException as err:
            error = err
            raise
        finally:
            if error is None:
                # The client is told of the end by an event that LiteLLM adds, before the last message of the answer.
                exchange.answered()
            if (running := call.running) is not None:
                headers = _headers(call, request_data, response)
                cached = request_values.from_cache(request_data.get("litellm_logging_obj"))
                reader = call.reader or StreamReader()
                reader.read_inner(response)
                self._closer.end_stream(running, reader, headers, error, exchange.ctx, cached=cached)
            if error is not None and (close := getattr(response, "aclose", None)) is not None:
                # LiteLLM closes what it reads, which is this generator: the provider would go on until the garbage
                # collector finds its answer.
                await close()


#: LiteLLM forgets ``extra_headers`` there.
_WITHOUT_EXTRA_HEADERS: Final = frozenset(
    {Endpoint.MODERATIONS, Endpoint.RERANK, Endpoint.SPEECH, Endpoint.TRANSCRIPTIONS}
)
#: HTTP's first error status.
_FIRST_ERROR: Final = 400
#: Names of models are written by operators; LiteLLM's longest is shorter than a hundred.
_MOST_MODEL_CHARS: Final = 512
#: No API has a tenth of them.
_MOST_FIELDS: Final = 2_000


def _unfit(data: dict[str, Any], catalog: RouterCatalog, most_retries: int) -> Denial | None:
    """Return why a request is refused before any plugin sees it. Retries are capped.

    Args:
        data: LiteLLM's request.
        catalog: The deployments.
        most_retries: The most retries that the client may ask for.
    """
    if (denial := _unfit_size(data, catalog)) is not None:
        return denial
    status = 400
    if isinstance(extra := data.get("extra_body"), Mapping) and (misplaced := sorted(_TOP_LEVEL & set(extra))):
        # The SDK underneath writes these over the body that was admitted.
        message = f"extra_body must not contain {', '.join(misplaced)}; set it at the top level of the request."
        return Denial(status=status, code="extra_body_not_supported", message=message, param="extra_body")
    if data.get("deployment_id") is not None:
        # LiteLLM would ask the provider for this model, whatever was admitted.
        message = "deployment_id must not be set; name a model of the gateway's in model."
        return Denial(status=status, code="deployment_id_not_supported", message=message, param="deployment_id")
    if SETTINGS.isdisjoint(data):
        return None
    if (setting := too_long(data)) is not None:
        message = f"{setting} has more than {MOST_SETTING_CHARS} characters; send a shorter one."
        return Denial(status=status, code="setting_too_long", message=message, param=setting)
    if (odd := misshapen(data)) is not None:
        message = f"{odd[0]} must be {odd[1]}."
        return Denial(status=status, code="invalid_setting", message=message, param=odd[0])
    if (wrong := wrong_timeout(data)) is not None:
        message = f"{wrong} must be a number of seconds that is not negative."
        return Denial(status=status, code="invalid_timeout", message=message, param=wrong)
    if (wrong := cap_retries(data, most_retries)) is not None:
        message = f"{wrong} must be a whole number that is not negative."
        return Denial(status=status, code="invalid_retries", message=message, param=wrong)
    return None


def _unfit_size(data: Mapping[str, Any], catalog: RouterCatalog) -> Denial | None:
    """Return why a request is refused that has too many fields, or whose model has too many characters or is several."""
    model, status = data.get("model"), 400
    if len(data) > _MOST_FIELDS:
        # LiteLLM looks at each of them again and again.
        message = f"The request has {len(data)} fields; at most {_MOST_FIELDS} are possible."
        return Denial(status=status, code="too_many_fields", message=message)
    if isinstance(model, str) and len(model) > _MOST_MODEL_CHARS:
        # It would be in spans, in the journal and in every store.
        message = f"The model's name has {len(model)} characters; at most {_MOST_MODEL_CHARS} are possible."
        return Denial(status=status, code="model_name_too_long", message=message, param="model")
    if isinstance(model, str) and "," in model and not catalog.is_listed(model):
        # LiteLLM would call each of them at once: admitted once, accounted for once, answered several times.
        message = "This gateway accepts one model per request; send one request for each model."
        return Denial(status=status, code="model_list_not_supported", message=message, param="model")
    return None


#: Parameters in which a client chooses a provider.
_PROVIDER_FIELDS: Final = ("custom_llm_provider", "azure")
#: Parameters that decide where a request goes, what it asks and how much it may cost: they are admitted in the body.
_TOP_LEVEL: Final = frozenset(
    {
        "background",
        "best_of",
        "config",
        "contents",
        "document",
        "documents",
        "duration",
        "fallbacks",
        "input",
        "max_completion_tokens",
        "max_output_tokens",
        "max_tokens",
        "messages",
        "modalities",
        "model",
        "models",
        "n",
        "pages",
        "prompt",
        "quality",
        "resolution",
        "seconds",
        "service_tier",
        "size",
        "store",
        "stream",
        "tools",
    }
)


async def _executed(call: ClientCall, response: Any) -> Any:
    """Pass on what an executor answers; its attempts are closed where they were started."""
    try:
        async for piece in response:
            yield piece
    except (asyncio.CancelledError, GeneratorExit):
        call.leave()
        raise
    finally:
        # LiteLLM does not tell the executor that its client has gone.
        await response.aclose()


def _logged(call: Call, kwargs: Mapping[str, Any]) -> Call:
    return call.logged_as(kwargs.get("litellm_call_id")) if isinstance(call, ClientCall) else call


def _metadata(kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
    for name in ("litellm_metadata", "metadata"):
        found = kwargs.get(name)
        if (type(found) is dict or isinstance(found, Mapping)) and "model_group" in found:
            return found
    return {}


def _details(request_data: Mapping[str, Any]) -> Mapping[str, Any]:
    return getattr(request_data.get("litellm_logging_obj"), "model_call_details", None) or {}


def _headers(call: Call, request_data: Mapping[str, Any], response: Any) -> dict[str, str]:
    """Return the provider's headers from the first place that has them."""
    return request_values.provider_headers(
        _details(request_data).get("response_headers"),
        request_values.hidden_params(response).get("additional_headers"),
        call.provider_headers,
    )


def _context(
    call: ClientCall, key: Any, data: Mapping[str, Any], call_type: str, catalog: RouterCatalog, *, received_at: float
) -> RequestContext:
    call_type = str(getattr(call_type, "value", call_type))
    headers = request_values.client_headers(call.scope["headers"], proxy_server.general_settings)
    body = bodies.sent(call.sent, data)
    if call.socket is not None:
        # What it asks comes in its events.
        body = {"model": data.get("model")}
    path = call.path
    endpoint = endpoints.endpoint(call_type, path)
    body |= bodies.uploads(endpoint, data)
    model, stream = data.get("model"), data.get("stream") is True or call.socket is not None
    if endpoint is Endpoint.PASS_THROUGH:
        model = endpoints.asked_model(path, model)
        stream = stream or "stream" in path.rpartition("/")[2].lower()
    elif endpoints.in_file(call_type):
        # Its own model only names an account: those that it asks stand in a file that is not known here.
        model = None
    asked = str(model or "")
    # A provider's own API knows no alias of ours.
    model = asked if endpoint is Endpoint.PASS_THROUGH else catalog.resolved(asked)
    return RequestContext(
        request_id=call.request_id,
        call_id=data.get("litellm_call_id"),
        endpoint=endpoint,
        # A connection uses nothing; each response on it is a request of its own.
        generates=call.socket is None and endpoints.generates(call_type, str(call.scope.get("method", ""))),
        model=model,
        alias=asked if model != asked else None,
        stream=stream,
        identity=request_values.identity(key, end_user_of(body), call.identity),
        client_host=call.peer,
        session_id=session_of(headers, body),
        headers=headers,
        body=MappingProxyType(body),
        received_at=received_at,
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
