from __future__ import annotations

import asyncio
from importlib.metadata import entry_points

import pytest
from pydantic import ValidationError

from pointsman.errors import AdminError, ConfigError, Conflict, NotFound, StoreUnavailable
from pointsman.events import ActivationRequested, BudgetSpent, VersionActivated
from pointsman.types import Denial, Deployment, Route
from pointsman_registry.config import RegistryConfig, VersionSpec
from pointsman_registry.plugin import plugin


async def register(worker, id_, **fields):
    spec = {"id": id_, "name": "chat", "version": f"v{id_}", "path": "small", **fields}
    return await worker.registry.register(VersionSpec(**spec), "w")


async def test_active_version_decides_target_labels_and_header(worker):
    await register(worker, "1", active=True)
    await register(worker, "2", path="dep-c")
    route = await worker.plugin.pre_route(Route(target="chat", labels={"team": "x"}))
    assert route.target == "small"
    assert route.labels == {"team": "x", "model_name": "chat", "version": "v1", "version_id": "1"}
    assert route.target_headers == {"small": {"x-pointsman-version": "v1"}}
    await worker.registry.activate("2", "w", "")
    assert (await worker.plugin.pre_route(Route(target="chat"))).target == "dep-c"


async def test_name_that_is_not_registered_is_left_alone(worker):
    assert await worker.plugin.pre_route(Route(target="small")) is None


async def test_target_counts_not_what_the_client_asked_for(worker):
    """An earlier plugin may have sent the request to a registered name."""
    await register(worker, "1", active=True)
    assert (await worker.plugin.pre_route(Route(target="something").to("chat"))).target == "small"


@pytest.mark.parametrize(("wanted", "target"), [("2", "large"), ("gone", "small"), ("other-1", "small")])
async def test_earlier_plugin_can_ask_for_a_version_of_the_same_name(worker, wanted, target):
    """A requested version of another name is ignored, and the labels name the version that is served."""
    await register(worker, "1", active=True)
    await register(worker, "2", path="large")
    await register(worker, "other-1", name="other", path="spare", active=True)
    route = await worker.plugin.pre_route(Route(target="chat", labels={"version_id": wanted}))
    assert route.target == target
    assert route.labels["version_id"] == {"large": "2", "small": "1"}[target]


async def test_header_names_the_requested_version_or_the_active_one_that_a_fallback_reaches(worker):
    await register(worker, "1", active=True)
    await register(worker, "2", path="large")
    await register(worker, "3", path="small")
    route = await worker.plugin.pre_route(Route(target="chat", labels={"version_id": "2"}))
    assert route.target_headers == {"small": {"x-pointsman-version": "v1"}, "large": {"x-pointsman-version": "v2"}}
    assert "x-pointsman-version" not in route.headers
    same_path = await worker.plugin.pre_route(Route(target="chat", labels={"version_id": "3"}))
    assert same_path.target_headers == {"small": {"x-pointsman-version": "v3"}}


async def test_wished_version_is_served_even_when_none_is_active(worker):
    await register(worker, "1")
    assert (await worker.plugin.pre_route(Route(target="chat", labels={"version_id": "1"}))).target == "small"


async def test_status_counts_in_plain_words(worker):
    await register(worker, "1")
    assert worker.plugin.status().summary == "1 version of 1 model"
    await register(worker, "2")
    assert worker.plugin.status().summary == "2 versions of 1 model"


async def test_status_says_who_serves_each_version(worker):
    """Other plugins reach a version that is not active through its path."""
    await register(worker, "1")
    assert worker.plugin.status().details["paths"] == {"1": "small"}


async def test_name_without_active_version_is_a_503_that_says_so(worker):
    await register(worker, "1")
    denial = await worker.plugin.pre_route(Route(target="chat"))
    assert isinstance(denial, Denial)
    assert (denial.status, denial.code) == (503, "no_active_version")
    assert "'chat' has no active version" in denial.message


async def test_path_that_disappeared_later_is_a_503_that_says_so_and_is_seen_in_the_status(worker):
    await register(worker, "1", active=True)
    assert worker.plugin.status().ok
    del worker.catalog.groups["small"]
    denial = await worker.plugin.pre_route(Route(target="chat"))
    assert (denial.status, denial.code) == (503, "version_path_missing")
    assert "'small'" not in denial.message
    status = worker.plugin.status()
    assert not status.ok
    assert "the gateway has no 'small'" in status.summary


