"""Real provider traffic: every rate-limit header in the recordings ends in the right field with the right unit.

The recordings are lines of JSON with ``host``, ``status`` and ``headers``. They are looked for in the folder
``../shared/recordings`` beside the repository, or where ``POINTSMAN_RECORDINGS`` says.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from datetime import datetime
from email.utils import parsedate_to_datetime
from pathlib import Path

import pytest

from pointsman.types import Deployment
from pointsman_signals.dialects import DialectTable

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


@pytest.fixture(scope="module")
def exchanges():
    file = folder() / FILE
    if not file.is_file():
        pytest.skip(f"there are no recordings at {file}; POINTSMAN_RECORDINGS names another folder")
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
    """Return ``(axis, window_s, part, value)`` for one header, None for one that is no figure of a quota axis."""
    words = name.split("-")
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


def rate_headers(exchange):
    return {k: v for k, v in exchange["headers"].items() if any(word in k for word in RATE_HEADERS)}


def test_every_rate_limit_header_ends_in_the_right_field_with_the_right_unit(exchanges):
    table, seen = DialectTable(), Counter()
    for exchange in exchanges:
        host, headers = exchange["host"], rate_headers(exchange)
        deployment = Deployment(id="d", group="g", provider="openai", model="m", api_base=f"https://{host}/v1")
        date = exchange["headers"].get("date", "Sun, 01 Jun 2025 00:00:00 GMT")
        now = parsedate_to_datetime(date).timestamp()
        reading = table.reader(deployment).read(exchange["headers"], now)
        by_axis = {(limit.axis, limit.window_s): limit for limit in reading.limits}
        used = set()
        for name, text in headers.items():
            seen[host] += 1
            if host == "api.cohere.com":
                axis = ("requests", 2_592_000.0 if "monthly" in name else 60.0)
                assert by_axis[axis].limit == float(text), (exchange["id"], name)
                used.add(axis)
                continue
            if (wanted := expected(host, name, text, headers, now)) is None:
                continue
            axis, window_s, part, value = wanted
            limit = by_axis[axis, window_s]
            got = {"limit": limit.limit, "remaining": limit.remaining, "reset": limit.resets_at}[part]
            assert got == pytest.approx(value, abs=1e-6), (exchange["id"], name, text)
            used.add((axis, window_s))
        assert used == by_axis.keys(), exchange["id"]
        if "retry-after" in headers:
            assert reading.retry_after_s == float(headers["retry-after"])
        if "x-ratelimit-tokens-query-cost" in headers:
            assert reading.notes["query_cost_tokens"] == float(headers["x-ratelimit-tokens-query-cost"])
        if "x-ratelimit-abusepenalty-active" in headers:
            assert reading.notes["abuse_penalty"] == 0.0
    assert len(seen) >= 7, seen
