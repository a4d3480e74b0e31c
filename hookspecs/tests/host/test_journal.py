"""Settlements while nothing dies: each one exactly once, whatever plugins and store do."""

from __future__ import annotations

import asyncio
import itertools
import re
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from decimal import Decimal
from itertools import pairwise

import pytest
from ledger_plugin import ONE, TWO, Ledger, counts, pass_time, rows

from pointsman import PluginConfig, PluginInfo, hookimpl
from pointsman.errors import StoreError
from pointsman.host import journal
from pointsman.host.journal import HEARTBEAT_INTERVAL_S, RETRY_MOST_S
from pointsman.host.journal_rows import parse
from pointsman.store.memory import MemoryStore
from pointsman.testing import FakeClock, error, ok
from pointsman.testing.harness import NotSettledError
from pointsman.types import Identity, Outcome

pytestmark = pytest.mark.usefixtures("leak_check")


@pytest.mark.parametrize("window_ms", [0, 50])
async def test_every_request_is_settled_once(harness, window_ms):
    """A hundred requests at once, of every kind: each is settled once by each plugin, and no row is left."""
    async with harness([ONE, TWO], host={"journal_window_ms": window_ms}) as h:
        before = h.store.calls["update"]
        results = await asyncio.gather(*(h.request(script=error(400) if i % 3 else ok()) for i in range(100)))
        await h.clock.advance(1.0)
        await h.settled()
        wanted = sorted(result.request_id for result in results)
        assert sorted(h.plugin("one").ids) == sorted(h.plugin("two").ids) == wanted
        assert (counts(h)["submitted"], counts(h)["settled"], counts(h)["retried"]) == (100, 100, 0)
        if window_ms:
            assert h.store.calls["update"] - before < 10, "settlements of one window share a write"
        await h.restart()
        assert await rows(h) == {}


async def test_a_settlement_is_in_the_store_before_it_is_acted_on(harness):
    """While ``settle`` runs, the row is there, with those who have not been asked; afterwards it goes away."""
    async with harness([ONE, TWO]) as h:
        one = h.plugin("one")
        one.gate = asyncio.Event()
        result = await h.request()
        await h.clock.quiet()
        ((row),) = (await rows(h)).values()
        ((entry,), _) = parse(row)
        assert (entry.settlement.request_id, entry.pending) == (result.request_id, ["one", "two"])
        one.gate.set()
        await h.settled()
        await h.request()
        await h.settled()
        assert len(await rows(h)) == 1, "a finished row goes with the next write"


async def open_request(h, name):
    """Open a request of one attempt, and return both."""
    before = await h.request()
    await h.clock.advance(1.0)
    await h.settled()
    for plugin in h.host.plugins.names():
        h.plugin(plugin).seen.clear()
    exchange = h.host.open(replace(before.ctx, request_id=name))
    await exchange.admit()
    _, opened = await exchange.begin(before.settlement.attempts[0].deployment, gateway=True)
    return exchange, opened


