# ruff: noqa: INP001 - a script, not a package
"""What a request for a resident model costs: pre_route, select, before_attempt, and the end of the attempt.

In time of the processor, so that other work on the machine does not count.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Mapping
from dataclasses import replace

from pointsman.testing import Harness, deployment
from pointsman.types import Attempt, AttemptKind, Candidate, Endpoint, Identity, Outcome, RequestContext, Route
from pointsman_residency.plugin import plugin
from pointsman_residency.servers import Listed, ModelServer, registry

ROUNDS = 20_000


class Instant(ModelServer):
    """Has every model at once."""

    tells_bytes = True
    loaded: set[str] = set()  # noqa: RUF012  # one process, one server

    async def models(self) -> Mapping[str, Listed]:
        """Return what was loaded."""
        return {name: Listed(bytes=10) for name in self.loaded}

    async def load(self, model: str) -> None:
        """Note it."""
        self.loaded.add(model)

    async def unload(self, model: str) -> None:
        """Forget it."""
        self.loaded.discard(model)


async def main() -> None:
    """Measure and print."""
    registry.BUILT_IN = {**registry.BUILT_IN, "instant": Instant}  # type: ignore[misc]  # a server of this file only
    names = [f"m{number}" for number in range(10)]
    models = {name: {"footprint": 10} for name in names}
    pool = {"budget": 100, "server": {"kind": "instant", "url": "http://models.test"}, "models": models}
    deployments = [deployment(name, "group") for name in names]
    async with Harness([(plugin, {"pools": {"gpu": pool}})], deployments=deployments) as h:
        instance = h.plugin("residency")
        for name in names:
            await h.request(model=name)
        ctx = RequestContext(
            request_id="r", endpoint=Endpoint.CHAT, model="m0", stream=False, identity=Identity(), received_at=0.0
        )
        route = Route(target="m0")
        candidates = [Candidate(deployment=one) for one in deployments[:2]]
        attempt = Attempt(
            id="a", request_id="r", number=1, kind=AttemptKind.PRIMARY, deployment=deployments[0], started_at=0.0
        )
        closed = replace(attempt, outcome=Outcome.OK, duration_ms=100.0)
        spent = dict.fromkeys(("pre_route", "select", "before_attempt", "the end"), 0.0)
        for _ in range(ROUNDS):
            began = time.thread_time()
            await instance.pre_route(ctx, route)
            routed = time.thread_time()
            instance.select(ctx, candidates)
            selected = time.thread_time()
            await instance.before_attempt(ctx, attempt)
            held = time.thread_time()
            instance.post_response(closed)
            instance.answered(ctx)
            ended = time.thread_time()
            for key, seconds in zip(
                spent, (routed - began, selected - routed, held - selected, ended - held), strict=True
            ):
                spent[key] += seconds
        for key, seconds in spent.items():
            sys.stdout.write(f"{key:>16} {seconds / ROUNDS * 1e6:6.2f} us\n")
        sys.stdout.write(f"{'pre_route+select':>16} {(spent['pre_route'] + spent['select']) / ROUNDS * 1e6:6.2f} us\n")


if __name__ == "__main__":
    asyncio.run(main())
