"""What commands print: tables and verdicts on a terminal, JSON on request, plain text when piped."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Final

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..client import PIPED_WIDTH_COLUMNS
from ..text import printable


class Level(StrEnum):
    """The result of a check."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found.

    Attributes:
        level: The result.
        subject: What was checked, in a word or two.
        message: What was found and, unless it is ok, what to do.
    """

    level: Level
    subject: str
    message: str


_STYLES: Final = {Level.OK: "green", Level.WARNING: "yellow", Level.FAILED: "bold red"}


def show_findings(findings: Iterable[Finding]) -> None:
    """Print findings, one a line."""
    console = Console(highlight=False)
    if console.is_terminal:
        grid = Table.grid(padding=(0, 2))
        for finding in findings:
            grid.add_row(
                Text(finding.level.value, _STYLES[finding.level]),
                Text(finding.subject, "bold"),
                Text(printable(finding.message, keep="\n")),
            )
        console.print(grid)
        return
    for finding in findings:
        message = " ".join(printable(finding.message, keep="\n").splitlines())
        click.echo(f"{finding.level.value:<7}  {finding.subject:<13}  {message}")


def show_table(table: Table) -> None:
    """Print a table, as wide as the terminal, or wide enough for everything when piped."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=PIPED_WIDTH_COLUMNS)
    console.print(table)


def show_json(answer: object) -> None:
    """Print JSON."""
    click.echo(json.dumps(answer, indent=2))


def as_json(findings: Iterable[Finding]) -> list[dict[str, str]]:
    """Return findings as JSON."""
    return [asdict(finding) for finding in findings]


def verdict(findings: Sequence[Finding]) -> Level:
    """Return the worst level there is."""
    levels = {finding.level for finding in findings}
    return next((level for level in (Level.FAILED, Level.WARNING) if level in levels), Level.OK)


def count(findings: Sequence[Finding]) -> str:
    """Return the numbers of errors and warnings as text."""
    failed, warnings = (sum(finding.level is level for finding in findings) for level in (Level.FAILED, Level.WARNING))
    parts = [
        f"{number} {word}{'s' if number > 1 else ''}"
        for number, word in ((failed, "error"), (warnings, "warning"))
        if number
    ]
    return ", ".join(parts) or "no errors"
