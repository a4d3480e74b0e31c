"""Starts the workers of pytest-xdist as forks of one process that has imported LiteLLM.

    python forked_worker.py DIRECTORY COUNT -u -c CODE

takes the place of ``python -u -c CODE``, as which execnet starts a worker. The first of the COUNT processes that share a
directory imports LiteLLM and the providers' clients, which is more than half of what a worker computes before its first
test. It leaves a fork behind that forks a worker for each of the others, and is one itself. What comes later, in the place
of a worker that crashed, is started as ever.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import importlib
import os
import selectors
import signal
import socket
import sys
import threading
import types
import warnings
from pathlib import Path
from typing import Final

MODULES: Final = ("litellm.proxy.proxy_server", "openai", "anthropic")
#: Otherwise numpy has threads, which a fork does not have.
ONE_THREAD: Final = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


def met(directory: Path) -> tuple[socket.socket | None, socket.socket | None]:
    """Return the first's listener in the first, and a connection to it in each other; neither where it has stopped."""
    address = str(directory / "socket")
    sock = socket.socket(socket.AF_UNIX)
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not Path(address).exists():
            sock.bind(address)
            sock.listen(64)
            return sock, None
    try:
        sock.connect(address)
    except ConnectionRefusedError:
        sock.close()
        return None, None
    return None, sock


def load() -> None:
    """Import what takes the time, in a way that a fork can go on from."""
    added = {name: value for name, value in ONE_THREAD.items() if name not in os.environ}
    os.environ.update(added)
    with warnings.catch_warnings(action="ignore"):
        for module in MODULES:
            with contextlib.suppress(ImportError):
                importlib.import_module(module)
    for name in added:
        del os.environ[name]
    # Otherwise each fork's first collection would copy all of it, page by page.
    gc.collect()
    gc.freeze()


def orphan() -> bool:
    """Fork; return whether this is the new process, which is no child of this one: tests look at their children."""
    if child := os.fork():
        os.waitpid(child, 0)
        return False
    if os.fork():
        os._exit(0)
    return True


def silence() -> None:
    """Leave the pipes to execnet, which sees a worker's end by theirs, to the worker."""
    with Path(os.devnull).open("r+b", buffering=0) as nothing:
        os.dup2(nothing.fileno(), 0)
        os.dup2(nothing.fileno(), 1)


def serve(listener: socket.socket, run: int, others: int) -> None:
    """Fork a worker for each of the others, which execnet starts one after another; return in each, and end.

    Args:
        listener: Where they connect.
        run: The process id of the run, with which this ends at the latest.
        others: How many they are.
    """
    with contextlib.suppress(ProcessLookupError), selectors.DefaultSelector() as selector:
        ended = os.pidfd_open(run)
        selector.register(listener, selectors.EVENT_READ)
        selector.register(ended, selectors.EVENT_READ)
        for _ in range(others):
            if any(key.fileobj is not listener for key, _ in selector.select()):
                break
            connection, _ = listener.accept()
            _, files, _, _ = socket.recv_fds(connection, 1, 3)
            if orphan():
                for number, file in enumerate(files):
                    os.dup2(file, number)
                    os.close(file)
                os.close(ended)
                listener.close()
                connection.send(b"f")
                # Open until the worker ends: for the end of it the other waits.
                connection.detach()
                return
            connection.close()
            for file in files:
                os.close(file)
    os._exit(0)


def forked(connection: socket.socket) -> bool:
    """Give this process's input and output to a fork of the first and wait for its end; return whether there was one."""
    with connection:
        socket.send_fds(connection, [b"f"], [0, 1, 2])
        if not connection.recv(1):
            return False
        # It is the fork that a Ctrl-C and the ends of its pipes tell something.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        silence()
        with contextlib.suppress(ConnectionError):
            connection.recv(1)
    return True


def main() -> None:
    """Become a worker, or wait for the end of the one that was forked."""
    directory, count, *options = sys.argv[1:]
    listener, connection = met(Path(directory))
    if connection is not None and forked(connection):
        return
    if listener is None:
        os.execv(sys.executable, [sys.executable, *options])  # noqa: S606  # our own command
    # As with ``-c``: without this file and its directory.
    del sys.path[0]
    load()
    run = os.getppid()
    if threading.active_count() == 1 and orphan():
        silence()
        serve(listener, run, int(count) - 1)
    listener.close()
    sys.argv[:] = ["-c"]
    sys.modules["__main__"] = worker = types.ModuleType("__main__")
    exec(options[-1], worker.__dict__)  # noqa: S102  # execnet's


if __name__ == "__main__":
    main()
