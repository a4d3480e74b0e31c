"""Each pair of plugins in one worker, with faults: the rule of their interplay, as ``plugins/README.md`` states it."""

from __future__ import annotations

import asyncio
import itertools
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from combined import PLUGINS, worker

from pointsman.testing import Harness
from pointsman.testing.script import error, ok
from pointsman.types import OWN_CALLS, Outcome, Usage

README = Path(__file__).parents[1] / "plugins" / "README.md"
ROW = re.compile(r"^\| (\w+) \| (\w+) \| .+ \| `(test_\w+)` \|$", re.MULTILINE)


@asynccontextmanager
async def together(
    path: Path, *names: str, g0: Any = ("good",), g1: Any = ("good",), g2: Any = ("good",), **case: Any
) -> AsyncIterator[Harness]:
    """Run a worker with these plugins; each group has deployments of these behaviours."""
    groups = {
        group: [{"does": does, "weight": 1.0, "active": True} for does in members]
        for group, members in (("g0", g0), ("g1", g1), ("g2", g2))
    }
    plugins = [name for name in PLUGINS if name in names]
    defaults = {"groups": groups, "raced": [], "tactic": "round_robin", "fallbacks": []}
    async with worker({**defaults, **case}, path, plugins) as h:
        yield h
        await h.settled()
        assert len({settlement.request_id for settlement in h.settlements}) == len(h.settlements)
        assert set(h.plugin("watch").closed.values()) <= {1}
        assert h.faults == {}


async def shown(h: Harness, path: str) -> Any:
    """Return what an admin route says once everything is settled and flushed."""
    await h.settled()
    if not path.startswith("/balance"):
        # The balance plugin shows what this worker knows, and its breakers would close meanwhile.
        await h.clock.advance(5)
        await h.settled()
    return (await h.admin.get(path)).raise_for_status().json()


async def spent(h: Harness) -> dict[str, Any]:
    """Return the tenant's usage in the quota plugin."""
    (usage,) = (await shown(h, "/quota/tenants/acme"))["usage"]
    return usage


async def billed(h: Harness, tenant: str = "acme") -> dict[str, int]:
    """Return the sums of a tenant's bills."""
    rows = (await shown(h, f"/billing/usage?tenant={tenant}"))["usage"]
    fields = ("requests", "attempts", "prompt_tokens", "completion_tokens", "cost_usd_micros")
    return {field: sum(row[field] for row in rows) for field in fields}


async def signal(h: Harness, deployment: str) -> dict[str, Any]:
    """Return what the signals plugin knows of a deployment."""
    rows = (await shown(h, "/signals"))["signals"]
    return next(row for row in rows if row["deployment_id"] == deployment)


async def breaker(h: Harness, deployment: str) -> dict[str, Any]:
    """Return what the balance plugin knows of a deployment."""
    groups = (await shown(h, "/balance"))["groups"]
    return next(row for group in groups for row in group["deployments"] if row["deployment_id"] == deployment)


def loads(h: Harness) -> dict[str, int]:
    """Return how often each local model was to be loaded."""
    ((_, server), *_) = h.plugin("residency")._servers
    return dict(server.loads)


async def arms(h: Harness, name: str = "trial") -> dict[str, Any]:
    """Return the counts of an experiment's arms."""
    return (await shown(h, f"/canary/{name}"))["totals"]


def clients(result: Any) -> list[Any]:
    """Return the attempts that were made for the client."""
    return [attempt for attempt in result.attempts if attempt.kind not in OWN_CALLS]


def test_each_pair_has_a_rule_and_a_test() -> None:
    rows = ROW.findall(README.read_text(encoding="utf-8"))
    assert sorted(tuple(sorted(row[:2])) for row in rows) == sorted(itertools.combinations(sorted(PLUGINS), 2))
    assert all(row[2] in globals() for row in rows)
    assert len({row[2] for row in rows}) == len(rows)


# -- quota ------------------------------------------------------------------------------------------------------------


