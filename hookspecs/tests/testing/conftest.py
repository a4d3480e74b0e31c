"""Makes the helpers in ``support`` importable, and gives a harness with the plugin that does what it is told."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "support"))


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """What these tests leave behind stays: a second is long enough to see that."""
    monkeypatch.setattr("pointsman.testing.leaks.PATIENCE_S", 1.0)


@pytest.fixture
async def h(harness, leak_check):
    from actor_plugin import INFO  # noqa: PLC0415  # importable from here on

    async with harness([INFO], tracing=True) as h:
        yield h


@pytest.fixture
def actor(h):
    return h.plugin("actor")
