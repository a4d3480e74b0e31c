# ruff: noqa: INP001, S311 - a script of figures and repeatable chance, not a package
"""Our tactics against LiteLLM's routing strategies: the same trace, the same fleet, through the real proxy.

``python plugins/balance/bench/bench_fleet.py`` takes about a minute a strategy; ``--quick`` runs four of them for half
the time, ``--only adaptive,least-busy`` the named ones. Arrivals are those of ``azure_llm_2023_conv.csv`` in the directory
``--traces`` (or ``POINTSMAN_TRACES``), scaled to ``--rate``; without it, Poisson arrivals with bursts.

The fleet (``fleet.py``): one fast, two normal, one slow, one that turns to 30 % errors and tenfold latency for a third of
the time, one that answers 429 with a retry-after beyond 20 requests in 10 s. Everybody retries twice.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
from fleet import SICK, fleet
from rich.console import Console
from rich.table import Table

from pointsman.testing.ports import free_port
from pointsman.testing.proxy import ProxyServer
from pointsman_balance.tactics import BUILT_IN

OURS = sorted(BUILT_IN)
LITELLM = ["simple-shuffle", "least-busy", "latency-based-routing", "usage-based-routing-v2"]
QUICK = ["simple-shuffle", "least-busy", "p2c", "adaptive"]
TRACE = "azure_llm_2023_conv.csv"
SETTLED_RATIO = 0.05
MAX_TOKENS = 100


@dataclass
class Seen:
    """What came of one request.

    Attributes:
        at: Seconds after the start.
        first_ms: To the first token; None for an error.
        status: HTTP status.
    """

    at: float
    first_ms: float | None
    status: int


@dataclass
class Run:
    """What came of one strategy."""

    name: str
    seen: list[Seen]
    journal: list[tuple[float, str, int]]
    lag_ms: float

    def first_ms(self, part: float) -> float:
        """Return a quantile (nearest rank) of the time to the first token."""
        values = sorted(one.first_ms for one in self.seen if one.first_ms is not None)
        return values[min(len(values) - 1, int(part * len(values)))] if values else float("nan")

    @property
    def errors(self) -> int:
        """Requests that the client saw fail."""
        return sum(one.first_ms is None for one in self.seen)

    def shares(self, seconds: int) -> list[float]:
        """Return the share of the attempts that went to the sick one, second by second."""
        shares = []
        for second in range(seconds):
            names = [name for at, name, _ in self.journal if second <= at < second + 1]
            shares.append(names.count(SICK) / len(names) if names else 0.0)
        return shares

    def share(self, begin_s: float, end_s: float) -> float:
        """Return the share of the attempts that went to the sick one within some time."""
        names = [name for at, name, _ in self.journal if begin_s <= at < end_s]
        return names.count(SICK) / len(names) if names else 0.0


def arrivals(directory: Path | None, rate: float, seconds: float) -> tuple[str, list[tuple[float, int]]]:
    """Return where the trace comes from, and its requests: seconds after the start, tokens to generate."""
    path = None if directory is None else directory / TRACE
    if path is not None and path.exists():
        with path.open(newline="", encoding="utf-8") as file:
            rows = [
                (datetime.fromisoformat(row["TIMESTAMP"][:26]).timestamp(), int(row["GeneratedTokens"]))
                for row in csv.DictReader(file)
            ]
        # From the middle: the first minutes of the recording are quiet.
        rows = rows[len(rows) // 3 :][: int(rate * seconds)]
        begin, length = rows[0][0], rows[-1][0] - rows[0][0]
        made = [((at - begin) / length * seconds, max(5, min(MAX_TOKENS, tokens // 4))) for at, tokens in rows]
        return f"{TRACE}, scaled to {rate:g} requests/s", made
    luck, at, made = random.Random(1), 0.0, []
    while True:
        # Bursts: every fifth second has half as many requests again.
        at += luck.expovariate(rate * (1.4 if int(at) % 5 == 0 else 0.9))
        if at >= seconds:
            return f"synthetic, {rate:g} requests/s with bursts", made
        made.append((at, max(5, min(MAX_TOKENS, int(luck.lognormvariate(3.4, 0.6))))))


@contextmanager
def upstream(begin_s: float, end_s: float) -> Iterator[str]:
    """Run the fleet; yields its URL."""
    port = free_port()
    command = [sys.executable, str(Path(__file__).with_name("fleet.py")), str(port), str(begin_s), str(end_s)]
    process = subprocess.Popen(command)  # noqa: S603  # our own command
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(200):
            try:
                httpx.get(f"{url}/journal", trust_env=False)
                break
            except httpx.HTTPError:
                time.sleep(0.05)
        yield url
    finally:
        process.terminate()
        process.wait(10)


def configuration(name: str, url: str, names: Sequence[str]) -> dict[str, Any]:
    """Return the proxy's configuration for one strategy; LiteLLM's run without anything of ours."""
    document: dict[str, Any] = {
        "model_list": [
            {
                "model_name": "fleet",
                "litellm_params": {"model": f"openai/{one}", "api_base": f"{url}/v1", "api_key": "x", "max_retries": 0},
                "model_info": {"id": one},
            }
            for one in names
        ],
        "router_settings": {"num_retries": 2},
        "litellm_settings": {"num_retries": 2, "telemetry": False},
    }
    if name in LITELLM:
        document["router_settings"]["routing_strategy"] = name
        return document
    document["router_settings"]["disable_cooldowns"] = True
    document["litellm_settings"]["callbacks"] = ["pointsman.litellm.handler"]
    plugins = [{"signals": {"check_local": False}}, {"balance": {"tactic": name}}]
    document["pointsman"] = {"store": {"backend": "memory"}, "plugins": plugins}
    return document


async def ask(client: httpx.AsyncClient, started: float, due_s: float, tokens: int) -> Seen:
    """Send one request at its time; measured from then, so that a client that lags behind does not hide it."""
    await asyncio.sleep(max(0.0, started + due_s - time.monotonic()))
    body = {
        "model": "fleet",
        "stream": True,
        "max_tokens": tokens,
        "messages": [{"role": "user", "content": f"question {due_s:.6f}"}],
    }
    first_ms, status = None, 0
    try:
        async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
            status = answer.status_code
            async for line in answer.aiter_lines():
                if first_ms is None and line.startswith("data: {") and status == httpx.codes.OK:
                    chunk = json.loads(line[6:])
                    if any((choice.get("delta") or {}).get("content") for choice in chunk.get("choices", ())):
                        first_ms = (time.monotonic() - started - due_s) * 1e3
    except httpx.HTTPError:
        pass
    return Seen(due_s, first_ms, status)


class Lag:
    """How late this process's own event loop gets, in milliseconds: a lag of the client is none of the gateway's."""

    def __init__(self) -> None:
        self.worst_ms = 0.0

    async def watch(self) -> None:
        """Look, again and again."""
        while True:
            due = time.monotonic() + 0.02
            await asyncio.sleep(0.02)
            self.worst_ms = max(self.worst_ms, (time.monotonic() - due) * 1e3)


async def drive(name: str, proxy: ProxyServer, url: str, requests: Sequence[tuple[float, int]]) -> Run:
    """Send all requests and return what came of them."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=64, keepalive_expiry=2.0)
    async with (
        httpx.AsyncClient(
            base_url=proxy.url, headers=proxy.headers, timeout=60.0, limits=limits, trust_env=False
        ) as client,
        httpx.AsyncClient(trust_env=False) as control,
    ):
        # The first requests of a process pay for imports.
        for number in range(12):
            await ask(client, time.monotonic(), number / 1e3, 5)
        await control.post(f"{url}/start")
        started, lag = time.monotonic(), Lag()
        watching = asyncio.create_task(lag.watch())
        seen = await asyncio.gather(*(ask(client, started, at, tokens) for at, tokens in requests))
        watching.cancel()
        journal = (await control.get(f"{url}/journal")).json()
    return Run(name, list(seen), [tuple(one) for one in journal], lag.worst_ms)