class SlowStore(MemoryStore):
    """Carries an update out when ``free`` is set."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.free = asyncio.Event()
        self.free.set()

    async def update(self, update):
        await self.free.wait()
        return await super().update(update)


async def test_a_settlement_is_written_within_its_window_also_behind_a_write_that_takes_long(harness):
    """What is not in the store when the worker is killed is lost: ``journal_window_ms`` says how much that is."""
    clock = FakeClock()
    store = SlowStore(clock=clock.now)
    async with harness([ONE], store=store, clock=clock, host={"journal_window_ms": 100}) as h:
        store.free.clear()
        await h.request()
        await h.clock.advance(0.06)
        late = await h.request()
        await h.clock.advance(0.06)
        store.free.set()
        await h.clock.advance(0.04)
        assert late.request_id in str(await rows(h)), "its window is over"


async def test_a_row_that_is_written_second_waits_no_longer_than_its_window(harness, monkeypatch):
    """What waits for its cost is written after what does not, and what is left of the window is less then."""
    patience = ContextVar("patience", default=0.0)
    until = {}

    @contextmanager
    def unhurried(seconds):
        token = patience.set(seconds)
        yield
        patience.reset(token)

    class Store(SlowStore):
        async def update(self, update):
            until.update(dict.fromkeys(re.findall("prompt|late", str(update.puts)), clock.monotonic() + patience.get()))
            return await super().update(update)

    monkeypatch.setattr(journal, "unhurried", unhurried)
    clock = FakeClock()
    store = Store(clock=clock.now)
    async with harness([ONE], store=store, clock=clock, host={"journal_window_ms": 100}) as h:
        opened = [await open_request(h, name) for name in ("prompt", "late")]
        opened[1][1].awaits_cost = True
        store.free.clear()
        ends_at = clock.monotonic() + 0.1
        for exchange, attempt in opened:
            attempt.end(Outcome.OK)
            exchange.close(200)
        await clock.advance(0.07)
        store.free.set()
        await clock.quiet()
        assert until == {"prompt": pytest.approx(ends_at), "late": pytest.approx(ends_at)}
        opened[1][1].log_cost(Decimal(1))
        await clock.advance(1.0)
        await h.settled()


@pytest.mark.parametrize("number", range(6))
async def test_an_unforeseen_error_strands_no_settlement(harness, monkeypatch, number):
    """Whatever the store raises, whenever: each is settled while the worker lives, and its row is removed."""
    async with harness([ONE, TWO], host={"journal_window_ms": 10}) as h:
        exchange, opened = await open_request(h, "late")
        opened.awaits_cost = True
        updates, update = itertools.count(), h.store.update

        async def odd(change):
            if any("{journal}/" in key for key in (*change.puts, *change.deletes)) and next(updates) == number:
                raise AttributeError("unforeseen")
            return await update(change)

        monkeypatch.setattr(h.store, "update", odd)
        h.plugin("one").failing = True
        opened.end(Outcome.OK)
        exchange.close(200)
        plain = await h.request()
        await h.clock.advance(0.1)
        opened.log_cost(Decimal(1))
        await h.clock.advance(0.5)
        h.plugin("one").failing = False
        await h.clock.advance(20.0)
        await h.settled()
        assert set(h.plugin("one").ids) == set(h.plugin("two").ids) == {"late", plain.request_id}
        assert counts(h)["settled"] == 3
        await h.request()
        await h.clock.advance(1.0)
        await h.settled()
        assert next(updates) > number, "the error has been met"
        await h.restart()
        assert await rows(h) == {}


@pytest.mark.parametrize("kind", [ValueError, SystemExit])
async def test_a_plugin_that_fails_to_hear_what_is_final_harms_no_settlement(harness, shared, kind):
    """Its fault is its own: no row is written twice, or said to be lost."""
    heard = []

    class Keeper(Ledger):
        @hookimpl
        async def startup(self, services):
            self.clock = services.clock
            services.takeovers.keep_at("place", final=self.final, taken=self.final)

        def final(self, ids):
            heard.extend(ids)
            raise kind("on purpose")

    keeper = PluginInfo(name="keeper", config=PluginConfig, factory=Keeper)
    host = {"store": {"backend": "redis", "url": "redis://shared.test"}, "journal_window_ms": 10}
    async with harness([keeper, ONE], host=host, **shared) as h:
        results = []
        for _ in range(3):
            results.append(await h.request())
            await h.clock.advance(1.0)
        await h.settled()
        assert (counts(h)["settled"], counts(h)["unjournaled"], counts(h)["waiting"]) == (3, 0, {})
        await h.stop()
        assert set(h.faults) == {"keeper.takeovers"}
        assert heard == [result.request_id for result in results]
        assert await shared["store"].scan("host/{journal}/") == []


async def test_without_a_settling_plugin_nothing_is_written(harness, plugin):
    class Mute:
        pass

    async with harness([plugin(Mute)]) as h:
        await h.request()
        await h.settled()
        assert (counts(h)["submitted"], await rows(h)) == (0, {})


async def test_a_plugin_that_fails_is_asked_again_with_growing_delay(harness):
    """One second, then twice as long each time up to a minute, until it succeeds; the others are not asked again."""
    async with harness([ONE, TWO]) as h:
        one = h.plugin("one")
        one.failing = True
        await h.request()
        await h.clock.advance(200.0)
        gaps = [later - earlier for earlier, later in pairwise(at for at, _, _ in one.seen)]
        assert gaps == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, RETRY_MOST_S, RETRY_MOST_S]
        assert counts(h)["waiting"] == {"one": 1}
        one.failing = False
        await h.clock.advance(RETRY_MOST_S)
        await h.settled()
        assert (len(h.plugin("two").seen), counts(h)["settled"], counts(h)["waiting"]) == (1, 1, {})


async def test_one_failing_request_does_not_hold_up_others(harness):
    """Requests that come later are settled while an earlier one waits for its next try."""
    async with harness([ONE]) as h:
        one = h.plugin("one")
        one.failing = True
        first = await h.request()
        await h.clock.advance(0.5)
        one.failing = False
        second = await h.request()
        await h.clock.advance(0.1)
        assert one.ids == [first.request_id, second.request_id]
        await h.clock.advance(1.0)
        await h.settled()
        assert one.ids == [first.request_id, second.request_id, first.request_id]


# -- the store fails --------------------------------------------------------------------------------------------------


async def test_with_the_store_down_it_is_still_settled_and_counted(harness):
    """The hooks run from memory; what could not be written down is counted, and later requests are journaled again."""
    async with harness([ONE]) as h:
        h.store.down = True
        result = await h.request()
        await h.settled()
        assert h.plugin("one").ids == [result.request_id]
        assert counts(h)["unjournaled"] == 1
        assert h.faults["pointsman.journal"] == 1
        h.store.down = False
        await h.request()
        await h.settled()
        assert (counts(h)["unjournaled"], counts(h)["settled"]) == (1, 2)


async def test_what_failed_while_the_store_was_away_is_settled_as_soon_as_it_is_back(harness):
    """After hours it is tried once a minute; the store's return does not wait for the next turn."""
    async with harness([ONE]) as h:
        one = h.plugin("one")
        one.failing = h.store.down = True
        result = await h.request()
        await h.clock.advance(3600.0)
        tries = len(one.seen)
        while len(one.seen) == tries:
            await h.clock.advance(1.0)
        one.failing = h.store.down = False
        await h.clock.advance(HEARTBEAT_INTERVAL_S)
        assert one.ids == [result.request_id] * (tries + 2)
        assert sum(counts(h)["waiting"].values()) == 0


