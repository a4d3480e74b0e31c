"""The hook specifications: every point at which a plugin can take part in a request.

A plugin is any object with methods of these names, marked ``@hookimpl``. An implementation may leave out arguments it
does not need. The order is the order of the ``plugins:`` list in the configuration, for every hook; pluggy's own
ordering options (``tryfirst``, ``trylast``, ``wrapper``, ``hookwrapper``) are refused at start-up.

One request, from left to right::

    pre_route -> [ select -> before_attempt -> transform_request -> provider -> first_token
                   -> post_response | on_error ] per attempt
              -> transform_response | transform_stream -> answered -> settle

Each docstring says when the hook fires, its colour (sync or async), how the results of several plugins combine, its
arguments, what None means and what happens when the implementation itself fails, and ends with an example.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

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
        Reply,
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
        services: Everything the host offers; valid for the life of the worker.

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
async def inherit(previous: object) -> None:
    """Carry over what the plugin that a reload replaces has in memory.

    Fires for each plugin that a reload rebuilds because its section has changed: once all new plugins have started, and before
    the first request comes to one of them. Async; deadline 5 s each. What is in the store is there without this hook.

    Args:
        previous: The plugin object that runs so far, of the same class. It goes on with the requests that began with it, and
            is shut down after the last of them: a value that both hold is changed by both.

    Returns:
        Nothing.

    On error:
        Logged and counted; the plugin starts without what it would have inherited.

    Example::

        @hookimpl
        async def inherit(self, previous):
            self.latencies = previous.latencies
    """


@hookspec
async def shutdown() -> None:
    """Flush buffers and close resources.

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
    """Identify the caller.

    Fires for each request when the gateway's configuration says ``custom_auth: pointsman.litellm.custom_auth``, before
    everything else, and never for the gateway's own master key. Async; in order, the first answer that is not None
    wins; deadline 2 s.

    Args:
        credential: The credentials presented by the caller: key and headers.

    Returns:
        An Identity (``tenant`` and ``claims`` arrive in ``RequestContext.identity``), a Denial, or None when this
        plugin does not know the caller. When no plugin does, the answer is 401.

    On error:
        The request is denied with 503.

    Example::

        @hookimpl
        async def authenticate(self, credential):
            tenant = self.by_hash.get(self.hash(credential.api_key))
            return Identity(tenant=tenant.id) if tenant else None
    """


