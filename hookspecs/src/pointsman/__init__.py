"""Pointsman: traffic management for the LiteLLM proxy, as plugins.

``pointsman.types`` are the values, ``pointsman.specs`` the hooks, ``pointsman.plugin`` what a plugin is and gets,
``pointsman.store`` durable state, ``pointsman.testing`` the kit for plugin authors.
"""

from .plugin import PluginConfig, PluginInfo, Services
from .specs import hookimpl

__all__ = ["PluginConfig", "PluginInfo", "Services", "hookimpl"]
__version__ = "0.1.0"
