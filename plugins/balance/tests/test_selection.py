"""Which candidates are excluded and why, which requests probe, and what happens when none is healthy."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman.types import AttemptError, AttemptKind, Endpoint, ErrorClass, Limit, Outcome, Signal, SignalStatus
from pointsman_balance.tactics import BUILT_IN

from .conftest import NOW, Table, make_attempt, make_deployment, make_request


def signal(id_, status, until=None, reason="no tokens left", limits=()):
    return Signal(deployment_id=id_, status=status, recorded_at=NOW, until=until, reason=reason, limits=limits)


def chosen(answer):
    (one,) = [candidate for candidate in answer.values() if not candidate.dropped]
    return one


def test_the_choice_tells_the_scores_of_all_and_why_others_could_not_be_chosen(table_of):
    table = table_of("a", "b", "c", "ill", "empty")
    for one, first_ms in {"a": 100, "b": 200, "c": 400}.items():
        table.see(one, first_ms=first_ms, usage=None)
    table.see("ill", error=ErrorClass.AUTH)
    table.signals["empty"] = signal("empty", SignalStatus.EXHAUSTED, NOW + 60)
    answer = table.ask(now=NOW)
    one = chosen(answer)
    assert (one.deployment.id, one.score) == ("a", 1.0)
    assert one.notes == ("adaptive, waits 100 ms, 0 in flight; against b 0.5, c 0.25",)
    assert answer["ill"].notes == ("breaker open for 60.0 s more: the provider rejects the credentials",)
    assert answer["empty"].notes == ("exhausted: no tokens left",)
    assert set(answer) == {"a", "ill", "empty"}, "who only scored less is left out"


def test_who_has_not_been_used_for_long_is_not_said_to_wait_for_nothing(table_of):
    table = table_of("a", "b")
    table.see("a", first_ms=150, usage=None)
    table.see("b", NOW + 100, first_ms=200, usage=None)
    assert (
        chosen(table.ask(now=NOW + 100))
        .notes[-1]
        .startswith("adaptive, not used lately, waited 150 ms, 0 in flight; against b ")
    )


def test_an_id_may_hold_what_looks_like_a_format(table_of):
    table = table_of("a", "100%d", "%%.3g")
    for one, first_ms in {"a": 100, "100%d": 200, "%%.3g": 400}.items():
        table.see(one, first_ms=first_ms, usage=None)
    assert chosen(table.ask(now=NOW)).notes == ("adaptive, waits 100 ms, 0 in flight; against 100%d 0.5, %%.3g 0.25",)


def test_notes_of_earlier_plugins_are_kept(table_of):
    table = table_of("a", "b")
    table.candidates = tuple(c.scored(0.3, "tagged") for c in table.candidates)
    table.see("b", error=ErrorClass.AUTH)
    answer = table.ask()
    assert answer["a"].notes[0] == answer["b"].notes[0] == "tagged"


def test_a_retry_goes_elsewhere_while_there_are_others(table_of, request_of):
    table, request = table_of("a", "b", "c"), request_of()
    tried = []
    for _ in range(3):
        one = table.choose(request)
        tried.append(one)
        table.see(one, request=request, error=ErrorClass.SERVER)
    assert sorted(tried) == ["a", "b", "c"]
    answer = table.ask(request)
    assert chosen(answer).notes == ("all were tried for this request, this is the best of them",)
    assert table.chooser.none_healthy == 0, "each has failed once: no breaker is open"


def test_a_third_leg_of_a_race_over_two_says_that_both_run_it_already(table_of, request_of):
    table, request = table_of("a", "b"), request_of()
    for _ in range(2):
        table.begin(table.choose(request), request)
    assert chosen(table.ask(request)).notes == ("all were tried for this request, this is the best of them",)
    assert table.chooser.none_healthy == 0


@pytest.mark.parametrize(
    ("kind", "expected", "words"),
    [
        (ErrorClass.AUTH, "b", "all healthy ones were tried for this request, this is the best of them"),
        (
            ErrorClass.SERVER,
            "a",
            "all healthy ones were tried for this request, this is the least bad: breaker open for 2.0 s more: ",
        ),
    ],
)
def test_when_the_healthy_ones_have_been_tried_it_says_so(table_of, request_of, kind, expected, words):
    table, request = table_of("a", "b", breaker={"consecutive_errors": 1}), request_of()
    table.see("a", error=kind)
    table.begin("b", request)
    one = chosen(table.ask(request))
    assert one.deployment.id == expected
    assert one.notes[-1].startswith(words)
    assert table.chooser.none_healthy == 0


def test_none_is_healthy_when_those_that_were_tried_are_not_either(table_of, request_of):
    table, request = table_of("a", "b"), request_of()
    table.see("a", error=ErrorClass.AUTH)
    table.begin("b", request)
    table.signals["b"] = signal("b", SignalStatus.EXHAUSTED, NOW + 60)
    assert (
        chosen(table.ask(request)).notes[-1].startswith("none is healthy, this is one of the least bad: breaker open")
    )
    assert table.chooser.none_healthy == 1


def test_a_second_leg_of_a_race_runs_elsewhere(table_of, request_of):
    table, request = table_of("a", "b"), request_of()
    first = table.choose(request)
    table.begin(first, request)
    assert table.choose(request) != first


def test_an_answered_request_is_forgotten(table_of, request_of):
    table, request = table_of("a"), request_of()
    table.see("a", request=request)
    assert len(table.tried) == 0


def test_an_open_breaker_of_one_group_says_nothing_about_another(table_of):
    table = table_of(make_deployment("a", "chat"), make_deployment("b", "chat"))
    for _ in range(3):
        table.see("a", error=ErrorClass.SERVER)
    assert {table.choose() for _ in range(50)} == {"b"}
    other = Table([make_deployment("a", "batch"), make_deployment("b", "batch")], {})
    other.chooser, other.members = table.chooser, table.members
    assert {other.choose() for _ in range(50)} == {"a", "b"}


def test_a_half_open_breaker_gets_one_request_and_comes_back(table_of, request_of):
    table = table_of("a", "b", tactic="random", breaker={"open_s": 2, "ramp_s": 10})
    for _ in range(3):
        table.see("a", error=ErrorClass.SERVER)
    assert {table.choose(now=NOW + 1.9) for _ in range(50)} == {"b"}
    probe = request_of()
    answer = table.ask(probe, NOW + 2)
    assert chosen(answer).deployment.id == "a"
    assert chosen(answer).notes[-1].startswith("probe: breaker half-open")
    assert {table.choose(now=NOW + 2.1) for _ in range(50)} == {"b"}, "one probe at a time"
    table.see("a", NOW + 2.0, request=probe, took_s=0.3)
    assert table.changes == [("a", "open"), ("a", "closed")]
    seen = Counter(table.choose(now=NOW + 2.31) for _ in range(400))
    assert 10 <= seen["a"] <= 90, "a tenth, at first"
    assert Counter(table.choose(now=NOW + 30) for _ in range(400))["a"] > 150


def test_a_retry_is_no_probe(table_of, request_of):
    """It has no other deployment to be retried on when the probe fails."""
    table, request = table_of("a", "b", "c"), request_of()
    for _ in range(3):
        table.see("a", error=ErrorClass.SERVER)
    table.see("b", request=request, error=ErrorClass.SERVER)
    assert {table.choose(request, NOW + 5) for _ in range(20)} == {"c"}


def test_probes_by_call_take_no_request(table_of):
    table = table_of("a", "b", breaker={"probe": "call", "open_s": 2})
    for _ in range(3):
        table.see("a", error=ErrorClass.SERVER)
    assert {table.choose(now=NOW + 10) for _ in range(50)} == {"b"}


def test_a_degraded_deployment_keeps_a_part_of_its_traffic(table_of):
    table = table_of("a", "b", tactic="random", degraded_share_ratio=0.2)
    table.signals["a"] = signal("a", SignalStatus.DEGRADED, NOW + 60, "2.0% of tokens left")
    seen = Counter(table.choose() for _ in range(1000))
    assert seen["a"] == pytest.approx(100, abs=40), "half of a fifth"
    reasons = {note for _ in range(50) for c in table.ask().values() if c.dropped for note in c.notes}
    assert reasons == {"degraded: 2.0% of tokens left"}
    assert Counter(table.choose(now=NOW + 61) for _ in range(400))["a"] > 150, "until it ends by itself"


def test_degraded_by_errors_alone_is_left_to_the_breaker(table_of):
    """The signal's window is minutes long; what the breaker has closed must not be avoided that long."""
    table = table_of("a", "b", tactic="random")
    table.signals["a"] = signal("a", SignalStatus.DEGRADED, None, "30% of 40 attempts failed")
    assert Counter(table.choose() for _ in range(400))["a"] > 150


