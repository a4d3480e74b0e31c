"""What the plugins cost: CPU time of the proxy process per request, over the bare proxy and beside LiteLLM's own callbacks.

All variants of a table run at the same time. They get small slices of requests in random order, round by round; a slice's
difference to the bare proxy's slice of the same round is one sample, so that a machine whose speed drifts hardly matters. The
median leaves out what falls into few slices, such as a full pass of the garbage collector; the mean counts it.
The latencies at half load are those of requests that come by chance, half as many as the bare proxy can answer: the same for
all variants. Nothing passes or fails.

    tox run -e bench -- cost [--clients 1 16] [--answers plain streamed] [--stores disk memory redis] [--rounds 30]
                             [--requests 32] [--half 8] [--only "all eight" prometheus ...] [--profile FILE]
                             [--against PYTHON]

``--against`` names the Python of another checkout's environment, whose plugins run beside these.

``--profile`` writes where the proxy with all plugins spends its time, as py-spy's raw data, if py-spy is installed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import math
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "support")]

import redis_servers  # noqa: E402  # beside the tests' helpers
from bench_spine import cpu_s  # noqa: E402  # beside this file
from rig import deployment  # noqa: E402

from pointsman.testing.otlp import Collector  # noqa: E402
from pointsman.testing.provider import UpstreamProcess  # noqa: E402
from pointsman.testing.proxy import ProxyServer  # noqa: E402

BARE: Final = "bare LiteLLM"
PROMETHEUS: Final = "LiteLLM's Prometheus callback"
OTEL: Final = "LiteLLM's OTel callback"
ALL: Final = "all eight"
TRACED: Final = "all eight, traced"
UNWATCHED: Final = "all eight, neither traced nor counted"
#: Rows that are differences of two variants of the same round, not to the bare proxy.
WATCHING: Final[Mapping[str, tuple[str, str]]] = {
    "tracing": (TRACED, ALL),
    "tracing, metrics and recent requests": (TRACED, UNWATCHED),
}
#: After the name of a variant: its plugins are the other checkout's.
THERE: Final = ", there"
BODY: Final = {"model": "small", "messages": [{"role": "user", "content": "Say something about the weather."}]}
#: Time for background work that belongs to the requests of a slice, in seconds.
AFTER_S: Final = 0.3

QUOTA: Final = {
    "quota": {
        "tenants": [
            {
                "id": "everybody",
                "limits": {"requests_per_minute": 10_000_000, "tokens_per_minute": 10**9, "usd_per_month": 10_000_000},
            }
        ],
        "default_tenant": "everybody",
    }
}
REGISTRY: Final = {
    "registry": {
        "versions": [
            {"id": "assistant-1", "name": "assistant", "version": "1", "path": "small", "active": True},
            {"id": "assistant-2", "name": "assistant", "version": "2", "path": "big"},
        ]
    }
}
CANARY: Final = {
    "canary": {
        "experiments": [
            {"name": "rollout", "model": "assistant", "canary": {"version": "assistant-2"}, "steps": [1, 10, 50, 100]}
        ]
    }
}
SIGNALS: Final = {"signals": {}}
RACING: Final = {"racing": {"groups": {"small": {}}}}
BALANCE: Final = {"balance": {"tactic": "adaptive"}}
SHADOW: Final = {"shadow": {"mirrors": [{"name": "try", "model": "small", "challenger": "big", "sample_rate": 0.01}]}}
BILLING: Final = {"billing": {"sinks": [{"ndjson": {"path": "bills.ndjson"}}]}}
EIGHT: Final = (QUOTA, CANARY, REGISTRY, SIGNALS, RACING, BALANCE, SHADOW, BILLING)
PLUGINS: Final[Mapping[str, Sequence[Mapping[str, Any]]]] = {
    "host, no plugin": (),
    "quota alone": (QUOTA,),
    "billing alone": (BILLING,),
    "racing alone": (RACING,),
    "shadow alone": (SHADOW,),
    "canary + registry": (CANARY, REGISTRY),
    "signals alone": (SIGNALS,),
    "balance alone": (BALANCE,),
    ALL: EIGHT,
    TRACED: EIGHT,
    UNWATCHED: EIGHT,
}
NAMES: Final = (BARE, *PLUGINS, PROMETHEUS, OTEL)


@dataclass(slots=True)
class Samples:
    """What has been measured of one variant.

    Attributes:
        cpu_ms: CPU time per request of each slice, in milliseconds.
        latencies_ms: Of all requests.
        half_ms: Latencies at half load.
        pieces: Of one streamed answer; 0 when answers are plain.
        wall_s: Time of all slices.
        rss_mb: Resident memory at the end.
        switches: Context switches per request of each slice: threads that wait for one another, and for the interpreter.
    """

    cpu_ms: list[float] = field(default_factory=list)
    switches: list[float] = field(default_factory=list)
    latencies_ms: list[float] = field(default_factory=list)
    half_ms: list[float] = field(default_factory=list)
    pieces: float = 0.0
    wall_s: float = 0.0
    rss_mb: float = 0.0


def variant(
    name: str, work: Path, provider: str, collector: str, store: Mapping[str, Any], *, python: Path | None = None
) -> ProxyServer:
    """Return the proxy of a variant, not started; its environment is this one or that of another Python."""
    models = [
        deployment(provider, group, "gpt-4o-mini", id_=f"{group}-{number}")
        for group in ("small", "big")
        for number in (1, 2)
    ]
    config: dict[str, Any] = {"model_list": models}
    env: dict[str, str | None] = {"OTEL_EXPORTER_OTLP_ENDPOINT": None}
    if name == PROMETHEUS:
        config["litellm_settings"] = {"callbacks": ["prometheus"]}
    elif name == OTEL:
        config["litellm_settings"] = {"callbacks": ["otel"]}
        env |= {"OTEL_EXPORTER": "otlp_http", "OTEL_ENDPOINT": f"{collector}/v1/traces"}
    elif name != BARE:
        place = {"path": str(work / "store")} if store["backend"] == "disk" else {}
        config["litellm_settings"] = {"callbacks": ["pointsman.litellm.handler"]}
        # On a busy machine a request would be refused by a store that answers late.
        patient = {"timeout_ms": 10_000}
        config["pointsman"] = {
            "store": {**store, **place, **patient},
            "plugins": [dict(plugin) for plugin in PLUGINS[name]],
        }
        if name == UNWATCHED:
            config["pointsman"] |= {"metrics": {"enabled": False}, "recent_requests": 0}
        if name == TRACED:
            env["OTEL_EXPORTER_OTLP_ENDPOINT"] = collector
    # All in the same way: a process that was forked does not cost what one that was started does.
    return ProxyServer(config, work, env=env, fresh=True, python=python)


@dataclass(slots=True)
class Slice:
    """What was seen of a slice of requests.

    Attributes:
        latencies_ms: Of each request.
        pieces: Of all streamed answers.
        wall_s: The time of all.
    """

    latencies_ms: list[float] = field(default_factory=list)
    pieces: int = 0
    wall_s: float = 0.0


async def slice_of(proxy: ProxyServer, requests: int, clients: int, *, stream: bool, rate: float = 0.0) -> Slice:
    """Send requests.

    Args:
        proxy: Where to.
        requests: How many.
        clients: How many at a time, each after the answer to the one before it.
        stream: Whether the answers are streamed.
        rate: If not 0, requests a second that are sent by chance, whether others are still open or not.
    """
    seen = Slice()
    refused: list[int] = []
    left = iter(range(requests))
    most = None if rate else clients
    limits = httpx.Limits(max_connections=most, max_keepalive_connections=most)
    async with httpx.AsyncClient(base_url=proxy.url, headers=proxy.headers, timeout=120.0, limits=limits) as client:

        async def ask() -> None:
            begun = time.perf_counter()
            body = {**BODY, "stream": stream}
            async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
                async for part in answer.aiter_raw():
                    seen.pieces += part.count(b"data: {")
            if not answer.is_success:
                refused.append(answer.status_code)
            seen.latencies_ms.append((time.perf_counter() - begun) * 1000)

        async def one_client() -> None:
            for _ in left:
                await ask()

        begun = time.perf_counter()
        if rate:
            chance = random.Random(requests)  # the same arrivals for all variants
            async with asyncio.TaskGroup() as group:
                for _ in left:
                    group.create_task(ask())
                    await asyncio.sleep(chance.expovariate(rate))
        else:
            await asyncio.gather(*(one_client() for _ in range(clients)))
        seen.wall_s = time.perf_counter() - begun
    if len(refused) > requests // 10:
        raise RuntimeError(f"{proxy.url} refuses requests: {sorted(set(refused))}; its log is {proxy.log_path}")
    return seen


def measure(proxy: ProxyServer, samples: Samples, requests: int, clients: int, *, stream: bool) -> None:
    """Drive one slice and note what it took."""
    before, switched = cpu_s(proxy.pid), switches(proxy.pid)
    seen = asyncio.run(slice_of(proxy, requests, clients, stream=stream))
    time.sleep(AFTER_S)
    samples.cpu_ms.append((cpu_s(proxy.pid) - before) / requests * 1000)
    samples.switches.append((switches(proxy.pid) - switched) / requests)
    samples.latencies_ms += seen.latencies_ms
    samples.wall_s += seen.wall_s
    samples.pieces = seen.pieces / requests


def rss_mb(pid: int) -> float:
    """Return the resident memory of a process."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


