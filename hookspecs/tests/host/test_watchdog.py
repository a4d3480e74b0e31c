"""What holds the event loop is named with plugin, hook and line, while it does and afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
import logging
import sys
import threading
import time

import pytest
import uvloop
from starlette.responses import JSONResponse
from starlette.routing import Route

from pointsman import PluginConfig, PluginInfo, hookimpl
from pointsman.host import watchdog
from pointsman.host.isolation import place
from pointsman.testing import ok

pytestmark = pytest.mark.usefixtures("leak_check")
HELD_S = 0.4


def hold(seconds=HELD_S):
    time.sleep(seconds)  # what it does wrong


LINE = f"in hold ({__file__}:{inspect.getsourcelines(hold)[1] + 1})"


def _sync(self):
    hold()


async def _async(self):
    await asyncio.sleep(0)
    hold()


async def _at_once(self):
    hold()


async def _stage(pieces):
    async for piece in pieces:
        hold()
        yield piece


def _stream(self, pieces):
    return _stage(pieces)


def rows(h, name):
    return [row for row in h.host.describe()["hooks"] if row["plugin"] == name and row["blocked"]]


@pytest.mark.parametrize(
    ("hook", "function"),
    [
        ("startup", _async),
        ("pre_route", _async),
        ("pre_route", _at_once),
        ("select", _sync),
        ("post_response", _sync),
        ("transform_stream", _stream),
        ("settle", _async),
    ],
)
async def test_a_hook_is_named_with_its_line(harness, plugin, hook, function, caplog):
    """In the log and in the status, whether or not it has waited before."""
    function = type(function)(function.__code__, globals(), hook)
    async with harness([plugin(type("Slow", (), {hook: hookimpl(function)}), name="slow")]) as h:
        await h.request(script=ok("text"), stream=hook == "transform_stream")
        await h.settled()
        (row,) = rows(h, "slow")
    assert row["hook"] == hook
    assert row["longest_ms"] >= HELD_S * 1000
    assert f"in {row['held_at']}" == LINE
    assert f"plugin 'slow': hook '{hook}' held the event loop for " in caplog.text
    assert f" ms, {LINE}: no other request" in caplog.text


async def test_what_still_holds_the_loop_is_named(harness, plugin, caplog):
    """A hook that does not return is named while it runs: the status cannot be asked for then."""
    named = threading.Event()

    class Heard(logging.Handler):
        def emit(self, record):
            if "still does" in record.getMessage():
                named.set()

    def post_response(self):
        named.wait(30.0)

    logger, handler = logging.getLogger("pointsman"), Heard()
    logger.addHandler(handler)
    try:
        async with harness([plugin(type("Stuck", (), {"post_response": hookimpl(post_response)}), name="stuck")]) as h:
            await h.request(script=ok("text"))
    finally:
        logger.removeHandler(handler)
    assert named.is_set()
    assert "plugin 'stuck': hook 'post_response' has held the event loop for 1 s and still does, in " in caplog.text
    assert f"({__file__}:" in caplog.text


async def test_a_background_task_is_named(harness, plugin, caplog):
    """Where a plugin runs outside its hooks, its task is named."""

    class Works:
        @hookimpl
        async def startup(self, services):
            services.tasks.spawn(self.work(), name="work")

        async def work(self):
            await asyncio.sleep(0)
            hold(2 * HELD_S)

    async with harness([plugin(Works, name="works")]) as h:
        await asyncio.sleep(0.05)
        (row,) = rows(h, "works")
    assert (row["hook"], row["calls"], f"in {row['held_at']}") == ("task work", 1, LINE)
    assert "plugin 'works': task work held the event loop for " in caplog.text


async def test_an_admin_route_is_named(harness):
    """By the package of the code that runs."""

    class Shows:
        def __init__(self, config):
            pass

        @hookimpl
        def routes(self):
            return [Route("/", self.show)]

        async def show(self, request):
            hold(2 * HELD_S)
            return JSONResponse({})

    async with harness([PluginInfo(name="shows", config=PluginConfig, factory=Shows)]) as h:
        assert (await h.admin.get("/shows/")).is_success
        await asyncio.sleep(0.05)
        (row,) = rows(h, "shows")
    assert (row["hook"], f"in {row['held_at']}") == (watchdog.OUTSIDE, LINE)


async def test_waiting_is_not_holding(harness, plugin):
    """A hook and a task that wait are not named, however long."""

    class Waits:
        @hookimpl
        async def startup(self, services):
            services.tasks.spawn(asyncio.sleep(HELD_S), name="rest")

        @hookimpl
        async def pre_route(self):
            await asyncio.sleep(HELD_S)

    async with harness([plugin(Waits, name="waits")]) as h:
        await h.request(script=ok("text"))
        assert rows(h, "waits") == []


def _frame(name, file, inner=None):
    """Return the frames of a module that calls those of another."""
    names = {"__name__": name, "sys": sys}
    source = "def run(inner):\n    return [(sys._getframe(), 2)] + (inner or [])\n"
    exec(compile(source, file, "exec"), names)  # noqa: S102  # a module with a chosen name and file
    return names["run"](inner)


PLUGIN = "/usr/lib/python3/site-packages/acme_plugin/plugin.py"
PART = "/usr/lib/python3/site-packages/acme_tactic/tactic.py"
LIBRARY = "/usr/lib/python3/site-packages/numpy/core.py"


@pytest.mark.parametrize(
    ("own", "named"),
    [((), PLUGIN), ({"acme_tactic"}, PART)],
)
def test_a_line_of_an_extension_is_named_wherever_it_is_installed(own, named):
    """Libraries are passed over; a tactic, sink or dialect that is installed like one is not."""
    library = _frame("numpy.core", LIBRARY, _frame("json", "/usr/lib/python3/json.py"))
    frames = _frame(
        "pointsman.host", "<host>", _frame("acme_plugin.plugin", PLUGIN, _frame("acme_tactic.tactic", PART, library))
    )
    assert place(frames, own) == f"run ({named}:2)"


def test_nothing_is_collected_while_another_thread_is_looked_at():
    """A finalizer would let that thread go on while the objects of its frames are made, which crashes CPython 3.11."""
    looked_at, collected, counts = threading.get_ident(), [], []

    def note(phase, info):
        collected.append(threading.get_ident())

    def look():
        with watchdog.frame_of(looked_at) as frame:
            frames = list(watchdog.stack(frame))
            garbage = [[] for _ in range(100_000)]
            counts.extend([len(frames), len(garbage), collected.count(threading.get_ident())])

    gc.callbacks.append(note)
    try:
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
    finally:
        gc.callbacks.remove(note)
    assert counts[0] > 1
    assert counts[1:] == [100_000, 0]
    assert gc.isenabled()


class _Loop:
    """A loop that turns at once when it is asked to, or never."""

    def __init__(self, turns):
        self.turns = turns
        self.asked = 0

    def call_soon_threadsafe(self, callback):
        self.asked += 1
        if self.turns:
            callback()


class _End:
    """The end of the watch, after some times."""

    def __init__(self, times):
        self.left = times

    def acquire(self, timeout):
        self.left -= 1
        return self.left < 0


@pytest.mark.parametrize(("turns", "asked", "looked_at"), [(True, 50, 0), (False, 1, 49)])
def test_only_a_loop_that_does_not_turn_is_looked_at(monkeypatch, turns, asked, looked_at):
    """CPython 3.11 may crash when the frames of a thread are looked at while it runs."""
    looks = []

    @contextlib.contextmanager
    def look(ident):
        looks.append(ident)
        yield None

    monkeypatch.setattr(watchdog, "frame_of", look)
    loop = _Loop(turns)
    watchdog.Watchdog(dict, set)._watch(loop, 1, _End(50))
    assert (loop.asked, looks) == (asked, [1] * looked_at)


def test_a_loop_that_is_closed_is_not_looked_at(monkeypatch):
    """Its thread may run anything else by then."""
    monkeypatch.setattr(watchdog, "frame_of", None)
    loop = asyncio.new_event_loop()
    loop.close()
    watchdog.Watchdog(dict, set)._watch(loop, 1, _End(5))


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_what_has_called_the_loop_is_not_on_it(run):
    """An author's own test, which runs a host, is not what holds its loop."""
    here = __name__.partition(".")[0]
    elsewhere = {"__name__": "elsewhere", "running": watchdog.running, "sys": sys, "packages": {here: "mine"}}
    exec("async def look():\n    return running(sys._getframe(), packages)", elsewhere)  # noqa: S102  # another module's

    async def look_here():
        return watchdog.running(sys._getframe(), {here: "mine"})

    assert run(elsewhere["look"]()) is None
    assert run(look_here()).plugin == "mine"
