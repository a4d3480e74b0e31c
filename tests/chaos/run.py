"""Gateways and workers killed at random under load: what is billed once, lost and doubled.

A provider gives every request its own number of tokens, so a bill names its request. Clients note the numbers of the
answers that they got. Afterwards each of them must be in exactly one bill, over the sinks of all gateways. What a worker
had only in memory when it was killed, a window of some ten milliseconds, may be lost; nothing may be doubled. What a gateway
has answered that ends in order is billed without an exception.

    tox run -e chaos [-- --seconds 60 --scenarios disk stops redis cluster --seed 1]

Ends with 1 when something was doubled, or more was lost than the kills explain.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final, Self

import httpx
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

import redis_servers  # in the directory of the tests' helpers

from pointsman.testing import warm
from pointsman.testing.ports import free_port
from pointsman.testing.proxy import ProxyFailed, ProxyServer

#: Settlements that one killed worker may have had only in memory: a journal window of this load.
MOST_LOST_A_KILL: Final = 8
CLIENTS: Final = 6
SETTLED_WITHIN_S: Final = 180.0
TENANT: Final = {"id": "everybody", "limits": {"requests_per_minute": 10_000_000, "usd_per_month": 10_000_000}}


class OracleServer(ThreadingHTTPServer):
    """Says nothing of connections that end with a killed worker."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print what is a fault of the provider itself."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class Oracle:
    """A provider whose answers are told apart by their number of prompt tokens."""

    def __init__(self) -> None:
        numbers = itertools.count(1)

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers.get("content-length", 0)))
                number = next(numbers)
                body = {
                    "id": f"chatcmpl-{number}",
                    "object": "chat.completion",
                    "created": int(time.time()),
                    "model": "gpt-4o-mini",
                    "choices": [
                        {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Yes."}}
                    ],
                    "usage": {"prompt_tokens": number, "completion_tokens": 1, "total_tokens": number + 1},
                }
                text = json.dumps(body).encode()
                self.send_response(200)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self._server = OracleServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


@dataclass(slots=True)
class Outcome:
    """What came of one scenario."""

    name: str
    kills: int = 0
    answers: set[int] = field(default_factory=set)
    #: Those of gateways that have ended in order.
    owed: set[int] = field(default_factory=set)
    billed: Counter[int] = field(default_factory=Counter)
    remark: str = ""

    @property
    def once(self) -> int:
        """Answers with exactly one bill."""
        return sum(self.billed[number] == 1 for number in self.answers)

    @property
    def lost(self) -> int:
        """Answers without a bill."""
        return sum(self.billed[number] == 0 for number in self.answers)

    @property
    def doubled(self) -> int:
        """Requests, answered or not, with more than one bill."""
        return sum(count > 1 for count in self.billed.values())

    @property
    def passed(self) -> bool:
        """Whether nothing is doubled, nothing is stuck, and no more is lost than the kills explain."""
        explained = self.lost <= MOST_LOST_A_KILL * self.kills and all(self.billed[number] for number in self.owed)
        return not self.remark and not self.doubled and explained


def gateway(
    folder: Path, oracle: Oracle, store: Mapping[str, Any], workers: int, port: int, *, turn: int = 0
) -> ProxyServer:
    """Return a gateway with quota and billing, not started; its outbox and its sink are in the folder.

    Args:
        folder: Its configuration is written there, too.
        oracle: The provider.
        store: The store's section.
        workers: Their number.
        port: Its port.
        turn: With another one, both plugins have another configuration.
    """
    model = {
        "model_name": "small",
        "litellm_params": {"model": "openai/gpt-4o-mini", "api_base": oracle.url, "api_key": "provider-key"},
        "model_info": {"id": "small-1"},
    }
    place = {"path": str(folder / "store")} if store["backend"] == "disk" else {}
    config = {
        "model_list": [model],
        "router_settings": {"num_retries": 0, "disable_cooldowns": True},
        "litellm_settings": {"callbacks": ["pointsman.litellm.handler"]},
        "pointsman": {
            "store": {**store, **place},
            "plugins": [
                {"quota": {"tenants": [TENANT, {"id": f"tenant-{turn}"}], "default_tenant": TENANT["id"]}},
                {"billing": {"sinks": [{"ndjson": {"path": "bills.ndjson"}}], "own_tenant": f"own-{turn}"}},
            ],
        },
    }
    return ProxyServer(config, folder, workers=workers, port=port, fresh=workers > 1)


def workers_of(pid: int) -> list[int]:
    """Return the worker processes of a supervisor."""
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
    except OSError:
        return []
    # The resource tracker of multiprocessing is a child, too.
    return [int(child) for child in text.split() if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


class Load:
    """Clients that send until they are told to stop, and note the numbers of their answers."""

    def __init__(self, urls: Sequence[str], headers: Mapping[str, str]) -> None:
        self.answers: set[int] = set()
        self._urls = urls
        self._headers = dict(headers)
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(CLIENTS)]

    def _run(self, number: int) -> None:
        body = {"model": "small", "messages": [{"role": "user", "content": "Yes or no?"}]}
        url = self._urls[number % len(self._urls)]
        while not self._stop.is_set():
            try:
                with httpx.Client(base_url=url, headers=self._headers, timeout=30.0, trust_env=False) as client:
                    while not self._stop.is_set():
                        answer = client.post("/v1/chat/completions", json=body)
                        if answer.is_success:
                            self.answers.add(answer.json()["usage"]["prompt_tokens"])
                        else:
                            time.sleep(0.1)
            except httpx.HTTPError:
                time.sleep(0.2)

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def settled(proxies: Sequence[ProxyServer]) -> bool:
    """Return whether nothing waits on any gateway: no settlement, no event."""
    for proxy in proxies:
        with proxy.client() as client:
            try:
                status = client.get("/pointsman/status").json()
                report = client.get("/pointsman/billing/reconcile").json()
            except (httpx.HTTPError, ValueError):
                return False
            if any(status["journal"]["waiting"].values()) or report["requests"]["pending"]:
                return False
    return True


def bills(folders: Sequence[Path]) -> Counter[int]:
    """Return how often each number has been billed, over the sinks of all gateways."""
    found: Counter[int] = Counter()
    for folder in folders:
        for line in (folder / "bills.ndjson").read_text(encoding="ascii").splitlines():
            event = json.loads(line)
            if event["type"] == "attempt":
                found[event["prompt_tokens"]] += 1
    return found


def scenario(name: str, store: Mapping[str, Any], folder: Path, seconds: float, chance: random.Random) -> Outcome:
    """Run one scenario: one gateway of two workers on disk, or two gateways on one redis."""
    outcome = Outcome(name)
    count, workers = (1, 2) if store["backend"] == "disk" else (2, 1)
    folders = [folder / f"gateway-{number}" for number in range(count)]
    with Oracle() as oracle, contextlib.ExitStack() as stack:
        proxies = [gateway(where, oracle, store, workers, free_port()) for where in folders]
        for proxy in proxies:
            proxy.launch()
            stack.callback(proxy.stop, signal.SIGKILL)
        for proxy in proxies:
            proxy.wait_ready()
        with Load([proxy.url for proxy in proxies], proxies[0].headers) as load:
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                time.sleep(chance.uniform(2.0, 8.0))
                outcome.kills += strike(chance.choice(proxies), workers, chance)
        outcome.answers = load.answers
        for proxy in proxies:
            if not proxy.running:
                proxy.start()
        await_bills(outcome, proxies, folders)
    return outcome


def stops(name: str, store: Mapping[str, Any], folder: Path, seconds: float, chance: random.Random) -> Outcome:
    """Start and stop one gateway again and again, some with a reload; some of its ends are cut short by a kill."""
    outcome = Outcome(name)
    where, port, turns = folder / "gateway", free_port(), itertools.count()
    with Oracle() as oracle, contextlib.ExitStack() as stack:

        def begin(workers: int) -> ProxyServer:
            proxy = gateway(where, oracle, store, workers, port, turn=next(turns))
            stack.callback(proxy.stop, signal.SIGKILL)
            return proxy.start()

        proxy = begin(1)
        with Load([proxy.url], proxy.headers) as load:
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                before = set(load.answers)
                time.sleep(chance.uniform(1.0, 4.0))
                if chance.random() < 0.5:
                    gateway(where, oracle, store, 1, port, turn=next(turns))  # writes its configuration
                    threading.Thread(target=reload, args=(proxy,)).start()
                    time.sleep(chance.uniform(0.0, 1.0))
                killed = end(proxy, chance)
                outcome.kills += killed
                if not killed:
                    outcome.owed |= load.answers - before
                proxy = begin(chance.choice((1, 1, 2)))
        outcome.answers = load.answers
        await_bills(outcome, [proxy], [where])
    return outcome


def reload(proxy: ProxyServer) -> None:
    """Let a gateway read its configuration again; it may be killed meanwhile."""
    with contextlib.suppress(httpx.HTTPError), proxy.client() as client:
        client.post("/pointsman/reload")


def end(proxy: ProxyServer, chance: random.Random) -> int:
    """End a gateway in order, or kill one of its workers at once or while it ends; return how many were killed."""
    kill = chance.random() < 0.6
    if not kill or chance.random() < 0.7:
        os.kill(proxy.pid, signal.SIGTERM)
        if not kill:
            proxy.wait_exit()
            return 0
        time.sleep(chance.uniform(0.0, 2.0))
    victim = chance.choice(workers_of(proxy.pid) or [proxy.pid])
    killed = proxy.running and Path(f"/proc/{victim}").exists()
    with contextlib.suppress(ProcessLookupError):
        os.kill(victim, signal.SIGKILL)
    proxy.stop()
    return int(killed)


def await_bills(outcome: Outcome, proxies: Sequence[ProxyServer], folders: Sequence[Path]) -> None:
    """Read the bills when nothing waits any more."""
    # Rows of killed workers are taken over when their heartbeats have ended, and what is held is decided after that.
    time.sleep(30.0)
    give_up_at = time.monotonic() + SETTLED_WITHIN_S
    while not settled(proxies):
        if time.monotonic() > give_up_at:
            outcome.remark = "something still waits"
            break
        time.sleep(1.0)
    time.sleep(15.0)
    outcome.billed = bills(folders)


def strike(proxy: ProxyServer, workers: int, chance: random.Random) -> int:
    """Kill one worker, or a whole gateway and start it again; return how many workers were killed."""
    children = workers_of(proxy.pid) if workers > 1 else []
    if children and chance.random() < 0.8:
        with contextlib.suppress(ProcessLookupError):
            os.kill(chance.choice(children), signal.SIGKILL)
        return 1
    proxy.stop(signal.SIGKILL)
    time.sleep(chance.choice([0.0, 0.0, 25.0]))
    with contextlib.suppress(ProxyFailed):
        proxy.start()
    return max(1, len(children))


@contextlib.contextmanager
def stores(name: str, folder: Path) -> Iterator[Mapping[str, Any] | None]:
    """Yield the store's section; None when its server is not installed."""
    if name in {"disk", "stops"}:
        yield {"backend": "disk"}
    elif redis_servers.installed():
        start = redis_servers.redis_cluster if name == "cluster" else redis_servers.one_redis
        with start(folder) as url:
            yield {"backend": "redis", "url": url}
    else:
        yield None


TITLES: Final = {
    "disk": "one gateway, two workers, disk",
    "stops": "one gateway, disk, stopped, reloaded and killed meanwhile",
    "redis": "two gateways, one redis",
    "cluster": "two gateways, a redis cluster of three nodes",
}


def main() -> int:
    """Run the scenarios and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="of load in each scenario")
    parser.add_argument("--scenarios", nargs="+", choices=list(TITLES), default=list(TITLES))
    parser.add_argument("--seed", type=int, default=None)
    given = parser.parse_args()
    seed = random.randrange(10**6) if given.seed is None else given.seed
    console, chance = Console(width=140), random.Random(seed)
    table = Table(title=f"Killed at random under load (seed {seed})")
    for column in ("scenario", "workers killed", "answers", "billed once", "lost", "doubled", ""):
        table.add_column(column, justify="left" if column in {"", "scenario"} else "right")
    passed = True
    with tempfile.TemporaryDirectory() as forks:
        # Of the gateways with one worker, so that many can be started.
        warm.prepare(Path(forks))
        for name in given.scenarios:
            with tempfile.TemporaryDirectory() as folder, stores(name, Path(folder)) as store:
                if store is None:
                    table.add_row(TITLES[name], *[""] * 5, redis_servers.MISSING)
                    continue
                console.print(f"{TITLES[name]}: {given.seconds:.0f} s of load")
                run = stops if name == "stops" else scenario
                outcome = run(name, store, Path(folder), given.seconds, chance)
            figures = (outcome.kills, len(outcome.answers), outcome.once, outcome.lost, outcome.doubled)
            verdict = outcome.remark or ("" if outcome.passed else "failed")
            table.add_row(TITLES[name], *map(str, figures), verdict)
            passed = passed and outcome.passed
    console.print(table)
    return int(not passed)


if __name__ == "__main__":
    sys.exit(main())
