"""``pointsman status`` and ``pointsman plugins``: what runs in a proxy, and what is installed here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final

import click
from rich.table import Table

from ..client import AdminClient, admin_options, table, watchable, when
from ..errors import PluginLoadError
from ..host.discovery import GROUP, discover, plugin_info
from ..host.implementations import HOOK_NAMES
from ..plugin import PluginInfo
from ..specs import PROJECT
from .output import Finding, Level, show_findings, show_json, show_table

_MARK: Final = f"{PROJECT}_impl"


@click.command()
@watchable
@admin_options
def status(admin: AdminClient) -> None:
    """Show how the proxy and its plugins are doing.

    With several workers, one of them answers.
    """
    answer = admin.get("/status")
    tables = [lambda: _plugins(answer), lambda: _figures(answer)]
    if answer.get("problems"):
        tables.insert(0, lambda: table(["problem"], [(text,) for text in answer["problems"]], title="Problems"))
    if answer.get("faults"):
        tables.append(lambda: _faults(answer))
    if any(hook["blocked"] for hook in answer.get("hooks", ())):
        tables.append(lambda: _blocked(answer))
    admin.show(answer, *tables)


def _plugins(answer: Mapping[str, Any]) -> Table:
    rows = [(plugin["name"], plugin["ok"], plugin["summary"]) for plugin in answer["plugins"]]
    return table(["plugin", "ok", "summary"], rows, title="Plugins")


def _figures(answer: Mapping[str, Any]) -> Table:
    journal = answer["journal"]
    waiting = ", ".join(f"{plugin} {number}" for plugin, number in sorted(journal.get("waiting", {}).items()))
    tracing = answer["tracing"]
    rows = [
        ("version", answer["version"]),
        ("worker", answer["worker"]),
        ("uptime", f"{answer['uptime_s']:.0f} s"),
        ("requests", f"{answer['requests']}, {answer['requests_open']} open"),
        ("configuration", _configuration(answer)),
        ("store", answer["store"]["backend"]),
        ("tracing", "off" if not tracing["enabled"] else f"on, {tracing['failures']} failures"),
        ("spans", _spans(tracing.get("spans"))),
        ("settled for plugins", f"{journal.get('settled', 0)} of {journal.get('submitted', 0)}"),
        ("tried again", journal.get("retried")),
        ("taken over", journal.get("recovered")),
        ("not journaled", journal.get("unjournaled")),
        ("waiting", waiting or "none"),
    ]
    return table(["worker", "value"], rows, title="Worker")


def _configuration(answer: Mapping[str, Any]) -> str:
    last = answer.get("reload")
    text = f"generation {answer.get('generation', 1)}"
    if last is None:
        return f"{text}, as at the start"
    if last["ok"]:
        return f"{text}, reloaded {when(last['at'])}"
    return f"{text}; the reload of {when(last['at'])} changed nothing: {last['error']}"


def _spans(counts: Mapping[str, Any] | None) -> str:
    if counts is None:
        return "not counted: none are made, or another's pipeline exports them"
    return f"{counts['exported']} exported, {counts['dropped']} lost, {counts['waiting']} waiting"


def _faults(answer: Mapping[str, Any]) -> Table:
    rows = [(fault["plugin"], fault["hook"], fault["count"]) for fault in answer["faults"]]
    return table(["plugin", "hook", "faults"], rows, title="Faults since the start")


def _blocked(answer: Mapping[str, Any]) -> Table:
    rows = [
        (
            hook["plugin"],
            hook["hook"],
            hook["blocked"],
            f"{hook['longest_ms']:.0f} ms",
            hook.get("held_at") or "not seen",
        )
        for hook in answer["hooks"]
        if hook["blocked"]
    ]
    return table(["plugin", "hook", "times", "at most", "where"], rows, title="Held up all other requests")


@dataclass(frozen=True, slots=True)
class Installed:
    """One installed plugin.

    Attributes:
        name: Its name in the configuration.
        packages: The distributions that provide it, with their versions; more than one is an error.
        summary: One line.
        commands: Whether it has a command group.
        hooks: The hooks it implements; None when that depends on its configuration.
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
    """List the installed plugins, with the reason for those that cannot be imported."""
    plugins = installed()
    if json_wanted:
        show_json({"plugins": [asdict(plugin) for plugin in plugins]})
        return
    if not plugins:
        click.echo("No plugins are installed; for example 'pip install pointsman-registry'.")
        return
    rows = [(p.name, ", ".join(p.packages), p.summary, _hooks_text(p)) for p in plugins]
    show_table(table(["plugin", "package", "summary", "hooks"], rows))
    show_findings([Finding(Level.FAILED, p.name, p.error) for p in plugins if p.error])


def installed() -> list[Installed]:
    """Return the installed plugins by name; one that is broken does not hide the others."""
    packages: dict[str, set[str]] = {}
    for point in entry_points(group=GROUP):
        packages.setdefault(point.name, set()).add(_package(point))
    result = []
    for name, available in sorted(discover().items()):
        provided_by = tuple(sorted(packages[name]))
        try:
            info = plugin_info(available)
        except PluginLoadError as err:
            result.append(Installed(name, provided_by, error=str(err).removeprefix(f"plugin {name!r}: ")))
            continue
        result.append(
            Installed(name, provided_by, summary=info.summary, commands=info.commands is not None, hooks=_hooks(info))
        )
    return result


def _package(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else "unknown"


def _hooks(info: PluginInfo) -> tuple[str, ...] | None:
    """Return the hooks of the plugin's class, or of the object that its factory builds from the default configuration."""
    plugin: object = info.factory
    if not isinstance(plugin, type):
        try:
            plugin = info.factory(info.config())
        except Exception:  # noqa: BLE001 - it needs a configuration, and there is none yet
            return None
    return tuple(hook for hook in HOOK_NAMES if hasattr(getattr(plugin, hook, None), _MARK))


def _hooks_text(plugin: Installed) -> str:
    if plugin.error:
        return "cannot be used"
    return "depends on its configuration" if plugin.hooks is None else ", ".join(plugin.hooks)
