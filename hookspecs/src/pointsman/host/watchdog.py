"""Which plugin holds the event loop at this moment, and at which line.

A thread looks at what the loop's thread runs: no hook call pays for it, and a hook that never returns is named too. It looks
only when the loop has not turned for a while: CPython 3.11 may crash when the frames of a thread that runs are looked at.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import selectors
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Final

from . import isolation
from .hooks import Hooks
from .isolation import BLOCKED_S, Timing, place
from .runtime import TaskGroup

log: Final = logging.getLogger("pointsman")

#: Time in which the loop has to turn, in seconds. A hook that holds it for ``BLOCKED_S`` is seen at least once when half of that
#: has passed.
LOOK_S: Final = BLOCKED_S / 2
#: What still holds the loop is logged after this time, and each time that has doubled, in seconds.
STILL_S: Final = 1.0
#: Instead of a hook, for what a plugin runs outside its hooks and its background tasks.
OUTSIDE: Final = "an admin route or a task"
#: How long the end of the worker waits for the thread, in seconds.
_END_S: Final = 1.0
#: The owner of the host's own tasks, and the package of its code.
_HOST: Final = "pointsman"

#: The functions that run hooks. Each has the locals ``timing`` and ``started``.
_RUN_HOOKS: Final = frozenset(
    {
        isolation.begin.__code__,
        isolation.Waiting._step.__code__,  # noqa: SLF001  # its code alone
        isolation.timed.__code__,
        Hooks._next_async.__code__,  # noqa: SLF001  # as above
        Hooks._next_sync.__code__,  # noqa: SLF001  # as above
    }
)

#: The functions that run an event loop, asyncio's or uvloop's: what has called them is not on it.
_RUN_LOOPS: Final = frozenset({asyncio.Runner.run.__code__, asyncio.BaseEventLoop.run_forever.__code__})
#: The function in which asyncio's loop waits, and the one that calls it; uvloop's has no frame of its own.
_WAIT: Final = selectors.DefaultSelector.select.__code__
_TURN: Final = asyncio.BaseEventLoop._run_once.__code__  # type: ignore[attr-defined]  # noqa: SLF001  # its code alone


@dataclass(frozen=True, slots=True)
class Step:
    """What a plugin runs on the event loop at a moment.

    Attributes:
        plugin: The plugin.
        hook: The hook, ``task <name>``, or ``OUTSIDE``.
        place: Its innermost line, as ``isolation.place`` writes it.
        timing: The hook's; None outside its hooks.
        started: When this step of the hook began, in seconds of ``time.perf_counter``; None outside its hooks.
    """

    plugin: str
    hook: str
    place: str
    timing: Timing | None = None
    started: float | None = None


@contextmanager
def frame_of(ident: int) -> Iterator[FrameType | None]:
    """Yield the innermost frame of a running thread, None when it has ended; nothing is garbage-collected meanwhile.

    CPython 3.11 may collect garbage while it makes the object of another thread's frame. What a finalizer runs then lets that
    thread go on, the frame ends, and the object refers to memory that others use: the process crashes, later and elsewhere.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield sys._current_frames().get(ident)  # noqa: SLF001  # its documented way
    finally:
        if collects:
            gc.enable()


def stack(frame: FrameType | None) -> Iterator[FrameType]:
    """Yield a frame and those that have called it, innermost first."""
    while frame is not None:
        yield frame
        frame = frame.f_back


def waits(frame: FrameType | None) -> bool:
    """Return whether the thread with this innermost frame waits in its event loop, or has ended."""
    if frame is None or frame.f_code in _RUN_LOOPS:
        return True
    return frame.f_code is _WAIT and frame.f_back is not None and frame.f_back.f_code is _TURN


def running(frame: FrameType | None, packages: Mapping[str, str], own: Collection[str] = ()) -> Step | None:
    """Return what a plugin runs in a thread; None where none of them does.

    Args:
        frame: The innermost frame of the thread.
        packages: The plugins by their top-level packages.
        own: Further packages in which a line is named, such as those of tactics.
    """
    inner: list[tuple[FrameType, int]] = []
    plugin = ""
    for one in stack(frame):
        if one.f_code in _RUN_LOOPS:
            break
        if one.f_code in _RUN_HOOKS:
            timing, started = one.f_locals.get("timing"), one.f_locals.get("started")
            if isinstance(timing, Timing) and started is not None:
                return Step(timing.plugin, timing.hook, place(reversed(inner), {*packages, *own}), timing, started)
        if one.f_code is TaskGroup.guard.__code__:
            plugin, hook = one.f_locals["self"].owner, f"task {one.f_locals['name']}"
            return Step(plugin, hook, place(reversed(inner), {*packages, *own})) if plugin != _HOST else None
        plugin = packages.get(package_of(one), plugin)
        inner.append((one, one.f_lineno))
    return Step(plugin, OUTSIDE, place(reversed(inner), {*packages, *own})) if plugin else None


