# ruff: noqa: INP001 - a script of figures, not a package
"""What a bill costs: on the request path, on the event loop, and how many one worker's outbox sustains.

A real host with the disk store, the outbox on a real disk with ``fsync``, and an NDJSON file as the sink. The event loop
and the outbox's thread are told apart by their processor time, so that other work on the machine hardly matters. Each
request makes two events: its attempt's and its own. Run it with ``python plugins/billing/bench/bench_cost.py``.

With ``--before DIRECTORY``, where another revision of the repository is (``git archive REVISION | tar -x -C DIRECTORY``), the
rounds of both revisions take turns, each in a process of its own, and the table has both.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
import uuid
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from pointsman.host.host import Environment, Host
from pointsman.host.settings import parse
from pointsman.testing.fakes import DEFAULT_DEPLOYMENTS
from pointsman.testing.gateway import FakeGateway
from pointsman.types import (
    Attempt,
    AttemptKind,
    Endpoint,
    Identity,
    Outcome,
    Price,
    RequestContext,
    Route,
    Settlement,
    Usage,
)
from pointsman_billing.plugin import plugin

ANSWER: Final = json.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "model": "gpt-4o",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "word " * 300}, "finish_reason": "stop"}],
        "usage": {
            "prompt_tokens": 900,
            "completion_tokens": 120,
            "total_tokens": 1020,
            "prompt_tokens_details": {"cached_tokens": 512, "audio_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 64, "audio_tokens": 0},
        },
    }
).encode()
#: As many as the host settles at the same time.
CONCURRENT: Final = 32
EVENTS_PER_REQUEST: Final = 2
REPOSITORY: Final = Path(__file__).resolve().parents[3]


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
        host.hooks.run_post_response(ctx, settlement.attempts[0], lambda: None)
        taken.append((time.perf_counter_ns() - begun) / 1000)
    return sorted(taken)


async def settle(host: Host, requests: list[tuple[RequestContext, Settlement]]) -> None:
    """Settle all, as many at a time as the host does."""
    waiting = iter(requests)

    async def one_after_another() -> None:
        for ctx, settlement in waiting:
            if not await host.hooks.run_settle("billing", ctx, settlement):
                raise SystemExit("a request was not settled")

    await asyncio.gather(*(one_after_another() for _ in range(CONCURRENT)))


def made(requests: list[tuple[RequestContext, Settlement]]) -> list[float]:
    """Return the microseconds that reading the usage of an answer and making both events of its bill take."""
    from pointsman.litellm.raw_answers import Listener  # noqa: PLC0415  # LiteLLM takes seconds to import
    from pointsman_billing import bill  # noqa: PLC0415  # beside it
    from pointsman_billing.pricing import Quote  # noqa: PLC0415

    quote = Quote(price=Price(input_usd=Decimal("0.0000025"), output_usd=Decimal("0.00001")))
    taken = []
    for _, settlement in requests:
        begun = time.perf_counter_ns()
        listener = Listener("application/json")
        listener.hear(ANSWER)
        reading = listener.reading()
        if reading is None:
            raise SystemExit("the answer's usage was not read")
        attempt = replace(settlement.attempts[0], usage=reading.usage)
        bill.of_settlement(replace(settlement, attempts=(attempt,)), "acme", lambda _: quote)
        taken.append((time.perf_counter_ns() - begun) / 1000)
    return sorted(taken)


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
        parse(section, "bench", directory),
        FakeGateway(DEFAULT_DEPLOYMENTS),
        environment=Environment.real(),
        available={"billing": plugin},
    )
    await host.start()
    try:
        await settle(host, [a_request(number) for number in range(200)])
        requests = [a_request(number) for number in range(count)]
        whole = made(requests)
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
        "usage and bill p50": whole[len(whole) // 2],
        "loop, per event": loop_s / events * 1e6,
        "thread, per event": (process_s - loop_s) / events * 1e6,
        "events/s settled": events / settled_s,
        "events/s delivered": events / delivered_s if sinks else float("nan"),
    }


def one_round(count: int) -> dict[str, dict[str, float]]:
    """Measure once, without a sink and with one."""
    found = {}
    for name, sinks in (("none", []), ("ndjson", [{"ndjson": {"path": "bills.ndjson"}}])):
        with tempfile.TemporaryDirectory() as folder:
            found[name] = asyncio.run(measure(Path(folder), count, sinks))
    return found


def elsewhere(directory: Path, count: int) -> dict[str, dict[str, float]]:
    """Measure once, in another process, with the sources in a directory."""
    sources = [directory / "hookspecs" / "src", *sorted((directory / "plugins").glob("*/src"))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, sources))}
    command = [sys.executable, __file__, "--requests", str(count), "--json"]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)  # noqa: S603  # this script
    found: dict[str, dict[str, float]] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(count: int, rounds: int, before: Path | None) -> None:
    """Measure and print."""
    table = Table(title=f"Billing, microseconds and events per second; {count} requests, medians of {rounds} rounds")
    table.add_column("sinks")
    rows: dict[str, list[dict[str, float]]] = {}
    for _ in range(rounds):
        for place, directory in (("before", before), ("", None if before is None else REPOSITORY)):
            if directory is not None or not place:
                found = one_round(count) if directory is None else elsewhere(directory, count)
                for name, figures in found.items():
                    rows.setdefault(f"{name} {place}".strip(), []).append(figures)
    for column in next(iter(rows.values()))[0]:
        table.add_column(column, justify="right")
    for name, taken in sorted(rows.items()):
        middle = {column: sorted(one[column] for one in taken)[rounds // 2] for column in taken[0]}
        cells = (f"{value:.0f}" if "/s" in column else f"{value:.1f}" for column, value in middle.items())
        table.add_row(name, *(cell.replace("nan", "-") for cell in cells))
    Console(width=160).print(table)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=4000, help="in each round (default 4000)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each kind (default 5)")
    parser.add_argument("--before", type=Path, help="another revision of the repository, to compare with")
    parser.add_argument("--json", action="store_true", help="print the figures of one round as JSON")
    options = parser.parse_args()
    if options.json:
        sys.stdout.write(json.dumps(one_round(options.requests)) + "\n")
    else:
        main(options.requests, options.rounds, options.before)
