# ruff: noqa: INP001, S311 - a script of repeatable chance, not a package
"""A fleet of six deployments behind one port, with faults on a timetable; each model name is a deployment.

Run by ``bench_fleet.py`` in a process of its own. A deployment serves a few requests at a time; more of them wait, so
that sending everything to the quickest one has its price. Answers are OpenAI chat streams in three pieces.

``POST /start`` starts the timetable, ``GET /journal`` tells every request since then: seconds, deployment, status.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from dataclasses import dataclass
from typing import Any

import uvicorn


@dataclass(frozen=True, kw_only=True)
class Kind:
    """How a deployment behaves.

    Attributes:
        first_ms: Median time to the first token.
        token_ms: Time of each further token.
        slots: Requests at a time.
        sick_s: When its brown-out begins and ends, seconds after the start.
        quota: Requests in each window of ``window_s``; more are answered with 429 until the window ends.
        window_s: Length of the quota's window.
    """

    first_ms: float
    token_ms: float = 15.0
    slots: int = 8
    sick_s: tuple[float, float] | None = None
    quota: int | None = None
    window_s: float = 10.0


ERROR_RATIO = 0.3
SLOWER = 10.0
SIGMA = 0.25
SICK = "sick"


def fleet(begin_s: float, end_s: float) -> dict[str, Kind]:
    """Return the fleet: one fast, two normal, one slow, one with a brown-out, one with a small quota."""
    return {
        "fast": Kind(first_ms=150, token_ms=8),
        "normal-1": Kind(first_ms=300),
        "normal-2": Kind(first_ms=300),
        "slow": Kind(first_ms=900, token_ms=30),
        SICK: Kind(first_ms=300, sick_s=(begin_s, end_s)),
        "limited": Kind(first_ms=250, quota=20),
    }


class Server:
    """One deployment at work."""

    def __init__(self, name: str, kind: Kind) -> None:
        self.kind = kind
        self.free = asyncio.Semaphore(kind.slots)
        # The n-th request to a deployment has the same luck for every client.
        self.luck = random.Random(name)
        self.window = (-1, 0)

    def limited_s(self, at: float) -> float | None:
        """Return the seconds until the quota is back, or None when there is some left; counts the request."""
        kind = self.kind
        if kind.quota is None:
            return None
        number = int(at // kind.window_s)
        used = self.window[1] if self.window[0] == number else 0
        if used >= kind.quota:
            return (number + 1) * kind.window_s - at
        self.window = (number, used + 1)
        return None


class Fleet:
    """The application."""

    def __init__(self, begin_s: float, end_s: float) -> None:
        self.kinds = fleet(begin_s, end_s)
        self.restart()

    def restart(self) -> None:
        """Restart the timetable."""
        self.servers = {name: Server(name, kind) for name, kind in self.kinds.items()}
        self.started = time.monotonic()
        self.journal: list[tuple[float, str, int]] = []

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Answer."""
        if scope["type"] != "http":
            return
        body = b""
        more = True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        if scope["path"] == "/start":
            self.restart()
            await answer(send, 200, {})
        elif scope["path"] == "/journal":
            await answer(send, 200, self.journal)
        elif scope["path"] == "/v1/chat/completions":
            await self.complete(json.loads(body), send)
        else:
            await answer(send, 404, error("not_found"))

    async def complete(self, asked: dict[str, Any], send: Any) -> None:
        """Answer one chat completion."""
        name = asked["model"]
        server, at = self.servers[name], time.monotonic() - self.started
        kind, luck = server.kind, server.luck
        sick = kind.sick_s is not None and kind.sick_s[0] <= at < kind.sick_s[1]
        first_s = kind.first_ms / 1e3 * luck.lognormvariate(0.0, SIGMA) * (SLOWER if sick else 1.0)
        fails = luck.random() < ERROR_RATIO and sick
        entry = len(self.journal)
        self.journal.append((at, name, 200))
        if (limited_s := server.limited_s(at)) is not None:
            self.journal[entry] = (at, name, 429)
            await answer(send, 429, error("rate_limit_exceeded"), {"retry-after": f"{limited_s:.3f}"})
            return
        async with server.free:
            await asyncio.sleep(first_s)
            if fails:
                self.journal[entry] = (at, name, 503)
                await answer(send, 503, error("unavailable"))
                return
            tokens = int(asked.get("max_tokens") or 20)
            headers = [(b"content-type", b"text/event-stream")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send(event(name, {"role": "assistant", "content": "word"}))
            await asyncio.sleep(kind.token_ms / 1e3 * tokens)
        await send(event(name, {"content": " word" * 3}))
        usage = {"prompt_tokens": 20, "completion_tokens": tokens, "total_tokens": 20 + tokens}
        await send(event(name, {}, finish_reason="stop", usage=usage))
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})


def error(code: str) -> dict[str, Any]:
    """Return OpenAI's error body."""
    return {"error": {"message": code, "type": "server_error", "param": None, "code": code}}


def event(model: str, delta: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Return one event of a stream."""
    usage = more.pop("usage", None)
    choice = {"index": 0, "delta": delta, "finish_reason": more.get("finish_reason")}
    chunk = {"id": "c", "object": "chat.completion.chunk", "created": 0, "model": model, "choices": [choice]}
    if usage:
        chunk["usage"] = usage
    return {"type": "http.response.body", "body": f"data: {json.dumps(chunk)}\n\n".encode(), "more_body": True}


async def answer(send: Any, status: int, body: object, headers: dict[str, str] | None = None) -> None:
    """Send a whole answer."""
    raw = [(b"content-type", b"application/json")]
    raw += [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": json.dumps(body).encode()})


if __name__ == "__main__":
    port, begin, end = int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])
    uvicorn.run(Fleet(begin, end), host="127.0.0.1", port=port, log_level="error")