def settled_s(run: Run, begin_s: float, end_s: float) -> float:
    """Return the seconds after the beginning of the brown-out from which on the sick one gets less than 5 % until its end."""
    for second in range(int(end_s - begin_s)):
        if run.share(begin_s + second, end_s) < SETTLED_RATIO:
            return float(second)
    return float("inf")


def back_s(run: Run, end_s: float) -> tuple[float, int]:
    """Return the seconds after the brown-out until two answers in a row, and how many failed or slow tries came before."""
    tries = [(at, status) for at, name, status in run.journal if name == SICK and at >= end_s]
    for number in range(len(tries) - 1):
        if tries[number][1] == tries[number + 1][1] == httpx.codes.OK:
            return tries[number][0] - end_s, number
    return float("inf"), len(tries)


def measure(name: str, requests: Sequence[tuple[float, int]], begin_s: float, end_s: float) -> Run:
    """Run one strategy."""
    with upstream(begin_s, end_s) as url, tempfile.TemporaryDirectory() as directory:
        document = configuration(name, url, list(fleet(begin_s, end_s)))
        with ProxyServer(document, Path(directory)) as proxy:
            return asyncio.run(drive(name, proxy, url, requests))


def overview(runs: Sequence[Run], begin_s: float, end_s: float, seconds: float) -> Table:
    """Return the comparison."""
    table = Table(title="Time to the first token in ms, errors that clients saw, and how the sick one was treated")
    headings = [
        "strategy",
        "requests",
        "p50",
        "p95",
        "p99",
        "errors",
        "sick before",
        "during",
        "< 5 % after",
        "asked again after",
        "share afterwards",
        "client lag",
    ]
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number else "left")
    for run in runs:
        back, _ = back_s(run, end_s)
        table.add_row(
            run.name if run.name in LITELLM else f"pointsman {run.name}",
            str(len(run.seen)),
            *(f"{run.first_ms(part):.0f}" for part in (0.5, 0.95, 0.99)),
            str(run.errors),
            f"{run.share(2, begin_s):.1%}",
            f"{run.share(begin_s, end_s):.1%}",
            "never" if (after := settled_s(run, begin_s, end_s)) == float("inf") else f"{after:.0f} s",
            "never" if back == float("inf") else f"{back:.1f} s",
            f"{run.share(min(end_s + 5, seconds), seconds):.1%}",
            f"{run.lag_ms:.0f} ms",
        )
    return table


