"""Degraded and exhausted matter to routing, whatever strategy comes after."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman.types import Candidate, Deployment, Signal, SignalStatus
from pointsman_signals.steering import steer

NOW = 1_700_000_000.0
STATUSES = st.sampled_from([*SignalStatus, None])


def candidates(number):
    return [Candidate(deployment=Deployment(id=f"d{i}", group="g", provider="p", model="m")) for i in range(number)]


def board(*statuses, until=None):
    return {
        f"d{i}": Signal(
            deployment_id=f"d{i}",
            status=status,
            recorded_at=NOW,
            until=until if until is not None else NOW + 60 - i,
            reason="why",
        )
        for i, status in enumerate(statuses)
        if status is not None
    }


def kept(result):
    return [candidate.deployment.id for candidate in result if not candidate.dropped]


A, D, E, U = SignalStatus.AVAILABLE, SignalStatus.DEGRADED, SignalStatus.EXHAUSTED, SignalStatus.UNKNOWN


def test_exhausted_candidates_are_dropped_with_the_reason():
    result = steer(candidates(3), board(A, E, None).get, NOW, 0.25, random.random)
    assert kept(result) == ["d0", "d2"]
    assert result[1].notes == ("exhausted: why",)


def test_nothing_is_done_when_nothing_is_wrong():
    assert steer(candidates(3), board(A, U, None).get, NOW, 0.25, random.random) is None


def test_an_exhaustion_that_has_ended_no_longer_counts():
    assert steer(candidates(2), board(E, A, until=NOW).get, NOW, 0.25, random.random) is None


def test_when_all_are_exhausted_the_first_to_come_back_is_kept():
    assert kept(steer(candidates(3), board(E, E, E).get, NOW, 0.25, random.random)) == ["d2"]


@pytest.mark.parametrize(
    ("chance", "expected"), [(0.0, ["d0", "d1"]), (0.24, ["d0", "d1"]), (0.25, ["d0"]), (0.99, ["d0"])]
)
def test_a_degraded_candidate_keeps_its_share(chance, expected):
    assert kept(steer(candidates(2), board(A, D).get, NOW, 0.25, lambda: chance)) == expected


@pytest.mark.parametrize(("ratio", "expected"), [(0.0, ["d0"]), (1.0, ["d0", "d1"])])
def test_the_share_can_be_nothing_or_all(ratio, expected):
    assert kept(steer(candidates(2), board(A, D).get, NOW, ratio, lambda: 0.5)) == expected


def test_degraded_candidates_stay_when_no_other_is_left():
    assert kept(steer(candidates(3), board(D, D, E).get, NOW, 0.0, lambda: 0.5)) == ["d0", "d1"]


@given(st.lists(STATUSES, min_size=1, max_size=20), st.floats(0, 1), st.floats(0, 1))
def test_one_is_always_left_and_none_is_invented(statuses, ratio, chance):
    given_ones = candidates(len(statuses))
    result = steer(given_ones, board(*statuses).get, NOW, ratio, lambda: chance)
    if result is not None:
        assert [c.deployment.id for c in result] == [c.deployment.id for c in given_ones]
        assert kept(result)


@given(st.lists(STATUSES, min_size=2, max_size=10))
def test_candidates_that_are_already_out_stay_out(statuses):
    given_ones = candidates(len(statuses))
    given_ones[0] = given_ones[0].drop("breaker open")
    result = steer(given_ones, board(*statuses).get, NOW, 0.0, lambda: 0.5) or given_ones
    assert result[0].dropped
    assert kept(result)
