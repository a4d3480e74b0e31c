# ruff: noqa: INP001 - a script of figures, not a package
"""What admission costs a request, on each store: ``pre_route`` from the request to its reservation, in a real host.

Stores take turns, slice by slice, so that a machine whose speed drifts does not matter. Redis is started here and left
out where it is not installed. The event loop is the gateway's, uvloop.

Disk and redis answer from another thread or process, so each admission wakes two sleepers. On a virtual machine with
nothing else to do that can cost more than all the rest, as the hypervisor has to be asked for the processor. So there
are two tables: with processors that have something to do, at idle priority, as in a gateway with traffic, and without.
``an empty turn`` is what waking another thread and being woken by it takes, with nothing done in between.

A shared virtual processor is also half as fast for some of the time, whatever runs on it. So a fixed piece of Python is
timed before and after each slice, and the columns on the right are of those slices alone during which the machine was
as fast as it ever was.

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
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Final, NamedTuple

import uvloop
from rich.console import Console
from rich.table import Table

from pointsman.host.host import Host
from pointsman.host.settings import parse
from pointsman.testing import FakeGateway
from pointsman.testing.ports import free_port
from pointsman.types import Endpoint, Identity, RequestContext
from pointsman_quota.plugin import plugin

SLICE: Final = 50
#: A slice is undisturbed when the fixed piece takes at most so many times its best, before and after.
AT_FULL_SPEED: Final = 1.15
#: So much that nobody is ever refused: a refusal is cheaper than an admission.
LIMITS: Final[Mapping[str, Any]] = {
    "max_concurrent_requests": 100_000,
    "requests_per_minute": 10**7,
    "tokens_per_minute": 10**9,
}
TENANT: Final[Mapping[str, Any]] = {"id": "acme", "match": {"teams": ["acme"]}, "limits": LIMITS}
#: The tenant alone; the tenant, its model and the gateway.
SECTIONS: Final[Mapping[str, Mapping[str, Any]]] = {
    "1 scope, 3 limits": {"tenants": [TENANT]},
    "3 scopes, 9 limits": {
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
    port = free_port()
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


def fixed_piece() -> float:
    """Return how long a fixed piece of Python takes now, in microseconds."""
    begun = time.perf_counter_ns()
    counts: dict[int, int] = {}
    for number in range(3000):
        counts[number % 97] = counts.get(number % 89, 0) + 1
    return (time.perf_counter_ns() - begun) / 1000


class EmptyTurn:
    """A thread that does nothing, and how long it takes to be heard of."""

    def __init__(self) -> None:
        self.slices: list[Slice] = []
        self._queue: SimpleQueue[asyncio.Future[None] | None] = SimpleQueue()
        self._loop = asyncio.get_running_loop()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while (future := self._queue.get()) is not None:
            self._loop.call_soon_threadsafe(future.set_result, None)

    async def slice(self) -> None:
        """Take some turns."""
        before, taken_us = fixed_piece(), []
        for _ in range(SLICE):
            begun = time.perf_counter_ns()
            future: asyncio.Future[None] = self._loop.create_future()
            self._queue.put(future)
            await future
            taken_us.append((time.perf_counter_ns() - begun) / 1000)
        self.slices.append(Slice(taken_us, max(before, fixed_piece())))

    def close(self) -> None:
        """End the thread."""
        self._queue.put(None)


class Slice(NamedTuple):
    """What was measured in one go.

    Attributes:
        taken_us: Microseconds of each.
        fixed_us: What the fixed piece took, the slower of before and after.
    """

    taken_us: list[float]
    fixed_us: float


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
        self.slices: list[Slice] = []

    async def slice(self) -> None:
        """Admit some requests, one after another, and settle them."""
        exchanges = [self.host.open(context()) for _ in range(SLICE)]
        before, taken_us = fixed_piece(), []
        for exchange in exchanges:
            begun = time.perf_counter_ns()
            denial = await exchange.admit()
            taken_us.append((time.perf_counter_ns() - begun) / 1000)
            if denial is not None:
                raise SystemExit(f"a request was refused: {denial}")
        self.slices.append(Slice(taken_us, max(before, fixed_piece())))
        # Settling is off the request path: not while the next one is measured.
        for exchange in exchanges:
            exchange.close(200)
        await self.host.settled()


def cells(slices: Sequence[Slice], best_us: float) -> list[str]:
    """Return the figures of all slices, then those of the undisturbed ones."""
    found = []
    calm = [one for one in slices if one.fixed_us <= AT_FULL_SPEED * best_us]
    for some, ratios in ((slices, (0.5, 0.95, 0.99)), (calm, (0.5, 0.99))):
        taken = sorted(us for one in some for us in one.taken_us)
        if some is calm:
            found.append(str(len(taken)))
        found += [f"{taken[int(len(taken) * ratio)]:.0f}" if taken else "-" for ratio in ratios]
    return found


async def measure(processors: str, slices: int) -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as folder, redis(Path(folder)) as url:
        base = Path(folder)
        async with contextlib.AsyncExitStack() as stack:
            loads: dict[tuple[str, str], Load | EmptyTurn] = {}
            for number, (title, section) in enumerate(SECTIONS.items()):
                stores: list[dict[str, Any]] = [{"backend": "memory"}, {"backend": "disk", "path": f"store-{number}"}]
                if url is not None:
                    stores.append({"backend": "redis", "url": url, "prefix": f"bench-{number}"})
                for store in stores:
                    host = await stack.enter_async_context(started(section, store, base))
                    loads[title, store["backend"]] = Load(host)
            turns = loads["an empty turn", "(thread)"] = EmptyTurn()
            stack.callback(turns.close)
            for load in loads.values():
                await load.slice()
                load.slices.clear()
            # As the gateway does once it has started: what stays is not looked at by every full collection.
            gc.collect()
            gc.freeze()
            for _ in range(slices):
                for load in loads.values():
                    await load.slice()
    best_us = min(one.fixed_us for load in loads.values() for one in load.slices)
    table = Table(title=f"Admission, microseconds, {slices * SLICE} requests each; processors {processors}")
    for column in ("limits", "store", "p50", "p95", "p99", "undisturbed", "p50", "p99"):
        table.add_column(column, justify="left" if column in {"limits", "store"} else "right")
    for (limits, name), load in loads.items():
        table.add_row(limits, name, *cells(load.slices, best_us))
    Console().print(table)


def main(slices: int) -> None:
    """Measure on processors that have something to do, and on others."""
    with busy():
        uvloop.run(measure("awake", slices))
    uvloop.run(measure("asleep when idle", slices))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slices", type=int, default=60, help="of 50 requests each (default 60)")
    main(parser.parse_args().slices)
