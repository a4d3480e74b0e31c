"""The disk store's file: a ``diskcache.Cache`` that holds JSON texts under text keys and nothing else.

diskcache brings the table, its settings, one connection per thread and process, and retries at opening. It would also
unpickle what it finds, read values from other files, and spend several statements on each value. ``TextDisk`` refuses
the first two; ``RowCache`` reads and writes many rows with one statement, which matters twice: each statement gives the
interpreter lock away, and on a busy event loop it takes milliseconds to get it back.

``open_rows`` opens it: private, writable, sound, or one clear error.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import diskcache
from diskcache.core import DBNAME, MODE_RAW

from ..errors import StoreCorrupt, StoreError, StoreUnavailable
from .embedded import Row
from .sqlite import alone_in_opening, file_numbers, in_parts

_SETTINGS: Final = {
    "eviction_policy": "none",
    "cull_limit": 0,
    "size_limit": 2**63 - 1,
    "statistics": 0,
    "disk_min_file_size": 2**63 - 1,  # values live in the database, where a transaction covers them
    "sqlite_journal_mode": "wal",
    "sqlite_synchronous": 1,
    "sqlite_auto_vacuum": 0,  # freed pages are used again; giving them back would cost every commit
    "sqlite_mmap_size": 0,  # a file cut short under a memory map would kill the process
}
_SELECT: Final = "SELECT key, mode, filename, value, expire_time FROM Cache WHERE raw = 1 AND key IN "
_ANY: Final = "(SELECT value FROM json_each(?))"
#: Up to this number, keys are named one by one, which is twice as fast. SQLite keeps the statement for each number of them.
_FEW: Final = 16
_SCAN: Final = "SELECT key, raw, mode, filename, value, expire_time FROM Cache WHERE key >= ? ORDER BY key"
_SCAN_WITHIN: Final = (
    "SELECT key, raw, mode, filename, value, expire_time FROM Cache WHERE key >= ? AND key < ? ORDER BY key"
)
_COUNT: Final = "SELECT COUNT(*) FROM Cache WHERE raw = 1 AND key >= ? AND key < ?"
_WRITE: Final = (
    "INSERT INTO Cache(key, raw, store_time, expire_time, access_time, size, mode, filename, value, access_count, tag)"
    " VALUES {} ON CONFLICT(key, raw) DO UPDATE SET"
    " store_time = excluded.store_time, expire_time = excluded.expire_time, access_time = excluded.access_time,"
    " size = excluded.size, mode = excluded.mode, filename = excluded.filename, value = excluded.value"
)
_COLUMNS: Final = "(?, ?, ?, ?, ?, ?, ?, ?, ?, 0, NULL)"
#: Most rows that one statement writes.
_MOST_ROWS: Final = 64
_BOOKKEEPING: Final = ("Settings_count_", "Settings_size_")
_LAST_CHARACTER: Final = chr(0x10FFFF)
_BEFORE_SURROGATES: Final = chr(0xD7FF)
_AFTER_SURROGATES: Final = chr(0xE000)
_DELETE: Final = "DELETE FROM Cache WHERE raw = 1 AND key IN "
_PURGE: Final = "DELETE FROM Cache WHERE rowid IN (SELECT rowid FROM Cache WHERE expire_time <= ? LIMIT ?)"

_PRIVATE: Final = 0o700
_CHOOSE: Final = "Set the store's path to a directory of its own that this user can write."


class TextDisk(diskcache.Disk):  # type: ignore[misc]  # diskcache has no types
    """The form of a row: a text key, a JSON text as value, both in the database itself."""

    def put(self, key: Any) -> tuple[str, bool]:
        """Return the columns of a key."""
        if not isinstance(key, str):
            raise ValueError(f"a store key is text, not {type(key).__name__}")  # noqa: TRY004 - as all bad keys
        return key, True

    def get(self, key: Any, raw: Any) -> str:
        """Return the key of a row; a pickled one stays one."""
        if raw and isinstance(key, str):
            return key
        raise StoreCorrupt(f"{self._where} has a row whose key is not text; this project writes no such row. {_ADVICE}")

    def store(self, value: Any, read: bool, key: Any = None) -> tuple[int, int, None, str]:  # noqa: ARG002 - diskcache's
        """Return the columns of a value: size, mode, filename, value."""
        if read or not isinstance(value, str):
            raise ValueError(f"a row holds a JSON text, not {type(value).__name__}")
        return 0, MODE_RAW, None, value

    def fetch(self, mode: Any, filename: Any, value: Any, read: bool) -> str:
        """Return the value of a row; a pickled one stays one, and no other file is opened."""
        if mode == MODE_RAW and filename is None and isinstance(value, str) and not read:
            return value
        raise StoreCorrupt(
            f"{self._where} has a row that is not a JSON text (a pickle, or a file of its own);"
            f" it was not opened. This project writes no such row. {_ADVICE}"
        )

    @property
    def _where(self) -> str:
        return f"the store in {self._directory}"


_ADVICE: Final = "Find out who wrote it, then delete the key, or move the directory away and start with an empty one."


class RowCache(diskcache.Cache):  # type: ignore[misc]  # diskcache has no types
    """Rows by the dozen, in explicit transactions. Use it on one thread only.

    Args:
        directory: An existing directory.
        busy_timeout_s: How long a statement waits for another process that writes, in seconds.
    """

    def __init__(self, directory: Path, busy_timeout_s: float) -> None:
        #: Of the database alone, where the connection has been opened again.
        self._file_numbers: list[int] = []
        try:
            super().__init__(str(directory), timeout=busy_timeout_s, disk=TextDisk, **_SETTINGS)
            self._drop_bookkeeping()
            self._file_numbers = file_numbers(directory / DBNAME)
        except BaseException:
            self.close()
            raise

    def _drop_bookkeeping(self) -> None:
        """Remove what diskcache counts with at every change: two more rows to write each time, which are never read."""
        self.begin()
        for (name,) in self._sql("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            if name.startswith(_BOOKKEEPING):
                self._sql(f'DROP TRIGGER "{name}"')
        self.commit()

    def wait_for_others(self, busy_timeout_s: float) -> None:
        """Change how long a statement waits for another process that writes, in seconds."""
        self._timeout = busy_timeout_s  # of a connection that is opened again
        self._sql(f"PRAGMA busy_timeout = {round(busy_timeout_s * 1000)}")

    def begin(self) -> None:
        """Start a transaction, alone among all processes in being allowed to write."""
        self._sql("BEGIN IMMEDIATE")

    def commit(self) -> None:
        """End the transaction: all of it survives the end of this process."""
        self._sql("COMMIT")

    def rollback(self) -> None:
        """Undo the transaction, if there still is one."""
        try:
            if self._con.in_transaction:
                self._sql("ROLLBACK")
        except sqlite3.Error:
            # The database fails altogether; closing the connection ends the transaction, the next use opens a new one.
            self.close()

    def read(self, keys: Iterable[str]) -> dict[str, Row | StoreCorrupt]:
        """Return the rows that exist, dead ones too; for a row that must not be read, the error that says so."""
        found = self._of_keys(_SELECT, tuple(keys)).fetchall()
        rows: dict[str, Row | StoreCorrupt] = {}
        for key, mode, filename, value, expires_at in found:
            try:
                rows[key] = Row(self._disk.fetch(mode, filename, value, False), expires_at)
            except StoreCorrupt as err:
                rows[key] = err
        return rows

    def scan(self, prefix: str, now: float) -> list[tuple[str, str]]:
        """Return key and text of the live rows whose key starts with the prefix, in the order of the keys."""
        end = _after(prefix)
        found = self._sql(_SCAN, (prefix,)) if end is None else self._sql(_SCAN_WITHIN, (prefix, end))
        return [
            (self._disk.get(key, raw), self._disk.fetch(mode, filename, value, False))
            for key, raw, mode, filename, value, expires_at in found.fetchall()
            if expires_at is None or expires_at > now
        ]

    def write(self, rows: Mapping[str, Row | None], now: float) -> None:
        """Write rows, and remove those that are None. Call it in a transaction."""
        disk = self._disk
        kept = [
            (*disk.put(key), now, row.expires_at, now, *disk.store(row.text, False)) for key, row in rows.items() if row
        ]
        for some in in_parts(kept, _MOST_ROWS):
            marks = ", ".join([_COLUMNS] * len(some))
            self._sql(_WRITE.format(marks), [value for row in some for value in row])
        if len(kept) < len(rows):
            self._of_keys(_DELETE, tuple(key for key, row in rows.items() if row is None))

    def _of_keys(self, statement: str, keys: tuple[str, ...]) -> sqlite3.Cursor:
        """Run a statement that ends before the list of its keys."""
        if len(keys) <= _FEW:
            cursor: sqlite3.Cursor = self._sql(f"{statement}({','.join('?' * len(keys))})", keys)
        else:
            cursor = self._sql(statement + _ANY, (json.dumps(keys, ensure_ascii=False),))
        return cursor

    def purge(self, now: float, limit: int) -> bool:
        """Remove up to ``limit`` dead rows; return whether there may be more. Call it in a transaction."""
        return bool(self._sql(_PURGE, (now, limit)).rowcount == limit)

    def close(self) -> None:
        """Close the connection. The next use opens another one, perhaps with new files next to the database."""
        super().close()
        self._file_numbers = self._file_numbers[:1]

    def check_place(self) -> None:
        """Raise ``StoreUnavailable`` when its files are no longer where they were opened: what is written would be lost.

        Call it in a transaction.
        """
        known = self._file_numbers
        try:
            self._file_numbers = file_numbers(Path(self._directory, DBNAME))
            in_place = self._file_numbers[: len(known)] == known
        except OSError:
            in_place = False
        if not in_place:
            self._file_numbers = known
            raise StoreUnavailable(
                f"the store in {self._directory}, or the -wal or -shm file of it, was removed or replaced while it was in use: "
                "restart with SIGTERM to open the new one; with SIGKILL it loses more"
            )


def _after(prefix: str) -> str | None:
    """Return the least text greater than every text that starts with the prefix, or None when there is none.

    SQLite compares UTF-8 bytes, which is the order of code points, so the next code point ends the range. The gap of
    the surrogates, which no text contains, is jumped over.
    """
    for length in range(len(prefix), 0, -1):
        last = prefix[length - 1]
        if last < _LAST_CHARACTER:
            return prefix[: length - 1] + (_AFTER_SURROGATES if last == _BEFORE_SURROGATES else chr(ord(last) + 1))
    return None


def is_damage(error: sqlite3.Error) -> bool:
    """Return whether SQLite found the file itself to be broken, as opposed to out of reach."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK)  # absent from errors that Python itself raises
    return (code & 0xFF) in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


