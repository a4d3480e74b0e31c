from __future__ import annotations

import asyncio
import json

import pytest

from pointsman.testing import error, ok
from pointsman_canary.rollout import Phase

FINE = {"old": ok("old"), "new": ok("new")}
BAD = {"old": ok("old"), "new": error(500)}


async def post(worker, path, expected=200, **body):
    answer = await worker.admin.post(f"/canary{path}", json=body)
    assert answer.status_code == expected, answer.text
    return answer.json()


async def test_experiment_can_be_begun_watched_and_removed_over_http(fleet, kit):
    worker = await fleet.worker()
    assert (await worker.admin.get("/canary")).json() == {"experiments": [], "problems": []}
    made = await post(worker, "", 201, experiment=kit.rollout(), who="anna", reason="new model")
    assert (made["phase"], made["weights_percent"], made["step"], made["steps"]) == ("running", {"canary": 50}, 1, 2)
    assert "canary" in kit.arms(await kit.send(worker, 30, FINE))
    await fleet.ticks(3)
    shown = (await worker.admin.get("/canary/chat-v2")).json()
    (found,) = shown["analysis"]["canary"]
    assert found["metric"] == "error_rate:mean"
    assert found["canary_samples"] + found["stable_samples"] == 30
    assert shown["definition"]["canary"] == "new"
    await post(worker, "/chat-v2/rollback", who="berta")
    assert (await worker.admin.delete("/canary/chat-v2")).json() == {"deleted": "chat-v2"}
    assert (await worker.admin.get("/canary/chat-v2")).status_code == 404
    trail = (await worker.admin.get("/canary/chat-v2/audit")).json()["audit"]
    assert [(entry["what"], entry["who"], entry["reason"]) for entry in reversed(trail)] == [
        ("create", "anna", "new model"),
        ("step", "canary", "begin"),
        ("rollback", "berta", "requested"),
        ("delete", "admin", "requested"),
    ]
    assert [entry["what"] for entry in (await worker.admin.get("/canary/chat-v2/audit?limit=1")).json()["audit"]] == [
        "delete"
    ]


async def test_removed_name_can_be_used_again_and_keeps_its_trail(fleet, kit):
    worker = await fleet.worker()
    for _ in range(2):
        await post(worker, "", 201, experiment=kit.rollout())
        await worker.admin.delete("/canary/chat-v2?force=true")
    assert [entry["what"] for entry in await fleet.entries()] == ["create", "step", "delete"] * 2


async def test_people_can_hold_push_and_move_a_rollout(fleet, kit):
    worker = await fleet.worker(kit.rollout(steps=[1, 5, 100]))
    assert (await post(worker, "/chat-v2/pause"))["phase"] == "paused"
    assert (await post(worker, "/chat-v2/resume"))["phase"] == "running"
    assert (await post(worker, "/chat-v2/weight", percent=12.34))["weights_percent"] == {"canary": 12.34}
    assert (await post(worker, "/chat-v2/promote"))["weights_percent"] == {"canary": 100}
    assert (await post(worker, "/chat-v2/rollback"))["phase"] == "rolled_back"
    assert set(kit.arms(await kit.send(worker, 30, FINE))) == {"stable"}
    assert (await post(worker, "/chat-v2/restart"))["weights_percent"] == {"canary": 1}


async def test_ab_experiment_over_http(fleet, kit):
    worker = await fleet.worker()
    arms = {"b": {"target": "new", "percent": 30}, "c": {"target": "newer", "percent": 30}}
    await post(worker, "", 201, experiment=kit.rollout(canary=None, steps=None, arms=arms))
    seen = kit.arms(await kit.send(worker, 100, ok()))
    assert {arm: seen.count(arm) > 10 for arm in seen} == {"stable": True, "b": True, "c": True}
    await post(worker, "/chat-v2/weight", percents={"b": 0})
    assert set(kit.arms(await kit.send(worker, 60, ok()))) == {"stable", "c"}
    await post(worker, "/chat-v2/promote", arm="c")
    assert set(kit.arms(await kit.send(worker, 20, ok()))) == {"c"}


