"""Opening the disk store's directory: private, writable, sound, or one clear error."""

from __future__ import annotations

import os
import sqlite3
import stat
from pathlib import Path
from typing import Final

from diskcache.core import DBNAME

from ..errors import StoreCorrupt, StoreError, StoreUnavailable
from .rows import RowCache, is_damage

_PRIVATE: Final = 0o700
_CHOOSE: Final = "Set the store's path to a directory of its own that this user can write."


def open_directory(path: str | os.PathLike[str], busy_timeout_s: float) -> RowCache:
    """Open the store in a directory, which is made if need be, and check that it can be used.

    Blocks. The result belongs to the calling thread.

    Args:
        path: The directory; ``~`` and variables are expanded.
        busy_timeout_s: How long to wait for another process that writes, in seconds.

    Raises:
        StoreUnavailable: the directory cannot be made, made private or written, or the store stays locked.
        StoreCorrupt: the file in it is no sound database.
    """
    directory = Path(os.path.abspath(os.path.expandvars(Path(path).expanduser())))  # noqa: PTH100 - must not follow links
    _make_private(directory)
    file = directory / DBNAME
    try:
        _check_file(file, busy_timeout_s)
        cache = RowCache(directory, busy_timeout_s)
    except sqlite3.Error as err:
        raise store_error(directory, err) from err
    except OSError as err:
        raise StoreUnavailable(f"the store in {directory} cannot be opened: {err.strerror or err}. {_CHOOSE}") from err
    return cache


def store_error(directory: str | os.PathLike[str], error: sqlite3.Error) -> StoreError:
    """Return what SQLite's error means for the store: broken for good, or not available now."""
    if is_damage(error):
        return StoreCorrupt(
            f"the file {Path(directory) / DBNAME} is not a sound database ({error}). Restore it from a backup, or move"
            " it away together with the files beside it to start with an empty store."
        )
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK) & 0xFF
    if code in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
        return StoreUnavailable(f"the store in {directory} was locked by another process for too long; try again")
    if code == sqlite3.SQLITE_FULL:
        return StoreUnavailable(f"the store in {directory} cannot grow ({error}); make room on its disk")
    return StoreUnavailable(f"the store in {directory} cannot be used ({error}). {_CHOOSE}")


def _make_private(directory: Path) -> None:
    """Make the directory, or make sure that nobody else can enter it."""
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
            " beside it to start with an empty store."
        )
