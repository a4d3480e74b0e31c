"""``pointsman check CONFIG``: validate a configuration without starting anything."""

from __future__ import annotations

import os
from pathlib import Path

import click

from ..client import table
from .output import Level, as_json, count, show_findings, show_json, show_table, verdict
from .report import Report, inspect, store_in_words


@click.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--json", "json_wanted", is_flag=True, help="Print the answer as JSON.")
@click.pass_context
def check(ctx: click.Context, config: Path, *, json_wanted: bool) -> None:
    """Validate the 'pointsman:' section of the LiteLLM configuration CONFIG without starting anything.

    Loads and validates every plugin, prints the order in which they run, and says what on LiteLLM's side would keep
    Pointsman from working. Ends with 1 if the proxy would not start; warnings do not count.
    """
    report = inspect(config, os.environ)
    if json_wanted:
        show_json(_as_json(report))
    else:
        _show(report)
    ctx.exit(int(verdict(report.findings) is Level.FAILED))


def _show(report: Report) -> None:
    click.echo(f"{report.file}: {count(report.findings)}")
    if report.host is not None:
        click.echo(f"\nstore    {store_in_words(report.host.store, report.base)}")
        click.echo(f"tracing  {report.telemetry.words if report.telemetry else 'unknown'}")
    if report.plugins:
        rows = [
            (position, plugin.name, plugin.distribution, plugin.config.on_failure, plugin.config.optional)
            for position, plugin in enumerate(report.plugins, start=1)
        ]
        click.echo()
        show_table(table(["", "plugin", "package", "when it fails", "optional"], rows, title="Plugins"))
        click.echo()
        rows_of_hooks = [
            (hook, ", ".join(names) + _remark(report, hook)) for hook, names in report.hooks.items() if names
        ]
        show_table(table(["hook", "plugins, in the order they run"], rows_of_hooks, title="Hooks"))
    if report.findings:
        click.echo()
        show_findings(report.findings)


def _remark(report: Report, hook: str) -> str:
    if hook == "authenticate" and not report.authenticates:
        return " (not asked: general_settings.custom_auth is not ours)"
    return " (only the one that a route names)" if hook == "execute" else ""


def _as_json(report: Report) -> dict[str, object]:
    findings = report.findings
    return {
        "file": str(report.file),
        "ok": verdict(findings) is not Level.FAILED,
        "errors": as_json(found for found in findings if found.level is Level.FAILED),
        "warnings": as_json(found for found in findings if found.level is Level.WARNING),
        "store": store_in_words(report.host.store, report.base) if report.host else None,
        "tracing": report.telemetry.words if report.telemetry else None,
        "plugins": [
            {
                "name": plugin.name,
                "package": plugin.distribution,
                "on_failure": plugin.config.on_failure,
                "optional": plugin.config.optional,
            }
            for plugin in report.plugins
        ],
        "left_out": dict(report.left_out),
        "hooks": {hook: list(names) for hook, names in report.hooks.items()},
    }
