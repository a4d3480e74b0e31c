"""``pointsman registry ...``: the admin routes as commands."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import click
from rich.table import Table

from pointsman.client import AdminClient, admin_options, segment, signed, table, watchable, when

BASE: Final = "/registry"


@click.group()
def registry() -> None:
    """Versions of a model: register, promote, roll back, measure."""


@registry.command("list")
@click.option("--name", help="Only the versions of this model.")
@watchable
@admin_options
def list_versions(admin: AdminClient, name: str | None) -> None:
    """List the versions in the order of their ids."""
    answer = admin.get(f"{BASE}/versions", name=name)
    admin.show(answer, lambda: _versions(answer["versions"]))


@registry.command()
@click.argument("version_id", metavar="ID")
@admin_options
def get(admin: AdminClient, version_id: str) -> None:
    """Show one version."""
    _show_version(admin, admin.get(f"{BASE}/versions/{segment(version_id)}"))


@registry.command()
@click.option("--id", "version_id", required=True, help="Unique among all versions.")
@click.option("--name", required=True, help="What clients ask for as their model.")
@click.option("--version", "version_text", required=True, help="Shown to clients in x-pointsman-version.")
@click.option("--path", required=True, help="A model group or deployment id of the gateway.")
@click.option("--format", "format_", default="", help="Free text.")
@click.option("--metric", "metrics", multiple=True, metavar="NAME=NUMBER", help="Measured elsewhere; may be repeated.")
@click.option("--activate", "active", is_flag=True, help="Make it the active version at once.")
@admin_options
def register(
    admin: AdminClient,
    *,
    version_id: str,
    name: str,
    version_text: str,
    path: str,
    format_: str,
    metrics: Sequence[str],
    active: bool,
) -> None:
    """Register a version."""
    body = {
        "id": version_id,
        "name": name,
        "version": version_text,
        "path": path,
        "format": format_,
        "metrics": dict(_metric(text) for text in metrics),
        "active": active,
    }
    _show_version(admin, admin.post(f"{BASE}/versions", body))


@registry.command()
@click.argument("version_id", metavar="ID")
@signed
@admin_options
def activate(admin: AdminClient, version_id: str, who: str | None, reason: str | None) -> None:
    """Make a version the active one of its model."""
    _show_version(admin, admin.post(f"{BASE}/versions/{segment(version_id)}/activate", _signature(who, reason)))


@registry.command()
@click.argument("name")
@signed
@admin_options
def rollback(admin: AdminClient, name: str, who: str | None, reason: str | None) -> None:
    """Return to the version that was active before; again, to the one before that."""
    _show_version(admin, admin.post(f"{BASE}/rollback", _signature(who, reason), name=name))


@registry.command()
@click.argument("version_id", metavar="ID")
@click.option("--force", is_flag=True, help="Also when it is active: its model then answers 503.")
@signed
@admin_options
def delete(admin: AdminClient, version_id: str, *, force: bool, who: str | None, reason: str | None) -> None:
    """Delete a version."""
    path = f"{BASE}/versions/{segment(version_id)}"
    answer = admin.request("DELETE", path, params={"force": force or None}, body=_signature(who, reason))
    admin.show(answer, lambda: table(["deleted"], [[answer["deleted"]]]))


@registry.command()
@click.argument("name", required=False)
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="Newest entries.")
@admin_options
def history(admin: AdminClient, name: str | None, limit: int) -> None:
    """Show which version was activated when, by whom and why; of all models without NAME."""
    answer = admin.get(f"{BASE}/history", name=name, limit=limit)
    columns = ["at", "name", "action", "version", "before", "who", "reason"]
    admin.show(
        answer,
        lambda: table(
            columns,
            [
                [when(e["at"]), e["name"], e["action"], e["version_id"], e["previous_id"], e["who"], e["reason"]]
                for e in answer["history"]
            ],
        ),
    )


@registry.command()
@click.argument("version_id", metavar="[ID]", required=False)
@click.option("--name", help="Only the versions of this model.")
@click.option("--reset", is_flag=True, help="Count from now on.")
@watchable
@admin_options
def metrics(admin: AdminClient, version_id: str | None, name: str | None, *, reset: bool) -> None:
    """Show the live metrics of one version or of all, or reset them."""
    if version_id is not None and name is not None:
        raise click.UsageError("give ID or --name, not both")
    path = f"{BASE}/metrics" + (f"/{segment(version_id)}" if version_id is not None else "")
    if reset:
        done = admin.delete(path, name=name)
        admin.show(done, lambda: table(["reset"], [[each] for each in done["reset"]]))
        return
    answer = admin.get(path, name=name)
    admin.show(answer, lambda: _metrics([answer] if version_id is not None else answer["metrics"]))


def _show_version(admin: AdminClient, answer: Any) -> None:
    admin.show(answer, lambda: _versions([answer]))


def _versions(versions: Sequence[Any]) -> Table:
    columns = ["id", "name", "version", "path", "format", "active", "created", "metrics"]
    return table(
        columns,
        [
            [
                v["id"],
                v["name"],
                v["version"],
                v["path"],
                v["format"],
                v["active"],
                when(v["created_at"]),
                " ".join(f"{name}={value:g}" for name, value in sorted(v["metrics"].items())),
            ]
            for v in versions
        ],
    )


def _metrics(metrics: Sequence[Any]) -> Table:
    times = ["p50 ms", "p95 ms", "p99 ms", "first token p50 ms", "p95 ms"]
    columns = ["id", "requests", "errors", "error rate", *times, "updated"]
    return table(
        columns,
        [
            [
                m["id"],
                m["requests"],
                m["errors"],
                f"{m['error_ratio']:.1%}",
                *(m["latency_ms"][p] if m["latency_ms"] else None for p in ("p50", "p95", "p99")),
                *(m["first_token_ms"][p] if m["first_token_ms"] else None for p in ("p50", "p95")),
                when(m["updated_at"]),
            ]
            for m in metrics
        ],
    )


def _metric(text: str) -> tuple[str, float]:
    name, _, number = text.rpartition("=")
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if not name or not math.isfinite(value):
        raise click.BadParameter(f"{text!r} is not NAME=NUMBER", param_hint="--metric")
    return name, value


def _signature(who: str | None, reason: str | None) -> dict[str, object]:
    return {key: value for key, value in (("who", who), ("reason", reason)) if value is not None}
