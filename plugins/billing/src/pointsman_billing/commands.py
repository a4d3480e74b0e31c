"""``pointsman billing ...``: usage, reconciliation and dead letters on the command line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any, BinaryIO, Final, TextIO
from zoneinfo import ZoneInfo

import click

from pointsman.client import AdminClient, AdminFailure, admin_options, segment, table, watchable, when

from . import events, invoice, pricing
from .focus import focus
from .views import GROUPS, PERIODS, as_csv

if TYPE_CHECKING:
    from rich.table import Table

#: Digits of a dollar in tables: picodollars.
_SHOWN_DIGITS: Final = 12
_STATES: Final = ("billed", "unpriced", "free", "pending", "dead", "total")


@click.group("billing")
def group() -> None:
    """Show usage and cost, reconcile, deliver dead letters again."""


@group.command("usage")
@click.option("--tenant", help="Only this tenant.")
@click.option("--model", help="Only this model, as clients ask for it.")
@click.option("--from", "from_", help="Unix seconds or ISO 8601; 31 days ago by default.")
@click.option("--to", help="Unix seconds or ISO 8601, exclusive.")
@click.option(
    "--group-by",
    default=None,
    help=f"One or several, with commas, of {', '.join(GROUPS)}; 'none' sums up everything. [default: tenant,model]",
)
@click.option("--period", type=click.Choice(PERIODS), default="day", show_default=True)
@click.option("--timezone", help="IANA time zone of days and months; the configured one by default.")
@click.option("--csv", "csv_", is_flag=True, help="Print CSV.")
@click.option("--focus", "focus_", is_flag=True, help="Print CSV with the columns of FOCUS 1.2, grouped by everything.")
@watchable
@admin_options
def usage(admin: AdminClient, /, *, csv_: bool, focus_: bool, **query: str | None) -> None:
    """Show tokens and money by tenant, model, hour, day or month."""
    query["from"] = query.pop("from_")
    if focus_:
        if query["period"] == "total":
            raise click.UsageError("--focus needs a --period of hour, day or month")
        query["group_by"] = ",".join(GROUPS)
    answer = admin.get("/billing/usage", **query)
    if focus_:
        click.echo(as_csv(focus(answer["usage"], answer["period"], ZoneInfo(answer["timezone"]))), nl=False)
        return
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
    if answer["comparison"]:
        tables.append(lambda: _comparison(answer["comparison"]))
    admin.show(answer, *tables)
    if strict and not answer["in_order"]:
        raise AdminFailure("reconciliation is not in order: see unpriced, dead, unseen and different")


@group.command("compare")
@click.argument("file", type=click.File("rb"))
@click.option("--provider", help="Only what this provider served, as the gateway calls it; all of them by default.")
@click.option("--timezone", default="UTC", show_default=True, help="IANA time zone of the days in FILE.")
@click.option("--strict", is_flag=True, hidden=True, expose_value=False, help="The default: scripts may name it.")
@admin_options
def compare(admin: AdminClient, file: BinaryIO, provider: str | None, timezone: str) -> None:
    """Compare FILE, a provider's invoice or usage export (CSV or JSON), with what is on record, by day and model.

    FILE has a day, a model, and the cost in US dollars or token counts: the usage and cost exports of OpenAI and Anthropic,
    OpenRouter's activity, FOCUS. Models are compared by the name that the provider answered with; costs to half a cent.
    Exits with 1 when a row does not agree.
    """
    try:
        zone = ZoneInfo(timezone)
    except (LookupError, ValueError, OSError):
        raise click.BadParameter("is not an IANA time zone", param_hint="--timezone") from None
    try:
        charges = invoice.read(invoice.decoded(file.read()), zone)
    except invoice.UnreadableInvoice as err:
        raise AdminFailure(f"{file.name} cannot be compared: {err}") from None
    answer = admin.get(
        "/billing/usage",
        **{
            "from": charges[0].day.isoformat(),
            "to": (charges[-1].day + timedelta(days=1)).isoformat(),
            "group_by": "provider,model_served,model",
            "period": "day",
            "timezone": timezone,
        },
    )
    ours = [row for row in answer["usage"] if provider in {None, row["provider"]}]
    rows = invoice.compare(charges, ours)
    differing = sum(not row["agrees"] for row in rows)
    names = [name for name in rows[0] if any(row[name] is not None for row in rows)]
    admin.show(
        {"timezone": timezone, "agrees": not differing, "days": rows},
        lambda: table([name.replace("_", " ") for name in names], [[row[name] for name in names] for row in rows]),
    )
    if differing:
        raise AdminFailure(f"the provider's figures and ours differ in {differing} of {len(rows)} rows")


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
@watchable
@admin_options
def sinks(admin: AdminClient) -> None:
    """Show the state of each sink."""
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
@click.option("--all", "all_", is_flag=True, help="All of them, except those of removed sinks.")
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
    """Recompute the events in FILE (NDJSON) from their price snapshots; '-' reads standard input.

    Every attempt must result in the same bytes, every id must be unique, and a request must be the sum of its attempts.
    Where some of them are not in FILE (they cost nothing, or are in another file) it must not be less than the others.
    """
    seen: set[str] = set()
    requests: dict[str, tuple[int, Decimal | None]] = {}
    parts: dict[str, list[Decimal | None]] = {}
    counts = {events.ATTEMPT: 0, events.REQUEST: 0}
    wrong: list[str] = []
    for number, line in enumerate(file, start=1):
        try:
            event = json.loads(line)
            counts[event["type"]] += 1
            if event["id"] in seen:
                wrong.append(f"line {number}: the event {event['id']} appeared before")
                continue
            seen.add(event["id"])
            amount = _amount(event)
            if event["type"] == events.REQUEST:
                requests[event["request_id"]] = (int(event["attempts"]), amount)
                continue
            parts.setdefault(event["request_id"], []).append(amount)
            if events.replayed(event) != line.rstrip("\n"):
                wrong.append(f"line {number}: the event {event['id']} does not recompute to the same bytes")
        except (ValueError, KeyError, TypeError, ArithmeticError) as err:
            wrong.append(f"line {number}: not a billing event ({type(err).__name__})")
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


def _amount(event: Mapping[str, Any]) -> Decimal | None:
    """Return an event's amount: exact, since its schema is the second one; before, in micro-dollars.

    Raises:
        ValueError: the rounded amount is another one.
    """
    micros = event["amount_usd_micros"]
    if micros is None or event["schema"] < events.SCHEMA:
        return None if micros is None else pricing.from_micros(int(micros))
    exact = Decimal(event["amount_usd"])
    if pricing.micros(exact) != micros:
        raise ValueError
    return exact


def _adds_up(attempts: int, amount: Decimal | None, parts: list[Decimal | None]) -> bool:
    """Return whether a request with this number of attempts can have this amount, given the amounts that were seen."""
    known = [part for part in parts if part is not None]
    whole = len(parts) >= attempts
    if amount is None:
        return not whole or len(known) < len(parts)
    if len(known) < len(parts):
        return False
    seen = pricing.total(known)
    return seen == amount if whole else seen <= amount


def _usage(answer: Mapping[str, Any]) -> Table:
    names = [*([] if answer["period"] == "total" else ["period"]), *answer["group_by"]]
    if all("requests" in row for row in answer["usage"]):
        names.append("requests")
    names += ["attempts", "prompt_tokens", "completion_tokens", "cached_tokens", "estimated", "unpriced"]
    rows = [[*(row[name] for name in names), _usd(row["cost_usd"]), _usd(row["amount_usd"])] for row in answer["usage"]]
    return table([*(name.replace("_", " ") for name in names), "$ cost", "$ to pay"], rows)


def _states(answer: Mapping[str, Any]) -> Table:
    rows = [
        (name, *(answer[part][state] for state in _STATES))
        for name, part in (("requests", "requests"), ("own calls", "own_calls"))
    ]
    return table(["", *_STATES], rows)


def _money(answer: Mapping[str, Any]) -> Table:
    rows = [
        (name, *(_usd(answer[part][sum_]) for sum_ in ("gateway_usd", "priced_usd", "cost_usd", "amount_usd")))
        for name, part in (("requests", "requests"), ("own calls", "own_calls"))
    ]
    return table(["", "$ by the gateway", "$ by us", "$ cost", "$ to pay"], rows)


def _comparison(rows: list[dict[str, Any]]) -> Table:
    names = ["provider", "model", "finding", "attempts", "unpriced"]
    sums = ["gateway_usd", "priced_usd", "difference_usd"]
    heads = ["provider", "model", "finding", "attempts", "unpriced", "$ by the gateway", "$ by us", "$ difference"]
    return table(heads, [[*(row[name] for name in names), *(_usd(row[name]) for name in sums)] for row in rows])


def _sinks(rows: list[dict[str, Any]]) -> Table:
    return table(
        ["sink", "since", "delivered", "pending", "oldest pending", "dead", "tries", "error"],
        [
            (
                r["name"],
                when(r["since"]),
                r["delivered"],
                r["pending"],
                when(r["oldest_pending_at"]),
                r["dead"],
                r["tries"],
                r["error"],
            )
            for r in rows
        ],
    )


def _events(rows: list[dict[str, Any]]) -> Table:
    names = ["type", "kind", "model_served", "status", "metering", "prompt_tokens", "completion_tokens"]
    return table(
        [*(name.replace("_", " ") for name in names), "$ cost", "$ to pay"],
        [(*(row[name] for name in names), row["cost_usd"], row["amount_usd"]) for row in rows],
    )


def _usd(amount: Any) -> Any:
    """Return an exact amount for people: rounded once, where binary fractions of the gateway's leave no trace."""
    return None if amount is None else f"{round(Decimal(amount), _SHOWN_DIGITS).normalize() + 0:f}"


def _joined(value: object) -> object:
    return ", ".join(map(str, value)) or None if isinstance(value, list) else value
