"""Limits in real LiteLLM proxies whose workers are killed while clients press on them."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from pointsman.testing.provider import Behaviour, Delay, ReceivedRequest, UpstreamServer
from pointsman.testing.proxy import ProxyServer
from pointsman_quota.tenants import hash_key

pytestmark = [pytest.mark.proxy, pytest.mark.timeout(400)]

KEY = "sk-pressing-0123456789"
CLIENTS = 8
#: Chosen so that each limit is the tightest one at times: a request takes about 0.8 s and 24 tokens.
CONCURRENT = 4
RATE_PER_S, BURST_S = 4, 3
TOKENS_PER_S = 90
LEASE_S = 5
PART_S = 10.0
#: How long a request may take from its admission to the upstream on a busy machine.
LATE_S = 3.0
ESTIMATE_TOKENS = 60
LIMITS = {
    "max_concurrent_requests": CONCURRENT,
    "requests_per_minute": RATE_PER_S * 60,
    "tokens_per_minute": TOKENS_PER_S * 60,
    "burst_s": BURST_S,
}


def configuration(upstream: UpstreamServer, store: dict[str, Any]) -> dict[str, Any]:
    tenant = {"id": "acme", "keys": [{"name": "ci", "hash": hash_key(KEY, "00" * 16)}], "limits": LIMITS}
    return {
        "model_list": [
            {
                "model_name": "chat",
                "litellm_params": {"model": "openai/chat", "api_base": f"{upstream.url}/v1", "api_key": "x"},
            }
        ],
        "litellm_settings": {"callbacks": ["pointsman.litellm.handler"], "num_retries": 0},
        "general_settings": {"custom_auth": "pointsman.litellm.custom_auth"},
        "pointsman": {"store": store, "plugins": [{"quota": {"tenants": [tenant], "lease_s": LEASE_S}}]},
    }


class Clients:
    """Eight clients that ask as fast as they can, of any proxy that answers."""

    def __init__(self, proxies: list[ProxyServer]) -> None:
        self.statuses: Counter[int] = Counter()
        self.tokens = 0
        self.refusals: list[httpx.Headers] = []
        self._proxies = proxies
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._press, args=(number,)) for number in range(CLIENTS)]

    @contextmanager
    def pressing(self) -> Iterator[None]:
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in self._threads:
                thread.join(60)

    def _press(self, number: int) -> None:
        body = {"model": "chat", "messages": [{"role": "user", "content": "hello there"}], "max_tokens": 40}
        with httpx.Client(headers={"authorization": f"Bearer {KEY}"}, timeout=20, trust_env=False) as client:
            while not self._stop.is_set():
                number += 1
                try:
                    url = self._proxies[number % len(self._proxies)].url
                    answer = client.post(f"{url}/v1/chat/completions", json=body)
                except httpx.HTTPError:
                    with self._lock:
                        self.statuses[0] += 1
                    self._stop.wait(0.2)
                    continue
                with self._lock:
                    self.statuses[answer.status_code] += 1
                    if answer.status_code == 200:
                        self.tokens += answer.json()["usage"]["total_tokens"]
                    elif answer.status_code == 429:
                        self.refusals.append(answer.headers)
                if answer.status_code != 200:
                    self._stop.wait(0.1)


def most_at_once(requests: tuple[ReceivedRequest, ...]) -> int:
    """Return the largest number of requests the upstream had at one moment; ends come before starts."""
    moments = [(request.received_at, 1) for request in requests]
    moments += [(request.received_at + (request.ended_ms or 0) / 1000, -1) for request in requests]
    running = most = 0
    for _, change in sorted(moments):
        running += change
        most = max(most, running)
    return most


def most_in_a_window(amounts: list[tuple[float, int]], rate_per_s: float) -> float:
    """Return by how much the sum over any window of time exceeds the rate, at most: the burst that was seen."""
    most = total = 0.0
    since = amounts[0][0]
    for at, amount in sorted(amounts):
        total = max(0.0, total - rate_per_s * (at - since)) + amount
        since, most = at, max(most, total)
    return most


def press(upstream: UpstreamServer, proxies: list[ProxyServer], kills: list[Callable[[], None]]) -> None:
    """Press for a while, kill in the middle, and check what the upstream saw and what is left in the books."""
    clients = Clients(proxies)
    with clients.pressing():
        for kill in kills:
            time.sleep(PART_S)
            kill()
        time.sleep(2 * PART_S)
    for proxy in proxies:
        proxy.wait_ready()
    time.sleep(LEASE_S + 3)
    with proxies[0].client() as admin:
        shown = admin.get("/pointsman/quota/tenants/acme").json()["usage"][0]

    seen = upstream.requests
    limits = Counter(headers["x-pointsman-quota"].partition("limit=")[2] for headers in clients.refusals)
    print(f"\n{dict(clients.statuses)}, {len(seen)} upstream, {most_at_once(seen)} at once, {dict(limits)}, {shown}")  # noqa: T201  # shown with -s
    assert clients.statuses[200] >= 20
    assert len(limits) >= 2
    assert set(clients.statuses) <= {200, 429, 0, 503}, clients.statuses
    assert all(int(headers["retry-after"]) >= 1 and "retry-after-ms" in headers for headers in clients.refusals)
    assert all("x-ratelimit-remaining-tokens" in headers for headers in clients.refusals)

    assert most_at_once(seen) <= CONCURRENT
    burst = most_in_a_window([(request.received_at, 1) for request in seen], RATE_PER_S)
    assert burst <= RATE_PER_S * (BURST_S + LATE_S)
    used = [(r.received_at, (r.prompt_tokens or 0) + (r.output_tokens or 0)) for r in seen]
    in_flight = (1 + len(kills)) * CONCURRENT * ESTIMATE_TOKENS
    assert most_in_a_window(used, TOKENS_PER_S) <= TOKENS_PER_S * (BURST_S + LATE_S) + in_flight

    assert (shown["requests_in_flight"], shown["reserved_tokens"]) == (0, 0)
    lost = len(kills) * CONCURRENT * ESTIMATE_TOKENS
    assert clients.tokens - lost <= shown["day_tokens"] <= sum(amount for _, amount in used)


def kill_a_worker(proxy: ProxyServer) -> None:
    children = Path(f"/proc/{proxy.pid}/task/{proxy.pid}/children").read_text().split()
    # A supervisor that spawns its workers has one more child, which looks after the semaphores.
    workers = [int(pid) for pid in children if b"resource_tracker" not in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(random.choice(workers), signal.SIGKILL)


@pytest.fixture
def upstream() -> Iterator[UpstreamServer]:
    with UpstreamServer({"*": Behaviour(tokens=20, latency=Delay(600))}) as server:
        yield server


def test_two_workers_on_one_disk(upstream: UpstreamServer, tmp_path: Path) -> None:
    """One of them dies by SIGKILL while it serves: no limit is exceeded, and no hold outlives its lease."""
    config = configuration(upstream, {"backend": "disk", "path": str(tmp_path / "store")})
    with ProxyServer(config, tmp_path / "proxy", workers=2) as proxy:
        press(upstream, [proxy], [lambda: kill_a_worker(proxy)])


def test_the_readmes_example(tmp_path: Path) -> None:
    """Whom it lets in, and as whom: a tenant's key, a wrong one, none, and the master key."""
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    document = yaml.safe_load(readme.split("```yaml\n")[1].split("```")[0])
    document["pointsman"]["plugins"][0]["quota"]["tenants"][0]["keys"][0]["hash"] = hash_key(KEY, "00" * 16)
    with UpstreamServer() as upstream:
        document["model_list"] = [
            {
                "model_name": model,
                "litellm_params": {"model": f"openai/{model}", "api_base": f"{upstream.url}/v1", "api_key": "x"},
            }
            for model in ("gpt-4o", "gpt-4o-mini", "other")
        ]
        with ProxyServer(document, tmp_path) as proxy:

            def ask(key: str, model: str, **more: Any) -> tuple[int, Any]:
                headers = {"authorization": f"Bearer {key}"} if key else {}
                body = {"model": model, "messages": [{"role": "user", "content": "hello"}], **more}
                url = f"{proxy.url}/v1/chat/completions"
                answer = httpx.post(url, json=body, headers=headers, timeout=30, trust_env=False)
                return answer.status_code, answer.json().get("error", {})

            assert ask(KEY, "gpt-4o")[0] == 200
            # LiteLLM's own check of the key's models comes first.
            assert ask(KEY, "gpt-4o", fallbacks=["other"])[0] == 403
            assert [ask(key, "gpt-4o-mini")[0] for key in ("sk-of-nobody-0123456789", "")] == [401, 401]
            assert ask(proxy.master_key, "gpt-4o-mini")[0] == 200
            assert ask(proxy.master_key, "gpt-4o")[1]["code"] == "model_not_allowed"
            with proxy.client() as admin:
                assert admin.get("/pointsman/quota/tenants/guest").json()["usage"][0]["requests_left"] < 5


@pytest.mark.services
def test_two_proxies_on_one_redis(upstream: UpstreamServer, tmp_path: Path, redis_url: str) -> None:
    """The same with two proxies, each of which is killed and started anew."""
    config = configuration(upstream, {"backend": "redis", "url": redis_url})
    proxies = [ProxyServer(config, tmp_path / f"proxy{number}") for number in range(2)]

    def kill(proxy: ProxyServer) -> None:
        proxy.stop(signal.SIGKILL)
        proxy.launch()

    try:
        for proxy in proxies:
            proxy.launch()
        for proxy in proxies:
            proxy.wait_ready()
        press(upstream, proxies, [partial(kill, proxy) for proxy in proxies])
    finally:
        for proxy in proxies:
            proxy.stop()
