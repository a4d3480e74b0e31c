# ruff: noqa: INP001 - a script of figures, not a package
"""What an event costs before it is in the outbox, compared with another revision of the repository in one paired run.

Two processes, one with the sources of each revision, do the same blocks of work in turns; each counts the processor time of
its own thread alone, so that other work on the machine hardly matters. Printed are the median of each revision and the
median of the differences of all pairs. ``python plugins/billing/bench/bench_event.py DIRECTORY``, where the other revision
is (``git archive REVISION | tar -x -C DIRECTORY``).

On the request path, while the client waits: ``read`` (the provider's usage, from the bytes of its answer), ``price`` (what
that costs, for the plugins that keep budgets) and ``hook`` (billing's ``post_response``). Beside it, on the same event loop:
``bill`` (prices, comparison, and the two events of the request).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

REPOSITORY: Final = Path(__file__).resolve().parents[3]
PATH: Final = ("read", "price", "hook")
STEPS: Final = (*PATH, "bill")


def steps() -> dict[str, Callable[[], object]]:
    """Return the steps, each for one answer of a chat."""
    from bench_cost import ANSWER, a_request  # noqa: PLC0415  # with the sources of this process

    from pointsman.litellm.prices import CostMap  # noqa: PLC0415  # as above
    from pointsman.litellm.raw_answers import Listener  # noqa: PLC0415  # as above
    from pointsman.types import Deployment  # noqa: PLC0415  # as above
    from pointsman_billing import bill  # noqa: PLC0415  # as above
    from pointsman_billing.plugin import Billing  # noqa: PLC0415  # as above
    from pointsman_billing.pricing import Tariff  # noqa: PLC0415  # as above

    def read() -> Any:
        listener = Listener("application/json")
        listener.hear(ANSWER)
        return listener.reading()

    cost_map = CostMap()
    ctx, settlement = a_request(1)
    to = Deployment(id="d", group="chat", provider="openai", model="gpt-4o")
    usage = read().usage
    attempt = replace(settlement.attempts[0], deployment=to, usage=usage, gateway_cost_usd=Decimal("0.00281"))
    settlement = replace(settlement, attempts=(attempt,))
    tariff = Tariff(cost_map)
    billing = object.__new__(Billing)
    return {
        "read": read,
        "price": lambda: cost_map.cost_usd_micros(to, usage),
        "hook": lambda: billing.post_response(ctx, attempt),
        "bill": lambda: bill.of_settlement(settlement, "acme", lambda one: tariff.quote("acme", "chat", one)),
    }


def serve(count: int) -> None:
    """Do a block of each step for every line of the standard input, and print what one event took of this thread."""
    work = steps()
    for _ in sys.stdin:
        taken = {}
        for name, step in work.items():
            begun = time.thread_time_ns()
            for _ in range(count):
                step()
            taken[name] = (time.thread_time_ns() - begun) / 1000 / count
        sys.stdout.write(json.dumps(taken) + "\n")
        sys.stdout.flush()


class Revision:
    """A process with the sources of one revision."""

    def __init__(self, directory: Path, count: int) -> None:
        sources = [directory / "hookspecs" / "src", *sorted((directory / "plugins").glob("*/src"))]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(str, sources)),
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        }
        command = [sys.executable, __file__, "--serve", "--events", str(count)]
        self._process = subprocess.Popen(  # noqa: S603  # this script
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def block(self) -> dict[str, float]:
        """Do one block."""
        assert self._process.stdin is not None  # noqa: S101  # for the type checker
        assert self._process.stdout is not None  # noqa: S101  # as above
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        found: dict[str, float] = json.loads(self._process.stdout.readline())
        return {**found, "request path": sum(found[name] for name in PATH)}

    def end(self) -> None:
        """End the process."""
        self._process.communicate()


def main(before: Path, pairs: int, count: int) -> None:
    """Measure and print."""
    revisions = (Revision(before, count), Revision(REPOSITORY, count))
    taken: tuple[list[dict[str, float]], ...] = ([], [])
    try:
        for number in range(pairs + 1):
            for which in random.sample((0, 1), 2):  # either may profit from a warm cache
                found = revisions[which].block()
                if number:  # the first pair fills caches
                    taken[which].append(found)
    finally:
        for revision in revisions:
            revision.end()
    print(f"microseconds of processor time an event; {pairs} pairs of blocks of {count}")  # noqa: T201  # a script
    print(f"{'':14}{'before':>10}{'now':>10}{'difference':>12}")  # noqa: T201  # as above
    for name in (*STEPS, "request path"):
        old, new = ([one[name] for one in some] for some in taken)
        apart = statistics.median(b - a for a, b in zip(old, new, strict=True))
        print(f"{name:14}{statistics.median(old):10.2f}{statistics.median(new):10.2f}{apart:12.2f}")  # noqa: T201  # as above


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("before", nargs="?", type=Path, help="where the other revision is")
    parser.add_argument("--pairs", type=int, default=200, help="blocks of each revision (default 200)")
    parser.add_argument("--events", type=int, default=200, help="events in a block (default 200)")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.events)
    elif options.before is None:
        parser.error("where the other revision is, is missing")
    else:
        main(options.before, options.pairs, options.events)
