"""Compiled hook calls: each hook is a tuple of bound implementations, run with isolation, a deadline and a policy.

pluggy finds and validates the implementations; at start they are compiled into ``Calls`` and pluggy is not asked again.
An implementation that fails does not fail the others: what happens instead is written beside each method.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeVar

from ..errors import HookError, UpstreamError
from ..plugin import OnFailure, Upstream
from ..types import (
    Answer,
    Attempt,
    Candidate,
    Credential,
    Denial,
    Event,
    Execution,
    Identity,
    Refusal,
    RequestContext,
    Route,
    Settlement,
    Status,
)

log: Final = logging.getLogger("pointsman")
T = TypeVar("T")

PRE_ROUTE_DEADLINE_S: Final = 5.0
BEFORE_ATTEMPT_DEADLINE_S: Final = 5.0
AUTHENTICATE_DEADLINE_S: Final = 2.0
SETTLE_DEADLINE_S: Final = 10.0
ON_EVENT_DEADLINE_S: Final = 10.0

#: A fault that repeats on every request is logged once in this many seconds; all of them are counted.
LOG_INTERVAL_S: Final = 10.0


class _Resumed:
    """Continue a coroutine that has already been stepped once."""

    __slots__ = ("_coroutine", "_yielded")

    def __init__(self, coroutine: Coroutine[Any, Any, T], yielded: object) -> None:
        self._coroutine = coroutine
        self._yielded = yielded

    def __await__(self) -> Generator[Any, Any, Any]:
        yielded = self._yielded
        while True:
            try:
                try:
                    sent = yield yielded
                except GeneratorExit:
                    self._coroutine.close()
                    raise
                except BaseException as err:  # noqa: BLE001  # a cancellation is the coroutine's to handle
                    yielded = self._coroutine.throw(err)
                else:
                    yielded = self._coroutine.send(sent)
            except StopIteration as stop:
                return stop.value


#: What a sync hook can fail with. It is never cancelled itself, since it never waits.
_SYNC_FAULTS: Final = (Exception, asyncio.CancelledError, SystemExit, GeneratorExit, BaseExceptionGroup)


class StrayCancellationError(Exception):
    """A plugin let a ``CancelledError`` out that was not meant for its caller: it waited for a task that was cancelled."""


def is_stray() -> bool:
    """Say whether a ``CancelledError`` that was just caught was not meant for the running task."""
    task = asyncio.current_task()
    return task is not None and not task.cancelling()


async def bounded(coroutine: Coroutine[Any, Any, T], seconds: float) -> T:
    """Await a coroutine for at most ``seconds``.

    Most hook calls never wait. Those cost no timer: the deadline is armed only once the coroutine has suspended.

    Raises:
        TimeoutError: when it takes longer; the coroutine is cancelled.
        StrayCancellationError: it raised a ``CancelledError`` of its own. To its caller that is a fault like any
            other: it must not end the request, or the host's own work.
    """
    try:
        try:
            yielded = coroutine.send(None)
        except StopIteration as stop:
            value: T = stop.value
            return value
        async with asyncio.timeout(seconds):
            result: T = await _Resumed(coroutine, yielded)
    except asyncio.CancelledError as err:
        if is_stray():
            raise StrayCancellationError("it waited for something that was cancelled") from err
        raise
    return result


@dataclass(slots=True)
class Faults:
    """Counts what went wrong in plugins, and logs it without flooding."""

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    _logged_at: dict[tuple[str, str], float] = field(default_factory=dict)

    def record(self, plugin: str, hook: str, request_id: str | None, err: BaseException) -> HookError:
        """Count a fault, log it if it is time to, and return it as a ``HookError``."""
        key = (plugin, hook)
        self.counts[key] += 1
        what = (
            "took longer than its deadline" if isinstance(err, TimeoutError) else f"{type(err).__name__}: {_text(err)}"
        )
        error = HookError(plugin, hook, request_id, what)
        error.__cause__ = err
        now = time.monotonic()
        if now - self._logged_at.get(key, -LOG_INTERVAL_S) >= LOG_INTERVAL_S:
            self._logged_at[key] = now
            log.error("%s (%d so far)", error, self.counts[key], exc_info=err)
        return error

    def of(self, plugin: str) -> Mapping[str, int]:
        """Return the counts of one plugin by hook."""
        return {hook: n for (name, hook), n in self.counts.items() if name == plugin}


@dataclass(frozen=True, slots=True)
class Impl:
    """One plugin's implementation of one hook, ready to call with the specification's arguments in order."""

    plugin: str
    call: Callable[..., Any]
    on_failure: OnFailure = "allow"
    deadline_s: float | None = None


def _let_through(err: BaseException) -> None:
    """Raise again what is not the plugin's fault: the cancellation of the request itself, and Ctrl-C.

    A CancelledError that a plugin raises by itself is its fault, as SystemExit is.
    """
    task = asyncio.current_task() if isinstance(err, asyncio.CancelledError) else None
    if isinstance(err, KeyboardInterrupt) or (task is not None and task.cancelling()):
        raise err


def _text(err: BaseException) -> str:
    try:
        return str(err)
    except Exception:  # noqa: BLE001  # an error whose text fails is still counted
        return "(an error without a readable text)"


def _fault_denial(plugin: str) -> Denial:
    return Denial(
        status=503,
        code="plugin_failed",
        type="service_unavailable_error",
        message=f"The gateway's plugin {plugin!r} failed and its policy is to deny. Try again; the operator's log says why.",
        retry_after_s=1.0,
        plugin=plugin,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Calls:
    """All hooks, compiled. Every tuple is in the order of the configuration."""

    faults: Faults
    startup: tuple[Impl, ...] = ()
    shutdown: tuple[Impl, ...] = ()
    authenticate: tuple[Impl, ...] = ()
    pre_route: tuple[Impl, ...] = ()
    select: tuple[Impl, ...] = ()
    before_attempt: tuple[Impl, ...] = ()
    execute: Mapping[str, Impl] = field(default_factory=dict)
    first_token: tuple[Impl, ...] = ()
    post_response: tuple[Impl, ...] = ()
    on_error: tuple[Impl, ...] = ()
    settle: Mapping[str, Impl] = field(default_factory=dict)
    on_event: tuple[Impl, ...] = ()
    status: Mapping[str, Impl] = field(default_factory=dict)
    routes: tuple[Impl, ...] = ()

    async def run_authenticate(self, credential: Credential) -> Identity | Denial | None:
        """Ask in order; the first answer wins. A fault denies."""
        for impl in self.authenticate:
            try:
                answer = await bounded(impl.call(credential), impl.deadline_s or AUTHENTICATE_DEADLINE_S)
                if answer is None:
                    continue
                if isinstance(answer, Denial):
                    return replace(answer, plugin=impl.plugin)
                if isinstance(answer, Identity):
                    return answer
                raise TypeError(f"authenticate returned {type(answer).__name__}, not Identity, Denial or None")  # noqa: TRY301  # one path for all faults
            except BaseException as err:  # noqa: BLE001  # isolation: any fault of a plugin ends here
                _let_through(err)
                self.faults.record(impl.plugin, "authenticate", None, err)
                return _fault_denial(impl.plugin)
        return None

    async def run_pre_route(
        self, ctx: RequestContext, route: Route, seen: Callable[[str, Route], None] | None = None
    ) -> tuple[Route, Denial | None]:
        """Run the pipeline; return the last route and the first denial. A fault follows ``on_failure``.

        ``seen`` is called with the plugin and its route whenever one changed the route.
        """
        for impl in self.pre_route:
            try:
                answer = await bounded(impl.call(ctx, route), impl.deadline_s or PRE_ROUTE_DEADLINE_S)
                if answer is None:
                    continue
                if isinstance(answer, Denial):
                    return route, replace(answer, plugin=impl.plugin)
                if not isinstance(answer, Route):
                    raise TypeError(f"pre_route returned {type(answer).__name__}, not Route, Denial or None")  # noqa: TRY301  # one path for all faults
            except BaseException as err:  # noqa: BLE001  # isolation: any fault of a plugin ends here
                _let_through(err)
                self.faults.record(impl.plugin, "pre_route", ctx.request_id, err)
                if impl.on_failure == "deny":
                    return route, _fault_denial(impl.plugin)
                continue
            if answer is not route:
                route = answer
                if seen is not None:
                    seen(impl.plugin, route)
        return route, None

    def run_select(self, ctx: RequestContext, candidates: Sequence[Candidate]) -> tuple[list[Candidate], list[Dropped]]:
        """Run the pipeline; return who is left and who was dropped by whom. A fault skips the plugin."""
        left = list(candidates)
        dropped: list[Dropped] = []
        for impl in self.select:
            if not left:
                break
            try:
                answer = impl.call(ctx, tuple(left))
                if answer is None:
                    continue
                answer = tuple(answer)
                known = {candidate.deployment.id for candidate in left}
                kept = [candidate for candidate in answer if not candidate.dropped]
                if foreign := {candidate.deployment.id for candidate in answer} - known:
                    raise ValueError(f"select returned deployments it was not given: {sorted(foreign)}")
            except _SYNC_FAULTS as err:
                self.faults.record(impl.plugin, "select", ctx.request_id, err)
                continue
            if len(kept) < len(left):
                reasons = {c.deployment.id: c.notes[-1] for c in answer if c.dropped and c.notes}
                gone = known - {candidate.deployment.id for candidate in kept}
                dropped.extend(Dropped(name, impl.plugin, reasons.get(name, "not chosen")) for name in sorted(gone))
            left = kept
        return left, dropped

    async def run_before_attempt(self, ctx: RequestContext, attempt: Attempt) -> Refusal | None:
        """Ask in order; the first refusal wins. A fault follows ``on_failure``."""
        for impl in self.before_attempt:
            try:
                answer = await bounded(impl.call(ctx, attempt), impl.deadline_s or BEFORE_ATTEMPT_DEADLINE_S)
                if answer is None:
                    continue
                if isinstance(answer, Refusal):
                    return replace(answer, plugin=impl.plugin)
                raise TypeError(f"before_attempt returned {type(answer).__name__}, not Refusal or None")  # noqa: TRY301  # one path for all faults
            except BaseException as err:  # noqa: BLE001  # isolation: any fault of a plugin ends here
                _let_through(err)
                self.faults.record(impl.plugin, "before_attempt", ctx.request_id, err)
                if impl.on_failure == "deny":
                    return Refusal(reason=f"plugin {impl.plugin!r} failed", plugin=impl.plugin)
        return None

    async def run_execute(self, plugin: str, ctx: RequestContext, route: Route, upstream: Upstream) -> Execution | None:
        """Let the named plugin make the attempts. None means that it could not: make a plain call instead.

        Raises:
            UpstreamError: the plugin's final answer.
        """
        impl = self.execute.get(plugin)
        if impl is None:
            self.faults.record(
                plugin, "execute", ctx.request_id, LookupError("the route names it, but it has no such hook")
            )
            return None
        try:
            answer = await impl.call(ctx, route, upstream)
            if not isinstance(answer, Execution) or (answer.response is None) == (answer.chunks is None):
                raise TypeError("execute must return an Execution with either a response or chunks")  # noqa: TRY301  # one path for all faults
        except UpstreamError:
            raise
        except (Exception, asyncio.CancelledError) as err:
            if isinstance(err, asyncio.CancelledError) and not is_stray():
                raise
            self.faults.record(plugin, "execute", ctx.request_id, err)
            return None
        return answer

    def run_first_token(self, ctx: RequestContext, attempt: Attempt, first_token_ms: float) -> None:
        """Run ``first_token`` of every plugin. A fault is logged and counted."""
        for impl in self.first_token:
            try:
                impl.call(ctx, attempt, first_token_ms)
            except _SYNC_FAULTS as err:
                self.faults.record(impl.plugin, "first_token", ctx.request_id, err)

    def run_post_response(self, ctx: RequestContext, attempt: Attempt, answer: Callable[[], Answer | None]) -> None:
        """Run ``post_response`` of every plugin. A fault is logged and counted."""
        for impl in self.post_response:
            try:
                impl.call(ctx, attempt, answer)
            except _SYNC_FAULTS as err:
                self.faults.record(impl.plugin, "post_response", ctx.request_id, err)

    def run_on_error(self, ctx: RequestContext, attempt: Attempt) -> None:
        """Run ``on_error`` of every plugin. A fault is logged and counted."""
        for impl in self.on_error:
            try:
                impl.call(ctx, attempt)
            except _SYNC_FAULTS as err:
                self.faults.record(impl.plugin, "on_error", ctx.request_id, err)

    async def run_settle(self, plugin: str, ctx: RequestContext, settlement: Settlement) -> bool:
        """Settle with one plugin; say whether it succeeded. If not, it must be asked again."""
        impl = self.settle.get(plugin)
        if impl is None:
            return False
        try:
            await bounded(impl.call(ctx, settlement), SETTLE_DEADLINE_S)
        except BaseException as err:  # noqa: BLE001  # isolation: any fault of a plugin ends here
            _let_through(err)
            self.faults.record(plugin, "settle", ctx.request_id, err)
            return False
        return True

    async def run_on_event(self, event: Event) -> None:
        """Tell every plugin. A fault is logged and counted."""
        for impl in self.on_event:
            try:
                await bounded(impl.call(event), ON_EVENT_DEADLINE_S)
            except BaseException as err:  # noqa: BLE001  # isolation: any fault of a plugin ends here
                _let_through(err)
                self.faults.record(impl.plugin, "on_event", None, err)

    def run_status(self, plugin: str) -> Status:
        """Ask one plugin how it is; a fault shows it as broken, faults so far are part of the answer."""
        impl = self.status.get(plugin)
        status: Status | None = None
        if impl is not None:
            try:
                status = impl.call()
                # One plugin that says what JSON cannot hold would break the page of all.
                json.dumps(dict(status.details) if status else None, allow_nan=False)
            except _SYNC_FAULTS as err:
                error = self.faults.record(plugin, "status", None, err)
                status = Status(ok=False, summary=f"broken: {error}")
        status = status or Status(ok=True, summary="running")
        faults = self.faults.of(plugin)
        return replace(status, details={**status.details, "faults": dict(faults)}) if faults else status


@dataclass(frozen=True, slots=True)
class Dropped:
    """A candidate that a plugin dropped, and why, for the trace."""

    deployment_id: str
    plugin: str
    reason: str
