"""Random walks through the registry and a plain model of it, on real stores, from two workers at once."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from pointsman.errors import Conflict, NotFound
from pointsman_registry.config import VersionSpec

EXAMPLES = settings.default.max_examples
NAMES = ["chat", "chat/ü%2F{x}*"]
IDS = ["1", "2", "3/y", "ü{*}"]


class Plain:
    """What the registry should do, in a few dicts."""

    def __init__(self):
        self.name_of = {}
        self.active = {}
        self.past = {}
        self.changes = dict.fromkeys(NAMES, 0)

    def register(self, id_, name, active):
        if id_ in self.name_of:
            return Conflict
        self.name_of[id_] = name
        return self.activate(id_) if active else None

    def activate(self, id_):
        if id_ not in self.name_of:
            return NotFound
        name = self.name_of[id_]
        before = self.active.get(name)
        if before != id_:
            if before is not None:
                self.past.setdefault(name, []).append(before)
            self.active[name] = id_
            self.changes[name] += 1
        return None

    def rollback(self, name):
        if name not in self.name_of.values():
            return NotFound
        past = self.past.get(name, [])
        while past and past[-1] == self.active.get(name):
            past.pop()
        if not past:
            return Conflict
        self.active[name] = past.pop()
        self.changes[name] += 1
        return None

    def delete(self, id_, force):
        if id_ not in self.name_of:
            return NotFound
        name = self.name_of[id_]
        if self.active.get(name) == id_:
            if not force:
                return Conflict
            self.active[name] = None
            self.changes[name] += 1
        del self.name_of[id_]
        self.past[name] = [past for past in self.past.get(name, []) if past != id_]
        return None


class Machine(RuleBasedStateMachine):
    """Two workers on one store against ``Plain``."""

    backend = "memory"
    kit = None

    def __init__(self):
        super().__init__()
        self.runner = asyncio.Runner()
        self.directory = tempfile.TemporaryDirectory()
        self.plain = Plain()
        self.clock = self.kit.Clock()
        self.turn = itertools.count()
        self.opened = None

    @initialize()
    def begin(self):
        self.runner.run(self._open())

    async def _open(self):
        self.opened = self.kit.open_store(self.backend, Path(self.directory.name) / "store")
        self.store = await self.opened.__aenter__()
        await self._start()

    async def _start(self):
        self.workers = [await self.kit.start(self.store, number=n, clock=self.clock) for n in range(2)]

    def teardown(self):
        if self.opened is not None:
            self.runner.run(self.opened.__aexit__(None, None, None))
        self.runner.close()
        self.directory.cleanup()

    def expect(self, wanted, work):
        """Carry it out; it must end as the plain model says."""
        self.clock.at += 1
        with contextlib.nullcontext() if wanted is None else pytest.raises(wanted):
            self.runner.run(work)

    @property
    def registry(self):
        return self.workers[next(self.turn) % 2].registry

    @rule(id_=st.sampled_from(IDS), name=st.sampled_from(NAMES), active=st.booleans())
    def register(self, id_, name, active):
        spec = VersionSpec(**self.kit.spec(id_, name=name, active=active))
        self.expect(self.plain.register(id_, name, active), self.registry.register(spec, "w"))

    @rule(id_=st.sampled_from(IDS))
    def activate(self, id_):
        self.expect(self.plain.activate(id_), self.registry.activate(id_, "w", ""))

    @rule(name=st.sampled_from(NAMES))
    def rollback(self, name):
        self.expect(self.plain.rollback(name), self.registry.rollback(name, "w", ""))

    @rule(id_=st.sampled_from(IDS), force=st.booleans())
    def delete(self, id_, force):
        self.expect(self.plain.delete(id_, force), self.registry.delete(id_, "w", "", force=force))

    @rule(ids=st.lists(st.sampled_from(IDS), min_size=2, max_size=6))
    def activate_at_once(self, ids):
        """Whatever happened at once must have happened in some order: the one that the history tells."""
        known = [id_ for id_ in ids if id_ in self.plain.name_of]
        before = dict(self.plain.changes)

        async def race():
            await asyncio.gather(*(self.registry.activate(id_, "w", "") for id_ in known))
            return {name: await self.registry.history(name, 1000) for name in before}

        for name, entries in self.runner.run(race()).items():
            for entry in reversed(entries[: len(entries) - before[name]]):
                assert entry.previous_id == self.plain.active.get(name)
                assert self.plain.activate(entry.version_id) is None
            wanted = {id_ for id_ in known if self.plain.name_of[id_] == name}
            assert not wanted or self.plain.active[name] in wanted

    @rule()
    def restart(self):
        if self.backend == "disk":
            self.runner.run(self.opened.__aexit__(None, None, None))
            self.runner.run(self._open())
        else:
            self.runner.run(self._start())

    @invariant()
    def every_worker_agrees_with_the_model(self):
        if self.opened is None:
            return
        for worker in self.workers:
            self.runner.run(worker.registry.refresh())
            state = worker.registry.state
            assert {v.id: v.name for v in state.versions.values()} == self.plain.name_of
            assert list(state.versions) == sorted(self.plain.name_of)
            named = set(self.plain.name_of.values())
            active = {name: version and version.id for name, version in state.active.items()}
            assert active == {name: self.plain.active.get(name) for name in named}
            assert worker.catalog.listed == {name: "small" for name, id_ in active.items() if id_}
            for name, number in self.plain.changes.items():
                history = self.runner.run(worker.registry.history(name, 1000))
                assert [entry.number for entry in history] == list(range(number, 0, -1))


@pytest.mark.thorough
@pytest.mark.parametrize(("backend", "examples"), [("memory", EXAMPLES), ("disk", EXAMPLES // 8)])
def test_two_workers_behave_like_one_plain_registry(kit, backend, examples):
    """Register, activate, roll back, delete, restart and concurrent activation agree with the model on both backends."""
    machine = type("Walk", (Machine,), {"backend": backend, "kit": kit})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        ),
    )
