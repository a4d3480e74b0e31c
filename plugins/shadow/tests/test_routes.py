"""The admin surface: what is shown, exported, changed, published."""

from __future__ import annotations

import json

import pytest

from pointsman import PluginConfig, PluginInfo, hookimpl
from pointsman.errors import PluginLoadError
from pointsman.events import MirrorGraduated
from pointsman.testing import ok


class _Listener:
    heard: list

    def __init__(self, config):
        self.heard = []

    @hookimpl
    async def on_event(self, event):
        self.heard.append(event)


LISTENER = PluginInfo(name="listener", config=PluginConfig, factory=_Listener)


async def test_all_mirrors_in_the_order_of_the_configuration(shadows, kit):
    worker = await shadows.worker(kit.mirror(), kit.mirror(name="second", sample_rate=0))
    await worker.request()
    await shadows.rest(worker)
    shown = (await worker.admin.get("/shadow")).json()
    assert [(m["name"], m["total"], m["sampled"], m["pairs"]) for m in shown["mirrors"]] == [
        ("next", 1, 1, 1),
        ("second", 1, 0, 0),
    ]
    assert shown["problems"] == []


async def test_one_mirror_with_figures_and_times(shadows, kit):
    worker = await shadows.worker(kit.mirror())
    worker.gateway.upstream.answer({"new": ok("other words", latency_s=0.1)})
    await worker.request(script=ok("the words", latency_s=0.2))
    shown = await shadows.shown(worker)
    assert kit.figure(shown, "latency_ms")["mean"] == pytest.approx(-100)
    assert kit.figure(shown, "latency_ratio")["mean"] == pytest.approx(0.5)
    assert kit.figure(shown, "exact")["mean"] == 0.0
    assert shown["quantiles"]["champion"]["latency_ms"]["p50"] == pytest.approx(200, rel=0.01)
    assert shown["quantiles"]["challenger"]["latency_ms"]["p99"] == pytest.approx(100, rel=0.01)
    assert (shown["tenant"], shown["target"], shown["confidence"]) == ("shadow:next", "new", 0.95)


async def test_export_is_jsonl(shadows, kit):
    worker = await shadows.worker(kit.mirror(keep_texts=True))
    made = [(await worker.request(script=ok(f"wörter\u2028{n}"))).request_id for n in range(3)]
    await shadows.rest(worker)
    answer = await worker.admin.get("/shadow/next/export?limit=2")
    assert answer.headers["content-type"].startswith("application/x-ndjson")
    rows = [json.loads(line) for line in answer.content.decode().strip().split("\n")]
    assert [row["request_id"] for row in rows] == made[1:]
    assert rows[-1]["champion"]["text"] == "wörter\u20282"
    assert set(rows[0]["comparison"]) >= {"latency_ms", "exact", "edit", "same_finish", "challenger_error"}
    assert rows[0]["champion"]["finish_reason"] == "stop"


async def test_pause_resume_reset(shadows, kit):
    worker = await shadows.worker(kit.mirror())
    paused = await worker.admin.post("/shadow/next/pause", json={"who": "anna", "reason": "too dear"})
    assert (paused.json()["phase"], paused.json()["who"], paused.json()["reason"]) == ("paused", "anna", "too dear")
    await worker.request()
    assert (await shadows.shown(worker))["total"] == 0
    assert (await worker.admin.post("/shadow/next/pause")).status_code == 409
    resumed = await worker.admin.post("/shadow/next/resume")
    assert (resumed.json()["phase"], resumed.json()["who"]) == ("running", "admin")
    await worker.request()
    assert (await shadows.shown(worker))["pairs"] == 1
    assert len(await shadows.results(worker)) == 1
    reset = (await worker.admin.post("/shadow/next/reset")).json()
    assert (reset["run"], reset["pairs"], reset["figures"]) == (2, 0, [])
    assert await shadows.results(worker) == []
    await worker.request()
    assert (await shadows.shown(worker))["pairs"] == 1


async def test_a_pause_reaches_the_other_workers(shadows, kit):
    one = await shadows.worker(kit.mirror(), name="one")
    two = await shadows.worker(kit.mirror(), name="two")
    await one.admin.post("/shadow/next/pause")
    await shadows.clock.advance(2)
    await two.request()
    assert not kit.mirrors_of(two)


async def test_a_mirror_graduates_and_hands_its_figures_over(shadows, kit):
    """As one value, once, to every plugin; it mirrors no more."""
    worker = await shadows.worker(kit.mirror(), more=[LISTENER])
    assert (await worker.admin.post("/shadow/next/graduate")).status_code == 409
    await worker.request()
    await shadows.rest(worker)
    answer = await worker.admin.post("/shadow/next/graduate", json={"who": "anna", "reason": "good enough"})
    assert answer.json()["phase"] == "graduated"
    await worker.settled()
    (event,) = [e for e in worker.plugin("listener").heard if isinstance(e, MirrorGraduated)]
    assert (event.source, event.mirror, event.model, event.challenger) == ("shadow", "next", "chat", "new")
    assert (event.version_id, event.who, event.reason, event.pairs) == (None, "anna", "good enough", 1)
    assert event.confidence_ratio == 0.95
    assert event.figures["exact"] == {"mean": 1.0, "low": 0.0, "high": 1.0, "count": 1}
    await worker.request()
    assert len(kit.mirrors_of(worker)) == 1
    assert (await worker.admin.post("/shadow/next/graduate")).status_code == 409


