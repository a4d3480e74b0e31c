"""``pointsman top``: what a running proxy does now, from its metrics, twice a few seconds apart."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import click
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ..client import AdminClient, AdminFailure, admin_options, table
from .explain import requests_table

Labels = frozenset[tuple[str, str]]
Series = dict[tuple[str, Labels], Any]

_RECENT: Final = 10


@click.command()
@click.option(
    "--interval",
    "interval_s",
    type=click.FloatRange(0.2, 60),
    default=2.0,
    show_default=True,
    help="Seconds between two refreshes.",
)
@click.option("--once", is_flag=True, help="Print one screen and end.")
@admin_options
def top(admin: AdminClient, interval_s: float, *, once: bool) -> None:
    """Show what the proxy does now: traffic, deployments, plugins and the last requests.

    Rates and latencies are those of the last interval, over all workers; figures of other workers are up to ten seconds old.
    A failure is shown and tried again.
    """
    with suppress(KeyboardInterrupt):
        before, at = read(admin), time.monotonic()
        if once:
            time.sleep(interval_s)
            after, now = read(admin), time.monotonic()
            if admin.as_json:
                admin.show({"interval_s": now - at, **overview(before, after, now - at)})
                return
            admin.show(None, *(partial(_same, each) for each in screen(admin, before, after, now - at)))
            return
        with Live(auto_refresh=False, screen=True) as live:
            while True:
                time.sleep(interval_s)
                parts: list[RenderableType]
                try:
                    after, now = read(admin), time.monotonic()
                    parts = list(screen(admin, before, after, now - at))
                    before, at = after, now
                except AdminFailure as err:
                    # The proxy may be restarting, which is when one looks.
                    parts = [Text(err.format_message(), style="red")]
                live.update(Group(*parts, Text("Ctrl-C ends", style="dim")), refresh=True)


def read(admin: AdminClient) -> Series:
    """Return the present metrics by name and labels: a value, or bounds, counts and sum."""
    answer = admin.get("/metrics", format="json")
    return {
        (metric["name"], frozenset(point["labels"].items())): (metric["bounds"], point["counts"], point["value"])
        if metric["kind"] == "histogram"
        else point["value"]
        for metric in answer["metrics"]
        for point in metric["points"]
    }


@dataclass(frozen=True, slots=True)
class Distribution:
    """The observations of a histogram within an interval."""

    bounds: Sequence[float]
    counts: Sequence[float]

    @property
    def count(self) -> float:
        """How many."""
        return sum(self.counts)

    def quantile(self, ratio: float) -> float | None:
        """Return a quantile, interpolated within its bucket as Prometheus does; None without observations."""
        rank, below = ratio * self.count, 0.0
        if not self.count:
            return None
        for index, count in enumerate(self.counts[:-1]):
            if count and below + count >= rank:
                low = self.bounds[index - 1] if index else 0.0
                return low + (self.bounds[index] - low) * (rank - below) / count
            below += count
        return self.bounds[-1]


def distribution(before: Series, after: Series, name: str, **labels: str) -> Distribution:
    """Return what a histogram has counted between two looks, over all series with these labels."""
    wanted = frozenset((key.replace("__", "."), value) for key, value in labels.items())
    bounds: Sequence[float] = ()
    counts: list[float] = []
    for (metric, found), value in after.items():
        if metric != name or not wanted <= found:
            continue
        bounds, now, _ = value
        _, then, _ = before.get((metric, found), (bounds, [0] * len(now), 0.0))
        # A worker that has ended may take the last seconds of its counts with it.
        counts = counts or [0.0] * len(now)
        counts = [total + max(0, a - b) for total, a, b in zip(counts, now, then, strict=True)]
    return Distribution(bounds, counts)


def increase(before: Series, after: Series, name: str, **labels: str) -> float:
    """Return by how much a counter has grown between two looks, over all series with these labels."""
    wanted = frozenset((key.replace("__", "."), value) for key, value in labels.items())
    grown = (
        max(0.0, value - before.get((metric, found), 0.0))
        for (metric, found), value in after.items()
        if metric == name and wanted <= found
    )
    return float(sum(grown))


def values(series: Series, name: str, label: str) -> set[str]:
    """Return the values that a label of a metric has."""
    return {value for (metric, labels) in series if metric == name for key, value in labels if key == label}


def overview(before: Series, after: Series, seconds: float) -> dict[str, Any]:
    """Return the figures of one interval, as JSON."""
    return {
        "traffic": traffic(before, after, seconds),
        "deployments": list(deployments(before, after, seconds)),
        "plugins": list(plugins(before, after, seconds)),
        "gauges": list(gauges(after)),
    }


def traffic(before: Series, after: Series, seconds: float) -> dict[str, Any]:
    """Return the requests of one interval as a whole."""
    name = "pointsman.request.duration"
    requests = distribution(before, after, name)
    failed = distribution(before, after, name, pointsman__outcome="error")
    denied = distribution(before, after, name, pointsman__outcome="denied")
    first = distribution(before, after, "pointsman.request.time_to_first_content")
    return {
        "workers": _total(after, "pointsman.workers"),
        "open": _total(after, "pointsman.requests.open"),
        "requests_per_s": requests.count / seconds,
        "failed_per_s": failed.count / seconds,
        "denied_per_s": denied.count / seconds,
        "p50_s": requests.quantile(0.5),
        "p95_s": requests.quantile(0.95),
        "first_content_p50_s": first.quantile(0.5),
        "usd_per_hour": increase(before, after, "pointsman.cost") / seconds * 3600,
        "settlements_waiting": _total(after, "pointsman.settlements.waiting"),
    }


def deployments(before: Series, after: Series, seconds: float) -> Iterator[dict[str, Any]]:
    """Yield each deployment that has been called, with the attempts of one interval."""
    for deployment in sorted(values(after, "pointsman.attempts", "pointsman.deployment")):
        durations = distribution(before, after, "gen_ai.client.operation.duration", pointsman__deployment=deployment)
        counts = {
            result: increase(
                before,
                after,
                "pointsman.attempts",
                pointsman__deployment=deployment,
                pointsman__attempt__result=result,
            )
            for result in ("answered", "lost", "failed", "refused")
        }
        yield {
            "deployment": deployment,
            "attempts_per_s": increase(before, after, "pointsman.attempts", pointsman__deployment=deployment) / seconds,
            **counts,
            "p50_s": durations.quantile(0.5),
            "p95_s": durations.quantile(0.95),
        }


def plugins(before: Series, after: Series, seconds: float) -> Iterator[dict[str, Any]]:
    """Yield each plugin with the cost of its hooks and its faults."""
    for plugin in sorted(values(after, "pointsman.hook.calls", "pointsman.plugin")):
        calls = increase(before, after, "pointsman.hook.calls", pointsman__plugin=plugin)
        spent = increase(before, after, "pointsman.hook.time", pointsman__plugin=plugin)
        yield {
            "plugin": plugin,
            "calls_per_s": calls / seconds,
            "mean_us": None if not calls else spent / calls * 1e6,
            "denials": increase(before, after, "pointsman.denials", pointsman__plugin=plugin),
            "faults": sum(_matching(after, "pointsman.plugin.faults", "pointsman.plugin", plugin)),
        }


def gauges(after: Series) -> Iterator[dict[str, Any]]:
    """Yield what plugins say is true just now."""
    shown = {
        "pointsman.balance.breaker.state": "breaker (0 closed, 1 half-open, 2 open)",
        "pointsman.canary.weight": "canary weight",
        "pointsman.quota.used": "quota used",
        "pointsman.billing.dead_letters": "dead letters",
    }
    for (metric, labels), value in sorted(after.items(), key=lambda item: (item[0][0], sorted(item[0][1]))):
        if metric in shown and value:
            names = " ".join(value for _, value in sorted(labels))
            yield {"what": shown[metric], "of": names, "value": value}


def screen(admin: AdminClient, before: Series, after: Series, seconds: float) -> list[Table]:
    """Return the tables of one screen."""
    now = traffic(before, after, seconds)
    whole = table(
        [
            "workers",
            "open",
            "req/s",
            "failed/s",
            "denied/s",
            "p50 ms",
            "p95 ms",
            "first content ms",
            "USD/h",
            "to settle",
        ],
        [
            (
                int(now["workers"]),
                int(now["open"]),
                _rounded(now["requests_per_s"]),
                _rounded(now["failed_per_s"]),
                _rounded(now["denied_per_s"]),
                _ms(now["p50_s"]),
                _ms(now["p95_s"]),
                _ms(now["first_content_p50_s"]),
                round(now["usd_per_hour"], 4),
                int(now["settlements_waiting"]),
            )
        ],
        title=f"Traffic of the last {seconds:.1f} s",
    )
    rows = [
        (
            row["deployment"],
            _rounded(row["attempts_per_s"]),
            *(int(row[name]) for name in ("answered", "lost", "failed", "refused")),
            _ms(row["p50_s"]),
            _ms(row["p95_s"]),
        )
        for row in deployments(before, after, seconds)
    ]
    columns = ["deployment", "attempts/s", "answered", "lost", "failed", "refused", "p50 ms", "p95 ms"]
    hooks = [
        (row["plugin"], _rounded(row["calls_per_s"]), _rounded(row["mean_us"]), int(row["denials"]), int(row["faults"]))
        for row in plugins(before, after, seconds)
    ]
    tables = [whole, table(columns, rows, title="Deployments")]
    tables.append(table(["plugin", "calls/s", "mean us", "denials", "faults since start"], hooks, title="Plugins"))
    if present := [(row["what"], row["of"], _rounded(row["value"])) for row in gauges(after)]:
        tables.append(table(["now", "of", "value"], present))
    return [*tables, requests_table(admin.get("/requests", limit=_RECENT))]


def _same(shown: Table) -> Table:
    return shown


def _total(series: Series, name: str) -> float:
    return float(sum(value for (metric, _), value in series.items() if metric == name))


def _matching(series: Series, name: str, label: str, wanted: str) -> Iterable[float]:
    return (value for (metric, labels), value in series.items() if metric == name and (label, wanted) in labels)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)


def _ms(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds * 1000)
