"""The hourly sums of bills. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, TypeAlias

from . import events
from .bill import Bill, Line
from .tables import SUMS

HOUR_MS: Final = 3_600_000

Key: TypeAlias = tuple[int, str, str, str]
"""Unix seconds of the hour's beginning, tenant, model asked for, kind of attempt (``request`` for the request itself)."""


def of_bills(bills: Iterable[Bill]) -> dict[Key, list[int]]:
    """Return the sums of all bills, in the order of ``SUMS``."""
    sums: dict[Key, list[int]] = {}
    for bill in bills:
        if not bill.own:
            sums.setdefault(_key(bill.at_ms, bill, events.REQUEST), [0] * len(SUMS))[0] += 1
        for line in bill.lines:
            row = sums.setdefault(_key(line.at_ms, bill, line.kind), [0] * len(SUMS))
            for index, value in enumerate(_of_line(line)):
                row[index] += value
    return sums


def _key(at_ms: int, bill: Bill, kind: str) -> Key:
    return at_ms // HOUR_MS * HOUR_MS // 1000, bill.tenant, bill.model, kind


def _of_line(line: Line) -> tuple[int, ...]:
    usage = line.usage
    return (
        0,
        1,
        int(usage is not None and usage.estimated),
        int(line.amount_usd_micros is None),
        usage.prompt_tokens if usage else 0,
        usage.completion_tokens if usage else 0,
        usage.cached_tokens if usage else 0,
        usage.cache_write_tokens if usage else 0,
        usage.reasoning_tokens if usage else 0,
        usage.audio_prompt_tokens + usage.audio_completion_tokens if usage else 0,
        line.gateway_usd_micros or 0,
        line.cost_usd_micros or 0,
        line.amount_usd_micros or 0,
        line.difference_usd_micros,
    )
