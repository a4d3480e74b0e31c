"""Where LiteLLM goes on when a pick finds no deployment, read from its own forms of fallbacks."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from pointsman.types import Deployment, Route


@pytest.fixture
def next_groups() -> Any:
    return pytest.importorskip("pointsman.litellm.fallbacks").next_groups


@pytest.mark.parametrize(
    ("fallbacks", "asked", "group", "expected"),
    [
        ([{"a": ["b", "c"]}], "a", "a", ["b", "c"]),
        ([{"a": ["b", "c"]}], "a", "b", ["c"]),
        ([{"a": ["b", "c"]}], "a", "c", []),
        ([{"a": ["b"]}], "x", "x", []),
        ([{"*": ["b"]}], "a", "a", ["b"]),
        ([{"*": ["b"]}], "b", "b", []),
        ([{"a": ["c"]}, {"*": ["b"]}], "a", "a", ["c"]),
        (["b", "c"], "a", "b", ["c"]),
        ([{"model": "b", "temperature": 0}], "a", "a", ["b"]),
        ([{"a": ["b"]}], "a", "elsewhere", []),
        ([], "a", "a", []),
        (None, "a", "a", []),
        ("b", "a", "a", []),
    ],
)
def test_the_groups_that_come_next(
    next_groups: Any, fallbacks: object, asked: str, group: str, expected: list[str]
) -> None:
    assert next_groups(fallbacks, asked=asked, group=group) == expected


class Names:
    """What LiteLLM's catalog knows: two groups, an alias of one, and a deployment of the other."""

    def resolved(self, name: str) -> str:
        return "b" if name == "alias-of-b" else name

    def is_group(self, name: str) -> bool:
        return name in {"a", "b"}

    def deployments(self, name: str) -> list[Deployment]:
        return [Deployment(id="b-1", group="b", provider="openai", model="m")] if name in {"b", "b-1"} else []


@pytest.fixture
def follow(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that returns what a request's lists are, with a router's settings."""
    module = pytest.importorskip("pointsman.litellm.fallbacks")

    def call(route: Route, asked: str = "name", data: dict[str, Any] | None = None, **settings: Any) -> dict[str, Any]:
        monkeypatch.setattr(module, "router", lambda: SimpleNamespace(**{"fallbacks": [], **settings}))
        request = {"model": route.target, **(data or {})}
        module.follow_route(request, route, asked=asked, catalog=Names())
        return {k: v for k, v in request.items() if k not in {"model", "router_settings_override"}}

    return call


TO_B = Route(target="a", fallbacks=("b",))


@pytest.mark.parametrize(
    ("brought", "expected"),
    [
        (["x"], ["b", "x"]),
        ([{"model": "x", "temperature": 0}], [{"model": "b"}, {"model": "x", "temperature": 0}]),
        ([{"name": ["x"]}], [{"a": ["b", "x"]}, {"name": ["x"]}]),
        ([{"a": ["x"]}, {"name": ["y"]}], [{"a": ["b", "x"]}, {"a": ["x"]}, {"name": ["y"]}]),
        ([], [{"a": ["b"]}]),
        ([7, {}, None], [{"a": ["b"]}, 7, {}, None]),
        ([{"a": "x"}], [{"a": ["b"]}, {"a": "x"}]),
    ],
)
def test_the_clients_own_fallbacks_follow_those_of_the_route(follow: Any, brought: object, expected: object) -> None:
    assert follow(TO_B, data={"fallbacks": brought}, fallbacks=[{"b": ["z"]}]) == {"fallbacks": expected}
    of_key = {"router_settings_override": {"fallbacks": brought}}
    assert follow(TO_B, data=of_key, fallbacks=[{"b": ["z"]}]) == {"fallbacks": expected}


@pytest.mark.parametrize(
    ("configured", "chain"),
    [
        ([], ["b"]),
        ([{"b": ["x"]}, {"a": ["y"]}], ["b", "x", "y"]),
        ([{"b": ["x"]}, {"name": ["y"]}], ["b", "x", "y"]),
        ([{"b": ["a", "x"]}, {"a": ["x", "b"]}], ["b", "x"]),
        ([{"*": ["x"]}], ["b", "x"]),
        ([{"b": ["y"]}, {"*": ["x"]}], ["b", "y", "x"]),
    ],
)
@pytest.mark.parametrize("fallback", ["b", "alias-of-b", "b-1"])
def test_the_configured_fallbacks_follow_those_of_the_route(
    follow: Any, configured: list[Any], chain: list[str], fallback: str
) -> None:
    """Those of its fallback first, then those of its target, or of what the client asked for; each one once."""
    found = follow(Route(target="a", fallbacks=(fallback,)), fallbacks=configured)["fallbacks"]
    assert found[1:] == configured
    assert [name for name in found[0]["a"] if name not in {"b", fallback}] == chain[1:]
    assert found[0]["a"][0] == fallback


def test_each_kind_of_error_has_a_list_of_its_own(follow: Any) -> None:
    found = follow(TO_B, context_window_fallbacks=[{"b": ["large"]}], content_policy_fallbacks=None)
    assert found == {"fallbacks": [{"a": ["b"]}], "context_window_fallbacks": [{"a": ["b", "large"]}, {"b": ["large"]}]}


@pytest.mark.parametrize(
    ("target", "configured", "expected"),
    [
        ("name", [{"name": ["x"]}], None),
        ("a", [{"name": ["x"]}], ["x"]),
        ("a", [{"name": ["x"]}, {"a": ["y"]}], None),
        ("a", [{"name": ["x"]}, {"*": ["y"]}], ["x"]),
        ("a", [{"*": ["y"]}], None),
        ("a", [], None),
    ],
)
def test_a_target_without_fallbacks_has_those_of_what_the_client_asked_for(
    follow: Any, target: str, configured: list[Any], expected: list[str] | None
) -> None:
    found = follow(Route(target=target), fallbacks=configured)
    assert found == ({} if expected is None else {"fallbacks": [{target: expected}, *configured]})
