"""What ``pointsman doctor`` finds out about the servers of the pools: it asks them for their lists, and changes nothing."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pointsman.plugin import Remark

from .servers import Listed, ModelServer, ServerError, Trouble

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from .slots import Model

#: Longest wait for one answer of a server, in seconds.
ANSWER_S: Final = 3.0


class WallClock:
    """Time as it is."""

    now = staticmethod(time.time)
    monotonic = staticmethod(time.monotonic)
    sleep = staticmethod(asyncio.sleep)

    def call_later(self, seconds: float, call: Callable[[], object]) -> asyncio.TimerHandle:
        """Call something later, unless that is cancelled."""
        return asyncio.get_running_loop().call_later(seconds, call)


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A server of a pool.

    Attributes:
        where: The pool.
        kind: The server's kind.
        server: The server; its client is closed in the end.
        budget: Device to the bytes of the pool.
        models: The pool's models that are on it.
    """

    where: str
    kind: str
    server: ModelServer
    budget: Mapping[str, int]
    models: Sequence[Model]


async def diagnose(subjects: Iterable[Subject]) -> list[Remark]:
    """Return how the servers are, one remark or more for each."""
    found = await asyncio.gather(*(_examine(subject) for subject in subjects))
    return [remark for remarks in found for remark in remarks]


async def _examine(subject: Subject) -> list[Remark]:
    server = subject.server
    where = f"{subject.where}: {subject.kind} at {server.url}"
    async with server.client:
        try:
            async with asyncio.timeout(ANSWER_S):
                listed = await server.models() if server.can_list else None
                limit = await server.limit()
        except TimeoutError:
            return [Remark("failed", f"{where} does not answer within {ANSWER_S:g} s; start it, or correct url")]
        except ServerError as err:
            return [Remark("failed", f"{where}: {_what_to_do(err, subject.kind)}")]
    if listed is None:
        return [Remark("warning", f"{where} has no list, so what is in its memory is not known; set list")]
    return [_resident(where, subject, listed), *_limit(where, subject, limit)]


def _what_to_do(err: ServerError, kind: str) -> str:
    match err.trouble:
        case Trouble.UNREACHABLE:
            return f"{err}; start it, or correct url"
        case Trouble.BUSY:
            return f"{err}; it is there, and busy: ask again"
    return f"{err}; it answers, but not as {kind} does: correct kind or url, or its settings"


def _resident(where: str, subject: Subject, listed: Mapping[str, Listed]) -> Remark:
    awake = [row for row in listed.values() if not row.sleeping]
    taken, budget = sum(row.bytes or 0 for row in awake), sum(subject.budget.values())
    text = f"{where} answers; {len(awake)} models in memory"
    if any(row.bytes is None for row in awake) or not awake:
        return Remark("ok", text)
    text += f", {taken} bytes of a budget of {budget}"
    if taken <= budget:
        return Remark("ok", text)
    return Remark(
        "warning", f"{text}: the gateway will evict its own until they fit; unload the others, or raise budget"
    )


def _limit(where: str, subject: Subject, limit: int | None) -> list[Remark]:
    """Return a warning where the server would evict by itself before the budget is used."""
    if limit is None:
        return []
    room, fitting = dict(subject.budget), 0
    # The smallest first: as many as there can be at one time.
    for model in sorted(subject.models, key=lambda one: sum(one.footprint.values())):
        if any(size > room[device] for device, size in model.footprint.items()):
            break
        room = {device: size - model.footprint.get(device, 0) for device, size in room.items()}
        fitting += 1
    if limit >= fitting:
        return []
    text = f"{where} keeps {limit} models at most, and {fitting} fit into the budget: it would evict by itself; raise its limit"
    return [Remark("warning", text)]
