"""``pointsman racing ...``: races on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pointsman.client import AdminClient, admin_options, segment, table, watchable

if TYPE_CHECKING:
    from rich.table import Table

_MICROS = 1_000_000
COUNTS = ("attempts", "wins", "losses", "cancelled", "failures")


@click.group()
def racing() -> None:
    """Show races, and export or import their observations."""


@racing.command("list")
@watchable
@admin_options
def list_races(admin: AdminClient) -> None:
    """Show all races and what is known about the deployments."""
    answer = admin.get("/racing")
    admin.show(answer, lambda: _races(answer["races"]), lambda: _deployments(answer["deployments"]))


@racing.command("show")
@click.argument("name")
@watchable
@admin_options
def show(admin: AdminClient, name: str) -> None:
    """Show the race NAME with its candidates."""
    answer = admin.get(f"/racing/{segment(name)}")
    admin.show(answer, lambda: _races([answer]), lambda: _candidates(answer), lambda: _counts(answer))


@racing.command("export")
@click.argument("file", type=click.Path(dir_okay=False, writable=True, path_type=Path))
@admin_options
def export(admin: AdminClient, file: Path) -> None:
    """Write what is known about all deployments to FILE, as JSON."""
    answer = admin.get("/racing/performance")
    file.write_text(json.dumps(answer, indent=1) + "\n", encoding="utf-8")
    if not admin.as_json:
        click.echo(f"{len(answer['deployments'])} deployments written to {file}")


@racing.command("import")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@admin_options
def import_(admin: AdminClient, file: Path) -> None:
    """Import what was exported to FILE; it counts like the observations of one more worker."""
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as err:
        raise click.ClickException(f"{file} is not JSON: {err}") from err
    answer = admin.post("/racing/performance", document)
    admin.show(answer, lambda: table(["imported"], [(name,) for name in answer["imported"]]))


def _races(rows: list[dict[str, Any]]) -> Table:
    return table(
        ["name", "kind", "strategy", "healthy", "requests", "answered", "overtaken", "extra", "denied", "losers USD"],
        [
            (
                row["name"],
                row["kind"],
                row["strategy"],
                row["healthy"],
                row["counts"]["requests"],
                row["counts"]["answered"],
                row["counts"]["overtaken"],
                None if row["extra_ratio"] is None else f"{row['extra_ratio']:.2%}",
                row["counts"]["denied"],
                row["counts"]["losers_usd_micros"] / _MICROS,
            )
            for row in rows
        ],
        title="Races",
    )


def _deployments(rows: list[dict[str, Any]], title: str = "Deployments") -> Table:
    return table(
        ["deployment", "healthy", *COUNTS, "first token p50", "p95", "p99", "whole p50", "score"],
        [
            (
                row["deployment_id"],
                row["healthy"],
                *(row[name] for name in COUNTS),
                *(_rounded(row["first_token_ms"], name) for name in ("p50", "p95", "p99")),
                _rounded(row["whole_ms"], "p50"),
                row["score"],
            )
            for row in rows
        ],
        title=title,
    )


def _candidates(race: dict[str, Any]) -> Table:
    rows = [
        {
            **row,
            "deployment_id": row["deployment_id"]
            if row["deployment_id"] == one["target"]
            else f"{one['target']}: {row['deployment_id']}",
        }
        for one in race["candidates"]
        for row in one["deployments"]
    ]
    return _deployments(rows, title="Candidates")


def _counts(race: dict[str, Any]) -> Table:
    return table(["count", "value"], list(race["counts"].items()), title="Counts")


def _rounded(figures: dict[str, float] | None, name: str) -> int | None:
    return None if figures is None else round(figures[name])
