"""What the registry keeps in the state store: keys and JSON of the versions, and the live metrics of all workers.

::

    {registry}state/@revision           counts the changes
    {registry}state/version/ID          one version
    {registry}state/name/NAME           which version is active, and the trail for rollbacks
    {registry}history/NAME/NUMBER       one history entry
    {registry}live/stamp/ID             text that differs after every write of live metrics
    {registry}live/tally/ID             the live metrics of a version, of all workers together

Every change is one atomic step that checks the revision it was computed from. The braces keep all keys on one node of
a redis cluster, so that such a step is possible there.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, Final, TypeVar

from pydantic import TypeAdapter, ValidationError

from pointsman.errors import Conflict, StoreCorrupt
from pointsman.store.protocol import JSON, Put, StateStore, Update

from .metrics import LiveMetrics, Sample, Timing
from .versions import Activation, Change, NameState, State, Version

#: How many history entries of each name are kept.
MAX_HISTORY: Final = 1000
#: How many samples of live metrics wait for the store at most.
MAX_WAITING: Final = 20_000
MAX_TRIES: Final = 8

TAG: Final = "{registry}"
STATE: Final = f"{TAG}state/"
VERSION: Final = f"{STATE}version/"
NAME: Final = f"{STATE}name/"
HISTORY: Final = f"{TAG}history/"
STAMP: Final = f"{TAG}live/stamp/"
METRICS: Final = f"{TAG}live/tally/"

_NUMBER_DIGITS: Final = 12
# Punctuation that could mean something in a key, a hash tag or a redis pattern. Other characters stay as they are, so
# that the longest name still fits into a key.
_ESCAPES: Final = {
    code: f"%{code:02X}" for code in range(0x21, 0x7F) if not chr(code).isalnum() and chr(code) not in "-._~"
}

_VERSION: Final = TypeAdapter(Version)
_NAME_STATE: Final = TypeAdapter(NameState)
_ACTIVATION: Final = TypeAdapter(Activation)
_METRICS: Final = TypeAdapter(LiveMetrics)
_WINDOW: Final = TypeAdapter(list[tuple[float, float, float | None]])

T = TypeVar("T")


def escaped(text: str) -> str:
    """Return an id or a name as one part of a key; different texts stay different."""
    return text.translate(_ESCAPES)


def stamp_key(version_id: str) -> str:
    """Return the key of a version's stamp."""
    return STAMP + escaped(version_id)


def metrics_key(version_id: str) -> str:
    """Return the key of a version's live metrics."""
    return METRICS + escaped(version_id)


def history_prefix(name: str | None) -> str:
    """Return the prefix of a name's history, or of all names'."""
    return HISTORY if name is None else f"{HISTORY}{escaped(name)}/"


def update_of(change: Change, *, stamp: str) -> Update:
    """Return the store's update that carries out a change; the snapshot adds the check of the revision.

    Args:
        change: The change.
        stamp: Unique; the first stamp of new versions.
    """
    puts: dict[str, Put] = {}
    deletes: list[str] = []
    for version in change.registered:
        puts[VERSION + escaped(version.id)] = Put(asdict(version))
        puts[stamp_key(version.id)] = Put(stamp)
        puts[metrics_key(version.id)] = Put(encode_metrics(LiveMetrics(since=version.created_at)))
    if change.deleted_id is not None:
        key = escaped(change.deleted_id)
        deletes += [VERSION + key, STAMP + key, METRICS + key]
    for name, name_state in change.names.items():
        puts[NAME + escaped(name)] = Put({"name": name, **_plain(name_state)})
    for entry in change.activations:
        puts[_history_key(entry.name, entry.number)] = Put(_plain(entry))
        if entry.number > MAX_HISTORY:
            deletes.append(_history_key(entry.name, entry.number - MAX_HISTORY))
    return Update(puts=puts, deletes=deletes)


def decode_state(rows: Mapping[str, JSON]) -> State:
    """Return the state that is stored under ``STATE``.

    Raises:
        StoreCorrupt: a row is not what ``update_of`` writes.
    """
    versions: dict[str, Version] = {}
    names: dict[str, NameState] = {}
    for key, row in rows.items():
        if key.startswith(VERSION):
            version = _decoded(_VERSION, key, row)
            versions[version.id] = version
        else:
            name = row.get("name") if isinstance(row, dict) else None
            if not key.startswith(NAME) or not isinstance(name, str):
                raise _corrupt(key)
            names[name] = _decoded(_NAME_STATE, key, row)
    for name, name_state in names.items():
        for version_id in (*name_state.trail, name_state.active_id):
            if version_id is not None and (version_id not in versions or versions[version_id].name != name):
                raise _corrupt(NAME + escaped(name))
    return State(versions, names)


def decode_history(rows: Iterable[tuple[str, JSON]]) -> list[Activation]:
    """Return the history of one name, or of several, the newest first.

    Args:
        rows: In the order of their keys.

    Raises:
        StoreCorrupt: a row is not what ``update_of`` writes.
    """
    entries = [_decoded(_ACTIVATION, key, row) for key, row in rows][::-1]
    if len({entry.name for entry in entries}) > 1:
        # Only between names: within one the numbers decide, not the workers' clocks.
        entries.sort(key=lambda entry: entry.at, reverse=True)
    return entries


