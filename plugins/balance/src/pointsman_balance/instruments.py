"""What balance adds to the metrics: the state of every breaker, and attempts that run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pointsman.plugin import observe

from .breaker import BreakerState

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from opentelemetry.metrics import Meter

    from .members import Members

_LEVELS: Final = {BreakerState.CLOSED: 0, BreakerState.HALF_OPEN: 1, BreakerState.OPEN: 2}


def instrument(meter: Meter, members: Members) -> None:
    """Let the meter read the breakers."""

    def states() -> Iterator[tuple[Mapping[str, str], float]]:
        for member in members:
            group, deployment = member.key
            yield {"pointsman.group": group, "pointsman.deployment": deployment}, _LEVELS[member.breaker.state]

    def running() -> Iterator[tuple[Mapping[str, str], float]]:
        for member in members:
            group, deployment = member.key
            yield {"pointsman.group": group, "pointsman.deployment": deployment}, member.load.in_flight

    observe(
        meter,
        "pointsman.balance.breaker.state",
        states,
        "State of the circuit breaker: 0 closed, 1 half-open, 2 open.",
        unit="{state}",
    )
    observe(meter, "pointsman.balance.in_flight", running, "Attempts that run.", unit="{attempt}", kind="updown")
