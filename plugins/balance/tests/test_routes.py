"""The admin routes: what they show, and what they refuse. Resets and settings across workers are in test_plugin."""

from __future__ import annotations

import pytest

from pointsman.testing import deployment, error, ok
from pointsman_balance.plugin import plugin

FLEET = [deployment("a", "chat"), deployment("eu/b two", "chat", rpm=60), deployment("e", "embed", mode="embedding")]


@pytest.fixture
async def h(harness):
    async with harness([(plugin, {"groups": {"embed": {"tactic": "p2c"}}})], deployments=FLEET) as h:
        await h.request(script=ok(latency_s=0.2))
        yield h


async def test_everything_is_shown_by_group(h):
    answer = (await h.admin.get("/balance")).json()
    assert [(g["group"], g["tactic"]["name"], len(g["deployments"])) for g in answer["groups"]] == [
        ("chat", "adaptive", 2),
        ("embed", "p2c", 1),
    ]
    assert set(answer["tactics"]) >= {"adaptive", "p2c", "cache_affinity", "headroom"}
    rows = {row["deployment_id"]: row for row in answer["groups"][0]["deployments"]}
    assert rows["eu/b two"]["capacity"] == 60
    served = next(row for row in rows.values() if row["attempts"])
    assert (served["latency_ms"], served["failed"], served["breaker"]["state"]) == (pytest.approx(200), 0, "closed")
    assert [g["group"] for g in (await h.admin.get("/balance", params={"group": "embed"})).json()["groups"]] == [
        "embed"
    ]
    assert (await h.admin.get("/balance/groups/chat")).json()["group"] == "chat"


async def test_a_wait_is_shown_as_measured_and_as_estimated(h):
    def row(answer):
        return next(one for one in answer["groups"][0]["deployments"] if one["attempts"])

    seen = row((await h.admin.get("/balance")).json())
    assert (seen["wait_ms"], seen["believed_wait_ms"]) == (pytest.approx(200), pytest.approx(200))
    await h.clock.advance(100)
    seen = row((await h.admin.get("/balance")).json())
    assert (seen["wait_ms"], seen["believed_wait_ms"]) == (pytest.approx(200), 0.01)


@pytest.mark.parametrize(
    ("method", "path", "status", "word"),
    [
        ("GET", "/balance?provider=x", 422, "provider"),
        ("GET", "/balance/groups/none", 404, "none"),
        ("DELETE", "/balance/groups/chat", 404, "live settings"),
        ("POST", "/balance/none/reset", 404, "none"),
        ("POST", "/balance/a/reset?group=embed", 404, "embed"),
        ("POST", "/balance/a/probe?x=1", 422, "x"),
    ],
)
async def test_what_is_not_there_is_named(h, method, path, status, word):
    answer = await h.admin.request(method, path)
    assert answer.status_code == status
    assert word in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ({}, "tactic"),
        ({"tactic": "adaptiv"}, "did you mean 'adaptive'"),
        ({"tactic": {"name": "p2c", "x": 1}}, "tactic: x: unknown key; settings of 'p2c': none"),
        ({"breaker": {"open_s": -1}}, "open_s"),
        ({"tactic": {"name": "latency_based", "god_ms": 1}}, "god_ms: unknown key (did you mean 'good_ms'?)"),
        ({"breaker": {"opens": 1}}, "breaker.opens: unknown key (did you mean 'open_s'?); allowed: auth_s, "),
        ({"breaker": "fast"}, "breaker: Input should be 'swift' or 'classic'"),
        ({"tactics": "p2c"}, "tactics: unknown key (did you mean 'tactic'?); allowed: breaker, tactic"),
    ],
)
async def test_settings_that_cannot_be_used_change_nothing(h, body, word):
    answer = await h.admin.put("/balance/groups/chat", json=body)
    assert answer.status_code == 422
    assert word in answer.json()["error"]["message"]
    assert (await h.admin.get("/balance/groups/chat")).json()["changed"] is False


async def test_a_body_that_is_too_large_is_refused(h):
    answer = await h.admin.put("/balance/groups/chat", content=b'{"tactic": "' + b"x" * 1_000_000 + b'"}')
    assert answer.status_code == 422
    assert "larger than" in answer.json()["error"]["message"]


async def test_a_probe_speaks_the_api_of_the_deployment_and_decides(h):
    for _ in range(3):
        h.gateway.upstream.answer({"e": error(401)})
        answer = (await h.clock.run(h.admin.post("/balance/e/probe"))).json()
        assert (answer["ok"], answer["breaker"]["state"]) == (False, "open")
        assert answer["message"]
    h.gateway.upstream.answer({"e": ok()})
    answer = (await h.clock.run(h.admin.post("/balance/e/probe"))).json()
    assert (answer["ok"], answer["breaker"]["state"]) == (True, "closed")


async def test_an_id_with_a_slash_can_be_reset(h):
    answer = await h.admin.post("/balance/eu%2Fb%20two/reset", params={"group": "chat"})
    assert [row["deployment_id"] for row in answer.json()["reset"]] == ["eu/b two"]