def by_second(runs: Sequence[Run], begin_s: float, end_s: float) -> Table:
    """Return the share of the sick one, second by second."""
    table = Table(
        title="Share of the attempts that went to the sick one, per second, in %; the brown-out is in brackets"
    )
    table.add_column("strategy")
    table.add_column("from 3 s before to 8 s after", no_wrap=True)
    for run in runs:
        shares = run.shares(int(end_s) + 8)
        cells = []
        for second in range(int(begin_s) - 3, int(end_s) + 8):
            opening, closing = "[" if second == int(begin_s) else "", "]" if second == int(end_s) - 1 else ""
            cells.append(f"{opening}{100 * shares[second]:.0f}{closing}")
        table.add_row(run.name, " ".join(cells).replace("[", "\\["))
    return table


def verdict(runs: Sequence[Run], begin_s: float, end_s: float) -> list[str]:
    """Return how the best of ours compares with the best of theirs."""
    ours, theirs = ([run for run in runs if (run.name in LITELLM) is theirs] for theirs in (False, True))
    if not ours or not theirs:
        return []
    best, other = min(ours, key=lambda run: run.first_ms(0.99)), min(theirs, key=lambda run: run.first_ms(0.99))
    fewest = min(run.errors for run in theirs)
    ratio = best.first_ms(0.99) / other.first_ms(0.99)
    return [
        f"p99: {best.name} {best.first_ms(0.99):.0f} ms, LiteLLM's {other.name} {other.first_ms(0.99):.0f} ms: {ratio:.0%}",
        f"errors: {best.name} {best.errors}, LiteLLM's fewest {fewest}",
        f"sick one below 5 %: after {settled_s(best, begin_s, end_s):.0f} s (aim: 3 s)",
        "asked again {:.1f} s after the end, {} tries before that failed (aim: within one probe)".format(
            *back_s(best, end_s)
        ),
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the strategies one after another and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"only {', '.join(QUICK)}, and half as long")
    parser.add_argument("--only", help="strategies, separated by commas")
    parser.add_argument("--rate", type=float, default=14.0, help="requests a second")
    parser.add_argument("--seconds", type=float, help="length of the trace (36, quick 18)")
    parser.add_argument("--traces", type=Path, default=os.environ.get("POINTSMAN_TRACES"), help="directory of traces")
    options = parser.parse_args(argv)
    names = options.only.split(",") if options.only else QUICK if options.quick else [*LITELLM, *OURS]
    if unknown := set(names) - {*LITELLM, *OURS}:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join([*LITELLM, *OURS])}")
    seconds = options.seconds or (18.0 if options.quick else 36.0)
    begin_s, end_s = seconds // 3, 2 * seconds // 3
    source, requests = arrivals(options.traces and Path(options.traces), options.rate, seconds)
    console = Console(width=170)
    console.print(
        f"{len(requests)} requests in {seconds:.0f} s ({source}); brown-out from {begin_s:.0f} to {end_s:.0f} s"
    )
    runs = []
    for name in names:
        runs.append(measure(name, requests, begin_s, end_s))
        failed = Counter(one.status for one in runs[-1].seen if one.first_ms is None)
        told = ", ".join(f"{count} x {status or 'connection'}" for status, count in failed.items()) or "no errors"
        console.print(f"  {name}: p99 {runs[-1].first_ms(0.99):.0f} ms, {told}")
    console.print(overview(runs, begin_s, end_s, seconds), by_second(runs, begin_s, end_s))
    for line in verdict(runs, begin_s, end_s):
        console.print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
