"""Requests as values, workers with an outbox, and sinks that a test can look into."""

from __future__ import annotations

import asyncio
import inspect
import json
import time
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from pointsman.testing import Harness
from pointsman.types import (
    Attempt,
    AttemptKind,
    Deployment,
    Endpoint,
    Identity,
    Outcome,
    Price,
    Route,
    Settlement,
    Usage,
)
from pointsman_billing.plugin import plugin
from pointsman_billing.pricing import from_micros

AT = 1_750_000_000.0
USAGE = Usage(prompt_tokens=100, completion_tokens=20)
PRICE = Price(input_usd=Decimal("0.0000025"), output_usd=Decimal("0.00001"), cache_read_usd=Decimal("0.00000125"))
DEPLOYMENT = Deployment(id="gpt-4o-1", group="gpt-4o", provider="openai", model="gpt-4o-2024-08-06")


def attempt(number: int = 1, **given: Any) -> Attempt:
    """Return an attempt; the gateway's own figure is its ``cost_usd_micros`` unless another one is given."""
    fields: dict[str, Any] = {
        "id": f"attempt-{number}",
        "request_id": "request-1",
        "number": number,
        "kind": AttemptKind.PRIMARY,
        "deployment": DEPLOYMENT,
        "started_at": AT,
        "outcome": Outcome.OK,
        "duration_ms": 1234.5,
        "usage": USAGE,
        "cost_usd_micros": 450,
        "status_code": 200,
        "model": "gpt-4o-2024-08-06",
    }
    fields |= given
    micros = fields["cost_usd_micros"]
    fields.setdefault("gateway_cost_usd", None if micros is None else from_micros(micros))
    return Attempt(**fields)


def settlement(*attempts: Attempt, **given: Any) -> Settlement:
    answer = next((a for a in reversed(attempts) if a.outcome is Outcome.OK), None)
    fields: dict[str, Any] = {
        "request_id": "request-1",
        "endpoint": Endpoint.CHAT,
        "model": "assistant",
        "stream": False,
        "identity": Identity(tenant="acme"),
        "route": Route(target="gpt-4o", labels=attempts[0].labels if attempts else {}),
        "outcome": Outcome.OK if answer else Outcome.ERROR,
        "status_code": 200 if answer else 500,
        "started_at": AT,
        "finished_at": AT + 2,
        "attempts": attempts,
        "usage": answer.usage if answer else None,
        "cost_usd_micros": sum(a.cost_usd_micros or 0 for a in attempts),
    }
    return Settlement(**{**fields, **given})


def worker(path: Path, *sinks: Any, others: Any = (), **section: Any) -> Harness:
    kit = {name: section.pop(name) for name in ("store", "clock", "name", "script", "host") if name in section}
    if "gateway_prices" in section:
        kit["prices"] = section.pop("gateway_prices")
    return Harness([(plugin, {"sinks": list(sinks), **section}), *others], path=path, **kit)


def lines(path: Path) -> list[dict[str, Any]]:
    """Return the events in an NDJSON file, each read strictly."""
    text = path.read_text(encoding="ascii") if path.exists() else ""
    return [json.loads(line) for line in text.splitlines()]


async def until(what: Callable[[], object], *, timeout_s: float = 10.0) -> None:
    """Wait until something is true, in real seconds.

    Raises:
        AssertionError: it has not become true.
    """
    deadline = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < deadline, "this did not become true in time"
        await asyncio.sleep(0.01)


async def eventually(h: Harness, what: Callable[[], Any], *, timeout_s: float = 30.0) -> None:
    """Let time pass on the worker's clock until something is true, at most this long in real seconds.

    Raises:
        AssertionError: it has not become true.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        found = what()
        if (await found) if inspect.isawaitable(found) else found:
            return
        assert time.monotonic() < deadline, "this did not become true in time"
        await h.clock.advance(0.05)
        await asyncio.sleep(0.01)


async def settled_as(h: Harness, **states: int) -> None:
    """Wait until the requests are in these states."""

    async def so() -> bool:
        return await reconciled(h) == states

    await eventually(h, so)


async def get(h: Harness, path: str, **params: Any) -> Any:
    answer = await h.admin.get(f"/billing{path}", params={name.rstrip("_"): value for name, value in params.items()})
    assert answer.status_code == 200, answer.text
    return answer.json()


async def reconciled(h: Harness) -> dict[str, int]:
    """Return the states of all requests that are not empty."""
    found = await get(h, "/reconcile")
    names = ("billed", "unpriced", "free", "pending", "dead")
    return {name: found["requests"][name] for name in names if found["requests"][name]}


def by_type(rows: Sequence[Mapping[str, Any]], type_: str) -> list[Mapping[str, Any]]:
    return [row for row in rows if row["type"] == type_]
