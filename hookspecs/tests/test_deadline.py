"""A loop that stood still is not a stuck store; a deadline that has passed while the loop ran is one."""

from __future__ import annotations

import asyncio
import socket
import time
from contextlib import asynccontextmanager

import pytest
import uvloop

from pointsman import deadline
from pointsman.store import open_store

STILL_S = 1.2
TIMEOUT_S = 0.1


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request):
    """Run a coroutine in a loop of this kind: uvloop looks at its timers first."""

    def run(work):
        with asyncio.Runner(loop_factory=request.param) as runner:
            return runner.run(work)

    return run


def test_an_answer_that_came_while_the_loop_stood_still_is_an_answer(run, tmp_path):
    async def work():
        patient = await open_store("disk", path=tmp_path / "store")
        await patient.put("a", 1)
        await patient.close()
        store = await open_store("disk", path=tmp_path / "store", timeout_s=TIMEOUT_S)
        asked = asyncio.ensure_future(store.get("a"))
        await asyncio.sleep(0)
        time.sleep(STILL_S)  # noqa: ASYNC251  # what LiteLLM's imports do
        assert await asked == 1
        await store.close()

    run(work())


def test_what_arrived_on_a_socket_meanwhile_too(run):
    async def work():
        ours, theirs = socket.socketpair()
        reader, writer = await asyncio.open_connection(sock=ours)
        theirs.sendall(b"answer\n")
        with deadline.Limit(TIMEOUT_S):
            time.sleep(STILL_S)  # noqa: ASYNC251  # what LiteLLM's imports do
            assert await reader.readline() == b"answer\n"
        writer.close()
        theirs.close()

    run(work())


def test_no_wait_is_endless(run):
    async def work():
        begun = time.monotonic()
        with pytest.raises(TimeoutError), deadline.Limit(TIMEOUT_S):
            await asyncio.sleep(3600)
        assert time.monotonic() - begun > TIMEOUT_S / 2  # uvloop's timers count whole milliseconds

    run(work())


def test_a_block_that_has_been_left_is_not_ended_later(run):
    async def work():
        with deadline.Limit(TIMEOUT_S):
            time.sleep(STILL_S)  # noqa: ASYNC251  # overdue when the loop goes on
        await asyncio.sleep(1.5 * STILL_S)

    run(work())


async def test_an_idle_limit_counts_only_the_time_without_a_step():
    idle = deadline.IdleLimit(TIMEOUT_S)
    with idle:
        idle.step_started()
        idle.step_started()
        await asyncio.sleep(3 * TIMEOUT_S)
        idle.step_ended()
        await asyncio.sleep(2 * TIMEOUT_S)
        idle.step_ended()
    # Steps may end after the block.
    idle.step_started()
    idle.step_ended()
    await asyncio.sleep(2 * TIMEOUT_S)


def test_an_idle_limit_begins_again_after_a_step_although_its_timer_was_late(run):
    async def work():
        idle = deadline.IdleLimit(3 * STILL_S)
        with idle:
            time.sleep(4 * STILL_S)  # noqa: ASYNC251  # overdue when the loop goes on
            await asyncio.sleep(0)
            idle.step_started()
            idle.step_ended()
            # Longer than the late timer runs on, shorter than the limit.
            await asyncio.sleep(2 * STILL_S)

    run(work())


@pytest.mark.parametrize("after_a_step", [False, True])
async def test_an_idle_limit_ends_what_waits_for_no_step(after_a_step):
    idle = deadline.IdleLimit(TIMEOUT_S)

    async def work():
        with idle:
            if after_a_step:
                idle.step_started()
                idle.step_ended()
            await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        await work()


@pytest.mark.parametrize("swallows", [False, True])
@pytest.mark.parametrize("cancelled", [False, True])
async def test_a_limit_ends_as_a_timeout_of_asyncio(*, cancelled, swallows):
    async def end_of(block):
        """Return how a task ends whose block takes too long, and that may be cancelled for another reason at the same time."""

        async def work():
            async with block():
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    if cancelled:
                        task.cancel()
                    if not swallows:
                        raise
            return task.cancelling()

        task = asyncio.create_task(work())
        (ended,) = await asyncio.gather(task, return_exceptions=True)
        return ended if isinstance(ended, int) else type(ended)

    @asynccontextmanager
    async def limited():
        with deadline.Limit(0.01):
            yield

    assert await end_of(limited) == await end_of(lambda: asyncio.timeout(0.01))


async def test_an_idle_limit_has_one_timer_however_many_steps_there_are(monkeypatch):
    made = []
    timer = deadline.Timer
    monkeypatch.setattr(deadline, "Timer", lambda *args: made.append(args) or timer(*args))
    idle = deadline.IdleLimit(TIMEOUT_S)
    with idle:
        for _ in range(1000):
            idle.step_started()
            idle.step_ended()
        assert len(made) == 1


async def test_an_idle_limit_is_counted_from_the_end_of_the_last_step():
    idle = deadline.IdleLimit(4 * TIMEOUT_S)

    async def work():
        with idle:
            idle.step_started()
            await asyncio.sleep(3 * TIMEOUT_S)
            idle.step_ended()
            await asyncio.Event().wait()

    begun = time.monotonic()
    with pytest.raises(TimeoutError):
        await work()
    assert time.monotonic() - begun > 6 * TIMEOUT_S  # not from the beginning of the block
