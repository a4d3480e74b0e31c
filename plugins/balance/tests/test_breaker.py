"""When a breaker opens, what it lets through, and how it comes back."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from pointsman.errors import ConfigError
from pointsman.types import ErrorClass
from pointsman_balance.breaker import ALL, BLOCKED, PROBE, Breaker, BreakerConfig, BreakerState, Cause, Change
from pointsman_balance.config import BalanceConfig, GroupPolicy
from pointsman_balance.policies import Policies
from pointsman_balance.tactics import BUILT_IN

NOW = 1_700_000_000.0
CALLERS = [ErrorClass.CLIENT, ErrorClass.CONTENT_POLICY, ErrorClass.CONTEXT_WINDOW, ErrorClass.REFUSED]
OTHERS = [ErrorClass.TIMEOUT, ErrorClass.SERVER, ErrorClass.CONNECTION, ErrorClass.UNKNOWN]


def breaker(**rules):
    return Breaker(BreakerConfig(**rules))


def fail(one, now, kind=ErrorClass.SERVER, times=1, **more):
    for _ in range(times):
        one.record_failure(kind, now, now, **more)


@pytest.mark.parametrize("kind", OTHERS)
def test_retryable_errors_in_a_row_open_it(kind):
    one = breaker(consecutive_errors=3, error_ratio=None)
    fail(one, NOW, kind, 2)
    one.record_success(NOW, NOW)
    fail(one, NOW, kind, 2)
    assert one.healthy
    fail(one, NOW, kind)
    assert (one.state, one.cause, one.admits(NOW)) == (BreakerState.OPEN, Cause.ERRORS, BLOCKED)
    assert "3 errors in a row" in one.reason


@pytest.mark.parametrize("kind", CALLERS)
def test_what_is_not_the_deployments_fault_never_counts(kind):
    one = breaker(consecutive_errors=1, error_ratio=0.01, min_attempts=2)
    fail(one, NOW, kind, 100)
    assert one.healthy


def test_an_error_ratio_over_the_window_opens_it():
    one = breaker(consecutive_errors=None, error_ratio=0.3, min_attempts=8, window_s=10)
    for step in range(7):
        one.record_success(NOW + step, NOW + step)
        if step in {2, 4}:
            fail(one, NOW + step)
    assert one.healthy, "2 of 9"
    fail(one, NOW + 7)
    assert "3 of 10 attempts failed" in one.reason


def test_errors_that_have_left_the_window_no_longer_count():
    one = breaker(consecutive_errors=None, error_ratio=0.3, min_attempts=4, window_s=10)
    fail(one, NOW, times=3)
    for _ in range(6):
        one.record_success(NOW + 11, NOW + 11)
    fail(one, NOW + 11)
    assert one.healthy


def test_the_window_holds_the_latest_64_attempts():
    one = breaker(consecutive_errors=None, error_ratio=0.5, min_attempts=64, window_s=1000)
    for _ in range(200):
        one.record_success(NOW, NOW)
    fail(one, NOW, times=31)
    assert one.healthy
    fail(one, NOW)
    assert not one.healthy


def test_a_429_opens_it_until_the_provider_says():
    one = breaker()
    fail(one, NOW, ErrorClass.RATE_LIMIT, comes_back_at=NOW + 12)
    assert (one.cause, one.until) == (Cause.RATE_LIMIT, NOW + 12)
    fail(one, NOW + 1, ErrorClass.RATE_LIMIT, comes_back_at=NOW + 5)
    assert one.until == NOW + 12, "an earlier end does not shorten it"
    fail(one, NOW + 2, ErrorClass.RATE_LIMIT, comes_back_at=NOW + 20)
    assert one.until == NOW + 20
    assert one.admits(NOW + 19.9) == BLOCKED
    assert one.admits(NOW + 20) == PROBE


@pytest.mark.parametrize(("comes_back_at", "until"), [(None, 30.0), (NOW + 1e9, 3600.0), (NOW - 50, 0.0)])
def test_the_length_of_a_429_has_a_default_and_bounds(comes_back_at, until):
    one = breaker()
    fail(one, NOW, ErrorClass.RATE_LIMIT, comes_back_at=comes_back_at)
    assert one.until == NOW + until


def test_a_429_from_before_an_opening_lengthens_only_one_that_lasts():
    one = breaker(consecutive_errors=1, open_s=10)
    fail(one, NOW)
    assert one.record_failure(ErrorClass.RATE_LIMIT, NOW - 5, NOW + 2, NOW + 20)
    assert one.until == NOW + 20
    assert not one.record_failure(ErrorClass.RATE_LIMIT, NOW - 5, NOW + 20)
    one.elapse(NOW + 20)
    assert not one.record_failure(ErrorClass.RATE_LIMIT, NOW - 5, NOW + 21)
    assert (one.state, one.admits(NOW + 21)) == (BreakerState.HALF_OPEN, PROBE)


@pytest.mark.parametrize("kind", [ErrorClass.SERVER, ErrorClass.RATE_LIMIT, ErrorClass.AUTH])
@pytest.mark.parametrize("ended", [False, True], ids=["while it lasts", "after its end"])
def test_a_429_of_a_request_that_was_let_through_counts_only_with_a_later_reset(kind, ended):
    """Such a request is no probe, and the usual time after a 429 is a guess."""
    one = breaker(consecutive_errors=1, open_s=10, auth_s=10, rate_limit_s=50)
    fail(one, NOW, kind, comes_back_at=NOW + 10 if kind is ErrorClass.RATE_LIMIT else None)
    end = NOW + 12 if ended else NOW + 2
    one.elapse(end)
    before = (one.state, one.cause, one.until)
    assert not one.record_failure(ErrorClass.RATE_LIMIT, NOW + 1, end, let_through=True)
    assert (one.state, one.cause, one.until) == before
    assert one.record_failure(ErrorClass.RATE_LIMIT, NOW + 1, end, NOW + 70, let_through=True)
    assert one.until == NOW + 70


@pytest.mark.parametrize(("kind", "cause"), [(ErrorClass.AUTH, Cause.AUTH), (ErrorClass.NOT_FOUND, Cause.NOT_FOUND)])
def test_what_only_an_administrator_mends_opens_it_at_once(kind, cause):
    one = breaker(auth_s=90, max_open_s=60)
    fail(one, NOW, kind)
    assert (one.cause, one.until) == (cause, NOW + 90)


def test_one_probe_at_a_time_and_so_many_successes_close_it():
    one = breaker(consecutive_errors=1, open_s=2, successes=2, probe_timeout_s=30)
    fail(one, NOW)
    assert one.elapse(NOW + 2)
    assert one.admits(NOW + 2) == PROBE
    one.start_probe(NOW + 2)
    assert one.admits(NOW + 2.5) == BLOCKED
    assert not one.record_success(NOW + 2, NOW + 3)
    assert one.admits(NOW + 3) == PROBE
    one.start_probe(NOW + 3)
    assert one.record_success(NOW + 3, NOW + 4)
    assert one.healthy


def test_a_probe_that_is_lost_is_given_up():
    one = breaker(consecutive_errors=1, open_s=2, probe_timeout_s=30)
    fail(one, NOW)
    one.start_probe(NOW + 2)
    assert one.admits(NOW + 31) == BLOCKED
    assert one.admits(NOW + 32) == PROBE
    one.start_probe(NOW + 32)
    one.release_probe(NOW + 31)
    assert one.admits(NOW + 33) == BLOCKED, "that was not the probe"
    one.release_probe(NOW + 32)
    assert one.admits(NOW + 33) == PROBE


def test_after_a_probe_without_a_verdict_the_next_one_waits_each_time_longer():
    """Else a deployment that rejects whatever comes would get every request as its probe."""
    one = breaker(consecutive_errors=1, open_s=2, backoff_factor=2, max_open_s=10)
    fail(one, NOW)
    now, rests = NOW + 2, []
    for _ in range(5):
        one.start_probe(now)
        one.record_failure(ErrorClass.CLIENT, now, now + 0.5)
        assert one.state is BreakerState.HALF_OPEN
        rest = next(second for second in range(100) if one.admits(now + 0.5 + second) == PROBE)
        rests.append(rest)
        now += 0.5 + rest
    assert rests == [2, 4, 8, 10, 10]
    one.start_probe(now)
    one.record_success(now, now)
    fail(one, now + 1)
    assert one.admits(one.until) == PROBE, "a new opening begins without a rest"


def test_each_opening_is_longer_up_to_a_bound_and_calm_forgets_them():
    one = breaker(consecutive_errors=1, open_s=2, backoff_factor=2, max_open_s=10, calm_s=60, ramp_s=0)
    lengths, now = [], NOW
    for _ in range(5):
        fail(one, now)
        lengths.append(one.until - now)
        now = one.until
        one.start_probe(now)
    assert lengths == [2, 4, 8, 10, 10]
    one.record_success(now, now)
    fail(one, now + 61)
    assert one.until - (now + 61) == 2


def test_traffic_returns_over_a_ramp_and_a_failure_within_it_opens_again():
    one = breaker(consecutive_errors=3, open_s=2, ramp_s=10, ramp_start_ratio=0.1)
    fail(one, NOW, times=3)
    one.start_probe(NOW + 2)
    one.record_success(NOW + 2, NOW + 3)
    shares = [one.admits(NOW + 3 + second) for second in range(11)]
    assert shares[0] == pytest.approx(0.1)
    assert shares == sorted(shares)
    assert shares[5] == pytest.approx(0.55)
    assert shares[10] == ALL
    fail(one, NOW + 8)
    assert (one.state, one.until) == (BreakerState.OPEN, NOW + 12), "one failure, and twice as long"


def test_an_attempt_from_before_the_opening_closes_nothing_and_opens_nothing():
    one = breaker(consecutive_errors=1, open_s=2)
    fail(one, NOW)
    until = one.until
    assert not one.record_success(NOW - 1, NOW + 2)
    assert not one.record_failure(ErrorClass.SERVER, NOW - 1, NOW + 2)
    assert (one.state, one.until) == (BreakerState.OPEN, until)


def test_an_answer_while_it_is_open_counts():
    """Nobody is healthy, so it was asked all the same."""
    one = breaker(consecutive_errors=1, open_s=60)
    fail(one, NOW)
    assert one.record_success(NOW + 1, NOW + 2)
    assert one.healthy


def test_without_probes_it_closes_by_itself():
    one = breaker(consecutive_errors=1, open_s=2, probe="off", ramp_s=10)
    fail(one, NOW)
    assert one.elapse(NOW + 2)
    assert one.admits(NOW + 2) == pytest.approx(0.1)


def test_a_disabled_breaker_never_opens():
    one = breaker(enabled=False)
    fail(one, NOW, times=50)
    fail(one, NOW, ErrorClass.AUTH)
    fail(one, NOW, ErrorClass.RATE_LIMIT)
    assert one.admits(NOW) == ALL


@pytest.mark.parametrize(
    ("kind", "named_s", "before", "after", "until"),
    [
        (ErrorClass.SERVER, None, {"open_s": 300, "max_open_s": 300}, {"open_s": 2}, 2),
        (ErrorClass.SERVER, None, {"open_s": 2}, {"open_s": 40}, 40),
        (ErrorClass.AUTH, None, {"auth_s": 600}, {"auth_s": 5}, 5),
        (ErrorClass.RATE_LIMIT, None, {"rate_limit_s": 30}, {"rate_limit_s": 7}, 7),
        (ErrorClass.RATE_LIMIT, 90, {"rate_limit_s": 30}, {"rate_limit_s": 7}, 90),
        (ErrorClass.RATE_LIMIT, 90, {}, {"max_rate_limit_s": 60}, 60),
    ],
)
def test_new_settings_apply_to_a_running_opening(kind, named_s, before, after, until):
    breaker = Breaker(BreakerConfig(consecutive_errors=1, **before))
    assert breaker.record_failure(kind, 0.0, 0.0, named_s)
    breaker.apply(BreakerConfig(consecutive_errors=1, **after))
    assert (str(breaker.state), breaker.until) == ("open", until)
    breaker.apply(BreakerConfig(enabled=False))
    assert breaker.healthy


def test_reset_closes_without_a_ramp():
    one = breaker()
    fail(one, NOW, times=3)
    one.reset(NOW + 1)
    assert (one.admits(NOW + 1), one.openings) == (ALL, 0)


def test_a_newer_change_is_adopted_and_an_older_one_is_not():
    one, other = breaker(), breaker()
    fail(other, NOW, times=3)
    assert one.adopt(other.change(), NOW)
    assert (one.state, one.until, one.reason, one.openings) == (other.state, other.until, other.reason, 1)
    assert not one.adopt(Change(state=BreakerState.CLOSED, at=NOW - 1), NOW)
    other.start_probe(NOW + 2)
    other.record_success(NOW + 2, NOW + 3)
    assert one.adopt(other.change(), NOW + 3)
    assert one.admits(NOW + 3) == pytest.approx(0.1), "the ramp is adopted too"
    assert not one.adopt(other.change(), NOW + 3), "the same again"


def test_a_change_from_a_clock_that_is_ahead_has_happened_now():
    one = breaker(ramp_s=10)
    ahead = NOW + 3600
    one.adopt(Change(state=BreakerState.OPEN, at=ahead, until=ahead + 2, openings=1, cause=Cause.ERRORS), NOW)
    assert one.until == NOW + 2
    one.elapse(NOW + 2)
    assert one.record_success(NOW + 2, NOW + 3), "an answer seen here closes it"
    one.adopt(Change(state=BreakerState.CLOSED, at=ahead + 9, ramp=True), NOW + 4)
    assert one.admits(NOW + 14) == ALL


@pytest.mark.parametrize(
    ("cause", "most_s"),
    [(Cause.ERRORS, 60), (Cause.AUTH, 90), (Cause.NOT_FOUND, 90), (Cause.RATE_LIMIT, 3600), (None, 90)],
)
def test_no_adopted_opening_is_longer_than_an_own_one(cause, most_s):
    one = breaker(auth_s=90)
    one.adopt(Change(state=BreakerState.OPEN, at=NOW - 5, until=NOW + 1e6, openings=1, cause=cause), NOW)
    assert one.until == NOW + most_s


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("classic", {"consecutive_errors": 3, "open_s": 300.0, "probe": "call", "ramp_s": 0.0, "error_ratio": None}),
        ({"preset": "classic", "open_s": 60}, {"open_s": 60.0, "probe": "call"}),
        ({}, {"preset": "swift", "probe": "request"}),
    ],
)
def test_presets_are_a_base_for_other_settings(given, expected):
    rules = BreakerConfig.model_validate(given)
    assert {name: getattr(rules, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("given", "kind", "length_s"),
    [
        ({"open_s": 300}, ErrorClass.SERVER, 300),
        ({"preset": "classic"}, ErrorClass.SERVER, 300),
        ({"preset": "classic", "open_s": 600}, ErrorClass.SERVER, 600),
        ({"max_open_s": 1}, ErrorClass.SERVER, 1),
        ({"rate_limit_s": 7200}, ErrorClass.RATE_LIMIT, 7200),
        ({"max_rate_limit_s": 10}, ErrorClass.RATE_LIMIT, 10),
    ],
)
def test_of_a_length_and_its_bound_the_one_that_is_not_set_follows(given, kind, length_s):
    one = Breaker(BreakerConfig.model_validate(given))
    fail(one, NOW, kind, times=3)
    assert one.until == NOW + length_s


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"open_s": 300, "max_open_s": 60}, r"open_s \(300\) is above max_open_s \(60\)"),
        ({"preset": "classic", "max_open_s": 60}, r"open_s \(300\) is above max_open_s \(60\)"),
        ({"rate_limit_s": 90, "max_rate_limit_s": 9}, r"rate_limit_s \(90\) is above max_rate_limit_s \(9\)"),
    ],
)
def test_a_length_above_its_bound_is_refused(given, message):
    with pytest.raises(ValidationError, match=message):
        BreakerConfig.model_validate(given)


def test_a_groups_lengths_are_held_against_the_bounds_for_all():
    def policies(base, group):
        return Policies(
            BalanceConfig.model_validate({"breaker": base, "groups": {"chat": {"breaker": group}}}), BUILT_IN
        )

    assert policies({}, {"open_s": 300}).breaker("chat").max_open_s == 300
    assert policies({"open_s": 0.5}, {"max_open_s": 1}).breaker("chat").open_s == 0.5
    assert policies("classic", {"open_s": 600}).breaker("chat").max_open_s == 600
    with pytest.raises(ValidationError, match=r"groups.chat.breaker\n  open_s \(300\) is above max_open_s \(60\)"):
        policies({"max_open_s": 60}, {"open_s": 300})
    with pytest.raises(ConfigError, match=r"breaker: open_s \(300\) is above max_open_s \(60\)"):
        policies({"max_open_s": 60}, {}).check("chat", GroupPolicy(breaker={"open_s": 300}))


def test_it_says_why_for_people():
    one = breaker(consecutive_errors=1, open_s=2, ramp_s=10)
    assert one.describe(NOW) == "closed"
    fail(one, NOW)
    assert one.describe(NOW + 0.5) == "breaker open for 1.5 s more: 1 errors in a row, last: server"
    assert one.describe(NOW + 2).startswith("breaker half-open, to be probed")
    one.start_probe(NOW + 2)
    assert one.describe(NOW + 2).startswith("breaker half-open, being probed")
    one.record_success(NOW + 2, NOW + 2)
    assert one.describe(NOW + 2) == "ramping up, 10%"
