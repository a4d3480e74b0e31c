"""Deadlines and cancellation: who is cut off, who is blamed, and who is not."""

from __future__ import annotations

import asyncio
import contextlib
import time

import pytest

from pointsman import PluginConfig, hookimpl
from pointsman.host import isolation
from pointsman.host.isolation import bounded
from pointsman.testing import ok
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
    """After its ``deadline_ms`` a call is cancelled and counts as a failure; the log names it."""
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


@pytest.mark.parametrize("config", [PluginConfig, Strict])
async def test_time_in_which_the_loop_stood_still_is_not_the_plugins(harness, plugin, config):
    """What its hook waits for has come meanwhile: another request, or an import of LiteLLM's, held the loop."""

    async def pre_route(self, ctx):
        answer = asyncio.get_running_loop().run_in_executor(None, time.sleep, 0.05)
        asyncio.get_running_loop().call_soon(time.sleep, 0.5)
        await answer

    async with harness([(bad(plugin, "pre_route", pre_route, config), {"deadline_ms": 100})]) as h:
        result = await h.request()
        assert (result.status, h.faults) == (200, {})


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
    """When the request itself is cancelled inside a hook, the cancellation goes on and no plugin is blamed."""
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
    """A CancelledError of another task that a hook lets out is not a cancellation of the request."""

    async def pre_route(self, ctx):
        task = asyncio.create_task(wait_for_ever())
        await asyncio.sleep(0)
        task.cancel()
        await task

    async with harness([bad(plugin, "pre_route", pre_route)]) as h:
        assert (await h.request()).outcome is Outcome.OK
        assert h.faults == {"bad.pre_route": 1}


CANCELLING = {
    "and returns": (),
    "and waits": (asyncio.sleep, 0),
    "and waits for long": (asyncio.sleep, 60),
}


@pytest.mark.parametrize("then", CANCELLING)
@pytest.mark.parametrize("before", [0, 2])
@pytest.mark.parametrize("policy", ["allow", "deny"])
async def test_a_hook_that_cancels_its_own_task_is_at_fault(harness, plugin, then, before, policy):
    """It has not cancelled the request: its policy applies, and nothing that the request waits for later is cancelled."""

    async def pre_route(self, ctx):
        for _ in range(before):
            await asyncio.sleep(0)
        asyncio.current_task().cancel()
        if CANCELLING[then]:
            function, *given = CANCELLING[then]
            await function(*given)

    config = {"deadline_ms": 200, "on_failure": policy}
    async with harness([(bad(plugin, "pre_route", pre_route), config)]) as h:
        result = await h.request()
        assert (result.status, h.faults) == (200 if policy == "allow" else 503, {"bad.pre_route": 1})


async def test_a_hook_that_is_not_async_has_no_task_to_cancel(harness, plugin):
    def select(self, candidates):
        asyncio.current_task().cancel()

    async with harness([bad(plugin, "select", select)]) as h:
        result = await h.request()
        assert (result.status, h.faults) == (200, {"bad.select": 1})


async def test_a_stage_that_cancels_its_own_task_does_not_cancel_what_it_reads_from(harness, plugin):
    """Its stream goes on without it, although it was waiting for the next piece of the provider's."""

    async def cancelling(pieces):
        yield await anext(pieces)
        asyncio.current_task().cancel()
        yield await anext(pieces)

    def transform_stream(self, pieces):
        return cancelling(pieces)

    async with harness([bad(plugin, "transform_stream", transform_stream)]) as h:
        result = await h.request(stream=True, script=ok("one two three", piece_s=1.0))
        assert (result.text, result.outcome) == ("one two three", Outcome.OK)
        assert h.faults == {"bad.transform_stream": 1}


async def test_a_request_that_is_cancelled_ends_whatever_its_hook_cancels(harness, plugin):
    """While the request is being cancelled, a hook that cancels its task as well does not make it go on."""
    waiting = asyncio.Event()

    async def pre_route(self, ctx):
        waiting.set()
        try:
            await wait_for_ever()
        finally:
            asyncio.current_task().cancel()

    async with harness([bad(plugin, "pre_route", pre_route)]) as h:
        task = asyncio.create_task(h.request())
        await waiting.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert h.settlements[0].outcome is Outcome.CANCELLED


@pytest.mark.parametrize("what", ["its own timeout", "a task of its own"])
async def test_a_hook_goes_on_after_what_it_has_cancelled_itself(harness, plugin, monkeypatch, what):
    """A timeout within a hook, or a task that it cancels and awaits, does not end the hook soon afterwards."""
    monkeypatch.setattr(isolation, "GRACE_S", 0.01)

    async def pre_route(self, route):
        if what == "its own timeout":
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0):
                    await wait_for_ever()
        else:
            task = asyncio.create_task(wait_for_ever())
            await asyncio.sleep(0)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await asyncio.sleep(0.05)
        return route.with_labels(arm="a")

    async with harness([bad(plugin, "pre_route", pre_route)]) as h:
        result = await h.request()
        assert (h.faults, dict(result.settlement.labels)) == ({}, {"arm": "a"})


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