async def test_a_denied_request_is_in_no_arm(tmp_path: Path) -> None:
    async with together(tmp_path, "quota", "canary", g1=("broken",), requests_per_minute=3) as h:
        results = [await h.request(model="trial", retries=0) for _ in range(6)]
        assert [r.denial is not None for r in results] == [False] * 3 + [True] * 3
        assert all("x-pointsman-arm" not in r.headers for r in results[3:])
        assert sum(arm["requests"] for arm in (await arms(h)).values()) == 3
        assert (await spent(h))["requests_in_flight"] == 0


async def test_a_denied_request_is_no_request_of_a_version(tmp_path: Path) -> None:
    async with together(tmp_path, "quota", "registry", g0=("broken",), requests_per_minute=2) as h:
        results = [await h.request(model="assistant", retries=0) for _ in range(4)]
        assert [r.status for r in results] == [500, 500, 429, 429]
        (metrics,) = [m for m in (await shown(h, "/registry/metrics?name=assistant"))["metrics"] if m["id"] == "v0"]
        assert (metrics["requests"], metrics["errors"]) == (2, 2)


async def test_a_denial_says_nothing_about_a_deployment(tmp_path: Path) -> None:
    async with together(tmp_path, "quota", "signals", requests_per_minute=1) as h:
        results = [await h.request(model="g0") for _ in range(5)]
        assert [r.status for r in results] == [200, 429, 429, 429, 429]
        assert ((await signal(h, "g0-0"))["extra"]["requests"], (await signal(h, "g0-0"))["error_ratio"]) == (1, 0.0)


async def test_a_race_is_one_request_and_its_losers_are_charged(tmp_path: Path) -> None:
    async with together(tmp_path, "quota", "racing", g0=("slow",)) as h:
        result = await h.request(model="whole")
        assert {str(a.outcome) for a in result.attempts} == {"ok", "cancelled"}
        usage = await spent(h)
        assert usage["day_tokens"] == sum(a.usage.total_tokens for a in result.attempts)
        assert (usage["requests_in_flight"], usage["reserved_tokens"]) == (0, 0)


async def test_an_open_breaker_holds_no_slot(tmp_path: Path) -> None:
    async with together(tmp_path, "quota", "balance", g0=("broken",)) as h:
        for _ in range(8):
            assert (await h.request(model="g0", fallbacks=["g1"], retries=0)).status == 200
        assert (await breaker(h, "g0-0"))["breaker"]["state"] != "closed"
        usage = await spent(h)
        assert (usage["requests_in_flight"], usage["reserved_tokens"], usage["day_tokens"]) == (0, 0, 8 * 15)


async def test_a_mirror_spends_nothing_of_the_tenant(tmp_path: Path) -> None:
    async with together(tmp_path, "quota", "shadow", g2=("broken",)) as h:
        for _ in range(3):
            assert (await h.request(model="g0")).status == 200
        assert (await shown(h, "/shadow/try"))["challenger_errors"] == 3
        usage = await spent(h)
        assert (usage["day_tokens"], usage["requests_in_flight"]) == (45, 0)


async def test_what_is_spent_is_what_is_billed(tmp_path: Path) -> None:
    async with together(tmp_path, "quota", "billing", g0=("cut late",)) as h:
        for stream in (False, True):
            await h.request(model="g0", fallbacks=["g1"], stream=stream, retries=0)
        bill, usage = await billed(h), await spent(h)
        assert bill["prompt_tokens"] + bill["completion_tokens"] == usage["day_tokens"] > 0
        assert bill["cost_usd_micros"] == usage["day_usd_micros"]