@pytest.mark.parametrize(
    ("name", "path", "message"),
    [
        ("chat", "smal", "did you mean 'small'"),
        ("chat", "dep-z", "did you mean 'dep-"),
        ("chat", "nothing like it", "known: 'large', 'small', 'spare'"),
        ("small", "large", "has 'small' itself"),
        ("dep-a", "large", "has 'dep-a' itself"),
        ("chat", "chat", "no model group or deployment 'chat'"),
    ],
)
async def test_unknown_path_and_taken_name_are_refused(worker, name, path, message):
    with pytest.raises(AdminError, match=message) as caught:
        await register(worker, "1", name=name, path=path)
    assert caught.value.param == ("name" if name != "chat" else "path")
    assert worker.registry.state.versions == {}


async def test_names_are_listed_while_they_have_an_active_version(worker):
    """GET /v1/models follows activation, deletion and rollback."""
    await register(worker, "1")
    assert worker.catalog.listed == {}
    await worker.registry.activate("1", "w", "")
    assert worker.catalog.listed == {"chat": "small"}
    await register(worker, "2", path="dep-c", active=True)
    assert worker.catalog.listed == {"chat": "dep-c"}
    await worker.registry.delete("2", "w", "", force=True)
    assert worker.catalog.listed == {}
    await worker.registry.rollback("chat", "w", "")
    assert worker.catalog.listed == {"chat": "small"}


async def test_name_that_the_gateway_takes_later_is_served_but_reported(worker):
    await register(worker, "1", active=True)
    worker.catalog.groups["chat"] = ["dep-x"]
    await worker.registry.refresh()
    assert "'chat' is not listed" in worker.plugin.status().summary
    assert (await worker.plugin.pre_route(Route(target="chat"))).target == "small"
    del worker.catalog.groups["chat"]
    await worker.registry.refresh()
    assert worker.plugin.status().ok


async def test_activation_is_announced_once_and_idempotent(worker):
    await register(worker, "1", active=True)
    await register(worker, "2")
    for _ in range(3):
        await worker.registry.activate("2", "anna", "better")
    await worker.registry.rollback("chat", "berta", "worse")
    await worker.registry.delete("1", "carla", "", force=True)
    assert [
        (event.source, event.name, event.previous_id, event.version_id, event.who, event.reason)
        for event in worker.events
    ] == [
        ("registry", "chat", None, "1", "w", "registered as active"),
        ("registry", "chat", "1", "2", "anna", "better"),
        ("registry", "chat", "2", "1", "berta", "worse"),
        ("registry", "chat", "1", None, "carla", "delete"),
    ]
    assert all(type(event) is VersionActivated for event in worker.events)


async def test_other_plugins_can_ask_for_an_activation(worker):
    await register(worker, "1", active=True)
    await register(worker, "2")
    await worker.plugin.on_event(BudgetSpent(tenant="t", cost_usd_micros=1, at=0))
    await worker.plugin.on_event(ActivationRequested(name="chat", version_id="2", who="canary", reason="promoted"))
    newest = (await worker.registry.history("chat", 1))[0]
    assert (newest.version_id, newest.who, newest.reason) == ("2", "canary", "promoted")
    with pytest.raises(NotFound, match="no version '3'; known: '1', '2'"):
        await worker.plugin.on_event(ActivationRequested(name="chat", version_id="3", who="canary"))
    with pytest.raises(Conflict, match="belongs to 'chat', not to 'other'"):
        await worker.plugin.on_event(ActivationRequested(name="other", version_id="1", who="canary"))
    assert worker.registry.state.active["chat"].id == "2"


async def test_promotion_reaches_other_workers_at_their_next_poll(store, kit):
    one, other = await kit.start(store), await kit.start(store, number=1)
    interval_s, _ = other.tasks.repeated["poll"]
    assert interval_s <= 1.0
    await register(one, "1", active=True)
    await other.poll()
    assert (await other.plugin.pre_route(Route(target="chat"))).target == "small"
    assert other.catalog.listed == {"chat": "small"}
    await register(one, "2", path="large", active=True)
    assert (await other.plugin.pre_route(Route(target="chat"))).target == "small"
    await other.poll()
    assert (await other.plugin.pre_route(Route(target="chat"))).target == "large"


