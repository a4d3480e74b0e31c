"""The redis store's promises about failures, secrets, and sharing a server."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import signal

import pytest

from pointsman.host.host import Host
from pointsman.host.settings import parse
from pointsman.store import AtomicOp, Put, StoreCorrupt, StoreError, StoreUnavailable, Update, open_store
from pointsman.store.redis import RedisStore
from pointsman.testing import FakeClock, FakeGateway
from pointsman.testing.worker import Ids, environment

pytestmark = pytest.mark.services

PASSWORD = "pass%2Fw%40rd"  # pass/w@rd, as it is written in a URL


async def test_a_server_that_is_down_is_one_clear_error_at_open(start_redis):
    server = start_redis()
    server.kill()
    with pytest.raises(StoreUnavailable) as caught:
        await open_store("redis", url=server.url, timeout_s=1)
    assert f"127.0.0.1:{server.port}/0" in str(caught.value)


async def test_a_server_that_does_not_answer_is_one_clear_error_at_open(start_redis):
    """A port that accepts connections and says nothing does not hold up the start."""
    server = start_redis()
    server.send(signal.SIGSTOP)
    with pytest.raises(StoreUnavailable, match=r"redis at 127\.0\.0\.1"):
        await open_store("redis", url=server.url, timeout_s=0.2)
    server.send(signal.SIGCONT)


def everything_said(error):
    """Return the text of an error and of all that it came from."""
    texts = []
    while error is not None:
        texts += [str(error), repr(error), str(vars(error))]
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return " ".join(texts)


async def test_no_error_says_the_password(start_redis, monkeypatch):
    """Wrong password, server gone, bad URL: whatever fails, the password is in no error of the chain, nor in a repr."""
    server = start_redis(password="right")
    password = "pass/w@rd"

    def check(error):
        said = everything_said(error)
        for part in (password, PASSWORD, "pass/w", "w@rd", "pass%"):
            assert part not in said

    with pytest.raises(StoreUnavailable, match=r"WRONGPASS|invalid username-password") as caught:
        await open_store("redis", url=f"redis://:{PASSWORD}@127.0.0.1:{server.port}")
    check(caught.value)
    with pytest.raises(StoreUnavailable, match=r"redis at 127\.0\.0\.1") as caught:
        await open_store("redis", url=f"redis://127.0.0.1:{server.port}")
    check(caught.value)
    store = await open_store("redis", url=server.url)
    assert "right" not in repr(store) + repr(vars(store)["_where"])
    server.kill()
    with pytest.raises(StoreUnavailable) as caught:
        await store.get("a")
    assert "right" not in everything_said(caught.value)
    await store.close()
    with pytest.raises(StoreUnavailable) as caught:
        await open_store("redis", url=f"redis://user:{PASSWORD}@127.0.0.1:{server.port}", timeout_s=1)
    check(caught.value)


async def test_a_server_that_repeats_the_password_is_not_quoted(start_redis):
    """A server without AUTH answers it with its arguments; they are left out."""
    server = start_redis("--rename-command", "AUTH", "")
    with pytest.raises(StoreUnavailable, match="unknown command") as caught:
        await open_store("redis", url=f"redis://:secret-word@127.0.0.1:{server.port}")
    assert "secret-word" not in everything_said(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "redis://:pass/w@rd@localhost:6379",
        "redis://:pass@localhost:w-rd",
        "http://:pass%2Fw%40rd@localhost",
        "pass/w@rd",
        "redis://:pass@localhost:99999999",
        "redis://:pass@localhost/0?socket_timeout=w@rd",
        "",
    ],
)
async def test_a_url_that_cannot_be_read_is_refused_without_repeating_it(url):
    with pytest.raises(ValueError, match="redis://") as caught:
        await open_store("redis", url=url)
    for part in ("pass", "w@rd", "w-rd"):
        assert part not in everything_said(caught.value).replace("user]:password", "").replace("of the password", "")


async def test_a_server_that_dies_under_load_is_unavailable_and_comes_back(start_redis, opened):
    """Every caller gets StoreUnavailable in time, and the same store works when the server is back."""
    server = start_redis()
    store = await opened(RedisStore.open(server.url, timeout_s=2))
    enough = asyncio.Event()

    async def work(number):
        while True:
            await store.put(f"{number}", number)
            await store.update(Update(checks={f"{{{number}}}": None}))
            if await store.add("n") >= 200:
                enough.set()

    tasks = [asyncio.create_task(work(number)) for number in range(80)]
    await asyncio.wait_for(enough.wait(), 20)
    server.kill()
    errors = await asyncio.gather(*tasks, return_exceptions=True)
    assert {type(error) for error in errors} == {StoreUnavailable}
    assert all(f"127.0.0.1:{server.port}" in str(error) for error in errors)
    with pytest.raises(StoreUnavailable):
        await store.ping()
    server.start()
    await store.ping()
    assert await store.add("n") == 1


async def test_a_server_that_hangs_is_unavailable_in_time(start_redis, opened):
    """More callers than connections, none of which gets an answer, all give up; afterwards the store works."""
    server = start_redis()
    store = await opened(RedisStore.open(server.url, timeout_s=0.3))
    await store.add("n")
    server.send(signal.SIGSTOP)
    errors = await asyncio.gather(*(store.get("n") for _ in range(120)), return_exceptions=True)
    assert {type(error) for error in errors} == {StoreUnavailable}
    server.send(signal.SIGCONT)
    for _ in range(100):
        with contextlib.suppress(StoreUnavailable):
            await store.ping()
            break
    assert await store.get("n") == 1


async def test_a_cancelled_caller_does_not_confuse_the_others(redis_server, opened):
    """An answer that came too late is never taken for the answer to another call."""
    store = await opened(RedisStore.open(redis_server.url, prefix="cancelled:"))
    await asyncio.gather(*(store.put(f"{number}", number) for number in range(50)))
    for round_ in range(20):
        tasks = [asyncio.create_task(store.get(f"{number}")) for number in range(50)]
        for _ in range(round_ % 7):
            await asyncio.sleep(0)
        for task in tasks[::3]:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [result for number, result in enumerate(results) if number % 3] == [n for n in range(50) if n % 3]


async def test_nothing_is_sent_twice(redis_server, opened):
    """When the connection breaks before the answer, the caller gets an error, and nothing is added a second time."""
    broken = asyncio.Event()

    async def forward(reader, writer):
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", redis_server.port)
        with contextlib.suppress(ConnectionError):
            while request := await reader.read(65536):
                server_writer.write(request)
                answer = await server_reader.read(65536)
                if broken.is_set():
                    broken.clear()
                    break
                writer.write(answer)
        for each in (server_writer, writer):
            each.close()

    proxy = await asyncio.start_server(forward, "127.0.0.1", 0)
    async with proxy:
        port = proxy.sockets[0].getsockname()[1]
        store = await opened(RedisStore.open(f"redis://127.0.0.1:{port}/0", prefix="once:"))
        calls = [lambda: store.add("n"), lambda: store.update(Update(adds={"m": 1}))]
        for call in calls:
            await call()
            broken.set()
            with pytest.raises(StoreUnavailable):
                await call()
        assert await store.get_many(["n", "m"]) == [2, 2]
        await store.close()


async def test_scripts_that_the_server_forgot_are_loaded_again(redis_server, opened):
    store = await opened(RedisStore.open(redis_server.url, prefix="forgotten:"))
    await store.add("n")
    with redis_server.client() as client:
        client.script_flush()
    assert await store.add("n") == 2


async def test_one_round_trip_for_each_operation(start_redis, opened):
    """The server sees one command for each call, once its script is known."""
    server = start_redis()
    store = await opened(RedisStore.open(server.url))
    noop = AtomicOp("noop", lambda _values, _args: ({}, 1), "return '1'")
    calls = [
        lambda: store.get("a"),
        lambda: store.get_many(["a", "b"]),
        lambda: store.put("a", {"b": 1}, ttl_s=50),
        lambda: store.compare_and_set("a", {"b": 1}, 5),
        lambda: store.add("a", ttl_s=5),
        lambda: store.update(Update(checks={"a": 6}, puts={"b": Put(1), "c": Put(2, 5)}, deletes=["d"], adds={"e": 1})),
        lambda: store.run(noop, ["a"], None),
        lambda: store.delete("a"),
        store.ping,
    ]
    for call in calls[2:8]:
        await call()
    with server.client() as watcher, watcher.monitor() as monitor:
        for number, call in enumerate(calls):
            await call()
            await store.get(f"end of {number}")
        seen = [0] * len(calls)
        number = 0
        while number < len(calls):
            command = monitor.next_command()
            if command["command"].endswith(f"end of {number}"):
                number += 1
            elif command["client_type"] != "lua":
                seen[number] += 1
    assert seen == [1] * len(calls)


async def test_the_prefix_keeps_others_apart(redis_server, opened):
    """Two stores of one server do not see each other's keys, patterns in the prefix notwithstanding."""
    plain = await opened(RedisStore.open(redis_server.url, prefix="p1:"))
    odd = await opened(RedisStore.open(redis_server.url, prefix="p*:"))
    await plain.put("a", 1)
    await odd.put("b", 2)
    assert await plain.scan("") == [("a", 1)]
    assert await odd.scan("") == [("b", 2)]
    assert await odd.get("a") is None
    with redis_server.client() as client:
        assert client.get("p1:a") == b"1"
        assert client.get("p*:b") == b"2"


