"""Sends an answer as planned: waits, faults, and notice of the client that goes away."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Self

from .plan import OK

if TYPE_CHECKING:
    from collections.abc import Iterator

    from starlette.types import Receive, Scope, Send

    from .journal import Entry
    from .plan import Plan
    from .wire import Answer, Header, Stream

CLOSE = "pointsman.close"
"""Name of the ASGI extension with which an application closes its connection; the server runner provides it."""

_HTML = (b"content-type", b"text/html; charset=utf-8")


class ClientGone(Exception):
    """The client has closed the connection."""


class Connection:
    """One request's connection, from the moment its body was read.

    A task watches for the client's leaving; every wait ends at once when it does.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.send = send
        self._close = (scope.get("extensions") or {}).get(CLOSE)
        self._receive = receive
        self._gone = asyncio.get_running_loop().create_future()
        self._watcher: asyncio.Task[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._watcher is not None:
            self._watcher.cancel()

    async def pause(self, seconds: float | None) -> None:
        """Wait; for ever when None. Even 0 lets the others run.

        Raises:
            ClientGone: the client has left.
        """
        if self._watcher is None:
            self._watcher = asyncio.create_task(self._watch(), name="upstream-watch")
        if seconds == 0:
            await asyncio.sleep(0)
        else:
            await asyncio.wait((self._gone,), timeout=seconds)
        if self._gone.done():
            raise ClientGone

    async def hang_up(self) -> None:
        """Close the connection without ending the answer.

        Raises:
            RuntimeError: the server that runs the application offers no way to do it.
        """
        if self._close is None:
            raise RuntimeError(f"upstream: the server has no ASGI extension {CLOSE!r}; run it with UpstreamServer")
        self._close()
        if self._watcher is None:
            await self._watch()
        else:
            await self._watcher

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._gone.set_result(None)


async def deliver(connection: Connection, answer: Answer, plan: Plan, entry: Entry) -> None:
    """Send the answer as planned, and note in the journal how it went.

    Raises:
        ClientGone: the client left before the end.
    """
    headers = answer.headers
    if plan.fault == "wrong_content_type":
        headers = [header for header in headers if header[0] != _HTML[0]] + [_HTML]
    streamed = answer.stream is not None
    failed = answer.status != OK
    wait_s = plan.latency_s if streamed or failed else plan.plain_s(answer.tokens)
    if wait_s:
        await connection.pause(wait_s)
    if plan.fault == "drop":
        await connection.hang_up()
        return
    if plan.fault == "hang" and (not streamed or plan.fault_after_events == 0):
        await connection.pause(None)
    if answer.stream is None:
        await _plain(connection, answer, headers, plan, entry)
        return
    await _start(connection, answer.status, headers, entry)
    await _stream(connection, answer.stream, plan, entry)


async def _start(connection: Connection, status: int, headers: list[Header], entry: Entry) -> None:
    entry.write(status=status, headers_ms=entry.elapsed_ms())
    await connection.send({"type": "http.response.start", "status": status, "headers": headers})


async def _plain(connection: Connection, answer: Answer, headers: list[Header], plan: Plan, entry: Entry) -> None:
    body = answer.body
    half = body[: len(body) // 2]
    if plan.fault == "malformed_json":
        body = half
    headers = [*headers, (b"content-length", b"%d" % len(body))]
    await _start(connection, answer.status, headers, entry)
    if plan.fault == "break":
        await _body(connection, half)
        await connection.hang_up()
        return
    await _body(connection, body, more=False)


def _paced(stream: Stream, plan: Plan) -> Iterator[tuple[bytes, float, bool]]:
    """Return each event, the seconds to wait before it, and whether it carries a token."""
    for event in stream.opening:
        yield event, 0.0, False
    wait_s = plan.first_token_s
    for event in stream.tokens:
        yield event, wait_s, True
        wait_s = plan.per_token_s
    for event in stream.closing:
        yield event, 0.0, False


async def _stream(connection: Connection, stream: Stream, plan: Plan, entry: Entry) -> None:
    sent, first_token_ms = 0, None
    events = _paced(stream, plan)
    fault_at = plan.fault_after_events if plan.fault in ("hang", "break", "error_event", "malformed_json") else None
    try:
        while True:
            if sent == fault_at and plan.fault == "hang":
                await connection.pause(None)
            if sent == fault_at and plan.fault == "break":
                await connection.hang_up()
                return
            if sent == fault_at and plan.fault == "error_event":
                for event in stream.failure():
                    await _body(connection, event)
                    sent += 1
                break
            event, wait_s, is_token = next(events, (b"", 0.0, False))
            if not event:
                break
            await connection.pause(wait_s)
            if is_token and first_token_ms is None:
                first_token_ms = entry.elapsed_ms()
            if sent == fault_at:
                event = event[: len(event) // 2] + b"\n\n"
            await _body(connection, event)
            sent += 1
        await _body(connection, b"", more=False)
    finally:
        entry.note(events=sent, first_token_ms=first_token_ms)


async def _body(connection: Connection, part: bytes, *, more: bool = True) -> None:
    await connection.send({"type": "http.response.body", "body": part, "more_body": more})
