"""Waits and remainders, worked out by hand."""

from __future__ import annotations

from typing import Any
from zoneinfo import ZoneInfo

import pytest

from pointsman_quota.ledger import Caps, ScopeState, held, run
from pointsman_quota.limits import Left, LimitName, breaches, left
from pointsman_quota.periods import Calendar, Period

NOW_MS = 1_000_000
PERIOD = Period(
    day=1,
    month=1,
    begins_ms=0,
    day_ends_ms=NOW_MS + 20_000,
    month_ends_ms=NOW_MS + 90_000_000,
    month_begins_ms=0,
)


def period_at(_now_ms: int) -> Period:
    return PERIOD


def state(**given: Any) -> ScopeState:
    return ScopeState(**{"at_ms": NOW_MS, "day": 1, "month": 1, **given})


def only(scope: ScopeState, caps: Caps, take: tuple[int, int] = (10, 0)) -> tuple[LimitName, int | None, int | None]:
    (breach,) = breaches([scope], [caps], period_at, take, NOW_MS)
    return breach.limit, breach.wait_ms, breach.idle_wait_ms


def test_what_earlier_versions_have_stored_is_read() -> None:
    """A scope without parts of a micro-dollar, and a hold whose slot nothing had freed."""
    step: Any = {
        "do": "settle", "now_ms": NOW_MS, "day": 1, "month": 1, "keep_s": 60, "hold_keep_s": 60, "caps": [{}], "tokens": 5,
        "usd_micros": 2, "usd_picos": 400_000, "requests": 0, "slots": 1, "expires_s": 0, "force": False, "without_hold": False,
    }  # fmt: skip
    scope = [NOW_MS - 1, 0, 0, 1, 10, 20, 1, 30, 40, {"1030": [2, 100, 200]}]
    writes, (done, *_) = run([[1030, 60, 150], scope], step)  # type: ignore[misc]
    assert done
    assert writes[0] is None
    put = writes[1]
    assert put is not None
    assert put.value == ScopeState(
        NOW_MS, 0, 0, 1, 15, 22, 1, 35, 42, {"1030": (1, 40, 50, 0)}, day_usd_picos=400_000, month_usd_picos=400_000
    )


def test_a_rate_asks_to_wait_until_enough_has_drained() -> None:
    """100 tokens a minute, 95 spent just now, 10 wanted: 5 must drain, which takes 3 s."""
    caps: Caps = {"tokens": 100, "tokens_burst": 100}
    assert only(state(tokens=95 * 60_000), caps) == (LimitName.TOKENS_PER_MINUTE, 3000, 3000)


def test_a_wait_is_rounded_up_to_the_millisecond() -> None:
    """7 requests a minute: the next one is due after 60 000 / 7 = 8571.43 ms."""
    caps: Caps = {"requests": 7, "requests_burst": 1}
    assert only(state(requests=60_000), caps) == (LimitName.REQUESTS_PER_MINUTE, 8572, 8572)


def test_what_others_hold_is_told_apart_from_what_was_spent() -> None:
    """The lease of 95 tokens ends in 30 s at the latest; were it settled for nothing, there would be no wait."""
    caps: Caps = {"tokens": 100, "tokens_burst": 100}
    assert only(state(leases={"1030": [1, 95, 0]}), caps) == (LimitName.TOKENS_PER_MINUTE, 30_000, 0)


def test_a_budget_waits_for_midnight_and_for_leases_that_outlast_it() -> None:
    """20 s to midnight, but so much is held that only the lease's end, 10 s later, makes room."""
    caps: Caps = {"day_tokens": 100}
    assert only(state(day_tokens=95), caps) == (LimitName.TOKENS_PER_DAY, 20_000, 20_000)
    assert only(state(day_tokens=95, leases={"1030": [1, 95, 0]}), caps) == (LimitName.TOKENS_PER_DAY, 30_000, 20_000)
    assert only(state(day_tokens=95, leases={"1010": [1, 95, 0]}), caps) == (LimitName.TOKENS_PER_DAY, 20_000, 20_000)


