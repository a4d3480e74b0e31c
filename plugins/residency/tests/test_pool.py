"""What a pool decides, without I/O and clock."""

from __future__ import annotations

import random
from itertools import count

import pytest

from pointsman_residency import sharing
from pointsman_residency.decisions import decide, resume
from pointsman_residency.policy import Policy
from pointsman_residency.pool import Pool, Unavailable
from pointsman_residency.slots import ABSENT, Model, Report, State

#: Nothing but LRU: no minimum residence, and a swap costs nothing.
LRU = Policy(max_wait_s=1e9, min_residence_s=0.0, swap_ratio=0.0)
_tickets = count()


class Bench:
    """A pool whose loads and unloads take no time."""

    def __init__(self, budget, sizes, policy=LRU, **options):
        models = [Model(name=name, footprint={"memory": size}, **options.get(name, {})) for name, size in sizes.items()]
        self.pool = Pool({"memory": budget}, models, policy)
        self.now = 100.0
        self.loads, self.evicted = [], []

    def settle(self):
        """Carry out everything that is decided until nothing is."""
        while True:
            decision = decide(self.pool, self.now)
            for load in decision.loads:
                self.loads.append(load.name)
                self.pool.load_ended(load.name, self.now, took_s=1.0)
            for unload in decision.unloads:
                self.evicted.append(unload.name)
                self.pool.unload_ended(unload.name, self.now)
            if not decision.loads and not decision.unloads:
                return decision

    def use(self, *names):
        """Make one request after another, each of them to its end."""
        for name in names:
            ticket = self.ask(name)
            self.pool.release(name, ticket, self.now)
            self.settle()

    def ask(self, name):
        self.now += 1
        ticket = f"t{next(_tickets)}"
        self.pool.request(name, ticket, self.now)
        self.settle()
        return ticket

    def end(self, name, ticket):
        self.pool.release(name, ticket, self.now)
        self.settle()

    def verdicts(self):
        return {verdict.ticket: verdict.error for verdict in self.pool.take_verdicts()}

    def state(self, name):
        return self.pool.slots[name].state

    def resident(self):
        return [slot.name for slot in self.pool.resident()]

    @property
    def used(self):
        return self.pool.used()["memory"]


# -- the seed's resource manager ----------------------------------------------------------------------------------------


def test_a_model_is_loaded_and_counts_with_its_size():
    bench = Bench(100, {"a": 40})
    bench.use("a")
    assert (bench.loads, bench.resident(), bench.used) == (["a"], ["a"], 40)


def test_what_is_resident_is_only_touched():
    bench = Bench(100, {"a": 40, "b": 40})
    bench.use("a", "b", "a")
    assert bench.loads == ["a", "b"]
    assert bench.resident() == ["a", "b"]
    assert bench.used == 80


def test_larger_than_the_budget_is_refused_and_evicts_nothing():
    bench = Bench(100, {"a": 40, "b": 40, "huge": 101})
    bench.use("a", "b")
    with pytest.raises(Unavailable, match="101 bytes, more than the 100") as refused:
        bench.pool.request("huge", "t", bench.now)
    assert refused.value.code == "model_too_large"
    assert bench.settle().loads == ()
    assert (bench.resident(), bench.evicted) == (["b", "a"], [])


def test_the_least_recently_used_goes_when_there_is_no_room():
    bench = Bench(100, {"a": 40, "b": 40, "c": 40})
    bench.use("a", "b", "c")
    assert bench.evicted == ["a"]
    assert bench.resident() == ["c", "b"]


def test_as_many_go_as_it_takes():
    bench = Bench(100, {"a": 30, "b": 30, "c": 30, "big": 65})
    bench.use("a", "b", "c", "big")
    assert bench.evicted == ["a", "b"]
    assert (bench.resident(), bench.used) == (["big", "c"], 95)


