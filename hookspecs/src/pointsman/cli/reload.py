"""``pointsman reload``: let a running proxy read its configuration again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click
from rich.table import Table

from ..client import AdminClient, admin_options, table, when


@click.command()
@admin_options
def reload(admin: AdminClient) -> None:
    """Let a running proxy read the 'pointsman:' section of its configuration again, without a restart.

    What is wrong changes nothing, and is said here and in the proxy's log. Requests in flight end with the plugins that
    they began with. Workers that share the store follow within two seconds, each from the file on its own machine.
    """
    answer = admin.post("/reload")
    admin.show(answer, lambda: _result(answer))
    for warning in answer["warnings"]:
        click.echo(f"warning: {warning}", err=True)


def _result(answer: Mapping[str, Any]) -> Table:
    rows = [
        ("generation", answer["generation"]),
        ("at", when(answer["at"])),
        *((name, ", ".join(answer[name]) or "none") for name in ("started", "stopped", "kept")),
    ]
    return table(["reload", "value"], rows, title="Reload")
