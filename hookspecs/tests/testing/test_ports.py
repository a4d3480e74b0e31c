"""Ports for what tests start."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pointsman.testing import ports

_KERNELS = Path("/proc/sys/net/ipv4/ip_local_port_range")
_ANOTHER = "import sys; from pointsman.testing import ports; ports._PORTS = range(int(sys.argv[1]), int(sys.argv[1]) + 1); ports.free_port()"


@pytest.mark.skipif(not _KERNELS.exists(), reason="Linux says there which ports connections get")
def test_a_port_is_none_that_a_connection_gets():
    first, last = map(int, _KERNELS.read_text(encoding="ascii").split())
    assert not first <= ports.free_port() <= last


def test_a_port_is_given_once(monkeypatch):
    """Neither again here nor in another process."""
    port = ports.free_port()
    monkeypatch.setattr(ports, "_PORTS", range(port, port + 1))
    with pytest.raises(RuntimeError, match=f"no port from {port} to {port} is free"):
        ports.free_port()
    done = subprocess.run(  # noqa: S603  # our own command
        [sys.executable, "-c", _ANOTHER, str(port)], capture_output=True, text=True, check=False
    )
    assert f"no port from {port} to {port} is free" in done.stderr


def test_a_port_that_is_listened_on_is_not_given(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setattr(ports, "_PORTS", range(port, port + 1))
        with pytest.raises(RuntimeError, match="is free"):
            ports.free_port()
