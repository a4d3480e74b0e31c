"""A plugin that does what a test tells it, and writes down every settlement."""

from __future__ import annotations

from pydantic import Field
from starlette.responses import JSONResponse
from starlette.routing import Route as HttpRoute

from pointsman import PluginConfig, PluginInfo, hookimpl
from pointsman.types import Denial, Identity, Status


class ActorConfig(PluginConfig):
    """A number."""

    number: int = Field(default=1, ge=0)


class Actor:
    """Does what a test tells it, and writes down every settlement."""

    def __init__(self, config):
        self.config = config
        self.contexts = []
        self.events = []
        self.denial = self.route = self.narrow = self.refuse = self.work = None
        self.failing = 0

    @hookimpl
    async def startup(self, services):
        self.services = services

    @hookimpl
    async def authenticate(self, credential):
        if credential.api_key == "sk-gone":
            return Denial(status=403, code="gone", message="This key is gone.", headers={"x-why": "gone"})
        return Identity(tenant="t1", claims={"plan": "gold"}) if credential.api_key == "sk-t1" else None

    @hookimpl
    async def pre_route(self, ctx, route):
        self.contexts.append(ctx)
        return self.denial or (self.route(route) if self.route else None)

    @hookimpl
    def select(self, candidates):
        return self.narrow(candidates) if self.narrow else None

    @hookimpl
    async def before_attempt(self, attempt):
        return self.refuse(attempt) if self.refuse else None

    @hookimpl
    async def execute(self, ctx, route, upstream):
        return await self.work(ctx, route, upstream)

    @hookimpl
    async def settle(self, settlement):
        if self.failing:
            self.failing -= 1
            raise RuntimeError("not now")
        await self.services.store.put(settlement.request_id, str(settlement.outcome))

    @hookimpl
    async def on_event(self, event):
        self.events.append(event)

    @hookimpl
    def status(self):
        return Status(ok=True, summary=f"number {self.config.number}")

    @hookimpl
    def routes(self):
        return [HttpRoute("/who", lambda request: JSONResponse({"who": request.headers["x-pointsman-user"]}))]


INFO = PluginInfo(name="actor", config=ActorConfig, factory=Actor)
