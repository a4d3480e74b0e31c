# ruff: noqa: INP001, S311 - a script of figures and repeatable chance, not a package
"""What a client notices of a mirror that fails, hangs, is slow or is well: nothing, within what two equal blocks differ.

A real proxy with one worker. In each round every kind of mirror gets a block of requests at the same arrival times with
the same waiting times upstream, in an order drawn by lot; "none" comes twice, which shows how much chance does.
All requests of a block are mirrored, which is twenty times the default share.

Run it with ``python plugins/shadow/bench/bench_primary.py [--rounds 12] [--rate 8]``.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table

from pointsman.testing.provider import Behaviour, Delay, UpstreamServer
from pointsman.testing.proxy import ProxyServer

CONTROL, NONE = "none again", "none"
MIRRORS = {"well": "gpt-well", "failing": "gpt-failing", "hanging": "gpt-hanging", "slow": "gpt-slow"}
BLOCK = 24
#: Seconds after which a mirror is given up; the slow one is waited for.
TIME_LIMITS_S = {"well": 10.0, "failing": 10.0, "hanging": 2.0, "slow": 10.0}
BOOTSTRAP = 2000

Block = list[tuple[float, float | None]]
"""Whole time and time to the first token of each request, in milliseconds."""


def configuration(upstream: UpstreamServer, directory: Path) -> dict[str, Any]:
    """Return the proxy's configuration: one primary, four mirrors of it."""
    groups = {"chat": "gpt-primary", **MIRRORS}
    mirrors = [
        {
            "name": name,
            "model": "chat",
            "challenger": name,
            "sample_rate": 1.0,
            "max_concurrent": 64,
            "time_limit_s": TIME_LIMITS_S[name],
        }
        for name in MIRRORS
    ]
    return {
        "model_list": [
            {
                "model_name": group,
                "litellm_params": {"model": f"openai/{model}", "api_base": f"{upstream.url}/v1", "api_key": "x"},
                "model_info": {"id": group},
            }
            for group, model in groups.items()
        ],
        "litellm_settings": {"callbacks": ["pointsman.litellm.handler"], "num_retries": 0},
        "pointsman": {
            "store": {"backend": "disk", "path": str(directory / "store")},
            "plugins": [{"shadow": {"mirrors": mirrors, "flush_s": 0.2}}],
        },
    }


async def ask(client: httpx.AsyncClient, *, stream: bool) -> tuple[float, float | None]:
    """Make one request; return the milliseconds to its end and to the first token."""
    body = {"model": "chat", "stream": stream, "messages": [{"role": "user", "content": "Say something, please."}]}
    begun = time.perf_counter()
    first = None
    async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
        answer.raise_for_status()
        async for line in answer.aiter_lines():
            if first is None and stream and '"content":"' in line and '"content":""' not in line:
                first = (time.perf_counter() - begun) * 1000
    return (time.perf_counter() - begun) * 1000, first


async def block(client: httpx.AsyncClient, rate_per_s: float) -> Block:
    """Make a block of requests at fixed times, half of them streamed."""
    begun = time.perf_counter()

    async def one(number: int) -> tuple[float, float | None]:
        await asyncio.sleep(max(0.0, begun + number / rate_per_s - time.perf_counter()))
        return await ask(client, stream=number % 2 == 0)

    return list(await asyncio.gather(*map(one, range(BLOCK))))


async def quiet(client: httpx.AsyncClient) -> None:
    """Wait until no mirror runs."""
    while True:
        status = (await client.get("/pointsman/status")).json()
        (shadow,) = [plugin for plugin in status["plugins"] if plugin["name"] == "shadow"]
        if not any(mirror["alive"] for mirror in shadow["details"]["mirrors"]):
            return
        await asyncio.sleep(0.05)


