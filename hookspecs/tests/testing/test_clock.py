"""The fake clock: who wakes when, and who moves it."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman.testing import FakeClock


@given(st.lists(st.floats(0.001, 1000.0), max_size=30))
def test_sleepers_wake_in_the_order_of_their_time(delays):
    """Whoever sleeps shorter wakes first, sees exactly the time it asked for, and of equals the first one goes first."""

    async def scenario():
        clock, woken = FakeClock(), []

        async def sleeper(number, delay):
            await clock.sleep(delay)
            woken.append((delay, number, clock.monotonic()))

        tasks = [asyncio.create_task(sleeper(number, delay)) for number, delay in enumerate(delays)]
        await clock.advance(1000.0)
        await asyncio.gather(*tasks)
        assert woken == sorted(woken)
        assert [at for _, _, at in woken] == sorted(delays)
        assert clock.monotonic() == 1000.0
        assert clock.sleeping == 0

    asyncio.run(scenario())


async def test_nobody_wakes_before_the_time_has_come(fake_clock):
    """A sleeper stays asleep until the clock has been moved the whole way; wall clock and monotonic clock go together."""
    task = asyncio.create_task(fake_clock.sleep(10.0))
    started = fake_clock.now()
    await fake_clock.advance(9.75)
    assert not task.done()
    assert fake_clock.sleeping == 1
    await fake_clock.advance(0.25)
    assert task.done()
    assert fake_clock.now() - started == fake_clock.monotonic() == 10.0


async def test_what_was_due_in_a_time_that_was_skipped_wakes_once(fake_clock):
    """Late, in order, at the new time; then it goes on as usual."""
    woken = []

    async def loop(every_s):
        while True:
            await fake_clock.sleep(every_s)
            woken.append((every_s, fake_clock.monotonic()))

    tasks = [asyncio.create_task(loop(every_s)) for every_s in (3.0, 2.0)]
    await fake_clock.skip(86_400.0)
    assert woken == [(2.0, 86_400.0), (3.0, 86_400.0)]
    await fake_clock.advance(2.5)
    assert woken[2:] == [(2.0, 86_402.0)]
    with pytest.raises(ValueError, match="cannot go back"):
        await fake_clock.skip(-1.0)
    for task in tasks:
        task.cancel()


async def test_what_sleeps_again_wakes_within_one_advance(fake_clock):
    """A loop that sleeps again and again runs as often as it would in real time."""
    rounds = []

    async def loop():
        while True:
            rounds.append(fake_clock.monotonic())
            await fake_clock.sleep(2.0)

    task = asyncio.create_task(loop())
    await fake_clock.advance(9.0)
    assert rounds == [0.0, 2.0, 4.0, 6.0, 8.0]
    task.cancel()


async def test_a_cancelled_sleeper_is_forgotten(fake_clock):
    """A sleeper that was cancelled is neither counted nor woken."""
    task = asyncio.create_task(fake_clock.sleep(1.0))
    await fake_clock.quiet()
    task.cancel()
    await asyncio.wait({task})
    assert fake_clock.sleeping == 0
    await fake_clock.advance(2.0)
    assert task.cancelled()


async def test_a_timer_calls_once_at_its_time_unless_it_is_cancelled(fake_clock):
    called = []
    for after_s in (2.0, 0.0, 1.0):
        fake_clock.call_later(after_s, lambda after_s=after_s: called.append((after_s, fake_clock.monotonic())))
    cancelled = fake_clock.call_later(1.5, lambda: called.append("cancelled"))
    cancelled.cancel()
    assert (called, fake_clock.sleeping) == ([], 2)
    await fake_clock.advance(3.0)
    assert called == [(0.0, 0.0), (1.0, 1.0), (2.0, 2.0)]
    cancelled.cancel()
    await fake_clock.advance(3.0)
    assert (len(called), fake_clock.sleeping) == (3, 0)


async def test_a_run_moves_the_clock_for_its_timers(fake_clock):
    async def work():
        rung = asyncio.get_running_loop().create_future()
        fake_clock.call_later(5.0, lambda: rung.set_result(fake_clock.monotonic()))
        return await rung

    assert await fake_clock.run(work()) == 5.0


async def test_the_clock_cannot_go_back(fake_clock):
    """A negative step is an error, and no sleep at all only lets others run."""
    with pytest.raises(ValueError, match="cannot go back"):
        await fake_clock.advance(-1.0)
    await fake_clock.sleep(0.0)
    await fake_clock.sleep(-5.0)
    assert fake_clock.monotonic() == 0.0


async def test_a_run_moves_the_clock_for_itself_and_its_tasks(fake_clock):
    """While a coroutine runs, time passes as fast as it and the tasks it starts need it to, and no faster."""

    async def child(delay):
        await fake_clock.sleep(delay)
        return fake_clock.monotonic()

    async def work():
        return await asyncio.gather(child(3.0), child(1.0), asyncio.create_task(child(2.0)))

    assert await fake_clock.run(work()) == [3.0, 1.0, 2.0]
    assert fake_clock.monotonic() == 3.0


async def test_background_work_is_no_reason_to_move(fake_clock):
    """What sleeps in the background is woken on the way, but a run that needs no time takes none."""
    woken = []

    async def background():
        while True:
            await fake_clock.sleep(1.0)
            woken.append(fake_clock.monotonic())

    task = asyncio.create_task(background())
    await fake_clock.run(asyncio.sleep(0.01))
    assert fake_clock.monotonic() == 0.0
    await fake_clock.run(fake_clock.sleep(2.5))
    assert (woken, fake_clock.monotonic()) == ([1.0, 2.0], 2.5)
    task.cancel()


async def test_runs_at_the_same_time_share_it(fake_clock):
    """Two runs of three and two seconds take three seconds together."""

    async def work(delay):
        await fake_clock.sleep(delay)
        return fake_clock.monotonic()

    assert await asyncio.gather(fake_clock.run(work(3.0)), fake_clock.run(work(2.0))) == [3.0, 2.0]


async def test_a_run_waits_for_what_is_real(fake_clock):
    """A run that waits for a thread gets its answer, and no time passes on the fake clock."""
    assert await fake_clock.run(asyncio.to_thread(lambda: 7)) == 7
    assert fake_clock.monotonic() == 0.0


async def test_a_run_hands_on_errors_and_cancellation(fake_clock):
    """An error comes out as it is; a run that is cancelled cancels its work and waits until that has ended."""

    async def fail():
        await fake_clock.sleep(1.0)
        raise KeyError("x")

    with pytest.raises(KeyError):
        await fake_clock.run(fail())

    ended = []

    async def for_ever():
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    task = asyncio.create_task(fake_clock.run(for_ever()))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == [True]


async def test_quiet_comes_although_others_wait_for_it_too(fake_clock):
    """Everything that can run has run when ``quiet`` returns, however many wait for it at once."""
    steps = []

    async def work():
        for step in range(100):
            steps.append(step)
            await asyncio.sleep(0)

    task = asyncio.create_task(work())
    await asyncio.gather(fake_clock.quiet(), fake_clock.quiet(), fake_clock.advance(1.0))
    assert task.done()
    assert steps == list(range(100))
