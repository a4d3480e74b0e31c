# ruff: noqa: INP001 - a script, not a package
"""A thousand requests for ten models with room for three, on a real proxy with two workers: Pointsman, LRU, llama-swap.

The models are asked for by Zipf's law and the requests arrive evenly; each is a connection of its own. A load takes a second.
"optimum" is the fewest loads with which the same requests could be served one after another (Belady), which no one can know
beforehand. "failed" are requests that were not answered with 200, "faults" what a server must not suffer: more models than it
has room for, or the end of one that answers.

Two servers of models: one in this process, which speaks as Ollama does, and llama-swap, whose models are processes. llama-swap
also runs by itself, behind the same proxy without plugins: its matrix allows every three of the ten models at once. It is left
out where it is missing (``plugins/residency/tests/services/install.sh`` builds it).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import httpx
import yaml

from pointsman.stats import nearest_rank
from pointsman.testing import warm
from pointsman.testing.ports import free_port
from pointsman.testing.provider import Behaviour
from pointsman.testing.proxy import ProxyServer

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.model_server import ModelServer
from tests.real_servers import CACHE
from tests.simulation import belady, zipf

NAMES: Final = [f"m{number}" for number in range(10)]
ROOM: Final = 3
SIZE: Final = 30
LOAD_S: Final = 1.0
SERVE_S: Final = 0.05
#: Of a request: on a busy machine the proxy alone takes minutes for all of them.
DEADLINE_S: Final = 300
#: A fair queue without demand: every request is overdue at once, and the least recently used model goes.
LRU: Final = {"max_wait_s": 0.001, "min_residence_s": 0.0, "swap_ratio": 0.0}
PROGRAM: Final = CACHE / "llama-swap-fdda55e46644" / "llama-swap"


class Server(Protocol):
    """A server of models.

    Attributes:
        kind: Its kind in the plugin's configuration.
        url: Its base URL.
        base: The base URL of its models.
    """

    kind: str
    url: str
    base: str

    def loads(self) -> int:
        """Return how many loads it has seen."""

    def troubles(self) -> list[str]:
        """Return what happened that must not, a line each time."""


class InProcess(ModelServer):
    """The tests' server, which speaks as Ollama does."""

    kind = "ollama"

    def __init__(self) -> None:
        behaviours = {"*": Behaviour(latency=1000 * SERVE_S)}
        super().__init__(dict.fromkeys(NAMES, SIZE), capacity=ROOM * SIZE, load_s=LOAD_S, behaviours=behaviours)
        self.base = f"{self.url}/v1"

    def troubles(self) -> list[str]:
        """Return what happened that must not, a line each time."""
        return list(self.faults)

    def loads(self) -> int:
        """Return how many loads it has seen."""
        return int(self.count("load"))


class LlamaSwap:
    """llama-swap, whose models are processes.

    Args:
        folder: Its own directory.
        manages: Whether it decides by itself which models are there.
    """

    kind = "llama_swap"

    def __init__(self, folder: Path, *, manages: bool) -> None:
        self._folder = folder
        script = Path(__file__).with_name("model_process.py")
        arguments = f"{ROOM} {LOAD_S} {SERVE_S} ${{PORT}}"
        models = {
            # More than ten at once would be refused.
            name: {"cmd": f"{sys.executable} -S -E {script} {folder} {name} {arguments}", "concurrencyLimit": 10_000}
            for name in NAMES
        }
        if manages:
            sets = [" & ".join(three) for three in itertools.combinations(NAMES, ROOM)]
            matrix = {
                "vars": {name: name for name in NAMES},
                "sets": {f"s{number}": three for number, three in enumerate(sets)},
            }
            router: dict[str, Any] = {"use": "matrix", "settings": {"matrix": matrix}}
        else:
            groups = {"pool": {"swap": False, "members": NAMES}}
            router = {"use": "group", "settings": {"groups": groups}}
        (folder / "config.yaml").write_text(
            yaml.safe_dump({"startPort": free_ports(len(NAMES)), "models": models, "routing": {"router": router}})
        )
        address = f"127.0.0.1:{free_port()}"
        self.url = f"http://{address}"
        self.base = f"{self.url}/v1"
        self._command = [str(PROGRAM), "-config", str(folder / "config.yaml"), "-listen", address]

    @contextlib.contextmanager
    def running(self) -> Iterator[LlamaSwap]:
        """Run it until the end of the block."""
        with (self._folder / "swap.log").open("wb") as log:
            process = subprocess.Popen(self._command, stdout=log, stderr=log)  # noqa: S603  # our own command
        try:
            while not self._listens():
                if process.poll() is not None:
                    sys.exit((self._folder / "swap.log").read_text())
                time.sleep(0.1)
            yield self
        finally:
            process.terminate()
            process.wait(30)

    def _listens(self) -> bool:
        try:
            return httpx.get(f"{self.url}/running", trust_env=False).is_success
        except httpx.HTTPError:
            return False

    def _log(self) -> list[str]:
        log = self._folder / "log"
        return log.read_text().splitlines() if log.exists() else []

    def loads(self) -> int:
        """Return how many loads it has seen."""
        return sum(line.startswith("load ") for line in self._log())

    def troubles(self) -> list[str]:
        """Return what happened that must not, a line each time."""
        return [line.removeprefix("fault ") for line in self._log() if line.startswith("fault ")]


