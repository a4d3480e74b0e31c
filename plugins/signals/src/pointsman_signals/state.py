"""Everything known about one deployment, and the verdict that follows from it. Pure: the time is an argument.

What is known comes in two kinds. ``Facts`` are the latest of something: merging keeps the newer one and may be repeated.
A ``Window`` is a sum: merging adds, so each worker keeps what the store does not have yet (``delta``, and ``pending`` while
it is being written) apart from what came from the store (``base``).
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from pointsman.types import CALLERS_FAULT, AttemptKind, ErrorClass, Outcome, SignalStatus

from .quota import Quota, QuotaRules
from .scrub import MAX_RAW_CHARS, scrub
from .window import Sample, Slice, Window

if TYPE_CHECKING:
    from pointsman.types import Attempt, Deployment

    from .reading import Reading

RECENT: Final = 100
# Looking a member up in its class takes ten times as long, and every attempt is asked for all of these.
_OK: Final = Outcome.OK
_PROBE: Final = AttemptKind.PROBE
_REFUSED: Final = ErrorClass.REFUSED
_AUTH: Final = ErrorClass.AUTH
#: A single token says nothing about speed.
MIN_SPEED_TOKENS: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules(QuotaRules):
    """How a deployment is judged.

    Attributes:
        ttl_s: Knowledge older than this counts as none, in seconds.
        degraded_error_ratio: This part of the attempts failing means degraded, 0 to 1.
        min_attempts: Fewer attempts in the window say nothing about errors.
    """

    ttl_s: float = 300.0
    degraded_error_ratio: float = 0.2
    min_attempts: int = 10


@dataclass(frozen=True, slots=True)
class Check:
    """The outcome of an active check.

    Attributes:
        at: Unix seconds.
        ok: Whether the deployment answered.
        message: Why not; no secrets.
    """

    at: float
    ok: bool
    message: str = ""


class Verdict(NamedTuple):
    """What follows: status, when it ends by itself (Unix seconds), why."""

    status: SignalStatus
    until: float | None
    reason: str


_AVAILABLE: Final = Verdict(SignalStatus.AVAILABLE, None, "")


class Facts:
    """The latest of everything, except what is left of the quota."""

    __slots__ = ("_raw_error", "check", "error", "error_at", "error_kind", "success_at", "used_at")

    def __init__(self) -> None:
        self.used_at = 0.0
        self.success_at = 0.0
        self.error_at = 0.0
        self.error_kind: ErrorClass | None = None
        #: The latest error's text without secrets; what is not cleaned yet waits in ``_raw_error``.
        self.error = ""
        self._raw_error: str | None = None
        self.check: Check | None = None

    def failed(self, kind: ErrorClass, message: str, at: float) -> None:
        """Note a failure. Its text is cleaned later, by ``clean``: that takes too long for the request path."""
        self.error_at, self.error_kind, self.error, self._raw_error = at, kind, "", message[:MAX_RAW_CHARS]

    def clean(self) -> None:
        """Make the latest error's text presentable."""
        if self._raw_error is not None:
            self.error, self._raw_error = scrub(self._raw_error), None

    def merge(self, other: Facts) -> None:
        """Keep the newer of each."""
        self.used_at = max(self.used_at, other.used_at)
        self.success_at = max(self.success_at, other.success_at)
        if other.error_at > self.error_at:
            self.error_at, self.error_kind = other.error_at, other.error_kind
            self.error, self._raw_error = other.error, other._raw_error
        if other.check is not None and (self.check is None or other.check.at > self.check.at):
            self.check = other.check


