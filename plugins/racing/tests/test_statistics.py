"""What is learned about a deployment, and the score."""

from __future__ import annotations

import json
from math import e

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman.testing import deployment
from pointsman.types import AttemptError, AttemptKind, ErrorClass, Outcome
from pointsman_racing.config import Delay
from pointsman_racing.statistics import (
    MAX_DEPLOYMENTS,
    MAX_RETRY_AFTER_S,
    DeploymentStats,
    Spread,
    Statistics,
    blocked_until,
    healthy,
    score,
    usual_log_factor,
)

from .conftest import NOW

HALF_LIFE_S = 600.0
A = (deployment("a"),)


def learned(attempts, *, stream=True, at=NOW):
    made = DeploymentStats(HALF_LIFE_S)
    for one in attempts:
        made.observe(one, stream=stream, now=at)
    return made


def test_score_is_what_the_formula_says(attempt, failed):
    made = learned([*(attempt(first_ms=300.0) for _ in range(8)), attempt(**failed), attempt(**failed)])
    expected_ms = 300 * 8 / (8 + 2)
    wanted = (10 - 2 + 1) / (10 + 1) * 1000 / (1000 + expected_ms)
    assert score([made], stream=True, now=NOW) == pytest.approx(wanted, rel=1e-6)


def test_one_early_win_does_not_make_a_champion(attempt):
    """A 900 ms incumbent does not beat a 50 ms newcomer, neither before nor after the newcomer's first answer."""
    incumbent = learned([attempt(first_ms=900.0) for _ in range(200)])
    newcomer = DeploymentStats(HALF_LIFE_S)
    assert score([newcomer], stream=True, now=NOW) > score([incumbent], stream=True, now=NOW)
    newcomer.observe(attempt(first_ms=50.0), stream=True, now=NOW)
    assert score([newcomer], stream=True, now=NOW) > score([incumbent], stream=True, now=NOW)


def test_a_slower_deployment_is_called_now_and_then(attempt):
    """Three times slower: about once per half-life; twenty per cent slower: some ten times as often."""
    asked = {}
    for factor in (1.2, 3.0):
        best, other = DeploymentStats(HALF_LIFE_S), DeploymentStats(HALF_LIFE_S)
        turns = 0
        for second in range(0, 7200, 2):
            now = NOW + second
            scores = [score([one], stream=True, now=now) for one in (best, other)]
            chosen = other if scores[1] > scores[0] else best
            turns += chosen is other
            chosen.observe(attempt(first_ms=300.0 * (factor if chosen is other else 1)), stream=True, now=now)
        asked[factor] = turns
    assert 6 <= asked[3.0] <= 30
    assert 5 * asked[3.0] < asked[1.2] < 720


def test_a_recovered_deployment_is_found_out(attempt, failed):
    """Failures decay: after some half-lives without traffic a deployment is tried again."""
    good = learned([attempt(first_ms=300.0) for _ in range(1000)], at=NOW + 4 * HALF_LIFE_S)
    bad = learned([attempt(**failed)] * 3)
    assert score([bad], stream=True, now=NOW) < 0.3
    assert score([bad], stream=True, now=NOW + 4 * HALF_LIFE_S) > score([good], stream=True, now=NOW + 4 * HALF_LIFE_S)


@pytest.mark.parametrize(
    ("changes", "totals"),
    [
        ({}, {"attempts": 1}),
        ({"kind": ErrorClass.SERVER}, {"attempts": 1, "failures": 1}),
        ({"kind": ErrorClass.RATE_LIMIT, "retry_after_s": 5.0}, {"attempts": 1, "failures": 1}),
        ({"outcome": Outcome.CANCELLED}, {"attempts": 1, "cancelled": 1}),
        ({"outcome": Outcome.DISCONNECTED}, {"attempts": 1, "cancelled": 1}),
        ({"kind": ErrorClass.CLIENT}, {}),
        ({"kind": ErrorClass.CONTENT_POLICY}, {}),
        ({"kind": ErrorClass.REFUSED}, {}),
        ({"error": AttemptError(kind=ErrorClass.TIMEOUT, client_caused=True), "outcome": Outcome.ERROR}, {}),
        ({"error": AttemptError(kind=ErrorClass.EMPTY, status=200)}, {}),
        ({"cached": True}, {}),
    ],
)
def test_what_counts(attempt, changes, totals):
    """The client's faults, refusals and the gateway's cache say nothing about a deployment."""
    made = learned([attempt(first_ms=100.0, **changes)])
    assert {name: value for name, value in made.totals.items() if value} == totals


