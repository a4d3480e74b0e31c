"""Reloads of real proxies under load: no request fails, each is settled and billed once, and every worker follows."""

from __future__ import annotations

import itertools
import json
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Self

import httpx
import pytest
import redis_servers
import yaml
from click.testing import CliRunner
from rig import Rig, deployment

from pointsman.cli import main
from pointsman.testing import eventually
from pointsman.testing.provider import Behaviour, Delay
from pointsman.testing.proxy import ProxyServer

pytestmark = [pytest.mark.proxy, pytest.mark.timeout(300)]
ASK = [{"role": "user", "content": "Say something."}]


def model_list(upstream: str) -> list[dict[str, Any]]:
    return [
        deployment(upstream, "small", "gpt-4o-mini", id_="small-1"),
        deployment(upstream, "small", "gpt-4o-mini", id_="small-2"),
        deployment(upstream, "big", "gpt-4o", id_="big-1"),
    ]


#: Every plugin is rebuilt when its deadline changes. Long ones: a busy machine is not what these tests are about.
DEADLINES = itertools.count(30_001)


def plugins(tmp_path: Path, *, path: str = "small", **quota: Any) -> list[dict[str, Any]]:
    version = {"id": f"assistant-{path}", "name": "assistant", "version": "1", "path": path, "active": True}
    sections: dict[str, dict[str, Any]] = {
        "quota": {
            "tenants": [{"id": "all", "limits": {"requests_per_minute": 100_000, **quota}}],
            "default_tenant": "all",
        },
        "registry": {"versions": [version]},
        "signals": {},
        "racing": {"groups": {"small": {}}},
        "balance": {"tactic": "adaptive"},
        "shadow": {"mirrors": [{"name": "try", "model": "small", "challenger": "big", "sample_rate": 0.1}]},
        "billing": {"sinks": [{"ndjson": {"path": "bills.ndjson"}}]},
    }
    deadline_ms = next(DEADLINES)
    return [{name: {"deadline_ms": deadline_ms, **section}} for name, section in sections.items()]


def edit(proxy: ProxyServer, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the ``pointsman:`` section of the proxy's file."""
    document = yaml.safe_load(proxy.config_path.read_text(encoding="utf-8"))
    change(document["pointsman"])
    proxy.config_path.write_text(yaml.safe_dump(document), encoding="utf-8")


def with_recorder(plugins_: list[dict[str, Any]]) -> Callable[[dict[str, Any]], object]:
    """Return a change that keeps the recorder, whose section stays as it is."""
    return lambda section: section.update(plugins=[section["plugins"][0], *plugins_])


class Load:
    """Clients that ask without a pause until the end of the ``with`` block, plain and streamed, on three endpoints."""

    PATHS = ("/v1/chat/completions", "/v1/messages", "/v1/responses")

    def __init__(self, proxy: ProxyServer, clients: int = 6) -> None:
        self._proxy = proxy
        self._end = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(n,)) for n in range(clients)]
        self.answered: list[str] = []
        self.failed: list[str] = []

    def _ask(self, number: int) -> None:
        path, stream = self.PATHS[number % 3], number % 2 == 0
        content = {"input": "Say something."} if path == "/v1/responses" else {"messages": ASK, "max_tokens": 50}
        with self._proxy.client() as client:
            while not self._end.is_set():
                try:
                    answer = client.post(path, json={"model": "assistant", "stream": stream, **content})
                    answer.raise_for_status()
                    self.answered.append(answer.headers["x-pointsman-request-id"])
                except httpx.HTTPError as err:
                    text = err.response.text if isinstance(err, httpx.HTTPStatusError) else ""
                    self.failed.append(f"{path}: {err!r} {text[:300]}")

    def more(self, requests: int = 30) -> None:
        """Wait until so many more requests have been answered."""
        wanted = len(self.answered) + requests
        eventually(lambda: len(self.answered), lambda count: count >= wanted or self.failed, within_s=60)

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join()


def status(proxy: ProxyServer) -> dict[str, Any]:
    with proxy.client() as client:
        answer: dict[str, Any] = client.get("/pointsman/status").raise_for_status().json()
    return answer


def known(proxy: ProxyServer) -> dict[str, int]:
    """Return how many attempts balance knows of each deployment."""
    with proxy.client() as client:
        groups = client.get("/pointsman/balance").raise_for_status().json()["groups"]
    return {row["deployment_id"]: row["attempts"] for group in groups for row in group["deployments"]}


