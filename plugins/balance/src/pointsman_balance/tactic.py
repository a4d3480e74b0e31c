"""What a tactic is: the candidates it sees, and the choice it returns.

A tactic of your own is a class in an installed distribution, named by an entry point::

    [project.entry-points."pointsman_balance.tactics"]
    cheapest = "acme_pointsman:Cheapest"

::

    from pointsman_balance.tactic import Tactic

    class Cheapest(Tactic):
        def choose(self, ask):
            return ask.best([-(option.price_usd or 1.0) for option in ask.options])

and then ``tactic: cheapest``. Each model group has its own object.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Final, NamedTuple

from pydantic import BaseModel

from pointsman.config import Section

from .members import price_of

if TYPE_CHECKING:
    from random import Random

    from pointsman.plugin import Prices
    from pointsman.types import Candidate, Deployment, Limit, RequestContext, Signal

    from .members import Member

#: Relative difference up to which two scores are a tie.
TIE_RATIO: Final = 1e-9


class Option:
    """A healthy candidate as a tactic sees it; every property is looked up when it is read.

    Attributes:
        candidate: The host's candidate, with its weight and the notes of other plugins.
        signal: The latest signal of the deployment, or None when no plugin publishes one.
        member: What this worker knows of the deployment.
    """

    __slots__ = ("_now", "_prices", "_stream", "candidate", "member", "signal")

    def __init__(self, candidate: Candidate, member: Member, signal: Signal | None, ask: Ask) -> None:
        self.candidate = candidate
        self.member = member
        self.signal = signal
        # Not the question itself, which has the options: as a circle, both would wait for the garbage collector.
        self._now, self._stream, self._prices = ask.now, ask.stream, ask.prices

    @property
    def id(self) -> str:
        """The deployment's id."""
        return self.candidate.deployment.id

    @property
    def deployment(self) -> Deployment:
        """The deployment."""
        return self.candidate.deployment

    @property
    def weight(self) -> float:
        """Its configured weight, or the one that an earlier plugin set."""
        return self.candidate.weight

    @property
    def capacity(self) -> float | None:
        """Its capacity (``model_info.capacity``, else rpm, else tpm), or None."""
        return self.member.capacity

    @property
    def in_flight(self) -> int:
        """Attempts of this worker that are running on it."""
        return self.member.load.in_flight

    @property
    def explores(self) -> bool:
        """Whether a request may be sent to measure it: none is running there, and earlier ones were answered."""
        return self.member.load.explores(self._now)

    @property
    def wait_ms(self) -> float | None:
        """Expected wait of this request, in milliseconds: a stream's for its first token, a plain call's for its answer.

        With the delay before the deployment begins its work, such as a model's load, where another plugin has named one.
        """
        wait_ms = self.member.load.wait_ms(self._now, stream=self._stream)
        delay_s = self.candidate.delay_s
        return (wait_ms or 0.0) + delay_s * 1e3 if delay_s else wait_ms

    @property
    def first_token_ms(self) -> float | None:
        """Time to the first token of a stream in milliseconds, or None when unknown."""
        average = self.member.load.first_ms
        return average.value if average.count else None

    @property
    def latency_ms(self) -> float | None:
        """Duration of a plain call in milliseconds: this worker's average, else the signal's median, else None."""
        average = self.member.load.latency_ms
        if average.count:
            return average.value
        quantiles = self.signal.latency_ms if self.signal is not None else None
        return quantiles.p50 if quantiles is not None else None

    @property
    def tokens_per_s(self) -> float | None:
        """Speed of its answers: this worker's average, else the signal's median, else None."""
        average = self.member.load.tokens_per_s
        if average.count:
            return average.value
        quantiles = self.signal.tokens_per_s if self.signal is not None else None
        return quantiles.p50 if quantiles is not None else None

    @property
    def speed_samples(self) -> int:
        """Number of answers from which the speed is known."""
        quantiles = self.signal.tokens_per_s if self.signal is not None else None
        return max(self.member.load.tokens_per_s.count, quantiles.count if quantiles is not None else 0)

    @property
    def recent_tokens(self) -> float:
        """Recent tokens of this worker's attempts; they fade with ``tau_s``."""
        return self.member.load.tokens.value(self._now)

    @property
    def error_ratio(self) -> float:
        """Share of recent attempts that failed by its own fault, 0 to 1; fades while it is unused."""
        return self.member.load.error_ratio(self._now)

    @property
    def price_usd(self) -> float | None:
        """Price per token in US dollars, input and output blended 3 to 1; None when the cost map has none."""
        return price_of(self.member, self._prices, self._now)

    @property
    def limits(self) -> Sequence[Limit]:
        """The quota axes of its signal."""
        return self.signal.limits if self.signal is not None else ()

    @property
    def headroom_ratio(self) -> float | None:
        """Remaining share of the scarcest quota, 0 to 1; None when unknown."""
        return None if self.signal is None else self.member.headroom_ratio(self.signal, self._now)


