"""Tries out what a proxy needs: the state store and the place where spans go."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import socket
import stat
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Final

from ..errors import StoreError
from ..host.config import StoreConfig
from ..store import AtomicOp, StateStore, open_store
from .output import Finding, Level
from .report import store_in_words
from .telemetry import Endpoint

_SUBJECT: Final = "store"
_PROBE_TTL_S: Final = 60.0
_CONNECT_TIMEOUT_S: Final = 3.0
#: Heartbeats and leases are told apart by seconds.
_SKEW_LIMIT_S: Final = 1.0
_PRIVATE: Final = 0o700

_SERVER_TIME: Final = AtomicOp(
    name="server-time",
    python=lambda _values, _args: ({}, [str(int(time.time())), "0"]),
    lua="return json_encode(redis.call('TIME'))",
)


async def check_store(store: StoreConfig, base: Path) -> AsyncIterator[Finding]:
    """Open the store, write, read and delete a value of our own, and yield what comes of it.

    A disk store that does not exist yet is tried out in a temporary directory beside its place, so that it is made by
    the proxy's user and not by whoever looks.

    Args:
        store: Its configuration.
        base: The directory that relative paths start from.
    """
    words = store_in_words(store, base)
    with contextlib.ExitStack() as stack:
        path = base / store.path
        if store.backend == "disk":
            try:
                path, remarks = _directory(path, stack)
            except OSError as err:
                yield Finding(Level.FAILED, _SUBJECT, f"{words}: it cannot be made there: {err.strerror or err}")
                return
            for remark in remarks:
                yield remark
        logged = stack.enter_context(_warnings_logged())
        try:
            skew_s = await _try_out(store, path)
        except (StoreError, ValueError, OSError) as err:
            yield Finding(Level.FAILED, _SUBJECT, f"{words}: {err}")
            return
    if store.backend == "memory":
        yield Finding(Level.WARNING, _SUBJECT, f"{words}; fit for one worker and for tests, choose disk or redis else")
    else:
        yield Finding(Level.OK, _SUBJECT, f"{words}; a value was written, read and deleted")
    for message in logged:
        yield Finding(Level.WARNING, _SUBJECT, message)
    if skew_s is not None:
        yield _skew(skew_s)


async def _try_out(config: StoreConfig, path: Path) -> float | None:
    """Use the store once; return how far redis's clock is ahead of ours, in seconds, None for the others.

    Raises:
        StoreError, ValueError: it cannot be used.
    """
    store = await open_store(
        config.backend,
        path=path,
        url=config.url,
        prefix=f"{config.prefix}:",
        timeout_s=config.timeout_ms / 1000,
    )
    try:
        await store.ping()
        key, value = f"doctor/{secrets.token_hex(8)}", secrets.token_hex(8)
        await store.put(key, value, ttl_s=_PROBE_TTL_S)
        if await store.get(key) != value or not await store.delete(key):
            raise StoreError("a value that was written could not be read and deleted again; is somebody deleting keys?")
        return await _ahead_s(store, key) if config.backend == "redis" else None
    finally:
        await store.close()


async def _ahead_s(store: StateStore, key: str) -> float:
    """Return how far the server's clock is certainly ahead (negative: behind), the time of the call allowed for."""
    before_s = time.time()
    answer: Any = await store.run(_SERVER_TIME, [key], None)
    after_s = time.time()
    server_s = int(answer[0]) + int(answer[1]) / 1e6
    if server_s < before_s:
        return server_s - before_s
    return max(server_s - after_s, 0.0)


def _skew(ahead_s: float) -> Finding:
    if abs(ahead_s) <= _SKEW_LIMIT_S:
        return Finding(Level.OK, "clock", f"agrees with redis within {_SKEW_LIMIT_S:g} s")
    side = "behind" if ahead_s > 0 else "ahead of"
    return Finding(
        Level.WARNING,
        "clock",
        f"this machine is {abs(ahead_s):.1f} s {side} redis, so heartbeats and leases may look over too soon or too late; "
        "synchronise both with NTP",
    )


def _directory(path: Path, stack: contextlib.ExitStack) -> tuple[Path, list[Finding]]:
    """Return the directory to try, and what is to be said about the real one.

    Raises:
        OSError: it does not exist, and could not be made.
    """
    try:
        state = path.stat()
    except FileNotFoundError:
        parent = next(each for each in path.parents if each.exists())
        trial = stack.enter_context(tempfile.TemporaryDirectory(prefix=".pointsman-doctor-", dir=parent))
        return Path(trial) / _SUBJECT, [
            Finding(Level.OK, _SUBJECT, f"{path} does not exist yet; the first start makes it")
        ]
    remarks = []
    mode = stat.S_IMODE(state.st_mode)
    if mode != _PRIVATE:
        text = f"{path} could be entered by others (mode {mode:04o}); opening it makes it {_PRIVATE:04o}"
        remarks.append(Finding(Level.WARNING, _SUBJECT, text))
    if state.st_uid != os.geteuid():
        text = f"{path} belongs to another user (id {state.st_uid}); run this command as the user of the proxy"
        remarks.append(Finding(Level.WARNING, _SUBJECT, text))
    return path, remarks


@contextlib.contextmanager
def _warnings_logged() -> Iterator[list[str]]:
    """Collect what our own code would warn of in the proxy's log."""
    collected: list[str] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            collected.append(record.getMessage())

    logger, handler = logging.getLogger("pointsman"), Collect(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield collected
    finally:
        logger.removeHandler(handler)


def check_endpoint(endpoint: Endpoint) -> Finding:
    """Say whether somebody listens where spans are sent."""
    try:
        socket.create_connection((endpoint.host, endpoint.port), _CONNECT_TIMEOUT_S).close()
    except OSError as err:
        return Finding(
            Level.FAILED,
            "tracing",
            f"nobody answers at {endpoint.url}: {err.strerror or err}; start the collector or correct the OTEL_* variables "
            "(requests are served all the same, their spans are lost)",
        )
    return Finding(Level.OK, "tracing", f"somebody answers at {endpoint.url}")
