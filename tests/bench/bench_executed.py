"""What it costs that a plugin executes a route, when it makes one attempt: CPU time of the proxy process per request.

Plain and executed requests take turns on one proxy, so that a machine whose speed drifts does not matter. Nothing passes
or fails.

    python tests/bench/bench_executed.py [--rounds 25 --requests 25]
"""

from __future__ import annotations

import argparse
import concurrent.futures
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "support")]

from bench_spine import cpu_s  # noqa: E402  # beside this file
from rig import Rig, deployment  # noqa: E402

EXECUTED = {"x-test-executor": "recorder"}


def models(upstream: str) -> list[dict[str, Any]]:
    """Return one group of two deployments."""
    return [deployment(upstream, "good", "gpt-4o-mini", id_=f"good-{number}") for number in (1, 2)]


def drive(rig: Rig, requests: int, headers: dict[str, str], *, stream: bool) -> float:
    """Send requests, two at a time; return the proxy's CPU time per request in ms."""
    body = {"model": "good", "stream": stream, "messages": [{"role": "user", "content": "Say something."}]}
    with rig.proxy.client() as client:

        def one(_: int) -> None:
            client.post("/v1/chat/completions", json=body, headers=headers).raise_for_status()

        before = cpu_s(rig.proxy.pid)
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            list(pool.map(one, range(requests)))
        time.sleep(0.2)  # background work that belongs to these requests
        return (cpu_s(rig.proxy.pid) - before) / requests * 1000


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--requests", type=int, default=25, help="of each kind a round")
    given = parser.parse_args()
    table = Table(title=f"CPU per chat request, ms ({given.rounds} rounds of {given.requests})")
    for column in ("", "plain", "executed, one attempt", "ratio of pairs: median", "quartiles"):
        table.add_column(column, justify="left" if not column else "right")
    config = {"router_settings": {"num_retries": 0}}
    with tempfile.TemporaryDirectory() as folder, Rig(Path(folder), models, config=config) as rig:
        for stream in (False, True):
            pairs = []
            for number in range(given.rounds + 1):
                kinds = ({}, EXECUTED) if number % 2 else (EXECUTED, {})
                cost = {bool(headers): drive(rig, given.requests, headers, stream=stream) for headers in kinds}
                pairs.append((cost[False], cost[True]))
            plain, executed = zip(*pairs[1:], strict=True)
            ratios = [two / one for one, two in pairs[1:]]
            low, _, high = statistics.quantiles(ratios, n=4)
            table.add_row(
                "streamed" if stream else "whole",
                f"{statistics.median(plain):.1f}",
                f"{statistics.median(executed):.1f}",
                f"{statistics.median(ratios):.2f}",
                f"{low:.2f} - {high:.2f}",
            )
    Console().print(table)


if __name__ == "__main__":
    main()
