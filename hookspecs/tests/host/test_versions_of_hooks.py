"""Plugins made for other versions: hooks that are not there yet, and arguments that are to go."""

from __future__ import annotations

import warnings

import pytest

from pointsman import PluginConfig, hookimpl, specs
from pointsman.errors import HookSignatureError
from pointsman.host.implementations import implementations


class Newer:
    @hookimpl(optionalhook=True)
    async def pre_cache(self, ctx, key):
        """A hook of a later version."""

    @hookimpl
    async def pre_route(self, ctx):
        """One of this version."""


class Misspelt:
    @hookimpl
    async def pre_rout(self, ctx):
        """No hook."""


class MisspeltArgument:
    @hookimpl(optionalhook=True)
    async def pre_route(self, rout):
        """A hook that is there is checked all the same."""


def test_an_optional_hook_that_is_unknown_is_left_out():
    """The plugin's other hooks work; without the mark it is a misspelt one."""
    assert list(implementations("newer", Newer(), PluginConfig())) == ["pre_route"]
    for wrong in (Misspelt, MisspeltArgument):
        with pytest.raises(HookSignatureError, match="pre_route"):
            implementations("wrong", wrong(), PluginConfig())


class Takes:
    @hookimpl
    async def pre_route(self, ctx, route):
        """Takes what is to go."""


def test_an_argument_that_is_to_go_warns(monkeypatch, caplog):
    """In the log for the operator, and as a warning for the author; a plugin that does not take it hears nothing."""
    options = specs.pre_route.pointsman_spec
    monkeypatch.setitem(options, "warn_on_impl_args", {"route": DeprecationWarning("'route' goes with 0.4; use 'way'")})
    with pytest.warns(DeprecationWarning, match="plugin 'takes': 'route' goes with 0.4"):
        found = implementations("takes", Takes(), PluginConfig())
    assert list(found) == ["pre_route"]
    assert "plugin 'takes': 'route' goes with 0.4; use 'way'" in caplog.text
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        implementations("newer", Newer(), PluginConfig())
