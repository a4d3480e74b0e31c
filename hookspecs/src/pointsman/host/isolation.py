"""Isolation of plugins' faults: deadlines, stray cancellations, and the count of faults."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import time
import traceback
import types
from collections import Counter
from collections.abc import Callable, Collection, Coroutine, Generator, Iterable, Mapping
from dataclasses import dataclass, field
from time import perf_counter
from types import FrameType
from typing import Any, Final, Generic, NoReturn, TypeVar

from .. import deadline, extensions
from ..errors import HookError
from . import span_events

log: Final = logging.getLogger("pointsman")
T = TypeVar("T")

#: A fault that repeats on every request is logged once in this many seconds; all of them are counted.
LOG_INTERVAL_S: Final = 10.0

#: A hook that holds the event loop for longer than this is reported, in seconds: all requests of the worker wait for it.
BLOCKED_S: Final = 0.1

#: How long after a fault it is a problem in the status, in seconds.
SHOWN_S: Final = 120.0

#: What a plugin may take to clean up after it was cancelled, in seconds.
GRACE_S: Final = 1.0


class StrayCancellationError(Exception):
    """A plugin let a ``CancelledError`` out that was not meant for its caller: it waited for a task that was cancelled."""


class SelfCancellationError(Exception):
    """A plugin cancelled the task that called it, which is the request's or the host's own."""


class SwallowedCancellationError(Exception):
    """A plugin went on although it had been cancelled; it was ended."""


# What ``asyncio.current_task`` looks up, which costs as much as a whole hook before Python 3.12.
running_loop: Final = asyncio._get_running_loop  # noqa: SLF001  # documented for implementations of event loops
_leave_task: Final = asyncio.tasks._leave_task  # noqa: SLF001  # documented for implementations of tasks
_enter_task: Final = asyncio.tasks._enter_task  # noqa: SLF001  # as above
task_of: Final[Callable[[object], asyncio.Task[Any] | None]] = asyncio.tasks._current_tasks.get  # type: ignore[attr-defined]  # noqa: SLF001  # as above


def is_stray() -> bool:
    """Return whether a ``CancelledError`` or ``GeneratorExit`` that was just caught was not meant for the running task.

    Where no task runs, a coroutine is being closed.
    """
    try:
        task = asyncio.current_task()
    except RuntimeError:  # no event loop runs either
        return False
    return task is not None and not task.cancelling()


def _taken_back(task: asyncio.Task[Any] | None, before: int) -> bool:
    """Take back what a plugin's step has asked of the running task with ``cancel``; return whether it did.

    Nothing else runs during a step: what cancels a request, such as its end or a deadline, does so between two of them.

    Args:
        task: The running task; None: there is none, a coroutine is being closed.
        before: How many cancellations were requested of it before the step.
    """
    more = 0 if task is None else task.cancelling() - before
    if task is None or more <= 0:
        return False
    for _ in range(more):
        task.uncancel()
    return True


@types.coroutine
def _delivered() -> Generator[None, None, None]:
    """Wait until a cancellation that was taken back has been delivered: the task raises it where it next waits."""
    try:
        yield
    except asyncio.CancelledError:
        if not is_stray():
            raise


class Timing:
    """How long one hook of one plugin holds the event loop, and whether it is switched off for a while.

    While a hook runs without waiting, no other request of the worker is served. A hook call is timed by one clock, here.

    Args:
        plugin: The plugin.
        hook: The hook.

    Attributes:
        calls: Calls so far.
        total_s: Time on the event loop of all of them.
        waited_s: Time that they have waited besides.
        longest_s: The longest time without giving the event loop back.
        blocked: How often it held the loop for longer than ``BLOCKED_S``.
        seen_at: Where it holds the loop for longer than that at the moment, if the watchdog has seen it.
        held_at: Where it last did, as far as seen.
        failed_in_a_row: Calls that have failed since one succeeded.
        off_until: Monotonic seconds until which it is not called; 0 while it is.
    """

    __slots__ = (
        "blocked",
        "calls",
        "failed_in_a_row",
        "held_at",
        "hook",
        "longest_s",
        "off_until",
        "plugin",
        "seen_at",
        "total_s",
        "waited_s",
    )

    def __init__(self, plugin: str, hook: str) -> None:
        self.plugin = plugin
        self.hook = hook
        self.calls = 0
        self.total_s = 0.0
        self.waited_s = 0.0
        self.longest_s = 0.0
        self.blocked = 0
        self.seen_at = self.held_at = ""
        self.failed_in_a_row = 0
        self.off_until = 0.0

    @property
    def what(self) -> str:
        """The hook, in a sentence."""
        return f"hook {self.hook!r}" if self.hook.isidentifier() else self.hook

    def held(self, seconds: float) -> None:
        """Note that the hook held the event loop for this long."""
        self.total_s += seconds
        if seconds > self.longest_s or seconds > BLOCKED_S:
            self.held_long(seconds)

    def held_long(self, seconds: float) -> None:
        """Note that it held it for longer than ever, or for longer than ``BLOCKED_S``."""
        self.longest_s = max(self.longest_s, seconds)
        if seconds <= BLOCKED_S:
            return
        self.blocked += 1
        seen_at, self.seen_at = self.seen_at, ""
        self.held_at = seen_at or self.held_at
        if self.blocked.bit_count() == 1:  # the 1st, 2nd, 4th, 8th ...
            log.warning(
                "plugin %r: %s held the event loop for %.0f ms%s: no other request was served in that time; "
                "move the work to a thread (asyncio.to_thread) (%d times so far)",
                self.plugin,
                self.what,
                seconds * 1000,
                seen_at and f", in {seen_at}",
                self.blocked,
            )

    def is_off(self, now: float) -> bool:
        """Return whether the hook is switched off at ``now``, in monotonic seconds."""
        return now < self.off_until

    def succeeded(self) -> None:
        """Note that a call has succeeded."""
        self.failed_in_a_row = 0
        self.off_until = 0.0

    def failed(self, most: int | None, off_s: float, now: float) -> None:
        """Note that a call has failed, and switch the hook off when too many have failed in a row.

        Args:
            most: That many; None never switches it off.
            off_s: For this long, in seconds. Then it is called again, and switched off again if that fails.
            now: Monotonic seconds.
        """
        self.failed_in_a_row += 1
        if most is not None and self.failed_in_a_row >= most:
            if not self.off_until:
                log.error(
                    "plugin %r: hook %r has failed %d times in a row and is not called for %.0f s; its on_failure allows "
                    "to go on without it",
                    self.plugin,
                    self.hook,
                    self.failed_in_a_row,
                    off_s,
                )
            self.off_until = now + off_s


class Waiting(Generic[T]):
    """A coroutine that has been run until it first waited, to be awaited with ``finish``.

    A coroutine that goes on after it was cancelled, for its deadline or with its request, gets ``GRACE_S`` to clean up and
    is then closed: it would hold up the request for ever.

    Attributes:
        started: When it was started, in seconds of ``time.perf_counter``.
        held_s: For how long it has held the event loop.
    """

    __slots__ = (
        "_cancelled",
        "_cancelled_itself",
        "_closing",
        "_coroutine",
        "_grace_over",
        "_task",
        "_timing",
        "_undelivered",
        "_yielded",
        "held_s",
        "started",
    )

    def __init__(
        self,
        coroutine: Coroutine[Any, Any, T],
        yielded: object,
        timing: Timing,
        task: asyncio.Task[Any] | None,
        *,
        started: float,
        held_s: float,
        cancelled_itself: bool = False,
    ) -> None:
        self._coroutine = coroutine
        self._yielded = yielded
        self._timing = timing
        #: The task that awaits it; None: there is none, it is driven by hand.
        self._task = task
        self._grace_over = False
        self._cancelled = False
        #: Ends the time in which it may clean up.
        self._closing: asyncio.TimerHandle | None = None
        self.started = started
        self.held_s = held_s
        #: It has cancelled the task that awaits it, and has not been told so yet.
        self._cancelled_itself = self._undelivered = cancelled_itself

    async def finish(self, seconds: float | None) -> T:
        """Await the rest for at most ``seconds`` in which the event loop could run; None sets no limit.

        Raises:
            TimeoutError, StrayCancellationError, SelfCancellationError, SwallowedCancellationError: see ``bounded``.
        """
        try:
            try:
                if seconds is None:
                    result: T = await self
                else:
                    with deadline.Limit(seconds, self._task) as limit:
                        result = await self
                    if limit.expired:
                        raise TimeoutError("it went on after its deadline")
            except SwallowedCancellationError as err:
                if is_stray():
                    raise TimeoutError(str(err)) from err
                raise
            if self._cancelled and not is_stray():
                raise SwallowedCancellationError("it returned although it had been cancelled")
        except asyncio.CancelledError as err:
            if is_stray():
                raise (_by_itself() if self._cancelled_itself else _stray()) from err
            raise
        return result

    def __await__(self) -> Generator[Any, Any, T]:  # noqa: C901  # every layer of a wait costs as much as a short hook
        yielded, coroutine = self._yielded, self._coroutine
        try:
            try:
                while True:
                    try:
                        sent = yield yielded
                    except GeneratorExit:
                        coroutine.close()
                        raise
                    except BaseException as err:  # noqa: BLE001  # a cancellation is the coroutine's to handle
                        self._note(err)
                        yielded = self._step(coroutine.throw, err)
                    else:
                        yielded = self._step(coroutine.send, sent)
                    if self._cancelled:
                        self._expect_end()
            finally:
                if self._closing is not None:
                    self._closing.cancel()
        except StopIteration as stop:
            value: T = stop.value
        except BaseException as err:
            if self._undelivered and not isinstance(err, GeneratorExit):  # then it is closed, and cannot wait
                yield from _delivered()
            raise
        if self._undelivered:
            yield from _delivered()
            raise _by_itself()
        return value

    def _step(self, advance: Callable[[Any], object], value: object) -> object:
        """Run the coroutine until it waits again.

        Raises:
            BaseException: what it raises; StopIteration at its end.
        """
        timing, task = self._timing, self._task
        before = 0 if task is None else task.cancelling()
        started = perf_counter()
        try:
            return advance(value)
        finally:
            seconds = perf_counter() - started
            self.held_s += seconds
            timing.held(seconds)
            if task is not None and task.cancelling() > before and _taken_back(task, before):
                self._cancelled_itself = self._undelivered = True

    def _note(self, err: BaseException) -> None:
        """Note what is raised where the coroutine waits; give it up when that ends the time in which it may clean up."""
        if self._grace_over:
            _give_up(self._coroutine, self._task)
        if isinstance(err, asyncio.CancelledError):
            self._undelivered = False
            self._cancelled = self._cancelled or not is_stray()

    def _expect_end(self) -> None:
        """Cancel a cancelled coroutine once more, in a while; not one that was cancelled by a timeout of its own, which has ended."""
        if not is_stray():
            self._closing = self._closing or asyncio.get_running_loop().call_later(GRACE_S, self._cancel_again)
            return
        self._cancelled = False
        if self._closing is not None:
            self._closing.cancel()
            self._closing = None

    def _cancel_again(self) -> None:
        if self._task is not None:
            self._grace_over = True
            self._task.cancel()


def _give_up(coroutine: Coroutine[Any, Any, Any], task: asyncio.Task[Any] | None) -> NoReturn:
    if task is not None:
        task.uncancel()  # the second cancellation was ours
    with contextlib.suppress(BaseException):
        coroutine.close()
    raise SwallowedCancellationError("it went on after it had been cancelled")


def _by_itself() -> SelfCancellationError:
    return SelfCancellationError(
        "it cancelled the task that called it, which serves the request; return, raise, or cancel tasks of its own"
    )


async def _ended_by_itself() -> NoReturn:
    await _delivered()
    raise _by_itself()


def _stray() -> StrayCancellationError:
    return StrayCancellationError("it waited for something that was cancelled")


def begin(coroutine: Coroutine[Any, Any, T], timing: Timing) -> T | Waiting[T]:
    """Run a coroutine until it returns, or until it first waits. Most hook calls never wait and end here.

    Args:
        coroutine: The hook's.
        timing: Gets the time for which it holds the event loop.

    Raises:
        StrayCancellationError: see ``bounded``.
    """
    task = task_of(running_loop())
    before = 0 if task is None else task.cancelling()
    started = perf_counter()
    try:
        yielded = coroutine.send(None)
    except StopIteration as stop:
        timing.held(perf_counter() - started)
        value: T = stop.value
        return value if task is None or task.cancelling() <= before else ended(value, timing, task, before, started)
    except BaseException as err:  # noqa: BLE001  # which is raised again
        return failed(err, timing, task, before, started)
    return suspended(coroutine, yielded, timing, task, before, started=started)


def suspended(
    coroutine: Coroutine[Any, Any, T],
    yielded: object,
    timing: Timing,
    task: asyncio.Task[Any] | None,
    before: int,
    *,
    started: float,
) -> Waiting[T]:
    """Return a coroutine that waits after its first step.

    Args:
        coroutine: The hook's.
        yielded: What it has yielded.
        timing: Gets the time for which it holds the event loop.
        task: The running task; None: there is none.
        before: How many cancellations were requested of it before the step.
        started: When the step began, in seconds of ``time.perf_counter``.
    """
    held_s = perf_counter() - started
    timing.held(held_s)
    itself = task is not None and task.cancelling() > before and _taken_back(task, before)
    return Waiting(coroutine, yielded, timing, task, started=started, held_s=held_s, cancelled_itself=itself)


def ended(value: T, timing: Timing, task: asyncio.Task[Any], before: int, started: float) -> T | Waiting[T]:
    """Return what a coroutine has returned in its first step, within which its task was cancelled: a wait for that, if it did.

    Args:
        value: What it has returned.
        timing: As for ``suspended``, like the others.
        task: The running task.
        before: As above.
        started: As above.
    """
    return _end_by_itself(timing, task, started) if _taken_back(task, before) else value


def failed(
    err: BaseException, timing: Timing, task: asyncio.Task[Any] | None, before: int, started: float
) -> Waiting[Any]:
    """Raise what a coroutine has raised in its first step, or return a wait for the cancellation of its task, if it did that.

    Args:
        err: What it has raised.
        timing: As for ``suspended``, like the others.
        task: As above.
        before: As above.
        started: As above.

    Raises:
        StrayCancellationError: see ``bounded``.
    """
    timing.held(perf_counter() - started)
    if _taken_back(task, before):
        return _end_by_itself(timing, task, started)
    try:
        if isinstance(err, asyncio.CancelledError) and is_stray():
            raise _stray() from err
        raise err
    finally:
        # Its traceback has this frame: with it, the request would be kept until garbage is collected.
        del err


def _end_by_itself(timing: Timing, task: asyncio.Task[Any] | None, started: float) -> Waiting[Any]:
    rest = _ended_by_itself()
    return Waiting(rest, rest.send(None), timing, task, started=started, held_s=perf_counter() - started)


def step_out() -> tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]] | None:
    """Let no task run until ``step_in``, as in a callback of the event loop: sync hooks could cancel it."""
    loop = running_loop()
    task = task_of(loop)
    if task is None or loop is None:
        return None
    _leave_task(loop, task)
    return loop, task


def step_in(left: tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]] | None) -> None:
    """Let the task run again that ``step_out`` has returned."""
    if left is not None:
        _enter_task(*left)


def timed(call: Callable[..., T], timing: Timing, *args: object) -> T:
    """Run a sync hook as a callback of the event loop, without a running task that it could cancel."""
    timing.calls += 1
    left = step_out()
    started = perf_counter()
    try:
        return call(*args)
    finally:
        held_s = perf_counter() - started
        step_in(left)
        timing.held(held_s)


async def bounded(coroutine: Coroutine[Any, Any, T], seconds: float | None, timing: Timing | None = None) -> T:
    """Await a coroutine for at most ``seconds``; None sets no limit.

    Most hook calls never wait. Those cost no timer: the deadline is armed only once the coroutine has suspended.

    Raises:
        TimeoutError: when it takes longer, also where it returns a value then; the coroutine is cancelled, and closed if it
            goes on.
        StrayCancellationError: it raised a ``CancelledError`` of its own. To its caller that is a fault like any
            other: it must not end the request, or the host's own work.
        SelfCancellationError: it cancelled the running task. The same holds.
        SwallowedCancellationError: it was cancelled with its request and went on.
    """
    timing = timing or Timing("", "")
    timing.calls += 1
    value = begin(coroutine, timing)
    return await value.finish(seconds) if isinstance(value, Waiting) else value


async def resumed(coroutine: Coroutine[Any, Any, T], timing: Timing) -> T:
    """Await a part of what a hook has returned, such as the next piece of a stream: no further call of the hook.

    Raises:
        StrayCancellationError, SelfCancellationError, SwallowedCancellationError: see ``bounded``.
    """
    value = begin(coroutine, timing)
    return await value.finish(None) if isinstance(value, Waiting) else value


def let_through(err: BaseException) -> None:
    """Raise again what is not the plugin's fault: the cancellation of the request itself, and Ctrl-C.

    A CancelledError that a plugin raises by itself is its fault, and so is every other exception that is not an
    ``Exception``: ``SystemExit``, ``GeneratorExit``, the panics of extensions written in Rust.
    """
    if isinstance(err, KeyboardInterrupt) or (isinstance(err, asyncio.CancelledError) and not is_stray()):
        raise err


@dataclass(slots=True)
class Faults:
    """Counts faults of plugins, and logs them without flooding.

    Attributes:
        counts: By plugin and hook.
        logged: What was logged last, and where in the plugin's code it arose, by plugin and hook.
    """

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    logged: dict[tuple[str, str], str] = field(default_factory=dict)
    _logged_at: dict[tuple[str, str], float] = field(default_factory=dict)
    #: When the last one was, on the monotonic clock.
    _last_at: dict[tuple[str, str], float] = field(default_factory=dict)

    def problems(self) -> list[str]:
        """Return which hooks and background tasks have failed within the last minutes, one sentence each."""
        now = time.monotonic()
        return [
            f"{hook} of {plugin} failed {now - at:.0f} s ago, {self.counts[plugin, hook]} times since the start; the log "
            "says why"
            for (plugin, hook), at in sorted(self._last_at.items())
            if now - at < SHOWN_S
        ]

    def record(self, plugin: str, hook: str, request_id: str | None, err: BaseException) -> HookError:
        """Count a fault, log it if it is time to, and return it as a ``HookError``."""
        span_events.failed(plugin, hook, err)
        key = (plugin, hook)
        self.counts[key] += 1
        what = (
            "took longer than its deadline" if isinstance(err, TimeoutError) else f"{type(err).__name__}: {_text(err)}"
        )
        error = HookError(plugin, hook, request_id, what)
        error.__cause__ = err
        now = self._last_at[key] = time.monotonic()
        if now - self._logged_at.get(key, -LOG_INTERVAL_S) >= LOG_INTERVAL_S:
            self._logged_at[key] = now
            where = place(traceback.walk_tb(err.__traceback__), extensions.PACKAGES)
            self.logged[key] = f"{what}{where and f', in {where}'}"
            log.error("%s (%d so far)", error, self.counts[key], exc_info=err)
        return error

    def of(self, plugin: str) -> Mapping[str, int]:
        """Return the counts of one plugin by hook."""
        return {hook: n for (name, hook), n in self.counts.items() if name == plugin}


def place(frames: Iterable[tuple[FrameType, int]], own: Collection[str] = ()) -> str:
    """Return the innermost line of a plugin's code, without the libraries that it calls; empty if unknown.

    Args:
        frames: With their lines, outermost first.
        own: Packages that are no libraries, wherever they are installed.
    """
    found, package = "", ""
    for frame, line in frames:
        module = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        code = frame.f_code
        is_library = "site-packages" in code.co_filename and package not in {"", module} and module not in own
        if module != "pointsman" and module not in sys.stdlib_module_names and not is_library:
            found, package = f"{code.co_qualname} ({code.co_filename}:{line})", module
    return found


def is_readable(err: BaseException) -> bool:
    """Return whether an error has a text."""
    try:
        str(err)
    except Exception:  # noqa: BLE001  # whatever it is
        return False
    return True


def _text(err: BaseException) -> str:
    try:
        return str(err)
    except Exception:  # noqa: BLE001  # an error whose text fails is still counted
        return "(an error without a readable text)"
