"""What is wrong with a section is said with key path, value, what is allowed and the nearest name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, SecretStr

from pointsman.config import validate
from pointsman.errors import ConfigError
from pointsman.host.settings import parse, survey, unmetered


def complaints(text: str) -> list[str]:
    found = survey(yaml.safe_load(text), "f.yaml")
    return [line for problem in found.problems for line in problem.splitlines()]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "store: {backend: dsk}",
            ["pointsman.store.backend: 'dsk'", "did you mean 'disk'?", "'memory', 'disk' or 'redis'"],
        ),
        ("store: {pth: x}", ["pointsman.store.pth: unknown key", "did you mean 'path'?", "backend, path, prefix"]),
        ("stor: {}", ["pointsman.stor: unknown key", "did you mean 'store'?"]),
        ("store: {timeout_ms: 5}", ["pointsman.store.timeout_ms: 5", "greater than or equal to 10"]),
        ("store: {timeout_ms: soon}", ["pointsman.store.timeout_ms: 'soon'", "valid integer"]),
        ("store: redis", ["pointsman.store: 'redis'", "must be a mapping"]),
        ("tracing: {enabled: maybe}", ["pointsman.tracing.enabled: 'maybe'", "boolean"]),
        ("flush_timeout_s: .inf", ["pointsman.flush_timeout_s: inf", "finite"]),
        ("flush_timeout_s: null", ["pointsman.flush_timeout_s: null"]),
        ("plugins: {registry: {}}", ["pointsman.plugins: a mapping", "it must be a list"]),
        ("plugins: [Registry]", ["pointsman.plugins[0]: 'Registry'", "lower-case letters"]),
        ("plugins: [7]", ["pointsman.plugins[0]: 7", "not a plugin name"]),
        ("plugins: [{a: {}, b: {}}]", ["pointsman.plugins[0]: must be one plugin", "a, b", "indented"]),
        ("plugins: [{a: [1]}]", ["pointsman.plugins[0].a: must be a mapping, not list"]),
        ("plugins: [a, b, a]", ["pointsman.plugins[2]: plugin 'a' is listed twice", "plugins[0]"]),
        ("store: {backend: redis}", ["pointsman.store.url: is needed", "redis://localhost:6379/0"]),
        ("store: {backend: redis, url: 'http://h'}", ["pointsman.store.url: ", "rediss:// for TLS"]),
        ("store: {backend: redis, url: 'redis://h:port'}", ["pointsman.store.url: ", "rediss:// for TLS"]),
        ("store: {path: os.environ/POINTSMAN_NOT_SET}", ["pointsman.store.path: ", "'POINTSMAN_NOT_SET' is not set"]),
        ("unmetered: denny", ["pointsman.unmetered", "'denny'"]),
        ("unmetered: {v1/rag: deny}", ["pointsman.unmetered", "/v1/vector_stores"]),
        ("null", ["has no top-level key 'pointsman'", "plugins: []"]),
        ("[1]", ["pointsman: must be a mapping, not list"]),
    ],
)
def test_one_wrong_key_is_one_line_with_everything(text, expected):
    lines = complaints(text)
    assert len(lines) == 1
    assert lines[0].startswith("f.yaml: ")
    for part in expected:
        assert part in lines[0]


def test_every_wrong_key_is_reported_at_once():
    """Errors in one place do not hide those in another, and the plugins that are named properly are still read."""
    lines = complaints("{stor: {}, flush_timeout_s: x, store: {path: '', prefix: 'a b'}, plugins: [X, good, good]}")
    keys = ["stor:", "flush_timeout_s:", "store.path:", "store.prefix:", "plugins[0]:", "plugins[2]:"]
    assert len(lines) == len(keys)
    assert all(any(f"pointsman.{key}" in line for line in lines) for key in keys)
    found = survey({"stor": {}, "plugins": ["X", "good"]}, "f.yaml")
    assert [entry.name for entry in found.entries] == ["good"]
    with pytest.raises(ConfigError, match=r"(?s)stor.*plugins\[0\]"):
        parse({"stor": {}, "plugins": ["X", "good"]}, "f.yaml", Path())


@pytest.mark.parametrize("depth", [1, 2000])
def test_a_section_that_contains_itself_or_is_very_deep_is_one_line(depth):
    """YAML's anchors can write the first."""
    inner: dict = {}
    section = {"plugins": [inner]}
    for _ in range(depth - 1):
        inner["more"] = inner = {}
    inner["more"] = inner if depth == 1 else {}
    with pytest.raises(ConfigError, match=r"^proxy.yaml: pointsman: contains itself or is nested too deeply$"):
        parse(section, "proxy.yaml", Path())


def test_environment_reference_is_replaced_wherever_it_stands(monkeypatch):
    monkeypatch.setenv("POINTSMAN_TEST_PATH", "elsewhere")
    section = {
        "store": {"path": "os.environ/POINTSMAN_TEST_PATH"},
        "plugins": [{"a": {"b": ["os.environ/POINTSMAN_TEST_PATH"]}}],
    }
    settings = parse(section, "f.yaml", Path())
    assert settings.host.store.path == "elsewhere"
    assert settings.entries[0].raw == {"b": ["elsewhere"]}


