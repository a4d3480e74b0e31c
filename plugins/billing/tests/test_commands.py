"""The commands against the plugin's routes behind a real server."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import click.testing
import pytest
from click.testing import CliRunner
from starlette.types import ASGIApp

from pointsman.testing import ok
from pointsman.testing.commands import CommandLine, served
from pointsman.types import AttemptKind, Identity, Outcome, Price
from pointsman_billing import bill
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
    assert "needs attention" in run("reconcile", "--strict", exit_code=1)
    assert "cloudevents" in run("sinks")
    assert "1 dead letters" in run("dead")
    shown = run("show", made[0])
    assert "acme" in shown
    assert "billed" in shown
    assert "no request of this id" in run("show", "../x", exit_code=1)


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
    golden = Path(__file__).with_name("golden_events.ndjson").read_text().splitlines(keepends=True)
    assert verify("".join(golden[:3])).exit_code == 0
    changed = good.replace('"prompt_tokens":10,', '"prompt_tokens":9,')
    assert changed != good
    first, request, *_ = good.splitlines()
    amount = json.loads(request)["amount_usd_micros"]
    for text, word in (
        (changed, "gives another bill"),
        (f"{good}{first}\n", "came before"),
        ("{}\n", "no billing event"),
        (good.replace(request, altered(request, "x")), "no billing event"),
        *((good.replace(request, altered(request, other)), "not the sum") for other in (amount + 1, amount - 1, None)),
    ):
        result = verify(text)
        assert result.exit_code == 1
        assert word in result.output


def altered(line: str, amount_usd_micros: object) -> str:
    return json.dumps({**json.loads(line), "amount_usd_micros": amount_usd_micros}, separators=(",", ":"))


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
