"""``pointsman doctor``: each check against the real thing, in order and in disorder."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import stat
import subprocess
import time
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import redis

from pointsman.cli.doctor import _ahead_s, _skew, litellm_requirement
from pointsman.cli.output import Level
from pointsman.store import open_store
from pointsman.store.sqlite import OPEN_LOCK
from pointsman.testing.otlp import Collector
from pointsman.testing.ports import free_port


@pytest.fixture
def findings(run, write):
    """Return what ``doctor`` finds about a subject, as pairs of level and message."""

    def examine(subject, section=None, **changes):
        result = run("doctor", write(section or {"plugins": []}, **changes), "--json")
        answer = json.loads(result.stdout)
        assert result.exit_code == (0 if answer["ok"] else 1)
        assert answer["ok"] is all(found["level"] != "failed" for found in answer["checks"])
        return [(found["level"], found["message"]) for found in answer["checks"] if found["subject"] == subject]

    return examine


def test_healthy_environment_is_one_line_per_check(run, write, install):
    install("good")
    result = run("doctor", write({"plugins": ["good"]}))
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert [line.split()[:2] for line in lines[:-2]] == [
        ["ok", subject] for subject in ("python", "litellm", "configuration", "store", "store", "tracing")
    ]
    assert lines[-1] == "no errors"
    assert "\x1b" not in result.output


def test_everything_that_check_finds_is_found(findings, install):
    install("good")
    section = {"plugins": [{"good": {"limt": 1}}]}
    assert findings("good", section)[0][0] == "failed"
    assert findings("configuration", section) == []
    assert findings("litellm", litellm_settings={})[1][0] == "warning"


def test_what_a_plugin_finds_wrong_with_its_files_is_a_failure(findings, tmp_path):
    """Billing's outbox, which is not looked at before it is used otherwise."""
    pytest.importorskip("pointsman_billing")
    section = {"plugins": [{"billing": {"outbox": {"path": str(tmp_path / "outbox")}}}]}
    assert not any(level == "failed" for level, _ in findings("billing", section))
    (tmp_path / "outbox").mkdir()
    (tmp_path / "outbox" / "outbox.sqlite3").write_bytes(b"no database" * 999)
    ((level, message),) = findings("billing", section)
    assert (level, "is damaged" in message) == ("failed", True)


# -- versions -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "level"),
    [("1.105.9", "failed"), ("1.106.0", "ok"), ("1.107.3", "failed"), ("1.108.0rc1", "warning"), ("2.0", "warning")],
)
def test_litellm_must_be_a_version_that_our_own_metadata_allows_and_better_a_tested_one(
    findings, monkeypatch, tmp_path, version, level
):
    """Read from what is installed (here: metadata put first on the path), without importing it."""
    info = tmp_path / "site" / f"litellm-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: litellm\nVersion: {version}\n")
    monkeypatch.syspath_prepend(tmp_path / "site")
    (found, *_) = findings("litellm")
    assert found[0] == level
    assert version in found[1]
    assert (f"pip install '{litellm_requirement()}'" in found[1]) is (level == "failed")


def test_python_of_another_time_is_told(findings, monkeypatch):
    monkeypatch.setattr("platform.python_version", lambda: "3.9.1")
    assert findings("python") == [("failed", "3.9.1 is not supported; install Python <3.14,>=3.11")]


# -- the store ----------------------------------------------------------------------------------------------------------


def test_store_that_does_not_exist_yet_is_tested_next_to_its_place_and_nothing_is_left(findings, tmp_path):
    """So that the proxy's user creates it, not the user of the check."""
    place = tmp_path / "data"
    place.mkdir()
    first, second = findings("store", {"store": {"path": str(place / "deep" / "store")}, "plugins": []})
    assert first == ("ok", f"{place / 'deep' / 'store'} does not exist yet; the first start creates it")
    assert second[0] == "ok"
    assert "written, read and deleted" in second[1]
    assert list(place.iterdir()) == []


async def test_store_in_use_keeps_what_it_has(tmp_path, write, run):
    store = await open_store("disk", path=tmp_path / "store")
    try:
        await store.put("registry/x", 1)
        result = await asyncio.to_thread(run, "doctor", write({"store": {"path": "store"}, "plugins": []}))
        assert result.exit_code == 0, result.output
        assert await store.scan("") == [("registry/x", 1)]
    finally:
        await store.close()


