"""What operators and ``GET /v1/models`` see."""

from __future__ import annotations

import dataclasses

import pytest

from pointsman.errors import PluginLoadError
from pointsman.testing import deployment, error, ok
from pointsman.types import Signal, SignalStatus

from .conftest import DEPLOYMENTS

SMART = {"name": "smart", "display_name": "Smart", "description": "Two of them", "candidates": ["chat", "backup"]}


async def test_overview(track):
    async with track(models=[SMART], config={"groups": {"tiny": {}}, "default_model": "smart"}) as h:
        await h.request(model="smart", stream=True, script={"chat": ok(latency_s=1), "backup": ok()})
        await h.request(model="tiny")
        shown = (await h.admin.get("/racing")).json()
        one = (await h.admin.get("/racing/smart")).json()
        assert (await h.admin.get("/racing/nobody")).status_code == 404
    smart, tiny = shown["races"]
    assert one == smart
    assert (smart["kind"], smart["display_name"], tiny["kind"]) == ("model", "Smart", "group")
    assert smart["counts"]["requests"] == tiny["counts"]["requests"] == 1
    assert [c["target"] for c in smart["candidates"]] == ["chat", "backup"]
    assert {row["deployment_id"]: (row["wins"], row["losses"], row["cancelled"]) for row in shown["deployments"]} == {
        "backup-a": (1, 0, 0),
        "chat-a": (0, 1, 1),
        "tiny": (1, 0, 0),
    }
    assert shown["cancelling_ms"]["count"] == 1
    assert (shown["default_model"], shown["running"], shown["budget"]["ratio"]) == ("smart", 0, None)


async def test_a_model_is_healthy_when_any_candidate_is(track):
    async with track(models=[SMART], config={"defaults": {"max_attempts": 1}}) as h:

        async def healthy():
            shown = (await h.admin.get("/racing/smart")).json()
            return shown["healthy"], [c["healthy"] for c in shown["candidates"]], h.status("racing").ok

        assert await healthy() == (True, [True, True], True)
        for _ in range(3):
            await h.request(model="backup", retries=0, script=error(500))
        assert await healthy() == (True, [True, False], True)
        services = h.plugin("racing")._services
        for name in ("chat-a", "chat-b"):
            now = h.clock.now()
            services.signals.put(
                Signal(deployment_id=name, status=SignalStatus.EXHAUSTED, recorded_at=now, until=now + 50)
            )
        assert await healthy() == (False, [False, False], False)
        await h.clock.advance(70)
        assert await healthy() == (True, [True, True], True)


ABLE = {"supports_vision": True, "supports_function_calling": True, "supports_response_schema": True}


async def test_a_model_can_do_what_every_candidate_can(track):
    deployments = [
        deployment("a", max_input_tokens=1000, **ABLE),
        deployment("b", max_input_tokens=500, **{**ABLE, "supports_vision": False}),
        deployment("c"),
    ]
    models = [
        {"name": "two", "candidates": ["a", "b"], "description": "Both"},
        {"name": "all", "candidates": ["a", "c"]},
    ]
    async with track(models=models, deployments=deployments) as h:
        listed = h.gateway.catalog.listed_info
        assert listed["two"]["capabilities"] == {
            "streaming": True,
            "responses": True,
            "tools": True,
            "structured_output": True,
            "vision": False,
            "reasoning": False,
        }
        assert (listed["two"]["max_input_tokens"], listed["two"]["description"]) == (500, "Both")
        assert listed["two"]["supports_vision"] is False
        assert listed["all"]["capabilities"]["tools"] is False, "an unknown capability is not promised"
        assert "max_input_tokens" not in listed["all"]
        assert h.gateway.catalog.listed == {"two": "a", "all": "a"}


async def test_the_list_follows_the_gateways_configuration(track):
    async with track(models=[SMART]) as h:
        assert h.gateway.catalog.listed == {"smart": "chat"}
        before = h.gateway.catalog.deployments()
        h.gateway.catalog.replace([d for d in before if d.group == "backup"])
        await h.clock.advance(6)
        assert h.gateway.catalog.listed == {"smart": "backup"}
        h.gateway.catalog.replace(())
        await h.clock.advance(6)
        assert h.gateway.catalog.listed == {}
        h.gateway.catalog.replace([dataclasses.replace(d, info={**ABLE}) for d in before])
        await h.clock.advance(6)
        assert h.gateway.catalog.listed == {"smart": "chat"}
        assert h.gateway.catalog.listed_info["smart"]["capabilities"]["vision"] is True


@pytest.mark.parametrize("candidate", ["backup", "nope"])
async def test_a_name_that_is_taken_stops_the_start(track, candidate):
    """Also when no deployment could serve it: a model group would answer every request with 404."""
    models = [{"name": "swift", "candidates": ["tiny"]}, {"name": "chat", "candidates": [candidate]}]
    with pytest.raises(PluginLoadError, match=r"failed: racing\.models\[1\]\.name: the model name 'chat' is taken"):
        await track(models=models).start()


async def test_a_name_that_is_taken_later_is_a_problem(track):
    async with track(models=[SMART]) as h:
        h.gateway.catalog.replace([*h.gateway.catalog.deployments(), deployment("smart")])
        await h.clock.advance(6)
        assert "racing.models[0].name: the model name 'smart' is taken" in h.status("racing").summary
        assert not h.faults


UNKNOWN = [
    "racing.models[0].candidates[1].target: the gateway has no model group or deployment 'bakup' (did you mean 'backup'?)",
    "racing.models[0].candidates[2].model: no deployment of 'tiny' has the model 'tini' (did you mean 'tiny'?)",
    "racing.groups.caht: the gateway has no model group or deployment 'caht' (did you mean 'chat'?)",
]


async def test_names_that_the_gateway_does_not_have_are_in_the_log_and_the_status(track, caplog):
    """With their keys and the nearest names; once in the log, and not while the gateway has no deployment yet."""
    candidates = ["chat", "bakup", {"target": "tiny", "model": "tini"}]
    worker = track(models=[{**SMART, "candidates": candidates}], config={"groups": {"caht": {}}}, deployments=())

    def warnings():
        return [
            record.getMessage()
            for record in caplog.records
            if (record.name, record.levelname) == ("pointsman.racing", "WARNING")
        ]

    async with worker as h:
        assert warnings() == []
        h.gateway.catalog.replace(DEPLOYMENTS)
        await h.clock.advance(20)
        assert warnings() == UNKNOWN
        assert h.status("racing").details["problems"] == ["'caht' has no healthy candidate", *UNKNOWN]
    caplog.clear()
    async with track(models=[{**SMART, "candidates": candidates}], config={"groups": {"caht": {}}}):
        assert warnings() == UNKNOWN
