"""A plugin of a third party that uses what the host offers: events, annotations and a meter."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from opentelemetry.metrics import CallbackOptions, Observation
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import BaseRoute, Route

from pointsman import PluginConfig, PluginInfo, Services, hookimpl
from pointsman.types import Event


@dataclass(frozen=True, slots=True, kw_only=True)
class Said(Event):
    """Said to all workers.

    Attributes:
        text: What.
    """

    everywhere: ClassVar[bool] = True
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Whispered(Event):
    """Said to this worker.

    Attributes:
        text: What.
    """

    text: str


class Author:
    """Says in every hook that it was there."""

    def __init__(self) -> None:
        self._heard: list[str] = []

    @hookimpl
    async def startup(self, services: Services) -> None:
        """Keep the services."""
        self._services = services
        self._requests = services.meter.create_counter("author.requests", unit="{request}")
        services.meter.create_observable_gauge("author.heard", callbacks=[self._level])

    def _level(self, _: CallbackOptions) -> Sequence[Observation]:
        return [Observation(len(self._heard), {"author.kind": "said"})]

    def _note(self, hook: str) -> None:
        self._services.annotate({hook: "seen"})

    @hookimpl
    async def pre_route(self) -> None:
        """Count it."""
        self._requests.add(1, {"author.kind": "request"})
        self._note("pre_route")

    @hookimpl
    def select(self) -> None:
        """Note it."""
        self._note("select")

    @hookimpl
    async def before_attempt(self) -> None:
        """Note it."""
        self._note("before_attempt")

    @hookimpl
    async def transform_request(self) -> None:
        """Note it."""
        self._note("transform_request")

    @hookimpl
    async def transform_response(self) -> None:
        """Note it."""
        self._note("transform_response")

    @hookimpl
    async def transform_stream(self, pieces: AsyncIterator[Mapping[str, Any]]) -> AsyncIterator[Mapping[str, Any]]:
        """Note it."""
        async for piece in pieces:
            self._note("transform_stream")
            yield piece

    @hookimpl
    def first_token(self) -> None:
        """Note it."""
        self._note("first_token")

    @hookimpl
    def post_response(self) -> None:
        """Note it."""
        self._note("post_response")

    @hookimpl
    def on_error(self) -> None:
        """Note it."""
        self._note("on_error")

    @hookimpl
    def answered(self) -> None:
        """Note it."""
        self._note("answered")

    @hookimpl
    async def settle(self) -> None:
        """Note it."""
        self._note("settle")

    @hookimpl
    async def on_event(self, event: Event) -> None:
        """Keep it."""
        if isinstance(event, Said | Whispered):
            self._heard.append(event.text)

    @hookimpl
    def routes(self) -> Sequence[BaseRoute]:
        """Say something, show what was heard."""
        return [Route("/said/{text}", self._say, methods=["POST"]), Route("/heard", self._show)]

    async def _say(self, request: Request) -> JSONResponse:
        text = request.path_params["text"]
        self._services.publish(Said(text=text))
        self._services.publish(Whispered(text=f"{text}, here"))
        return JSONResponse({})

    async def _show(self, _: Request) -> JSONResponse:
        return JSONResponse(self._heard)


plugin = PluginInfo(name="author", config=PluginConfig, factory=lambda _: Author())
