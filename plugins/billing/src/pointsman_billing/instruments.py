"""What billing adds to the metrics: bills, and what waits for or was refused by each sink."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pointsman.plugin import observe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from opentelemetry.metrics import Meter


def instrument(
    meter: Meter,
    *,
    bills: Callable[[], int],
    lost: Callable[[], int],
    unpriced: Callable[[], int],
    sinks: Callable[[], Sequence[Mapping[str, Any]]],
) -> None:
    """Let the meter read the state of the outbox.

    Args:
        meter: The meter.
        bills: Returns the number of bills that this worker has written.
        lost: Returns the number of calls of our own that could not be billed.
        unpriced: Returns the number of deployments without a price.
        sinks: Returns the outbox's rows about the sinks; all workers of a machine see the same.
    """

    def of(field: str) -> Callable[[], Iterator[tuple[Mapping[str, str], float]]]:
        def rows() -> Iterator[tuple[Mapping[str, str], float]]:
            for row in sinks():
                yield {"pointsman.sink": str(row["name"])}, float(row.get(field) or 0)

        return rows

    observe(meter, "pointsman.billing.bills", lambda: [({}, bills())], "Bills written.", unit="{bill}", kind="counter")
    observe(
        meter,
        "pointsman.billing.lost",
        lambda: [({}, lost())],
        "Calls of our own that were not billed.",
        unit="{call}",
        kind="counter",
    )
    observe(
        meter,
        "pointsman.billing.deployments_without_price",
        lambda: [({}, unpriced())],
        "Deployments whose tokens have no price.",
        unit="{deployment}",
    )
    observe(meter, "pointsman.billing.pending", of("pending"), "Events that a sink still has to get.", unit="{event}")
    observe(
        meter,
        "pointsman.billing.dead_letters",
        of("dead"),
        "Events that a sink has refused for good.",
        unit="{event}",
    )
    observe(
        meter,
        "pointsman.billing.sink.tries",
        of("tries"),
        "Failed deliveries in a row; 0 when the sink works.",
        unit="{try}",
    )
