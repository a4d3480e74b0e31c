from __future__ import annotations

import asyncio
import itertools

import pytest

from pointsman.errors import StoreCorrupt, StoreUnavailable
from pointsman.store.disk import DiskStore
from pointsman.store.memory import MemoryStore
from pointsman.testing import FragileStore
from pointsman_canary import lifecycle
from pointsman_canary.experiment import Experiment
from pointsman_canary.lifecycle import Cause
from pointsman_canary.observations import MOST_REQUESTS, Observation, Observer, merge
from pointsman_canary.repository import COUNTED_TTL_S, LEASE_S, ROOT, Repository

MADE = Experiment.model_validate({"name": "x", "model": "m", "canary": "c"})
CAUSE = Cause("anna", "because", 1000.0)
MAIL = {"1.1": {"canary": {"error_rate": {0: 3, 1000: 1}}}}


@pytest.fixture(params=["memory", "disk"])
async def store(request, tmp_path):
    """A store of each embedded backend."""
    opened = MemoryStore() if request.param == "memory" else await DiskStore.open(tmp_path / "store")
    yield opened
    await opened.close()


@pytest.fixture
def worker(store):
    """Return the repository of another worker."""
    ids = itertools.count()
    return lambda: Repository(store, lambda: f"id-{next(ids)}")


async def begin(repository):
    made, changes = lifecycle.create(MADE, "http", CAUSE)
    assert await repository.save(await repository.load("x"), made, changes)
    return await repository.load("x")


async def test_state_comes_back_as_it_was(worker):
    written = await begin(worker())
    assert (await worker().load("x")).rollout == written.rollout
    assert [stored.name for stored in await worker().load_all()] == ["x"]


async def test_of_two_writers_one_has_to_read_again(worker):
    first, second = worker(), worker()
    await begin(first)
    read = [await first.load("x"), await second.load("x")]
    moved, changes = lifecycle.pause(read[0].rollout, CAUSE)
    assert await first.save(read[0], moved, changes)
    other, others = lifecycle.rollback(read[1].rollout, CAUSE)
    assert not await second.save(read[1], other, others)
    assert (await second.load("x")).rollout == moved
    assert [entry["what"] for entry in await second.audit("x", 10)] == ["pause", "step", "create"]


async def test_two_that_begin_the_same_experiment_begin_it_once(worker):
    repositories = [worker() for _ in range(4)]
    made, changes = lifecycle.create(MADE, "config", CAUSE)
    read = [await repository.load("x") for repository in repositories]
    written = await asyncio.gather(
        *(repository.save(stored, made, changes) for repository, stored in zip(repositories, read, strict=True))
    )
    assert written.count(True) == 1
    assert len(await repositories[0].audit("x", 10)) == 2


async def test_state_of_a_deleted_and_begun_again_experiment_is_not_overwritten_by_an_old_reader(worker):
    first, second = worker(), worker()
    old = await begin(first)
    stale = await second.load("x")
    _, changes = lifecycle.deleted(old.rollout, CAUSE)
    assert await first.save(old, None, changes)
    assert await first.load_all() == []
    new = await begin(first)
    moved, changes = lifecycle.rollback(stale.rollout, CAUSE)
    assert not await second.save(stale, moved, changes)
    assert (await second.load("x")).rollout == new.rollout
    assert [entry["what"] for entry in await first.audit("x", 10)] == ["step", "create", "delete", "step", "create"]


async def test_observations_vanish_from_the_mailbox_in_the_step_that_counts_them(worker):
    repository = worker()
    await begin(repository)
    assert await repository.post("x", MAIL)
    assert await worker().post("x", MAIL)
    read = await repository.load("x")
    assert merge({}, _mail(read)) == merge(MAIL, MAIL)
    assert await repository.post("x", MAIL)
    after, changes = lifecycle.tick(read.rollout, 1001.0, None)
    assert not await repository.save(read, after, changes, took_mail=True)
    read = await repository.load("x")
    assert await repository.save(read, after, changes, took_mail=True)
    assert (await repository.load("x")).mail is None


def _mail(stored):
    return {
        tag: {
            arm: {
                metric: {int(bucket): count for bucket, count in counts.items()} for metric, counts in metrics.items()
            }
            for arm, metrics in seen.items()
        }
        for tag, seen in stored.mail.items()
    }


async def test_many_workers_that_post_at_once_lose_nothing(worker):
    repositories = [worker() for _ in range(4)]
    for _ in range(5):
        posted = await asyncio.gather(*(repository.post("x", MAIL) for repository in repositories))
        assert all(posted)
    assert (await worker().load("x")).mail["1.1"]["canary"]["error_rate"] == {"0": 60, "1000": 20}


async def test_store_that_is_down_before_anything_was_written_keeps_observations_with_the_worker():
    store = FragileStore(MemoryStore())
    store.down = True
    assert not await Repository(store, lambda: "").post("x", MAIL)
    with pytest.raises(StoreUnavailable):
        await Repository(store, lambda: "").load("x")