@hookspec
async def pre_route(ctx: RequestContext, route: Route) -> Route | Denial | Reply | None:
    """Admit the request and decide where it goes: resolve a version, pick an arm, reserve a quota, deny, or answer.

    Fires once per client request, after authentication. Async; in order, each plugin sees the route as the plugins
    before it left it; the first Denial or Reply ends the chain. Deadline 5 s each: a stalled event loop counts too.

    Args:
        ctx: The request.
        route: The route so far; its first target is the model the client asked for.

    Returns:
        A Route (made from the given one with ``to``, ``with_labels``, ``with_headers``, ``with_reservation`` or
        ``dataclasses.replace``), a Denial, a Reply that answers the request without an attempt, or None to leave the
        route as it is. On a websocket nothing can be answered: a Reply to the connection refuses it (400
        ``not_answerable``), one to a response on it is left out. The host completes a Route: what is empty keeps its value, so that one rebuilt loses nothing.

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
def select(ctx: RequestContext, candidates: Sequence[Candidate], route: Route) -> Sequence[Candidate] | None:
    """Narrow the deployments that may serve the next attempt, or choose one.

    Fires once per attempt, after all of the gateway's own filters (cooldown, health, team, context window, region, tags,
    ``order``, affinity, what was just tried) and without drained deployments while there are others. Sync, so that it
    never waits; a pipeline in order: each plugin sees what the plugins before it left. When several remain, the gateway's
    own routing strategy chooses among them. Not fired for a call that names a deployment id.

    Args:
        ctx: The request.
        candidates: Deployments with weights and scores, never empty.
        route: The finished route, with its labels; of a call of our own, one that names the target only.

    Returns:
        Candidates to keep. ``candidate.drop(reason)`` keeps the reason for the trace; a candidate that is simply left
        out is dropped without one. None leaves them as they are. An empty result means that no deployment can serve
        this attempt: the gateway falls back (``candidate.has_fallback``), or answers 429.

    On error:
        The plugin's ``on_failure`` decides: ``deny`` leaves no candidate, ``allow`` skips the plugin for this attempt. Both
        are counted.

    Example::

        @hookimpl
        def select(self, ctx, candidates):
            return [c if self.healthy(c.deployment.id) else c.drop("breaker open") for c in candidates]
    """


@hookspec
async def before_attempt(ctx: RequestContext, attempt: Attempt, route: Route) -> Refusal | None:
    """Delay or refuse an attempt that is about to be made.

    Fires once per attempt, when the deployment is known and nothing has been sent. Async; in order, the first Refusal
    ends the chain. Deadline 5 s each: waiting is allowed, within that bound.

    Args:
        ctx: The request.
        attempt: The attempt, open.
        route: The finished route, with its labels.

    Returns:
        A Refusal, so that the gateway retries or falls back, or None.

    On error:
        The plugin's ``on_failure`` decides: ``deny`` refuses the attempt (503 ``plugin_failed`` when nothing else can
        answer), ``allow`` makes it. Both are counted.

    Example::

        @hookimpl
        async def before_attempt(self, ctx, attempt):
            if not await self.slots.acquire(attempt.deployment.id, timeout_s=0.2):
                return Refusal(reason="no free slot", retry_after_s=1.0)
    """


@hookspec
async def transform_request(ctx: RequestContext, attempt: Attempt, body: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Change what is sent to the provider.

    Fires once per attempt, after ``before_attempt``, for attempts of clients' requests and for calls of our own. Async; a
    pipeline in order. Deadline 5 s each. Every attempt starts with the client's own body: what a plugin changed for an
    earlier attempt is not in it. ``ctx.body`` stays the client's. Where a request's content cannot be changed (uploaded
    files, batches, stored objects, websockets, counting tokens), a plugin with ``on_failure: deny`` refuses the request, and
    one with ``allow`` is left out. The other fields of a form with a file are changed. A plugin with ``deny`` also closes the
    routes that no hook sees, as one that limits or bills does (``unmetered``).

    Args:
        ctx: The request.
        attempt: The attempt, open.
        body: The request as the endpoint defines it, without ``model`` and ``stream``, read-only.

    Returns:
        The new body, made from a copy (``{**body, "messages": ...}``), or None to leave it. Fields that decide where the
        request goes (``pointsman.types.FIXED_FIELDS``) must stay as they are.

    On error:
        The plugin's ``on_failure`` decides: ``deny`` refuses the attempt (503 ``plugin_failed`` when nothing else can
        answer), ``allow`` sends the body without the plugin's change. Both are counted.

    Example::

        @hookimpl
        async def transform_request(self, ctx, attempt, body):
            return {**body, "messages": [self.redacted(message) for message in body["messages"]]}
    """


@hookspec
async def transform_response(
    ctx: RequestContext, attempt: Attempt, answer: Mapping[str, Any]
) -> Mapping[str, Any] | None:
    """Change the answer that the client gets.

    Fires once per client request with an answer that is not a stream, when the answer is complete. Async; a pipeline in
    order. Deadline 5 s each. Usage, cost, observers, the gateway's cache and its logs see the provider's own answer. An
    error is not an answer; a stored response is one, at each read. Where an answer cannot be changed (speech, videos, batches,
    websockets), a plugin with ``on_failure: deny`` refuses the request, for this hook and for ``transform_stream``, and one
    with ``allow`` is left out. A plugin with ``deny`` also closes the routes that no hook sees, as for ``transform_request``.

    Args:
        ctx: The request.
        attempt: The attempt that answered.
        answer: The answer as JSON, in the endpoint's shape, read-only.

    Returns:
        The new answer, made from a copy, or None to leave it.

    On error:
        The plugin's ``on_failure`` decides: ``deny`` answers 503, ``allow`` sends the answer without the plugin's change.
        Both are counted.

    Example::

        @hookimpl
        async def transform_response(self, ctx, attempt, answer):
            return self.restored(answer)
    """


