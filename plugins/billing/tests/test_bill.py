"""From a settlement to events: what is billed, what it says, and that it always says the same."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from dataclasses import fields, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman.host.journal_rows import Entry, dump, parse, restored_context
from pointsman.types import (
    Attempt,
    AttemptError,
    AttemptKind,
    Endpoint,
    ErrorClass,
    Identity,
    Outcome,
    Price,
    RequestContext,
    Settlement,
    Usage,
)
from pointsman_billing import bill, events
from pointsman_billing.pricing import PRICE_FIELDS, Quote, decimal_text

from .kit import AT, DEPLOYMENT, PRICE, USAGE, attempt, settlement

QUOTE = Quote(price=PRICE, margin_ratio=Decimal("0.2"))
GOLDEN = Path(__file__).with_name("golden_events.ndjson")


def made(*attempts: Any, quote: Quote = QUOTE, tenant: str = "acme", **given: Any) -> bill.Bill:
    return bill.of_settlement(settlement(*attempts, **given), tenant, lambda _: quote)


def read(found: bill.Bill) -> list[dict[str, Any]]:
    return [json.loads(event.body) for event in found.events]


def golden_bills() -> list[bill.Bill]:
    labels = {"version": "2", "version_id": "assistant-2", "experiment": "rollout", "arm": "canary"}
    lost = attempt(
        1,
        outcome=Outcome.ERROR,
        usage=None,
        cost_usd_micros=None,
        status_code=503,
        error=AttemptError(kind=ErrorClass.SERVER),
    )
    cached = Usage(prompt_tokens=1117, completion_tokens=46, cached_tokens=1024, reasoning_tokens=12)
    won = attempt(2, kind=AttemptKind.RETRY, usage=cached, cost_usd_micros=1973, labels=labels)
    hedge = attempt(
        3,
        kind=AttemptKind.HEDGE,
        outcome=Outcome.CANCELLED,
        usage=replace(cached, completion_tokens=7, reasoning_tokens=0, estimated=True),
        cost_usd_micros=None,
        labels=labels,
    )
    silent = attempt(1, request_id="request-2", usage=None, cost_usd_micros=None)
    return [
        made(lost, won, hedge, usage=cached),
        made(silent, request_id="request-2", usage=None),
        made(attempt(model="modèle-é", deployment=replace(DEPLOYMENT, id="x" * 300)), quote=Quote(price=Price())),
    ]


def test_the_events_are_the_golden_ones_byte_for_byte() -> None:
    """So that no change of the code changes a bill unnoticed. A new schema needs a new file and a new version."""
    found = [event.body for one in golden_bills() for event in one.events]
    assert found == GOLDEN.read_text(encoding="ascii").splitlines()


texts = st.text(st.characters() | st.sampled_from('"\\/\x00\x1f\x7f\x80\u2028\ud800'), max_size=20)


@given(
    st.dictionaries(texts, st.none() | st.booleans() | st.integers() | texts | st.lists(texts, max_size=2), max_size=5)
)
def test_an_event_is_written_as_the_standard_library_writes_it(fields: dict[str, Any]) -> None:
    """Which is what the events in the outboxes of all versions are."""
    assert events.encode(fields) == json.dumps(fields, separators=(",", ":"))
    tenant = "".join(fields)
    key = json.dumps([tenant, "request-1", 2, "primary"], separators=(",", ":"))
    assert events.event_id(tenant, "request-1", 2, "primary") == hashlib.sha256(key.encode()).hexdigest()[:32]


def test_another_process_gives_the_same_bytes() -> None:
    """Neither hash seeds nor a decimal context of somebody else has a say."""
    script = (
        "import decimal, sys; decimal.setcontext(decimal.Context(prec=3, rounding=decimal.ROUND_UP)); "
        f"sys.path.insert(0, {str(Path(__file__).parents[1])!r}); from tests.test_bill import golden_bills; "
        "print('\\n'.join(e.body for b in golden_bills() for e in b.events))"
    )
    done = subprocess.run(  # noqa: S603  # our own command
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "7"}
    )
    assert done.stdout == GOLDEN.read_text(encoding="ascii")


def test_an_attempt_says_everything_the_bill_needs() -> None:
    event, request = read(made(attempt()))
    assert tuple(event) == tuple(request) == events.FIELDS
    seeds = {"tenant_id": "acme", "model": "assistant", "prompt_tokens": 100, "completion_tokens": 20}
    assert seeds.items() <= event.items()
    assert (event["timestamp"], event["started_at_ms"], event["finished_at_ms"]) == (
        1_750_000_001,
        1_750_000_000_000,
        1_750_000_001_234,
    )
    assert (event["cost_usd"], event["cost_usd_micros"]) == ("0.00045", 450)
    assert (event["amount_usd"], event["amount_usd_micros"], event["margin_ratio"]) == ("0.00054", 540, "0.2")
    assert event["prices"]["cache_read_usd"] == "0.00000125"
    assert (request["cost_usd_micros"], request["amount_usd_micros"], request["cost_basis"]) == (450, 540, "sum")
    assert not any(isinstance(value, float) for value in [*event.values(), *event["prices"].values()])


@pytest.mark.parametrize(
    ("usage", "metering"),
    [
        (USAGE, "exact"),
        (replace(USAGE, contradictory=True), "contradictory"),
        (replace(USAGE, estimated=True), "estimated"),
        (replace(USAGE, estimated=True, contradictory=True), "estimated"),
        (None, "missing"),
    ],
)
def test_the_metering_is_no_better_than_the_counts(usage: Usage | None, metering: str) -> None:
    """What was counted here says so, also where the provider's other counts contradict one another."""
    found = made(attempt(usage=usage))
    assert [event["metering"] for event in read(found)] == [metering] * 2
    assert events.replayed(read(found)[0]) == found.events[0].body


