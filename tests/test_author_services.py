"""What the host offers a third party's plugin, on real proxies: events for all workers, annotations, a meter."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis_servers import MISSING, installed, one_redis
from rig import SUPPORT, Rig, deployment

from pointsman.testing import eventually
from pointsman.testing.distribution import fake_distribution
from pointsman.testing.otlp import Collector
from pointsman.testing.provider import Behaviour
from pointsman.testing.proxy import ProxyServer

pytestmark = [pytest.mark.proxy, pytest.mark.timeout(300)]
NEEDS_REDIS = pytest.mark.skipif(not installed(), reason=MISSING)


def models(upstream: str) -> list[dict[str, Any]]:
    return [
        deployment(upstream, "failing", "gpt-failing", id_="failing-1"),
        deployment(upstream, "gpt", "gpt-4o-mini", id_="gpt-1"),
    ]


def start(directory: Path, **arguments: Any) -> Rig:
    """Return a rig with the plugin, not started."""
    library = directory / "lib"
    library.mkdir()
    shutil.copy(SUPPORT / "author.py", library)
    fake_distribution(library, "pointsman-author", {"author": "author:plugin"})
    settings = {"num_retries": 0, "disable_cooldowns": True, "fallbacks": [{"failing": ["gpt"]}]}
    rig = Rig(directory, models, plugins=["author"], config={"router_settings": settings}, **arguments)
    rig.upstream.behave("gpt-failing", Behaviour(error_ratios={500: 1.0}))
    return rig


@pytest.fixture(scope="module", params=["disk", pytest.param("redis", marks=[NEEDS_REDIS, pytest.mark.services])])
def workers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[ProxyServer]]:
    """Two workers that share a store."""
    directory = tmp_path_factory.mktemp("author")
    if request.param == "disk":
        yield from pair(directory, {"backend": "disk", "path": str(directory / "store")})
    else:
        with one_redis(directory) as url:
            yield from pair(directory, {"backend": "redis", "url": url})


def pair(directory: Path, store: dict[str, Any]) -> Iterator[list[ProxyServer]]:
    with start(directory, store=store) as rig:
        (directory / "second").mkdir()
        second = rig.new_proxy(directory / "second")
        second.start()
        try:
            yield [rig.proxy, second]
        finally:
            second.stop()


def heard(worker: ProxyServer) -> list[str]:
    with worker.client() as admin:
        return list(admin.get("/pointsman/author/heard").json())


def test_an_event_for_all_workers_reaches_each_once(workers: list[ProxyServer]) -> None:
    """One that does not say so reaches the worker where it was published."""
    said = ["one", "two", "three"]
    for number, text in enumerate(said):
        with workers[number % 2].client() as admin:
            assert admin.post(f"/pointsman/author/said/{text}").status_code == 200
    for number, worker in enumerate(workers):
        here = [f"{text}, here" for place, text in enumerate(said) if place % 2 == number]
        found = eventually(lambda worker=worker: heard(worker), lambda texts: set(said) <= set(texts))
        assert sorted(found) == sorted([*said, *here])


def test_a_plugins_metrics_are_those_of_all_workers(workers: list[ProxyServer]) -> None:
    """A counter is added up, whichever worker is asked, and a gauge is the highest."""
    for worker, count in zip(workers, (2, 3), strict=True):
        for _ in range(count):
            ask(worker, stream=False)

    def read(worker: ProxyServer) -> tuple[float, float]:
        with worker.client() as admin:
            page = admin.get("/pointsman/metrics").text
        counted = re.findall(r'author_requests_total\{author_kind="request"\} (\S+)', page)
        level = re.findall(r'author_heard\{author_kind="said"\} (\S+)', page)
        return sum(map(float, counted)), max(map(float, level))

    highest = float(max(len(heard(worker)) for worker in workers))
    for worker in workers:
        eventually(lambda worker=worker: read(worker), lambda found: found == (5.0, highest), within_s=40.0)


def ask(worker: ProxyServer, *, stream: bool) -> str:
    """Make a request whose first attempt fails; return the id of its trace."""
    body = {"model": "failing", "messages": [{"role": "user", "content": "hi"}], "stream": stream}
    answer = httpx.post(f"{worker.url}/v1/chat/completions", json=body, headers=worker.headers, timeout=60)
    assert answer.status_code == 200, answer.text
    return str(answer.headers.get("x-pointsman-trace-id", ""))


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Rig, Collector]]:
    with Collector() as collector:
        env = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "200"}
        with start(tmp_path_factory.mktemp("traced"), env=env) as rig:
            yield rig, collector


@pytest.mark.parametrize("stream", [False, True])
def test_every_hook_writes_on_its_own_span(traced: tuple[Rig, Collector], stream: bool) -> None:
    """As in the kit."""
    rig, collector = traced
    trace = ask(rig.proxy, stream=stream)
    expected = {
        "pre_route": "pre_route",
        "select": "chat",
        "before_attempt": "before_attempt",
        "transform_request": "chat",
    }
    expected |= {"post_response": "chat", "on_error": "chat", "answered": "chat", "settle": "settle"}
    expected |= {"transform_stream": "chat", "first_token": "chat"} if stream else {"transform_response": "chat"}

    def written() -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for span in collector.spans:
            if span.trace_id == trace or any(link == trace for link, _ in span.links):
                for name in span.attributes:
                    if name.startswith("pointsman.author."):
                        found.setdefault(name.removeprefix("pointsman.author."), set()).add(span.name.split()[0])
        return found

    found = eventually(written, lambda found: found.keys() == expected.keys())
    assert found == {hook: {span} for hook, span in expected.items()}