async def test_change_undone_by_another_worker_is_seen(memory, kit):
    """A worker notices also when the store looks again as it did before the worker's own change."""
    one, other = await kit.start(memory), await kit.start(memory, number=1)
    await register(one, "1")
    await other.registry.delete("1", "w", "", force=False)
    await one.registry.refresh()
    assert one.registry.state.versions == {}


async def test_many_activations_at_once_leave_one_active_version_and_a_gapless_history(store, kit):
    """Two workers, forty activations at the same time: some are computed again, none is lost, none breaks the chain."""
    workers = [await kit.start(store, number=number) for number in range(2)]
    for number in range(5):
        await register(workers[0], str(number))
    rival = await kit.start(store, number=2)
    written = []
    raced = False
    real = store.update

    async def counted(update):
        nonlocal raced
        if not raced:
            raced = True  # whatever the scheduling: another change is faster than the first
            await rival.registry.activate("4", "rival", "")
        written.append(await real(update))
        return written[-1]

    store.update = counted
    await asyncio.gather(*(workers[n % 2].registry.activate(str(n % 5), f"w{n}", "") for n in range(40)))
    assert False in written
    history = (await workers[0].registry.history("chat", 1000))[::-1]
    assert [entry.number for entry in history] == list(range(1, len(history) + 1))
    assert [entry.previous_id for entry in history] == [None, *(entry.version_id for entry in history[:-1])]
    for worker in workers:
        await worker.registry.refresh()
        assert worker.registry.state.active["chat"].id == history[-1].version_id


async def test_endless_losing_ends_with_a_conflict(memory, kit):
    """Retrying is bounded."""
    worker = await kit.start(memory)

    async def lose(_):
        return False

    memory.update = lose
    with pytest.raises(Conflict, match="modified concurrently"):
        await register(worker, "1")


async def test_store_that_is_down_leaves_the_last_copy_in_use(memory, kit):
    """Requests are served from memory; the status says how old it is."""
    worker = await kit.start(memory)
    await register(worker, "1", active=True)
    await memory.close()
    with pytest.raises(StoreUnavailable):
        await worker.registry.refresh()
    assert (await worker.plugin.pre_route(Route(target="chat"))).target == "small"
    worker.clock.at += 11
    assert "last read 11 s ago" in worker.plugin.status().summary


async def test_store_that_is_down_at_the_start_stops_it(memory, kit):
    await memory.close()
    with pytest.raises(StoreUnavailable):
        await kit.start(memory)


async def test_status_counts_and_names(worker):
    await register(worker, "1", active=True)
    await register(worker, "2", name="other")
    status = worker.plugin.status()
    assert status.ok
    assert status.summary == "2 versions of 2 models"
    assert status.details["active"] == {"chat": "1", "other": None}


# -- seeding ----------------------------------------------------------------------------------------------------------


async def test_seeding_by_several_workers_at_once_registers_each_version_once(store, kit):
    config = kit.config(kit.spec("1", active=True), kit.spec("2", path="large"), kit.spec("3", name="other"))
    workers = await asyncio.gather(*(kit.start(store, number=number, config=config) for number in range(4)))
    for worker in workers:
        await worker.registry.refresh()
        assert list(worker.registry.state.versions) == ["1", "2", "3"]
        assert (await worker.plugin.pre_route(Route(target="chat"))).target == "small"
        assert worker.events == []
    history = await workers[0].registry.history(None, 10)
    assert [(entry.version_id, entry.action, entry.who) for entry in history] == [("1", "seed", "configuration")]


async def test_restart_never_takes_a_decision_back(memory, kit):
    """A seed's ``active`` counts only for a name that never had an active version."""
    config = kit.config(kit.spec("1", active=True), kit.spec("2", path="large"))
    worker = await kit.start(memory, config=config)
    await worker.registry.activate("2", "w", "")
    again = await kit.start(memory, config=config)
    assert again.registry.state.active["chat"].id == "2"
    await again.registry.delete("2", "w", "", force=True)
    again = await kit.start(memory, config=config)
    assert again.registry.state.active["chat"] is None
    assert list(again.registry.state.versions) == ["1", "2"]


