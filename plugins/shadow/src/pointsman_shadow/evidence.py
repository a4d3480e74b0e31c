"""The state of a mirror: its phase and its figures across all workers, and how a worker's batch is added. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from pointsman.stats import merged

from .comparison import Metric, Scale, scale
from .statistics import BUCKETS, ConfidenceSequence

if TYPE_CHECKING:
    from .config import MirrorConfig

JsonObject: TypeAlias = dict[str, Any]


class Phase(StrEnum):
    """The phase of a mirror."""

    RUNNING = "running"
    PAUSED = "paused"
    FINISHED = "finished"
    GRADUATED = "graduated"


class Count(StrEnum):
    """The counters. Classes of errors and reasons follow a colon, as in ``dropped:queue_full``."""

    TOTAL = "total"
    SAMPLED = "sampled"
    MIRRORED = "mirrored"
    PAIRS = "pairs"
    CHALLENGER_ERRORS = "challenger_errors"
    CHAMPION_ERRORS = "champion_errors"
    DROPPED = "dropped"
    SKIPPED = "skipped"
    UNPAIRED = "unpaired"
    JUDGE_UNREAD = "judge_unread"
    JUDGE_CONTRADICTED = "judge_contradicted"
    JUDGE_FAILED = "judge_failed"
    EMBEDDING_FAILED = "embedding_failed"
    REDACTION_FAILED = "redaction_failed"
    TOKENS = "tokens"
    COST_USD_MICROS = "cost_usd_micros"


#: Times whose quantiles are kept, for each side.
TIMES: Final = ("latency_ms", "first_token_ms")
SIDES: Final = ("champion", "challenger")


@dataclass(slots=True)
class Batch:
    """The figures of one worker since its last flush.

    Attributes:
        counts: Names to amounts.
        values: Metric values of pairs, in the order in which the pairs were completed.
        times: Histograms by ``side.time``.
        results: The pairs' results as JSON, the newest last.
    """

    counts: Counter[str] = field(default_factory=Counter)
    values: list[Mapping[Metric, float]] = field(default_factory=list)
    times: dict[str, dict[int, int]] = field(default_factory=dict)
    results: list[JsonObject] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.counts or self.values)

    def count(self, name: Count, amount: int = 1, *, of: str | None = None) -> None:
        """Count; ``of`` is the class or reason, counted in addition to the total."""
        self.counts[name] += amount
        if of is not None:
            self.counts[f"{name}:{of}"] += amount

    def time(self, side: str, name: str, value_ms: float | None) -> None:
        """Note a time of a side."""
        if value_ms is not None:
            counts = self.times.setdefault(f"{side}.{name}", {})
            number = BUCKETS.index(value_ms)
            counts[number] = counts.get(number, 0) + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """A mirror's state.

    Attributes:
        definition: The settings that the figures depend on.
        run: 1 for the first; a new one begins with a new definition or a reset.
        phase: Its phase.
        started_at: Unix seconds when the run began.
        changed_at: Unix seconds of the last change of the phase.
        who: The author of that change.
        reason: Why.
        counts: Names to amounts.
        running: Metric to the confidence sequence of its values.
        clipped: Metric to how many values were beyond the bounds.
        times: Histograms by ``side.time``.
        results: How many results have been written since the run began: the next one has this number.
        pairs_before: How many pairs there were when a mirror that had the pairs it wanted was resumed.
    """

    definition: Mapping[str, Any]
    run: int = 1
    phase: Phase = Phase.RUNNING
    started_at: float = 0.0
    changed_at: float = 0.0
    who: str = "config"
    reason: str = ""
    counts: Mapping[str, int] = field(default_factory=dict)
    running: Mapping[Metric, ConfidenceSequence] = field(default_factory=dict)
    clipped: Mapping[Metric, int] = field(default_factory=dict)
    times: Mapping[str, Mapping[int, int]] = field(default_factory=dict)
    results: int = 0
    pairs_before: int = 0

    def count(self, name: Count, of: str | None = None) -> int:
        """Return an amount."""
        return self.counts.get(name if of is None else f"{name}:{of}", 0)

    def parts(self, name: Count) -> dict[str, int]:
        """Return the classes or reasons counted under a name."""
        prefix = f"{name}:"
        return {key.removeprefix(prefix): n for key, n in sorted(self.counts.items()) if key.startswith(prefix)}


def begun(definition: Mapping[str, Any], now: float, who: str, reason: str, *, run: int = 1) -> Evidence:
    """Return the state of a run that begins now."""
    return Evidence(
        definition=definition,
        run=run,
        started_at=now,
        changed_at=now,
        who=who,
        reason=reason,
    )


def changed(evidence: Evidence, phase: Phase, now: float, who: str, reason: str) -> Evidence:
    """Return the state in another phase."""
    return replace(evidence, phase=phase, changed_at=now, who=who, reason=reason)


def grown(evidence: Evidence, batch: Batch, config: MirrorConfig, now: float) -> Evidence:
    """Return the state with a batch; it is finished when it has ``pairs_wanted`` pairs."""
    alpha = 1 - config.confidence
    scales = {metric: scale(metric, config.bounds) for metric in Metric}
    running, clipped = dict(evidence.running), dict(evidence.clipped)
    for values in batch.values:
        for metric, value in values.items():
            running[metric] = running.get(metric, ConfidenceSequence()).add(scales[metric].normalized(value), alpha)
            if not scales[metric].low <= value <= scales[metric].high:
                clipped[metric] = clipped.get(metric, 0) + 1
    after = replace(
        evidence,
        counts=dict(Counter(evidence.counts) + batch.counts),
        running=running,
        clipped=clipped,
        times={
            name: merged(evidence.times.get(name, {}), batch.times.get(name, {}))
            for name in {*evidence.times, *batch.times}
        },
        results=evidence.results + len(batch.results),
    )
    if after.phase is Phase.RUNNING and complete(after, config):
        return changed(
            after,
            Phase.FINISHED,
            now,
            "shadow",
            f"{pairs_wanted(after, config)} pairs were compared, as configured by pairs_wanted",
        )
    return after


def pairs_wanted(evidence: Evidence, config: MirrorConfig) -> int | None:
    """Return how many pairs finish the run; None: it does not end."""
    return None if config.pairs_wanted is None else evidence.pairs_before + config.pairs_wanted


def complete(evidence: Evidence, config: MirrorConfig) -> bool:
    """Say whether the run has its ``pairs_wanted``."""
    wanted = pairs_wanted(evidence, config)
    return wanted is not None and evidence.count(Count.PAIRS) >= wanted


def resumed(evidence: Evidence, config: MirrorConfig, now: float, who: str, reason: str) -> Evidence:
    """Return the state of a run that continues; one that was complete runs for ``pairs_wanted`` more pairs."""
    if complete(evidence, config):
        evidence = replace(evidence, pairs_before=evidence.count(Count.PAIRS))
    return changed(evidence, Phase.RUNNING, now, who, reason)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One metric in its own unit.

    Attributes:
        metric: Which.
        count: How many pairs.
        mean: Their mean; of ratios the geometric one.
        low: The mean is above this, with the mirror's confidence at all times together.
        high: And below this.
        clipped: How many pairs were beyond the bounds and count as the bound.
    """

    metric: Metric
    count: int
    mean: float
    low: float
    high: float
    clipped: int = 0


