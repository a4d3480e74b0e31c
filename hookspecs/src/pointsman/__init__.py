"""Pointsman: traffic management for the LiteLLM proxy, as plugins.

``pointsman.types`` and ``pointsman.events`` are the values, ``pointsman.specs`` the hooks, ``pointsman.plugin`` what a
plugin is and gets, ``pointsman.config`` the base of its configuration, ``pointsman.store`` durable state,
``pointsman.admin`` what admin routes read, ``pointsman.text`` and ``pointsman.stats`` what many need,
``pointsman.testing`` the kit for plugin authors.

The names here are imported when they are first used, because every run of pytest imports this package for its fixtures.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .plugin import PluginConfig, PluginInfo, Services
    from .specs import hookimpl

__all__ = ["PluginConfig", "PluginInfo", "Services", "hookimpl"]
__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = importlib.import_module(".specs" if name == "hookimpl" else ".plugin", __name__)
    value = globals()[name] = getattr(home, name)
    return value
