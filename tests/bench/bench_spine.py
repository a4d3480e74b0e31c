"""What the spine costs: CPU time of the proxy process per request, and time per request without a proxy.

All variants run at the same time and get their requests in turns, round by round; each round's difference to the bare
proxy is one sample, so that a machine whose speed drifts does not matter. Nothing passes or fails.

    tox run -e bench [-- --rounds 60 --requests 30 --only proxy|process]
"""

from __future__ import annotations

import argparse
import asyncio
import concurrent.futures
import logging
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "support")]

import idle  # noqa: E402  # beside this file
from one_request import NoGateway, make_request  # noqa: E402
from rig import deployment  # noqa: E402

from pointsman.host.host import Host  # noqa: E402
from pointsman.host.settings import parse  # noqa: E402
from pointsman.host.spans import SpanProvider  # noqa: E402
from pointsman.host.tracing import Tracing  # noqa: E402
from pointsman.testing.distribution import fake_distribution  # noqa: E402
from pointsman.testing.otlp import Collector  # noqa: E402
from pointsman.testing.provider import UpstreamProcess  # noqa: E402
from pointsman.testing.proxy import ProxyServer  # noqa: E402

console = Console()


def cpu_s(pid: int) -> float:
    """Return the CPU time that the threads of a process have used, in seconds, as the scheduler counts it."""
    files = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(file.read_text(encoding="ascii").split()[0]) for file in files) / 1e9


def variants(upstream: str, library: Path, work: Path, collector: str) -> dict[str, ProxyServer]:
    """Return the proxies to compare, not started; the first is the bare one."""
    models = [deployment(upstream, "good", "gpt-4o-mini", id_="good-1")]
    otel = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector}
    litellm_otel = {"OTEL_EXPORTER": "otlp_http", "OTEL_ENDPOINT": f"{collector}/v1/traces"}
    every = [{name: {}} for name in idle.PLUGINS]

    def proxy(name: str, callbacks: list[str], plugins: list[Any] | None, env: dict[str, str]) -> ProxyServer:
        config: dict[str, Any] = {"model_list": models}
        if callbacks:
            config["litellm_settings"] = {"callbacks": callbacks}
        if plugins is not None:
            config["pointsman"] = {"store": {"backend": "disk", "path": str(work / name / "store")}, "plugins": plugins}
        return ProxyServer(config, work / name, env=env, python_path=(library,))

    ours = ["pointsman.litellm.handler"]
    return {
        "bare proxy": proxy("bare", [], None, {}),
        "host, no plugins": proxy("host0", ours, [], {}),
        f"host, {idle.COUNT} do-nothing plugins": proxy("host7", ours, every, {}),
        f"host, {idle.COUNT} plugins, traced": proxy("traced7", ours, every, otel),
        "LiteLLM's own OTel callback": proxy("litellm-otel", ["otel"], None, litellm_otel),
    }


def drive(proxy: ProxyServer, requests: int) -> float:
    """Send requests, two at a time; return the proxy's CPU time per request in ms."""
    body = {"model": "good", "messages": [{"role": "user", "content": "Say something."}]}
    with proxy.client() as client:

        def one(_: int) -> None:
            client.post("/v1/chat/completions", json=body).raise_for_status()

        before = cpu_s(proxy.pid)
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            list(pool.map(one, range(requests)))
        time.sleep(0.2)  # background work that belongs to these requests
        return (cpu_s(proxy.pid) - before) / requests * 1000


