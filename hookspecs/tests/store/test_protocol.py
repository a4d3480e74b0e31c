"""What every backend promises, told one operation at a time."""

from __future__ import annotations

import asyncio
from types import MappingProxyType

import pytest

from pointsman.store import MAX_COUNTER, AtomicOp, Put, StoreUnavailable, Update

VALUES = [
    0,
    -1,
    True,
    False,
    2**53 + 1,
    10**30,
    0.1,
    -0.0,
    1e300,
    5e-324,
    "",
    "text",
    'quotes " and \\ and / and \n and \u0000 and ü and 𝄞 and \u007f \u2028',
    [],
    {},
    [None, [1.0, 1], {"": None}],
    {"a": {"ü": ["x"]}, "b": 1},
]
#: Time to live of values that are looked at before it ends, in seconds: where the time is the server's, a busy machine must
#: have got that far.
LIFE_S = 3.0
COUNT_UP = AtomicOp(
    name="count up",
    python=lambda values, args: (
        {index: Put((value or 0) + args["by"][index]) for index, value in enumerate(values)},
        [value or 0 for value in values],
    ),
    lua="""
    local args = json_decode(ARGV[1])
    local before = {}
    for i, key in ipairs(KEYS) do
      before[i] = tonumber(redis.call('GET', key) or '0')
      redis.call('SET', key, json_encode(before[i] + args.by[i]))
    end
    return json_encode(before)
    """,
)


@pytest.mark.parametrize("value", VALUES, ids=repr)
async def test_a_value_comes_back_as_it_went_in(store, value):
    await store.put("key", value)
    back = await store.get("key")
    assert back == value
    assert repr(back) == repr(value)
    assert await store.compare_and_set("key", value, "next")


async def test_a_value_is_a_copy(store):
    """What a caller does to a value afterwards changes nothing in the store."""
    value = {"list": [1]}
    await store.put("key", value)
    value["list"].append(2)
    (await store.get("key"))["list"].append(3)
    assert await store.get("key") == {"list": [1]}


async def test_mappings_and_sequences_of_other_types_are_stored_as_json(store):
    await store.put("key", {"a": MappingProxyType({"b": (1, range(2))})})
    assert await store.get("key") == {"a": {"b": [1, [0, 1]]}}


async def test_what_is_not_there_is_none(store):
    assert await store.get("missing") is None
    assert await store.get_many(["missing", "other"]) == [None, None]
    assert await store.get_many([]) == []
    assert await store.delete("missing") is False
    assert await store.scan("") == []


@pytest.mark.parametrize("count", [1, 16, 17, 300])
async def test_get_many_reads_any_number_of_keys(store, count):
    """However many are asked for, each has its value, odd characters included."""
    keys = [f"{{t}}{number} \" ' ? é %" for number in range(count)]
    await store.update(Update(puts={key: Put(number) for number, key in enumerate(keys) if number % 3}))
    assert await store.get_many(keys) == [number if number % 3 else None for number in range(count)]


async def test_get_many_keeps_the_order_and_repeats(store):
    await store.put("a", 1)
    await store.put("b", 2)
    assert await store.get_many(["b", "missing", "a", "b"]) == [2, None, 1, 2]


async def test_delete_says_whether_there_was_something(store):
    await store.put("a", 1)
    assert await store.delete("a") is True
    assert await store.delete("a") is False
    assert await store.get("a") is None


@pytest.mark.parametrize(
    ("present", "expected", "written"),
    [
        (None, None, True),
        (None, 1, False),
        (1, None, False),
        (1, 1, True),
        (1, 2, False),
        (1, 1.0, False),
        (1, True, False),
        ({"a": 1, "b": [2]}, {"b": [2], "a": 1}, True),
        ([1, 2], [2, 1], False),
    ],
)
async def test_compare_and_set_writes_only_over_what_was_expected(store, present, expected, written):
    if present is not None:
        await store.put("key", present)
    assert await store.compare_and_set("key", expected, "new") is written
    assert await store.get("key") == ("new" if written else present)


