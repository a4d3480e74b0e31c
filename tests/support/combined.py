"""Small configurations of all plugins on the kit's gateway, and what must hold whatever they do."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final
from unittest import mock

from pointsman import PluginConfig, PluginInfo, hookimpl
from pointsman.testing import Harness, breaks, deployment, error, ok
from pointsman.testing.drive import Result
from pointsman.testing.script import Step
from pointsman.types import OWN_CALLS, Outcome
from pointsman_balance.plugin import plugin as balance
from pointsman_billing.plugin import plugin as billing
from pointsman_canary.plugin import plugin as canary
from pointsman_quota.plugin import plugin as quota
from pointsman_racing.plugin import plugin as racing
from pointsman_registry.plugin import plugin as registry
from pointsman_residency.plugin import plugin as residency
from pointsman_residency.servers import Listed, ModelServer, ServerError, Trouble
from pointsman_residency.servers import registry as kinds
from pointsman_shadow.plugin import plugin as shadow
from pointsman_signals.plugin import plugin as signals

#: In the order that the README recommends.
PLUGINS: Final = {
    info.name: info for info in (quota, canary, registry, signals, residency, racing, balance, shadow, billing)
}
#: What a deployment does with every request.
BEHAVIOURS: Final[Mapping[str, Step]] = {
    "good": ok("a good answer"),
    "slow": ok("a slow answer", latency_s=3.0),
    "broken": error(500),
    "limited": error(429, retry_after_s=2.0),
    "late": error(408, latency_s=1.0),
    "picky": error(400),
    "empty": ok("", usage=None),
    "cut early": breaks(0),
    "cut late": breaks(1),
}
GOOD: Final = frozenset({"good", "slow"})
#: What never puts a deployment into cooldown.
_WARM: Final = GOOD | {"picky", "empty"}
#: It answers with success although the client has nothing, or not all of it.
_SPOILT: Final = frozenset({"empty", "cut late"})
MODELS: Final = ("g0", "g1", "g2", "assistant", "trial", "saved-trial", "swift", "whole")

Case = Mapping[str, Any]


class _Watch:
    """Counts how often each attempt is closed."""

    def __init__(self, config: PluginConfig) -> None:
        self.closed: Counter[str] = Counter()

    @hookimpl
    def post_response(self, attempt: Any) -> None:
        self.closed[attempt.id] += 1

    @hookimpl
    def on_error(self, attempt: Any) -> None:
        self.closed[attempt.id] += 1


WATCH: Final = PluginInfo(name="watch", config=PluginConfig, factory=_Watch)


class LocalModels(ModelServer):
    """A server of local models without HTTP; its memory is that of the class.

    Attributes:
        loaded: The models that are in memory.
        loads: How often each one was to be loaded.
        broken: The models that cannot be loaded.
    """

    tells_bytes = True
    loaded: set[str]
    loads: Counter[str]
    broken: set[str]

    async def models(self) -> Mapping[str, Listed]:
        return {name: Listed(bytes=60, loading=False) for name in self.loaded}

    async def load(self, model: str) -> None:
        self.loads[model] += 1
        if model in self.broken:
            raise ServerError("unknown tensor type 99", Trouble.BROKEN)
        await self.clock.sleep(1.0)
        self.loaded.add(model)

    async def unload(self, model: str) -> None:
        self.loaded.discard(model)


def section(name: str, case: Case, directory: Path) -> dict[str, Any]:
    """Return a plugin's section."""
    match name:
        case "quota":
            limits = {"requests_per_minute": case.get("requests_per_minute") or 1000, "max_concurrent_requests": 4}
            return {"tenants": [{"id": "acme", "limits": limits}], "default_tenant": "acme"}
        case "registry":
            versions = [
                {"id": f"v{n}", "name": "assistant", "version": str(n), "path": f"g{n}", "active": n == 0}
                for n in range(2)
            ]
            return {"versions": versions}
        case "canary":
            arms = {"stable": "g0", "canary": "g1", "steps": [50, 100], "interval_s": 60}
            trial = {"name": "trial", "model": "trial", **arms}
            saved = {"name": "saved", "model": "saved-trial", "fallback_to_stable": True, **arms}
            return {"experiments": [trial, saved]}
        case "racing":
            delay = {"fixed_ms": 100, "fixed_plain_ms": 100, "floor_ms": 1}
            both = {"candidates": ["g0", "g1"], "timeout_ms": 20_000, "plain_timeout_ms": 20_000}
            models = [{"name": "swift", **both}, {"name": "whole", "strategy": "first_wins", **both}]
            defaults = {"delay": delay, "budget_ratio": 4, "budget_burst": 1000}
            groups = {name: {} for name in case["raced"]}
            return {"models": models, "groups": groups, "defaults": defaults, "budget": {"ratio": 4, "burst": 1000}}
        case "balance":
            return {"tactic": case["tactic"]}
        case "shadow":
            mirror = {"name": "try", "model": "g0", "challenger": "g2", "sample_rate": 1.0}
            return {"mirrors": [mirror]}
        case "residency":
            # There is room for one of the two; the group ``g0`` is not local.
            models = {group: {"footprint": 60, "server_model": group} for group in ("g1", "g2")}
            server = {"kind": "local", "url": "http://models.test"}
            return {"pools": {"gpu": {"budget": 100, "server": server, "models": models, "min_residence_s": 0}}}
        case "billing":
            return {
                "sinks": [{"ndjson": {"path": str(directory / "bills.ndjson")}}],
                "outbox": {"path": str(directory / "outbox.sqlite")},
            }
    return {"check_local": False} if name == "signals" else {}


