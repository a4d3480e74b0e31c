# ruff: noqa: INP001, PLR2004, S311 - a script of figures and repeatable chance, not a package
"""How often a rollout is rolled back, wrongly and rightly.

Run it with ``python plugins/canary/bench/bench_canary.py``; ``--rollouts 1000`` is quicker and coarser.

Every simulated rollout goes through the plugin's own life cycle, tick by tick. The same observations go through two
rules that are often used instead: a threshold on the last 100 canary requests, and a z-test for two proportions (for
latency: for two means of logarithms) that is looked at after every tick.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import sys
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from itertools import accumulate
from statistics import NormalDist

from rich.console import Console
from rich.table import Table

from pointsman_canary import lifecycle
from pointsman_canary.experiment import Experiment, MetricName
from pointsman_canary.lifecycle import Cause
from pointsman_canary.metrics import LOG_STEP, index
from pointsman_canary.rollout import Phase, Rollout

TICK_S = 5.0
MOST_REQUESTS = 60_000
BASE_ERROR_RATE = 0.02
LAST = 100
THRESHOLD = 0.04
LATENCY_SIGMA = 0.6
LATENCY_MEDIAN_MS = 800.0
LATENCY_SLOWER = 1.1
Z_EARLIEST = 30

STAGED = (1.0, 5.0, 25.0, 50.0, 100.0)
FIVE_PERCENT = (5.0, 100.0)


@dataclass(frozen=True)
class Case:
    """What is simulated.

    Attributes:
        name: For the table.
        error_rate: The canary's.
        slower: The canary's latency in multiples of stable's.
        steps: Weights in percent.
        metrics: What is compared.
        rollouts: How many.
        requests_per_tick: Of both arms together; a tick is the plugin's block.
    """

    name: str
    error_rate: float
    slower: float
    steps: tuple[float, ...]
    metrics: tuple[str, ...]
    rollouts: int
    requests_per_tick: int = 100


@dataclass
class Result:
    """What became of one rollout: requests of the canary until each rule said "roll back", or None."""

    hits: dict[str, int | None]
    phase: str = ""
    canary_requests: int = 0


@cache
def binomial_table(number: int, mean: float) -> list[float]:
    """Return the distribution function of a binomial count, from 0 to ``number``."""
    chances = [math.comb(number, k) * mean**k * (1 - mean) ** (number - k) for k in range(number + 1)]
    return list(accumulate(chances))


def binomial(rng: random.Random, number: int, mean: float) -> int:
    """Draw a binomial count."""
    return min(bisect_left(binomial_table(number, mean), rng.random()), number)


@cache
def latency_buckets(slower: float) -> tuple[int, ...]:
    """Return the buckets of 4096 equally likely latencies."""
    normal = NormalDist(math.log(LATENCY_MEDIAN_MS * slower), LATENCY_SIGMA)
    return tuple(
        index(MetricName.LATENCY_MS, math.exp(normal.inv_cdf((number + 0.5) / 4096))) for number in range(4096)
    )


def histogram(buckets: Iterable[int]) -> dict[int, int]:
    """Count the buckets."""
    counts: dict[int, int] = {}
    for bucket in buckets:
        counts[bucket] = counts.get(bucket, 0) + 1
    return counts


@dataclass
class Rules:
    """The two usual rules, on the observations of one rollout.

    A value is 0 or 1 for an error rate, the logarithm of the time for a latency.
    """

    latency: bool
    last: deque[float] = field(default_factory=lambda: deque(maxlen=LAST))
    sums: dict[str, list[float]] = field(default_factory=lambda: {"stable": [0.0] * 3, "canary": [0.0] * 3})

    def see(self, stable: Sequence[tuple[float, int]], canary: Sequence[float]) -> None:
        """Take in one tick: values of stable with their counts, values of the canary one by one."""
        for value, count in stable:
            self._add("stable", value, count)
        for value in canary:
            self._add("canary", value, 1)

    def _add(self, arm: str, value: float, count: int) -> None:
        totals = self.sums[arm]
        totals[0] += count
        totals[1] += count * value
        totals[2] += count * value * value

    def threshold(self, canary: Sequence[float]) -> bool:
        """Say whether the last 100 canary requests were ever above the threshold, request by request."""
        stable_mean = self.sums["stable"][1] / max(self.sums["stable"][0], 1)
        limit = stable_mean + math.log(LATENCY_SLOWER) if self.latency else THRESHOLD
        total = sum(self.last)
        hit = False
        for value in canary:
            if len(self.last) == LAST:
                total -= self.last[0]
            self.last.append(value)
            total += value
            hit = hit or (len(self.last) == LAST and total / LAST > limit + 1e-9)
        return hit

    def p_value(self) -> float:
        """Return the one-sided p-value of the z-test that a fixed number of requests would allow."""
        number, total, squares = self.sums["stable"]
        other, other_total, other_squares = self.sums["canary"]
        if min(number, other) < Z_EARLIEST:
            return 1.0
        if self.latency:
            shift = math.log(LATENCY_SLOWER)
            variance = (squares / number - (total / number) ** 2) / number
            variance += (other_squares / other - (other_total / other) ** 2) / other
        else:
            shift = 0.0
            pooled = (total + other_total) / (number + other)
            variance = pooled * (1 - pooled) * (1 / number + 1 / other)
        if variance <= 0:
            return 1.0
        z = (other_total / other - total / number - shift) / math.sqrt(variance)
        return 1 - NormalDist().cdf(z)


def simulate(case: Case, seed: int) -> Result:
    """Run one rollout until it is promoted, every rule has said its word, or enough has been seen."""
    rng = random.Random(seed)
    latency = "latency_ms" in case.metrics
    experiment = Experiment.model_validate(
        {
            "name": "simulated",
            "model": "m",
            "canary": "c",
            "metrics": list(case.metrics),
            "steps": list(case.steps),
            "interval_s": 50,
            "inconclusive_limit_s": 86_400,
            "alpha": 0.01,
            # The trace goes on after a fail, for the other rules.
            "on_fail": "report",
        }
    )
    rollout, _ = lifecycle.create(experiment, "config", Cause("bench", "", 0.0))
    rules = Rules(latency)
    hits: dict[str, int | None] = dict.fromkeys(RULES)
    seen = 0
    for tick in range(1, MOST_REQUESTS // case.requests_per_tick + 1):
        weight = rollout.weights_bp[0] / 10_000
        number = binomial(rng, case.requests_per_tick, weight)
        observed, stable, canary = observe(rng, case, case.requests_per_tick - number, number)
        seen += number
        rules.see(stable, canary)
        rollout, _ = lifecycle.tick(rollout, tick * TICK_S, observed)
        p_harm = lowest_p(rollout)
        p_z = rules.p_value()
        for rule, said in {
            "e 1 %": p_harm <= 0.01,
            # As when the error rate or the latency has half of alpha, beside another metric.
            "e 1 %, half": p_harm <= 0.005,
            "e 5 %": p_harm <= 0.05,
            "last 100": rules.threshold(canary),
            "z 1 %": p_z <= 0.01,
            "z 5 %": p_z <= 0.05,
        }.items():
            if said and hits[rule] is None:
                hits[rule] = seen
        if rollout.finished or all(hit is not None for hit in hits.values()):
            break
    return Result(hits, str(rollout.phase), seen)


RULES = ("e 1 %", "e 1 %, half", "e 5 %", "last 100", "z 1 %", "z 5 %")


def lowest_p(rollout: Rollout) -> float:
    """Return the p-value of harm that comes nearest to a fail."""
    return min((found.p_harm for findings in rollout.findings().values() for found in findings), default=1.0)


def observe(
    rng: random.Random, case: Case, stable: int, canary: int
) -> tuple[Mapping[str, Mapping[str, dict[int, int]]], list[tuple[float, int]], list[float]]:
    """Return one tick's observations as the plugin counts them, and as the other rules read them."""
    if "latency_ms" in case.metrics:
        times = {
            "stable": rng.choices(latency_buckets(1.0), k=stable),
            "canary": rng.choices(latency_buckets(case.slower), k=canary),
        }
        seen = {arm: {"latency_ms": histogram(buckets)} for arm, buckets in times.items()}
        counts = [(bucket * LOG_STEP, count) for bucket, count in seen["stable"]["latency_ms"].items()]
        return seen, counts, [bucket * LOG_STEP for bucket in times["canary"]]
    bad, also_bad = binomial(rng, stable, BASE_ERROR_RATE), binomial(rng, canary, case.error_rate)
    outcomes = [1.0] * also_bad + [0.0] * (canary - also_bad)
    rng.shuffle(outcomes)
    seen = {
        "stable": {"error_rate": {0: stable - bad, 1000: bad}},
        "canary": {"error_rate": {0: canary - also_bad, 1000: also_bad}} if canary else {},
    }
    return seen, [(1.0, bad), (0.0, stable - bad)], outcomes


