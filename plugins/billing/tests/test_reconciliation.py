"""Our figure beside the gateway's own: what they agree on, and why they differ."""

from __future__ import annotations

import json
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from pointsman.types import Endpoint, Outcome, Price, Usage
from pointsman_billing import bill, events, reconciliation
from pointsman_billing.pricing import Quote

from .kit import PRICE, attempt, settlement

USD = Decimal
FULL = replace(
    PRICE,
    cache_write_usd=USD("0.000003"),
    cache_write_1h_usd=USD("0.000005"),
    search_medium_usd=USD("0.01"),
    tiers={"flex": replace(PRICE, input_usd=USD("0.000001"))},
)
ONE_TIER = replace(FULL, for_all_tiers=False)
DEAR = replace(FULL, input_usd=USD("0.00001"))
USED = Usage(prompt_tokens=1000, completion_tokens=100)


COHERE = '{"billed_units":{"input_tokens":1000},"tokens":{"input_tokens":900,"output_tokens":50}}'
COUNTED = Usage(prompt_tokens=900, completion_tokens=50)
SPOKEN = Usage(characters=100)
PART = replace(USED, is_part=True)


def billed(quote: Quote, usage: Usage | None, gateway: str | None, **more: Any) -> bill.Bill:
    one = attempt(usage=usage, gateway_cost_usd=None if gateway is None else USD(gateway), **more)
    return bill.of_settlement(settlement(one), "acme", lambda _: quote)


@pytest.mark.parametrize(
    ("given", "usage", "gateway", "finding"),
    [
        ({}, USED, "0.0035", ""),
        ({}, USED, "0.00350000000000000007", ""),
        ({}, USED, "0.0035001", "different"),
        ({}, USED, None, "unseen"),
        ({"price": Price()}, USED, "0.0035", "unpriced"),
        ({}, None, "0.0035", "unpriced"),
        ({"source": "config"}, USED, "0.1", "price_rule"),
        ({"source": "config"}, USED, None, "price_rule"),
        ({}, replace(USED, provider_cost_usd=USD("0.2")), "0.0035", "provider_cost"),
        ({"price": replace(FULL, configured=True)}, replace(USED, provider_cost_usd=USD("0.2")), "0.0034", "different"),
        ({}, replace(USED, estimated=True), "0.1", "different"),
        ({}, replace(USED, contradictory=True), "0.1", "different"),
        ({}, replace(USED, service_tier="flex"), "0.0035", "service_tier"),
        ({}, replace(USED, cache_write_tokens=500, cache_write_1h_tokens=500), "0.00375", "cache_lifetime"),
        ({}, replace(USED, searches=5), "0.0035", "tools"),
        ({}, replace(USED, searches=5), "0.0034", "different"),
        # Parts that are charged as the rest, left out, or charged as the rest as well.
        ({}, replace(USED, cached_tokens=400), "0.0035", "parts"),
        ({}, replace(USED, cache_write_tokens=400), "0.0025", "parts"),
        ({}, replace(USED, audio_completion_tokens=10), "0.0036", "parts"),
        ({}, replace(USED, audio_completion_tokens=10), "0.0037", "different"),
        # Two facts at once.
        ({}, replace(USED, cached_tokens=400, searches=5), "0.0035", "tools"),
        (
            {},
            replace(USED, cache_write_tokens=500, cache_write_1h_tokens=500, service_tier="flex"),
            "0.00375",
            "service_tier",
        ),
        ({"configured": DEAR}, replace(USED, model="other"), "0.011", "served_model"),
        ({"configured": DEAR}, replace(USED, model="other"), "0.012", "different"),
        ({"parts": (FULL, DEAR)}, replace(USED, parts=(PART, PART)), "0.0035", "several_models"),
        ({"parts": (FULL, FULL)}, replace(USED, parts=(COUNTED, USED)), "0.0035", "retried"),
        ({"parts": (FULL, FULL)}, replace(USED, parts=(COUNTED, USED)), "0.0036", "different"),
        ({"unlisted": True}, replace(USED, model="other"), "0", "unlisted"),
        ({"unlisted": True}, replace(USED, model="other"), "0.001", "different"),
        ({"unlisted": True, "price": Price()}, replace(USED, model="other"), "0", "unpriced"),
    ],
)
def test_a_difference_has_its_reason_or_none(
    given: dict[str, Any], usage: Usage | None, gateway: str | None, finding: str
) -> None:
    """A reason that the gateway's figure does not bear out is none."""
    found = billed(Quote(**{"price": FULL, **given}), usage, gateway)
    assert found.lines[0].finding == finding
    body = found.events[0].body
    assert events.replayed(json.loads(body)) == body


