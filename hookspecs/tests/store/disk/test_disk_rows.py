"""The disk store's promises about its directory, its rows, and its group commits."""

from __future__ import annotations

import contextlib
import os
import pickle
import sqlite3
import stat
from pathlib import Path

import diskcache
import pytest

from pointsman.store import AtomicOp, Put, StoreCorrupt, StoreUnavailable, Update, open_store
from pointsman.store.disk import DiskStore
from pointsman.store.rows import RowCache

FILE = "cache.db"
OPEN_FILES = Path("/proc/self/fd")


class Bomb:
    """Leaves a directory behind when it is unpickled."""

    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return os.mkdir, (str(self.place),)


async def refuses(call):
    with pytest.raises(StoreCorrupt):
        await call


# --- rows that this project never writes


async def test_a_pickled_value_is_refused_and_not_unpickled(store, tmp_path, plant):
    """Every way to read the row raises StoreCorrupt, no other row suffers, and the pickle has no effect."""
    mark = tmp_path / "unpickled"
    await store.put("good", 1)
    plant(mode=4, value=pickle.dumps(Bomb(mark)))
    await refuses(store.get("planted"))
    await refuses(store.get_many(["good", "planted"]))
    await refuses(store.compare_and_set("planted", None, 1))
    await refuses(store.add("planted"))
    await refuses(store.delete("planted"))
    await refuses(store.update(Update(checks={"planted": None}, puts={"good": Put(2)})))
    await refuses(store.run(AtomicOp("noop", lambda _values, _args: ({}, 1), ""), ["planted"], None))
    await refuses(store.scan("plan"))
    await refuses(store.scan(""))
    assert await store.get("good") == 1
    assert await store.scan("good") == [("good", 1)]
    assert not mark.exists()
    await store.put("planted", "written over")
    assert await store.get("planted") == "written over"


def test_the_planted_pickle_would_have_had_an_effect(tmp_path, plant):
    """The same row in a plain diskcache is unpickled: the tests beside this one can fail."""
    mark = tmp_path / "unpickled"
    with diskcache.Cache(str(tmp_path / "plain")) as cache:
        cache["other"] = 1
        plant(mode=4, value=pickle.dumps(Bomb(mark)), where=tmp_path / "plain")
        cache.get("planted")
    assert mark.is_dir()


async def test_diskcache_itself_cannot_unpickle_through_our_rows(directory, store, tmp_path, plant):
    """Even diskcache's own methods, keys included, do not get past the form of our rows."""
    mark = tmp_path / "unpickled"
    await store.put("good", [1])
    plant(mode=4, value=pickle.dumps(Bomb(mark)))
    plant(key=pickle.dumps(Bomb(mark)), raw=0, value="1")
    with RowCache(directory, 5) as cache:
        assert cache["good"] == "[1]"
        with pytest.raises(StoreCorrupt, match="not a JSON text"):
            cache.get("planted")
        with pytest.raises(StoreCorrupt, match="key is not text"):
            list(cache)
        for key, value in [(("a", "tuple"), "1"), ("key", Bomb(mark)), ("key", 1)]:
            with pytest.raises(ValueError, match=r"store key|JSON text"):
                cache[key] = value
    assert not mark.exists()


async def test_a_pickled_key_is_refused_and_not_unpickled(store, tmp_path, plant):
    mark = tmp_path / "unpickled"
    plant(key=pickle.dumps(Bomb(mark)), raw=0, value="1")
    await refuses(store.scan(""))
    assert await store.scan("a") == []
    assert not mark.exists()


@pytest.mark.parametrize("mode", [1, 2, 3, 4])
async def test_a_value_in_another_file_is_refused_and_not_opened(directory, store, tmp_path, mode, plant):
    """A row cannot make the store read a file."""
    secret = tmp_path / "secret"
    secret.write_text('"secret"')
    plant(mode=mode, filename="../secret")
    with pytest.raises(StoreCorrupt) as caught:
        await store.get("planted")
    assert str(directory) in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("value", [5, 1.5, None, b"1", "", "{", "null", "NaN", "[Infinity]", "[" * 100_000, '"a" "b"'])
