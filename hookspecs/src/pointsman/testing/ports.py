"""Ports for what tests start: each is given to one process only."""

from __future__ import annotations

import random
import socket
from typing import Final

#: Below those that Linux, macOS and Windows give to outgoing connections: one of these would take a port that is free now before
#: the server, which may load for many seconds, listens on it.
_PORTS: Final = range(20_000, 32_000)
#: Not the seeded generator that property tests share.
_choice: Final = random.SystemRandom()


def free_port() -> int:
    """Return a port on the loopback interface that is free now and that no other process is given here while this one lives.

    Raises:
        RuntimeError: none is free.
    """
    for port in _choice.sample(_PORTS, len(_PORTS)):
        # The port of the same number for datagrams is the mark that it is taken, which leaves nothing behind.
        mark = _bound(port, socket.SOCK_DGRAM)
        if mark is None:
            continue
        if (probe := _bound(port, socket.SOCK_STREAM)) is not None:
            probe.close()
            mark.detach()  # open until this process ends
            return port
        mark.close()
    raise RuntimeError(f"no port from {_PORTS.start} to {_PORTS.stop - 1} is free")


def _bound(port: int, kind: socket.SocketKind) -> socket.socket | None:
    bound = socket.socket(socket.AF_INET, kind)
    try:
        bound.bind(("127.0.0.1", port))
    except OSError:
        bound.close()
        return None
    return bound


__all__ = ["free_port"]