@pytest.mark.parametrize(
    ("usage", "counted", "gateway", "finding"),
    [
        (USED, COUNTED, "0.00275", "counts"),
        (replace(USED, estimated=True), COUNTED, "0.00275", "estimated"),
        (replace(USED, estimated=True), COUNTED, "0.00276", "different"),
        (replace(USED, estimated=True), None, "0.00275", "different"),
        (replace(USED, contradictory=True), COUNTED, "0.00275", "contradictory"),
        (replace(USED, contradictory=True), COUNTED, "0.00276", "different"),
        # Cohere's account has both.
        (replace(USED, raw=COHERE), COUNTED, "0.00275", "billed_units"),
        (replace(USED, raw=COHERE[:-1]), COUNTED, "0.00275", "counts"),
        # Its own counts, and the tools are left out as well.
        (replace(USED, estimated=True, searches=2), COUNTED, "0.02275", "estimated"),
        (replace(USED, estimated=True, searches=2), COUNTED, "0.00275", "estimated"),
        # The gateway has understood none of the counts.
        (replace(USED, contradictory=True), Usage(), "0", "contradictory"),
        (replace(USED, contradictory=True), None, "0", "different"),
        (USED, Usage(), "0", "counts"),
        # Characters without white space.
        (SPOKEN, Usage(characters=80), "0.0012", "characters"),
        (SPOKEN, Usage(characters=80), "0.0011", "different"),
        (SPOKEN, Usage(characters=100), "0.0012", "different"),
        # Reasoning beside an answer of one token.
        (
            replace(USED, contradictory=True),
            Usage(prompt_tokens=1000, completion_tokens=1, reasoning_tokens=300),
            "0.0055",
            "contradictory",
        ),
    ],
)
def test_counts_explain_a_difference_where_the_gateways_figure_is_their_price(
    usage: Usage, counted: Usage | None, gateway: str, finding: str
) -> None:
    """An estimate or a contradiction is not believed to be the reason without a look at what the gateway has counted."""
    price = replace(FULL, character_usd=USD("0.000015"))
    found = billed(Quote(price=price), usage, gateway, gateway_usage=counted)
    assert found.lines[0].finding == finding
    assert (finding in reconciliation.OPEN) is (finding in {"counts", "different"})


@pytest.mark.parametrize("outcome", [Outcome.OK, Outcome.DISCONNECTED])
@pytest.mark.parametrize(("gateway", "finding"), [(None, "connection"), ("0.0035", ""), ("0.1", "different")])
def test_the_gateway_logs_nothing_about_a_response_on_a_websocket(
    outcome: Outcome, gateway: str | None, finding: str
) -> None:
    """Which is in order; what it logs all the same is compared."""
    usd = None if gateway is None else USD(gateway)
    spoken = settlement(attempt(usage=USED, gateway_cost_usd=usd, outcome=outcome, first_token_ms=3.0))
    found = bill.of_settlement(replace(spoken, within="connection-1"), "acme", lambda _: Quote(price=FULL))
    assert found.lines[0].finding == finding
    assert (finding in reconciliation.OPEN) is (finding == "different")


@pytest.mark.parametrize(
    ("outcome", "gateway", "finding"),
    [
        (Outcome.ERROR, "0", "unfinished"),
        (Outcome.DISCONNECTED, "0", "unfinished"),
        (Outcome.OK, "0", "different"),
        (Outcome.ERROR, "0.001", "different"),
        (Outcome.ERROR, "0.0035", ""),
        (Outcome.ERROR, None, "unseen"),
        (Outcome.CANCELLED, None, "cancelled"),
        (Outcome.DISCONNECTED, None, "cancelled"),
        (Outcome.CANCELLED, "0", "unfinished"),
        (Outcome.CANCELLED, "0.001", "different"),
    ],
)
def test_what_there_was_of_an_answer_is_compared_with_what_the_gateway_has_logged(
    outcome: Outcome, gateway: str | None, finding: str
) -> None:
    found = billed(
        Quote(price=FULL),
        replace(USED, estimated=True),
        gateway,
        outcome=outcome,
        first_token_ms=3.0,
        cut=outcome is not Outcome.ERROR,
    )
    assert found.lines[0].finding == finding
    assert found.amount_usd_micros == 3500


