"""What commands print: tables and verdicts for people, JSON for programs, plain text wherever nobody watches."""

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


class Level(StrEnum):
    """How a check came out."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found.

    Attributes:
        level: How it came out.
        subject: What was looked at, in a word or two.
        message: What was found and, unless it is fine, what to do.
    """

    level: Level
    subject: str
    message: str


_STYLES: Final = {Level.OK: "green", Level.WARNING: "yellow", Level.FAILED: "bold red"}


def printable(text: str) -> str:
    """Return text without control sequences; line breaks stay."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)


def show_findings(findings: Iterable[Finding]) -> None:
    """Print findings, one a line."""
    console = Console(highlight=False)
    if console.is_terminal:
        grid = Table.grid(padding=(0, 2))
        for found in findings:
            grid.add_row(
                Text(found.level.value, _STYLES[found.level]),
                Text(found.subject, "bold"),
                Text(printable(found.message)),
            )
        console.print(grid)
        return
    for found in findings:
        message = " ".join(printable(found.message).splitlines())
        click.echo(f"{found.level.value:<7}  {found.subject:<13}  {message}")


def show_table(table: Table) -> None:
    """Print a table, as wide as the terminal; wide enough for everything where there is none."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=PIPED_WIDTH_COLUMNS)
    console.print(table)


def show_json(answer: object) -> None:
    """Print JSON."""
    click.echo(json.dumps(answer, indent=2))


def as_json(findings: Iterable[Finding]) -> list[dict[str, str]]:
    """Return findings as JSON."""
    return [asdict(found) for found in findings]


def verdict(findings: Sequence[Finding]) -> Level:
    """Return the worst level there is."""
    levels = {found.level for found in findings}
    return next((level for level in (Level.FAILED, Level.WARNING) if level in levels), Level.OK)


def count(findings: Sequence[Finding]) -> str:
    """Return how many there are of each, in words."""
    failed, warnings = (sum(found.level is level for found in findings) for level in (Level.FAILED, Level.WARNING))
    parts = [
        f"{number} {word}{'s' if number > 1 else ''}"
        for number, word in ((failed, "error"), (warnings, "warning"))
        if number
    ]
    return ", ".join(parts) or "no errors"
