"""Events in a file, one line of JSON each, every line once.

The file has one writer at a time, and events come in the order of the outbox. So when a process dies, only the last batch
is uncertain: on opening, a partial line is removed, and events that are already among the last lines are skipped when they
are sent again.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import IO, Final, Literal

from pydantic import Field

from pointsman_billing.events import BillEvent

from .base import SinkConfig, SinkContext, SinkInfo, SinkUnavailable, in_thread

_PRIVATE: Final = 0o600
_MEGABYTE: Final = 1_000_000
_BLOCK_BYTES: Final = 1 << 16


class NdjsonConfig(SinkConfig):
    """The section of an ``ndjson`` sink."""

    path: str = Field(min_length=1, max_length=4000, description="Path of the file, relative to the config file.")
    fsync: Literal["batch", "rotate", "never"] = Field(
        default="batch",
        description="When data is forced to disk: before each batch is confirmed, when a file is complete, or never.",
    )
    rotate_mb: int = Field(default=256, ge=1, le=1_000_000, description="Size in megabytes at which a file is rotated.")
    keep_files: int | None = Field(
        default=None, ge=1, le=1_000_000, description="How many rotated files are kept; null: all of them."
    )


class NdjsonSink:
    """Appends to a file.

    Args:
        config: Its section.
        context: Where relative paths start, and the time for the names of rotated files.
    """

    def __init__(self, config: NdjsonConfig, context: SinkContext) -> None:
        self._config = config
        self._context = context
        self.path = context.base / config.path
        self._file: IO[bytes] | None = None
        #: The ids of the last lines, in order. Two batches: the last one may have been larger than the next one, or may
        #: have been sent between a batch and its repetition.
        self._present: dict[str, None] = {}
        self._most_present = 2 * config.batch_events

    async def open(self) -> None:
        """Open the file and read which events it already contains.

        Raises:
            SinkUnavailable: it cannot be opened.
        """
        try:
            await in_thread(self._open)
        except OSError as err:
            raise SinkUnavailable(f"{self.path}: {err.strerror or err}") from err

    async def send(self, batch: Sequence[BillEvent]) -> None:
        """Append the events that the file does not contain yet.

        Raises:
            SinkUnavailable: it cannot be written.
        """
        try:
            await in_thread(lambda: self._append(batch))
        except OSError as err:
            raise SinkUnavailable(f"{self.path}: {err.strerror or err}") from err

    async def close(self) -> None:
        """Close the file."""
        self._release()

    def _release(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self) -> None:
        self._release()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, _PRIVATE)
        self._file = os.fdopen(descriptor, "ab", buffering=0)
        _cut_torn_line(self.path)
        there = list(_last_ids(self.path, self._most_present))
        for older in reversed(self._rotated()):
            if len(there) >= self._most_present:
                break
            there[:0] = _last_ids(older, self._most_present - len(there))
        self._present = dict.fromkeys(there)

    def _append(self, batch: Sequence[BillEvent]) -> None:
        if self._file is None or self._was_moved(self._file):
            self._open()
        assert self._file is not None  # noqa: S101  # just opened
        new = [event for event in batch if event.id not in self._present]
        data = "".join(f"{event.body}\n" for event in new).encode("ascii")
        try:
            _write_all(self._file, data)
        except OSError:
            # Reopening reads how much of it was written.
            self._release()
            raise
        self._present |= dict.fromkeys(event.id for event in new)
        for id_ in list(islice(self._present, max(0, len(self._present) - self._most_present))):
            del self._present[id_]
        if self._config.fsync == "batch":
            os.fsync(self._file.fileno())
        if self._file.tell() >= self._config.rotate_mb * _MEGABYTE:
            self._rotate()

    def _was_moved(self, file: IO[bytes]) -> bool:
        """Return whether another program has moved the file."""
        try:
            return not os.path.samestat(os.fstat(file.fileno()), self.path.stat())
        except FileNotFoundError:
            return True

    def _rotate(self) -> None:
        assert self._file is not None  # noqa: S101  # just written
        if self._config.fsync != "never":
            os.fsync(self._file.fileno())
        self._release()
        stamp, number = datetime.fromtimestamp(self._context.now(), UTC).strftime("%Y%m%dT%H%M%SZ"), 0
        if aside := self._rotated():
            # After the latest one even if the clock was set back: the names define the order.
            latest, count = aside[-1].stem.rsplit("-", 2)[1:]
            if stamp <= latest:
                stamp, number = latest, int(count) + 1
        target = self.path.with_name(f"{self.path.stem}-{stamp}-{number:06d}{self.path.suffix}")
        self.path.rename(target)
        keep = self._config.keep_files
        if keep is not None:
            for old in self._rotated()[:-keep]:
                old.unlink(missing_ok=True)
        self._file = os.fdopen(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, _PRIVATE), "ab", buffering=0)

    def _rotated(self) -> list[Path]:
        """Return the rotated files, oldest first."""
        name = re.compile(rf"{re.escape(self.path.stem)}-\d{{8}}T\d{{6}}Z-\d{{6}}{re.escape(self.path.suffix)}")
        return sorted(path for path in self.path.parent.iterdir() if name.fullmatch(path.name))


def _write_all(file: IO[bytes], data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


def _cut_torn_line(path: Path) -> None:
    """Remove what follows the last line end: a write that was interrupted."""
    with path.open("r+b") as file:
        end = file.seek(0, os.SEEK_END)
        position = end
        while position > 0:
            start = max(0, position - _BLOCK_BYTES)
            file.seek(start)
            found = file.read(position - start).rfind(b"\n")
            if found >= 0:
                position = start + found + 1
                break
            position = start
        if position < end:
            file.truncate(position)


def _last_ids(path: Path, count: int) -> Iterator[str]:
    """Yield the ids of the last ``count`` events in a file."""
    with path.open("rb") as file:
        position = file.seek(0, os.SEEK_END)
        data = b""
        while position > 0 and data.count(b"\n") <= count:
            start = max(0, position - _BLOCK_BYTES)
            file.seek(start)
            data = file.read(position - start) + data
            position = start
    for line in data.splitlines()[-count:]:
        try:
            found = json.loads(line)["id"]
        except (ValueError, KeyError, TypeError):
            continue
        if isinstance(found, str):
            yield found


ndjson = SinkInfo(config=NdjsonConfig, factory=NdjsonSink)