def test_a_429_opens_until_the_time_that_only_the_signal_knows(table_of):
    table = table_of("a", "b")
    table.signals["a"] = signal("a", SignalStatus.EXHAUSTED, NOW + 17, limits=(Limit(axis="requests"),))
    table.see("a", error=ErrorClass.RATE_LIMIT)
    assert table.member("a").breaker.until == NOW + 17
    table.see("b", error=ErrorClass.RATE_LIMIT, retry_after_s=4.0)
    assert table.member("b").breaker.until == NOW + 4, "the provider's own word goes first"


def test_without_any_word_a_429_costs_the_default(table_of):
    table = table_of("a", "b")
    table.see("a", error=ErrorClass.RATE_LIMIT)
    assert table.member("a").breaker.until == NOW + 30


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        ({"a": ErrorClass.AUTH, "b": ErrorClass.RATE_LIMIT, "c": ErrorClass.SERVER}, "c"),
        ({"a": ErrorClass.AUTH, "b": ErrorClass.RATE_LIMIT, "c": ErrorClass.AUTH}, "b"),
    ],
)
def test_when_none_is_healthy_the_least_bad_serves_and_says_so(table_of, kinds, expected):
    table = table_of("a", "b", "c", breaker={"open_s": 20, "consecutive_errors": 1})
    for one, kind in kinds.items():
        table.see(one, error=kind)
    one = chosen(table.ask())
    assert one.deployment.id == expected
    assert one.notes[-1].startswith("none is healthy, this is one of the least bad: breaker open for")
    assert table.chooser.none_healthy == 1


