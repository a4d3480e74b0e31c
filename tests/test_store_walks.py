"""On redis, nothing that repeats walks all keys of the server: it may be shared with others that keep millions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
import redis_servers

from pointsman.store.redis import RedisStore
from pointsman.testing import FakeClock, Harness, deployment
from pointsman_balance.plugin import plugin as balance
from pointsman_billing.plugin import plugin as billing
from pointsman_canary.plugin import plugin as canary
from pointsman_quota.plugin import plugin as quota
from pointsman_racing.plugin import plugin as racing
from pointsman_registry.plugin import plugin as registry
from pointsman_shadow.plugin import plugin as shadow
from pointsman_signals.plugin import plugin as signals

pytestmark = pytest.mark.services

DEPLOYMENTS = [deployment("small-1", "small"), deployment("small-2", "small"), deployment("big-1", "big")]
PLUGINS = [
    (quota, {"default_tenant": "acme", "tenants": [{"id": "acme", "limits": {"usd_per_month": 500}}]}),
    (
        canary,
        {
            "experiments": [
                {"name": "rollout", "model": "assistant", "canary": {"version": "assistant-2"}, "steps": [50]}
            ]
        },
    ),
    (
        registry,
        {
            "versions": [
                {"id": "assistant-1", "name": "assistant", "version": "1", "path": "small", "active": True},
                {"id": "assistant-2", "name": "assistant", "version": "2", "path": "big"},
            ]
        },
    ),
    signals,
    (racing, {"groups": {"small": {}}}),
    balance,
    (shadow, {"mirrors": [{"name": "mirror", "model": "small", "challenger": "big", "sample_rate": 1.0}]}),
    (billing, {"sinks": []}),
]


@pytest.fixture(params=["one", "cluster"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if not redis_servers.installed():
        pytest.skip(redis_servers.MISSING)
    start = redis_servers.redis_cluster if request.param == "cluster" else redis_servers.one_redis
    folder = tmp_path / "redis"
    folder.mkdir()
    with start(folder) as found:
        yield found


def walks(url: str) -> int:
    """Return how often the keys of any node have been walked."""
    with redis.Redis.from_url(url) as client:
        clustered = client.info("cluster")["cluster_enabled"]
        ports = [int(node.split(":")[1].split("@")[0]) for node in client.cluster("nodes")] if clustered else []
    count = 0
    for node in [f"redis://127.0.0.1:{port}/0" for port in ports] or [url]:
        with redis.Redis.from_url(node) as client:
            count += client.info("commandstats").get("cmdstat_scan", {"calls": 0})["calls"]
    return count


async def test_nothing_that_repeats_walks_all_keys(url: str, tmp_path: Path) -> None:
    """Ten minutes of two workers, under some traffic; what changes while they run is read by its own keys, too."""
    clock = FakeClock()
    stores = [await RedisStore.open(url, prefix="walks:") for _ in range(2)]
    given = {"path": tmp_path, "deployments": DEPLOYMENTS, "clock": clock}
    try:
        async with (
            Harness(PLUGINS, name="a", store=stores[0], **given) as a,
            Harness(PLUGINS, name="b", store=stores[1], **given) as b,
        ):
            await clock.advance(60.0)
            for store in stores:
                await store._listing_done()
            before = walks(url)
            for _ in range(5):
                for worker in (a, b):
                    assert (await worker.request(model="assistant")).outcome == "ok"
                    await worker.settled()
                await clock.advance(120.0)
            assert walks(url) == before
    finally:
        for store in stores:
            await store.close()