def chunk(job: tuple[Case, range]) -> list[Result]:
    """Run some rollouts in a worker process."""
    case, seeds = job
    return [simulate(case, seed) for seed in seeds]


def run(case: Case, pool: ProcessPoolExecutor) -> list[Result]:
    """Run all rollouts of a case."""
    size = max(1, case.rollouts // 64)
    jobs = [(case, range(start, min(start + size, case.rollouts))) for start in range(0, case.rollouts, size)]
    return [result for results in pool.map(chunk, jobs) for result in results]


def row(case: Case, results: Sequence[Result]) -> list[str]:
    """Return a case as a row of the table."""
    cells = [case.name, str(len(results))]
    for rule in RULES:
        hits = [result.hits[rule] for result in results]
        found = sorted(hit for hit in hits if hit is not None)
        share = len(found) / len(hits)
        median = sorted(math.inf if hit is None else hit for hit in hits)[len(hits) // 2]
        cells.append(f"{100 * share:.2f} %" + (f", {median:.0f}" if math.isfinite(median) else ""))
    promoted = sum(result.phase == Phase.PROMOTED and result.hits["e 1 %"] is None for result in results) / len(results)
    cells.append(f"{100 * promoted:.1f} %")
    return cells


def cases(rollouts: int) -> Iterator[tuple[str, list[Case]]]:
    """Return the tables' titles and cases."""
    some = max(50, rollouts // 20)
    errors = ("error_rate",)
    yield (
        "Errors: base rate 2 %, steps 1, 5, 25, 50 %",
        [
            Case("the same", 0.02, 1.0, STAGED, errors, rollouts, 400),
            Case("3 x", 0.06, 1.0, STAGED, errors, some),
            Case("5 x", 0.10, 1.0, STAGED, errors, some),
        ],
    )
    yield (
        "Errors: one step of 5 %",
        [
            Case("3 x", 0.06, 1.0, FIVE_PERCENT, errors, some),
            Case("5 x", 0.10, 1.0, FIVE_PERCENT, errors, some),
            Case("everything fails", 1.0, 1.0, FIVE_PERCENT, errors, some),
        ],
    )
    latency = ("latency_ms",)
    yield (
        "Latency p90: lognormal with sigma 0.6, 10 % slower is no harm, one step of 5 %",
        [
            Case("the same", 0.0, 1.0, FIVE_PERCENT, latency, some),
            Case("1.1 x (no harm yet)", 0.0, 1.1, FIVE_PERCENT, latency, some),
            Case("1.2 x", 0.0, 1.2, FIVE_PERCENT, latency, some // 2),
            Case("1.5 x", 0.0, 1.5, FIVE_PERCENT, latency, some // 2),
            Case("2 x", 0.0, 2.0, FIVE_PERCENT, latency, some // 2),
        ],
    )


def printed(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """Return a table for the terminal."""
    made = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        made.add_column(column, justify="left" if number == 0 else "right")
    for cells in rows:
        made.add_row(*cells)
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rollouts", type=int, default=10_000, help="simulated rollouts of a healthy canary")
    parser.add_argument("--processes", type=int, default=min(2, os.cpu_count() or 1))
    options = parser.parse_args(argv)
    console = Console(width=150)
    columns = [
        "canary",
        "rollouts",
        "e-process 1 %",
        "half of 1 %",
        "e-process 5 %",
        "last 100",
        "z-test 1 %",
        "z-test 5 %",
        "promoted",
    ]
    console.print("Share of rollouts rolled back, and the median number of canary requests until then.\n")
    with ProcessPoolExecutor(options.processes) as pool:
        for title, group in cases(options.rollouts):
            begun = time.perf_counter()
            rows = [row(case, run(case, pool)) for case in group]
            console.print(printed(title, columns, rows))
            console.print(f"{time.perf_counter() - begun:.0f} s\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