def encode_metrics(metrics: LiveMetrics) -> dict[str, JSON]:
    """Return live metrics as JSON, the window as triples."""
    return {
        "since": metrics.since,
        "updated_at": metrics.updated_at,
        "requests": metrics.requests,
        "errors": metrics.errors,
        "cancelled": metrics.cancelled,
        "window": [[timing.at, timing.latency_ms, timing.first_token_ms] for timing in metrics.window],
    }


def decode_metrics(version_id: str, row: JSON) -> LiveMetrics:
    """Return live metrics from JSON.

    Raises:
        StoreCorrupt: it is not what ``encode_metrics`` writes.
    """
    key = metrics_key(version_id)
    if not isinstance(row, dict):
        raise _corrupt(key)
    triples = _decoded(_WINDOW, key, row.get("window"))
    return _decoded(_METRICS, key, {**row, "window": tuple(Timing(*triple) for triple in triples)})


def _history_key(name: str, number: int) -> str:
    return f"{history_prefix(name)}{number:0{_NUMBER_DIGITS}d}"


def _decoded(adapter: TypeAdapter[T], key: str, row: object) -> T:
    try:
        return adapter.validate_python(row)
    except ValidationError as err:
        raise _corrupt(key) from err


def _corrupt(key: str) -> StoreCorrupt:
    return StoreCorrupt(f"the registry's row {key!r} is not what the registry writes; restore or remove it")


def _plain(value: NameState | Activation) -> dict[str, Any]:
    plain = asdict(value)
    return {key: list(part) if isinstance(part, tuple) else part for key, part in plain.items()}


# -- live metrics -----------------------------------------------------------------------------------------------------


class MetricsRepository:
    """Collects samples in this worker and adds them to the live metrics that all workers share.

    At most ``MAX_WAITING`` samples wait for the store; while it is down the oldest are forgotten and counted in
    ``dropped``. What has been flushed survives a restart; what a killed worker had not flushed is lost. When a write
    ends without an answer its samples are flushed again, so they may count twice.

    Args:
        store: The registry's part of the state store.
        new_id: Makes unique stamps.
    """

    def __init__(self, store: StateStore, new_id: Callable[[], str]) -> None:
        self._store = store
        self._new_id = new_id
        self._waiting: deque[tuple[str, Sample]] = deque()
        self._flushing = asyncio.Lock()
        self.dropped = 0

    @property
    def waiting(self) -> int:
        """How many samples have not been flushed."""
        return len(self._waiting)

    def record(self, version_id: str, sample: Sample) -> None:
        """Keep a sample until the next flush. Does no I/O."""
        self._waiting.append((version_id, sample))
        self._trim()

    async def flush(self) -> None:
        """Add the waiting samples to the store. Samples of deleted versions are discarded.

        Raises:
            StoreError: the store failed; what was not written waits for the next time.
        """
        async with self._flushing:
            batches: dict[str, list[Sample]] = defaultdict(list)
            while self._waiting:
                version_id, sample = self._waiting.popleft()
                batches[version_id].append(sample)
            try:
                for version_id in tuple(batches):
                    samples = batches[version_id]
                    if await self._change(version_id, partial(LiveMetrics.plus, samples=samples)):
                        del batches[version_id]
            finally:
                left = [(version_id, sample) for version_id, samples in batches.items() for sample in samples]
                self._waiting.extendleft(reversed(left))
                self._trim()

    async def read(self, version_ids: Sequence[str]) -> dict[str, LiveMetrics]:
        """Return the live metrics of these versions, this worker's samples included; deleted versions are left out."""
        await self.flush()
        if not version_ids:
            return {}
        rows = await self._store.get_many([metrics_key(version_id) for version_id in version_ids])
        pairs = zip(version_ids, rows, strict=True)
        return {version_id: decode_metrics(version_id, row) for version_id, row in pairs if row is not None}

    async def reset(self, version_id: str, at: float) -> None:
        """Count from now on (Unix seconds) only.

        Earlier samples that other workers still hold do not count when they are flushed.

        Raises:
            Conflict: other workers were faster each time.
        """
        if not await self._change(version_id, lambda _: LiveMetrics(since=at)):
            raise Conflict("the live metrics were modified concurrently; retry")

    async def _change(self, version_id: str, change: Callable[[LiveMetrics], LiveMetrics]) -> bool:
        """Replace live metrics in one atomic step; return whether it is done (or the version is deleted)."""
        # Compared is the stamp: a window of timings is too large to be sent as the expected value.
        keys = [stamp_key(version_id), metrics_key(version_id)]
        for _ in range(MAX_TRIES):
            stamp, row = await self._store.get_many(keys)
            if stamp is None or row is None:
                return True
            after = change(decode_metrics(version_id, row))
            puts = {keys[0]: Put(self._new_id()), keys[1]: Put(encode_metrics(after))}
            if await self._store.update(Update(checks={keys[0]: stamp}, puts=puts)):
                return True
        return False

    def _trim(self) -> None:
        while len(self._waiting) > MAX_WAITING:
            self._waiting.popleft()
            self.dropped += 1
