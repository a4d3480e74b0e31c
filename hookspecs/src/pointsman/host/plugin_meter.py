"""A meter that outlives its plugin: after a reload, what is observed is the new instance."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

from opentelemetry.metrics import (
    CallbackOptions,
    Counter,
    Histogram,
    Meter,
    ObservableCounter,
    ObservableGauge,
    ObservableUpDownCounter,
    Observation,
    UpDownCounter,
)

Callback: TypeAlias = Callable[[CallbackOptions], Iterable[Observation]]
#: What is asked for each observable instrument, by its name. The SDK asks only the first that was registered.
Callbacks: TypeAlias = dict[str, tuple[Callback, ...]]


class PluginMeter(Meter):
    """Registers observable instruments so that their callbacks can be replaced.

    Args:
        meter: The SDK's.
        callbacks: The plugin's callbacks, which the host clears or puts back.
    """

    def __init__(self, meter: Meter, callbacks: Callbacks) -> None:
        super().__init__(meter.name)
        self._meter = meter
        self._callbacks = callbacks

    def _asked(self, name: str, callbacks: Sequence[Any] | None) -> list[Callback]:
        self._callbacks[name] = tuple(callbacks or ())

        def ask(options: CallbackOptions) -> Iterable[Observation]:
            for callback in self._callbacks.get(name, ()):
                try:
                    yield from callback(options)
                except (Exception, GeneratorExit, KeyboardInterrupt):
                    raise
                except BaseException as err:
                    # The SDK logs an Exception and goes on; anything else would end the worker.
                    raise RuntimeError(f"the callback of {name!r} raised {type(err).__name__}") from err

        return [ask]

    def create_counter(self, name: str, unit: str = "", description: str = "") -> Counter:
        """See ``Meter``."""
        return self._meter.create_counter(name, unit, description)

    def create_up_down_counter(self, name: str, unit: str = "", description: str = "") -> UpDownCounter:
        """See ``Meter``."""
        return self._meter.create_up_down_counter(name, unit, description)

    def create_gauge(self, name: str, unit: str = "", description: str = "") -> Any:
        """See ``Meter``."""
        return self._meter.create_gauge(name, unit, description)

    def create_histogram(
        self,
        name: str,
        unit: str = "",
        description: str = "",
        *,
        explicit_bucket_boundaries_advisory: Sequence[float] | None = None,
    ) -> Histogram:
        """See ``Meter``."""
        return self._meter.create_histogram(
            name, unit, description, explicit_bucket_boundaries_advisory=explicit_bucket_boundaries_advisory
        )

    def create_observable_counter(
        self, name: str, callbacks: Sequence[Any] | None = None, unit: str = "", description: str = ""
    ) -> ObservableCounter:
        """See ``Meter``."""
        return self._meter.create_observable_counter(name, self._asked(name, callbacks), unit, description)

    def create_observable_up_down_counter(
        self, name: str, callbacks: Sequence[Any] | None = None, unit: str = "", description: str = ""
    ) -> ObservableUpDownCounter:
        """See ``Meter``."""
        return self._meter.create_observable_up_down_counter(name, self._asked(name, callbacks), unit, description)

    def create_observable_gauge(
        self, name: str, callbacks: Sequence[Any] | None = None, unit: str = "", description: str = ""
    ) -> ObservableGauge:
        """See ``Meter``."""
        return self._meter.create_observable_gauge(name, self._asked(name, callbacks), unit, description)
