"""The tactics that look at one criterion. ``adaptive`` and ``cache_affinity`` have modules of their own."""

from __future__ import annotations

from pydantic import Field

from pointsman.config import Section

from ..load import MIN_WAIT_MS
from ..tactic import Ask, Choice, Tactic

#: Shortest time to a reset that counts, in seconds: the remaining quota cannot all be spent at once.
MIN_RESET_S = 1.0
#: Assumed time to the reset of an axis whose reset is unknown, in seconds.
ASSUMED_RESET_S = 60.0


class Random(Tactic):
    """At random, in proportion to the weights."""

    summary = "at random by weight; uniformly when no weight is above 0"

    def choose(self, ask: Ask) -> Choice:
        """Draw by weight."""
        return ask.share([option.weight for option in ask.options])


class Capacity(Tactic):
    """At random, in proportion to capacity; an unknown capacity counts as the mean of the known ones."""

    summary = "at random in proportion to capacity (model_info.capacity, else rpm, else tpm)"

    def choose(self, ask: Ask) -> Choice:
        """Draw by capacity."""
        capacities = [option.capacity for option in ask.options]
        known = [capacity for capacity in capacities if capacity is not None]
        mean = sum(known) / len(known) if known else 1.0
        return ask.share([mean if capacity is None else capacity for capacity in capacities])


class RoundRobin(Tactic):
    """In turn, in proportion to the weights, evenly spread (smooth weighted round robin, as in nginx)."""

    summary = "in turn, by weight"

    def __init__(self, settings: dict[str, object] | None = None) -> None:
        super().__init__(settings)
        self._credit: dict[str, float] = {}

    def choose(self, ask: Ask) -> Choice:
        """Choose the option with the most credit."""
        before, options = self._credit, ask.options
        weights = [max(0.0, option.weight) for option in options]
        if not any(weights):
            weights = [1.0] * len(weights)
        # A deployment that is not an option gains no credit, or it would get a burst when it returns.
        credits_ = [before.get(option.id, 0.0) + weight for option, weight in zip(options, weights, strict=True)]
        choice = ask.best(credits_)
        self._credit = {option.id: credit for option, credit in zip(options, credits_, strict=True)}
        self._credit[options[choice.chosen].id] -= sum(weights)
        return choice


class LeastBusy(Tactic):
    """Fewest attempts in flight, relative to the weight."""

    summary = "fewest in flight, relative to the weight"

    def choose(self, ask: Ask) -> Choice:
        """Choose the least busy."""
        return ask.best([-(option.in_flight + 1) / (option.weight or 1.0) for option in ask.options])


class TokenSettings(Section):
    """Settings of ``token_based``."""

    block_tokens: int = Field(
        default=10_000, ge=1, le=100_000_000, description="Tokens after which the next deployment is chosen."
    )


class TokenBased(Tactic):
    """Stays with a deployment for a block of tokens, then moves on to the one with the fewest recent tokens."""

    Settings = TokenSettings
    settings: TokenSettings
    summary = "stays with one for a block of tokens, then moves to the one with the fewest recent tokens"

    def __init__(self, settings: dict[str, object] | None = None) -> None:
        super().__init__(settings)
        self._current = ""
        self._since = 0

    def choose(self, ask: Ask) -> Choice:
        """Stay or move on."""
        scores = [-option.recent_tokens for option in ask.options]
        for index, option in enumerate(ask.options):
            if option.id == self._current:
                used = option.member.load.spent - self._since
                if used < self.settings.block_tokens:
                    return Choice(index, scores, f"stays: {used} of {self.settings.block_tokens} tokens")
        choice = ask.best(scores, "fewest recent tokens")
        chosen = ask.options[choice.chosen]
        self._current, self._since = chosen.id, chosen.member.load.spent
        return choice


class LatencySettings(Section):
    """Settings of ``latency_based``."""

    good_ms: float = Field(
        default=2_000.0,
        gt=0,
        le=3_600_000,
        description="Wait below which a deployment is fast enough, in milliseconds.",
    )


class LatencyBased(Tactic):
    """The least busy deployment among those that are fast enough; if none is, the fastest. Unknown ones are tried."""

    Settings = LatencySettings
    settings: LatencySettings
    summary = "the least busy of those below good_ms, else the fastest"

    def choose(self, ask: Ask) -> Choice:
        """Choose within the band, or below it."""
        waits, good_ms = _waits(ask), self.settings.good_ms
        scores = [
            1.0 / (option.in_flight + 1) if wait < good_ms else -wait
            for option, wait in zip(ask.options, waits, strict=True)
        ]
        return ask.best(scores, "fast enough" if max(scores) > 0 else "none is fast enough")


class SpeedSettings(Section):
    """Settings of ``speed_based``."""

    min_samples: int = Field(
        default=5,
        ge=1,
        le=1000,
        description="Answers below which a speed counts as unknown; such deployments are measured first.",
    )
    min_tokens_per_s: float = Field(
        default=50.0, gt=0, le=1e6, description="Speed below which a deployment is chosen only if all are slower."
    )