@pytest.mark.parametrize(
    ("outcome", "cut", "gateway", "finding"),
    [
        (Outcome.DISCONNECTED, False, None, "left"),
        (Outcome.DISCONNECTED, True, None, "cancelled"),
        (Outcome.DISCONNECTED, False, "0", "unfinished"),
        (Outcome.DISCONNECTED, False, "0.0035", ""),
        (Outcome.OK, False, None, "unseen"),
        (Outcome.ERROR, False, None, "unseen"),
    ],
)
def test_a_client_that_left_before_the_first_content_is_no_riddle(
    outcome: Outcome, cut: bool, gateway: str | None, finding: str
) -> None:
    used = replace(USED, estimated=True)
    found = billed(Quote(price=FULL), used, gateway, outcome=outcome, first_token_ms=None, cut=cut)
    assert found.lines[0].finding == finding
    assert found.amount_usd_micros == 3500


@pytest.mark.parametrize(
    ("endpoint", "finding"),
    [
        (Endpoint.CHAT, "unseen"),
        (Endpoint.MESSAGES, "unseen"),
        (Endpoint.COMPLETIONS, "left"),
        (Endpoint.GENERATE_CONTENT, "left"),
    ],
)
def test_a_stream_that_was_left_within_its_content_is_logged_on_some_endpoints(
    endpoint: Endpoint, finding: str
) -> None:
    begun = attempt(usage=USED, gateway_cost_usd=None, outcome=Outcome.DISCONNECTED, first_token_ms=3.0)
    found = bill.of_settlement(settlement(begun, endpoint=endpoint), "acme", lambda _: Quote(price=FULL))
    assert found.lines[0].finding == finding


@pytest.mark.parametrize(
    ("quote", "usage", "gateway", "counted", "micros"),
    [
        (Quote(price=FULL), USED, "0.00350000000000000007", None, 3500),
        (Quote(price=FULL), USED, "0.1", None, 3500),
        (Quote(price=FULL), replace(USED, contradictory=True), "0.00275", COUNTED, 3500),
        (Quote(price=FULL), replace(USED, contradictory=True), "0.0001", None, 3500),
        (Quote(price=FULL), replace(USED, estimated=True), "0.00275", COUNTED, 3500),
        (Quote(price=FULL), replace(USED, searches=5), "0.0035", None, 53_500),
        (Quote(price=FULL), replace(USED, service_tier="flex"), "0.0035", None, 2000),
        (Quote(price=FULL), replace(USED, provider_cost_usd=USD("0.2")), "0.0035", None, 200_000),
        (Quote(price=FULL, parts=(FULL, DEAR)), replace(USED, parts=(USED, USED)), "0.0035", None, 14_500),
        (Quote(price=Price()), USED, "0.1", None, 100_000),
    ],
)
def test_the_gateway_is_trusted_except_where_it_leaves_out_what_the_provider_has_said(
    quote: Quote, usage: Usage, gateway: str, counted: Usage | None, micros: int
) -> None:
    found = billed(replace(quote, trust_gateway=True), usage, gateway, gateway_usage=counted)
    assert found.amount_usd_micros == micros
    body = found.events[0].body
    assert events.replayed(json.loads(body)) == body


