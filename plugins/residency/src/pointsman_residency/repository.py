"""What the workers of one pool share in the store: who decides, what was decided, and what each of them needs.

The worker with the lease decides. It writes the states, with the lease as a check, so that a worker that has lost it cannot
write any more. The others read them, and each writes its report under a key that disappears when it dies. A command of an
operator is a key that the deciding worker carries out and removes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from pointsman.store import Put, Update

from .slots import Report

if TYPE_CHECKING:
    from pointsman.plugin import Services
    from pointsman.store import JSON

#: Seconds after which a deciding worker that does not renew its lease is replaced.
LEASE_S: Final = 5.0
#: Seconds after which the requests of a worker that writes no report count as gone. Longer than the lease: a worker that
#: stalls must not lose its models to itself.
REPORT_S: Final = 15.0
COMMAND_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Command:
    """What an operator wants, handed to the worker that decides.

    Attributes:
        id: Unique.
        what: ``load``, ``evict``, ``force``, ``keep``, ``pin`` or ``unpin``.
        model: The model.
        reason: Why, with the author.
    """

    id: str
    what: str
    model: str
    reason: str


class Repository:
    """One pool in the store.

    Args:
        pool: Its name.
        services: Store, clock, ids and this worker's name.
    """

    def __init__(self, pool: str, services: Services) -> None:
        # The braces keep the keys of one atomic step on one node of a redis cluster.
        self._base = f"{{{quote(pool, safe='')}}}/"
        self._services = services
        self._store = services.store
        self._worker = services.worker
        self._leads_until = float("-inf")

    @property
    def leads(self) -> bool:
        """Whether this worker has the lease, by its own clock."""
        return self._services.clock.monotonic() < self._leads_until

    async def lead(self) -> bool:
        """Take or renew the lease; return whether this worker has it.

        Raises:
            StoreError: the store failed.
        """
        started = self._services.clock.monotonic()
        if started < self._leads_until - LEASE_S / 2:
            return True
        key = self._base + "lease"
        for expected in (self._worker, None):
            if await self._store.compare_and_set(key, expected, self._worker, ttl_s=LEASE_S):
                self._leads_until = started + LEASE_S
                return True
        self._leads_until = float("-inf")
        return False

    async def resign(self) -> None:
        """Give the lease and the report up."""
        self._leads_until = float("-inf")
        await self._store.compare_and_set(self._base + "lease", self._worker, None)
        await self._store.delete(self._report_key())

    async def state(self) -> Mapping[str, JSON] | None:
        """Return the states as last written, or None."""
        found = await self._store.get(self._base + "state")
        return found if isinstance(found, Mapping) else None

    async def write_state(self, document: Mapping[str, JSON]) -> bool:
        """Write the states; return False when this worker does not have the lease any more."""
        written = await self._store.update(
            Update(checks={self._base + "lease": self._worker}, puts={self._base + "state": Put(document)})
        )
        if not written:
            self._leads_until = float("-inf")
        return written

    async def write_report(self, report: Report) -> None:
        """Write what the deciding worker has to know of this one."""
        await self._store.put(
            self._report_key(),
            {
                "seen": report.seen,
                "holds": dict(report.holds),
                "waiting": {name: list(waiting) for name, waiting in report.waiting.items()},
                "rates": dict(report.rates),
                "used": dict(report.used),
            },
            ttl_s=REPORT_S,
        )

    async def inbox(self) -> tuple[dict[str, Report], list[Command]]:
        """Return the other workers' reports by worker, and the commands, oldest first."""
        reports, commands = {}, []
        for key, value in await self._store.scan(self._base + "in/"):
            kind, _, name = key.removeprefix(self._base + "in/").partition("/")
            if not isinstance(value, Mapping):
                continue
            if kind == "worker" and name != quote(self._worker, safe=""):
                reports[name] = _report(value)
            elif kind == "command":
                commands.append(Command(name, str(value["what"]), str(value["model"]), str(value["reason"])))
        return reports, commands

    async def send(self, what: str, model: str, reason: str) -> None:
        """Hand a command to the deciding worker."""
        key = f"{self._base}in/command/{self._services.new_id()}"
        await self._store.put(key, {"what": what, "model": model, "reason": reason}, ttl_s=COMMAND_S)

    async def done(self, command: Command) -> None:
        """Remove a command."""
        await self._store.delete(f"{self._base}in/command/{command.id}")

    def _report_key(self) -> str:
        return f"{self._base}in/worker/{quote(self._worker, safe='')}"


def _report(value: Mapping[str, JSON]) -> Report:
    seen = value.get("seen")
    return Report(
        seen=seen if isinstance(seen, int) else -1,
        holds={name: int(count) for name, count in _numbers(value, "holds").items()},
        waiting={
            name: (int(count), float(oldest), float(arrivals))
            for name, (count, oldest, arrivals) in _triples(value, "waiting").items()
        },
        rates=_numbers(value, "rates"),
        used=_numbers(value, "used"),
    )


def _items(value: Mapping[str, JSON], key: str) -> Mapping[str, JSON]:
    found = value.get(key)
    return found if isinstance(found, Mapping) else {}


def _triples(value: Mapping[str, JSON], key: str) -> dict[str, tuple[float, float, float]]:
    found = {}
    for name, row in _items(value, key).items():
        numbers = [number for number in row if isinstance(number, int | float)] if isinstance(row, list | tuple) else []
        if len(numbers) == 3:  # noqa: PLR2004  # count, oldest, sum
            found[name] = (numbers[0], numbers[1], numbers[2])
    return found


def _numbers(value: Mapping[str, JSON], key: str) -> dict[str, float]:
    return {name: float(number) for name, number in _items(value, key).items() if isinstance(number, int | float)}