def switches(pid: int) -> int:
    """Return how often the threads of a process that now run have been switched from."""
    total = 0
    for path in Path(f"/proc/{pid}/task").glob("*/status"):
        with contextlib.suppress(OSError):  # a thread that has just ended
            lines = path.read_text(encoding="ascii").splitlines()
            total += sum(int(line.split()[1]) for line in lines if "ctxt_switches" in line)
    return total


@contextlib.contextmanager
def running(name: str, folder: Path) -> Iterator[Mapping[str, Any] | None]:
    """Yield the store's section of the configuration; None when it cannot run here."""
    if name != "redis":
        yield {"backend": name}
    elif redis_servers.installed():
        with redis_servers.one_redis(folder) as url:
            yield {"backend": "redis", "url": url}
    else:
        yield None


def over_bare(results: Mapping[str, Samples]) -> dict[str, list[float]]:
    """Return the paired differences of each variant to the bare proxy, in milliseconds of CPU time per request."""
    bare = results[BARE].cpu_ms
    return {
        name: [value - base for value, base in zip(samples.cpu_ms, bare, strict=True)]
        for name, samples in results.items()
    }


def error_of(values: Sequence[float]) -> float:
    """Return the standard error of the mean."""
    return statistics.stdev(values) / len(values) ** 0.5


