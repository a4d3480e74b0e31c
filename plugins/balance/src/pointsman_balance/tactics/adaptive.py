"""The tactic ``adaptive``: waiting time, speed, quota, price, health and requests in flight, weighted by configuration.

Each is a number from 0 to 1 relative to the best of the candidates, and the score is their product, each to the power of
its weight: a weighted geometric mean. In a sum a deployment that is excellent in the rest would still be chosen when it
fails or is full; a product has no such loophole. With the weights ``first_token`` and ``in_flight`` alone it is the load
of ``p2c``, over all candidates instead of two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log2

from pydantic import Field

from pointsman.config import Section

from ..tactic import Ask, Choice, Option, Tactic

#: The worst a factor can be; its logarithm must be a number.
FLOOR = 1e-3
#: Share of the measured wait below which a deployment is chosen because it has not been used lately.
FADED = 0.5
#: Nothing is lower: prices a token are around 1e-6.
TINY = 1e-12


def _weight(default: float, of: str) -> float:
    value: float = Field(default=default, ge=0, le=10, description=f"Exponent of {of}; 0 ignores it.")
    return value


class AdaptiveSettings(Section):
    """Weights of ``adaptive``."""

    first_token: float = _weight(1.0, "the waiting time: to the first token of a stream, to the end of a plain call")
    in_flight: float = _weight(1.0, "the requests in flight, including this one")
    health: float = _weight(3.0, "the share of recent attempts that succeeded")
    latency: float = _weight(0.0, "the time of plain calls")
    speed: float = _weight(0.25, "the tokens per second")
    headroom: float = _weight(0.25, "the remaining share of the scarcest quota")
    cost: float = _weight(0.0, "the price per token")


class Adaptive(Tactic):
    """Chooses the highest weighted product."""

    Settings = AdaptiveSettings
    settings: AdaptiveSettings
    summary = "waiting time, requests in flight, health, speed, quota and price, weighted by configuration"

    def __init__(self, settings: Mapping[str, object] | None = None) -> None:
        super().__init__(settings)
        own = self.settings
        # Read for every candidate of every choice; a field of a pydantic model takes three times as long.
        self._always = (own.first_token, own.in_flight, own.health)
        self._speed, self._headroom, self._latency, self._cost = own.speed, own.headroom, own.latency, own.cost

    def choose(self, ask: Ask) -> Choice:
        """Score all and choose the best."""
        first_token, in_flight, health = self._always
        quota, fast = self._headroom, self._speed
        now, stream, options = ask.now, ask.stream, ask.options
        waits: list[float | None] = []
        slowness: list[float | None] = []
        scores: list[float] = []
        for option in options:
            member, signal = option.member, option.signal
            load = member.load
            score = health * log2(1.0 + FLOOR - load.error_ratio(now)) if load.errors else 0.0
            flight = len(load.running) + len(load.picks)
            if flight:
                score -= in_flight * log2(flight + 1)
            if quota and signal is not None and signal.limits:
                left = member.headroom_ratio(signal, now)
                if left is not None and left < 1.0:
                    score += quota * log2(left + FLOOR)
            wait_ms = load.wait_ms(now, stream=stream)
            if option.candidate.delay_s:
                wait_ms = (wait_ms or 0.0) + option.candidate.delay_s * 1e3
            if wait_ms is not None:
                score -= first_token * log2(wait_ms if wait_ms > TINY else TINY)  # noqa: FURB136  # once for every candidate
            waits.append(wait_ms)
            speed = load.tokens_per_s.value if load.tokens_per_s.count else option.tokens_per_s
            if speed is not None and speed > 0.0:
                score += fast * log2(speed)
                slowness.append(1.0 / speed)
            else:
                slowness.append(None)
            scores.append(score)
        _guess(scores, options, waits, first_token)
        _guess(scores, options, slowness, fast)
        if self._latency:
            _lower_is_better(scores, options, [option.latency_ms for option in options], self._latency)
        if self._cost:
            _lower_is_better(scores, options, [option.price_usd for option in options], self._cost)
        top = max(scores)
        # As products, the best is 1.
        choice = ask.best([2.0 ** (score - top) for score in scores])
        load = options[choice.chosen].member.load
        waited = _waited(waits[choice.chosen], load.measured_ms(stream=stream))
        return Choice(choice.chosen, choice.scores, f"{waited}, {load.in_flight} in flight")


def _waited(believed_ms: float | None, measured_ms: float | None) -> str:
    """Return for the trace how long requests wait there; a wait that has faded is reported as it was measured."""
    if believed_ms is None:
        return "untried"
    if measured_ms is not None and believed_ms < measured_ms * FADED:
        return f"not used lately, waited {measured_ms:.0f} ms"
    return f"waits {believed_ms:.0f} ms"


def _lower_is_better(scores: list[float], options: Sequence[Option], values: list[float | None], weight: float) -> None:
    """Take the values' logarithms off the scores."""
    for index, value in enumerate(values):
        if value is not None:
            scores[index] -= weight * log2(max(value, TINY))
    _guess(scores, options, values, weight)


def _guess(scores: list[float], options: Sequence[Option], values: list[float | None], weight: float) -> None:
    """Take off the scores what is assumed for unknown values.

    An unknown value counts as half of the lowest, so that the deployment is tried; as the highest while a request runs
    there, and after several attempts without an answer.
    """
    if None not in values:
        return
    known = [value for value in values if value is not None]
    if not known:
        return
    low, high = min(known) / 2, max(known)
    for index, (value, option) in enumerate(zip(values, options, strict=True)):
        if value is None:
            scores[index] -= weight * log2(max(low if option.explores else high, TINY))
