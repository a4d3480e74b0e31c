"""The root command: built-in commands and those of installed plugins, each imported when it is used."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pkgutil import resolve_name
from typing import Any, Final

import click

from .. import __version__
from ..errors import PluginLoadError, nearest
from ..host.discovery import Available, discover, plugin_info

#: Name, where its code is, and its line in the help.
_BUILT_IN: Final = {
    "check": ("pointsman.cli.check:check", "Validate a configuration without starting anything."),
    "doctor": ("pointsman.cli.doctor:doctor", "Check a configuration and the environment it will run in."),
    "explain": ("pointsman.cli.explain:explain", "Say why a recent request went where it went."),
    "hooks": ("pointsman.cli.reference:hooks", "Print the reference of all hooks."),
    "new-plugin": ("pointsman.cli.scaffold:new_plugin", "Write a new plugin distribution, complete with tests."),
    "plugins": ("pointsman.cli.reference:plugins", "Show the installed plugins and their settings."),
    "reload": ("pointsman.cli.reload:reload", "Let a running proxy read its configuration again."),
    "requests": ("pointsman.cli.explain:requests", "List the last finished requests."),
    "schema": ("pointsman.cli.reference:schema", "Print a JSON schema of the configuration, for editors."),
    "status": ("pointsman.cli.status:status", "Show how a running proxy and its plugins are doing."),
    "top": ("pointsman.cli.top:top", "Show what a running proxy does now."),
}
_INSTALLED: Final = "pointsman.installed"


class Deferred(click.Command):
    """A command of which only the name and the summary are known until it is used.

    Args:
        name: Its name.
        summary: Its line in the help.
        load: Imports the command itself; raises ``ClickException`` when that fails.
    """

    def __init__(self, name: str, summary: str, load: Callable[[], click.Command]) -> None:
        super().__init__(name, help=summary, short_help=summary)
        self._load = load

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """Import the command and pass control to it."""
        try:
            command = self._load()
        except click.ClickException:
            # Shell completion needs words, not errors.
            if not extra.get("resilient_parsing"):
                raise
            return super().make_context(info_name, args, parent, **extra)
        return command.make_context(info_name, args, parent, **extra)


class Root(click.Group):
    """Finds commands by name, the built-in ones first."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the built-in commands, then the plugins that have commands."""
        plugins = (name for name in sorted(_installed(ctx)) if name not in _BUILT_IN)
        return [*_BUILT_IN, *(name for name in plugins if self.get_command(ctx, name) is not None)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command, or None when there is none of this name."""
        if cmd_name in _BUILT_IN:
            target, summary = _BUILT_IN[cmd_name]
            return Deferred(cmd_name, summary, partial(_import, target))
        installed = _installed(ctx)
        return _of_plugin(cmd_name, installed[cmd_name]) if cmd_name in installed else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that the first argument names; list the commands when there is none."""
        name = args[0]
        if not ctx.resilient_parsing and not name.startswith("-") and self.get_command(ctx, name) is None:
            if name in _installed(ctx):
                ctx.fail(f"the plugin {name!r} has no commands")
            known = self.list_commands(ctx)
            ctx.fail(
                f"there is no command {name!r}{nearest(name, known)}; there are: {', '.join(known)}. "
                "Installed plugins add their own."
            )
        return super().resolve_command(ctx, args)


def _installed(ctx: click.Context) -> dict[str, Available]:
    installed: dict[str, Available] = ctx.meta.setdefault(_INSTALLED, {})
    if not installed:
        installed.update(discover())
    return installed


def _of_plugin(name: str, available: Available) -> Deferred | None:
    """Return a plugin's group, or None when it has none; for a plugin that cannot be imported, a command that says so."""
    try:
        info = plugin_info(available)
    except PluginLoadError as err:
        return Deferred(name, "Cannot be loaded: see 'pointsman plugins list'.", partial(_fail, str(err)))
    if info.commands is None:
        return None
    return Deferred(name, info.summary, partial(plugin_commands, info.commands, name))


def _fail(message: str) -> click.Command:
    raise click.ClickException(message)


def _import(target: str) -> click.Command:
    """Import ``"package.module:attribute"``."""
    command = resolve_name(target)
    if not isinstance(command, click.Command):
        raise TypeError(f"it is a {type(command).__name__}, not a click command")
    return command


def plugin_commands(target: str, plugin: str) -> click.Command:
    """Import a plugin's commands.

    Args:
        target: Where they are, ``"package.module:attribute"``.
        plugin: The plugin's name.

    Raises:
        click.ClickException: they cannot be imported.
    """
    try:
        return _import(target)
    except BaseException as err:
        if isinstance(err, KeyboardInterrupt):
            raise
        raise click.ClickException(
            f"plugin {plugin!r}: its commands {target!r} cannot be imported: {type(err).__name__}: {err}"
        ) from err


@click.group(cls=Root, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="pointsman")
def main() -> None:
    """Traffic management for the LiteLLM proxy: check a configuration and its environment, examine a running proxy."""
