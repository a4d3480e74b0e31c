"""``pointsman quota ...``: tenants on the command line."""

from __future__ import annotations

import json
import secrets
import sys
from decimal import Decimal
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import click

from pointsman.client import AdminClient, admin_options, segment, table, watchable

from .tenants import checked_key, hash_key, made_by_us

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.table import Table

_SALT_BYTES: Final = 16
_MICROS: Final = 1_000_000


@click.group("quota")
def group() -> None:
    """Show, add and remove tenants."""


@group.command("list")
@watchable
@admin_options
def list_tenants(admin: AdminClient) -> None:
    """Show all tenants."""
    answer = admin.get("/quota/tenants")
    admin.show(answer, lambda: _overview(answer["tenants"]))
    if not admin.as_json:
        for problem in answer["problems"]:
            click.echo(f"left out: {problem}", err=True)


@group.command("show")
@click.argument("tenant")
@watchable
@admin_options
def show(admin: AdminClient, tenant: str) -> None:
    """Show a TENANT: its limits, keys, and what is used."""
    answer = admin.get(f"/quota/tenants/{segment(tenant)}")
    admin.show(
        answer,
        lambda: _overview([answer]),
        lambda: _usage(answer),
        *([lambda: _keys(answer)] if answer["keys"] else []),
    )


@group.command("add")
@click.argument("file", type=click.File("rb"))
@click.option("--replace", is_flag=True, help="Replace the tenant with this id.")
@admin_options
def add(admin: AdminClient, file: BinaryIO, replace: bool) -> None:
    """Add the tenant in FILE, a JSON object; '-' reads standard input.

    Its fields are those of the configuration. Raw keys go into 'api_keys', a list of {"name", "key"}; the gateway keeps
    their hashes only.
    """
    try:
        body = json.loads(file.read())
    except ValueError as err:
        raise click.ClickException(f"the tenant is not JSON: {err}") from err
    if not isinstance(body, dict):
        raise click.ClickException(f"the tenant must be one JSON object, not {type(body).__name__}")
    answer = admin.post("/quota/tenants", body, replace="true" if replace else None)
    admin.show(answer, lambda: _overview([answer]))


@group.command("remove")
@click.argument("tenant")
@admin_options
def remove(admin: AdminClient, tenant: str) -> None:
    """Remove a TENANT that was added at run time."""
    answer = admin.delete(f"/quota/tenants/{segment(tenant)}")
    admin.show(answer, lambda: table(["removed"], [(answer["removed"],)]))


@group.command("hash-key")
@click.option("--like", metavar="HASH", help="Use the salt of this hash: keys that share one are found faster.")
def hash_key_command(like: str | None) -> None:
    """Read an API key and print its salted hash for the configuration.

    The key is asked for on a terminal, else it is what stands on standard input.
    """
    salt = secrets.token_hex(_SALT_BYTES)
    if like is not None:
        try:
            salt = made_by_us(like).split("$")[1]
        except ValueError as err:
            raise click.BadParameter(str(err), param_hint="--like") from None
    written = click.prompt("API key", hide_input=True, err=True) if sys.stdin.isatty() else sys.stdin.read()
    try:
        key = checked_key(written)
    except ValueError as err:
        raise click.ClickException(str(err)) from None
    click.echo(hash_key(key, salt))


def _overview(tenants: list[dict[str, Any]]) -> Table:
    return table(
        ["tenant", "name", "from", "models", "limits", "keys", "priority", "dry run"],
        [
            (
                tenant["id"],
                tenant["name"] or None,
                tenant["source"],
                ", ".join(tenant["models"]) or "all",
                _limits(tenant["limits"]),
                len(tenant["keys"]),
                tenant["priority"],
                tenant["dry_run"],
            )
            for tenant in tenants
        ],
    )


def _limits(limits: Mapping[str, Any]) -> str:
    shown = (f"{name}={value}" for name, value in limits.items() if name != "burst_s")
    return ", ".join(shown) or "none"


def _keys(tenant: Mapping[str, Any]) -> Table:
    rows = [(key["name"], key["hash"], _limits(key.get("limits", {}))) for key in tenant["keys"]]
    return table(["key", "salted hash", "limits"], rows)


def _usage(tenant: Mapping[str, Any]) -> Table:
    return table(
        [
            "scope",
            "name",
            "in flight",
            "reserved",
            "requests left",
            "tokens left",
            "tokens today",
            "this month",
            "$ today",
            "$ this month",
        ],
        [
            (
                row["scope"],
                row["name"],
                row["requests_in_flight"],
                row["reserved_tokens"],
                row.get("requests_left"),
                row.get("tokens_left"),
                row["day_tokens"],
                row["month_tokens"],
                str(Decimal(row["day_usd_micros"]) / _MICROS),
                str(Decimal(row["month_usd_micros"]) / _MICROS),
            )
            for row in tenant["usage"]
        ],
    )