async def test_scores_of_a_judge_decide(fleet, kit):
    worker = await fleet.worker(kit.rollout(metrics=["score"]))
    for number in range(60):
        scores = [
            {"arm": "stable", "score": 0.7 + 0.2 * (number % 2), "request_id": f"s{number}"},
            {"arm": "canary", "score": 0.1 + 0.2 * (number % 2), "request_id": f"c{number}"},
        ]
        assert await post(worker, "/chat-v2/score", scores=scores) == {"counted": 2, "repeated": 0}
        assert await post(worker, "/chat-v2/score", scores=scores) == {"counted": 0, "repeated": 2}
        await fleet.ticks(2)
        if (await fleet.state()).phase is Phase.ROLLED_BACK:
            break
    assert (await fleet.state()).phase is Phase.ROLLED_BACK
    assert "score:mean of canary: 0." in (await fleet.state()).reason


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        ("", {}, (422, "experiment")),
        ("", {"experiment": {"name": "x", "model": "m", "canary": "new", "steps": [5, 1]}}, (422, "experiment")),
        ("", {"experiment": {"name": "x", "model": "m", "canary": "new", "stepz": [1]}}, (422, "experiment.stepz")),
        ("", {"experiment": {"name": "x", "model": "m", "canary": "nowhere"}}, (422, "experiment.canary")),
        ("", {"experiment": {"name": "x", "model": "m", "canary": "new", "stable": "new"}}, (422, "experiment")),
        (
            "",
            {"experiment": {"name": "x", "model": "m", "canary": "new", "gates": {"before_step": "ci"}}},
            (422, "experiment.gates"),
        ),
        ("", {"experiment": {"name": "chat-v2", "model": "m", "canary": "new"}}, (409, None)),
        ("", {"experiment": {"name": "rival", "model": "chat", "canary": "newer"}}, (409, None)),
        ("", {"experiment": {"name": "../x", "model": "m", "canary": "new"}}, (422, "experiment.name")),
        ("/nothing/pause", {}, (404, None)),
        ("/chat-v2/pause", {"who": ""}, (422, "who")),
        ("/chat-v2/pause", {"wh": "x"}, (422, "wh")),
        ("/chat-v2/resume", {}, (409, None)),
        ("/chat-v2/promote", {"arm": "b"}, (409, None)),
        ("/chat-v2/weight", {}, (422, "percent")),
        ("/chat-v2/weight", {"percent": 5, "percents": {"canary": 5}}, (422, "percent")),
        ("/chat-v2/weight", {"percent": 101}, (422, "percent")),
        ("/chat-v2/weight", {"percent": -1}, (422, "percent")),
        ("/chat-v2/weight", {"percent": 100}, (409, None)),
        ("/chat-v2/weight", {"percents": {"b": 5}}, (409, None)),
        ("/chat-v2/score", {"scores": [{"arm": "canary", "score": 0.5}]}, (409, None)),
        ("/chat-v2/score", {"scores": [{"arm": "canary", "score": 1.5}]}, (422, "scores.0.score")),
        ("/scored/score", {"scores": [{"arm": "b", "score": 0.5}]}, (422, "scores.0.arm")),
        ("/chat-v2/restart", {"experiment": {"name": "x", "model": "m", "canary": "new"}}, (409, None)),
        ("/scored/restart", {"experiment": {"name": "x", "model": "m", "canary": "new"}}, (422, "experiment.name")),
    ],
)
async def test_bad_request_is_refused_with_the_field_and_changes_nothing(fleet, kit, path, body, expected):
    worker = await fleet.worker(kit.rollout())
    await post(worker, "", 201, experiment=kit.rollout(name="scored", model="old", stable=None, metrics=["score"]))
    before = await fleet.state()
    answer = await worker.admin.post(f"/canary{path}", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == expected, answer.text
    assert await fleet.state() == before


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        (
            "",
            {"experimnt": {}, "experiment": {"name": "x", "model": "m", "canary": "new"}},
            "did you mean 'experiment'?",
        ),
        ("", {"experiment": {"name": "x", "model": "m", "canary": "new", "stepz": [1]}}, "did you mean 'steps'?"),
        ("", {"experiment": {"name": "x", "model": "m", "canary": "new", "filter": {"tennant": "a"}}}, "'tenant'?"),
        ("", {"experiment": {"name": "x", "model": "m", "arms": {"b": {"target": "new", "precent": 1}}}}, "'percent'?"),
        ("", {"experiment": {"name": "x", "model": "m", "canary": "new", "metrics": [{"sharre": 1}]}}, "'share'?"),
        ("", {"experiment": {"name": "x", "model": "m", "canary": "newr"}}, "did you mean 'newer'?"),
        ("/chat-v2/pause", {"wo": "anna"}, "wo: unknown key (did you mean 'who'?); allowed: reason, who"),
    ],
)
async def test_misspelt_field_or_target_is_answered_with_the_nearest(fleet, kit, path, body, message):
    worker = await fleet.worker(kit.rollout())
    answer = await worker.admin.post(f"/canary{path}", json=body)
    assert answer.status_code == 422
    assert message in answer.json()["error"]["message"]


