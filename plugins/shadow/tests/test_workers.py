"""Figures of several workers, and what becomes of them when something goes wrong."""

from __future__ import annotations

import asyncio

import pytest

from pointsman.testing import disconnect, error, ok
from pointsman_shadow import mirror
from pointsman_shadow.repository import Repository

DAY_S = 86_400


async def test_workers_share_one_mirror(shadows, kit):
    """Counts, figures and results of both are in one place, and each shows the same."""
    one = await shadows.worker(kit.mirror(), name="one")
    two = await shadows.worker(kit.mirror(), name="two")
    for worker in (one, two, one):
        await worker.request()
        await worker.settled()
    await shadows.rest(one)
    await shadows.rest(two)
    first, second = await shadows.shown(one), await shadows.shown(two)
    assert first["pairs"] == second["pairs"] == 3
    assert first["figures"] == second["figures"]
    assert len(await shadows.results(two)) == 3


async def test_workers_share_one_budget(shadows, kit):
    """What one has spent the other cannot spend again."""
    section = kit.mirror(budget={"tokens_per_day": 100})
    body = {"messages": [{"role": "user", "content": "x" * 40}], "max_tokens": 20}
    workers = [await shadows.worker(section, name=name) for name in ("one", "two")]
    for _ in range(6):
        for worker in workers:
            await worker.request(body=body)
            await worker.settled()
    for worker in workers:
        await shadows.rest(worker)
    shown = await shadows.shown(workers[0])
    assert (shown["pairs"], shown["today"]["tokens"]) == (5, 75)


async def test_figures_survive_a_restart(shadows, kit):
    worker = await shadows.worker(kit.mirror())
    await worker.request()
    await shadows.rest(worker)
    await worker.restart()
    await worker.request()
    shown = await shadows.shown(worker)
    assert (shown["pairs"], shown["run"]) == (2, 1)
    assert len(await shadows.results(worker)) == 2


async def test_the_last_figures_are_flushed_at_the_shutdown(shadows, kit):
    worker = await shadows.worker(kit.mirror(), flush_s=60)
    await worker.request()
    await worker.settled()
    await shadows.clock.advance(0.1)
    await worker.restart()
    assert (await shadows.shown(worker))["pairs"] == 1


async def test_another_definition_begins_another_run(shadows, kit):
    """Figures of two challengers are never added up; the results of the old one are gone."""
    worker = await shadows.worker(kit.mirror())
    await worker.request()
    await shadows.rest(worker)
    newer = await shadows.worker(kit.mirror(challenger="judge"), name="newer")
    shown = await shadows.shown(newer)
    assert (shown["run"], shown["pairs"], shown["reason"]) == (2, 0, "the definition has changed")
    assert await shadows.results(newer) == []
    # The worker of the old configuration stops and says so.
    await worker.request()
    await worker.settled()
    await shadows.clock.advance(5)
    assert "newer definition" in worker.status("shadow").summary
    assert (await shadows.shown(newer))["pairs"] == 0
    before = len(kit.mirrors_of(worker))
    await worker.request()
    assert len(kit.mirrors_of(worker)) == before


async def test_a_higher_sample_rate_is_the_same_run(shadows, kit):
    """Only what the figures depend on begins a new one."""
    worker = await shadows.worker(kit.mirror())
    await worker.request()
    await shadows.rest(worker)
    other = await shadows.worker(kit.mirror(sample_rate=0.5, queue_size=3, keep_results=7), name="other")
    assert (await shadows.shown(other))["run"] == 1


async def test_while_the_store_is_down_figures_wait(shadows, kit):
    """Nothing is lost and nothing counted twice; the caller does not notice."""
    worker = await shadows.worker(kit.mirror())
    worker.store.down = True
    result = await worker.request()
    assert result.status == 200
    await shadows.clock.advance(10)
    assert not worker.status("shadow").ok
    worker.store.down = False
    await shadows.clock.advance(10)
    shown = await shadows.shown(worker)
    assert (shown["total"], shown["pairs"]) == (1, 1)
    assert worker.status("shadow").ok


