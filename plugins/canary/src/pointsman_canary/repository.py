"""The experiments in the store. Every change is one atomic step, so that nothing is lost or done twice.

Keys, all in one hash tag::

    {canary}/revision           counts the changes that routing must know of; the workers poll it
    {canary}/index              the names of the experiments, in the order of their creation
    {canary}/head/<name>        id of the present state, and how many audit entries there are; outlives a deletion
    {canary}/state/<name>       the state
    {canary}/mail/<name>        what the workers have observed and nobody has taken in yet
    {canary}/audit/<name>/<n>   one entry of the audit trail
    {canary}/scored/<name>/<h>  a request whose score has been counted
    {canary}/lease              who steps

Whoever writes a state checks the head it was read with. So a stepper that was believed dead writes nothing any more,
and observations that are taken in disappear from the mailbox in the very step that counts them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from pointsman.errors import StoreUnavailable
from pointsman.store.base import JSON, Put, StateStore, Update

from . import codec
from .observations import Mail, encode, merge
from .rollout import Change, Rollout

ROOT: Final = "{canary}/"
REVISION: Final = ROOT + "revision"
INDEX: Final = ROOT + "index"
LEASE: Final = ROOT + "lease"

LEASE_S: Final = 3.0
#: Mail that nobody takes in for this long is from an experiment that is gone.
_MAIL_TTL_S: Final = 86_400.0
_SCORED_TTL_S: Final = 86_400.0
_TRIES: Final = 5


@dataclass(frozen=True, slots=True)
class Stored:
    """An experiment as it lies in the store.

    Attributes:
        name: Its name.
        head: The head it was read with; None when there has never been one of this name.
        rollout: Its state; None when there is none (any more).
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

    async def revision(self) -> JSON:
        """Return what changes whenever routing has to change."""
        return await self._store.get(REVISION)

    async def names(self) -> list[str]:
        """Return the names of the experiments, in the order of their creation."""
        return _names(await self._store.get(INDEX))

    async def load(self, name: str) -> Stored:
        """Read one experiment.

        Raises:
            StoreCorrupt: the store holds something else there.
        """
        head, state, mail = await self._store.get_many([_key("head", name), _key("state", name), _key("mail", name)])
        known = self._read.get(name)
        # The state of a known head is known: most reads are of a state that this worker wrote itself.
        if known is not None and head is not None and known.head == head and (state is None) == (known.rollout is None):
            return Stored(name, head, known.rollout, mail)
        found = Stored(name, head, None if state is None else codec.decode_rollout(state), mail)
        self._read[name] = found
        return found

    async def load_all(self) -> list[Stored]:
        """Read all experiments that there are, in the order of their creation."""
        found = [await self.load(name) for name in await self.names()]
        return [stored for stored in found if stored.rollout is not None]

    async def save(
        self, before: Stored, rollout: Rollout | None, changes: Sequence[Change], *, took_mail: bool = False
    ) -> bool:
        """Write a state, its audit entries and, when it has changed for routing, the revision, in one step.

        Args:
            before: The experiment as it was read.
            rollout: The new state; None removes it.
            changes: What to write into the audit trail.
            took_mail: Whether ``before.mail`` is taken into account and has to go.

        Returns:
            Whether it was written; False when somebody else was faster: read again.
        """
        name = before.name
        head: dict[str, JSON] = {"id": self._new_id(), "entries": before.entries + len(changes)}
        checks: dict[str, JSON] = {_key("head", name): before.head}
        puts = {_key("head", name): Put(head)}
        deletes = []
        if rollout is None:
            deletes.append(_key("state", name))
        else:
            puts[_key("state", name)] = Put(codec.encode_rollout(rollout))
        for number, change in enumerate(changes, before.entries):
            puts[_audit_key(name, number)] = Put(codec.encode_change(change))
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
            merged = encode(merge(codec.decode_mail(present), mail))
            # A failure from here on may have added them: they are given up rather than counted twice.
            if await self._store.compare_and_set(key, present, merged, ttl_s=_MAIL_TTL_S):
                return True
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


def _audit_key(name: str, number: int) -> str:
    return f"{_key('audit', name)}/{number:08d}"


def _names(index: JSON) -> list[str]:
    return [str(name) for name in index] if isinstance(index, Sequence) and not isinstance(index, str) else []