@pytest.mark.parametrize("raw", [b"{", b"[]", b'{"percent": NaN}', b"\xff", b'"x"', b"[" * 100_000])
async def test_broken_json_is_refused(fleet, kit, raw):
    worker = await fleet.worker(kit.rollout())
    answer = await worker.admin.post("/canary/chat-v2/weight", content=raw)
    assert answer.status_code == 422
    assert answer.json()["error"]["param"] in {"body", "percent"}


@pytest.mark.parametrize(("query", "param"), [("?limit=0", "limit"), ("?limit=x", "limit"), ("?limi=1", "limi")])
async def test_bad_query_is_refused(fleet, kit, query, param):
    worker = await fleet.worker(kit.rollout())
    answer = await worker.admin.get(f"/canary/chat-v2/audit{query}")
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, param)


async def test_what_the_configuration_defines_is_removed_there(fleet, kit):
    worker = await fleet.worker(kit.rollout())
    assert (await worker.admin.delete("/canary/chat-v2?force=true")).status_code == 409


async def test_running_experiment_is_only_removed_by_force(fleet, kit):
    worker = await fleet.worker()
    await post(worker, "", 201, experiment=kit.rollout())
    assert (await worker.admin.delete("/canary/chat-v2")).status_code == 409
    assert (await worker.admin.delete("/canary/chat-v2?force=true")).status_code == 200
    (result,) = await kit.send(worker, 1, FINE, model="old")
    assert "x-pointsman-arm" not in result.headers


async def test_person_named_by_the_bridge_is_in_the_trail(fleet, kit):
    worker = await fleet.worker(kit.rollout())
    await worker.admin.post("/canary/chat-v2/pause", headers={"x-pointsman-user": "carla"})
    assert (await fleet.entries())[-1]["who"] == "carla"


async def test_experiments_are_read_by_other_plugins_through_the_status(fleet, kit):
    worker = await fleet.worker(kit.rollout())
    status = worker.host.statuses()["canary"]
    assert status.ok
    assert status.summary == "1 running"
    (shown,) = status.details["experiments"]
    assert (shown["name"], shown["model"], shown["phase"]) == ("chat-v2", "chat", "running")
    assert json.loads(json.dumps(status.details, allow_nan=False)) == status.details


async def test_two_people_who_act_at_once_are_both_heard(fleet, kit):
    """Weights set by two workers at the same moment: both are in the trail, and the state is the later one."""
    workers = [await fleet.worker(kit.rollout(), name=name) for name in ("one", "two")]
    answers = await asyncio.gather(
        *(
            worker.admin.post("/canary/chat-v2/weight", json={"percent": 10 + number})
            for number, worker in enumerate(workers * 5)
        )
    )
    assert {answer.status_code for answer in answers} == {200}
    trail = [entry["weights_bp"][0] for entry in await fleet.entries() if entry["what"] == "weight"]
    assert sorted(trail) == [100 * (10 + number) for number in range(10)]
    assert (await fleet.state()).weights_bp == (trail[-1],)
