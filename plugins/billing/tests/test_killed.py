"""Workers killed with SIGKILL at random moments, a sink that times out, fails and hangs up: 0 lost, 0 counted twice."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path

import pytest

from pointsman.testing.fakes import DEFAULT_PRICE
from pointsman_billing import bill
from pointsman_billing.aggregates import DIMENSIONS, SUMS, Span
from pointsman_billing.pricing import Quote
from pointsman_billing.reports import Reports

from .killed_worker import a_settlement
from .sink_server import SinkServer, always, hostile

PLUGIN = Path(__file__).parents[1]
ALWAYS = Span(0, 10**11)
WORKERS = 2
KILLED_IN_START_RATIO = 0.2
#: A request has an attempt and itself; every tenth also a hedge.
EVENTS_PER_TEN = 21


class Worker:
    """One worker process, killed and started again."""

    def __init__(self, directory: Path, url: str, first: int, count: int) -> None:
        self._journal = directory / f"journal-{first}"
        self._pid = self._journal.with_suffix(".pid")
        arguments = [str(directory), url, str(first), str(count), str(self._journal)]
        self._command = [sys.executable, "-m", "tests.killed_worker", *arguments]
        self._log = (directory / f"worker-{first}.log").open("ab")
        self._count = count
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(PLUGIN), os.environ.get("PYTHONPATH")]))}
        self._process = subprocess.Popen(  # noqa: S603  # our own command
            self._command, cwd=PLUGIN, env=env, stdout=self._log, stderr=self._log
        )

    def kill(self, how: signal.Signals = signal.SIGKILL) -> None:
        assert self._process is not None
        self._process.send_signal(how)
        self._process.wait(30)

    @property
    def started(self) -> bool:
        """Whether its host has started."""
        assert self._process is not None
        return self._pid.exists() and self._pid.read_text(encoding="ascii") == f"{self._process.pid}"

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def done(self) -> bool:
        return self._journal.exists() and self._journal.read_bytes().count(b"\n") >= self._count

    def close(self) -> None:
        if self.running:
            self.kill()
        self._log.close()


def expected(requests: int) -> tuple[set[str], Decimal]:
    """Return the ids of all events and the exact sum of all attempts in US dollars, computed by themselves."""
    ids, total = set(), Decimal(0)
    for number in range(requests):
        found = a_settlement(number)
        made = bill.of_settlement(found, found.identity.tenant or "", lambda _: Quote(price=DEFAULT_PRICE))
        ids |= {event.id for event in made.events}
        total += made.amount_usd
    return ids, total


def wait_for(workers: Sequence[Worker]) -> None:
    """Wait until they have started."""
    deadline = time.monotonic() + 120
    while not all(one.started for one in workers):
        assert all(one.running for one in workers)
        assert time.monotonic() < deadline
        time.sleep(0.05)


def run(directory: Path, events: int, *, kills_every_s: tuple[float, float], seed: int) -> str:
    """Run it; return a line that says what happened."""
    requests = events * 10 // EVENTS_PER_TEN
    rng = random.Random(seed)
    reports = Reports(directory / ".pointsman-billing", ["ndjson", "cloudevents"], 5.0)
    kills = 0
    began = time.monotonic()
    with SinkServer(hostile(seed, 0.5), late_s=1.5, remember=False) as server:
        share = requests // WORKERS
        workers = [Worker(directory, server.url, n * share, share) for n in range(WORKERS)]
        try:
            for one in workers:
                one.start()
            while not all(one.done for one in workers):
                victim = rng.choice(workers)
                # A worker that never gets past its start settles nothing; only some are killed while they start.
                if rng.random() > KILLED_IN_START_RATIO:
                    wait_for([victim])
                time.sleep(rng.uniform(*kills_every_s))
                victim.kill()
                victim.start()
                kills += 1
                assert time.monotonic() - began < 600, [one.done for one in workers]
            # A few more in the middle of deliveries.
            for _ in range(3):
                wait_for(workers)
                time.sleep(rng.uniform(*kills_every_s))
                for one in workers:
                    one.kill()
                    one.start()
                kills += WORKERS
            settled_s = time.monotonic() - began
            wait_for(workers)
            server.behaviour = hostile(seed + 1, 0.7)
            deadline = time.monotonic() + 300
            while (found := reports.reconcile(ALWAYS))["requests"]["pending"]:
                assert all(one.running for one in workers)
                assert time.monotonic() < deadline, found
                time.sleep(0.5)
            server.behaviour = always("ok")
            for one in workers:
                one.kill(signal.SIGTERM)
        finally:
            for one in workers:
                one.close()
    ids, total = expected(share * WORKERS)
    counts = found["requests"]
    assert (counts["billed"], counts["total"]) == (share * WORKERS, share * WORKERS)
    assert Decimal(counts["amount_usd"]) == total
    usage = reports.usage(ALWAYS)
    first = 1 + len(DIMENSIONS)
    assert sum(row[first] for row in usage) == share * WORKERS
    assert sum(Decimal(row[first + SUMS.index("amount_usd")]) for row in usage) == total
    assert set(server.accepted) == ids, f"{len(ids - set(server.accepted))} lost at the service"
    files = [*sorted(directory.glob("bills-*.ndjson")), directory / "bills.ndjson"]
    in_files = Counter(json.loads(line)["id"] for file in files for line in file.read_bytes().splitlines())
    assert set(in_files) == ids, f"{len(ids - set(in_files))} lost in the file"
    assert set(in_files.values()) == {1}, "lines came twice"
    again = sum(count - 1 for count in server.accepted.values())
    return (
        f"{len(ids)} events, {kills} kills, settled in {settled_s:.0f} s, delivered in {time.monotonic() - began:.0f} s; "
        f"{again} sent again to a service that had not confirmed them; its answers: {dict(server.hows)}"
    )


@pytest.mark.thorough
@pytest.mark.timeout(1200)
def test_nothing_is_lost_or_counted_twice_when_workers_are_killed(tmp_path: Path) -> None:
    if os.environ.get("POINTSMAN_THOROUGH"):
        print(run(tmp_path, 100_800, kills_every_s=(1.0, 6.0), seed=2))  # noqa: T201  # shown with -s
    else:
        print(run(tmp_path, 1_500, kills_every_s=(0.3, 0.8), seed=1))  # noqa: T201  # as above
