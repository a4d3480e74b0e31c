"""Statistics of the latest minutes: counts and distributions in slices of time that can be merged. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pointsman.stats import Buckets, Sketch
from pointsman.types import Quantiles

if TYPE_CHECKING:
    from pointsman.store.protocol import JSON
    from pointsman.types import ErrorClass, Usage

SLICES: Final = 6
RELATIVE_ERROR: Final = 0.02
#: Milliseconds, and tokens a second. What is in a store was counted in these buckets, so they never change.
BUCKETS: Final = Buckets.accurate_to(RELATIVE_ERROR, least=1e-2, most=1e7)
_COUNTS: Final = (
    "requests",
    "cancelled",
    "input_tokens",
    "output_tokens",
    "cost_tokens",
    "cached_tokens",
    "cache_hits",
    "cache_misses",
    "cost_usd_micros",
)
_SKETCHES: Final = ("latency_ms", "first_token_ms", "tokens_per_s")


class Sample(NamedTuple):
    """The figures of one finished attempt; a tuple because one is created for every attempt.

    Attributes:
        latency_ms: Duration of the whole call; None for an error, a cancelled call or a probe.
        first_token_ms: To the first piece of content, or None.
        tokens_per_s: Speed of the answer, or None.
        usage: Tokens, or None.
        cost_usd_micros: Price, or None.
        error: Class of the error, or None.
        cancelled: Whether it was cancelled or its client disconnected.
    """

    latency_ms: float | None = None
    first_token_ms: float | None = None
    tokens_per_s: float | None = None
    usage: Usage | None = None
    cost_usd_micros: int | None = None
    error: ErrorClass | None = None
    cancelled: bool = False


class Slice:
    """Counts and distributions of one slice of time, or of several merged.

    Attributes:
        requests: Attempts.
        cancelled: Attempts that were cancelled or whose client disconnected.
        errors: Attempts that failed, by class.
        input_tokens: Prompt tokens, cached ones included.
        output_tokens: Completion tokens.
        cost_tokens: Tokens paid in full: prompt tokens that were not cached, and completion tokens.
        cached_tokens: Prompt tokens read from the provider's prompt cache.
        cache_hits: Answers with cached prompt tokens.
        cache_misses: Answers without.
        cost_usd_micros: Price.
        latency_ms: Whole calls.
        first_token_ms: First piece of content.
        tokens_per_s: Speed.
    """

    __slots__ = (*_COUNTS, *_SKETCHES, "errors")

    def __init__(self) -> None:
        self.requests = 0
        self.cancelled = 0
        self.input_tokens = 0
        self.output_tokens = 0
        self.cost_tokens = 0
        self.cached_tokens = 0
        self.cache_hits = 0
        self.cache_misses = 0
        self.cost_usd_micros = 0
        self.errors: dict[str, int] = {}
        self.latency_ms = Sketch(BUCKETS)
        self.first_token_ms = Sketch(BUCKETS)
        self.tokens_per_s = Sketch(BUCKETS)

    def add(self, sample: Sample) -> None:
        """Count an attempt."""
        self.requests += 1
        if sample.error is not None:
            self.errors[sample.error] = self.errors.get(sample.error, 0) + 1
        elif sample.cancelled:
            self.cancelled += 1
        if sample.latency_ms is not None:
            self.latency_ms.add(sample.latency_ms)
        if sample.first_token_ms is not None:
            self.first_token_ms.add(sample.first_token_ms)
        if sample.tokens_per_s is not None:
            self.tokens_per_s.add(sample.tokens_per_s)
        if sample.cost_usd_micros is not None:
            self.cost_usd_micros += sample.cost_usd_micros
        usage = sample.usage
        if usage is not None:
            cached = usage.cached_tokens
            self.input_tokens += usage.prompt_tokens
            self.output_tokens += usage.completion_tokens
            self.cost_tokens += usage.completion_tokens
            if cached < usage.prompt_tokens:
                self.cost_tokens += usage.prompt_tokens - cached
            self.cached_tokens += cached
            if cached > 0:
                self.cache_hits += 1
            else:
                self.cache_misses += 1

    def merge(self, other: Slice) -> None:
        """Add all attempts of another slice."""
        for name in _COUNTS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for kind, count in other.errors.items():
            self.errors[kind] = self.errors.get(kind, 0) + count
        for name in _SKETCHES:
            mine: Sketch = getattr(self, name)
            mine.merge(getattr(other, name))

    def to_json(self) -> JSON:
        """Return it as JSON: ``[counts, errors, sketches]``."""
        return [
            [getattr(self, name) for name in _COUNTS],
            dict(self.errors),
            [getattr(self, name).to_json() for name in _SKETCHES],
        ]

    @classmethod
    def from_json(cls, value: Any) -> Slice:
        """Rebuild it.

        Raises:
            ValueError: the document does not have the form of one.
        """
        slice_ = cls()
        match value:
            case [list(counts), dict(errors), list(sketches)] if (
                len(counts) == len(_COUNTS)
                and len(sketches) == len(_SKETCHES)
                and all(isinstance(count, int) and count >= 0 for count in (*counts, *errors.values()))
                and all(isinstance(sketch, Mapping) for sketch in sketches)
            ):
                for name, count in zip(_COUNTS, counts, strict=True):
                    setattr(slice_, name, count)
                slice_.errors = {str(kind): count for kind, count in errors.items()}
                for name, sketch in zip(_SKETCHES, sketches, strict=True):
                    setattr(slice_, name, Sketch.from_json(sketch, BUCKETS))
                return slice_
        raise ValueError("not a slice of statistics")


class Window:
    """The last ``SLICES`` slices, each of the same length, aligned to the wall clock so that those of two workers match.

    Args:
        slice_s: Length of one slice in seconds.
    """

    __slots__ = ("slice_s", "slices")

    def __init__(self, slice_s: float) -> None:
        self.slice_s = slice_s
        self.slices: dict[int, Slice] = {}

    def add(self, sample: Sample, now: float) -> None:
        """Count an attempt that ended at ``now``."""
        index = int(now // self.slice_s)
        current = self.slices.get(index)
        if current is None:
            self.prune(now)
            current = self.slices[index] = Slice()
        current.add(sample)

    def merge(self, other: Window) -> None:
        """Add the slices of another window of the same slice length."""
        for index, theirs in other.slices.items():
            mine = self.slices.get(index)
            if mine is None:
                mine = self.slices[index] = Slice()
            mine.merge(theirs)

    def prune(self, now: float) -> None:
        """Drop slices that left the window, and those of a clock that was ahead."""
        newest = int(now // self.slice_s)
        for index in [i for i in self.slices if not newest - SLICES < i <= newest + 1]:
            del self.slices[index]

    def total(self, now: float) -> Slice:
        """Return the sum of all slices that are still in the window."""
        self.prune(now)
        total = Slice()
        for part in self.slices.values():
            total.merge(part)
        return total

    def count_into(self, counts: Slice, now: float) -> None:
        """Add attempts and errors of the slices that are still in the window, without distributions: that is quick."""
        self.prune(now)
        for part in self.slices.values():
            counts.requests += part.requests
            counts.cancelled += part.cancelled
            for kind, count in part.errors.items():
                counts.errors[kind] = counts.errors.get(kind, 0) + count

    def to_json(self) -> JSON:
        """Return it as JSON."""
        return {str(index): part.to_json() for index, part in self.slices.items()}

    @classmethod
    def from_json(cls, value: Any, slice_s: float) -> Window:
        """Rebuild it.

        Raises:
            ValueError: the document does not have the form of one.
        """
        window = cls(slice_s)
        if not isinstance(value, Mapping):
            raise ValueError("not a window of statistics")  # noqa: TRY004  # the stored value is wrong, not an argument's type
        for index, part in value.items():
            window.slices[int(index)] = Slice.from_json(part)
        return window


def quantiles(sketch: Sketch) -> Quantiles | None:
    """Return p50, p95, p99 (nearest rank) and the mean, or None when the sketch is empty."""
    values = sketch.quantiles((0.5, 0.95, 0.99))
    if values is None:
        return None
    p50, p95, p99 = values
    # From the buckets, like the quantiles: sums are not in the store, and all workers must report the same.
    count = int(sketch.weight())
    mean = sum([weight * BUCKETS.middle(index) for index, weight in sorted(sketch.weights().items())]) / count
    return Quantiles(p50=p50, p95=p95, p99=p99, count=count, mean=mean)


def recent_p50(samples: Sequence[float]) -> float:
    """Return the upper median of the samples, ``sorted[count // 2]``; 0 when there are none."""
    return sorted(samples)[len(samples) // 2] if samples else 0.0
