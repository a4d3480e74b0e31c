"""The callbacks with LiteLLM's own router and a provider's HTTP, without a proxy around them: each step of a request.

LiteLLM itself is left as it is: what is replaced in it, and what follows from that, is proven on real proxies.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest

from pointsman import PluginConfig, PluginInfo, hookimpl
from pointsman.errors import UpstreamError
from pointsman.host.deferred import Origin
from pointsman.host.settings import parse
from pointsman.plugin import Services
from pointsman.testing.provider import Behaviour, UpstreamServer
from pointsman.types import (
    Attempt,
    AttemptKind,
    Candidate,
    Denial,
    Endpoint,
    ErrorClass,
    Outcome,
    Refusal,
    Reply,
    RequestContext,
    Route,
    Settlement,
    UpstreamRequest,
)

# LiteLLM's own warnings are not ours.
litellm = pytest.importorskip("litellm")
auth = pytest.importorskip("pointsman.litellm.auth")
bridges = pytest.importorskip("pointsman.litellm.bridge")
calls = pytest.importorskip("pointsman.litellm.call")
proxy_server = pytest.importorskip("litellm.proxy.proxy_server")
keys = pytest.importorskip("litellm.proxy._types")
workers = pytest.importorskip("litellm.litellm_core_utils.logging_worker")

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")

ASK: Final = [{"role": "user", "content": "Say something."}]
LISTS: Final = (
    "callbacks", "input_callback", "success_callback", "failure_callback",
    "_async_input_callback", "_async_success_callback", "_async_failure_callback",
)  # fmt: skip
FALLBACKS: Final = [{"broken": ["spare"]}]


class Says:
    """Does what a request's headers say; keeps what it sees."""

    def __init__(self) -> None:
        self.settled: list[Settlement] = []
        self.offered: list[list[str]] = []
        self.begun = asyncio.Event()
        self.services: Services

    @hookimpl
    async def startup(self, services: Services) -> None:
        self.services = services

    @hookimpl
    async def pre_route(self, ctx: RequestContext, route: Route) -> Route | Denial | Reply | None:
        said = ctx.headers
        if "x-deny" in said:
            return Denial(status=402, code="no_credit", message="No credit.")
        if "x-reply" in said:
            return Reply(body={"choices": []})
        if "x-limits" in said:
            route = Route(target=route.target, timeout_s=7.0, retries=0, upstream_headers={"anthropic-beta": "b"})
        return route.to(said["x-target"]) if "x-target" in said else route

    @hookimpl
    def select(self, ctx: RequestContext, candidates: Sequence[Candidate]) -> Sequence[Candidate]:
        self.offered.append([candidate.deployment.id for candidate in candidates])
        return [c.drop("told to") if c.deployment.id in ctx.headers.get("x-drop", "") else c for c in candidates]

    @hookimpl
    async def before_attempt(self, ctx: RequestContext, attempt: Attempt) -> Refusal | None:
        self.begun.set()
        if ctx.headers.get("x-refuse") != attempt.deployment.id:
            return None
        return Refusal(reason="told to", status=451, code="told", retryable="x-again" in ctx.headers)

    @hookimpl
    async def transform_request(self, ctx: RequestContext, attempt: Attempt, body: Any) -> Any:
        assert attempt.number
        return {**body, "user": ctx.headers["x-user"]} if "x-user" in ctx.headers else None

    @hookimpl
    async def settle(self, settlement: Settlement) -> None:
        self.settled.append(settlement)


