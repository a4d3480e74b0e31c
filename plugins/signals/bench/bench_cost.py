# ruff: noqa: INP001 - a script of figures, not a package
"""What a request pays for being observed, dialect by dialect, and what ten thousand deployments cost in memory.

Run it with ``python plugins/signals/bench/bench_cost.py``. A figure is the best of several rounds: what the code takes when
nothing else runs. Every answer has other figures than the one before, and a dozen headers that are no quota.
"""

from __future__ import annotations

import gc
import random
import sys
import timeit
import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import cycle

from rich.console import Console
from rich.table import Table

from pointsman.types import Attempt, AttemptKind, Candidate, Deployment, Outcome, Signal, SignalStatus, Usage
from pointsman_signals.config import SignalsConfig
from pointsman_signals.dialects import DialectTable
from pointsman_signals.steering import steer
from pointsman_signals.tracker import Tracker

NOW = 1_700_000_000.0
ANSWERS, ROUNDS = 400, 15
OTHERS = {
    "content-type": "text/event-stream",
    "date": "Tue, 14 Nov 2023 22:13:20 GMT",
    "server": "cloudflare",
    "x-request-id": "req_0123456789",
    "via": "1.1 google",
    "cf-ray": "8f0",
    "cf-cache-status": "DYNAMIC",
    "strict-transport-security": "max-age=31536000",
    "x-content-type-options": "nosniff",
    "alt-svc": "h3",
    "connection": "keep-alive",
    "transfer-encoding": "chunked",
}


def openai(number: int) -> dict[str, str]:
    """Return OpenAI's headers."""
    return {
        "x-ratelimit-limit-requests": "10000",
        "x-ratelimit-limit-tokens": "2000000",
        "x-ratelimit-remaining-requests": str(9_999 - number),
        "x-ratelimit-remaining-tokens": str(1_999_000 - number),
        "x-ratelimit-reset-requests": f"{6 + number % 50}ms",
        "x-ratelimit-reset-tokens": f"{number % 60}ms",
    }


def azure(number: int) -> dict[str, str]:
    """Return Azure's headers."""
    return {
        "x-ratelimit-limit-requests": "1000",
        "x-ratelimit-limit-tokens": "100000",
        "x-ratelimit-remaining-requests": str(999 - number),
        "x-ratelimit-remaining-tokens": str(99_900 - number),
        "x-ratelimit-reset-requests": str(number % 60),
        "x-ratelimit-reset-tokens": str(number % 60),
        "x-ratelimit-renewalperiod-requests": "10",
        "x-ratelimit-renewalperiod-tokens": "60",
    }


def anthropic(number: int) -> dict[str, str]:
    """Return Anthropic's headers."""
    reset = datetime.fromtimestamp(NOW + 60 + number % 60, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        f"anthropic-ratelimit-{axis}-{part}": value
        for axis in ("requests", "tokens", "input-tokens", "output-tokens")
        for part, value in (("limit", "400000"), ("remaining", str(399_000 - number)), ("reset", reset))
    }


def groq(number: int) -> dict[str, str]:
    """Return Groq's headers."""
    return {
        "x-ratelimit-limit-requests": "14400",
        "x-ratelimit-limit-tokens": "6000",
        "x-ratelimit-remaining-requests": str(14_000 - number),
        "x-ratelimit-remaining-tokens": str(5_999 - number),
        "x-ratelimit-reset-requests": f"{number % 9}m{number % 59}.36s",
        "x-ratelimit-reset-tokens": f"{number % 60}.5s",
    }


def mistral(number: int) -> dict[str, str]:
    """Return Mistral's headers."""
    return {
        "x-ratelimit-limit-req-10-second": "60",
        "x-ratelimit-remaining-req-10-second": str(number % 60),
        "x-ratelimit-limit-tokens-minute": "500000",
        "x-ratelimit-remaining-tokens-minute": str(400_000 - number),
        "x-ratelimit-limit-tokens-month": "1000000000",
        "x-ratelimit-remaining-tokens-month": str(999_999 - number),
        "x-ratelimit-tokens-query-cost": "30",
    }


def ietf(number: int) -> dict[str, str]:
    """Return the IETF's headers."""
    return {"ratelimit-policy": '"burst";q=100;w=60', "ratelimit": f'"burst";r={number % 100};t={number % 60}'}


