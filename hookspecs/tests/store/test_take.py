"""Atomic steps: the Python and the Lua side of each do the same."""

from __future__ import annotations

import asyncio
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pointsman.store import AtomicOp, Put, Update
from pointsman.store.memory import MemoryStore
from pointsman.store.redis import RedisStore
from pointsman.store.views import TAKE, take


async def test_take_grants_until_the_limit(store):
    assert await take(store, "key", 6, limit=10, ttl_s=60) == (True, 6)
    assert await take(store, "key", 5, limit=10, ttl_s=60) == (False, 6)
    assert await take(store, "key", 4, limit=10, ttl_s=60) == (True, 10)
    assert await take(store, "key", -7, limit=10, ttl_s=60) == (True, 3)
    assert await take(store, "key", -7, limit=10, ttl_s=60) == (True, 0)
    assert await store.get("key") == 0


async def test_what_was_taken_comes_back_after_its_time(backend, store):
    await take(store, "key", 10, limit=10, ttl_s=0.2)
    assert await take(store, "key", 1, limit=10, ttl_s=0.2) == (False, 10)
    await backend.let_pass(0.2)
    assert await take(store, "key", 1, limit=10, ttl_s=0.2) == (True, 1)


async def test_many_takers_never_take_more_than_there_is(store):
    results = await asyncio.gather(*(take(store, "key", 3, limit=100, ttl_s=60) for _ in range(60)))
    assert sum(granted for granted, _ in results) == 33
    assert await store.get("key") == 99


@pytest.mark.parametrize(("amount", "ttl_s"), [(1.5, 60), ("1", 60), (2**53, 60), (1, 0), (1, -1)])
async def test_take_refuses_what_makes_no_sense(store, amount, ttl_s):
    with pytest.raises(ValueError, match=r"amount|ttl_s"):
        await take(store, "key", amount, limit=10, ttl_s=ttl_s)
    assert await store.get("key") is None


TAKES = st.lists(
    st.fixed_dictionaries(
        {"amount": st.integers(-(2**40), 2**40), "limit": st.integers(0, 2**41), "ttl_s": st.floats(1, 1000)}
    ),
    min_size=1,
    max_size=10,
)


def on_both(redis_server, steps):
    """Run steps on a memory and a redis store and return both results and both final states."""

    async def run():
        memory = MemoryStore()
        redis = await RedisStore.open(redis_server.url, prefix="both:")
        with redis_server.client() as client:
            client.flushall()
        outcomes = [(await steps(store), await store.scan("")) for store in (memory, redis)]
        await redis.close()
        return outcomes

    return asyncio.run(run())


def alike(value):
    """Return a text in which only what Lua cannot keep apart is the same: 1 and 1.0."""
    return repr(json.loads(json.dumps(value, sort_keys=True), parse_int=float))


@pytest.mark.services
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(takes=TAKES)
def test_take_in_python_and_in_lua_agree(redis_server, takes):
    """Any sequence of takes has the same results and leaves the same state."""
    (python, python_state), (lua, lua_state) = on_both(redis_server, lambda s: _run_all(s, takes))
    assert repr(lua) == repr(python)
    assert repr(lua_state) == repr(python_state)


async def _run_all(store, takes):
    return [await store.run(TAKE, ["key"], args) for args in takes]


COPY = AtomicOp(
    name="copy",
    python=lambda values, args: ({1: Put([values[0], args])}, [args, values[0]]),
    lua="""
    local value, args = json_decode(redis.call('GET', KEYS[1])), json_decode(ARGV[1])
    redis.call('SET', KEYS[2], json_encode({value, args}))
    return json_encode({args, value})
    """,
)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
NUMBERS = st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False).map(
    lambda number: number + 0.0  # no -0.0
)
FILLED = st.recursive(
    st.booleans() | NUMBERS | TEXT,
    lambda inner: st.lists(inner, min_size=1, max_size=3) | st.dictionaries(TEXT, inner, min_size=1, max_size=3),
    max_leaves=8,
)


@pytest.mark.services
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=FILLED, args=FILLED)
def test_json_survives_lua(redis_server, value, args):
    """What Lua reads and writes with json_decode and json_encode is what Python would have written, numbers included."""

    async def steps(store):
        await store.put("{t}from", value)
        result = await store.run(COPY, ["{t}from", "{t}to"], args)
        back = await store.get("{t}to")
        assert back == [value, args]
        return result, await store.update(Update(checks={"{t}to": back}, deletes=["{t}to"]))

    (python, _), (lua, _) = on_both(redis_server, steps)
    assert alike(lua) == alike(python)
    assert lua[1] is True


@pytest.mark.services
def test_what_lua_cannot_keep_is_as_documented(redis_server):
    """1.0 becomes 1, -0.0 becomes 0, an empty list an empty object, a large integer a float; null survives."""

    async def steps(store):
        await store.put("{t}from", [1.0, -0.0, [], 10**20, {"a": None}])
        await store.run(COPY, ["{t}from", "{t}to"], "x")
        return await store.get("{t}to")

    _, (lua, _) = on_both(redis_server, steps)
    assert repr(lua) == repr([[1, 0, {}, 1e20, {"a": None}], "x"])
