"""Observations between workers, over restarts, and in the performance file."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from types import SimpleNamespace

import pytest

from pointsman.errors import PluginLoadError, StoreUnavailable
from pointsman.store import open_store
from pointsman.testing import FakeClock, Harness, error, ok
from pointsman_racing import plugin as plugin_module
from pointsman_racing import repository as module
from pointsman_racing.plugin import plugin
from pointsman_racing.repository import InvalidDocument, Repository, load_document, write_document
from pointsman_racing.statistics import Statistics

from .conftest import DEPLOYMENTS, EASY, NOW

SMART = {"name": "smart", "candidates": ["tiny", {"target": "backup", "priority": 1}]}


@pytest.fixture
async def shared():
    clock = FakeClock()
    store = await open_store("memory", clock=clock.now)
    yield {"clock": clock, "store": store}
    await store.close()


async def shown(h, deployment_id="tiny"):
    rows = (await h.admin.get("/racing")).json()["deployments"]
    return next((row for row in rows if row["deployment_id"] == deployment_id), None)


async def test_workers_learn_from_each_other(track, shared):
    """What one has measured decides when the other hedges."""
    config = {"defaults": {"delay": {"min_samples": 5, "floor_ms": 1}, "budget_ratio": 4}}
    async with (
        track(models=[SMART], config=config, name="one", **shared) as one,
        track(models=[SMART], config=config, name="two", **shared) as two,
    ):
        for _ in range(6):
            await one.request(model="smart", stream=True, script=ok("a", latency_s=0.02))
        await one.clock.advance(12)
        assert (await shown(two))["first_token_ms"]["p50"] == pytest.approx(20, rel=0.03)
        begun = two.clock.now()
        result = await two.request(model="smart", stream=True, script={"tiny": ok(latency_s=9), "backup": ok("b")})
        assert result.attempts[1].started_at - begun == pytest.approx(0.02, rel=0.05)
        await two.clock.advance(12)
        counts = [(await h.admin.get("/racing/smart")).json()["counts"]["requests"] for h in (one, two)]
        assert counts == [7, 7]


async def test_what_was_learned_survives_a_restart(track, tmp_path):
    async with track(models=[SMART], store="disk", path=tmp_path) as h:
        for _ in range(5):
            await h.request(model="smart", script=ok(latency_s=0.02))
        before = await shown(h)
        await h.restart()
        after = await shown(h)
    assert before["wins"] == after["wins"] == 5
    assert after["whole_ms"]["p50"] == before["whole_ms"]["p50"]


async def test_rows_of_an_earlier_release_are_moved(track, shared):
    """They count, for whoever starts next, and are not looked for again."""
    async with track(models=[SMART], name="one", **shared) as h:
        for _ in range(5):
            await h.request(model="smart", script=ok(latency_s=0.02))
    store = shared["store"]
    rows = [(key, row) for tag in ("standing", "tally") for key, row in await store.scan(f"racing/{{{tag}}}/")]
    for key, row in rows:
        await store.put(key.replace("{", "").replace("}", ""), row)
        await store.delete(key)
    async with track(models=[SMART], name="two", **shared) as h:
        assert (await shown(h))["wins"] == 5
        await h.clock.advance(12)
        assert (await h.admin.get("/racing/smart")).json()["counts"]["requests"] == 5
        assert [key for tag in ("standing", "tally") for key, _ in await store.scan(f"racing/{tag}/")] == []


async def test_rows_disappear_by_themselves(track, shared):
    async with track(models=[SMART], **shared) as h:
        await h.request(model="smart")
        await h.clock.advance(12)
        assert await shared["store"].scan("racing/{standing}/")
    shared["clock"]._elapsed_s += 2 * 86_400
    assert not await shared["store"].scan("racing/{standing}/")


async def test_a_store_that_fails_stops_nothing(track):
    """Requests go on, status tells, and what was not written is written later."""
    async with track(models=[SMART]) as h:
        h.store.down = True
        assert (await h.request(model="smart", script=ok("fine"))).text == "fine"
        await h.clock.advance(12)
        assert "store fails" in h.status("racing").summary
        h.store.down = False
        await h.clock.advance(12)
        assert h.status("racing").ok
        assert any(key.startswith("{standing}/") for key in await h.stored("racing"))


async def test_odd_rows_are_left_out(track, shared):
    for key, row in {"x/1": 5, "x/2": {"deployment_id": 7, "at": 1}, "x/3": {"deployment_id": "d"}}.items():
        await shared["store"].put(f"racing/{{standing}}/{key}", row)
    await shared["store"].put("racing/{tally}/x", {"smart": {"requests": -4, "extra": "x"}})
    await shared["store"].put("racing/{tally}/y", 5)
    async with track(models=[SMART], **shared) as h:
        assert (await h.admin.get("/racing")).json()["deployments"] == []


# -- the performance file ---------------------------------------------------------------------------------------------


async def test_the_file_is_written_and_read_again_by_a_worker_that_knows_nothing(track, tmp_path):
    file = tmp_path / "perf.json"
    config = {"performance_file": str(file)}
    async with track(models=[SMART], config=config) as h:
        for _ in range(5):
            await h.request(model="smart", stream=True, script=ok(latency_s=0.2))
        await h.request(model="smart", script={"tiny": error(500), "backup": ok()})
        first = await shown(h)
    assert json.loads(file.read_text())["format"] == "pointsman-racing/1"
    assert list(tmp_path.iterdir()) == [file], "nothing but the file itself is left"
    async with track(models=[SMART], config=config) as h:
        again = await shown(h)
        assert (again["wins"], again["failures"], again["attempts"]) == (5, 1, 6)
        assert again["first_token_ms"]["p95"] == first["first_token_ms"]["p95"]


async def test_it_is_read_once_however_many_workers_start(track, shared, tmp_path):
    file = tmp_path / "perf.json"
    config = {"performance_file": str(file)}
    async with track(models=[SMART], config=config) as h:
        await h.request(model="smart")
    before = file.read_bytes()
    async with track(models=[SMART], config=config, name="one", **shared):
        file.write_bytes(before)
        async with track(models=[SMART], config=config, name="two", **shared) as two:
            assert (await shown(two))["attempts"] == 1


async def test_a_file_that_is_something_else_stops_the_start(track, tmp_path):
    file = tmp_path / "perf.json"
    huge = '{"format": "pointsman-racing/1", "deployments": {"a": {"at": 1%s}}}'
    for text, word in (
        (b"{}", "format"),
        (b"nope", "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        (b"[" * 200_000, "not JSON"),
        (b'{"format": "pointsman-racing/1"}', "deployments"),
        ((huge % ("0" * 400)).encode(), "'a' is not an object with a number"),
        ((huge % ("0" * 5000)).encode(), "not JSON"),
    ):
        file.write_bytes(text)
        with pytest.raises(PluginLoadError, match=f"performance_file: cannot use.*{word}"):
            await track(models=[SMART], config={"performance_file": str(file)}).start()


async def test_a_file_that_was_repaired_is_read(track, shared, tmp_path):
    file = tmp_path / "perf.json"
    config = {"performance_file": str(file)}
    async with track(models=[SMART], config=config) as h:
        await h.request(model="smart")
    good = file.read_bytes()
    file.write_bytes(good[:-10])
    with pytest.raises(PluginLoadError, match="performance_file"):
        await track(models=[SMART], config=config, **shared).start()
    file.write_bytes(good)
    async with track(models=[SMART], config=config, **shared) as h:
        assert (await shown(h))["attempts"] == 1


async def test_after_idle_days_the_file_is_read_again(track, shared, tmp_path):
    """What the store had has expired; the file has not."""
    file = tmp_path / "perf.json"
    config = {"performance_file": str(file)}
    async with track(models=[SMART], config=config, **shared) as h:
        await h.request(model="smart")
    for _ in range(2):
        shared["clock"]._elapsed_s += 2 * 86_400
        async with track(models=[SMART], config=config, **shared) as h:
            assert (await shown(h))["attempts"] == 1
        assert "tiny" in json.loads(file.read_text())["deployments"]


async def test_an_import_that_was_broken_off_is_made_again(track, shared, tmp_path):
    """The store has failed after the first of two rows."""
    file = tmp_path / "perf.json"
    config = {"performance_file": str(file)}
    async with track(models=[SMART], config=config) as h:
        await h.request(model="smart", script={"tiny": error(500), "backup": ok()})
    left = []

    class Fails:
        def __getattr__(self, name):
            return getattr(shared["store"], name)

        async def put(self, key, value, **more):
            if "{standing}/" in key and left:
                raise StoreUnavailable("on purpose")
            left.append(key)
            await shared["store"].put(key, value, **more)

    with pytest.raises(PluginLoadError, match="on purpose"):
        await track(models=[SMART], config=config, clock=shared["clock"], store=Fails()).start()
    assert len(left) == 1
    async with track(models=[SMART], config=config, **shared) as h:
        assert [(await shown(h, name))["attempts"] for name in ("tiny", "backup-a")] == [1, 1]


async def test_a_worker_without_observations_writes_nothing(track, tmp_path):
    file = tmp_path / "perf.json"
    async with track(models=[SMART], config={"performance_file": str(file)}):
        file.write_text("somebody else's")
    assert file.read_text() == "somebody else's"


async def test_a_file_in_a_directory_that_is_missing_stops_the_start(track, tmp_path):
    config = {"performance_file": str(tmp_path / "gone" / "perf.json")}
    with pytest.raises(PluginLoadError, match="gone is not a directory"):
        await track(models=[SMART], config=config).start()


async def test_an_exchange_ends_however_quick_the_traffic_is(attempt):
    """Every write lets the next observation of the same deployment in."""
    statistics = Statistics(600.0)

    class Store:
        puts = 0

        async def put(self, key, value, ttl_s):
            self.puts += 1
            assert self.puts < 10, "it goes on for ever"
            statistics.observe(attempt("a"), stream=False, now=NOW)

        async def scan(self, prefix):
            return []

    store = Store()
    repository = Repository(statistics, {}, SimpleNamespace(store=store, clock=FakeClock(), worker="w"))
    for name in ("a", "b"):
        statistics.observe(attempt(name), stream=False, now=NOW)
    await repository.exchange()
    assert (store.puts, statistics.changed) == (2, {"a"})


async def test_what_was_not_written_is_written_the_next_time(attempt):
    statistics, written = Statistics(600.0), []

    class Store:
        down = True

        async def put(self, key, value, ttl_s):
            if self.down and written:
                raise StoreUnavailable("on purpose")
            written.append(value["deployment_id"])

        async def scan(self, prefix):
            return []

    store = Store()
    repository = Repository(statistics, {}, SimpleNamespace(store=store, clock=FakeClock(), worker="w"))
    for name in ("a", "b", "c"):
        statistics.observe(attempt(name), stream=False, now=NOW)
    with pytest.raises(StoreUnavailable):
        await repository.exchange()
    statistics.observe(attempt("d"), stream=False, now=NOW)
    assert statistics.changed == {"a", "b", "c", "d"} - set(written)
    store.down = False
    await repository.exchange()
    assert (sorted(written), statistics.changed) == (["a", "b", "c", "d"], set())


async def test_export_and_import_over_http(track):
    async with track(models=[SMART]) as h:
        await h.request(model="smart")
        exported = (await h.admin.get("/racing/performance")).json()
    async with track(models=[SMART]) as h:
        for _ in range(2):
            answer = await h.admin.post("/racing/performance", json=exported)
            assert (answer.status_code, answer.json()) == (200, {"imported": ["tiny"]})
        assert (await shown(h))["attempts"] == 1, "taken in once, however often"
        deployments = ({"a": 5}, {"a": {"at": 10**400}}, {"\ud800": {"at": 1}})
        bad = ([], {}, {"format": "x"}, *({"format": "pointsman-racing/1", "deployments": one} for one in deployments))
        for body in (*(json.dumps(one) for one in bad), "nope", b"\xff", "[" * 200_000):
            answer = await h.admin.post("/racing/performance", content=body)
            assert answer.status_code == 422, body[:80]
        huge = {"at": NOW, "attempts": 1e308, "whole_ms": {"100": 1e308, "101": 1e308}}
        odd = {"format": "pointsman-racing/1", "deployments": {"a": huge, "b": huge}}
        assert (await h.admin.post("/racing/performance", json=odd)).status_code == 200
        assert (await h.admin.get("/racing")).status_code == 200


async def test_a_late_write_does_not_undo_a_newer_one(track, tmp_path, monkeypatch):
    """Whatever a thread was still writing when the worker ended, the file has what was known at the end."""
    file, write, begun, first_done = tmp_path / "perf.json", write_document, [], threading.Event()

    def first_late(path, known):
        begun.append(known)
        if len(begun) > 1:
            write(path, known)
            return
        time.sleep(0.5)
        write(path, known)
        first_done.set()

    monkeypatch.setattr(plugin_module, "write_document", first_late)
    async with track(models=[SMART], config={"performance_file": str(file)}) as h:
        await h.request(model="smart")
    assert await asyncio.to_thread(first_done.wait, 10)
    assert "tiny" in json.loads(file.read_text())["deployments"]


def test_half_a_file_is_never_there(tmp_path, monkeypatch):
    """A writer that fails leaves the old file and nothing else."""
    file = tmp_path / "perf.json"
    write_document(file, {"a": 1})
    with pytest.raises(ValueError, match="JSON compliant"):
        write_document(file, {"a": float("nan")})
    assert json.loads(file.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_of_any_size_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_BYTES", 10)
    file = tmp_path / "perf.json"
    file.write_text("x" * 11)
    with pytest.raises(InvalidDocument, match="10 bytes"):
        load_document(file, 600.0)
    assert load_document(tmp_path / "none.json", 600.0) is None


async def test_a_reload_with_other_settings_goes_on_with_observations_and_budgets():
    """Also with observations that had not been written yet; a budget that was spent is not filled by other settings."""
    race = {**EASY, "name": "smart", "candidates": ["chat", "backup"], "budget_ratio": 0.001, "budget_burst": 2}
    slow = {"models": [race], "share_interval_s": 300}
    async with Harness([(plugin, slow)], deployments=DEPLOYMENTS) as h:
        for _ in range(4):
            await h.request(model="smart", script={"chat": ok(latency_s=0.5), "backup": ok(latency_s=0.5)})
        before = h.plugin("racing")
        left = before._coordinator.models.by_name["smart"].bucket.tokens
        assert left < 1
        assert before._statistics.changed, "not written yet"
        changed = {**slow, "models": [{**race, "max_attempts": 2}]}
        result = await h.reload([(plugin, changed)])
        assert (result.error, result.started) == (None, ("racing",))
        after = h.plugin("racing")
        assert after is not before
        assert after._coordinator.models.by_name["smart"].bucket.tokens == left
        assert sorted(after._statistics.known()) == sorted(before._statistics.known()) != []
        assert not h.faults