@dataclass(frozen=True, slots=True)
class Row:
    """What decides, before which server.

    Attributes:
        label: Its name in the table.
        swap: Whether the server is llama-swap.
        policy: The pool's settings; None: no plugin, the server decides.
    """

    label: str
    swap: bool
    policy: dict[str, float] | None


ROWS: Final = (
    Row("pointsman", swap=False, policy={}),
    Row("plain LRU", swap=False, policy=LRU),
    Row("pointsman, llama-swap", swap=True, policy={}),
    Row("llama-swap alone", swap=True, policy=None),
)


def document(server: Server, folder: Path, policy: dict[str, float] | None) -> dict[str, Any]:
    """Return the proxy's configuration."""
    params = {"api_base": server.base, "api_key": "any"}
    config: dict[str, Any] = {
        "model_list": [
            {"model_name": name, "litellm_params": {"model": f"openai/{name}", **params}, "model_info": {"id": name}}
            for name in NAMES
        ],
        "router_settings": {"num_retries": 0, "disable_cooldowns": True},
    }
    if policy is None:
        return config
    pool = {
        "budget": ROOM * SIZE,
        "server": {"kind": server.kind, "url": server.url},
        "models": {name: {"footprint": SIZE} for name in NAMES},
        "deadline_s": DEADLINE_S,
        **policy,
    }
    store = {"backend": "disk", "path": str(folder / "store")}
    config["litellm_settings"] = {"callbacks": ["pointsman.litellm.handler"]}
    config["pointsman"] = {"store": store, "plugins": [{"residency": {"pools": {"gpu": pool}}}]}
    return config


async def ask(proxy: ProxyServer, trace: list[str], over_s: float) -> tuple[list[str], list[float], float]:
    """Make the requests; return the errors, how long each took, and all of them."""
    errors, seconds = list[str](), list[float]()
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    async with httpx.AsyncClient(
        base_url=proxy.url, headers=proxy.headers, timeout=600, limits=limits, trust_env=False
    ) as client:

        async def one(number: int, model: str) -> None:
            await asyncio.sleep(over_s * number / len(trace))
            body = {"model": model, "messages": [{"role": "user", "content": "Hello"}]}
            began = time.monotonic()
            answer = await client.post("/v1/chat/completions", json=body)
            seconds.append(time.monotonic() - began)
            if not answer.is_success:
                errors.append(f"{answer.status_code} {answer.text[:200]}")

        began = time.monotonic()
        await asyncio.gather(*(one(number, model) for number, model in enumerate(trace)))
        return errors, sorted(seconds), time.monotonic() - began


def free_ports(count: int) -> int:
    """Return the first port of a row of free ones below 32768, where clients' connections begin to take theirs."""
    for first in range(20_000, 32_000, count):
        with contextlib.ExitStack() as probes, contextlib.suppress(OSError):
            for port in range(first, first + count):
                probes.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return first
    sys.exit("no ports are free between 20000 and 32000")


@contextlib.contextmanager
def serving(row: Row, folder: Path) -> Iterator[Server]:
    """Run the server of a row."""
    if not row.swap:
        with InProcess() as server:
            yield server
    else:
        (folder / "swap").mkdir()
        with LlamaSwap(folder / "swap", manages=row.policy is None).running() as swap:
            yield swap


def measure(row: Row, trace: list[str], over_s: float) -> str:
    """Run a row; return its line of the table, and the most frequent errors and faults below it."""
    optimum = belady(trace, ROOM)
    with tempfile.TemporaryDirectory() as path, serving(row, folder := Path(path)) as server:
        with ProxyServer(document(server, folder, row.policy), folder, workers=2) as proxy:
            errors, seconds, whole_s = asyncio.run(ask(proxy, trace, over_s))
        loads, troubles = server.loads(), server.troubles()
    figures = [nearest_rank(seconds, ratio) for ratio in (0.5, 0.95, 1.0)] + [whole_s]
    columns = "".join(f" {figure:7.2f}" for figure in figures)
    line = f"{row.label:>21} {loads:6} {loads / optimum:9.2f}{columns} {len(errors):7} {len(troubles):7}\n"
    return line + "".join(
        f"{'':>21} {trouble} ({times} times)\n" for trouble, times in Counter(errors + troubles).most_common(5)
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--over", type=float, default=30.0, help="seconds within which they arrive; 0: all at once")
    parser.add_argument("--row", action="append", choices=[row.label for row in ROWS], help="only this one")
    options = parser.parse_args()
    trace = zipf(NAMES, options.requests, seed=4)
    optimum = belady(trace, ROOM)
    sys.stdout.write(
        f"{options.requests} requests within {options.over:g} s; optimum one after another: {optimum} loads\n"
    )
    heads = "".join(f" {head:>7}" for head in ("p50 s", "p95 s", "max s", "all s", "failed", "faults"))
    sys.stdout.write(f"{'':>21} {'loads':>6} {'/optimum':>9}{heads}\n")
    with tempfile.TemporaryDirectory() as folder:
        # Each row starts a proxy; what they import is imported once.
        warm.prepare(Path(folder))
        for row in ROWS:
            if options.row and row.label not in options.row:
                continue
            if row.swap and not PROGRAM.exists():
                sys.stdout.write(f"{row.label:>21} {PROGRAM} is missing\n")
            else:
                sys.stdout.write(measure(row, trace, options.over))
            sys.stdout.flush()


if __name__ == "__main__":
    main()