@hookspec
def transform_stream(
    ctx: RequestContext, attempt: Attempt, pieces: AsyncIterator[Mapping[str, Any]]
) -> AsyncIterator[Mapping[str, Any]] | None:
    """Change a streamed answer.

    Fires once per client request with a streamed answer, when it begins. Sync, and returns an async iterator: usually it is
    written as an async generator. A pipeline in order: each plugin reads what the one before it yields. A plugin may hold
    pieces back, add some and leave some out. Deadline 5 s for the plugin's own work between two pieces. As for
    ``transform_response``, everything else sees the provider's own answer.

    Args:
        ctx: The request.
        attempt: The attempt that answers.
        pieces: The pieces as JSON, in the endpoint's shape, read-only: each the data of one server-sent event.

    Returns:
        The pieces that the client gets, or None to leave the stream as it is.

    On error:
        The plugin's ``on_failure`` decides: ``deny`` ends the stream with an error event, ``allow`` goes on with the pieces
        as they come; pieces that the plugin has read since it last yielded follow first. Both are counted.

    Example::

        @hookimpl
        async def transform_stream(self, ctx, attempt, pieces):
            async for piece in pieces:
                yield self.restored(piece)
    """


@hookspec
async def execute(ctx: RequestContext, route: Route, upstream: Upstream) -> Execution | None:
    """Make the attempts of a request, for example as a race.

    Fires only for the plugin that ``route.executor`` names, in place of each attempt that the gateway would make: when
    it fails, the gateway retries (it fires again) and falls back as it does after a failed attempt of its own. In the
    model groups that the gateway falls back to it fires only where ``route.executes_fallbacks`` is set; otherwise the
    gateway makes those attempts. Async; its attempts may take as long as the gateway's own. It may wait without a running
    attempt, until its answer has begun, for as long as one may take: the request's ``timeout``, else the gateway's; then the
    attempt fails with a timeout, and the fault is counted. Every attempt started through ``upstream`` is opened, closed, traced
    and counted by the host like any other, cancelled by the host when the request ends first,
    and neither retried nor replaced by the gateway.

    Args:
        ctx: The request.
        route: The finished route; in a group that the gateway falls back to, with this group as ``target`` and
            ``fallback`` set.
        upstream: Starts attempts for this request.

    Returns:
        An Execution: ``response`` for a plain request, ``chunks`` for a streamed one, from attempts that ``upstream`` has
        made for this request. None leaves this attempt to the gateway.

    On error:
        Before any part of the answer was sent, the attempt becomes a plain call of ``route.target``; counted. An
        ``UpstreamError`` fails the attempt instead: the gateway retries, falls back or answers with it.

    Example::

        @hookimpl
        async def execute(self, ctx, route, upstream):
            call = upstream.start(UpstreamRequest(target=route.target, kind=AttemptKind.PRIMARY, body=ctx.body))
            return Execution(response=await call.response())
    """


@hookspec
def first_token(ctx: RequestContext, attempt: Attempt, first_token_ms: float) -> None:
    """Observe the first content of a stream.

    Fires at most once per streamed attempt, when its first piece of content passes, before ``post_response`` or
    ``on_error``: a stream may take minutes. Sync, every plugin, in order: the client waits for it, so take
    microseconds only.

    Args:
        ctx: The request.
        attempt: The attempt, open.
        first_token_ms: From the call to the first piece of content, in milliseconds.

    Returns:
        Nothing.

    On error:
        Logged and counted; the request and the other plugins are not affected.

    Example::

        @hookimpl
        def first_token(self, ctx, attempt, first_token_ms):
            self.waiting[attempt.deployment.id].discard(attempt.id)
    """


