"""A worker process that may be killed at any moment: a real host with the plugin, settling what a journal would bring.

The journal is a range of numbers and a file with those that are done. A number is done when ``settle`` has returned, and is
written down after that: what was settled but not written down when the worker died is settled again by the next one.

Run it with the test's directory, the sink's URL, the first number, how many, and the journal file.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

from pointsman.host.host import Environment, Host
from pointsman.host.settings import parse
from pointsman.testing.fakes import DEFAULT_DEPLOYMENTS
from pointsman.testing.gateway import FakeGateway
from pointsman.types import AttemptKind, Identity, RequestContext, Settlement, Usage
from pointsman_billing.plugin import plugin

from .kit import AT, attempt, settlement

#: As many as the host settles at the same time.
CONCURRENT = 32


def a_settlement(number: int) -> Settlement:
    """Return a settlement that is told by its number alone."""
    usage = Usage(prompt_tokens=100 + number % 50, completion_tokens=number % 20 + 1, cached_tokens=number % 100)
    fields: dict[str, Any] = {"request_id": f"request-{number}", "usage": usage, "deployment": DEFAULT_DEPLOYMENTS[0]}
    attempts = [attempt(1, **fields)]
    if number % 10 == 0:
        attempts.append(attempt(2, **{**fields, "kind": AttemptKind.HEDGE}))
    at = AT + number
    return settlement(
        *attempts,
        request_id=f"request-{number}",
        model="chat",
        identity=Identity(tenant=f"tenant-{number % 7}"),
        started_at=at,
        finished_at=at + 1,
    )


def sinks(url: str) -> list[dict[str, Any]]:
    """Return the sinks: a file that is put aside now and then, and a service that is unpleasant."""
    fast = {"timeout_s": 1.0, "backoff_first_s": 0.02, "backoff_most_s": 0.2, "max_tries": 1_000_000}
    return [
        {"ndjson": {"path": "bills.ndjson", "rotate_mb": 8, **fast}},
        {"cloudevents": {"url": url, "batch_events": 400, **fast}},
    ]


def done_in(journal: Path) -> set[int]:
    """Return the numbers that are written down; the last line may be cut off."""
    return {int(line) for line in journal.read_bytes().split(b"\n")[:-1]} if journal.exists() else set()


async def work(directory: Path, url: str, first: int, count: int, journal: Path) -> None:
    """Settle what is not done, and then deliver until the end."""
    section = {
        "store": {"backend": "disk", "path": str(directory / "store")},
        "plugins": [{"billing": {"sinks": sinks(url)}}],
    }
    host = Host(
        parse(section, "test", directory),
        FakeGateway(DEFAULT_DEPLOYMENTS),
        environment=Environment.real(),
        available={"billing": plugin},
    )
    await host.start()
    journal.with_suffix(".pid").write_text(f"{os.getpid()}", encoding="ascii")
    numbers = iter(sorted(set(range(first, first + count)) - done_in(journal)))
    descriptor = os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    async def settle() -> None:
        for number in numbers:
            found = a_settlement(number)
            ctx = RequestContext(
                request_id=found.request_id,
                endpoint=found.endpoint,
                model=found.model,
                stream=False,
                identity=found.identity,
                received_at=found.started_at,
            )
            while not await host.hooks.run_settle("billing", ctx, found):  # noqa: ASYNC110  # as the journal does
                await asyncio.sleep(0.05)
            os.write(descriptor, f"{number}\n".encode())

    await asyncio.gather(*(settle() for _ in range(CONCURRENT)))
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(work(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), Path(sys.argv[5])))