async def test_what_this_project_never_writes_is_refused(redis_server, opened):
    """A list, text that is not JSON, bytes that are not text: StoreCorrupt that names the key or the server."""
    store = await opened(RedisStore.open(redis_server.url, prefix="foreign:"))
    with redis_server.client() as client:
        client.set("foreign:text", b"\x80\x04N.")
        client.set("foreign:null", b"null")
        client.rpush("foreign:list", 1)
        for key in ("text", "null"):
            for call in (store.get(key), store.get_many([key]), store.scan(key), store.compare_and_set(key, 1, 2)):
                with pytest.raises(StoreCorrupt, match=f"'{key}'"):
                    await call
        for call in (store.get("list"), store.add("list"), store.update(Update(checks={"list": 1}))):
            with pytest.raises(StoreCorrupt, match="not a string"):
                await call
        client.set(b"foreign:\xff", b"1")
        with pytest.raises(StoreCorrupt, match="not text"):
            await store.scan("")


async def test_values_are_compared_as_values_however_they_are_spelt(redis_server, opened):
    """A text that Lua or somebody else wrote differently is the same value; a different value is not."""
    store = await opened(RedisStore.open(redis_server.url, prefix="spelt:"))
    value = {"a": [1.5, "ü/"], "b": 100000000000000000000.0}
    other = b'{ "b": 1e20, "a": [15e-1, "\\u00fc\\/"] }'
    with redis_server.client() as client:
        client.set("spelt:{t}x", other)
        assert await store.get("{t}x") == value
        assert await store.compare_and_set("{t}x", {**value, "b": 1}, 1) is False
        assert await store.update(Update(checks={"{t}x": value, "{t}y": 1}, adds={"{t}n": 1})) is False
        assert await store.update(Update(checks={"{t}x": value, "{t}y": None}, adds={"{t}n": 1})) is True
        assert await store.compare_and_set("{t}x", value, [2]) is True
        assert client.get("spelt:{t}x") == b"[2]"


