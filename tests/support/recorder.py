"""A plugin that writes down every hook call and does what the test's request headers say.

It is loaded by a real proxy in another process, so it speaks through a file: one JSON object a line.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import BaseRoute
from starlette.routing import Route as HttpRoute

from pointsman import PluginConfig, PluginInfo, hookimpl
from pointsman.errors import UpstreamError
from pointsman.frozen import thawed
from pointsman.plugin import Services, Upstream
from pointsman.types import (
    AttemptKind,
    Candidate,
    Credential,
    Denial,
    Event,
    Execution,
    Identity,
    Refusal,
    RequestContext,
    Reservation,
    Route,
    Settlement,
    Status,
    UpstreamRequest,
)

_SETTLEMENT = TypeAdapter(Settlement)


@dataclass(frozen=True, slots=True, kw_only=True)
class Announced(Event):
    """An event of our own."""

    case: str = ""


class RecorderConfig(PluginConfig):
    """Where to write, and how slowly to settle."""

    file: str
    settle_sleep_s: float = 0.0
    fail_startup: bool = False
    lists: str | None = None


class Recorder:
    """Records."""

    def __init__(self, config: RecorderConfig) -> None:
        self.config = config
        self.path = Path(config.file)
        self.services: Services | None = None

    def write(self, hook: str, request_id: str | None, **facts: Any) -> None:
        row = {"hook": hook, "request": request_id, "pid": os.getpid(), "at": time.time(), **facts}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, default=str) + "\n")

    @hookimpl
    async def startup(self, services: Services) -> None:
        if self.config.fail_startup:
            raise RuntimeError("told to fail")
        self.services = services
        if self.config.lists:
            services.catalog.list_model(self.config.lists, "pair", info={"capabilities": ["streaming"]})
        logging.getLogger(__name__).info("the recorder writes")
        self.write("startup", None)

    @hookimpl
    async def shutdown(self) -> None:
        self.write("shutdown", None, frozen=gc.get_freeze_count(), new_objects=gc.get_threshold()[0])

    @hookimpl
    async def authenticate(self, credential: Credential) -> Identity | None:
        self.write(
            "authenticate", None, path=credential.path, peer=credential.client_host, headers=dict(credential.headers)
        )
        name = credential.api_key
        tenant = name.removeprefix("tenant-")[:1]
        if name.startswith("tenant-narrow"):
            return Identity(tenant=name.removeprefix("tenant-"), models=("ch[a-z]t*", "nothing-?"))
        return Identity(tenant=tenant, user_id=f"user-{tenant}") if name.startswith("tenant-") else None

    @hookimpl
    async def pre_route(self, ctx: RequestContext, route: Route) -> Route | Denial | None:
        say = {name: value for name, value in ctx.headers.items() if name.startswith("x-test-")}
        if "x-test-log" in say:
            logging.getLogger(__name__).warning("told to log %s", say["x-test-log"])
        self.write(
            "pre_route",
            ctx.request_id,
            case=ctx.headers.get("x-test-case"),
            endpoint=ctx.endpoint,
            model=ctx.model,
            stream=ctx.stream,
            call_id=ctx.call_id,
            tenant=ctx.identity.tenant,
            user=ctx.identity.user_id,
            admin=ctx.identity.admin,
            peer=ctx.client_host,
            key_hash=ctx.identity.key_hash,
            headers=dict(ctx.headers),
            has_body=bool(ctx.body),
            within=ctx.within,
            carried=ctx.carried_tokens,
            body_fields=sorted(ctx.body),
        )
        assert self.services is not None
        reservation = Reservation(
            plugin="recorder", id=ctx.request_id, expires_at=self.services.clock.now() + 60, amounts={"tokens": 7}
        )
        route = route.with_labels(case=say.get("x-test-case", "")).with_reservation(reservation)
        if target := say.get("x-test-target"):
            route = route.to(target)
        if executor := say.get("x-test-executor"):
            route = replace(route, executor=executor, executes_fallbacks="x-test-everywhere" in say)
        if fallback := say.get("x-test-fallback"):
            route = replace(route, fallbacks=(fallback,))
        if answer := say.get("x-test-answer"):
            name, _, value = answer.partition("=")
            route = route.with_headers({name: value})
        if say.get("x-test-publish"):
            self.services.publish(Announced(case=say.get("x-test-case", "")))
        return route

    @hookimpl
    def select(self, ctx: RequestContext, candidates: Sequence[Candidate]) -> Sequence[Candidate] | None:
        self.write("select", ctx.request_id, candidates=[c.deployment.id for c in candidates])
        unwanted = ctx.headers.get("x-test-drop", "").split(",")
        return [c.drop("unwanted") if c.deployment.id in unwanted else c.scored(1.0, "wanted") for c in candidates]

    @hookimpl
    async def before_attempt(self, ctx: RequestContext, attempt: Any) -> Refusal | None:
        labels = dict(attempt.labels)
        self.write("before_attempt", ctx.request_id, deployment=attempt.deployment.id, kind=attempt.kind, labels=labels)
        if (target := ctx.headers.get("x-test-mirror")) and attempt.kind is AttemptKind.PRIMARY:
            await self._mirror(ctx, target)
        if ctx.headers.get("x-test-refuse") == attempt.deployment.id:
            return Refusal(reason="told to refuse", retry_after_s=3.0)
        return None

    @hookimpl
    async def execute(self, ctx: RequestContext, route: Route, upstream: Upstream) -> Execution:
        self.write("execute", ctx.request_id, target=route.target)
        if ctx.headers.get("x-test-execute") == "fault":
            raise ValueError("told to fail")
        if ctx.headers.get("x-test-execute") == "give-up":
            raise UpstreamError("gave up", status=503)
        if ctx.headers.get("x-test-execute") == "wait":
            await asyncio.Event().wait()
        timeout = ctx.headers.get("x-test-timeout")
        request = UpstreamRequest(
            target=route.target,
            kind=AttemptKind.PRIMARY,
            body={},
            labels={"leg": "1"},
            timeout_s=float(timeout) if timeout else None,
        )
        first = upstream.start(request)
        if loser := ctx.headers.get("x-test-loser"):
            hedge = UpstreamRequest(target=loser, kind=AttemptKind.HEDGE, body={}, labels={"leg": "2"})
            second = upstream.start(hedge)
            if not ctx.stream:
                answer = await first.response()
                await second.cancel()
                return Execution(response=answer, headers={"x-pointsman-raced": "2"})
            return Execution(chunks=self._race(first, second), headers={"x-pointsman-raced": "2"})
        if ctx.stream:
            return Execution(chunks=first.chunks(), headers={"x-pointsman-raced": "1"})
        return Execution(response=await first.response(), headers={"x-pointsman-raced": "1"})

    async def _mirror(self, ctx: RequestContext, target: str) -> None:
        assert self.services is not None
        call = self.services.upstream.start(
            UpstreamRequest(
                target=target,
                kind=AttemptKind.MIRROR,
                body={"messages": ctx.body["messages"]},
                parent=ctx,
                tenant="mirrors",
            )
        )
        try:
            await call.response()
        except UpstreamError as err:
            self.write("mirror", ctx.request_id, status=err.status, error=err.error_class)
        else:
            self.write("mirror", ctx.request_id, text=call.answer and call.answer.text)

    async def _race(self, first: Any, second: Any) -> Any:
        chunks = first.chunks()
        try:
            async for chunk in chunks:
                yield chunk
        finally:
            await chunks.aclose()
            await second.cancel()

    @hookimpl
    def post_response(self, ctx: RequestContext, attempt: Any) -> None:
        self._attempt("post_response", ctx, attempt)

    @hookimpl
    def on_error(self, ctx: RequestContext, attempt: Any) -> None:
        self._attempt("on_error", ctx, attempt)

    def _attempt(self, hook: str, ctx: RequestContext, attempt: Any) -> None:
        self.write(
            hook,
            ctx.request_id,
            id=attempt.id,
            number=attempt.number,
            deployment=attempt.deployment.id,
            provider=attempt.deployment.provider,
            kind=attempt.kind,
            outcome=attempt.outcome,
            status=attempt.status_code,
            error=attempt.error and {"kind": attempt.error.kind, "retry_after_s": attempt.error.retry_after_s},
            usage=attempt.usage
            and {
                "prompt": attempt.usage.prompt_tokens,
                "completion": attempt.usage.completion_tokens,
                "cached": attempt.usage.cached_tokens,
                "reasoning": attempt.usage.reasoning_tokens,
                "estimated": attempt.usage.estimated,
            },
            cost=attempt.cost_usd_micros,
            headers=dict(attempt.headers),
            model=attempt.model,
            first_token_ms=attempt.first_token_ms,
            duration_ms=attempt.duration_ms,
        )

    @hookimpl
    async def settle(self, ctx: RequestContext, settlement: Settlement) -> None:
        if self.config.settle_sleep_s:
            assert self.services is not None
            await self.services.clock.sleep(self.config.settle_sleep_s)
        self.write(
            "settle",
            ctx.request_id,
            case=settlement.labels.get("case"),
            settlement=_SETTLEMENT.dump_python(settlement, mode="json"),
        )

    @hookimpl
    async def on_event(self, event: Event) -> None:
        self.write("on_event", None, event=type(event).__name__, source=event.source, case=getattr(event, "case", None))

    @hookimpl
    def status(self) -> Status:
        return Status(ok=True, summary="recording", details={"file": str(self.path)})

    @hookimpl
    def routes(self) -> Sequence[BaseRoute]:
        async def echo(request: Request) -> JSONResponse:
            body = await request.body()
            return JSONResponse({"who": request.headers.get("x-pointsman-user"), "body": body.decode()})

        async def doors(_: Request) -> JSONResponse:
            from litellm.proxy import proxy_server  # noqa: PLC0415  # only a proxy has it

            return JSONResponse(list(_doors(proxy_server.app.routes)))

        return [HttpRoute("/echo", echo, methods=["GET", "POST"]), HttpRoute("/doors", doors)]


def _doors(routes: Iterable[Any], prefix: str = "") -> Iterator[dict[str, Any]]:
    """Yield path and methods of every route of an application; a websocket has no methods."""
    for route in routes:
        if (router := getattr(route, "original_router", None)) is not None:
            yield from _doors(router.routes, prefix + route.include_context.prefix)
        elif inner := getattr(route, "routes", None):
            yield from _doors(inner, prefix + route.path)
        elif hasattr(route, "path"):
            yield {"path": prefix + route.path, "methods": sorted(getattr(route, "methods", None) or ()) or None}


plugin = PluginInfo(name="recorder", config=RecorderConfig, factory=Recorder, summary="Records every hook call.")


class Denier:
    """A later plugin that denies what the test's header says, for a connection or for the responses on it."""

    def __init__(self, config: PluginConfig) -> None:
        self.config = config

    @hookimpl
    async def pre_route(self, ctx: RequestContext, route: Route) -> Denial | None:
        if ctx.headers.get("x-test-fault"):
            raise RuntimeError("told to fail")
        # A response on a websocket has the headers of its connection.
        own = "x-test-deny-response" if ctx.within is not None else "x-test-deny"
        if status := ctx.headers.get(own):
            return Denial(
                status=int(status),
                code="told_to_deny",
                message="The test denies this.",
                retry_after_s=2.2,
                type="rate_limit_error",
                param="model",
                headers={"x-denied": "yes"},
            )
        return None


