"""The hook specifications: every point at which a plugin can take part in a request.

A plugin is any object with methods of these names, marked ``@hookimpl``. An implementation may leave out arguments it
does not need. The order is the order of the ``plugins:`` list in the configuration, for every hook; pluggy's own
ordering options (``tryfirst``, ``trylast``, ``wrapper``, ``hookwrapper``) are refused at start-up.

One request, from left to right::

    pre_route -> [ select -> before_attempt -> provider -> first_token -> post_response | on_error ] per attempt -> settle

Each docstring says when the hook fires, its colour (sync or async), how the results of several plugins combine, its
arguments, what None means and what happens when the implementation itself fails, and ends with an example.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

import pluggy

if TYPE_CHECKING:
    from starlette.routing import BaseRoute

    from .plugin import Services, Upstream
    from .types import (
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

PROJECT: Final = "pointsman"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
async def startup(services: Services) -> None:
    """Prepare the plugin: keep ``services``, load state, start background work with ``services.tasks``.

    Fires once per worker, before the first request, after every plugin of the list has been built. Async; each plugin
    in order, one after another; deadline 30 s.

    Args:
        services: Everything the host offers. Good for the life of the worker.

    Returns:
        Nothing.

    On error:
        The start fails, unless the plugin is ``optional: true``: then it is left out and reported as broken.

    Example::

        @hookimpl
        async def startup(self, services):
            self.services = services
            services.tasks.every(10.0, self.refresh, name="refresh")
    """


@hookspec
async def shutdown() -> None:
    """Let go of everything: flush what is buffered, close what was opened.

    Fires once per worker, after the last request has been settled or the bounded flush has run out. Async; reverse
    order; deadline 5 s each. Tasks started with ``services.tasks`` are cancelled by the host afterwards.

    Returns:
        Nothing.

    On error:
        Logged and counted; the other plugins still shut down.

    Example::

        @hookimpl
        async def shutdown(self):
            await self.outbox.close()
    """


@hookspec
async def authenticate(credential: Credential) -> Identity | Denial | None:
    """Say who the caller is.

    Fires for each request when the gateway's configuration says ``custom_auth: pointsman.litellm.custom_auth``, before
    everything else, and never for the gateway's own master key. Async; in order, the first answer that is not None
    wins; deadline 2 s.

    Args:
        credential: The key and headers that the caller showed.

    Returns:
        An Identity (``tenant`` and ``claims`` arrive in ``RequestContext.identity``), a Denial, or None when this
        plugin does not know the caller. When nobody knows, the answer is 401.

    On error:
        The request is denied with 503.

    Example::

        @hookimpl
        async def authenticate(self, credential):
            tenant = self.by_hash.get(self.hash(credential.api_key))
            return Identity(tenant=tenant.id) if tenant else None
    """


@hookspec
async def pre_route(ctx: RequestContext, route: Route) -> Route | Denial | None:
    """Admit the request and say where it goes: resolve a version, pick an arm, reserve a quota, or deny.

    Fires once per client request, after authentication. Async; in order, each plugin sees the route as the plugins
    before it left it; the first Denial ends the chain. Deadline 5 s each: a stalled event loop counts too.

    Args:
        ctx: The request.
        route: The route so far; its first target is the model the client asked for.

    Returns:
        A Route (made from the given one with ``to``, ``with_labels``, ``with_headers``, ``with_reservation`` or
        ``dataclasses.replace``), a Denial, or None to leave the route as it is.

    On error:
        The plugin's ``on_failure`` decides: ``deny`` answers 503, ``allow`` goes on without it. Both are counted. A
        reservation made by an earlier plugin reaches it in ``settle`` also when a later one denies.

    Example::

        @hookimpl
        async def pre_route(self, ctx, route):
            if ctx.model == "retired":
                return Denial(status=410, code="retired", message="Model 'retired' is gone; use 'chat'.")
            return route.with_labels(experiment="none")
    """


@hookspec
def select(ctx: RequestContext, candidates: Sequence[Candidate]) -> Sequence[Candidate] | None:
    """Narrow the deployments that may serve the next attempt, or choose one.

    Fires once per attempt, after the gateway has removed the deployments in cooldown. Sync, so that it never waits; a
    pipeline in order: each plugin sees what the plugins before it left. When several remain, the gateway's own routing
    strategy chooses among them. Not fired for a call of our own that names a deployment id.

    Args:
        ctx: The request.
        candidates: Deployments with weights and scores, never empty.

    Returns:
        Candidates to keep. ``candidate.drop(reason)`` keeps the reason for the trace; a candidate that is simply left
        out is dropped without one. None leaves them as they are. An empty answer means that nobody can serve this
        attempt: the gateway falls back, or answers 429.

    On error:
        The plugin is skipped for this attempt; counted.

    Example::

        @hookimpl
        def select(self, ctx, candidates):
            return [c if self.healthy(c.deployment.id) else c.drop("breaker open") for c in candidates]
    """


@hookspec
async def before_attempt(ctx: RequestContext, attempt: Attempt) -> Refusal | None:
    """Look at an attempt about to be made; wait a little, or refuse it.

    Fires once per attempt, when the deployment is known and nothing has been sent. Async; in order, the first Refusal
    ends the chain. Deadline 5 s each: waiting is allowed, within that bound.

    Args:
        ctx: The request.
        attempt: The attempt, open.

    Returns:
        A Refusal, so that the gateway retries or falls back, or None.

    On error:
        The plugin's ``on_failure`` decides: ``deny`` refuses the attempt, ``allow`` makes it. Both are counted.

    Example::

        @hookimpl
        async def before_attempt(self, ctx, attempt):
            if not await self.slots.acquire(attempt.deployment.id, timeout_s=0.2):
                return Refusal(reason="no free slot", retry_after_s=1.0)
    """


@hookspec
async def execute(ctx: RequestContext, route: Route, upstream: Upstream) -> Execution:
    """Make the attempts of a request itself, for example as a race.

    Fires only for the plugin that ``route.executor`` names. Async; no deadline but the request's own. Every attempt
    started through ``upstream`` is opened, closed, traced and counted by the host like any other, and cancelled by the
    host when the request ends first.

    Args:
        ctx: The request.
        route: The finished route.
        upstream: Starts attempts for this request.

    Returns:
        An Execution: ``response`` for a plain request, ``chunks`` for a streamed one.

    On error:
        Before anything was answered, the request becomes a plain call of ``route.target``; counted. An
        ``UpstreamError`` is the final answer instead: the attempts did their best.

    Example::

        @hookimpl
        async def execute(self, ctx, route, upstream):
            call = upstream.start(UpstreamRequest(target=route.target, kind=AttemptKind.PRIMARY, body=ctx.body))
            return Execution(response=await call.response())
    """


@hookspec
def first_token(ctx: RequestContext, attempt: Attempt, first_token_ms: float) -> None:
    """Observe that a stream has begun to answer.

    Fires at most once per streamed attempt, when its first piece of content passes, before ``post_response`` or
    ``on_error``: a stream may go on for minutes. Sync, every plugin, in order: the client waits for it, so some
    microseconds only.

    Args:
        ctx: The request.
        attempt: The attempt, open.
        first_token_ms: From the call to the first piece of content, in milliseconds.

    Returns:
        Nothing.

    On error:
        Logged and counted; nobody else notices.

    Example::

        @hookimpl
        def first_token(self, ctx, attempt, first_token_ms):
            self.waiting[attempt.deployment.id].discard(attempt.id)
    """


@hookspec
def post_response(ctx: RequestContext, attempt: Attempt, answer: Callable[[], Answer | None]) -> None:
    """Observe an attempt that succeeded.

    Fires once per successful attempt, when its answer is complete (for a stream: at its end). Sync, every plugin, in
    order: do not block; put what takes time into a task.

    Args:
        ctx: The request.
        attempt: The attempt, closed, with outcome ``ok``.
        answer: Puts together what the model said, when it is called; None when the answer holds no text (embeddings)
            or cannot be read. Nobody who does not call it pays for it. Call it within the hook only: keep the
            ``Answer`` if you must, never the callable, which holds the provider's whole response.

    Returns:
        Nothing.

    On error:
        Logged and counted; nobody else notices.

    Example::

        @hookimpl
        def post_response(self, ctx, attempt):
            self.latency[attempt.deployment.id].add(attempt.duration_ms)
    """


@hookspec
def on_error(ctx: RequestContext, attempt: Attempt) -> None:
    """Observe an attempt that did not succeed: failed, cancelled, or its client went away.

    Fires once per such attempt. Sync, every plugin, in order.

    Args:
        ctx: The request.
        attempt: The attempt, closed; ``outcome`` is ``error``, ``cancelled`` or ``disconnected``, and ``error`` says
            why where there is a reason.

    Returns:
        Nothing.

    On error:
        Logged and counted; nobody else notices.

    Example::

        @hookimpl
        def on_error(self, ctx, attempt):
            if attempt.error and attempt.error.kind is ErrorClass.RATE_LIMIT:
                self.open_breaker(attempt.deployment.id, attempt.error.retry_after_s or 30.0)
    """


@hookspec
async def settle(ctx: RequestContext, settlement: Settlement) -> None:
    """Account for a finished request: deduct, refund, bill, record.

    Fires once per client request that was authenticated, whatever became of it: answered, failed, denied, disconnected.
    Async, every plugin on its own: none waits for another, and the client for none of them, since its answer has been sent. The settlement has been journaled in
    the store before; a worker that dies in between has its settlements finished by another one, so an implementation
    must be idempotent in ``settlement.request_id``: after a crash it may see a settlement again. Deadline 10 s.

    Args:
        ctx: The request. After a crash ``headers`` and ``body`` are empty: they are never stored.
        settlement: What became of it.

    Returns:
        Nothing.

    On error:
        Tried again from the journal, with growing delays, until it succeeds; counted. The other plugins are not held
        up.

    Example::

        @hookimpl
        async def settle(self, ctx, settlement):
            for reservation in settlement.reservations:
                if reservation.plugin == "quota":
                    await self.ledger.settle(reservation, settlement.usage)
    """


@hookspec
async def on_event(event: Event) -> None:
    """Hear what another plugin announced with ``services.publish``.

    Fires once per event in the worker where it was announced. Async, off the request path, every plugin, in order;
    deadline 10 s.

    Args:
        event: What happened; check its type.

    Returns:
        Nothing.

    On error:
        Logged and counted.

    Example::

        @hookimpl
        async def on_event(self, event):
            if isinstance(event, ActivationRequested):
                await self.activate(event.name, event.version_id, who=event.who)
    """


@hookspec
def status() -> Status | None:
    """Say how the plugin is doing, for ``GET /pointsman/status``, the CLI and the console.

    Fires on demand. Sync; every plugin.

    Returns:
        A Status, or None when there is nothing to say.

    On error:
        The plugin is shown as broken, with the error.

    Example::

        @hookimpl
        def status(self):
            return Status(ok=True, summary=f"{len(self.versions)} versions", details={})
    """


@hookspec
def routes() -> Sequence[BaseRoute]:
    """Offer admin routes.

    Fires once at start-up, after ``startup``. Sync. The routes are mounted under ``/pointsman/<plugin>``; the host has
    checked LiteLLM's admin key before one of them runs, and turns an ``AdminError`` into its status and JSON body.

    Returns:
        Starlette routes.

    On error:
        The start fails.

    Example::

        @hookimpl
        def routes(self):
            return [Route("/", self.list, methods=["GET"])]
    """


HOOKS: Final = (
    startup,
    shutdown,
    authenticate,
    pre_route,
    select,
    before_attempt,
    execute,
    first_token,
    post_response,
    on_error,
    settle,
    on_event,
    status,
    routes,
)
