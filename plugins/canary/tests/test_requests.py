from __future__ import annotations

import pytest

from pointsman.errors import PluginLoadError
from pointsman.testing import deployment, error, ok
from pointsman.types import Identity, Outcome

BOTH = {"old": ok("old"), "new": ok("new")}


async def test_request_goes_to_its_arm_and_says_which(fleet, kit):
    worker = await fleet.worker(kit.rollout())
    results = await kit.send(worker, 200, BOTH)
    arms = kit.arms(results)
    assert 60 < arms.count("canary") < 140
    for result, arm in zip(results, arms, strict=True):
        assert result.text == {"stable": "old", "canary": "new"}[arm]
        labels = result.attempts[0].labels
        assert (labels["experiment"], labels["arm"], labels["stage"], labels["weight"]) == ("chat-v2", arm, "1.2", "50")
        assert (int(labels["bucket"]) < 5000) == (arm == "canary")
        assert result.settlement.labels == labels


async def test_unit_stays_on_its_arm(fleet, kit):
    worker = await fleet.worker(kit.rollout(unit="key"))
    for number in range(20):
        identity = Identity(key_hash=f"{number:064x}")
        assert len(set(kit.arms(await kit.send(worker, 5, BOTH, identity=identity)))) == 1


@pytest.mark.parametrize(
    ("unit", "having", "lacking"),
    [
        ("session", {"session_id": "s"}, {}),
        ("end_user", {"identity": Identity(end_user="u")}, {"identity": Identity()}),
        ("key", {"identity": Identity(key_hash="k")}, {"identity": Identity()}),
        ("header:x-user", {"headers": {"X-User": "u"}}, {"headers": {"X-User": ""}}),
    ],
)
async def test_request_without_the_unit_takes_no_part(fleet, kit, unit, having, lacking):
    worker = await fleet.worker(kit.rollout(unit=unit, model="old", stable=None))
    (result,) = await kit.send(worker, 1, BOTH, model="old", **having)
    assert "x-pointsman-arm" in result.headers
    (result,) = await kit.send(worker, 1, BOTH, model="old", **lacking)
    assert "x-pointsman-arm" not in result.headers
    assert result.text == "old"


async def test_filter_narrows_and_the_first_match_wins(fleet, kit):
    worker = await fleet.worker(
        kit.rollout(name="tenant", filter={"tenant": "acme"}),
        kit.rollout(name="key", filter={"key": "alias", "headers": {"X-Beta": "yes"}}, canary="newer"),
        kit.rollout(name="all"),
    )

    async def experiment_of(**request):
        (result,) = await kit.send(worker, 1, ok(), **request)
        return result.settlement.labels["experiment"]

    beta = {"x-beta": "yes"}
    assert await experiment_of(identity=Identity(tenant="acme", key_alias="alias"), headers=beta) == "tenant"
    assert await experiment_of(identity=Identity(key_alias="alias"), headers=beta) == "key"
    assert await experiment_of(identity=Identity(key_hash="alias"), headers=beta) == "key"
    assert await experiment_of(identity=Identity(key_alias="alias")) == "all"
    assert await experiment_of(identity=Identity(tenant="other"), headers=beta) == "all"


async def test_other_models_are_left_alone(fleet, kit):
    worker = await fleet.worker(kit.rollout())
    (result,) = await kit.send(worker, 1, ok(), model="newer")
    assert "experiment" not in result.settlement.labels


async def canary_only(fleet, kit, **fields):
    """Start a worker whose requests go to the canary, 99.99 % of them."""
    return await fleet.worker(kit.rollout(steps=[99.99], interval_s=86_400, **fields))


async def test_failing_canary_is_saved_by_stable_and_still_counted_as_its_failure(fleet, kit):
    worker = await canary_only(fleet, kit, fallback_to_stable=True)
    results = await kit.send(worker, 10, {"new": error(500), "old": ok("saved")}, retries=0)
    assert {result.text for result in results} == {"saved"}
    assert {result.status for result in results} == {200}
    await worker.settled()
    assert await fleet.counted() == {"ok": 0, "failed": 10}
    assert await fleet.counted("stable") == {"ok": 0, "failed": 0}


