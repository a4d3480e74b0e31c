"""The same session or prompt goes to the same deployment, within bounds."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman.types import AttemptError, ErrorClass, Identity, Outcome
from pointsman_balance.tactics import cache_affinity
from pointsman_balance.tactics.cache_affinity import Ring, hashed, prefix

NOW = 1_700_000_000.0
SERVER_ERROR = AttemptError(kind=ErrorClass.SERVER)
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
    table.member("d3").breaker.record_failure(ErrorClass.AUTH, NOW, NOW)
    after = {request.session_id: table.choose(request) for request in requests}
    moved = {session for session in before if before[session] != after[session]}
    assert moved == {session for session, home in before.items() if home == "d3"}
    assert len({after[session] for session in moved}) > 3, "and they are spread over the others"
    table.member("d3").breaker.reset(NOW)
    assert {request.session_id: table.choose(request) for request in requests} == after, (
        "their prompts are cached there"
    )
    fresh = table_of(*IDS, tactic="cache_affinity")
    assert {request.session_id: fresh.choose(request) for request in requests} == before, "another worker agrees"


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


def test_new_keys_spill_over_within_the_bound_and_a_hot_one_within_twice_of_it(table_of, request_of):
    table = table_of(*IDS, tactic={"name": "cache_affinity", "balance_factor": 1.25})
    ring = Ring(IDS)
    same_home = [str(n) for n in range(2_000) if next(ring.walk(hashed(str(n).encode()))) == "d3"]
    seen = Counter()
    for number, session in enumerate(same_home[:80], 1):
        one = table.choose(request_of(session_id=session))
        table.begin(one)
        seen[one] += 1
        assert max(seen.values()) <= ceil(1.25 * number / 8), "Mirrokni et al.: at most c times the mean, rounded up"
    note = next(c for c in table.ask(request_of(session_id=same_home[80])).values() if not c.dropped).notes[-1]
    assert "is full or unhealthy" in note
    table, seen = table_of(*IDS, tactic="cache_affinity"), Counter()
    for number in range(1, 81):
        one = table.choose(request_of(session_id="everybody's"))
        table.begin(one)
        seen[one] += 1
        assert max(seen.values()) <= max(2 * ceil(1.25 * number / 8), 4)


@pytest.mark.parametrize("how", ["prefix", "session", "user"])
def test_conversations_behind_one_long_system_prompt_spread_and_stay(table_of, request_of, how):
    """Eight at once over four deployments, six turns each, all in flight together."""
    table = table_of(*IDS[:4], tactic={"name": "cache_affinity", "key": "user" if how == "user" else "session"})
    system = {"role": "system", "content": "You are a helpful agent. " * 120}
    last, moved = {}, 0
    histories = {number: [system] for number in range(8)}
    for turn in range(6):
        attempts = []
        for number, messages in histories.items():
            messages.append({"role": "user", "content": f"conversation {number} turn {turn}"})
            named = {"session": {"session_id": f"s-{number}"}, "user": {"identity": Identity(end_user=f"u-{number}")}}
            request = request_of(body={"messages": messages}, **named.get(how, {}))
            one = table.choose(request)
            attempts.append((one, request, table.begin(one, request)))
            moved += last.get(number, one) != one
            last[number] = one
        for _, request, attempt in attempts:
            table.observer.end(request, replace(attempt, outcome=Outcome.OK, duration_ms=150.0), NOW)
        for messages in histories.values():
            messages.append({"role": "assistant", "content": "yes"})
    assert moved <= 4
    assert len(set(last.values())) >= 3


@pytest.mark.parametrize("failed", [False, True], ids=["hedge", "retry"])
def test_a_hedge_or_a_retry_of_one_turn_does_not_move_a_conversation(table_of, request_of, failed):
    table = table_of(*IDS, tactic="cache_affinity")
    home = table.choose(request_of(session_id="s"))
    for _ in range(3):
        turn = request_of(session_id="s")
        assert table.choose(turn) == home
        attempt = table.begin(home, turn)
        if failed:
            table.observer.end(turn, replace(attempt, outcome=Outcome.ERROR, error=SERVER_ERROR), NOW)
        other = table.choose(turn, candidates=[c for c in table.candidates if c.deployment.id != home])
        assert other != home
        answer = table.begin(other, turn)
        table.observer.end(turn, replace(answer, outcome=Outcome.OK, duration_ms=150.0), NOW)
        if not failed:
            table.observer.end(turn, replace(attempt, outcome=Outcome.CANCELLED), NOW)
        table.see(home)


def test_conversations_remembered_are_bounded(table_of, request_of, monkeypatch):
    monkeypatch.setattr(cache_affinity, "MAX_CONVERSATIONS", 10)
    table = table_of(*IDS, tactic="cache_affinity")
    for number in range(30):
        table.choose(request_of(session_id=str(number)))
    _, tactic = table.policies.tactic("chat")
    assert len(tactic._latest) == 10


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
    assert seen["small"] <= 2 * ceil(1.25 * 40 / 4)


def test_system_prompt_and_first_user_message_count_apart():
    bodies = [
        {"messages": [{"role": "system", "content": system}, {"role": "user", "content": user}]}
        for system in ("x" * 2000, "y" * 2000)
        for user in ("a" * 2000, "b" * 2000)
    ]
    assert len({prefix(body, 1024) for body in bodies}) == 4
    assert prefix(bodies[0], 1024) == "x" * 1024 + "\0\0" + "a" * 1024
    longer = {"messages": [*bodies[0]["messages"], {"role": "assistant", "content": "c"}]}
    assert prefix(longer, 9_999) == prefix(bodies[0], 9_999)


def test_every_api_has_a_prefix():
    text = {"type": "text", "text": "u"}
    assert prefix({"system": "s", "messages": [{"role": "user", "content": [text]}]}, 9) == "s\0\0u"
    assert prefix({"instructions": "s", "input": "u"}, 9) == "s\0\0u"
    assert prefix({"input": [{"role": "user", "content": [{"type": "input_text", "text": "u"}]}, "v"]}, 9) == "\0\0u"
    assert prefix({"input": ["one", "two"]}, 99) == "one\0two\0\0"
    gemini = {"systemInstruction": {"parts": [{"text": "s"}]}, "contents": [{"role": "user", "parts": [{"text": "u"}]}]}
    assert prefix(gemini, 9) == "s\0\0u"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["text", "content", "role"]), inner),
    max_leaves=10,
)


@given(st.dictionaries(st.sampled_from(["messages", "input", "system", "instructions"]), JSON), st.integers(1, 20))
def test_any_body_has_a_prefix_of_bounded_length(body, most):
    found = prefix(body, most)
    assert len(found.replace("\0", "")) <= 2 * most
    assert prefix(body, most) == found


@given(st.lists(st.text(min_size=1), min_size=1, max_size=10, unique=True), st.integers(0, 2**64 - 1))
def test_a_walk_visits_each_deployment_once(ids, key):
    assert sorted(Ring(ids).walk(key)) == sorted(ids)


def test_hashes_are_the_same_in_every_process():
    assert hashed(b"hello") == 0xA7B6EDA801E5347D