@pytest.mark.parametrize(
    ("lua", "message"),
    [
        ("return nil", "did not return a JSON text"),
        ("return 'not json'", "did not return a JSON text"),
        ("return 5", "did not return a JSON text"),
        ("return {1}", "did not return a JSON text"),
        ("this is not lua", "'broken'"),
        ("error('no')", "'broken'"),
        ("return redis.call('NOSUCH')", "'broken'"),
        ("return json_encode({a = 0/0})", "not a finite number"),
        ("return json_encode({a = print})", "'broken'"),
    ],
)
async def test_a_broken_lua_script_is_named(redis_server, opened, lua, message):
    store = await opened(RedisStore.open(redis_server.url, prefix="broken:"))
    with pytest.raises(StoreError, match=message):
        await store.run(AtomicOp("broken", lambda _values, _args: ({}, None), lua), ["key"], None)


async def test_the_cluster_says_which_keys_cannot_go_together(redis_cluster, opened):
    """Keys of one atomic step that lie apart are the author's mistake, not the server's absence."""
    store = await opened(RedisStore.open(redis_cluster.url, prefix="apart:"))
    noop = AtomicOp("noop", lambda _values, _args: ({}, 1), "return '1'")
    for call in (store.update(Update(adds={"a": 1, "b": 1})), store.run(noop, ["a", "b"], None)):
        with pytest.raises(ValueError, match="same hash tag"):
            await call
    assert await store.update(Update(adds={"{t}a": 1, "{t}b": 1})) is True
    assert await store.get_many(["{t}a", "{t}b", "c"]) == [1, 1, None]


async def test_a_server_that_may_drop_keys_is_warned_about(start_redis, opened, caplog):
    server = start_redis("--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru")
    with caplog.at_level(logging.WARNING, logger="pointsman"):
        await opened(RedisStore.open(server.url))
    (record,) = caplog.records
    assert "allkeys-lru" in record.getMessage()
    assert str(server.port) in record.getMessage()