@pytest.mark.parametrize("stream", [False, True])
async def test_what_is_reserved_is_at_billings_prices(tmp_path: Path, stream: bool) -> None:
    """With its margins, and for a model that only its rules have a price for; so what is spent was reserved."""
    tenant = {"id": "acme", "limits": {"usd_per_month": 1}}
    sections = {
        "quota": {"tenants": [tenant], "default_tenant": "acme", "money_from": "events"},
        "billing": {
            "outbox": {"path": str(tmp_path / "outbox")},
            "prices": [{"models": ["chat"], "input_usd_per_million": 1000, "output_usd_per_million": 2000}],
            "margins": [{"tenants": ["acme"], "margin_ratio": "0.5"}],
        },
    }
    async with Harness([(PLUGINS[name], section) for name, section in sections.items()], prices={}) as h:
        body = {"messages": [{"role": "user", "content": "How is the weather?"}], "max_tokens": 20}
        answer = await h.request(
            body=body, stream=stream, script=ok(usage=Usage(prompt_tokens=7, completion_tokens=20))
        )
        assert answer.status == 200
        usd_micros = answer.route.reservations[0].amounts["usd_micros"]
        (bill,) = (await shown(h, "/billing/usage?tenant=acme"))["usage"]
        usage = await spent(h)
        assert bill["amount_usd_micros"] == usage["day_usd_micros"] == 1.5 * (7 * 1000 + 20 * 2000)
        assert usage["day_usd_micros"] <= usd_micros < 2 * usage["day_usd_micros"]


# -- canary -----------------------------------------------------------------------------------------------------------


async def test_the_version_that_answers_is_named_when_an_arm_is_saved(tmp_path: Path) -> None:
    async with together(tmp_path, "canary", "registry", g1=("broken",)) as h:
        experiment = {"name": "versions", "model": "assistant", "canary": {"version": "v1"}, "fallback_to_stable": True}
        created = await h.admin.post("/canary", json={"experiment": {**experiment, "steps": [50, 100]}})
        assert created.status_code < 300, created.text
        results = [await h.request(model="assistant", retries=0) for _ in range(12)]
        assert {r.status for r in results} == {200}
        assert {r.headers["x-pointsman-arm"] for r in results} == {"stable", "canary"}
        assert {r.headers["x-pointsman-version"] for r in results} == {"0"}
        counts = await arms(h, "versions")
        assert counts["canary"]["failed"] == counts["canary"]["requests"] > 0 == counts["stable"]["failed"]


async def test_an_arms_errors_are_those_of_its_own_deployments(tmp_path: Path) -> None:
    async with together(tmp_path, "canary", "signals", g1=("broken",)) as h:
        for _ in range(12):
            await h.request(model="saved-trial", retries=0)
        counts = await arms(h, "saved")
        assert ((await signal(h, "g0-0"))["error_ratio"], (await signal(h, "g1-0"))["error_ratio"]) == (0.0, 1.0)
        assert (await signal(h, "g1-0"))["extra"]["requests"] == counts["canary"]["requests"]


async def test_a_raced_arm_is_one_attempt_and_is_saved_by_stable(tmp_path: Path) -> None:
    async with together(tmp_path, "canary", "racing", g1=("broken", "broken"), raced=["g1"]) as h:
        results = [await h.request(model="saved-trial", retries=0) for _ in range(12)]
        assert {r.status for r in results} == {200}
        canaries = [r for r in results if r.headers["x-pointsman-arm"] == "canary"]
        assert canaries
        assert {len(r.attempts) for r in canaries} == {3}
        counts = await arms(h, "saved")
        assert counts["canary"] == {**counts["canary"], "requests": len(canaries), "failed": len(canaries)}


