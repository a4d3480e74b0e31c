"""Default deny: what may reach a provider, asked of the part that decides it, for each state that a request can be in."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import httpx
import pytest

from pointsman.testing import deployment
from pointsman.types import Denial, Deployment, Endpoint, Identity, RequestContext

# LiteLLM's own warnings are not ours.
calls = pytest.importorskip("pointsman.litellm.call")
guards = pytest.importorskip("pointsman.litellm.guard")
proxy_server = pytest.importorskip("litellm.proxy.proxy_server")
keys = pytest.importorskip("litellm.proxy._types")
providers = pytest.importorskip("litellm.types.llms.custom_http").httpxSpecialProvider

Unmetered: Final = calls.UnmeteredError
CHAT: Final = deployment("chat-1", model="gpt-4o-mini")
UNNAMED: Final = deployment("", model="")
CONFIGURED: Final = [{"path": "/mine"}, {"path": 3}, "odd"]


@dataclass
class Exchange:
    """What the guard looks at of an exchange."""

    ctx: RequestContext
    denial: Denial | None = None
    attempts: list[object] = field(default_factory=list)


def exchange(endpoint: Endpoint, *, generates: bool = True, **more: Any) -> Exchange:
    facts: dict[str, Any] = {"request_id": "1", "model": "chat", "stream": False, "received_at": 0.0}
    return Exchange(RequestContext(**facts, endpoint=endpoint, generates=generates, identity=Identity()), **more)


def running(path: str = "/v1/files", *, type_: str = "http", admin: bool | None = False, **more: Any) -> Any:
    """Make the call that runs: LiteLLM has authenticated a tenant."""
    call = calls.ClientCall("1", {"type": type_, "method": "POST", "path": path, **more})
    if admin is not None:
        call.let_in(admin=admin, key="")
    calls.current_call.set(call)
    return call


@pytest.fixture(autouse=True)
def no_call() -> Iterator[None]:
    """Leave no call behind for other tests."""
    token = calls.current_call.set(None)
    yield
    calls.current_call.reset(token)


@pytest.fixture
def guard(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(proxy_server, "general_settings", {"pass_through_endpoints": CONFIGURED})
    return guards.Guard(lambda path: "allow" if path.startswith("/open") else "deny")


@pytest.mark.parametrize("policy", ["deny", "allow"])
def test_what_no_callback_has_admitted_follows_the_policy_of_its_route(guard: Any, policy: str) -> None:
    call = running("/root/open/x" if policy == "allow" else "/root/closed/x", root_path="/root")
    if policy == "allow":
        guard.check()
        assert call.denial is None
        return
    with pytest.raises(Unmetered):
        guard.check()
    assert (call.denial.status, call.denial.code) == (403, "unmetered_route")
    assert "'/closed/x'" in call.denial.message


@pytest.mark.parametrize(
    ("endpoint", "generates", "attempts", "passes"),
    [
        (Endpoint.CHAT, True, 0, True),  # before its attempt, such as for a cache that embeds the prompt
        (Endpoint.VECTOR_STORES, True, 0, False),
        (Endpoint.VECTOR_STORES, True, 1, True),
        (Endpoint.VECTOR_STORES, False, 0, True),
        (Endpoint.OTHER, True, 0, False),
    ],
)
def test_what_was_admitted_reaches_a_provider_where_it_is_metered(
    guard: Any, endpoint: Endpoint, generates: bool, attempts: int, passes: bool
) -> None:
    call = running()
    call.exchange = exchange(endpoint, generates=generates, attempts=[object()] * attempts)
    if passes:
        guard.check()
        return
    with pytest.raises(Unmetered):
        guard.check()


def test_a_denied_request_reaches_no_provider_whatever_litellm_goes_on_with(guard: Any) -> None:
    call = running("/open/x")
    no = Denial(status=429, code="no", message="No.")
    call.exchange = exchange(Endpoint.CHAT, denial=no, attempts=[object()])
    with pytest.raises(Unmetered):
        guard.check()
    assert call.denial is None  # the request has its own already


@pytest.mark.parametrize("admin", [True, None], ids=["administrator", "not authenticated"])
def test_administrators_and_what_litellm_does_before_it_knows_the_caller_pass(guard: Any, admin: bool | None) -> None:
    running(admin=admin)
    guard.check()


def test_background_work_of_a_request_that_is_over_passes(guard: Any) -> None:
    running().end()
    guard.check()


async def test_callbacks_of_the_operators_may_use_the_network(guard: Any) -> None:
    running()

    async def hook(value: int, *, more: int) -> int:
        guard.check()
        return value + more

    assert await guard.around_callbacks(hook)(1, more=2) == 3
    with pytest.raises(Unmetered):
        guard.check()


def test_calls_of_our_own_and_work_outside_of_requests_pass(guard: Any) -> None:
    guard.check()
    guard.authenticated(keys.UserAPIKeyAuth())
    guard.sending(object())


@pytest.mark.parametrize("type_", ["http", "websocket"])
@pytest.mark.parametrize("role", ["PROXY_ADMIN", "INTERNAL_USER"])
def test_a_websocket_that_is_not_metered_ends_when_its_caller_is_known(guard: Any, type_: str, role: str) -> None:
    call = running("/vertex_ai/live", type_=type_, admin=None)
    key = keys.UserAPIKeyAuth(user_role=keys.LitellmUserRoles[role])
    if type_ == "websocket" and role == "INTERNAL_USER":
        with pytest.raises(Unmetered):
            guard.authenticated(key)
    else:
        guard.authenticated(key)
    assert call.admin is (role == "PROXY_ADMIN")


def test_a_metered_websocket_is_let_in(guard: Any) -> None:
    call = running("/v1/realtime", type_="websocket", admin=None)
    call.socket = object()
    guard.authenticated(keys.UserAPIKeyAuth())
    assert call.denial is None


@pytest.mark.parametrize(
    ("endpoint", "path", "chosen", "passes"),
    [
        (Endpoint.CHAT, "/v1/chat/completions", CHAT, True),
        (Endpoint.CHAT, "/v1/chat/completions", UNNAMED, False),
        (Endpoint.BATCHES, "/v1/batches", UNNAMED, True),
        (Endpoint.FINE_TUNING, "/v1/fine_tuning/jobs", CHAT, False),
        (Endpoint.PASS_THROUGH, "/anthropic/v1/messages", CHAT, True),
        (Endpoint.PASS_THROUGH, "/anthropic/v1/messages/batches", CHAT, False),
        (Endpoint.PASS_THROUGH, "/mine/anything", CHAT, True),
        (Endpoint.PASS_THROUGH, "/mine/anything", UNNAMED, False),
    ],
)
def test_an_attempt_is_opened_where_its_answer_can_be_metered(
    guard: Any, endpoint: Endpoint, path: str, chosen: Deployment, passes: bool
) -> None:
    call = running(path)
    if passes:
        guard.beginning(call, exchange(endpoint), chosen)
        return
    with pytest.raises(Unmetered):
        guard.beginning(call, exchange(endpoint), chosen)
    # What only reads is not metered.
    guard.beginning(call, exchange(endpoint, generates=False), chosen)


def test_an_attempt_of_an_administrator_is_opened(guard: Any) -> None:
    guard.beginning(running(admin=True), exchange(Endpoint.FINE_TUNING), CHAT)


@pytest.fixture
async def handler() -> AsyncIterator[Any]:
    """One of LiteLLM's HTTP clients."""
    found = pytest.importorskip("litellm.llms.custom_httpx.http_handler").AsyncHTTPHandler()
    yield found
    await found.close()


