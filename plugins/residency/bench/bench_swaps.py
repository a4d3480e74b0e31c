# ruff: noqa: INP001 - a script, not a package
"""A thousand requests for ten models with room for three, on a real proxy with two workers: Pointsman, LRU, llama-swap.

The models are asked for by Zipf's law and the requests arrive evenly; each is a connection of its own. A load takes a second.
With ``--clients 20 --requests 300 --load 0.3`` each client makes its requests one after another, and a load is short.
"optimum" is the fewest loads with which the same requests could be served one after another (Belady), which no one can know
beforehand. "failed" are requests that were not answered with 200, "faults" what a server must not suffer: more models than it
has room for, or the end of one that answers.

Three servers of models: one in this process, which speaks as Ollama does, llama-swap, whose models are processes, and Ollama
itself, whose loads take as long as they take. The last two also run by themselves, behind the same proxy without plugins:
llama-swap's matrix allows every three of the ten models at once, and Ollama's limit is three. They are left out where they are
missing (``plugins/residency/tests/services/install.sh`` builds them).
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
from tests.llama import make_model
from tests.model_server import ModelServer
from tests.real_servers import CACHE, OllamaServer
from tests.simulation import belady, zipf

NAMES: Final = [f"m{number}" for number in range(10)]
ROOM: Final = 3
SIZE: Final = 30
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
        size: Bytes of a model.
    """

    kind: str
    url: str
    base: str
    size: int

    def loads(self) -> int:
        """Return how many loads it has seen."""

    def troubles(self) -> list[str]:
        """Return what happened that must not, a line each time."""


class InProcess(ModelServer):
    """The tests' server, which speaks as Ollama does."""

    kind = "ollama"
    size = SIZE

    def __init__(self, load_s: float) -> None:
        behaviours = {"*": Behaviour(latency=1000 * SERVE_S)}
        super().__init__(dict.fromkeys(NAMES, SIZE), capacity=ROOM * SIZE, load_s=load_s, behaviours=behaviours)
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
        load_s: Seconds of a load.
    """

    kind = "llama_swap"
    size = SIZE

    def __init__(self, folder: Path, *, manages: bool, load_s: float) -> None:
        self._folder = folder
        script = Path(__file__).with_name("model_process.py")
        arguments = f"{ROOM} {load_s} {SERVE_S} ${{PORT}}"
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


class Ollama(OllamaServer):
    """Ollama, with ten tiny models of its own making.

    Args:
        folder: Its own directory.
        manages: Whether it decides by itself which models are there.
    """

    def __init__(self, folder: Path, *, manages: bool) -> None:
        files = {name: folder / f"{name}.gguf" for name in NAMES}
        for seed, file in enumerate(files.values()):
            make_model(file, seed=seed)
        super().__init__(folder, files)
        self.base = self.url
        self.size = 0
        self._limit = str(ROOM if manages else len(NAMES) + 1)

    def environment(self) -> dict[str, str]:
        """Return its environment variables: it evicts by itself beyond its limit."""
        return super().environment() | {"OLLAMA_MAX_LOADED_MODELS": self._limit, "OLLAMA_NUM_PARALLEL": "4"}

    def start(self) -> None:
        """Start it, and let it say what a model takes."""
        super().start()
        self.size = max(self.footprint(name) for name in NAMES)
        self._before = self._logged()

    def _logged(self) -> int:
        return (self.folder / "server.log").read_text().count("loaded runners")

    def loads(self) -> int:
        """Return how many loads it has seen."""
        return self._logged() - self._before

    def troubles(self) -> list[str]:
        """Return what happened that must not, a line each time."""
        return []


@dataclass(frozen=True, slots=True)
class Row:
    """What decides, before which server.

    Attributes:
        label: Its name in the table.
        server: ``fake``, ``llama-swap`` or ``ollama``.
        policy: The pool's settings; None: no plugin, the server decides.
    """

    label: str
    server: str
    policy: dict[str, float] | None


ROWS: Final = (
    Row("pointsman", server="fake", policy={}),
    Row("plain LRU", server="fake", policy=LRU),
    Row("pointsman, llama-swap", server="llama-swap", policy={}),
    Row("llama-swap alone", server="llama-swap", policy=None),
    Row("pointsman, Ollama", server="ollama", policy={}),
    Row("Ollama alone", server="ollama", policy=None),
)


@dataclass(frozen=True, slots=True)
class Load:
    """How the requests come.

    Attributes:
        over_s: Seconds within which they arrive.
        clients: The number of clients, each of which makes its requests one after another; 0: the requests arrive evenly.
        load_s: Seconds of a load of a model.
    """

    over_s: float
    clients: int
    load_s: float


def document(server: Server, folder: Path, policy: dict[str, float] | None) -> dict[str, Any]:
    """Return the proxy's configuration."""
    params = {"api_base": server.base, "api_key": "any"}
    provider = "ollama_chat" if isinstance(server, Ollama) else "openai"
    config: dict[str, Any] = {
        "model_list": [
            {
                "model_name": name,
                "litellm_params": {"model": f"{provider}/{name}", **params},
                "model_info": {"id": name},
            }
            for name in NAMES
        ],
        "router_settings": {"num_retries": 0, "disable_cooldowns": True},
    }
    if policy is None:
        return config
    pool = {
        "budget": ROOM * server.size,
        "server": {"kind": server.kind, "url": server.url},
        "models": {name: {"footprint": server.size} for name in NAMES},
        "deadline_s": DEADLINE_S,
        **policy,
    }
    store = {"backend": "disk", "path": str(folder / "store")}
    config["litellm_settings"] = {"callbacks": ["pointsman.litellm.handler"]}
    config["pointsman"] = {"store": store, "plugins": [{"residency": {"pools": {"gpu": pool}}}]}
    return config