async def test_seed_may_become_active_later_if_its_name_never_was(memory, kit):
    await kit.start(memory, config=kit.config(kit.spec("1")))
    worker = await kit.start(memory, config=kit.config(kit.spec("1", active=True)))
    assert worker.registry.state.active["chat"].id == "1"


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        ([{"id": "1", "path": "smal"}], r"versions\[0\].path: .*did you mean 'small'"),
        ([{"id": "1"}, {"id": "2", "name": "large"}], r"versions\[1\].name: .*'large' itself"),
    ],
)
async def test_seed_that_contradicts_the_gateway_stops_the_start(memory, kit, specs, message):
    with pytest.raises(ConfigError, match=message):
        await kit.start(memory, config=kit.config(*(kit.spec(**{"id_": s.pop("id"), **s}) for s in specs)))


async def test_all_seeds_that_contradict_the_gateway_are_named_with_their_keys(memory, kit):
    seeds = [
        {"id": str(n), "name": "chat", "version": "1", "path": path} for n, path in enumerate(["smal", "large", "lage"])
    ]
    with pytest.raises(ConfigError) as caught:
        await kit.start(memory, config=RegistryConfig(versions=seeds))
    assert str(caught.value).splitlines() == [
        "registry.versions[0].path: the gateway has no model group or deployment 'smal' (did you mean 'small'?)",
        "registry.versions[2].path: the gateway has no model group or deployment 'lage' (did you mean 'large'?)",
    ]


async def test_seeds_wait_for_a_gateway_that_does_not_know_its_deployments_yet(memory, kit):
    """Where the model list is not known at the start, the path is looked at per request."""
    worker = kit.make(memory, config=kit.config(kit.spec("1", active=True)))
    groups, worker.catalog.groups = worker.catalog.groups, {}
    await worker.plugin.startup(worker.services)
    assert (await worker.plugin.pre_route(Route(target="chat"))).status == 503
    worker.catalog.groups = groups
    assert (await worker.plugin.pre_route(Route(target="chat"))).target == "small"


@pytest.mark.parametrize("order", [1, -1])
async def test_seed_whose_path_is_a_registered_name_stops_the_start(memory, kit, order):
    """A name leads to the gateway, never to another name."""
    specs = [kit.spec("1"), kit.spec("2", name="b", path="chat")][::order]
    worker = kit.make(memory, config=kit.config(*specs))
    worker.catalog.groups = {}
    with pytest.raises(ConfigError, match="'chat' is"):
        await worker.plugin.startup(worker.services)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"versions": [{"id": "1"}]}, "name"),
        ({"versions": [{"id": "1", "name": "n", "version": 1.0, "path": "p"}]}, "valid string"),
        ({"versions": [{"id": "", "name": "n", "version": "1", "path": "p"}]}, "at least 1 character"),
        ({"versions": [{"id": "1", "name": "n", "version": "1", "path": "p", "aktive": True}]}, "aktive"),
        ({"poll_interval_s": 1.5}, "less than or equal to 1"),
        ({"poll_interval": 1}, "poll_interval"),
    ],
)
def test_bad_configuration_is_refused(section, message):
    with pytest.raises(ValidationError, match=message):
        RegistryConfig.model_validate(section)


def test_configuration_that_contradicts_itself_is_refused(kit):
    with pytest.raises(ValidationError, match="'1' is given twice"):
        kit.config(kit.spec("1"), kit.spec("1"))
    with pytest.raises(ValidationError, match="'1' and '2' are both active"):
        kit.config(kit.spec("1", active=True), kit.spec("2", active=True))


def test_plugin_is_found_by_its_entry_point():
    """What the configuration calls ``registry`` is this plugin, with its configuration model and its commands."""
    (found,) = [point for point in entry_points(group="pointsman") if point.name == "registry"]
    assert found.load() is plugin
    assert (plugin.name, plugin.config, plugin.commands) == (
        "registry",
        RegistryConfig,
        "pointsman_registry.commands:registry",
    )


async def test_an_emptied_store_gets_the_configurations_versions_again(harness):
    """A redis that comes back empty must not take the configured names away until the next restart."""
    seeds = [{"id": "chat-1", "name": "chat", "version": "1", "path": "small", "active": True}]
    small = Deployment(id="small-1", group="small", provider="openai", model="gpt-4o-mini")
    async with harness([(plugin, {"versions": seeds})], deployments=[small]) as h:
        assert (await h.request(model="chat")).route.target == "small"
        for key, _ in await h.store.scan("registry/"):
            await h.store.delete(key)
        for _ in range(5):
            await h.clock.advance(1.0)
        assert (await h.request(model="chat")).route.target == "small"
        assert "registry/" in (await h.store.scan("registry/"))[0][0]