denier = PluginInfo(name="denier", config=PluginConfig, factory=Denier)


class Meter:
    """A plugin that says that it limits or bills, and does neither."""

    def __init__(self, config: PluginConfig) -> None:
        self.config = config


meter = PluginInfo(name="meter", config=PluginConfig, factory=Meter, meters=True)


class ContextsConfig(PluginConfig):
    """Where to write."""

    file: str


class Contexts:
    """Writes down what plugins are told of each request, whole: the request, and the body of each attempt."""

    def __init__(self, config: ContextsConfig) -> None:
        self.path = Path(config.file)

    def write(self, case: str | None, what: str, facts: Any) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            # The content of a file is bytes.
            file.write(json.dumps({"case": case, what: facts}, default=bytes.decode) + "\n")

    @hookimpl
    async def pre_route(self, ctx: RequestContext, route: Route) -> None:
        facts = {field.name: thawed(getattr(ctx, field.name)) for field in fields(ctx)}
        self.write(ctx.headers.get("x-test-case"), "context", {**facts, "identity": asdict(ctx.identity)})

    @hookimpl
    async def transform_request(self, ctx: RequestContext, attempt: Any, body: Any) -> None:
        self.write(ctx.headers.get("x-test-case"), "body", thawed(body))
        if ctx.parent_id is not None:
            own = {"kind": attempt.kind, "payer": ctx.payer, "identity": asdict(ctx.identity), "body": thawed(body)}
            self.write(ctx.parent_id, "own", own)


contexts = PluginInfo(name="contexts", config=ContextsConfig, factory=Contexts)
