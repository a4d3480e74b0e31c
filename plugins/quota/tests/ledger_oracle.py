"""What the ledger should do, written another way: exact fractions, every hold and every spending remembered.

Rates are checked in the virtual-scheduling form of the GCRA, with a theoretical arrival time, while the ledger uses the
leaky-bucket form.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction

from pointsman_quota.ledger import Caps
from pointsman_quota.periods import Calendar
from pointsman_quota.verdict import LimitName


@dataclass
class Spending:
    at_ms: int
    day: int
    month: int
    tokens: int
    usd_micros: int
    within_tokens: int
    within_usd_micros: int


@dataclass
class Scope:
    caps: Caps
    calendar: Calendar
    at_ms: int = 0
    day: int = 0
    month: int = 0
    requests_tat: Fraction = Fraction(0)
    tokens_tat: Fraction = Fraction(0)
    holds: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    spendings: list[Spending] = field(default_factory=list)

    def moment(self, now_ms: int) -> tuple[int, int, int]:
        period = self.calendar.at(now_ms)
        return max(now_ms, self.at_ms), max(period.day, self.day), max(period.month, self.month)

    def touch(self, now_ms: int) -> None:
        self.at_ms, self.day, self.month = self.moment(now_ms)

    def live(self, now_ms: int) -> list[tuple[int, int, int]]:
        return [hold for hold in self.holds.values() if hold[0] * 1000 > now_ms]

    def refusing(self, now_ms: int, tokens: int, usd_micros: int) -> set[LimitName]:
        now, day, month = self.moment(now_ms)
        live = self.live(now)
        tokens += sum(hold[1] for hold in live)
        usd_micros += sum(hold[2] for hold in live)
        today = [s for s in self.spendings if s.day == day]
        this_month = [s for s in self.spendings if s.month == month]
        caps = self.caps
        refusing = set()
        if "requests" in caps and not _conforms(self.requests_tat, now, 1, caps["requests"], caps["requests_burst"]):
            refusing.add(LimitName.REQUESTS_PER_MINUTE)
        if "tokens" in caps and not _conforms(self.tokens_tat, now, tokens, caps["tokens"], caps["tokens_burst"]):
            refusing.add(LimitName.TOKENS_PER_MINUTE)
        if "concurrent" in caps and len(live) >= caps["concurrent"]:
            refusing.add(LimitName.CONCURRENT_REQUESTS)
        if "day_tokens" in caps and sum(s.tokens for s in today) + tokens > caps["day_tokens"]:
            refusing.add(LimitName.TOKENS_PER_DAY)
        if "month_tokens" in caps and sum(s.tokens for s in this_month) + tokens > caps["month_tokens"]:
            refusing.add(LimitName.TOKENS_PER_MONTH)
        if "day_usd_micros" in caps and sum(s.usd_micros for s in today) + usd_micros > caps["day_usd_micros"]:
            refusing.add(LimitName.USD_PER_DAY)
        if "month_usd_micros" in caps and sum(s.usd_micros for s in this_month) + usd_micros > caps["month_usd_micros"]:
            refusing.add(LimitName.USD_PER_MONTH)
        return refusing

    def take(self, request: str, now_ms: int, hold: tuple[int, int, int]) -> None:
        self.touch(now_ms)
        if "requests" in self.caps:
            self.requests_tat = max(self.requests_tat, Fraction(self.at_ms)) + Fraction(60_000, self.caps["requests"])
        self.holds[request] = hold

    def spend(self, request: str, now_ms: int, tokens: int, usd_micros: int, *, forced: bool) -> None:
        self.touch(now_ms)
        hold = self.holds.pop(request, None)
        counts = hold is not None and hold[0] * 1000 > self.at_ms and not forced
        if "tokens" in self.caps:
            start = max(self.tokens_tat, Fraction(self.at_ms))
            self.tokens_tat = start + Fraction(60_000, self.caps["tokens"]) * tokens
        self.spendings.append(
            Spending(
                self.at_ms,
                self.day,
                self.month,
                tokens,
                usd_micros,
                min(tokens, hold[1]) if counts and hold else 0,
                min(usd_micros, hold[2]) if counts and hold else 0,
            )
        )

    def level(self, tat: Fraction, rate: int, now_ms: int) -> int:
        level = max(Fraction(0), tat - self.moment(now_ms)[0]) * rate
        assert level.denominator == 1
        return int(level)

    def overspent(self) -> str | None:
        """Name the limit that the spendings within their estimates have broken, over every window of time."""
        caps = self.caps
        for first in range(len(self.spendings)):
            total = 0
            for spending in self.spendings[first:]:
                total += spending.within_tokens
                elapsed_ms = spending.at_ms - self.spendings[first].at_ms
                if "tokens" in caps and total * 60_000 > caps["tokens_burst"] * 60_000 + caps["tokens"] * elapsed_ms:
                    return "tokens"
        for cap, period, amount in (
            ("day_tokens", "day", "within_tokens"),
            ("day_usd_micros", "day", "within_usd_micros"),
            ("month_tokens", "month", "within_tokens"),
            ("month_usd_micros", "month", "within_usd_micros"),
        ):
            sums: dict[int, int] = {}
            for spending in self.spendings:
                when = getattr(spending, period)
                sums[when] = sums.get(when, 0) + getattr(spending, amount)
            if cap in caps and any(spent > caps[cap] for spent in sums.values()):  # type: ignore[literal-required]
                return cap
        return None


def _conforms(tat: Fraction, now_ms: int, cells: int, rate: int, burst: int) -> bool:
    increment = Fraction(60_000, rate)
    return max(tat, Fraction(now_ms)) + cells * increment - now_ms <= burst * increment
