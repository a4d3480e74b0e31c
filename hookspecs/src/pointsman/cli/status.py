"""``pointsman status``: how a running proxy and its plugins are doing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click
from rich.table import Table

from ..client import AdminClient, admin_options, table


@click.command()
@admin_options
def status(admin: AdminClient) -> None:
    """Show how the proxy and its plugins are doing.

    With several workers, it is one of them that answers.
    """
    answer = admin.get("/status")
    tables = [lambda: _plugins(answer), lambda: _figures(answer)]
    if answer.get("faults"):
        tables.append(lambda: _faults(answer))
    admin.show(answer, *tables)


def _plugins(answer: Mapping[str, Any]) -> Table:
    rows = [(each["name"], each["ok"], each["summary"]) for each in answer["plugins"]]
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
        ("store", answer["store"]["backend"]),
        ("tracing", "off" if not tracing["enabled"] else f"on, {tracing['failures']} failures"),
        ("settled for plugins", f"{journal.get('settled', 0)} of {journal.get('submitted', 0)}"),
        ("tried again", journal.get("retried")),
        ("taken over", journal.get("recovered")),
        ("not journaled", journal.get("unjournaled")),
        ("waiting", waiting or "none"),
    ]
    return table(["worker", "value"], rows, title="Worker")


def _faults(answer: Mapping[str, Any]) -> Table:
    rows = [(each["plugin"], each["hook"], each["count"]) for each in answer["faults"]]
    return table(["plugin", "hook", "faults"], rows, title="Faults since the start")