def test_a_touch_saves_a_model_from_eviction():
    bench = Bench(100, {"a": 40, "b": 40, "c": 40})
    bench.use("a", "b")
    bench.pool.touch("a", bench.now)
    bench.use("c")
    assert bench.evicted == ["b"]


def test_a_model_of_exactly_the_budget_fits():
    bench = Bench(100, {"a": 100, "b": 1})
    bench.use("b", "a")
    assert (bench.resident(), bench.used) == (["a"], 100)


def test_an_operator_evicts_a_model_and_its_memory_is_free():
    bench = Bench(100, {"a": 40})
    bench.use("a")
    assert bench.pool.evict("a", "by hand", bench.now)
    bench.settle()
    assert (bench.resident(), bench.used, bench.evicted) == ([], 0, ["a"])


def test_evicting_what_is_not_resident_does_nothing():
    bench = Bench(100, {"a": 40})
    assert not bench.pool.evict("a", "by hand", bench.now)
    assert bench.settle().unloads == ()


def test_an_unknown_model_is_an_error():
    with pytest.raises(KeyError):
        Bench(100, {"a": 40}).pool.request("b", "t", 0.0)


@pytest.mark.parametrize("budget", [0, -1])
def test_a_budget_must_be_positive(budget):
    with pytest.raises(ValueError, match="more than 0"):
        Pool({"memory": budget}, [])


@pytest.mark.parametrize("size", [0, -40])
def test_a_size_must_be_positive(size):
    with pytest.raises(ValueError, match="footprint of 'a'"):
        Pool({"memory": 100}, [Model(name="a", footprint={"memory": size})])


def test_the_listing_is_most_recent_first_and_the_figures_add_up():
    bench = Bench(200, {"a": 40, "b": 50, "c": 60})
    bench.use("a", "b", "c", "b")
    assert bench.resident() == ["b", "c", "a"]
    assert (bench.used, bench.pool.budget["memory"], len(bench.pool.resident())) == (150, 200, 3)


@pytest.mark.parametrize("seed", range(20))
def test_without_guards_it_is_lru_for_every_order_of_touches(seed):
    """Whatever the names: the same evictions as a list that moves what is used to its end."""
    rng = random.Random(seed)
    names = rng.sample([f"{letter}{number}" for letter in "azAZ" for number in range(5)], 8)
    bench = Bench(3, dict.fromkeys(names, 1))
    expected, order = [], []
    for _ in range(200):
        name = rng.choice(names)
        if name in order:
            order.remove(name)
        elif len(order) == 3:
            expected.append(order.pop(0))
        order.append(name)
        bench.use(name)
    assert bench.evicted == expected


# -- in flight, pinned, waiting -----------------------------------------------------------------------------------------


def test_nothing_in_flight_is_evicted_and_the_wait_ends_with_it():
    bench = Bench(100, {"a": 60, "b": 60})
    running = bench.ask("a")
    waiting = bench.ask("b")
    assert (bench.state("a"), bench.state("b")) == (State.DRAINING, State.COLD)
    assert bench.pool.slots["b"].blocked == "waits until a has ended"
    bench.end("a", running)
    assert bench.evicted == ["a"]
    assert bench.verdicts() == {running: None, waiting: None}


def test_idle_models_go_before_busy_ones_although_used_later():
    bench = Bench(100, {"a": 50, "b": 50, "c": 50})
    bench.ask("a")
    bench.use("b", "c")
    assert bench.evicted == ["b"]
    assert bench.state("a") is State.RESIDENT


def test_a_draining_model_takes_no_new_request_and_comes_back_when_nothing_waits():
    bench = Bench(100, {"a": 60, "b": 60})
    bench.ask("a")
    waiting = bench.ask("b")
    late = bench.ask("a")
    assert late not in bench.verdicts()
    bench.pool.withdraw("b", waiting, bench.now)
    bench.settle()
    assert bench.state("a") is State.RESIDENT
    assert bench.verdicts() == {late: None}