@pytest.mark.parametrize(
    ("given", "usage", "gateway", "basis", "micros"),
    [
        ({}, USED, "0.1", "prices", 3500),
        ({"trust_gateway": True}, USED, "0.0035", "gateway", 3500),
        ({"trust_gateway": True}, USED, "0.1", "prices", 3500),
        ({"trust_gateway": True}, USED, None, "prices", 3500),
        ({"trust_gateway": True}, USED, "0", "prices", 3500),
        ({"trust_gateway": True, "price": Price()}, USED, "0", None, None),
        ({"price": Price()}, USED, "0", None, None),
        ({"price": Price()}, USED, "0.1", "gateway", 100_000),
        ({}, None, None, None, None),
        ({"price": Price(input_usd=USD(0), output_usd=USD(0))}, None, None, "prices", 0),
        ({}, replace(USED, provider_cost_usd=USD("0.0123")), "0.1", "provider", 12_300),
        ({"source": "config"}, replace(USED, provider_cost_usd=USD("0.0123")), "0.1", "prices", 3500),
        ({"price": replace(FULL, configured=True)}, replace(USED, provider_cost_usd=USD(1)), None, "prices", 3500),
        ({"price": replace(FULL, search_medium_usd=None)}, replace(USED, searches=1), None, None, None),
        ({"price": replace(FULL, search_medium_usd=None)}, replace(USED, searches=0), None, "prices", 3500),
        ({}, replace(USED, searches=1), None, "prices", 13_500),
        ({"price": ONE_TIER}, replace(USED, service_tier="default"), None, "prices", 3500),
        ({"price": ONE_TIER}, replace(USED, service_tier="Flex"), None, "prices", 2000),
        ({"price": ONE_TIER}, replace(USED, service_tier="priority"), "0.0035", None, None),
        ({"price": ONE_TIER, "trust_gateway": True}, replace(USED, service_tier="scale"), "0.0035", None, None),
        ({"price": replace(FULL, configured=True)}, replace(USED, service_tier="scale"), None, "prices", 3500),
        ({"parts": (FULL, Price())}, replace(USED, parts=(USED, USED)), "0.0035", None, None),
        ({"price": Price()}, Usage(images=1), None, None, None),
        ({"price": Price(image_usd=USD("0.04"))}, Usage(images=2), None, "prices", 80_000),
        ({"price": Price(audio_second_usd=USD("0.0001"))}, Usage(audio_ms=60_500), None, "prices", 6050),
        (
            {"parts": (FULL, DEAR)},
            Usage(prompt_tokens=2000, parts=(Usage(prompt_tokens=1000),) * 2),
            None,
            "prices",
            12_500,
        ),
    ],
)
def test_the_cost_is_known_or_said_not_to_be(
    given: dict[str, Any], usage: Usage | None, gateway: str | None, basis: str | None, micros: int | None
) -> None:
    """The gateway's zero is no price, and what has none is unpriced, never free."""
    found = billed(Quote(**{"price": FULL, **given}), usage, gateway)
    event = json.loads(found.events[0].body)
    assert (event["cost_basis"], event["cost_usd_micros"]) == (basis, micros)
    assert found.state == ("unpriced" if micros is None else "billed" if micros else "free")
    assert events.replayed(event) == found.events[0].body


@pytest.mark.parametrize(
    ("gateway", "base", "usage", "finding", "micros"),
    [
        ("0.003325", "0.0035", USED, "adjusted", {True: 3325, False: 3500}),
        ("0.00385", "0.0035", USED, "adjusted", {True: 3850, False: 3500}),
        ("0.0035", "0.003", USED, "", {True: 3500, False: 3500}),
        ("0.003325", "0.0034", USED, "different", {True: 3500, False: 3500}),
        ("0.003325", "0.0035", replace(USED, service_tier="flex"), "service_tier", {True: 2000, False: 2000}),
    ],
)
def test_discounts_and_margins_of_the_gateway_are_in_its_figure_alone(
    gateway: str, base: str, usage: Usage, finding: str, micros: dict[bool, int]
) -> None:
    for trusts, owed in micros.items():
        found = billed(Quote(price=FULL, trust_gateway=trusts), usage, gateway, gateway_base_usd=USD(base))
        assert (found.lines[0].finding, found.amount_usd_micros) == (finding, owed)
    assert (finding in reconciliation.OPEN) is (finding == "different")


def test_what_only_reads_is_not_charged() -> None:
    one = attempt(usage=None, cost_usd_micros=None)
    found = bill.of_settlement(settlement(one, generates=False), "acme", lambda _: Quote(price=FULL))
    assert (found.state, found.events) == ("free", ())
