"""The interface of a sink.

A distribution offers one with an entry point in the group ``pointsman_billing.sinks`` that names a ``SinkInfo``::

    [project.entry-points."pointsman_billing.sinks"]
    webhook = "my_sinks:webhook"

Its name is the name of the sink in the configuration. Importing it must not have side effects.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

from pydantic import Field

from pointsman.config import Section
from pointsman_billing.events import BillEvent

T = TypeVar("T")


class SinkConfig(Section):
    """The keys that every sink has."""

    name: str | None = Field(
        default=None,
        pattern=r"^[a-z0-9][a-z0-9-]{0,39}$",
        description="Name under which the sink keeps its place in the outbox; null: the sink's kind.",
    )
    events: Literal["all", "attempts", "requests"] = Field(default="all", description="Which events the sink gets.")
    start: Literal["oldest", "now"] = Field(
        default="oldest",
        description="Where a sink starts that has no place in the outbox yet: 'oldest', with the oldest event that is still "
        "kept, so that nothing is missing, or 'now', with the next one; later changes have no effect.",
    )
    batch_events: int = Field(default=500, ge=1, le=10_000, description="Most events in one delivery.")
    timeout_s: float = Field(default=10.0, ge=0.1, le=300.0, description="Longest time for one delivery, in seconds.")
    max_tries: int | None = Field(
        default=None,
        ge=1,
        le=1_000_000,
        description="Consecutive failures after which a batch becomes dead letters; null: never, because a receiver that is down for "
        "hours then gets everything in order when it is back.",
    )
    backoff_first_s: float = Field(
        default=0.5, ge=0.01, le=3600.0, description="Pause after the first failure, in seconds."
    )
    backoff_most_s: float = Field(
        default=60.0,
        ge=0.01,
        le=86_400.0,
        description="Longest pause, in seconds; the pause doubles with each failure.",
    )


class SinkError(Exception):
    """A delivery failed. The message is shown to operators, so it must not contain secrets."""


class SinkUnavailable(SinkError):
    """The receiver cannot take events now, or is not configured for it yet; they are sent again.

    Args:
        message: What happened.
        retry_after_s: Seconds after which the receiver asks to be tried again, or None.
    """

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class EventsRejected(SinkError):
    """The receiver will never take these events. A batch is then sent in parts, to find the invalid ones.

    Args:
        message: What happened.
        ids: The ids of the invalid events, where the receiver names them; the others were not taken either.
    """

    def __init__(self, message: str, ids: frozenset[str] = frozenset()) -> None:
        super().__init__(message)
        self.ids = ids


class EventsKnown(EventsRejected):
    """The receiver has these events, or some of them, already. One that is refused for this reason alone is delivered."""


class Sink(Protocol):
    """One place where events go. Used by one task at a time."""

    async def open(self) -> None:
        """Get ready. Called before the first ``send``, and again after a failure.

        Raises:
            SinkError: not possible now.
        """

    async def send(self, batch: Sequence[BillEvent]) -> None:
        """Deliver events. Returns when the receiver has confirmed every one of them.

        The same events may be sent again; their ids identify them.

        Raises:
            SinkError: they were not, or not all, taken.
        """

    async def close(self) -> None:
        """Release everything."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SinkContext:
    """What a sink gets from its plugin.

    Attributes:
        base: The directory that relative paths start from.
        now: Returns Unix seconds.
    """

    base: Path
    now: Callable[[], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class SinkInfo:
    """A kind of sink, as its entry point names it.

    Attributes:
        config: The model of its section.
        factory: Builds it. No I/O.
        modules: Modules that must be installed in addition to this distribution.
        extra: The extra that installs them.
    """

    config: type[SinkConfig]
    factory: Callable[[Any, SinkContext], Sink]
    modules: tuple[str, ...] = ()
    extra: str = ""


async def in_thread(work: Callable[[], T]) -> T:
    """Run blocking work on a thread. When the caller is cancelled, the work is finished first."""
    running = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait({running})
        if not running.cancelled():
            running.exception()
        raise