async def test_canary_writes_a_graduate_into_its_audit_trail(shadows, kit):
    """Two plugins that know nothing of each other: the figures go through a value."""
    canary = pytest.importorskip("pointsman_canary.plugin", reason="pointsman-canary is not installed").plugin
    experiment = {"name": "chat-v2", "model": "chat", "stable": "chat", "canary": "new", "steps": [1]}
    worker = await shadows.worker(kit.mirror(), more=[(canary, {"experiments": [experiment]})])
    await worker.request()
    await shadows.rest(worker)
    await worker.admin.post("/shadow/next/graduate", json={"who": "anna"})
    await worker.settled()
    entry = (await worker.admin.get("/canary/chat-v2/audit")).json()["audit"][0]
    assert (entry["what"], entry["who"]) == ("shadow", "anna")
    assert entry["reason"].startswith("mirror next, 1 pairs, 95 % intervals: ")
    assert "exact 1 [0, 1]" in entry["reason"]


async def test_a_challenger_from_the_registry(shadows, kit):
    """A version that is not active is mirrored to; one that is gone is reported."""
    registry = pytest.importorskip("pointsman_registry.plugin", reason="pointsman-registry is not installed").plugin
    versions = [
        {"id": "v1", "name": "talk", "version": "1", "path": "chat", "active": True},
        {"id": "v2", "name": "talk", "version": "2", "path": "new"},
    ]
    section = kit.mirror(model="talk", challenger={"version": "v2"})
    worker = await shadows.worker(section, first=[(registry, {"versions": versions})])
    await shadows.clock.advance(2)
    result = await worker.request(model="talk")
    assert result.status == 200
    shown = await shadows.shown(worker)
    assert (shown["pairs"], shown["target"], shown["challenger"]) == (1, "new", {"version": "v2"})
    (call,) = kit.mirrors_of(worker)
    assert (call.request.target, call.request.labels["version_id"]) == ("new", "v2")
    await worker.admin.delete("/registry/versions/v2")
    await shadows.clock.advance(2)
    await worker.request(model="talk")
    shown = await shadows.shown(worker)
    assert shown["reasons"]["dropped"] == {"no_challenger": 1}
    assert "register it, or change 'challenger'" in worker.status("shadow").summary


async def test_a_version_without_a_registry_is_reported(shadows, kit):
    worker = await shadows.worker(kit.mirror(challenger={"version": "v9"}))
    assert (await worker.request()).status == 200
    assert "no deployment serves the challenger, version v9" in worker.status("shadow").summary


async def test_names_that_the_gateway_does_not_have_stop_the_start_all_at_once(shadows, kit):
    """With their keys and the nearest names."""
    with pytest.raises(PluginLoadError) as caught:
        await shadows.worker(
            kit.mirror(challenger="nwe", judge={"model": "jugde"}),
            kit.mirror(name="second", embedding={"model": "something else"}),
        )
    assert str(caught.value).endswith(
        """\
shadow.mirrors[0].challenger: the gateway has no model group or deployment 'nwe' (did you mean 'new'?)
shadow.mirrors[0].judge.model: the gateway has no model group or deployment 'jugde' (did you mean 'judge'?)
shadow.mirrors[1].embedding.model: the gateway has no model group or deployment 'something else'"""
    )


async def test_money_that_cannot_be_counted_is_reported(shadows, kit):
    worker = await shadows.worker(kit.mirror(budget={"usd_per_day": 1}, judge={"model": "judge"}))
    assert worker.status("shadow").ok
    worker.gateway.prices._prices = {}
    challenger, judge = worker.status("shadow").details["problems"]
    assert "next: the price of new is unknown, so nothing is mirrored" in challenger
    assert "next: the price of judge.model judge is unknown, so what it costs is not counted" in judge


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/shadow/nobody", None, 404),
        ("GET", "/shadow/nobody/results", None, 404),
        ("POST", "/shadow/nobody/graduate", None, 404),
        ("GET", "/shadow/next/results?limit=0", None, 422),
        ("GET", "/shadow/next/export?limit=x", None, 422),
        ("GET", "/shadow/next/results?many=1", None, 422),
        ("POST", "/shadow/next/pause", b"{", 422),
        ("POST", "/shadow/next/pause", b'{"why": 1}', 422),
        ("POST", "/shadow/next/resume", None, 409),
    ],
)
async def test_what_cannot_be_done_is_said(shadows, kit, *, method, path, body, status):
    worker = await shadows.worker(kit.mirror())
    answer = await worker.admin.request(method, path, content=body)
    assert answer.status_code == status
    assert answer.json()["error"]["message"]
