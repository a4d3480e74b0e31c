"""What a tactic, a sink and a dialect of your own must pass, each alone.

::

    class TestContract(TacticContract):
        tactic = Cheapest

The plugin that they extend (balance, billing, signals) has to be installed; a distribution of your own need not be: each is
tried as if its entry point were there. As ``ContractSuite``, the suites need nothing from the author's pytest.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import math
import random
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, ClassVar, Final
from unittest import mock

from pydantic import ValidationError

from ..host.isolation import Timing, bounded
from ..types import Outcome
from .contract.base import ContractViolation, Judged, check, described, top_package
from .contract.watching import LoopHeldError
from .fakes import deployment
from .harness import Harness
from .leaks import no_leaks
from .script import error, ok

#: The name under which a part is tried.
NAME: Final = "contract-part"
_NOTES: Final = "contract-notes"
_PRICES: Final[tuple[Any, ...]] = (None, {})
_NOW: Final = 1_750_000_000.0
_DELIVERED_WITHIN_S: Final = 20.0


class TacticContract(Judged):
    """Derive from it, in a class whose name starts with ``Test``.

    Attributes:
        tactic: The class, derived from ``pointsman_balance.tactic.Tactic``.
        settings: Its settings in the configuration.
        bad_settings: Settings that must be refused.
    """

    tactic: ClassVar[type[Any]]
    settings: ClassVar[Mapping[str, Any]] = {}
    bad_settings: ClassVar[Sequence[Mapping[str, Any]]] = ()

    def under_test(self) -> tuple[str, frozenset[str]]:
        """Return ``balance``, and the tactic's package."""
        return "balance", frozenset({top_package(self.tactic)})

    def test_unknown_and_bad_settings_are_refused(self) -> None:
        """A misspelt key is an error, and so is each of ``bad_settings``."""
        for settings in ({**self.settings, "no_such_key": 1}, *self.bad_settings):
            try:
                self.tactic(settings)
            except ValidationError:
                continue
            raise ContractViolation(f"the settings {settings} were not refused")

    def test_it_chooses_among_what_is_there(self) -> None:
        """Whatever is known of one, two or many deployments, every request is served, and no choice fails."""
        for size in (1, 2, 9):
            for prices in _PRICES:
                self.run(self._serves(size, prices))

    def test_it_leaves_what_fails(self) -> None:
        """A deployment that fails is not the end of a request while there are others."""
        self.run(self._survives())

    def _worker(self, size: int, **arguments: Any) -> Harness:
        balance = importlib.import_module("pointsman_balance.plugin").plugin
        fleet = [deployment(f"d{number}", "chat", weight=number % 3 + 0.5) for number in range(size)]
        section = {"tactic": {"name": NAME, **self.settings}}
        return Harness([(balance, section)], deployments=fleet, **arguments)

    @contextmanager
    def _installed(self) -> Iterator[None]:
        tactics = importlib.import_module("pointsman_balance.tactics.registry")
        with mock.patch.object(tactics, "BUILT_IN", {**tactics.BUILT_IN, NAME: self.tactic}):
            yield

    async def _serves(self, size: int, prices: Any) -> None:
        arguments = {} if prices is None else {"prices": prices}
        with self._installed():
            async with no_leaks(), self._worker(size, **arguments) as h:
                for number in range(30):
                    result = await h.request(stream=number % 2 == 1, session_id=f"s{number % 4}")
                    _check_no_fault(h, f"among {size} deployments")
                    check(result.status == 200, f"among {size} deployments a request ended with {result.status}")  # noqa: PLR2004  # HTTP
                await h.settled()
                rows: Any = h.host.describe()["hooks"]
                for row in rows:
                    often = row["blocked"] * 2 > row["calls"]
                    check(
                        not often,
                        f"it held the event loop for up to {row['longest_ms']:.0f} ms, in {row['held_at'] or 'an unknown place'}: a "
                        "choice takes microseconds",
                    )

    async def _survives(self) -> None:
        script = {"d0": error(503), "d1": error(429, retry_after_s=30.0)}
        with self._installed():
            async with no_leaks(), self._worker(4, script=script) as h:
                for _ in range(30):
                    result = await h.request(retries=3)
                    _check_no_fault(h, "while two of four deployments fail")
                    check(
                        result.outcome is Outcome.OK,
                        f"two of four deployments fail, and a request ended with {result.status}",
                    )
                await h.settled()


