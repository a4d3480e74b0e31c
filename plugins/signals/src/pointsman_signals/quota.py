"""What is left of a deployment's quota, axis by axis, and when it comes back.

Every axis ends at its own time: tokens that come back in ten minutes and requests that come back in six seconds mean ten
minutes of exhaustion, for the tokens. Nothing here outlives its end. Pure: the time is an argument.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from pointsman.types import Limit

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pointsman.store.base import JSON

    from .reading import Reading

MAX_AXES: Final = 24
#: A window longer than this is not waited for blindly: without a reset from the provider it is asked again after it.
MAX_ASSUMED_S: Final = 3_600.0
#: Notes that mean trouble when they are not 0, and how long one is believed, in seconds.
FLAGS: Final = ("over_limit", "abuse_penalty")
NOTED_S: Final = 60.0
_AXIS_FIELDS: Final = 6
_BLOCK_FIELDS: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class QuotaRules:
    """How quotas are judged.

    Attributes:
        reserve_ratio: Less than this part of a limit left counts as nearly exhausted, 0 to 1.
        assumed_reset_s: Length of an exhaustion of which the provider says neither reset nor window.
        refused_s: Length of an exhaustion after a 429 that names no end at all.
    """

    reserve_ratio: float = 0.05
    assumed_reset_s: float = 60.0
    refused_s: float = 30.0


@dataclass(frozen=True, slots=True)
class Known:
    """One axis as last seen.

    Attributes:
        limit: The figures.
        at: Unix seconds when the provider said so.
    """

    limit: Limit
    at: float

    def resets_at(self, rules: QuotaRules) -> float:
        """Return when these figures stop being true: the provider's reset, else the end of the window."""
        resets_at = self.limit.resets_at
        if resets_at is not None and resets_at > self.at:
            return resets_at
        return self.at + min(self.limit.window_s or rules.assumed_reset_s, MAX_ASSUMED_S)

    def left_ratio(self) -> float | None:
        """Return the part that is left, 0 to 1, or None when unknown."""
        limit, remaining = self.limit.limit, self.limit.remaining
        if remaining is None:
            return None
        if remaining <= 0:
            return 0.0
        return min(1.0, remaining / limit) if limit else None


@dataclass(frozen=True, slots=True)
class Block:
    """A time in which the provider does not want requests, whatever the axes say.

    Attributes:
        until: Unix seconds.
        at: Unix seconds when it was said.
        reason: One phrase.
    """

    until: float
    at: float
    reason: str


@dataclass(frozen=True, slots=True)
class QuotaState:
    """A judgement: who is exhausted or nearly so, and until when (Unix seconds)."""

    exhausted_until: float | None = None
    low_until: float | None = None
    reason: str = ""


_FINE: Final = QuotaState()


