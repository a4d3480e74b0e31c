"""The state store: one protocol, three backends, and views of parts of them.

``open_store`` opens a backend. Its module is imported then and not before: most programs need one of the three.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, TypeAlias

from ..errors import StoreCorrupt, StoreError, StoreUnavailable
from .protocol import JSON, MAX_COUNTER, MAX_KEY_CHARS, MAX_TTL_S, AtomicOp, Put, StateStore, Update
from .views import ScopedStore, Snapshot, modify, revision_key, take, with_revision

if TYPE_CHECKING:
    import os

Backend: TypeAlias = Literal["memory", "disk", "redis"]


async def open_store(
    backend: Backend,
    *,
    path: str | os.PathLike[str] | None = None,
    url: str | None = None,
    prefix: str = "pointsman:",
    timeout_s: float = 5.0,
    start_timeout_s: float | None = None,
    clock: Callable[[], float] = time.time,
    lists_older: bool = True,
) -> StateStore:
    """Open a store and make sure that it can be used.

    Args:
        backend: ``memory`` (this process, forgotten at its end), ``disk`` (all processes of this machine) or ``redis``.
        path: For ``disk``: the directory, made if need be and kept private.
        url: For ``redis``: ``redis://``, ``rediss://`` or ``unix://``.
        prefix: For ``redis``: put before every key.
        timeout_s: For ``disk`` and ``redis``: longest time a call may take, in seconds.
        start_timeout_s: For ``disk``: instead of it until ``started`` is called, see ``DiskStore``; None: the same.
        clock: For ``memory`` and ``disk``: returns Unix seconds. Redis has its own.
        lists_older: For ``redis``: whether ``scan`` has to find the keys of earlier releases, which leaves a note of it.

    Raises:
        ValueError: an argument that the backend needs is missing or wrong.
        StoreUnavailable: the store cannot be reached or written.
        StoreCorrupt: the disk store's file is broken.
    """
    match backend:
        case "memory":
            from .memory import MemoryStore  # noqa: PLC0415 - see the module's docstring

            return MemoryStore(clock=clock)
        case "disk":
            from .disk import DiskStore  # noqa: PLC0415 - see the module's docstring

            if path is None:
                raise ValueError("the disk store needs a path: the directory to keep its file in")
            return await DiskStore.open(path, timeout_s=timeout_s, start_timeout_s=start_timeout_s, clock=clock)
        case "redis":
            from .redis import RedisStore  # noqa: PLC0415 - see the module's docstring

            if url is None:
                raise ValueError("the redis store needs a url, for example redis://localhost:6379/0")
            return await RedisStore.open(url, prefix=prefix, timeout_s=timeout_s, lists_older=lists_older)
    raise ValueError(f"{backend!r} is not a store backend; choose memory, disk or redis")


__all__ = [
    "JSON",
    "MAX_COUNTER",
    "MAX_KEY_CHARS",
    "MAX_TTL_S",
    "AtomicOp",
    "Backend",
    "Put",
    "ScopedStore",
    "Snapshot",
    "StateStore",
    "StoreCorrupt",
    "StoreError",
    "StoreUnavailable",
    "Update",
    "modify",
    "open_store",
    "revision_key",
    "take",
    "with_revision",
]
