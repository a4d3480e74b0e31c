"""One mirror in one worker: which requests it takes, which pairs wait, and what is not flushed to the store yet."""

from __future__ import annotations

from collections import deque
from contextvars import copy_context
from typing import TYPE_CHECKING, Final

from pointsman.types import Attempt, AttemptKind, Outcome, RequestContext, UpstreamRequest

from . import eligibility
from .comparison import Comparison, Pair, Side
from .config import Filter
from .evidence import Batch, Count, Phase
from .results import ResultFormat
from .throttle import Backoff
from .upstream import LABEL_MIRROR, LABEL_PRIMARY, LABEL_VERSION

if TYPE_CHECKING:
    from .budget import DailyBudget
    from .config import MirrorConfig

#: Completed pairs that wait for a store that does not answer; more are lost, and counted.
MAX_UNFLUSHED: Final = 2_000
#: Why a pair is dropped during the challenger's backoff.
_BACKOFF: Final = "challenger_rests"
_GONE: Final = frozenset({Outcome.CANCELLED, Outcome.DISCONNECTED, Outcome.DENIED})


class Mirror:
    """One mirror.

    Args:
        config: Its configuration.
        budget: Its budget.

    Raises:
        ConfigError: the redactor cannot be found.

    Attributes:
        phase: The phase in the store, as far as this worker knows.
        run: The number of the run.
        target: The challenger's model group or deployment id; None while it is unknown.
        queue: Pairs that wait for a slot: to be mirrored, or, once both sides are there, to be judged.
        running: Pairs that have a slot.
        alive: Pairs between the decision and the comparison.
        batch: Figures that are not flushed to the store yet.
        flushing: Completed pairs that are being flushed.
        remaining: Pairs that the run wants in addition to those in the store; None: there is no limit.
        backoff: Whether the challenger is left alone because it keeps failing.
        lost: Completed pairs that could not be kept while the store did not answer.
        superseded: The store has another definition of this mirror: a newer worker's.
        unreadable: Why the mirror's state in the store cannot be read; None when it can.
    """

    def __init__(self, config: MirrorConfig, budget: DailyBudget) -> None:
        self.config = config
        self.budget = budget
        self.phase = Phase.RUNNING
        self.run = 0
        self.target: str | None = config.challenger if isinstance(config.challenger, str) else None
        self.queue: deque[Pair] = deque()
        self.running = 0
        self.alive = 0
        self.batch = Batch()
        self.flushing = 0
        self.remaining: int | None = None
        self.backoff = Backoff(config.rest_after)
        self.lost = 0
        self.superseded = False
        self.unreadable: str | None = None
        self._capacity = config.queue_size + config.max_concurrent
        self._sampler = eligibility.Sampler.of(config.name if config.salt is None else config.salt, config.sample_rate)
        self._endpoints = frozenset(config.endpoints)
        self._results = ResultFormat(config)
        self._unfiltered = config.filter == Filter()

    # -- the request path ---------------------------------------------------------------------------------------------

    def consider(self, ctx: RequestContext, attempt: Attempt, now: float) -> Pair | str | None:
        """Decide about a request whose first attempt is about to be sent; count it and queue it.

        Args:
            ctx: The request.
            attempt: The attempt.
            now: Monotonic seconds.

        Returns:
            The pair when the request is mirrored; the reason when it was sampled and is not; else None.
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
            return why
        why = self.budget.exhausted() or ("queue_full" if self.alive >= self._capacity else None)
        if why is None and self.target is None:
            why = "no_challenger"
        if why is None and not self.backoff.allows(now):
            why = _BACKOFF
        if why is not None:
            count(Count.DROPPED, of=why)
            return why
        pair = Pair(ctx, attempt.labels, copy_context(), now)
        self.alive += 1
        self.queue.append(pair)
        return pair

    @property
    def _has_enough(self) -> bool:
        """Whether the pairs in flight here complete the run; one that fails makes room for another."""
        if self.remaining is None:
            return False
        return self.alive + self.flushing + self.batch.counts[Count.PAIRS] >= self.remaining

    def _takes_part(self, ctx: RequestContext, attempt: Attempt) -> bool:
        config = self.config
        if ctx.endpoint not in self._endpoints or (
            config.streams != "both" and ctx.stream != (config.streams == "streamed")
        ):
            return False
        return self._unfiltered or eligibility.matches(config.filter, ctx, attempt)

    def _obstacle(self, ctx: RequestContext) -> str | None:
        limit = self.config.filter.max_prompt_chars
        if limit is not None and eligibility.prompt_chars(ctx.body) > limit:
            return "long_prompt"
        return eligibility.obstacle(ctx.endpoint, ctx.body, server_tools=self.config.server_tools)

    # -- pairs --------------------------------------------------------------------------------------------------------

    @property
    def can_start(self) -> bool:
        """Whether a pair waits and a slot is free."""
        return bool(self.queue) and self.running < self.config.max_concurrent

    def next(self, now: float) -> Pair | None:
        """Give the next pair that has something to do a slot; None when no pair waits or no slot is free."""
        self.expire(now, "waited_too_long")
        if not self.can_start:
            return None
        self.running += 1
        return self.queue.popleft()

    def expire(self, now: float, why: str) -> None:
        """Drop the pairs whose mirrors have waited too long; those that only wait for a review stay."""
        late = now - self.config.max_wait_s
        while self.queue and self.queue[0].challenger is None and self.queue[0].queued_at < late:
            self.drop(self.queue.popleft(), why)

    def drop(self, pair: Pair, why: str) -> None:
        """Give up a pair before its mirror was sent; one that is over already has been counted."""
        if not pair.over:
            self.backoff.abandoned()
            self.batch.count(Count.DROPPED, of=why)
            self.release(pair, why)

    def drop_unsent(self, why: str) -> None:
        """Give up the pairs whose mirrors have not been sent."""
        unsent = [pair for pair in self.queue if pair.challenger is None]
        self.queue = deque(pair for pair in self.queue if pair.challenger is not None)
        for pair in unsent:
            self.drop(pair, why)

    def release(self, pair: Pair, why: str = "cancelled") -> None:
        """Make room: the pair is over, and its calls that were not sent will not be."""
        if not pair.over:
            pair.over = True
            self.alive -= 1
            pair.drop_calls(why)

    def concluded(self, pair: Pair, champion: Side) -> None:
        """Note the result of the primary. A pair whose client has gone cannot be compared."""
        pair.champion = champion
        if champion.outcome in _GONE and not pair.over:
            self.unpair(pair, "client_gone")

    def unpair(self, pair: Pair, why: str) -> None:
        """Give up a pair that has no primary to compare with. A mirror that waits is never sent."""
        self.batch.count(Count.UNPAIRED, of=why)
        if pair in self.queue:
            self.queue.remove(pair)
            if pair.challenger is None:
                self.backoff.abandoned()
        self.release(pair, why)

    def request(self, pair: Pair) -> UpstreamRequest:
        """Return the client's request as it is sent to the challenger."""
        config, ctx = self.config, pair.ctx
        labels = {LABEL_MIRROR: config.name, LABEL_PRIMARY: ctx.request_id}
        if not isinstance(config.challenger, str):
            labels[LABEL_VERSION] = config.challenger.version
        return UpstreamRequest(
            target=self.target or "",
            kind=AttemptKind.MIRROR,
            body=eligibility.mirrored(ctx.endpoint, ctx.body),
            endpoint=ctx.endpoint,
            stream=ctx.stream,
            parent=ctx,
            tenant=config.account,
            labels=labels,
            timeout_s=config.time_limit_s,
        )

    # -- figures ------------------------------------------------------------------------------------------------------

    def mirrored(self, side: Side, now: float) -> None:
        """Count a mirrored call that has ended now (monotonic seconds)."""
        self.batch.count(Count.MIRRORED)
        if side.ok:
            if not side.cached:
                self.backoff.answered()
            return
        self.batch.count(Count.CHALLENGER_ERRORS, of=side.error or "unknown")
        if self.backoff.failed(side.error, now):
            self.drop_unsent(_BACKOFF)

    def record(self, pair: Pair, champion: Side, challenger: Side, comparison: Comparison, now: float) -> None:
        """Count a completed pair and keep its result.

        Args:
            pair: The pair.
            champion: Its primary.
            challenger: Its mirror.
            comparison: Their comparison.
            now: Unix seconds.
        """
        batch = self.batch
        if len(batch.values) >= MAX_UNFLUSHED:
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
        if self.config.keep_results:
            result, unredacted = self._results.of(pair, champion, challenger, comparison, run=self.run, now=now)
            if unredacted:
                batch.count(Count.REDACTION_FAILED, unredacted)
            batch.results.append(result)
            del batch.results[: -self.config.keep_results]
