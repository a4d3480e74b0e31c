"""What signals adds to the metrics: the state of every deployment, and what is left of its provider's limits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pointsman.plugin import observe
from pointsman.types import SignalStatus

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from opentelemetry.metrics import Meter

    from pointsman.plugin import Services

_LEVELS: Final = {
    SignalStatus.AVAILABLE: 0,
    SignalStatus.UNKNOWN: 0,
    SignalStatus.DEGRADED: 1,
    SignalStatus.EXHAUSTED: 2,
}


def instrument(meter: Meter, services: Services) -> None:
    """Let the meter read the signals."""

    def states() -> Iterator[tuple[Mapping[str, str], float]]:
        for signal in services.signals.all().values():
            yield {"pointsman.deployment": signal.deployment_id}, _LEVELS[signal.status]

    def left() -> Iterator[tuple[Mapping[str, str], float]]:
        now = services.clock.now()
        for signal in services.signals.all().values():
            for limit in signal.limits:
                remaining = limit.remaining_at(now)
                if limit.limit and remaining is not None:
                    labels = {"pointsman.deployment": signal.deployment_id, "pointsman.limit": limit.axis}
                    yield labels, remaining / limit.limit

    observe(
        meter,
        "pointsman.signals.status",
        states,
        "State of the deployment: 0 available or unknown, 1 degraded, 2 exhausted.",
        unit="{state}",
    )
    observe(
        meter, "pointsman.signals.remaining", left, "What is left of a provider's limit, 0 to 1, where it is known."
    )