class SinkContract(Judged):
    """Derive from it, in a class whose name starts with ``Test``, and say where events go and what has arrived.

    Attributes:
        sink: The ``pointsman_billing.sinks.base.SinkInfo``.
        unreachable: A section whose receiver cannot be reached; None skips nothing but the test of it.
    """

    sink: ClassVar[Any]
    unreachable: ClassVar[Mapping[str, Any] | None] = None

    def under_test(self) -> tuple[str, frozenset[str]]:
        """Return ``billing``, and the sink's package."""
        return "billing", frozenset({top_package(self.sink.factory)})

    def section(self, directory: Path) -> Mapping[str, Any]:
        """Return the sink's section; ``directory`` is empty and its own."""
        raise NotImplementedError

    def received(self, directory: Path) -> Sequence[str]:
        """Return the ids of the events that the receiver has, as often as it has got them."""
        raise NotImplementedError

    def test_an_unknown_key_is_refused(self) -> None:
        """A misspelt key is an error."""
        with tempfile.TemporaryDirectory() as directory:
            section = {**self.section(Path(directory)), "no_such_key": 1}
            try:
                self.sink.config.model_validate(section)
            except ValidationError:
                return
        raise ContractViolation("the section with the unknown key 'no_such_key' was not refused")

    def test_every_event_arrives(self) -> None:
        """Of all requests, in the first life of a worker and in the next one."""
        with tempfile.TemporaryDirectory() as directory:
            self.run(self._delivers(Path(directory)))

    def test_a_receiver_that_is_away_harms_nobody(self) -> None:
        """Requests are answered, nothing is lost, and the failure is said in the plugin's status."""
        if self.unreachable is not None:
            with tempfile.TemporaryDirectory() as directory:
                self.run(self._is_away(Path(directory)))

    @contextmanager
    def _installed(self) -> Iterator[set[str]]:
        """Install the sink, and one that notes the ids of all events; yield those.

        Raises:
            ContractViolation: a method of the sink is not asynchronous, or holds the event loop.
        """
        wrong: dict[str, str] = {}
        timings = {method: Timing(NAME, method) for method in ("open", "send", "close")}
        watched = replace(self.sink, factory=lambda *given: _Watched(self.sink.factory(*given), timings, wrong))
        with self._registered(watched) as noted:
            try:
                yield noted
            except ContractViolation as err:
                # What does not arrive does not for this reason.
                for violation in wrong.values():
                    raise ContractViolation(violation) from err
                raise
        for violation in wrong.values():
            raise ContractViolation(violation)
        for method, timing in timings.items():
            check(
                timing.blocked * 2 <= timing.calls,
                f"its {method!r} held the event loop for up to {timing.longest_s * 1000:.0f} ms, in {timing.held_at or 'an unknown place'}: no request of the worker is "
                "served: await what it waits for, or move the work to a thread (asyncio.to_thread)",
            )

    @contextmanager
    def _registered(self, watched: Any) -> Iterator[set[str]]:
        sinks = importlib.import_module("pointsman_billing.sinks")
        noted = set[str]()
        notes = sinks.SinkInfo(config=sinks.SinkConfig, factory=lambda *_: _Notes(noted))
        points = []
        for name, info in ((NAME, watched), (_NOTES, notes)):
            point = mock.create_autospec(EntryPoint, instance=True)
            point.name, point.value, point.load.return_value = name, f"{__name__}:{name}", info
            points.append(point)
        with mock.patch.object(sinks, "entry_points", return_value=points):
            yield noted

    def _worker(self, directory: Path, section: Mapping[str, Any]) -> Harness:
        billing = importlib.import_module("pointsman_billing.plugin").plugin
        return Harness([(billing, {"sinks": [{NAME: dict(section)}, _NOTES]})], path=directory)

    async def _delivers(self, directory: Path) -> None:
        place = directory / "receiver"
        place.mkdir()
        with self._installed() as noted:
            async with no_leaks(), self._worker(directory, self.section(place)) as h:
                for life in (1, 2):
                    for number in range(5):
                        await h.request(stream=number % 2 == 1, script=[error(503), ok(f"answer {number} é🙂")])
                    await h.settled()
                    await self._arrived(h, place, noted, 5 * life)
                    _check_no_fault(h, f"in its life number {life}")
                    if life == 1:
                        await h.restart()

    async def _arrived(self, h: Harness, place: Path, noted: set[str], requests: int) -> None:
        deadline = time.monotonic() + _DELIVERED_WITHIN_S
        while len(noted) < requests or noted != set(self.received(place)):
            if time.monotonic() > deadline:
                raise ContractViolation(
                    f"of {len(noted)} events of {requests} requests, {len(noted & set(self.received(place)))} have arrived; the plugin "
                    f"says: {h.status('billing').summary}"
                )
            await h.clock.advance(0.5)
            await asyncio.sleep(0.01)

    async def _is_away(self, directory: Path) -> None:
        with self._installed():
            async with no_leaks(), self._worker(directory, self.unreachable or {}) as h:
                result = await h.request()
                check(
                    result.outcome is Outcome.OK, f"a request ended with {result.status} because the receiver is away"
                )
                await h.settled()
                deadline = time.monotonic() + _DELIVERED_WITHIN_S
                while NAME not in h.status("billing").summary:
                    check(time.monotonic() < deadline, "the plugin's status does not say that the receiver is away")
                    await h.clock.advance(1.0)
                    await asyncio.sleep(0.01)
                _check_no_fault(h, "while the receiver is away")


