"""A sound plugin with a hook of every kind, for the tests of the contract suite."""

from __future__ import annotations

import asyncio
import hashlib
import json

from pydantic import Field
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Mount, Route

from pointsman import PluginConfig, hookimpl
from pointsman.errors import InvalidInput, NotFound
from pointsman.events import BudgetSpent
from pointsman.store import Put, Update
from pointsman.types import AttemptKind, Execution, Identity, Refusal, Reservation, Status, UpstreamRequest

SLOTS = 3


class BudgetConfig(PluginConfig):
    """A limit in tokens."""

    limit_tokens: int = Field(default=10**18, ge=1)
    race: bool = False


class Budget:
    """Reserves and spends tokens per tenant, limits attempts, races when told to: a hook of every kind."""

    def __init__(self, config):
        self.config = config
        self.free = SLOTS
        self.heard = 0

    @hookimpl
    async def startup(self, services):
        self.services = services
        await services.store.get("meta")
        services.tasks.every(5.0, self.tick, name="tick")

    async def tick(self):
        await self.services.store.put("meta", "alive")

    @hookimpl
    async def shutdown(self):
        await self.services.store.delete("meta")

    @hookimpl
    async def authenticate(self, credential):
        await self.services.store.get("meta")
        return Identity(tenant="known") if credential.api_key == "sk-known" else None

    @hookimpl
    async def pre_route(self, ctx, route):
        tokens = self.services.tokenizer.count(ctx.model, ctx.body)
        await self.services.store.put(f"reserved/{ctx.request_id}", tokens, ttl_s=600.0)
        expires_at = self.services.clock.now() + 600.0
        route = route.with_reservation(Reservation(plugin="budget", id=ctx.request_id, expires_at=expires_at))
        if self.config.race:
            route = type(route)(target=route.target, executor="budget", reservations=route.reservations)
        return route.with_labels(budget="yes")

    @hookimpl
    def select(self, candidates):
        return [candidate.scored(1.0, "fine") for candidate in candidates]

    @hookimpl
    async def before_attempt(self, ctx, attempt):
        if self.free == 0:
            return Refusal(reason="no free slot")
        self.free -= 1
        try:
            await self.services.store.get("meta")
        except BaseException:
            self.free += 1
            raise
        return None

    @hookimpl
    async def execute(self, ctx, route, upstream):
        call = upstream.start(UpstreamRequest(target=route.target, kind=AttemptKind.PRIMARY, body={}))
        if ctx.stream:
            return Execution(chunks=call.chunks())
        return Execution(response=await call.response())

    @hookimpl
    def post_response(self, attempt):
        self.free = min(SLOTS, self.free + 1)

    @hookimpl
    def on_error(self, attempt):
        self.free = min(SLOTS, self.free + 1)

    def key(self, tenant):
        return f"used/{hashlib.sha256((tenant or '').encode('utf-8', 'replace')).hexdigest()[:16]}"

    @hookimpl
    async def settle(self, settlement):
        done = f"done/{settlement.request_id}"
        spent = settlement.cost_usd_micros
        update = Update(
            checks={done: None},
            puts={done: Put(1, ttl_s=3600.0)},
            adds={self.key(settlement.identity.tenant): min(spent, 10**6)},
            deletes=(f"reserved/{settlement.request_id}",),
        )
        if await self.services.store.update(update):
            self.services.publish(BudgetSpent(tenant="t", cost_usd_micros=spent, at=settlement.finished_at))

    @hookimpl
    async def on_event(self, event):
        await self.services.store.get("meta")
        self.heard += 1

    @hookimpl
    def status(self):
        return Status(ok=True, summary="running", details={"free": self.free, "heard": self.heard})

    @hookimpl
    def routes(self):
        return [
            Route("/tenants", self.create, methods=["POST"]),
            Mount("/tenants", routes=[Route("/{id}", self.get, methods=["GET"])]),
            Route("/reset", self.reset, methods=["POST"]),
            Route("/live", self.live, methods=["GET"]),
        ]

    async def create(self, request):
        try:
            body = json.loads(await request.body())
        except (ValueError, RecursionError) as err:
            raise InvalidInput("the body is not JSON") from err
        if not isinstance(body, dict) or set(body) != {"id"}:
            raise InvalidInput("give an id", param="id")
        return JSONResponse(body)

    async def get(self, request):
        raise NotFound("there is no such tenant", param="id")

    async def reset(self, request):
        return JSONResponse({})

    async def live(self, request):
        async def forever():
            while True:
                yield b"."
                await asyncio.sleep(0.01)

        return StreamingResponse(forever())
