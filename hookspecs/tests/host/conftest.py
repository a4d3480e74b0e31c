"""What the host's tests share."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pointsman import PluginConfig, PluginInfo
from pointsman.store import open_store
from pointsman.testing import FakeClock

sys.path.insert(0, str(Path(__file__).parent / "support"))


@pytest.fixture
def plugin():
    """Make a ``PluginInfo`` of a class; the class is given its configuration if its constructor wants one."""

    def make(cls, name=None, config=PluginConfig):
        def build(section):
            return cls(section) if "__init__" in vars(cls) else cls()

        return PluginInfo(name=name or cls.__name__.lower(), config=config, factory=build)

    return make


@pytest.fixture
async def shared():
    """A clock and a store that several workers share."""
    clock = FakeClock()
    store = await open_store("memory", clock=clock.now)
    yield {"clock": clock, "store": store}
    await store.close()
