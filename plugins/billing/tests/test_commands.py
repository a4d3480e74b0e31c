"""The commands against the plugin's routes behind a real server."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import click.testing
import pytest
from click.testing import CliRunner
from starlette.types import ASGIApp

from pointsman.testing import ok
from pointsman.testing.commands import CommandLine, served
from pointsman.types import AttemptKind, Identity, Outcome, Price
from pointsman_billing import bill, commands
from pointsman_billing.commands import group

from .kit import PRICE, attempt, lines, settled_as, settlement, until, worker
from .sink_server import SinkServer


@pytest.fixture
def made() -> list[str]:
    """The ids of the requests, once they were made."""
    return []


@pytest.fixture
def run(tmp_path: Path, made: list[str]) -> Iterator[CommandLine]:
    """Run commands against a worker with three requests, of which one sink refuses one."""

    @asynccontextmanager
    async def serving() -> AsyncIterator[ASGIApp]:
        sinks = [{"ndjson": {"path": "bills.ndjson"}}, {"cloudevents": {"url": sink.url, "events": "attempts"}}]
        async with worker(tmp_path, *sinks) as h:
            for tenant in ("acme", "acme", "bad"):
                result = await h.request(identity=Identity(tenant=tenant), script=ok())
                made.append(result.request_id)
            await h.settled()
            await settled_as(h, billed=2, dead=1)
            await until(lambda: len(lines(tmp_path / "bills.ndjson")) == 6)
            yield h.app

    with SinkServer(poison=lambda event: event["data"]["tenant_id"] == "bad") as sink, served(serving) as url:
        yield CommandLine(group, url)


def test_what_an_operator_sees(run: CommandLine, made: list[str]) -> None:
    """Usage, reconciliation, sinks, dead letters, one request; as tables, JSON and CSV."""
    usage = run("usage", "--json")["usage"]
    assert [(row["tenant"], row["requests"]) for row in usage] == [("acme", 2), ("bad", 1)]
    assert "0.00004" in run("usage", "--group-by", "tenant", "--period", "total")
    csv_lines = run("usage", "--csv", "--tenant", "bad", "--period", "month").splitlines()
    assert csv_lines[0].startswith("period,tenant,model,requests")
    assert csv_lines[1].startswith("2025-06,bad,chat,1,1,")
    assert "kind" in run("usage", "--group-by", "kind")
    assert run("reconcile", "--json")["requests"]["dead"] == 1
    assert "$ difference" in run("reconcile")
    assert "not in order" in run("reconcile", "--strict", exit_code=1)
    assert "cloudevents" in run("sinks")
    assert "1 dead letters" in run("dead")
    shown = run("show", made[0])
    assert "acme" in shown
    assert "billed" in shown
    assert "there is no record of this request" in run("show", "../x", exit_code=1)


def test_a_providers_export_is_compared(run: CommandLine, tmp_path: Path) -> None:
    (row,) = run("usage", "--group-by", "model_served", "--timezone", "UTC", "--json")["usage"]
    export = tmp_path / "export.csv"
    line = f"{row['period']},{row['model_served']},{row['cost_usd']},{row['prompt_tokens']}"
    export.write_text(f"date,model,cost,input_tokens\n{line}\n")
    assert run("compare", str(export), "--json")["agrees"]
    run("compare", str(export), "--strict")
    export.write_text(f"date,model,cost,input_tokens\n{line}0\n")
    assert "differ in 1 of 1 rows" in run("compare", str(export), exit_code=1)
    assert "differ" in run("compare", str(export), "--strict", exit_code=1)
    assert not run("compare", str(export), "--json", exit_code=1)["agrees"]
    assert "not an IANA time zone" in run("compare", str(export), "--timezone", "Mars", exit_code=2)
    export.write_text("nothing\n")
    assert "cannot be compared" in run("compare", str(export), exit_code=1)


def test_usage_has_the_columns_of_focus(run: CommandLine) -> None:
    assert run("usage", "--focus").startswith("BilledCost,BillingAccountId,")
    assert "needs a --period" in run("usage", "--focus", "--period", "total", exit_code=2)


def test_dead_letters_are_delivered_again(run: CommandLine) -> None:
    (letter,) = run("dead", "--json")["dead"]
    assert run("redrive", "--json", letter["event"]["id"]) == {"redriven": 1}
    assert "name event ids, or give --all" in run("redrive", exit_code=2)
    assert "must be one of" in run("redrive", "--all", "--sink", "other", exit_code=1)


def verify(text: str) -> click.testing.Result:
    return CliRunner().invoke(group, ["verify", "-"], input=text)


def test_a_file_of_bills_can_be_verified(run: CommandLine, tmp_path: Path) -> None:
    """A changed figure, a repeated line and what is no event are found."""
    file = tmp_path / "bills.ndjson"
    good = file.read_text()
    result = verify(good)
    assert (result.exit_code, result.stdout) == (0, "3 attempts, 3 requests, 0 wrong\n")
    for name in ("golden_events.ndjson", "golden_events_1.ndjson"):  # of this schema, and of the first one
        golden = Path(__file__).with_name(name).read_text().splitlines(keepends=True)
        assert verify("".join(golden[:3])).exit_code == 0
    changed = good.replace('"prompt_tokens":10,', '"prompt_tokens":9,')
    assert changed != good
    first, request, *_ = good.splitlines()
    amount = json.loads(request)["amount_usd_micros"]
    for text, word in (
        (changed, "does not recompute to the same bytes"),
        (f"{good}{first}\n", "appeared before"),
        ("{}\n", "not a billing event"),
        (good.replace(request, altered(request, "x")), "not a billing event"),
        *((good.replace(request, altered(request, other)), "not the sum") for other in (amount + 1, amount - 1, None)),
    ):
        result = verify(text)
        assert result.exit_code == 1
        assert word in result.output


def altered(line: str, amount_usd_micros: object) -> str:
    exact = str(Decimal(amount_usd_micros) / 10**6) if isinstance(amount_usd_micros, int) else amount_usd_micros
    amount = {"amount_usd": exact, "amount_usd_micros": amount_usd_micros}
    return json.dumps({**json.loads(line), **amount}, separators=(",", ":"))


def bodies(*attempts: Any, **quotes: Any) -> list[str]:
    """Return the events of a request, of which the second attempt has the price of the quote ``second``."""
    made = bill.of_settlement(
        settlement(*attempts),
        "acme",
        lambda one: bill.Quote(price=quotes.get("second", PRICE) if one.number > 1 else PRICE),
    )
    return [f"{event.body}\n" for event in made.events]


def test_a_correct_file_is_correct_whatever_is_not_in_it() -> None:
    """One attempt without a price, a sink for requests or attempts only, a request split between two files."""
    hedge = attempt(2, kind=AttemptKind.HEDGE, cost_usd_micros=None)
    unpriced = bodies(attempt(1), hedge, second=Price())
    assert json.loads(unpriced[-1])["amount_usd_micros"] is None
    priced = bodies(attempt(1), hedge)
    failed = bodies(attempt(1), attempt(2, outcome=Outcome.ERROR, usage=None, cost_usd_micros=None, status_code=500))
    assert [len(part) for part in (unpriced, priced, failed)] == [3, 3, 2]
    for part in (unpriced, priced, failed, priced[2:], priced[:2], priced[1:], unpriced[1:], unpriced[2:]):
        result = verify("".join(part))
        assert (result.exit_code, result.stderr) == (0, ""), part


def test_what_cannot_be_the_sum_is_found_also_where_attempts_are_missing() -> None:
    hedge = attempt(2, kind=AttemptKind.HEDGE, cost_usd_micros=None)
    one, two, request = bodies(attempt(1), hedge)
    amount = json.loads(one)["amount_usd_micros"]
    unpriced = bodies(attempt(1), hedge, second=Price())
    for part in (
        [one, altered(request, amount - 1)],
        [one, two, altered(request, amount)],
        [one, two, altered(request, None)],
        [unpriced[1], altered(unpriced[2], amount)],
    ):
        result = verify("".join(line.rstrip("\n") + "\n" for line in part))
        assert result.exit_code == 1
        assert "not the sum" in result.output


@pytest.mark.parametrize(
    ("amount", "shown"),
    [
        ("0.02462940000000000396", "0.0246294"),
        ("-0.00000000000000000396", "0"),
        ("0.000000000001", "0.000000000001"),
        ("100.50", "100.5"),
        ("1200", "1200"),
        (None, None),
    ],
)
def test_amounts_are_rounded_once_for_people(amount: str | None, shown: str | None) -> None:
    assert commands._usd(amount) == shown
