"""A plugin writes on the span of its hook, under its own name and within bounds, from every hook."""

from __future__ import annotations

from typing import Any

import pytest

from pointsman import hookimpl
from pointsman.testing import Harness, error, ok


class Annotating:
    """Says in every hook that it was there."""

    @hookimpl
    async def startup(self, services: Any) -> None:
        self.annotate = services.annotate
        self.annotate({"outside": True})

    @hookimpl
    async def pre_route(self) -> None:
        self.annotate({"pre_route": "eu only"})

    @hookimpl
    def select(self) -> None:
        self.annotate({"select": 1})

    @hookimpl
    async def before_attempt(self) -> None:
        self.annotate({"before_attempt": 0.5})

    @hookimpl
    async def transform_request(self) -> None:
        self.annotate({"transform_request": ["a", "b"]})

    @hookimpl
    async def transform_response(self) -> None:
        self.annotate({"transform_response": True})

    @hookimpl
    def transform_stream(self, pieces: Any) -> Any:
        async def changed() -> Any:
            async for piece in pieces:
                self.annotate({"transform_stream": "seen"})
                yield piece

        return changed()

    @hookimpl
    def post_response(self) -> None:
        self.annotate({"post_response": True})

    @hookimpl
    def on_error(self) -> None:
        self.annotate({"on_error": True})

    @hookimpl
    def answered(self) -> None:
        self.annotate({"answered": True})

    @hookimpl
    async def settle(self) -> None:
        self.annotate({"settle": True})


def written(worker: Harness, plugin_name: str) -> dict[str, set[str]]:
    """Return what was written, by hook, and the kinds of the spans that have it."""
    found: dict[str, set[str]] = {}
    prefix = f"pointsman.{plugin_name}."
    for span in worker.spans:
        for name in span.attributes or {}:
            if name.startswith(prefix):
                found.setdefault(name.removeprefix(prefix), set()).add(span.name.split()[0])
    return found


@pytest.mark.parametrize("stream", [False, True])
async def test_every_hook_writes_on_its_own_span(harness: Any, plugin: Any, stream: bool) -> None:
    info = plugin(Annotating)
    worker = harness([info], tracing=True)
    async with worker:
        await worker.request(stream=stream, script=[error(503), ok()])
        await worker.settled()
        found = written(worker, info.name)
    changed = "transform_stream" if stream else "transform_response"
    assert found == {
        "pre_route": {"pre_route"},
        "select": {"chat"},
        "before_attempt": {"before_attempt"},
        "transform_request": {"chat"},
        changed: {"chat"},
        "post_response": {"chat"},
        "on_error": {"chat"},
        "answered": {"chat"},
        "settle": {"settle"},
    }


async def test_annotations_have_bounds(harness: Any, plugin: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Too many, names that are none, and values without a form are left out; nothing of it is a fault of the plugin."""

    class Much:
        @hookimpl
        async def startup(self, services: Any) -> None:
            self.annotate = services.annotate

        @hookimpl
        async def pre_route(self) -> None:
            self.annotate({"Not a name": 1, "none": None, "dict": {}, "long": "x" * 5000, "inf": float("inf")})
            self.annotate({f"n{number}": number for number in range(40)})

    info = plugin(Much)
    worker = harness([info], tracing=True)
    async with worker:
        await worker.request()
        await worker.settled()
        (span,) = [span for span in worker.spans if span.name == "pre_route"]
        assert worker.faults == {}
    own = {n.removeprefix(f"pointsman.{info.name}."): v for n, v in span.attributes.items()}
    assert own.pop("long") == "x" * 1024
    assert own.pop("inf") == "inf"
    assert own == {f"n{number}": number for number in range(16)}
    assert "the annotation 'Not a name' is left out" in caplog.text
