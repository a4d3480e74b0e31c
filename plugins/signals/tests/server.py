"""A server for checks to ask."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field

import pytest

from pointsman.types import Deployment


def local(base="http://127.0.0.1:1", id_="local", provider="hosted_vllm", group="local"):
    """Return a deployment on a server of one's own."""
    return Deployment(id=id_, group=group, provider=provider, model="m", api_base=base)


@dataclass
class Server:
    """A server that answers every request with the same status and body, after a while, and remembers it."""

    status: int = 200
    body: bytes = b'{"data": []}'
    delay_s: float = 0.0
    drop: int = 0
    requests: list[str] = field(default_factory=list)
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    over: asyncio.Event = field(default_factory=asyncio.Event)
    base: str = ""

    async def answer(self, reader, writer):
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            self.requests.append(head)
            self.asked.set()
            if self.drop > 0:
                self.drop -= 1
            elif not await self._waits():
                writer.write(
                    f"HTTP/1.1 {self.status} X\r\ncontent-length: {len(self.body)}\r\nconnection: close\r\n\r\n".encode()
                )
                writer.write(self.body)
                await writer.drain()
        writer.close()

    async def _waits(self) -> bool:
        """Wait before an answer; return whether the test is over meanwhile."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.delay_s):
                await self.over.wait()
        return self.over.is_set()


@pytest.fixture
async def server():
    made = Server()
    listening = await asyncio.start_server(made.answer, "127.0.0.1", 0)
    made.base = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    async with listening:
        yield made
        # From Python 3.12 on, the server waits for its connections.
        made.over.set()
