"""What plugins change on its way: the request's body among LiteLLM's arguments, and the answer's bytes on their way out.

LiteLLM's own callbacks for answers do not fire on every endpoint, and see objects of a dozen classes. So answers are changed
where they leave the process, as JSON: one way for all endpoints and for executors, and only where a plugin asks for it.
"""

from __future__ import annotations

import asyncio
import json
import zlib
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from io import BytesIO
from typing import TYPE_CHECKING, Any, Final

from ..frozen import frozen, thawed
from ..host.transforms import StreamDeniedError, has_answer
from ..types import CREDENTIAL_FIELDS, FIXED_FIELDS, WITHHELD, Endpoint
from . import denials
from .early_streams import NAMED, error_event

if TYPE_CHECKING:
    from starlette.types import Message, Send

    from ..host.exchange import Exchange
    from ..types import Attempt, Denial, RequestContext

#: Fields with a request's content, which LiteLLM may have under these names although the client has not.
_CONTENT: Final = frozenset(
    {
        "contents",
        "documents",
        "input",
        "instructions",
        "messages",
        "prompt",
        "query",
        "system",
        "systemInstruction",
        "tools",
    }
)
#: The client's fields that LiteLLM writes into.
_SHARED: Final = frozenset({"litellm_metadata", "metadata"})
#: LiteLLM's own fields.
_OWN: Final = frozenset({"metadata", "proxy_server_request", "secret_fields", "provider_specific_header"})
_OWN_PREFIX: Final = "litellm_"
_JSON: Final = (str, int, float, bool, list, dict, type(None))
_OK: Final = range(200, 300)
#: Longest event of a stream, and longest plain answer, that is changed; more is not kept in memory.
_MOST_BYTES: Final = 64 * 1024 * 1024
#: What a plain answer may come in: LiteLLM 1.106 compresses it for clients that accept it.
_ENCODINGS: Final = frozenset({b"", b"gzip", b"x-gzip"})
_GZIP: Final = 16 + zlib.MAX_WBITS
_DONE: Final = "[DONE]"
_END: Final = object()


