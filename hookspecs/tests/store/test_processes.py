"""Several processes on one store: nothing is lost, nothing is torn, even when they are killed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from pathlib import Path

WORKER = Path(__file__).with_name("worker.py")


@contextlib.asynccontextmanager
async def worker(what, times, backend):
    place = json.dumps({"backend": backend.name, "timeout_s": 60.0, **backend.place})
    process = await asyncio.create_subprocess_exec(
        sys.executable, WORKER, what, str(times), place, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


async def test_processes_lose_no_update(shared_backend, opened):
    """Four processes that open a new store at once and increment the same counters in three ways all count."""
    async with contextlib.AsyncExitStack() as stack:
        workers = [await stack.enter_async_context(worker("count", 40, shared_backend)) for _ in range(4)]
        for process in workers:
            assert await process.stdout.readline() == b"ready\n"
        for process in workers:
            process.stdin.write(b"go\n")
        assert [await process.wait() for process in workers] == [0] * 4
    store = await opened(shared_backend.open())
    assert dict(await store.scan("{t}")) == dict.fromkeys(
        ["{t}add", "{t}cas", "{t}left", "{t}right", "{t}updates"], 160
    )


async def test_a_killed_writer_leaves_whole_updates(shared_backend, opened):
    """After kill -9 amid writes the store opens, holds every accepted update, and none in part."""
    for _ in range(3):
        async with worker("write", 0, shared_backend) as process:
            assert await process.stdout.readline() == b"ready\n"
            process.stdin.write(b"go\n")
            accepted = 0
            while accepted < 20:
                accepted = int(await process.stdout.readline())
            process.kill()
            rest, _ = await process.communicate()
            whole_lines = rest.decode().split("\n")[:-1]
            accepted = int(whole_lines[-1]) if whole_lines else accepted
        store = await opened(shared_backend.open())
        pairs = await store.scan("{t}")
        numbers = {value[0] for _, value in pairs}
        assert len(pairs) == 40
        assert len(numbers) == 1
        assert numbers.pop() in {accepted, accepted + 1}
        await store.put("{t}000", "still writable")
        await store.delete("{t}000")
