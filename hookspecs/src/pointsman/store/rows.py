"""The rows of the disk store: a ``diskcache.Cache`` that holds JSON texts under text keys and nothing else.

diskcache brings the table, its settings, one connection per thread and process, and retries at opening. It would also
unpickle what it finds, read values from other files, and spend several statements on each value. ``TextDisk`` refuses
the first two; ``RowCache`` reads and writes many rows with one statement, which matters twice: each statement gives the
interpreter lock away, and on a busy event loop it takes milliseconds to get it back.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import diskcache
from diskcache.core import DBNAME, MODE_RAW

from ..errors import StoreCorrupt, StoreUnavailable
from .steps import Row

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
#: Up to so many keys are named one by one, which is twice as fast. SQLite keeps the statement for each number of them.
_FEW: Final = 16
_SCAN: Final = "SELECT key, raw, mode, filename, value, expire_time FROM Cache WHERE key >= ? ORDER BY key"
_SCAN_WITHIN: Final = (
    "SELECT key, raw, mode, filename, value, expire_time FROM Cache WHERE key >= ? AND key < ? ORDER BY key"
)
_WRITE: Final = (
    "INSERT INTO Cache(key, raw, store_time, expire_time, access_time, access_count, tag, size, mode, filename, value)"
    " VALUES (?, ?, ?, ?, ?, 0, NULL, ?, ?, ?, ?) ON CONFLICT(key, raw) DO UPDATE SET"
    " store_time = excluded.store_time, expire_time = excluded.expire_time, access_time = excluded.access_time,"
    " size = excluded.size, mode = excluded.mode, filename = excluded.filename, value = excluded.value"
)
_BOOKKEEPING: Final = ("Settings_count_", "Settings_size_")
_LAST_CHARACTER: Final = chr(0x10FFFF)
_BEFORE_SURROGATES: Final = chr(0xD7FF)
_AFTER_SURROGATES: Final = chr(0xE000)
_DELETE: Final = "DELETE FROM Cache WHERE key = ? AND raw = 1"
_PURGE: Final = "DELETE FROM Cache WHERE rowid IN (SELECT rowid FROM Cache WHERE expire_time <= ? LIMIT ?)"


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
        try:
            super().__init__(str(directory), timeout=busy_timeout_s, disk=TextDisk, **_SETTINGS)
            self._file_number = Path(directory, DBNAME).stat().st_ino
            self._drop_bookkeeping()
        except BaseException:
            self.close()
            raise

    def _drop_bookkeeping(self) -> None:
        """Remove what diskcache counts with at every change: two more rows to write each time, and nobody reads them."""
        self.begin()
        for (name,) in self._sql("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            if name.startswith(_BOOKKEEPING):
                self._sql(f'DROP TRIGGER "{name}"')
        self.commit()

    def begin(self) -> None:
        """Start a transaction, alone among all processes in being allowed to write."""
        self._sql("BEGIN IMMEDIATE")

    def commit(self) -> None:
        """End the transaction: all of it survives the end of this process."""
        self._sql("COMMIT")

    def rollback(self) -> None:
        """Undo the transaction, if there still is one."""
        if self._con.in_transaction:
            self._sql("ROLLBACK")

    def read(self, keys: Iterable[str]) -> dict[str, Row | StoreCorrupt]:
        """Return the rows that exist, dead ones too; for a row that must not be read, the error that says so."""
        wanted = tuple(keys)
        if len(wanted) <= _FEW:
            found = self._sql(f"{_SELECT}({','.join('?' * len(wanted))})", wanted).fetchall()
        else:
            found = self._sql(_SELECT + _ANY, (json.dumps(wanted, ensure_ascii=False),)).fetchall()
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
        if kept:
            self._con.executemany(_WRITE, kept)
        if len(kept) < len(rows):
            self._con.executemany(_DELETE, [(key,) for key, row in rows.items() if row is None])

    def purge(self, now: float, limit: int) -> bool:
        """Remove up to ``limit`` dead rows; say whether there may be more. Call it in a transaction."""
        return bool(self._sql(_PURGE, (now, limit)).rowcount == limit)

    def check_place(self) -> None:
        """Raise ``StoreUnavailable`` when the file is no longer where it was opened: nobody would find what is written."""
        try:
            in_place = Path(self._directory, DBNAME).stat().st_ino == self._file_number
        except OSError:
            in_place = False
        if not in_place:
            raise StoreUnavailable(
                f"the store in {self._directory} was removed or replaced while it was in use: restart to open the new one"
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
    """Say whether SQLite found the file itself to be broken, as against out of reach."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK)  # absent from errors that Python itself raises
    return (code & 0xFF) in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
