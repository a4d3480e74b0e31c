"""Every backend against a plain dict, with random operations."""

from __future__ import annotations

import asyncio
import json
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from pointsman.store import MAX_COUNTER, Put, StateStore, Update
from pointsman.store.views import TAKE

KEYS = st.sampled_from(["{t}", "{t}a", "{t}ab", "{t}a*", "{t}[a]", "{t}ü", "{t}\U0010ffff", "{t}n", "{t}\\"])
PREFIXES = st.sampled_from(["", "{t}", "{t}a", "{t}a*", "{t}[", "{t}\U0010ffff", "x"])
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT
NESTED = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=6
)
VALUES = st.integers(-3, 3) | NESTED.filter(lambda value: value is not None)
AMOUNTS = st.integers(-5, 5) | st.sampled_from([MAX_COUNTER, -MAX_COUNTER])
TTLS = st.none() | st.floats(1, 100)


def text_of(value):
    return json.dumps(value, sort_keys=True)


class Machine(RuleBasedStateMachine):
    """A store and a dict that get the same operations."""

    backend = None

    @initialize()
    def open_store(self):
        self.runner = asyncio.Runner()
        self.place = dict(self.backend.place)
        if "path" in self.place:
            self.place["path"] += f"/{uuid4().hex}"
        if "prefix" in self.place:
            self.place["prefix"] += f"{uuid4().hex}:"
        self.expected: dict[str, tuple[object, float | None]] = {}
        self.now = self.backend.clock() if self.backend.clock else 0.0
        self.store = self.open()

    def open(self) -> StateStore:
        backend = type(self.backend)(self.backend.name, self.place, self.backend.clock)
        return self.runner.run(backend.open())

    def teardown(self):
        if hasattr(self, "store"):
            self.do(self.store.close())
            self.runner.close()

    def do(self, operation):
        return self.runner.run(operation)

    def value(self, key):
        value, dies_at = self.expected.get(key, (None, None))
        return None if dies_at is not None and dies_at <= self.now else value

    def write(self, key, value, ttl_s):
        self.expected[key] = (value, None if ttl_s is None else self.now + ttl_s)

    def counter(self, key, amount):
        """Return the sum, or None where an addition is not allowed."""
        present = self.value(key)
        if present is None:
            present = 0
        allowed = type(present) is int and abs(present) <= MAX_COUNTER and abs(present + amount) <= MAX_COUNTER
        return present + amount if allowed else None

    def add_expected(self, key, amount, ttl_s):
        dies_at = self.expected[key][1] if self.value(key) is not None else None if ttl_s is None else self.now + ttl_s
        self.expected[key] = (self.counter(key, amount), dies_at)

    @rule(key=KEYS, value=VALUES, ttl_s=TTLS)
    def put(self, key, value, ttl_s):
        self.do(self.store.put(key, value, ttl_s=ttl_s))
        self.write(key, value, ttl_s)

    @rule(key=KEYS)
    def get(self, key):
        assert text_of(self.do(self.store.get(key))) == text_of(self.value(key))

    @rule(keys=st.lists(KEYS, max_size=5))
    def get_many(self, keys):
        assert text_of(self.do(self.store.get_many(keys))) == text_of([self.value(key) for key in keys])

    @rule(key=KEYS)
    def delete(self, key):
        assert self.do(self.store.delete(key)) is (self.value(key) is not None)
        self.expected.pop(key, None)

    @rule(key=KEYS, guess=st.none() | VALUES, right=st.booleans(), value=st.none() | VALUES, ttl_s=TTLS)
    def compare_and_set(self, key, guess, right, value, ttl_s):
        guess = self.value(key) if right else guess
        holds = text_of(guess) == text_of(self.value(key))
        assert self.do(self.store.compare_and_set(key, guess, value, ttl_s=ttl_s)) is holds
        if holds and value is None:
            self.expected.pop(key, None)
        elif holds:
            self.write(key, value, ttl_s)

    @rule(key=KEYS, amount=AMOUNTS, ttl_s=TTLS)
    def add(self, key, amount, ttl_s):
        total = self.counter(key, amount)
        if total is None:
            with pytest.raises(ValueError, match="key"):
                self.do(self.store.add(key, amount, ttl_s=ttl_s))
        else:
            assert self.do(self.store.add(key, amount, ttl_s=ttl_s)) == total
            self.add_expected(key, amount, ttl_s)

    @rule(
        guesses=st.dictionaries(KEYS, st.none() | VALUES, max_size=2),
        right=st.booleans(),
        writes=st.dictionaries(
            KEYS,
            st.tuples(st.just("put"), VALUES, TTLS) | st.just(("delete",)) | st.tuples(st.just("add"), AMOUNTS),
            max_size=4,
        ),
    )
    def update(self, guesses, right, writes):
        checks = {key: self.value(key) if right else guess for key, guess in guesses.items()}
        puts = {key: Put(write[1], write[2]) for key, write in writes.items() if write[0] == "put"}
        deletes = [key for key, write in writes.items() if write[0] == "delete"]
        adds = {key: write[1] for key, write in writes.items() if write[0] == "add"}
        update = Update(checks=checks, puts=puts, deletes=deletes, adds=adds)
        holds = all(text_of(guess) == text_of(self.value(key)) for key, guess in checks.items())
        if holds and any(self.counter(key, amount) is None for key, amount in adds.items()):
            with pytest.raises(ValueError, match="key"):
                self.do(self.store.update(update))
            return
        assert self.do(self.store.update(update)) is holds
        if holds:
            for key, put in puts.items():
                self.write(key, put.value, put.ttl_s)
            for key in deletes:
                self.expected.pop(key, None)
            for key, amount in adds.items():
                self.add_expected(key, amount, None)

    @rule(amount=st.integers(-5, 5), limit=st.integers(0, 10), ttl_s=st.floats(1, 100))
    def take(self, amount, limit, ttl_s):
        taken = self.value("{t}taken") or 0
        granted = taken + amount <= limit
        total = max(taken + amount, 0) if granted else taken
        result = self.do(self.store.run(TAKE, ["{t}taken"], {"amount": amount, "limit": limit, "ttl_s": ttl_s}))
        assert result == {"granted": granted, "total": total}
        if granted:
            self.write("{t}taken", total, ttl_s)

    @rule(prefix=PREFIXES)
    def scan(self, prefix):
        pairs = sorted((key, self.value(key)) for key in self.expected if key.startswith(prefix))
        expected = [[key, value] for key, value in pairs if value is not None]
        assert text_of(self.do(self.store.scan(prefix))) == text_of(expected)

    @precondition(lambda self: self.backend.clock is not None)
    @rule(seconds=st.floats(0, 60))
    def let_pass(self, seconds):
        self.backend.clock.advance(seconds)
        self.now = self.backend.clock()

    @precondition(lambda self: self.backend.name != "memory")
    @rule()
    def reopen(self):
        self.do(self.store.close())
        self.store = self.open()


@pytest.mark.timeout(170)
def test_every_backend_does_what_a_dict_does(backend):
    """Random operations, mixed with the passing of time and reopening, give what a dict gives."""
    machine = type("MachineOfBackend", (Machine,), {"backend": backend})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=settings.default.max_examples // 2,
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
