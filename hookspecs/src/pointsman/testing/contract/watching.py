"""Ends a hook that does not give the event loop back, and says where it is."""

from __future__ import annotations

import asyncio
import ctypes
import math
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

#: The longest between two looks, in seconds.
_LOOK_S: Final = 1.0
#: Looks until what holds the loop again is ended, after the first time.
_LOOKS_AGAIN: Final = 2


class LoopHeldError(BaseException):
    """Raised within a hook that does not give the event loop back, where it is."""


class LoopWatch:
    """Watches one event loop from a thread of its own.

    Looks are counted instead of time: where the machine pauses the whole process, there are none.

    Args:
        held_s: What holds the loop for this long is ended, in seconds.
        package: The top-level package of the plugin, whose innermost line is named.

    Attributes:
        where: Where the loop was first held, or empty.
    """

    def __init__(self, held_s: float, package: str) -> None:
        self._held_s = held_s
        self._look_s = min(_LOOK_S, held_s / 4)
        self._package = package
        self._looks = 0
        self.where = ""

    @contextmanager
    def watching(self) -> Iterator[None]:
        """End what holds the running event loop for too long; the task in which this runs is then cancelled."""
        loop, task, over = asyncio.get_running_loop(), asyncio.current_task(), threading.Event()
        thread = threading.get_ident()
        signalled = _raises_on_signal()

        def turn() -> None:
            self._looks = 0

        def cancel() -> None:
            if task is not None and not over.is_set():
                task.cancel()

        def watch() -> None:
            most = math.ceil(self._held_s / self._look_s)
            while not over.wait(self._look_s):
                self._looks += 1
                if self._looks > most:
                    self.where = self.where or self._place(sys._current_frames().get(thread))  # noqa: SLF001  # its documented way
                    self._looks, most = 0, _LOOKS_AGAIN
                    loop.call_soon_threadsafe(cancel)
                    _interrupt(thread, signalled=signalled)
                loop.call_soon_threadsafe(turn)

        watcher = threading.Thread(target=watch, name="contract-watch", daemon=True)
        former = signal.signal(signal.SIGUSR2, _raise) if signalled else None
        watcher.start()
        try:
            yield
        finally:
            over.set()
            watcher.join()
            if signalled:
                signal.signal(signal.SIGUSR2, former)

    def _place(self, frame: FrameType | None) -> str:
        """Return the innermost line of the plugin's own code, or of any where there is none."""
        first = frame
        while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] != self._package:
            frame = frame.f_back
        frame = frame or first
        if frame is None:
            return "unknown"
        return f"{frame.f_code.co_qualname} ({frame.f_code.co_filename}:{frame.f_lineno})"


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
