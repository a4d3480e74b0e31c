"""Real provider traffic: every rate-limit header in the recordings ends in the right field with the right unit."""

from __future__ import annotations

from collections import Counter
from email.utils import parsedate_to_datetime

import pytest

from pointsman.types import Deployment
from pointsman_signals.dialects import DialectTable

from .recorded import exchanges, expected, figure, rate_headers, sample


@pytest.mark.parametrize("source", [sample, exchanges])
def test_every_rate_limit_header_ends_in_the_right_field_with_the_right_unit(source):
    table, seen = DialectTable(), Counter()
    for exchange in source():
        host, headers = exchange["host"], rate_headers(exchange)
        deployment = Deployment(id="d", group="g", provider="openai", model="m", api_base=f"https://{host}/v1")
        date = exchange["headers"].get("date", "Sun, 01 Jun 2025 00:00:00 GMT")
        now = parsedate_to_datetime(date).timestamp()
        reading = table.reader(deployment).read(exchange["headers"], now)
        by_axis = {(limit.axis, limit.window_s): limit for limit in reading.limits}
        used = set()
        for name, text in headers.items():
            seen[host] += 1
            if (wanted := expected(host, name, text, headers, now)) is None:
                continue
            axis, window_s, part, value = wanted
            assert figure(by_axis[axis, window_s], part) == pytest.approx(value, abs=1e-6), (exchange["id"], name, text)
            used.add((axis, window_s))
        assert used == by_axis.keys(), exchange["id"]
        if "retry-after" in headers:
            assert reading.retry_after_s == float(headers["retry-after"])
        if "x-ratelimit-tokens-query-cost" in headers:
            assert reading.notes["query_cost_tokens"] == float(headers["x-ratelimit-tokens-query-cost"])
        if "x-ratelimit-abusepenalty-active" in headers:
            assert reading.notes["abuse_penalty"] == 0.0
    assert len(seen) >= 7, seen