def parts_of(latencies_ms: Sequence[float]) -> tuple[float, float]:
    """Return the median and the 99th percentile."""
    ordered = sorted(latencies_ms)
    return statistics.median(ordered), ordered[int(len(ordered) * 0.99)]


def pieces_of(plain: Mapping[str, Samples], streamed: Mapping[str, Samples]) -> Table:
    """Return what one piece of a stream costs: what a streamed answer costs more over the bare proxy than a plain one."""
    table = Table(title="a piece of a streamed answer, over bare")
    for column in ("variant", "pieces", "us a piece", "st. error"):
        table.add_column(column, justify="left" if column == "variant" else "right", no_wrap=True)
    over, more = over_bare(plain), over_bare(streamed)
    for name, samples in streamed.items():
        if name == BARE or not samples.pieces:
            continue
        us = (statistics.median(more[name]) - statistics.median(over[name])) / samples.pieces * 1000
        error = math.hypot(error_of(over[name]), error_of(more[name])) / samples.pieces * 1000
        table.add_row(name, f"{samples.pieces:.0f}", f"{us:+.1f}", f"{error:.1f}")
    return table


def table_of(title: str, results: Mapping[str, Samples]) -> Table:
    """Return the figures of one table; ``over bare`` is the median of the paired differences to the bare proxy.

    The standard error is that of their mean.
    """
    table = Table(title=title)
    columns = (
        "variant",
        "CPU ms",
        "over bare",
        "quartiles",
        "mean",
        "st. error",
        "of Prom.",
        "of OTel",
        "req/s",
        "p50 ms",
        "p99 ms",
        "half p50",
        "half p99",
        "switches",
        "MB",
    )
    for column in columns:
        table.add_column(column, justify="left" if column == "variant" else "right", no_wrap=True)
    over = over_bare(results)
    medians = {name: statistics.median(values) for name, values in over.items()}
    for name, samples in results.items():
        low, _, high = statistics.quantiles(over[name], n=4)
        latencies = samples.latencies_ms
        ratios = [
            f"{medians[name] / medians[own]:.2f}" if own in medians and medians[own] > 0 and name != BARE else ""
            for own in (PROMETHEUS, OTEL)
        ]
        table.add_row(
            name,
            f"{statistics.median(samples.cpu_ms):.2f}",
            "" if name == BARE else f"{medians[name]:+.2f}",
            "" if name == BARE else f"{low:+.2f} to {high:+.2f}",
            "" if name == BARE else f"{statistics.mean(over[name]):+.2f}",
            "" if name == BARE else f"{error_of(over[name]):.2f}",
            *ratios,
            f"{len(latencies) / samples.wall_s:.0f}",
            *(f"{part:.0f}" for part in parts_of(latencies)),
            *([f"{part:.0f}" for part in parts_of(samples.half_ms)] if samples.half_ms else ("", "")),
            f"{statistics.median(samples.switches):.0f}",
            f"{samples.rss_mb:.0f}",
        )
    for name, (more, less) in WATCHING.items():
        if more in results and less in results:
            _add_difference(table, name, over[more], over[less], medians.get(OTEL))
    return table


def _add_difference(
    table: Table, name: str, more: Sequence[float], less: Sequence[float], otel_ms: float | None
) -> None:
    """Add the row of what one variant costs over another; its ratio compares it with LiteLLM's OTel callback over bare."""
    differences = [one - other for one, other in zip(more, less, strict=True)]
    low, median, high = statistics.quantiles(differences, n=4)
    ratio = f"{median / otel_ms:.2f}" if otel_ms is not None and otel_ms > 0 else ""
    mean, error = statistics.mean(differences), error_of(differences)
    table.add_row(name, "", f"{median:+.2f}", f"{low:+.2f} to {high:+.2f}", f"{mean:+.2f}", f"{error:.2f}", "", ratio)


