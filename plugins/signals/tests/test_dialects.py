"""Golden tables: what each provider writes, and the field and unit it ends in."""

from __future__ import annotations

import math
from importlib.metadata import EntryPoint

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError

from pointsman.types import Deployment
from pointsman_signals.config import SignalsConfig
from pointsman_signals.dialects import DIALECTS, Dialect, DialectTable, installed_dialects
from pointsman_signals.plugin import SignalsPlugin

from .golden import GOLDEN, NOW, lim


def deployment(provider="openai", *, api_base=None, group="chat", id_="d1", model="m"):
    return Deployment(id=id_, group=group, provider=provider, model=model, api_base=api_base)


def same(limit):
    return (limit.axis, limit.window_s, limit.limit, limit.remaining, pytest.approx(limit.resets_at, abs=1e-6))


@pytest.mark.parametrize(("provider", "headers", "limits", "retry_after_s", "notes"), GOLDEN)
def test_every_header_ends_in_its_field_and_unit(provider, headers, limits, retry_after_s, notes):
    reading = DialectTable().reader(deployment(provider)).read(headers, NOW)
    assert [
        (limit.axis, limit.window_s, limit.limit, limit.remaining, limit.resets_at) for limit in reading.limits
    ] == [same(limit) for limit in limits]
    assert reading.retry_after_s == (None if retry_after_s is None else pytest.approx(retry_after_s))
    assert reading.notes == notes


def test_every_dialect_has_a_golden_row():
    table = DialectTable()
    covered = {table.reader(deployment(case.values[0])).dialect.name for case in GOLDEN}
    assert covered == set(table.names())


@pytest.mark.parametrize(
    ("provider", "api_base", "name"),
    [
        ("openai", None, "openai"),
        ("openai", "https://api.groq.com/openai/v1", "groq"),
        ("openai", "https://mine.openai.azure.com/openai", "azure"),
        ("openai", "https://openai.azure.com.evil.example", "openai"),
        ("openai", "https://notgroq.com/api.groq.com", "openai"),
        ("openai", "http://[::1", "openai"),
        ("custom_openai", "https://eu.api.mistral.ai/v1", "mistral"),
        ("anthropic", "https://gateway.example/anthropic", "anthropic"),
        ("something", None, "openai"),
    ],
)
def test_the_host_tells_the_dialect_before_the_provider_does(provider, api_base, name):
    assert DialectTable().reader(deployment(provider, api_base=api_base)).dialect.name == name


def test_the_operator_chooses_by_deployment_group_or_provider():
    table = DialectTable(chosen={"d1": "groq", "g2": "mistral", "openai": "cerebras"})
    assert table.reader(deployment(api_base="https://api.openai.com")).dialect.name == "groq"
    assert table.reader(deployment(id_="other", group="g2")).dialect.name == "mistral"
    assert table.reader(deployment(id_="other")).dialect.name == "cerebras"
    assert table.reader(deployment("anthropic", id_="other")).dialect.name == "anthropic"


def test_a_row_with_a_wrong_expression_is_refused_by_name():
    with pytest.raises(ValueError, match="dialect 'broken'"):
        DialectTable([*DIALECTS, Dialect(name="broken", headers=("(",))])


ACME = Dialect(
    name="acme",
    providers=("acme",),
    hosts=("acme.example",),
    headers=(r"acme-(?P<axis>calls)-(?P<part>left|max)",),
    parts={"left": "remaining", "max": "limit"},
    axes={"calls": "requests"},
)
NOT_A_DIALECT = {"name": "acme"}


def entry(name, target):
    return EntryPoint(name=name, value=f"{__name__}:{target}", group="pointsman_signals.dialects")


def rows_of(installed):
    return [row for rows in installed.values() for row in rows]


def load_from_here(monkeypatch, value):
    monkeypatch.setattr(EntryPoint, "load", lambda _: value)