async def test_what_waits_for_the_store_is_bounded(shadows, kit, monkeypatch):
    """Beyond the bound pairs are lost, and the status reports it."""
    monkeypatch.setattr(mirror, "MAX_UNFLUSHED", 3)
    worker = await shadows.worker(kit.mirror())
    worker.store.down = True
    for _ in range(5):
        await worker.request()
    await shadows.clock.advance(5)
    worker.store.down = False
    shown = await shadows.shown(worker)
    assert (shown["pairs"], shown["worker"]["lost"]) == (3, 2)
    assert "2 pairs are lost" in worker.status("shadow").summary


async def test_results_are_a_ring(shadows, kit):
    """The newest are kept, in order, however many there were; the store holds no more rows than that."""
    worker = await shadows.worker(kit.mirror(keep_results=5))
    made = []
    for number in range(13):
        made.append((await worker.request()).request_id)
        if number % 3 == 0:
            await shadows.rest(worker)
    rows = await shadows.results(worker)
    assert [row["request_id"] for row in rows] == made[-5:]
    assert len([key for key, _ in await shadows.store.scan("shadow/") if "/result/" in key]) == 5


async def stored(shadows) -> list:
    """Return what the store holds of results."""
    return [row for key, row in await shadows.store.scan("") if "/result/" in key]


@pytest.mark.parametrize("keep", [0, 1, 3, 8, 20])
async def test_results_when_the_room_changes(shadows, kit, keep):
    """The newest, in order, and no row beyond the room: before and after the next result."""
    worker = await shadows.worker(kit.mirror(keep_results=8))
    made = [(await worker.request()).request_id for _ in range(8)]
    await shadows.rest(worker)
    await worker.stop()
    other = await shadows.worker(kit.mirror(keep_results=keep), name="other")
    wanted = made[-keep:] if keep else []
    assert [row["request_id"] for row in await shadows.results(other)] == wanted
    assert len(await stored(shadows)) == len(wanted)
    made.append((await other.request()).request_id)
    wanted = made[-keep:] if keep else []
    assert [row["request_id"] for row in await shadows.results(other)] == wanted
    assert len(await stored(shadows)) == len(wanted)


async def test_texts_that_are_not_to_be_kept_any_more_are_removed(shadows, kit):
    """The rest of those results stays, for as long as it would have."""
    worker = await shadows.worker(kit.mirror(keep_texts=True, keep_results_days=10), script=ok("a secret"))
    await worker.request(script=ok("another secret"))
    (before,) = await shadows.results(worker)
    assert before["champion"]["text"] == "another secret"
    await worker.stop()
    await shadows.clock.advance(6 * DAY_S)
    other = await shadows.worker(kit.mirror(keep_texts=False, keep_results_days=10), name="other")
    assert "secret" not in repr(await shadows.store.scan(""))
    (after,) = await shadows.results(other)
    for side in ("champion", "challenger"):
        assert before[side].pop("text")
        before[side].pop("tools")
    assert after == before
    await other.stop()
    await shadows.clock.advance(5 * DAY_S)
    assert await stored(shadows) == []


async def test_results_of_a_mirror_that_is_no_more_end_with_their_time(shadows, kit):
    worker = await shadows.worker(kit.mirror(keep_texts=True), script=ok("a secret"))
    await worker.request()
    await shadows.rest(worker)
    await worker.stop()
    without = await shadows.worker(name="without")
    assert len(await stored(shadows)) == 1
    await without.stop()
    await shadows.clock.advance(31 * DAY_S)
    assert await stored(shadows) == []
    assert "secret" not in repr(await shadows.store.scan(""))


