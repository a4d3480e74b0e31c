"""A real proxy of two workers, an upstream whose canary model begins to fail, and clients that never stop asking."""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import httpx

from pointsman.testing.provider import Behaviour, UpstreamServer
from pointsman.testing.proxy import ProxyServer

OLD, NEW = "old-model", "new-model"
CLIENTS = 4
WATCHED_S = 3.0
PATIENCE_S = 90.0


@dataclass(frozen=True)
class Story:
    """What happened.

    Attributes:
        statuses: The clients' HTTP statuses, and how often.
        arms: The arms named in their answers.
        workers: Requests by worker.
        first_bad_at: When the upstream received the first request that it answered with an error, Unix seconds.
        decided_at: When the rollback was written.
        last_canary_at: When the upstream received the last request for the canary.
        after: How many requests the clients made after the decision, for both arms.
        quiet_after: How many requests the upstream received after the last one for the canary.
        canary_requests: How many requests the canary got while it failed.
        trail: The audit trail, the oldest first.
        shown: The experiment as the admin surface shows it afterwards.
    """

    statuses: Counter[int]
    arms: Counter[str]
    workers: dict[str, int]
    first_bad_at: float
    decided_at: float
    last_canary_at: float
    after: int
    quiet_after: int
    canary_requests: int
    trail: list[dict[str, Any]]
    shown: dict[str, Any]


def config(upstream: str, store: Path, *, versions: bool = False) -> dict[str, Any]:
    """Return the LiteLLM configuration: ``chat`` goes to the old model, a quarter of it to the new one.

    Args:
        upstream: The upstream's URL.
        store: Directory of the state store.
        versions: Whether both are versions in the registry instead of model groups.
    """
    groups = {name: f"{name}-group" for name in (OLD, NEW)}
    experiment: dict[str, Any] = {
        "name": "chat-v2",
        "model": "chat",
        "stable": groups[OLD],
        "canary": groups[NEW],
        "steps": [25, 50, 100],
        "interval_s": 3600,
        "fallback_to_stable": True,
    }
    plugins: list[dict[str, Any]] = [{"canary": {"experiments": [experiment]}}]
    if versions:
        del experiment["stable"]
        experiment["canary"] = {"version": NEW}
        registered = [
            {"id": name, "name": "chat", "version": name, "path": group, "active": name == OLD}
            for name, group in groups.items()
        ]
        plugins.append({"registry": {"versions": registered}})
    return {
        "model_list": [
            {
                "model_name": group,
                "litellm_params": {
                    "model": f"openai/{name}",
                    "api_base": f"{upstream}/v1",
                    "api_key": "upstream-key",
                    "max_retries": 0,
                },
                "model_info": {"id": f"{name}-1"},
            }
            for name, group in groups.items()
        ],
        "litellm_settings": {"callbacks": ["pointsman.litellm.handler"], "num_retries": 0},
        "pointsman": {"store": {"backend": "disk", "path": str(store)}, "plugins": plugins},
    }


class Clients:
    """Client threads that send requests until they are stopped.

    Each request has a connection of its own, so that the kernel spreads them over the workers.
    """

    def __init__(self, proxy: ProxyServer) -> None:
        self._proxy = proxy
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self.statuses: Counter[int] = Counter()
        self.arms: Counter[str] = Counter()
        self.times: list[float] = []
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(CLIENTS)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, number: int) -> None:
        body: dict[str, Any] = {"model": "chat", "messages": [{"role": "user", "content": f"hello {number}"}]}
        while not self._stop.is_set():
            sent_at = time.time()
            answer = httpx.post(
                f"{self._proxy.url}/v1/chat/completions", json=body, headers=self._proxy.headers, timeout=60
            )
            with self._lock:
                self.times.append(sent_at)
                self.statuses[answer.status_code] += 1
                self.arms[answer.headers.get("x-pointsman-arm", "none")] += 1


def tell(directory: Path, *, versions: bool = False) -> Story:
    """Let a healthy canary turn bad under traffic, and watch until it has been left alone for a while.

    Args:
        directory: For configuration, store and log.
        versions: Whether the arms are versions in the registry.

    Raises:
        TimeoutError: it was not rolled back in time.
    """
    with UpstreamServer() as upstream:
        document = config(upstream.url, directory / "store", versions=versions)
        with ProxyServer(document, directory / "proxy", workers=2) as proxy, Clients(proxy) as clients:
            _until(lambda: sum(clients.statuses.values()) >= 40, "no traffic")
            upstream.behave(NEW, Behaviour(error_ratios={500: 1.0}))
            _until(lambda: _get(proxy, "/canary/chat-v2")["phase"] == "rolled_back", "no rollback")
            time.sleep(WATCHED_S)
            shown = _get(proxy, "/canary/chat-v2")
            trail = _get(proxy, "/canary/chat-v2/audit")["audit"][::-1]
            workers = _workers(proxy)
        bad = [request.received_at for request in upstream.requests if request.model == NEW and request.status == 500]
        canary = [request.received_at for request in upstream.requests if request.model == NEW]
    decided_at = next(entry["at"] for entry in trail if entry["what"] == "rollback")
    return Story(
        statuses=clients.statuses,
        arms=clients.arms,
        workers=workers,
        first_bad_at=min(bad),
        decided_at=decided_at,
        last_canary_at=max(canary),
        after=sum(at > decided_at for at in clients.times),
        quiet_after=sum(request.received_at > max(canary) for request in upstream.requests),
        canary_requests=len(bad),
        trail=trail,
        shown=shown,
    )


def _until(condition: Any, why: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{why} within {PATIENCE_S:.0f} s")
        time.sleep(0.05)


def _get(proxy: ProxyServer, path: str) -> Any:
    answer = httpx.get(f"{proxy.url}/pointsman{path}", headers=proxy.headers, timeout=30)
    answer.raise_for_status()
    return answer.json()


def _workers(proxy: ProxyServer) -> dict[str, int]:
    found: dict[str, int] = {}
    for _ in range(200):
        status = _get(proxy, "/status")
        found[status["worker"]] = status["requests"]
        if len(found) > 1:
            break
    return found
