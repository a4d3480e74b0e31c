"""Live metrics between memory and the store: noted on the request path, handed in off it."""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from pointsman.errors import Conflict
from pointsman.store.base import Put, StateStore, Update

from .storage import decode_tally, encode_tally, stamp_key, tally_key
from .tally import Sample, Tally

MAX_WAITING: Final = 20_000
MAX_TRIES: Final = 8


class Meter:
    """Collects samples in this worker and adds them to the tallies that all workers share.

    At most ``MAX_WAITING`` samples wait for the store; while it is down the oldest are forgotten and counted in
    ``dropped``. What has been handed in survives a restart; what a killed worker had not handed in is lost. When a
    write ends without an answer its samples are handed in again, so they may count twice.

    Args:
        store: The registry's part of the state store.
        new_id: Makes unique stamps.
    """

    def __init__(self, store: StateStore, new_id: Callable[[], str]) -> None:
        self._store = store
        self._new_id = new_id
        self._waiting: deque[tuple[str, Sample]] = deque()
        self._handing_in = asyncio.Lock()
        self.dropped = 0

    @property
    def waiting(self) -> int:
        """How many samples have not been handed in."""
        return len(self._waiting)

    def note(self, version_id: str, sample: Sample) -> None:
        """Keep a sample until the next hand-in. Takes no time."""
        self._waiting.append((version_id, sample))
        self._trim()

    async def hand_in(self) -> None:
        """Add the waiting samples to the store. Samples of versions that are gone are let go.

        Raises:
            StoreError: the store failed; what was not written waits for the next time.
        """
        async with self._handing_in:
            batches: dict[str, list[Sample]] = defaultdict(list)
            while self._waiting:
                version_id, sample = self._waiting.popleft()
                batches[version_id].append(sample)
            try:
                for version_id in tuple(batches):
                    samples = batches[version_id]
                    if await self._change(version_id, partial(Tally.plus, samples=samples)):
                        del batches[version_id]
            finally:
                left = [(version_id, sample) for version_id, samples in batches.items() for sample in samples]
                self._waiting.extendleft(reversed(left))
                self._trim()

    async def read(self, version_ids: Sequence[str]) -> dict[str, Tally]:
        """Return the tallies of these versions, this worker's samples included; versions that are gone are left out."""
        await self.hand_in()
        if not version_ids:
            return {}
        rows = await self._store.get_many([tally_key(version_id) for version_id in version_ids])
        found = zip(version_ids, rows, strict=True)
        return {version_id: decode_tally(version_id, row) for version_id, row in found if row is not None}

    async def reset(self, version_id: str, at: float) -> None:
        """Count from now on (Unix seconds) only.

        Samples from before that other workers still hold do not count when they are handed in.

        Raises:
            Conflict: other workers were faster every time.
        """
        if not await self._change(version_id, lambda _: Tally(since=at)):
            raise Conflict("the live metrics are being written too often to be reset; try again")

    async def _change(self, version_id: str, change: Callable[[Tally], Tally]) -> bool:
        """Replace a tally in one atomic step; say whether it is done (or the version is gone)."""
        keys = [stamp_key(version_id), tally_key(version_id)]
        for _ in range(MAX_TRIES):
            stamp, row = await self._store.get_many(keys)
            if stamp is None or row is None:
                return True
            after = change(decode_tally(version_id, row))
            puts = {keys[0]: Put(self._new_id()), keys[1]: Put(encode_tally(after))}
            if await self._store.update(Update(checks={keys[0]: stamp}, puts=puts)):
                return True
        return False

    def _trim(self) -> None:
        while len(self._waiting) > MAX_WAITING:
            self._waiting.popleft()
            self.dropped += 1