async def test_a_shorter_time_holds_for_older_results_too(shadows, kit):
    worker = await shadows.worker(kit.mirror())
    await worker.request()
    await shadows.rest(worker)
    await worker.stop()
    await shadows.clock.advance(2 * DAY_S)
    other = await shadows.worker(kit.mirror(keep_results_days=1), name="other")
    assert await stored(shadows) == []
    assert await shadows.results(other) == []


@pytest.mark.parametrize("state", [{"x": 1}, "no state at all"])
async def test_a_state_that_cannot_be_read_stops_its_own_mirror_only(shadows, kit, state):
    """Also at the start; the status reports it, and a reset begins a new run."""
    sections = [kit.mirror(name="aa"), kit.mirror(name="bb")]
    worker = await shadows.worker(*sections)
    await worker.request()
    await shadows.rest(worker)
    (key,) = [key for key, _ in await shadows.store.scan("") if "aa}/state" in key]
    await shadows.store.put(key, state)
    await shadows.rest(worker)
    later = await shadows.worker(*sections, name="later")
    for each in (worker, later):
        await each.request()
        await shadows.rest(each)
        assert (
            each.status("shadow").details["problems"][0].startswith("aa: a mirror's state in the store cannot be read")
        )
        assert each.faults == {}
    assert (await shadows.shown(later, "bb"))["pairs"] == 3
    assert [m["name"] for m in (await later.admin.get("/shadow")).json()["mirrors"]] == ["bb"]
    assert [call.request.labels["mirror"] for call in kit.mirrors_of(later)] == ["bb"]
    assert (await later.admin.get("/shadow/aa")).status_code >= 500
    assert (await worker.admin.post("/shadow/aa/reset")).json()["pairs"] == 0
    await shadows.rest(later)
    for each in (worker, later):
        await each.request()
        await shadows.rest(each)
        assert each.status("shadow").ok
    assert (await shadows.shown(later, "aa"))["pairs"] == 2
    assert len(await shadows.results(later, "aa")) == 2


async def test_what_the_store_refuses_of_one_mirror_is_lost_alone(shadows, kit, monkeypatch):
    change = Repository.change

    async def refused(self, mirror, *args):
        if mirror == "aa" and len(args) > 1:
            raise ValueError("no such value")
        return await change(self, mirror, *args)

    worker = await shadows.worker(kit.mirror(name="aa"), kit.mirror(name="bb"), flush_s=60)
    await worker.request()
    await worker.settled()
    await shadows.clock.advance(1)
    monkeypatch.setattr(Repository, "change", refused)
    await worker.stop()
    monkeypatch.undo()
    later = await shadows.worker(kit.mirror(name="aa"), kit.mirror(name="bb"), name="later")
    assert [(await shadows.shown(later, name))["pairs"] for name in ("aa", "bb")] == [0, 1]


async def test_texts_are_kept_only_when_the_operator_says_so(shadows, kit):
    """By default nothing of what was said is anywhere in the store."""
    worker = await shadows.worker(kit.mirror(), script=ok("a word that is secret"))
    await worker.request(script=ok("another secret word"))
    (row,) = await shadows.results(worker)
    assert "text" not in row["champion"]
    assert "secret" not in repr(await shadows.store.scan(""))


async def test_kept_texts_are_redacted_and_cut(shadows, kit):
    section = kit.mirror(keep_texts=True, max_text_chars=20, redact={"patterns": [r"\d{4,}"], "replacement": r"\1#"})
    worker = await shadows.worker(section, script=ok("card 12345678 and much more than fits"))
    await worker.request(script=ok("no card"))
    (row,) = await shadows.results(worker)
    assert row["champion"]["text"] == "no card"
    assert row["challenger"]["text"] == "card \\1# and much more than fits"[:20]
    assert "12345678" not in repr(await shadows.store.scan(""))