async def test_a_row_that_could_not_be_written_is_written_when_a_plugin_fails(harness, shared):
    """A settlement that is still waiting when the store comes back is written down then, and survives a crash."""
    async with harness([ONE], name="a", **shared) as a:
        a.plugin("one").failing = True
        a.store.down = True
        result = await a.request()
        await a.clock.quiet()
        a.store.down = False
        await a.clock.advance(1.5)
        assert len(await rows(a)) == 1
        await a.crash()
        async with harness([ONE], name="b", **shared) as b:
            await pass_time(b.clock)
            assert b.plugin("one").ids == [result.request_id]


async def test_a_value_the_store_cannot_keep_does_not_stop_the_journal(harness):
    """A client's name with half a character in it cannot be written down, but is settled, and so is who comes after."""
    async with harness([ONE]) as h:
        odd = await h.request(identity=Identity(end_user="\ud800"))
        await h.settled()
        plain = await h.request()
        await h.settled()
        assert h.plugin("one").ids == [odd.request_id, plain.request_id]
        assert counts(h)["unjournaled"] == 1


async def test_a_value_the_store_cannot_keep_affects_no_other_settlement(harness, shared):
    """Of several that share a write, all but the odd one survive a crash."""
    async with harness([ONE], name="a", **shared) as a:
        a.plugin("one").failing = True
        odd, *plain = await asyncio.gather(
            a.request(identity=Identity(end_user="\ud800")), *(a.request() for _ in range(3))
        )
        await pass_time(a.clock)
        assert counts(a)["unjournaled"] == 1
        await a.crash()
        async with harness([ONE], name="b", **shared) as b:
            await pass_time(b.clock)
            assert set(b.plugin("one").ids) == {one.request_id for one in plain}
            assert odd.status == 200


async def test_with_the_store_down_the_stop_still_ends(harness):
    """Shutting down with a store that fails neither hangs nor raises, and every plugin is shut down."""
    async with harness([ONE]) as h:
        await h.request()
        await h.settled()
        h.store.down = True
        await h.request()
        async with asyncio.timeout(30):
            await h.stop()
        assert len(h.plugin("one").seen) == 2


@pytest.mark.parametrize("back", [True, False])
async def test_a_stop_says_what_becomes_of_what_is_not_settled(harness, shared, caplog, back):
    """What could not be written while the store was away is written at the stop; else it is lost, and said to be."""
    async with harness([ONE], name="a", host={"flush_timeout_s": 0.05}, **shared) as a:
        a.plugin("one").gate = asyncio.Event()
        a.store.down = True
        results = [await a.request() for _ in range(3)]
        await a.clock.quiet()
        a.store.down = not back
        await a.stop()
    assert ("3 settlements are left in the journal" in caplog.text) == back
    assert ("3 settlements are lost" in caplog.text) != back
    async with harness([ONE], name="b", **shared) as b:
        await pass_time(b.clock)
        await b.settled()
        assert sorted(b.plugin("one").ids) == sorted(result.request_id for result in results if back)


