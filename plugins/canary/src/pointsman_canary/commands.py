"""``pointsman canary ...``: the admin routes of a running proxy as commands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, TextIO

import click
import yaml
from rich.table import Table

from pointsman.client import AdminClient, admin_options, segment, signed, table, watchable, when
from pointsman.text import duration

BASE: Final = "/canary"


@click.group()
def canary() -> None:
    """Rollouts and A/B experiments: watch, step, promote, roll back, pause, resume."""


@canary.command("list")
@watchable
@admin_options
def list_experiments(admin: AdminClient) -> None:
    """List the experiments in the order in which they match requests."""
    answer = admin.get(BASE)
    admin.show(answer, lambda: _overview(answer["experiments"]))
    admin.show_problems(answer["problems"])


@canary.command()
@click.argument("name")
@watchable
@admin_options
def show(admin: AdminClient, name: str) -> None:
    """Show one experiment with its analysis."""
    _show(admin, admin.get(f"{BASE}/{segment(name)}"))


@canary.command()
@click.argument("file", type=click.File(encoding="utf-8"))
@signed
@admin_options
def create(admin: AdminClient, file: TextIO, who: str | None, reason: str | None) -> None:
    """Begin the experiment defined in FILE (YAML or JSON, - for standard input)."""
    _show(admin, admin.post(BASE, {"experiment": _definition(file), **_signature(who, reason)}))


@canary.command()
@click.argument("name")
@click.option("--file", type=click.File(encoding="utf-8"), help="A new definition, YAML or JSON.")
@signed
@admin_options
def restart(admin: AdminClient, name: str, file: TextIO | None, who: str | None, reason: str | None) -> None:
    """Begin again with the first step, also after a rollback."""
    body = {} if file is None else {"experiment": _definition(file)}
    _show(admin, admin.post(f"{BASE}/{segment(name)}/restart", {**body, **_signature(who, reason)}))


@canary.command()
@click.argument("name")
@click.option("--arm", help="The arm to promote, when there are several.")
@signed
@admin_options
def promote(admin: AdminClient, name: str, arm: str | None, who: str | None, reason: str | None) -> None:
    """Send everything to the canary, and activate its version."""
    body = {} if arm is None else {"arm": arm}
    _show(admin, admin.post(f"{BASE}/{segment(name)}/promote", {**body, **_signature(who, reason)}))


@canary.command()
@click.argument("name")
@signed
@admin_options
def rollback(admin: AdminClient, name: str, who: str | None, reason: str | None) -> None:
    """Send everything to stable, until a restart."""
    _show(admin, admin.post(f"{BASE}/{segment(name)}/rollback", _signature(who, reason)))


@canary.command()
@click.argument("name")
@signed
@admin_options
def pause(admin: AdminClient, name: str, who: str | None, reason: str | None) -> None:
    """Keep the current weights; a canary that is worse is still rolled back."""
    _show(admin, admin.post(f"{BASE}/{segment(name)}/pause", _signature(who, reason)))


@canary.command()
@click.argument("name")
@signed
@admin_options
def resume(admin: AdminClient, name: str, who: str | None, reason: str | None) -> None:
    """Continue after a pause."""
    _show(admin, admin.post(f"{BASE}/{segment(name)}/resume", _signature(who, reason)))


@canary.command()
@click.argument("name")
@signed
@admin_options
def step(admin: AdminClient, name: str, who: str | None, reason: str | None) -> None:
    """Enter the next step at once; a paused rollout stays paused."""
    _show(admin, admin.post(f"{BASE}/{segment(name)}/step", _signature(who, reason)))


@canary.command()
@click.argument("name")
@click.argument("percents", nargs=-1, required=True, metavar="PERCENT | ARM=PERCENT...")
@signed
@admin_options
def weight(admin: AdminClient, name: str, percents: Sequence[str], who: str | None, reason: str | None) -> None:
    """Set the canary's weight, or those of some arms."""
    _show(admin, admin.post(f"{BASE}/{segment(name)}/weight", {**_weights(percents), **_signature(who, reason)}))


@canary.command()
@click.argument("name")
@click.option("--force", is_flag=True, help="Delete it although it is not finished.")
@signed
@admin_options
def delete(admin: AdminClient, name: str, *, force: bool, who: str | None, reason: str | None) -> None:
    """Remove an experiment; its audit trail stays."""
    answer = admin.request(
        "DELETE", f"{BASE}/{segment(name)}", params={"force": force or None}, body=_signature(who, reason)
    )
    admin.show(answer, lambda: table(["deleted"], [[answer["deleted"]]]))


