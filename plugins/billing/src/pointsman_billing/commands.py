"""``pointsman billing ...``: usage, reconciliation and dead letters on the command line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final, TextIO

import click

from pointsman.client import AdminClient, AdminFailure, admin_options, segment, table, when

from . import events
from .usage import PERIODS, as_csv

if TYPE_CHECKING:
    from rich.table import Table

_MICROS: Final = 1_000_000
_STATES: Final = ("billed", "unpriced", "free", "pending", "dead", "total")


@click.group("billing")
def group() -> None:
    """See what was used and what it cost, reconcile, deliver dead letters again."""


@group.command("usage")
@click.option("--tenant", help="Only this tenant.")
@click.option("--model", help="Only this model, as clients ask for it.")
@click.option("--from", "from_", help="Unix seconds or ISO 8601; 31 days ago by default.")
@click.option("--to", help="Unix seconds or ISO 8601, exclusive.")
@click.option("--group-by", default=None, help="tenant, model, kind, or several with commas; 'none' adds all up.")
@click.option("--period", type=click.Choice(PERIODS), default="day", show_default=True)
@click.option("--csv", "csv_", is_flag=True, help="Print CSV.")
@admin_options
def usage(admin: AdminClient, /, *, csv_: bool, **query: str | None) -> None:
    """Show tokens and money by tenant, model, hour, day or month."""
    query["from"] = query.pop("from_")
    answer = admin.get("/billing/usage", **query)
    if csv_:
        click.echo(as_csv(answer["usage"]), nl=False)
        return
    admin.show(answer, lambda: _usage(answer))


@group.command("reconcile")
@click.option("--from", "from_", help="Unix seconds or ISO 8601; 31 days ago by default.")
@click.option("--to", help="Unix seconds or ISO 8601, exclusive.")
@click.option("--strict", is_flag=True, help="Exit with 1 when something needs attention.")
@admin_options
def reconcile(admin: AdminClient, from_: str | None, to: str | None, strict: bool) -> None:
    """Count every settled request in exactly one state, and compare the sums with the gateway's own."""
    answer = admin.get("/billing/reconcile", **{"from": from_, "to": to})
    tables = [lambda: _states(answer), lambda: _money(answer), lambda: _sinks(answer["sinks"])]
    if answer["models_to_look_at"]:
        tables.append(lambda: _models(answer["models_to_look_at"]))
    admin.show(answer, *tables)
    if strict and not answer["in_order"]:
        raise AdminFailure("something needs attention: see unpriced, dead and difference")


@group.command("show")
@click.argument("request_id")
@admin_options
def show(admin: AdminClient, request_id: str) -> None:
    """Show the bill of one REQUEST_ID (the answer's x-pointsman-request-id)."""
    answer = admin.get(f"/billing/requests/{segment(request_id)}")
    head = ["request_id", "tenant_id", "model", "state", "dead_in", "pending_in"]
    admin.show(
        answer,
        lambda: table(head, [[_joined(answer[name]) for name in head]]),
        lambda: _events(answer["events"]),
    )


@group.command("sinks")
@admin_options
def sinks(admin: AdminClient) -> None:
    """Show how each sink is doing."""
    answer = admin.get("/billing/sinks")
    admin.show(answer, lambda: _sinks(answer["sinks"]))