async def test_lease_has_one_holder_and_is_free_when_it_is_given_back(worker):
    first, second = worker(), worker()
    assert await first.lead("one")
    assert await first.lead("one")
    assert not await second.lead("two")
    await second.resign("two")
    assert not await second.lead("two")
    await first.resign("one")
    assert await second.lead("two")


async def test_lease_of_a_dead_worker_runs_out():
    now = [0.0]
    store = MemoryStore(clock=lambda: now[0])
    assert await Repository(store, lambda: "").lead("one")
    now[0] = LEASE_S + 0.1
    assert await Repository(store, lambda: "").lead("two")


async def test_score_of_a_request_counts_once(worker):
    assert await worker().first_score("x", "request-1")
    assert not await worker().first_score("x", "request-1")
    assert await worker().first_score("x", "request-2")
    assert await worker().first_score("y", "request-1")
    assert await worker().first_score("x", "\ud800" * 512)


@pytest.mark.parametrize("key", ["state/x", "mail/x"])
async def test_row_that_this_project_never_writes_is_named(store, worker, key):
    repository = worker()
    await begin(repository)
    await store.put(f"{ROOT}{key}", {"experiment": 7})
    with pytest.raises(StoreCorrupt, match=r"canary's .* in the store cannot be read"):
        await _read_everything(worker())


async def _read_everything(repository):
    stored = await repository.load("x")
    assert stored.rollout is not None
    await repository.post("x", MAIL)


def test_only_the_two_latest_stages_are_kept():
    observer = Observer()
    for tag in ("1.1", "1.2", "2.10", "2.9", "1.1"):
        observer.note("x", tag, "canary", {"error_rate": 0})
    assert set(observer.take()["x"]) == {"2.9", "2.10"}
    assert observer.take() == {}


def test_what_could_not_be_flushed_is_added_to_what_came_since():
    observer = Observer()
    observer.note("x", "1.1", "canary", {"error_rate": 0})
    taken = observer.take()
    observer.note("x", "1.1", "canary", {"error_rate": 0})
    observer.give_back("x", taken["x"])
    assert observer.take() == {"x": {"1.1": {"canary": {"error_rate": {0: 2}}}}}


def seen(second=1000, tag="1.1"):
    return Observation(tag, "canary", second, {"error_rate": 0})


async def test_request_counts_once_whichever_worker_counts_it(worker):
    """Also at the same time, together with new ones, and as one of several that ended in the same second."""
    assert await worker().count("x", {"a": seen(), "b": seen(), "c": seen(1001)})
    assert await worker().count("x", {"b": seen(), "d": seen()})
    same = [worker().count("x", {"e": seen(1001), "f": seen(1002)}) for _ in range(3)]
    assert all(await asyncio.gather(*same))
    assert await worker().count("y", {"a": seen()})
    assert (await worker().load("x")).mail == {"1.1": {"canary": {"error_rate": {"0": 6}}}}
    assert (await worker().load("y")).mail == {"1.1": {"canary": {"error_rate": {"0": 1}}}}


async def test_more_requests_than_one_step_takes_are_all_counted(worker):
    requests = {str(number): seen(number // 100) for number in range(2500)}
    assert await worker().count("x", requests)
    assert await worker().count("x", requests)
    assert (await worker().load("x")).mail == {"1.1": {"canary": {"error_rate": {"0": 2500}}}}


class Unanswering(MemoryStore):
    """Carries a step out, but its answer does not arrive."""

    async def update(self, update):
        await super().update(update)
        raise StoreUnavailable("no answer")


async def test_requests_of_a_step_without_an_answer_are_tried_again_and_count_once():
    repository = Repository(Unanswering(), lambda: "")
    assert not await repository.count("x", {"a": seen()})
    assert await repository.count("x", {"a": seen()})
    assert (await repository.load("x")).mail == {"1.1": {"canary": {"error_rate": {"0": 1}}}}


async def test_counted_requests_are_forgotten_after_their_time():
    now = [0.0]
    store = MemoryStore(clock=lambda: now[0])
    assert await Repository(store, lambda: "").count("x", {"a": seen()})
    now[0] = COUNTED_TTL_S + 1
    assert [key for key, _ in await store.scan(f"{ROOT}counted/")] == []


def test_request_that_waits_is_not_noted_again():
    observer = Observer()
    observer.note_request("x", "a", seen(1))
    observer.give_back_requests("x", {"b": seen(2), "a": seen(1)})
    assert list(observer.take_requests()["x"]) == ["b", "a"]
    assert observer.take_requests() == {}


def test_requests_that_wait_for_too_long_become_sums():
    """Nothing is lost without the store, and memory is bounded."""
    observer = Observer()
    for number in range(MOST_REQUESTS + 3):
        observer.note_request("x", str(number), seen())
    assert len(observer.take_requests()["x"]) == MOST_REQUESTS
    assert observer.take() == {"x": {"1.1": {"canary": {"error_rate": {0: 3}}}}}