@pytest.mark.parametrize("raced", [["g1"], ["g0", "g1"]], ids=["stable plain", "stable raced"])
@pytest.mark.parametrize(
    ("answers", "case"),
    [
        # What each attempt gets, of which the first race has two; then retries, whether stable answers, and a failure.
        ([error(503), ok()], (0, False, False)),
        ([ok("", usage=None), ok()], (0, False, False)),
        ([ok(latency_s=3.0), ok()], (0, False, False)),
        ([error(503), error(503), ok()], (1, False, True)),
        ([error(503), error(503), error(503), ok()], (1, False, True)),
        ([ok("", usage=None), ok("", usage=None)], (0, False, True)),
        ([error(503), error(503), ok()], (0, True, True)),
        ([error(503), error(503), ok(latency_s=3.0), ok()], (0, True, True)),
        ([*[error(503)] * 5, ok()], (1, True, True)),
    ],
    ids=[
        "replaced",
        "replaced an empty answer",
        "hedged",
        "retried",
        "retried and replaced",
        "empty",
        "saved",
        "saved by a hedge",
        "saved by a replacement or a retry",
    ],
)
async def test_the_first_race_of_an_arm_is_what_counts(
    tmp_path: Path, answers: list[Any], case: tuple[int, bool, bool], raced: list[str]
) -> None:
    """A race that is won is no failure, however many of its attempts failed; one that a retry or stable makes good is one."""
    two = ("good", "good")
    retries, saves, failed = case
    async with together(tmp_path, "canary", "racing", g0=two, g1=two, raced=raced) as h:
        while "canary" not in (seen := await shown(h, "/canary/saved"))["totals"]:
            result = await h.request(model="saved-trial", retries=retries, script=list(answers))
        assert result.status == 200
        assert result.attempts[-1].deployment.group == ("g0" if saves else "g1")
        assert (seen["totals"]["canary"]["requests"], seen["totals"]["canary"]["failed"]) == (1, int(failed))
        (latency,) = [one for one in seen["analysis"]["canary"] if one["metric"].startswith("latency_ms")]
        assert latency["canary_samples"] + latency["canary_waiting"] == int(not saves and result.text != "")


async def test_an_arm_whose_breakers_are_open_is_saved_at_once_and_counted(tmp_path: Path) -> None:
    async with together(tmp_path, "canary", "balance", g1=("broken",)) as h:
        results = [await h.request(model="saved-trial", retries=0) for _ in range(24)]
        assert {r.status for r in results} == {200}
        canaries = [r for r in results if r.headers["x-pointsman-arm"] == "canary"]
        assert [len(r.attempts) for r in canaries][-1] == 1, "the breaker is open: stable answers without an attempt"
        assert (await arms(h, "saved"))["canary"]["requests"] >= 3


async def test_mirrors_are_in_no_arm(tmp_path: Path) -> None:
    async with together(tmp_path, "canary", "shadow", g2=("broken",)) as h:
        for _ in range(8):
            await h.request(model="trial")
            await h.request(model="g0")
        counts = await arms(h)
        assert sum(arm["requests"] for arm in counts.values()) == 8
        assert sum(arm["failed"] for arm in counts.values()) == 0
        assert (await shown(h, "/shadow/try"))["mirrored"] >= 8


async def test_an_arm_that_is_saved_is_billed_once_at_what_answered(tmp_path: Path) -> None:
    async with together(tmp_path, "canary", "billing", g1=("broken",)) as h:
        for _ in range(12):
            assert (await h.request(model="saved-trial", retries=0)).status == 200
        rows = (await shown(h, "/billing/usage"))["usage"]
        assert sum(row["requests"] for row in rows) == 12
        assert sum(row["prompt_tokens"] for row in rows) == 120


# -- registry ---------------------------------------------------------------------------------------------------------


async def test_a_versions_errors_are_those_of_its_path(tmp_path: Path) -> None:
    async with together(tmp_path, "registry", "signals", g0=("broken",)) as h:
        for _ in range(4):
            assert (await h.request(model="assistant", fallbacks=["g1"], retries=0)).status == 200
        metrics = {m["id"]: m for m in (await shown(h, "/registry/metrics?name=assistant"))["metrics"]}
        assert (metrics["v0"]["requests"], metrics["v0"]["errors"], metrics["v1"]["requests"]) == (4, 4, 0)
        assert (await signal(h, "g0-0"))["extra"]["requests"] == (await signal(h, "g1-0"))["extra"]["requests"] == 4


async def test_a_version_whose_path_is_raced_is_named(tmp_path: Path) -> None:
    async with together(tmp_path, "registry", "racing", g0=("broken", "good"), raced=["g0"]) as h:
        results = [await h.request(model="assistant", retries=0) for _ in range(4)]
        assert {r.status for r in results} == {200}
        assert {r.headers["x-pointsman-version"] for r in results} == {"0"}
        assert all(r.headers["x-pointsman-raced"].startswith("g0; deployment=g0-1") for r in results)


