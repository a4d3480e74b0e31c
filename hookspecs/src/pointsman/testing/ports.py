"""Ports for what tests start: each is given to one process only."""

from __future__ import annotations

import getpass
import os
import random
import socket
import tempfile
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout

#: Below those that Linux, macOS and Windows give to outgoing connections: one of these would take a port that is free now before
#: the server, which may load for many seconds, listens on it.
_PORTS: Final = range(20_000, 32_000)
#: Not the seeded generator that property tests share.
_choice: Final = random.SystemRandom()
#: Where there are numbers of users, not each of them has a name.
_user: Final = getattr(os, "getuid", getpass.getuser)
#: Held until this process ends.
_held: Final = list[FileLock]()


def free_port() -> int:
    """Return a port on the loopback interface that is free now and that no other process is given here while this one lives.

    Raises:
        RuntimeError: none is free.
    """
    folder = Path(tempfile.gettempdir()) / f"pointsman-ports-{_user()}"
    folder.mkdir(exist_ok=True)
    for port in _choice.sample(_PORTS, len(_PORTS)):
        lock = FileLock(folder / f"{port}.lock")
        try:
            lock.acquire(blocking=False)
        except Timeout:
            continue
        if _is_free(port):
            _held.append(lock)
            return port
        lock.release()
    raise RuntimeError(f"no port from {_PORTS.start} to {_PORTS.stop - 1} is free")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


__all__ = ["free_port"]
