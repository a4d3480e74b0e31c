"""A picture of the Grafana dashboard, with what a real Prometheus answers to its panels: their places, names and curves."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Final

_COLUMN: Final = 50
_ROW: Final = 34
_COLOURS: Final = ("#2b6cb0", "#c05621", "#2f855a", "#6b46c1", "#b83280", "#4a5568", "#b7791f", "#c53030")
_MOST_NAMES: Final = 4


@dataclass(frozen=True, slots=True)
class Curve:
    """One series: its name, and its points as seconds and value."""

    name: str
    points: Sequence[tuple[float, float]]


#: Returns the series that an expression has over time, as Prometheus' ``query_range`` gives them.
Ask = Callable[[str], Sequence[Mapping[str, Any]]]


def curves(panel: Mapping[str, Any], ask: Ask) -> Iterator[Curve]:
    """Yield what a panel shows."""
    for target in panel.get("targets", ()):
        for series in ask(target["expr"].replace("$__rate_interval", "1m")):
            name = _named(target.get("legendFormat", ""), series["metric"])
            points = [(float(at), float(value)) for at, value in series["values"]]
            yield Curve(name.strip() or panel["title"], [point for point in points if math.isfinite(point[1])])


def _named(legend: str, labels: Mapping[str, str]) -> str:
    return re.sub(r"{{(\w+)}}", lambda found: labels.get(found[1], ""), legend)


def draw(dashboard: Mapping[str, Any], ask: Ask) -> str:
    """Return an SVG document."""
    parts, height = [], 0
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        x, y, width, tall = place["x"] * _COLUMN, place["y"] * _ROW, place["w"] * _COLUMN, place["h"] * _ROW
        height = max(height, y + tall)
        title = f'<text x="{x + 8}" y="{y + 18}" font-weight="bold">{escape(panel["title"])}</text>'
        if panel["type"] == "row":
            parts.append(title)
            continue
        frame = (
            f'<rect x="{x + 2}" y="{y + 2}" width="{width - 4}" height="{tall - 4}" fill="#ffffff" stroke="#cbd5e0"/>'
        )
        unit = panel.get("fieldConfig", {}).get("defaults", {}).get("unit", "")
        parts += [frame, title, *_graph(list(curves(panel, ask)), unit, (x + 8, y + 26, width - 16, tall - 34))]
    width = 24 * _COLUMN
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="11">\n'
        f'<rect width="{width}" height="{height}" fill="#f7fafc"/>\n{body}\n</svg>\n'
    )


def _graph(shown: Sequence[Curve], unit: str, frame: tuple[int, int, int, int]) -> Iterator[str]:
    x, y, width, height = frame
    points = [point for curve in shown for point in curve.points]
    if not points:
        yield f'<text x="{x}" y="{y + 16}" fill="#718096">no data</text>'
        return
    first, last = min(at for at, _ in points), max(at for at, _ in points)
    top = max(0.0, *(value for _, value in points)) or 1.0
    yield f'<text x="{x}" y="{y + 8}" fill="#718096">{top:.3g} {escape(unit)}</text>'
    below = y + height - 14 * min(len(shown), _MOST_NAMES)
    for number, curve in enumerate(shown):
        colour = _COLOURS[number % len(_COLOURS)]
        line = " ".join(
            f"{x + (at - first) / max(1.0, last - first) * width:.1f},{below - 6 - max(0.0, value) / top * (below - y - 18):.1f}"
            for at, value in curve.points
        )
        yield f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.5"/>'
        if number < _MOST_NAMES and curve.points:
            text = f"{curve.name}: {curve.points[-1][1]:.3g}"
            yield f'<text x="{x}" y="{below + 10 + 14 * number}" fill="{colour}">{escape(text)}</text>'
