"""Golden tables: what each provider writes, and the field and unit it ends in."""

from __future__ import annotations

import math
from importlib.metadata import EntryPoint

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pointsman.errors import PluginLoadError
from pointsman.types import Deployment, Limit
from pointsman_signals.dialects import DIALECTS, DialectTable, installed_dialects
from pointsman_signals.reading import Dialect

NOW = 1_700_000_000.0
MINUTE, HOUR, DAY, MONTH = 60.0, 3_600.0, 86_400.0, 30 * 86_400.0


def deployment(provider="openai", *, api_base=None, group="chat", id_="d1", model="m"):
    return Deployment(id=id_, group=group, provider=provider, model=model, api_base=api_base)


def lim(axis, window_s=None, limit=None, remaining=None, *, in_s=None):
    resets_at = None if in_s is None else NOW + in_s
    return Limit(axis=axis, window_s=window_s, limit=limit, remaining=remaining, resets_at=resets_at)


# provider, headers, limits, retry_after_s, notes
GOLDEN = [
    pytest.param(
        "openai",
        {
            "x-ratelimit-limit-requests": "5000",
            "x-ratelimit-limit-tokens": "160000",
            "x-ratelimit-limit-tokens_usage_based": "160000",
            "x-ratelimit-remaining-requests": "4999",
            "x-ratelimit-remaining-tokens": "159976",
            "x-ratelimit-remaining-tokens_usage_based": "159976",
            "x-ratelimit-reset-requests": "12ms",
            "x-ratelimit-reset-tokens": "6m0s",
            "x-ratelimit-reset-tokens_usage_based": "9ms",
        },
        [
            lim("requests", None, 5000, 4999, in_s=0.012),
            lim("tokens", None, 160_000, 159_976, in_s=360),
            lim("tokens_usage_based", None, 160_000, 159_976, in_s=0.009),
        ],
        None,
        {},
        id="openai",
    ),
    pytest.param(
        "openai",
        {
            "retry-after": "20",
            "retry-after-ms": "19528",
            "x-ratelimit-limit-input-images": "50000",
            "x-ratelimit-remaining-input-images": "49999",
            "x-ratelimit-reset-input-images": "1ms",
        },
        [lim("input_images", None, 50_000, 49_999, in_s=0.001)],
        19.528,
        {},
        id="openai-429-with-milliseconds",
    ),
    pytest.param(
        "azure",
        {
            "x-ratelimit-limit-requests": "120",
            "x-ratelimit-limit-tokens": "120000",
            "x-ratelimit-remaining-requests": "119",
            "x-ratelimit-remaining-tokens": "119986",
            "x-ratelimit-renewalperiod-requests": "60",
            "x-ratelimit-renewalperiod-tokens": "60",
            "x-ratelimit-reset-requests": "500",
            "x-ratelimit-reset-tokens": "7",
            "x-ratelimit-abusepenalty-active": "False",
        },
        [lim("requests", MINUTE, 120, 119, in_s=0.5), lim("tokens", MINUTE, 120_000, 119_986, in_s=0.007)],
        None,
        {"abuse_penalty": 0.0},
        id="azure-in-milliseconds",
    ),
    pytest.param(
        "azure",
        {
            "retry-after": "1",
            "retry-after-ms": "0",
            "x-ratelimit-limit-requests": "5",
            "x-ratelimit-limit-tokens": "1500000",
            "x-ratelimit-remaining-requests": "4",
            "x-ratelimit-remaining-tokens": "745399",
            "x-ratelimit-renewalperiod-requests": "60",
            "x-ratelimit-renewalperiod-tokens": "60",
            "x-ratelimit-reset-requests": "12",
            "x-ratelimit-reset-tokens": "30",
        },
        [lim("requests", MINUTE, 5, 4, in_s=12), lim("tokens", MINUTE, 1_500_000, 745_399, in_s=30)],
        1.0,
        {},
        id="azure-in-seconds",
    ),
    pytest.param(
        "azure",
        {
            "x-ratelimit-limit-tokens": "-1",
            "x-ratelimit-remaining-tokens": "-1",
            "x-ratelimit-reset-tokens": "0",
        },
        [lim("tokens", MINUTE, None, None, in_s=0)],
        None,
        {},
        id="azure-minus-one-is-unknown",
    ),
    pytest.param(
        "anthropic",
        {
            "anthropic-ratelimit-requests-limit": "4000",
            "anthropic-ratelimit-requests-remaining": "3999",
            "anthropic-ratelimit-requests-reset": "2023-11-14T22:13:30Z",
            "anthropic-ratelimit-tokens-limit": "480000",
            "anthropic-ratelimit-tokens-remaining": "478000",
            "anthropic-ratelimit-tokens-reset": "2023-11-14T22:13:31Z",
            "anthropic-ratelimit-input-tokens-limit": "400000",
            "anthropic-ratelimit-input-tokens-remaining": "399000",
            "anthropic-ratelimit-input-tokens-reset": "2023-11-14T22:13:32Z",
            "anthropic-ratelimit-output-tokens-limit": "80000",
            "anthropic-ratelimit-output-tokens-remaining": "79000",
            "anthropic-ratelimit-output-tokens-reset": "2023-11-14T22:13:33Z",
            "retry-after": "59",
        },
        [
            lim("requests", MINUTE, 4000, 3999, in_s=10),
            lim("tokens", MINUTE, 480_000, 478_000, in_s=11),
            lim("input_tokens", MINUTE, 400_000, 399_000, in_s=12),
            lim("output_tokens", MINUTE, 80_000, 79_000, in_s=13),
        ],
        59.0,
        {},
        id="anthropic",
    ),
    pytest.param(
        "anthropic",
        {
            "anthropic-ratelimit-unified-status": "allowed_warning",
            "anthropic-ratelimit-unified-5h-utilization": "0.25",
            "anthropic-ratelimit-unified-5h-reset": "1700003600",
            "anthropic-ratelimit-unified-7d-utilization": "1.02",
            "anthropic-ratelimit-unified-7d-reset": "1700086400",
            "anthropic-ratelimit-unified-reset": "1700086400",
        },
        [
            lim("unified_5h", 5 * HOUR, 1.0, 0.75, in_s=3600),
            lim("unified_7d", 7 * DAY, 1.0, 0.0, in_s=86_400),
        ],
        None,
        {},
        id="anthropic-subscription",
    ),
    pytest.param(
        "groq",
        {
            "x-ratelimit-limit-requests": "14400",
            "x-ratelimit-limit-tokens": "30000",
            "x-ratelimit-remaining-requests": "14398",
            "x-ratelimit-remaining-tokens": "29987",
            "x-ratelimit-reset-requests": "17.563999999s",
            "x-ratelimit-reset-tokens": "26ms",
            "retry-after": "7.66",
        },
        [lim("requests", DAY, 14_400, 14_398, in_s=17.563999999), lim("tokens", MINUTE, 30_000, 29_987, in_s=0.026)],
        7.66,
        {},
        id="groq-requests-are-per-day",
    ),
    pytest.param(
        "openrouter",
        {"x-ratelimit-limit": "50", "x-ratelimit-remaining": "0", "x-ratelimit-reset": "1700003600000"},
        [lim("requests", None, 50, 0, in_s=3600)],
        None,
        {},
        id="openrouter-in-unix-milliseconds",
    ),
    pytest.param(
        "mistral",
        {
            "x-ratelimit-limit-req-10-second": "60",
            "x-ratelimit-remaining-req-10-second": "51",
            "x-ratelimit-limit-tokens-minute": "2000000",
            "x-ratelimit-remaining-tokens-minute": "1999147",
            "x-ratelimit-limit-tokens-month": "10000000000",
            "x-ratelimit-remaining-tokens-month": "9999999147",
            "x-ratelimit-tokens-query-cost": "78",
        },
        [
            lim("requests", 10.0, 60, 51),
            lim("tokens", MINUTE, 2_000_000, 1_999_147),
            lim("tokens", MONTH, 10_000_000_000, 9_999_999_147),
        ],
        None,
        {"query_cost_tokens": 78.0},
        id="mistral",
    ),
    pytest.param(
        "together_ai",
        {
            "x-ratelimit-limit": "2",
            "x-ratelimit-remaining": "1",
            "x-ratelimit-reset": "2",
            "x-tokenlimit-limit": "3000",
            "x-tokenlimit-remaining": "2900",
            "x-ratelimit-limit-dynamic": "9",
        },
        [lim("requests", 1.0, 2, 1, in_s=2), lim("tokens", 1.0, 3000, 2900)],
        None,
        {},
        id="together-per-second",
    ),
    pytest.param(
        "cohere_chat",
        {
            "x-trial-endpoint-call-limit": "20",
            "x-trial-endpoint-call-remaining": "19",
            "x-endpoint-monthly-call-limit": "1000",
        },
        [lim("requests", MINUTE, 20, 19), lim("requests", MONTH, 1000)],
        None,
        {},
        id="cohere-trial",
    ),
    pytest.param(
        "deepseek",
        {"x-ratelimit-remaining-requests": "0", "retry-after": "Tue, 14 Nov 2023 22:14:20 GMT"},
        [],
        60.0,
        {},
        id="deepseek-only-retry-after",
    ),
    pytest.param(
        "cerebras",
        {
            "x-ratelimit-limit-requests-day": "10000",
            "x-ratelimit-remaining-requests-day": "9500",
            "x-ratelimit-reset-requests-day": "33011.382867",
            "x-ratelimit-limit-tokens-minute": "200000",
            "x-ratelimit-remaining-tokens-minute": "195000",
            "x-ratelimit-reset-tokens-minute": "11.38",
        },
        [
            lim("requests", DAY, 10_000, 9500, in_s=33_011.382867),
            lim("tokens", MINUTE, 200_000, 195_000, in_s=11.38),
        ],
        None,
        {},
        id="cerebras",
    ),
    pytest.param(
        "fireworks_ai",
        {
            "x-ratelimit-limit-requests": "600",
            "x-ratelimit-remaining-requests": "599",
            "x-ratelimit-limit-tokens-prompt": "7200000",
            "x-ratelimit-remaining-tokens-prompt": "7193993",
            "x-ratelimit-limit-tokens-generated": "72000",
            "x-ratelimit-remaining-tokens-generated": "69338",
            "x-ratelimit-over-limit": "yes",
        },
        [
            lim("requests", MINUTE, 600, 599),
            lim("input_tokens", MINUTE, 7_200_000, 7_193_993),
            lim("output_tokens", MINUTE, 72_000, 69_338),
        ],
        None,
        {"over_limit": 1.0},
        id="fireworks",
    ),
    pytest.param(
        "huggingface",
        {
            "ratelimit-policy": '"burst";q=100;w=60, "daily";q=1000000;w=86400;qu="tokens"',
            "ratelimit": '"burst";r=50;t=30, "daily";r=999;t=7200',
        },
        [lim("requests", 60.0, 100, 50, in_s=30), lim("tokens", 86_400.0, 1_000_000, 999, in_s=7200)],
        None,
        {},
        id="ietf-structured",
    ),
    pytest.param(
        "huggingface",
        {"ratelimit": "limit=100, remaining=50, reset=5", "ratelimit-policy": "100;w=60"},
        [lim("requests", 60.0, 100, 50, in_s=5)],
        None,
        {},
        id="ietf-draft-7",
    ),
    pytest.param(
        "some-new-provider",
        {"ratelimit-limit": "100, 100;w=60", "ratelimit-remaining": "0", "ratelimit-reset": "50"},
        [lim("requests", 60.0, 100, 0, in_s=50)],
        None,
        {},
        id="ietf-draft-6-for-any-provider",
    ),
    pytest.param(
        "some-new-provider",
        {
            "x-ratelimit-limit-tokens-per-minute": "1000",
            "x-ratelimit-remaining-tokens-per-minute": "10",
            "x-ratelimit-reset-tokens-per-minute": "1700000010",
            "x-ratelimit-remaining": "3",
        },
        [lim("tokens", MINUTE, 1000, 10, in_s=10), lim("requests", None, None, 3)],
        None,
        {},
        id="unknown-provider",
    ),
]


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


