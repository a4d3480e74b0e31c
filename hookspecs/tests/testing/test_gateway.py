"""The fake gateway: catalog, prices, token counts."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman.errors import Conflict
from pointsman.testing import FakeGateway, deployment
from pointsman.testing.fakes import FakePrices, FakeTokenizer
from pointsman.types import Price, Usage

A, B, C = deployment("a", "chat"), deployment("b", "chat", weight=3.0, tier="gold"), deployment("c")


@pytest.fixture
def catalog():
    return FakeGateway([A, B, C]).catalog


def test_targets_are_groups_or_deployments(catalog):
    assert catalog.deployments("chat") == (A, B)
    assert catalog.deployments("b") == (B,)
    assert catalog.deployments("c") == (C,)
    assert catalog.deployments() == (A, B, C)
    assert catalog.deployments("nobody") == ()
    assert [catalog.is_group(name) for name in ("chat", "c", "a", "nobody")] == [True, True, False, False]
    assert B.info == {"tier": "gold"}


def test_names_are_listed_as_aliases_of_groups(catalog):
    """A listed name stands for the target's model group until it is taken back; a group's own name is refused."""
    catalog.list_model("assistant", "b")
    catalog.list_model("helper", "c")
    assert catalog.listed == {"assistant": "chat", "helper": "c"}
    catalog.list_model("assistant", None)
    catalog.list_model("never-listed", None)
    assert catalog.listed == {"helper": "c"}
    with pytest.raises(Conflict, match="model group") as caught:
        catalog.list_model("chat", "c")
    assert caught.value.param == "name"


def test_the_configuration_can_change(catalog):
    catalog.replace([C])
    assert catalog.deployments("chat") == ()
    assert catalog.deployments() == (C,)


def test_prices_are_for_all_or_by_deployment_or_model():
    price = Price(input_usd=Decimal(1), output_usd=Decimal(2))
    assert FakePrices(price).get(A) is price
    named = FakePrices({"a": price, "model-of-d": price})
    assert named.get(A) is price
    assert named.get(deployment("d", model="model-of-d")) is price
    assert named.get(B) == Price()


def test_costs_follow_the_prices():
    """Cached and cache-writing tokens have prices of their own; where those are unknown they cost as input."""
    usage = Usage(prompt_tokens=100, completion_tokens=10, cached_tokens=40, cache_write_tokens=20)
    assert FakePrices().cost_usd_micros(A, usage) == 40 * 1 + 40 * 0.1 + 20 * 1.25 + 10 * 2
    plain = FakePrices(Price(input_usd=Decimal("0.000001"), output_usd=Decimal("0.000002")))
    assert plain.cost_usd_micros(A, usage) == 120
    assert plain.cost_usd_micros(A, None) is None
    assert FakePrices({}).cost_usd_micros(A, usage) is None


def test_tokens_are_words_of_the_prompt_and_what_frames_its_messages():
    count = FakeTokenizer().count
    turns = {"messages": [{"role": "user", "content": "one two"}, {"role": "user", "content": "three"}]}
    assert count("m", turns) == 3 + 2 * 4 + 3
    assert count("m", {"input": ["one", "two three"], "system": "four"}) == 4
    assert count("m", {"model": "not a prompt", "max_tokens": 9}) == 0


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(st.dictionaries(st.sampled_from(["messages", "input", "prompt", "system", "x"]), json_values))
def test_any_body_can_be_counted(body):
    assert FakeTokenizer().count("m", body) >= 0
