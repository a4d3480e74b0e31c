"""Stores to test, and the redis servers that some of them need."""

from __future__ import annotations

import asyncio
import shutil
import signal
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import pytest
import redis as redis_client

from pointsman.store import StateStore, open_store
from pointsman.testing.ports import free_port

START_PATIENCE_S = 20.0


class ManualClock:
    """A clock that stands still until it is moved."""

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        """Return the time in seconds."""
        return self.now

    def advance(self, seconds: float) -> None:
        """Move it."""
        self.now += seconds


@dataclass
class RedisServer:
    """A redis server process of our own on a free port of the loopback interface."""

    directory: Path
    options: tuple[str, ...] = ()
    password: str | None = None
    whole: bool = True  # a cluster node serves all keys by itself
    port: int = 0
    bus_port: int = 0
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def url(self) -> str:
        """What a store is opened with."""
        user = f":{self.password}@" if self.password else ""
        return f"redis://{user}127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start it, on the port of the last time if there was one, and wait until it answers."""
        self.port = self.port or free_port()
        binary = shutil.which("redis-server")
        assert binary is not None
        command = [binary, "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        command += ["--dir", str(self.directory), *self.options]
        if "--cluster-enabled" in self.options:
            # Its own choice, 10 000 above the port, is among those of outgoing connections.
            self.bus_port = self.bus_port or free_port()
            command += ["--cluster-port", str(self.bus_port)]
        if self.password:
            command += ["--requirepass", self.password]
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)  # noqa: S603 - our own words
        give_up_at = time.monotonic() + START_PATIENCE_S
        with self.client() as client:
            while True:
                try:
                    client.ping()
                except redis_client.ConnectionError:
                    assert self.process.poll() is None, (self.directory / "log").read_text()
                    assert time.monotonic() < give_up_at, "redis-server does not answer"
                    time.sleep(0.02)
                else:
                    break
            if "--cluster-enabled" in self.options and self.whole:
                client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
                while client.info("cluster")["cluster_enabled"] != 1 or b"cluster_state:ok" not in _cluster_info(
                    client
                ):
                    assert time.monotonic() < give_up_at, "the redis cluster does not come up"
                    time.sleep(0.02)

    def client(self) -> redis_client.Redis:
        """Return a plain client, to look behind the store."""
        return redis_client.Redis(port=self.port, password=self.password, socket_timeout=5, protocol=2)

    def send(self, what: signal.Signals) -> None:
        """Send a signal to the process."""
        assert self.process is not None
        self.process.send_signal(what)

    def kill(self) -> None:
        """End it at once."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


def _cluster_info(client: redis_client.Redis) -> bytes:
    client.set_response_callback("CLUSTER INFO", lambda reply: reply)
    reply = client.execute_command("CLUSTER INFO")
    return reply if isinstance(reply, bytes) else reply.encode()


def _require_redis() -> None:
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is not on the PATH; install it, for example with apt-get install redis-server")


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """Run a server that all tests share; each store has a prefix of its own."""
    _require_redis()
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="session")
def redis_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """Run a cluster of one node: as strict about where keys lie as a large one."""
    _require_redis()
    server = RedisServer(tmp_path_factory.mktemp("cluster"), ("--cluster-enabled", "yes"))
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="session")
def redis_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """Run a cluster of three nodes; returns the first."""
    _require_redis()
    nodes = [RedisServer(tmp_path_factory.mktemp("node"), ("--cluster-enabled", "yes"), whole=False) for _ in range(3)]
    try:
        for number, node in enumerate(nodes):
            node.start()
            with node.client() as client:
                client.execute_command("CLUSTER", "ADDSLOTSRANGE", number * 5462, min(number * 5462 + 5461, 16383))
                client.execute_command("CLUSTER", "MEET", "127.0.0.1", nodes[0].port, nodes[0].bus_port)
        give_up_at = time.monotonic() + START_PATIENCE_S
        for node in nodes:
            with node.client() as client:
                while b"cluster_state:ok" not in (about := _cluster_info(client)) or b"known_nodes:3" not in about:
                    assert time.monotonic() < give_up_at, "the three nodes do not become a cluster"
                    time.sleep(0.05)
        yield nodes[0]
    finally:
        for node in nodes:
            node.kill()


@pytest.fixture
def start_redis(tmp_path: Path) -> Iterator[Callable[..., RedisServer]]:
    """Start servers that the test may kill."""
    _require_redis()
    with ExitStack() as running:

        def start(*options: str, password: str | None = None) -> RedisServer:
            directory = tmp_path / f"redis-{uuid4().hex}"
            directory.mkdir()
            server = RedisServer(directory, options, password)
            server.start()
            running.callback(server.kill)
            return server

        yield start


@dataclass
class Backend:
    """A kind of store, and where all stores that the test opens keep their state."""

    name: str
    place: dict[str, str]
    clock: ManualClock | None

    async def open(self) -> StateStore:
        """Open a store; those of disk and redis share their state. A busy machine may take long to answer."""
        clock = {"clock": self.clock} if self.clock else {}
        return await open_store(self.name, **self.place, timeout_s=30.0, **clock)  # type: ignore[arg-type]

    async def let_pass(self, seconds: float) -> None:
        """Let so much time pass for the store: really, where the clock is not ours."""
        if self.clock:
            self.clock.advance(seconds)
        else:
            await asyncio.sleep(seconds + 0.02)


BACKENDS = [
    "memory",
    "disk",
    pytest.param("redis", marks=pytest.mark.services),
    pytest.param("cluster", marks=pytest.mark.services),
]
SHARED_BACKENDS = BACKENDS[1:]


def make_backend(name: str, request: pytest.FixtureRequest, *, manual: bool = True) -> Backend:
    """Return a backend with state of its own."""
    clock = ManualClock() if manual else None
    if name == "memory":
        return Backend("memory", {}, clock)
    if name == "disk":
        directory = request.getfixturevalue("tmp_path") / f"store-{uuid4().hex}"
        return Backend("disk", {"path": str(directory)}, clock)
    server = request.getfixturevalue("redis_server" if name == "redis" else "redis_cluster")
    return Backend("redis", {"url": server.url, "prefix": f"test-{uuid4().hex}:"}, None)


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Backend:
    """Each backend in turn, with a clock that the test moves where that is possible."""
    return make_backend(request.param, request)


@pytest.fixture(params=SHARED_BACKENDS)
def shared_backend(request: pytest.FixtureRequest) -> Backend:
    """Each backend that several processes can share, on the real clock."""
    return make_backend(request.param, request, manual=False)


@pytest.fixture
async def store(backend: Backend):
    """Open a store of each backend in turn."""
    store = await backend.open()
    yield store
    await store.close()


@pytest.fixture
async def opened():
    """Open stores; they are closed at the end of the test."""
    async with AsyncExitStack() as stack:

        async def keep(opening: Awaitable[StateStore]) -> StateStore:
            store = await opening
            stack.push_async_callback(store.close)
            return store

        yield keep