def test_the_load_spreads_over_the_least_bad(table_of, request_of):
    table = table_of("a", "b", "c", "d", breaker={"open_s": 20, "consecutive_errors": 1})
    table.see("a", error=ErrorClass.AUTH)
    table.see("b", error=ErrorClass.SERVER)
    table.see("c", NOW - 15, error=ErrorClass.SERVER, took_s=0.0)
    table.see("d", error=ErrorClass.RATE_LIMIT, retry_after_s=1)
    seen = Counter()
    for _ in range(20):
        request = request_of()
        one = chosen(table.ask(request)).deployment.id
        table.begin(one, request)
        seen[one] += 1
    assert seen == {"b": 10, "c": 10}


def test_with_a_fallback_only_the_probe_is_sent_to_a_group_without_a_healthy_deployment(table_of, request_of):
    table = table_of("a", "b", breaker={"open_s": 20, "consecutive_errors": 1, "probe_timeout_s": 5})
    table.candidates = tuple(replace(candidate, has_fallback=True) for candidate in table.candidates)
    for one in "ab":
        table.see(one, error=ErrorClass.SERVER)
    answer = table.ask()
    assert all(candidate.dropped for candidate in answer.values())
    assert answer["a"].notes[-1].startswith("breaker open for 20.0 s more")
    later = NOW + 21
    probes = [chosen(table.ask(request_of(), later)).deployment.id for _ in range(2)]
    assert sorted(probes) == ["a", "b"], "one probe each"
    assert all(candidate.dropped for candidate in table.ask(now=later).values())
    assert (table.chooser.left_to_fallback, table.chooser.probed, table.chooser.none_healthy) == (2, 2, 0)


