"""The remaining quota of a deployment by axis, and when it resets.

Every axis ends at its own time: tokens that reset in ten minutes and requests that reset in six seconds mean ten minutes of
exhaustion, for the tokens. Nothing here outlives its end. Pure: the time is an argument.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pointsman.types import Limit

from .parsing import MAX_DURATION_S

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pointsman.store.protocol import JSON

    from .dialects import Reading

MAX_AXES: Final = 24
#: Longest assumed exhaustion in seconds: without a reset from the provider a longer window is tried again after it.
MAX_ASSUMED_S: Final = 3_600.0
#: Notes that mean degraded when they are not 0, and for how many seconds one counts.
#: The reason of a block that a document names by its status: what is left is 0 then, whatever the axes say.
DOCUMENT_EXHAUSTED: Final = "its quota document says exhausted"
FLAGS: Final = ("over_limit", "abuse_penalty")
NOTED_S: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class QuotaRules:
    """How quotas are judged.

    Attributes:
        reserve_ratio: Remaining share of a limit below which it counts as nearly exhausted, 0 to 1.
        assumed_reset_s: Seconds of exhaustion when neither reset nor window is known.
        refused_s: Seconds of exhaustion after a 429 without retry-after or a known reset time.
    """

    reserve_ratio: float = 0.05
    assumed_reset_s: float = 60.0
    refused_s: float = 30.0


class Known(NamedTuple):
    """One axis as last seen.

    Attributes:
        limit: The figures.
        at: Unix seconds when the provider reported it.
        ends_at: Unix seconds until which the figures are valid: the provider's reset, else the end of the window.
        left_ratio: The remaining share, 0 to 1, or None when unknown.
    """

    limit: Limit
    at: float
    ends_at: float
    left_ratio: float | None


def know(limit: Limit, at: float, rules: QuotaRules) -> Known:
    """Return an axis as seen at ``at``."""
    # Once for every axis of every answer: each call of min() would take longer than the rest together.
    ends_at = limit.resets_at
    if ends_at is None or ends_at <= at:
        length_s = limit.window_s or rules.assumed_reset_s
        ends_at = at + (length_s if length_s < MAX_ASSUMED_S else MAX_ASSUMED_S)  # noqa: FURB136
    remaining, ratio = limit.remaining, None
    if remaining is not None:
        if remaining <= 0:
            ratio = 0.0
        elif limit.limit:
            ratio = remaining / limit.limit
            if ratio > 1.0:  # noqa: PLR1730
                ratio = 1.0
    return Known(limit, at, ends_at, ratio)


@dataclass(frozen=True, slots=True)
class Block:
    """A time in which the provider does not accept requests, regardless of the axes.

    Attributes:
        until: Unix seconds.
        at: Unix seconds when the provider reported it.
        reason: One phrase.
    """

    until: float
    at: float
    reason: str


class QuotaState(NamedTuple):
    """Whether the quota is exhausted or nearly so, until when (Unix seconds), and the reason."""

    exhausted_until: float | None = None
    low_until: float | None = None
    reason: str = ""


_FINE: Final = QuotaState()


class Quota:
    """One pool of quota: a deployment's own, or that of all deployments of one account (and model).

    Args:
        rules: How it is judged.
    """

    __slots__ = ("answered_at", "axes", "block", "noted_at", "notes", "rules", "strain")

    def __init__(self, rules: QuotaRules) -> None:
        self.rules = rules
        self.axes: dict[tuple[str, float | None], Known] = {}
        self.block: Block | None = None
        self.strain: Block | None = None
        self.notes: Mapping[str, float] = {}
        self.noted_at = 0.0
        #: Start of the latest answered request; earlier 429s no longer count.
        self.answered_at = 0.0

    def observe(self, reading: Reading, at: float) -> None:
        """Apply what an answer reported at ``at``; older answers that arrive late do not overwrite newer ones."""
        rules, axes = self.rules, self.axes
        for limit in reading.limits:
            known, key = know(limit, at, rules), (limit.axis, limit.window_s)
            before = axes.get(key)
            if before is not None and before.at <= at and limit.limit is not None:
                axes[key] = known
            else:
                self._learn(known)
        if reading.notes and at >= self.noted_at:
            self.notes, self.noted_at = reading.notes, at

    def refused(self, retry_after_s: float | None, at: float, reason: str) -> None:
        """Record a 429: exhausted until its retry-after, else until the empty axes reset, else for ``refused_s``."""
        if retry_after_s is None:
            if any(known.left_ratio == 0.0 and known.ends_at > at for known in self.axes.values()):
                return
            retry_after_s = self.rules.refused_s
        self.block = _longer(self.block, Block(at + min(retry_after_s, MAX_DURATION_S), at, reason))

    def strained(self, retry_after_s: float, at: float, reason: str) -> None:
        """Record that the provider is overloaded for a while: degraded, not exhausted."""
        self.strain = _longer(self.strain, Block(at + min(retry_after_s, MAX_DURATION_S), at, reason))

    def succeeded(self, started_at: float) -> None:
        """Record that a request started at ``started_at`` was answered: earlier 429s no longer count."""
        if started_at > self.answered_at:
            self.answered_at = started_at
            self.block, self.strain = self._standing(self.block), self._standing(self.strain)

    def _standing(self, block: Block | None) -> Block | None:
        return block if block is not None and block.at >= self.answered_at else None

    def judge(self, now: float) -> QuotaState:
        """Return the state at ``now``."""
        reserve = self.rules.reserve_ratio
        exhausted_until = low_until = 0.0
        empty = low = ""
        for limit, _, until, ratio in self.axes.values():
            if ratio is None or until <= now:
                continue
            if ratio == 0.0:
                if until > exhausted_until:
                    exhausted_until, empty = until, f"no {_words(limit.axis)} left"
            elif ratio < reserve and until > low_until:
                low_until, low = until, f"{ratio:.1%} of {_words(limit.axis)} left"
        if self.block is not None and self.block.until > max(now, exhausted_until):
            exhausted_until, empty = self.block.until, self.block.reason
        if self.strain is not None and self.strain.until > max(now, low_until):
            low_until, low = self.strain.until, self.strain.reason
        if self.notes and low_until <= now < self.noted_at + NOTED_S and (flag := _flag(self.notes)):
            low_until, low = self.noted_at + NOTED_S, f"the provider reports {_words(flag)}"
        if exhausted_until:
            return QuotaState(exhausted_until, low_until or None, empty)
        return QuotaState(None, low_until, low) if low_until else _FINE

    def seen(self, now: float = 0.0) -> tuple[Limit, ...]:
        """Return the axes as the provider last reported them, and with nothing left while blocked at ``now``."""
        limits = tuple([known.limit for known in self.axes.values()])
        return limits if self.block is None else self._blocked(limits, now)

    def limits(self, now: float) -> tuple[Limit, ...]:
        """Return the axes as they are at ``now``: one whose window ended is full again."""
        limits = tuple(k.limit if k.ends_at > now else _full(k.limit) for k in self.axes.values())
        return limits if self.block is None else self._blocked(limits, now)

    def _blocked(self, limits: tuple[Limit, ...], now: float) -> tuple[Limit, ...]:
        """Return the axes with nothing left on the scarcest, while a document says that the quota is exhausted."""
        block = self.block
        if block is None or not block.at <= now < block.until or block.reason != DOCUMENT_EXHAUSTED:
            return limits
        if any(limit.remaining is not None and limit.remaining <= 0 for limit in limits):
            return limits
        scarcest = min(limits, key=_left, default=Limit(axis="requests"))
        empty = replace(scarcest, remaining=0.0, resets_at=block.until)
        return tuple(empty if limit is scarcest else limit for limit in limits) or (empty,)

    def ends_at(self, now: float) -> float:
        """Return when the last known exhaustion ends, ``now`` when there is none."""
        ends = [known.ends_at for known in self.axes.values() if known.left_ratio == 0.0]
        ends.extend(block.until for block in (self.block, self.strain) if block is not None)
        return max((now, *ends))

    def merge(self, other: Quota) -> None:
        """Apply what another view of the same pool knows better; idempotent."""
        for known in other.axes.values():
            self._learn(known)
        self.answered_at = max(self.answered_at, other.answered_at)
        self.block = self._standing(_newer(self.block, other.block))
        self.strain = self._standing(_newer(self.strain, other.strain))
        if other.noted_at > self.noted_at:
            self.notes, self.noted_at = other.notes, other.noted_at

    def _learn(self, known: Known) -> None:
        limit = known.limit
        key = (limit.axis, limit.window_s)
        before = self.axes.get(key)
        if before is None:
            if len(self.axes) >= MAX_AXES:
                del self.axes[min(self.axes, key=lambda k: self.axes[k].at)]
        elif known.at < before.at:
            return
        elif limit.limit is None and before.limit.limit is not None:
            known = know(replace(limit, limit=before.limit.limit), known.at, self.rules)
        self.axes[key] = known

    def to_json(self) -> JSON:
        """Return it as JSON."""
        return {
            "axes": [
                [k.limit.axis, k.limit.window_s, k.limit.limit, k.limit.remaining, k.limit.resets_at, k.at]
                for k in self.axes.values()
            ],
            "block": _block_json(self.block),
            "strain": _block_json(self.strain),
            "notes": dict(self.notes),
            "noted_at": self.noted_at,
            "answered_at": self.answered_at,
        }

    @classmethod
    def from_json(cls, value: Any, rules: QuotaRules) -> Quota:
        """Rebuild it.

        Raises:
            ValueError, TypeError, KeyError: the document does not have the form of a quota.
        """
        quota = cls(rules)
        for name, window_s, size, remaining, resets_at, at in value["axes"]:
            limit = Limit(
                axis=str(name),
                window_s=_number(window_s),
                limit=_number(size),
                remaining=_number(remaining),
                resets_at=_number(resets_at),
            )
            quota._learn(know(limit, float(at), rules))
        quota.block, quota.strain = _block(value["block"]), _block(value["strain"])
        quota.notes = {str(name): float(number) for name, number in value["notes"].items()}
        quota.noted_at, quota.answered_at = float(value["noted_at"]), float(value["answered_at"])
        return quota


def _flag(notes: Mapping[str, float]) -> str | None:
    for flag in FLAGS:
        if notes.get(flag):
            return flag
    return None


def _words(axis: str) -> str:
    return axis.replace("_", " ")


def _left(limit: Limit) -> float:
    return limit.remaining / limit.limit if limit.limit and limit.remaining is not None else 1.0


def _full(limit: Limit) -> Limit:
    return Limit(axis=limit.axis, window_s=limit.window_s, limit=limit.limit, remaining=limit.limit)


def _longer(one: Block | None, other: Block) -> Block:
    return one if one is not None and one.until > other.until and one.at <= other.at < one.until else other


def _newer(one: Block | None, other: Block | None) -> Block | None:
    if one is None or other is None:
        return one or other
    return other if other.at > one.at else one


def _block_json(block: Block | None) -> JSON:
    return None if block is None else [block.until, block.at, block.reason]


def _block(value: Any) -> Block | None:
    if value is None:
        return None
    until, at, reason = value
    return Block(float(until), float(at), str(reason))


def _number(value: Any) -> float | None:
    return None if value is None else float(value)
