"""Counters and histograms of one worker: what is counted on the request path, in about a microsecond each.

An OpenTelemetry instrument of the Python SDK takes 5 to 15 microseconds a record; a request makes a dozen records. These
are read out as the same families that the SDK's instruments are read as, so exporters see no difference.

The sets of labels are bounded: beyond ``MOST_SERIES`` of one instrument, every new one counts as ``_other``.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

#: Series of one instrument; more count as one whose labels are all ``_other``.
MOST_SERIES: Final = 1_000
OTHER: Final = "_other"

Kind = Literal["counter", "updown", "gauge", "histogram"]


@dataclass(frozen=True, slots=True)
class Exemplar:
    """One measured value with the span that it was measured in.

    Attributes:
        value: The value.
        at: Unix seconds.
        trace_id: 32 hexadecimal digits.
        span_id: 16 hexadecimal digits.
    """

    value: float
    at: float
    trace_id: str
    span_id: str


@dataclass(frozen=True, slots=True)
class Point:
    """The present value of one series.

    Attributes:
        labels: Attribute names and values, sorted.
        value: The value; of a histogram the sum.
        counts: Of a histogram: observations by bucket, one more than there are bounds.
        exemplars: At most one a bucket.
    """

    labels: tuple[tuple[str, str], ...]
    value: float
    counts: tuple[int, ...] = ()
    exemplars: tuple[Exemplar, ...] = ()


@dataclass(frozen=True, slots=True)
class Family:
    """One metric with all its series.

    Attributes:
        name: The name in OpenTelemetry's form, for example ``gen_ai.client.token.usage``.
        kind: How it adds up: over workers, gauges show the highest value, everything else the sum.
        unit: In UCUM's form, as OpenTelemetry writes it: ``s``, ``1``, ``{token}``.
        description: One sentence.
        bounds: Of a histogram: inclusive upper bounds of all buckets but the last.
        points: The series.
    """

    name: str
    kind: Kind
    unit: str
    description: str
    bounds: tuple[float, ...] = ()
    points: tuple[Point, ...] = field(default=(), repr=False)


class Counter:
    """A sum that only grows, by labels.

    Args:
        name: See ``Family``.
        description: One sentence.
        unit: See ``Family``.
        labels: Names of the labels, in the order in which ``add`` gets their values.
    """

    __slots__ = ("_values", "description", "labels", "name", "unit")

    def __init__(self, name: str, description: str, unit: str, labels: Sequence[str]) -> None:
        self.name = name
        self.description = description
        self.unit = unit
        self.labels = tuple(labels)
        self._values: dict[tuple[str, ...], float] = {}

    def add(self, values: tuple[str, ...], amount: float = 1) -> None:
        """Add to the series with these values of the labels; an empty value leaves a label out."""
        sums = self._values
        if values not in sums and len(sums) >= MOST_SERIES:
            values = (OTHER,) * len(self.labels)
        sums[values] = sums.get(values, 0) + amount

    def read(self) -> Family:
        """Return the present values."""
        points = tuple(Point(_labels(self.labels, values), value) for values, value in self._values.items())
        return Family(self.name, "counter", self.unit, self.description, points=points)


class _Cell:
    __slots__ = ("counts", "exemplars", "total")

    def __init__(self, buckets: int) -> None:
        self.counts = [0] * buckets
        self.total = 0.0
        self.exemplars: dict[int, Exemplar] = {}


class Histogram:
    """A distribution, by labels.

    Args:
        name: See ``Family``.
        description: One sentence.
        unit: See ``Family``.
        labels: Names of the labels, in the order in which ``record`` gets their values.
        bounds: Inclusive upper bounds of all buckets but the last.
    """

    __slots__ = ("_cells", "bounds", "description", "labels", "name", "unit")

    def __init__(self, name: str, description: str, unit: str, labels: Sequence[str], bounds: Sequence[float]) -> None:
        self.name = name
        self.description = description
        self.unit = unit
        self.labels = tuple(labels)
        self.bounds = tuple(bounds)
        self._cells: dict[tuple[str, ...], _Cell] = {}

    def record(self, values: tuple[str, ...], value: float, seen: tuple[str, str, float] | None = None) -> None:
        """Count one value.

        Args:
            values: Values of the labels; an empty one leaves its label out.
            value: What was measured.
            seen: Trace id, span id and Unix seconds of a sampled span, for the exemplar.
        """
        cell = self._cells.get(values)
        if cell is None:
            if len(self._cells) >= MOST_SERIES:
                values = (OTHER,) * len(self.labels)
            cell = self._cells.setdefault(values, _Cell(len(self.bounds) + 1))
        bucket = bisect_left(self.bounds, value)
        cell.counts[bucket] += 1
        cell.total += value
        if seen is not None:
            cell.exemplars[bucket] = Exemplar(value, seen[2], seen[0], seen[1])

    def read(self) -> Family:
        """Return the present values."""
        points = tuple(
            Point(_labels(self.labels, values), cell.total, tuple(cell.counts), tuple(cell.exemplars.values()))
            for values, cell in self._cells.items()
        )
        return Family(self.name, "histogram", self.unit, self.description, self.bounds, points)


def _labels(names: Sequence[str], values: Sequence[str]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((name, value) for name, value in zip(names, values, strict=True) if value))


def simple(
    name: str, kind: Kind, unit: str, description: str, points: Iterable[tuple[Mapping[str, str], float]]
) -> Family:
    """Return a family without buckets."""
    return Family(
        name,
        kind,
        unit,
        description,
        points=tuple(Point(tuple(sorted(labels.items())), value) for labels, value in points),
    )


def merged(workers: Iterable[Iterable[Family]]) -> list[Family]:
    """Return the families of several workers as those of one, by name.

    Families that do not fit together, as those of two releases may not, are left as the first worker has them.
    """
    found: dict[str, Family] = {}
    for families in workers:
        for family in families:
            known = found.get(family.name)
            if known is None:
                found[family.name] = family
            elif (known.kind, known.bounds) == (family.kind, family.bounds):
                found[family.name] = _added(known, family)
    return [found[name] for name in sorted(found)]


def bounded(families: Iterable[Family]) -> list[Family]:
    """Return families of at most ``MOST_SERIES`` series each, the first ones; the others count as one, as in an instrument."""
    return [_bounded(family) for family in families]


def _bounded(family: Family) -> Family:
    if len(family.points) <= MOST_SERIES:
        return family
    first, more = family.points[:MOST_SERIES], family.points[MOST_SERIES:]
    others = tuple(replace(point, labels=tuple((name, OTHER) for name, _ in point.labels)) for point in more)
    return _added(replace(family, points=first), replace(family, points=others))


def _added(one: Family, other: Family) -> Family:
    points = {point.labels: point for point in one.points}
    for point in other.points:
        known = points.get(point.labels)
        if known is None:
            points[point.labels] = point
            continue
        value = max(known.value, point.value) if one.kind == "gauge" else known.value + point.value
        counts = tuple(a + b for a, b in zip(known.counts, point.counts, strict=False))
        points[point.labels] = Point(point.labels, value, counts, _newest(known.exemplars, point.exemplars, one.bounds))
    return Family(one.name, one.kind, one.unit, one.description, one.bounds, tuple(points.values()))


def _newest(some: Iterable[Exemplar], others: Iterable[Exemplar], bounds: Sequence[float]) -> tuple[Exemplar, ...]:
    by_bucket: dict[int, Exemplar] = {}
    for exemplar in sorted((*some, *others), key=lambda each: each.at):
        by_bucket[bisect_left(bounds, exemplar.value)] = exemplar
    return tuple(by_bucket.values())


def lasting(families: Iterable[Family]) -> list[Family]:
    """Return what has to outlive its worker: sums that only grow. A gauge of a worker that has ended means nothing."""
    return [family for family in families if family.kind in {"counter", "histogram"}]


def dump(families: Iterable[Family]) -> list[Any]:
    """Return families as JSON, for other workers. Exemplars stay: they are few."""
    return [
        [
            family.name,
            family.kind,
            family.unit,
            family.description,
            list(family.bounds),
            [
                [
                    dict(point.labels),
                    point.value,
                    list(point.counts),
                    [[e.value, e.at, e.trace_id, e.span_id] for e in point.exemplars],
                ]
                for point in family.points
            ],
        ]
        for family in families
    ]


def load(value: Any) -> list[Family]:
    """Read what ``dump`` has written.

    Raises:
        ValueError: it was not written by ``dump``.
    """
    try:
        return [
            Family(
                name,
                kind,
                unit,
                description,
                tuple(bounds),
                tuple(
                    Point(
                        tuple(sorted(labels.items())),
                        point_value,
                        tuple(counts),
                        tuple(Exemplar(*each) for each in exemplars),
                    )
                    for labels, point_value, counts, exemplars in points
                ),
            )
            for name, kind, unit, description, bounds, points in value
        ]
    except (TypeError, ValueError, AttributeError) as err:
        raise ValueError(f"not metrics of a worker: {err}") from err


def as_json(families: Iterable[Family]) -> list[dict[str, Any]]:
    """Return families for programs that read JSON rather than Prometheus's text."""
    return [
        {
            "name": family.name,
            "kind": family.kind,
            "unit": family.unit,
            "description": family.description,
            "bounds": list(family.bounds),
            "points": [
                {"labels": dict(point.labels), "value": point.value, "counts": list(point.counts)}
                for point in family.points
            ],
        }
        for family in families
    ]


def value_of(families: Iterable[Family], name: str, labels: Mapping[str, str] | None = None) -> float:
    """Return the sum over the series of a metric that have these labels; of a histogram, the number of observations."""
    wanted = set((labels or {}).items())
    return sum(
        sum(point.counts) if family.kind == "histogram" else point.value
        for family in families
        if family.name == name
        for point in family.points
        if wanted <= set(point.labels)
    )