def test_a_retry_of_what_was_tried_is_not_left_to_the_fallback(table_of, request_of):
    table, request = table_of("a"), request_of()
    table.candidates = tuple(replace(candidate, has_fallback=True) for candidate in table.candidates)
    table.see("a", request=request, error=ErrorClass.SERVER)
    assert chosen(table.ask(request)).deployment.id == "a"


def test_errors_of_requests_that_were_let_through_change_no_opening(table_of, request_of):
    """Neither the end of a limit nor the length of an opening: such a request is no probe."""
    table = table_of("a", breaker={"open_s": 20, "consecutive_errors": 1})
    breaker = table.member("a").breaker
    table.see("a", error=ErrorClass.RATE_LIMIT, retry_after_s=50)
    for kind in (ErrorClass.SERVER, ErrorClass.AUTH, ErrorClass.RATE_LIMIT, ErrorClass.TIMEOUT):
        request = request_of()
        table.ask(request, NOW + 10)
        table.see("a", NOW + 10, request=request, error=kind)
        assert (str(breaker.state), str(breaker.cause), breaker.until) == ("open", "rate_limit", NOW + 50)
    table.ask(probe := request_of(), NOW + 51)
    table.begin("a", probe, NOW + 51)
    table.ask(late := request_of(), NOW + 51)
    table.see("a", NOW + 51, request=late, error=ErrorClass.SERVER)
    assert (str(breaker.state), breaker.openings) == ("half_open", 0), "the probe has not answered yet"


def test_what_a_client_caused_teaches_nothing(table_of, request_of):
    table = table_of("a")
    for _ in range(20):
        request = request_of()
        attempt = replace(
            make_attempt(table.deployments["a"], request, error=ErrorClass.TIMEOUT),
            error=AttemptError(kind=ErrorClass.TIMEOUT, client_caused=True),
        )
        table.observer.begin(request, attempt, NOW)
        table.observer.end(request, attempt, NOW)
    load = table.member("a").load
    assert table.member("a").breaker.healthy
    assert (load.errors, load.unanswered, load.asked, load.wait_ms(NOW, stream=True)) == (0.0, 0, 0, None)


def test_answers_without_content_open_no_breaker_and_attract_nobody(table_of):
    for name in sorted(BUILT_IN):
        table = table_of("empty", "good", tactic=name)
        seen, now, running = Counter(), NOW, []
        for number in range(90):
            now += 0.1
            while running and running[0][0] <= now:
                _, request = running.pop(0)
                table.see("good", now, request=request, ms=300.0)
            request = make_request(session_id=str(number))
            one = table.choose(request, now)
            seen[one] += 1
            if one == "empty":
                empty = AttemptError(kind=ErrorClass.EMPTY)
                attempt = replace(make_attempt(table.deployments[one], request, at=now, ms=1.0), error=empty)
                table.observer.begin(request, attempt, now)
                table.observer.end(request, replace(attempt, first_token_ms=None), now)
            else:
                table.begin(one, request, now)
                running.append((now + 0.3, request))
        assert table.member("empty").breaker.healthy
        assert seen["empty"] <= 45, (name, seen)


def test_a_group_of_one_is_served_whatever_its_breaker_says(table_of):
    table = table_of("a")
    assert chosen(table.ask()).notes[-1] == "the only candidate"
    table.see("a", error=ErrorClass.AUTH)
    assert "none is healthy" in chosen(table.ask()).notes[-1]


