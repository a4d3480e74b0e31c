"""Exhaustion ends at its own time, axis by axis."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman.types import Limit
from pointsman_signals.dialects import Reading
from pointsman_signals.quota import MAX_ASSUMED_S, MAX_AXES, Quota, QuotaRules

NOW = 1_700_000_000.0
RULES = QuotaRules(reserve_ratio=0.1, assumed_reset_s=60.0, refused_s=30.0)


def quota(*limits, at=NOW, notes=None):
    made = Quota(RULES)
    made.observe(Reading(limits=limits, notes=notes or {}), at)
    return made


def lim(axis, limit, remaining, in_s=None, window_s=None):
    return Limit(
        axis=axis, limit=limit, remaining=remaining, window_s=window_s, resets_at=None if in_s is None else NOW + in_s
    )


def test_tokens_gone_for_ten_minutes_are_not_back_when_requests_are_in_six_seconds():
    both = quota(lim("tokens", 1000, 0, in_s=600), lim("requests", 100, 0, in_s=6))
    state = both.judge(NOW + 1)
    assert (state.exhausted_until, state.reason) == (NOW + 600, "no tokens left")
    assert both.judge(NOW + 7).exhausted_until == NOW + 600
    assert both.judge(NOW + 599.9).exhausted_until == NOW + 600
    assert both.judge(NOW + 600).exhausted_until is None


def test_an_axis_with_enough_left_does_not_shorten_or_lengthen_another():
    both = quota(lim("tokens", 1000, 0, in_s=6), lim("requests", 100, 90, in_s=86_400))
    assert both.judge(NOW).exhausted_until == NOW + 6
    assert both.judge(NOW + 6).exhausted_until is None


@pytest.mark.parametrize(("remaining", "low"), [(100, False), (99, True), (1, True), (1000, False)])
def test_less_than_the_reserve_is_nearly_exhausted_until_the_reset(remaining, low):
    one = quota(lim("tokens", 1000, remaining, in_s=60))
    state = one.judge(NOW)
    assert state.exhausted_until is None
    assert state.low_until == (NOW + 60 if low else None)
    assert one.judge(NOW + 60).low_until is None


def test_a_reserve_of_nothing_knows_only_exhausted_and_fine():
    own = Quota(QuotaRules(reserve_ratio=0.0))
    own.observe(Reading(limits=(lim("tokens", 1000, 1, in_s=60),)), NOW)
    assert own.judge(NOW).low_until is None
    own.observe(Reading(limits=(lim("tokens", 1000, 0, in_s=60),)), NOW)
    assert own.judge(NOW).exhausted_until == NOW + 60


@pytest.mark.parametrize(
    ("window_s", "in_s", "lasts_s"),
    [
        (10.0, None, 10.0),
        (None, None, 60.0),
        (60.0, 0.0, 60.0),
        (None, -5.0, 60.0),
        (30 * 86_400.0, None, MAX_ASSUMED_S),
    ],
)
def test_without_a_reset_an_exhaustion_ends_with_its_window_or_after_the_assumed_time(window_s, in_s, lasts_s):
    one = quota(lim("tokens", 1000, 0, in_s=in_s, window_s=window_s))
    assert one.judge(NOW + lasts_s - 0.01).exhausted_until == pytest.approx(NOW + lasts_s)
    assert one.judge(NOW + lasts_s).exhausted_until is None


def test_retry_after_decides_how_long_a_refusal_lasts():
    own = Quota(RULES)
    own.refused(60.0, NOW, "429")
    assert own.judge(NOW + 59.9).exhausted_until == NOW + 60
    assert own.judge(NOW + 60).exhausted_until is None
    assert own.judge(NOW + 3600).exhausted_until is None


def test_a_refusal_that_names_no_end_lasts_as_long_as_the_empty_axis():
    one = quota(lim("tokens", 1000, 0, in_s=7), lim("requests", 10, 5, in_s=99))
    one.refused(None, NOW, "429")
    assert one.judge(NOW).exhausted_until == NOW + 7


def test_a_refusal_that_names_no_end_and_has_no_empty_axis_lasts_the_default():
    one = quota(lim("tokens", 1000, 500, in_s=7))
    one.refused(None, NOW, "429")
    assert one.judge(NOW).exhausted_until == NOW + 30


def test_a_shorter_refusal_does_not_shorten_the_one_that_stands():
    own = Quota(RULES)
    own.refused(600.0, NOW, "429")
    own.refused(1.0, NOW + 5, "429")
    assert own.judge(NOW + 10).exhausted_until == NOW + 600


def test_an_answer_to_a_later_request_ends_a_refusal_and_an_answer_to_an_earlier_one_does_not():
    own = Quota(RULES)
    own.refused(86_400.0, NOW, "429")
    own.strained(60.0, NOW, "busy")
    own.succeeded(NOW - 1)
    assert own.judge(NOW + 1).exhausted_until == NOW + 86_400
    own.succeeded(NOW + 1)
    assert own.judge(NOW + 1) == Quota(RULES).judge(NOW)


def test_an_answer_does_not_refill_an_axis_that_the_provider_says_is_empty():
    one = quota(lim("tokens", 1000, 0, in_s=60))
    one.succeeded(NOW + 1)
    assert one.judge(NOW + 2).exhausted_until == NOW + 60


def test_overload_is_degraded_and_not_exhausted():
    own = Quota(RULES)
    own.strained(20.0, NOW, "busy")
    state = own.judge(NOW)
    assert (state.exhausted_until, state.low_until, state.reason) == (None, NOW + 20, "busy")


@pytest.mark.parametrize("note", ["over_limit", "abuse_penalty"])
def test_a_warning_of_the_provider_is_degraded_for_a_while(note):
    one = quota(notes={note: 1.0})
    assert one.judge(NOW).low_until == NOW + 60
    assert one.judge(NOW + 60).low_until is None
    assert quota(notes={note: 0.0}).judge(NOW).low_until is None


def test_an_answer_that_arrives_late_does_not_overwrite_a_newer_one():
    one = quota(lim("tokens", 1000, 10, in_s=60), at=NOW)
    one.observe(Reading(limits=(lim("tokens", 1000, 900, in_s=60),)), NOW - 1)
    assert one.seen()[0].remaining == 10


def test_the_size_of_a_limit_is_remembered_when_an_answer_leaves_it_out():
    one = quota(lim("tokens", 1000, 900, in_s=60))
    one.observe(Reading(limits=(lim("tokens", None, 50, in_s=60),)), NOW + 1)
    assert one.seen()[0].limit == 1000
    assert one.judge(NOW + 1).low_until == NOW + 60


def test_after_its_reset_an_axis_is_shown_as_full():
    one = quota(lim("tokens", 1000, 3, in_s=60), lim("requests", 60, 5, window_s=10.0))
    assert [limit.remaining for limit in one.limits(NOW + 9)] == [3, 5]
    assert [limit.remaining for limit in one.limits(NOW + 10)] == [3, 60]
    assert [limit.remaining for limit in one.limits(NOW + 61)] == [1000, 60]
    assert all(limit.resets_at is None for limit in one.limits(NOW + 61))


def test_axes_of_one_name_and_different_windows_are_apart():
    one = quota(lim("tokens", 10, 0, window_s=60.0), lim("tokens", 1000, 500, window_s=86_400.0))
    assert len(one.seen()) == 2
    assert one.judge(NOW).exhausted_until == NOW + 60


def test_a_flood_of_axes_is_not_remembered():
    one = quota(*(lim(f"axis{number}", 10, 5) for number in range(1000)))
    assert len(one.seen()) == MAX_AXES


FIGURES = st.none() | st.floats(0, 1e6)
LIMITS = st.builds(
    Limit,
    axis=st.sampled_from(["requests", "tokens", "input_tokens"]),
    window_s=st.sampled_from([None, 60.0, 86_400.0]),
    limit=FIGURES,
    remaining=FIGURES,
    resets_at=st.none() | st.floats(NOW - 1e4, NOW + 1e4),
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("observe"), st.lists(LIMITS, max_size=4), st.floats(0, 100)),
        st.tuples(st.just("refused"), st.none() | st.floats(0, 1e4), st.floats(0, 100)),
        st.tuples(st.just("strained"), st.floats(0, 1e4), st.floats(0, 100)),
        st.tuples(st.just("succeeded"), st.none(), st.floats(0, 100)),
    ),
    max_size=12,
)


def played(steps):
    own = Quota(RULES)
    for what, value, after_s in steps:
        at = NOW + after_s
        if what == "observe":
            own.observe(Reading(limits=tuple(value)), at)
        elif what == "refused":
            own.refused(value, at, "429")
        elif what == "strained":
            own.strained(value, at, "busy")
        else:
            own.succeeded(at)
    return own


@given(STEPS)
def test_whatever_happens_every_exhaustion_ends(steps):
    own = played(steps)
    end = own.ends_at(NOW + 100)
    assert end <= NOW + 100 + 1e4
    assert own.judge(end).exhausted_until is None
    state = own.judge(NOW + 50)
    for until in (state.exhausted_until, state.low_until):
        assert until is None or until > NOW + 50


@given(STEPS)
def test_a_quota_survives_json(steps):
    own = played(steps)
    again = Quota.from_json(json.loads(json.dumps(own.to_json())), RULES)
    assert again.to_json() == own.to_json()
    for after_s in (0, 50, 500, 5000):
        assert again.judge(NOW + after_s) == own.judge(NOW + after_s)


@given(STEPS, STEPS)
def test_merging_a_quota_again_changes_nothing(ours, theirs):
    one, two = played(ours), played(theirs)
    one.merge(two)
    once = json.dumps(one.to_json())
    one.merge(two)
    assert json.dumps(one.to_json()) == once


def test_merging_takes_the_newer_of_each_axis():
    one = quota(lim("tokens", 1000, 10), lim("requests", 100, 50), at=NOW)
    two = quota(lim("tokens", 1000, 999), at=NOW - 5)
    two.observe(Reading(limits=(lim("requests", 100, 0, in_s=60),)), NOW + 5)
    one.merge(two)
    assert {limit.axis: limit.remaining for limit in one.seen()} == {"tokens": 10, "requests": 0}


def test_a_refusal_that_is_over_does_not_come_back_from_an_older_record():
    one, two = Quota(RULES), Quota(RULES)
    two.refused(600.0, NOW, "429")
    one.merge(two)
    one.succeeded(NOW + 1)
    one.merge(two)
    assert one.judge(NOW + 2).exhausted_until is None
    two.refused(600.0, NOW + 2, "429")
    one.merge(two)
    assert one.judge(NOW + 2).exhausted_until == NOW + 602