def profile(proxy: ProxyServer, file: Path, clients: int, *, stream: bool) -> str:
    """Write where the time of a proxy goes, by py-spy; return what to say."""
    spy = shutil.which("py-spy") or shutil.which(str(Path(sys.executable).with_name("py-spy")))
    if spy is None:
        return "py-spy is not installed: no profile"
    command = [spy, "record", "--pid", str(proxy.pid), "--duration", "20", "--rate", "250", "--format", "raw"]
    with subprocess.Popen(  # noqa: S603  # our own command
        [*command, "--output", str(file)], stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT
    ) as process:
        while process.poll() is None:
            asyncio.run(slice_of(proxy, 20 * clients, clients, stream=stream))
    return f"the profile of {ALL!r} is in {file}"


def results_of(
    proxies: Mapping[str, ProxyServer], given: argparse.Namespace, chance: random.Random, clients: int, *, stream: bool
) -> dict[str, Samples]:
    """Drive all proxies in turns; return what has been measured of each."""
    for proxy in proxies.values():
        asyncio.run(slice_of(proxy, given.requests, clients, stream=stream))
    results = {name: Samples() for name in proxies}
    for _ in range(given.rounds):
        for name in chance.sample(list(proxies), len(proxies)):
            measure(proxies[name], results[name], given.requests, clients, stream=stream)
    rate = len(results[BARE].latencies_ms) / results[BARE].wall_s / 2
    for _ in range(given.half):
        for name in chance.sample(list(proxies), len(proxies)):
            seen = asyncio.run(slice_of(proxies[name], given.requests, clients, stream=stream, rate=rate))
            results[name].half_ms += seen.latencies_ms
    for name, proxy in proxies.items():
        results[name].rss_mb = rss_mb(proxy.pid)
    return results


def bench(given: argparse.Namespace, store_name: str, console: Console) -> None:
    """Print the tables of one store."""
    chance = random.Random(1)  # the order of slices
    with (
        tempfile.TemporaryDirectory() as folder,
        running(store_name, Path(folder)) as store,
        UpstreamProcess() as provider,
        Collector() as collector,
        contextlib.ExitStack() as stack,
    ):
        if store is None:
            console.print(f"no table for redis: {redis_servers.MISSING}")
            return
        wanted = [
            name
            for name in NAMES
            if name == BARE or not given.only or any(part.lower() in name.lower() for part in given.only)
        ]
        places = {name: (name, None) for name in wanted}
        if given.against is not None:
            # An older checkout may not know the settings of the last.
            there = [name for name in wanted if name in PLUGINS and name != UNWATCHED]
            places |= {f"{name}{THERE}": (name, given.against) for name in there}
        proxies = {
            label: variant(name, Path(folder) / f"{number}", provider.url, collector.url, store, python=python)
            for number, (label, (name, python)) in enumerate(places.items())
        }
        for name, proxy in proxies.items():
            console.print(f"starting: {name}")
            proxy.start()
            stack.callback(proxy.stop)
        for clients in given.clients:
            tables: dict[str, Mapping[str, Samples]] = {}
            for answers in given.answers:
                stream = answers == "streamed"
                results = tables[answers] = results_of(proxies, given, chance, clients, stream=stream)
                who = "1 client" if clients == 1 else f"{clients} clients"
                title = (
                    f"{who}, {answers} answers, {store_name} store: {given.rounds} rounds of {given.requests} requests"
                )
                console.print(table_of(title, results))
            if len(tables) > 1:
                console.print(pieces_of(tables["plain"], tables["streamed"]))
        if given.profile is not None and ALL in proxies:
            console.print(profile(proxies[ALL], given.profile, max(given.clients), stream=False))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--answers", nargs="+", choices=["plain", "streamed"], default=["plain", "streamed"])
    parser.add_argument("--stores", nargs="+", choices=["disk", "memory", "redis"], default=["disk", "memory", "redis"])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--requests", type=int, default=32, help="in one slice")
    parser.add_argument(
        "--only", nargs="+", default=[], help="parts of the names of the variants; the bare one always runs"
    )
    parser.add_argument("--half", type=int, default=8, help="rounds at half load; 0: none")
    parser.add_argument("--profile", type=Path, default=None)
    parser.add_argument(
        "--against", type=lambda path: Path(path).absolute(), help="the Python of another checkout's environment"
    )
    given = parser.parse_args()
    console = Console(width=190)
    for store in given.stores:
        bench(given, store, console)


if __name__ == "__main__":
    main()