class _Notes:
    """A sink that notes the ids of events.

    Args:
        noted: Where.
    """

    def __init__(self, noted: set[str]) -> None:
        self._noted = noted

    async def open(self) -> None:
        """Need nothing."""

    async def send(self, batch: Sequence[Any]) -> None:
        """Note them."""
        self._noted |= {event.id for event in batch}

    async def close(self) -> None:
        """Need nothing."""


class _Watched:
    """A sink whose methods are timed.

    Args:
        sink: The sink.
        timings: Gets how long each method holds the event loop.
        wrong: Gets what is wrong with a method.
    """

    def __init__(self, sink: Any, timings: Mapping[str, Timing], wrong: dict[str, str]) -> None:
        self._sink = sink
        self._timings = timings
        self._wrong = wrong

    async def open(self) -> None:
        """Open the sink."""
        await self._call("open")

    async def send(self, batch: Sequence[Any]) -> None:
        """Send a batch to it."""
        await self._call("send", batch)

    async def close(self) -> None:
        """Close it."""
        await self._call("close")

    async def _call(self, method: str, *given: object) -> None:
        function = getattr(self._sink, method)
        if not inspect.iscoroutinefunction(function):
            self._wrong[method] = (
                f"{type(self._sink).__qualname__}.{method} is not a coroutine function: async def {method}(...)"
            )
        await bounded(function(*given), None, self._timings[method])