async def test_a_value_that_is_not_json_is_refused(directory, store, value, plant):
    plant(value=value)
    await refuses(store.get("planted"))
    await refuses(store.scan(""))


# --- the directory


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
async def test_the_directory_is_private(directory, opened, umask):
    """Nobody else can enter the directory, whatever the umask; its parents are ordinary directories."""
    before = os.umask(umask)
    try:
        await opened(DiskStore.open(directory / "deep" / "store"))
    finally:
        os.umask(before)
    assert stat.S_IMODE((directory / "deep" / "store").stat().st_mode) == 0o700


async def test_a_store_that_was_opened_to_others_is_closed_again(directory, opened):
    store = await opened(DiskStore.open(directory))
    await store.put("a", 1)
    await store.close()
    directory.chmod(0o755)
    again = await opened(DiskStore.open(directory))
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert await again.get("a") == 1


async def test_an_empty_directory_is_made_private(directory, opened):
    directory.mkdir(0o755)
    await opened(DiskStore.open(directory))
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700


async def test_a_directory_of_others_is_left_alone(directory):
    """A path that names, say, a home directory by mistake does not lock others out of it."""
    directory.mkdir(0o755)
    (directory / "document").write_text("")
    with pytest.raises(StoreUnavailable, match="does not look like a store") as caught:
        await DiskStore.open(directory)
    assert str(directory) in str(caught.value)
    assert stat.S_IMODE(directory.stat().st_mode) == 0o755


