"""What shadow adds to the metrics: the pairs of each mirror. Attempts of the kind ``mirror`` are counted by the host."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pointsman.plugin import observe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from opentelemetry.metrics import Meter

    from .mirror import Mirror


def instrument(meter: Meter, mirrors: Mapping[str, Mirror]) -> None:
    """Let the meter read the mirrors."""

    def rows(value: Callable[[Mirror], int]) -> Callable[[], Iterator[tuple[Mapping[str, str], float]]]:
        def read() -> Iterator[tuple[Mapping[str, str], float]]:
            for name, mirror in mirrors.items():
                yield {"pointsman.mirror": name}, value(mirror)

        return read

    observe(
        meter,
        "pointsman.shadow.alive",
        rows(lambda mirror: mirror.alive),
        "Pairs between the decision to mirror and the comparison.",
        unit="{pair}",
        kind="updown",
    )
    observe(
        meter,
        "pointsman.shadow.lost",
        rows(lambda mirror: mirror.lost),
        "Completed pairs that could not be kept while the store did not answer.",
        unit="{pair}",
        kind="counter",
    )