async def test_without_fallback_the_request_stays_on_its_arm(fleet, kit):
    worker = await canary_only(fleet, kit)
    (result,) = await kit.send(worker, 1, {"new": error(500), "old": ok("saved")}, retries=2)
    assert result.status == 500
    assert {attempt.deployment.group for attempt in result.attempts} == {"new"}
    assert await fleet.counted() == {"ok": 0, "failed": 1}


async def test_gateways_own_fallback_does_not_count_for_the_canary(fleet, kit):
    worker = await canary_only(fleet, kit)
    script = {"new": error(500), "newer": ok("other")}
    (result,) = await kit.send(worker, 1, script, retries=0, fallbacks=["newer"])
    assert result.text == "other"
    await worker.settled()
    assert await fleet.counted() == {"ok": 0, "failed": 1}


async def test_retry_that_succeeds_counts_as_one_failure(fleet, kit):
    """Whether there is a retry depends on how the first attempt ended, so only the first counts."""
    worker = await canary_only(fleet, kit)
    (result,) = await kit.send(worker, 1, {"new": [error(500), ok()]})
    assert result.outcome is Outcome.OK
    await worker.settled()
    assert await fleet.counted() == {"ok": 0, "failed": 1}


async def test_canary_without_a_deployment_is_counted_even_without_an_attempt(fleet, kit):
    """All its deployments are gone: the first attempt is already stable's."""
    worker = await canary_only(fleet, kit, fallback_to_stable=True)
    worker.gateway.catalog.replace([deployment("old-1", "old"), deployment("new-1", "elsewhere")])
    result = await worker.request(script=ok("saved"))
    await worker.settled()
    assert [attempt.deployment.group for attempt in result.attempts] in ([], ["old"])
    assert await fleet.counted() == {"ok": 0, "failed": 1}


@pytest.mark.parametrize("stream", [False, True])
async def test_disconnected_and_cached_answers_are_no_errors(fleet, kit, stream):
    worker = await canary_only(fleet, kit)
    await worker.request(script=ok(cached=True), stream=stream)
    await worker.request(script=ok("a b c"), stream=True, leave_after_pieces=1)
    await worker.settled()
    assert await fleet.counted() == {"ok": 0, "failed": 0}


async def test_one_deployment_can_be_the_canary_of_its_own_group(fleet, kit):
    worker = await fleet.worker(kit.rollout(model="old", stable="old-1", canary="old-2"))
    results = await kit.send(worker, 40, {"old-1": ok("one"), "old-2": ok("two")}, model="old")
    for result, arm in zip(results, kit.arms(results), strict=True):
        assert result.text == {"stable": "one", "canary": "two"}[arm]


async def test_spans_carry_the_assignment(fleet, kit):
    worker = await fleet.worker(kit.rollout(), tracing=True)
    (result,) = await kit.send(worker, 1, BOTH)
    labels = {f"pointsman.label.{key}": value for key, value in result.settlement.labels.items()}
    assert set(labels) >= {f"pointsman.label.{key}" for key in ("experiment", "arm", "bucket", "weight")}
    assert any(labels.items() <= dict(span.attributes or {}).items() for span in worker.spans)


async def test_unknown_targets_stop_the_start_with_their_keys_and_the_nearest_names(fleet, kit):
    """All at once."""
    arms = {"b": {"target": "new", "percent": 1}, "c": {"target": "newr", "percent": 1}}
    with pytest.raises(PluginLoadError) as caught:
        await fleet.worker(
            kit.rollout(stable="odl", canary="somewhere else"),
            kit.rollout(name="fine", model="x"),
            kit.rollout(name="ab", model="y", canary=None, steps=None, arms=arms),
        )
    assert str(caught.value).endswith(
        """\
canary.experiments[0].stable: the gateway has no model group or deployment 'odl' (did you mean 'old'?)
canary.experiments[0].canary: the gateway has no model group or deployment 'somewhere else'
canary.experiments[2].arms.c.target: the gateway has no model group or deployment 'newr' (did you mean 'newer'?)"""
    )
