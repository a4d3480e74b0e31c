"""``pointsman balance ...``: health of the deployments, tactics and live settings on the command line."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from pointsman.client import AdminClient, admin_options, segment, table, watchable, when

from .tactics import installed

if TYPE_CHECKING:
    from rich.table import Table


@click.group()
def balance() -> None:
    """See and change how deployments are chosen."""


@balance.command("list")
@click.option("--group", help="Only this model group.")
@watchable
@admin_options
def list_groups(admin: AdminClient, group: str | None) -> None:
    """Show all model groups with their deployments and breakers."""
    answer = admin.get("/balance", group=group)
    admin.show(answer, lambda: _groups(answer["groups"]), lambda: _deployments(answer["groups"]))
    if not admin.as_json:
        for problem in answer["problems"]:
            click.echo(problem, err=True)


@balance.command("show")
@click.argument("group")
@watchable
@admin_options
def show(admin: AdminClient, group: str) -> None:
    """Show one model GROUP with all its settings."""
    answer = admin.get(f"/balance/groups/{segment(group)}")
    admin.show(answer, lambda: _deployments([answer]), lambda: _settings(answer))


@balance.command("tactics")
@click.option("--json", "as_json", is_flag=True, help="Print the answer as JSON.")
def tactics(as_json: bool) -> None:
    """Show the tactics that are installed here; needs no proxy."""
    found = installed()
    for problem in found.broken.values():
        click.echo(f"Left out: {problem}", err=True)
    answer = {name: kind.summary for name, kind in sorted(found.items())}
    # Only for the format of its output.
    with AdminClient(as_json=as_json) as admin:
        admin.show(answer, lambda: table(["tactic", "chooses"], answer.items()))


@balance.command("set")
@click.argument("group")
@click.option("--tactic", help="A tactic's name.")
@click.option("--setting", "settings", multiple=True, metavar="NAME=VALUE", help="A setting of the tactic.")
@click.option("--breaker", "breaker", multiple=True, metavar="NAME=VALUE", help="A breaker setting, or preset=NAME.")
@admin_options
def set_group(
    admin: AdminClient, group: str, tactic: str | None, settings: tuple[str, ...], breaker: tuple[str, ...]
) -> None:
    """Override the settings of a model GROUP in all workers until they are unset; replaces earlier overrides."""
    body: dict[str, object] = {}
    if tactic is not None:
        body["tactic"] = {"name": tactic, **_pairs(settings, "--setting")}
    elif settings:
        raise click.UsageError("--setting belongs to a tactic; give --tactic as well")
    if breaker:
        body["breaker"] = _pairs(breaker, "--breaker")
    if not body:
        raise click.UsageError("nothing to change: give --tactic or --breaker")
    answer = admin.request("PUT", f"/balance/groups/{segment(group)}", body=body)
    admin.show(answer, lambda: _groups([answer]))


@balance.command("unset")
@click.argument("group")
@admin_options
def unset_group(admin: AdminClient, group: str) -> None:
    """Restore the configured settings of a model GROUP."""
    answer = admin.delete(f"/balance/groups/{segment(group)}")
    admin.show(answer, lambda: table(["group", "changed"], [(answer["group"], answer["changed"])]))


@balance.command("reset")
@click.argument("deployment")
@click.option("--group", help="Only in this model group.")
@admin_options
def reset(admin: AdminClient, deployment: str, group: str | None) -> None:
    """Close the breakers of a DEPLOYMENT, in all workers."""
    answer = admin.post(f"/balance/{segment(deployment)}/reset", group=group)
    admin.show(answer, lambda: _deployments([{"deployments": answer["reset"]}]))


@balance.command("probe")
@click.argument("deployment")
@click.option("--group", help="Only in this model group.")
@admin_options
def probe(admin: AdminClient, deployment: str, group: str | None) -> None:
    """Call a DEPLOYMENT now with one token, and show the outcome."""
    answer = admin.post(f"/balance/{segment(deployment)}/probe", group=group)
    admin.show(answer, lambda: _deployments([{"deployments": [answer]}]))
    if not admin.as_json:
        click.echo("It answered." if answer["ok"] else f"It did not answer: {answer['message']}")


def _pairs(given: tuple[str, ...], option: str) -> dict[str, object]:
    pairs: dict[str, object] = {}
    for pair in given:
        name, equals, text = pair.partition("=")
        if not equals or not name:
            raise click.BadParameter(f"{pair!r} is not NAME=VALUE", param_hint=option)
        try:
            pairs[name] = json.loads(text)
        except ValueError:
            pairs[name] = text
    return pairs


def _groups(rows: list[dict[str, Any]]) -> Table:
    return table(
        ["group", "tactic", "deployments", "healthy", "breaker", "changed"],
        [
            (
                row["group"],
                row["tactic"]["name"],
                len(row["deployments"]),
                sum(deployment["breaker"]["state"] == "closed" for deployment in row["deployments"]),
                row["breaker"]["preset"] if row["breaker"]["enabled"] else "off",
                row["changed"],
            )
            for row in rows
        ],
    )


def _deployments(groups: list[dict[str, Any]]) -> Table:
    return table(
        [
            "deployment",
            "group",
            "breaker",
            "until",
            "share",
            "in flight",
            "wait ms",
            "expected ms",
            "tokens/s",
            "errors",
            "attempts",
            "failed",
            "why",
        ],
        [
            (
                row["deployment_id"],
                row["group"],
                row["breaker"]["state"].replace("_", "-"),
                when(row["breaker"]["until"]) if row["breaker"]["until"] else None,
                f"{row['breaker']['share_ratio']:.0%}",
                row["in_flight"],
                _rounded(row["wait_ms"]),
                _rounded(row["believed_wait_ms"]),
                _rounded(row["tokens_per_s"]),
                f"{row['error_ratio']:.0%}",
                row["attempts"],
                row["failed"],
                row["breaker"]["reason"] or None,
            )
            for group in groups
            for row in group["deployments"]
        ],
    )


def _settings(row: dict[str, Any]) -> Table:
    rows = [(f"{part}.{name}", value) for part in ("tactic", "breaker") for name, value in row[part].items()]
    return table(["setting", "value"], rows, title="Settings")


def _rounded(value: float | None) -> int | None:
    return None if value is None else round(value)
