"""What a sink is.

A distribution offers one with an entry point in the group ``pointsman_billing.sinks`` that names a ``SinkInfo``::

    [project.entry-points."pointsman_billing.sinks"]
    webhook = "my_sinks:webhook"

Its name is what the configuration calls it. Importing it must have no effect.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

from pydantic import Field

from pointsman_billing.events import BillEvent
from pointsman_billing.section import Section

T = TypeVar("T")


class SinkConfig(Section):
    """What every sink's section has."""

    name: str | None = Field(
        default=None,
        pattern=r"^[a-z0-9][a-z0-9-]{0,39}$",
        description="Under which it keeps its place in the outbox; left out: the sink's kind.",
    )
    events: Literal["all", "attempts", "requests"] = Field(default="all", description="Which events it gets.")
    start: Literal["oldest", "now"] = Field(
        default="oldest", description="Where a new sink begins: with all events that are still kept, or with the next."
    )
    batch_events: int = Field(default=500, ge=1, le=10_000, description="Most events in one delivery.")
    timeout_s: float = Field(default=10.0, ge=0.1, le=300.0, description="Longest time for one delivery, in seconds.")
    max_tries: int = Field(
        default=50, ge=1, le=1_000_000, description="After this many failures in a row a batch becomes dead letters."
    )
    backoff_first_s: float = Field(default=0.5, ge=0.01, le=3600.0, description="Pause after the first failure, s.")
    backoff_most_s: float = Field(
        default=60.0, ge=0.01, le=86_400.0, description="Longest pause; it doubles with each failure up to here, s."
    )


class SinkError(Exception):
    """A delivery failed. The message is shown to operators: no secrets in it."""


class SinkUnavailable(SinkError):
    """The other side cannot take events now, or not yet as it is configured; they are sent again.

    Args:
        message: What happened.
        retry_after_s: When the other side wants to hear of us again, in seconds, or None.
    """

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class EventsRejected(SinkError):
    """The other side will never take these events. A batch is then sent in parts, to find which ones are at fault.

    Args:
        message: What happened.
        ids: The ids of the events at fault, where the other side has named them; the others were not taken either.
    """

    def __init__(self, message: str, ids: frozenset[str] = frozenset()) -> None:
        super().__init__(message)
        self.ids = ids


class Sink(Protocol):
    """One place where events go. Used by one task at a time."""

    async def open(self) -> None:
        """Get ready. Called before the first ``send``, and again after a failure.

        Raises:
            SinkError: not possible now.
        """

    async def send(self, batch: Sequence[BillEvent]) -> None:
        """Deliver events. Returns when the other side has confirmed every one of them.

        The same events can come again; their ids tell.

        Raises:
            SinkError: they were not, or not all, taken.
        """

    async def close(self) -> None:
        """Let go of everything."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SinkContext:
    """What a sink is offered.

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
        modules: What it needs installed beside this distribution.
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