class Choice(NamedTuple):
    """A tactic's choice.

    Attributes:
        chosen: Index of the chosen option.
        scores: Score of each option, for the trace; higher is better, None for those that were not scored.
        note: The reason in one phrase, for the trace.
    """

    chosen: int
    scores: Sequence[float | None]
    note: str = ""


class Ask:
    """One question to a tactic.

    Attributes:
        ctx: The request.
        now: Unix seconds.
        stream: Whether it is a stream.
        random: Source of random numbers.
        prices: Unit prices.
        again: Whether the request has reached a deployment before: for a retry, or a further attempt of a race.
        options: The deployments that can be chosen; at least one, all of them healthy.
    """

    __slots__ = ("_candidates", "again", "ctx", "now", "options", "prices", "random", "stream")

    def __init__(
        self,
        ctx: RequestContext,
        candidates: Sequence[Candidate],
        now: float,
        random: Random,
        prices: Prices,
        *,
        again: bool = False,
    ) -> None:
        self.ctx = ctx
        self.now = now
        self.stream = ctx.stream
        self.random = random
        self.prices = prices
        self.again = again
        self.options: list[Option] = []
        self._candidates = candidates

    @property
    def known(self) -> tuple[str, ...]:
        """Ids of all candidates, including the unhealthy ones, in order."""
        return tuple([candidate.deployment.id for candidate in self._candidates])

    def best(self, scores: Sequence[float], note: str = "") -> Choice:
        """Choose the highest score; ties are broken at random."""
        top = max(scores)
        close = top - abs(top) * TIE_RATIO
        first = [index for index, score in enumerate(scores) if score >= close]
        index = first[0] if len(first) == 1 else first[int(self.random.random() * len(first))]
        return Choice(index, scores, note)

    def share(self, weights: Sequence[float], note: str = "") -> Choice:
        """Choose at random in proportion to the weights; uniformly when none is above 0."""
        total = sum([weight for weight in weights if weight > 0.0])
        if total <= 0.0:
            return Choice(int(self.random.random() * len(weights)), [0.0] * len(weights), note)
        left = self.random.random() * total
        chosen = 0
        for index, weight in enumerate(weights):
            if weight > 0.0:
                chosen = index
                left -= weight
                if left < 0.0:
                    break
        return Choice(chosen, [weight / total if weight > 0.0 else 0.0 for weight in weights], note)


class NoSettings(Section):
    """A tactic without settings."""


class Tactic(ABC):
    """Chooses among healthy deployments. Derive from it; one object serves one model group in one worker.

    Attributes:
        Settings: A pydantic model for the keys other than ``name`` in the configuration.
        summary: One line that describes the tactic.
    """

    Settings: ClassVar[type[BaseModel]] = NoSettings
    summary: ClassVar[str] = ""

    def __init__(self, settings: Mapping[str, object] | None = None) -> None:
        self.settings = self.Settings.model_validate(dict(settings or {}))

    @abstractmethod
    def choose(self, ask: Ask) -> Choice:
        """Choose one of ``ask.options``. Runs for every attempt: no waiting, no I/O, a few microseconds."""
