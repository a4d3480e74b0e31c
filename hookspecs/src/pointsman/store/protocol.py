"""The state store: what a plugin can keep beyond one request and one process.

Values are JSON (None, bool, int, float that is finite, str, list, dict with str keys). None is not stored: it stands
for "no value". Two values are equal when their JSON texts are: 1, 1.0 and true are three different values. A float is
kept to the last bit, an integer of any size exactly; the names of an object come back sorted.

Keys are text of 1 to 512 characters without NUL, the prefix that the host adds for each plugin included. The keys of
one atomic step should share a hash tag, a part in braces such as ``{tenant-7}``, so that a redis cluster keeps them on
one node; the other backends do not need it. A cluster refuses a step whose keys lie apart with a ``ValueError``.

A value with a time to live is gone for every reader as soon as its time is over, whether or not its row has been
cleared away yet.

A value that is read may be as old as the call. Code on the request path that can live with a second-old value reads a
``Snapshot`` instead, which costs a dict lookup.

A call that is cancelled, or that ends with ``StoreUnavailable`` because no answer came in time, may still have been
carried out. Repeat it only if doing it twice does no harm.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol, TypeAlias, runtime_checkable

JSON: TypeAlias = "bool | int | float | str | Sequence[JSON] | Mapping[str, JSON] | None"

MAX_KEY_CHARS: Final = 512
MAX_COUNTER: Final = 2**53 - 1
"""Counters stay within plus and minus this, the integers that survive every JSON reader, Lua included."""
MAX_TTL_S: Final = 100 * 366 * 86_400


@runtime_checkable
class StartsSlowly(Protocol):
    """A store that waits longer at first."""

    def started(self) -> None:
        """Let calls take no longer than usual from now on."""


@runtime_checkable
class DropsKeys(Protocol):
    """A store whose server may drop keys by itself."""

    async def dropped(self) -> str | None:
        """Return what has been dropped since the first call, and what to do, as one sentence; None: nothing.

        Raises:
            StoreError: the store failed.
        """


@dataclass(frozen=True, slots=True)
class Put:
    """A value to write within an atomic step.

    Attributes:
        value: JSON, not None.
        ttl_s: Seconds until it disappears by itself, more than 0, or None to stay. A later write without a time to
            live removes it.
    """

    value: JSON
    ttl_s: float | None = None


@dataclass(frozen=True, slots=True)
class Update:
    """One atomic step over several keys: all of it happens, or nothing. No key is written in two ways.

    Attributes:
        checks: Key to the value it must have now; None: it must not exist. Compared as JSON values.
        puts: Key to what is written.
        deletes: Keys to remove; a missing one is no error.
        adds: Key to the integer added to it; a missing key counts as 0, a present one keeps its time to live. One
            that holds no integer is a ``ValueError``.
    """

    checks: Mapping[str, JSON] = field(default_factory=dict)
    puts: Mapping[str, Put] = field(default_factory=dict)
    deletes: Sequence[str] = ()
    adds: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AtomicOp:
    """A read-modify-write step that the store carries out as one, in one round trip.

    The same step twice: as a pure Python function for the embedded backends and as a Lua script for redis. Test the two
    against each other.

    Attributes:
        name: For messages and spans.
        python: ``(values, args) -> (writes, result)``: ``values`` holds the present value or None for each key, in
            order; ``writes`` maps the index of a key to a ``Put``, or to None to delete it. Pure: no I/O, no clock
            (pass the time in ``args``). It may run on another thread. An error it raises reaches the caller, and
            nothing is written.
        lua: Script with ``KEYS[i]``, ``ARGV[1]`` the arguments as a JSON text; values are JSON texts in redis strings,
            ``redis.call('GET', ...)`` of a missing one is ``false``. Returns the result as a JSON text. Lua has no
            undo: look at everything first, then write.
        scanned: Whether ``scan`` has to find its keys; False saves redis the work of listing them.

    Two functions are there for the script: ``json_decode(text)`` (redis's ``cjson.decode``) and ``json_encode(value)``.
    Use the latter instead of ``cjson.encode``, which keeps 14 digits of a number only and leaves the order of names to
    chance. Lua cannot keep everything, with either encoder: 1.0 becomes 1, -0.0 becomes 0, an integer beyond 2**53 is rounded, an
    empty list becomes ``{}``, and a null in an object is ``cjson.null``, not ``nil``. A counter can be changed with
    ``INCRBY``. A value written with a plain ``SET`` loses its time to live, as with a ``Put``; ``'PX', milliseconds``
    gives it one.
    ``TAKE`` in ``pointsman.store.views`` is an example.
    """

    name: str
    python: Callable[[Sequence[JSON], JSON], tuple[Mapping[int, Put | None], JSON]]
    lua: str
    scanned: bool = True


class StateStore(Protocol):
    """Durable shared state.

    Every method raises ``StoreUnavailable`` when the backend cannot be reached in time, ``StoreCorrupt`` when it holds
    a row that this project never writes, and ``ValueError`` for a key or value that is not allowed.
    """

    async def get(self, key: str) -> JSON:
        """Return the value, or None when there is none."""

    async def get_many(self, keys: Sequence[str]) -> list[JSON]:
        """Return the values in the order of the keys, None where there is none; one round trip."""

    async def put(self, key: str, value: JSON, *, ttl_s: float | None = None) -> None:
        """Write a value."""

    async def delete(self, key: str) -> bool:
        """Remove a value; return whether there was one."""

    async def compare_and_set(self, key: str, expected: JSON, value: JSON, *, ttl_s: float | None = None) -> bool:
        """Write ``value`` if the present one equals ``expected`` (None: if there is none); return whether it was written.

        ``value`` None deletes.
        """

    async def add(self, key: str, amount: int = 1, *, ttl_s: float | None = None) -> int:
        """Add to a counter, atomically, and return the sum. ``ttl_s`` is set when the counter is created only.

        A key that holds no integer, or a sum beyond ``MAX_COUNTER``, is a ``ValueError`` and nothing is added.
        """

    async def scan(self, prefix: str) -> list[tuple[str, JSON]]:
        """Return all pairs whose key starts with the prefix, in the order of the keys.

        Memory and disk return one consistent state in one step. Redis walks its keys in several round trips: a pair
        written or deleted meanwhile may or may not be among the result.
        """

    async def update(self, update: Update) -> bool:
        """Carry out one atomic step; return whether its checks held. If they did not, nothing was changed."""

    async def run(self, op: AtomicOp, keys: Sequence[str], args: JSON) -> JSON:
        """Carry out a read-modify-write step and return its result; one round trip."""

    async def ping(self) -> None:
        """Raise ``StoreUnavailable`` unless the backend answers."""

    async def close(self) -> None:
        """Close the backend. The store cannot be used afterwards."""