class State:
    """One deployment.

    Args:
        deployment_id: Its id.
        slice_s: Length of a slice of statistics in seconds.
        rules: How it is judged.
    """

    __slots__ = (
        "_next_recent",
        "account",
        "active",
        "base",
        "capacity",
        "delta",
        "deployment",
        "facts",
        "id",
        "in_flight",
        "pending",
        "quota",
        "recent",
        "revision",
        "rules",
        "seen_at",
        "siblings",
        "totals",
        "totals_at",
        "unsaved",
    )

    def __init__(self, deployment_id: str, slice_s: float, rules: Rules) -> None:
        self.id = deployment_id
        self.rules = rules
        self.deployment: Deployment | None = None
        self.active = True
        self.account: str | None = None
        self.capacity: float | None = None
        #: Ids of all deployments that share ``quota``, this one included; None when it is the deployment's own.
        self.siblings: set[str] | None = None
        #: Its pool of quota, possibly shared with others.
        self.quota = Quota(rules)
        self.facts = Facts()
        self.base = Window(slice_s)
        self.delta = Window(slice_s)
        self.pending: Window | None = None
        #: The latest latencies in milliseconds, overwritten in turn.
        self.recent = array("d")
        self._next_recent = 0
        #: Attempt id to the start of the attempt, Unix seconds.
        self.in_flight: dict[str, float] = {}
        self.seen_at = 0.0
        self.unsaved = False
        #: Which writing of the store's record is already in ``base``.
        self.revision = ""
        self.totals: Slice | None = None
        self.totals_at = 0.0

    @property
    def recorded_at(self) -> float:
        """When the latest knowledge came in, Unix seconds; 0 when there is none."""
        facts = self.facts
        return max(facts.success_at, facts.error_at, facts.check.at if facts.check else 0.0)

    def observe(self, attempt: Attempt, reading: Reading | None, at: float, now: float) -> None:
        """Learn from a finished attempt.

        Args:
            attempt: It, closed.
            reading: What its headers said, or None when it had none.
            at: Unix seconds when the headers arrived.
            now: Unix seconds.
        """
        error = attempt.error
        kind = error.kind if error else None
        if kind is _REFUSED or attempt.cached:
            return
        self.seen_at, self.unsaved = now, True
        facts, quota = self.facts, self.quota
        facts.used_at = now
        if reading is not None:
            quota.observe(reading, at)
        if attempt.outcome is _OK:
            facts.success_at = now
            quota.succeeded(attempt.started_at)
        elif attempt.outcome is Outcome.ERROR:
            facts.failed(kind or ErrorClass.UNKNOWN, error.message if error else "", now)
            retry_after_s = reading.retry_after_s if reading is not None else None
            if retry_after_s is None and error is not None:
                retry_after_s = error.retry_after_s
            if kind is ErrorClass.RATE_LIMIT:
                quota.refused(retry_after_s, now, "refused by the provider's rate limit")
            elif retry_after_s is not None and kind not in CALLERS_FAULT:
                quota.strained(retry_after_s, now, "the provider asks to come back later")
        sample = _sample(attempt, kind)
        self.delta.add(sample, now)
        if sample.latency_ms is not None:
            self.add_recent(sample.latency_ms)

    def add_recent(self, latency_ms: float) -> None:
        """Put a latency into the ring of the latest ones."""
        if len(self.recent) < RECENT:
            self.recent.append(latency_ms)
        else:
            self.recent[self._next_recent] = latency_ms
            self._next_recent = (self._next_recent + 1) % RECENT

    def sum_up(self, now: float) -> Slice:
        """Recompute and return the statistics of the window."""
        total = self.base.total(now)
        for window in (self.pending, self.delta):
            if window is not None and window.slices:
                total.merge(window.total(now))
        self.totals, self.totals_at = total, now
        self.facts.clean()
        return total

    def judge(self, now: float) -> Verdict:
        """Say how the deployment stands at ``now``."""
        rules, quota = self.rules, self.quota.judge(now)
        if quota.exhausted_until is not None:
            return Verdict(SignalStatus.EXHAUSTED, quota.exhausted_until, quota.reason)
        facts = self.facts
        fresh_from = now - rules.ttl_s
        if facts.error_kind is _AUTH and facts.error_at > max(facts.success_at, fresh_from):
            return Verdict(SignalStatus.DEGRADED, facts.error_at + rules.ttl_s, "the provider refuses the credentials")
        check = facts.check
        if check is not None and not check.ok and check.at > max(facts.success_at, fresh_from):
            return Verdict(SignalStatus.DEGRADED, check.at + rules.ttl_s, f"check failed: {check.message}")
        if quota.low_until is not None:
            return Verdict(SignalStatus.DEGRADED, quota.low_until, quota.reason)
        if self.totals is not None:
            ratio, attempts = error_ratio(self.totals)
            if ratio is not None and attempts >= rules.min_attempts and ratio >= rules.degraded_error_ratio:
                return Verdict(SignalStatus.DEGRADED, None, f"{ratio:.0%} of {attempts} attempts failed")
        if facts.success_at > fresh_from:
            return _AVAILABLE
        known_at = self.recorded_at
        if known_at <= fresh_from:
            reason = "nothing seen yet" if known_at == 0.0 else f"nothing heard for {rules.ttl_s:.0f} s"
            return Verdict(SignalStatus.UNKNOWN, None, reason)
        return _AVAILABLE


def error_ratio(totals: Slice) -> tuple[float | None, int]:
    """Return the part of the attempts that failed by the deployment's own fault, and how many attempts that is of.

    Attempts that were cancelled or failed by the caller's fault say nothing and are left out.
    """
    own = sum(count for kind, count in totals.errors.items() if kind not in CALLERS_FAULT)
    callers = sum(totals.errors.values()) - own
    attempts = totals.requests - totals.cancelled - callers
    return (own / attempts if attempts > 0 else None), attempts


def answered_at(attempt: Attempt) -> float:
    """Return when the headers arrived: resets count from then, not from the end of a long stream."""
    ms = attempt.first_token_ms if attempt.first_token_ms is not None else attempt.duration_ms
    return attempt.started_at + (ms or 0.0) / 1e3


def _sample(attempt: Attempt, kind: ErrorClass | None) -> Sample:
    usage = attempt.usage
    if attempt.outcome is not _OK:
        cancelled = attempt.outcome is not Outcome.ERROR
        failed = None if cancelled else kind or ErrorClass.UNKNOWN
        return Sample(usage=usage, cost_usd_micros=attempt.cost_usd_micros, error=failed, cancelled=cancelled)
    if attempt.kind is _PROBE:
        return Sample(usage=usage, cost_usd_micros=attempt.cost_usd_micros)
    duration_ms, first_ms = attempt.duration_ms, attempt.first_token_ms
    speed = None
    if usage is not None and duration_ms is not None and usage.completion_tokens >= MIN_SPEED_TOKENS:
        # The first token's wait is no part of the speed of the others.
        tokens, ms = usage.completion_tokens, duration_ms
        if first_ms is not None:
            tokens, ms = tokens - 1, duration_ms - first_ms
        speed = tokens / ms * 1e3 if ms > 0 else None
    return Sample(duration_ms, first_ms, speed, usage, attempt.cost_usd_micros)