async def measure(
    proxy: ProxyServer, rounds: int, rate_per_s: float
) -> tuple[dict[str, list[Block]], list[dict[str, Any]]]:
    """Return every block of every kind, and what the mirrors say of themselves."""
    rng = random.Random(1)
    blocks: dict[str, list[Block]] = {name: [] for name in (NONE, CONTROL, *MIRRORS)}
    # The server closes what has been idle for five seconds: a connection must not be used again at that very moment.
    limits = httpx.Limits(max_connections=100, keepalive_expiry=2.0)
    async with httpx.AsyncClient(
        base_url=proxy.url, headers=proxy.headers, timeout=60, trust_env=False, limits=limits
    ) as client:
        for name in MIRRORS:
            (await client.post(f"/pointsman/shadow/{name}/pause")).raise_for_status()
        await block(client, rate_per_s)
        for _ in range(rounds):
            kinds = list(blocks)
            rng.shuffle(kinds)
            for kind in kinds:
                if kind in MIRRORS:
                    (await client.post(f"/pointsman/shadow/{kind}/resume")).raise_for_status()
                blocks[kind].append(await block(client, rate_per_s))
                if kind in MIRRORS:
                    (await client.post(f"/pointsman/shadow/{kind}/pause")).raise_for_status()
                await quiet(client)
        await asyncio.sleep(1.0)
        return blocks, (await client.get("/pointsman/shadow")).json()["mirrors"]


def quantile(values: Sequence[float], share: float) -> float:
    """Return a quantile by nearest rank."""
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(share * len(ranked)))]


def values(blocks: Sequence[Block], column: int) -> list[float]:
    """Return one column of some blocks."""
    return [row[column] for each in blocks for row in each if row[column] is not None]  # type: ignore[misc]  # checked


def paired(one: Sequence[Block], other: Sequence[Block], column: int, share: float) -> tuple[float, float, float]:
    """Return the difference of a quantile and its 95 % interval, by drawing rounds with replacement."""
    rng = random.Random(7)
    rounds = range(len(one))
    drawn = []
    for _ in range(BOOTSTRAP):
        chosen = [rng.choice(rounds) for _ in rounds]
        drawn.append(
            quantile(values([one[n] for n in chosen], column), share)
            - quantile(values([other[n] for n in chosen], column), share)
        )
    drawn.sort()
    exact = quantile(values(one, column), share) - quantile(values(other, column), share)
    return exact, drawn[int(0.025 * BOOTSTRAP)], drawn[int(0.975 * BOOTSTRAP)]


def show(blocks: Mapping[str, list[Block]], mirrors: Sequence[Mapping[str, Any]]) -> None:
    """Print the tables."""
    console = Console(width=150)
    for column, what in ((0, "whole answer"), (1, "first token of the streams")):
        table = Table(
            title=f"The primary, {what}, milliseconds; differences to 'none' with 95 % intervals", title_justify="left"
        )
        for heading in ("mirror", "requests", "p50", "p99", "p50 - none", "p99 - none"):
            table.add_column(heading, justify="left" if heading == "mirror" else "right")
        for kind, of_kind in blocks.items():
            found = values(of_kind, column)
            row = [kind, str(len(found)), f"{median(found):.1f}", f"{quantile(found, 0.99):.1f}"]
            for share in (0.5, 0.99):
                exact, low, high = paired(of_kind, blocks[NONE], column, share)
                row.append("" if kind == NONE else f"{exact:+.1f} [{low:+.1f}, {high:+.1f}]")
            table.add_row(*row)
        console.print(table)
    table = Table(title="What the mirrors did", title_justify="left")
    columns = ("name", "sampled", "mirrored", "pairs", "dropped", "challenger_errors")
    for name in columns:
        table.add_column(name, justify="left" if name == "name" else "right")
    for mirror in mirrors:
        table.add_row(*(str(mirror[name]) for name in columns))
    console.print(table)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=12, help="blocks of each kind")
    parser.add_argument("--rate", type=float, default=8.0, help="requests a second")
    options = parser.parse_args()
    draw = random.Random(3)
    waits = tuple(round(150 * draw.lognormvariate(0, 0.4), 1) for _ in range(BLOCK))
    with tempfile.TemporaryDirectory() as name, UpstreamServer() as upstream:
        primary = Behaviour(first_token=Delay(values_ms=waits), per_token=Delay(median_ms=5), tokens=12)
        upstream.behave("gpt-primary", primary)
        upstream.behave("gpt-well", primary)
        upstream.behave("gpt-failing", Behaviour(error_ratios={500: 1.0}))
        upstream.behave("gpt-hanging", Behaviour(fault="hang", fault_ratio=1.0))
        upstream.behave(
            "gpt-slow", Behaviour(first_token=Delay(median_ms=1500), per_token=Delay(median_ms=100), tokens=12)
        )
        with ProxyServer(configuration(upstream, Path(name)), Path(name)) as proxy:
            show(*asyncio.run(measure(proxy, options.rounds, options.rate)))


if __name__ == "__main__":
    main()