def open_rows(path: str | os.PathLike[str], busy_timeout_s: float) -> RowCache:
    """Open the store in a directory, which is made if need be, and check that it can be used.

    Blocks. The result belongs to the calling thread.

    Args:
        path: The directory; ``~`` and variables are expanded.
        busy_timeout_s: How long to wait for another process that writes, in seconds.

    Raises:
        StoreUnavailable: the directory cannot be made, made private or written, or the store stays locked.
        StoreCorrupt: the file in it is not a sound database.
    """
    directory = Path(os.path.abspath(os.path.expandvars(Path(path).expanduser())))  # noqa: PTH100 - must not follow links
    _make_private(directory)
    file = directory / DBNAME
    try:
        with alone_in_opening(directory, busy_timeout_s):
            _check_file(file, busy_timeout_s)
            cache = RowCache(directory, busy_timeout_s)
    except sqlite3.Error as err:
        raise store_error(directory, err) from err
    except TimeoutError as err:
        raise StoreUnavailable(
            f"the store in {directory} was being opened by another process for too long; try again"
        ) from err
    except OSError as err:
        raise StoreUnavailable(f"the store in {directory} cannot be opened: {err.strerror or err}. {_CHOOSE}") from err
    return cache


def count_rows(directory: Path, prefix: str) -> int:
    """Return how many keys of the store in a directory start with a prefix; 0 where there is none that can be read.

    Blocks, and changes nothing.
    """
    file = directory / DBNAME
    if not file.exists():
        return 0
    try:
        with contextlib.closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            ((count,),) = connection.execute(_COUNT, (prefix, _after(prefix))).fetchall()
    except sqlite3.Error:
        return 0
    return int(count)


