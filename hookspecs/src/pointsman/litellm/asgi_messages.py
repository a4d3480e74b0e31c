"""Our own answers as ASGI messages, and the headers that we add to the application's."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from ..frozen import thawed
from ..text import printable
from ..types import FRAMING_HEADERS, Endpoint
from . import bodies, denials, early_streams, endpoints

if TYPE_CHECKING:
    from starlette.types import Message

    from ..types import Denial, Reply
    from .call import ClientCall

_HEADER_NAME: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_LIMITS: Final = b"x-ratelimit-"
#: What a header says of the content that it comes with.
_OF_CONTENT: Final = frozenset({b"content-encoding", b"content-language", b"transfer-encoding"})
_OK: Final = 200
_FIRST_ERROR: Final = 400


def whole(call: ClientCall, theirs: Iterable[tuple[bytes, bytes]] = ()) -> Iterator[Message]:
    """Return the answer that is a call's denial or a plugin's reply.

    Args:
        call: The request.
        theirs: Headers of the application's own answer to keep.
    """
    if call.denial is not None:
        return refusal("http.response", call, call.denial, theirs)
    assert call.reply is not None  # noqa: S101  # one of the two is there
    return _reply(call, call.reply)


def events(call: ClientCall) -> bytes:
    """Return the same as the events of a stream that has begun."""
    endpoint = Endpoint.OTHER if call.exchange is None else call.exchange.ctx.endpoint
    if call.denial is not None:
        content = denials.body(call.denial, anthropic=endpoint is Endpoint.MESSAGES)
        return early_streams.error_event(content, endpoint)
    assert call.reply is not None  # noqa: S101  # as above
    return bodies.events(call.reply.pieces, endpoint)


def refusal(
    kind: str, call: ClientCall, denial: Denial, theirs: Iterable[tuple[bytes, bytes]] = ()
) -> Iterator[Message]:
    """Return a denial as the messages of an HTTP answer, in the shape of the route's errors.

    Args:
        kind: What the messages' names begin with: ``http.response``, or that of a handshake's answer.
        call: The request.
        denial: The denial.
        theirs: Headers of the application's own answer to keep.
    """
    content = json.dumps(denials.body(denial, anthropic=endpoints.speaks_anthropic(call.path))).encode()
    own = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(content)).encode()),
        *_encoded(denials.headers(denial)),
    ]
    kept = (header for header in theirs if header[0].lower() not in _OF_CONTENT)
    headers = merged(merged(kept, own), answer_headers(call))
    yield {"type": f"{kind}.start", "status": denial.status, "headers": headers}
    yield {"type": f"{kind}.body", "body": content, "more_body": False}


def _reply(call: ClientCall, reply: Reply) -> Iterator[Message]:
    exchange = call.exchange
    assert exchange is not None  # noqa: S101  # a call with a reply has one
    if exchange.ctx.stream:
        kind, content = b"text/event-stream; charset=utf-8", bodies.events(reply.pieces, exchange.ctx.endpoint)
    else:
        kind, content = b"application/json", json.dumps(thawed(reply.body), ensure_ascii=False).encode()
    headers = [(b"content-type", kind), (b"content-length", str(len(content)).encode())]
    yield {"type": "http.response.start", "status": _OK, "headers": merged(headers, answer_headers(call))}
    yield {"type": "http.response.body", "body": content, "more_body": False}


def merged(theirs: Iterable[tuple[bytes, bytes]], ours: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Return the application's headers with ours in place of those of the same name.

    LiteLLM passes on the provider's headers, its rate limits too: a client could not know which of two values applies. Where
    some limits are ours, the rest of the provider's would be taken for ours as well.
    """
    names, limits = dict(ours), False
    for name in names:
        limits = limits or name.startswith(_LIMITS)
    found = []
    for header in theirs:
        name = header[0].lower()
        if name not in names and not (limits and name.startswith(_LIMITS)):
            found.append(header)
    found += ours
    return found


def answer_headers(call: ClientCall) -> list[tuple[bytes, bytes]]:
    """Return the headers that we add to the answer to a request, as known now."""
    exchange = call.exchange
    headers = {"x-pointsman-request-id": call.request_id} if exchange is None else exchange.answer_headers()
    if call.trace_id is not None:
        headers["x-pointsman-trace-id"] = call.trace_id
    if call.denial is not None:
        # Some of LiteLLM's routes drop the headers of an exception.
        headers |= denials.headers(call.denial)
    if call.status >= _FIRST_ERROR:
        headers = {**headers, **call.error_headers}
    return _encoded(headers)


def _encoded(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    found = []
    for name, value in headers.items():
        encoded = _encoded_name(name)
        if encoded is not None:
            text = str(value)
            text = text if text.isprintable() else printable(text, instead=" ")
            found.append((encoded, text.encode("latin-1", "replace")))
    return found


@lru_cache(maxsize=256)  # every answer has the same names
def _encoded_name(name: str) -> bytes | None:
    """Return the name of a header that we may add; None for one that may not be, or is not the name of a header."""
    name = name.lower()
    return name.encode("ascii") if _HEADER_NAME.fullmatch(name) and name not in FRAMING_HEADERS else None