def none(_: int) -> dict[str, str]:
    """Return no quota."""
    return {}


DIALECTS: Mapping[str, Callable[[int], dict[str, str]]] = {
    "openai": openai,
    "azure": azure,
    "anthropic": anthropic,
    "groq": groq,
    "mistral": mistral,
    "huggingface": ietf,
    "deepseek": none,
}


def attempts(provider: str, number: int = ANSWERS) -> list[Attempt]:
    """Return closed attempts with the provider's headers."""
    one = Deployment(id="d1", group="chat", provider=provider, model="m")
    usage = Usage(prompt_tokens=100, completion_tokens=50)
    return [
        Attempt(
            id=f"a{index}",
            request_id=f"r{index}",
            number=1,
            kind=AttemptKind.PRIMARY,
            deployment=one,
            started_at=NOW + index / 100,
            outcome=Outcome.OK,
            duration_ms=500.0 + index,
            first_token_ms=200.0 + index % 7,
            usage=usage,
            headers={**OTHERS, **DIALECTS[provider](index)},
        )
        for index in range(number)
    ]


def best_us(work: Callable[[], object], number: int) -> float:
    """Return the microseconds of one of ``number`` calls."""
    return min(timeit.repeat(work, number=number, repeat=ROUNDS)) / number * 1e6


def observing(provider: str) -> tuple[float, float]:
    """Return the microseconds of an attempt's begin and of its end."""
    tracker, made = Tracker(SignalsConfig(), DialectTable()), attempts(provider)
    turn = cycle(made)

    def begin() -> None:
        attempt = next(turn)
        tracker.begin(attempt, attempt.started_at)

    def observe() -> None:
        attempt = next(turn)
        tracker.observe(attempt, attempt.started_at + 0.5)

    return best_us(begin, ANSWERS), best_us(observe, ANSWERS)


def steering(ill: int) -> float:
    """Return the microseconds of ``select`` with 20 deployments, some of them unavailable."""
    candidates = [
        Candidate(deployment=Deployment(id=f"d{n}", group="chat", provider="openai", model="m")) for n in range(20)
    ]
    board = {
        candidate.deployment.id: Signal(
            deployment_id=candidate.deployment.id,
            status=SignalStatus.AVAILABLE if n >= ill else (SignalStatus.DEGRADED, SignalStatus.EXHAUSTED)[n % 2],
            recorded_at=NOW,
            until=NOW + 60,
            reason="no tokens left",
        )
        for n, candidate in enumerate(candidates)
    }
    chance = random.Random(1).random  # noqa: S311  # repeatable
    return best_us(lambda: steer(candidates, board.get, NOW, 0.25, chance), 500)


def memory() -> list[tuple[str, float]]:
    """Return the kilobytes held after a number of deployments were seen, with the default bound."""
    rows = []
    tracker, (sample, *_) = Tracker(SignalsConfig(), DialectTable()), attempts("anthropic", 1)
    gc.collect()
    tracemalloc.start()
    for number in range(1, 10_001):
        one = Deployment(id=f"d{number}", group=f"g{number % 100}", provider="anthropic", model="m")
        tracker.observe(replace(sample, deployment=one), NOW + number)
        if number in {1_000, 2_000, 5_000, 10_000}:
            gc.collect()
            rows.append((f"{number} deployments seen", tracemalloc.get_traced_memory()[0] / 1024))
    tracemalloc.stop()
    return rows


def main(_: Sequence[str] | None = None) -> int:
    """Print the tables."""
    console = Console(width=120)
    table = Table(title="An attempt, in microseconds")
    for heading in ("provider", "begin", "observe"):
        table.add_column(heading, justify="left" if heading == "provider" else "right")
    for provider in DIALECTS:
        table.add_row(provider, *(f"{figure:.1f}" for figure in observing(provider)))
    console.print(table)
    table = Table(title="select with 20 deployments, in microseconds")
    table.add_column("not available")
    table.add_column("", justify="right")
    for ill in (0, 2, 10, 20):
        table.add_row(str(ill), f"{steering(ill):.1f}")
    console.print(table)
    table = Table(title="Memory")
    table.add_column("after")
    table.add_column("KiB", justify="right")
    for label, kib in memory():
        table.add_row(label, f"{kib:.0f}")
    console.print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
