"""The base of what plugins announce, and what the host announces itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .attempts import Attempt


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Base of what plugins announce to one another with ``services.publish``; delivered within one worker.

    ``pointsman.events`` has the events of the plugins that come with Pointsman. A class of events that sets ``everywhere:
    ClassVar[bool] = True`` reaches the plugins of all workers that share the store: here at once, there once within about two
    seconds, or not at all where the store or a worker stands still for half a minute. Its fields must have a form in JSON of at
    most 8 kB; there may be some hundred such events in half a minute.

    Attributes:
        source: The announcing plugin; filled in by the host.
    """

    everywhere: ClassVar[bool] = False

    source: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreEmptied(Event):
    """The store has lost everything, or what was written lately, or is another one than before.

    A redis without persistence loses everything when it is restarted; a redis that restarts from a snapshot loses what was
    written after it. The host announces it to every worker. A plugin writes again what its configuration says, and reports
    what is lost.

    Attributes:
        at: Unix seconds at which it was noticed.
        life: What all workers call the store's time since then; the same in each.
        since: Unix seconds since which what was written is lost; 0: everything is.
    """

    at: float
    life: str = ""
    since: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnCallEnded(Event):
    """A plugin's own call has ended, and the gateway has logged what it cost, or will not do so any more.

    The host announces it, usually some milliseconds after ``post_response`` or ``on_error`` of its attempts.

    Attributes:
        request_id: The call.
        attempts: Its attempts, with the gateway's own cost where it has logged one.
    """

    request_id: str
    attempts: tuple[Attempt, ...]
