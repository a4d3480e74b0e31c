"""Events that reach every worker: those whose class says ``everywhere``.

One key of the store holds the events of the last half minute; every worker reads it once a second. Nothing is read or written
where no plugin has such an event.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

from pydantic import TypeAdapter
from pydantic_core import to_json

from ..errors import Conflict, StoreError
from ..store import modify
from ..store.protocol import JSON, Put, StateStore
from ..types import Event

if TYPE_CHECKING:
    from ..plugin import Clock

log: Final = logging.getLogger("pointsman")

TICK_S: Final = 1.0
#: How long an event can be read, in seconds: a worker that is stopped for longer misses it.
KEEP_S: Final = 30.0
#: The most events that can be read at a time; the oldest are lost.
MOST: Final = 256
#: The largest event, in bytes of JSON.
MOST_BYTES: Final = 8_192

_KEY: Final = "events"
_ADAPTERS: Final[WeakKeyDictionary[type[Event], TypeAdapter[Any]]] = WeakKeyDictionary()


def wanted() -> bool:
    """Return whether any event that is known here reaches every worker."""
    return any(kind.everywhere for kind in _kinds(Event))


class Broadcast:
    """Sends this worker's events to the others, and hears theirs.

    Args:
        store: The host's part of the shared store.
        worker: This worker's name.
        clock: Time.
        new_id: Returns a unique id.
        hear: Gets the events of the others.

    Attributes:
        lost: Events that were not sent, since too many waited or could be read.
    """

    def __init__(
        self,
        store: StateStore,
        *,
        worker: str,
        clock: Clock,
        new_id: Callable[[], str],
        hear: Callable[[Event], None],
    ) -> None:
        self._store = store
        self._worker = worker
        self._clock = clock
        self._new_id = new_id
        self._hear = hear
        self._waiting: deque[list[JSON]] = deque()
        self._heard: set[str] | None = None
        self.lost = 0

    def send(self, event: Event) -> None:
        """Send an event with the next tick.

        Raises:
            TypeError: its fields have no form in JSON.
            ValueError: it is too large.
        """
        kind = type(event)
        try:
            fields = _adapter(kind).dump_python(event, mode="json")
        except Exception as err:
            raise TypeError(f"the event {kind.__qualname__} cannot be sent to other workers: {err}") from err
        if (size := len(to_json(fields))) > MOST_BYTES:
            raise ValueError(
                f"the event {kind.__qualname__} has {size} bytes; at most {MOST_BYTES} reach other workers"
            )
        self._waiting.append([self._new_id(), self._clock.now(), self._worker, _name(kind), fields])
        if len(self._waiting) > MOST:
            self._waiting.popleft()
            self._lose(1)

    async def tick(self) -> None:
        """Write what waits, and hear what is new.

        Raises:
            StoreError: the store failed; what waits is written later.
            Conflict: others were faster each time; the same.
        """
        present = await self._flush() if self._waiting else await self._store.get(_KEY)
        rows = [row for row in present if _is_row(row)] if isinstance(present, list) else []
        ids = {row[0] for row in rows}
        # What was announced before this worker ran is not its concern.
        heard, self._heard = ids if self._heard is None else self._heard, ids
        for id_, _, worker, name, fields in rows:
            if id_ not in heard and worker != self._worker:
                self._take(name, fields)

    async def leave(self) -> None:
        """Write what waits, for the last time."""
        if self._waiting:
            try:
                await self._flush()
            except (StoreError, Conflict) as err:
                log.warning("%d events for other workers were lost at the end: %s", len(self._waiting), err)

    async def _flush(self) -> JSON:
        new = list(self._waiting)

        def add(present: JSON) -> tuple[Put, tuple[JSON, int]]:
            after = self._clock.now() - KEEP_S
            rows = [r for r in present if _is_row(r) and r[1] > after] if isinstance(present, list) else []
            every: list[JSON] = [*rows, *new]
            kept = every[-MOST:]
            return Put(kept, ttl_s=KEEP_S), (kept, len(every) - len(kept))

        kept, lost = await modify(self._store, _KEY, add, what="the events for other workers")
        for _ in new:
            self._waiting.popleft()
        self._lose(lost)
        return kept

    def _take(self, name: str, fields: JSON) -> None:
        kinds = [kind for kind in _kinds(Event) if kind.everywhere and _name(kind) == name]
        if not kinds:
            return  # of a plugin that this worker does not have
        # A dataclass with slots is made from another class of the same name, which may still be there.
        kind = kinds[-1]
        try:
            event: Event = _adapter(kind).validate_python(fields)
        except ValueError as err:
            log.warning("an event %s of another worker cannot be read: %s", name, err)
            return
        self._hear(event)

    def _lose(self, events: int) -> None:
        if events:
            self.lost += events
            log.warning("%d events for other workers were lost: more than %d within %g s", events, MOST, KEEP_S)


def _adapter(kind: type[Event]) -> TypeAdapter[Any]:
    found = _ADAPTERS.get(kind)
    if found is None:
        found = _ADAPTERS[kind] = TypeAdapter(kind)
    return found


def _name(kind: type[Event]) -> str:
    return f"{kind.__module__}:{kind.__qualname__}"


def _kinds(kind: type[Event]) -> Iterator[type[Event]]:
    for under in kind.__subclasses__():
        yield under
        yield from _kinds(under)


def _is_row(row: object) -> bool:
    return isinstance(row, list) and len(row) == 5 and isinstance(row[0], str) and isinstance(row[1], int | float)  # noqa: PLR2004  # id, time, worker, name, fields