async def test_home_and_variables_in_the_path_are_expanded(tmp_path, opened, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PLACE", "there")
    await opened(DiskStore.open("~/$PLACE"))
    assert (tmp_path / "there" / FILE).exists()


async def test_a_relative_path_stays_where_it_was(tmp_path, opened, monkeypatch):
    monkeypatch.chdir(tmp_path)
    await opened(DiskStore.open("here"))
    assert (tmp_path / "here" / FILE).exists()


@pytest.mark.parametrize("place", ["file/store", "file", "/proc/pointsman", "/dev/null/store", "s" * 300])
async def test_a_place_that_cannot_be_a_directory_is_one_clear_error(tmp_path, place):
    """The message names the path and says what to do."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreUnavailable, match="Set the store's path") as caught:
        await open_store("disk", path=tmp_path / place)
    assert str(tmp_path / place) in str(caught.value)


async def test_a_store_file_that_is_a_directory_is_one_clear_error(directory):
    (directory / FILE).mkdir(parents=True)
    directory.chmod(0o700)
    with pytest.raises(StoreUnavailable, match="Set the store's path") as caught:
        await DiskStore.open(directory)
    assert str(directory) in str(caught.value)


async def test_a_read_only_database_is_one_clear_error(directory, monkeypatch):
    """A file that cannot be written is noticed at the start. Root may write any, so it is opened read-only here."""
    await (await DiskStore.open(directory)).close()
    connect = sqlite3.connect
    monkeypatch.setattr(
        sqlite3, "connect", lambda path, **options: connect(f"file:{path}?mode=ro", uri=True, **options)
    )
    with pytest.raises(StoreUnavailable, match="readonly") as caught:
        await DiskStore.open(directory)
    assert str(directory) in str(caught.value)


async def corrupt_at_open(directory):
    with pytest.raises(StoreCorrupt, match="move it away") as caught:
        await DiskStore.open(directory)
    assert str(directory / FILE) in str(caught.value)


async def test_a_file_that_is_no_database_is_one_clear_error(directory):
    directory.mkdir(0o700)
    (directory / FILE).write_bytes(b"this is not a database, but it is long enough to be mistaken for one" * 100)
    await corrupt_at_open(directory)


@pytest.mark.parametrize("damage", ["cut", "page", "header"])
async def test_a_damaged_database_is_one_clear_error(directory, damage):
    store = await DiskStore.open(directory)
    await store.update(Update(puts={f"{number:05}": Put("x" * 200) for number in range(500)}))
    await store.close()
    content = bytearray((directory / FILE).read_bytes())
    if damage == "cut":
        del content[len(content) // 2 :]
    else:
        start = 20 if damage == "header" else len(content) // 2
        content[start : start + 6000] = b"\xff" * 6000
    (directory / FILE).write_bytes(content)
    await corrupt_at_open(directory)


# --- time


async def test_dead_rows_are_cleared_away(directory, opened, database):
    """Dead rows leave the file, in portions, while others are written; live ones stay."""
    now = [1_000_000.0]
    store = await opened(DiskStore.open(directory, clock=lambda: now[0]))
    await store.update(Update(puts={f"{number:04}": Put(1, ttl_s=10) for number in range(600)}))
    await store.update(Update(puts={"live": Put(1, ttl_s=10_000), "for ever": Put(1)}))
    now[0] += 100

    def count():
        with database(directory) as connection:
            return connection.execute("SELECT COUNT(*) FROM Cache").fetchone()[0]

    left = []
    for _ in range(4):
        await store.put("for ever", 2)
        left.append(count())
    assert left == [346, 90, 2, 2]
    assert await store.scan("") == [("for ever", 2), ("live", 1)]


async def test_processes_share_the_time(directory, opened):
    """The end of a value's life is an absolute time: another store that opens the directory keeps it."""
    now = [1_000_000.0]
    first = await opened(DiskStore.open(directory, clock=lambda: now[0]))
    await first.put("a", 1, ttl_s=10)
    now[0] += 9
    second = await opened(DiskStore.open(directory, clock=lambda: now[0]))
    assert await second.get("a") == 1
    now[0] += 1
    assert await second.get("a") is None
    assert await first.get("a") is None


# --- what diskcache adds by itself


@pytest.mark.skipif(not OPEN_FILES.is_dir(), reason="open files are listed in /proc")
@pytest.mark.parametrize("broken", ["stat", "begin"])
def test_an_opening_that_fails_leaves_no_file_open(tmp_path, monkeypatch, broken):
    """Wherever it fails after diskcache has opened its own."""
    if broken == "stat":
        monkeypatch.setattr("pointsman.store.rows.DBNAME", "no-such-file")
    else:
        monkeypatch.setattr(RowCache, "begin", lambda cache: cache.no_such_thing)
    with pytest.raises((OSError, AttributeError)) as kept:
        RowCache(tmp_path, 1.0)
    assert kept is not None, "the frames of the failure are alive"
    assert [file for link in OPEN_FILES.iterdir() if (file := os.path.realpath(link)).startswith(str(tmp_path))] == []


async def test_diskcache_does_not_count_at_every_change(tmp_path):
    """Neither in a new directory nor in one that diskcache has opened by itself in the meantime."""
    for _ in range(2):
        store = await DiskStore.open(tmp_path / "store")
        await store.put("a", 1)
        with contextlib.closing(sqlite3.connect(tmp_path / "store" / FILE)) as connection:
            assert connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall() == []
        assert await store.get("a") == 1
        await store.close()
        with diskcache.Cache(tmp_path / "store") as cache:
            assert cache.disk is not None


async def test_a_value_that_another_release_spelled_differently_is_still_itself(tmp_path):
    """Floats have several spellings, and encoders change theirs."""
    store = await DiskStore.open(tmp_path / "store")
    await store.put("a", {"share": 1e-7})
    await store.close()
    with contextlib.closing(sqlite3.connect(tmp_path / "store" / FILE)) as connection:
        for spelling in ('{"share":1e-07}', '{"share":0.0000001}'):
            connection.execute("UPDATE Cache SET value = ? WHERE key = 'a'", (spelling,))
            connection.commit()
            store = await DiskStore.open(tmp_path / "store")
            assert not await store.compare_and_set("a", {"share": 1e-8}, {"share": 2})
            assert await store.compare_and_set("a", await store.get("a"), {"share": 2})
            await store.close()
