"""A provider that speaks OpenAI's realtime and responses protocols on websockets, as its clients ask it to.

What a response says it has used is OpenAI's own example. An instruction chooses what goes wrong: ``fail``, ``reject``, ``mute``
(ends without usage), ``hang`` (goes on for ever), ``twin`` (the same, and all with one id), ``hang up``.
"""

from __future__ import annotations

import base64
import datetime as dt
import ipaddress
import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import uvicorn
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from pointsman.testing.ports import free_port

#: 119 tokens of text, of which 64 were cached, and 13 of sound; 30 of text and 91 of sound came out.
REALTIME_USAGE: Final[Mapping[str, Any]] = {
    "total_tokens": 253,
    "input_tokens": 132,
    "output_tokens": 121,
    "input_token_details": {
        "text_tokens": 119,
        "audio_tokens": 13,
        "image_tokens": 0,
        "cached_tokens": 64,
        "cached_tokens_details": {"text_tokens": 64, "audio_tokens": 0, "image_tokens": 0},
    },
    "output_token_details": {"text_tokens": 30, "audio_tokens": 91},
}
RESPONSES_USAGE: Final[Mapping[str, Any]] = {
    "input_tokens": 328,
    "input_tokens_details": {"cached_tokens": 128},
    "output_tokens": 52,
    "output_tokens_details": {"reasoning_tokens": 12},
    "total_tokens": 380,
}
#: Sound that makes the provider answer by itself, since the speaker has ended.
SPOKEN: Final = base64.b64encode(b"Good morning." * 40).decode()
SOUND: Final = base64.b64encode(bytes(4_800)).decode()
_TRANSCRIBER: Final = "gpt-4o-mini-transcribe"
_TRANSCRIPTION: Final = {
    "type": "tokens",
    "total_tokens": 48,
    "input_tokens": 40,
    "input_token_details": {"text_tokens": 10, "audio_tokens": 30},
    "output_tokens": 8,
}


@dataclass
class Speaker:
    """What has reached the provider.

    Attributes:
        certificate: The file of its certificate.
        port: Where it listens.
        paths: Path and query of each connection.
        heard: Every event of every client.
        open: Connections that are open.
    """

    certificate: Path
    port: int = field(default_factory=free_port)
    paths: list[str] = field(default_factory=list)
    heard: list[Mapping[str, Any]] = field(default_factory=list)
    open: int = 0

    @property
    def url(self) -> str:
        """Base URL with ``/v1``. LiteLLM opens websockets of the responses protocol with TLS only."""
        return f"https://127.0.0.1:{self.port}/v1"

    def asked(self) -> int:
        """Return how many responses clients have asked for."""
        return sum(event["type"] == "response.create" for event in self.heard)

    async def talk(self, socket: WebSocket) -> None:
        """Serve one connection."""
        await socket.accept()
        self.paths.append(f"{socket.url.path}?{socket.url.query}")
        self.open += 1
        realtime = "realtime" in socket.url.path
        voice = _Realtime(socket) if realtime else _Responses(socket)
        try:
            await voice.greet()
            while True:
                event = json.loads(await socket.receive_text())
                if not isinstance(event, dict) or not isinstance(event.get("type"), str):
                    continue
                self.heard.append(event)
                if not await voice.hear(event):
                    await socket.close(1000)
                    return
        except WebSocketDisconnect:
            return
        finally:
            self.open -= 1


class _Voice:
    def __init__(self, socket: WebSocket) -> None:
        self.socket = socket
        self.number = 0

    async def say(self, type_: str, **fields: Any) -> None:
        self.number += 1
        await self.socket.send_json({"type": type_, "event_id": f"event_{self.number}", **fields})

    async def greet(self) -> None:
        """Say what comes before the first event."""

    async def hear(self, event: Mapping[str, Any]) -> bool:
        """Answer an event; return whether the connection stays open."""
        raise NotImplementedError