def test_a_dialect_that_is_not_there_is_refused_by_name():
    with pytest.raises(ValueError, match=r"dialects\.d1: there is no dialect 'grok'; there are .*groq"):
        DialectTable(chosen={"d1": "grok"})


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


def load_from_here(monkeypatch, value):
    monkeypatch.setattr(EntryPoint, "load", lambda _: value)


def test_an_installed_distribution_adds_a_dialect(monkeypatch):
    load_from_here(monkeypatch, (ACME,))
    table = DialectTable(installed_dialects([entry("acme", "ACME")]))
    reading = table.reader(deployment("acme")).read({"acme-calls-left": "3", "acme-calls-max": "9"}, NOW)
    assert reading.limits == (lim("requests", None, 9, 3),)
    assert table.reader(deployment(api_base="https://eu.acme.example/v1")).dialect.name == "acme"


def test_an_installed_dialect_replaces_the_one_of_its_name(monkeypatch):
    mine = Dialect(name="groq", providers=("groq",), headers=(r"g-(?P<part>remaining)-(?P<axis>requests)",))
    load_from_here(monkeypatch, mine)
    table = DialectTable(installed_dialects([entry("groq", "MINE")]))
    assert table.reader(deployment("groq")).read({"g-remaining-requests": "1"}, NOW).limits[0].remaining == 1


@pytest.mark.parametrize("value", [NOT_A_DIALECT, None, "acme"])
def test_an_entry_point_that_names_something_else_stops_the_start(monkeypatch, value):
    load_from_here(monkeypatch, value)
    with pytest.raises(PluginLoadError, match=r"'signals': entry point 'acme' .* must be a Dialect"):
        installed_dialects([entry("acme", "X")])


def test_an_entry_point_that_cannot_be_imported_stops_the_start():
    with pytest.raises(PluginLoadError, match=r"entry point 'acme' .* cannot be imported: ModuleNotFoundError"):
        installed_dialects([EntryPoint("acme", "no_such_module_here:X", "pointsman_signals.dialects")])


def test_a_flood_of_header_names_is_not_remembered():
    reader = DialectTable().reader(deployment())
    for number in range(20):
        headers = {f"x-ratelimit-limit-axis-{number}-{letter}": "1" for letter in "abcdefghij" * 20}
        headers |= {f"x-{number}-{other}": "1" for other in range(200)}
        reader.read(headers, NOW)
    assert len(reader._meanings) <= 1024 + 400
    assert len(reader._rows) <= 1024 + 400


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