def test_a_model_that_is_not_found_opens_it_but_what_the_client_names_does_not(table_of, request_of):
    table = table_of("a", "b", "c", "d")
    follow_up = request_of(endpoint=Endpoint.RESPONSES, body={"input": "x", "previous_response_id": "resp_1"})
    table.see("a", request=follow_up, error=ErrorClass.NOT_FOUND)
    table.see("b", request=request_of(endpoint=Endpoint.OTHER), error=ErrorClass.NOT_FOUND)
    assert table.changes == []
    table.see("c", request=request_of(endpoint=Endpoint.RESPONSES, body={"input": "x"}), error=ErrorClass.NOT_FOUND)
    table.see("d", error=ErrorClass.NOT_FOUND)
    assert table.changes == [("c", "open"), ("d", "open")]


def test_a_refusal_by_the_gateway_itself_says_nothing(table_of):
    table = table_of("a", "b", tactic="random")
    for _ in range(20):
        table.see("a", error=ErrorClass.REFUSED)
    assert Counter(table.choose() for _ in range(200))["a"] > 70


def test_who_rejects_every_probe_does_not_get_every_request(table_of, request_of):
    table = table_of("a", "b", breaker={"open_s": 2})
    for _ in range(3):
        table.see("a", error=ErrorClass.SERVER)
    served = Counter()
    for number in range(200):
        request, now = request_of(), NOW + 2 + number / 10
        one = table.choose(request, now)
        served[one] += 1
        table.see(one, now, request=request, **({"error": ErrorClass.CLIENT} if one == "a" else {}))
    assert 1 < served["a"] <= 5


def test_answers_from_the_gateways_cache_teach_nothing(table_of):
    table = table_of("a", "b")
    table.see("a", first_ms=200)
    attempt = table.begin("a", now=NOW + 1)
    table.observer.first_token(attempt, 1.0, NOW + 1)
    ended = replace(attempt, outcome=Outcome.OK, first_token_ms=1.0, cached=True)
    table.observer.end(make_request(), ended, NOW + 1)
    load = table.member("a").load
    assert (load.first_ms.value, load.first_ms.count, load.tokens.value(NOW), load.in_flight) == (200, 1, 141, 0)


def test_probes_of_one_token_teach_health_and_no_times(table_of):
    table = table_of("a", "b")
    table.see("a", kind=AttemptKind.PROBE, first_ms=None, ms=3.0)
    assert table.member("a").load.wait_ms(NOW, stream=False) is None


KINDS = [None, *ErrorClass]


@given(
    st.lists(
        st.tuples(
            st.sampled_from("abcd"),
            st.sampled_from(KINDS),
            st.floats(0, 30),
            st.booleans(),
            st.sampled_from(SignalStatus),
        ),
        max_size=40,
    ),
    st.sampled_from(["adaptive", "p2c", "random", "cache_affinity", "headroom", "token_based", "round_robin"]),
)
def test_one_is_always_chosen_and_an_open_one_only_when_all_are(steps, tactic):
    table = Table([make_deployment(one) for one in "abcd"], {"tactic": tactic})
    now = NOW
    for one, kind, seconds, tells, status in steps:
        now += seconds
        if tells:
            table.signals[one] = signal(one, status, now + seconds)
        table.see(one, now, **({"error": kind} if kind else {}))
        request = make_request()
        answer = table.ask(request, now)
        picked = chosen(answer).deployment.id
        table.members.of(table.deployments[picked], now).load.picks.clear()
        member = table.member(picked, now)
        breaker = member.breaker
        if breaker.admits(now) == 0.0 and breaker.probe_at != now:
            assert request.request_id in member.load.let_through, "an open one was asked without noting it"
        others = [m for m in table.members if m.breaker.healthy and m.key[1] != picked]
        exhausted = {i for i, s in table.signals.items() if s.status_at(now) is SignalStatus.EXHAUSTED}
        if not breaker.healthy and not chosen(answer).notes[-1].startswith("probe"):
            assert all(member.key[1] in exhausted for member in others), chosen(answer).notes