def bench_proxy(rounds: int, requests: int) -> None:
    """Print CPU time per request of each variant."""
    with tempfile.TemporaryDirectory() as folder, UpstreamProcess() as upstream, Collector() as collector:
        work = Path(folder)
        library = work / "lib"
        library.mkdir()
        (library / "idle.py").write_text((HERE / "idle.py").read_text(encoding="utf-8"), encoding="utf-8")
        fake_distribution(library, "pointsman-idle", {name: f"idle:{name.replace('-', '_')}" for name in idle.PLUGINS})
        proxies = variants(upstream.url, library, work, collector.url)
        try:
            for name, proxy in proxies.items():
                console.print(f"starting: {name}")
                proxy.start()
            for proxy in proxies.values():
                drive(proxy, 50)
            samples: dict[str, list[float]] = {name: [] for name in proxies}
            for number in range(rounds):
                order = list(proxies.items())
                for name, proxy in order if number % 2 == 0 else reversed(order):
                    samples[name].append(drive(proxy, requests))
                if (number + 1) % 10 == 0:
                    console.print(f"round {number + 1} of {rounds}")
        finally:
            for proxy in proxies.values():
                proxy.stop()
    bare = samples["bare proxy"]
    table = Table(title=f"CPU of the proxy process per request, ms ({rounds} rounds of {requests} plain chat requests)")
    for column in ("variant", "median", "quartiles", "over bare: median", "mean", "standard error"):
        table.add_column(column, justify="left" if column == "variant" else "right", no_wrap=True)
    for name, values in samples.items():
        over = [value - base for value, base in zip(values, bare, strict=True)]
        low, middle, high = statistics.quantiles(values, n=4)
        error = statistics.stdev(over) / len(over) ** 0.5
        differences = (statistics.median(over), statistics.mean(over))
        spread = f"{low:.2f} - {high:.2f}"
        table.add_row(name, f"{middle:.2f}", spread, *(f"{v:+.2f}" for v in differences), f"{error:.2f}")
    console.print(table)


class _Dropping(SpanExporter):
    """Takes spans and forgets them: what is measured is making them."""

    def export(self, spans: Any) -> SpanExportResult:
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        """Nothing to close."""


async def _in_process(plugins: int, backend: str, *, traced: bool, counted: bool, requests: int) -> float:
    provider = SpanProvider()
    provider.add_span_processor(BatchSpanProcessor(_Dropping()))
    tracing = Tracing(provider.get_tracer("bench"), provider) if traced else Tracing()
    with tempfile.TemporaryDirectory() as folder:
        section = {
            "store": {"backend": backend},
            "metrics": {"enabled": counted},
            "recent_requests": 500 if counted else 0,
            "plugins": list(idle.PLUGINS)[:plugins],
        }
        settings = parse(section, "bench", Path(folder))
        host = Host(settings, NoGateway(), tracing=tracing, available=idle.PLUGINS)
        await host.start()
        for _ in range(200):
            await make_request(host)
        before = time.process_time()
        for _ in range(requests):
            await make_request(host)
        await host.stop()
        return (time.process_time() - before) / requests * 1e6


def bench_process(rounds: int, requests: int) -> None:
    """Print the CPU time of one request's hooks, exchange, journal and spans, without a proxy."""
    logging.getLogger("pointsman").setLevel(logging.ERROR)
    table = Table(title=f"CPU per request inside the host, µs (median of {rounds} rounds of {requests})")
    for column in ("plugins", "store", "nothing seen", "metrics and recent requests", "and every request traced"):
        table.add_column(column, justify="right")
    for plugins in (0, idle.COUNT):
        for backend in ("memory", "disk"):
            cells = []
            for counted, traced in ((False, False), (True, False), (True, True)):
                samples = [
                    asyncio.run(_in_process(plugins, backend, traced=traced, counted=counted, requests=requests))
                    for _ in range(rounds)
                ]
                cells.append(f"{statistics.median(samples):.0f}")
            table.add_row(str(plugins), backend, *cells)
    console.print(table)


def main() -> None:
    """Run the benchmarks."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=60)
    options.add_argument("--requests", type=int, default=30)
    options.add_argument("--only", choices=("proxy", "process"))
    chosen = options.parse_args()
    if chosen.only != "proxy":
        bench_process(5, 2000)
    if chosen.only != "process":
        bench_proxy(chosen.rounds, chosen.requests)


if __name__ == "__main__":
    main()