def test_a_pinned_model_stays_and_the_reason_names_it():
    bench = Bench(100, {"a": 60, "b": 60}, a={"pinned": True})
    bench.use("a")
    bench.ask("b")
    assert bench.evicted == []
    assert bench.pool.slots["b"].blocked == "only pinned or busy models are left: a"
    bench.pool.pin("a", False)
    bench.settle()
    assert bench.evicted == ["a"]


def test_a_hundred_requests_load_a_cold_model_once():
    bench = Bench(100, {"a": 60})
    tickets = [f"s{number}" for number in range(100)]
    for ticket in tickets:
        assert not bench.pool.request("a", ticket, bench.now)
    bench.settle()
    assert bench.loads == ["a"]
    assert bench.verdicts() == dict.fromkeys(tickets)
    assert len(bench.pool.slots["a"].holds) == 100


def test_models_that_exclude_each_other_are_never_resident_together():
    bench = Bench(100, {"a": 10, "b": 10, "c": 10}, a={"excludes": frozenset({"b"})}, b={"excludes": frozenset({"a"})})
    bench.use("a", "c", "b")
    assert bench.evicted == ["a"]
    assert set(bench.resident()) == {"b", "c"}


def test_each_device_has_its_own_budget():
    models = [
        Model(name="a", footprint={"gpu0": 60}),
        Model(name="b", footprint={"gpu1": 60}),
        Model(name="c", footprint={"gpu1": 60}),
        Model(name="wide", footprint={"gpu0": 50, "gpu1": 50}),
    ]
    bench = Bench(1, {})
    bench.pool = Pool({"gpu0": 100, "gpu1": 100}, models, LRU)
    bench.use("a", "b", "c")
    assert bench.evicted == ["b"]
    bench.use("wide")
    assert set(bench.evicted) == {"a", "b", "c"}


def test_an_idle_model_goes_after_its_time_counted_from_the_end_of_its_request():
    bench = Bench(100, {"a": 60}, a={"idle_ttl_s": 30.0})
    running = bench.ask("a")
    bench.now += 100
    bench.settle()
    assert bench.resident() == ["a"]
    bench.end("a", running)
    bench.now += 29
    assert bench.settle().next_at == pytest.approx(bench.now + 1)
    bench.now += 1
    bench.settle()
    assert bench.resident() == []


def test_preloading_takes_no_other_ones_place():
    preload = {"preload": True}
    bench = Bench(100, {"a": 60, "b": 60, "c": 40}, a=preload, b={**preload, "priority": 1}, c=preload)
    bench.pool.preload()
    bench.settle()
    assert set(bench.loads) == {"b", "c"}
    assert bench.evicted == []


# -- demand and fairness ------------------------------------------------------------------------------------------------


def test_a_rare_model_does_not_evict_a_busy_one_until_it_is_overdue():
    bench = Bench(100, {"hot": 60, "rare": 60}, Policy(max_wait_s=10, min_residence_s=0, swap_ratio=20))
    for _ in range(20):
        bench.use("hot")
    waiting = bench.ask("rare")
    assert "is asked for" in bench.pool.slots["rare"].blocked
    bench.use(*["hot"] * 8)
    assert bench.evicted == []
    bench.now += 5
    bench.settle()
    assert bench.evicted == ["hot"]
    assert waiting in bench.verdicts()


def test_nothing_overtakes_what_is_overdue():
    """Requests for the hot model that come after the rare one is overdue wait behind it, and are served afterwards."""
    bench = Bench(100, {"hot": 60, "rare": 60}, Policy(max_wait_s=10, min_residence_s=0, swap_ratio=20))
    for _ in range(20):
        bench.use("hot")
    running = bench.ask("hot")
    waiting = bench.ask("rare")
    bench.now += 10
    bench.settle()
    late = bench.ask("hot")
    assert bench.state("hot") is State.DRAINING
    bench.end("hot", running)
    assert list(bench.verdicts())[-1] == waiting
    bench.end("rare", waiting)
    bench.now += 10
    bench.settle()
    assert late in bench.verdicts()
    assert bench.loads == ["hot", "rare", "hot"]


