"""One mirror in one worker: what it takes part in, what waits, what has been seen and not yet handed in."""

from __future__ import annotations

from collections import deque
from contextvars import copy_context
from typing import TYPE_CHECKING, Final

from pointsman.types import Attempt, Outcome, RequestContext

from . import bodies
from .comparison import RATIOS, Comparison, Metric, Side
from .config import Filter
from .evidence import Batch, Count, JsonObject, Phase
from .pairs import Pair
from .redaction import Redactor
from .rest import Rest
from .sampling import Sampler

if TYPE_CHECKING:
    from .budget import Purse
    from .config import Mirror

#: Completed pairs that wait for a store that does not answer; more are lost, and counted.
MOST_WAITING: Final = 2_000
#: Why a pair is dropped while the challenger is left alone.
_RESTS: Final = "challenger_rests"
_GONE: Final = frozenset({Outcome.CANCELLED, Outcome.DISCONNECTED, Outcome.DENIED})


class Line:
    """One mirror.

    Args:
        mirror: Its configuration.
        purse: Its budget.

    Raises:
        ConfigError: its redactor cannot be found.

    Attributes:
        phase: Where it stands, as far as this worker knows.
        run: The number of the run.
        target: The challenger's model group or deployment id; None while nobody knows it.
        queue: Pairs that wait for a place: to be mirrored, or, once both sides are there, to be judged.
        running: Calls that run.
        alive: Pairs between the decision and the comparison.
        batch: What has been seen and not been handed in.
        handing: Completed pairs that are being handed in.
        missing: Pairs that the mirror wants beyond those in the store; None: it goes on.
        rest: Whether the challenger is left alone since it keeps failing.
        lost: Completed pairs that could not be kept while the store did not answer.
        superseded: The store has another definition of this mirror: a newer worker's.
        unreadable: What is wrong with the mirror's state in the store, while nobody can read it; None when it is fine.
    """

    def __init__(self, mirror: Mirror, purse: Purse) -> None:
        self.mirror = mirror
        self.purse = purse
        self.phase = Phase.RUNNING
        self.run = 0
        self.target: str | None = mirror.challenger if isinstance(mirror.challenger, str) else None
        self.queue: deque[Pair] = deque()
        self.running = 0
        self.alive = 0
        self.batch = Batch()
        self.handing = 0
        self.missing: int | None = None
        self.rest = Rest(mirror.rest_after)
        self.lost = 0
        self.superseded = False
        self.unreadable: str | None = None
        self._capacity = mirror.queue_size + mirror.max_concurrent
        self._sampler = Sampler.of(mirror.name if mirror.salt is None else mirror.salt, mirror.sample_rate)
        self._endpoints = frozenset(mirror.endpoints)
        self._redactor = Redactor(mirror.redact)
        self._everything = mirror.filter == Filter()

    # -- the request path ---------------------------------------------------------------------------------------------

    def consider(self, ctx: RequestContext, attempt: Attempt, now: float) -> Pair | None:
        """Decide about a request whose first attempt is about to be sent; count; queue it.

        Args:
            ctx: The request.
            attempt: The attempt.
            now: Monotonic seconds.

        Returns:
            The pair when the request is mirrored, else None.
        """
        if self.phase is not Phase.RUNNING or self.superseded or self.unreadable is not None:
            return None
        if self._has_enough:
            return None
        if not self._takes_part(ctx, attempt):
            return None
        count = self.batch.count
        count(Count.TOTAL)
        if not self._sampler.chooses(ctx.request_id):
            return None
        count(Count.SAMPLED)
        if (why := self._obstacle(ctx)) is not None:
            count(Count.SKIPPED, of=why)
            return None
        why = self.purse.empty() or ("queue_full" if self.alive >= self._capacity else None)
        if why is None and self.target is None:
            why = "no_challenger"
        if why is None and not self.rest.asks(now):
            why = _RESTS
        if why is not None:
            count(Count.DROPPED, of=why)
            return None
        pair = Pair(ctx, attempt.labels, copy_context(), now)
        self.alive += 1
        self.queue.append(pair)
        return pair

    @property
    def _has_enough(self) -> bool:
        """Whether the pairs under way here will be all that are wanted; one that fails makes room for another."""
        if self.missing is None:
            return False
        return self.alive + self.handing + self.batch.counts[Count.PAIRS] >= self.missing

    def _takes_part(self, ctx: RequestContext, attempt: Attempt) -> bool:
        mirror = self.mirror
        if ctx.endpoint not in self._endpoints or (
            mirror.streams != "both" and ctx.stream != (mirror.streams == "streamed")
        ):
            return False
        return self._everything or _matches(mirror.filter, ctx, attempt)

    def _obstacle(self, ctx: RequestContext) -> str | None:
        limit = self.mirror.filter.max_prompt_chars
        if limit is not None and bodies.prompt_chars(ctx.body) > limit:
            return "long_prompt"
        return bodies.obstacle(ctx.endpoint, ctx.body, server_tools=self.mirror.server_tools)

    # -- pairs --------------------------------------------------------------------------------------------------------

    @property
    def can_start(self) -> bool:
        """Whether something waits and there is a place for it."""
        return bool(self.queue) and self.running < self.mirror.max_concurrent

    def next(self, now: float) -> Pair | None:
        """Take the next pair that has something to do and find it a place; None when there is none, or no place."""
        self.expire(now, "waited_too_long")
        if not self.can_start:
            return None
        self.running += 1
        return self.queue.popleft()

    def expire(self, now: float, why: str) -> None:
        """Drop the pairs whose mirrors have waited too long; those that only wait for an opinion stay."""
        late = now - self.mirror.max_wait_s
        while self.queue and self.queue[0].challenger is None and self.queue[0].queued_at < late:
            self.drop(self.queue.popleft(), why)

    def drop(self, pair: Pair, why: str) -> None:
        """Give a pair up before its mirror was sent; one that is over already has been counted."""
        if not pair.over:
            self.rest.unasked()
            self.batch.count(Count.DROPPED, of=why)
            self.release(pair)

    def release(self, pair: Pair) -> None:
        """Make room: the pair is over."""
        if not pair.over:
            pair.over = True
            self.alive -= 1

    def concluded(self, pair: Pair, champion: Side) -> None:
        """Note what became of the primary. A pair whose client has gone cannot be compared."""
        pair.champion = champion
        if champion.outcome in _GONE and not pair.over:
            self.unpair(pair, "client_gone")

    def unpair(self, pair: Pair, why: str) -> None:
        """Give a pair up that has no primary to compare with. A mirror that waits is never sent."""
        self.batch.count(Count.UNPAIRED, of=why)
        if pair in self.queue:
            self.queue.remove(pair)
            if pair.challenger is None:
                self.rest.unasked()
        self.release(pair)

    # -- what has been seen -------------------------------------------------------------------------------------------

    def mirrored(self, side: Side, now: float) -> None:
        """Count a mirrored call that has ended now (monotonic seconds)."""
        self.batch.count(Count.MIRRORED)
        if side.ok:
            if not side.cached:
                self.rest.answered()
            return
        self.batch.count(Count.CHALLENGER_ERRORS, of=side.error or "unknown")
        if self.rest.failed(side.error, now):
            unasked = [pair for pair in self.queue if pair.challenger is None]
            self.queue = deque(pair for pair in self.queue if pair.challenger is not None)
            for pair in unasked:
                self.drop(pair, _RESTS)

    def record(self, pair: Pair, champion: Side, challenger: Side, comparison: Comparison, now: float) -> None:
        """Count a completed pair and keep its result.

        Args:
            pair: The pair.
            champion: Its primary.
            challenger: Its mirror.
            comparison: What they have shown.
            now: Unix seconds.
        """
        batch = self.batch
        if len(batch.values) >= MOST_WAITING:
            self.lost += 1
            return
        batch.count(Count.PAIRS)
        if not champion.ok:
            batch.count(Count.CHAMPION_ERRORS, of=champion.error or "unknown")
        batch.values.append(comparison.values)
        for name, side in (("champion", champion), ("challenger", challenger)):
            if side.ok and not side.cached:
                batch.time(name, "latency_ms", side.latency_ms)
                batch.time(name, "first_token_ms", side.first_token_ms)
        if self.mirror.keep_results:
            batch.results.append(self._result(pair, champion, challenger, comparison, now))
            del batch.results[: -self.mirror.keep_results]

    def _result(self, pair: Pair, champion: Side, challenger: Side, comparison: Comparison, now: float) -> JsonObject:
        return {
            "run": self.run,
            "at": now,
            "request_id": pair.ctx.request_id,
            "mirror_request_id": pair.mirror_id,
            "model": pair.ctx.model,
            "endpoint": str(pair.ctx.endpoint),
            "stream": pair.ctx.stream,
            "labels": dict(pair.labels),
            "champion": self._side(champion),
            "challenger": self._side(challenger),
            "comparison": {str(metric): _figure(metric, value) for metric, value in comparison.values.items()},
        }

    def _side(self, side: Side) -> JsonObject:
        answer = side.answer
        shown: JsonObject = {
            "outcome": str(side.outcome),
            "error": side.error,
            "deployment": side.deployment,
            "status": side.status,
            "latency_ms": _rounded(side.latency_ms),
            "first_token_ms": _rounded(side.first_token_ms),
            "prompt_tokens": side.prompt_tokens,
            "completion_tokens": side.completion_tokens,
            "cost_usd_micros": side.cost_usd_micros,
            "cached": side.cached,
            "finish_reason": None if answer is None else answer.finish_reason,
            "text_chars": None if answer is None else len(answer.text),
            "tool_calls": None if answer is None else len(answer.tool_calls),
        }
        if answer is not None and self.mirror.keep_texts:
            try:
                shown["text"] = self._redactor(answer.text, self.mirror.max_text_chars)
                shown["tools"] = [
                    {
                        "name": self._redactor(call.name, self.mirror.max_text_chars),
                        "arguments": self._redactor(call.arguments, self.mirror.max_text_chars),
                    }
                    for call in answer.tool_calls
                ]
            except Exception:  # noqa: BLE001  # the operator's own function; what it has not seen is not kept
                shown.pop("text", None)
                self.batch.count(Count.REDACTION_FAILED)
        return shown


def _matches(wanted: Filter, ctx: RequestContext, attempt: Attempt) -> bool:
    who = ctx.identity
    if wanted.teams and who.team_id not in wanted.teams:
        return False
    if wanted.key_aliases and who.key_alias not in wanted.key_aliases:
        return False
    if wanted.tenants and who.tenant not in wanted.tenants:
        return False
    if wanted.tools is not None and bodies.has_tools(ctx.body) != wanted.tools:
        return False
    return all(attempt.labels.get(name) == value for name, value in wanted.labels.items())


def _figure(metric: Metric, value: float) -> float:
    """Return a value as people read it: a ratio instead of its logarithm."""
    return round(2**value if metric in RATIOS else value, 6)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
