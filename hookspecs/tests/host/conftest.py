"""What the host's tests share."""

from __future__ import annotations

import pytest

from pointsman import PluginConfig, PluginInfo


@pytest.fixture
def plugin():
    """Make a ``PluginInfo`` of a class; the class is given its configuration if its constructor wants one."""

    def make(cls, name=None, config=PluginConfig):
        def build(section):
            return cls(section) if "__init__" in vars(cls) else cls()

        return PluginInfo(name=name or cls.__name__.lower(), config=config, factory=build)

    return make
