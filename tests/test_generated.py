"""Random small configurations: what LiteLLM alone answers, it answers with plugins on, whatever their combination.

Groups, fallbacks, retries, cooldowns, weights, drained deployments, races, arms, mirrors, quotas, the order of the plugins and what
the providers do are random. A request that every choice of deployments would answer must be answered, unless a limit says
why not; every request is settled once and every attempt closed once; nothing is left over.
"""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from combined import BEHAVIOURS, MODELS, PLUGINS, check, must_answer, names, worker
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pointsman.types import AttemptKind

CASES = 2000 if os.environ.get("POINTSMAN_THOROUGH") else 60
#: The smallest case that failed in the latest run, for a report or a test of its own.
FAILED = Path(tempfile.gettempdir()) / "pointsman-generated-failure.json"

members = st.fixed_dictionaries(
    {
        "does": st.sampled_from(["good", "good", "good", *BEHAVIOURS]),
        "weight": st.sampled_from([1.0, 1.0, 1.0, 3.0, 0.0]),
        "active": st.sampled_from([True, True, True, True, False]),
    }
)
groups = st.fixed_dictionaries({f"g{n}": st.lists(members, min_size=1, max_size=3) for n in range(3)})
cases = st.fixed_dictionaries(
    {
        "groups": groups,
        "fallbacks": st.sampled_from([[], ["g2"], ["g1", "g2"]]),
        "retries": st.integers(0, 2),
        "cooldown_s": st.sampled_from([None, None, 5.0]),
        "plugins": st.lists(st.sampled_from(sorted(PLUGINS)), unique=True, max_size=8),
        "raced": st.sampled_from([[], ["g0"], ["g1"], ["g0", "g2"]]),
        "tactic": st.sampled_from(
            [
                "adaptive",
                "round_robin",
                "random",
                "capacity",
                "headroom",
                "p2c",
                "least_busy",
                "latency_based",
                "cache_affinity",
            ]
        ),
        "requests_per_minute": st.sampled_from([None, None, None, 3]),
        "requests": st.lists(st.tuples(st.sampled_from(MODELS), st.booleans()), min_size=1, max_size=6),
    }
)


async def run(case: dict[str, Any], directory: Path, plugins: Sequence[str]) -> None:
    """Send the requests of a case through a worker with these plugins."""
    callable_names = names(case, plugins)
    async with worker(case, directory, plugins) as h:
        sent = 0
        for model, stream in case["requests"]:
            if model in callable_names:
                sent += 1
                fallbacks = [name for name in case["fallbacks"] if name != model]
                check(
                    case,
                    plugins,
                    await h.request(model=model, stream=stream, retries=case["retries"], fallbacks=fallbacks),
                )
        await h.settled()
        assert len({settlement.request_id for settlement in h.settlements}) == len(h.settlements) == sent
        closed = h.plugin("watch").closed
        assert set(closed.values()) <= {1}
        assert {attempt.id for settlement in h.settlements for attempt in settlement.attempts} <= set(closed)
        await h.clock.quiet()
        # Mirrors go on when their request has ended.
        assert all(call.request.kind is AttemptKind.MIRROR for call in h.gateway.upstream.running)
        assert h.faults == {}


#: Cases that have failed.
FOUND: dict[str, dict[str, Any]] = {
    "a race's stream without a chunk is from the version that it asked": {
        "groups": {f"g{n}": [{"does": "good" if n else "empty", "weight": 1.0, "active": True}] for n in range(3)},
        "fallbacks": [],
        "retries": 0,
        "cooldown_s": None,
        "plugins": ["registry", "racing"],
        "raced": ["g0"],
        "tactic": "adaptive",
        "requests_per_minute": None,
        "requests": [("assistant", True)],
    }
}


@pytest.mark.parametrize("case", FOUND.values(), ids=FOUND)
async def test_what_has_failed_once_holds(tmp_path: Path, case: dict[str, Any]) -> None:
    await run(case, tmp_path, case["plugins"])


@pytest.mark.timeout(3600)
@pytest.mark.thorough
async def test_what_is_answered_without_plugins_is_answered_with_them(tmp_path: Path) -> None:
    numbers = iter(range(10**9))
    seen = {"sure": 0, "requests": 0}

    @settings(
        max_examples=CASES,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(cases)
    def every(case: dict[str, Any]) -> None:
        directory = tmp_path / str(next(numbers))
        directory.mkdir()
        seen["requests"] += len(case["requests"])
        seen["sure"] += sum(must_answer(case, model) for model, _ in case["requests"])
        try:
            with asyncio.Runner() as runner:
                runner.run(run(case, directory, []))
                runner.run(run(case, directory, case["plugins"]))
        except BaseException:
            FAILED.write_text(json.dumps(case, indent=1), encoding="utf-8")
            raise

    await asyncio.to_thread(every)
    # Otherwise nothing would be checked.
    assert seen["sure"] > seen["requests"] / 10