def test_a_model_stays_for_its_minimum_residence():
    bench = Bench(100, {"a": 60, "b": 60}, Policy(max_wait_s=100, min_residence_s=30))
    bench.use("a")
    bench.ask("b")
    assert bench.pool.slots["b"].blocked == "a was just loaded"
    bench.now += 29
    bench.settle()
    assert bench.evicted == ["a"]


def test_the_overdue_are_loaded_in_the_order_of_their_oldest_request():
    bench = Bench(100, {"a": 60, "b": 60, "c": 60}, Policy(max_wait_s=5, min_residence_s=0))
    running = bench.ask("a")
    bench.ask("c")
    for _ in range(5):
        bench.ask("b")
    bench.now += 10
    bench.end("a", running)
    assert bench.loads[:2] == ["a", "c"]


def test_a_higher_priority_is_evicted_later():
    bench = Bench(100, {"a": 50, "b": 50, "c": 50}, a={"priority": 1})
    bench.use("a", "b", "c")
    assert bench.evicted == ["b"]


# -- what goes wrong ----------------------------------------------------------------------------------------------------


def test_a_broken_model_is_refused_at_once_until_it_may_be_tried_again():
    bench = Bench(100, {"a": 60})
    bench.pool.request("a", "one", bench.now)
    assert [load.name for load in decide(bench.pool, bench.now).loads] == ["a"]
    bench.pool.load_failed("a", bench.now, "unknown tensor type")
    (error,) = bench.verdicts().values()
    assert (error.code, error.retry_after_s) == ("model_not_loaded", 20.0)
    assert "unknown tensor type" in str(error)
    with pytest.raises(Unavailable, match="unknown tensor type"):
        bench.pool.request("a", "two", bench.now + 19)
    bench.now += 20
    bench.use("a")
    assert bench.resident() == ["a"]


def test_at_most_three_loads_of_a_broken_model_a_minute():
    bench = Bench(100, {"a": 60})
    attempts = 0
    for _ in range(600):
        bench.now += 0.1
        try:
            bench.pool.request("a", f"r{bench.now}", bench.now)
        except Unavailable:
            continue
        for load in decide(bench.pool, bench.now).loads:
            attempts += 1
            bench.pool.load_failed(load.name, bench.now, "broken")
    assert 1 <= attempts <= 3


def test_what_may_pass_keeps_its_requests_waiting():
    bench = Bench(100, {"a": 60})
    bench.pool.request("a", "one", bench.now)
    decide(bench.pool, bench.now)
    bench.pool.load_failed("a", bench.now, "the server cannot be reached", passing=True)
    assert bench.verdicts() == {}
    assert not bench.pool.request("a", "two", bench.now)
    assert bench.settle().next_at == pytest.approx(bench.now + 1)
    bench.now += 1
    bench.settle()
    assert set(bench.verdicts()) == {"one", "two"}


def test_a_load_that_lacks_memory_evicts_one_and_is_retried_once():
    bench = Bench(100, {"a": 30, "b": 30, "c": 30})
    bench.use("a", "b")
    bench.pool.request("c", "one", bench.now)
    assert [load.name for load in decide(bench.pool, bench.now).loads] == ["c"]
    bench.pool.load_failed("c", bench.now, "out of memory", memory=True)
    decision = decide(bench.pool, bench.now)
    assert ([unload.name for unload in decision.unloads], decision.loads) == (["a"], ())
    bench.pool.unload_ended("a", bench.now)
    assert [load.name for load in decide(bench.pool, bench.now).loads] == ["c"]
    bench.pool.load_failed("c", bench.now, "out of memory", memory=True)
    assert "out of memory" in str(bench.verdicts()["one"])
    assert bench.settle().unloads == ()


