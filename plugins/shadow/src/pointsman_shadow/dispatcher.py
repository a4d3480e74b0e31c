"""Mirrors requests in one worker: decides and enqueues on the request path, calls and compares off it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final

from opentelemetry import trace

from pointsman import pricing
from pointsman.errors import ConfigError, StoreError
from pointsman.plugin import unknown_target
from pointsman.types import Answer, Attempt, AttemptKind, Outcome, Price, RequestContext, Settlement

from . import eligibility, upstream
from .budget import Amount, DailyBudget, Reservation, day_of, estimate, is_priced
from .comparison import Comparison, Metric, Pair, Side, compare
from .config import EVERY_MODEL, MirrorConfig, ShadowConfig, Version
from .evidence import Count
from .judge import Reviewer
from .mirror import Mirror
from .throttle import PROBE_S, LoopLag

if TYPE_CHECKING:
    from collections.abc import Callable

    from pointsman.plugin import Services

#: Attempts of a client's request; a mirror's own are not among them, so that nothing is mirrored twice.
_CLIENTS: Final = frozenset({AttemptKind.PRIMARY, AttemptKind.RETRY, AttemptKind.FALLBACK, AttemptKind.HEDGE})
#: A pair is given up this long after its time limit when its primary has not been concluded.
_FORGOTTEN_S: Final = 3600.0
#: Assumed length of an answer whose request sets no limit.
_USUAL_TOKENS: Final = 1_000


class Dispatcher:
    """Mirrors requests.

    Args:
        config: The plugin's configuration.
        services: The host's services.

    Raises:
        ConfigError: a redactor cannot be found.

    Attributes:
        mirrors: The mirrors by name.
        lag: Whether the worker has time for mirrors.
    """

    def __init__(self, config: ShadowConfig, services: Services) -> None:
        self.config = config
        self.services = services
        self.mirrors = {
            each.name: Mirror(each, DailyBudget(each, services.store, services.clock)) for each in config.mirrors
        }
        self._every = tuple(mirror for mirror in self.mirrors.values() if mirror.config.model == EVERY_MODEL)
        models = {mirror.config.model for mirror in self.mirrors.values()} - {EVERY_MODEL}
        self._by_model = {
            model: tuple(mirror for mirror in self.mirrors.values() if mirror.config.model in {model, EVERY_MODEL})
            for model in models
        }
        self._pending: dict[str, list[tuple[Mirror, Pair]]] = {}
        self._wake = asyncio.Event()
        self.lag = LoopLag(config.max_lag_ms / 1000)

    # -- on the request path ------------------------------------------------------------------------------------------

    def consider(self, ctx: RequestContext, attempt: Attempt) -> None:
        """Decide whether the request is mirrored. Its first attempt is about to be sent; the mirror follows at once."""
        mirrors = self._by_model.get(ctx.model, self._every)
        if not mirrors or attempt.number != 1 or attempt.kind not in _CLIENTS:
            return
        now = self.services.clock.monotonic()
        for mirror in mirrors:
            pair = mirror.consider(ctx, attempt, now)
            if pair is None:
                continue
            if isinstance(pair, Pair):
                self._plan(mirror, pair)
                self._pending.setdefault(ctx.request_id, []).append((mirror, pair))
                self._wake.set()
            decision = "mirrored" if isinstance(pair, Pair) else pair
            trace.get_current_span().set_attribute(f"pointsman.shadow.{mirror.config.name}", decision)

    def _plan(self, mirror: Mirror, pair: Pair) -> None:
        """Announce the calls of a pair while its request runs: a trace that has ended takes no more links."""
        plan, config = partial(self.services.upstream.plan, parent=pair.ctx), mirror.config
        pair.planned = plan(AttemptKind.MIRROR, mirror.target or "")
        plan_judge = partial(plan, AttemptKind.JUDGE, about=pair.planned)
        if (embedding := config.embedding) is not None and self._chance(embedding.sample_rate):
            pair.embedding = plan_judge(embedding.model)
        if (judge := config.judge) is not None and self._chance(judge.sample_rate):
            pair.judges = (plan_judge(judge.model), plan_judge(judge.model))

    def answered(self, ctx: RequestContext, attempt: Attempt, answer: Callable[[], Answer | None]) -> None:
        """Note a primary's answer, if it is mirrored."""
        pairs = self._pending.get(ctx.request_id)
        if pairs is None or attempt.kind not in _CLIENTS:
            return
        side = Side.of(attempt, answer())
        for _, pair in pairs:
            pair.answered(attempt.id, side)

    def concluded(self, settlement: Settlement) -> None:
        """Note that a request is over, if it is mirrored."""
        for mirror, pair in self._pending.pop(settlement.request_id, ()):
            mirror.concluded(pair, _champion(settlement, pair))
            pair.answers.clear()
            if not pair.over and pair.challenger is not None:
                self._complete(mirror, pair)

    # -- off the request path ----------------------------------------------------------------------------------------------------

    async def dispatch(self) -> None:
        """Give waiting pairs a slot, for ever: one of each mirror at a time, and none while the worker lags."""
        clock = self.services.clock
        while True:
            await self._wake.wait()
            self._wake.clear()
            while any(mirror.can_start for mirror in self.mirrors.values()):
                begun = clock.monotonic()
                # The primaries go first: a mirror follows a few milliseconds behind its own.
                await clock.sleep(PROBE_S)
                now = clock.monotonic()
                self.lag.note(now - begun - PROBE_S, now)
                for mirror in self.mirrors.values():
                    if self.lag.busy:
                        mirror.expire(now, "busy")
                    else:
                        self._start_next(mirror, now)

    def _start_next(self, mirror: Mirror, now: float) -> None:
        pair = mirror.next(now)
        if pair is None:
            return
        work = self._mirror(mirror, pair) if pair.challenger is None else self._review(mirror, pair)
        self.services.tasks.spawn(work, name=f"mirror {mirror.config.name}")

    def sweep(self) -> None:
        """Give up pairs whose primary was never concluded, and drop those that have waited too long."""
        now = self.services.clock.monotonic()
        for request_id, pairs in list(self._pending.items()):
            left = []
            for mirror, pair in pairs:
                if now - pair.queued_at < _FORGOTTEN_S + mirror.config.time_limit_s:
                    left.append((mirror, pair))
                elif not pair.over:
                    mirror.unpair(pair, "no_primary")
            if left:
                self._pending[request_id] = left
            else:
                del self._pending[request_id]
        for mirror in self.mirrors.values():
            mirror.expire(now, "busy" if self.lag.busy else "waited_too_long")

    def stop(self) -> None:
        """Drop the pairs whose mirrors have not been sent, and what was still to be asked about the others."""
        for mirror in self.mirrors.values():
            mirror.drop_unsent("shutdown")
        reviewed = [pair for mirror in self.mirrors.values() for pair in mirror.queue]
        for pair in [*reviewed, *(pair for pairs in self._pending.values() for _, pair in pairs)]:
            pair.drop_calls("shutdown")

    @property
    def alive(self) -> int:
        """Pairs between the decision and the comparison."""
        return sum(mirror.alive for mirror in self.mirrors.values())

    async def _mirror(self, mirror: Mirror, pair: Pair) -> None:
        called: upstream.CallResult | None = None
        try:
            if pair.context.run(lambda: self.services.upstream.client_left):
                # Without the client's own answer there is nothing to compare the mirror's with.
                mirror.drop(pair, "client_gone")
                return
            reserved = await self._reserve(mirror, pair)
            if isinstance(reserved, str):
                mirror.drop(pair, reserved)
                return
            request = mirror.request(pair)
            start = (pair.planned or self.services.upstream).start
            called = await upstream.call(self.services.clock, start, request, mirror.config.time_limit_s, pair.context)
            pair.mirror_id = called.request_id
            mirror.mirrored(called.side, self.services.clock.monotonic())
            await self._spent(mirror, called.spent, reserved)
        except Exception:
            if called is None:
                mirror.drop(pair, "fault")
            raise
        finally:
            mirror.running -= 1
            self._wake.set()
            if called is None:
                mirror.release(pair)
            else:
                pair.challenger = called.side
                if pair.champion is not None and not pair.over:
                    self._complete(mirror, pair)

    async def _reserve(self, mirror: Mirror, pair: Pair) -> Reservation | str | None:
        """Reserve the estimate of a mirrored call; return the reason when the budget refuses it."""
        if not mirror.budget.limited:
            return None
        body = pair.ctx.body
        try:
            return await mirror.budget.reserve(
                estimate(
                    eligibility.prompt_chars(body), eligibility.most_tokens(body, _USUAL_TOKENS), self._price(mirror)
                )
            )
        except StoreError:
            return "store"

    def _price(self, mirror: Mirror) -> Price:
        """Return the price of the challenger; of a group, unknown when that of one deployment is."""
        deployments = self.services.catalog.deployments(mirror.target) if mirror.target else ()
        prices = [self.services.prices.get(deployment) for deployment in deployments]
        return next((price for price in prices if not is_priced(price)), prices[0] if prices else Price())

    def _unpriced(self, mirror: Mirror, target: str | Version) -> bool:
        """Return whether the price of a mirror's target is unknown; one that does not exist is another problem."""
        if target == mirror.config.challenger:
            return mirror.target is not None and not is_priced(self._price(mirror))
        deployments = self.services.catalog.deployments(target) if isinstance(target, str) else ()
        get = self.services.prices.get
        return not all(pricing.is_priced(get(one), one.info.get("mode")) for one in deployments)

    async def _spent(self, mirror: Mirror, spent: Amount, reserved: Reservation | None = None) -> None:
        mirror.batch.count(Count.TOKENS, spent.tokens or 0)
        mirror.batch.count(Count.COST_USD_MICROS, spent.usd_micros or 0)
        if mirror.budget.limited:
            try:
                await mirror.budget.settle(reserved or Reservation(day_of(self.services.clock.now()), Amount()), spent)
            except StoreError:
                # The reservation stays: the budget errs on the side of spending less.
                mirror.batch.count(Count.SKIPPED, of="booking")

    def _complete(self, mirror: Mirror, pair: Pair) -> None:
        """Compare a pair whose sides are both there, or queue it again when other models have to be asked."""
        champion, challenger = pair.champion, pair.challenger
        assert champion is not None  # noqa: S101  # both sides are there
        assert challenger is not None  # noqa: S101
        comparison = compare(champion, challenger)
        if self._wants_review(mirror, pair):
            mirror.queue.append(pair)
            self._wake.set()
            return
        self._record(mirror, pair, comparison)

    @staticmethod
    def _wants_review(mirror: Mirror, pair: Pair) -> bool:
        if pair.embedding is None and not pair.judges:
            return False
        sides = (pair.champion, pair.challenger)
        if any(side is None or side.answer is None for side in sides):
            pair.drop_calls("no_answer")
            return False
        if (why := mirror.budget.exhausted()) is not None:
            pair.drop_calls(why)
            return False
        return True

    async def _review(self, mirror: Mirror, pair: Pair) -> None:
        """Ask the judge and the embedding model; the pair is recorded even when they fail."""
        champion, challenger = pair.champion, pair.challenger
        assert champion is not None  # noqa: S101  # both sides are there
        assert challenger is not None  # noqa: S101
        comparison = compare(champion, challenger)
        try:
            if champion.answer is not None and challenger.answer is not None:
                values = {
                    **await self._embedded(mirror, pair, champion.answer, challenger.answer),
                    **await self._judged(mirror, pair, champion.answer, challenger.answer),
                }
                comparison = replace(comparison, values={**comparison.values, **values})
        finally:
            mirror.running -= 1
            self._wake.set()
            self._record(mirror, pair, comparison)

    async def _embedded(
        self, mirror: Mirror, pair: Pair, champion: Answer, challenger: Answer
    ) -> Mapping[Metric, float]:
        call, wanted = pair.embedding, mirror.config.embedding
        if call is None or wanted is None:
            return {}
        if not champion.text or not challenger.text:
            call.drop("no_text")
            return {}
        reviewer = Reviewer(self.services, mirror.config, pair)
        similar, spent = await reviewer.embed(call, wanted.model, champion.text, challenger.text)
        await self._spent(mirror, spent)
        if similar is None:
            mirror.batch.count(Count.EMBEDDING_FAILED)
            return {}
        return {Metric.EMBEDDING: similar}

    async def _judged(self, mirror: Mirror, pair: Pair, champion: Answer, challenger: Answer) -> Mapping[Metric, float]:
        judge = mirror.config.judge
        if judge is None or not pair.judges:
            return {}
        opinion = await Reviewer(self.services, mirror.config, pair).judge(judge, champion, challenger)
        await self._spent(mirror, opinion.spent)
        for name, amount in (
            (Count.JUDGE_FAILED, opinion.failed),
            (Count.JUDGE_UNREAD, opinion.unread),
            (Count.JUDGE_CONTRADICTED, int(opinion.contradicted)),
        ):
            if amount:
                mirror.batch.count(name, amount)
        return {} if opinion.score is None else {Metric.JUDGE: opinion.score}

    def _chance(self, rate: float) -> bool:
        return self.services.random.random() < rate

    def _record(self, mirror: Mirror, pair: Pair, comparison: Comparison) -> None:
        if pair.over or pair.champion is None or pair.challenger is None:
            return
        mirror.record(pair, pair.champion, pair.challenger, comparison, self.services.clock.now())
        mirror.release(pair)

    # -- the gateway --------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Refuse targets that are unknown to the gateway.

        Raises:
            ConfigError: naming all of them.
        """
        # Some gateways know their deployments only after the plugins have started; ``problems`` looks again.
        if not self.services.catalog.deployments():
            return
        wrong = [
            f"{self.services.plugin}.mirrors[{index}].{key}: {why}"
            for index, config in enumerate(self.config.mirrors)
            for key, why in self._unknown(config).items()
        ]
        if wrong:
            raise ConfigError("\n".join(wrong))

    def resolve(self) -> None:
        """Look up the targets of challengers that are versions in the registry."""
        versions = [mirror for mirror in self.mirrors.values() if isinstance(mirror.config.challenger, Version)]
        if not versions:
            return
        registry = self.services.statuses().get("registry")
        paths = registry.details.get("paths") if registry is not None else None
        for mirror in versions:
            challenger = mirror.config.challenger
            assert isinstance(challenger, Version)  # noqa: S101  # chosen above
            path = paths.get(challenger.version) if isinstance(paths, Mapping) else None
            mirror.target = path if isinstance(path, str) and self._known(path) else None

    def problems(self) -> list[str]:
        """Return what an operator should look at."""
        problems: list[str] = []
        for name, mirror in self.mirrors.items():
            config = mirror.config
            problems += [f"{name}: {key}: {why}" for key, why in self._unknown(config).items()]
            if mirror.target is None:
                problems.append(
                    f"{name}: no deployment serves the challenger, {config.challenger_text}; register it, or change 'challenger'"
                )
            if mirror.backoff.active:
                wait_s = max(0.0, mirror.backoff.until - self.services.clock.monotonic())
                trial = (
                    "a trial call is running" if mirror.backoff.trying else f"the next trial call is in {wait_s:.0f} s"
                )
                problems.append(
                    f"{name}: {config.challenger_text} has failed {mirror.backoff.failures} consecutive calls; {trial}"
                )
            if mirror.unreadable is not None:
                problems.append(f"{name}: {mirror.unreadable}; nothing is mirrored until 'reset'")
            if mirror.superseded:
                problems.append(
                    f"{name}: another worker runs a newer definition; this worker mirrors nothing until it has the same configuration"
                )
            if mirror.lost:
                problems.append(
                    f"{name}: the figures of {mirror.lost} pairs are lost because the store did not accept them"
                )
            unpriced = config.unpriced_problems(partial(self._unpriced, mirror))
            problems += [f"{name}: {problem}" for problem in unpriced]
        return problems

    def _unknown(self, config: MirrorConfig) -> dict[str, str]:
        """Return the configured targets that are unknown to the gateway: key to the reason."""
        named = {
            "challenger": config.challenger,
            "judge.model": config.judge.model if config.judge else None,
            "embedding.model": config.embedding.model if config.embedding else None,
        }
        reasons = {
            key: unknown_target(target, self.services.catalog)
            for key, target in named.items()
            if isinstance(target, str)
        }
        return {key: why for key, why in reasons.items() if why is not None}

    def _known(self, target: str) -> bool:
        return bool(self.services.catalog.deployments(target))


def _champion(settlement: Settlement, pair: Pair) -> Side:
    attempts = settlement.attempts
    if settlement.outcome is not Outcome.OK:
        side = Side.of(attempts[-1]) if attempts else Side(outcome=settlement.outcome)
        return replace(side, outcome=settlement.outcome)
    good = [attempt for attempt in attempts if attempt.outcome is Outcome.OK]
    # Of several answers, as of a race, the one that the client got.
    answer = next((attempt for attempt in good if attempt.id == settlement.answered_by), good[-1] if good else None)
    if answer is None:
        return next(reversed(pair.answers.values()), Side(outcome=settlement.outcome))
    # An answer that was not seen is compared by its times, tokens and costs only.
    return pair.answers.get(answer.id) or Side.of(answer)
