"""What is known of one deployment, and the verdict derived from it. Pure: the time is an argument.

There are two kinds of knowledge. ``Facts`` are the latest of something: merging keeps the newer one and is idempotent.
A ``Window`` is a sum: merging adds, so each worker keeps what is not yet in the store (``delta``, and ``pending`` while it
is being written) apart from what came from the store (``base``).
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from pointsman.types import CALLERS_FAULT, AttemptKind, ErrorClass, Outcome, SignalStatus

from .quota import Quota, QuotaRules
from .redaction import MAX_RAW_CHARS, scrub
from .statistics import Sample, Slice, Window

if TYPE_CHECKING:
    from pointsman.types import Attempt, Deployment

    from .dialects import Reading

RECENT: Final = 100
#: Failures that say nothing about the deployment: caused by the caller, or a 200 without content.
NOT_ITS_FAULT: Final = CALLERS_FAULT | {ErrorClass.EMPTY}
# Looking a member up in its class takes ten times as long, and every attempt is compared with all of these.
_OK: Final = Outcome.OK
_PROBE: Final = AttemptKind.PROBE
_REFUSED: Final = ErrorClass.REFUSED
_AUTH: Final = ErrorClass.AUTH
#: A single token gives no speed.
MIN_SPEED_TOKENS: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthRules(QuotaRules):
    """How a deployment is judged.

    Attributes:
        ttl_s: Seconds after which an observation no longer counts.
        degraded_error_ratio: Share of failed attempts from which a deployment is degraded, 0 to 1.
        min_attempts: Attempts in the window below which errors are not evaluated.
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
        message: Why not, without secrets.
    """

    at: float
    ok: bool
    message: str = ""


class Verdict(NamedTuple):
    """Status, when it ends by itself (Unix seconds), and the reason."""

    status: SignalStatus
    until: float | None
    reason: str


_AVAILABLE: Final = Verdict(SignalStatus.AVAILABLE, None, "")


class Facts:
    """The latest observations, except the remaining quota."""

    __slots__ = (
        "_raw_error",
        "check",
        "check_success_at",
        "consecutive_errors",
        "error",
        "error_at",
        "error_kind",
        "reset_at",
        "success_at",
        "used_at",
    )

    def __init__(self) -> None:
        self.used_at = 0.0
        #: When an operator last reset the window, Unix seconds; 0 for never.
        self.reset_at = 0.0
        #: Failures of the deployment since its latest answer.
        self.consecutive_errors = 0
        self.check_success_at = 0.0
        self.success_at = 0.0
        self.error_at = 0.0
        self.error_kind: ErrorClass | None = None
        #: The latest error's message without secrets; it waits in ``_raw_error`` until it is redacted.
        self.error = ""
        self._raw_error: str | None = None
        self.check: Check | None = None

    def failed(self, kind: ErrorClass, message: str, at: float) -> None:
        """Record a failure. ``clean`` redacts its message later: that takes too long for the request path."""
        self.error_at, self.error_kind, self.error, self._raw_error = at, kind, "", message[:MAX_RAW_CHARS]
        if kind not in NOT_ITS_FAULT:
            self.consecutive_errors += 1

    def succeeded(self, at: float) -> None:
        """Record an answer."""
        self.success_at, self.consecutive_errors = at, 0

    def checked(self, check: Check) -> None:
        """Record the outcome of an active check."""
        self.check = check
        if check.ok:
            self.check_success_at = max(self.check_success_at, check.at)

    def reset(self, at: float) -> None:
        """Forget failures: an operator has reset the deployment's window."""
        self.reset_at, self.consecutive_errors = at, 0
        self.error_at, self.error_kind, self.error, self._raw_error = 0.0, None, "", None

    def clean(self) -> None:
        """Redact the latest error's message."""
        if self._raw_error is not None:
            self.error, self._raw_error = scrub(self._raw_error), None

    def merge(self, other: Facts) -> None:
        """Keep the newer of each; what is older than a reset no longer counts."""
        if other.reset_at > self.reset_at:
            success_at = self.success_at
            self.reset(other.reset_at)
            self.success_at = success_at
        if max(other.error_at, other.success_at) > max(self.error_at, self.success_at, self.reset_at):
            self.consecutive_errors = other.consecutive_errors
        self.used_at = max(self.used_at, other.used_at)
        self.success_at = max(self.success_at, other.success_at)
        self.check_success_at = max(self.check_success_at, other.check_success_at)
        if other.error_at > max(self.error_at, self.reset_at):
            self.error_at, self.error_kind = other.error_at, other.error_kind
            self.error, self._raw_error = other.error, other._raw_error
        if other.check is not None and (self.check is None or other.check.at > self.check.at):
            self.check = other.check


