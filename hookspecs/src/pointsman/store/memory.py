"""The state store of one process that forgets: for tests and for a gateway of one worker that needs no memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, TypeVar

from ..errors import StoreUnavailable
from .embedded import EmbeddedStore, Row, Step

T = TypeVar("T")

_PURGE_EVERY_S: Final = 60.0


class MemoryStore(EmbeddedStore):
    """Rows in a dict. Every call ends without waiting, so each is atomic by itself.

    Args:
        clock: Returns the time in seconds, Unix or any other that only grows.
    """

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._rows: dict[str, Row] = {}
        self._next_purge_at = clock() + _PURGE_EVERY_S
        self._closed = False

    async def ping(self) -> None:
        """See ``StateStore.ping``."""
        self._check_open()

    async def close(self) -> None:
        """Forget everything."""
        self._closed = True
        self._rows.clear()

    async def _carry_out(self, step: Step[T]) -> T:
        self._check_open()
        now = self._clock()

        def read(key: str) -> Row | None:
            row = self._rows.get(key)
            return row if row is not None and _alive(row, now) else None

        writes, result = step.work(read, now)
        for key, row in writes.items():
            if row is None:
                self._rows.pop(key, None)
            else:
                self._rows[key] = row
        if writes and now >= self._next_purge_at:
            self._rows = {key: row for key, row in self._rows.items() if _alive(row, now)}
            self._next_purge_at = now + _PURGE_EVERY_S
        return result

    async def _scan(self, prefix: str) -> list[tuple[str, str]]:
        self._check_open()
        now = self._clock()
        return sorted((key, row.text) for key, row in self._rows.items() if key.startswith(prefix) and _alive(row, now))

    def _check_open(self) -> None:
        if self._closed:
            raise StoreUnavailable("the memory store has been closed")


def _alive(row: Row, now: float) -> bool:
    return row.expires_at is None or row.expires_at > now