def test_the_ids_tell_attempts_kinds_tenants_and_requests_apart_and_nothing_else() -> None:
    base = ("acme", "request-1", 1, "primary")
    ids = {events.event_id(*base)}
    for index, other in enumerate(("acmf", "request-2", 2, "hedge")):
        changed: list[Any] = list(base)
        changed[index] = other
        ids.add(events.event_id(*changed))
    assert len(ids) == 5
    assert events.event_id("a", "b,c", 1, "k") != events.event_id("a,b", "c", 1, "k")
    later = made(attempt(cost_usd_micros=1, usage=USAGE, duration_ms=9))
    assert later.events[0].id == made(attempt()).events[0].id


FAILED = AttemptError(kind=ErrorClass.SERVER)
#: Of an answer that says itself that it has failed, or that the gateway could not read.
GUESSED = replace(USAGE, estimated=True)
COUNTED = replace(USAGE, raw='{"prompt_tokens":1000}')


@pytest.mark.parametrize(
    ("given_", "billed", "state"),
    [
        ({}, True, "billed"),
        ({"usage": None, "cost_usd_micros": None}, True, "unpriced"),
        ({"usage": None, "cost_usd_micros": 7}, True, "billed"),
        ({"usage": Usage(), "cost_usd_micros": 0}, False, "free"),
        ({"usage": Usage(), "cost_usd_micros": 40_000}, True, "billed"),
        ({"cached": True}, False, "free"),
        ({"outcome": Outcome.ERROR, "usage": None, "status_code": 500, "error": FAILED}, False, "free"),
        ({"outcome": Outcome.ERROR, "usage": None, "status_code": None, "cost_usd_micros": None}, False, "free"),
        ({"outcome": Outcome.ERROR, "usage": None, "status_code": 200, "cost_usd_micros": None}, True, "unpriced"),
        ({"outcome": Outcome.ERROR, "status_code": 200, "usage": replace(USAGE, estimated=True)}, True, "billed"),
        ({"outcome": Outcome.ERROR, "status_code": 400, "error": FAILED}, False, "free"),
        ({"outcome": Outcome.ERROR, "status_code": 500, "first_token_ms": 5.0, "error": FAILED}, True, "billed"),
        ({"outcome": Outcome.ERROR, "status_code": 429, "usage": COUNTED, "error": FAILED}, True, "billed"),
        (
            {"outcome": Outcome.ERROR, "status_code": 408, "cut": True, "usage": GUESSED, "error": FAILED},
            True,
            "billed",
        ),
        ({"outcome": Outcome.ERROR, "status_code": 408, "usage": GUESSED, "error": FAILED}, False, "free"),
        ({"outcome": Outcome.DISCONNECTED, "usage": GUESSED}, True, "billed"),
        ({"outcome": Outcome.CANCELLED, "usage": None}, False, "free"),
    ],
)
def test_what_is_billed(given_: dict[str, Any], billed: bool, state: str) -> None:
    """Missing tokens of an answer are on record as such; an explicit zero, a cached answer and a failure are free.

    A failure of which the provider itself has counted the tokens, or that it has answered with success, is not.
    """
    found = made(attempt(**given_))
    assert (bool(found.events), found.state) == (billed, state)
    if billed:
        usage = given_.get("usage", USAGE)
        expected = "missing" if usage is None else "estimated" if usage.estimated else "exact"
        assert read(found)[0]["metering"] == expected
        assert read(found)[0]["prompt_tokens"] == (None if usage is None else usage.prompt_tokens)


