"""Recorded exchanges with real providers, and what their headers mean, read apart from the code under test.

The recordings are lines of JSON with ``host``, ``path``, ``request``, ``status`` and ``headers``. They are looked for in
the folder ``../shared/recordings`` beside the repository, or where ``POINTSMAN_RECORDINGS`` says.
"""

from __future__ import annotations

import json
import os
from datetime import datetime
from pathlib import Path

import pytest

FILE = "exchanges.jsonl"
RATE_HEADERS = ("ratelimit", "tokenlimit", "call-limit", "retry-after")
UNITS_S = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}

#: Host to what its headers mean, written down from the providers' documentation, apart from the code under test.
WINDOWS_S = {
    "api.openai.com": {},
    "api.groq.com": {"requests": 86_400.0, "tokens": 60.0},
    "api.anthropic.com": dict.fromkeys(("requests", "tokens", "input_tokens", "output_tokens"), 60.0),
    "api.together.xyz": {"requests": 1.0},
    "azure": {"requests": 60.0, "tokens": 60.0},
}


def folder():
    named = os.environ.get("POINTSMAN_RECORDINGS")
    return Path(named) if named else Path(__file__).resolve().parents[4] / "shared" / "recordings"


def recording():
    """Return the file; skip the test when it is not there."""
    file = folder() / FILE
    if not file.is_file():
        pytest.skip(f"there are no recordings at {file}; POINTSMAN_RECORDINGS names another folder")
    return file


def exchanges():
    """Return all recorded exchanges."""
    return read(recording())


def sample():
    """Return a few exchanges in the shapes that the providers document."""
    return read(Path(__file__).resolve().parents[3] / "tests" / "recordings" / FILE)


def read(file):
    with file.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def seconds_of_duration(text):
    """Read a Go duration digit by digit, unlike the code under test."""
    total, number, rest = 0.0, "", text
    while rest:
        if rest[0].isdigit() or rest[0] == ".":
            number, rest = number + rest[0], rest[1:]
            continue
        unit = "ms" if rest.startswith("ms") else rest[0]
        total, number, rest = total + float(number) * UNITS_S[unit], "", rest[len(unit) :]
    return total + (float(number) if number else 0.0)


def expected(host, name, text, headers, now):
    """Return ``(axis, window_s, part, value)`` for one header, None for one that is not a figure of a quota axis."""
    words = name.split("-")
    if host == "api.cohere.com":
        return "requests", 2_592_000.0 if words[2] == "monthly" else 60.0, words[-1], float(text)
    windows = WINDOWS_S["azure" if host.endswith(".azure.com") else host] if host != "api.mistral.ai" else {}
    if name in {"retry-after", "retry-after-ms", "x-ratelimit-abusepenalty-active", "x-ratelimit-tokens-query-cost"}:
        return None
    if host == "api.anthropic.com":
        axis, part = "_".join(words[2:-1]), words[-1]
    elif host == "api.mistral.ai":
        part, axis = words[2], {"req": "requests"}.get(words[3], words[3])
        window_s = {("10", "second"): 10.0, ("minute",): 60.0, ("month",): 2_592_000.0}[tuple(words[4:])]
        return axis, window_s, part, float(text)
    else:
        part, axis = words[2], "_".join(words[3:]) or "requests"
    window_s = windows.get(axis)
    if part != "reset":
        return (axis, window_s, part, float(text)) if part != "renewalperiod" else None
    if host == "api.anthropic.com":
        return axis, window_s, part, datetime.fromisoformat(text).timestamp()
    if host.endswith(".azure.com"):
        # The quota refills evenly, so a bare number can be checked against what is used: here it is milliseconds.
        used = float(headers[f"x-ratelimit-limit-{axis}"]) - float(headers[f"x-ratelimit-remaining-{axis}"])
        refill_s = 60 * used / float(headers[f"x-ratelimit-limit-{axis}"])
        assert float(text) / 1000 == pytest.approx(refill_s, abs=0.001)
        return axis, window_s, part, now + float(text) / 1000
    return axis, window_s, part, now + seconds_of_duration(text)


def figure(limit, part):
    """Return one figure of a quota axis, given as value or as JSON."""
    name = {"limit": "limit", "remaining": "remaining", "reset": "resets_at"}[part]
    return limit[name] if isinstance(limit, dict) else getattr(limit, name)


def rate_headers(exchange):
    """Return the headers that say something about quotas."""
    return {k: v for k, v in exchange["headers"].items() if any(word in k for word in RATE_HEADERS)}