def package_of(frame: FrameType) -> str:
    """Return the top-level package of a frame's code."""
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]


class Watchdog:
    """Watches the event loop that runs when it starts.

    Args:
        packages: Returns the plugins by their top-level packages.
        own: Returns further packages in which a line is named.
    """

    def __init__(self, packages: Callable[[], Mapping[str, str]], own: Callable[[], Collection[str]]) -> None:
        self._packages = packages
        self._own = own
        #: Released at the end. To wait for a lock costs half of what waiting for an event does.
        self._end = threading.Lock()
        self._thread: threading.Thread | None = None
        self._outside: dict[tuple[str, str], Timing] = {}
        self._hold: _Hold | None = None
        self._said = 0.0
        #: Whether the loop has turned since it was last asked to note it.
        self._turned = True

    def start(self) -> None:
        """Start looking."""
        loop, ident = asyncio.get_running_loop(), threading.get_ident()
        self._turned = True
        self._end = end = threading.Lock()
        end.acquire()
        self._thread = threading.Thread(
            target=self._watch, args=(loop, ident, end), name="pointsman-watchdog", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Stop looking; harmless where it has not started."""
        if self._thread is not None:
            self._end.release()
            self._thread.join(_END_S)
            self._thread = None

    def timings(self) -> list[Timing]:
        """Return how long plugins have held the loop outside their hooks, where that was longer than ``BLOCKED_S``."""
        return [timing for timing in list(self._outside.values()) if timing.calls]

    def _watch(self, loop: asyncio.AbstractEventLoop, ident: int, end: threading.Lock) -> None:
        while not end.acquire(timeout=LOOK_S):
            if self._turned:
                self._said = 0.0
                self._ask(loop)
            else:
                self._look(loop, ident)

    def _ask(self, loop: asyncio.AbstractEventLoop) -> None:
        """Let the loop note that it turns."""
        self._turned = False
        try:
            loop.call_soon_threadsafe(self._turn)
        except RuntimeError:  # the loop has just been closed
            self._turned = True

    def _turn(self) -> None:
        self._turned = True

    def _look(self, loop: asyncio.AbstractEventLoop, ident: int) -> None:
        """Look at what holds the loop."""
        with frame_of(ident) as frame:
            step = None if waits(frame) else running(frame, self._packages(), self._own())
        # It would keep alive what the loop has finished.
        del frame
        if step is None:
            self._said = 0.0
        elif step.timing is not None and step.started is not None:
            self._note(step.timing, step.place, time.perf_counter() - step.started)
        else:
            self._look_outside(step, loop)

    def _look_outside(self, step: Step, loop: asyncio.AbstractEventLoop) -> None:
        """Note what holds the loop since an earlier look: nothing tells when a step of a task began."""
        hold = self._hold
        if hold is not None and not hold.over:
            self._note(hold.timing, step.place, time.perf_counter() - hold.since)
            return
        timing = self._outside.setdefault((step.plugin, step.hook), Timing(step.plugin, step.hook))
        self._hold = _Hold(timing, time.perf_counter())
        try:
            loop.call_soon_threadsafe(self._hold.end)
        except RuntimeError:  # the loop has just been closed
            self._hold.over = True

    def _note(self, timing: Timing, where: str, held_s: float) -> None:
        if held_s < LOOK_S:
            self._said = 0.0
            return
        timing.seen_at = where
        if held_s >= max(STILL_S, 2 * self._said):
            self._said = held_s
            log.error(
                "plugin %r: %s has held the event loop for %.0f s and still does, in %s: no other request is served",
                timing.plugin,
                timing.what,
                held_s,
                where or "an unknown place",
            )


class _Hold:
    """A step outside the hooks, which ends when the loop next turns."""

    __slots__ = ("over", "since", "timing")

    def __init__(self, timing: Timing, since: float) -> None:
        self.timing = timing
        self.since = since
        self.over = False

    def end(self) -> None:
        held_s = time.perf_counter() - self.since
        if held_s > BLOCKED_S and self.timing.seen_at:
            self.timing.calls += 1
            self.timing.held(held_s)
        self.over = True
