"""The contract of what others see: status, admin routes, and what nobody may see."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Iterator, Sequence
from typing import Final

from starlette.routing import BaseRoute, Mount, Route

from ...errors import UpstreamError
from ...store import open_store
from ...types import AttemptKind, Credential, Status, UpstreamRequest
from ..clock import FakeClock
from ..harness import Harness
from ..script import error, ok
from .base import SCENARIOS, ContractBase, ContractViolation, check

_ANSWERS_WITHIN_S: Final = 5.0
_MALFORMED: Final = (
    b"{",
    b"\xff\xfe",
    b"[]",
    b"null",
    b'"text"',
    b"7",
    b'{"a": NaN}',
    b"[" * 20_000,
    b'{"\\ud800": 1}',
)
_PATH_VALUES: Final = ("no-such-thing", "%00", "%2e%2e%2f", "%F0%9F%99%82", "a" * 2000, "%22%27%7B%7D")
_QUERIES: Final = ("?limit=many&from=x&to=%00&name=%ff", "?limit=-1&from=1e999&to=-5", "?no_such_parameter=1")
_CLIENT_ERROR: Final = 400
_SERVER_ERROR: Final = 500
_MARKER: Final = "s3cr3t-m4rk3r"


class SurfaceContract(ContractBase):
    """Status, admin routes, secrets."""

    def test_its_status_is_json(self) -> None:
        """``status`` can be written as JSON before, during and after traffic."""
        self.run(self._status())

    def test_its_routes_refuse_malformed_bodies(self) -> None:
        """A body that is no JSON, or not the JSON that is wanted, is the client's fault and says so."""
        self.need("routes")
        self.run(self._bodies())

    def test_its_routes_survive_odd_paths_and_queries(self) -> None:
        """Whatever stands in path and query, the answer is never a fault of the server."""
        self.need("routes")
        self.run(self._paths())

    def test_it_keeps_no_secret(self) -> None:
        """What is in keys, prompts, answers and headers appears in no store, log, span, status or event."""
        self.run(self._secrets())

    async def _status(self) -> None:
        async with self.worker() as h:
            for scenario in SCENARIOS:
                if not scenario.denied:
                    await self.ask(h, **scenario.request)
                self._check_status(h.status(self.info.name), scenario.name)
            await h.settled()
            self._check_status(h.status(self.info.name), "settled")
            answer = await h.admin.get("/status")
            check(answer.is_success, f"GET /pointsman/status answered {answer.status_code}")

    def _check_status(self, status: Status, when: str) -> None:
        check(not status.summary.startswith("broken"), f"status, {when}: {status.summary}")
        check("\n" not in status.summary, f"status, {when}: the summary is more than one line")
        check("faults" not in status.details, f"status, {when}: hooks have failed: {status.details}")
        json.dumps(dict(status.details), allow_nan=False)

    def _routes(self, h: Harness) -> Iterator[tuple[str, str]]:
        """Yield method and path of every admin route that does not stream."""
        for method, path in _flat("", self.hooks(h)["routes"]()):
            if path not in self.streaming_routes:
                yield method, path

    async def _send(self, h: Harness, method: str, path: str, body: bytes | None = None) -> tuple[int, str]:
        url = f"/{self.info.name}{path}"
        try:
            async with asyncio.timeout(_ANSWERS_WITHIN_S):
                answer = await h.admin.request(
                    method, url, content=body, headers={"content-type": "application/json"} if body else None
                )
        except TimeoutError:
            message = f"{method} {url} did not answer; if it streams for ever, name it in streaming_routes"
            raise ContractViolation(message) from None
        return answer.status_code, answer.text

    async def _bodies(self) -> None:
        async with self.worker() as h:
            for method, path in self._routes(h):
                if method not in {"POST", "PUT", "PATCH"}:
                    continue
                for body in _MALFORMED:
                    status, text = await self._send(h, method, _filled(path, "no-such-thing"), body)
                    least = 200 if path in self.routes_without_body else _CLIENT_ERROR
                    check(
                        least <= status < _SERVER_ERROR,
                        f"{method} {path} answered {status} to the body {body[:20]!r}: {text[:300]}",
                    )
                    if status >= _CLIENT_ERROR:
                        message = json.loads(text).get("error", {}).get("message")
                        check(message, f"{method} {path} answered {status} without error.message: {text[:300]}")
            self.check_healthy(h, "after malformed bodies")

    async def _paths(self) -> None:
        async with self.worker() as h:
            for method, path in self._routes(h):
                odd = [_filled(path, value) for value in _PATH_VALUES] if "{" in path else []
                plain = _filled(path, "no-such-thing")
                for url in (*odd, *(f"{plain}{query}" for query in _QUERIES)):
                    status, text = await self._send(h, method, url)
                    check(status < _SERVER_ERROR, f"{method} {url[:80]} answered {status}: {text[:300]}")
            self.check_healthy(h, "after odd paths")

    async def _secrets(self) -> None:
        seen = _Seen()
        root = logging.getLogger()
        level = root.level
        root.addHandler(seen)
        root.setLevel(logging.DEBUG)
        clock = FakeClock()
        store = await open_store("memory", clock=clock.now)
        texts: dict[str, str] = {}
        try:
            async with self.worker(store=store, clock=clock, tracing=True) as h:
                await self._whisper(h)
                texts["status"] = json.dumps(dict(h.status(self.info.name).details))
                await h.clock.advance(60.0)
                await h.restart()
                for key, value in await store.scan(""):
                    texts[f"store key {key}"] = key + json.dumps(value)
                for span in h.spans:
                    texts[f"span {span.name}"] = span.to_json()
                texts["events"] = repr(h.events)
        finally:
            root.removeHandler(seen)
            root.setLevel(level)
        texts.update({f"log line {number}": line for number, line in enumerate(seen.lines)})
        found = sorted(place for place, text in texts.items() if _MARKER in text)
        check(not found, f"secrets appear in: {', '.join(found)}")

    async def _whisper(self, h: Harness) -> None:
        """Say the marker wherever a secret can be: prompt, answer, headers of both, key, credential."""
        headers = {**self.headers, "authorization": f"Bearer {_MARKER}", "x-custom": _MARKER, "cookie": _MARKER}
        messages = [{"role": "user", "content": f"The secret is {_MARKER}."}]
        body = {**self.body, "messages": messages, "tools": [{"type": "function", "function": {"name": _MARKER}}]}
        answer = ok(f"I will not tell {_MARKER}", headers={"x-organization": _MARKER})
        broken = error(500, headers={"x-organization": _MARKER})
        for scripted in (answer, [broken, answer], broken):
            for stream in (False, True):
                await self.ask(h, headers=headers, body=body, script=scripted, stream=stream)
        await h.authenticate(_MARKER, headers={"x-custom": _MARKER})
        authenticate = self.hooks(h).get("authenticate")
        if authenticate is not None:
            await authenticate(Credential(api_key=_MARKER, path="/", headers={"x-custom": _MARKER}))
        upstream = h.gateway.upstream
        upstream.answer(answer)
        request = UpstreamRequest(target=self.deployments[0].group, kind=AttemptKind.PROBE, body=body)
        with contextlib.suppress(UpstreamError):  # the plugin may refuse it
            await h.clock.run(upstream.start(request).response())
        await h.settled()


class _Seen(logging.Handler):
    """Keeps every log line, with the traceback that belongs to it."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[str] = []
        self.setFormatter(logging.Formatter("%(name)s %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a line."""
        self.lines.append(self.format(record))


def _flat(prefix: str, routes: Sequence[BaseRoute]) -> Iterator[tuple[str, str]]:
    for route in routes:
        if isinstance(route, Mount):
            yield from _flat(prefix + route.path, route.routes)
        elif isinstance(route, Route):
            for method in sorted((route.methods or set()) - {"HEAD", "OPTIONS"}):
                yield method, prefix + route.path


def _filled(path: str, value: str) -> str:
    """Return a route's path with every parameter replaced."""
    parts = path.split("{")
    return parts[0] + "".join(value + part.partition("}")[2] for part in parts[1:])