async def test_compare_and_set_to_none_deletes(store):
    await store.put("key", 1)
    assert await store.compare_and_set("key", 2, None) is False
    assert await store.get("key") == 1
    assert await store.compare_and_set("key", 1, None) is True
    assert await store.get("key") is None
    assert await store.compare_and_set("key", None, None) is True


async def test_add_counts(store):
    assert await store.add("n") == 1
    assert await store.add("n", 5) == 6
    assert await store.add("n", -10) == -4
    assert await store.get("n") == -4
    await store.put("n", 10)
    assert await store.add("n", 0) == 10


@pytest.mark.parametrize("value", ["1", 1.0, True, [1], {"a": 1}, MAX_COUNTER + 1, -0.0], ids=repr)
async def test_add_refuses_what_is_no_counter(store, value):
    await store.put("{t}n", value)
    with pytest.raises(ValueError, match=r"'\{t\}n' does not hold an integer"):
        await store.add("{t}n")
    with pytest.raises(ValueError, match=r"'\{t\}n' does not hold an integer"):
        await store.update(Update(puts={"{t}other": Put(1)}, adds={"{t}n": 1}))
    assert await store.get_many(["{t}n", "{t}other"]) == [value, None]


async def test_counters_stay_within_exact_integers(store):
    assert await store.add("n", MAX_COUNTER) == MAX_COUNTER
    with pytest.raises(ValueError, match="'n': the sum would leave"):
        await store.add("n")
    with pytest.raises(ValueError, match="'n': the sum would leave"):
        await store.update(Update(adds={"n": 1}))
    assert await store.add("n", -MAX_COUNTER) == 0
    assert await store.add("n", -MAX_COUNTER) == -MAX_COUNTER
    with pytest.raises(ValueError, match="'n': the sum would leave"):
        await store.add("n", -1)
    assert await store.get("n") == -MAX_COUNTER


async def test_scan_returns_what_starts_with_the_prefix_in_order(store):
    keys = [
        "a",
        "a*",
        "ab",
        "a[b]",
        "a?",
        "a\\",
        "b",
        "ä",
        "a\ud7ff",
        "a\ue000",
        "a\U0010ffff",
        "a\U0010ffffb",
        "A",
        "aü",
    ]
    for number, key in enumerate(keys):
        await store.put(key, number)
    for prefix in ["", "a", "a*", "a[", "a?", "a\\", "ab", "a\ud7ff", "a\U0010ffff", "\U0010ffff", "ä", "c"]:
        expected = sorted((key, number) for number, key in enumerate(keys) if key.startswith(prefix))
        assert await store.scan(prefix) == expected, prefix


async def test_scan_returns_many_pairs(store):
    await store.update(Update(puts={f"{{t}}{number:05}": Put(number) for number in range(2500)}))
    assert await store.scan("{t}") == [(f"{{t}}{number:05}", number) for number in range(2500)]


async def test_update_does_all_of_it(store):
    await store.put("{t}checked", {"a": 1})
    await store.put("{t}gone", 1)
    await store.put("{t}counter", 5)
    done = await store.update(
        Update(
            checks={"{t}checked": {"a": 1}, "{t}new": None},
            puts={"{t}checked": Put([2]), "{t}new": Put("x")},
            deletes=["{t}gone", "{t}never"],
            adds={"{t}counter": 2, "{t}first": -3},
        )
    )
    assert done is True
    assert dict(await store.scan("{t}")) == {"{t}checked": [2], "{t}new": "x", "{t}counter": 7, "{t}first": -3}


@pytest.mark.parametrize("checks", [{"{t}a": 2}, {"{t}a": None}, {"{t}missing": 1}, {"{t}a": 1, "{t}missing": 1}])
async def test_update_does_nothing_when_a_check_fails(store, checks):
    await store.put("{t}a", 1)
    update = Update(checks=checks, puts={"{t}b": Put(1)}, deletes=["{t}a"], adds={"{t}c": 1})
    assert await store.update(update) is False
    assert await store.scan("{t}") == [("{t}a", 1)]


async def test_an_empty_update_succeeds(store):
    assert await store.update(Update()) is True


