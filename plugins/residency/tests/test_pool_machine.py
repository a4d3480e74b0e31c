"""Whatever requests, servers, operators and other workers do: the budget holds, nothing in flight goes, every wait ends."""

from __future__ import annotations

from contextlib import suppress

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pointsman_residency import sharing
from pointsman_residency.decisions import decide
from pointsman_residency.policy import Policy
from pointsman_residency.pool import Pool, Unavailable
from pointsman_residency.slots import ABSENT, Model, Report, State

NAMES = ["a", "b", "c", "d", "e"]
names = st.sampled_from(NAMES)


class PoolMachine(RuleBasedStateMachine):
    """A pool with slow servers, and another worker that sees its states late."""

    @initialize(
        budget=st.integers(5, 20),
        sizes=st.lists(st.integers(1, 8), min_size=5, max_size=5),
        pinned=st.sets(names, max_size=1),
        exclusive=st.booleans(),
        max_wait_s=st.sampled_from([0.5, 10.0]),
        min_residence_s=st.sampled_from([0.0, 3.0]),
    )
    def begin(self, *, budget, sizes, pinned, exclusive, max_wait_s, min_residence_s):
        excludes = {"a": frozenset("b"), "b": frozenset("a")} if exclusive else {}
        self.models = [
            Model(
                name=name,
                footprint={"memory": size},
                pinned=name in pinned and size < budget,
                excludes=excludes.get(name, frozenset()),
                idle_ttl_s=20.0 if name == "c" else None,
            )
            for name, size in zip(NAMES, sizes, strict=True)
        ]
        self.pool = Pool(
            {"memory": budget}, self.models, Policy(max_wait_s=max_wait_s, min_residence_s=min_residence_s)
        )
        self.budget = budget
        self.now = 1_000.0
        self.number = 0
        #: Ticket to its model, for those that wait and those that are served.
        self.waiting, self.serving = {}, {}
        self.loading, self.unloading = set(), set()
        self.inside = False
        #: What the other worker last saw, and what runs there.
        self.other_seen, self.other = None, {}

    # -- what happens -----------------------------------------------------------------------------------------------------

    @rule(name=names)
    def request(self, name):
        self.number += 1
        ticket = f"t{self.number}"
        try:
            admitted = self.pool.request(name, ticket, self.now)
        except Unavailable:
            return
        (self.serving if admitted else self.waiting)[ticket] = name
        self.step()

    @precondition(lambda self: self.serving)
    @rule(data=st.data())
    def finish(self, data):
        ticket = data.draw(st.sampled_from(sorted(self.serving)))
        self.pool.release(self.serving.pop(ticket), ticket, self.now)
        self.step()

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def give_up(self, data):
        ticket = data.draw(st.sampled_from(sorted(self.waiting)))
        self.pool.withdraw(self.waiting.pop(ticket), ticket, self.now)
        self.step()

    @rule(seconds=st.sampled_from([0.1, 1.0, 5.0, 30.0]))
    def pass_time(self, seconds):
        self.now += seconds
        self.step()

    @precondition(lambda self: self.loading)
    @rule(data=st.data(), outcome=st.sampled_from(["ok", "ok", "ok", "broken", "memory", "passing"]))
    def load_ends(self, data, outcome):
        name = data.draw(st.sampled_from(sorted(self.loading)))
        self.loading.discard(name)
        if outcome == "ok":
            self.pool.load_ended(name, self.now, took_s=1.0)
        else:
            memory, passing = outcome == "memory", outcome == "passing"
            self.pool.load_failed(name, self.now, outcome, memory=memory, passing=passing)
        self.step()

    @precondition(lambda self: self.unloading)
    @rule(data=st.data(), gone=st.sampled_from([True, True, False]))
    def unload_ends(self, data, gone):
        name = data.draw(st.sampled_from(sorted(self.unloading)))
        self.unloading.discard(name)
        self.pool.unload_ended(name, self.now, gone=gone)
        self.step()

    @rule(name=names)
    def operator_evicts(self, name):
        self.pool.evict(name, "by hand", self.now)
        self.step()

    @rule(name=names)
    def operator_loads(self, name):
        with suppress(Unavailable):
            self.pool.want(name, "by hand", self.now)
        self.step()

    @rule(name=names, there=st.booleans())
    def drift(self, name, there):
        """Something else unloads a model, or loads one that fits."""
        slots = self.pool.slots.values()
        listing = {slot.name: dict(slot.bytes) for slot in slots if slot.state not in ABSENT}
        size = self.pool.size(self.pool.slots[name])
        if there and self.pool.used()["memory"] + size["memory"] <= self.budget:
            listing[name] = dict(size)
        elif not there:
            listing.pop(name, None)
        self.pool.observe(listing, self.now, foreign={})
        self.step()

    @rule()
    def other_worker_reads(self):
        """It sees the states as they are, and its report is heard."""
        self.other_seen = self.pool.revision
        self.report()

    @precondition(lambda self: self.other_seen is not None)
    @rule(name=names)
    def other_worker_begins(self, name):
        """It serves a request as far as it knows that the model is resident: it read that, and nothing since."""
        if self.other_seen == self.pool.revision and self.pool.slots[name].state is State.RESIDENT:
            self.other[name] = self.other.get(name, 0) + 1
            self.report()

    @precondition(lambda self: self.other)
    @rule()
    def other_worker_ends(self):
        self.other = {}
        self.report()

    @rule()
    def other_worker_dies(self):
        self.other_seen, self.other = None, {}
        sharing.hear(self.pool, {})
        self.step()

    def report(self):
        sharing.hear(self.pool, {"other": Report(seen=self.other_seen, holds=dict(self.other))})
        self.step()

    # -- what follows -----------------------------------------------------------------------------------------------------

    def step(self):
        decision = decide(self.pool, self.now)
        for unload in decision.unloads:
            name = unload.name
            assert name not in self.serving.values(), f"{name} is unloaded while it serves"
            assert not self.other.get(name), f"{name} is unloaded while another worker serves it"
            assert name not in self.unloading
            self.unloading.add(name)
            # Told at once, as an evict callback is: it may come back with a request of its own.
            if not self.inside:
                self.inside = True
                self.request(name)
                self.inside = False
        for load in decision.loads:
            assert load.name not in self.loading, f"{load.name} is loaded twice"
            self.loading.add(load.name)
        for verdict in self.pool.take_verdicts():
            name = self.waiting.pop(verdict.ticket)
            if verdict.error is None:
                self.serving[verdict.ticket] = name

    @invariant()
    def budget_holds(self):
        if hasattr(self, "pool"):
            assert self.pool.used()["memory"] <= self.budget

    @invariant()
    def nothing_is_lost(self):
        if not hasattr(self, "pool"):
            return
        for slot in self.pool.slots.values():
            assert set(slot.waiters) == {ticket for ticket, name in self.waiting.items() if name == slot.name}
            assert set(slot.holds) == {ticket for ticket, name in self.serving.items() if name == slot.name}
            assert not (slot.waiters and slot.state is State.RESIDENT), f"{slot.name} is resident, and requests wait"

    @invariant()
    def the_exclusive_are_apart(self):
        if hasattr(self, "pool") and self.models[0].excludes and not self.pool.drifts:
            assert not all(self.pool.slots[name].state not in ABSENT for name in "ab")

    def teardown(self):
        """Let everything end that can: then nothing waits that could be served."""
        if not hasattr(self, "pool"):
            return
        # Otherwise each eviction would bring a new request for what has gone.
        self.inside = True
        self.other_worker_dies()
        for _ in range(400):
            if not self.waiting:
                break
            for name in sorted(self.loading):
                self.loading.discard(name)
                self.pool.load_ended(name, self.now, took_s=1.0)
            for name in sorted(self.unloading):
                self.unloading.discard(name)
                self.pool.unload_ended(name, self.now)
            for ticket, name in list(self.serving.items()):
                del self.serving[ticket]
                self.pool.release(name, ticket, self.now)
            self.now += 1.0
            self.step()
        stuck = {name for name in self.waiting.values() if not self._pinned_out(name)}
        assert not stuck, f"requests for {stuck} wait for ever: {[self.pool.slots[n].blocked for n in stuck]}"

    def _pinned_out(self, name):
        pinned = [s for s in self.pool.slots.values() if s.pinned and s.name != name and s.state not in ABSENT]
        size = self.pool.size(self.pool.slots[name])["memory"]
        rival = any(s.name in self.pool.slots[name].model.excludes for s in pinned)
        return rival or size + sum(s.bytes["memory"] for s in pinned) > self.budget


TestPoolMachine = PoolMachine.TestCase
TestPoolMachine.settings = settings(stateful_step_count=30)
