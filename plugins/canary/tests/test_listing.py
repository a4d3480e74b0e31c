"""The names that only experiments know, in ``GET /v1/models``."""

from __future__ import annotations

import pytest

from pointsman.errors import Conflict


def listed(worker) -> dict[str, str]:
    return worker.gateway.catalog.listed


async def test_name_that_the_gateway_does_not_have_is_listed_as_its_stable_group(fleet, kit):
    worker = await fleet.worker(kit.rollout(), kit.rollout(name="by-id", model="talk", stable="old-1"))
    assert listed(worker) == {"chat": "old", "talk": "old"}


async def test_name_that_is_served_elsewhere_is_not_listed(fleet, kit):
    """A model group, a deployment, a registered name, and what goes where it would go anyway."""
    short = {"steps": [1]}
    worker = await fleet.worker(
        kit.rollout(name="group", model="newer", **short),
        kit.rollout(name="id", model="newer-1", **short),
        kit.rollout(name="anyway", model="talk", stable=None, **short),
        kit.rollout(name="version", model="named", stable={"version": "1"}, canary={"version": "2"}, **short),
    )
    assert listed(worker) == {}


async def test_every_worker_follows_what_is_begun_ended_and_removed_over_http(fleet, kit):
    """An experiment that is over still routes its name, so only a removal takes it off the list."""
    workers = [await fleet.worker(name=name) for name in ("one", "two")]
    first = workers[0].admin
    assert (await first.post("/canary", json={"experiment": kit.rollout()})).status_code == 201
    assert listed(workers[0]) == {"chat": "old"}
    await fleet.ticks(2)
    assert listed(workers[1]) == {"chat": "old"}
    changed = kit.rollout(stable="newer")
    assert (await first.post("/canary/chat-v2/restart", json={"experiment": changed})).status_code == 200
    assert (await first.post("/canary/chat-v2/rollback")).status_code == 200
    await fleet.ticks(2)
    assert [listed(worker) for worker in workers] == [{"chat": "newer"}] * 2
    assert (await first.delete("/canary/chat-v2")).status_code == 200
    await fleet.ticks(2)
    assert [listed(worker) for worker in workers] == [{}, {}]


async def test_list_follows_the_gateways_configuration(fleet, kit):
    worker = await fleet.worker(kit.rollout())
    catalog, before = worker.gateway.catalog, kit.deployments
    catalog.replace([each for each in before if each.group != "old"])
    await fleet.clock.advance(6)
    assert listed(worker) == {}
    catalog.replace(before)
    await fleet.clock.advance(6)
    assert listed(worker) == {"chat": "old"}


async def test_name_that_is_an_alias_of_the_gateways_is_left_to_it(fleet, kit, monkeypatch):
    worker = await fleet.worker()

    def taken(name, *_, **__):
        raise Conflict(f"the model name {name!r} is taken")

    monkeypatch.setattr(worker.gateway.catalog, "list_model", taken)
    assert (await worker.admin.post("/canary", json={"experiment": kit.rollout()})).status_code == 201
    assert worker.status("canary").ok


@pytest.mark.parametrize("phase", ["promote", "rollback"])
async def test_experiment_that_is_over_is_listed_again_after_a_restart(fleet, kit, phase):
    worker = await fleet.worker(kit.rollout())
    await worker.admin.post(f"/canary/chat-v2/{phase}")
    await worker.restart()
    assert listed(worker) == {"chat": "old"}