def test_store_path_may_begin_at_home(monkeypatch):
    monkeypatch.setenv("HOME", "/somebody")
    assert parse({"store": {"path": "~/s"}}, "f.yaml", Path("/base")).host.store.path == "/somebody/s"


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Square(Part):
    kind: Literal["square"] = "square"
    side: int = Field(ge=1)


class Circle(Part):
    kind: Literal["circle"] = "circle"
    radius: float
    colour: str = Field(default="", alias="color")


Shape = Annotated[Square | Circle, Field(discriminator="kind")]


class Drawing(Part):
    shapes: list[Shape] = []
    by_name: dict[str, Shape] = {}
    pair: tuple[Square | None, ...] = ()
    size: int | Literal["auto"] = "auto"
    api_key: str = "x"
    headers: dict[str, SecretStr] = {}
    tokens_per_minute: int = 1


def wrong(raw: dict[str, Any]) -> list[str]:
    with pytest.raises(ConfigError) as err:
        validate(Drawing, raw, "f.yaml: d")
    return str(err.value).splitlines()


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({"shapes": [{"kind": "square", "side": 1, "sid": 2}]}, "d.shapes[0].sid: unknown key (did you mean 'side'?); allowed: kind, side"),
        ({"by_name": {"a": {"kind": "circle", "radius": 1, "x": 2}}}, "d.by_name.a.x: unknown key; allowed: color, kind, radius"),
        ({"by_name": {"a": {"kind": "circle", "radius": 1, "color": 2}}}, "d.by_name.a.color: 2 is not allowed"),
        ({"shapes": [{"kind": "circel"}]}, "d.shapes[0].kind: 'circel' is not allowed: it must be one of square, circle (did you mean 'circle'?)"),
        ({"shapes": [{"side": 1}]}, "d.shapes[0].kind: is missing"),
        ({"shapes": [{"kind": "square"}]}, "d.shapes[0].side: is missing"),
        ({"pair": [None, {"side": 0}]}, "d.pair[1].side: 0 is not allowed: input should be greater than or equal to 1"),
        ({"size": "atuo"}, "d.size: 'atuo' is not allowed: input should be a valid integer, unable to parse string as an integer, or input should be 'auto' (did you mean 'auto'?)"),
    ],
)  # fmt: skip
def test_path_is_the_one_that_was_written(raw, expected):
    """Tags and branches of unions, which pydantic puts into its paths, do not show; failing branches share a line."""
    lines = wrong(raw)
    assert len(lines) == 1
    assert lines[0].startswith(f"f.yaml: {expected}")


@pytest.mark.parametrize(
    "raw",
    [
        {"api_key": 123456789},
        {"api_key": ["sk-987654321"]},
        {"headers": {"authorization": 123456789}},
        {"tokens_per_minute": "sk-987654321"},
        {"shapes": {"password": "sk-987654321"}},
        {"unknown_key": "sk-987654321"},
    ],
)
def test_what_may_be_a_secret_is_not_shown(raw):
    text = "\n".join(wrong(raw))
    assert "987654321" not in text
    assert "123456789" not in text


def test_number_of_tokens_is_no_secret():
    assert "tokens_per_minute: 1.5 is not allowed" in wrong({"tokens_per_minute": 1.5})[0]


YAML_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["disk", "registry"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["store", "plugins", "tracing", "backend", "url", "x"]) | st.integers(), inner, max_size=3
        )
    ),
    max_leaves=12,
)


@given(YAML_VALUES)
def test_any_section_is_either_accepted_or_explained(section):
    """Whatever YAML can hold: nothing but ConfigError is raised, and never without saying why."""
    found = survey(section, "f.yaml")
    assert (found.host is None) <= bool(found.problems)
    assert all(problem.startswith("f.yaml: ") for problem in found.problems)
    if not found.problems:
        parse(section, "f.yaml", Path())
        return
    with pytest.raises(ConfigError) as err:
        parse(section, "f.yaml", Path())
    assert str(err.value) == "\n".join(found.problems)


# -- requests that are not metered ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "expected"), [("deny", "deny"), ("allow", "allow"), ("{}", "deny")])
def test_one_policy_is_for_every_route(text, expected):
    settings = parse(yaml.safe_load(f"unmetered: {text}"), "f.yaml", Path())
    assert unmetered(settings.host.unmetered, "/v1/rag/query", closed=True) == expected


def test_without_a_plugin_that_limits_or_bills_every_route_is_open():
    assert unmetered({}, "/v1/rag/query", closed=False) == "allow"
    assert unmetered({"/v1/files": "allow"}, "/v1/rag/query", closed=False) == "allow"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/v1/rag/query", "allow"),
        ("/rag/query", "allow"),
        ("/v1/rag", "allow"),
        ("/v1/rag/ingest", "deny"),
        ("/v1/ragtime", "deny"),
        ("/rag/../threads/runs", "deny"),
        ("/v1/rag/./query", "deny"),
        ("/v1/rag//query", "deny"),
        ("/v1/rag/%2e%2e/threads", "deny"),
        ("/threads/runs", "deny"),
    ],
)
def test_the_longest_beginning_of_the_path_decides(path, expected):
    """Whether the path or the setting has ``/v1`` does not matter; a path that could mean another has no own policy."""
    configured = {"*": "deny", "/v1/rag": "allow", "/rag/ingest": "deny"}
    assert unmetered(configured, path, closed=False) == expected