def noted(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return which fields a client has sent, and those that LiteLLM writes its own facts into, as the client sent them.

    Args:
        body: The request as it arrived, before LiteLLM has worked on it.
    """
    return {name: frozen(value) if name in _SHARED else None for name, value in body.items()}


def sent(noted: Mapping[str, Any] | None, data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the body that a client has sent.

    LiteLLM adds to it what it knows about the key, the headers, and what it reads from them; plugins are not to see a secret
    there, nor what the testing kit does not have.

    Args:
        noted: What was noted of it; None where nothing was.
        data: LiteLLM's request.
    """
    kept = (data.get("proxy_server_request") or {}).get("body")
    body = kept if isinstance(kept, dict) else data
    if noted is None:
        return {name: value for name, value in body.items() if name not in _OWN and not name.startswith(_OWN_PREFIX)}
    found = {}
    for name, value in noted.items():
        if name in _SHARED:
            found[name] = value
        elif name in body:
            found[name] = body[name]
        elif name in CREDENTIAL_FIELDS:
            # LiteLLM takes some of them out; that the client uses its own account is still of interest.
            found[name] = WITHHELD
    return found


#: What an upload is, where its API says it.
_UPLOADS: Final[Mapping[Endpoint, str]] = {
    Endpoint.IMAGES: "image",
    Endpoint.TRANSCRIPTIONS: "audio",
    Endpoint.VIDEOS: "image",
}
_WAVE: Final = b"RIFF"
_FILE: Final = "file"


def uploads(endpoint: Endpoint, data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the files of a form, by field: of each its name, its kind and its content. LiteLLM keeps them beside the body.

    Of a file that a provider is to keep it shows the name and the size.

    Args:
        endpoint: The request's API.
        data: LiteLLM's request.
    """
    kind = _UPLOADS.get(endpoint)
    found: dict[str, Any] = {}
    for name, value in data.items():
        if isinstance(value, BytesIO):
            found[name] = _upload(value, kind)
        elif isinstance(value, list) and _are_files(value):
            found[name] = [_upload(one, kind) for one in value if isinstance(one, BytesIO)]
    if endpoint is Endpoint.FILES and isinstance(file := data.get(_FILE), Mapping):
        found |= {"purpose": data.get("purpose"), _FILE: {"filename": file.get("filename"), "size": file.get("size")}}
    return found


def _are_files(value: object) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], BytesIO)


def _upload(file: BytesIO, kind: str | None) -> dict[str, Any]:
    content = file.getvalue()
    if kind == "audio" and content.startswith(_WAVE):
        kind = "audio/wav"
    return {"filename": str(getattr(file, "name", "")), **({} if kind is None else {"type": kind}), "data": content}


def taken(arguments: Mapping[str, Any], ctx: RequestContext) -> dict[str, Any]:
    """Return the request's body as it is among LiteLLM's arguments, without model, stream and files."""
    names = (_CONTENT | ctx.body.keys()) - FIXED_FIELDS
    return {
        name: value
        for name, value in arguments.items()
        if name in names and isinstance(value, _JSON) and not _are_files(value)
    }


def put(arguments: dict[str, Any], before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """Write what plugins have made of a body into LiteLLM's arguments."""
    for name in before.keys() - after.keys():
        del arguments[name]
    for name, value in after.items():
        if name not in before or value is not before[name]:
            arguments[name] = thawed(value)


class Rewriter(ABC):
    """The messages of one answer, as plugins change it.

    Args:
        exchange: The request.
        attempt: The attempt that answers.
        send: Sends to the client.
        deny: Answers with a denial instead; before anything was sent.
    """

    def __init__(
        self, exchange: Exchange, attempt: Attempt, send: Send, deny: Callable[[Denial], Awaitable[None]]
    ) -> None:
        self._exchange = exchange
        self._attempt = attempt
        self._send = send
        self._deny = deny

    @abstractmethod
    async def send(self, message: Message) -> None:
        """Take one of the application's messages."""

    def close(self) -> None:  # noqa: B027  # a whole answer leaves nothing to end
        """End what still runs; the application is done."""


def rewriter(
    exchange: Exchange, start: Message, send: Send, deny: Callable[[Denial], Awaitable[None]]
) -> Rewriter | Denial | None:
    """Return what changes an answer; a denial when it cannot be changed and must be; None when it stays as it is.

    Args:
        exchange: The request.
        start: ASGI's ``http.response.start``.
        send: Sends to the client.
        deny: Answers with a denial instead.
    """
    if not exchange.changes_answers or not has_answer(exchange.ctx) or start["status"] not in _OK:
        return None
    attempt = exchange.answering
    headers = {name.lower(): value for name, value in start.get("headers", ())}
    kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    hooks = exchange.hooks
    encoding = headers.get(b"content-encoding", b"").strip().lower()
    if attempt is not None and not encoding and kind == b"text/event-stream":
        return _Events(exchange, attempt, send, deny) if hooks.transform_stream else None
    if attempt is not None and encoding in _ENCODINGS and kind == b"application/json":
        return _Whole(exchange, attempt, send, deny) if hooks.transform_response else None
    return hooks.unfit("transform_stream" if exchange.ctx.stream else "transform_response")


class _Whole(Rewriter):
    """A plain answer: kept until it is complete."""

    _start: Message
    _parts: bytearray

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._start, self._parts = message, bytearray()
            return
        if message["type"] != "http.response.body":
            await self._send(message)
            return
        self._parts += message.get("body", b"")
        if message.get("more_body", False):
            return
        body, dropped = bytes(self._parts), {b"content-length"}
        answer = self._read(body)
        if isinstance(answer, dict):
            made, denial = await self._exchange.change_answer(self._attempt, answer)
            if made is not answer and denial is None:
                dropped.add(b"content-encoding")
                body = json.dumps(thawed(made), ensure_ascii=False, separators=(",", ":")).encode()
        else:
            denial = self._exchange.hooks.unfit("transform_response")
        if denial is not None:
            await self._deny(denial)
            return
        length = str(len(body)).encode()
        headers = [(name, value) for name, value in self._start["headers"] if name.lower() not in dropped]
        await self._send({**self._start, "headers": [*headers, (b"content-length", length)]})
        await self._send({"type": "http.response.body", "body": body, "more_body": False})

    def _read(self, body: bytes) -> object:
        """Return the JSON of a body; None where it cannot be read, or is too long."""
        compressed = any(name.lower() == b"content-encoding" for name, _ in self._start["headers"])
        try:
            if compressed:
                body = zlib.decompressobj(_GZIP).decompress(body, _MOST_BYTES + 1)
            return json.loads(body) if len(body) <= _MOST_BYTES else None
        except (ValueError, RecursionError, zlib.error):
            return None


class _Events(Rewriter):
    """A stream of server-sent events: each event's JSON is a piece."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._buffer = b""
        self._named = False
        self._over = False
        self._item: object = None
        self._wanted = asyncio.Event()
        self._given = asyncio.Event()
        self._failed: BaseException | None = None
        self._task = asyncio.create_task(self._run(), name="pointsman:transform_stream")

    async def send(self, message: Message) -> None:
        if message["type"] != "http.response.body":
            await self._send(message)
            return
        self._buffer += message.get("body", b"")
        while not self._over and (found := _event(self._buffer)) is not None:
            event, self._buffer = found
            await self._event(event)
        if self._over:
            return
        if len(self._buffer) > _MOST_BYTES:
            raise RuntimeError("an event of the stream is too long to be changed")
        if not message.get("more_body", False):
            await self._give(_END)
            if not self._over:
                self._over = True
                await self._send({"type": "http.response.body", "body": self._buffer, "more_body": False})

    def close(self) -> None:
        # Not waited for: the request may be cancelled itself.
        self._task.cancel()

    async def _event(self, event: bytes) -> None:
        data, named = _data(event)
        self._named = self._named or named
        if data == _DONE:
            # What plugins still hold back comes before it.
            await self._give(_END)
        elif data is not None:
            try:
                piece = json.loads(data)
            except (ValueError, RecursionError):
                piece = None
            if isinstance(piece, dict):
                await self._give(piece)
                return
        if not self._over:
            await self._write(event)

    async def _give(self, item: object) -> None:
        """Hand a piece to the plugins, and wait until they want the next one: what they yield has then been sent."""
        await self._wanted.wait()
        if not self._task.done():
            self._wanted.clear()
            self._item = item
            self._given.set()
            await self._wanted.wait()
        if self._failed is not None:
            failed, self._failed = self._failed, None
            if not isinstance(failed, StreamDeniedError):
                raise failed
            endpoint = self._exchange.ctx.endpoint
            content = denials.body(failed.denial, anthropic=endpoint is Endpoint.MESSAGES)
            await self._write(error_event(content, endpoint))
            self._over = True
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _run(self) -> None:
        try:
            async for piece in self._exchange.change_stream(self._attempt, self._pieces()):
                await self._write(_encoded(piece, named=self._named))
        except asyncio.CancelledError:
            raise
        except BaseException as err:  # noqa: BLE001  # raised where the application sends
            self._failed = err
        finally:
            self._wanted.set()

    async def _pieces(self) -> AsyncIterator[Mapping[str, Any]]:
        while True:
            self._wanted.set()
            await self._given.wait()
            self._given.clear()
            item = self._item
            if item is _END:
                return
            assert isinstance(item, Mapping)  # noqa: S101  # given by _event
            yield item

    async def _write(self, body: bytes) -> None:
        await self._send({"type": "http.response.body", "body": body, "more_body": True})


def _event(buffer: bytes) -> tuple[bytes, bytes] | None:
    """Return the first whole event of a buffer, with its end, and the rest; None when there is none."""
    ends = [(place, len(end)) for end in (b"\n\n", b"\r\n\r\n") if (place := buffer.find(end)) >= 0]
    if not ends:
        return None
    place, length = min(ends)
    return buffer[: place + length], buffer[place + length :]


def _data(event: bytes) -> tuple[str | None, bool]:
    """Return an event's data, None when it has none, and whether the event has a name."""
    lines = event.decode("utf-8", "replace").splitlines()
    data = [line.removeprefix("data:").removeprefix(" ") for line in lines if line.startswith("data:")]
    return "\n".join(data) if data else None, any(line.startswith("event:") for line in lines)


def _encoded(piece: Mapping[str, Any], *, named: bool) -> bytes:
    name = f"event: {piece['type']}\n" if named and isinstance(piece.get("type"), str) else ""
    return f"{name}data: {json.dumps(thawed(piece), ensure_ascii=False, separators=(',', ':'))}\n\n".encode()


def events(pieces: tuple[Mapping[str, Any], ...], endpoint: Endpoint) -> bytes:
    """Return a whole stream of server-sent events."""
    named = endpoint in NAMED
    ended = endpoint in {Endpoint.CHAT, Endpoint.COMPLETIONS}
    return b"".join(_encoded(piece, named=named) for piece in pieces) + (b"data: [DONE]\n\n" if ended else b"")