async def test_a_promotion_leaves_breakers_where_they_are(tmp_path: Path) -> None:
    async with together(tmp_path, "registry", "balance", g0=("broken",)) as h:
        for _ in range(4):
            assert (await h.request(model="assistant", retries=0)).status == 500
        assert (await breaker(h, "g0-0"))["breaker"]["state"] == "open"
        (await h.admin.post("/registry/versions/v1/activate")).raise_for_status()
        result = await h.request(model="assistant", retries=0)
        assert (result.status, result.headers["x-pointsman-version"]) == (200, "1")
        assert (await breaker(h, "g0-0"))["breaker"]["state"] == "open"


async def test_mirrors_are_no_requests_of_a_version(tmp_path: Path) -> None:
    """The challenger is the path of a version: what the mirror calls there is none of its metrics."""
    async with together(tmp_path, "registry", "shadow", g2=("broken",)) as h:
        (await h.admin.post("/registry/versions", json={"id": "v2", "name": "next", "version": "2", "path": "g2"}))
        for _ in range(3):
            await h.request(model="g0")
        assert (await shown(h, "/shadow/try"))["challenger_errors"] == 3
        assert all(m["requests"] == 0 for m in (await shown(h, "/registry/metrics?name=next"))["metrics"])


async def test_a_request_for_a_name_is_billed_under_the_name(tmp_path: Path) -> None:
    async with together(tmp_path, "registry", "billing", g0=("broken",)) as h:
        assert (await h.request(model="assistant", fallbacks=["g1"], retries=0)).status == 200
        rows = (await shown(h, "/billing/usage"))["usage"]
        assert [(row["model"], row["requests"], row["prompt_tokens"]) for row in rows] == [("assistant", 1, 10)]


# -- signals ----------------------------------------------------------------------------------------------------------


async def test_an_exhausted_deployment_gets_no_hedge_and_an_empty_answer_teaches_nothing(tmp_path: Path) -> None:
    async with together(tmp_path, "signals", "racing", g0=("limited", "empty", "good"), raced=["g0"]) as h:
        for _ in range(4):
            result = await h.request(model="g0", retries=0)
            assert (result.status, result.text) == (200, "a good answer")
        assert (await signal(h, "g0-0"))["extra"]["requests"] <= 2
        assert (await signal(h, "g0-1"))["latency_ms"] is None


async def test_what_has_said_429_is_left_alone_until_its_time(tmp_path: Path) -> None:
    async with together(tmp_path, "signals", "balance", g0=("limited", "good")) as h:
        for _ in range(6):
            assert (await h.request(model="g0", retries=1)).status == 200
        assert (await signal(h, "g0-0"))["extra"]["requests"] == 1
        await h.clock.advance(60)
        for _ in range(6):
            assert (await h.request(model="g0", retries=1)).status == 200
        assert (await signal(h, "g0-0"))["extra"]["requests"] >= 2


async def test_a_mirrors_errors_are_no_signals_of_client_traffic(tmp_path: Path) -> None:
    async with together(tmp_path, "signals", "shadow", g2=("broken",)) as h:
        for _ in range(4):
            assert (await h.request(model="g0")).status == 200
        assert (await shown(h, "/shadow/try"))["challenger_errors"] == 4
        assert (await signal(h, "g0-0"))["error_ratio"] == 0.0


async def test_a_failure_is_a_signal_and_no_bill(tmp_path: Path) -> None:
    async with together(tmp_path, "signals", "billing", g0=("broken",)) as h:
        assert (await h.request(model="g0", fallbacks=["g1"], retries=1)).status == 200
        assert (await signal(h, "g0-0"))["consecutive_errors"] == 2
        bill = await billed(h, "")
        assert bill["prompt_tokens"] in {0, 10}
        rows = (await shown(h, "/billing/usage"))["usage"]
        assert sum(row["cost_usd_micros"] for row in rows) == 20


# -- racing -----------------------------------------------------------------------------------------------------------