async def test_keys_that_a_server_drops_are_a_problem_in_the_status(start_redis, tmp_path, caplog):
    """Also after it was restarted, and counts from 0."""
    server = start_redis("--maxmemory", "3mb", "--maxmemory-policy", "allkeys-lru")
    store = await RedisStore.open(server.url, timeout_s=30.0)
    assert await store.dropped() is None
    clock = FakeClock()
    settings = parse({"plugins": []}, "test", tmp_path)
    host = Host(
        settings, FakeGateway(), environment=environment(clock, Ids("a", clock), "a-1"), available={}, store=store
    )
    await host.start()

    def dropped():
        """Return how many keys the status says."""
        found = [re.search(r"has dropped (\d+) keys.*noeviction", problem) for problem in host.problems()]
        return sum(int(match[1]) for match in found if match)

    try:
        assert host.problems() == []
        evicted = 0
        for _ in range(2):
            with server.client() as client:
                for number in range(100):
                    client.set(f"foreign/{number}", "x" * 100_000)
                evicted += client.info("stats")["evicted_keys"]
            assert evicted > 0
            async with asyncio.timeout(20.0):
                while dropped() < evicted:  # the host looks in real time
                    await clock.advance(1.0)
                    await asyncio.sleep(0.02)
            server.kill()
            server.start()
    finally:
        await host.stop()
        await store.close()
    assert caplog.text.count("keys because its memory is full") == 1


async def test_a_full_server_is_unavailable(start_redis, opened):
    """Writes are refused with the server's reason, reads go on."""
    server = start_redis("--maxmemory-policy", "noeviction")
    store = await opened(RedisStore.open(server.url))
    await store.put("{t}a", 1)
    with server.client() as client:
        client.config_set("maxmemory", 1)
    update = Update(checks={"{t}a": 1}, puts={"{t}a": Put(2), "{t}b": Put(2)}, deletes=["{t}c"], adds={"{t}d": 1})
    for call in (store.put("{t}a", 2), store.add("{t}n"), store.compare_and_set("{t}a", 1, 2), store.update(update)):
        with pytest.raises(StoreUnavailable, match="maxmemory"):
            await call
    assert await store.scan("{t}") == [("{t}a", 1)]


async def test_more_callers_than_connections(redis_server, opened):
    """A thousand calls at once all succeed."""
    store = await opened(RedisStore.open(redis_server.url, prefix="many:", timeout_s=30.0))
    assert sorted(await asyncio.gather(*(store.add("n") for _ in range(1000)))) == list(range(1, 1001))


# -- the names of what is ours -----------------------------------------------------------------------------------------


def walks(server):
    """Return how often the keys of the server have been walked."""
    with server.client() as client:
        return client.info("commandstats").get("cmdstat_scan", {"calls": 0})["calls"]


async def test_scan_reads_what_is_ours_without_walking_the_keys_of_others(redis_server):
    """Whatever wrote the keys; those that are deleted or have ended are not found."""
    with redis_server.client() as client:
        client.mset({f"foreign:{number}": "x" for number in range(5000)})
    store = await RedisStore.open(redis_server.url, prefix="names:")
    try:
        await store._listing_done()
        before = walks(redis_server)
        await store.put("host/a", 1)
        await store.put("host/ends", 1, ttl_s=0.05)
        await store.put("host/gone", 1)
        await store.delete("host/gone")
        await store.update(Update(puts={"host/b": Put(2), "other/x": Put(1)}, adds={"host/n": 1}))
        await store.update(Update(deletes=["other/x"]))
        await store.add("host/sum", 3)
        await store.compare_and_set("host/c", None, {"k": []})
        write = AtomicOp("write", lambda _v, _a: ({0: Put(5)}, None), "redis.call('SET', KEYS[1], '5') return 'null'")
        await store.run(write, ["host/run"], None)
        await asyncio.sleep(0.1)
        found = {"host/a": 1, "host/b": 2, "host/c": {"k": []}, "host/n": 1, "host/run": 5, "host/sum": 3}
        assert dict(await store.scan("host/")) == found
        assert await store.scan("other/") == []
        assert await store.scan("host/ru") == [("host/run", 5)]
        assert walks(redis_server) == before
    finally:
        await store.close()


async def test_keys_of_an_earlier_release_are_found_at_the_first_start_and_at_later_ones(redis_server):
    """Those of a worker that has not been replaced yet are found by the next start."""
    with redis_server.client() as client:
        client.set("older:host/a", "1")
        client.set("older:host/ends", "2", px=60_000)
        store = await RedisStore.open(redis_server.url, prefix="older:")
        assert await store.scan("host/") == [("host/a", 1), ("host/ends", 2)]
        client.set("older:host/late", "3")
        assert await store.scan("host/l") == []
        await store.close()
        store = await RedisStore.open(redis_server.url, prefix="older:")
        await store._listing_done()
        assert await store.scan("host/l") == [("host/late", 3)]
        await store.close()
