"""All plugins find what the first release has left in a disk store: the worker was killed in the middle of traffic."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
from collections.abc import AsyncIterator
from decimal import Decimal
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from pointsman import PluginConfig, PluginInfo, hookimpl
from pointsman.testing import FakeClock, Harness, deployment
from pointsman.types import RequestContext, Settlement

FIXTURES = Path(__file__).parents[1] / "hookspecs/tests/store/fixtures"
OLD: dict[str, Any] = json.loads((FIXTURES / "answers.json").read_text(encoding="utf-8"))
ROWS: dict[str, Any] = json.loads((FIXTURES / "rows.json").read_text(encoding="utf-8"))
DEPLOYMENTS = [
    deployment(name, group)
    for name, group in [
        ("fast-1", "fast"),
        ("fast-2", "fast"),
        ("slow-1", "slow"),
        ("next-1", "next"),
        ("bad-1", "shaky"),
        ("good-1", "shaky"),
    ]
]
LIMITS = {
    "tokens_per_minute": 1_000_000,
    "tokens_per_day": 10_000_000,
    "usd_per_month": 50,
    "requests_per_minute": 1000,
}
#: As the old worker had them.
SECTIONS: dict[str, dict[str, Any]] = {
    "quota": {"tenants": [{"id": "acme", "match": {"teams": ["team-1"]}, "limits": LIMITS}]},
    "canary": {
        "experiments": [
            {
                "name": "assistant-rollout",
                "model": "assistant",
                "canary": {"version": "assistant-2"},
                "steps": [50, 100],
                "interval_s": 86_400,
                "min_samples": 10_000,
            }
        ]
    },
    "registry": {
        "versions": [
            {"id": "assistant-1", "name": "assistant", "version": "1", "path": "fast", "active": True},
            {"id": "assistant-2", "name": "assistant", "version": "2", "path": "next"},
        ]
    },
    "signals": {},
    "racing": {
        "models": [{"name": "swift", "candidates": ["slow", "fast"], "strategy": "first_wins", "budget_ratio": 4}],
        "budget": {"burst": 1000},
        "share_interval_s": 1,
    },
    "balance": {"tactic": "adaptive"},
    "shadow": {
        "flush_s": 0.5,
        "mirrors": [
            {
                "name": "try-next",
                "model": "fast",
                "challenger": "next",
                "sample_rate": 1.0,
                "keep_results": 3,
                "budget": {"usd_per_day": 5, "tokens_per_day": 100_000},
            }
        ],
    },
    "billing": {"sinks": []},
}


class Listener:
    """Hears of what the old worker could not settle."""

    def __init__(self, config: PluginConfig) -> None:
        self.heard: list[str] = []

    @hookimpl
    async def settle(self, ctx: RequestContext, settlement: Settlement) -> None:
        self.heard.append(settlement.request_id)


@pytest.fixture
async def worker(tmp_path: Path) -> AsyncIterator[Harness]:
    """A worker of this release on the old store, a second after the end of the old one."""
    store = tmp_path / "store"
    store.mkdir(0o700)
    with contextlib.closing(sqlite3.connect(store / "cache.db")) as connection:
        connection.executescript((FIXTURES / "store.sql").read_text(encoding="utf-8"))
    plugins = [(import_module(f"pointsman_{name}.plugin").plugin, section) for name, section in SECTIONS.items()]
    listener = PluginInfo(name="listener", config=PluginConfig, factory=Listener)
    async with Harness(
        [*plugins, listener],
        deployments=DEPLOYMENTS,
        store="disk",
        path=tmp_path,
        clock=FakeClock(OLD["now"] + 1),
        name="new",
    ) as h:
        yield h


async def shown(h: Harness, path: str) -> Any:
    return (await h.admin.get(path)).raise_for_status().json()


def with_usd(usage: dict[str, Any]) -> dict[str, Any]:
    """Return what an old worker showed of a scope with the exact amounts that this release adds."""
    spans = ("day", "month", "reserved")
    return usage | {f"{span}_usd": f"{Decimal(usage[f'{span}_usd_micros']) / 1_000_000:f}" for span in spans}


async def test_all_plugins_find_what_they_had(worker: Harness) -> None:
    for path in ("/registry/versions", "/registry/history?name=assistant", "/registry/metrics", "/quota/tenants"):
        assert await shown(worker, path) == OLD[path], path
    for path in ("/quota/tenants/acme", "/quota/tenants/stored"):
        old = OLD[path]
        assert await shown(worker, path) == {**old, "usage": [with_usd(each) for each in old["usage"]]}, path
    path = "/canary/assistant-rollout/audit"
    assert await shown(worker, path) == OLD[path]
    assert await shown(worker, "/shadow/try-next/results") == OLD["/shadow/try-next/results"]
    mirror, before = await shown(worker, "/shadow/try-next"), OLD["/shadow/try-next"]
    assert {**mirror, "worker": None, "quantiles": None} == {**before, "worker": None, "quantiles": None}
    for side, quantiles in before["quantiles"].items():
        # The value that stands for a bucket may be rounded differently; the buckets are the same.
        assert mirror["quantiles"][side]["latency_ms"] == pytest.approx(quantiles["latency_ms"], rel=1e-3)


async def test_the_experiment_goes_on_with_what_was_in_the_mailbox(worker: Harness) -> None:
    """The old leader's lease ends, and the four observations that nobody has taken in are counted."""
    old = OLD["/canary/assistant-rollout"]
    samples: list[int] = []
    for _ in range(200):
        await worker.clock.advance(0.5)
        now = await shown(worker, "/canary/assistant-rollout")
        samples = [each["stable_samples"] + each["canary_samples"] for each in now["analysis"]["canary"]]
        if samples != [12, 12]:
            break
    assert samples == [16, 16]
    # The definition has today's defaults where the old worker had those of its release, and the answer has more keys.
    changed = {"analysis", "elapsed_s", "definition"}
    assert {key: now[key] for key in old.keys() - changed} == {key: old[key] for key in old.keys() - changed}
    given = SECTIONS["canary"]["experiments"][0]
    assert {key: now["definition"][key] for key in given} == {key: old["definition"][key] for key in given}


