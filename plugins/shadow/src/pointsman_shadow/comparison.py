"""Pairs of a champion and a challenger, and their comparison. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import Context
from dataclasses import dataclass, field
from enum import StrEnum
from math import log2
from typing import TYPE_CHECKING, Final, Self

from pointsman.types import Answer, Attempt, Outcome, RequestContext

from . import similarity

if TYPE_CHECKING:
    from pointsman.plugin import PlannedCall

    from .config import Bounds

#: Ratios beyond 16 and below 1/16 count as these.
RATIO_LOG2: Final = 4.0

#: Answers of one primary that are kept until it is known which of them the client got; of more, the newest.
MOST_ANSWERS: Final = 8


class Metric(StrEnum):
    """The metrics that are estimated over the pairs. Differences are challenger minus champion, ratios challenger over champion."""

    LATENCY_MS = "latency_ms"
    LATENCY_RATIO = "latency_ratio"
    FIRST_TOKEN_MS = "first_token_ms"  # noqa: S105  # no password
    FIRST_TOKEN_RATIO = "first_token_ratio"  # noqa: S105  # no password
    COMPLETION_TOKENS = "completion_tokens"
    COST_USD_MICROS = "cost_usd_micros"
    COST_RATIO = "cost_ratio"
    CHALLENGER_ERROR = "challenger_error"
    CHAMPION_ERROR = "champion_error"
    SAME_FINISH = "same_finish"
    EXACT = "exact"
    EDIT = "edit"
    SAME_JSON = "same_json"
    SAME_TOOLS = "same_tools"
    EMBEDDING = "embedding"
    JUDGE = "judge"


#: Their values are logarithms (base 2).
RATIOS: Final = frozenset({Metric.LATENCY_RATIO, Metric.FIRST_TOKEN_RATIO, Metric.COST_RATIO})


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How the values of a metric are mapped to 0 to 1, where their mean is estimated.

    Attributes:
        low: What becomes 0; less counts as this.
        high: What becomes 1; more counts as this.
        ratio: Values are logarithms (base 2) of ratios.
    """

    low: float
    high: float
    ratio: bool = False

    def normalized(self, value: float) -> float:
        """Return the value on 0 to 1."""
        return (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)

    def denormalized(self, normalized: float) -> float:
        """Return what a number from 0 to 1 stands for; a mean of logarithms becomes the geometric mean of the ratios."""
        value = self.low + normalized * (self.high - self.low)
        return float(2**value) if self.ratio else value


_SHARE: Final = Scale(low=0.0, high=1.0)
_RATIO: Final = Scale(low=-RATIO_LOG2, high=RATIO_LOG2, ratio=True)


def scale(metric: Metric, bounds: Bounds) -> Scale:
    """Return the scale of a metric."""
    match metric:
        case Metric.LATENCY_MS:
            limit = bounds.latency_ms
        case Metric.FIRST_TOKEN_MS:
            limit = bounds.first_token_ms
        case Metric.COMPLETION_TOKENS:
            limit = bounds.tokens
        case Metric.COST_USD_MICROS:
            limit = bounds.cost_usd_micros
        case _:
            return _RATIO if metric in RATIOS else _SHARE
    return Scale(low=-limit, high=limit)


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """The result of one side of a pair.

    Attributes:
        outcome: ``ok`` or ``error``; for the champion also ``cancelled`` and ``disconnected``.
        error: The class of the error, or None.
        deployment: The deployment that answered.
        status: The provider's HTTP status, or None.
        latency_ms: The attempt's duration, or None.
        first_token_ms: To the first piece of content of a stream, or None.
        prompt_tokens: Or None when unknown.
        completion_tokens: Or None when unknown.
        cost_usd_micros: Or None when unknown.
        cached: The gateway's response cache answered: the times say nothing.
        answer: The model's answer, or None.
    """

    outcome: Outcome
    error: str | None = None
    deployment: str = ""
    status: int | None = None
    latency_ms: float | None = None
    first_token_ms: float | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cost_usd_micros: int | None = None
    cached: bool = False
    answer: Answer | None = field(default=None, repr=False)

    @classmethod
    def of(cls, attempt: Attempt, answer: Answer | None = None) -> Self:
        """Return a closed attempt as a side."""
        usage = attempt.usage
        return cls(
            outcome=attempt.outcome or Outcome.CANCELLED,
            error=str(attempt.error.kind) if attempt.error is not None else None,
            deployment=attempt.deployment.id,
            status=attempt.status_code,
            latency_ms=attempt.duration_ms,
            first_token_ms=attempt.first_token_ms,
            prompt_tokens=usage.prompt_tokens if usage is not None else None,
            completion_tokens=usage.completion_tokens if usage is not None else None,
            cost_usd_micros=attempt.cost_usd_micros,
            cached=attempt.cached,
            answer=answer,
        )

    @property
    def ok(self) -> bool:
        """Whether there is an answer."""
        return self.outcome is Outcome.OK


