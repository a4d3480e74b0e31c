"""What failures, checks, resets and windows of their own do to a signal."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from pointsman.config import validate
from pointsman.store import open_store
from pointsman.testing import FakeClock, Harness, error, ok
from pointsman.testing import deployment as fleet_deployment
from pointsman.types import AttemptError, ErrorClass, SignalStatus
from pointsman_signals import repository
from pointsman_signals.config import SignalsConfig
from pointsman_signals.dialects import Dialect
from pointsman_signals.plugin import plugin
from pointsman_signals.reading import Dialect as FormerDialect
from pointsman_signals.repository import Record, record_from_json, record_to_json

from .conftest import NOW

FILE = {"status": "/s", "limits": [{"axis": "five_hour", "limit": "/limit", "remaining": "/left"}]}


def fresh(tracker, deployment, now=NOW):
    return tracker.fresh_signal(tracker.state(deployment, now), now)


def test_a_deployment_that_has_only_ever_failed_is_degraded(tracker_of, attempt, deployment):
    tracker, one = tracker_of(), deployment()
    tracker.observe(attempt(one, error=ErrorClass.SERVER), NOW)
    tracker.observe(attempt(one, error=ErrorClass.TIMEOUT), NOW)
    signal = fresh(tracker, one)
    assert (signal.status, signal.until) == (SignalStatus.DEGRADED, None)
    assert signal.reason == "no attempt has succeeded yet, 2 attempts failed"
    assert fresh(tracker, one, NOW + 301).status is SignalStatus.UNKNOWN
    tracker.observe(attempt(one, at=NOW + 302), NOW + 302)
    assert fresh(tracker, one, NOW + 302).status is SignalStatus.AVAILABLE


@pytest.mark.parametrize("kind", [ErrorClass.CLIENT, ErrorClass.CONTENT_POLICY, ErrorClass.RATE_LIMIT])
def test_other_peoples_faults_and_a_limit_that_has_ended_do_not_degrade(tracker_of, attempt, deployment, kind):
    tracker, one = tracker_of(), deployment()
    tracker.observe(attempt(one, error=kind, retry_after_s=1.0), NOW)
    assert fresh(tracker, one, NOW + 2).status is SignalStatus.AVAILABLE


def test_consecutive_errors_are_counted_until_an_answer(tracker_of, attempt, deployment):
    tracker, one = tracker_of(), deployment()
    counts = []
    for kind in (None, ErrorClass.SERVER, ErrorClass.CLIENT, ErrorClass.TIMEOUT, None, ErrorClass.SERVER):
        tracker.observe(attempt(one, error=kind), NOW)
        counts.append(fresh(tracker, one).consecutive_errors)
    assert counts == [0, 1, 1, 2, 0, 1]


def test_the_mean_is_there_as_well_as_the_quantiles(tracker_of, attempt, deployment):
    tracker, one = tracker_of(), deployment()
    for ms in (100.0, 200.0, 900.0):
        tracker.observe(attempt(one, ms=ms, first_token_ms=ms / 2), NOW)
    signal = fresh(tracker, one)
    assert signal.latency_ms.mean == pytest.approx(400, rel=0.02)
    assert signal.first_token_ms.mean == pytest.approx(200, rel=0.02)
    assert signal.tokens_per_s.mean == pytest.approx(sum(49 / (ms / 2) * 1e3 for ms in (100, 200, 900)) / 3, rel=0.02)


def test_what_a_client_caused_teaches_nothing(tracker_of, attempt, deployment):
    tracker, one = tracker_of(), deployment()
    failed = attempt(one, error=ErrorClass.AUTH)
    tracker.observe(replace(failed, error=AttemptError(kind=ErrorClass.AUTH, client_caused=True)), NOW)
    signal = fresh(tracker, one)
    assert (signal.status, signal.extra["requests"], signal.last_error_at) == (SignalStatus.UNKNOWN, 0, None)


def test_an_answer_without_content_is_neither_success_nor_failure(tracker_of, attempt, deployment):
    tracker, one = tracker_of(min_attempts=1), deployment()
    for _ in range(20):
        tracker.observe(replace(attempt(one, ms=1.0), error=AttemptError(kind=ErrorClass.EMPTY)), NOW)
    signal = fresh(tracker, one)
    assert (signal.latency_ms, signal.error_ratio, signal.last_success_at) == (None, None, None)
    assert (signal.extra["error_ratio.empty"], signal.consecutive_errors) == (1.0, 0)


def test_a_record_of_the_first_release_is_read(tracker_of, attempt, deployment):
    tracker, one = tracker_of(), deployment()
    tracker.observe(attempt(one), NOW)
    state = tracker.state(one, NOW)
    fields = {"check_success_at", "consecutive_errors", "reset_at"}
    record = Record(
        deployment_id=one.id, revision="r", written_at=NOW, facts=state.facts, quota=state.quota, window=state.delta
    )
    document = json.loads(json.dumps(record_to_json(record)))
    old = {name: value for name, value in document.items() if name not in fields}
    for value in (document, old):
        read = record_from_json(value, None, tracker.rules)
        assert (read.facts.reset_at, read.facts.success_at) == (0.0, NOW)
        assert read.window.total(NOW).requests == 1


@pytest.fixture
async def two_workers():
    clock = FakeClock()
    store = await open_store("memory", clock=clock.now)
    one, two = (
        Harness([(plugin, {"share_interval_s": 1.0})], store=store, clock=clock, name=name) for name in ("one", "two")
    )
    async with one, two:
        yield one, two
    await store.close()


async def test_a_reset_forgets_statistics_and_failures_in_all_workers(two_workers):
    h, other = two_workers
    for worker in two_workers:
        for _ in range(3):
            await worker.request(script={"chat-a": error(500)}, retries=0)
    await h.clock.advance(5.0)
    assert h.host.signals.get("chat-a").status is SignalStatus.DEGRADED
    answer = (await h.admin.post("/signals/chat-a/reset")).json()
    assert (answer["extra"]["requests"], answer["consecutive_errors"], answer["last_error"]) == (0, 0, "")
    await h.clock.advance(5.0)
    for worker in two_workers:
        signal = worker.host.signals.get("chat-a")
        assert (signal.extra["requests"], signal.consecutive_errors) == (0, 0)
        assert signal.status is not SignalStatus.DEGRADED
    await other.request(script={"chat-a": ok()})
    await h.clock.advance(5.0)
    assert h.host.signals.get("chat-a").extra["requests"] == 1
    assert (await h.admin.post("/signals/nothing/reset")).status_code == 404


async def test_a_reset_while_observations_are_written_stays_in_force(harness, monkeypatch):
    async with harness([plugin]) as h:
        real, resets = repository.modify, 1

        async def overtaken(*given, **more):
            nonlocal resets
            record = await real(*given, **more)
            if resets:
                resets = 0
                assert (await h.admin.post("/signals/chat-a/reset")).status_code == 200
            return record

        monkeypatch.setattr(repository, "modify", overtaken)
        for _ in range(3):
            await h.request(script={"chat-a": error(500)}, retries=0)
        await h.clock.advance(20.0)
        assert not resets
        signal = h.host.signals.get("chat-a")
        assert (signal.extra["requests"], signal.consecutive_errors) == (0, 0)


async def test_windows_may_differ_by_deployment(harness):
    fleet = [fleet_deployment("chat-a", "chat"), fleet_deployment("rare", "rare")]
    async with harness([(plugin, {"window_s": 60, "windows_s": {"rare": 3600}})], deployments=fleet) as h:
        await h.request(script=ok())
        await h.request(model="rare", script=ok())
        await h.clock.advance(120)
        assert (await h.admin.get("/signals/chat-a")).json()["extra"]["requests"] == 0
        assert (await h.admin.get("/signals/rare")).json()["extra"]["requests"] == 1


def test_a_window_for_an_unknown_name_is_a_problem(deployment):
    config = validate(SignalsConfig, {"windows_s": {"chta": 60}}, "signals")
    assert "signals.windows_s.chta" in config.unknown_targets([deployment()])[0]


async def test_a_blocked_client_has_nothing_left_and_checks_are_shown(harness, tmp_path):
    file = tmp_path / "quota.json"
    file.write_text(json.dumps({"s": "exhausted", "limit": 100, "left": 40}))
    config = {"checks": {"chat-a": {"kind": "file", "path": str(file), "document": FILE}}}
    async with harness([(plugin, config)]) as h:
        answer = (await h.admin.post("/signals/chat-a/refresh")).json()
        (limit,) = answer["limits"]
        assert (answer["status"], limit["axis"], limit["remaining"]) == ("exhausted", "five_hour", 0.0)
        assert limit["resets_at"] == answer["until"]
        checked_at = answer["last_check_success_at"]
        assert checked_at == answer["last_check_at"]
        file.unlink()
        await h.clock.advance(5)
        answer = (await h.admin.post("/signals/chat-a/refresh")).json()
        assert answer["last_check_at"] == pytest.approx(checked_at + 5)
        assert answer["last_check_success_at"] == checked_at
        file.write_text(json.dumps({"s": "ok", "limit": 100, "left": 40}))
        answer = (await h.admin.post("/signals/chat-a/refresh")).json()
        assert (answer["status"], answer["limits"][0]["remaining"]) == ("available", 40)


def test_dialects_may_be_imported_from_their_former_place():
    assert FormerDialect is Dialect