def store_error(directory: str | os.PathLike[str], error: sqlite3.Error) -> StoreError:
    """Return what SQLite's error means for the store: broken for good, or not available now."""
    if is_damage(error):
        return StoreCorrupt(
            f"the file {Path(directory) / DBNAME} is not a sound database ({error}). Restore it from a backup, or move"
            " it away together with the files next to it to start with an empty store."
        )
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK) & 0xFF
    if code in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
        return StoreUnavailable(f"the store in {directory} was locked by another process for too long; try again")
    if code == sqlite3.SQLITE_FULL:
        return StoreUnavailable(f"the store in {directory} cannot grow ({error}); make room on its disk")
    return StoreUnavailable(f"the store in {directory} cannot be used ({error}). {_CHOOSE}")


def _make_private(directory: Path) -> None:
    """Make the directory, or make sure that no other user can enter it."""
    try:
        if not directory.exists():
            directory.parent.mkdir(parents=True, exist_ok=True)
            directory.mkdir(_PRIVATE, exist_ok=True)
        if stat.S_IMODE(directory.stat().st_mode) == _PRIVATE:
            return
        # Someone else's directory, named by mistake, is not ours to close.
        if not (directory / DBNAME).exists() and any(directory.iterdir()):
            raise StoreUnavailable(
                f"{directory} has other files in it and can be entered by others, so it does not look like a store."
                f" {_CHOOSE}"
            )
        directory.chmod(_PRIVATE)
    except OSError as err:
        raise StoreUnavailable(
            f"the store directory {directory} cannot be made and kept private: {err.strerror or err}. {_CHOOSE}"
        ) from err


def _check_file(file: Path, busy_timeout_s: float) -> None:
    """Raise ``sqlite3.Error`` for a file that is not a sound, writable database; a missing one is made.

    diskcache would wait a minute for a lock and run into a broken page only when it reads it.
    """
    connection = sqlite3.connect(file, timeout=busy_timeout_s, isolation_level=None)
    try:
        ((verdict,),) = connection.execute("PRAGMA quick_check(1)").fetchall()
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("ROLLBACK")
    finally:
        connection.close()
    if verdict != "ok":
        raise StoreCorrupt(
            f"the file {file} is damaged ({verdict}). Restore it from a backup, or move it away together with the files"
            " next to it to start with an empty store."
        )