def test_a_model_without_a_price_is_unpriced_and_its_tokens_are_known() -> None:
    found = made(attempt(cost_usd_micros=None), quote=Quote(price=Price()))
    event, request = read(found)
    assert (found.state, event["cost_usd_micros"], event["cost_basis"]) == ("unpriced", None, None)
    assert (event["prompt_tokens"], request["cost_usd_micros"]) == (100, None)


def test_what_the_tenant_gets_for_nothing_is_free_and_still_on_record() -> None:
    found = made(attempt(), quote=replace(QUOTE, margin_ratio=Decimal(-1)))
    assert (found.state, found.cost_usd_micros, found.amount_usd_micros) == ("free", 450, 0)
    assert len(found.events) == 2


def test_impossible_tokens_count_as_unknown() -> None:
    found = made(attempt(usage=Usage(prompt_tokens=2**53), cost_usd_micros=2**60))
    assert (found.state, read(found)[0]["metering"]) == ("unpriced", "missing")


@pytest.mark.parametrize("trust_gateway", [False, True])
@pytest.mark.parametrize("prices", [PRICE, Price()])
def test_the_gateways_price_of_impossible_tokens_is_not_the_bill(prices: Price, trust_gateway: bool) -> None:
    quote = replace(QUOTE, price=prices, trust_gateway=trust_gateway)
    found = made(attempt(usage=Usage(prompt_tokens=2 * 10**10), gateway_cost_usd=Decimal(4500)), quote=quote)
    event = read(found)[0]
    assert (found.state, event["amount_usd"], event["cost_basis"], event["metering"]) == (
        "unpriced",
        None,
        None,
        "missing",
    )


@pytest.mark.parametrize("usage", [replace(USAGE, estimated=True), replace(USAGE, contradictory=True)])
def test_the_gateways_figure_is_not_the_bill_where_nothing_explains_it_and_counts_are_unsure(usage: Usage) -> None:
    quote = replace(QUOTE, trust_gateway=True)
    event = read(made(attempt(usage=usage, gateway_cost_usd=Decimal(4500)), quote=quote))[0]
    assert (event["cost_basis"], event["amount_usd"]) == ("prices", "0.00054")


def test_an_amount_that_cannot_be_is_named() -> None:
    line = made(attempt(), quote=replace(QUOTE, price=ABSURD)).lines[0]
    assert (line.refused, line.impossible) == (True, "120,000,000")
    assert made(attempt()).lines[0].impossible == ""
    assert (
        bill.implausible_counts(Usage(prompt_tokens=2 * 10**10, images=-1)) == "prompt_tokens 20,000,000,000, images -1"
    )


ABSURD = replace(PRICE, input_usd=Decimal(10**6))
#: What an attempt costs at these prices.
OURS = Decimal("0.00045")


