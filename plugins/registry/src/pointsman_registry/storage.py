"""How the registry lies in the state store, as keys and JSON. Pure: what is read and written is decided elsewhere.

::

    {registry}state/@revision           counts the changes
    {registry}state/version/ID          one version
    {registry}state/name/NAME           which version is active, and the trail for rollbacks
    {registry}history/NAME/NUMBER       one history entry
    {registry}live/stamp/ID             text that differs after every hand-in of live metrics
    {registry}live/tally/ID             the live metrics of a version, of all workers together

Every change is one atomic step that checks the revision it was computed from. The braces keep all keys on one node of a
redis cluster, so that such a step is possible there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any, Final, TypeVar

from pydantic import TypeAdapter, ValidationError

from pointsman.errors import StoreCorrupt
from pointsman.store.base import JSON, Put, Update
from pointsman.store.snapshot import revision_key, with_revision

from .fields import MAX_HISTORY
from .tally import Tally, Timing
from .versions import Activation, Change, Standing, State, Version

TAG: Final = "{registry}"
STATE: Final = f"{TAG}state/"
VERSION: Final = f"{STATE}version/"
NAME: Final = f"{STATE}name/"
HISTORY: Final = f"{TAG}history/"
STAMP: Final = f"{TAG}live/stamp/"
TALLY: Final = f"{TAG}live/tally/"

_NUMBER_DIGITS: Final = 12
# Punctuation that could mean something in a key, a hash tag or a redis pattern. Other characters stay as they are, so
# that the longest name still fits into a key.
_ESCAPES: Final = {
    code: f"%{code:02X}" for code in range(0x21, 0x7F) if not chr(code).isalnum() and chr(code) not in "-._~"
}

_VERSION: Final = TypeAdapter(Version)
_STANDING: Final = TypeAdapter(Standing)
_ACTIVATION: Final = TypeAdapter(Activation)
_TALLY: Final = TypeAdapter(Tally)
_WINDOW: Final = TypeAdapter(list[tuple[float, float, float | None]])

T = TypeVar("T")


def escaped(text: str) -> str:
    """Return an id or a name as one part of a key; different texts stay different."""
    return text.translate(_ESCAPES)


def stamp_key(version_id: str) -> str:
    """Return the key of a version's stamp."""
    return STAMP + escaped(version_id)


def tally_key(version_id: str) -> str:
    """Return the key of a version's live metrics."""
    return TALLY + escaped(version_id)


def history_prefix(name: str | None) -> str:
    """Return the prefix of a name's history, or of everybody's."""
    return HISTORY if name is None else f"{HISTORY}{escaped(name)}/"


def step(change: Change, *, expected: int | None, stamp: str) -> Update:
    """Return the atomic step that carries out a change.

    Args:
        change: What to do.
        expected: The revision that the change was computed from; the step does nothing if it is not the present one.
        stamp: Unique; the first stamp of new versions.
    """
    puts: dict[str, Put] = {}
    deletes: list[str] = []
    for version in change.registered:
        puts[VERSION + escaped(version.id)] = Put(asdict(version))
        puts[stamp_key(version.id)] = Put(stamp)
        puts[tally_key(version.id)] = Put(encode_tally(Tally(since=version.created_at)))
    if change.deleted_id is not None:
        key = escaped(change.deleted_id)
        deletes += [VERSION + key, STAMP + key, TALLY + key]
    for name, standing in change.standings.items():
        puts[NAME + escaped(name)] = Put({"name": name, **_plain(standing)})
    for entry in change.activations:
        puts[_history_key(entry.name, entry.number)] = Put(_plain(entry))
        if entry.number > MAX_HISTORY:
            deletes.append(_history_key(entry.name, entry.number - MAX_HISTORY))
    return with_revision(Update(checks={revision_key(STATE): expected}, puts=puts, deletes=deletes), STATE)


def decode_state(rows: Mapping[str, JSON]) -> State:
    """Return the state that lies under ``STATE``.

    Raises:
        StoreCorrupt: a row is not what ``step`` writes.
    """
    versions: dict[str, Version] = {}
    standings: dict[str, Standing] = {}
    for key, row in rows.items():
        if key.startswith(VERSION):
            version = _decoded(_VERSION, key, row)
            versions[version.id] = version
        else:
            name = row.get("name") if isinstance(row, dict) else None
            if not key.startswith(NAME) or not isinstance(name, str):
                raise _corrupt(key)
            standings[name] = _decoded(_STANDING, key, row)
    for name, standing in standings.items():
        for version_id in (*standing.trail, standing.active_id):
            if version_id is not None and (version_id not in versions or versions[version_id].name != name):
                raise _corrupt(NAME + escaped(name))
    return State(versions, standings)


def decode_history(rows: Iterable[tuple[str, JSON]]) -> list[Activation]:
    """Return the history of one name, or of several, the newest first.

    Args:
        rows: In the order of their keys.

    Raises:
        StoreCorrupt: a row is not what ``step`` writes.
    """
    entries = [_decoded(_ACTIVATION, key, row) for key, row in rows][::-1]
    if len({entry.name for entry in entries}) > 1:
        # Only between names: within one the numbers decide, whatever the workers' clocks said.
        entries.sort(key=lambda entry: entry.at, reverse=True)
    return entries


def encode_tally(tally: Tally) -> dict[str, JSON]:
    """Return live metrics as JSON, the window as triples."""
    return {
        "since": tally.since,
        "updated_at": tally.updated_at,
        "requests": tally.requests,
        "errors": tally.errors,
        "cancelled": tally.cancelled,
        "window": [[timing.at, timing.latency_ms, timing.first_token_ms] for timing in tally.window],
    }


def decode_tally(version_id: str, row: JSON) -> Tally:
    """Return live metrics from JSON.

    Raises:
        StoreCorrupt: it is not what ``encode_tally`` writes.
    """
    key = tally_key(version_id)
    if not isinstance(row, dict):
        raise _corrupt(key)
    triples = _decoded(_WINDOW, key, row.get("window"))
    return _decoded(_TALLY, key, {**row, "window": tuple(Timing(*triple) for triple in triples)})


def _history_key(name: str, number: int) -> str:
    return f"{history_prefix(name)}{number:0{_NUMBER_DIGITS}d}"


def _decoded(adapter: TypeAdapter[T], key: str, row: object) -> T:
    try:
        return adapter.validate_python(row)
    except ValidationError as err:
        raise _corrupt(key) from err


def _corrupt(key: str) -> StoreCorrupt:
    return StoreCorrupt(f"the registry's row {key!r} does not hold what the registry writes; restore or remove it")


def _plain(value: Standing | Activation) -> dict[str, Any]:
    plain = asdict(value)
    return {key: list(part) if isinstance(part, tuple) else part for key, part in plain.items()}
