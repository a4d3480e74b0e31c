# ruff: noqa: INP001, S311 - a script of figures and repeatable chance, not a package
"""What racing does to the slowest streams, and what it costs, through real LiteLLM proxies.

Three proxies get the same arrivals at the same time, each in front of upstream models with the same draws: lognormal
times to the first token, and 3 % stragglers that are eight times slower. One proxy is LiteLLM alone, one hedges, one is
LiteLLM with its own ``fastest_response`` over two groups. Then everything becomes slower, for good: a hedge must not
make it worse. Nothing passes or fails. The rate has to leave the machine idle for most of the time: a proxy that waits
for the processor is slow in a way that no hedge can help.

    python plugins/racing/bench/bench_tail.py [--requests 3000 --rate 4 --slow 800]
"""

from __future__ import annotations

import argparse
import asyncio
import random
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx
from rich.console import Console
from rich.table import Table

from pointsman.testing.provider import Behaviour, Delay, UpstreamProcess
from pointsman.testing.proxy import ProxyServer

MEDIAN_MS: Final = 800.0
SIGMA: Final = 0.35
DEPLOYMENTS: Final = 4
FIRST_TOKEN: Final = b'"content":"'

console = Console(width=120)


def behaviour(factor: float = 1.0) -> Behaviour:
    """Return how every upstream model behaves when it is slower than usual by this factor."""
    return Behaviour(
        latency=Delay(median_ms=MEDIAN_MS * factor, sigma=SIGMA),
        straggler_ratio=0.03,
        straggler_factor=8.0,
        tokens=4,
        per_token=Delay(median_ms=2),
        seed=7,
    )


@dataclass
class Variant:
    """One way to serve the same requests.

    Attributes:
        name: For the table.
        models: Its upstream models, used by no other case, so that their draws and counts are its own.
        body: What clients send.
        section: Its ``pointsman:`` section, or None for LiteLLM alone.
        first_token_ms: Measured, per phase.
        failed: Requests that were not answered, per phase, by reason.
    """

    name: str
    models: tuple[str, ...]
    body: Mapping[str, Any]
    section: Mapping[str, Any] | None = None
    first_token_ms: dict[str, list[float]] = field(default_factory=dict)
    failed: dict[str, Counter[str]] = field(default_factory=dict)

    def config(self, upstream: str) -> dict[str, Any]:
        """Return its LiteLLM configuration: a group of deployments for each upstream model."""
        models = [
            {
                "model_name": model,
                "litellm_params": {"model": f"openai/{model}", "api_base": f"{upstream}/v1", "api_key": "bench"},
                "model_info": {"id": f"{model}-{number}"},
            }
            for model in self.models
            for number in range(DEPLOYMENTS)
        ]
        config: dict[str, Any] = {"model_list": models, "router_settings": {"disable_cooldowns": True}}
        if self.section is not None:
            config["litellm_settings"] = {"callbacks": ["pointsman.litellm.handler"]}
            config["pointsman"] = self.section
        return config


def variants(work: Path) -> list[Variant]:
    """Return the three."""
    ask = {"messages": [{"role": "user", "content": "Say something."}], "stream": True}
    hedging = {
        "store": {"backend": "disk", "path": str(work / "store")},
        "plugins": [{"racing": {"groups": {"hedged": {"delay": {"fixed_ms": 3000}}}}}],
    }
    return [
        Variant("LiteLLM alone", ("alone",), {**ask, "model": "alone"}),
        Variant("hedge", ("hedged",), {**ask, "model": "hedged"}, hedging),
        Variant(
            "LiteLLM fastest_response",
            ("fast-1", "fast-2"),
            {**ask, "model": "fast-1,fast-2", "fastest_response": True},
        ),
    ]