class _Realtime(_Voice):
    async def greet(self) -> None:
        heard = {"format": {"type": "audio/pcm", "rate": 24000}, "transcription": {"model": _TRANSCRIBER}}
        spoken = {"format": {"type": "audio/pcm", "rate": 24000}, "voice": "marin"}
        session = {"type": "realtime", "id": "sess_1", "object": "realtime.session", "model": "gpt-realtime"}
        sound = {"input": heard, "output": spoken}
        await self.say("session.created", session={**session, "output_modalities": ["audio"], "audio": sound})

    async def hear(self, event: Mapping[str, Any]) -> bool:
        match event["type"]:
            case "session.update":
                await self.say("session.updated", session=event["session"])
            case "input_audio_buffer.append" if event["audio"] == SPOKEN:
                await self.say("input_audio_buffer.committed", item_id="item_1", previous_item_id=None)
                await self.answer({})
                await self.say(
                    "conversation.item.input_audio_transcription.completed",
                    item_id="item_1",
                    content_index=0,
                    transcript="Good morning.",
                    usage=_TRANSCRIPTION,
                )
            case "response.create":
                asked = event.get("response") or {}
                if asked.get("instructions") == "reject":
                    error = {"type": "invalid_request_error", "code": "conversation_already_has_active_response"}
                    await self.say(
                        "error", error={**error, "message": "no", "param": None, "event_id": event.get("event_id")}
                    )
                    return True
                return await self.answer(asked)
        return True

    async def answer(self, asked: Mapping[str, Any]) -> bool:
        what = asked.get("instructions")
        id_ = "resp_twin" if what == "twin" else f"resp_{self.number}"
        response = {"object": "realtime.response", "id": id_, "status_details": None}
        begun = {**response, "status": "in_progress", "output": [], "usage": None}
        await self.say("response.created", response=begun)
        if what == "fail":
            details = {"type": "failed", "error": {"type": "server_error", "code": "server_error"}}
            failed = {**begun, "status": "failed", "status_details": details}
            await self.say("response.done", response=failed)
            return True
        place = {"response_id": response["id"], "item_id": "item_2", "output_index": 0, "content_index": 0}
        await self.say("response.output_audio_transcript.delta", **place, delta="Good morning to you. ")
        await self.say("response.output_audio.delta", **place, delta=SOUND)
        if what in {"hang", "twin"}:
            return True
        if what == "hang up":
            return False
        used = None if what == "mute" else REALTIME_USAGE
        await self.say("response.done", response={**response, "status": "completed", "output": [], "usage": used})
        return True


class _Responses(_Voice):
    async def hear(self, event: Mapping[str, Any]) -> bool:
        if event["type"] != "response.create":
            return True
        asked = event.get("response") or event
        what = asked.get("instructions")
        if what == "reject":
            error = {"type": "invalid_request_error", "code": "previous_response_not_found", "message": "no"}
            await self.socket.send_json({"type": "error", "status": 400, "error": error})
            return True
        response: dict[str, Any] = {"id": f"resp_{self.number}", "object": "response", "created_at": 1, "output": []}
        response |= {"model": "gpt-4o-mini-2024-07-18", "parallel_tool_calls": True, "tool_choice": "auto", "tools": []}
        await self.say("response.created", sequence_number=0, response={**response, "status": "in_progress"})
        if what == "fail":
            failed = {**response, "status": "failed", "error": {"code": "server_error", "message": "no"}}
            await self.say("response.failed", sequence_number=1, response=failed)
            return True
        place = {"item_id": "msg_1", "output_index": 0, "content_index": 0, "logprobs": []}
        await self.say("response.output_text.delta", sequence_number=1, **place, delta="Good morning to you.")
        if what == "hang":
            return True
        if what == "hang up":
            return False
        used = None if what == "mute" else RESPONSES_USAGE
        done = {**response, "status": "completed", "usage": used}
        await self.say("response.completed", sequence_number=2, response=done)
        return True


def certificate(directory: Path) -> tuple[Path, Path]:
    """Write a certificate of this machine, signed by itself, and its key; return both files."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "speaker")])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    public, private = directory / "certificate.pem", directory / "key.pem"
    public.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    form, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    private.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, plain))
    return public, private


@contextmanager
def speaker(directory: Path) -> Iterator[Speaker]:
    """Run it during the ``with`` block.

    Args:
        directory: Where its certificate is kept.
    """
    public, private = certificate(directory)
    provider = Speaker(certificate=public)
    app = Starlette(routes=[WebSocketRoute("/{path:path}", provider.talk)])
    config = uvicorn.Config(
        app,
        port=provider.port,
        lifespan="off",
        log_config=None,
        access_log=False,
        ssl_certfile=public,
        ssl_keyfile=private,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, name="speaker", daemon=True)
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.01)
    try:
        yield provider
    finally:
        server.should_exit = True
        thread.join(10)