async def _make_store(path):
    store = await open_store("disk", path=path)
    await store.close()


def test_store_open_to_others_is_told_and_closed(tmp_path, findings_of_store):
    asyncio.run(_make_store(tmp_path / "store"))
    (tmp_path / "store").chmod(0o755)
    first, second = findings_of_store(tmp_path / "store")
    assert first == (
        "warning",
        f"{tmp_path / 'store'} is accessible to other users (mode 0755); opening it sets 0700",
    )
    assert second[0] == "ok"
    assert stat.S_IMODE((tmp_path / "store").stat().st_mode) == 0o700


@pytest.fixture
def findings_of_store(run, write):
    """As ``findings``, for the store in a directory."""

    def examine(path):
        answer = json.loads(run("doctor", write({"store": {"path": str(path)}, "plugins": []}), "--json").stdout)
        return [(found["level"], found["message"]) for found in answer["checks"] if found["subject"] == "store"]

    return examine


def test_settlements_in_a_store_that_is_not_in_use_are_a_warning(findings_of_store, tmp_path):
    async def leave():
        store = await open_store("disk", path=tmp_path / ".pointsman")
        await store.put("host/{journal}/worker-1/1", {})
        await store.close()

    asyncio.run(leave())
    warnings = [message for level, message in findings_of_store(tmp_path / "other") if level == "warning"]
    assert [".pointsman, which is not in use, has 1 rows" in message for message in warnings] == [True]


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda place: place.write_text("x"), "cannot be made and kept private"),
        (lambda place: (place.mkdir(0o755), (place / "other").touch()), "does not look like a store"),
        (lambda place: (place.mkdir(0o700), (place / "cache.db").write_bytes(b"x" * 5000)), "is not a sound database"),
    ],
)
def test_store_that_cannot_be_used_fails_with_its_own_words(findings_of_store, tmp_path, make, expected):
    """What is there is not touched."""
    place = tmp_path / "place"
    make(place)
    before = {path: path.read_bytes() for path in tmp_path.rglob("place/*")}
    found = findings_of_store(place)
    assert found[-1][0] == "failed"
    assert expected in found[-1][1]
    assert {path: path.read_bytes() for path in tmp_path.rglob("place/*") if path.name != OPEN_LOCK} == before


def test_store_that_cannot_be_made_fails(findings_of_store, tmp_path):
    (tmp_path / "file").touch()
    ((level, message),) = findings_of_store(tmp_path / "file" / "store")
    assert level == "failed"
    assert "it cannot be created there: Not a directory" in message


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_store_in_a_directory_that_cannot_be_written_fails(findings_of_store, tmp_path):
    (tmp_path / "mine").mkdir(0o500)
    ((level, message),) = findings_of_store(tmp_path / "mine" / "store")
    assert level == "failed"
    assert "Permission denied" in message


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_store_of_another_user_is_told(findings_of_store, tmp_path):
    (tmp_path / "store").mkdir(0o700)
    os.chown(tmp_path / "store", 12345, 12345)
    level, message = findings_of_store(tmp_path / "store")[0]
    assert level == "warning"
    assert "belongs to another user (id 12345)" in message


def test_store_in_memory_is_a_warning(findings):
    ((level, message),) = findings("store", {"store": {"backend": "memory"}, "plugins": []})
    assert level == "warning"
    assert "suitable for one worker" in message


def test_wrong_store_section_is_not_opened(findings):
    assert findings("store", {"store": {"backend": "dsk"}, "plugins": []}) == []


def test_redis_that_is_not_there_fails_without_its_password(findings):
    url = f"redis://:hunter2@127.0.0.1:{free_port()}/0"
    ((level, message),) = findings("store", {"store": {"backend": "redis", "url": url}, "plugins": []})
    assert level == "failed"
    assert "Connection refused" in message or "cannot be used" in message
    assert "hunter2" not in message