def test_memory_that_the_server_does_not_confirm_as_free_still_counts():
    bench = Bench(100, {"a": 60, "b": 60, "c": 30})
    bench.use("a")
    bench.pool.request("b", "one", bench.now)
    assert [unload.name for unload in decide(bench.pool, bench.now).unloads] == ["a"]
    bench.pool.unload_ended("a", bench.now, gone=False)
    assert bench.used == 60
    decision = bench.settle()
    assert (decision.loads, decision.unloads) == ((), ())
    assert decision.next_at <= bench.now + Policy().stuck_s
    bench.now += Policy().stuck_s
    bench.settle()
    assert bench.resident() == ["b"]


def test_a_measured_size_replaces_the_configured_one_and_the_excess_is_evicted():
    bench = Bench(100, {"a": 40, "b": 40})
    bench.use("a")
    bench.pool.request("b", "one", bench.now)
    decide(bench.pool, bench.now)
    bench.pool.load_ended("b", bench.now, took_s=1.0, sizes={"memory": 75})
    bench.settle()
    assert (bench.evicted, bench.used) == (["a"], 75)


def test_an_unknown_size_counts_as_everything_until_it_is_learnt():
    pool = Pool({"memory": 100}, [Model(name="a"), Model(name="b")], LRU)
    pool.request("a", "one", 0.0)
    pool.request("b", "two", 0.0)
    assert len(decide(pool, 0.0).loads) == 1
    pool.load_ended("a", 0.0, took_s=1.0, sizes={"memory": 30})
    pool.release("a", "one", 0.0)
    assert pool.used()["memory"] == 30


STAYS = [
    pytest.param({"pinned": True}, {"memory": 30}, id="pinned"),
    pytest.param({"residual": {"memory": 10}}, {"memory": 10}, id="asleep"),
]


@pytest.mark.parametrize(("other", "stays"), STAYS)
def test_an_unknown_size_is_what_is_left_beside_that_which_stays(other, stays):
    """A budget that a pinned model shares is never free as a whole, and the other models are loaded all the same."""
    pool = Pool({"memory": 100}, [Model(name="kept", footprint={"memory": 30}, **other), Model(name="new")], LRU)
    pool.observe({"kept": {"memory": 30}}, 1.0, foreign={"memory": 5})
    pool.request("new", "t", 2.0)
    for unload in decide(pool, 3.0).unloads:
        pool.unload_ended(unload.name, 3.0, sleeping=True)
    decide(pool, 4.0)
    assert (pool.slots["new"].state, pool.slots["kept"].bytes) == (State.LOADING, stays)
    assert pool.used() == pool.budget


def test_an_unknown_size_is_that_of_the_models_own_devices():
    models = [Model(name="here", footprint={"one": 30}), Model(name="new", devices=("two",))]
    pool = Pool({"one": 40, "two": 50}, models, LRU)
    pool.observe({"here": {"one": 30}}, 1.0, foreign={})
    pool.request("new", "t", 2.0)
    assert [load.name for load in decide(pool, 3.0).loads] == ["new"]
    assert pool.used() == {"one": 30, "two": 50}


def test_drift_is_repaired():
    bench = Bench(100, {"a": 40, "b": 40})
    bench.use("a")
    repaired = bench.pool.observe({"b": {"memory": 45}}, bench.now, foreign={"memory": 10})
    assert repaired == ["a is no longer in the server's memory", "b was loaded by something else"]
    assert (bench.state("a"), bench.state("b"), bench.used) == (State.COLD, State.RESIDENT, 55)
    assert bench.pool.drifts == 2
    assert bench.pool.observe({"b": {"memory": 45}}, bench.now, foreign={"memory": 10}) == []


@pytest.mark.parametrize("kept", ["pinned", "preload"])
def test_what_is_there_from_the_start_comes_back_with_its_server(kept):
    bench = Bench(100, {"a": 40, "b": 40}, a={kept: True})
    bench.use("a", "b")
    bench.pool.observe({}, bench.now, foreign={})
    bench.settle()
    assert bench.loads == ["a", "b", "a"]
    bench.pool.observe({}, bench.now, foreign={"memory": 70})
    bench.settle()
    assert (bench.state("a"), bench.pool.slots["a"].wanted) == (State.COLD, "")