async def test_an_operators_redactor_that_fails_keeps_nothing(shadows, kit, monkeypatch):
    """What it has not seen is not kept; the figures are."""

    def load(name):
        assert name == "mine"

        def redact(text):
            raise RuntimeError(text)

        return redact

    monkeypatch.setattr("pointsman_shadow.results.load", load)
    worker = await shadows.worker(kit.mirror(keep_texts=True, redact={"hook": "mine"}), script=ok("secret"))
    await worker.request(script=ok("secret"))
    shown = await shadows.shown(worker)
    assert (shown["pairs"], shown["redaction_failed"]) == (1, 2)
    assert "secret" not in repr(await shadows.store.scan(""))


async def test_a_finished_mirror_mirrors_no_more(shadows, kit):
    worker = await shadows.worker(kit.mirror(pairs_wanted=2))
    for _ in range(4):
        await worker.request()
        await shadows.rest(worker)
    shown = await shadows.shown(worker)
    assert (shown["phase"], shown["pairs"], shown["who"]) == ("finished", 2, "shadow")
    assert len(kit.mirrors_of(worker)) == 2


async def test_a_mirror_has_no_more_pairs_than_it_wants_however_many_requests_come_at_once(shadows, kit):
    worker = await shadows.worker(kit.mirror(pairs_wanted=2))
    slow = ok("the same words", latency_s=0.5)
    asking = [asyncio.create_task(worker.request(script=slow, moves_clock=False)) for _ in range(6)]
    await shadows.clock.advance(1)
    await asyncio.gather(*asking)
    shown = await shadows.shown(worker)
    assert (shown["phase"], shown["pairs"], len(kit.mirrors_of(worker))) == ("finished", 2, 2)


async def test_a_pair_that_fails_is_replaced(shadows, kit):
    """The client of the first request goes away: there is nothing to compare, and another request takes its place."""
    worker = await shadows.worker(kit.mirror(pairs_wanted=1))
    await worker.request(stream=True, script=disconnect(1))
    await worker.request()
    shown = await shadows.shown(worker)
    assert (shown["reasons"]["unpaired"], shown["phase"], shown["pairs"]) == ({"client_gone": 1}, "finished", 1)


async def test_a_finished_mirror_that_is_resumed_compares_as_many_again(shadows, kit):
    worker = await shadows.worker(kit.mirror(pairs_wanted=2))

    async def phases(requests: int) -> list:
        seen = []
        for _ in range(requests):
            await worker.request()
            shown = await shadows.shown(worker)
            seen.append((shown["phase"], shown["pairs"], shown["pairs_wanted"]))
        return seen

    assert await phases(3) == [("running", 1, 2), ("finished", 2, 2), ("finished", 2, 2)]
    resumed = (await worker.admin.post("/shadow/next/resume")).json()
    assert (resumed["phase"], resumed["pairs"], resumed["pairs_wanted"]) == ("running", 2, 4)
    assert await phases(3) == [("running", 3, 4), ("finished", 4, 4), ("finished", 4, 4)]
    await worker.stop()
    # With more wanted in the configuration it goes on to those, and no further.
    worker = await shadows.worker(kit.mirror(pairs_wanted=3), name="other")
    await worker.admin.post("/shadow/next/resume")
    assert await phases(2) == [("finished", 5, 5), ("finished", 5, 5)]


async def test_a_pause_does_not_make_a_mirror_want_more(shadows, kit):
    worker = await shadows.worker(kit.mirror(pairs_wanted=2))
    await worker.request()
    await shadows.rest(worker)
    await worker.admin.post("/shadow/next/pause")
    await worker.admin.post("/shadow/next/resume")
    await worker.request()
    shown = await shadows.shown(worker)
    assert (shown["phase"], shown["pairs"], shown["pairs_wanted"]) == ("finished", 2, 2)


async def test_an_emptied_store_is_begun_again(shadows, kit):
    worker = await shadows.worker(kit.mirror())
    for key, _ in await shadows.store.scan("shadow/"):
        await shadows.store.delete(key)
    await worker.request(script=error(500), retries=0)
    assert (await shadows.shown(worker))["pairs"] == 1
