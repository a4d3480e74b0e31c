"""Plugins that change what passes, answer by themselves, refuse and fail, as the request's headers say."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pointsman import PluginConfig, PluginInfo, hookimpl
from pointsman.plugin import OnFailure
from pointsman.types import Attempt, Candidate, Denial, Refusal, Reply, RequestContext, Route

_TEXT = frozenset({"content", "delta", "text", "output_text"})


def mapped(value: Any, change: Any, keys: frozenset[str] | None = None, key: str = "") -> Any:
    """Return JSON with the texts under some keys changed; None: under all."""
    if isinstance(value, Mapping):
        return {name: mapped(item, change, keys, name) for name, item in value.items()}
    if isinstance(value, list):
        return [mapped(item, change, keys, key) for item in value]
    return change(value) if isinstance(value, str) and (keys is None or key in keys) else value


class Changer:
    """Hides a name from the provider, and writes the answer in capitals."""

    def __init__(self, config: PluginConfig) -> None:
        self._config = config

    @hookimpl
    async def transform_request(
        self, ctx: RequestContext, attempt: Attempt, body: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        """Hide the name."""
        _fail(ctx, "request")
        return mapped(body, lambda text: text.replace("Ada", f"NAME{attempt.number}"))  # type: ignore[no-any-return]  # a mapping

    @hookimpl
    async def transform_response(self, ctx: RequestContext, answer: Mapping[str, Any]) -> Mapping[str, Any]:
        """Write in capitals."""
        _fail(ctx, "response")
        return mapped(answer, str.upper, _TEXT)  # type: ignore[no-any-return]  # a mapping

    @hookimpl
    async def transform_stream(
        self, ctx: RequestContext, pieces: AsyncIterator[Mapping[str, Any]]
    ) -> AsyncIterator[Mapping[str, Any]]:
        """Write in capitals."""
        number = 0
        async for piece in pieces:
            number += 1
            if number > 4:
                _fail(ctx, "stream")
            yield mapped(piece, str.upper, _TEXT)


class Sealer:
    """Marks answers, and leaves requests as they are."""

    @hookimpl
    async def transform_response(self, answer: Mapping[str, Any]) -> Mapping[str, Any]:
        """Mark the answer."""
        return {**answer, "seal": "sealed"}

    @hookimpl
    async def transform_stream(self, pieces: AsyncIterator[Mapping[str, Any]]) -> AsyncIterator[Mapping[str, Any]]:
        """Mark each piece."""
        async for piece in pieces:
            yield {**piece, "seal": "sealed"}


def _fail(ctx: RequestContext, where: str) -> None:
    if ctx.headers.get("x-test-fail") == where:
        raise RuntimeError("broken")


class Policy:
    """Answers, refuses, limits and drops, as the request's headers say."""

    @hookimpl
    async def pre_route(self, ctx: RequestContext, route: Route) -> Route | Denial | Reply | None:
        """Answer by itself, or set limits; after a while, if asked to."""
        await asyncio.sleep(float(ctx.headers.get("x-test-wait", 0)))
        if "x-test-reply" in ctx.headers:
            reply = json.loads(ctx.headers["x-test-reply"])
            return Reply(
                body=reply if isinstance(reply, dict) else None, pieces=tuple(reply) if isinstance(reply, list) else ()
            )
        if "x-test-deny" in ctx.headers:
            evil = {"x-evil": "1\r\nset-cookie: a=b"} if ctx.headers["x-test-deny"] == "evil" else {}
            return Denial(status=403, code="denied", message="No.", headers=evil)
        if "x-test-route" in ctx.headers:
            return replace(route, **json.loads(ctx.headers["x-test-route"]))
        return None

    @hookimpl
    def select(self, ctx: RequestContext, candidates: Sequence[Candidate]) -> Sequence[Candidate] | None:
        """Drop all."""
        if "x-test-drop" in ctx.headers:
            return [candidate.drop(ctx.headers["x-test-drop"]) for candidate in candidates]
        return None

    @hookimpl
    async def before_attempt(self, ctx: RequestContext) -> Refusal | None:
        """Refuse."""
        if "x-test-refusal" in ctx.headers:
            return Refusal(**json.loads(ctx.headers["x-test-refusal"]))
        return None


class Denying(PluginConfig):
    """Must see everything."""

    on_failure: OnFailure = "deny"


changer = PluginInfo(name="changer", config=PluginConfig, factory=Changer)
guardian = PluginInfo(name="guardian", config=Denying, factory=Changer)
sealer = PluginInfo(name="sealer", config=Denying, factory=lambda _: Sealer())
policy = PluginInfo(name="policy", config=PluginConfig, factory=lambda _: Policy())
