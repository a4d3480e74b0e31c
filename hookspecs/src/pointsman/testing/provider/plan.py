"""What happens to one request, decided from a behaviour alone: no clock, no I/O, no shared random state."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .behaviour import Behaviour, BrownOut, Delay, Fault

OK = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The fate of one request.

    Attributes:
        status: 200, or the status it fails with.
        fault: What else goes wrong, or None; always None when the request fails with a status.
        fault_after_events: Events of a stream that are sent before the fault.
        latency_s: Wait before the headers, in seconds.
        first_token_s: Wait before the first token, in seconds.
        per_token_s: Wait between tokens, in seconds.
    """

    status: int = OK
    fault: Fault | None = None
    fault_after_events: int = 0
    latency_s: float = 0.0
    first_token_s: float = 0.0
    per_token_s: float = 0.0

    def plain_s(self, tokens: int) -> float:
        """Return the whole wait before a plain answer of so many tokens, in seconds."""
        return self.latency_s + self.first_token_s + self.per_token_s * max(0, tokens - 1)


def make_plan(behaviour: Behaviour, model: str, number: int, elapsed_s: float) -> Plan:
    """Decide about the request ``number`` (from 0) of a model, ``elapsed_s`` seconds after the behaviour was set.

    The draws depend on the seed, the model and the number only, so requests that overlap cannot change each other's.
    """
    draw = random.Random(f"{behaviour.seed}/{model}/{number}")  # noqa: S311 - repeatable test data, no secrets
    slow, failed, faulty = draw.random(), draw.random(), draw.random()
    brown_out = _current(behaviour.brown_outs, elapsed_s)
    factor = behaviour.straggler_factor if slow < behaviour.straggler_ratio else 1.0
    if brown_out is not None:
        factor *= brown_out.delay_factor
    status = _pick(behaviour.error_ratios, failed)
    fault = behaviour.fault if faulty < behaviour.fault_ratio else None
    if brown_out is not None and draw.random() < brown_out.error_ratio:
        status = brown_out.status
    if number < behaviour.fail_first:
        if isinstance(behaviour.fail_with, int):
            status = behaviour.fail_with
        else:
            status, fault = OK, behaviour.fail_with
    return Plan(
        status=status,
        fault=fault if status == OK else None,
        fault_after_events=behaviour.fault_after_events,
        latency_s=_seconds(behaviour.latency, draw, number) * factor,
        first_token_s=_seconds(behaviour.first_token, draw, number) * factor,
        per_token_s=_seconds(behaviour.per_token, draw, number) * factor,
    )


def _current(brown_outs: tuple[BrownOut, ...], elapsed_s: float) -> BrownOut | None:
    return next((b for b in brown_outs if b.start_s <= elapsed_s < b.end_s), None)


def _pick(ratios: Mapping[int, float], drawn: float) -> int:
    edge = 0.0
    for status, ratio in ratios.items():
        edge += ratio
        if drawn < edge:
            return status
    return OK


def _seconds(delay: Delay, draw: random.Random, number: int) -> float:
    if delay.values_ms:
        return delay.values_ms[number % len(delay.values_ms)] / 1000
    if delay.sigma and delay.median_ms:
        return draw.lognormvariate(math.log(delay.median_ms / 1000), delay.sigma)
    return delay.median_ms / 1000