@pytest.mark.parametrize(
    ("quote", "given_", "cost"),
    [
        (Quote(price=ABSURD, margin_ratio=Decimal(1000)), {}, None),
        (Quote(price=replace(PRICE, input_usd=Decimal("Infinity"))), {}, None),
        (Quote(price=replace(PRICE, input_usd=Decimal("NaN"))), {}, None),
        (Quote(price=replace(PRICE, input_usd=Decimal("1e999999"))), {"usage": Usage(prompt_tokens=10**10)}, None),
        (Quote(price=replace(PRICE, input_usd=Decimal(-1))), {}, None),
        (
            Quote(price=PRICE, trust_gateway=True, margin_ratio=Decimal(1000)),
            {"cost_usd_micros": 10**12, "gateway_base_usd": OURS},
            10**12,
        ),
        (Quote(price=Price(), margin_ratio=Decimal(1)), {"cost_usd_micros": 10**13}, 10**13),
    ],
)
def test_an_amount_that_cannot_be_true_is_none(quote: Quote, given_: dict[str, Any], cost: int | None) -> None:
    """However absurd price and margin are: the request is unpriced, and the same again when it is computed anew."""
    found = made(attempt(**given_), attempt(2), quote=quote)
    event, _, request = read(found)
    assert (found.state, found.lines[0].refused, found.refused >= 1) == ("unpriced", True, True)
    assert (event["cost_usd_micros"], event["amount_usd_micros"], event["amount_usd"]) == (cost, None, None)
    assert (event["metering"], request["amount_usd_micros"]) == ("exact", None)
    assert max(found.cost_usd_micros, found.amount_usd_micros) < 2**60
    if quote.price.input_usd is None or quote.price.input_usd.adjusted() < 100:
        assert events.replayed(event) == found.events[0].body


def test_ten_million_dollars_are_believed() -> None:
    price = replace(PRICE, input_usd=Decimal(10**5))
    found = made(attempt(), quote=Quote(price=replace(price, output_usd=Decimal(0))))
    assert (found.state, found.amount_usd_micros, found.refused) == ("billed", 10**13, 0)
    assert made(attempt(), quote=Quote(price=price)).state == "unpriced"


def test_a_long_prompt_is_charged_at_the_price_for_long_prompts() -> None:
    price = replace(PRICE, above=((200_000, replace(PRICE, input_usd=Decimal("0.000005"))),))
    found = made(attempt(usage=Usage(prompt_tokens=200_001)), quote=Quote(price=price))
    event = read(found)[0]
    assert (event["prices"]["input_usd"], event["cost_usd_micros"]) == ("0.000005", 1_000_005)


def test_the_gateways_own_figure_can_be_trusted() -> None:
    """A margin of its own explains its figure."""
    given_ = attempt(cost_usd_micros=999, gateway_base_usd=OURS)
    event = read(made(given_, quote=replace(QUOTE, trust_gateway=True)))[0]
    assert (event["cost_basis"], event["cost_usd_micros"], event["amount_usd"]) == ("gateway", 999, "0.0011988")


@pytest.mark.parametrize(("gateway", "difference"), [(450, 0), (400, 50), (500, -50), (None, 0)])
def test_the_difference_is_by_how_much_the_cost_exceeds_the_gateways_figure(
    gateway: int | None, difference: int
) -> None:
    """Tokens times prices give 450 micro-dollars; without a figure of the gateway there is nothing to compare."""
    bill_ = made(attempt(cost_usd_micros=gateway))
    assert (bill_.cost_usd_micros, bill_.difference_usd * 10**6) == (450, difference)


def test_a_difference_by_a_price_rule_is_explained() -> None:
    assert made(attempt(cost_usd_micros=1)).lines[0].finding == "different"
    assert made(attempt(cost_usd_micros=1), quote=replace(QUOTE, source="config")).lines[0].finding == "price_rule"


def test_the_differences_of_attempts_add_up_with_their_signs() -> None:
    first, second = attempt(1, cost_usd_micros=500), attempt(2, kind=AttemptKind.HEDGE, cost_usd_micros=430)
    assert made(first, second).difference_usd * 10**6 == -50 + 20