class Gateway:
    """The bridge of one worker beside a router, as a proxy calls it.

    Attributes:
        bridge: The bridge.
        says: The plugin.
        provider: What the deployments lead to.
    """

    def __init__(self, bridge: Any, says: Says, provider: UpstreamServer) -> None:
        self.bridge = bridge
        self.says = says
        self.provider = provider
        self.call: Any = None

    async def admit(self, model: str = "pair", *, type_: str = "acompletion", **request: Any) -> dict[str, Any]:
        """Begin a request, as LiteLLM does once it has authenticated it; return what it goes on with."""
        headers = request.pop("headers", {})
        path = request.pop("path", "/v1/chat/completions")
        scope = {"type": "http", "method": request.pop("method", "POST"), "path": path}
        scope["headers"] = [(name.encode(), value.encode()) for name, value in headers.items()]
        self.call = calls.ClientCall(self.bridge.host.new_id(), scope, "192.0.2.1")
        self.call.let_in(admin=False, key="")
        calls.current_call.set(self.call)
        data = {"model": model, "messages": ASK, "litellm_call_id": self.call.request_id, "metadata": {}, **request}
        self.call.arrive({name: value for name, value in data.items() if name not in {"litellm_call_id", "metadata"}})
        changed = await self.bridge.callbacks.async_pre_call_hook(keys.UserAPIKeyAuth(), None, data, type_)
        assert changed is data
        return data

    async def chat(self, model: str = "pair", **request: Any) -> Any:
        """Make a plain request; return the answer, or what it ends with."""
        try:
            data = await self.admit(model, **request)
            answer = await proxy_server.llm_router.acompletion(**data)
            await self.bridge.callbacks.async_post_call_success_hook(data, keys.UserAPIKeyAuth(), answer)
            self.end(200)
        except Exception as err:  # noqa: BLE001  # what it ends with is what is asked for
            self.end(getattr(err, "status_code", 500))
            return err
        return answer

    async def stream(self, model: str = "pair", *, leave_after: int = 1_000, **request: Any) -> list[Any]:
        """Make a streamed request; return its pieces, `leave_after` at most."""
        data = await self.admit(model, stream=True, **request)
        source = await proxy_server.llm_router.acompletion(**data)
        pieces: list[Any] = []
        watched = self.bridge.callbacks.async_post_call_streaming_iterator_hook(keys.UserAPIKeyAuth(), source, data)
        try:
            async for piece in watched:
                pieces.append(piece)
                if len(pieces) == leave_after:
                    break
        finally:
            await watched.aclose()
            self.end(200)
        return pieces

    def end(self, status: int) -> None:
        """End the request, as the outermost layer does."""
        self.call.start_answer(status)
        self.bridge.callbacks.finish(self.call)
        self.call.end()
        exchange = self.call.exchange
        exchange.answered()
        exchange.close(status)

    async def settlement(self) -> Settlement:
        """Return the settlement of the latest request."""
        id_ = self.call.request_id
        await workers.GLOBAL_LOGGING_WORKER.flush()
        await self.bridge.host.settled()
        (found,) = [one for one in self.says.settled if one.request_id == id_]
        return found


@pytest.fixture(scope="module")
def provider() -> Iterator[UpstreamServer]:
    with UpstreamServer() as running:
        running.behave("gpt-broken", Behaviour(error_ratios={500: 1.0}))
        running.behave("gpt-limited", Behaviour(error_ratios={429: 1.0}, retry_after_s=7))
        running.behave("gpt-breaking", Behaviour(fault="break", fault_after_events=4, tokens=20))
        yield running