async def ask(proxy: ProxyServer, trace: list[str], load: Load) -> tuple[list[str], list[float], float]:
    """Make the requests; return the errors, how long each took, and all of them."""
    errors, seconds = list[str](), list[float]()
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    async with httpx.AsyncClient(
        base_url=proxy.url, headers=proxy.headers, timeout=DEADLINE_S, limits=limits, trust_env=False
    ) as client:

        async def one(model: str, after_s: float = 0.0) -> None:
            await asyncio.sleep(after_s)
            body = {"model": model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
            began = time.monotonic()
            answer = await client.post("/v1/chat/completions", json=body)
            seconds.append(time.monotonic() - began)
            if not answer.is_success:
                errors.append(f"{answer.status_code} {answer.text[:200]}")

        async def client_of(models: list[str]) -> None:
            for model in models:
                await one(model)

        began = time.monotonic()
        if load.clients:
            await asyncio.gather(*(client_of(trace[first :: load.clients]) for first in range(load.clients)))
        else:
            await asyncio.gather(*(one(model, load.over_s * at / len(trace)) for at, model in enumerate(trace)))
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
def serving(row: Row, folder: Path, load_s: float) -> Iterator[Server]:
    """Run the server of a row."""
    if row.server == "fake":
        with InProcess(load_s) as server:
            yield server
    elif row.server == "ollama":
        (folder / "ollama").mkdir()
        with Ollama(folder / "ollama", manages=row.policy is None) as ollama:
            yield ollama
    else:
        (folder / "swap").mkdir()
        with LlamaSwap(folder / "swap", manages=row.policy is None, load_s=load_s).running() as swap:
            yield swap


def measure(row: Row, trace: list[str], load: Load) -> str:
    """Run a row; return its line of the table, and the most frequent errors and faults below it."""
    optimum = belady(trace, ROOM)
    with tempfile.TemporaryDirectory() as path, serving(row, folder := Path(path), load.load_s) as server:
        with ProxyServer(document(server, folder, row.policy), folder, workers=2) as proxy:
            errors, seconds, whole_s = asyncio.run(ask(proxy, trace, load))
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
    parser.add_argument("--clients", type=int, default=0, help="number of clients, each with one request at a time")
    parser.add_argument("--load", type=float, default=1.0, help="seconds of a load")
    parser.add_argument("--skew", type=float, default=1.0, help="exponent of Zipf's law")
    parser.add_argument("--seed", type=int, default=4)
    parser.add_argument("--row", action="append", choices=[row.label for row in ROWS], help="only this one")
    options = parser.parse_args()
    trace = zipf(NAMES, options.requests, exponent=options.skew, seed=options.seed)
    load = Load(options.over, options.clients, options.load)
    optimum = belady(trace, ROOM)
    how = f"by {load.clients} clients" if load.clients else f"within {load.over_s:g} s"
    sys.stdout.write(
        f"{options.requests} requests {how}, loads of {load.load_s:g} s; optimum one after another: {optimum} loads\n"
    )
    heads = "".join(f" {head:>7}" for head in ("p50 s", "p95 s", "max s", "all s", "failed", "faults"))
    sys.stdout.write(f"{'':>21} {'loads':>6} {'/optimum':>9}{heads}\n")
    with tempfile.TemporaryDirectory() as folder:
        # Each row starts a proxy; what they import is imported once.
        warm.prepare(Path(folder))
        for row in ROWS:
            if options.row and row.label not in options.row:
                continue
            program = {"llama-swap": PROGRAM, "ollama": Ollama.program}.get(row.server)
            if program and not program.exists():
                sys.stdout.write(f"{row.label:>21} {program} is missing\n")
            else:
                sys.stdout.write(measure(row, trace, load))
            sys.stdout.flush()


if __name__ == "__main__":
    main()
