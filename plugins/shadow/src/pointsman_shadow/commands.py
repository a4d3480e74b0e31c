"""``pointsman shadow ...``: the admin routes of a running proxy as commands."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, TextIO

import click
from rich.table import Table

from pointsman.client import AdminClient, admin_options, segment, signed, table, watchable, when

BASE: Final = "/shadow"
MAX_RESULTS: Final = 10_000


@click.group()
def shadow() -> None:
    """Mirrors of live traffic: list, report, export, graduate, pause, resume, reset."""


@shadow.command("list")
@watchable
@admin_options
def list_mirrors(admin: AdminClient) -> None:
    """List the mirrors."""
    answer = admin.get(BASE)
    admin.show(answer, lambda: _overview(answer["mirrors"]))
    admin.show_problems(answer["problems"])


@shadow.command()
@click.argument("mirror")
@watchable
@admin_options
def report(admin: AdminClient, mirror: str) -> None:
    """Show every figure of a mirror with its interval, times, counts and budget."""
    _show(admin, admin.get(f"{BASE}/{segment(mirror)}"))


@shadow.command()
@click.argument("mirror")
@click.option("--limit", type=click.IntRange(1, MAX_RESULTS), default=MAX_RESULTS, show_default=True, help="Newest.")
@click.option(
    "--output", type=click.File("w", encoding="utf-8"), default="-", show_default=True, help="File; - is the terminal."
)
@admin_options
def export(admin: AdminClient, mirror: str, limit: int, output: TextIO) -> None:
    """Write the stored results as JSONL, the oldest first; with --json as one JSON document."""
    answer = admin.get(f"{BASE}/{segment(mirror)}/results", limit=limit)
    if admin.as_json:
        json.dump(answer, output, indent=2)
        output.write("\n")
        return
    output.writelines(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n" for row in answer["results"])


@shadow.command()
@click.argument("mirror")
@signed
@admin_options
def graduate(admin: AdminClient, mirror: str, who: str | None, reason: str | None) -> None:
    """End a mirror and publish its figures to the other plugins."""
    _change(admin, mirror, "graduate", who, reason)


@shadow.command()
@click.argument("mirror")
@signed
@admin_options
def pause(admin: AdminClient, mirror: str, who: str | None, reason: str | None) -> None:
    """Stop mirroring until resumed."""
    _change(admin, mirror, "pause", who, reason)


@shadow.command()
@click.argument("mirror")
@signed
@admin_options
def resume(admin: AdminClient, mirror: str, who: str | None, reason: str | None) -> None:
    """Mirror again after a pause, or for pairs_wanted more pairs."""
    _change(admin, mirror, "resume", who, reason)


@shadow.command()
@click.argument("mirror")
@signed
@admin_options
def reset(admin: AdminClient, mirror: str, who: str | None, reason: str | None) -> None:
    """Delete figures and results and begin a new run."""
    _change(admin, mirror, "reset", who, reason)


def _change(admin: AdminClient, mirror: str, what: str, who: str | None, reason: str | None) -> None:
    body = {key: value for key, value in (("who", who), ("reason", reason)) if value is not None}
    _show(admin, admin.post(f"{BASE}/{segment(mirror)}/{what}", body))


def _overview(mirrors: Sequence[Mapping[str, Any]]) -> Table:
    return table(
        ["name", "model", "challenger", "phase", "run", "total", "sampled", "pairs", "dropped", "challenger errors"],
        [
            [
                each["name"],
                each["model"],
                each["challenger"]
                if isinstance(each["challenger"], str)
                else f"version {each['challenger']['version']}",
                each["phase"],
                each["run"],
                each["total"],
                each["sampled"],
                each["pairs"],
                each["dropped"],
                each["challenger_errors"],
            ]
            for each in mirrors
        ],
    )


def _show(admin: AdminClient, answer: Mapping[str, Any]) -> None:
    admin.show(
        answer,
        lambda: _overview([answer]),
        lambda: _figures(answer),
        lambda: _times(answer["quantiles"]),
        lambda: _notes(answer),
    )


def _figures(answer: Mapping[str, Any]) -> Table:
    title = f"challenger against champion, {answer['confidence'] * 100:g} % intervals that hold at all times together"
    return table(
        ["metric", "pairs", "mean", "low", "high", "clipped"],
        [[f["metric"], f["count"], f["mean"], f["low"], f["high"], f["clipped"]] for f in answer["figures"]],
        title=title,
    )


def _times(quantiles: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Table:
    return table(
        ["side", "time", "p50", "p95", "p99"],
        [
            [side, name, values.get("p50"), values.get("p95"), values.get("p99")]
            for side, times in quantiles.items()
            for name, values in times.items()
        ],
        title="milliseconds, of successful attempts",
    )


def _notes(answer: Mapping[str, Any]) -> Table:
    today = answer["today"]
    rows: list[list[object]] = [
        [f"{what.replace('_', ' ')}: {name}", count]
        for what, parts in answer["reasons"].items()
        for name, count in parts.items()
    ]
    rows += [[f"judge: {name}", count] for name, count in answer["judge"].items() if count]
    rows += [
        [name.replace("_", " "), answer[name]] for name in ("embedding_failed", "redaction_failed") if answer[name]
    ]
    rows += [
        ["tokens spent", answer["spent"]["tokens"]],
        ["USD spent", answer["spent"]["usd_micros"] / 1_000_000],
        ["tokens today", _of(today["tokens"], today["tokens_limit"])],
        ["USD today", _of(today["usd_micros"] / 1_000_000, _usd(today["usd_micros_limit"]))],
        ["account", answer["tenant"]],
        ["since", when(answer["started_at"])],
        [
            "last change",
            ": ".join(filter(None, (f"{when(answer['changed_at'])} by {answer['who']}", answer["reason"]))),
        ],
    ]
    return table(["what", "value"], rows)


def _usd(micros: int | None) -> float | None:
    return None if micros is None else micros / 1_000_000


def _of(value: float, limit: float | None) -> str:
    return f"{value:,}" if limit is None else f"{value:,} of {limit:,}"