class DeploymentState:
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

    def __init__(self, deployment_id: str, slice_s: float, rules: HealthRules) -> None:
        self.id = deployment_id
        self.rules = rules
        self.deployment: Deployment | None = None
        self.active = True
        self.account: str | None = None
        self.capacity: float | None = None
        #: Ids of all deployments that share ``quota``, this one included; None when it is the deployment's own.
        self.siblings: set[str] | None = None
        #: Its quota pool, possibly shared with other deployments.
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
        #: Revision of the store's record that is already in ``base``.
        self.revision = ""
        self.totals: Slice | None = None
        self.totals_at = 0.0

    @property
    def recorded_at(self) -> float:
        """Unix seconds of the latest observation; 0 when there is none."""
        facts = self.facts
        return max(facts.success_at, facts.error_at, facts.check.at if facts.check else 0.0)

    def observe(self, attempt: Attempt, reading: Reading | None, at: float, now: float) -> None:
        """Learn from a finished attempt.

        Args:
            attempt: The closed attempt.
            reading: What its headers contain, or None without headers.
            at: Unix seconds when the headers arrived.
            now: Unix seconds.
        """
        error = attempt.error
        kind = error.kind if error else None
        if kind is _REFUSED or attempt.cached or (error is not None and error.client_caused):
            # Nothing was sent, the gateway's own cache answered, or it is about the client's own key, timeout or headers.
            return
        self.seen_at, self.unsaved = now, True
        facts, quota = self.facts, self.quota
        facts.used_at = now
        if reading is not None:
            quota.observe(reading, at)
        if attempt.outcome is _OK:
            if not attempt.empty:
                facts.succeeded(now)
            quota.succeeded(attempt.started_at)
        elif attempt.outcome is Outcome.ERROR:
            facts.failed(kind or ErrorClass.UNKNOWN, error.message if error else "", now)
            retry_after_s = reading.retry_after_s if reading is not None else None
            if retry_after_s is None and error is not None:
                retry_after_s = error.retry_after_s
            if kind is ErrorClass.RATE_LIMIT:
                quota.refused(retry_after_s, now, "rate limited by the provider")
            elif retry_after_s is not None and kind not in NOT_ITS_FAULT:
                quota.strained(retry_after_s, now, "the provider asks to retry later")
        sample = _sample(attempt, kind)
        self.delta.add(sample, now)
        if sample.latency_ms is not None:
            self.add_recent(sample.latency_ms)

    def read(self, attempt: Attempt, reading: Reading | None, at: float) -> None:
        """Learn from an answer that no model has worked for: it shows quotas, and not that the model answers.

        Args:
            attempt: The closed attempt.
            reading: What its headers contain, or None without headers.
            at: Unix seconds when the headers arrived.
        """
        if reading is not None:
            self.quota.observe(reading, at)
            self.unsaved = True
        self.quota.succeeded(attempt.started_at)

    def reset(self, now: float) -> None:
        """Forget the statistics and failures until ``now``; quotas are the provider's and stay."""
        self.facts.reset(now)
        self._clear()
        self.unsaved = True

    def reset_elsewhere(self, reset_at: float) -> None:
        """Follow a reset by another worker: what this worker has not shared yet is dropped."""
        if reset_at > self.facts.reset_at:
            self._clear()

    def measure(self, slice_s: float) -> None:
        """Use slices of this length, in seconds; statistics of another length are dropped."""
        if self.delta.slice_s != slice_s:
            self.base, self.delta = Window(slice_s), Window(slice_s)
            self._clear()

    def _clear(self) -> None:
        for window in (self.base, self.delta, self.pending):
            if window is not None:
                window.slices.clear()
        del self.recent[:]
        self._next_recent = 0
        self.totals = None

    def add_recent(self, latency_ms: float) -> None:
        """Add a latency to the ring of the latest ones."""
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

    def present_error_ratio(self, now: float) -> float | None:
        """Return the share of attempts in the window that failed by its own fault, the latest one included."""
        counts = Slice()
        for window in (self.base, self.pending, self.delta):
            if window is not None:
                window.count_into(counts, now)
        return error_ratio(counts)[0]

    def judge(self, now: float) -> Verdict:
        """Return the verdict at ``now``."""
        rules, quota = self.rules, self.quota.judge(now)
        if quota.exhausted_until is not None:
            return Verdict(SignalStatus.EXHAUSTED, quota.exhausted_until, quota.reason)
        facts = self.facts
        fresh_from = now - rules.ttl_s
        if facts.error_kind is _AUTH and facts.error_at > max(facts.success_at, fresh_from):
            return Verdict(SignalStatus.DEGRADED, facts.error_at + rules.ttl_s, "the provider rejects the credentials")
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
        if (
            facts.consecutive_errors
            and facts.success_at == 0.0
            and facts.error_at > fresh_from
            # A limit that has ended is no reason.
            and facts.error_kind is not ErrorClass.RATE_LIMIT
        ):
            failed = f"{facts.consecutive_errors} attempt{'s' if facts.consecutive_errors > 1 else ''} failed"
            return Verdict(SignalStatus.DEGRADED, None, f"no attempt has succeeded yet, {failed}")
        known_at = self.recorded_at
        if known_at <= fresh_from:
            reason = "no observation yet" if known_at == 0.0 else f"no observation for {rules.ttl_s:.0f} s"
            return Verdict(SignalStatus.UNKNOWN, None, reason)
        return _AVAILABLE