@pytest.mark.parametrize("caps", [{"tokens": 100, "tokens_burst": 9}, {"day_tokens": 9}, {"month_tokens": 9}])
def test_a_request_larger_than_the_limit_never_fits(caps: Caps) -> None:
    """No wait is promised that would not help."""
    assert only(state(), caps)[1:] == (None, None)


def test_the_longest_wait_comes_first() -> None:
    """The limit that is named is the one that decides when to come back."""
    caps: Caps = {"requests": 60, "requests_burst": 1, "concurrent": 1, "month_usd_micros": 5}
    found = breaches(
        [state(requests=60_000, leases={"1030": [1, 0, 0]}, month_usd_micros=5)],
        [caps],
        period_at,
        (1, 1_000_000),
        NOW_MS,
    )
    assert [(breach.limit, breach.wait_ms) for breach in found] == [
        (LimitName.USD_PER_MONTH, 90_000_000),
        (LimitName.CONCURRENT_REQUESTS, 30_000),
        (LimitName.REQUESTS_PER_MINUTE, 1000),
    ]


def test_what_is_left_is_that_of_the_tightest_limit() -> None:
    """Tokens: the day's budget is tighter than the rate; requests: one of sixty was just taken."""
    caps: Caps = {"requests": 60, "requests_burst": 60, "tokens": 600, "tokens_burst": 600, "day_tokens": 500}
    scope = state(tokens=60_000, day_tokens=100, leases={"1030": [1, 50, 0]})
    assert left([scope, state()], [caps, {}], period_at, (1, 30), NOW_MS) == (
        Left(60, 59, 1000),
        Left(500, 320, 20_000),
    )
    assert left([state()], [{"concurrent": 3}], period_at, (1, 30), NOW_MS) == (None, None)


def test_days_and_months_end_at_the_zones_midnight() -> None:
    """The night the clocks go forward has 23 hours, and the month ends with the last day's midnight."""
    calendar = Calendar(ZoneInfo("Europe/Berlin"))
    period = calendar.at(1_774_692_000_000)  # 28 March 2026, 11:00 in Berlin
    assert (period.day, period.month) == (20260328, 202603)
    following = calendar.at(period.day_ends_ms)
    assert following.day == 20260329
    assert following.day_ends_ms - following.begins_ms == 23 * 3_600_000
    assert calendar.at(period.month_ends_ms).day == 20260401
    assert calendar.at(period.month_ends_ms - 1).day == 20260331


def test_money_is_reserved_and_refused_to_the_picodollar() -> None:
    """25 requests of 0.4 micro-dollars are 10; a budget of 10 takes them all, whether they are running or have ended."""
    step: Any = {
        "do": "reserve", "now_ms": NOW_MS, "day": 1, "month": 1, "keep_s": 60, "hold_keep_s": 60, "tokens": 1,
        "caps": [{"month_usd_micros": 10}], "usd_micros": 0, "usd_picos": 400_000, "requests": 0, "slots": 1,
        "expires_s": 1030, "force": False, "without_hold": False,
    }  # fmt: skip
    scope: Any = None
    holds: list[Any] = []
    for number in range(26):
        writes, (done, *_) = run([None, scope], step)  # type: ignore[misc]
        assert done == (number < 25)
        if done:
            holds.append(writes[0].value)  # type: ignore[union-attr]
            scope = writes[1].value  # type: ignore[union-attr]
        if number % 2:
            writes, _ = run([holds.pop(), scope], {**step, "do": "settle"})
            scope = writes[1].value  # type: ignore[union-attr]
    last = ScopeState(*scope)
    spent = last.month_usd_micros * 1_000_000 + last.month_usd_picos
    assert spent + held(last)[2] == 10_000_000
    assert held(last)[2] == len(holds) * 400_000 > 0
    refused = breaches([last], step["caps"], period_at, (1, 1), NOW_MS)
    assert [breach.limit for breach in refused] == [LimitName.USD_PER_MONTH]