@pytest.fixture
async def gateway(provider: UpstreamServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[Gateway]:
    says = Says()
    info = PluginInfo(name="says", config=PluginConfig, factory=lambda _: says)
    monkeypatch.setattr(bridges, "Host", partial(bridges.Host, available={"says": info}))
    section: dict[str, Any] = {"store": {"backend": "memory"}, "journal_window_ms": 0, "plugins": ["says"]}
    section["upstream_headers"] = ["anthropic-beta"]
    bridge = bridges.Bridge(parse(section, "test", tmp_path))

    def entry(group: str, name: str, model: str) -> dict[str, Any]:
        params = {"model": f"openai/{model}", "api_base": f"{provider.url}/v1", "api_key": "sk-provider"}
        return {"model_name": group, "litellm_params": params, "model_info": {"id": name}}

    for name in LISTS:
        monkeypatch.setattr(litellm, name, [])
    litellm.callbacks.append(bridge.callbacks)
    router = litellm.Router(
        [
            entry("pair", "pair-1", "gpt-4o-mini"),
            entry("pair", "pair-2", "gpt-4o-mini"),
            entry("spare", "spare-1", "gpt-4o"),
            entry("broken", "broken-1", "gpt-broken"),
            entry("alone", "alone-1", "gpt-broken"),
            entry("limited", "limited-1", "gpt-limited"),
            entry("breaking", "breaking-1", "gpt-breaking"),
        ],
        num_retries=0,
        fallbacks=FALLBACKS,
        disable_cooldowns=True,
    )
    monkeypatch.setattr(proxy_server, "llm_router", router)
    token = calls.current_call.set(None)
    await bridge.host.start()
    yield Gateway(bridge, says, provider)
    await workers.GLOBAL_LOGGING_WORKER.flush()
    await bridge.host.stop()
    await workers.GLOBAL_LOGGING_WORKER.stop()
    calls.current_call.reset(token)


# -- requests ---------------------------------------------------------------------------------------------------------


async def test_a_plain_request_is_one_attempt_with_the_providers_usage(gateway: Gateway) -> None:
    answer = await gateway.chat()
    assert answer.choices[0].message.content
    settlement = await gateway.settlement()
    (attempt,) = settlement.attempts
    assert (settlement.outcome, attempt.outcome, attempt.kind) == (Outcome.OK, Outcome.OK, AttemptKind.PRIMARY)
    assert attempt.usage.prompt_tokens == answer.usage.prompt_tokens
    assert attempt.cost_usd_micros > 0
    assert gateway.says.offered == [["pair-1", "pair-2"]]


async def test_a_stream_is_passed_on_and_counted(gateway: Gateway) -> None:
    pieces = await gateway.stream(stream_options={"include_usage": True})
    settlement = await gateway.settlement()
    (attempt,) = settlement.attempts
    assert (settlement.outcome, attempt.outcome, attempt.usage.estimated) == (Outcome.OK, Outcome.OK, False)
    assert attempt.usage.completion_tokens == 16
    assert attempt.first_token_ms is not None
    assert len(pieces) >= 16


async def test_a_read_that_is_the_first_to_see_what_an_answer_used_is_charged(gateway: Gateway) -> None:
    used = {"input_tokens": 9, "output_tokens": 4, "total_tokens": 13}
    answer = litellm.ResponsesAPIResponse(id="resp_kept", created_at=1, output=[], status="completed", usage=used)
    await gateway.bridge.host.deferred.remember("resp_kept", Origin("spare", "spare-1"))
    path = "/v1/responses/resp_kept"
    data = await gateway.admit("", type_="aget_responses", method="GET", path=path, model_info={"id": "spare-1"})
    await gateway.bridge.callbacks.async_pre_call_deployment_hook(data, None)
    await gateway.bridge.callbacks.async_post_call_success_hook(data, keys.UserAPIKeyAuth(), answer)
    gateway.end(200)
    settlement = await gateway.settlement()
    (attempt,) = settlement.attempts
    assert (settlement.model, settlement.generates) == ("spare", True)
    assert (attempt.usage.prompt_tokens, attempt.usage.completion_tokens) == (9, 4)
    assert attempt.cost_usd_micros > 0


async def test_the_callers_facts_can_be_read_while_litellm_adds_to_them(gateway: Gateway) -> None:
    class Adds(str):
        __slots__ = ()

        def startswith(self, *prefix: Any) -> bool:
            gateway.call.told["hidden_params"] = {}  # as a thread that logs
            return super().startswith(*prefix)

    await gateway.admit(metadata={Adds("user_api_key_alias"): "k", "tags": []})
    assert gateway.call.metadata == {"user_api_key_alias": "k"}
    gateway.end(200)


async def test_a_client_that_leaves_a_stream_is_charged_for_what_it_got(gateway: Gateway) -> None:
    await gateway.stream(leave_after=5)
    (attempt,) = (await gateway.settlement()).attempts
    assert attempt.outcome is Outcome.DISCONNECTED
    assert attempt.usage.estimated
    assert 0 < attempt.usage.completion_tokens < 16


async def test_a_stream_that_breaks_is_a_failed_attempt_with_what_it_used(gateway: Gateway) -> None:
    with pytest.raises(Exception):  # noqa: B017, PT011  # LiteLLM's own, of its version
        await gateway.stream("breaking")
    settlement = await gateway.settlement()
    attempt = settlement.attempts[-1]
    assert attempt.outcome is Outcome.ERROR
    assert attempt.usage.completion_tokens > 0


async def test_a_failure_is_classified_and_its_fallback_is_a_second_attempt(gateway: Gateway) -> None:
    answer = await gateway.chat("broken")
    assert answer.model
    settlement = await gateway.settlement()
    first, second = settlement.attempts
    assert (first.deployment.id, first.error.kind, first.error.status) == ("broken-1", ErrorClass.SERVER, 500)
    assert (second.deployment.id, second.kind, second.fallback) == ("spare-1", AttemptKind.FALLBACK, True)
    assert settlement.answered_by == second.id


@pytest.mark.parametrize(
    ("model", "kind", "status"), [("alone", ErrorClass.SERVER, 500), ("limited", ErrorClass.RATE_LIMIT, 429)]
)
async def test_a_failure_without_a_fallback_is_the_clients(
    gateway: Gateway, model: str, kind: ErrorClass, status: int
) -> None:
    error = await gateway.chat(model)
    assert error.status_code == status
    settlement = await gateway.settlement()
    assert (settlement.outcome, settlement.attempts[-1].error.kind) == (Outcome.ERROR, kind)
    if kind is ErrorClass.RATE_LIMIT:
        assert settlement.attempts[-1].error.retry_after_s == 7.0


# -- what plugins decide ----------------------------------------------------------------------------------------------


async def test_a_denial_is_litellms_exception_and_no_attempt(gateway: Gateway) -> None:
    error = await gateway.chat(headers={"x-deny": "1"})
    assert isinstance(error, auth.DenialError)
    settlement = await gateway.settlement()
    assert (settlement.outcome, settlement.attempts) == (Outcome.DENIED, ())


async def test_a_reply_ends_the_request_with_the_plugins_answer(gateway: Gateway) -> None:
    with pytest.raises(calls.EndedError):
        await gateway.admit(headers={"x-reply": "1"})
    assert gateway.call.reply.body == {"choices": []}
    gateway.end(200)
    assert (await gateway.settlement()).attempts == ()


@pytest.mark.parametrize("target", ["pair-2", "spare-1", "spare"])
async def test_a_target_is_reached_through_its_group(gateway: Gateway, target: str) -> None:
    for _ in range(3):
        await gateway.chat(headers={"x-target": target})
        (attempt,) = (await gateway.settlement()).attempts
        assert attempt.deployment.id.startswith(target)


async def test_a_dropped_candidate_is_not_called(gateway: Gateway) -> None:
    for _ in range(3):
        await gateway.chat(headers={"x-drop": "pair-1"})
        assert (await gateway.settlement()).attempts[0].deployment.id == "pair-2"


@pytest.mark.parametrize("again", [True, False], ids=["retryable", "final"])
async def test_a_refusal_ends_the_attempt_and_a_final_one_the_request(gateway: Gateway, *, again: bool) -> None:
    headers = {"x-refuse": "broken-1"} | ({"x-again": "1"} if again else {})
    if again:
        assert (await gateway.chat("broken", headers=headers)).choices
    else:
        data = await gateway.admit("broken", headers=headers)
        with pytest.raises(calls.EndedError):
            await proxy_server.llm_router.acompletion(**data)
        assert (gateway.call.denial.status, gateway.call.denial.code) == (451, "told")
        gateway.end(451)
    settlement = await gateway.settlement()
    assert settlement.attempts[0].error.kind is ErrorClass.REFUSED
    assert len(settlement.attempts) == (2 if again else 1)


async def test_what_a_plugin_changes_is_what_is_sent_and_the_routes_limits_hold(gateway: Gateway) -> None:
    data = await gateway.admit(headers={"x-user": "another", "x-limits": "1"}, timeout=30, num_retries=1)
    assert (data["timeout"], data["num_retries"]) == (7.0, 0)
    await proxy_server.llm_router.acompletion(**data)
    gateway.end(200)
    seen = gateway.provider.requests[-1]
    assert seen.body["user"] == "another"
    assert seen.headers["anthropic-beta"] == "b"
    await gateway.settlement()


# -- what clients must not do -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        ({"model": "m" * 600}, "model_name_too_long"),
        ({"model": "pair,spare"}, "model_list_not_supported"),
        ({"extra_body": {"model": "gpt-4o"}}, "extra_body_not_supported"),
        ({"deployment_id": "x"}, "deployment_id_not_supported"),
        ({"api_base": "x" * 9_000}, "setting_too_long"),
        ({"extra_headers": [1]}, "invalid_setting"),
        ({"timeout": "soon"}, "invalid_timeout"),
        ({"num_retries": -1}, "invalid_retries"),
    ],
)
async def test_what_would_circumvent_admission_is_refused_before_any_plugin(
    gateway: Gateway, request_: dict[str, Any], code: str
) -> None:
    with pytest.raises(auth.DenialError) as caught:
        await gateway.admit(**request_)
    assert caught.value.openai_code == code
    assert gateway.call.exchange is None


