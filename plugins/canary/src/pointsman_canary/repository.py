"""The experiments in the store. Every change is one atomic step, so that nothing is lost or done twice.

Keys, all in one hash tag::

    {canary}/revision           counts the changes that routing must know of; the workers poll it
    {canary}/index              the names of the experiments, in the order of their creation
    {canary}/head/<name>        id of the present state, and how many audit entries there are; outlives a deletion
    {canary}/state/<name>       the state
    {canary}/mail/<name>        what the workers have observed and the stepper has not taken in yet
    {canary}/audit/<name>/<n>   one entry of the audit trail
    {canary}/counted/<n>/<s>    the requests that ended in one second and are counted, as digests; kept for an hour
    {canary}/scored/<name>/<h>  a request whose score has been counted
    {canary}/lease              the worker that steps

A write of a state checks the head that it was read with. So a stepper that lost its lease writes nothing, and
observations disappear from the mailbox in the same step that counts them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, TypeVar

from pydantic import TypeAdapter, ValidationError

from pointsman.errors import StoreCorrupt, StoreUnavailable
from pointsman.store import JSON, Put, StateStore, Update

from .observations import Mail, Observation, encode, merge, total
from .rollout import Change, Rollout

T = TypeVar("T")

ROOT: Final = "{canary}/"
REVISION: Final = ROOT + "revision"
INDEX: Final = ROOT + "index"
LEASE: Final = ROOT + "lease"

LEASE_S: Final = 3.0
#: Mail that is not taken in for this long belongs to a deleted experiment.
_MAIL_TTL_S: Final = 86_400.0
_SCORED_TTL_S: Final = 86_400.0
#: The journal brings a settlement again seconds after its worker died, or when the next worker starts.
COUNTED_TTL_S: Final = 3600.0
#: Requests that one atomic step counts at most.
_BATCH: Final = 1000
_TRIES: Final = 5

_FORMER_DEFAULTS: Final = (("window_s", 3600.0), ("inconclusive_limit_s", 3600.0))

_ROLLOUT: Final = TypeAdapter(Rollout)
_CHANGE: Final = TypeAdapter(Change)
_MAIL: Final = TypeAdapter(Mail)
_COUNTED: Final = TypeAdapter(list[str])


@dataclass(frozen=True, slots=True)
class Stored:
    """An experiment as it is stored.

    Attributes:
        name: Its name.
        head: The head it was read with; None when there has never been one of this name.
        rollout: Its state; None when it never existed or was deleted.
        mail: The mailbox as it was read.
    """

    name: str
    head: JSON
    rollout: Rollout | None
    mail: JSON = None

    @property
    def entries(self) -> int:
        """How many audit entries there are."""
        count = self.head.get("entries", 0) if isinstance(self.head, Mapping) else 0
        return count if isinstance(count, int) else 0


class Repository:
    """Reads and writes experiments.

    Args:
        store: The plugin's store.
        new_id: Returns a new unique id.
    """

    def __init__(self, store: StateStore, new_id: Callable[[], str]) -> None:
        self._store = store
        self._new_id = new_id
        self._read: dict[str, Stored] = {}

    async def names(self) -> list[str]:
        """Return the names of the experiments, in the order of their creation."""
        return _names(await self._store.get(INDEX))

    async def load(self, name: str) -> Stored:
        """Read one experiment.

        Raises:
            StoreCorrupt: the stored value is not a state.
        """
        return (await self._load([name]))[0]

    async def look(self, names: Sequence[str]) -> tuple[JSON, list[Stored]]:
        """Return a counter that changes whenever routing has to change, and these experiments.

        One short read where no state has changed: the state of a known head is known, and most have been written here.

        Raises:
            StoreCorrupt: a stored value is not a state.
        """
        keys = [_key(kind, name) for name in names for kind in ("head", "mail")]
        revision, *values = await self._store.get_many([REVISION, *keys])
        found: dict[str, Stored] = {}
        for name, head, mail in zip(names, values[0::2], values[1::2], strict=True):
            if (known := self._known(name, head)) is not None:
                found[name] = Stored(name, head, known.rollout, mail)
        for stored in await self._load([name for name in names if name not in found]):
            found[stored.name] = stored
        return revision, [found[name] for name in names]

    async def _load(self, names: Sequence[str]) -> list[Stored]:
        if not names:
            return []
        keys = [_key(kind, name) for name in names for kind in ("head", "state", "mail")]
        values = await self._store.get_many(keys)
        rows = zip(names, values[0::3], values[1::3], values[2::3], strict=True)
        return [self._stored(*row) for row in rows]

    def _stored(self, name: str, head: JSON, state: JSON, mail: JSON) -> Stored:
        known = self._known(name, head)
        if known is not None and (state is None) == (known.rollout is None):
            return Stored(name, head, known.rollout, mail)
        stored = Stored(name, head, None if state is None else decode_rollout(state), mail)
        self._read[name] = stored
        return stored

    def _known(self, name: str, head: JSON) -> Stored | None:
        known = self._read.get(name)
        return known if known is not None and head is not None and known.head == head else None

    async def load_all(self) -> list[Stored]:
        """Read all experiments that there are, in the order of their creation."""
        experiments = await self._load(await self.names())
        return [stored for stored in experiments if stored.rollout is not None]

    async def save(
        self, before: Stored, rollout: Rollout | None, changes: Sequence[Change], *, took_mail: bool = False
    ) -> bool:
        """Write a state, its audit entries and, when it has changed for routing, the revision, in one step.

        Args:
            before: The experiment as it was read.
            rollout: The new state; None removes it.
            changes: What to write into the audit trail.
            took_mail: Whether ``before.mail`` is counted in the new state and has to be removed.

        Returns:
            Whether it was written; False when another worker has changed it: read again.
        """
        name = before.name
        head: dict[str, JSON] = {"id": self._new_id(), "entries": before.entries + len(changes)}
        checks: dict[str, JSON] = {_key("head", name): before.head}
        puts = {_key("head", name): Put(head)}
        deletes = []
        if rollout is None:
            deletes.append(_key("state", name))
        else:
            puts[_key("state", name)] = Put(encode_rollout(rollout))
        for number, change in enumerate(changes, before.entries):
            puts[_audit_key(name, number)] = Put(encode_change(change))
        if (rollout is None) != (before.rollout is None):
            index = await self._store.get(INDEX)
            others = [other for other in _names(index) if other != name]
            checks[INDEX] = index
            puts[INDEX] = Put([*others, name] if rollout is not None else others)
        if took_mail:
            checks[_key("mail", name)] = before.mail
        if took_mail or rollout is None:
            deletes.append(_key("mail", name))
        adds = {REVISION: 1} if changes else {}
        written = await self._store.update(Update(checks=checks, puts=puts, deletes=deletes, adds=adds))
        if written:
            self._read[name] = Stored(name, head, rollout)
        return written

    async def post(self, name: str, mail: Mail) -> bool:
        """Add observations to the mailbox.

        Returns:
            False when they could not be added and may be tried again.
        """
        key = _key("mail", name)
        for _ in range(_TRIES):
            try:
                present = await self._store.get(key)
            except StoreUnavailable:
                return False
            merged = encode(merge(decode_mail(present), mail))
            # A failure from here on may have added them: they are given up rather than counted twice.
            if await self._store.compare_and_set(key, present, merged, ttl_s=_MAIL_TTL_S):
                return True
        return False

    async def count(self, name: str, requests: Mapping[str, Observation]) -> bool:
        """Add requests to the mailbox, each only once, whichever worker saw it and however often.

        Args:
            name: The experiment.
            requests: Request id to what was observed.

        Returns:
            False when some could not be added; trying all of them again counts none twice.
        """
        rest = iter(requests.items())
        while batch := dict(islice(rest, _BATCH)):
            if not await self._count(name, batch):
                return False
        return True

    async def _count(self, name: str, requests: Mapping[str, Observation]) -> bool:
        mail_key = _key("mail", name)
        rows: dict[str, dict[str, Observation]] = {}
        for request_id, observation in requests.items():
            row = rows.setdefault(f"{_key('counted', name)}/{observation.second}", {})
            row[_digest(request_id)] = observation
        for _ in range(_TRIES):
            try:
                mail, *present = await self._store.get_many([mail_key, *rows])
                checks: dict[str, JSON] = {mail_key: mail}
                puts: dict[str, Put] = {}
                new: list[Observation] = []
                for (key, row), raw in zip(rows.items(), present, strict=True):
                    known = _decoded(_COUNTED, raw or [], "list of counted requests")
                    if added := sorted(row.keys() - set(known)):
                        checks[key], puts[key] = raw, Put([*known, *added], COUNTED_TTL_S)
                        new += [row[digest] for digest in added]
                if not new:
                    return True
                puts[mail_key] = Put(encode(merge(decode_mail(mail), total(new))), _MAIL_TTL_S)
                if await self._store.update(Update(checks=checks, puts=puts)):
                    return True
            except StoreUnavailable:
                # Whether the step was carried out or not, the next try finds out.
                return False
        return False

    async def first_score(self, name: str, request_id: str) -> bool:
        """Say whether this is the first score for a request, and remember that there is one."""
        digest = hashlib.sha256(request_id.encode("utf-8", "surrogatepass")).hexdigest()
        return await self._store.compare_and_set(f"{_key('scored', name)}/{digest}", None, 1, ttl_s=_SCORED_TTL_S)

    async def audit(self, name: str, limit: int) -> list[JSON]:
        """Return the newest entries of the audit trail, the newest first."""
        head = await self._store.get(_key("head", name))
        count = Stored(name, head, None).entries
        keys = [_audit_key(name, number) for number in range(count - 1, max(-1, count - 1 - limit), -1)]
        return [entry for entry in await self._store.get_many(keys) if entry is not None] if keys else []

    async def lead(self, worker: str) -> bool:
        """Take or keep the lease on stepping; say whether the worker has it for the next ``LEASE_S`` seconds."""
        if await self._store.compare_and_set(LEASE, worker, worker, ttl_s=LEASE_S):
            return True
        return await self._store.compare_and_set(LEASE, None, worker, ttl_s=LEASE_S)

    async def resign(self, worker: str) -> None:
        """Give the lease back, if the worker has it."""
        await self._store.compare_and_set(LEASE, worker, None)


def _key(kind: str, name: str) -> str:
    return f"{ROOT}{kind}/{name}"


def _digest(request_id: str) -> str:
    """Return what stands for a request among those of one second."""
    return hashlib.blake2b(request_id.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def _audit_key(name: str, number: int) -> str:
    return f"{_key('audit', name)}/{number:08d}"


def _names(index: JSON) -> list[str]:
    return [str(name) for name in index] if isinstance(index, Sequence) and not isinstance(index, str) else []


def encode_rollout(rollout: Rollout) -> Any:
    """Return a state as JSON."""
    return _ROLLOUT.dump_python(rollout, mode="json")


def decode_rollout(raw: JSON) -> Rollout:
    """Return the state of a JSON value.

    Raises:
        StoreCorrupt: it is not a state.
    """
    return _decoded(_ROLLOUT, _modern(raw), "state of an experiment")


def _modern(raw: JSON) -> JSON:
    """Return a state without the defaults of the release that counted windows by time alone: today's take their place."""
    experiment = raw.get("experiment") if isinstance(raw, Mapping) else None
    if not isinstance(raw, Mapping) or not isinstance(experiment, Mapping) or "window_samples" in experiment:
        return raw
    kept = {key: value for key, value in experiment.items() if (key, value) not in _FORMER_DEFAULTS}
    return {**raw, "experiment": kept}


def encode_change(change: Change) -> Any:
    """Return an entry of the audit trail as JSON."""
    return _CHANGE.dump_python(change, mode="json")


def decode_mail(raw: JSON) -> Mail:
    """Return the observations of a JSON value; None is none at all.

    Raises:
        StoreCorrupt: it is not a mailbox.
    """
    return _decoded(_MAIL, raw or {}, "mailbox")


def _decoded(adapter: TypeAdapter[T], raw: JSON, what: str) -> T:
    try:
        return adapter.validate_python(raw)
    except ValidationError as err:
        first = err.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise StoreCorrupt(f"the canary's {what} in the store cannot be read: {where}: {first['msg']}") from err
