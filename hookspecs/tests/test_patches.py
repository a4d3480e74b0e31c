"""What the bridge relies on in LiteLLM: it is there, and where it is not, the start says what that means."""

from __future__ import annotations

import ast
import logging
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pointsman.errors import ConfigError
from pointsman.host.versions import SUPPORTED
from pointsman.types import Endpoint


@pytest.fixture
def patches() -> Any:
    return pytest.importorskip("pointsman.litellm.patches")


@pytest.fixture
def callbacks(patches: Any) -> Any:
    return pytest.importorskip("pointsman.litellm.callbacks").Callbacks


async def work() -> None:
    """Start or stop nothing."""


def _plain(model_id: str) -> str:
    return model_id


def table(patches: Any, callbacks: Any) -> list[Any]:
    catalog = SimpleNamespace(listed_info=lambda _: {})
    selection = SimpleNamespace(around_healthy=None, around_pick=work, around_select=None, around_refused_pick=None)
    guard = pytest.importorskip("pointsman.litellm.guard").Guard(lambda _: "deny")
    return [
        *patches.used(callbacks),
        *patches.of_proxy(start=work, stop=work, finish=lambda _: None, catalog=catalog),
        *patches.of_selection(selection),
        *patches.of_filters(),
        *patches.of_providers(guard, work),
    ]


def patch(patches: Any, owner: Any, name: str = "target", **fields: Any) -> Any:
    given = {"expected": patches.anything, "consequence": "nothing works", "replace": lambda old: (old, "new")}
    return patches.Patch(owner=owner, name=name, where="there", **(given | fields))


def test_this_litellm_is_as_expected(patches: Any, callbacks: Any) -> None:
    router = pytest.importorskip("litellm").Router(model_list=[])
    assert patches.faults(table(patches, callbacks)) == {}
    assert patches.faults(patches.of_router(router, _parts(patches))) == {}


def test_each_missing_target_is_reported_with_its_consequence(patches: Any, callbacks: Any) -> None:
    for entry in table(patches, callbacks):
        broken = replace(entry, owner=SimpleNamespace())
        assert broken.fault() == f"{entry.where}.{entry.name} is missing: {entry.consequence}"


def test_whatever_the_bridge_reads_at_run_time_is_checked_at_the_start(patches: Any, callbacks: Any) -> None:
    """What it imports is checked by its import."""
    checked = {(entry.where, entry.name) for entry in table(patches, callbacks)}
    modules = {"litellm": "litellm", "proxy_server": "litellm.proxy.proxy_server"}
    read = set()
    for file in Path(patches.__file__).parents[1].rglob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for function in ast.walk(tree):
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                for node in ast.walk(function):
                    if (
                        isinstance(node, ast.Attribute)
                        and isinstance(node.value, ast.Name)
                        and node.value.id in modules
                    ):
                        read.add((modules[node.value.id], node.attr))
    assert len(read) > 10
    assert {one for one in read if one not in checked and one not in PUBLIC} == set()


#: Documented by LiteLLM, or known to exist since a patch has them as its owner.
PUBLIC = {
    ("litellm", "Timeout"),
    ("litellm", "Usage"),
    ("litellm", "disable_token_counter"),
    ("litellm", "json_logs"),
    ("litellm", "utils"),
    ("litellm.proxy.proxy_server", "app"),
    ("litellm.proxy.proxy_server", "proxy_config"),
}


@pytest.mark.parametrize(
    ("expected", "value", "fault"),
    [
        ("a_path", "/etc/litellm.yaml", None),
        ("a_path", None, None),
        ("a_path", _plain, "is no path"),
        ("a_reader", {}.copy, None),
        ("a_reader", lambda: None, "returns no mapping"),
        ("a_reader", lambda key: {key: 1}, "asks for arguments"),
        ("a_reader", 17, "is not a function"),
    ],
)
def test_the_shape_of_a_value(patches: Any, expected: str, value: Any, fault: str | None) -> None:
    assert getattr(patches.patch, expected)(value) == fault


def test_a_filter_that_cannot_be_watched_is_named_with_what_traces_will_not_say(patches: Any) -> None:
    for entry in patches.of_filters():
        other = replace(entry, owner=SimpleNamespace(**{entry.name: lambda deployments: deployments}))
        assert str(other.fault()).startswith(
            f"{entry.where}.{entry.name} has no parameter 'healthy_deployments': traces do not say of a deployment"
        )


def test_what_the_accounting_of_requests_depends_on_is_required(patches: Any, callbacks: Any) -> None:
    required = {entry.name for entry in table(patches, callbacks) if entry.required}
    assert required >= {
        "middleware_stack",
        "initialize_shared_aiohttp_session",
        "proxy_shutdown_event",
        "get_config_state",
        "async_pre_call_hook",
        "async_pre_call_deployment_hook",
        "async_post_call_failure_deployment_hook",
        "async_post_call_streaming_iterator_hook",
        "user_api_key_auth_builder",
        "send",
        "create_connection",
    }
    assert required.isdisjoint({"DEFAULT_MAX_RETRIES", "set_cache", "create_model_info_response"})


