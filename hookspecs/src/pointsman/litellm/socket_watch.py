"""One websocket as the application sees it: metered, and refused or closed where a plugin denies it."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Final

from ..host.runtime import new_id
from ..types import Denial
from . import denials, silent_sockets, socket_events
from .asgi_messages import answer_headers, refusal

if TYPE_CHECKING:
    from starlette.types import Message, Receive, Send

    from .call import ClientCall
    from .silent_sockets import SilentSockets
    from .sockets import MeteredSocket

#: ASGI's extension for answering a websocket's handshake, and the beginning of its messages' names.
_HANDSHAKE_ANSWER: Final = "websocket.http.response"
_SWITCHING: Final = 101
_FORBIDDEN: Final = 403
_POLICY_VIOLATION: Final = 1008
_TRY_AGAIN_LATER: Final = 1013
#: A close frame has room for 123 bytes.
_MOST_REASON_CHARS: Final = 64
_ENDED: Final[dict[str, object]] = {"type": "websocket.disconnect", "code": _POLICY_VIOLATION}
_UNREADABLE: Final = Denial(
    status=400,
    code="invalid_json",
    type="invalid_request_error",
    message="The event has not been passed on: it is not JSON in a text frame, or has more than "
    f"{socket_events.MOST_PARTS} lists, objects and entries.",
)
#: The first error status that is not the client's fault.
_FIRST_FAULT: Final = 500


class SocketWatch:
    """The ``receive`` and ``send`` of one websocket, as the application gets them.

    The handshake of one that is metered is answered as late as possible, so that its denial has an HTTP status.
    """

    __slots__ = (
        "_accept",
        "_accepted",
        "_call",
        "_closed",
        "_receive",
        "_send",
        "_silent",
        "_silent_until",
        "refused",
    )

    def __init__(self, call: ClientCall, receive: Receive, send: Send, silent: SilentSockets) -> None:
        self._call = call
        self._silent = silent
        #: Until when its client has to ask for something, in the event loop's seconds; None before it is waited for.
        self._silent_until: float | None = None
        self._receive = receive
        self._send = send
        #: The answer to the handshake, until something is sent or expected after it.
        self._accept: Message | None = None
        self._accepted = False
        self._closed = False
        self.refused = False

    async def receive(self) -> Message:
        """Let what the client sends be metered before it is passed on."""
        while not self._closed:
            socket = self._call.socket
            message = await self._listen() if socket is None or socket.admitted else await self._listen_for_first()
            if socket is None or message is _ENDED:
                return dict(message)
            if message["type"] == "websocket.disconnect":
                socket.left()
                if not socket.connected:
                    self._call.leave()
                return message
            if (received := await self._received(socket, message)) is not None:
                return received
        return dict(_ENDED)

    async def _listen(self) -> Message:
        await self._answer_handshake()
        return await self._receive()

    async def _listen_for_first(self) -> Message:
        """Wait for a client that has asked for nothing yet: not for ever, nor for many of one caller's."""
        call = self._call
        if self._silent_until is None:
            self._silent_until = asyncio.get_running_loop().time() + self._silent.patience_s
        with self._silent.one_of(call.caller) as one_of_few:
            if not one_of_few and call.admin is not True:
                call.refuse(silent_sockets.TOO_MANY)
                await self.refuse()
                return _ENDED
            try:
                async with asyncio.timeout_at(self._silent_until):
                    return await self._listen()
            except TimeoutError:
                await self._end(silent_sockets.TOO_SILENT)
                return _ENDED

    async def _received(self, socket: MeteredSocket, message: Message) -> Message | None:
        """Return what is passed on of a client's message; None for nothing."""
        if message["type"] != "websocket.receive":
            return message
        try:
            event = socket_events.parse(message)
        except ValueError:
            # What cannot be read here may be a request to the provider.
            await self._send({"type": "websocket.send", "text": json.dumps(denials.event(_UNREADABLE, new_id()))})
            return None
        if event is None:
            return message
        if (denial := await socket.received(event)) is not None:
            await self._end(denial)
            return None
        return message if (text := socket.kept_to_model(event)) is None else {**message, "text": text}

    async def send(self, message: Message) -> None:
        """Pass a message on; a handshake that is refused is answered with the call's denial."""
        if self._closed:
            return
        call, kind = self._call, message["type"]
        if kind == "websocket.accept":
            self._accept = message
            if call.socket is None:
                await self._answer_handshake()
            return
        if call.denial is not None:
            await self.refuse()
            return
        if not self._accepted and self._accept is None and await self._refused_by_gateway(message):
            return
        await self._answer_handshake()
        if kind == "websocket.close":
            self._closed = True
        elif call.socket is not None:
            denial = await self._sent(call.socket, message)
            if denial is not None:
                await self._end(denial)
                return
        await self._send(message)

    @staticmethod
    async def _sent(socket: MeteredSocket, message: Message) -> Denial | None:
        try:
            event = socket_events.parse(message)
        except ValueError:
            return None
        return None if event is None else await socket.sent(event)

    async def _answer_handshake(self) -> None:
        if self._accept is None:
            return
        message, self._accept = self._accept, None
        self._accepted = True
        self._call.start_answer(_SWITCHING)
        message["headers"] = [*message.get("headers", ()), *answer_headers(self._call)]
        await self._send(message)

    async def _refused_by_gateway(self, message: Message) -> bool:
        """Return whether a message refuses the handshake; it is sent then, with our headers: an answer leads to its trace."""
        call, kind = self._call, message["type"]
        if kind == "websocket.close" and _HANDSHAKE_ANSWER in (call.scope.get("extensions") or {}):
            # What the server makes of it.
            self._closed = True
            call.start_answer(_FORBIDDEN)
            start = {"type": f"{_HANDSHAKE_ANSWER}.start", "status": _FORBIDDEN, "headers": answer_headers(call)}
            await self._send(start)
            await self._send({"type": f"{_HANDSHAKE_ANSWER}.body", "body": b"", "more_body": False})
            return True
        if kind == f"{_HANDSHAKE_ANSWER}.start":
            call.start_answer(message["status"])
            message["headers"] = [*message.get("headers", ()), *answer_headers(call)]
            await self._send(message)
            return True
        return False

    def close(self) -> None:
        """End what is metered."""
        if self._call.socket is not None:
            self._call.socket.close()

    async def refuse(self) -> None:
        """Answer the handshake with the call's denial, or close the socket for it."""
        call = self._call
        if call.denial is None or self._closed:
            return
        self.refused = True
        if self._accepted or _HANDSHAKE_ANSWER not in (call.scope.get("extensions") or {}):
            await self._end(call.denial)
            return
        self._closed = True
        call.start_answer(call.denial.status)
        for message in refusal(_HANDSHAKE_ANSWER, call, call.denial):
            await self._send(message)

    async def _end(self, denial: Denial) -> None:
        """Say why, in the words of the protocol, and close the socket."""
        if self._closed:
            return
        self._closed = True
        if self._accepted and self._call.socket is not None:
            await self._send({"type": "websocket.send", "text": json.dumps(denials.event(denial, new_id()))})
        code = _POLICY_VIOLATION if denial.status < _FIRST_FAULT else _TRY_AGAIN_LATER
        await self._send({"type": "websocket.close", "code": code, "reason": denial.code[:_MOST_REASON_CHARS]})
