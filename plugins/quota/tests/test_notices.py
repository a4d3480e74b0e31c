"""Which limits operators hear of, and how often."""

from __future__ import annotations

from pointsman.types import Denial
from pointsman_quota import notices
from pointsman_quota.notices import EVERY_S, LimitNotices

DENIAL = Denial(
    status=429, code="requests_per_minute_exceeded", message="Over the limit: 2. Try again in 1 s.", retry_after_s=1
)


def test_each_limit_of_each_tenant_is_told_once_a_minute():
    told = []
    limits = LimitNotices(told.append)
    for at in (0.0, 1.0, EVERY_S - 1):
        limits.reached("acme", "tenant/requests_per_minute", DENIAL, at)
        limits.reached("acme", "key/requests_per_minute", DENIAL, at)
        limits.reached("other", "tenant/requests_per_minute", DENIAL, at)
    assert len(told) == 3
    limits.reached("acme", "tenant/requests_per_minute", DENIAL, EVERY_S)
    assert len(told) == 4
    assert told[0].kind == "limit"
    assert told[0].text == (
        "tenant acme has reached tenant/requests_per_minute; requests are refused with 429: Over the limit: 2. Try again in 1 s."
    )


def test_what_is_remembered_is_bounded(monkeypatch):
    monkeypatch.setattr(notices, "MOST_REMEMBERED", 10)
    limits = LimitNotices(lambda _: None)
    for number in range(100):
        limits.reached(str(number), "limit", DENIAL, number * EVERY_S)
    assert len(limits._told) <= 10