async def one(client: httpx.AsyncClient, proxy: ProxyServer, variant: Variant, phase: str) -> None:
    """Send one request and note when its first token came."""
    begun = time.perf_counter()
    first: float | None = None
    seen, reason = b"", ""
    try:
        request = client.stream("POST", f"{proxy.url}/v1/chat/completions", json=variant.body, headers=proxy.headers)
        async with request as answer:
            reason = f"HTTP {answer.status_code} without content"
            async for piece in answer.aiter_raw():
                if first is None:
                    seen += piece
                    if FIRST_TOKEN in seen.replace(b'"content":""', b""):
                        first = time.perf_counter()
    except httpx.HTTPError as err:
        first, reason = None, repr(err)
    if first is None:
        variant.failed.setdefault(phase, Counter())[reason] += 1
    else:
        variant.first_token_ms.setdefault(phase, []).append((first - begun) * 1000)


async def drive(pairs: Sequence[tuple[Variant, ProxyServer]], phase: str, requests: int, rate: float) -> None:
    """Send the same arrivals to all proxies."""
    chance = random.Random(11)
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=100, keepalive_expiry=2.0)
    async with httpx.AsyncClient(timeout=120, limits=limits, trust_env=False) as client, asyncio.TaskGroup() as tasks:
        due = time.perf_counter()
        for _ in range(requests):
            due += chance.expovariate(rate)
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            for variant, proxy in pairs:
                tasks.create_task(one(client, proxy, variant, phase))


def report(title: str, pairs: Sequence[tuple[Variant, ProxyServer]], phase: str, calls: Mapping[str, int]) -> None:
    """Print one phase."""
    table = Table(title=title)
    for column in ("", "p50", "p95", "p99", "p99.9", "failed", "calls per request"):
        table.add_column(column, justify="left" if not column else "right")
    base: list[float] = []
    for variant, _ in pairs:
        times = sorted(variant.first_token_ms.get(phase, [float("nan")]))
        figures = [times[min(len(times) - 1, int(len(times) * q))] for q in (0.5, 0.95, 0.99, 0.999)]
        base = base or figures
        cells = [f"{ms:.0f} ({(ms / of - 1) * 100:+.0f} %)" for ms, of in zip(figures, base, strict=True)]
        failed = variant.failed.get(phase, Counter())
        requests = len(times) + failed.total()
        made = sum(calls.get(model, 0) for model in variant.models)
        table.add_row(variant.name, *cells, str(failed.total()), f"{made / requests:.3f}")
    console.print(table)
    for variant, _ in pairs:
        for reason, count in variant.failed.get(phase, Counter()).items():
            console.print(f"{variant.name}: {count} x {reason}")


def counted(upstream: UpstreamProcess) -> dict[str, int]:
    """Return how many calls each upstream model has had since the last reset."""
    counts: dict[str, int] = {}
    for request in upstream.requests:
        counts[request.model] = counts.get(request.model, 0) + 1
    return counts


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=3000, help="to each proxy (default 3000)")
    parser.add_argument("--rate", type=float, default=4.0, help="arrivals a second at each proxy (default 4)")
    parser.add_argument("--slow", type=int, default=800, help="requests to each proxy in the slow-down (default 800)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, UpstreamProcess({"*": behaviour()}) as upstream:
        work = Path(folder)
        pairs = [
            (variant, ProxyServer(variant.config(upstream.url), work / variant.models[0])) for variant in variants(work)
        ]
        try:
            for variant, proxy in pairs:
                console.print(f"starting: {variant.name}")
                proxy.start()
            asyncio.run(drive(pairs, "warm", 100, given.rate))
            upstream.reset()
            asyncio.run(drive(pairs, "usual", given.requests, given.rate))
            report(f"Time to the first token, ms, {given.requests} streams each", pairs, "usual", counted(upstream))
            upstream.reset()
            for variant, _ in pairs:
                for model in variant.models:
                    upstream.behave(model, behaviour(4.0))
            asyncio.run(drive(pairs, "slow", given.slow, given.rate))
            report(f"The same with everything four times slower, {given.slow} each", pairs, "slow", counted(upstream))
        finally:
            for variant, proxy in pairs:
                if "Fatal Python error" in (log := proxy.log()):
                    console.print(f"{variant.name} crashed: {log[log.index('Fatal Python error') :][:3000]}")
                proxy.stop()


if __name__ == "__main__":
    main()
