"""A picture of a trace, as Jaeger's page lays it out: one line a span, indented below its parent."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from typing import Final

from jaeger import JaegerSpan

_WIDTH: Final = 1000
_NAMES: Final = 380
_LINE: Final = 24
_COLOURS: Final = {"ok": "#2f855a", "error": "#c53030", "unset": "#718096"}


def _in_order(spans: Sequence[JaegerSpan], parent: str, depth: int) -> Iterator[tuple[int, JaegerSpan]]:
    ids = {span.span_id for span in spans}
    below = [s for s in spans if s.parent_id == parent or (not parent and s.parent_id not in ids)]
    for span in sorted(below, key=lambda s: s.start_us):
        yield depth, span
        yield from _in_order(spans, span.span_id, depth + 1)


def draw(spans: Sequence[JaegerSpan]) -> str:
    """Return an SVG document."""
    first, last = min(s.start_us for s in spans), max(s.end_us for s in spans)
    scale = (_WIDTH - _NAMES - 90) / max(1, last - first)
    lines = []
    for number, (depth, span) in enumerate(_in_order(spans, "", 0)):
        y = 10 + number * _LINE
        x, width = _NAMES + (span.start_us - first) * scale, max(2.0, (span.end_us - span.start_us) * scale)
        detail = " ".join(
            str(span.tags[name])
            for name in ("pointsman.deployment", "pointsman.attempt.kind", "pointsman.outcome")
            if name in span.tags
        )
        text = f"{span.name}  {detail}".strip()
        lines.append(
            f'<text x="{10 + depth * 18}" y="{y + 15}">{escape(text)}</text>'
            f'<rect x="{x:.1f}" y="{y + 3}" width="{width:.1f}" height="16" rx="2" fill="{_COLOURS[span.status]}"/>'
            f'<text x="{x + width + 5:.1f}" y="{y + 15}" fill="#4a5568">{(span.end_us - span.start_us) / 1000:.1f} ms</text>'
        )
    height = 20 + len(lines) * _LINE
    body = "\n".join(lines)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif" font-size="12">\n'
        f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>\n{body}\n</svg>\n'
    )
