# ruff: noqa: INP001 - a script of figures, not a package
"""What admission costs a request, on each store: ``pre_route`` from the request to its reservation, in a real host.

Stores take turns, slice by slice, so that a machine whose speed drifts does not matter. Redis is started here and left
out where it is not installed. The event loop is the gateway's, uvloop.

Disk and redis answer from another thread or process, so each admission wakes two sleepers. On a virtual machine with
nothing else to do that can cost more than all the rest, as the hypervisor has to be asked for the processor. So there
are two tables: with processors that have something to do, at idle priority, as in a gateway with traffic, and without.
``an empty turn`` is what waking another thread and being woken by it takes, with nothing done in between.

Run it with ``python plugins/quota/bench/bench_admission.py``.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Final

import uvloop
from rich.console import Console
from rich.table import Table

from pointsman.host.config import parse
from pointsman.host.host import Host
from pointsman.testing import FakeGateway
from pointsman.types import Endpoint, Identity, RequestContext
from pointsman_quota.plugin import plugin

SLICE: Final = 100
#: So much that nobody is ever refused: a refusal is cheaper than an admission.
LIMITS: Final[Mapping[str, Any]] = {
    "max_concurrent_requests": 100_000,
    "requests_per_minute": 10**7,
    "tokens_per_minute": 10**9,
}
TENANT: Final[Mapping[str, Any]] = {"id": "acme", "match": {"teams": ["acme"]}, "limits": LIMITS}
SECTIONS: Final[Mapping[str, Mapping[str, Any]]] = {
    "one scope (tenant), three limits": {"tenants": [TENANT]},
    "three scopes (tenant, its model, gateway), nine limits": {
        "tenants": [{**TENANT, "model_limits": {"*": LIMITS}}],
        "gateway_limits": LIMITS,
    },
}


@contextlib.contextmanager
def redis(directory: Path) -> Iterator[str | None]:
    """Run a server; None where there is none."""
    server = shutil.which("redis-server")
    if server is None:
        yield None
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [server, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(directory)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)  # noqa: S603  # a fixed command
    try:
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.terminate()
        process.wait(10)


@contextlib.contextmanager
def busy() -> Iterator[None]:
    """Keep all processors from sleeping, without taking time from anybody who wants it."""
    spin = "import os\nos.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))\nwhile True: pass"
    command = [sys.executable, "-c", spin]
    spinners = [subprocess.Popen(command) for _ in range(os.cpu_count() or 1)]  # noqa: S603  # a fixed command
    try:
        yield
    finally:
        for spinner in spinners:
            spinner.kill()
            spinner.wait()


async def empty_turn(turns: int) -> list[float]:
    """Return how long a thread that does nothing takes to be heard of, in microseconds."""
    loop = asyncio.get_running_loop()
    queue: SimpleQueue[asyncio.Future[None] | None] = SimpleQueue()

    def serve() -> None:
        while (future := queue.get()) is not None:
            loop.call_soon_threadsafe(future.set_result, None)

    threading.Thread(target=serve, daemon=True).start()
    taken_us = []
    for _ in range(turns):
        begun = time.perf_counter_ns()
        future: asyncio.Future[None] = loop.create_future()
        queue.put(future)
        await future
        taken_us.append((time.perf_counter_ns() - begun) / 1000)
    queue.put(None)
    return taken_us


def context() -> RequestContext:
    """Return a request of a tenant's key."""
    return RequestContext(
        request_id=uuid.uuid4().hex,
        endpoint=Endpoint.CHAT,
        model="chat",
        stream=False,
        identity=Identity(team_id="acme", key_hash="f" * 64),
        received_at=time.time(),
        body={"messages": [{"role": "user", "content": "Hello there"}], "max_tokens": 90},
    )


@contextlib.asynccontextmanager
async def started(section: Mapping[str, Any], store: Mapping[str, Any], base: Path) -> AsyncIterator[Host]:
    """Run a host with this plugin alone."""
    gateway = FakeGateway()
    settings = parse({"store": store, "plugins": [{"quota": section}]}, "bench", base)
    host = Host(settings, gateway, available={"quota": plugin})
    gateway.attach(host)
    await host.start()
    try:
        yield host
    finally:
        await host.stop()


class Load:
    """One store with one configuration: takes slices of requests.

    Args:
        host: The worker.
    """

    def __init__(self, host: Host) -> None:
        self.host = host
        self.taken_us: list[float] = []

    async def slice(self) -> None:
        """Admit some requests, one after another, and settle them."""
        exchanges = [self.host.open(context()) for _ in range(SLICE)]
        for exchange in exchanges:
            begun = time.perf_counter_ns()
            denial = await exchange.admit()
            self.taken_us.append((time.perf_counter_ns() - begun) / 1000)
            if denial is not None:
                raise SystemExit(f"a request was refused: {denial}")
        # Settling is off the request path: not while the next one is measured.
        for exchange in exchanges:
            exchange.close(200)
        await self.host.settled()


async def measure(processors: str, slices: int) -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as folder, redis(Path(folder)) as url:
        base = Path(folder)
        async with contextlib.AsyncExitStack() as stack:
            loads: dict[tuple[str, str], Load] = {}
            for number, (title, section) in enumerate(SECTIONS.items()):
                stores: list[dict[str, Any]] = [{"backend": "memory"}, {"backend": "disk", "path": f"store-{number}"}]
                if url is not None:
                    stores.append({"backend": "redis", "url": url, "prefix": f"bench-{number}"})
                for store in stores:
                    host = await stack.enter_async_context(started(section, store, base))
                    loads[title, store["backend"]] = Load(host)
            for load in loads.values():
                await load.slice()
                load.taken_us.clear()
            # As the gateway does once it has started: what stays is not looked at by every full collection.
            gc.collect()
            gc.freeze()
            for _ in range(slices):
                for load in loads.values():
                    await load.slice()
        turns_us = await empty_turn(slices * SLICE)
    table = Table(title=f"Admission, microseconds, {slices * SLICE} requests each; processors {processors}")
    for column in ("limits", "store", "p10", "p50", "p95", "p99"):
        table.add_column(column, justify="left" if column in {"limits", "store"} else "right")
    rows = [(name, load.taken_us) for name, load in loads.items()]
    for (limits, name), taken_us in [*rows, (("an empty turn", "(thread)"), turns_us)]:
        taken = sorted(taken_us)
        table.add_row(limits, name, *(f"{taken[int(len(taken) * q)]:.0f}" for q in (0.1, 0.5, 0.95, 0.99)))
    Console().print(table)


def main(slices: int) -> None:
    """Measure on processors that have something to do, and on others."""
    with busy():
        uvloop.run(measure("awake", slices))
    uvloop.run(measure("asleep when idle", slices))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slices", type=int, default=20, help="of 100 requests each (default 20)")
    main(parser.parse_args().slices)