class SpeedBased(Tactic):
    """Most tokens per second for one more request, among those known to be fast enough."""

    Settings = SpeedSettings
    settings: SpeedSettings
    summary = "most tokens per second; those with too few samples are tried first"

    def choose(self, ask: Ask) -> Choice:
        """Choose the fastest, or one that has to be measured."""
        least, enough = self.settings.min_tokens_per_s, self.settings.min_samples
        speeds = _speeds(ask)
        # One request at a time measures a deployment; one that never reports a figure is not measured for ever.
        unknown = [
            index
            for index, option in enumerate(ask.options)
            if option.speed_samples < enough and option.member.load.explores(ask.now, enough)
        ]
        if unknown:
            index = unknown[int(ask.random.random() * len(unknown))]
            return Choice(index, speeds, f"measured: fewer than {enough} answers")
        fast = any(speed >= least for speed in speeds)
        scores = [
            speed / (option.in_flight + 1) if speed >= least or not fast else 0.0
            for option, speed in zip(ask.options, speeds, strict=True)
        ]
        return ask.best(scores, "" if fast else f"none reaches {least:g} tokens/s")


def _speeds(ask: Ask) -> list[float]:
    """Return the tokens per second of each; an unknown speed counts as half of the slowest."""
    speeds = [max(0.0, option.tokens_per_s or 0.0) for option in ask.options]
    unknown = min((speed for speed in speeds if speed), default=1.0) / 2
    return [speed or unknown for speed in speeds]


class P2C(Tactic):
    """Power of two choices: of two drawn at random, the one with the smaller load.

    The load is the peak average of the waiting time, times the requests in flight and this one, over the part of the
    attempts that succeed. After M. Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing" (IEEE TPDS
    2001); the peak average is that of Twitter Finagle's ``p2cPeakEwma``; that requests in flight and latency together
    beat either is the finding of B. Wydrowski et al., "Load is not what you should balance: Introducing Prequal" (NSDI 2024).
    """

    summary = "of two at random, the smaller waiting time x in flight"

    def choose(self, ask: Ask) -> Choice:
        """Draw two and compare."""
        options = ask.options
        size = len(options)
        if size == 1:
            return Choice(0, [None])
        one = int(ask.random.random() * size)
        other = int(ask.random.random() * (size - 1))
        other += other >= one
        waits = _waits(ask)
        scores: list[float | None] = [None] * size
        for index in (one, other):
            option = options[index]
            success = max(0.05, 1.0 - option.error_ratio)
            scores[index] = -waits[index] * (option.in_flight + 1) / (success * success)
        first, second = scores[one], scores[other]
        if first == second:
            index = one if ask.random.random() < 0.5 else other  # noqa: PLR2004  # a coin
        else:
            index = one if (first or 0.0) > (second or 0.0) else other
        return Choice(index, scores, f"against {options[other if index == one else one].id}")


class Headroom(Tactic):
    """At random, in proportion to the quota that may still be spent per second until its reset, on the scarcest axis.

    Only axes that every deployment reports can be compared; without one, the remaining share decides, and a deployment
    that reports nothing counts as the mean.
    """

    summary = "at random in proportion to the remaining quota until its reset"

    def choose(self, ask: Ask) -> Choice:
        """Draw by headroom."""
        now = ask.now
        rates = [_rates(option.limits, now) for option in ask.options]
        common = sorted(set(rates[0]).intersection(*rates[1:]))
        if common:
            parts = []
            for axis in common:
                column = [rate[axis] for rate in rates]
                total = sum(column) or 1.0
                parts.append([rate / total for rate in column])
            scarcest = [min(of_one) for of_one in zip(*parts, strict=True)]
            return ask.share(scarcest, f"by {', '.join(common)} per second until the reset")
        ratios = [option.headroom_ratio for option in ask.options]
        known = [ratio for ratio in ratios if ratio is not None]
        mean = sum(known) / len(known) if known else 1.0
        note = "no axis in common; by the remaining share" if known else "no quota is known"
        return ask.share([mean if ratio is None else ratio for ratio in ratios], note)


def _rates(limits: object, now: float) -> dict[str, float]:
    """Return what may be spent a second until the reset, by axis; the scarcest where an axis has several windows."""
    rates: dict[str, float] = {}
    for limit in limits:  # type: ignore[attr-defined]  # a sequence of Limit
        resets_at, axis = limit.resets_at, limit.axis
        if resets_at is not None and now < resets_at:
            remaining, reset_s = limit.remaining, resets_at - now
        else:
            remaining, reset_s = limit.remaining_at(now), limit.window_s or ASSUMED_RESET_S
        if remaining is None:
            continue
        # Twice for every limit of every candidate: calls of max() would take a seventh of the whole choice.
        left = remaining if remaining > 0.0 else 0.0  # noqa: FURB136
        rate = left / (reset_s if reset_s > MIN_RESET_S else MIN_RESET_S)  # noqa: FURB136
        if axis not in rates or rate < rates[axis]:
            rates[axis] = rate
    return rates


def _waits(ask: Ask) -> list[float]:
    """Return how long a request waits at each, in milliseconds.

    An unknown deployment counts as fast, one request at a time; after several without an answer, as slow as the slowest.
    """
    waits = [option.wait_ms for option in ask.options]
    known = [wait for wait in waits if wait is not None]
    if len(known) == len(waits):
        return [wait or MIN_WAIT_MS for wait in waits]
    quick, slow = (min(known), max(known)) if known else (1.0, 1.0)
    return [
        max(MIN_WAIT_MS, wait if wait is not None else quick * 0.5 if option.explores else slow)
        for option, wait in zip(ask.options, waits, strict=True)
    ]
