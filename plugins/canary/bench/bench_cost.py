# ruff: noqa: INP001, S311 - a script of figures and repeatable chance, not a package
"""What a request pays for one experiment and for twenty, and what a tick costs the worker that steps.

Run it with ``python plugins/canary/bench/bench_cost.py``.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench_canary import FIVE_PERCENT, Case, observe, printed
from rich.console import Console

from pointsman.types import Endpoint, Identity, RequestContext, Route
from pointsman_canary import lifecycle, routing
from pointsman_canary.config import CanaryConfig
from pointsman_canary.experiment import Experiment
from pointsman_canary.lifecycle import Cause
from pointsman_canary.plugin import CanaryPlugin


def request_cost_us(experiments: int) -> tuple[float, float]:
    """Return median and 99th percentile of pre_route in microseconds, all experiments on one model."""
    rollouts = [
        lifecycle.create(
            Experiment.model_validate(
                {
                    "name": f"experiment-{number}",
                    "model": "chat",
                    "stable": "stable-group",
                    "canary": f"canary-{number}",
                    # The last one takes the request, after all the others have looked at it.
                    "filter": {} if number == experiments - 1 else {"tenant": f"tenant-{number}"},
                    "fallback_to_stable": True,
                }
            ),
            "config",
            Cause("bench", "", 0.0),
        )[0]
        for number in range(experiments)
    ]
    plugin = CanaryPlugin(CanaryConfig())
    plugin._coordinator = RoutingOnly(routing.build(rollouts, {r.name: routing.compiled(r) for r in rollouts}))  # type: ignore[assignment]  # noqa: SLF001  # all that pre_route reads
    contexts = [
        RequestContext(
            request_id=uuid.uuid4().hex,
            endpoint=Endpoint.CHAT,
            model="chat",
            stream=False,
            identity=Identity(tenant="somebody"),
            received_at=0.0,
        )
        for _ in range(20_000)
    ]
    route = Route(target="chat", labels={"model_name": "chat"})

    async def measure() -> list[int]:
        taken = []
        for ctx in contexts:
            begun = time.perf_counter_ns()
            await plugin.pre_route(ctx, route)
            taken.append(time.perf_counter_ns() - begun)
        return sorted(taken)

    taken = asyncio.run(measure())
    return taken[len(taken) // 2] / 1000, taken[len(taken) * 99 // 100] / 1000


@dataclass(frozen=True)
class RoutingOnly:
    """The part of a coordinator that ``pre_route`` reads."""

    table: routing.Table


def tick_cost_us(metrics: tuple[str, ...]) -> float:
    """Return the median time of one tick with new observations, in microseconds."""
    case = Case("", 0.02, 1.0, FIVE_PERCENT, metrics, 1)
    rng = random.Random(1)
    experiment = Experiment.model_validate({"name": "x", "model": "m", "canary": "c", "metrics": list(metrics)})
    rollout, _ = lifecycle.create(experiment, "config", Cause("bench", "", 0.0))
    taken = []
    for tick in range(1, 101):
        observed, _, _ = observe(rng, case, 190, 10)
        begun = time.perf_counter_ns()
        rollout, _ = lifecycle.tick(rollout, float(tick), observed)
        taken.append((time.perf_counter_ns() - begun) / 1000)
    return statistics.median(taken)


def main(_: Sequence[str] | None = None) -> int:
    """Print the table."""
    costs: list[tuple[str, Callable[[], str]]] = [
        ("pre_route, 1 experiment", lambda: "{:.1f} us, p99 {:.1f} us".format(*request_cost_us(1))),
        ("pre_route, 20 experiments on one model", lambda: "{:.1f} us, p99 {:.1f} us".format(*request_cost_us(20))),
        ("tick, error rate", lambda: f"{tick_cost_us(('error_rate',)):.0f} us"),
        ("tick, latency", lambda: f"{tick_cost_us(('latency_ms',)):.0f} us"),
    ]
    Console(width=150).print(printed("Cost", ["what", "median"], [(name, measure()) for name, measure in costs]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