def figures(evidence: Evidence, config: MirrorConfig) -> list[Figure]:
    """Return the figures of the metrics that have values, in the order of ``Metric``."""
    known = []
    for metric in Metric:
        running = evidence.running.get(metric)
        interval = None if running is None else running.interval(1 - config.confidence)
        if running is None or interval is None:
            continue
        unit: Scale = scale(metric, config.bounds)
        known.append(
            Figure(
                metric=metric,
                count=running.count,
                mean=unit.denormalized(interval.mean),
                low=unit.denormalized(interval.low),
                high=unit.denormalized(interval.high),
                clipped=evidence.clipped.get(metric, 0),
            )
        )
    return known


def quantiles(
    evidence: Evidence, ratios: Sequence[float] = (0.5, 0.95, 0.99)
) -> dict[str, dict[str, dict[str, float]]]:
    """Return side to time to quantile name (p50, p95, p99) to milliseconds, of successful attempts."""
    by_side: dict[str, dict[str, dict[str, float]]] = {}
    for side in SIDES:
        for name in TIMES:
            values = BUCKETS.quantiles(evidence.times.get(f"{side}.{name}", {}), ratios)
            if values is not None:
                by_side.setdefault(side, {})[name] = {
                    f"p{ratio * 100:g}": round(value, 3) for ratio, value in zip(ratios, values, strict=True)
                }
    return by_side