@pytest.mark.parametrize(
    ("quote", "given_", "refused", "state"),
    [
        (Quote(price=Price()), {"cost_usd_micros": None}, 0, "unpriced"),
        (Quote(price=Price(input_usd=Decimal(1))), {"cost_usd_micros": None}, 0, "unpriced"),
        (QUOTE, {"usage": None, "cost_usd_micros": None}, 0, "unpriced"),
        (QUOTE, {}, 0, "billed"),
        (Quote(price=Price(input_usd=Decimal(10**6), output_usd=Decimal(0))), {"cost_usd_micros": None}, 1, "unpriced"),
        (Quote(price=Price(), margin_ratio=Decimal(10**6)), {"cost_usd_micros": 10**9}, 1, "unpriced"),
    ],
)
def test_only_a_price_that_gives_an_impossible_amount_is_refused(
    quote: Quote, given_: dict[str, Any], refused: int, state: str
) -> None:
    """A missing price, or missing tokens, leave an attempt unpriced, which is no mistake in the configuration."""
    bill_ = made(attempt(**given_), quote=quote)
    assert (bill_.refused, bill_.state) == (refused, state)


@pytest.mark.parametrize("usage", [Usage(prompt_tokens=1), Usage(completion_tokens=1)])
@pytest.mark.parametrize(
    "given_",
    [
        {"cost_usd_micros": None},
        {"cost_usd_micros": 0},
        {"cost_usd_micros": None, "outcome": Outcome.DISCONNECTED},
        {"cost_usd_micros": None, "outcome": Outcome.ERROR, "first_token_ms": 5.0, "status_code": 500},
    ],
)
def test_one_token_is_billed(usage: Usage, given_: dict[str, Any]) -> None:
    price = Price(input_usd=Decimal("0.000003"), output_usd=Decimal("0.000003"))
    bill_ = made(attempt(usage=usage, **given_), quote=Quote(price=price))
    assert (bill_.state, bill_.amount_usd_micros, len(bill_.lines)) == ("billed", 3, 1)
    assert read(bill_)[0]["cost_basis"] == "prices"


def test_a_call_of_our_own_is_an_event_by_itself() -> None:
    ctx = RequestContext(
        request_id="own-1",
        endpoint=Endpoint.CHAT,
        model="gpt-4o",
        stream=False,
        identity=Identity(),
        received_at=AT,
    )
    mirror = attempt(kind=AttemptKind.MIRROR)
    found = bill.of_own_call(ctx, mirror, "shadow-account", QUOTE)
    assert found is not None
    (event,) = read(found)
    assert (event["type"], event["kind"], event["tenant_id"], event["request_id"]) == (
        "attempt",
        "mirror",
        "shadow-account",
        "own-1",
    )
    assert bill.of_own_call(ctx, replace(mirror, usage=Usage(), gateway_cost_usd=Decimal(0)), "t", QUOTE) is None


counts = st.integers(0, 10**7)
COUNTS = {field.name: counts for field in fields(Usage) if field.type == "int"}
QUANTITIES = {field.name: st.none() | counts for field in fields(Usage) if field.type == "int | None"}
NAMES = {
    "search_context": st.sampled_from([None, "low", "medium", "high"]),
    "service_tier": st.sampled_from([None, "flex", "priority"]),
    "model": st.none() | st.text(max_size=5),
    "raw": st.none() | st.text(max_size=300),
}
units = st.none() | st.decimals(min_value=0, max_value=1, places=10)
used = st.builds(Usage, **COUNTS, **QUANTITIES, **NAMES)
usages = st.none() | st.builds(
    replace,
    used,
    parts=st.lists(used, max_size=2).map(tuple),
    provider_cost_usd=units,
    estimated=st.booleans(),
    contradictory=st.booleans(),
)
flat_prices = st.builds(Price, **dict.fromkeys(PRICE_FIELDS, units))
prices = st.builds(
    replace,
    flat_prices,
    above=st.just(()) | flat_prices.map(lambda price: ((1000, price),)),
    tiers=st.dictionaries(st.sampled_from(["flex", "priority"]), flat_prices, max_size=2),
    configured=st.booleans(),
)
quotes = st.builds(
    Quote,
    price=prices,
    configured=st.none() | prices,
    source=st.sampled_from(["gateway", "config"]),
    margin_ratio=st.decimals(min_value=-1, max_value=10, places=6),
    trust_gateway=st.booleans(),
)
attempts = st.builds(
    lambda usage, cost, outcome, kind, started, ms, model: attempt(
        usage=usage,
        cost_usd_micros=cost,
        outcome=outcome,
        kind=kind,
        started_at=started,
        duration_ms=ms,
        model=model,
        first_token_ms=1.0,
    ),
    usages,
    st.none() | st.integers(0, 10**9),
    st.sampled_from([Outcome.OK, Outcome.ERROR, Outcome.CANCELLED, Outcome.DISCONNECTED]),
    st.sampled_from(list(AttemptKind)),
    st.floats(0, 4e9),
    st.floats(0, 1e7),
    st.none() | st.text(max_size=300),
)