def test_what_could_not_be_read_is_left_as_it_is():
    bench = Bench(100, {"a": 40})
    bench.use("a")
    assert bench.pool.observe({}, bench.now, foreign={}, unread={"a"}) == []
    assert bench.state("a") is State.RESIDENT


def test_strangers_on_the_server_count_against_the_budget():
    bench = Bench(100, {"a": 40, "b": 40})
    bench.use("a")
    bench.pool.observe({"a": {"memory": 40}}, bench.now, foreign={"memory": 30})
    bench.use("b")
    assert bench.evicted == ["a"]


def test_a_sleeping_model_keeps_its_residual_bytes_and_is_woken():
    bench = Bench(100, {"a": 60, "b": 60}, a={"residual": {"memory": 20}})
    bench.use("a")
    bench.pool.request("b", "one", bench.now)
    decide(bench.pool, bench.now)
    bench.pool.unload_ended("a", bench.now, sleeping=True)
    assert (bench.state("a"), bench.used) == (State.SLEEPING, 20)
    bench.settle()
    assert bench.used == 80
    bench.pool.release("b", "one", bench.now)
    bench.use("a")
    assert bench.state("a") is State.RESIDENT
    assert bench.used == 60


# -- several workers ----------------------------------------------------------------------------------------------------


def test_a_model_is_not_unloaded_before_every_worker_has_seen_that_it_drains():
    bench = Bench(100, {"a": 60, "b": 60})
    bench.use("a")
    sharing.hear(bench.pool, {"other": Report(seen=bench.pool.revision)})
    bench.ask("b")
    assert (bench.state("a"), bench.evicted) == (State.DRAINING, [])
    sharing.hear(bench.pool, {"other": Report(seen=bench.pool.revision, holds={"a": 1})})
    bench.settle()
    assert bench.evicted == []
    sharing.hear(bench.pool, {"other": Report(seen=bench.pool.revision)})
    bench.settle()
    assert bench.evicted == ["a"]


def test_a_model_stays_until_the_requests_that_it_was_loaded_for_know_it():
    """Otherwise two models that workers wait for would take each other's place for ever, and serve no request."""
    policy = Policy(max_wait_s=10.0, min_residence_s=0.0, swap_ratio=0.0)
    leader, follower = Bench(100, {"a": 60, "b": 60}, policy), Bench(100, {"a": 60, "b": 60}, policy)
    follower.pool.request("a", "one", leader.now)
    sharing.hear(leader.pool, {"other": sharing.report(follower.pool, leader.now)})
    leader.settle()
    leader.ask("b")
    assert (leader.loads, leader.state("a")) == (["a"], State.RESIDENT)
    assert "have not heard of it yet" in leader.pool.slots["b"].blocked
    sharing.follow(follower.pool, sharing.document(leader.pool), leader.now)
    sharing.hear(leader.pool, {"other": sharing.report(follower.pool, leader.now)})
    leader.settle()
    assert (leader.state("a"), leader.evicted) == (State.DRAINING, [])
    assert follower.verdicts() == {"one": None}


def test_a_worker_that_hears_nothing_keeps_a_model_no_longer_than_the_longest_wait():
    leader = Bench(100, {"a": 60, "b": 60}, Policy(max_wait_s=10.0, min_residence_s=0.0, swap_ratio=0.0))
    sharing.hear(leader.pool, {"other": Report(seen=0, waiting={"a": (1, leader.now, leader.now)})})
    leader.settle()
    leader.ask("b")
    assert leader.state("a") is State.RESIDENT
    leader.now += 10
    leader.settle()
    assert leader.state("a") is State.DRAINING


