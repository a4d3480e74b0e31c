"""What a worker knows of a deployment from its own attempts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman_balance.load import LOST_AFTER_S, MAX_UNANSWERED, MIN_WAIT_MS, PICK_S, Average, Load

NOW = 1_700_000_000.0


def load(tau_s=10.0, stale_s=4.0):
    return Load(tau_s, stale_s)


def test_a_peak_average_goes_up_at_once_and_down_slowly():
    one = Average(10, 0.5)
    one.add(100, NOW)
    one.add(1000, NOW + 0.1)
    assert one.value == 550
    one.add(100, NOW + 0.2)
    assert one.value == pytest.approx(505)
    one.add(100, NOW + 40)
    assert one.value < 110, "after a long time the new value is nearly everything"


@given(st.lists(st.tuples(st.floats(0.01, 1e6), st.floats(0, 100)), min_size=1, max_size=50))
def test_an_average_stays_within_its_values(values):
    one, now = Average(10, 0.5), NOW
    for value, seconds in values:
        now += seconds
        one.add(value, now)
    seen = [value for value, _ in values]
    assert min(seen) * 0.999 <= one.value <= max(seen) * 1.001
    assert min(seen) * 0.999 <= one.usual <= max(seen) * 1.001


def test_in_flight_counts_choices_that_have_not_begun():
    one = load()
    one.pick("r1", NOW)
    assert one.in_flight == 1
    one.begin("a1", "r1", NOW, stream=True)
    assert one.in_flight == 1
    one.end("a1", "r1")
    assert one.in_flight == 0


def test_a_choice_that_nothing_follows_is_given_up():
    one = load()
    one.pick("r1", NOW)
    one.begin("a1", "r2", NOW, stream=True)
    assert one.sweep(NOW + PICK_S) == []
    assert one.sweep(NOW + PICK_S + 1) == ["r1"]
    assert one.in_flight == 1
    one.sweep(NOW + LOST_AFTER_S + 1)
    assert (one.in_flight, one.waiting) == (0, {})


def test_what_waits_longer_than_usual_says_so_before_it_is_answered():
    one = load()
    one.begin("a1", "r1", NOW, stream=True)
    one.first_token("a1", 200, NOW + 0.2)
    assert one.wait_ms(NOW + 0.2, stream=True) == 200
    one.begin("a2", "r2", NOW + 1, stream=True)
    assert one.wait_ms(NOW + 1.1, stream=True) == 200
    assert one.wait_ms(NOW + 4, stream=True) == pytest.approx(3000)
    one.end("a2", "r2")
    assert one.wait_ms(NOW + 1.5, stream=True) == 200, "gone without an answer: nothing is known of it"


def test_the_first_token_counts_when_it_comes_and_only_once():
    one = load()
    one.begin("a1", "r1", NOW, stream=True)
    one.first_token("a1", 150, NOW + 0.15)
    one.first_token("a1", 9999, NOW + 5)
    assert (one.first_ms.value, one.first_ms.count, one.in_flight) == (150, 1, 1)


def test_plain_calls_and_streams_wait_for_different_things():
    one = load()
    one.answered(2000, 100, 2000, NOW)
    assert one.wait_ms(NOW, stream=False) == 2000
    assert one.wait_ms(NOW, stream=True) == 2000, "nothing better is known"
    one.begin("a1", "r1", NOW, stream=True)
    one.first_token("a1", 150, NOW)
    assert (one.wait_ms(NOW, stream=False), one.wait_ms(NOW, stream=True)) == (2000, 150)
    assert one.tokens_per_s.value == 50


def test_an_unused_deployment_counts_as_usual_again():
    """An unobserved brown-out may be over; a usually slow deployment is tried again much later."""
    ill, slow = load(), load()
    for number in range(100):
        ill.first_ms.add(200, NOW + number / 100)
        slow.first_ms.add(3000, NOW + number / 100)
    for number in range(5):
        ill.first_ms.add(3000, NOW + 2 + number / 10)
    assert ill.wait_ms(NOW + 2.5, stream=True) > 2500
    assert 300 < ill.wait_ms(NOW + 7, stream=True) < 1800
    assert ill.wait_ms(NOW + 20, stream=True) < 600
    assert slow.wait_ms(NOW + 20, stream=True) == pytest.approx(3000)
    assert slow.wait_ms(NOW + 90, stream=True) < 500


@pytest.mark.parametrize("answers", [1, 100])
def test_a_belief_that_fades_ends_above_nothing_and_what_was_measured_is_still_known(answers):
    one = load()
    for number in range(answers):
        one.first_ms.add(150, NOW + number / 100)
    assert one.wait_ms(NOW + 10_000, stream=True) == MIN_WAIT_MS
    assert one.measured_ms(stream=True) == one.measured_ms(stream=False) == pytest.approx(150)
    assert load().measured_ms(stream=True) is None
    quick = load()
    quick.first_ms.add(0.0, NOW)
    assert quick.wait_ms(NOW + 10_000, stream=True) == 0.0, "never believed slower than measured"


def test_a_used_deployment_counts_as_measured():
    one = load()
    one.first_ms.add(200, NOW)
    one.first_ms.add(3000, NOW + 1)
    known = one.first_ms.value
    one.begin("a1", "r1", NOW + 1, stream=False)
    assert one.wait_ms(NOW + 60, stream=True) == known


def test_failures_are_a_part_of_the_latest_attempts():
    one = load()
    one.failed_after(50, NOW, timed_out=False, stream=True)
    assert one.errors == pytest.approx(0.15)
    assert one.wait_ms(NOW, stream=True) is None, "a quick failure is not a quick answer"
    one.failed_after(9000, NOW, timed_out=True, stream=True)
    assert one.wait_ms(NOW, stream=True) == 9000
    before = one.errors
    one.answered(None, 0, None, NOW)
    assert one.errors < before
    one.recover()
    assert (one.errors, one.wait_ms(NOW, stream=True)) == (0.0, None)


def test_failures_of_an_unused_deployment_are_doubted():
    """Whoever is not asked any more cannot show that it is well again."""
    one = load(stale_s=4.0)
    one.begin("a", "r", NOW, stream=True)
    one.end("a", "r")
    one.failed_after(50, NOW, timed_out=False, stream=True)
    assert one.error_ratio(NOW + 0.5) == one.errors > 0
    assert one.error_ratio(NOW + 4) == pytest.approx(one.errors / 2.718, rel=0.01)
    assert one.error_ratio(NOW + 60) < 1e-6
    one.begin("b", "r2", NOW, stream=True)
    assert one.error_ratio(NOW + 60) == one.errors


def errors_in_a_row(one, number, now):
    for _ in range(number):
        one.begin("a", "r", now, stream=True)
        one.end("a", "r")
        one.unanswered += 1


def test_who_answers_nothing_is_not_known_any_more_and_doubted_again_each_time_later():
    one = load(stale_s=4.0)
    one.first_ms.add(200, NOW)
    errors_in_a_row(one, MAX_UNANSWERED - 1, NOW)
    assert one.wait_ms(NOW, stream=True) == 200
    errors_in_a_row(one, 1, NOW)
    assert one.wait_ms(NOW + 23, stream=True) is None
    assert not one.explores(NOW + 23)
    assert one.wait_ms(NOW + 25, stream=True) < 200, "perhaps it was the clients"
    assert one.explores(NOW + 25)
    errors_in_a_row(one, 1, NOW + 25)
    assert not one.explores(NOW + 25 + 47)
    assert one.explores(NOW + 25 + 49)
    one.answered(None, 0, None, NOW + 80)
    assert one.wait_ms(NOW + 80, stream=True) is not None


def test_who_is_unknown_is_explored_one_request_at_a_time_and_not_for_ever():
    one = load()
    assert one.explores(NOW)
    one.pick("r", NOW)
    assert not one.explores(NOW)
    for _ in range(MAX_UNANSWERED):
        one.begin("a", "r", NOW, stream=True)
        assert not one.explores(NOW)
        one.end("a", "r")
    assert not one.explores(NOW), "each was cancelled: nothing has become known"
    one.recover()
    assert one.explores(NOW)
    one.begin("a", "r", NOW, stream=True)
    one.end("a", "r", silent=True)
    assert one.asked == 0, "the gateway's cache answered"


def test_tokens_fade():
    one = load(tau_s=10)
    one.spend(1000, NOW)
    one.spend(500, NOW + 10)
    assert one.tokens.value(NOW + 10) == pytest.approx(1000 / 2.718 + 500, rel=0.01)
    assert one.tokens.value(NOW + 1000) == pytest.approx(0)
    assert one.spent == 1500