def _numbered(found: list[Any]) -> Settlement:
    return settlement(*(replace(a, number=n) for n, a in enumerate(found, start=1)))


@given(attempts, quotes, prices)
def test_an_attempt_whose_parts_have_prices_of_their_own_is_recomputed(
    one: Attempt, quote: Quote, of_part: Price
) -> None:
    parts = () if one.usage is None else (of_part,) * len(one.usage.parts)
    found = made(one, quote=replace(quote, parts=parts))
    for event in found.events[:1]:
        assert events.replayed(json.loads(event.body)) == event.body


@given(st.lists(attempts, max_size=4).map(_numbered), quotes, st.text(max_size=300))
def test_a_replay_gives_the_same_bill_byte_for_byte(found: Settlement, quote: Quote, tenant: str) -> None:
    """From the same settlement, from the one that the journal brings back, and from the events themselves."""
    who = events.storable(tenant)
    first = bill.of_settlement(found, who, lambda _: quote)
    ((entry,), _) = parse(dump([Entry(restored_context(found), found, [])]))
    assert bill.of_settlement(entry.settlement, who, lambda _: quote) == first
    for event in first.events:
        event.body.encode("ascii")
        if event.type == events.ATTEMPT:
            assert events.replayed(json.loads(event.body)) == event.body
    assert len({event.id for event in first.events}) == len(first.events)
    rows = read(first)
    costs = [row["cost_usd"] for row in rows if row["type"] == "attempt"]
    if rows:
        assert rows[-1]["type"] == "request"
        assert rows[-1]["cost_usd"] == (None if None in costs else decimal_text(sum(map(Decimal, costs))))


@pytest.mark.parametrize("trusted", [False, True])
def test_the_gateways_figure_does_not_stand_in_for_the_price_of_a_part(trusted: bool) -> None:
    """It charges nothing for the part that has no price; without any price it is all that is known.

    Except beside a tool, since the gateway knows what a search costs also of a model that it has no price of, where
    a broker has used the operator's own key, and where there were tries that the gateway has not seen.
    """
    logged = Decimal("0.001")
    tokens = Usage(prompt_tokens=1000, completion_tokens=500)
    for price, usage, cost in (
        (Price(input_usd=Decimal("1e-6")), tokens, None),
        (Price(), tokens, logged),
        (Price(), replace(tokens, searches=2), None),
        (Price(search_medium_usd=Decimal("0.01")), replace(tokens, searches=2), None),
        (Price(), replace(tokens, code_sessions=1), None),
        # A broker's fee is not what the provider behind it charges for the operator's own key.
        (Price(), replace(tokens, raw='{"cost":0.001,"is_byok":true}'), None),
        (Price(), replace(tokens, raw='{"cost":0.001,"is_byok":false}'), logged),
        (Price(), replace(tokens, raw='{"cost":0.001,"is_byok":true'), logged),
        (Price(), Usage(searches=1), logged),
        (Price(), Usage(images=1), logged),
        # Of what the tries of a provider's SDK used it is the last one's alone; of several models it is everything's.
        (Price(), replace(tokens, parts=(tokens, tokens)), None),
        (Price(), replace(tokens, parts=(replace(tokens, is_part=True),)), logged),
    ):
        used = attempt(usage=usage, gateway_cost_usd=logged)
        (line,) = made(used, quote=Quote(price=price, trust_gateway=trusted)).lines
        assert line.cost_usd == cost, usage