def test_a_required_target_that_is_missing_stops_the_start_before_anything_is_replaced(patches: Any) -> None:
    owner = SimpleNamespace(target=1)
    with pytest.raises(ConfigError) as stopped:
        patches.apply(
            [patch(patches, owner), patch(patches, owner, "gone", required=True, consequence="bills are lost")]
        )
    assert "there.gone is missing: bills are lost" in str(stopped.value)
    assert SUPPORTED in str(stopped.value)
    assert owner.target == 1


def test_what_is_missing_and_not_required_is_one_error_and_the_rest_is_replaced(
    patches: Any, caplog: pytest.LogCaptureFixture
) -> None:
    owner = SimpleNamespace(target=1)
    missing = [patch(patches, owner, name, consequence=f"no {name}") for name in ("a", "b")]
    fitting = patch(patches, owner)
    with caplog.at_level(logging.ERROR, "pointsman"):
        assert patches.apply([*missing, fitting]) == [fitting]
    assert owner.target == (1, "new")
    (record,) = caplog.records
    assert "there.a is missing: no a; there.b is missing: no b" in record.getMessage()


def test_a_target_that_is_only_used_is_checked_and_left_as_it_is(patches: Any) -> None:
    owner = SimpleNamespace(target=1)
    used = patch(patches, owner, replace=None)
    assert patches.apply([used]) == [used]
    assert owner.target == 1


async def _asynchronous(request: object) -> object:
    return request


@pytest.mark.parametrize(
    ("expected", "target", "fault"),
    [
        (("a_function", ("model_id",)), _plain, None),
        (("a_function", ("model",)), _plain, "has no parameter 'model'"),
        (("a_function", ()), 1, "is not a function"),
        (("an_async_function", ("request",)), _asynchronous, None),
        (("an_async_function", ("body",)), _asynchronous, "has no parameter 'body'"),
        (("an_async_function", ()), _plain, "is not an async function"),
        (("a_function", ("key",)), dict, "has parameters that cannot be looked at"),
    ],
)
def test_the_shape_of_a_target(
    patches: Any, expected: tuple[str, tuple[str, ...]], target: Any, fault: str | None
) -> None:
    name, parameters = expected
    entry = patch(patches, SimpleNamespace(target=target), expected=getattr(patches, name)(*parameters))
    assert entry.fault() == (None if fault is None else f"there.target {fault}: nothing works")


def test_a_hook_that_litellm_calls_with_more_than_ours_takes_is_found(patches: Any) -> None:
    class Ours:
        async def async_pre_call_hook(self, data: object) -> None: ...

    (fault,) = patches.faults(patches.used(Ours)).values()
    assert "has parameters that Pointsman does not know (user_api_key_dict, cache, call_type)" in fault


async def test_the_attempts_of_a_router_are_replaced_once(patches: Any) -> None:
    """LiteLLM makes a new router when its configuration changes; the same one must not be wrapped twice."""

    async def make_call(original_function: object) -> str:
        return f"plain {original_function}"

    router = SimpleNamespace(
        make_call=make_call, acompletion=_plain, async_function_with_fallbacks_common_utils=make_call
    )
    for _ in range(2):
        assert patches.apply_to_router(router, _parts(patches), Endpoint.CHAT)
    assert await router.make_call("attempt") == "around plain attempt"
    assert router.acompletion is _plain
    assert not patches.apply_to_router(router, _parts(patches), Endpoint.OTHER)
    assert not patches.apply_to_router(None, _parts(patches), Endpoint.CHAT)


async def test_a_router_without_attempts_executes_nothing(patches: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Its requests are plain ones, and an operator is told."""
    router = SimpleNamespace(acompletion=_plain)
    with caplog.at_level(logging.ERROR, "pointsman"):
        assert not patches.apply_to_router(router, _parts(patches), Endpoint.CHAT)
    assert router.acompletion is _plain
    (record,) = caplog.records
    assert "litellm.Router.make_call is missing: no plugin can execute requests" in record.getMessage()


def _parts(patches: Any) -> Any:
    return patches.RouterParts(attempt=_around, fallbacks=_around, native_pick=_around, native_attempt=_around)


def _around(inner: Any) -> Any:
    async def routed(*args: object, **given: object) -> str:
        return f"around {await inner(*args, **given)}"

    return routed


def test_a_native_router_that_has_moved_is_reported_with_what_is_lost(
    patches: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patches.routers, "NATIVE_ROUTER", True)
    monkeypatch.setattr(patches.routers.native_router, "WHERE", "litellm.moved")
    faults = list(patches.faults(patches.of_router(object(), _parts(patches))).values())
    assert (
        faults[0]
        == "litellm.moved._Driver.pre_route is missing: no plugin can execute requests: races are plain requests"
    )
    assert len(faults) == len(patches.of_router(object(), _parts(patches)))
