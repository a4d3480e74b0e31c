"""The same session or prompt goes to the same deployment, within bounds."""

from __future__ import annotations

from collections import Counter
from math import ceil

from hypothesis import given
from hypothesis import strategies as st

from pointsman.types import ErrorClass
from pointsman_balance.affinity import Ring, hashed, prefix

NOW = 1_700_000_000.0
IDS = [f"d{number}" for number in range(8)]


def test_a_session_keeps_its_deployment_whatever_it_says(table_of, request_of):
    table = table_of(*IDS, tactic="cache_affinity")
    homes = {
        session: {
            table.choose(request_of(session_id=session, body={"messages": [{"role": "user", "content": text}]}))
            for text in ("one", "two", "three")
        }
        for session in map(str, range(50))
    }
    assert all(len(home) == 1 for home in homes.values())
    assert len(set.union(*homes.values())) == 8, "and sessions are spread"


def test_a_conversation_keeps_its_deployment_while_it_grows(table_of, request_of):
    table = table_of(*IDS, tactic="cache_affinity")
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    home = table.choose(request_of(body={"messages": messages}))
    for _ in range(5):
        messages = [*messages, {"role": "assistant", "content": "Hi"}, {"role": "user", "content": "More"}]
        assert table.choose(request_of(body={"messages": messages})) == home


def test_who_comes_or_goes_moves_only_its_own_keys(table_of, request_of):
    table = table_of(*IDS, tactic="cache_affinity")
    requests = [request_of(session_id=str(number)) for number in range(400)]
    before = {request.session_id: table.choose(request) for request in requests}
    table.member("d3").breaker.failed_at(ErrorClass.AUTH, NOW, NOW)
    after = {request.session_id: table.choose(request) for request in requests}
    moved = {session for session in before if before[session] != after[session]}
    assert moved == {session for session, home in before.items() if home == "d3"}
    assert len({after[session] for session in moved}) > 3, "and they are spread over the others"
    table.member("d3").breaker.reset(NOW)
    assert {request.session_id: table.choose(request) for request in requests} == before


def test_the_order_of_the_candidates_is_nothing_to_it(table_of, request_of):
    table = table_of(*IDS, tactic="cache_affinity")
    _, tactic = table.policies.tactic("chat")
    homes = set()
    for step in range(len(IDS)):
        homes.add(
            table.choose(request_of(session_id="s"), candidates=table.candidates[step:] + table.candidates[:step])
        )
    assert len(homes) == 1
    assert len(tactic._rings) == 1


def test_a_hot_key_spills_over_within_the_bound(table_of, request_of):
    table = table_of(*IDS, tactic={"name": "cache_affinity", "balance_factor": 1.25})
    seen = Counter()
    for number in range(1, 81):
        request = request_of(session_id="everybody's")
        one = table.choose(request)
        table.begin(one)
        seen[one] += 1
        assert max(seen.values()) <= ceil(1.25 * number / 8), "Mirrokni et al.: at most c times the mean, rounded up"
    note = next(c for c in table.ask(request_of(session_id="everybody's")).values() if not c.dropped).notes[-1]
    assert "is full or unhealthy" in note


def test_weights_are_shares_of_the_bound(table_of, request_of, deployment_of):
    table = table_of(
        deployment_of("big", weight=3.0),
        deployment_of("small"),
        deployment_of("off", weight=0.0),
        tactic="cache_affinity",
    )
    seen = Counter()
    for _ in range(40):
        one = table.choose(request_of(session_id="hot"))
        table.begin(one)
        seen[one] += 1
    assert seen["off"] == 0
    assert seen["small"] <= ceil(1.25 * 40 / 4)


def test_only_the_prefix_counts_without_a_session():
    body = {"messages": [{"role": "system", "content": "x" * 2000}, {"role": "user", "content": "a"}]}
    other = {"messages": [{"role": "system", "content": "x" * 2000}, {"role": "user", "content": "b"}]}
    assert prefix(body, 1024) == prefix(other, 1024) == "x" * 1024
    assert prefix(body, 4096) != prefix(other, 4096)


def test_every_api_has_a_prefix():
    assert (
        prefix({"system": "s", "messages": [{"role": "user", "content": [{"type": "text", "text": "u"}]}]}, 9) == "s\0u"
    )
    assert prefix({"instructions": "s", "input": "u"}, 9) == "s\0u"
    assert prefix({"input": [{"role": "user", "content": [{"type": "input_text", "text": "u"}]}, "v"]}, 9) == "u"
    assert prefix({"input": ["one", "two"]}, 99) == "one\0two"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["text", "content", "role"]), inner),
    max_leaves=10,
)


@given(st.dictionaries(st.sampled_from(["messages", "input", "system", "instructions"]), JSON), st.integers(1, 20))
def test_any_body_has_a_prefix_of_bounded_length(body, most):
    found = prefix(body, most)
    assert len(found.replace("\0", "")) <= most
    assert prefix(body, most) == found


@given(st.lists(st.text(min_size=1), min_size=1, max_size=10, unique=True), st.integers(0, 2**64 - 1))
def test_a_walk_visits_everybody_once(ids, key):
    assert sorted(Ring(ids).walk(key)) == sorted(ids)


def test_hashes_are_the_same_in_every_process():
    assert hashed(b"hello") == 0xA7B6EDA801E5347D
