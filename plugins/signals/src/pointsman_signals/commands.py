"""``pointsman signals ...``: the state of the deployments on the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from pointsman.client import AdminClient, admin_options, segment, table, watchable, when

if TYPE_CHECKING:
    from rich.table import Table


_DISTRIBUTIONS = ("latency_ms", "first_token_ms", "tokens_per_s")


@click.group()
def signals() -> None:
    """See the state of every deployment."""


@signals.command("list")
@click.option("--group", help="Only this model group.")
@click.option("--provider", help="Only this provider.")
@click.option(
    "--status", type=click.Choice(["available", "degraded", "exhausted", "unknown"]), help="Only this status."
)
@watchable
@admin_options
def list_signals(admin: AdminClient, group: str | None, provider: str | None, status: str | None) -> None:
    """Show all deployments and provider accounts."""
    answer = admin.get("/signals", group=group, provider=provider, status=status)
    narrowed = group or provider or status
    admin.show(
        answer, lambda: _overview(answer["signals"]), *([] if narrowed else [lambda: _accounts(answer["accounts"])])
    )


@signals.command("show")
@click.argument("deployment")
@watchable
@admin_options
def show(admin: AdminClient, deployment: str) -> None:
    """Show everything about one DEPLOYMENT, quota by quota."""
    answer = admin.get(f"/signals/{segment(deployment)}")
    admin.show(answer, lambda: _overview([answer]), lambda: _limits(answer), lambda: _figures(answer))


@signals.command("refresh")
@click.argument("deployment")
@admin_options
def refresh(admin: AdminClient, deployment: str) -> None:
    """Check a DEPLOYMENT now."""
    answer = admin.post(f"/signals/{segment(deployment)}/refresh")
    admin.show(answer, lambda: _overview([answer]))
    if not answer["checked"] and not admin.as_json:
        click.echo(
            "No check is configured for it; these figures come from its traffic. To add one, set 'checks' in the configuration."
        )


@signals.command("reset")
@click.argument("deployment")
@admin_options
def reset(admin: AdminClient, deployment: str) -> None:
    """Forget the statistics and failures of a DEPLOYMENT, in all workers. Quotas are kept."""
    answer = admin.post(f"/signals/{segment(deployment)}/reset")
    admin.show(answer, lambda: _overview([answer]))


def _overview(rows: list[dict[str, Any]]) -> Table:
    return table(
        [
            "deployment",
            "group",
            "status",
            "until",
            "left",
            "in flight",
            "p50 ms",
            "p95 ms",
            "first token ms",
            "errors",
            "why",
        ],
        [
            (
                row["deployment_id"],
                row["group"],
                row["status"] if row["active"] else f"{row['status']} (not configured)",
                when(row["until"]) if row["until"] else None,
                _left(row["limits"]),
                row["in_flight"],
                _rounded(row["latency_ms"], "p50"),
                _rounded(row["latency_ms"], "p95"),
                _rounded(row["first_token_ms"], "p50"),
                None if row["error_ratio"] is None else f"{row['error_ratio']:.1%}",
                row["reason"] or row["last_error"],
            )
            for row in rows
        ],
    )


def _accounts(rows: list[dict[str, Any]]) -> Table:
    return table(
        ["account", "deployments", "status", "until", "in flight", "requests", "input tokens", "output tokens"],
        [
            (
                row["account"],
                len(row["deployments"]),
                row["status"],
                when(row["until"]) if row["until"] else None,
                row["in_flight"],
                row["extra"]["requests"],
                row["extra"]["input_tokens"],
                row["extra"]["output_tokens"],
            )
            for row in rows
        ],
        title="Accounts",
    )


def _limits(row: dict[str, Any]) -> Table:
    return table(
        ["quota", "window s", "limit", "left", "resets"],
        [
            (
                limit["axis"],
                limit["window_s"],
                limit["limit"],
                limit["remaining"],
                when(limit["resets_at"]) if limit["resets_at"] else None,
            )
            for limit in row["limits"]
        ],
        title="Quotas",
    )


def _figures(row: dict[str, Any]) -> Table:
    times = (
        "recorded_at",
        "last_used_at",
        "last_success_at",
        "last_error_at",
        "last_check_at",
        "last_check_success_at",
    )
    facts: list[tuple[str, object]] = [(name.replace("_", " "), when(row[name])) for name in times]
    facts += [(f"mean {name}", row[name]["mean"]) for name in _DISTRIBUTIONS if row[name] and row[name]["mean"]]
    facts.append(("consecutive errors", row["consecutive_errors"]))
    facts += [("last error", row["last_error"] or None), ("account", row["account"]), ("weight", row["weight"])]
    return table(["figure", "value"], [*facts, *sorted(row["extra"].items())], title="Figures")


def _left(limits: list[dict[str, Any]]) -> str | None:
    known = [
        (one["remaining"] / one["limit"], one["axis"])
        for one in limits
        if one["limit"] and one["remaining"] is not None
    ]
    if not known:
        return None
    ratio, axis = min(known)
    return f"{ratio:.0%} {axis}"


def _rounded(quantiles: dict[str, float] | None, name: str) -> int | None:
    return None if quantiles is None else round(quantiles[name])
