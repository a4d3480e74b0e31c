"""``pointsman plugins list``: what is installed, whether it is used or not."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Final

import click

from ..client import table
from ..errors import PluginLoadError
from ..host.manager import GROUP, HOOK_NAMES, discover, plugin_info
from ..plugin import PluginInfo
from ..specs import PROJECT
from .output import Finding, Level, show_findings, show_json, show_table

_MARK: Final = f"{PROJECT}_impl"


@dataclass(frozen=True, slots=True)
class Installed:
    """One installed plugin.

    Attributes:
        name: Its name in the configuration.
        packages: The distributions that provide it, with their versions; more than one is an error.
        summary: One line.
        commands: Whether it has a command group.
        hooks: The hooks it implements; None when that is known only once it is configured.
        error: Why it cannot be used, or None.
    """

    name: str
    packages: tuple[str, ...]
    summary: str = ""
    commands: bool = False
    hooks: tuple[str, ...] | None = None
    error: str | None = None


@click.group()
def plugins() -> None:
    """Show the installed plugins."""


@plugins.command("list")
@click.option("--json", "json_wanted", is_flag=True, help="Print the answer as JSON.")
def list_plugins(*, json_wanted: bool) -> None:
    """List the installed plugins, those that cannot be imported with the reason."""
    found = installed()
    if json_wanted:
        show_json({"plugins": [asdict(each) for each in found]})
        return
    if not found:
        click.echo("No plugins are installed; for example 'pip install pointsman-registry'.")
        return
    rows = [(each.name, ", ".join(each.packages), each.summary, _hooks_in_words(each)) for each in found]
    show_table(table(["plugin", "package", "summary", "hooks"], rows))
    show_findings([Finding(Level.FAILED, each.name, each.error) for each in found if each.error])


def installed() -> list[Installed]:
    """Return the installed plugins by name; one that is broken does not hide the others."""
    packages: dict[str, set[str]] = {}
    for point in entry_points(group=GROUP):
        packages.setdefault(point.name, set()).add(_package(point))
    found = []
    for name, available in sorted(discover().items()):
        provided_by = tuple(sorted(packages[name]))
        try:
            info = plugin_info(available)
        except PluginLoadError as err:
            found.append(Installed(name, provided_by, error=str(err).removeprefix(f"plugin {name!r}: ")))
            continue
        found.append(
            Installed(name, provided_by, summary=info.summary, commands=info.commands is not None, hooks=_hooks(info))
        )
    return found


def _package(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else "unknown"


def _hooks(info: PluginInfo) -> tuple[str, ...] | None:
    """Return the hooks of the plugin's class, or of the object that its factory makes of the default configuration."""
    made: object = info.factory
    if not isinstance(made, type):
        try:
            made = info.factory(info.config())
        except Exception:  # noqa: BLE001 - it needs a configuration that nobody has written yet
            return None
    return tuple(hook for hook in HOOK_NAMES if hasattr(getattr(made, hook, None), _MARK))


def _hooks_in_words(each: Installed) -> str:
    if each.error:
        return "cannot be used"
    return "depends on its configuration" if each.hooks is None else ", ".join(each.hooks)