@contextmanager
def redis_server(directory, *options):
    binary = shutil.which("redis-server")
    if binary is None:
        pytest.skip("redis-server is not on the PATH; install it, for example with apt-get install redis-server")
    port = free_port()
    command = [binary, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(directory), *options]
    with (directory / "redis.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)  # noqa: S603 - our own words
    try:
        with redis.Redis(port=port) as client:
            give_up_at = time.monotonic() + 20
            while True:
                try:
                    client.ping()
                    break
                except redis.ConnectionError:
                    assert time.monotonic() < give_up_at, (directory / "redis.log").read_text()
                    time.sleep(0.02)
            yield f"redis://127.0.0.1:{port}/0", client
    finally:
        process.terminate()
        process.wait(20)


@pytest.mark.services
def test_redis_is_written_and_read_and_its_clock_compared(findings, tmp_path):
    """Nothing is left in it; what the store would log as a warning is a warning here."""
    with redis_server(tmp_path, "--maxmemory", "64mb", "--maxmemory-policy", "allkeys-lru") as (url, client):
        section = {"store": {"backend": "redis", "url": url, "prefix": "p"}, "plugins": []}
        stored, policy = findings("store", section)
        assert findings("clock", section) == [("ok", "agrees with redis within 1 s")]
        assert client.keys("*") == []
    assert stored[0] == "ok"
    assert "keys begin with p:" in stored[1]
    assert policy[0] == "warning"
    assert "noeviction" in policy[1]


@pytest.mark.parametrize(
    ("ahead_s", "level", "words"),
    [
        (0.0, Level.OK, "agrees"),
        (-1.0, Level.OK, "agrees"),
        (1.5, Level.WARNING, "1.5 s behind redis"),
        (-90.0, Level.WARNING, "90.0 s ahead of redis"),
    ],
)
def test_clock_that_is_off_is_a_warning(ahead_s, level, words):
    found = _skew(ahead_s)
    assert found.level is level
    assert words in found.message


@pytest.mark.parametrize("ahead_s", [-30, 0, 30])
async def test_difference_of_the_clocks_is_what_the_call_itself_does_not_explain(ahead_s):
    """The answer of redis comes from somewhere between question and answer; only what lies outside counts."""

    async def server_time(*_):
        now = time.time() + ahead_s
        return [str(int(now)), str(int(now % 1 * 1e6))]

    measured = await _ahead_s(SimpleNamespace(run=server_time), "key")
    assert measured == pytest.approx(ahead_s, abs=10)


# -- tracing ------------------------------------------------------------------------------------------------------------


def test_collector_that_answers_is_fine(findings, monkeypatch):
    with Collector() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        ((level, message),) = findings("tracing")
    assert level == "ok"
    assert f"a collector takes spans at {collector.url}/v1/traces" in message


def test_collector_that_refuses_fails_with_its_answer(findings, monkeypatch):
    """A collector that listens and takes nothing, as with a wrong path or token, loses every span as well."""
    with Collector(status=401) as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        ((level, message),) = findings("tracing")
    assert level == "failed"
    assert "does not take spans" in message
    assert "401" in message


def test_collector_that_does_not_answer_fails(findings, monkeypatch):
    """Also when only the configuration's environment_variables name it."""
    url = f"http://127.0.0.1:{free_port()}"
    ((level, message),) = findings("tracing", environment_variables={"OTEL_EXPORTER_OTLP_ENDPOINT": url})
    assert level == "failed"
    assert f"no collector answers at {url}/v1/traces" in message
    assert "their spans are lost" in message
    assert findings("tracing", {"tracing": {"enabled": False}, "plugins": []}) == [
        ("ok", "off: tracing.enabled is false")
    ]


def test_an_address_that_is_no_url_fails_though_the_proxy_would_start(findings, monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "127.0.0.1:4318")
    warning, failure = findings("tracing")
    assert warning[0] == "warning"
    assert "the proxy starts, but every span is lost" in warning[1]
    assert failure[0] == "failed"


def test_wrong_variables_are_not_tried(findings, monkeypatch):
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "zipkin")
    monkeypatch.setattr(socket, "create_connection", lambda *_: pytest.fail("nothing should be connected to"))
    ((level, _),) = findings("tracing")
    assert level == "failed"