async def test_a_provider_that_a_client_names_does_not_replace_the_deployments(gateway: Gateway) -> None:
    data = await gateway.admit(custom_llm_provider="anthropic")
    assert "custom_llm_provider" not in data
    gateway.end(0)
    await gateway.settlement()


@pytest.mark.parametrize(("path", "counts"), [("/v1/messages/count_tokens", True), ("/v1/messages", False)])
async def test_counting_tokens_is_admitted_when_the_caller_is_known(
    gateway: Gateway, path: str, *, counts: bool
) -> None:
    gateway.call = calls.ClientCall("counting", {"type": "http", "method": "POST", "path": path, "headers": []})
    calls.current_call.set(gateway.call)
    for _ in range(2):
        await gateway.bridge.callbacks.admit_counting(keys.UserAPIKeyAuth(), {"model": "pair"})
    assert (gateway.call.exchange is not None) is counts
    if counts:
        assert not gateway.call.exchange.ctx.generates
        gateway.end(200)
        await gateway.settlement()


# -- a plugin's own calls ---------------------------------------------------------------------------------------------


def own(kind: AttemptKind = AttemptKind.JUDGE, target: str = "spare", **more: Any) -> UpstreamRequest:
    return UpstreamRequest(kind=kind, target=target, endpoint=Endpoint.CHAT, body={"messages": ASK}, **more)