@asynccontextmanager
async def worker(case: Case, directory: Path, plugins: Sequence[str]) -> AsyncIterator[Harness]:
    """Run a worker of this configuration with these plugins; the case's ``unloadable`` models cannot be loaded."""
    deployments = [
        deployment(f"{group}-{n}", group, weight=member["weight"], active=member["active"])
        for group, members in case["groups"].items()
        for n, member in enumerate(members)
    ]
    script = {
        f"{group}-{n}": BEHAVIOURS[member["does"]]
        for group, members in case["groups"].items()
        for n, member in enumerate(members)
    }
    chosen = [(PLUGINS[name], section(name, case, directory)) for name in plugins]
    memory = {"loaded": set(), "loads": Counter(), "broken": set(case.get("unloadable", ()))}
    server = type("Server", (LocalModels,), memory)
    with mock.patch.object(kinds, "BUILT_IN", {**kinds.BUILT_IN, "local": server}):
        async with Harness([WATCH, *chosen], deployments=deployments, script=script) as h:
            others = case.get("fallbacks", ())
            h.gateway.cooldowns.seconds = case.get("cooldown_s")
            h.gateway.catalog.fallbacks = {group: [o for o in others if o != group] for group in case["groups"]}
            yield h


def names(case: Case, plugins: Sequence[str]) -> set[str]:
    """Return the models that a client can call."""
    of_plugins = {"registry": {"assistant"}, "canary": {"trial", "saved-trial"}, "racing": {"swift", "whole"}}
    return set(case["groups"]).union(*(of_plugins.get(name, ()) for name in plugins))


def _serves(member: Mapping[str, Any]) -> bool:
    return member["weight"] > 0 and member["active"]


def _members(case: Case, group: str) -> list[Mapping[str, Any]]:
    """Return the deployments that may serve a group: those that are drained only when there may be no other."""
    members = case["groups"][group]
    left = [m for m in members if _serves(m)]
    stays = not case.get("cooldown_s") or any(m["does"] in _WARM for m in left)
    return left if left and stays else list(members)


def serving(case: Case, group: str) -> list[str]:
    """Return what the deployments do that may serve a group."""
    return [m["does"] for m in _members(case, group)]


def is_sure(case: Case, chain: Sequence[str]) -> bool:
    """Return whether every choice of deployments along these groups leads to an answer with content."""
    for group in chain:
        does = set(serving(case, group))
        if does <= GOOD:
            return True
        if does & _SPOILT:
            return False
    return False


def must_answer(case: Case, model: str) -> bool:
    """Return whether LiteLLM alone, or a plugin that keeps its promise, answers a request for this model for certain."""
    fallbacks = case["fallbacks"]
    match model:
        case "assistant":
            return is_sure(case, ["g0", *fallbacks])
        case "trial":
            return all(is_sure(case, [arm, *fallbacks]) for arm in ("g0", "g1"))
        case "saved-trial":
            return all(is_sure(case, chain) for chain in (["g0", *fallbacks], ["g1", "g0", *fallbacks]))
        case "swift" | "whole":
            # Drained candidates do not race while there are others.
            raced = [group for group in ("g0", "g1") if any(map(_serves, case["groups"][group]))] or ["g0", "g1"]
            does = {group: set(serving(case, group)) for group in raced}
            # A race loads no model: what is not in memory takes no part in it.
            sure = [d for group, d in does.items() if group == "g0" or "residency" not in case["plugins"]]
            # A client error ends a race, and content decides it.
            return any(d <= GOOD for d in sure) and {"cut late", "picky"}.isdisjoint(set().union(*does.values()))
    return is_sure(case, [model, *fallbacks])


def check(case: Case, plugins: Sequence[str], result: Result) -> None:
    """Check one request of a configuration."""
    model = result.ctx.model if result.ctx is not None else ""
    for attempt in result.attempts:
        assert attempt.outcome is not None
        if attempt.kind in OWN_CALLS:
            continue
        group = attempt.deployment.group
        member = case["groups"][group][int(attempt.deployment.id.rpartition("-")[2])]
        assert member in _members(case, group), "a drained deployment was chosen"
    answering = [a for a in result.attempts if result.settlement and a.id == result.settlement.answered_by]
    if result.denial is not None:
        assert (result.denial.plugin, result.status) == ("quota", 429)
        assert case.get("requests_per_minute"), "nothing limits the tenant"
        assert int(result.headers["retry-after"]) >= 1
        return
    if must_answer(case, model):
        assert result.status == 200, (result.status, result.error)
        assert result.text.strip(), "an empty answer although there was a better one"
        assert result.error is None
        assert result.outcome is Outcome.OK
        assert answering
    if result.status == 200 and model == "assistant" and answering:
        # A group that is fallen back to may be the path of no version that the registry has looked at.
        right = {"g0": {"0"}, "g1": {"1", None}}.get(answering[0].deployment.group, {None})
        assert result.headers.get("x-pointsman-version") in right
    if "canary" in plugins and model.endswith("trial"):
        assert result.headers["x-pointsman-arm"] in {"stable", "canary"}
    assert int(result.headers.get("x-pointsman-attempts", "1")) <= max(1, len(result.attempts))