async def test_a_hedge_goes_elsewhere_and_a_loser_is_no_error(tmp_path: Path) -> None:
    async with together(tmp_path, "racing", "balance", g0=("slow", "good"), raced=["g0"]) as h:
        results = [await h.request(model="g0") for _ in range(6)]
        assert {r.status for r in results} == {200}
        hedged = [r for r in results if len(r.attempts) > 1]
        assert hedged
        assert all(len({a.deployment.id for a in r.attempts}) == len(r.attempts) for r in hedged)
        assert ((await breaker(h, "g0-0"))["failed"], (await breaker(h, "g0-0"))["breaker"]["state"]) == (0, "closed")


async def test_a_race_behind_open_breakers_calls_nothing_where_there_is_a_fallback(tmp_path: Path) -> None:
    async with together(tmp_path, "racing", "balance", g0=("broken", "broken"), raced=["g0"]) as h:
        for _ in range(6):
            result = await h.request(model="g0", fallbacks=["g1"], retries=0, moves_clock=False)
            assert result.status == 200
        assert [attempt.deployment.group for attempt in result.attempts] == ["g1"]
        # Without one, the load spreads over what is least bad.
        assert len((await h.request(model="g0", retries=0)).attempts) == 2


async def test_a_race_is_mirrored_once_with_its_winner(tmp_path: Path) -> None:
    async with together(tmp_path, "racing", "shadow", g0=("broken", "good"), raced=["g0"]) as h:
        for _ in range(4):
            assert (await h.request(model="g0", retries=0)).text == "a good answer"
        mirror = await shown(h, "/shadow/try")
        assert (mirror["mirrored"], mirror["pairs"], mirror["champion_errors"]) == (4, 4, 0)


async def test_losers_are_billed_once_with_their_request(tmp_path: Path) -> None:
    async with together(tmp_path, "racing", "billing", g0=("slow",)) as h:
        result = await h.request(model="whole")
        rows = (await shown(h, "/billing/usage"))["usage"]
        assert (sum(row["requests"] for row in rows), sum(row["attempts"] for row in rows)) == (1, 2)
        assert sum(row["cost_usd_micros"] for row in rows) == sum(a.cost_usd_micros or 0 for a in result.attempts) > 20


# -- balance, shadow, billing -----------------------------------------------------------------------------------------


async def test_a_mirrors_errors_open_no_breaker_for_clients(tmp_path: Path) -> None:
    async with together(tmp_path, "balance", "shadow", g2=("broken", "broken")) as h:
        for _ in range(12):
            assert (await h.request(model="g0")).status == 200
        assert (await shown(h, "/shadow/try"))["challenger_errors"] >= 3
        h.gateway.upstream.answer(ok("well again"))
        result = await h.request(model="g2", retries=0, script=ok("well again"))
        assert (result.status, len(clients(result))) == (200, 1)


async def test_an_open_breaker_costs_nothing(tmp_path: Path) -> None:
    async with together(tmp_path, "balance", "billing", g0=("broken",)) as h:
        for _ in range(8):
            assert (await h.request(model="g0", fallbacks=["g1"], retries=0)).status == 200
        rows = (await shown(h, "/billing/usage"))["usage"]
        assert (sum(row["requests"] for row in rows), sum(row["cost_usd_micros"] for row in rows)) == (8, 160)


async def test_a_mirror_is_billed_to_itself(tmp_path: Path) -> None:
    async with together(tmp_path, "quota", "shadow", "billing", g0=("cut early", "good")) as h:
        for _ in range(3):
            assert (await h.request(model="g0", stream=True, retries=1)).outcome is Outcome.OK
        assert (await shown(h, "/shadow/try"))["mirrored"] == 3
        for _ in range(1000):
            # The outbox has a thread of its own, and no settlement waits for a mirror.
            if (await billed(h, "shadow:try"))["attempts"] >= 3:
                break
            await asyncio.sleep(0.01)
        tenant, mirror = await billed(h), await billed(h, "shadow:try")
        assert (tenant["requests"], tenant["prompt_tokens"]) == (3, 30)
        assert (mirror["attempts"], mirror["prompt_tokens"]) == (3, 30)


