"""The hooks of all plugins, compiled: each is a tuple of implementations, run with isolation, a deadline and a policy.

pluggy finds and validates the implementations; at start they are compiled into ``Hooks`` and pluggy is not asked again.
An implementation that fails does not fail the others: each method says what happens instead.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter
from typing import Any, Final, Self

from ..errors import HookError, UpstreamError
from ..frozen import quick, replace
from ..plugin import Upstream
from ..types import (
    Answer,
    Attempt,
    Candidate,
    Chunk,
    Credential,
    Denial,
    Event,
    Execution,
    Identity,
    Refusal,
    Reply,
    RequestContext,
    Route,
    Settlement,
    Status,
)
from . import returned_values, span_events
from .implementations import HOOK_NAMES, Impl, is_async
from .isolation import (
    BLOCKED_S,
    Faults,
    SwallowedCancellationError,
    Timing,
    Waiting,
    ended,
    failed,
    is_readable,
    is_stray,
    resumed,
    running_loop,
    step_in,
    step_out,
    suspended,
    task_of,
    timed,
)
from .span_events import LEAST_WAIT_S

#: Returns what the host goes on with for what a plugin, which is its first argument, has returned, or raises: then it is a
#: fault of the plugin.
Check = Callable[..., Any]

#: Hooks that are run for one plugin by its name.
_BY_PLUGIN: Final = ("execute", "settle", "status")
#: Hooks that change what passes.
CHANGES: Final = ("transform_request", "transform_response", "transform_stream")
#: What is returned instead of an answer by a hook that has failed.
_FAULT: Final = object()
#: Instead of a piece, at the end of what a plugin yields.
_END: Final = object()


@quick
@dataclass(frozen=True, slots=True)
class Dropped:
    """A candidate that a plugin, or the gateway itself, dropped, and why, for the trace."""

    deployment_id: str
    plugin: str
    reason: str


async def _next(made: AsyncIterator[Any], otherwise: object) -> object:
    try:
        piece: object = await anext(made)
    except StopAsyncIteration:
        return otherwise
    return piece


async def _close(made: AsyncIterator[Any]) -> None:
    close = getattr(made, "aclose", None)
    if close is not None:
        await close()


def _fault_denial(plugin: str) -> Denial:
    return Denial(
        status=503,
        code="plugin_failed",
        type="service_unavailable_error",
        message=f"The gateway's plugin {plugin!r} failed and its policy is to deny. Try again; the operator's log says why.",
        retry_after_s=1.0,
        plugin=plugin,
    )


def _fault_refusal(plugin: str) -> Refusal:
    denial = _fault_denial(plugin)
    return Refusal(reason=denial.message, status=denial.status, code=denial.code, plugin=plugin)


class _Chunks:
    """The chunks of an execution, isolated as its hook is.

    Args:
        chunks: The plugin's.
        timing: Gets the time for which they hold the event loop.
        failed: Counts what the plugin has raised and returns it as a HookError, or raises what is not the plugin's fault.
        has_attempted: Returns whether the plugin has made an attempt that the chunks can be from.
    """

    def __init__(
        self,
        chunks: AsyncIterator[Chunk],
        timing: Timing,
        failed: Callable[[BaseException], HookError],
        has_attempted: Callable[[], bool],
    ) -> None:
        self._has_attempted = has_attempted
        self._chunks = chunks
        self._timing = timing
        self._failed = failed
        self._begun = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Chunk:
        try:
            piece = await resumed(_next(self._chunks, _END), self._timing)
            if not self._begun and not self._has_attempted():
                raise LookupError("its chunks are not from an attempt of this request")  # noqa: TRY301  # a fault as others
            chunk = None if piece is _END else returned_values.chunk(piece)
        except BaseException as err:
            if isinstance(err, GeneratorExit) and not is_stray():
                raise
            fault = self._failed(err)
            if not self._begun:
                raise fault from err
            raise UpstreamError(f"the gateway's plugin {fault.plugin!r} failed within its answer", status=500) from err
        if chunk is None:
            raise StopAsyncIteration
        self._begun = True
        return chunk

    async def aclose(self) -> None:
        try:
            await resumed(_close(self._chunks), self._timing)
        except BaseException as err:
            if isinstance(err, GeneratorExit) and not is_stray():
                raise
            self._failed(err)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hooks:
    """All hooks, compiled. Every tuple is in the order of the configuration.

    Attributes:
        faults: Where faults are counted.
        labels: Labels that only one plugin may set, and this plugin.
        replaced: Labels of others that a plugin may replace, by plugin.
        upstream_headers: Headers for the provider that a route may carry, lower case.
        monotonic: Seconds of a clock that never goes back.
        generation: Which configuration of this worker they are of: 1 at the start, one more with each reload.
    """

    faults: Faults
    labels: Mapping[str, str] = field(default_factory=dict)
    replaced: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    upstream_headers: frozenset[str] = frozenset()
    monotonic: Callable[[], float] = time.monotonic
    generation: int = 1
    startup: tuple[Impl, ...] = ()
    inherit: tuple[Impl, ...] = ()
    shutdown: tuple[Impl, ...] = ()
    authenticate: tuple[Impl, ...] = ()
    pre_route: tuple[Impl, ...] = ()
    select: tuple[Impl, ...] = ()
    before_attempt: tuple[Impl, ...] = ()
    transform_request: tuple[Impl, ...] = ()
    execute: Mapping[str, Impl] = field(default_factory=dict)
    first_token: tuple[Impl, ...] = ()
    post_response: tuple[Impl, ...] = ()
    on_error: tuple[Impl, ...] = ()
    transform_response: tuple[Impl, ...] = ()
    transform_stream: tuple[Impl, ...] = ()
    answered: tuple[Impl, ...] = ()
    settle: Mapping[str, Impl] = field(default_factory=dict)
    on_event: tuple[Impl, ...] = ()
    status: Mapping[str, Impl] = field(default_factory=dict)
    routes: tuple[Impl, ...] = ()

    @classmethod
    def compile(
        cls,
        plugins: Sequence[Mapping[str, Impl]],
        faults: Faults,
        *,
        labels: Mapping[str, str] | None = None,
        replaced: Mapping[str, tuple[str, ...]] | None = None,
        upstream_headers: frozenset[str] = frozenset(),
        monotonic: Callable[[], float] = time.monotonic,
        generation: int = 1,
    ) -> Self:
        """Compile the implementations of all plugins, in order.

        Args:
            plugins: What ``implementations`` returned for each plugin.
            faults: Where faults are counted.
            labels: Labels that only one plugin may set, and this plugin.
            replaced: Labels of others that a plugin may replace, by plugin.
            upstream_headers: Headers for the provider that a route may carry, lower case.
            monotonic: Seconds of a clock that never goes back.
            generation: Which configuration of this worker they are of.
        """
        table: dict[str, Any] = {hook: tuple(own[hook] for own in plugins if hook in own) for hook in HOOK_NAMES}
        for hook in _BY_PLUGIN:
            table[hook] = {impl.plugin: impl for impl in table[hook]}
        return cls(
            faults=faults,
            labels=labels or {},
            replaced=replaced or {},
            upstream_headers=upstream_headers,
            monotonic=monotonic,
            generation=generation,
            **table,
        )

    # -- one rule for all faults ----------------------------------------------------------------------------------------

    def is_off(self, impl: Impl) -> bool:
        """Return whether a hook is switched off for a while."""
        return impl.timing.off_until > 0.0 and impl.timing.is_off(self.monotonic())

    def _failed(self, impl: Impl, request_id: str | None, err: BaseException) -> HookError:
        """Count and return a fault of a plugin, whatever it raised; the caller goes on by the plugin's policy.

        Raises:
            CancelledError, KeyboardInterrupt, UpstreamError: it is not the plugin's.
        """
        if isinstance(err, KeyboardInterrupt) or (
            isinstance(err, asyncio.CancelledError) and is_async(impl.hook) and not is_stray()
        ):
            raise err
        if isinstance(err, UpstreamError) and impl.hook == "execute" and is_readable(err):
            raise err
        error = self.faults.record(impl.plugin, impl.hook, request_id, err)
        impl.timing.failed(impl.suspend_after, impl.suspend_s, self.monotonic())
        if isinstance(err, SwallowedCancellationError) and not is_stray():
            # The request was cancelled and its cancellation lost in the plugin.
            raise asyncio.CancelledError from err
        return error

    def _next_async(  # noqa: C901  # it surrounds every call: a layer costs as much as a short hook
        self, impls: Iterable[Impl], request_id: str | None, *args: object
    ) -> tuple[Impl, Any] | None:
        """Run the next async hooks, one after another, until one of them has an answer, fails, or waits.

        Args:
            impls: The hooks that are left.
            request_id: Of the request.
            args: The hooks'.

        Returns:
            That hook and its answer, a ``Waiting`` for ``_awaited``, or ``_FAULT``; None when none is left.
        """
        task = task_of(running_loop())
        before = 0 if task is None else task.cancelling()
        started = perf_counter()
        for impl in impls:
            timing = impl.timing
            if timing.off_until > 0.0 and timing.is_off(self.monotonic()):
                continue
            timing.calls += 1
            try:
                coroutine = impl.call(*args[impl.takes])
                # As ``isolation.begin``, written out.
                try:
                    yielded = coroutine.send(None)
                except StopIteration as stop:
                    answer = stop.value
                    now = perf_counter()
                    held_s = now - started
                    timing.total_s += held_s
                    if held_s > timing.longest_s or held_s > BLOCKED_S:
                        timing.held_long(held_s)
                        now = perf_counter()  # the log may take its time
                    if task is not None and task.cancelling() > before:
                        answer = ended(answer, timing, task, before, started)
                    elif held_s >= LEAST_WAIT_S:
                        span_events.waited(impl.plugin, impl.hook, held_s, held_s)
                    started = now
                except BaseException as err:  # noqa: BLE001  # which is raised again
                    answer = failed(err, timing, task, before, started)
                else:
                    answer = suspended(coroutine, yielded, timing, task, before, started=started)
            except BaseException as err:  # noqa: BLE001  # isolation: any fault of a plugin ends here
                self._failed(impl, request_id, err)
                return impl, _FAULT
            if answer is not None:
                return impl, answer
            if timing.failed_in_a_row:
                timing.succeeded()
        return None

    async def _awaited(self, impl: Impl, request_id: str | None, waiting: Waiting[Any]) -> Any:
        """Return the answer of an async hook that waits, awaited within its deadline; ``_FAULT``: the hook has failed."""
        try:
            answer = await waiting.finish(impl.deadline_s)
        except BaseException as err:  # noqa: BLE001  # isolation: any fault of a plugin ends here
            self._failed(impl, request_id, err)
            return _FAULT
        finally:
            spent_s = perf_counter() - waiting.started
            impl.timing.waited_s += spent_s - waiting.held_s
        if impl.hook != "execute":  # which makes the attempts: their spans tell how long they take
            span_events.waited(impl.plugin, impl.hook, spent_s, waiting.held_s)
        return answer

    def _checked(self, impl: Impl, request_id: str | None, check: Check | None, answer: Any, *facts: object) -> Any:
        """Return what a check makes of a hook's answer. None: there is none. ``_FAULT``: the hook has failed.

        Args:
            impl: The hook.
            request_id: Of the request.
            check: Checks the answer; None where it means nothing.
            answer: The answer, or ``_FAULT``.
            facts: What else the check is given.
        """
        if answer is _FAULT:
            return _FAULT
        if answer is not None and check is not None:
            try:
                answer = check(impl.plugin, answer, *facts)
            except BaseException as err:  # noqa: BLE001  # isolation: any fault of a plugin ends here
                self._failed(impl, request_id, err)
                return _FAULT
        if impl.timing.failed_in_a_row:
            impl.timing.succeeded()
        return answer

    async def _ask(self, impl: Impl, request_id: str | None, check: Check | None, *args: object) -> Any:
        """Run one async hook within its deadline; see ``_checked``. None also where it is switched off."""
        begun = self._next_async((impl,), request_id, *args)
        if begun is None:
            return None
        answer = begun[1]
        if type(answer) is Waiting:
            answer = await self._awaited(impl, request_id, answer)
        return self._checked(impl, request_id, check, answer)

    def _next_sync(self, impls: Iterator[Impl], request_id: str, *args: object) -> tuple[Impl, Any] | None:
        """Run the next sync hooks, one after another, until one of them has an answer or fails.

        They run as in a callback of the event loop, without a running task that they could cancel.

        Args:
            impls: The hooks that are left.
            request_id: Of the request.
            args: The hooks'.

        Returns:
            That hook and what ``_checked`` takes; None when none is left.
        """
        outside = step_out()
        started = perf_counter()
        try:
            for impl in impls:
                timing = impl.timing
                if timing.off_until > 0.0 and timing.is_off(self.monotonic()):
                    continue
                timing.calls += 1
                try:
                    answer = impl.call(*args[impl.takes])
                except BaseException as err:  # noqa: BLE001  # isolation: any fault of a plugin ends here
                    timing.held(perf_counter() - started)
                    self._failed(impl, request_id, err)
                    return impl, _FAULT
                now = perf_counter()
                held_s, started = now - started, now
                # As ``held``, written out: this surrounds every call.
                timing.total_s += held_s
                if held_s > timing.longest_s or held_s > BLOCKED_S:
                    timing.held_long(held_s)
                    started = perf_counter()  # the log may take its time
                if answer is not None:
                    return impl, answer
                if timing.failed_in_a_row:
                    timing.succeeded()
        finally:
            step_in(outside)
        return None

    def _tell(self, impls: Sequence[Impl], request_id: str, *args: object) -> None:
        """Run a sync hook of every plugin whose answers mean nothing. A fault is logged and counted."""
        left = iter(impls)
        while (told := self._next_sync(left, request_id, *args)) is not None:
            self._checked(told[0], request_id, None, told[1])

    # -- the hooks ------------------------------------------------------------------------------------------------------

    async def run_authenticate(self, credential: Credential) -> Identity | Denial | None:
        """Ask in order; the first answer wins. A fault denies."""
        for impl in self.authenticate:
            answer: Identity | Denial | None = await self._ask(impl, None, returned_values.authenticated, credential)
            if answer is _FAULT:
                return _fault_denial(impl.plugin)
            if answer is not None:
                return answer
        return None

    async def run_pre_route(
        self,
        ctx: RequestContext,
        route: Route,
        seen: Callable[[str, RequestContext, Route], None] | None = None,
    ) -> tuple[Route, Denial | Reply | None]:
        """Run the pipeline; return the last route and the first denial or reply. A fault follows ``on_failure``.

        ``seen`` is called with the plugin, the request and the route whenever a plugin changed the route. The request is
        another value once a plugin has found its tenant.
        """
        owners = dict(self.labels)
        impls = iter(self.pre_route)
        while (begun := self._next_async(impls, ctx.request_id, ctx, route)) is not None:
            impl, answer = begun
            if type(answer) is Waiting:
                answer = await self._awaited(impl, ctx.request_id, answer)
            answer = self._checked(impl, ctx.request_id, self._routed, answer, route, owners, ctx.stream)
            if answer is None or answer is route:
                continue
            if answer is _FAULT:
                if impl.on_failure == "deny":
                    return route, _fault_denial(impl.plugin)
                continue
            if not isinstance(answer, Route):
                return route, answer
            route = answer
            if (tenant := route.labels.get(returned_values.TENANT)) is not None and tenant != ctx.identity.tenant:
                ctx = replace(ctx, identity=replace(ctx.identity, tenant=tenant))
            if seen is not None:
                seen(impl.plugin, ctx, route)
        return route, None

    def _routed(
        self, plugin: str, answer: object, before: Route, owners: dict[str, str], stream: bool
    ) -> Route | Denial | Reply:
        if isinstance(answer, Denial):
            return returned_values.denial(plugin, answer)
        if isinstance(answer, Reply):
            return returned_values.reply(plugin, answer, stream=stream)
        return returned_values.route(
            plugin,
            before,
            answer,
            owners,
            executors=self.execute,
            replaced=self.replaced.get(plugin, ()),
            upstream_headers=self.upstream_headers,
        )

    def run_select(
        self, ctx: RequestContext, candidates: Sequence[Candidate], route: Route
    ) -> tuple[list[Candidate], list[Dropped]]:
        """Run the pipeline; return the remaining and the dropped candidates. A fault follows ``on_failure``."""
        left = tuple(candidates)
        dropped: list[Dropped] = []

        impls = iter(self.select)
        while left and (told := self._next_sync(impls, ctx.request_id, ctx, left, route)) is not None:
            impl = told[0]
            answer = self._checked(impl, ctx.request_id, returned_values.candidates, told[1], left)
            if answer is left:
                continue
            if answer is _FAULT:
                if impl.on_failure == "deny":
                    why = "the plugin failed and its policy is to deny"
                    dropped.extend(Dropped(one.deployment.id, impl.plugin, why) for one in left)
                    left = ()
                continue
            kept = tuple(candidate for candidate in answer if not candidate.dropped)
            if len(kept) < len(left):
                reasons = {c.deployment.id: c.notes[-1] for c in answer if c.dropped and c.notes}
                gone = {c.deployment.id for c in left} - {c.deployment.id for c in kept}
                dropped.extend(Dropped(name, impl.plugin, reasons.get(name, "not chosen")) for name in sorted(gone))
            left = kept
        return list(left), dropped

    async def run_before_attempt(self, ctx: RequestContext, attempt: Attempt, route: Route) -> Refusal | None:
        """Ask in order; the first refusal wins. A fault follows ``on_failure``."""
        impls = iter(self.before_attempt)
        while (begun := self._next_async(impls, ctx.request_id, ctx, attempt, route)) is not None:
            impl, answer = begun
            if type(answer) is Waiting:
                answer = await self._awaited(impl, ctx.request_id, answer)
            refusal: Refusal | None = self._checked(impl, ctx.request_id, returned_values.refusal, answer)
            if refusal is None:
                continue
            if refusal is not _FAULT:
                return refusal
            if impl.on_failure == "deny":
                return _fault_refusal(impl.plugin)
        return None

    async def run_transform_request(
        self, ctx: RequestContext, attempt: Attempt, body: Mapping[str, Any]
    ) -> tuple[Mapping[str, Any], Refusal | None]:
        """Run the pipeline; return the body to send, or a refusal. A fault follows ``on_failure``."""

        def check(_: str, answer: object) -> Mapping[str, Any]:
            return returned_values.body(body, answer)

        for impl in self.transform_request:
            answer = await self._ask(impl, ctx.request_id, check, ctx, attempt, body)
            if answer is _FAULT:
                if impl.on_failure == "deny":
                    return body, _fault_refusal(impl.plugin)
            elif answer is not None:
                body = answer
        return body, None

    async def run_transform_response(
        self, ctx: RequestContext, attempt: Attempt, answer: Mapping[str, Any]
    ) -> tuple[Mapping[str, Any], Denial | None]:
        """Run the pipeline; return the answer to send, or a denial. A fault follows ``on_failure``."""

        def check(_: str, made: object) -> Mapping[str, Any]:
            return returned_values.json_object("answer", made)

        for impl in self.transform_response:
            made = await self._ask(impl, ctx.request_id, check, ctx, attempt, answer)
            if made is _FAULT:
                if impl.on_failure == "deny":
                    return answer, _fault_denial(impl.plugin)
            elif made is not None:
                answer = made
        return answer, None

    def start_stream(
        self, impl: Impl, ctx: RequestContext, attempt: Attempt, pieces: AsyncIterator[Mapping[str, Any]]
    ) -> AsyncIterator[Any] | None:
        """Ask one plugin for its stage of a stream; None leaves the stream as it is."""
        made: object = timed(impl, impl.timing, ctx, attempt, pieces)
        if made is not None and not isinstance(made, AsyncIterator):
            raise TypeError(f"transform_stream returned {type(made).__name__}, not an async iterator or None")
        return made

    async def next_piece(self, impl: Impl, made: AsyncIterator[Any]) -> object:
        """Return the next piece of a plugin's stage; None at its end."""
        piece = await resumed(_next(made, _END), impl.timing)
        if piece is None:
            raise TypeError("a stage of transform_stream yielded None, not a mapping")
        return None if piece is _END else piece

    def stream_failed(self, impl: Impl, ctx: RequestContext, err: BaseException) -> Denial | None:
        """Count a fault of a plugin's stage; return a denial when the plugin's policy is to deny."""
        self._failed(impl, ctx.request_id, err)
        return _fault_denial(impl.plugin) if impl.on_failure == "deny" else None

    def unfit(self, *hooks: str) -> Denial | None:
        """Return the denial of a request or an answer that cannot be changed; None when every plugin may be left out.

        Args:
            hooks: What cannot be run, of ``CHANGES``.
        """
        for impl in (impl for hook in hooks for impl in getattr(self, hook)):
            if impl.on_failure == "deny":
                return Denial(
                    status=400,
                    code="not_transformable",
                    message=f"The gateway's plugin {impl.plugin!r} must see what this request carries, and cannot. Use another "
                    "endpoint or format.",
                    plugin=impl.plugin,
                )
        return None

    async def run_execute(
        self,
        plugin: str,
        ctx: RequestContext,
        route: Route,
        upstream: Upstream,
        has_attempted: Callable[[], bool] = lambda: True,
    ) -> Execution | None:
        """Let the named plugin make the attempts. None means that it failed or declined: make a plain call instead.

        The chunks of an Execution raise a HookError where the plugin fails before the first of them, and an UpstreamError
        where it fails later; the fault has been counted.

        Args:
            plugin: The plugin.
            ctx: The request.
            route: Its route.
            upstream: Makes the attempts.
            has_attempted: Returns whether the plugin has made one.

        Raises:
            UpstreamError: the attempts failed.
        """
        impl = self.execute.get(plugin)
        if impl is None:
            self.faults.record(
                plugin, "execute", ctx.request_id, LookupError("the route names it, but it has no such hook")
            )
            return None

        def check(_: str, made: object) -> Execution:
            return returned_values.execution(ctx, made)

        answer: Execution | None = await self._ask(impl, ctx.request_id, check, ctx, route, upstream)
        if answer is _FAULT:
            return None
        if answer is not None and answer.chunks is not None:
            failed = partial(self._failed, impl, ctx.request_id)
            return replace(answer, chunks=_Chunks(answer.chunks, impl.timing, failed, has_attempted))
        return answer

    def run_first_token(self, ctx: RequestContext, attempt: Attempt, first_token_ms: float) -> None:
        """Run ``first_token`` of every plugin. A fault is logged and counted."""
        self._tell(self.first_token, ctx.request_id, ctx, attempt, first_token_ms)

    def run_post_response(self, ctx: RequestContext, attempt: Attempt, answer: Callable[[], Answer | None]) -> None:
        """Run ``post_response`` of every plugin. A fault is logged and counted."""
        self._tell(self.post_response, ctx.request_id, ctx, attempt, answer)

    def run_on_error(self, ctx: RequestContext, attempt: Attempt) -> None:
        """Run ``on_error`` of every plugin. A fault is logged and counted."""
        self._tell(self.on_error, ctx.request_id, ctx, attempt)

    def run_answered(self, ctx: RequestContext) -> None:
        """Run ``answered`` of every plugin. A fault is logged and counted."""
        self._tell(self.answered, ctx.request_id, ctx)

    async def run_settle(self, plugin: str, ctx: RequestContext, settlement: Settlement) -> bool:
        """Settle with one plugin; return whether it succeeded. If not, it must be retried."""
        impl = self.settle.get(plugin)
        if impl is None:
            return False
        begun = self._next_async((impl,), ctx.request_id, ctx, settlement)
        if begun is None:
            return True
        answer = begun[1]
        if type(answer) is Waiting:
            answer = await self._awaited(impl, ctx.request_id, answer)
        return self._checked(impl, ctx.request_id, None, answer) is not _FAULT

    def has_waited(self, plugin: str) -> bool:
        """Return whether a plugin has ever waited while it settled."""
        impl = self.settle.get(plugin)
        return impl is not None and impl.timing.waited_s > 0.0

    async def run_on_event(self, event: Event) -> None:
        """Run ``on_event`` of every plugin. A fault is logged and counted."""
        impls = iter(self.on_event)
        while (begun := self._next_async(impls, None, event)) is not None:
            impl, answer = begun
            if type(answer) is Waiting:
                answer = await self._awaited(impl, None, answer)
            self._checked(impl, None, None, answer)

    # -- what the operator sees -----------------------------------------------------------------------------------------

    def implementations(self) -> Iterator[Impl]:
        """Yield every implementation, hook by hook."""
        for hook in HOOK_NAMES:
            found = getattr(self, hook)
            yield from found.values() if isinstance(found, Mapping) else found

    def timings(self, others: Iterable[Timing] = ()) -> list[dict[str, object]]:
        """Return the time on the event loop of every implementation that has been called, and of others, for the status."""
        now = self.monotonic()
        return [
            {
                "plugin": timing.plugin,
                "hook": timing.hook,
                "calls": timing.calls,
                "total_ms": round(timing.total_s * 1000, 3),
                "mean_us": round(timing.total_s / timing.calls * 1_000_000, 1),
                "longest_ms": round(timing.longest_s * 1000, 3),
                "blocked": timing.blocked,
                "held_at": timing.held_at,
                "off_for_s": round(max(0.0, timing.off_until - now), 1),
            }
            for timing in (*(impl.timing for impl in self.implementations()), *others)
            if timing.calls
        ]

    def run_status(self, plugin: str) -> Status:
        """Return one plugin's status, with its faults so far; a fault of the hook itself shows it as broken."""
        impl = self.status.get(plugin)
        status: Status | None = None
        if impl is not None:
            try:
                given: object = timed(impl.call, impl.timing)
                status = None if given is None else returned_values.status(plugin, given)
            except BaseException as err:  # noqa: BLE001  # isolation: any fault of a plugin ends here
                status = Status(ok=False, summary=f"broken: {self._failed(impl, None, err)}")
        status = status or Status(ok=True, summary="running")
        if off := sorted(i.hook for i in self.implementations() if i.plugin == plugin and self.is_off(i)):
            status = replace(
                status, ok=False, summary=f"switched off for a while, since it kept failing: {', '.join(off)}"
            )
        faults = self.faults.of(plugin)
        return replace(status, details={**status.details, "faults": dict(faults)}) if faults else status
