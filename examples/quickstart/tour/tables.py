"""How requests, traffic and advice look on the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .traces import SeenAttempt, Trace

MAX_WIDTH: Final = 132
PIPED_WIDTH: Final = 120

_DASH: Final = "\N{EN DASH}"
_LINE: Final = "\N{BOX DRAWINGS LIGHT HORIZONTAL}"
_GOOD: Final = 400
"""HTTP statuses below this are good."""

_TAIL: Final = {"tokens": 6, "cost": 9, "ms": 9, "http": 4}
"""Columns to the right, as wide as what they hold."""
_NUMBER: Final = 2
_SHARES: Final = {"call": 18, "decided": 19, "attempts": 26}
"""The others share the rest like this."""
_LEAST: Final = 12


@dataclass(frozen=True, slots=True)
class Phase:
    """One part of the traffic, between two changes of the active version.

    Attributes:
        name: What this part is.
        traces: Its requests.
        failed: How many of them did not get a whole answer.
    """

    name: str
    traces: Sequence[Trace]
    failed: int


class RequestTable:
    """A table that grows: its rows are printed as the requests come.

    Args:
        console: Where.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._count = 0

    def heading(self) -> None:
        """Print the columns' names."""
        self._print([Text(name, style="bold") for name in ("", *_SHARES, *_TAIL)])
        self._console.print(_LINE * self._width, style="dim", highlight=False)

    def row(self, trace: Trace, client: str = "") -> None:
        """Print one request.

        Args:
            trace: What Pointsman says about it.
            client: Who sent it, where that is known.
        """
        self._count += 1
        self._print(
            [
                Text(str(self._count), style="dim"),
                _call(trace, client),
                _decided(trace, self._shared()["decided"]),
                _attempts(trace.attempts),
                Text(_tokens(trace.input_tokens, trace.output_tokens)),
                Text(_usd(trace.cost_usd_micros)),
                Text(_times(trace)),
                Text(str(trace.status), style="green" if trace.status < _GOOD else "red"),
            ]
        )

    @property
    def _width(self) -> int:
        return min(self._console.width, MAX_WIDTH)

    def _shared(self) -> dict[str, int]:
        rest = self._width - _NUMBER - sum(_TAIL.values()) - len(_SHARES) - len(_TAIL)
        return {name: max(_LEAST, rest * share // sum(_SHARES.values())) for name, share in _SHARES.items()}

    def _print(self, cells: Sequence[Text]) -> None:
        # Each row is a table of its own, so that it can be printed at once; equal widths make them one.
        grid = Table.grid(padding=(0, 1, 0, 0))
        for width in (_NUMBER, *self._shared().values()):
            grid.add_column(width=width, overflow="fold")
        for width in _TAIL.values():
            grid.add_column(width=width, overflow="fold", justify="right")
        grid.add_row(*cells)
        self._console.print(grid)


def traffic_table(phases: Sequence[Phase]) -> Table:
    """Return what the steady traffic saw, one row a phase."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("traffic", "decided", "answered by"):
        table.add_column(name, no_wrap=name != "answered by")
    for name in ("requests", "failed", "retried", "ms p50"):
        table.add_column(name, justify="right")
    for phase in phases:
        answered = Counter(trace.attempts[-1].deployment for trace in phase.traces if trace.attempts)
        decided = Counter(str(decision) for trace in phase.traces for decision in trace.decisions)
        retried = sum(len(trace.attempts) > 1 for trace in phase.traces)
        table.add_row(
            Text(phase.name),
            Text("\n".join(decided)),
            Text(", ".join(f"{name} {count}" for name, count in sorted(answered.items()))),
            str(len(phase.traces)),
            Text(str(phase.failed), style="bold red" if phase.failed else "green"),
            str(retried),
            f"{median(trace.total_ms for trace in phase.traces):.0f}",
        )
    return table


def _call(trace: Trace, client: str) -> Text:
    call = Text(f"{client} {trace.endpoint}".strip())
    call.append(f"\n{trace.model}", style="bold")
    return call.append(", stream" if trace.stream else "")


def _decided(trace: Trace, width: int) -> Text:
    lines: list[Text] = []
    for each in trace.decisions:
        # Broken before the arrow, where it does not fit.
        between = " " if len(str(each)) <= width else "\n"
        lines.append(Text.assemble((f"{each.plugin}: ", "cyan"), between.join(filter(None, [each.what, each.where]))))
    return Text("\n").join(lines) if lines else Text(_DASH, style="dim")


def _attempts(attempts: Sequence[SeenAttempt]) -> Text:
    lines: list[Text] = []
    for attempt in attempts:
        good = attempt.outcome == "ok"
        said = "ok" if good else " ".join(str(part) for part in (attempt.status, attempt.error) if part) or "failed"
        ended = said if good or attempt.outcome == "error" else attempt.outcome
        lines.append(
            Text.assemble((f"{attempt.kind} ", "dim"), f"{attempt.deployment} ", (ended, "green" if good else "red"))
        )
        lines += [Text(note, style="dim italic") for note in attempt.notes]
    return Text("\n").join(lines) if lines else Text("none", style="dim")


def _tokens(given: int | None, made: int | None) -> str:
    return _DASH if given is None else f"{given}+{made or 0}"


def _usd(micros: int) -> str:
    return f"${micros / 1e6:.6f}" if micros else _DASH


def _times(trace: Trace) -> str:
    first = _DASH if trace.first_token_ms is None else f"{trace.first_token_ms:.0f}"
    return f"{first}/{trace.total_ms:.0f}"