# -- residency --------------------------------------------------------------------------------------------------------


async def test_a_denied_request_loads_no_model(tmp_path: Path) -> None:
    async with together(tmp_path, "quota", "residency", g1=("broken",), requests_per_minute=2) as h:
        results = [await h.request(model=model, retries=0) for model in ("g1", "g1", "g2")]
        assert [r.status for r in results] == [500, 500, 429]
        assert loads(h) == {"g1": 1}
        assert (await spent(h))["requests_in_flight"] == 0


async def test_an_arm_whose_model_cannot_be_loaded_is_saved_by_stable(tmp_path: Path) -> None:
    async with together(tmp_path, "canary", "residency", unloadable=["g1"]) as h:
        results = [await h.request(model="saved-trial", retries=0) for _ in range(12)]
        assert {r.status for r in results} == {200}
        assert {r.headers["x-pointsman-arm"] for r in results} == {"stable", "canary"}
        assert {a.deployment.group for r in results for a in r.attempts if a.outcome is Outcome.OK} == {"g0"}
        assert loads(h) == {"g1": 1}


async def test_the_model_of_a_version_is_loaded_when_it_is_asked_for(tmp_path: Path) -> None:
    async with together(tmp_path, "registry", "residency", g0=("broken",)) as h:
        assert (await h.request(model="assistant", retries=0)).status == 500
        (await h.admin.post("/registry/versions/v1/activate")).raise_for_status()
        assert loads(h) == {}
        results = [await h.request(model="assistant", retries=0) for _ in range(3)]
        assert {(r.status, r.headers["x-pointsman-version"]) for r in results} == {(200, "1")}
        assert loads(h) == {"g1": 1}


async def test_a_model_that_cannot_be_loaded_is_a_signal_and_no_error_of_its_deployment(tmp_path: Path) -> None:
    async with together(tmp_path, "signals", "residency", unloadable=["g1"]) as h:
        results = [await h.request(model="g1", retries=0) for _ in range(3)]
        assert {(r.status, r.denial.code if r.denial else "") for r in results} == {(503, "model_not_loaded")}
        known = h.host.signals.get("g1-0")
        assert known is not None
        assert (str(known.status), known.error_ratio) == ("degraded", None)


async def test_a_hedge_loads_no_model(tmp_path: Path) -> None:
    """The group ``g1`` is cold, and the first attempt goes to ``g0``."""
    async with together(tmp_path, "racing", "residency", g0=("slow",)) as h:
        result = await h.request(model="swift", retries=0)
        assert (result.status, result.text) == (200, "a slow answer")
        assert ("hedge", "g1") in {(str(a.kind), a.deployment.group) for a in result.attempts}
        assert loads(h) == {}


async def test_a_load_that_fails_opens_no_breaker(tmp_path: Path) -> None:
    async with together(tmp_path, "balance", "residency", unloadable=["g1"], fallbacks=["g0"]) as h:
        for _ in range(8):
            result = await h.request(model="g1", fallbacks=["g0"], retries=0)
            assert (result.status, result.text) == (200, "a good answer")
        assert (await breaker(h, "g1-0"))["breaker"]["state"] == "closed"
        assert loads(h) == {"g1": 1}


async def test_a_mirror_loads_no_model(tmp_path: Path) -> None:
    async with together(tmp_path, "shadow", "residency", g0=("cut early", "good")) as h:
        for _ in range(4):
            assert (await h.request(model="g0", retries=1)).status == 200
        await shown(h, "/shadow/try")
        assert loads(h) == {}


async def test_a_model_that_is_never_loaded_costs_nothing(tmp_path: Path) -> None:
    async with together(tmp_path, "billing", "residency", unloadable=["g1"]) as h:
        assert [(await h.request(model=model, retries=0)).status for model in ("g1", "g1", "g2")] == [503, 503, 200]
        bill = await billed(h, "")
        assert (bill["prompt_tokens"], bill["cost_usd_micros"]) == (10, 20)
