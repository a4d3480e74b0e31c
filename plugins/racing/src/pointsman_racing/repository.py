"""What races keep: observations and counts in the store, shared between the workers, and the performance file.

Every worker writes its own observations under its own name, one row a deployment, and reads what the others have
written. So no worker waits for another, a lost row costs only its observations, and the rows of a worker that has ended
count until they have decayed. Rows expire after ``KEPT_HALF_LIVES`` half-lives::

    {standing}/<worker>/<deployment id>   what one worker knows about one deployment
    {tally}/<worker>                      its counts, by race name
    imported                              the performance file was read; expires with the rows that came from it

The hash tags keep what is read together on one node of a redis cluster, where it is found without walking all keys.

The performance file is one JSON document with what is known about all deployments, to keep, to move, to look at.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from .statistics import Counts, DeploymentStats

if TYPE_CHECKING:
    from pointsman.plugin import Services
    from pointsman.store.protocol import JSON

    from .statistics import Statistics

KEPT_HALF_LIVES: Final = 10
MIN_KEPT_S: Final = 86_400.0
_DEPLOYMENT: Final = "{standing}/"
_COUNTS: Final = "{tally}/"
#: Where earlier releases wrote them.
_FORMER: Final = {"standing/": _DEPLOYMENT, "tally/": _COUNTS}
_IMPORTED: Final = "imported"
#: Stands in place of a worker's name: imported observations belong to no worker.
_NO_WORKER: Final = "import"
_IMPORT: Final = f"{_DEPLOYMENT}{_NO_WORKER}/"

FORMAT: Final = "pointsman-racing/1"
MAX_BYTES: Final = 64 * 1024 * 1024


# -- the store --------------------------------------------------------------------------------------------------------


class Repository:
    """Exchanges observations with the store, off the request path.

    Args:
        statistics: What is known about deployments.
        counts: This worker's counts, by race name.
        services: For store, clock and the worker's name.

    Attributes:
        others: The counts of all other workers together, by race name.
        failures: Consecutive exchanges that have failed.
    """

    def __init__(self, statistics: Statistics, counts: Mapping[str, Counts], services: Services) -> None:
        self.others: Mapping[str, Counts] = {}
        self.failures = 0
        self._statistics = statistics
        self._counts = counts
        self._store = services.store
        self._clock = services.clock
        self._worker = services.worker
        self._ttl_s = max(MIN_KEPT_S, statistics.half_life_s * KEPT_HALF_LIVES)
        self._written: JSON = None
        self._adopted = False

    async def exchange(self) -> None:
        """Write what is new and read what the others know.

        Raises:
            StoreError: the store failed; what was not written is written the next time.
        """
        try:
            await self._adopt()
            await self._write()
            await self._read()
        except BaseException:
            self.failures += 1
            raise
        self.failures = 0

    async def _adopt(self) -> None:
        """Move what earlier releases have written, once. Workers that start together do the same."""
        if self._adopted:
            return
        for former, prefix in _FORMER.items():
            for key, row in await self._store.scan(former):
                await self._store.compare_and_set(prefix + key.removeprefix(former), None, row, ttl_s=self._ttl_s)
                await self._store.delete(key)
        self._adopted = True

    async def _write(self) -> None:
        statistics, now = self._statistics, self._clock.now()
        # Later changes are for the next exchange: traffic may be faster than the store.
        left, statistics.changed = statistics.changed, set()
        try:
            for deployment_id in tuple(left):
                if (stats := statistics.own.get(deployment_id)) is not None:
                    row = _row(deployment_id, stats, now)
                    await self._store.put(_key(self._worker, deployment_id), row, ttl_s=self._ttl_s)
                left.discard(deployment_id)
        finally:
            statistics.changed |= left
        counts: JSON = {name: counts.to_json() for name, counts in self._counts.items() if counts.requests}
        if counts and counts != self._written:
            await self._store.put(f"{_COUNTS}{self._worker}", counts, ttl_s=self._ttl_s)
            self._written = counts

    async def _read(self) -> None:
        statistics, now = self._statistics, self._clock.now()
        own = f"{_DEPLOYMENT}{self._worker}/"
        merged: dict[str, DeploymentStats] = {}
        for key, row in await self._store.scan(_DEPLOYMENT):
            if key.startswith(own) or not isinstance(row, Mapping):
                continue
            deployment_id, stats = row.get("deployment_id"), DeploymentStats.from_json(row, statistics.half_life_s)
            if stats is None or not isinstance(deployment_id, str):
                continue
            if deployment_id not in merged:
                merged[deployment_id] = DeploymentStats(statistics.half_life_s)
            merged[deployment_id].merge(stats, now)
        statistics.others = merged
        others: dict[str, Counts] = {}
        for key, row in await self._store.scan(_COUNTS):
            if key == f"{_COUNTS}{self._worker}" or not isinstance(row, Mapping):
                continue
            for name, counts in row.items():
                others.setdefault(name, Counts()).merge(Counts.from_json(counts))
        self.others = others

    async def is_empty(self) -> bool:
        """Return whether the store has no observations except those of an import that was not completed."""
        await self._adopt()
        rows = await self._store.scan(_DEPLOYMENT)
        if not all(key.startswith(_IMPORT) for key, _ in rows):
            return False
        return not rows or await self._store.get(_IMPORTED) is None

    async def put_first(self, stats: Mapping[str, DeploymentStats]) -> None:
        """Write what was read at the start, and that it was read. Workers that start together write the same."""
        await self.put_imported(stats)
        await self._store.put(_IMPORTED, self._clock.now(), ttl_s=self._ttl_s)

    async def put_imported(self, stats: Mapping[str, DeploymentStats]) -> None:
        """Write imported observations, as those of a worker that has ended. They replace the previous import."""
        now = self._clock.now()
        rows = {_key(_NO_WORKER, name): _row(name, row, now) for name, row in stats.items()}
        before = await self._store.scan(_IMPORT)
        for key, row in rows.items():
            await self._store.put(key, row, ttl_s=self._ttl_s)
        for key, _ in before:
            if key not in rows:
                await self._store.delete(key)
        await self._read()


def _row(deployment_id: str, stats: DeploymentStats, now: float) -> JSON:
    return {"deployment_id": deployment_id, **stats.to_json(now)}


def _key(worker: str, deployment_id: str) -> str:
    # Ids are the operator's, with any characters and any length; a key has at most 512 characters.
    return f"{_DEPLOYMENT}{worker}/{hashlib.sha256(deployment_id.encode()).hexdigest()[:32]}"


# -- the performance file ---------------------------------------------------------------------------------------------


class InvalidDocument(ValueError):
    """The document is not a performance file; the message says why."""


def export_document(statistics: Statistics, now: float) -> dict[str, Any]:
    """Return what all workers know.

    Args:
        statistics: What is known about deployments.
        now: Unix seconds.
    """
    deployments = {id_: statistics.together(id_, now).to_json(now) for id_ in statistics.known()}
    return {"format": FORMAT, "at": now, "half_life_s": statistics.half_life_s, "deployments": deployments}


def read_document(document: object, half_life_s: float) -> dict[str, DeploymentStats]:
    """Return what a document says about each deployment.

    Raises:
        InvalidDocument: it is not a performance file.
    """
    if not isinstance(document, Mapping) or document.get("format") != FORMAT:
        raise InvalidDocument(f'it must be an object with "format": "{FORMAT}"')
    deployments = document.get("deployments")
    if not isinstance(deployments, Mapping):
        raise InvalidDocument('"deployments" must be an object')
    known = {}
    for deployment_id, row in deployments.items():
        stats = DeploymentStats.from_json(row, half_life_s)
        if stats is None:
            raise InvalidDocument(f"deployments: {str(deployment_id)[:80]!r} is not an object with a number 'at'")
        try:
            str(deployment_id).encode()
        except UnicodeEncodeError as err:
            raise InvalidDocument(f"deployments: {str(deployment_id)[:80]!r} is not valid text") from err
        known[str(deployment_id)] = stats
    return known


def load_document(path: Path, half_life_s: float) -> dict[str, DeploymentStats] | None:
    """Read a performance file; None when it does not exist.

    Raises:
        InvalidDocument: it is something else.
        OSError: it cannot be read.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InvalidDocument(f"it has more than {MAX_BYTES} bytes")
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        return read_document(json.loads(content.decode()), half_life_s)
    except InvalidDocument:
        raise
    except (ValueError, RecursionError) as err:
        raise InvalidDocument(f"it is not JSON: {err}") from err


def write_document(path: Path, document: Mapping[str, Any]) -> None:
    """Replace a performance file in one step, so that no reader sees half of it.

    Raises:
        OSError: it cannot be written.
    """
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(document, file, indent=1, allow_nan=False)
            file.write("\n")
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
