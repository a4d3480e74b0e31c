"""What the host costs compared with another checkout: CPU time per request of both, in turns, so that load hits both alike.

Each line is a number of plugins that do nothing, a store, and what is seen: ``plain`` or ``traced``, which includes metrics
and recent requests where the checkout has them. The ratio is the median of the ratios of the rounds. Nothing passes or fails.

    git worktree add ../before REVISION     and an environment with that checkout installed, then
    python tests/bench/bench_host.py --against ../before/.venv/bin/python [--rounds 24 --requests 200]
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import idle  # beside this file, as is the next
from one_request import NoGateway, make_request

from pointsman.host.host import Host

try:
    from pointsman.host.settings import HostConfig, parse
except ImportError:  # another checkout may have them elsewhere
    from pointsman.host.config import HostConfig, parse  # type: ignore[import-not-found,no-redef]  # as above
from pointsman.host.tracing import Tracing

CASES = [
    (plugins, store, seen)
    for plugins in (0, idle.COUNT)
    for store in ("memory", "disk")
    for seen in ("plain", "traced")
]


class _Dropping:
    """Takes spans and forgets them: what is measured is making them."""

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        """Nothing to do."""

    def on_end(self, span: Any) -> None:
        """Nothing to do."""

    _on_ending = on_end

    def shutdown(self) -> None:
        """Nothing to do."""

    def force_flush(self, timeout_millis: int = 0) -> bool:
        """Nothing to do."""
        return True


def _tracing() -> Tracing:
    try:
        from pointsman.host.spans import SpanProvider as Provider  # noqa: PLC0415  # another checkout may not have it
    except ImportError:
        from opentelemetry.sdk.trace import TracerProvider as Provider  # type: ignore[assignment]  # noqa: PLC0415
    provider = Provider()
    provider.add_span_processor(_Dropping())  # type: ignore[arg-type]  # as far as it is used
    return Tracing(provider.get_tracer("bench"), provider)  # type: ignore[arg-type]


async def serve(plugins: int, store: str, *, traced: bool) -> None:
    """Make as many requests as each line of the input says, and answer with the microseconds of one, settlement included."""
    logging.getLogger("pointsman").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        section: dict[str, Any] = {"store": {"backend": store}, "plugins": list(idle.PLUGINS)[:plugins]}
        if "metrics" in HostConfig.model_fields:
            section |= {"metrics": {"enabled": traced}, "recent_requests": 500 if traced else 0}
        host = Host(
            parse(section, "bench", Path(folder)),
            NoGateway(),
            tracing=_tracing() if traced else Tracing(),
            available=idle.PLUGINS,
        )
        await host.start()
        for _ in range(200):
            await make_request(host)
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        while line := sys.stdin.readline().strip():  # nothing else is to be done meanwhile
            before = time.process_time()
            for _ in range(int(line)):
                await make_request(host)
            await host.settled()
            sys.stdout.write(f"{(time.process_time() - before) / int(line) * 1e6}\n")
            sys.stdout.flush()
        await host.stop()


class Side:
    """A process of one checkout."""

    def __init__(self, python: str, case: tuple[int, str, str]) -> None:
        command = [python, __file__, "--serve", *map(str, case)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # noqa: S603  # our own
        self.samples: list[float] = []
        self._read()

    def _read(self) -> str:
        assert self._process.stdout is not None  # a pipe
        return self._process.stdout.readline()

    def measure(self, requests: int) -> None:
        """Take one sample."""
        assert self._process.stdin is not None  # a pipe
        self._process.stdin.write(f"{requests}\n")
        self._process.stdin.flush()
        self.samples.append(float(self._read()))

    def close(self) -> None:
        """End the process."""
        self._process.communicate("")


def compare(python: str, rounds: int, requests: int) -> None:
    """Print both checkouts' microseconds per request."""
    print(f"{'plugins':>7} {'store':7} {'seen':7} {'there':>7} {'here':>7}  here / there")  # noqa: T201  # its output
    for case in CASES:
        there, here = Side(python, case), Side(sys.executable, case)
        for number in range(rounds):
            for side in (there, here) if number % 2 else (here, there):
                side.measure(requests)
        there.close()
        here.close()
        ratio = statistics.median(b / a for a, b in zip(there.samples, here.samples, strict=True))
        figures = f"{statistics.median(there.samples):7.0f} {statistics.median(here.samples):7.0f}"
        print(f"{case[0]:7} {case[1]:7} {case[2]:7} {figures}  {ratio:.2f}", flush=True)  # noqa: T201  # its output
    print(f"load {os.getloadavg()[0]:.1f}")  # noqa: T201  # its output


def main() -> None:
    """Run the benchmark, or one side of it."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--against", help="the other checkout's Python")
    options.add_argument("--rounds", type=int, default=24)
    options.add_argument("--requests", type=int, default=200)
    options.add_argument("--serve", nargs=3, help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.serve:
        plugins, store, seen = chosen.serve
        asyncio.run(serve(int(plugins), store, traced=seen == "traced"))
    elif chosen.against:
        compare(chosen.against, chosen.rounds, chosen.requests)
    else:
        options.error("--against is missing: the Python of the checkout to compare with")


if __name__ == "__main__":
    main()
