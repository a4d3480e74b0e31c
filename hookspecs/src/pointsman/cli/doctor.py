"""``pointsman doctor CONFIG``: the configuration, and the environment that it will run in."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Final

import click

from ..client import AdminClient, AdminFailure
from .output import Finding, Level, as_json, count, show_findings, show_json, verdict
from .probes import check_endpoint, check_store
from .report import Report, inspect
from .running import judge
from .versions import check_versions

_TIMEOUT_S: Final = 10.0


@click.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--url", help="A running proxy to look at too, for example http://127.0.0.1:4000.")
@click.option(
    "--key", envvar=["POINTSMAN_KEY", "LITELLM_MASTER_KEY"], default=None, show_envvar=True, help="Its admin key."
)
@click.option("--json", "json_wanted", is_flag=True, help="Print the answer as JSON.")
@click.pass_context
def doctor(ctx: click.Context, config: Path, *, url: str | None, key: str | None, json_wanted: bool) -> None:
    """Check the LiteLLM configuration CONFIG and the environment it will run in.

    Everything that 'check' does, then: versions, the state store (a value of its own is written and deleted), where
    spans go and, with --url, the health of a running proxy. Ends with 1 if something failed; warnings do not count.
    """
    findings = asyncio.run(examine(config, url, key))
    if json_wanted:
        show_json({"ok": verdict(findings) is not Level.FAILED, "checks": as_json(findings)})
    else:
        show_findings(findings)
        click.echo(f"\n{count(findings)}")
    ctx.exit(int(verdict(findings) is Level.FAILED))


async def examine(config: Path, url: str | None, key: str | None) -> list[Finding]:
    """Make all checks, in the order in which a start would run into them."""
    report = inspect(config, os.environ)
    findings = list(check_versions())
    findings += report.findings
    if verdict(report.findings) is not Level.FAILED:
        findings.append(_fine(report))
    if report.host is not None:
        findings += [found async for found in check_store(report.host.store, report.base)]
    if report.telemetry is not None and not report.telemetry.problems:
        endpoint = report.telemetry.endpoint
        findings.append(check_endpoint(endpoint) if endpoint else Finding(Level.OK, "tracing", report.telemetry.words))
    if url is not None:
        findings += _proxy(url, key, report)
    return findings


def _fine(report: Report) -> Finding:
    names = ", ".join(plugin.name for plugin in report.plugins) or "none"
    return Finding(Level.OK, "configuration", f"{report.file} is valid; plugins: {names}")


def _proxy(url: str, key: str | None, report: Report) -> list[Finding]:
    with AdminClient(url, key, timeout_s=_TIMEOUT_S) as admin:
        try:
            return list(judge(admin.get("/status"), report))
        except AdminFailure as err:
            return [Finding(Level.FAILED, "proxy", err.message)]
        except (LookupError, TypeError, AttributeError) as err:
            text = f"{admin.url} answers something else than a status ({type(err).__name__}: {err}); is it a Pointsman?"
            return [Finding(Level.FAILED, "proxy", text)]
