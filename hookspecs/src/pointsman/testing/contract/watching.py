"""Ends what does not give the event loop back, and says which hook it is and where."""

from __future__ import annotations

import asyncio
import ctypes
import math
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from types import FrameType
from typing import Final

from ...host import discovery, instances
from ...host.isolation import place
from ...host.watchdog import OUTSIDE, frame_of, package_of, running, stack

#: Time between two looks, in seconds.
_LOOK_S: Final = 0.05
#: Looks between two ticks of a timer, which counts the time that the process computes. A tick looks where the thread cannot:
#: what runs keeps the interpreter to itself, as a regular expression does.
_LOOKS_A_TICK: Final = 5
#: Looks until what holds the loop again is ended, after the first time.
_LOOKS_AGAIN: Final = 2
#: What prepares or ends a plugin may hold the loop for this many times as long as a hook that requests wait for.
_LIFE: Final = 20
#: Functions that prepare or end a plugin: built, started, stopped.
_LIVES: Final = frozenset(
    {
        discovery.load_each.__code__,
        instances.Instances.start_up.__code__,
        instances.Instances.shut_down.__code__,
    }
)
#: Packages of debuggers: what is stopped in one is not ended.
_DEBUGGERS: Final = frozenset({"pdb", "bdb", "pydevd", "debugpy", "_pydevd_bundle", "ipdb", "pudb"})


class LoopHeldError(BaseException):
    """Raised within what does not give the event loop back, where it is."""


class LoopWatch:
    """Watches one event loop from a thread of its own.

    Looks are counted instead of time: where the machine pauses the whole process, there are none.

    Args:
        held_s: A hook that holds the loop for this long is ended, in seconds; anything else after ``_LIFE`` times that.
        packages: The plugin by the top-level packages whose innermost line is named.
        outside: What runs outside the hooks of the plugin, for the message.

    Attributes:
        held: What first held the loop, how long at least, and where; empty while nothing has.
    """

    def __init__(self, held_s: float, packages: Mapping[str, str], outside: str = OUTSIDE) -> None:
        self._most = math.ceil(held_s / _LOOK_S)
        self._packages = packages
        self._outside = outside
        #: Looks since the loop last turned.
        self._looks = 0
        #: Looks since the last tick.
        self._recent = 0
        self.held = ""

    @contextmanager
    def watching(self) -> Iterator[None]:
        """End what holds the running event loop for too long; the task in which this runs is then cancelled."""
        over, thread, signalled = threading.Event(), threading.get_ident(), _raises_on_signal()
        is_over = partial(self._is_over, asyncio.get_running_loop(), asyncio.current_task(), over)

        def watch() -> None:
            while not over.wait(_LOOK_S):
                self._recent += 1
                with frame_of(thread) as frame:
                    ends = is_over(frame, 1)
                del frame
                if ends:
                    _interrupt(thread, signalled=signalled)

        def tick(_: int, frame: FrameType | None) -> None:
            recent, self._recent = self._recent, 0
            missed = _LOOKS_A_TICK - recent
            if missed > 1 and is_over(frame, missed):
                raise LoopHeldError

        watcher = threading.Thread(target=watch, name="contract-watch", daemon=True)
        with _signals(tick) if signalled else nullcontext():
            watcher.start()
            try:
                yield
            finally:
                over.set()
                watcher.join()

    def _is_over(
        self,
        loop: asyncio.AbstractEventLoop,
        task: asyncio.Task[object] | None,
        over: threading.Event,
        frame: FrameType | None,
        looks: int,
    ) -> bool:
        """Count looks at what runs; return whether it is to be ended. The task is then cancelled."""

        def cancel() -> None:
            if task is not None and not over.is_set():
                task.cancel()

        self._looks += looks
        ends = self._is_too_long(frame)
        if ends:
            self._looks = 0
            loop.call_soon_threadsafe(cancel)
        loop.call_soon_threadsafe(self._turned)
        return ends

    def _turned(self) -> None:
        self._looks = 0

    def _is_too_long(self, frame: FrameType | None) -> bool:
        """Return whether what runs has held the loop for too long; note what it is."""
        if self._looks <= min(_LOOKS_AGAIN, self._most):
            return False
        frames = tuple(stack(frame))
        if any(package_of(one) in _DEBUGGERS for one in frames):
            self._looks = 0
            return False
        step = running(frame, self._packages)
        if step is None or (not self.held and any(one.f_code in _LIVES for one in frames)):
            most = _LIFE * self._most
        else:
            most = _LOOKS_AGAIN if self.held else self._most
        if self._looks <= most:
            return False
        if not self.held:
            what = "what the test calls" if step is None else f"{step.plugin!r}: {self._what(step.hook)}"
            where = step.place if step is not None else place([(one, one.f_lineno) for one in reversed(frames)])
            self.held = (
                f"{what} held the event loop for more than {most * _LOOK_S:g} s, in {where or 'an unknown place'}"
            )
        return True

    def _what(self, hook: str) -> str:
        if hook == OUTSIDE:
            return self._outside
        return hook if hook.startswith("task ") else f"the hook {hook!r}"


@contextmanager
def _signals(tick: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Let a signal raise in the main thread, and call ``tick`` again and again while it computes."""
    tick_s = _LOOKS_A_TICK * _LOOK_S
    former = signal.signal(signal.SIGUSR2, _raise), signal.signal(signal.SIGVTALRM, tick)
    timer = signal.setitimer(signal.ITIMER_VIRTUAL, tick_s, tick_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, *timer)
        signal.signal(signal.SIGVTALRM, former[1])
        signal.signal(signal.SIGUSR2, former[0])


def _raise(*_: object) -> None:
    raise LoopHeldError


def _raises_on_signal() -> bool:
    """Return whether a signal can interrupt the running thread, also where it sleeps or waits for a lock."""
    return hasattr(signal, "pthread_kill") and threading.current_thread() is threading.main_thread()


def _interrupt(thread: int, *, signalled: bool) -> None:
    if signalled:
        signal.pthread_kill(thread, signal.SIGUSR2)
    else:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(LoopHeldError))