async def test_measurements_are_those_of_the_old_worker(worker: Harness) -> None:
    old, now = OLD["/racing/performance"], await shown(worker, "/racing/performance")
    for name, stats in old["deployments"].items():
        found = now["deployments"][name]
        assert found["totals"] == stats["totals"]
        assert found["first_token_ms"].keys() == stats["first_token_ms"].keys()
        assert list(found["whole_ms"].values()) == pytest.approx(list(stats["whole_ms"].values()), rel=0.01)
    signals = {each["deployment_id"]: each for each in (await shown(worker, "/signals/"))["signals"]}
    for each in OLD["/signals/"]["signals"]:
        found = signals[each["deployment_id"]]
        # The sudden end has cost the old worker what it had not yet written: one mirrored call.
        unwritten = int(each["deployment_id"] == "next-1")
        # All calls of one deployment took the same time, so today's mean is the median.
        assert found["latency_ms"] == (
            each["latency_ms"]
            and {
                **each["latency_ms"],
                "count": each["latency_ms"]["count"] - unwritten,
                "mean": pytest.approx(each["latency_ms"]["p50"]),
            }
        )
        assert [(limit["axis"], limit["limit"], limit["remaining"]) for limit in found["limits"]] == [
            (limit["axis"], limit["limit"], limit["remaining"]) for limit in each["limits"]
        ]
        assert found["error_ratio"] == each["error_ratio"]
    group = await shown(worker, "/balance/groups/shaky")
    assert group["tactic"] == OLD["/balance/groups/shaky"]["tactic"] == {"name": "round_robin"}
    breaker = group["deployments"][0]["breaker"]
    assert (breaker["state"], breaker["until"]) == (
        "open",
        OLD["/balance/groups/shaky"]["deployments"][0]["breaker"]["until"],
    )


async def test_what_was_not_settled_is_settled(worker: Harness) -> None:
    """Once the old worker's heartbeat is over, this one takes its journal over."""
    rows = [row for key, row in ROWS.items() if key.startswith("host/journal/")]
    waiting = [entry["settlement"]["request_id"] for row in rows for entry in row["entries"]]
    assert len(waiting) == 1
    await worker.clock.advance(120)
    # The clock does not wait for the threads that the store answers from.
    async with asyncio.timeout(30):
        while not worker.plugin("listener").heard:
            await worker.clock.advance(1)
            await asyncio.sleep(0.01)
    await worker.settled()
    assert worker.plugin("listener").heard == waiting
    assert worker.faults == {}


async def test_new_requests_add_to_old_figures(worker: Harness) -> None:
    for _ in range(4):
        result = await worker.request(model="assistant")
        assert result.headers["x-pointsman-version"] in {"1", "2"}
    await worker.settled()
    await worker.clock.advance(3)
    rows = (await shown(worker, "/registry/metrics"))["metrics"]
    before = sum(row["requests"] for row in OLD["/registry/metrics"]["metrics"])
    assert sum(row["requests"] for row in rows) == before + 4