def error_ratio(totals: Slice) -> tuple[float | None, int]:
    """Return the share of attempts that failed by the deployment's own fault, and the number of attempts it refers to.

    Attempts that were cancelled, that failed by the caller's fault, or that were answered without content are excluded.
    """
    own = callers = 0
    for kind, count in totals.errors.items():
        if kind in NOT_ITS_FAULT:
            callers += count
        else:
            own += count
    attempts = totals.requests - totals.cancelled - callers
    return (own / attempts if attempts > 0 else None), attempts


def answered_at(attempt: Attempt) -> float:
    """Return when the headers arrived: resets are relative to then, not to the end of a long stream."""
    ms = attempt.first_token_ms if attempt.first_token_ms is not None else attempt.duration_ms
    return attempt.started_at + (ms or 0.0) / 1e3


def _sample(attempt: Attempt, kind: ErrorClass | None) -> Sample:
    usage = attempt.usage
    if attempt.outcome is not _OK:
        cancelled = attempt.outcome is not Outcome.ERROR
        failed = None if cancelled else kind or ErrorClass.UNKNOWN
        return Sample(usage=usage, cost_usd_micros=attempt.cost_usd_micros, error=failed, cancelled=cancelled)
    if attempt.empty:
        return Sample(usage=usage, cost_usd_micros=attempt.cost_usd_micros, error=kind)
    if attempt.kind is _PROBE:
        return Sample(usage=usage, cost_usd_micros=attempt.cost_usd_micros)
    duration_ms, first_ms = attempt.duration_ms, attempt.first_token_ms
    speed = None
    if usage is not None and duration_ms is not None and usage.completion_tokens >= MIN_SPEED_TOKENS:
        # The wait for the first token does not count towards the speed of the others.
        tokens, ms = usage.completion_tokens, duration_ms
        if first_ms is not None:
            tokens, ms = tokens - 1, duration_ms - first_ms
        speed = tokens / ms * 1e3 if ms > 0 else None
    return Sample(duration_ms, first_ms, speed, usage, attempt.cost_usd_micros)