async def test_a_call_of_a_plugins_own_is_one_attempt_that_no_request_pays_for(gateway: Gateway) -> None:
    upstream = gateway.says.services.upstream
    call = upstream.start(own())
    response = await call.response()
    assert response.body["choices"]
    assert (call.attempt.outcome, call.attempt.kind) == (Outcome.OK, AttemptKind.JUDGE)
    assert call.answer.text
    assert call.attempt.usage.completion_tokens == 16


async def test_a_streamed_call_says_which_pieces_have_content(gateway: Gateway) -> None:
    call = gateway.says.services.upstream.start(own(stream=True))
    text = "".join([chunk.text async for chunk in call.chunks() if chunk.has_content])
    assert text == call.answer.text
    assert call.attempt.usage.completion_tokens == 16


@pytest.mark.parametrize(
    ("target", "kind", "status"), [("alone", ErrorClass.SERVER, 500), ("limited", ErrorClass.RATE_LIMIT, 429)]
)
async def test_a_call_that_fails_says_how(gateway: Gateway, target: str, kind: ErrorClass, status: int) -> None:
    call = gateway.says.services.upstream.start(own(target=target))
    with pytest.raises(UpstreamError) as caught:
        await call.response()
    assert (caught.value.status, caught.value.error_class) == (status, str(kind))
    assert call.attempt.error.kind is kind
    assert call.answer is None


async def test_a_call_is_not_waited_for_longer_than_it_may(gateway: Gateway) -> None:
    gateway.provider.behave("gpt-4o", Behaviour(fault="hang"))
    try:
        call = gateway.says.services.upstream.start(own(timeout_s=0.3))
        with pytest.raises(UpstreamError, match="no answer within"):
            await call.response()
        assert call.attempt.error.kind is ErrorClass.TIMEOUT
        cancelled = gateway.says.services.upstream.start(own())
        await asyncio.sleep(0)
        await cancelled.cancel()
        with pytest.raises(UpstreamError, match="cancelled"):
            await cancelled.response()
    finally:
        gateway.provider.behave("gpt-4o", Behaviour())


async def test_a_call_to_nowhere_is_refused_at_once(gateway: Gateway) -> None:
    upstream = gateway.says.services.upstream
    with pytest.raises(UpstreamError, match="neither a model group"):
        upstream.start(own(target="nowhere"))
    with pytest.raises(UpstreamError, match="cannot use the endpoint"):
        upstream.start(UpstreamRequest(kind=AttemptKind.JUDGE, target="pair", endpoint=Endpoint.IMAGES, body={}))


async def test_a_call_that_was_planned_starts_later_or_not_at_all(gateway: Gateway) -> None:
    upstream = gateway.says.services.upstream
    await gateway.chat()
    parent = gateway.call.exchange.ctx
    planned = upstream.plan(AttemptKind.MIRROR, "spare", parent)
    about = upstream.plan(AttemptKind.JUDGE, "spare", parent, about=planned)
    about.drop("not needed")
    response = await planned.start(own(AttemptKind.MIRROR, parent=parent)).response()
    assert response.attempt.kind is AttemptKind.MIRROR
    lost = upstream.plan(AttemptKind.MIRROR, "nowhere", parent)
    with pytest.raises(UpstreamError):
        lost.start(own(AttemptKind.MIRROR, "nowhere"))
    settlement = await gateway.settlement()
    assert len(settlement.attempts) == 1  # of the client's request


async def test_a_call_for_a_request_ends_with_it(gateway: Gateway) -> None:
    gateway.provider.behave("gpt-4o", Behaviour(fault="hang"))
    try:
        await gateway.admit()
        hedge = gateway.says.services.upstream.start(own(AttemptKind.HEDGE))
        async with asyncio.timeout(20):
            await gateway.says.begun.wait()
        gateway.end(0)
        with pytest.raises(UpstreamError, match="its request has ended"):
            await hedge.response()
        assert hedge.attempt.outcome in {Outcome.CANCELLED, Outcome.DISCONNECTED}
        assert [a.kind for a in (await gateway.settlement()).attempts] == [AttemptKind.HEDGE]
    finally:
        gateway.provider.behave("gpt-4o", Behaviour())