def test_an_installed_distribution_adds_a_dialect(monkeypatch):
    load_from_here(monkeypatch, (ACME,))
    table = DialectTable(rows_of(installed_dialects([entry("acme", "ACME")])))
    reading = table.reader(deployment("acme")).read({"acme-calls-left": "3", "acme-calls-max": "9"}, NOW)
    assert reading.limits == (lim("requests", None, 9, 3),)
    assert table.reader(deployment(api_base="https://eu.acme.example/v1")).dialect.name == "acme"


@pytest.mark.parametrize("name", ["groq", "mine"])
def test_no_distribution_replaces_a_built_in_dialect(monkeypatch, caplog, name):
    """Neither with its entry point's name nor with its dialect's."""
    load_from_here(monkeypatch, Dialect(name="groq", headers=(r"g-(?P<part>remaining)-(?P<axis>requests)",)))
    assert rows_of(installed_dialects([entry(name, "MINE")])) == list(DIALECTS)
    assert "is built in" in caplog.text


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (NOT_A_DIALECT, "must name a Dialect"),
        (None, "must name a Dialect"),
        ("acme", "must name a Dialect"),
        (Dialect(name="acme", headers=("(",)), "dialect 'acme'"),
    ],
)
def test_what_cannot_be_used_is_left_out_until_it_is_named(monkeypatch, value, says):
    """A broken dialect that the configuration does not name stops nothing; one that it names is an error with its key."""
    load_from_here(monkeypatch, value)
    installed = installed_dialects([entry("acme", "X")])
    assert rows_of(installed) == list(DIALECTS)
    assert says in installed.broken["acme"]
    monkeypatch.setattr("pointsman_signals.plugin.installed_dialects", lambda: installed)
    monkeypatch.setattr("pointsman_signals.config.installed_dialects", lambda: installed)
    SignalsPlugin(SignalsConfig())
    with pytest.raises(ValidationError, match=says) as caught:
        SignalsConfig(dialects={"openai": "acme"})
    assert caught.value.errors()[0]["loc"] == ("dialects", "openai")


def test_a_flood_of_header_names_is_not_remembered():
    """Neither many sets of names nor very long ones; all of them are read all the same."""
    reader = DialectTable().reader(deployment())
    for number in range(600):
        reading = reader.read({f"x-ratelimit-limit-axis-{number}": "7", f"x-{number}": "1"}, NOW)
        assert [limit.limit for limit in reading.limits] == [7.0]
    remembered = len(reader._plans)
    assert remembered <= 256
    flood = {f"x-ratelimit-limit-axis-{number}": "7" for number in range(2000)}
    assert len(reader.read(flood, NOW).limits) == 2000
    assert len(reader._plans) == remembered


HEADER_NAMES = sorted(
    {name for case in GOLDEN for name in case.values[1]} | {"ratelimit", "ratelimit-policy", "retry-after"}
)
HEADERS = st.dictionaries(
    st.one_of(st.sampled_from(HEADER_NAMES), st.text(max_size=40)),
    st.one_of(
        st.text(max_size=60),
        st.text(alphabet='0123456789.-eE;=,"rtqwu msh:TZ', max_size=60),
        st.floats().map(str),
        st.integers().map(str),
    ),
    max_size=20,
)


@given(st.sampled_from([dialect.name for dialect in DIALECTS]), HEADERS)
@example(
    "azure",
    {"x-ratelimit-limit-requests": "0", "x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "5"},
)
@example(
    "azure", {"x-ratelimit-limit-tokens": "1", "x-ratelimit-remaining-tokens": "9", "x-ratelimit-reset-tokens": "1e-9"}
)
@example("ietf", {"ratelimit": '"a";r=1;t=9' * 200})
@example("ietf", {"ratelimit": "remaining=....., reset=..."})
def test_no_headers_make_a_dialect_raise_or_answer_a_negative_or_unreal_number(name, headers):
    reading = DialectTable(chosen={"d1": name}).reader(deployment()).read(headers, NOW)
    numbers = [reading.retry_after_s, *reading.notes.values()]
    for limit in reading.limits:
        numbers += [limit.window_s, limit.limit, limit.remaining, limit.resets_at]
        assert limit.axis
    for number in numbers:
        assert number is None or (math.isfinite(number) and number >= 0.0)
