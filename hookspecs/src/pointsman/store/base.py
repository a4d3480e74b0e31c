"""The state store: what a plugin can keep beyond one request and one process.

Values are JSON (None, bool, int, float that is finite, str, list, dict with str keys). Keys are text of 1 to 512
characters. The keys of one atomic step should share a hash tag, a part in braces such as ``{tenant-7}``, so that a
redis cluster keeps them on one node; the other backends do not care.

A value that is read may be as old as the call. Code on the request path that can live with a second-old value reads a
``Snapshot`` instead, which costs a dict lookup.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol, TypeAlias

JSON: TypeAlias = "None | bool | int | float | str | Sequence[JSON] | Mapping[str, JSON]"

MAX_KEY_CHARS: Final = 512


@dataclass(frozen=True, slots=True)
class Put:
    """A value to write within an atomic step.

    Attributes:
        value: JSON, not None.
        ttl_s: Seconds until it disappears by itself, or None to stay. A later write without a time to live removes it.
    """

    value: JSON
    ttl_s: float | None = None


@dataclass(frozen=True, slots=True)
class Update:
    """One atomic step over several keys: all of it happens, or nothing.

    Attributes:
        checks: Key to the value it must have now; None: it must not exist. Compared as JSON values.
        puts: Key to what is written.
        deletes: Keys to remove; a missing one is no error.
        adds: Key to the integer added to it; a missing key counts as 0.
    """

    checks: Mapping[str, JSON] = field(default_factory=dict)
    puts: Mapping[str, Put] = field(default_factory=dict)
    deletes: Sequence[str] = ()
    adds: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AtomicOp:
    """A read-modify-write step that the store carries out as one, in one round trip.

    The same step twice: as a pure Python function for the embedded backends and as a Lua script for redis. Whoever
    writes one tests both against each other.

    Attributes:
        name: For messages and spans.
        python: ``(values, args) -> (writes, result)``: ``values`` holds the present value or None for each key, in
            order; ``writes`` maps the index of a key to a ``Put``, or to None to delete it. Pure: no I/O, no clock
            (pass the time in ``args``).
        lua: Script with ``KEYS[i]``, ``ARGV[1]`` the arguments as a JSON text; values are JSON texts in redis strings.
            Returns the result as a JSON text.
    """

    name: str
    python: Callable[[Sequence[JSON], JSON], tuple[Mapping[int, Put | None], JSON]]
    lua: str


class StateStore(Protocol):
    """Durable shared state. Every method raises ``StoreUnavailable`` when the backend cannot be reached in time,
    ``StoreCorrupt`` when it holds a row that this project never writes, and ``ValueError`` for a key or value that is
    not allowed.
    """

    async def get(self, key: str) -> JSON:
        """Return the value, or None when there is none."""

    async def get_many(self, keys: Sequence[str]) -> list[JSON]:
        """Return the values in the order of the keys, None where there is none; one round trip."""

    async def put(self, key: str, value: JSON, *, ttl_s: float | None = None) -> None:
        """Write a value."""

    async def delete(self, key: str) -> bool:
        """Remove a value; say whether there was one."""

    async def compare_and_set(self, key: str, expected: JSON, value: JSON, *, ttl_s: float | None = None) -> bool:
        """Write ``value`` if the present one equals ``expected`` (None: if there is none); say whether it was written.

        ``value`` None deletes.
        """

    async def add(self, key: str, amount: int = 1, *, ttl_s: float | None = None) -> int:
        """Add to a counter, atomically, and return the sum. ``ttl_s`` is set when the counter is created only."""

    async def scan(self, prefix: str) -> list[tuple[str, JSON]]:
        """Return all pairs whose key starts with the prefix, in the order of the keys."""

    async def update(self, update: Update) -> bool:
        """Carry out one atomic step; say whether its checks held. If they did not, nothing was changed."""

    async def run(self, op: AtomicOp, keys: Sequence[str], args: JSON) -> JSON:
        """Carry out a read-modify-write step and return its result; one round trip."""

    async def ping(self) -> None:
        """Raise ``StoreUnavailable`` unless the backend answers."""

    async def close(self) -> None:
        """Let go of the backend. The store cannot be used afterwards."""
