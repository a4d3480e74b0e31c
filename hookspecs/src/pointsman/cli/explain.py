"""``pointsman explain`` and ``pointsman requests``: what the workers remember of their last requests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click
from rich.table import Table

from ..client import AdminClient, admin_options, segment, table, watchable, when
from ..text import printable


@click.command()
@click.argument("request_id")
@admin_options
def explain(admin: AdminClient, request_id: str) -> None:
    """Say why a recent request went where it went.

    REQUEST_ID is the answer's header x-pointsman-request-id, x-pointsman-trace-id, or LiteLLM's call id. A websocket is
    explained with the responses on it. Each worker remembers its last 500 finished requests ('recent_requests') and as many
    that were never admitted, without prompts, answers and keys; with several workers, all of them are asked.
    """
    answer = admin.get(f"/requests/{segment(request_id)}")
    if admin.as_json:
        admin.show(answer)
        return
    for line in answer["lines"]:
        click.echo(printable(line))


@click.command()
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="How many, newest first.")
@watchable
@admin_options
def requests(admin: AdminClient, limit: int) -> None:
    """List the last finished requests of the worker that answers."""
    answer = admin.get("/requests", limit=limit)
    admin.show(answer, lambda: requests_table(answer))


def requests_table(answer: Mapping[str, Any]) -> Table:
    """Return the rows of ``GET /pointsman/requests`` as a table."""
    rows = [
        (
            when(row["at"]),
            row["request_id"],
            row["model"] or row.get("path"),
            row["tenant"],
            row["outcome"] if not row["own"] else f"{row['outcome']} (own call)",
            row["status"] or None,
            row["attempts"],
            row["deployment"],
            None if row["duration_ms"] is None else round(row["duration_ms"]),
            f"{row['cost_usd_micros'] / 1_000_000:.6f}",
        )
        for row in answer["requests"]
    ]
    columns = ["at", "request", "model", "tenant", "outcome", "status", "attempts", "answered by", "ms", "USD"]
    return table(columns, rows, title=f"Recent requests of {answer['worker']}")