class DialectContract(Judged):
    """Derive from it, in a class whose name starts with ``Test``.

    Attributes:
        dialect: The ``pointsman_signals.dialects.Dialect``.
        answers: Headers of an answer, lower case, each with what they say: axis to ``(limit, remaining)``. Take recorded ones.
        resets: Axis to seconds until its reset, for the first of ``answers``; empty where the provider does not say.
    """

    dialect: ClassVar[Any]
    answers: ClassVar[Sequence[tuple[Mapping[str, str], Mapping[str, tuple[float | None, float | None]]]]]
    resets: ClassVar[Mapping[str, float]] = {}
    outside: ClassVar[str] = "the dialect"

    def under_test(self) -> tuple[str, frozenset[str]]:
        """Return ``signals``, and the package of the dialect's function and of what reads by its expressions."""
        return "signals", frozenset({top_package(self.dialect.reset), "pointsman_signals"})

    def test_it_reads_answers(self) -> None:
        """Each of ``answers`` says what it should: limits, what is left, and when."""
        self.run(self._reads_answers())

    async def _reads_answers(self) -> None:
        for number, (headers, expected) in enumerate(self.answers):
            limits = {limit.axis: limit for limit in self._read(headers).limits}
            found = {axis: (limit.limit, limit.remaining) for axis, limit in limits.items()}
            check(found == expected, f"{dict(headers)} says {found} instead of {dict(expected)}")
            for axis, seconds in self.resets.items() if number == 0 else ():
                at = limits[axis].resets_at
                right = at is not None and math.isclose(at - _NOW, seconds, abs_tol=0.001)
                check(right, f"{axis} resets at {at} instead of {_NOW + seconds}")

    def test_it_is_found(self) -> None:
        """By its providers and hosts, and no built-in dialect has its name."""
        module = importlib.import_module("pointsman_signals.dialects")
        taken = self.dialect.name in {row.name for row in module.DIALECTS}
        check(not taken, f"a built-in dialect is called {self.dialect.name!r}")
        table = module.DialectTable([*module.DIALECTS, self.dialect])
        places = [deployment("d", provider=provider) for provider in self.dialect.providers]
        for place in places:
            name = table.reader(place).dialect.name
            check(
                name == self.dialect.name, f"answers of the provider {place.provider!r} are read as those of {name!r}"
            )

    def test_it_survives_whatever_a_provider_sends(self) -> None:
        """Odd values and names of its own headers neither fail nor take long."""
        self.run(self._survives())

    async def _survives(self) -> None:
        chance = random.Random(5)  # noqa: S311  # repeatable test data
        odd = (
            "",
            "-1",
            "nan",
            "1e999",
            "1,2",
            "soon",
            "0x10",
            "9" * 400,
            "\u0661",
            "Wed, 21 Oct 2015 07:28:00 GMT",
            "6m0s",
        )
        names = [name for headers, _ in self.answers for name in headers] or ["x-a"]
        for _ in range(300):
            headers = {name: chance.choice(odd) for name in chance.sample(names, chance.randint(1, len(names)))}
            longer = f"{chance.choice(names)}{'-a1' * chance.randint(0, 2000)}"
            for limit in self._read({**headers, longer: "5"}).limits:
                for value in (limit.limit, limit.remaining, limit.resets_at):
                    check(value is None or math.isfinite(value), f"{headers} says {limit}")
            await asyncio.sleep(0)  # what one answer takes is judged, not what all of them take

    def _read(self, headers: Mapping[str, str]) -> Any:
        module = importlib.import_module("pointsman_signals.dialects")
        reader = module.DialectTable([*module.DIALECTS, self.dialect], {"contract": self.dialect.name})
        try:
            return reader.reader(deployment("d", "contract")).read(headers, _NOW)
        except (KeyboardInterrupt, LoopHeldError):
            raise
        except BaseException as err:
            raise ContractViolation(f"{dict(headers)!r:.300} cannot be read: {type(err).__name__}: {err}") from err


def _check_no_fault(h: Harness, when: str) -> None:
    own = {name: count for name, count in h.faults.items() if not name.startswith("pointsman.")}
    check(not own, f"{when} hooks failed: {described(h)}")