class Quota:
    """One pool of quota: a deployment's own, or that of all deployments of one account (and model)."""

    __slots__ = ("answered_at", "axes", "block", "noted_at", "notes", "strain")

    def __init__(self) -> None:
        self.axes: dict[tuple[str, float | None], Known] = {}
        self.block: Block | None = None
        self.strain: Block | None = None
        self.notes: Mapping[str, float] = {}
        self.noted_at = 0.0
        #: Start of the latest request that was answered; refusals from before it are over.
        self.answered_at = 0.0

    def observe(self, reading: Reading, at: float) -> None:
        """Take over what an answer said at ``at``; older answers that arrive late do not overwrite newer ones."""
        for limit in reading.limits:
            self._learn(Known(limit, at))
        if reading.notes and at >= self.noted_at:
            self.notes, self.noted_at = reading.notes, at

    def refused(self, retry_after_s: float | None, at: float, rules: QuotaRules, reason: str) -> None:
        """Note a 429: exhausted until the provider's own word, else until its empty axes reset, else for a while."""
        if retry_after_s is None:
            if any(known.left_ratio() == 0.0 and known.resets_at(rules) > at for known in self.axes.values()):
                return
            retry_after_s = rules.refused_s
        self.block = _longer(self.block, Block(at + retry_after_s, at, reason))

    def strained(self, retry_after_s: float, at: float, reason: str) -> None:
        """Note that the provider is overloaded for a while: degraded, not exhausted."""
        self.strain = _longer(self.strain, Block(at + retry_after_s, at, reason))

    def succeeded(self, started_at: float) -> None:
        """Note that a request begun at ``started_at`` was answered: refusals from before it are over."""
        if started_at > self.answered_at:
            self.answered_at = started_at
            self.block, self.strain = self._standing(self.block), self._standing(self.strain)

    def _standing(self, block: Block | None) -> Block | None:
        return block if block is not None and block.at >= self.answered_at else None

    def judge(self, now: float, rules: QuotaRules) -> QuotaState:
        """Say how things stand at ``now``."""
        exhausted_until = low_until = 0.0
        empty = low = ""
        for known in self.axes.values():
            ratio = known.left_ratio()
            if ratio is None or ratio >= rules.reserve_ratio > 0.0:
                continue
            until = known.resets_at(rules)
            if until <= now:
                continue
            if ratio == 0.0 and until > exhausted_until:
                exhausted_until, empty = until, f"no {_words(known.limit.axis)} left"
            elif 0.0 < ratio < rules.reserve_ratio and until > low_until:
                low_until, low = until, f"{ratio:.1%} of {_words(known.limit.axis)} left"
        if self.block is not None and self.block.until > max(now, exhausted_until):
            exhausted_until, empty = self.block.until, self.block.reason
        if self.strain is not None and self.strain.until > max(now, low_until):
            low_until, low = self.strain.until, self.strain.reason
        if low_until <= now < self.noted_at + NOTED_S and (flag := next((f for f in FLAGS if self.notes.get(f)), None)):
            low_until, low = self.noted_at + NOTED_S, f"the provider says {_words(flag)}"
        if exhausted_until:
            return QuotaState(exhausted_until, low_until or None, empty)
        return QuotaState(None, low_until, low) if low_until else _FINE

    def limits(self, now: float, rules: QuotaRules) -> tuple[Limit, ...]:
        """Return the axes as they are at ``now``: one whose window has ended since is full again."""
        return tuple(
            known.limit if known.resets_at(rules) > now else _full(known.limit) for known in self.axes.values()
        )

    def ends_at(self, now: float, rules: QuotaRules) -> float:
        """Return the last time at which an exhaustion that is known now ends, ``now`` when there is none."""
        ends = [known.resets_at(rules) for known in self.axes.values() if known.left_ratio() == 0.0]
        ends.extend(block.until for block in (self.block, self.strain) if block is not None)
        return max((now, *ends))

    def merge(self, other: Quota) -> None:
        """Take over what another view of the same pool knows better. Merging twice changes nothing."""
        for known in other.axes.values():
            self._learn(known)
        self.answered_at = max(self.answered_at, other.answered_at)
        self.block = self._standing(_newer(self.block, other.block))
        self.strain = self._standing(_newer(self.strain, other.strain))
        if other.noted_at > self.noted_at:
            self.notes, self.noted_at = other.notes, other.noted_at

    def _learn(self, known: Known) -> None:
        key = (known.limit.axis, known.limit.window_s)
        before = self.axes.get(key)
        if before is None:
            if len(self.axes) >= MAX_AXES:
                oldest = min(self.axes, key=lambda k: self.axes[k].at)
                del self.axes[oldest]
            self.axes[key] = known
        elif known.at >= before.at:
            limit = known.limit
            if limit.limit is None and before.limit.limit is not None:
                limit = _with_size(limit, before.limit.limit)
                known = Known(limit, known.at)
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
    def from_json(cls, value: Any) -> Quota:
        """Rebuild it.

        Raises:
            ValueError: it has not the form of one of ours.
        """
        quota = cls()
        match value:
            case {
                "axes": list(axes),
                "block": block,
                "strain": strain,
                "notes": dict(notes),
                "noted_at": float() | int() as noted_at,
                "answered_at": float() | int() as answered_at,
            }:
                for axis in axes:
                    if not isinstance(axis, list | tuple) or len(axis) != _AXIS_FIELDS:
                        raise ValueError("not a quota")
                    name, window_s, limit, remaining, resets_at, at = axis
                    quota._learn(
                        Known(
                            Limit(
                                axis=str(name),
                                window_s=_number(window_s),
                                limit=_number(limit),
                                remaining=_number(remaining),
                                resets_at=_number(resets_at),
                            ),
                            float(at),
                        )
                    )
                quota.block, quota.strain = _block(block), _block(strain)
                quota.notes = {str(name): float(number) for name, number in notes.items()}
                quota.noted_at, quota.answered_at = float(noted_at), float(answered_at)
                return quota
        raise ValueError("not a quota")


def _words(axis: str) -> str:
    return axis.replace("_", " ")


def _full(limit: Limit) -> Limit:
    return Limit(axis=limit.axis, window_s=limit.window_s, limit=limit.limit, remaining=limit.limit)


def _with_size(limit: Limit, size: float) -> Limit:
    return Limit(
        axis=limit.axis, window_s=limit.window_s, limit=size, remaining=limit.remaining, resets_at=limit.resets_at
    )


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
    if not isinstance(value, list | tuple) or len(value) != _BLOCK_FIELDS:
        raise ValueError("not a quota")
    return Block(float(value[0]), float(value[1]), str(value[2]))


def _number(value: Any) -> float | None:
    return None if value is None else float(value)