@group.command("dead")
@click.option("--sink", help="Only this sink's.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=100, show_default=True)
@admin_options
def dead(admin: AdminClient, sink: str | None, limit: int) -> None:
    """List dead letters."""
    answer = admin.get("/billing/dead", sink=sink, limit=limit)
    rows = [
        (
            f"{d['sink']} (removed)" if d["sink_removed"] else d["sink"],
            d["event"]["id"],
            d["event"]["tenant_id"],
            d["tries"],
            when(d["at"]),
            d["error"],
            d["again"],
        )
        for d in answer["dead"]
    ]
    columns = ["sink", "event", "tenant", "tries", "given up", "because", "again"]
    admin.show(answer, lambda: table(columns, rows, title=f"{answer['total']} dead letters"))


@group.command("redrive")
@click.argument("ids", nargs=-1)
@click.option("--sink", help="Only this sink's.")
@click.option("--all", "all_", is_flag=True, help="All of them; those of a removed sink stay.")
@admin_options
def redrive(admin: AdminClient, ids: tuple[str, ...], sink: str | None, all_: bool) -> None:
    """Deliver dead letters again: those with these event IDS, or --all."""
    if bool(ids) == all_:
        raise click.UsageError("name event ids, or give --all")
    answer = admin.post("/billing/dead/redrive", {**({"sink": sink} if sink else {}), "ids": list(ids)})
    admin.show(answer, lambda: table(["redriven"], [(answer["redriven"],)]))


@group.command("verify")
@click.argument("file", type=click.File("r", encoding="utf-8"))
def verify(file: TextIO) -> None:
    """Compute the events in FILE (NDJSON) anew from the price snapshots in them; '-' reads standard input.

    Every attempt must give the same bytes, every id may come once, and a request must be the sum of its attempts. Where
    some of them are not in FILE (they cost nothing, or are in another file) it must not be less than the others.
    """
    seen: set[str] = set()
    requests: dict[str, tuple[int, int | None]] = {}
    parts: dict[str, list[int | None]] = {}
    counts = {events.ATTEMPT: 0, events.REQUEST: 0}
    wrong: list[str] = []
    for number, line in enumerate(file, start=1):
        try:
            event = json.loads(line)
            counts[event["type"]] += 1
            if event["id"] in seen:
                wrong.append(f"line {number}: the event {event['id']} came before")
                continue
            seen.add(event["id"])
            amount = event["amount_usd_micros"]
            if event["type"] == events.REQUEST:
                requests[event["request_id"]] = (int(event["attempts"]), None if amount is None else int(amount))
                continue
            parts.setdefault(event["request_id"], []).append(None if amount is None else int(amount))
            if events.replayed(event) != line.rstrip("\n"):
                wrong.append(f"line {number}: the event {event['id']} gives another bill")
        except (ValueError, KeyError, TypeError, ArithmeticError) as err:
            wrong.append(f"line {number}: no billing event ({type(err).__name__})")
    wrong += [
        f"request {request_id}: {amount} is not the sum of its attempts"
        for request_id, (attempts, amount) in requests.items()
        if not _adds_up(attempts, amount, parts.get(request_id, []))
    ]
    for line in wrong[:100]:
        click.echo(line, err=True)
    click.echo(f"{counts[events.ATTEMPT]} attempts, {counts[events.REQUEST]} requests, {len(wrong)} wrong")
    if wrong:
        raise click.exceptions.Exit(1)


def _adds_up(attempts: int, amount: int | None, parts: list[int | None]) -> bool:
    """Say whether a request of so many attempts can have this amount, when these of its attempts were seen."""
    known = [part for part in parts if part is not None]
    whole = len(parts) >= attempts
    if amount is None:
        return not whole or len(known) < len(parts)
    if len(known) < len(parts):
        return False
    return sum(known) == amount if whole else sum(known) <= amount


def _usage(answer: Mapping[str, Any]) -> Table:
    names = [*([] if answer["period"] == "total" else ["period"]), *answer["group_by"]]
    if "kind" not in answer["group_by"]:
        names.append("requests")
    names += ["attempts", "prompt_tokens", "completion_tokens", "cached_tokens", "estimated", "unpriced"]
    rows = [
        [*(row[name] for name in names), _usd(row["cost_usd_micros"]), _usd(row["amount_usd_micros"])]
        for row in answer["usage"]
    ]
    return table([*(name.replace("_", " ") for name in names), "$ cost", "$ to pay"], rows)


def _states(answer: Mapping[str, Any]) -> Table:
    rows = [
        (name, *(answer[part][state] for state in _STATES))
        for name, part in (("requests", "requests"), ("own calls", "own_calls"))
    ]
    return table(["", *_STATES], rows)


def _money(answer: Mapping[str, Any]) -> Table:
    rows = [
        (
            name,
            _usd(answer[part]["gateway_usd_micros"]),
            _usd(answer[part]["cost_usd_micros"]),
            _usd(answer[part]["difference_usd_micros"]),
            _usd(answer[part]["amount_usd_micros"]),
        )
        for name, part in (("requests", "requests"), ("own calls", "own_calls"))
    ]
    return table(["", "$ by the gateway", "$ cost", "$ difference", "$ to pay"], rows)


def _models(rows: list[dict[str, Any]]) -> Table:
    return table(
        ["model to look at", "attempts", "unpriced", "$ difference"],
        [(row["model"], row["attempts"], row["unpriced"], _usd(row["difference_usd_micros"])) for row in rows],
    )


def _sinks(rows: list[dict[str, Any]]) -> Table:
    return table(
        ["sink", "delivered", "pending", "oldest pending", "dead", "tries", "error"],
        [
            (r["name"], r["delivered"], r["pending"], when(r["oldest_pending_at"]), r["dead"], r["tries"], r["error"])
            for r in rows
        ],
    )


def _events(rows: list[dict[str, Any]]) -> Table:
    names = ["type", "kind", "model_served", "status", "metering", "prompt_tokens", "completion_tokens"]
    return table(
        [*(name.replace("_", " ") for name in names), "$ cost", "$ to pay"],
        [(*(row[name] for name in names), row["cost_usd"], row["amount_usd"]) for row in rows],
    )


def _joined(value: object) -> object:
    return ", ".join(map(str, value)) or None if isinstance(value, list) else value


def _usd(usd_micros: int) -> str:
    return str(Decimal(usd_micros) / _MICROS)
