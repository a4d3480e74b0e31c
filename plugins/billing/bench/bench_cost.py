# ruff: noqa: INP001 - a script of figures, not a package
"""What a bill costs: on the request path, on the event loop, and how many one worker's outbox sustains.

A real host with the disk store, the outbox on a real disk with ``fsync``, and an NDJSON file as the sink. The event loop
and the outbox's thread are told apart by their processor time, so that other work on the machine hardly matters. Each
request makes two events: its attempt's and its own. Run it with ``python plugins/billing/bench/bench_cost.py``.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from pointsman.host import config
from pointsman.host.host import Environment, Host
from pointsman.testing.gateway import DEFAULT_DEPLOYMENTS, FakeGateway
from pointsman.types import Attempt, AttemptKind, Endpoint, Identity, Outcome, RequestContext, Route, Settlement, Usage
from pointsman_billing.plugin import plugin

#: As many as the host settles at the same time.
CONCURRENT: Final = 32
EVENTS_PER_REQUEST: Final = 2


def a_request(number: int) -> tuple[RequestContext, Settlement]:
    """Return an answered request as the host settles it."""
    request_id, at, usage = uuid.uuid4().hex, time.time(), Usage(prompt_tokens=900, completion_tokens=120)
    identity = Identity(team_id=f"team-{number % 50}", key_hash="f" * 64)
    attempt = Attempt(
        id=uuid.uuid4().hex,
        request_id=request_id,
        number=1,
        kind=AttemptKind.PRIMARY,
        deployment=DEFAULT_DEPLOYMENTS[0],
        started_at=at,
        outcome=Outcome.OK,
        duration_ms=812.0,
        usage=usage,
        cost_usd_micros=450,
        status_code=200,
        model="chat",
    )
    fields: dict[str, Any] = {
        "request_id": request_id,
        "endpoint": Endpoint.CHAT,
        "model": "chat",
        "stream": False,
        "identity": identity,
    }
    settlement = Settlement(
        **fields,
        route=Route(target="chat"),
        outcome=Outcome.OK,
        status_code=200,
        started_at=at,
        finished_at=at + 1,
        attempts=(attempt,),
        usage=usage,
        cost_usd_micros=450,
    )
    return RequestContext(**fields, received_at=at), settlement


def on_the_path(host: Host, requests: list[tuple[RequestContext, Settlement]]) -> list[float]:
    """Return the microseconds that the plugin's hook takes of each answered attempt."""
    taken = []
    for ctx, settlement in requests:
        begun = time.perf_counter_ns()
        host.calls.run_post_response(ctx, settlement.attempts[0], lambda: None)
        taken.append((time.perf_counter_ns() - begun) / 1000)
    return sorted(taken)


async def settle(host: Host, requests: list[tuple[RequestContext, Settlement]]) -> None:
    """Settle all, as many at a time as the host does."""
    waiting = iter(requests)

    async def one_after_another() -> None:
        for ctx, settlement in waiting:
            if not await host.calls.run_settle("billing", ctx, settlement):
                raise SystemExit("a request was not settled")

    await asyncio.gather(*(one_after_another() for _ in range(CONCURRENT)))


def delivered(file: Path) -> int:
    """Return how many events are in the sink's file."""
    return file.read_bytes().count(b"\n") if file.exists() else 0


async def measure(directory: Path, count: int, sinks: list[dict[str, Any]]) -> dict[str, float]:
    """Settle some requests and return what it took."""
    section = {
        "store": {"backend": "disk", "path": str(directory / "store")},
        "plugins": [{"billing": {"sinks": sinks}}],
    }
    host = Host(
        config.parse(section, "bench", directory),
        FakeGateway(DEFAULT_DEPLOYMENTS),
        environment=Environment.real(),
        available={"billing": plugin},
    )
    await host.start()
    try:
        await settle(host, [a_request(number) for number in range(200)])
        requests = [a_request(number) for number in range(count)]
        hook = on_the_path(host, requests)
        before = delivered(directory / "bills.ndjson")
        events = count * EVENTS_PER_REQUEST
        wall, loop, process = time.perf_counter(), time.thread_time(), time.process_time()
        await settle(host, requests)
        settled_s, loop_s = time.perf_counter() - wall, time.thread_time() - loop
        process_s = time.process_time() - process
        while sinks and delivered(directory / "bills.ndjson") < before + events:  # noqa: ASYNC110 - another thread's work
            await asyncio.sleep(0.01)
        delivered_s = time.perf_counter() - wall
    finally:
        await host.stop()
    return {
        "post_response p50": hook[len(hook) // 2],
        "p99": hook[int(len(hook) * 0.99)],
        "loop, per event": loop_s / events * 1e6,
        "thread, per event": (process_s - loop_s) / events * 1e6,
        "events/s settled": events / settled_s,
        "events/s delivered": events / delivered_s if sinks else float("nan"),
    }


def main(count: int, rounds: int) -> None:
    """Measure and print."""
    table = Table(title=f"Billing, microseconds and events per second; {count} requests, medians of {rounds} rounds")
    table.add_column("sinks")
    rows: dict[str, list[dict[str, float]]] = {"none": [], "ndjson": []}
    for _ in range(rounds):
        for name, found in rows.items():
            with tempfile.TemporaryDirectory() as folder:
                sinks = [{"ndjson": {"path": "bills.ndjson"}}] if name == "ndjson" else []
                found.append(asyncio.run(measure(Path(folder), count, sinks)))
    for column in rows["none"][0]:
        table.add_column(column, justify="right")
    for name, found in rows.items():
        middle = {column: sorted(one[column] for one in found)[rounds // 2] for column in found[0]}
        cells = (f"{value:.0f}" if "/s" in column else f"{value:.1f}" for column, value in middle.items())
        table.add_row(name, *(cell.replace("nan", "-") for cell in cells))
    Console(width=140).print(table)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=4000, help="in each round (default 4000)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each kind (default 5)")
    options = parser.parse_args()
    main(options.requests, options.rounds)
