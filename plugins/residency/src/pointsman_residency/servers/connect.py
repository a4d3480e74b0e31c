"""Makes what calls a server."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, Final

import httpx

from .base import ModelServer

if TYPE_CHECKING:
    from pointsman.plugin import Clock

CONNECT_S: Final = 5.0


@cache
def certificates() -> ssl.SSLContext:
    """Return the context of all servers with https. It takes tens of milliseconds to make, once: not in the event loop."""
    return httpx.create_ssl_context(trust_env=False)


def connect(
    kind: type[ModelServer],
    url: str,
    *,
    headers: Mapping[str, str],
    settings: Mapping[str, Any],
    clock: Clock,
    timeout_s: float,
) -> ModelServer:
    """Return the adapter of a server; its ``client`` is the caller's to close.

    Args:
        kind: The class of the adapter.
        url: Base URL of the management API.
        headers: Request headers.
        settings: The further keys of the configuration.
        clock: Time.
        timeout_s: Longest time that a call may take.
    """
    client = httpx.AsyncClient(
        headers=dict(headers),
        timeout=httpx.Timeout(timeout_s, connect=min(CONNECT_S, timeout_s)),
        # Most servers are on this machine, and need no certificates.
        verify=certificates() if url.startswith("https:") else False,
        trust_env=False,
    )
    return kind(url.rstrip("/"), client, clock, settings)
