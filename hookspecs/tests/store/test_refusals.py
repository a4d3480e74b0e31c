"""What every backend refuses with a ValueError, before anything is written."""

from __future__ import annotations

import math

import pytest

from pointsman.store import MAX_COUNTER, MAX_TTL_S, AtomicOp, Put, Update

NOOP = AtomicOp(name="noop", python=lambda _values, _args: ({}, 1), lua="return '1'")
BAD_KEYS = {
    "empty": "",
    "too long": "x" * 513,
    "nul": "nul\0",
    "half a character": "half \ud800",
    "none": None,
    "number": 5,
    "bytes": b"bytes",
}
WITHIN_ITSELF: list = []
WITHIN_ITSELF.append(WITHIN_ITSELF)
BAD_VALUES = {
    "none": None,
    "nan": math.nan,
    "infinity": math.inf,
    "minus infinity": -math.inf,
    "inner nan": [math.nan],
    "inner infinity": {"a": {"b": math.inf}},
    "bytes": b"bytes",
    "set": {1, 2},
    "object": object(),
    "number as name": {1: 2},
    "none as name": {"a": [{None: 1}]},
    "tuple as name": {"a": {(1, 2): 1}},
    "half a character": {"half": "\udfff"},
    "half a character as name": {"\ud800": 1},
    "endless number": 10**5000,
    "within itself": WITHIN_ITSELF,
}


@pytest.mark.parametrize("key", BAD_KEYS.values(), ids=BAD_KEYS)
async def test_bad_keys_are_refused(store, key):
    calls = [
        store.get(key),
        store.get_many(["a", key]),
        store.put(key, 1),
        store.delete(key),
        store.compare_and_set(key, None, 1),
        store.add(key),
        store.update(Update(checks={key: 1})),
        store.update(Update(puts={key: Put(1)})),
        store.update(Update(deletes=[key])),
        store.update(Update(adds={key: 1})),
        store.run(NOOP, [key], {"by": [1]}),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="store key"):
            await call
    if key != "":
        with pytest.raises(ValueError, match="key"):
            await store.scan(key)
    assert await store.scan("") == []


@pytest.mark.parametrize("value", BAD_VALUES.values(), ids=BAD_VALUES)
async def test_values_that_are_not_json_are_refused(store, value):
    calls = [lambda: store.put("key", value), lambda: store.update(Update(puts={"key": Put(value), "other": Put(1)}))]
    if value is not None:
        calls += [
            lambda: store.compare_and_set("key", value, 1),
            lambda: store.compare_and_set("key", None, value),
            lambda: store.update(Update(checks={"key": value})),
            lambda: store.run(NOOP, ["key"], {"by": value}),
        ]
    for call in calls:
        with pytest.raises(ValueError, match=r"JSON|surrogate|cannot be stored"):
            await call()
    assert await store.scan("") == []


@pytest.mark.parametrize("ttl_s", [0, -1, math.nan, math.inf, MAX_TTL_S + 1, "5"])
async def test_times_to_live_that_make_no_sense_are_refused(store, ttl_s):
    for call in (
        store.put("key", 1, ttl_s=ttl_s),
        store.add("key", 1, ttl_s=ttl_s),
        store.compare_and_set("key", None, 1, ttl_s=ttl_s),
        store.compare_and_set("key", None, None, ttl_s=ttl_s),
        store.update(Update(puts={"key": Put(1, ttl_s=ttl_s)})),
    ):
        with pytest.raises(ValueError, match="ttl_s"):
            await call
    assert await store.get("key") is None


@pytest.mark.parametrize("amount", [1.0, True, "1", None, MAX_COUNTER + 1, -MAX_COUNTER - 1])
async def test_amounts_that_are_no_integers_are_refused(store, amount):
    with pytest.raises(ValueError, match="amount"):
        await store.add("key", amount)
    with pytest.raises(ValueError, match="amount"):
        await store.update(Update(adds={"key": amount}))
    assert await store.get("key") is None


@pytest.mark.parametrize(
    "update",
    [
        Update(puts={"a": Put(1)}, deletes=["a"]),
        Update(puts={"a": Put(1)}, adds={"a": 1}),
        Update(deletes=["a", "a"]),
    ],
)
async def test_an_update_that_writes_a_key_twice_is_refused(store, update):
    with pytest.raises(ValueError, match="more than one way"):
        await store.update(update)


@pytest.mark.parametrize("keys", [[], ["a", "a"], ["a", ""]])
async def test_run_refuses_bad_keys(store, keys):
    with pytest.raises(ValueError, match="key"):
        await store.run(NOOP, keys, {"by": [1, 1]})
