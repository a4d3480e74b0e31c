from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman.errors import ConfigError, StoreCorrupt
from pointsman.store.protocol import MAX_KEY_CHARS
from pointsman_registry import repository
from pointsman_registry.config import MAX_ID_CHARS, MAX_NAME_CHARS, VersionSpec
from pointsman_registry.repository import MAX_HISTORY, NAME, STATE, VERSION, escaped, history_prefix

parts = st.text(alphabet="ab/%{}*[?]2F~ü😀 ", max_size=6)


@given(parts, parts)
def test_different_names_have_different_keys_and_none_is_the_prefix_of_anothers_history(one, other):
    assert (escaped(one) == escaped(other)) == (one == other)
    assert history_prefix(one).startswith(history_prefix(other)) == (one == other)


def test_longest_names_fit_into_a_key():
    worst = history_prefix("/" * MAX_NAME_CHARS) + "0" * 12
    assert len("registry/" + worst) <= MAX_KEY_CHARS
    assert len("registry/" + repository.stamp_key("{" * MAX_ID_CHARS)) <= MAX_KEY_CHARS


VALID = {"id": "1", "name": "chat", "version": "1", "path": "small", "format": "", "created_at": 1.0, "metrics": {}}
STANDING = {"name": "chat", "active_id": None, "number": 0, "trail": []}


@pytest.mark.parametrize(
    ("key", "row"),
    [
        (VERSION + "1", 7),
        (VERSION + "1", {**VALID, "metrics": {"a": "x"}}),
        (VERSION + "1", {k: v for k, v in VALID.items() if k != "path"}),
        (NAME + "chat", {**STANDING, "name": 3}),
        (NAME + "chat", {**STANDING, "trail": "x"}),
        (NAME + "chat", {**STANDING, "active_id": "gone"}),
        (NAME + "chat", {**STANDING, "trail": ["gone"]}),
        (STATE + "else", {}),
    ],
)
async def test_row_that_the_registry_never_writes_stops_the_start_and_names_the_key(memory, kit, key, row):
    await memory.put("registry/" + key, row)
    with pytest.raises(StoreCorrupt, match="registry's row"):
        await kit.start(memory)


async def test_rows_that_are_in_stores_stay_readable(memory, kit):
    """As version 0.1.0 writes them: keys, names of fields, and the triples of the window."""
    entry = {"number": 1, "name": "chat", "version_id": "a/1", "previous_id": None, "action": "activate"}
    rows = {
        "state/@revision": 1,
        "state/version/a%2F1": {**VALID, "id": "a/1", "metrics": {"accuracy": 0.9}},
        "state/name/chat": {"name": "chat", "active_id": "a/1", "number": 1, "trail": []},
        "history/chat/000000000001": {**entry, "who": "anna", "reason": "first", "at": 2.0},
        "live/stamp/a%2F1": "0123",
        "live/tally/a%2F1": {
            "since": 1.0,
            "updated_at": 5.0,
            "requests": 3,
            "errors": 1,
            "cancelled": 0,
            "window": [[4.0, 90.0, 30.0], [5.0, 10.0, None]],
        },
    }
    for key, row in rows.items():
        await memory.put("registry/{registry}" + key, row)
    worker = await kit.start(memory)
    version = worker.registry.state.active["chat"]
    assert (version.id, version.path, version.metrics) == ("a/1", "small", {"accuracy": 0.9})
    assert [(e.version_id, e.who, e.at) for e in await worker.registry.history("chat", 10)] == [("a/1", "anna", 2.0)]
    worker.plugin.post_response(kit.context(), kit.attempt("a/1"))
    metrics = (await worker.plugin._metrics.read(["a/1"]))["a/1"]
    assert (metrics.requests, metrics.errors, metrics.latency_ms().count) == (4, 1, 3)


async def test_history_keeps_the_newest_entries_of_a_name(memory, kit, monkeypatch):
    """The history is bounded, and one name's entries never push out another's."""
    monkeypatch.setattr(repository, "MAX_HISTORY", 5)
    worker = await kit.start(memory)
    for id_ in ("1", "2"):
        await worker.registry.register(VersionSpec(**kit.spec(id_)), "w")
    await worker.registry.register(VersionSpec(**kit.spec("3", name="chat/x", active=True)), "w")
    for turn in range(12):
        await worker.registry.activate(str(turn % 2 + 1), "w", "")
    assert [entry.number for entry in await worker.registry.history("chat", MAX_HISTORY)] == [12, 11, 10, 9, 8]
    assert [entry.number for entry in await worker.registry.history("chat", 2)] == [12, 11]
    assert [entry.number for entry in await worker.registry.history("chat/x", MAX_HISTORY)] == [1]
    assert len(await worker.registry.history(None, MAX_HISTORY)) == 6
    assert await worker.registry.history("nobody", MAX_HISTORY) == []


async def test_everything_survives_reopening(kit, tmp_path):
    """Versions, the active one, the trail, the history and live metrics are there again after a restart."""
    async with kit.open_store("disk", tmp_path) as store:
        worker = await kit.start(store)
        await worker.registry.register(VersionSpec(**kit.spec("1", metrics={"accuracy": 1}, active=True)), "anna")
        await worker.registry.register(VersionSpec(**kit.spec("2", path="dep-c", active=True)), "berta")
        worker.plugin.post_response(kit.context(), kit.attempt("2", "dep-c", "large"))
        before = worker.registry.state, await worker.registry.history("chat", 10)
        await worker.plugin.shutdown()
    async with kit.open_store("disk", tmp_path) as store:
        worker = await kit.start(store, number=1)
        assert (worker.registry.state, await worker.registry.history("chat", 10)) == before
        assert (await worker.plugin._metrics.read(["2"]))["2"].requests == 1
        assert (await worker.registry.rollback("chat", "carla", "")).id == "1"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"path": "large"}, "registered with path 'small', but the configuration says 'large'"),
        ({"name": "other"}, "registered with name 'chat'"),
        ({"metrics": {"a": 1.0}}, "registered with metrics"),
    ],
)
async def test_configuration_that_contradicts_the_store_stops_the_start(memory, kit, fields, message):
    config = kit.config(kit.spec("1"))
    await kit.start(memory, config=config)
    with pytest.raises(ConfigError, match=message):
        await kit.start(memory, config=kit.config(kit.spec("1", **fields)))
