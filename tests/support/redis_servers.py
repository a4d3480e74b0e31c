"""A real redis, alone or as a cluster of three nodes, for tests, benchmarks and the chaos suite."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import redis
from redis.exceptions import RedisError

from pointsman.testing.ports import free_port

MISSING: Final = "redis-server is not installed; install it, for example with apt-get install redis-server"
_SLOTS: Final = 16_384
_NODES: Final = 3
_PATIENCE_S: Final = 60.0


def installed() -> bool:
    """Return whether a server can be started here."""
    return shutil.which("redis-server") is not None


@contextlib.contextmanager
def one_redis(folder: Path) -> Iterator[str]:
    """Run a server that keeps its data in the folder; yield its URL."""
    with _server(folder) as port:
        yield f"redis://127.0.0.1:{port}/0"


@contextlib.contextmanager
def redis_cluster(folder: Path) -> Iterator[str]:
    """Run a cluster of three nodes; yield the URL of one."""
    with contextlib.ExitStack() as stack:
        # Redis's own choice for the bus, 10 000 above the port, is among the ports of outgoing connections.
        ports, buses = [], [free_port() for _ in range(_NODES)]
        for number in range(_NODES):
            where = folder / f"node-{number}"
            where.mkdir(parents=True)
            bus = ("--cluster-port", str(buses[number]))
            ports.append(stack.enter_context(_server(where, "--cluster-enabled", "yes", *bus)))
        share = -(-_SLOTS // _NODES)
        for number, port in enumerate(ports):
            with redis.Redis(port=port) as client:
                last = min((number + 1) * share, _SLOTS) - 1
                client.execute_command("CLUSTER", "ADDSLOTSRANGE", number * share, last)
                client.execute_command("CLUSTER", "MEET", "127.0.0.1", ports[0], buses[0])
        for port in ports:
            _wait(port, ("cluster_state:ok", f"cluster_known_nodes:{_NODES}"))
        yield f"redis://127.0.0.1:{ports[0]}/0"


@contextlib.contextmanager
def _server(folder: Path, *options: str) -> Iterator[int]:
    server = shutil.which("redis-server")
    if server is None:
        raise RuntimeError(MISSING)
    port = free_port()
    command = [server, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--appendonly", "yes"]
    with subprocess.Popen([*command, *options], stdout=subprocess.DEVNULL) as process:  # noqa: S603  # our own command
        try:
            _wait(port, ())
            yield port
        finally:
            process.terminate()


def _wait(port: int, wanted: tuple[str, ...]) -> None:
    """Wait until a node answers, and its view of the cluster says all that is wanted."""
    give_up_at = time.monotonic() + _PATIENCE_S
    while True:
        with contextlib.suppress(RedisError), redis.Redis(port=port) as client:
            client.ping()
            if not wanted:
                return
            client.set_response_callback("CLUSTER INFO", lambda reply: reply)
            about = client.execute_command("CLUSTER", "INFO")
            if all(text in str(about) for text in wanted):
                return
        if time.monotonic() > give_up_at:
            raise RuntimeError(f"the redis on port {port} does not get ready within {_PATIENCE_S:.0f} s")
        time.sleep(0.05)
