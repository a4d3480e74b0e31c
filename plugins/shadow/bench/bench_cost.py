# ruff: noqa: INP001 - a script of figures, not a package
"""What a request pays in each of the shadow's hooks, and what a pair costs beside the request path.

Run it with ``python plugins/shadow/bench/bench_cost.py``.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Coroutine
from dataclasses import replace

from rich.console import Console
from rich.table import Table

from pointsman.testing import Harness, deployment
from pointsman.types import Answer, Attempt, AttemptKind, Endpoint, Identity, Outcome, RequestContext
from pointsman_shadow import evidence
from pointsman_shadow.comparison import Side, compare
from pointsman_shadow.config import MirrorConfig
from pointsman_shadow.evidence import Batch
from pointsman_shadow.plugin import plugin

NUMBER = 20_000
OLD, NEW = deployment("old-1", "chat"), deployment("new-1", "new")
BODY = {"messages": [{"role": "user", "content": "word " * 200}] * 6}


def mirror(**fields: object) -> dict[str, object]:
    """Return a mirror of the model ``chat``."""
    return {"name": "next", "model": "chat", "challenger": "new", "queue_size": 100_000, **fields}


def context(model: str = "chat") -> RequestContext:
    """Return a request."""
    return RequestContext(
        request_id=uuid.uuid4().hex,
        endpoint=Endpoint.CHAT,
        model=model,
        stream=False,
        identity=Identity(team_id="a"),
        received_at=0.0,
        body=BODY,
    )


def attempt(ctx: RequestContext) -> Attempt:
    """Return its first attempt."""
    return Attempt(
        id="a", request_id=ctx.request_id, number=1, kind=AttemptKind.PRIMARY, deployment=OLD, started_at=0.0
    )


def row(name: str, taken: list[int]) -> tuple[str, str, str]:
    """Return median and 99th percentile in microseconds."""
    taken.sort()
    return name, f"{taken[len(taken) // 2] / 1000:.1f}", f"{taken[len(taken) * 99 // 100] / 1000:.1f}"


async def hooks(name: str, model: str, section: list[dict[str, object]]) -> list[tuple[str, str, str]]:
    """Measure the hooks of one configuration."""
    async with Harness([(plugin, {"mirrors": section})], deployments=(OLD, NEW)) as harness:
        shadow = harness.plugin("shadow")
        before: list[int] = []
        after: list[int] = []
        for number in range(NUMBER):
            ctx = context(model)
            opened = attempt(ctx)
            closed = replace(opened, outcome=Outcome.OK, duration_ms=100.0)
            begun = time.perf_counter_ns()
            await shadow.before_attempt(ctx, opened)
            middle = time.perf_counter_ns()
            shadow.post_response(ctx, closed, lambda: ANSWER)
            after.append(time.perf_counter_ns() - middle)
            before.append(middle - begun)
            if number % 1000 == 0:
                # The dispatcher never gets its turn here: only the request path is measured.
                for mirror in shadow._dispatcher.mirrors.values():  # noqa: SLF001  # a look inside, to keep the queue short
                    mirror.queue.clear()
                    mirror.alive = 0
                shadow._dispatcher._pending.clear()  # noqa: SLF001  # as above
        return [row(f"before_attempt, {name}", before), row(f"post_response, {name}", after)]


ANSWER = Answer(text="word " * 400, finish_reason="stop")
SIDE = Side(outcome=Outcome.OK, latency_ms=120.0, completion_tokens=400, cost_usd_micros=10, answer=ANSWER)


def beside() -> list[tuple[str, str, str]]:
    """Measure what happens beside the request path."""
    other = replace(SIDE, answer=Answer(text="word " * 300 + "other " * 100, finish_reason="stop"))
    wanted = MirrorConfig(name="next", model="chat", challenger="new")
    state = evidence.begun(wanted.definition(), 0.0, "", "")

    def compared() -> object:
        return compare(SIDE, other)

    batch = Batch()
    batch.values = [compare(SIDE, other).values]

    def grown() -> object:
        return evidence.grown(state, batch, wanted, 0.0)

    return [
        measured("comparing two answers of 2000 characters", compared),
        measured("adding a pair to the figures", grown),
    ]


def measured(name: str, work: Callable[[], object]) -> tuple[str, str, str]:
    """Measure a function."""
    taken = []
    for _ in range(2000):
        begun = time.perf_counter_ns()
        work()
        taken.append(time.perf_counter_ns() - begun)
    return row(name, taken)


def run(work: Coroutine[object, object, list[tuple[str, str, str]]]) -> list[tuple[str, str, str]]:
    """Run a coroutine in a loop of its own."""
    return asyncio.run(work)


def main() -> None:
    """Measure and print."""
    table = Table(title="Microseconds", title_justify="left")
    for heading in ("what", "p50", "p99"):
        table.add_column(heading, justify="left" if heading == "what" else "right")
    rows = [
        *run(hooks("another model", "other", [mirror()])),
        *run(hooks("not sampled", "chat", [mirror(sample_rate=0.0)])),
        *run(hooks("not sampled, filtered by label", "chat", [mirror(filter={"labels": {"arm": "stable"}})])),
        *run(hooks("sampled", "chat", [mirror(sample_rate=1.0)])),
        *beside(),
    ]
    for each in rows:
        table.add_row(*each)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