@pytest.mark.parametrize("late", [False, True], ids=["made later", "made before we were loaded"])
@pytest.mark.parametrize(
    ("key", "internal"),
    [
        (f"async_httpx_client{providers.SSO_HANDLER.value}", True),
        (f"async_httpx_client_timeout_3{providers.LoggingCallback.value}", True),
        ("async_httpx_clientopenai", False),
        (f"another{providers.SSO_HANDLER.value}", False),
    ],
)
async def test_litellms_own_business_is_known_by_what_its_clients_are_for(
    guard: Any, handler: Any, key: str, internal: bool, late: bool
) -> None:
    running()
    if late:
        guard.already_cached({f"{key}-140234": handler})
    else:
        guard.cached(key, handler)
    assert guard.is_internal(handler.client) is internal
    if internal:
        guard.sending(handler.client)
    else:
        with pytest.raises(Unmetered):
            guard.sending(handler.client)


async def test_a_client_that_takes_the_place_of_another_is_for_the_same(guard: Any, handler: Any) -> None:
    async with httpx.AsyncClient() as next_, httpx.AsyncClient() as engine:
        guard.replaced(handler, next_)
        assert not guard.is_internal(next_)
        guard.cached(f"async_httpx_client{providers.Caching.value}", handler)
        guard.replaced(handler, next_)
        assert guard.is_internal(next_)
        guard.cached(None, object())
        guard.trust(engine)
        running()
        guard.sending(engine)


@pytest.mark.parametrize(
    ("asks", "body", "settings", "denied"),
    [
        ("tenant", {"background": True}, {}, True),
        ("tenant, for an image", {"background": "transparent"}, {}, False),
        ("tenant", {"background": "yes"}, {}, True),
        ("tenant", {"background": False}, {}, False),
        ("tenant", {}, {}, False),
        ("administrator", {"background": True}, {}, False),
        ("tenant, where it is open", {"background": True}, {}, False),
        ("tenant", {"background": True}, {"polling_via_cache_enabled": False}, False),
        ("tenant", {"background": True}, {"native_background_mode": ["chat"]}, False),
        ("tenant", {"background": True}, {"redis_usage_cache": None}, False),
    ],
)
def test_what_litellm_asks_a_provider_after_the_request_is_settled_is_denied(  # noqa: PLR0917
    guard: Any, monkeypatch: pytest.MonkeyPatch, asks: str, body: dict[str, Any], settings: dict[str, Any], denied: bool
) -> None:
    """It would be free: LiteLLM admits it with the request, and answers it from its cache."""
    usual = {"polling_via_cache_enabled": "all", "native_background_mode": None, "redis_usage_cache": object()}
    for name, value in {**usual, **settings}.items():
        monkeypatch.setattr(proxy_server, name, value)
    denial = guard.polled(
        running("/open" if "open" in asks else "/v1/responses", admin=asks == "administrator"),
        {"model": "chat", **body},
        "aimage_generation" if "image" in asks else "aresponses",
    )
    assert (denial is not None) == denied
    assert denial is None or (denial.status, denial.param) == (403, "background")