class Pair:
    """One mirrored request, from the decision to the comparison. It lives in one worker's memory.

    Attributes:
        ctx: The client's request.
        labels: The labels of its route.
        context: The context in which the primary was sent: the mirror's span is linked to its span.
        queued_at: Monotonic seconds.
        answers: The primary's successful attempts by their ids, the last one last: a race may have several.
        champion: The result of the primary; None while it runs.
        challenger: The result of the mirror; None until it has ended.
        mirror_id: The mirror's own request id.
        planned: The mirrored call, until it is made.
        embedding: The call for both answers' embeddings, until it is made; None when it is not wanted.
        judges: The two questions to the judge, until they are asked; empty when it is not wanted.
        over: Whether it is recorded or given up.
    """

    __slots__ = (
        "answers",
        "challenger",
        "champion",
        "context",
        "ctx",
        "embedding",
        "judges",
        "labels",
        "mirror_id",
        "over",
        "planned",
        "queued_at",
    )

    def __init__(self, ctx: RequestContext, labels: Mapping[str, str], context: Context, queued_at: float) -> None:
        self.ctx = ctx
        self.labels = labels
        self.context = context
        self.queued_at = queued_at
        self.answers: dict[str, Side] = {}
        self.champion: Side | None = None
        self.challenger: Side | None = None
        self.mirror_id = ""
        self.planned: PlannedCall | None = None
        self.embedding: PlannedCall | None = None
        self.judges: tuple[PlannedCall, ...] = ()
        self.over = False

    def drop_calls(self, why: str) -> None:
        """Say for the trace that what has not been called will not be, and why."""
        for call in (self.planned, self.embedding, *self.judges):
            if call is not None:
                call.drop(why)

    def answered(self, attempt_id: str, side: Side) -> None:
        """Keep an answer of the primary's."""
        self.answers[attempt_id] = side
        if len(self.answers) > MOST_ANSWERS:
            del self.answers[next(iter(self.answers))]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The comparison of a pair.

    Attributes:
        values: Metric to value, in its own unit; ratios as logarithms (base 2). What does not apply is left out.
    """

    values: Mapping[Metric, float]


def compare(champion: Side, challenger: Side) -> Comparison:
    """Compare two sides as far as no other model has to be asked.

    Answers are compared when both sides have one, times when neither came from a cache.
    """
    values: dict[Metric, float] = {
        Metric.CHALLENGER_ERROR: float(not challenger.ok),
        Metric.CHAMPION_ERROR: float(not champion.ok),
    }
    if champion.ok and challenger.ok:
        if not champion.cached and not challenger.cached:
            _difference(values, Metric.LATENCY_MS, challenger.latency_ms, champion.latency_ms)
            _ratio(values, Metric.LATENCY_RATIO, challenger.latency_ms, champion.latency_ms)
            _difference(values, Metric.FIRST_TOKEN_MS, challenger.first_token_ms, champion.first_token_ms)
            _ratio(values, Metric.FIRST_TOKEN_RATIO, challenger.first_token_ms, champion.first_token_ms)
            _difference(values, Metric.COST_USD_MICROS, challenger.cost_usd_micros, champion.cost_usd_micros)
            _ratio(values, Metric.COST_RATIO, challenger.cost_usd_micros, champion.cost_usd_micros)
        _difference(values, Metric.COMPLETION_TOKENS, challenger.completion_tokens, champion.completion_tokens)
        if champion.answer is not None and challenger.answer is not None:
            values.update(_answers(champion.answer, challenger.answer))
    return Comparison(values=values)


def _answers(champion: Answer, challenger: Answer) -> dict[Metric, float]:
    values: dict[Metric, float] = {}
    if champion.finish_reason is not None and challenger.finish_reason is not None:
        values[Metric.SAME_FINISH] = float(champion.finish_reason == challenger.finish_reason)
    if champion.text or challenger.text:
        values[Metric.EXACT] = similarity.exact(champion.text, challenger.text)
        values[Metric.EDIT] = similarity.edit(champion.text, challenger.text)
        if (same := similarity.same_json(champion.text, challenger.text)) is not None:
            values[Metric.SAME_JSON] = same
    if (same := similarity.same_tools(champion.tool_calls, challenger.tool_calls)) is not None:
        values[Metric.SAME_TOOLS] = same
    return values


def _difference(values: dict[Metric, float], metric: Metric, challenger: float | None, champion: float | None) -> None:
    if challenger is not None and champion is not None:
        values[metric] = float(challenger - champion)


def _ratio(values: dict[Metric, float], metric: Metric, challenger: float | None, champion: float | None) -> None:
    if challenger is not None and champion is not None and challenger > 0 and champion > 0:
        values[metric] = log2(challenger / champion)
