"""Who opens and who delivers: one worker of the machine at a time, told by a lock on a file.

The lock is the kernel's (``flock``): when its holder dies, however it dies, it is free at once, and there is never a
second holder. It needs a local disk.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_PRIVATE: Final = 0o600


@contextmanager
def opening(directory: Path) -> Iterator[None]:
    """Wait until no other worker opens the outbox, and keep the others waiting.

    SQLite does not wait when two connections turn one new file to WAL at the same time: one of them fails at once,
    whatever its timeout. Workers that start together do just that.

    Raises:
        OSError: the file cannot be made.
    """
    descriptor = os.open(directory / "open.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _PRIVATE)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


class DeliveryLock:
    """The right to deliver to one sink.

    Args:
        directory: The outbox's.
        sink: The sink's name, of letters, digits and hyphens.
    """

    def __init__(self, directory: Path, sink: str) -> None:
        self._path = directory / f"sink-{sink}.lock"
        self._descriptor: int | None = None

    @property
    def held(self) -> bool:
        """Whether this object holds it."""
        return self._descriptor is not None

    def take(self) -> bool:
        """Take the lock if nobody has it; say whether this object holds it now.

        Raises:
            OSError: the file cannot be made.
        """
        if self._descriptor is not None:
            return True
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _PRIVATE)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        return True

    def release(self) -> None:
        """Give it back."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)