@hookspec
def post_response(ctx: RequestContext, attempt: Attempt, answer: Callable[[], Answer | None]) -> None:
    """Observe an attempt that succeeded.

    Fires once per successful attempt, when its answer is complete (for a stream: at its end). Sync, every plugin, in
    order: do not block; move slow work into a task.

    Args:
        ctx: The request.
        attempt: The attempt, closed, with outcome ``ok``. ``attempt.empty`` tells an answer without content: it must not
            count as a success, nor as a fast one.
        answer: Assembles what the model said when called; returns None when the answer holds no text (embeddings)
            or cannot be read. It costs nothing unless it is called. Call it within the hook only: the ``Answer`` may
            be kept, the callable may not, since it holds the provider's whole response.

    Returns:
        Nothing.

    On error:
        Logged and counted; the request and the other plugins are not affected.

    Example::

        @hookimpl
        def post_response(self, ctx, attempt):
            if not attempt.empty:
                self.latency[attempt.deployment.id].add(attempt.duration_ms)
    """


@hookspec
def on_error(ctx: RequestContext, attempt: Attempt) -> None:
    """Observe an attempt that did not succeed: failed, cancelled, or its client went away.

    Fires once per such attempt. Sync, every plugin, in order.

    Args:
        ctx: The request.
        attempt: The attempt, closed; ``outcome`` is ``error``, ``cancelled`` or ``disconnected``, and ``error`` says
            why where the reason is known.

    Returns:
        Nothing.

    On error:
        Logged and counted; the request and the other plugins are not affected.

    Example::

        @hookimpl
        def on_error(self, ctx, attempt):
            if attempt.error and attempt.error.kind is ErrorClass.RATE_LIMIT:
                self.open_breaker(attempt.deployment.id, attempt.error.retry_after_s or 30.0)
    """


@hookspec
def answered(ctx: RequestContext) -> None:
    """Free what a request holds only while it is being answered.

    Fires once per client request that was authenticated: when its answer is complete and before the client has its end,
    or when it ends without one. So a client that sends its next request after an answer finds free what the last one
    held; ``settle`` comes later. Sync, every plugin, in order: the client waits for it, so take microseconds only.

    Args:
        ctx: The request.

    Returns:
        Nothing.

    On error:
        Logged and counted; the request and the other plugins are not affected.

    Example::

        @hookimpl
        def answered(self, ctx):
            self.slots.free(ctx.request_id)
    """


@hookspec
async def settle(ctx: RequestContext, settlement: Settlement) -> None:
    """Account for a finished request: deduct, refund, bill, record.

    Fires once per client request that was authenticated: answered, failed, denied or disconnected. Async, after the
    answer has been sent; the plugins run independently of one another. The settlement is in the store's journal before
    the first call, and another worker finishes the settlements of one that dies. An implementation must therefore be
    idempotent in ``settlement.request_id``: after a crash it may see a settlement again. Deadline 10 s.

    Args:
        ctx: The request. After a crash ``headers`` and ``body`` are empty: they are never stored.
        settlement: The result of the request.

    Returns:
        Nothing.

    On error:
        Retried from the journal, with growing delays, until it succeeds; counted. The other plugins are not
        delayed.

    Example::

        @hookimpl
        async def settle(self, ctx, settlement):
            for reservation in settlement.reservations:
                if reservation.plugin == "quota":
                    await self.ledger.settle(reservation, settlement.usage)
    """


@hookspec
async def on_event(event: Event) -> None:
    """Receive an event that another plugin published with ``services.publish``.

    Fires once per event: in the worker where it was published, or in every worker that shares the store, within seconds,
    where the event's class says ``everywhere``. Async, off the request path, every plugin, in order; deadline 10 s.

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
    """Report the plugin's health, for ``GET /pointsman/status``, the CLI and the console.

    Fires on demand. Sync; every plugin.

    Returns:
        A Status, or None when there is nothing to report.

    On error:
        The plugin is shown as broken, with the error.

    Example::

        @hookimpl
        def status(self):
            return Status(ok=True, summary=f"{len(self.versions)} versions", details={})
    """


@hookspec
def routes() -> Sequence[BaseRoute]:
    """Provide admin routes.

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
    inherit,
    shutdown,
    authenticate,
    pre_route,
    select,
    before_attempt,
    transform_request,
    execute,
    first_token,
    post_response,
    on_error,
    transform_response,
    transform_stream,
    answered,
    settle,
    on_event,
    status,
    routes,
)