@pytest.mark.parametrize("kind", [AttemptKind.MIRROR, AttemptKind.PROBE, AttemptKind.JUDGE])
def test_calls_of_our_own_do_not_count(attempt, kind):
    error = attempt()
    assert not learned([]).observe(
        type(error)(
            id="x",
            request_id="r",
            number=1,
            kind=kind,
            deployment=error.deployment,
            started_at=NOW,
            outcome=Outcome.OK,
            duration_ms=5.0,
        ),
        stream=False,
        now=NOW,
    )


def test_streams_and_plain_requests_are_kept_apart(attempt):
    made = learned([attempt(ms=5000.0, first_ms=100.0)])
    made.observe(attempt(ms=4000.0), stream=False, now=NOW)
    assert made.first_token.mean() == pytest.approx(100)
    assert made.whole.mean() == pytest.approx(4000)
    assert score([made], stream=True, now=NOW) > score([made], stream=False, now=NOW)


def test_health_ends_with_failures_in_a_row_and_comes_back(attempt, failed):
    made = learned([attempt(**failed)] * 2)
    assert healthy([made], NOW)
    made.observe(attempt(**failed), stream=True, now=NOW)
    assert not healthy([made], NOW)
    assert healthy([made], NOW + 61)
    made.observe(attempt(first_ms=1.0), stream=True, now=NOW)
    assert healthy([made], NOW)


def test_retry_after_lasts_as_long_as_named(attempt):
    made = learned([attempt(kind=ErrorClass.RATE_LIMIT, retry_after_s=30.0)])
    assert not healthy([made], NOW + 29)
    assert healthy([made], NOW + 30)


def test_retry_after_has_a_longest_time(attempt):
    made = learned([attempt(kind=ErrorClass.RATE_LIMIT, retry_after_s=9e8)])
    assert not healthy([made], NOW + MAX_RETRY_AFTER_S - 1)
    assert healthy([made], NOW + MAX_RETRY_AFTER_S)
    document = {**made.to_json(NOW), "blocked_until": NOW + 9e8}
    assert healthy([DeploymentStats.from_json(document, HALF_LIFE_S)], NOW + MAX_RETRY_AFTER_S)


@pytest.mark.parametrize("there", [False, True])
def test_retry_after_ends_with_an_answer(attempt, there):
    """Here, or to another worker; not by what was under way before."""
    made = learned([attempt(kind=ErrorClass.RATE_LIMIT, retry_after_s=30.0, started_at=NOW - 2)])
    other = DeploymentStats(HALF_LIFE_S) if there else made
    other.observe(attempt(started_at=NOW - 1), stream=False, now=NOW + 1)
    assert not healthy([made, other], NOW + 2)
    other.observe(attempt(started_at=NOW + 2), stream=False, now=NOW + 3)
    assert healthy([made, other], NOW + 3)
    together = DeploymentStats(HALF_LIFE_S)
    for part in (made, other):
        together.merge(DeploymentStats.from_json(part.to_json(NOW + 3), HALF_LIFE_S), NOW + 3)
    assert blocked_until([together]) == 0
    other.observe(attempt(kind=ErrorClass.RATE_LIMIT, retry_after_s=9.0), stream=False, now=NOW + 4)
    assert not healthy([made, other], NOW + 5)