async def test_a_stop_notes_what_has_been_settled(harness, shared, caplog):
    """Of a row that one plugin has not settled in time, the others are not asked again."""
    async with harness([ONE, TWO], name="a", host={"flush_timeout_s": 0.05}, **shared) as a:
        a.plugin("one").gate = asyncio.Event()
        result = await a.request()
        await a.stop()
    assert "1 settlements are left in the journal" in caplog.text
    async with harness([ONE, TWO], name="b", **shared) as b:
        await pass_time(b.clock)
        await b.settled()
        assert (b.plugin("one").ids, b.plugin("two").ids) == ([result.request_id], [])


async def test_a_stop_notes_each_settlement_of_those_that_a_plugin_gets_at_once(harness, shared):
    """A plugin that waits gets several at once: what one of them waits for does not make the others be settled again."""
    async with harness([ONE], name="a", host={"flush_timeout_s": 0.05, "journal_window_ms": 50}, **shared) as a:
        one = a.plugin("one")
        one.gate = asyncio.Event()
        await a.request()
        await a.clock.advance(1.0)
        one.gate.set()
        await a.settled()
        one.seen.clear()
        one.gate = None
        one.held = asyncio.Event()
        results = [await a.request() for _ in range(3)]
        await a.clock.advance(1.0)
        assert len(one.seen) == 3, "all of them at once"
        await a.stop()
    async with harness([ONE], name="b", **shared) as b:
        await pass_time(b.clock)
        await b.settled()
        assert b.plugin("one").ids == [results[0].request_id]


@pytest.mark.parametrize("written", [False, True])
@pytest.mark.parametrize("fails", [False, True])
async def test_a_stop_keeps_nothing_of_what_is_settled_meanwhile(harness, shared, monkeypatch, written, fails):
    """While it notes one row, all end: whatever the store does, the stop goes on, and nothing is settled again."""
    async with harness([ONE], name="a", host={"flush_timeout_s": 0.05}, **shared) as a:
        one = a.plugin("one")
        one.gate = asyncio.Event()
        a.store.down = not written
        for _ in range(2):
            await a.request()
            await a.clock.quiet()
        a.store.down = False
        updates, update = itertools.count(), a.store.update

        async def slow(change):
            if not any("{journal}/" in key for key in change.puts):
                return await update(change)
            next(updates)
            one.gate.set()
            for _ in range(20):
                await asyncio.sleep(0)
            if fails:
                raise StoreError("on purpose")
            return await update(change)

        monkeypatch.setattr(a.store, "update", slow)
        await a.stop()
        assert next(updates) == 1, "only one row was left to be noted"
        assert await shared["store"].scan("host/{journal}/") == []
    async with harness([ONE], name="b", **shared) as b:
        await pass_time(b.clock)
        await b.settled()
        assert (len(one.ids), b.plugin("one").ids) == (2, [])


async def test_a_settlement_is_tried_for_days(harness, monkeypatch):
    """However many tries have failed, there is another one."""
    monkeypatch.setattr(journal, "RETRY_MOST_S", 0.001)
    async with harness([ONE]) as h:
        one = h.plugin("one")
        one.failing = True
        await h.request()
        await h.clock.advance(1.2)
        assert len(one.seen) > 1_100
        one.failing = False
        await h.clock.advance(0.01)
        await h.settled()
        assert (counts(h)["settled"], counts(h)["waiting"]) == (1, {})


async def test_a_stop_settles_what_is_open(harness):
    """Requests that run when the worker stops are settled as cancelled; what was submitted a moment ago is settled."""
    async with harness([ONE], host={"journal_window_ms": 50}) as h:
        exchange = h.host.open((await h.request()).ctx)
        await h.stop()
        assert [s.outcome for _, _, s in h.plugin("one").seen] == [Outcome.OK, Outcome.CANCELLED]
        assert exchange.closed


async def test_waiting_is_shown(harness):
    """The status, and the kit's message, name the plugins that are waited for."""
    async with harness([ONE, TWO]) as h:
        h.plugin("one").failing = True
        await h.request()
        await h.request()
        with pytest.raises(NotSettledError, match=r"\{'one': 2\}"):
            await h.settled()
        assert (await h.admin.get("/status")).json()["journal"]["waiting"] == {"one": 2}
