# ruff: noqa: INP001, S311 - a script of figures and repeatable chance, not a package
"""What a request pays for the choice and for what learning from it costs, and the memory of ten thousand deployments.

Run it with ``python plugins/balance/bench/bench_cost.py``. A figure is the best of many short rounds: what the code takes when
nothing else runs. The signals are there, with two quota axes each.
"""

from __future__ import annotations

import gc
import random
import sys
import timeit
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import replace

from rich.console import Console
from rich.table import Table

from pointsman.types import (
    Attempt,
    AttemptError,
    AttemptKind,
    Candidate,
    Deployment,
    Endpoint,
    ErrorClass,
    Identity,
    Limit,
    Outcome,
    Price,
    RequestContext,
    Signal,
    SignalStatus,
    Usage,
)
from pointsman_balance.attempts import Observer, TriedDeployments
from pointsman_balance.config import BalanceConfig
from pointsman_balance.members import Members
from pointsman_balance.policies import Policies
from pointsman_balance.selection import Chooser
from pointsman_balance.tactics import BUILT_IN

NOW = 1_700_000_000.0
DEPLOYMENTS = 20
TURNS, ROUNDS = 10, 1_500


def _raise(part: str, err: BaseException) -> None:  # noqa: ARG001  # of any part
    raise err


class NoPrices:
    """A cost map that knows nothing."""

    def get(self, _: Deployment) -> Price:
        """Return no price."""
        return Price()


class Bench:
    """A chooser and an observer over a fleet that has been in use.

    Args:
        tactic: The tactic's name.
    """

    def __init__(self, tactic: str) -> None:
        rng = random.Random(1)
        self.fleet = [
            Deployment(id=f"deployment-{n}", group="chat", provider="openai", model="m", rpm=100 * (n + 1))
            for n in range(DEPLOYMENTS)
        ]
        self.candidates = tuple(Candidate(deployment=one) for one in self.fleet)
        limits = tuple(
            Limit(axis=axis, window_s=60.0, limit=100.0, remaining=50.0, resets_at=NOW + 30)
            for axis in ("requests", "tokens")
        )
        signals = {
            one.id: Signal(deployment_id=one.id, status=SignalStatus.AVAILABLE, recorded_at=NOW, limits=limits)
            for one in self.fleet
        }
        config = BalanceConfig.model_validate({"tactic": tactic})
        policies = Policies(config, BUILT_IN)
        self.members = Members(
            policies.breaker, max_deployments=config.max_deployments, tau_s=config.tau_s, stale_s=config.stale_s
        )
        self.tried = TriedDeployments()
        self.chooser = Chooser(
            config,
            policies,
            self.members,
            self.tried,
            signal_of=signals.get,
            prices=NoPrices(),
            random=rng,
            fault=_raise,
        )
        self.observer = Observer(self.members, self.tried, signal_of=signals.get, changed=lambda _: None)
        for one in self.fleet:
            load = self.members.of(one, NOW).load
            for average in (load.first_ms, load.latency_ms, load.tokens_per_s):
                average.add(rng.uniform(20, 900), NOW)
            load.errors = rng.random() / 10
        body = {"messages": [{"role": "user", "content": "a question of some length " * 60}]}
        self.ctx = RequestContext(
            request_id="request",
            endpoint=Endpoint.CHAT,
            model="chat",
            stream=True,
            identity=Identity(),
            received_at=NOW,
            body=body,
        )
        self.open = Attempt(
            id="attempt",
            request_id="request",
            number=1,
            kind=AttemptKind.PRIMARY,
            deployment=self.fleet[0],
            started_at=NOW,
        )
        usage = Usage(prompt_tokens=10, completion_tokens=20)
        self.answered = replace(
            self.open, outcome=Outcome.OK, duration_ms=500.0, first_token_ms=200.0, usage=usage, status_code=200
        )

    def choose(self) -> object:
        """Choose."""
        return self.chooser.choose(self.ctx, self.candidates, NOW)

    def attempt(self) -> object:
        """Follow an attempt from its start over its first token to its end."""
        self.observer.begin(self.ctx, self.open, NOW)
        self.observer.first_token(self.open, 200.0, NOW)
        return self.observer.end(self.ctx, self.answered, NOW)


def best_us(work: Callable[[], object]) -> float:
    """Return the microseconds of one call."""
    return min(timeit.repeat(work, number=TURNS, repeat=ROUNDS)) / TURNS * 1e6


def ill(bench: Bench) -> None:
    """Let a quarter of the fleet be open: their reasons are part of the answer."""
    for one in bench.fleet[::4]:
        bench.members.of(one, NOW).breaker.record_failure(ErrorClass.AUTH, NOW, NOW)


def memory() -> list[tuple[str, float]]:
    """Return the kilobytes held after a number of deployments were seen, with the default bound."""
    rows = []
    bench = Bench("adaptive")
    gc.collect()
    tracemalloc.start()
    error = AttemptError(kind=ErrorClass.SERVER, status=500)
    for number in range(1, 10_001):
        one = Deployment(id=f"d{number}", group=f"g{number % 100}", provider="openai", model="m")
        opened = replace(bench.open, id=f"a{number}", request_id=f"r{number}", deployment=one)
        bench.observer.begin(bench.ctx, opened, NOW + number)
        failed = replace(opened, outcome=Outcome.ERROR, duration_ms=9.0, error=error)
        bench.observer.end(bench.ctx, failed, NOW + number)
        bench.tried.sweep(NOW + number)
        if number in {1_000, 2_000, 5_000, 10_000}:
            gc.collect()
            rows.append((f"{number} deployments seen", tracemalloc.get_traced_memory()[0] / 1024))
    tracemalloc.stop()
    return rows


def main(_: Sequence[str] | None = None) -> int:
    """Print the tables."""
    console = Console(width=120)
    table = Table(title=f"select with {DEPLOYMENTS} deployments, in microseconds")
    for heading in ("tactic", "all healthy", "a quarter open"):
        table.add_column(heading, justify="left" if heading == "tactic" else "right")
    for name in sorted(BUILT_IN):
        bench, other = Bench(name), Bench(name)
        ill(other)
        table.add_row(name, f"{best_us(bench.choose):.1f}", f"{best_us(other.choose):.1f}")
    console.print(table)
    bench = Bench("adaptive")
    console.print(f"an attempt: start, first token and end together {best_us(bench.attempt):.1f} us\n")
    table = Table(title="Memory")
    table.add_column("after")
    table.add_column("KiB", justify="right")
    for label, kib in memory():
        table.add_row(label, f"{kib:.0f}")
    console.print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