@canary.command()
@click.argument("name")
@click.option(
    "--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="Number of entries, the newest."
)
@admin_options
def audit(admin: AdminClient, name: str, limit: int) -> None:
    """Show every change of an experiment, with who and why."""
    answer = admin.get(f"{BASE}/{segment(name)}/audit", limit=limit)
    columns = ["at", "what", "phase", "run", "step", "who", "reason"]
    admin.show(
        answer,
        lambda: table(
            columns,
            [
                [when(e["at"]), e["what"], e["phase"], e["run"], e["step"] + 1, e["who"], e["reason"]]
                for e in answer["audit"]
            ],
        ),
    )


def _definition(file: TextIO) -> object:
    try:
        return yaml.safe_load(file)
    except (yaml.YAMLError, UnicodeDecodeError) as err:
        raise click.BadParameter(f"is neither YAML nor JSON: {err}", param_hint="FILE") from err


def _signature(who: str | None, reason: str | None) -> dict[str, object]:
    return {key: value for key, value in (("who", who), ("reason", reason)) if value is not None}


def _weights(texts: Sequence[str]) -> dict[str, object]:
    if len(texts) == 1 and "=" not in texts[0]:
        return {"percent": _number(texts[0])}
    pairs = [text.partition("=") for text in texts]
    if not all(arm and equals for arm, equals, _ in pairs):
        raise click.BadParameter("give one PERCENT, or ARM=PERCENT for each arm", param_hint="PERCENT")
    return {"percents": {arm: _number(percent) for arm, _, percent in pairs}}


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError as err:
        raise click.BadParameter(f"{text!r} is not a number", param_hint="PERCENT") from err


def _overview(experiments: Sequence[Mapping[str, Any]]) -> Table:
    return table(
        ["name", "model", "phase", "step", "weights", "verdict", "reason"],
        [
            [
                each["name"],
                each["model"],
                each["phase"],
                f"{each['step']}/{each['steps']}" if each["steps"] else "A/B",
                _percents(each["weights_percent"]),
                ", ".join(sorted({f["verdict"] for findings in each["analysis"].values() for f in findings})) or None,
                each["reason"],
            ]
            for each in experiments
        ],
    )


def _percents(weights: Mapping[str, float]) -> str:
    return ", ".join(f"{arm} {percent:g} %" for arm, percent in weights.items())


def _show(admin: AdminClient, answer: Mapping[str, Any]) -> None:
    # Only a rollout has a canary.
    other = "canary" if answer["kind"] == "rollout" else "this arm"
    columns = ["arm", "metric", "verdict", "stable", other, "stable n", f"{other} n", "p harm", "p harmless"]
    if answer.get("warning") and not admin.as_json:
        click.echo(f"warning: {answer['warning']}", err=True)
    admin.show(
        answer,
        lambda: _overview([answer]),
        lambda: table(
            ["arm", "requests in this run", "failed", "disconnected", "success"],
            [
                [arm, total["requests"], total["failed"], total["disconnected"], _figure(total["success_ratio"])]
                for arm, total in answer["totals"].items()
            ],
        ),
        lambda: table(["until promoted, if it is like stable", "requests per second"], [_estimate(answer)]),
        lambda: table(
            columns,
            [
                [
                    arm,
                    finding["metric"],
                    finding["verdict"],
                    _figure(finding["stable"]),
                    _figure(finding["canary"]),
                    finding["stable_samples"],
                    finding["canary_samples"],
                    f"{finding['p_harm']:.2g}",
                    f"{finding['p_harmless']:.2g}",
                ]
                for arm, findings in answer["analysis"].items()
                for finding in findings
            ],
        ),
    )


def _estimate(answer: Mapping[str, Any]) -> list[str | None]:
    estimate, rate = answer["estimate"], answer["requests_per_s"]
    if estimate is None:
        return [None, _figure(rate)]
    if estimate["requests"] is None:
        return ["never: a margin is too small to be shown", _figure(rate)]
    lasts = "" if estimate["seconds"] is None else f", {duration(estimate['seconds'])}"
    return [f"about {estimate['requests']} requests{lasts}", _figure(rate)]


def _figure(value: float | None) -> str | None:
    return None if value is None else f"{value:.4g}"
