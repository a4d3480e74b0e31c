"""What racing adds to the metrics: hedges, their losers and the budget."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pointsman.plugin import observe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from opentelemetry.metrics import Meter

    from .statistics import Counts

#: What is counted, its unit and what it means.
_COUNTED: Final[Mapping[str, tuple[str, str]]] = {
    "requests": ("{request}", "Requests raced."),
    "extra": ("{attempt}", "Attempts paid from the budget: hedges, and all but the first where all start at once."),
    "overtaken": ("{request}", "Requests that an attempt other than the first one answered."),
    "denied": ("{attempt}", "Hedges that the budget did not allow."),
    "losers": ("{attempt}", "Attempts given up for a winner."),
}


def instrument(meter: Meter, counts: Mapping[str, Counts], running: Callable[[], int]) -> None:
    """Let the meter read the counts of the races.

    Args:
        meter: The meter.
        counts: By the name of the race.
        running: Returns the number of races that run.
    """

    def of(field: str) -> Callable[[], Iterator[tuple[Mapping[str, str], float]]]:
        def rows() -> Iterator[tuple[Mapping[str, str], float]]:
            for name, count in counts.items():
                yield {"pointsman.race": name}, getattr(count, field)

        return rows

    def cost() -> Iterator[tuple[Mapping[str, str], float]]:
        for name, count in counts.items():
            yield {"pointsman.race": name}, count.losers_usd_micros / 1_000_000

    for field, (unit, description) in _COUNTED.items():
        observe(meter, f"pointsman.racing.{field}", of(field), description, unit=unit, kind="counter")
    observe(
        meter,
        "pointsman.racing.losers.cost",
        cost,
        "What losers cost, in US dollars, as far as is known.",
        unit="USD",
        kind="counter",
    )
    observe(
        meter, "pointsman.racing.running", lambda: [({}, running())], "Races that run.", unit="{race}", kind="updown"
    )