def test_observations_survive_being_written_down(attempt, failed):
    made = learned([attempt(first_ms=120.0), attempt(first_ms=80.0), attempt(**failed)])
    again = DeploymentStats.from_json(json.loads(json.dumps(made.to_json(NOW))), HALF_LIFE_S)
    assert again.to_json(NOW) == made.to_json(NOW)
    assert score([again], stream=True, now=NOW) == pytest.approx(score([made], stream=True, now=NOW), rel=0.02)


#: A row of the store as version 0.1.0 writes it: times of 80, 120, 120 and 4000 ms, one plain answer, one cancelled
#: attempt, one rate limit with a retry-after of 30 s.
STORED = {
    "at": NOW + 300,
    "first_token_ms": {"110": 0.7071, "120": 2.0809, "208": 1.0404},
    "whole_ms": {"171": 1.0},
    "attempts": 4.8284,
    "failures": 1.0,
    "totals": {"attempts": 7, "wins": 0, "losses": 0, "cancelled": 1, "failures": 1},
    "streak": 1,
    "failed_at": NOW + 300,
    "blocked_until": NOW + 330,
    "answered_at": NOW,
}


def test_rows_that_are_in_stores_stay_readable():
    """The buckets and the names of the fields mean what they meant when the row was written."""
    stats = DeploymentStats.from_json(STORED, HALF_LIFE_S)
    assert stats.first_token.quantiles((0.5, 0.95)) == pytest.approx([119.156, 4027.523], abs=0.001)
    assert score([stats], stream=True, now=NOW + 300) == pytest.approx(0.467729, abs=1e-6)
    assert blocked_until([stats]) == NOW + 330
    assert stats.to_json(NOW + 300) == STORED


@pytest.mark.parametrize("document", [None, 5, [], {}, {"at": "x"}, {"at": float("nan")}, {"at": True}])
def test_a_document_without_observations_is_none(document):
    assert DeploymentStats.from_json(document, HALF_LIFE_S) is None


@pytest.mark.parametrize("huge", [10**400, 1e308, 10**16, -(10**400)])
def test_numbers_out_of_range_count_as_absent(huge):
    assert DeploymentStats.from_json({"at": huge}, HALF_LIFE_S) is None
    document = {"at": NOW, **dict.fromkeys(("attempts", "failures", "streak", "failed_at", "blocked_until"), huge)}
    document |= {"totals": {"wins": huge}, "whole_ms": {"100": huge, "1" * 5000: 1}, "first_token_ms": {"9" * 9: 1}}
    assert DeploymentStats.from_json(document, HALF_LIFE_S).to_json(NOW) == DeploymentStats(HALF_LIFE_S).to_json(NOW)


def test_values_of_a_wrong_type_count_as_absent():
    document = {"at": NOW, "attempts": "x", "failures": -5, "totals": {"wins": None}, "streak": [], "whole_ms": 3}
    assert DeploymentStats.from_json(document, HALF_LIFE_S).to_json(NOW) == DeploymentStats(HALF_LIFE_S).to_json(NOW)


@pytest.mark.parametrize(("ratio", "borrowed"), [(0.9, 200), (0.95, 400), (0.99, 2000)])
def test_the_others_weigh_as_much_as_twenty_samples_beyond_the_quantile(ratio, borrowed):
    own = Spread(samples=borrowed, median_ms=100.0, log_factor=1.0)
    assert own.quantile_ms(0.0, ratio) == pytest.approx(100 * e**0.5)


@given(
    samples=st.floats(20, 1e6),
    median_ms=st.floats(0.1, 1e6),
    factor=st.floats(1.0, 1e3),
    others=st.floats(0.0, 7.0),
    ratio=st.floats(0.5, 0.999),
)
def test_the_quantile_lies_between_the_observed_and_the_usual_one(samples, median_ms, factor, others, ratio):
    own = Spread.of(samples, median_ms, median_ms * factor)
    low, high = sorted((median_ms * factor, median_ms * e**others))
    assert low * 0.999 <= own.quantile_ms(others, ratio) <= high * 1.001


