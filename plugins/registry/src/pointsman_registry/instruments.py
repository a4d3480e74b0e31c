"""What registry adds to the metrics: which version is active."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pointsman.plugin import observe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from opentelemetry.metrics import Meter

    from .versions import State


def instrument(meter: Meter, state: Callable[[], State]) -> None:
    """Let the meter read the active versions."""

    def active() -> Iterator[tuple[Mapping[str, str], float]]:
        for name, version in state().active.items():
            if version is not None:
                yield {"pointsman.registry.name": name, "pointsman.registry.version": version.version}, 1

    observe(meter, "pointsman.registry.active", active, "1 for the active version of each name.", unit="{version}")