def test_the_requests_of_a_worker_that_is_gone_block_nothing():
    bench = Bench(100, {"a": 60, "b": 60})
    bench.use("a")
    sharing.hear(bench.pool, {"other": Report(seen=0, holds={"a": 3})})
    bench.ask("b")
    assert bench.evicted == []
    sharing.hear(bench.pool, {})
    bench.settle()
    assert bench.evicted == ["a"]


def test_a_worker_that_follows_wakes_its_requests():
    leader, follower = Bench(100, {"a": 60}), Bench(100, {"a": 60})
    assert not follower.pool.request("a", "one", 1.0)
    sharing.hear(leader.pool, {"other": sharing.report(follower.pool, 1.0)})
    leader.settle()
    assert leader.loads == ["a"]
    sharing.follow(follower.pool, sharing.document(leader.pool), 2.0)
    assert follower.verdicts() == {"one": None}
    assert follower.pool.revision == leader.pool.revision
    assert sharing.report(follower.pool, 2.0).holds == {"a": 1}


def test_a_worker_that_takes_over_goes_on_with_what_was_begun_and_counts_it_all_the_time():
    first, second = Bench(130, {"a": 60, "b": 60, "c": 60}), Bench(130, {"a": 60, "b": 60, "c": 60})
    first.use("b")
    second.pool.request("a", "one", 1.0)
    sharing.hear(first.pool, {"second": sharing.report(second.pool, 1.0)})
    assert [load.name for load in decide(first.pool, 1.0).loads] == ["a"]
    first.pool.evict("b", "by hand", 1.0)
    sharing.hear(first.pool, {})
    assert [unload.name for unload in decide(first.pool, 1.0).unloads] == ["b"]
    sharing.follow(second.pool, sharing.document(first.pool), 2.0)
    second.pool.request("c", "two", 2.0)
    assert second.pool.used() == {"memory": 120}
    again = resume(second.pool)
    assert [load.name for load in again.loads] == ["a"]
    assert [(unload.name, unload.reason) for unload in again.unloads] == [("b", "by hand")]
    assert decide(second.pool, 100.0).loads == ()
    second.pool.load_ended("a", 101.0)
    assert second.verdicts() == {"one": None}
    second.pool.unload_ended("b", 101.0)
    assert [load.name for load in decide(second.pool, 101.0).loads] == ["c"]


def test_the_document_says_everything_that_the_next_worker_needs():
    bench = Bench(100, {"a": 60, "b": 60}, a={"pinned": True})
    bench.use("a")
    bench.pool.slots["a"].load_s.add(3.0, bench.now)
    bench.pool.request("b", "one", bench.now)
    bench.settle()
    other = Bench(100, {"a": 60, "b": 60})
    sharing.follow(other.pool, sharing.document(bench.pool), bench.now)
    assert sharing.document(other.pool) == sharing.document(bench.pool)


def test_absent_states_are_those_that_have_to_be_loaded():
    assert {State.COLD, State.SLEEPING} == ABSENT


@pytest.mark.parametrize("asked", [1, 5])
def test_room_that_was_made_counts_also_when_the_evicted_model_comes_back(asked):
    """After a lack of memory one more model goes; requests for it, however many, do not hold up the other."""
    pool = Pool({"memory": 5}, [Model(name=name, footprint={"memory": 1}) for name in "ab"], LRU)
    pool.observe({"a": {"memory": 1}}, 100.0, foreign={})
    pool.request("b", "first", 101.0)
    assert [load.name for load in decide(pool, 101.0).loads] == ["b"]
    pool.load_failed("b", 102.0, "out of memory", memory=True)
    assert [unload.name for unload in decide(pool, 102.0).unloads] == ["a"]
    pool.unload_ended("a", 103.0)
    for number in range(asked):
        pool.request("a", f"again-{number}", 103.0)
    pool.slots["b"].retry_at = 104.0
    loads = [load.name for at in (103.0, 104.0, 105.0) for load in decide(pool, at).loads]
    assert sorted(loads) == ["a", "b"]