def test_candidates_with_too_few_samples_do_not_count_for_the_usual_factor():
    own, young, half = (Spread(samples, 1.0, factor) for samples, factor in ((100, 3.0), (49, 1.0), (50, 2.0)))
    assert usual_log_factor(own, [own, young]) == 3.0
    assert usual_log_factor(own, [own, young, half]) == 2.0
    assert usual_log_factor(young, [own, young, half]) == 2.0
    assert usual_log_factor(own, [young]) == usual_log_factor(own, []) == 3.0


class TestDelay:
    delay = Delay(min_samples=20, floor_ms=50, fixed_ms=700, fixed_plain_ms=9000)

    def statistics(self, attempt, ms, count=100, name="a"):
        statistics = Statistics(HALF_LIFE_S)
        for _ in range(count):
            statistics.observe(attempt(name, first_ms=ms), stream=True, now=NOW)
        return statistics

    def ask(self, statistics, *names, stream=True, now=NOW):
        reached = [deployment(name) for name in names]
        return statistics.delay_ms(reached, reached, self.delay, stream=stream, now=now)

    def test_fixed_until_enough_is_known(self, attempt):
        assert self.ask(self.statistics(attempt, 300.0, count=19), "a") == 700
        assert self.ask(self.statistics(attempt, 300.0, count=20), "a") == pytest.approx(300, rel=0.03)

    def test_plain_requests_have_a_fixed_value_of_their_own(self, attempt):
        assert self.ask(self.statistics(attempt, 300.0), "a", stream=False) == 9000

    def test_never_below_the_floor(self, attempt):
        assert self.ask(self.statistics(attempt, 3.0), "a") == 50

    def test_a_share_of_what_is_known_but_not_of_what_is_configured(self, attempt):
        def ask(ms):
            return self.statistics(attempt, ms).delay_ms(A, A, self.delay, stream=True, now=NOW, share=0.7)

        assert ask(300.0) == pytest.approx(210, rel=0.03)
        assert ask(60.0) == 50
        assert Statistics(HALF_LIFE_S).delay_ms(A, A, self.delay, stream=True, now=NOW, share=0.7) == 700

    def test_it_is_fixed_again_when_what_was_known_has_decayed(self, attempt):
        assert self.ask(self.statistics(attempt, 300.0), "a", now=NOW + 10 * HALF_LIFE_S) == 700

    def test_each_race_has_its_own_number_of_samples(self, attempt):
        """Though they ask at the same moment."""
        statistics = self.statistics(attempt, 300.0, count=30)
        assert self.ask(statistics, "a") == pytest.approx(300, rel=0.03)
        careful = Delay(min_samples=100, fixed_ms=700)
        assert statistics.delay_ms(A, A, careful, stream=True, now=NOW) == 700

    def test_few_samples_are_drawn_towards_how_the_others_spread(self, attempt):
        """Three stragglers in forty samples are no reason to wait for seconds; a sick neighbour is none either."""
        statistics = Statistics(HALF_LIFE_S)

        def see(name, *times_ms):
            for first_ms in times_ms:
                statistics.observe(attempt(name, first_ms=first_ms), stream=True, now=NOW)

        see("unlucky", *[400.0] * 37, *[6400.0] * 3)
        assert self.ask(statistics, "unlucky") == pytest.approx(6400, rel=0.03)
        for name, median_ms in (("quick", 100.0), ("usual", 400.0), ("slow", 1000.0)):
            see(name, *[median_ms] * 930, *[2 * median_ms] * 70)
        see("sick", *[400.0] * 60, *[40_000.0] * 40)
        rivals = [deployment(name) for name in ("unlucky", "quick", "usual", "slow", "sick")]

        def delay_of(name):
            return statistics.delay_ms([deployment(name)], rivals, self.delay, stream=True, now=NOW)

        # 40 samples of its own against 400 that say "twice the median".
        assert delay_of("unlucky") == pytest.approx(400 * 16 ** (40 / 440) * 2 ** (400 / 440), rel=0.05)
        # Its own median, and the others change nothing of what a thousand samples agree on.
        assert delay_of("quick") == pytest.approx(200, rel=0.05)
        assert delay_of("slow") == pytest.approx(2000, rel=0.05)

    @pytest.mark.parametrize(("well", "sick"), [(1, 1), (2, 1), (2, 2), (3, 3)])
    def test_the_sick_do_not_change_the_delays_of_as_many_that_are_well(self, attempt, well, sick):
        statistics = Statistics(HALF_LIFE_S)
        names = [f"well-{i}" for i in range(well)] + [f"sick-{i}" for i in range(sick)]
        for name in names:
            for first_ms in [400.0] * 92 + [800.0 if name.startswith("well") else 40_000.0] * 8:
                statistics.observe(attempt(name, first_ms=first_ms), stream=True, now=NOW)
        rivals = [deployment(name) for name in names]
        found = statistics.delay_ms([deployment("well-0")], rivals, self.delay, stream=True, now=NOW)
        assert found == pytest.approx(800, rel=0.05)

    def test_a_newcomer_does_not_change_the_delay_of_one_that_is_known(self, attempt):
        statistics = Statistics(HALF_LIFE_S)
        for name, count in (("known", 100), ("newcomer", 1)):
            for first_ms in [400.0] * 23 * count + [800.0 if name == "known" else 400.0] * 2 * count:
                statistics.observe(attempt(name, first_ms=first_ms), stream=True, now=NOW)
        rivals = [deployment("known"), deployment("newcomer")]
        known, new = (statistics.delay_ms([one], rivals, self.delay, stream=True, now=NOW) for one in rivals)
        assert known == pytest.approx(800, rel=0.03)
        assert new == pytest.approx(400, rel=0.05), "of the two, the steadier one"

    def test_one_that_no_candidate_was_known_as_speaks_for_itself(self, attempt):
        """A hook may have sent the attempt to a deployment of another group."""
        statistics = self.statistics(attempt, 300.0)
        assert statistics.delay_ms(A, [deployment("b")], self.delay, stream=True, now=NOW) == pytest.approx(
            300, rel=0.03
        )

    def test_a_thousand_samples_speak_for_themselves(self, attempt):
        statistics = self.statistics(attempt, 300.0, count=20_000)
        for _ in range(100):
            statistics.observe(attempt("b", first_ms=100.0), stream=True, now=NOW)
            statistics.observe(attempt("b", first_ms=900.0), stream=True, now=NOW)
        found = statistics.delay_ms(A, [*A, deployment("b")], self.delay, stream=True, now=NOW)
        assert found == pytest.approx(300, rel=0.05)

    def test_the_quickest_of_those_it_may_have_reached(self, attempt):
        statistics = self.statistics(attempt, 300.0)
        for _ in range(100):
            statistics.observe(attempt("b", first_ms=100.0), stream=True, now=NOW)
        assert self.ask(statistics, "a", "b") == pytest.approx(100, rel=0.03)

    def test_what_others_have_seen_counts(self, attempt):
        """Twelve samples here and twelve elsewhere are enough."""
        statistics = self.statistics(attempt, 300.0, count=12)
        statistics.others = {"a": self.statistics(attempt, 300.0, count=12).own["a"]}
        assert self.ask(statistics, "a") == pytest.approx(300, rel=0.03)


def test_the_number_of_deployments_is_bounded(attempt):
    statistics = Statistics(HALF_LIFE_S)
    for number in range(MAX_DEPLOYMENTS + 10):
        statistics.observe(attempt(f"d{number}"), stream=False, now=NOW)
    assert len(statistics.own) == MAX_DEPLOYMENTS


def test_the_deployment_that_was_not_observed_for_longest_is_forgotten(attempt):
    statistics = Statistics(HALF_LIFE_S)
    for number in range(MAX_DEPLOYMENTS):
        statistics.observe(attempt(f"d{number}"), stream=False, now=NOW)
    statistics.observe(attempt("d0"), stream=False, now=NOW)
    statistics.decided("d1", won=True)
    statistics.observe(attempt("new"), stream=False, now=NOW)
    assert {"d0", "d1", "new"} <= statistics.own.keys()
    assert "d2" not in statistics.own
