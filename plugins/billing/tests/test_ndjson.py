"""The NDJSON file: every line once, whole lines only, put aside when it is large."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pointsman_billing.events import BillEvent
from pointsman_billing.sinks.base import SinkContext, SinkUnavailable
from pointsman_billing.sinks.ndjson import NdjsonConfig, NdjsonSink

from .kit import AT, lines

PAD = "x" * 1000


def event(number: int) -> BillEvent:
    body = json.dumps({"id": f"id{number}", "number": number, "pad": PAD}, separators=(",", ":"))
    return BillEvent(id=f"id{number}", type="attempt", tenant="acme", at_ms=number, body=body)


def sink(tmp_path: Path, *, now: Callable[[], float] = lambda: AT, **given: Any) -> NdjsonSink:
    config = NdjsonConfig.model_validate({"path": "bills/bills.ndjson", "batch_events": 10, **given})
    return NdjsonSink(config, SinkContext(base=tmp_path, now=now))


def numbers(tmp_path: Path) -> list[int]:
    files = [*sorted((tmp_path / "bills").glob("bills-*.ndjson")), tmp_path / "bills" / "bills.ndjson"]
    return [line["number"] for file in files for line in lines(file)]


@pytest.mark.parametrize("torn", [0, 1, 500, 1030])
async def test_after_a_crash_in_a_write_every_line_is_there_once_and_whole(tmp_path: Path, torn: int) -> None:
    """The last write may have got anywhere: the batch comes again, and what is there already is left out."""
    first = sink(tmp_path)
    await first.send([event(n) for n in range(10)])
    await first.close()
    path = tmp_path / "bills" / "bills.ndjson"
    with path.open("ab") as file:
        file.write((event(10).body + "\n" + event(11).body + "\n").encode()[: 1040 + torn])
    again = sink(tmp_path)
    await again.open()
    await again.send([event(n) for n in range(8, 20)])
    await again.close()
    assert numbers(tmp_path) == list(range(20))


async def test_a_file_that_somebody_else_puts_aside_is_begun_anew(tmp_path: Path) -> None:
    one = sink(tmp_path)
    await one.send([event(0)])
    (tmp_path / "bills" / "bills.ndjson").rename(tmp_path / "bills" / "elsewhere")
    await one.send([event(1)])
    await one.close()
    assert numbers(tmp_path) == [1]


async def test_a_batch_that_comes_again_behind_another_is_written_once(tmp_path: Path) -> None:
    """Dead letters go before what was not confirmed."""
    one = sink(tmp_path)
    for start in (10, 0, 10):
        await one.send([event(n) for n in range(start, start + 10)])
    await one.close()
    assert numbers(tmp_path) == [*range(10, 20), *range(10)]


async def test_a_batch_that_comes_again_is_written_once(tmp_path: Path) -> None:
    one = sink(tmp_path)
    for start in (0, 0, 5, 10, 10):
        await one.send([event(n) for n in range(start, start + 5)])
    await one.close()
    assert numbers(tmp_path) == list(range(15))


async def test_a_large_file_is_put_aside_and_a_crash_then_is_no_different(tmp_path: Path) -> None:
    one = sink(tmp_path, rotate_mb=1)
    for start in range(0, 2000, 10):
        await one.send([event(n) for n in range(start, start + 10)])
    await one.close()
    aside = sorted((tmp_path / "bills").glob("bills-*.ndjson"))
    assert [file.name for file in aside] == [
        "bills-20250615T150640Z-000000.ndjson",
        "bills-20250615T150640Z-000001.ndjson",
    ]
    # A file that has just been put aside: what it ends with is still known.
    (tmp_path / "bills" / "bills.ndjson").rename(tmp_path / "bills" / "bills-20250615T150640Z-000002.ndjson")
    again = sink(tmp_path, rotate_mb=1)
    await again.open()
    await again.send([event(n) for n in range(1990, 2005)])
    await again.close()
    assert numbers(tmp_path) == list(range(2005))


async def test_old_files_are_removed_when_so_many_are_wanted_only(tmp_path: Path) -> None:
    one = sink(tmp_path, rotate_mb=1, keep_files=2)
    (tmp_path / "bills").mkdir()
    (tmp_path / "bills" / "bills-of-last-year.ndjson").write_text("")
    for start in range(0, 5000, 10):
        await one.send([event(n) for n in range(start, start + 10)])
    await one.close()
    names = [file.name for file in sorted((tmp_path / "bills").glob("bills-2025*.ndjson"))]
    assert names == [f"bills-20250615T150640Z-{n:06d}.ndjson" for n in (3, 4)]
    assert (tmp_path / "bills" / "bills-of-last-year.ndjson").exists()


async def test_when_the_clock_steps_back_the_oldest_files_are_removed_still(tmp_path: Path) -> None:
    """The names tell the order in which the files were put aside; a clock that is ahead again goes on from there."""
    times = iter([AT, AT + 10, AT - 3600, AT - 3600, AT - 3590, AT + 11])
    one = sink(tmp_path, rotate_mb=1, keep_files=5, now=lambda: next(times))
    for start in range(0, 6000, 10):
        await one.send([event(n) for n in range(start, start + 10)])
    await one.close()
    names = [file.name for file in sorted((tmp_path / "bills").glob("bills-*.ndjson"))]
    assert names == [
        *(f"bills-20250615T150650Z-{n:06d}.ndjson" for n in range(4)),
        "bills-20250615T150651Z-000000.ndjson",
    ]
    kept = numbers(tmp_path)
    assert kept == list(range(kept[0], 6000))
    assert kept[0] > 0


@pytest.mark.parametrize(("policy", "syncs"), [("batch", 3), ("rotate", 0), ("never", 0)])
async def test_the_fsync_policy(tmp_path: Path, policy: str, syncs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    plain = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (seen.append(fd), plain(fd)))
    one = sink(tmp_path, fsync=policy)
    for n in range(3):
        await one.send([event(n)])
    await one.close()
    assert len(seen) == syncs


async def test_a_full_disk_is_said_and_survived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part of the batch may be on the disk then."""
    one = sink(tmp_path)
    await one.send([event(0)])
    module = "pointsman_billing.sinks.ndjson._write_all"

    def half(file: Any, data: bytes) -> None:
        file.write(data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(module, half)
        with pytest.raises(SinkUnavailable, match="No space left"):
            await one.send([event(n) for n in range(1, 6)])
    await one.send([event(n) for n in range(1, 6)])
    await one.close()
    assert numbers(tmp_path) == list(range(6))


async def test_a_directory_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "bills").write_text("a file")
    with pytest.raises(SinkUnavailable, match=r"bills\.ndjson"):
        await sink(tmp_path).open()