async def test_run_reads_and_writes_in_one_step(store):
    await store.put("{t}b", 10)
    assert await store.run(COUNT_UP, ["{t}a", "{t}b"], {"by": [1, 2]}) == [0, 10]
    assert await store.run(COUNT_UP, ["{t}a", "{t}b"], {"by": [1, 2]}) == [1, 12]
    assert await store.get_many(["{t}a", "{t}b"]) == [2, 14]


async def test_a_value_dies_at_the_end_of_its_time(backend, store):
    """Every way to read agrees, and a key whose value is dead can be used like a new one."""
    await store.put("{t}a", 1, ttl_s=LIFE_S)
    await store.add("{t}b", 1, ttl_s=LIFE_S)
    await store.compare_and_set("{t}c", None, 1, ttl_s=LIFE_S)
    await store.update(Update(puts={"{t}d": Put(1, ttl_s=LIFE_S), "{t}stays": Put(1)}))
    assert len(await store.scan("{t}")) == 5
    await backend.let_pass(LIFE_S)
    assert await store.scan("{t}") == [("{t}stays", 1)]
    assert await store.get_many(["{t}a", "{t}b", "{t}c", "{t}d"]) == [None] * 4
    assert await store.delete("{t}a") is False
    assert await store.add("{t}b") == 1
    assert await store.compare_and_set("{t}c", 1, 2) is False
    assert await store.compare_and_set("{t}c", None, 2) is True
    assert await store.update(Update(checks={"{t}d": None}, adds={"{t}d": 3})) is True
    await backend.let_pass(LIFE_S)
    assert dict(await store.scan("{t}")) == {"{t}b": 1, "{t}c": 2, "{t}d": 3, "{t}stays": 1}


async def test_a_later_write_decides_about_the_time_to_live(backend, store):
    for key in ("put", "cas", "update"):
        await store.put(key, 1, ttl_s=LIFE_S)
    await store.put("put", 2)
    await store.compare_and_set("cas", 1, 2)
    await store.update(Update(puts={"update": Put(2)}))
    await backend.let_pass(LIFE_S)
    assert await store.get_many(["put", "cas", "update"]) == [2, 2, 2]


async def test_adding_keeps_the_time_to_live_of_the_first_add(backend, store):
    await store.add("n", 1, ttl_s=LIFE_S)
    await store.add("n", 1, ttl_s=1000)
    await store.add("n", 1)
    await store.update(Update(adds={"n": 1}))
    assert await store.get("n") == 4
    await backend.let_pass(LIFE_S)
    assert await store.get("n") is None
    await store.add("forever", 1)
    await store.add("forever", 1, ttl_s=0.1)
    await backend.let_pass(0.2)
    assert await store.get("forever") == 2


async def test_many_tasks_lose_no_update(store):
    """Increments by add, by compare-and-set and by update, all at once on the same keys, all count."""

    async def by_compare_and_set():
        while True:
            seen = await store.get("{t}cas")
            if await store.compare_and_set("{t}cas", seen, (seen or 0) + 1):
                return

    async def by_update():
        while True:
            seen = await store.get("{t}update")
            if await store.update(
                Update(checks={"{t}update": seen}, puts={"{t}update": Put((seen or 0) + 1)}, adds={"{t}n": 1})
            ):
                return

    async with asyncio.TaskGroup() as tasks:
        for _ in range(20):
            tasks.create_task(by_compare_and_set())
            tasks.create_task(by_update())
            tasks.create_task(store.add("{t}n"))
            tasks.create_task(store.run(COUNT_UP, ["{t}run", "{t}n"], {"by": [1, 1]}))
    assert dict(await store.scan("{t}")) == {"{t}cas": 20, "{t}update": 20, "{t}run": 20, "{t}n": 60}


async def test_ping_and_close(backend):
    """A closed store says so, however it is asked, and can be closed again."""
    store = await backend.open()
    await store.ping()
    await store.close()
    await store.close()
    for call in (
        store.ping(),
        store.get("a"),
        store.put("a", 1),
        store.scan(""),
        store.add("a"),
        store.update(Update(adds={"a": 1})),
    ):
        with pytest.raises(StoreUnavailable, match="closed"):
            await call
