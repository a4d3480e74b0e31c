"""What the ledger should do, written another way: exact fractions, every hold and every spending remembered.

Rates are checked in the virtual-scheduling form of the GCRA, with a theoretical arrival time, while the ledger uses the
leaky-bucket form.

Clocks may be set back. Then a scope's past moves back with its clock: all that it remembers is as long ago as before.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field
from fractions import Fraction

from pointsman_quota.ledger import LONGEST_LEASE_MS, MAX_AHEAD_MS, PICOS, Caps
from pointsman_quota.limits import LimitName
from pointsman_quota.periods import Calendar, Period


@dataclass
class Spending:
    at_ms: int
    day: int
    month: int
    tokens: int
    usd_picos: int
    within_tokens: int
    within_usd_picos: int


@dataclass
class Scope:
    caps: Caps
    calendar: Calendar
    at_ms: int = 0
    day: int = 0
    month: int = 0
    requests_tat: Fraction = Fraction(0)
    tokens_tat: Fraction = Fraction(0)
    holds: dict[str, tuple[int, int, int, int]] = field(default_factory=dict)
    #: Holds that somebody has seen to be over: they do not come back when a clock is set back.
    lapsed: set[str] = field(default_factory=set)
    settled: set[str] = field(default_factory=set)
    spendings: list[Spending] = field(default_factory=list)

    def moment(self, now_ms: int) -> tuple[int, int, int]:
        period = self.calendar.at(now_ms)
        return max(now_ms, self.at_ms), max(period.day, self.day), max(period.month, self.month)

    def seen_at(self, now_ms: int) -> Scope:
        """Return the scope as who looks sees it: only who changes it makes it follow a clock that has been set back.

        What lapses impossibly late is not seen, and not waited for either, though it is seen again once a clock that was
        set back has caught up with it.
        """
        seen = deepcopy(self)
        seen._set_back(now_ms)
        seen.holds = {request: hold for request, hold in seen.holds.items() if seen.lives(request, now_ms)}
        return seen

    def _set_back(self, now_ms: int) -> None:
        back_ms = self.at_ms - now_ms
        if back_ms <= MAX_AHEAD_MS:
            return
        period = self.calendar.at(now_ms)
        self.requests_tat -= back_ms
        self.tokens_tat -= back_ms
        for spending in self.spendings:
            spending.at_ms -= back_ms
            # What was spent in earlier periods belongs to none that will ever come.
            spending.day = period.day if spending.day == self.day else spending.day - 10**9
            spending.month = period.month if spending.month == self.month else spending.month - 10**9
        self.at_ms, self.day, self.month = now_ms, period.day, period.month

    def touch(self, now_ms: int, *, limited: bool = True) -> None:
        """Note that the scope is changed now, under its limits or, for once, without any."""
        self._set_back(now_ms)
        before_ms = self.at_ms
        self.at_ms, self.day, self.month = self.moment(now_ms)
        if not limited:
            passed_ms = self.at_ms - before_ms
            self.requests_tat = max(self.requests_tat, Fraction(before_ms)) + passed_ms
            self.tokens_tat = max(self.tokens_tat, Fraction(before_ms)) + passed_ms
        self.lapsed |= {request for request in self.holds if not self.lives(request, now_ms)}

    def lives(self, request: str, now_ms: int) -> bool:
        left_ms = self.holds[request][0] * 1000 - now_ms
        return request not in self.lapsed and 0 < left_ms <= LONGEST_LEASE_MS

    def live(self, now_ms: int) -> list[tuple[int, int, int, int]]:
        return [hold for request, hold in self.holds.items() if self.lives(request, now_ms)]

    def refusing(self, now_ms: int, tokens: int, usd_picos: int) -> set[LimitName]:
        """Return the limits that refuse a request at a moment, on a scope that knows of no later one but a little."""
        now, day, month = self.moment(now_ms)
        live = self.live(now_ms)
        today = [s for s in self.spendings if s.day == day]
        this_month = [s for s in self.spendings if s.month == month]
        caps = self.caps
        refusing = set()
        if "requests" in caps and not _conforms(self.requests_tat, now, 1, caps["requests"], caps["requests_burst"]):
            refusing.add(LimitName.REQUESTS_PER_MINUTE)
        if "concurrent" in caps and sum(hold[3] for hold in live) >= caps["concurrent"]:
            refusing.add(LimitName.CONCURRENT_REQUESTS)
        if tokens:
            tokens += sum(hold[1] for hold in live)
            if "tokens" in caps and not _conforms(self.tokens_tat, now, tokens, caps["tokens"], caps["tokens_burst"]):
                refusing.add(LimitName.TOKENS_PER_MINUTE)
            if "day_tokens" in caps and sum(s.tokens for s in today) + tokens > caps["day_tokens"]:
                refusing.add(LimitName.TOKENS_PER_DAY)
            if "month_tokens" in caps and sum(s.tokens for s in this_month) + tokens > caps["month_tokens"]:
                refusing.add(LimitName.TOKENS_PER_MONTH)
        if usd_picos:
            usd = Fraction(usd_picos + sum(hold[2] for hold in live), PICOS)
            if "day_usd_micros" in caps and _usd_micros(today) + usd > caps["day_usd_micros"]:
                refusing.add(LimitName.USD_PER_DAY)
            if "month_usd_micros" in caps and _usd_micros(this_month) + usd > caps["month_usd_micros"]:
                refusing.add(LimitName.USD_PER_MONTH)
        return refusing

    def take(self, request: str, now_ms: int, hold: tuple[int, int, int, int]) -> None:
        self.touch(now_ms)
        if "requests" in self.caps:
            self.requests_tat = max(self.requests_tat, Fraction(self.at_ms)) + Fraction(60_000, self.caps["requests"])
        self.holds[request] = hold

    def free(self, request: str, now_ms: int) -> None:
        """Free the slot of a request; the rest of its hold stays."""
        self.touch(now_ms)
        self.holds[request] = (*self.holds[request][:3], 0)

    def settle(
        self,
        request: str,
        now_ms: int,
        tokens: int,
        usd_picos: int,
        *,
        forced: bool = False,
        limited: bool = True,
        requests: int = 0,
    ) -> bool:
        """Spend what a request has used, the first time; say whether it was."""
        if request in self.settled:
            return False
        self.settled.add(request)
        self.spend(request, now_ms, tokens, usd_picos, forced=forced or not limited, limited=limited)
        if "requests" in self.caps and limited and requests:
            start = max(self.requests_tat, Fraction(self.at_ms))
            self.requests_tat = start + Fraction(60_000, self.caps["requests"]) * requests
        return True

    def spend(
        self, request: str, now_ms: int, tokens: int, usd_picos: int, *, forced: bool = False, limited: bool = True
    ) -> None:
        self.touch(now_ms, limited=limited)
        counts = request in self.holds and request not in self.lapsed and not forced
        hold = self.holds.pop(request, None)
        if "tokens" in self.caps and limited:
            start = max(self.tokens_tat, Fraction(self.at_ms))
            self.tokens_tat = start + Fraction(60_000, self.caps["tokens"]) * tokens
        self.spendings.append(
            Spending(
                self.at_ms,
                self.day,
                self.month,
                tokens,
                usd_picos,
                min(tokens, hold[1]) if counts and hold else 0,
                min(usd_picos, hold[2]) if counts and hold else 0,
            )
        )

    def restore(self, now_ms: int, period: Period, earlier: tuple[int, int], today: tuple[int, int]) -> None:
        """Note what was spent in a period: earlier in the month, and on the day."""
        self.touch(now_ms)
        for day, (tokens, usd_picos) in ((0, earlier), (period.day, today)):
            self.spendings.append(Spending(self.at_ms, day, period.month, tokens, usd_picos, 0, 0))

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
        for cap, period, amount, unit in (
            ("day_tokens", "day", "within_tokens", 1),
            ("day_usd_micros", "day", "within_usd_picos", PICOS),
            ("month_tokens", "month", "within_tokens", 1),
            ("month_usd_micros", "month", "within_usd_picos", PICOS),
        ):
            sums: dict[int, int] = {}
            for spending in self.spendings:
                when = getattr(spending, period)
                sums[when] = sums.get(when, 0) + getattr(spending, amount)
            if cap in caps and any(spent > caps[cap] * unit for spent in sums.values()):  # type: ignore[literal-required]
                return cap
        return None


def _usd_micros(spendings: list[Spending]) -> Fraction:
    return Fraction(sum(s.usd_picos for s in spendings), PICOS)


def _conforms(tat: Fraction, now_ms: int, cells: int, rate: int, burst: int) -> bool:
    increment = Fraction(60_000, rate)
    return max(tat, Fraction(now_ms)) + cells * increment - now_ms <= burst * increment
