"""The outbox: every bill once, cursors that claim nothing early, room that is bounded, damage that is said."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from pointsman.types import Price, Usage
from pointsman_billing import aggregates, bill
from pointsman_billing.aggregates import DIMENSIONS, SUMS, Span
from pointsman_billing.database import Database, sink_lock
from pointsman_billing.errors import OutboxFull, OutboxUnavailable
from pointsman_billing.outbox import Outbox
from pointsman_billing.pricing import Quote
from pointsman_billing.reports import Reports, pieces
from pointsman_billing.schema import problem_of

from .kit import attempt, settlement
from .outbox_writer import MB, a_bill

PLUGIN = Path(__file__).parents[1]
ALWAYS = Span(0, 10**11)


def opened(path: Path, *sinks: str, max_bytes: int = 100 * MB) -> Database:
    database = Database(path, sinks=sinks, fsync=False, timeout_s=5.0, max_bytes=max_bytes)
    for sink in sinks:
        database.join(sink, from_now=False)
    return database


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    made = opened(tmp_path / "outbox", "a", "b")
    yield made
    made.close()


def total(reports: Reports, name: str, span: Span = ALWAYS) -> Any:
    """Return the sum of a column of the usage report."""
    column = 1 + len(DIMENSIONS) + SUMS.index(name)
    return sum(Decimal(row[column]) for row in reports.usage(span))


def confirm(database: Database, sink: str, most: int = 100) -> list[str]:
    batch = database.next_batch(sink, most)
    database.confirm(sink, batch, len(batch.events), "worker", 1)
    return [event.id for _, event in batch.events]


def test_a_bill_is_written_once_however_often_it_comes(database: Database, tmp_path: Path) -> None:
    one, two = a_bill(1), a_bill(2)
    assert database.append([one, two, one]) == [True, True, True]
    database.announced(["request-1"])
    assert database.append([two, one]) == [True, False]
    assert len(database.next_batch("a", 100).events) == 4
    (row,) = Reports(tmp_path / "outbox", ["a"], 1.0).usage(ALWAYS)[:1]
    totals = Reports(tmp_path / "outbox", ["a"], 1.0).reconcile(ALWAYS)["requests"]
    assert (row[0] % 900, totals["total"], totals["cost_usd_micros"]) == (0, 2, 500)


def test_each_sink_has_a_cursor_of_its_own(database: Database) -> None:
    database.append([a_bill(1)])
    first = confirm(database, "a")
    assert confirm(database, "a") == []
    database.append([a_bill(2)])
    second = confirm(database, "a")
    assert confirm(database, "b") == first + second
    assert len({*first, *second}) == 4


def test_only_what_every_sink_has_is_removed_and_the_sums_stay(database: Database, tmp_path: Path) -> None:
    database.append([a_bill(1), a_bill(2, at=1_750_500_000.0)])
    confirm(database, "a")
    assert not database.prune(before_ms=1 << 50, usage_before_s=0)
    assert len(database.next_batch("b", 100).events) == 4
    confirm(database, "b")
    database.prune(before_ms=1_750_100_000_000, usage_before_s=0)
    reports = Reports(tmp_path / "outbox", ["a", "b"], 1.0)
    assert reports.request("request-1") is None
    assert reports.request("request-2") is not None
    assert total(reports, "attempts") == 2
    database.prune(before_ms=0, usage_before_s=1_750_200_000)
    assert total(reports, "attempts") == 1


def test_a_dead_letter_is_never_removed(database: Database) -> None:
    database.append([a_bill(1)])
    database.bury("a", database.next_batch("a", 100), 3, "no", 1)
    confirm(database, "b")
    database.prune(before_ms=1 << 50, usage_before_s=0)
    assert database.redrive(None, []) == 2
    assert len(database.next_batch("a", 100).events) == 2
    database.prune(before_ms=1 << 50, usage_before_s=0)
    assert len(confirm(database, "a")) == 2
    database.prune(before_ms=1 << 50, usage_before_s=0)
    assert database.next_batch("a", 100).events == ()


def test_a_dead_letter_of_a_removed_sink_goes_after_its_time(database: Database, tmp_path: Path) -> None:
    """Nobody delivers it any more; until then it is shown as such, and waits for the sink to come back."""
    database.append([a_bill(1), a_bill(2, at=1_750_500_000.0)])
    database.bury("a", database.next_batch("a", 100), 3, "no", 1)
    confirm(database, "b")
    without = opened(tmp_path / "outbox", "b")
    assert without.redrive(None, []) == without.redrive("a", []) == 0
    without.prune(before_ms=1_750_100_000_000, usage_before_s=0)
    found = Reports(tmp_path / "outbox", ["b"], 1.0).dead(None, 100)
    assert [(row["sink"], row["sink_removed"], row["again"]) for row in found["dead"]] == [("a", True, False)] * 2
    assert {row["event"]["request_id"] for row in found["dead"]} == {"request-2"}
    assert found["total"] == 2
    with_it = Reports(tmp_path / "outbox", ["a", "b"], 1.0).dead("a", 100)
    assert [row["sink_removed"] for row in with_it["dead"]] == [False] * 2
    assert database.redrive("b", []) == 0
    assert database.redrive("a", []) == 2
    without.prune(before_ms=1 << 50, usage_before_s=0)
    assert database.next_batch("a", 100).events == ()
    without.close()


@pytest.mark.parametrize("sinks", [(), ("b",)])
def test_another_gateway_removes_nothing_that_a_sink_of_this_one_is_still_to_get(
    tmp_path: Path, sinks: tuple[str, ...]
) -> None:
    """Two gateways have the same outbox by mistake, and different sinks: one of them is behind, and the other one prunes."""
    here, there = opened(tmp_path / "outbox", "a"), opened(tmp_path / "outbox", *sinks)
    with sink_lock(tmp_path / "outbox", "a"):
        here.append([a_bill(1), a_bill(2), a_bill(3)])
        here.bury("a", here.next_batch("a", 2), 3, "no", 1)
        for sink in sinks:
            assert len(confirm(there, sink)) == 6
        there.prune(before_ms=1 << 50, usage_before_s=0)
        assert len(confirm(here, "a")) == 4
        there.prune(before_ms=1 << 50, usage_before_s=0)
        assert here.redrive("a", []) == 2
        assert len(confirm(here, "a")) == 2
    # Once nothing delivers to it, the sink may as well have been taken out of the configuration.
    here.append([a_bill(4)])
    for sink in sinks:
        confirm(there, sink)
    there.prune(before_ms=1 << 50, usage_before_s=0)
    assert confirm(here, "a") == []
    here.close()
    there.close()


def test_a_full_outbox_removes_what_is_delivered_and_then_refuses(tmp_path: Path) -> None:
    """Nothing that is still to be delivered makes room for something new."""
    database = opened(tmp_path / "outbox", "a", max_bytes=MB)
    kept = 0
    while database.used_bytes() < MB:
        database.append([a_bill(kept)])
        kept += 1
    assert kept > 100
    with pytest.raises(OutboxFull, match="max_size_mb"):
        database.append([a_bill(5000)])
    delivered = 0
    while found := confirm(database, "a"):
        delivered += len(found)
    assert delivered == 2 * kept
    for number in range(2000, 2100):
        database.append([a_bill(number)])
    database.close()


def test_a_file_that_is_no_outbox_is_refused(tmp_path: Path) -> None:
    (tmp_path / "outbox").mkdir()
    (tmp_path / "outbox" / "outbox.sqlite3").write_bytes(b"this is no database" * 1000)
    with pytest.raises(OutboxUnavailable, match=r"is damaged \(file is not a database\); restore it from a backup"):
        opened(tmp_path / "outbox")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutboxUnavailable, match=r"outbox\.path"):
        opened(tmp_path / "file")


def test_an_outbox_of_another_version_is_left_alone(tmp_path: Path) -> None:
    opened(tmp_path / "outbox").close()
    with contextlib.closing(sqlite3.connect(tmp_path / "outbox" / "outbox.sqlite3")) as connection, connection:
        connection.execute("UPDATE meta SET value = '99' WHERE name = 'version'")
    with pytest.raises(OutboxUnavailable, match="version 99"):
        opened(tmp_path / "outbox")


def test_nobody_else_can_read_it(database: Database) -> None:
    assert database.path.parent.stat().st_mode & 0o077 == 0


def worker(*arguments: object) -> subprocess.Popen[str]:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(PLUGIN), os.environ.get("PYTHONPATH")]))}
    command = [sys.executable, "-m", "tests.outbox_writer", *map(str, arguments)]
    return subprocess.Popen(  # noqa: S603  # our own command
        command, cwd=PLUGIN, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def test_workers_that_start_together_all_open_it(tmp_path: Path) -> None:
    """SQLite itself refuses to wait when two connections make a new file a WAL one."""
    count = 40
    jobs = [worker("open", tmp_path, count) for _ in range(4)]
    answers = []
    for _ in range(count):
        for job in jobs:
            assert job.stdin is not None
            # Whoever has failed reads nothing any more.
            with suppress(BrokenPipeError):
                job.stdin.write("go\n")
                job.stdin.flush()
        answers += [job.stdout.readline() for job in jobs if job.stdout is not None]
    for job in jobs:
        with suppress(BrokenPipeError):
            job.communicate(timeout=60)
    assert answers == ["opened\n"] * 4 * count
    assert [job.returncode for job in jobs] == [0] * 4


def test_processes_that_write_the_same_bills_at_once_write_each_once(tmp_path: Path) -> None:
    jobs = [worker("append", tmp_path / "outbox", first, 300) for first in (0, 150, 0)]
    for job in jobs:
        job.communicate(timeout=60)
    assert [job.returncode for job in jobs] == [0] * 3
    database = opened(tmp_path / "outbox", "a")
    ids = confirm(database, "a", 10_000)
    assert len(ids) == len(set(ids)) == 2 * 450
    database.close()


async def test_many_writes_share_a_commit(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "outbox", fsync=False, timeout_s=5.0, max_bytes=100 * MB)
    await outbox.open()
    await asyncio.gather(*(outbox.append([a_bill(n)]) for n in range(200)))
    assert outbox.commits < 50
    await outbox.close()
    with pytest.raises(OutboxUnavailable, match="closed"):
        await outbox.write(_all)


async def test_one_that_does_not_fit_does_not_harm_the_others_of_its_commit(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "outbox", fsync=False, timeout_s=5.0, max_bytes=100 * MB)
    await outbox.open()

    def refuse(_: Database) -> None:
        raise OutboxFull("no room")

    found = await asyncio.gather(
        outbox.write(lambda db: db.append([a_bill(1)])), outbox.write(refuse), return_exceptions=True
    )
    assert found[0] == [True]
    assert isinstance(found[1], OutboxFull)
    await outbox.close()


@pytest.mark.parametrize("error", [OverflowError, sqlite3.IntegrityError])
async def test_work_that_fails_by_itself_is_undone_alone(tmp_path: Path, error: type[Exception]) -> None:
    """The others of its commit are written, before it and behind it, and nothing of its own is."""
    outbox = Outbox(tmp_path / "outbox", fsync=False, timeout_s=5.0, max_bytes=100 * MB)
    await outbox.open()

    def fail(database: Database) -> None:
        database.append([a_bill(2)])
        raise error("too much")

    found = await asyncio.gather(
        outbox.write(lambda db: db.append([a_bill(1)])),
        outbox.write(fail),
        outbox.write(lambda db: db.append([a_bill(3)])),
        return_exceptions=True,
    )
    assert (found[0], found[2]) == ([True], [True])
    assert isinstance(found[1], OutboxUnavailable)
    assert "too much" in str(found[1])
    reports = Reports(tmp_path / "outbox", [], 1.0)
    assert [reports.request(f"request-{number}") is not None for number in (1, 2, 3)] == [True, False, True]
    await outbox.close()


async def test_a_bill_that_cannot_be_written_is_left_out_alone(tmp_path: Path) -> None:
    """Those of a commit are written together; the others of it are written all the same, each once."""
    outbox = Outbox(tmp_path / "outbox", fsync=False, timeout_s=5.0, max_bytes=100 * MB)
    await outbox.open()
    held = threading.Event()
    outbox.write_soon(lambda _: held.wait())
    too_large = replace(a_bill(1000), at_ms=1 << 70)
    asked = [outbox.append(bills) for bills in ([a_bill(1)], [a_bill(2), too_large], [a_bill(3), a_bill(1)])]
    waiting = asyncio.gather(*asked, return_exceptions=True)
    await asyncio.sleep(0)
    held.set()
    found = await waiting
    assert (found[0], found[2]) == ([True], [True, True])
    assert isinstance(found[1], OutboxUnavailable)
    reports = Reports(tmp_path / "outbox", [], 1.0)
    assert [reports.request(f"request-{number}") is not None for number in (1, 2, 3, 1000)] == [
        True,
        False,
        True,
        False,
    ]
    assert total(reports, "requests") == 2
    assert [seq for seq, _ in (await outbox.read(_all)).events] == [1, 2, 3, 4]
    await outbox.close()


async def test_a_disk_that_fails_is_said_to_every_caller_and_survived(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "outbox", fsync=False, timeout_s=5.0, max_bytes=100 * MB)
    await outbox.open()

    def fail(_: Database) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    found = await asyncio.gather(
        outbox.write(lambda db: db.append([a_bill(1)])), outbox.write(fail), return_exceptions=True
    )
    assert all(isinstance(one, OutboxUnavailable) for one in found)
    assert await outbox.write(lambda db: db.append([a_bill(1)])) == [True]
    assert len((await outbox.read(_all)).events) == 2
    await outbox.close()


def _all(database: Database) -> Any:
    database.join("x", from_now=False)
    return database.next_batch("x", 100)


class OutboxMachine(RuleBasedStateMachine):
    """Writing, delivering, failing, giving up, trying again and clearing away in any order, against lists."""

    def __init__(self) -> None:
        super().__init__()
        import tempfile  # noqa: PLC0415 - one directory for each run

        self._directory = tempfile.TemporaryDirectory()
        self.database = opened(Path(self._directory.name) / "outbox", "a", "b")
        self.written: list[str] = []
        self.got: dict[str, list[str]] = {"a": [], "b": []}
        self.dead: dict[str, set[str]] = {"a": set(), "b": set()}
        self.numbers: set[int] = set()

    @initialize()
    def start(self) -> None:
        self.reports = Reports(Path(self._directory.name) / "outbox", ["a", "b"], 1.0)

    @rule(number=st.integers(0, 40))
    def write(self, number: int) -> None:
        one = a_bill(number)
        self.database.append([one])
        if number not in self.numbers:
            self.numbers.add(number)
            self.written += [event.id for event in one.events]

    @rule(sink=st.sampled_from(["a", "b"]), most=st.integers(1, 5))
    def deliver(self, sink: str, most: int) -> None:
        batch = self.database.next_batch(sink, most)
        ids = [event.id for _, event in batch.events]
        self.database.confirm(sink, batch, len(ids), "w", 1)
        self.got[sink] += ids
        self.dead[sink] -= set(ids)

    @rule(sink=st.sampled_from(["a", "b"]), most=st.integers(1, 5))
    def give_up(self, sink: str, most: int) -> None:
        batch = self.database.next_batch(sink, most)
        self.database.bury(sink, batch, 1, "no", 1)
        self.dead[sink] |= {event.id for _, event in batch.events}

    @rule(sink=st.sampled_from(["a", "b", None]))
    def try_again(self, sink: str | None) -> None:
        self.database.redrive(sink, [])

    @rule(day=st.integers(0, 3))
    def clear_away(self, day: int) -> None:
        self.database.prune(before_ms=(1_749_900_000 + day * 86_400) * 1000, usage_before_s=0)

    @rule()
    def die(self) -> None:
        self.database.close()
        self.database = opened(Path(self._directory.name) / "outbox", "a", "b")

    @invariant()
    def nothing_is_lost_or_counted_twice(self) -> None:
        """Every event is at each sink exactly once, or is still to come, or is a dead letter."""
        for sink in ("a", "b"):
            assert len(self.got[sink]) == len(set(self.got[sink]))
            behind = self.database.next_batch(sink, 1000)
            ahead = [e.id for _, e in behind.events if not behind.again]
            if behind.again:
                continue
            assert set(self.got[sink]) | set(ahead) | self.dead[sink] == set(self.written)
            assert not set(ahead) & (set(self.got[sink]) | self.dead[sink])

    @invariant()
    def every_request_is_in_one_state(self) -> None:
        counts = self.reports.reconcile(ALWAYS)["requests"]
        kept = sum(self.reports.request(f"request-{number}") is not None for number in self.numbers)
        assert counts["total"] == kept
        sums = [total(self.reports, name) for name in ("requests", "attempts")]
        assert sums == [len(self.numbers), len(self.numbers)]

    def teardown(self) -> None:
        self.database.close()
        self._directory.cleanup()


TestOutboxMachine = OutboxMachine.TestCase
TestOutboxMachine.settings = settings(stateful_step_count=30)


def test_a_bill_that_owes_nothing_is_on_record_without_events(database: Database, tmp_path: Path) -> None:
    nothing = replace(a_bill(1), state=bill.FREE, lines=(), events=())
    assert database.append([nothing]) == [True]
    found = Reports(tmp_path / "outbox", ["a"], 1.0).request("request-1")
    assert found is not None
    assert (found["state"], found["events"]) == ("free", [])


seconds = st.integers(0, 4 * 900)


@given(cuts=st.lists(seconds, min_size=2, max_size=6, unique=True), kept=st.sampled_from([0, 900, 1800, 10_000]))
def test_adjoining_spans_have_each_second_once(cuts: list[int], kept: int) -> None:
    """Also where some quarters of an hour cannot be divided any more: they belong to the span in which they begin."""
    edges = [0, *sorted(cuts), 10 * 900]
    seen: list[int] = []
    for span in map(Span, edges, edges[1:]):
        for table, part in pieces(span, kept):
            if table == "seconds":
                assert part.from_s >= kept or part.from_s == part.to_s
                seen += range(part.from_s, part.to_s)
            else:
                starts = range(-(-part.from_s // 900) * 900, part.to_s, 900)
                seen += [second for start in starts for second in range(start, start + 900)]
    assert sorted(seen) == list(range(10 * 900))


def test_a_second_within_a_quarter_of_an_hour_divides_it(database: Database, tmp_path: Path) -> None:
    """A bill belongs to the second in which it ends, until sums by second expire."""
    database.append([a_bill(1, at=1_750_000_100.0), a_bill(2, at=1_750_000_400.0)])
    reports = Reports(tmp_path / "outbox", ["a"], 1.0)
    before, after = Span(1_749_999_000, 1_750_000_200), Span(1_750_000_200, 1_750_001_000)
    assert (total(reports, "requests", before), total(reports, "requests", after)) == (1, 1)
    database.append([a_bill(3, at=1_750_500_000.0)])
    for sink in ("a", "b"):
        confirm(database, sink)
    database.prune(before_ms=1_750_300_000_000, usage_before_s=0)
    assert (total(reports, "requests", before), total(reports, "requests", after)) == (2, 0)


def test_amounts_are_added_exactly(database: Database, tmp_path: Path) -> None:
    """A hundred amounts below a micro-dollar, of which each alone would be rounded to nothing."""
    price = Quote(price=Price(input_usd=Decimal("0.00000002")))
    bills = [
        bill.of_settlement(
            settlement(attempt(usage=Usage(prompt_tokens=20)), request_id=f"request-{number}"), "acme", lambda _: price
        )
        for number in range(100)
    ]
    for start in range(0, 100, 7):
        database.append(bills[start : start + 7])
    reports = Reports(tmp_path / "outbox", ["a"], 1.0)
    assert total(reports, "amount_usd") == Decimal("0.00004")
    assert reports.reconcile(ALWAYS)["requests"]["amount_usd_micros"] == 40


@pytest.mark.parametrize("bills", [1, 2, 70])
def test_writing_bills_takes_few_statements_however_many_they_are(database: Database, bills: int) -> None:
    """Each gives the interpreter lock away, and so would a function of ours that a statement calls."""
    database.append([a_bill(number) for number in range(100)])
    statements: list[str] = []
    database._connection.set_trace_callback(lambda statement: statements.append(statement.split("(")[0]))
    database.append([a_bill(100 + number) for number in range(bills)])
    database._connection.set_trace_callback(None)
    assert len(statements) <= (6 if bills < 32 else 12), statements


@pytest.mark.parametrize("apart_s", [0.0, 0.3, 7.3, 400.0])
def test_sums_by_quarter_are_those_by_second_added_up(apart_s: float) -> None:
    bills = [a_bill(number, at=1_750_000_000.0 + number * apart_s) for number in range(100)]
    by_second = aggregates.of_bills(bills, 1)
    assert aggregates.coarser(by_second, aggregates.QUARTER_S) == aggregates.of_bills(bills, aggregates.QUARTER_S)
    assert by_second == aggregates.of_bills(bills, 1)


def test_many_sums_at_once_are_added(tmp_path: Path) -> None:
    """More keys than one statement takes, some of them known."""
    database = opened(tmp_path / "outbox", "a")
    for start in (0, 50):
        database.append([a_bill(start + number, at=1_750_000_000.0 + number) for number in range(150)])
    reports = Reports(tmp_path / "outbox", ["a"], 1.0)
    assert total(reports, "requests") == 200
    assert total(reports, "requests", Span(1_750_000_100, 1_750_000_110)) == 20
    database.close()


def test_many_workers_that_fill_an_outbox_together_keep_its_limit(tmp_path: Path) -> None:
    """Each of them measures again after at most a megabyte, however much room there was."""
    workers = [opened(tmp_path / "outbox", "a", max_bytes=32 * MB) for _ in range(32)]
    for number in range(20 * len(workers)):
        bill = a_bill(number)
        events = [replace(event, body="x" * 50_000) for event in bill.events]
        with suppress(OutboxFull):
            workers[number % len(workers)].append([replace(bill, events=events)])
    used = workers[0].used_bytes()
    for worker in workers:
        worker.close()
    assert used <= 48 * MB


def test_room_that_a_transaction_made_is_not_there_when_it_is_undone(tmp_path: Path) -> None:
    database = opened(tmp_path / "outbox", "a", max_bytes=MB)
    number = 0
    with suppress(OutboxFull):
        while number < 10_000:
            number += 1
            database.append([a_bill(number)])
    database.confirm("a", database.next_batch("a", 10_000), 0, "worker", 0)
    before = database.used_bytes()
    database.begin()
    database.append([a_bill(number)])
    assert database.used_bytes() < before
    database.rollback()
    assert database._room_bytes <= 0
    database.close()


# -- damage -----------------------------------------------------------------------------------------------------------


def break_page(path: Path) -> None:
    """Overwrite a page in the middle of the file, where bills are."""
    with (path / "outbox.sqlite3").open("r+b") as file:
        file.seek((path / "outbox.sqlite3").stat().st_size // 2 // 4096 * 4096)
        file.write(b"\xff" * 4096)


@pytest.mark.parametrize(
    "damage", [break_page, lambda path: (path / "outbox.sqlite3").write_bytes(b"no database" * 999)]
)
def test_a_damaged_outbox_is_refused_at_the_start_with_the_way_out(tmp_path: Path, damage: Any) -> None:
    database = opened(tmp_path / "outbox")
    database.append([a_bill(number) for number in range(300)])
    database.close()
    assert problem_of(tmp_path / "outbox") is None
    damage(tmp_path / "outbox")
    with pytest.raises(OutboxUnavailable, match=r"is damaged .* restore it from a backup"):
        opened(tmp_path / "outbox")
    assert "is damaged" in (problem_of(tmp_path / "outbox") or "")


def test_an_outbox_that_does_not_exist_yet_is_no_problem(tmp_path: Path) -> None:
    assert problem_of(tmp_path / "outbox") is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", ["", "-wal", "-shm"])
@pytest.mark.parametrize("replaced", [False, True])
def test_a_file_that_is_removed_or_replaced_while_it_is_in_use_is_noticed(
    database: Database, suffix: str, replaced: bool
) -> None:
    """Without its log, an outbox whose worker is killed has nothing of what was written since it was opened."""
    database.check_place()
    file = database.path.with_name(database.path.name + suffix)
    content = file.read_bytes()
    file.rename(file.with_name("old"))
    if replaced:
        file.write_bytes(content)
    with pytest.raises(OutboxUnavailable, match="removed or replaced"):
        database.check_place()


@pytest.mark.parametrize("version", ["2", "3"])
def test_another_connection_of_the_process_that_ends_keeps_the_locks(
    database: Database, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a reload, also in one that fails. Another process would take itself for the last one, and remove the log."""
    with monkeypatch.context() as patch, suppress(OutboxUnavailable):
        patch.setattr("pointsman_billing.database.VERSION", version)
        opened(database.path.parent).close()
    code = "import contextlib, sqlite3, sys\nwith contextlib.closing(sqlite3.connect(sys.argv[1])) as c: c.execute('ANALYZE')"
    subprocess.run([sys.executable, "-c", code, str(database.path)], timeout=60, check=True)  # noqa: S603  # fixed
    database.check_place()


def test_looking_at_the_place_keeps_the_locks_of_the_process(database: Database) -> None:
    """Another process would otherwise take the file as unused, and write beside our transaction."""
    database.begin()
    database.check_place()
    connecting = (
        "import sqlite3, sys; c = sqlite3.connect(sys.argv[1], timeout=0);"
        "c.execute('PRAGMA locking_mode = EXCLUSIVE'); c.execute('BEGIN EXCLUSIVE')"
    )
    command = [sys.executable, "-c", connecting, str(database.path)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)  # noqa: S603  # fixed
    database.rollback()
    assert "database is locked" in ran.stderr
    # The lock by which SQLite knows that the file is in use: without it, the last one of others removes the log.
    released = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'r+b'), fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 0x40000002)"
    command = [sys.executable, "-c", released, str(database.path)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)  # noqa: S603  # fixed
    assert "BlockingIOError" in ran.stderr, "the shared lock on the file is gone"
