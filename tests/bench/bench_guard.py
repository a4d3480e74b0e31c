"""What the guard costs a request: CPU time of the work that it adds, on the endpoints that everybody uses.

The same steps run with the guard and without it, taking turns, so that a machine whose speed drifts does not matter: LiteLLM
authenticates, awaits its callbacks twice, begins an attempt and sends one HTTP request. The request and its exchange are real;
LiteLLM and the network are left out. Nothing passes or fails.

    python tests/bench/bench_guard.py [--rounds 200 --requests 200]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")

import httpx
from litellm.proxy._types import LitellmUserRoles, UserAPIKeyAuth
from rich.console import Console
from rich.table import Table

from pointsman.litellm.call import ClientCall, current_call
from pointsman.litellm.guard import Guard
from pointsman.testing import Harness
from pointsman.types import Deployment, Endpoint, Identity, RequestContext

PATHS: Final = {
    Endpoint.CHAT: "/v1/chat/completions",
    Endpoint.MESSAGES: "/v1/messages",
    Endpoint.RESPONSES: "/v1/responses",
    Endpoint.EMBEDDINGS: "/v1/embeddings",
}
DEPLOYMENT: Final = Deployment(id="chat-1", group="chat", provider="openai", model="gpt-4o-mini")
KEY: Final = UserAPIKeyAuth(api_key="hash", user_role=LitellmUserRoles.INTERNAL_USER)
CALLBACKS: Final = 2


async def hook() -> None:
    """Stand for LiteLLM's callbacks."""


class Request:
    """One admitted request.

    Args:
        harness: A running host.
        endpoint: The kind of API.
    """

    def __init__(self, harness: Harness, endpoint: Endpoint) -> None:
        scope = {"type": "http", "method": "POST", "path": PATHS[endpoint], "root_path": "", "headers": []}
        ctx = RequestContext(
            request_id="1", endpoint=endpoint, model="chat", stream=False, identity=Identity(), received_at=0.0
        )
        self.call = ClientCall("1", scope)
        self.call.open(harness.host.open(ctx), {})

    async def guarded(self, guard: Guard, client: httpx.AsyncClient) -> None:
        """Take the steps of a request with the guard in them."""
        exchange = self.call.exchange
        assert exchange is not None
        guard.authenticated(KEY)
        for _ in range(CALLBACKS):
            await guard.around_callbacks(hook)()
        guard.beginning(self.call, exchange, DEPLOYMENT)
        guard.sending(client)

    async def bare(self) -> None:
        """Take the steps without it."""
        for _ in range(CALLBACKS):
            await hook()


async def timed(step: Callable[[], Awaitable[None]], requests: int) -> float:
    """Return the CPU time of one step in microseconds."""
    before = time.process_time_ns()
    for _ in range(requests):
        await step()
    return (time.process_time_ns() - before) / requests / 1000


async def measure(rounds: int, requests: int) -> Table:
    """Return a table of what the guard adds, by endpoint."""
    table = Table(title=f"The guard: CPU per request, µs ({rounds} pairs of {requests})")
    for column in ("endpoint", "with", "without", "difference of pairs: median", "quartiles", "most"):
        table.add_column(column, justify="left" if column == "endpoint" else "right")
    guard = Guard(lambda _: "deny")
    async with Harness() as harness, httpx.AsyncClient() as client:
        for endpoint in PATHS:
            request = Request(harness, endpoint)
            token = current_call.set(request.call)
            pairs = []
            for _ in range(rounds):
                with_guard = await timed(lambda request=request: request.guarded(guard, client), requests)
                pairs.append((with_guard, await timed(request.bare, requests)))
            current_call.reset(token)
            table.add_row(str(endpoint), *_row(pairs))
    return table


def _row(pairs: list[tuple[float, float]]) -> list[Any]:
    added = [with_guard - bare for with_guard, bare in pairs]
    low, middle, high = statistics.quantiles(added, n=4)
    medians = [statistics.median(column) for column in zip(*pairs, strict=True)]
    return [*(f"{value:.2f}" for value in (*medians, middle)), f"{low:.2f} to {high:.2f}", f"{max(added):.2f}"]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--requests", type=int, default=200, help="of each kind a round")
    given = parser.parse_args()
    Console(width=120).print(asyncio.run(measure(given.rounds, given.requests)))


if __name__ == "__main__":
    main()
