"""Deadlines and cancellation: who is cut off, who is blamed, and who is not."""

from __future__ import annotations

import asyncio

import pytest

from pointsman import PluginConfig, hookimpl
from pointsman.host.calls import bounded
from pointsman.types import Outcome

pytestmark = pytest.mark.usefixtures("leak_check")


class Strict(PluginConfig):
    """A plugin whose failure must not let requests pass."""

    on_failure: str = "deny"


def bad(plugin, hook, function, config=PluginConfig):
    """Make a plugin with one hook."""
    function.__name__ = hook
    return plugin(type("Bad", (), {hook: hookimpl(function)}), config=config)


async def wait_for_ever(*_):
    """Never return."""
    await asyncio.Event().wait()


@pytest.mark.parametrize(("config", "status"), [(PluginConfig, 200), (Strict, 503)])
async def test_a_slow_pre_route_is_cut_off(harness, plugin, config, status, caplog):
    """After its ``deadline_ms`` a call is cancelled and counts as a failure; the log says what it was."""
    cleaned = []

    async def pre_route(self, ctx):
        try:
            await wait_for_ever()
        finally:
            cleaned.append(True)

    async with harness([(bad(plugin, "pre_route", pre_route, config), {"deadline_ms": 20})]) as h:
        result = await h.request()
        assert (result.status, h.faults, cleaned) == (status, {"bad.pre_route": 1}, [True])
    assert f"hook 'pre_route', request {result.request_id}: took longer than its deadline" in caplog.text


async def test_a_slow_before_attempt_and_authenticate_are_cut_off(harness, plugin):
    async def authenticate(self, credential):
        await wait_for_ever()

    async def before_attempt(self, attempt):
        await wait_for_ever()

    slow = {"deadline_ms": 20}
    async with harness([(bad(plugin, "before_attempt", before_attempt), slow)]) as h:
        assert (await h.request()).status == 200
        assert h.faults == {"bad.before_attempt": 1}
    async with harness([(bad(plugin, "authenticate", authenticate), slow)]) as h:
        assert (await h.request(api_key="sk")).status == 503


async def test_a_cancelled_request_is_no_fault(harness, plugin):
    """When the request itself is cancelled inside a hook, the cancellation goes on and nobody is blamed."""
    waiting = asyncio.Event()

    async def pre_route(self, ctx):
        waiting.set()
        await wait_for_ever()

    async with harness([bad(plugin, "pre_route", pre_route, Strict)]) as h:
        task = asyncio.create_task(h.request())
        await waiting.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (h.faults, h.settlements[0].outcome) == ({}, Outcome.CANCELLED)


async def test_a_hook_that_waits_for_a_cancelled_task_is_at_fault(harness, plugin):
    """The CancelledError of somebody else's task, let out by a hook, does not pass for a cancellation of the request."""

    async def pre_route(self, ctx):
        task = asyncio.create_task(wait_for_ever())
        await asyncio.sleep(0)
        task.cancel()
        await task

    async with harness([bad(plugin, "pre_route", pre_route)]) as h:
        assert (await h.request()).outcome is Outcome.OK
        assert h.faults == {"bad.pre_route": 1}


async def test_bounded_is_transparent():
    """Values, errors and several waits go through as they are; a coroutine that never waits arms no timer."""

    async def answer(waits):
        for _ in range(waits):
            await asyncio.sleep(0)
        return waits

    async def fail():
        await asyncio.sleep(0)
        raise KeyError("x")

    async def catches():
        try:
            await wait_for_ever()
        except asyncio.CancelledError:
            await asyncio.sleep(0)
            raise

    assert [await bounded(answer(n), 1.0) for n in range(3)] == [0, 1, 2]
    with pytest.raises(KeyError):
        await bounded(fail(), 1.0)
    with pytest.raises(TimeoutError):
        await bounded(catches(), 0.01)
    assert await bounded(answer(0), 0.0) == 0
    coroutine = bounded(wait_for_ever(), 1.0)
    coroutine.send(None)
    coroutine.close()