def test_under_load_nothing_fails_and_every_request_is_settled_and_billed_once(tmp_path: Path) -> None:
    """By HTTP, by SIGHUP and by command; a file that is wrong changes nothing."""
    with Rig(tmp_path, model_list, plugins=plugins(tmp_path)) as rig:
        proxy = rig.proxy
        for model in ("gpt-4o-mini", "gpt-4o"):
            rig.upstream.behave(model, Behaviour(latency=Delay(median_ms=60), tokens=10))
        with Load(proxy) as load, proxy.client() as client:
            load.more()
            edit(proxy, with_recorder(plugins(tmp_path, path="big")))
            result = client.post("/pointsman/reload").json()
            assert (result["ok"], result["generation"], result["kept"]) == (True, 2, ["recorder"]), result
            load.more()
            edit(proxy, with_recorder(plugins(tmp_path)))
            os.kill(proxy.pid, signal.SIGHUP)
            eventually(lambda: status(proxy)["generation"], lambda now: now == 3)
            load.more()
            edit(proxy, with_recorder(plugins(tmp_path, path="nowhere")))
            before = proxy.config_path.read_text(encoding="utf-8")
            proxy.config_path.write_text(before.replace("tactic: adaptive", "tactic: adaptiv"), encoding="utf-8")
            wrong = client.post("/pointsman/reload")
            assert wrong.status_code == 422
            assert "did you mean 'adaptive'" in wrong.json()["error"]["message"]
            assert status(proxy)["generation"] == 3
            load.more()
            edit(proxy, with_recorder(plugins(tmp_path)))
            shown = CliRunner().invoke(main, ["reload", "--url", proxy.url, "--key", proxy.master_key, "--json"])
            assert json.loads(shown.stdout)["generation"] == 4, shown.output
            load.more()
            eventually(lambda: status(proxy)["leaving"], lambda leaving: leaving == [])
        assert load.failed == []
        before = known(proxy)
        assert before["small-1"] > 0, before
        edit(proxy, with_recorder(plugins(tmp_path)))
        assert client_reload(proxy)["generation"] == 5
        after = known(proxy)
        assert all(after[one] >= attempts for one, attempts in before.items()), "other settings forget nothing"
        # A limit of the file is the limit now.
        edit(proxy, with_recorder(plugins(tmp_path, requests_per_minute=1)))
        assert client_reload(proxy)["generation"] == 6
        with proxy.client() as client:
            answers = [
                client.post("/v1/chat/completions", json={"model": "assistant", "messages": ASK}) for _ in range(3)
            ]
        assert [answer.status_code for answer in answers][-1] == 429
        assert status(proxy)["problems"] == [], proxy.log()[-3000:]
        proxy.stop(signal.SIGTERM)
        settled = Counter(row["request"] for row in rig.rows() if row["hook"] == "settle")
        assert set(load.answered) <= set(settled)
        assert set(settled.values()) == {1}
        billed_once(load.answered, proxy)


def billed(*proxies: ProxyServer) -> list[dict[str, Any]]:
    """Return what the proxies' own sinks have received."""
    files = [proxy.directory / "bills.ndjson" for proxy in proxies]
    lines = [line for file in files for line in file.read_text(encoding="utf-8").splitlines(keepends=True)]
    return [json.loads(line) for line in lines if line.endswith("\n")]


def billed_once(answered: list[str], *proxies: ProxyServer) -> None:
    """Check the bills of stopped proxies: each request has its event in one of them, and there once."""
    bills = billed(*proxies)
    requests = Counter(bill["request_id"] for bill in bills if bill["attempt"] == 0)
    assert set(answered) <= set(requests), "each has its own event"
    assert set(requests.values()) == {1}
    assert set(Counter(bill["id"] for bill in bills).values()) == {1}


def client_reload(proxy: ProxyServer) -> dict[str, Any]:
    with proxy.client() as client:
        answer: dict[str, Any] = client.post("/pointsman/reload").raise_for_status().json()
    return answer


def test_every_worker_follows_the_one_that_was_asked(tmp_path: Path) -> None:
    with Rig(tmp_path, model_list, plugins=plugins(tmp_path), workers=2) as rig:
        proxy = rig.proxy
        rig.upstream.behave("gpt-4o-mini", Behaviour(latency=Delay(median_ms=60), tokens=10))
        rig.upstream.behave("gpt-4o", Behaviour(latency=Delay(median_ms=60), tokens=10))
        with Load(proxy) as load:
            load.more()
            edit(proxy, with_recorder(plugins(tmp_path, path="big")))
            assert client_reload(proxy)["ok"]
            generations: dict[str, int] = {}

            def look() -> dict[str, int]:
                answer = status(proxy)
                generations[answer["worker"]] = answer["generation"]
                return generations

            eventually(look, lambda seen: sorted(seen.values()) == [2, 2], within_s=60)
            load.more()
        assert load.failed == [], proxy.log()[-8000:]


@pytest.mark.services
@pytest.mark.skipif(not redis_servers.installed(), reason=redis_servers.MISSING)
def test_machines_that_share_a_redis_follow_and_bill_each_request_once(tmp_path: Path) -> None:
    """Each has an outbox of its own, and settles the requests that run meanwhile with the plugins they began with."""
    with (
        redis_servers.one_redis(tmp_path) as url,
        Rig(tmp_path / "one", model_list, plugins=plugins(tmp_path), store={"backend": "redis", "url": url}) as rig,
        rig.new_proxy(tmp_path / "two") as second,
    ):
        first = rig.proxy
        for model in ("gpt-4o-mini", "gpt-4o"):
            rig.upstream.behave(model, Behaviour(latency=Delay(median_ms=60), tokens=10))
        with Load(first, clients=3) as here, Load(second, clients=3) as there:
            for path in ("big", "small"):
                here.more()
                there.more()
                changed = with_recorder(plugins(tmp_path, path=path))
                edit(first, changed)
                edit(second, changed)
                generation = client_reload(first)["generation"]
                eventually(partial(status, second), lambda now, g=generation: now["generation"] == g, within_s=60)
            here.more()
            there.more()
        assert here.failed == there.failed == []
        answered = set(here.answered + there.answered)
        eventually(
            lambda: answered - {bill["request_id"] for bill in billed(first, second)},
            lambda missing: not missing,
            within_s=60,
        )
        for proxy in (first, second):
            eventually(partial(status, proxy), lambda now: not now["leaving"], within_s=60)
            proxy.stop(signal.SIGTERM)
        settled = Counter(row["request"] for row in rig.rows() if row["hook"] == "settle")
        assert answered <= set(settled)
        assert set(settled.values()) == {1}
        billed_once(here.answered + there.answered, first, second)
