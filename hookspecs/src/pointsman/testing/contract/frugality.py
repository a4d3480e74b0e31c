"""The contract of time and memory: a hook gives the event loop back, and nothing is kept for each request."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
import time
from array import array
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from queue import Queue, SimpleQueue
from types import AsyncGeneratorType, CellType, CoroutineType, FunctionType, GeneratorType, MethodType, ModuleType
from typing import Any, ClassVar, Final

from ..harness import Harness
from ..leaks import open_files
from ..script import disconnect, error, ok
from .base import ContractBase, ContractViolation, check, top_package

#: A hook that is called this often or more is judged.
_CALLS: Final = 5
_ROUND: Final = 100
_ROUNDS: Final = 3
#: How requests end in turn, where memory is looked at: whatever their end, nothing of them may be left.
_ENDINGS: Final[Sequence[Mapping[str, Any]]] = (
    {"script": ok()},
    {"script": ok(), "stream": True},
    {"script": error(400)},
    {"script": disconnect(1), "stream": True},
)
#: Bytes of text that count as one reference.
_TEXT_BYTES: Final = 16
#: Types that hold other objects without being collections.
_HOLDERS: Final = (
    asyncio.Queue,
    Queue,
    SimpleQueue,
    MethodType,
    CellType,
    partial,
    type(lru_cache(int)),
    CoroutineType,
    GeneratorType,
    AsyncGeneratorType,
)


class FrugalContract(ContractBase):
    """Time on the event loop, and memory."""

    #: Most requests that the plugin remembers in memory; that number is made before memory is measured.
    remembers_requests: ClassVar[int] = 0
    #: A request that was not answered is forgotten within this time, in seconds of the clock.
    forgets_within_s: ClassVar[float] = 1.0
    #: What is collected to be written together is written within this time, in real seconds.
    memory_s: ClassVar[float] = 5.0

    def test_it_gives_the_event_loop_back(self) -> None:
        """No hook holds up the other requests of its worker: neither for a tenth of a second again and again, nor for ever."""
        self.run(self._gives_back())

    def test_its_memory_does_not_grow_with_the_requests(self) -> None:
        """After many requests of one caller it holds as much as before, once what it collects is written."""
        self.run(self._memory())

    async def _gives_back(self) -> None:
        async with self.worker() as h:
            for number in range(_CALLS):
                await self.ask(h, stream=number % 2 == 1)
                await h.settled()
            rows: Any = h.host.describe()["hooks"]
            for row in rows:
                # One long turn may be the machine's; most of them are the plugin's.
                if row["plugin"] == self.info.name and row["calls"] >= _CALLS and row["blocked"] * 2 > row["calls"]:
                    raise ContractViolation(
                        f"the hook {row['hook']!r} held the event loop in {row['blocked']} of {row['calls']} calls, for up to "
                        f"{row['longest_ms']:.0f} ms, in {row['held_at'] or 'an unknown place'}; move the work to a thread "
                        "(asyncio.to_thread)"
                    )

    async def _memory(self) -> None:
        async with self.worker() as h:
            await self._many(h, _ROUND + self.remembers_requests)
            before = self._held(h)
            await self._many(h, _ROUNDS * _ROUND)
            # What is collected to be written together goes within a moment of real time.
            deadline = time.monotonic() + self.memory_s
            while (  # noqa: ASYNC110  # nothing tells when it is written
                growth := ((after := self._held(h)).total() - before.total()) // _ROUNDS
            ) >= _ROUND and time.monotonic() < deadline:
                await asyncio.sleep(0.05)
        after.subtract(before)
        ((place, _),) = after.most_common(1)
        check(
            growth < _ROUND,
            f"each {_ROUND} requests of one caller left {growth} references or more in memory, or as many tasks, timers, threads "
            "and open files (half of them are answered, a quarter refused by the provider, a quarter left by the client), most of "
            f"them in {place}; forget them in settle, or say how many requests it keeps: remembers_requests = ...",
        )

    async def _many(self, h: Harness, requests: int) -> None:
        for number in range(requests):
            await self.ask(h, **_ENDINGS[number % len(_ENDINGS)])
            if number % 20 == 0:  # settlements need not come one by one
                await h.settled()
        await h.settled()
        await h.clock.advance(self.forgets_within_s)

    def _held(self, h: Harness) -> Counter[str]:
        """Return how many references the plugin holds, and how many tasks, timers, threads and open files there are.

        What can be reached from it and from its modules is counted by the place where it is, without what is the host's. Text
        counts by its size.
        """
        top = top_package(self.info.factory)
        plugin = h.plugin(self.info.name)
        left: list[tuple[Any, str]] = [(plugin, type(plugin).__qualname__)]
        for name, module in sys.modules.items():
            if name.partition(".")[0] == top:
                left += _named(vars(module), name)
        held = Counter(
            {
                "tasks": sum(not task.done() for task in asyncio.all_tasks()),
                "timers": sum(not one.cancelled() for one in getattr(asyncio.get_running_loop(), "_scheduled", ())),
                "threads": threading.active_count(),
                "open files": sum(1 for _ in open_files()),
            }
        )
        text_bytes = Counter[str]()
        seen = set[int]()
        while left:
            found, place = left.pop()
            held[place] += 1
            if id(found) in seen:
                continue
            seen.add(id(found))
            if _is_entered(found, top):
                left += _referents(found, place)
            elif not isinstance(found, type | ModuleType | FunctionType):
                text_bytes[place] += sys.getsizeof(found, 0)
        held.update({place: size // _TEXT_BYTES for place, size in text_bytes.items()})
        return held


def _is_entered(found: object, top: str) -> bool:
    """Return whether what an object refers to is the plugin's as well."""
    if isinstance(found, ModuleType):
        return False
    if isinstance(found, type | FunctionType):
        return (found.__module__ or "").partition(".")[0] == top
    kind = type(found)
    return (
        kind.__module__.partition(".")[0] == top
        or isinstance(found, _HOLDERS)
        or (isinstance(found, Collection) and not isinstance(found, str | bytes | bytearray | memoryview | array))
    )


def _referents(found: object, place: str) -> Iterator[tuple[Any, str]]:
    """Yield what an object refers to, each with its place: a name of the object's, or the object's own place."""
    if isinstance(found, FunctionType):
        # Not its globals: those of the plugin's modules are looked at in any case, others are not the plugin's.
        referents = [found.__closure__, found.__defaults__, found.__kwdefaults__]
    else:
        referents = gc.get_referents(found)
    names = getattr(found, "__dict__", None)
    if isinstance(names, Mapping):
        named = _named(names, place)
        known = {id(names), *(id(value) for value, _ in named)}
        yield from named
        referents = [one for one in referents if id(one) not in known]
    for one in referents:
        yield one, place
    if isinstance(found, dict):
        # The garbage collector skips the keys of a dictionary that are all texts.
        yield from ((key, place) for key in found)


def _named(names: Mapping[str, Any], place: str) -> list[tuple[Any, str]]:
    return [(value, f"{place}.{name}") for name, value in tuple(names.items())]
