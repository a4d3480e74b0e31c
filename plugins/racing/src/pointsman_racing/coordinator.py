"""Coordinates the races of this worker's requests, and records their results."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from opentelemetry import trace

from pointsman.errors import UpstreamError
from pointsman.types import AttemptKind, Execution, Outcome, UpstreamRequest

from . import views
from .budget import Bucket, delay_factor, take_from_all
from .candidates import RacedModel, RacedModels, line_up
from .hedging import TOGETHER, Entry, Plan, Race, Reason, Won
from .idempotency import not_repeatable_because
from .runner import RaceAttempt, RaceRunner, WinnerStream, current_attempt
from .scoring import quality

if TYPE_CHECKING:
    from collections.abc import Callable

    from pointsman.plugin import Services, Upstream, UpstreamCall
    from pointsman.types import Attempt, Candidate, Denial, RequestContext, Route

    from .config import CandidateConfig, RacingConfig
    from .statistics import Statistics

_KINDS: Final = {
    Reason.FIRST: AttemptKind.PRIMARY,
    Reason.HEDGE: AttemptKind.HEDGE,
    Reason.TOGETHER: AttemptKind.HEDGE,
    # Not an extra attempt: the one it replaces has failed.
    Reason.REPLACEMENT: AttemptKind.FALLBACK,
}
_EXTRA: Final = frozenset({Reason.HEDGE, Reason.TOGETHER})
#: Share of its delay after which a second or later attempt is hedged. Few requests get that far, and they have waited
#: once already: a request that has met two slow answers in a row is most of what is left of the tail.
LATER_DELAY: Final = 0.7
#: Durations of cancellations kept for the admin routes.
_CANCELLATIONS: Final = 1000


class Coordinator:
    """Races requests.

    Args:
        config: The plugin's section.
        statistics: What is known about deployments.
        services: The host's.

    Attributes:
        models: What is raced.
        total: The bucket over all races.
        ratio: What a request pays into it; None: as much as into its own race's.
        cancelling_ms: How long the latest losers took to be closed.
    """

    def __init__(self, config: RacingConfig, statistics: Statistics, services: Services) -> None:
        self.models = RacedModels(config)
        self.total = Bucket(1.0 if config.budget.ratio is None else config.budget.ratio, config.budget.burst)
        self.cancelling_ms: deque[float] = deque(maxlen=_CANCELLATIONS)
        self.ratio = config.budget.ratio
        self._side_effect_tools = config.side_effect_tools
        self._statistics = statistics
        self._services = services
        self._running: dict[str, tuple[RaceRunner, RacedModel]] = {}

    @property
    def running(self) -> int:
        """How many races have attempts that are not closed."""
        return len(self._running)

    def inherit(self, previous: Coordinator) -> None:
        """Go on with what is left of the budgets of another one."""
        self.total.inherit(previous.total)
        for name, raced in self.models.by_name.items():
            if (before := previous.models.by_name.get(name)) is not None:
                raced.bucket.inherit(before.bucket)

    def route(self, ctx: RequestContext, route: Route) -> Route | Denial | None:
        """Route a request to its race; None leaves it unchanged."""
        return self.models.route(ctx, route, self._services.plugin, self._services.catalog)

    async def execute(self, ctx: RequestContext, route: Route, upstream: Upstream) -> Execution | None:
        """Race an attempt of a request; None for one in a group to fall back to that is not raced itself.

        Raises:
            UpstreamError: no attempt has won; the last error.
            KeyError: the route names no race.
        """
        raced = self.models.of(route)
        if raced is None:
            return None
        runner = self._runner(ctx, route, upstream, raced)
        self._running[ctx.request_id] = (runner, raced)
        counts = raced.counts
        try:
            winner = await runner.run()
        except UpstreamError:
            counts.failed += 1
            raise
        except BaseException:
            counts.abandoned += 1
            raise
        counts.answered += 1
        counts.overtaken += winner.number > 0
        headers = {views.HEADER: views.header(runner, winner, raced.settings.strategy)}
        if winner.response is None:
            return Execution(chunks=WinnerStream(runner, winner), headers=headers)
        await runner.close()
        return Execution(response=winner.response, headers=headers)

    def select(self, ctx: RequestContext, candidates: Sequence[Candidate]) -> Sequence[Candidate] | None:
        """Keep the attempts of one race on different deployments of a model group.

        Only the race knows that a deployment has failed in it, for the gateway regards that attempt as closed, and
        where attempts that start at the same moment will go, for they have not reached a deployment yet.
        """
        running, current = self._running.get(ctx.request_id), current_attempt.get()
        attempt = None if current is None else current()
        # Calls started inside an attempt, for a mirror or a judge, are not attempts of the race.
        if attempt is None or running is None or running[0] is not attempt.runner:
            return None
        runner, race = running[0], running[0].race
        race.has_fallback = race.has_fallback or any(candidate.has_fallback for candidate in candidates)
        siblings = [a for a in runner.attempts if a is not attempt and a.entry.target == attempt.entry.target]
        if not siblings:
            return None
        taken = {sibling.claimed or ((d := sibling.deployment) and d.id) for sibling in siblings}
        left = [c if c.deployment.id not in taken else c.drop("another attempt of the race") for c in candidates]
        free = [c for c in left if not c.dropped]
        if not free:
            return left if _repeats_in_vain(attempt, race) else None
        if race.plan.strategy in TOGETHER:
            chosen = self._claim(attempt, free)
            return [c if c.dropped or c is chosen else c.drop("left to another attempt of the race") for c in left]
        return left

    def _claim(self, attempt: RaceAttempt, free: Sequence[Candidate]) -> Candidate:
        best = max(candidate.score or 0.0 for candidate in free)
        equals = [candidate for candidate in free if (candidate.score or 0.0) == best]
        weights = [max(candidate.weight, 0.0) for candidate in equals]
        chosen = self._services.random.choices(equals, weights if any(weights) else None)[0]
        attempt.claimed = chosen.deployment.id
        return chosen

    def observe(self, ctx: RequestContext, attempt: Attempt) -> None:
        """Learn from a closed attempt, raced or not, and describe its part in the race in its span."""
        self._statistics.observe(attempt, stream=ctx.stream, now=self._services.clock.now())
        running = self._running.get(ctx.request_id)
        if running is None:
            return
        span = trace.get_current_span()
        if span.is_recording():
            runner, raced = running
            span.set_attributes(views.attributes(runner, attempt, raced.settings.strategy))

    # -- one race -----------------------------------------------------------------------------------------------------

    def _runner(self, ctx: RequestContext, route: Route, upstream: Upstream, raced: RacedModel) -> RaceRunner:
        services, settings, counts = self._services, raced.settings, raced.counts
        candidates = raced.candidates(route, services.catalog)
        entries = line_up(
            candidates,
            services.catalog,
            self._statistics,
            settings.delay,
            stream=ctx.stream,
            now=services.clock.now(),
            now_ms=0.0,
            one_group=len(candidates) == 1,
        )
        if not entries:
            raise UpstreamError(f"no candidate of {raced.name!r} is in the gateway's configuration", status=404)
        repeatable = settings.allow_non_repeatable or not_repeatable_because(ctx, self._side_effect_tools) is None
        counts.requests += 1
        counts.not_repeatable += not repeatable
        raced.bucket.earn()
        self.total.earn(raced.bucket.ratio if self.ratio is None else self.ratio)
        targets = {entry.target for entry in entries}

        def delay_ms(number: int, entry: Entry, attempt: RaceAttempt | None) -> float:
            reached = None if attempt is None else attempt.deployment
            of_target = services.catalog.deployments(entry.target)
            rivals = of_target
            if len(targets) > 1:
                others = (services.catalog.deployments(target) for target in targets)
                rivals = list({d.id: d for deployments in others for d in deployments}.values())
            return self._statistics.delay_ms(
                of_target if reached is None else (reached,),
                rivals,
                settings.delay,
                stream=ctx.stream,
                now=services.clock.now(),
                share=1.0 if number == 0 else LATER_DELAY,
            )

        def allow() -> bool:
            allowed = take_from_all((raced.bucket, self.total))
            counts.denied += not allowed
            return allowed

        return RaceRunner(
            Plan(
                entries=entries,
                strategy=settings.strategy,
                max_attempts=settings.max_attempts,
                timeout_ms=settings.timeout_ms if ctx.stream else settings.plain_timeout_ms,
                grace_ms=settings.grace_ms,
                repeatable=repeatable,
                same_candidate=settings.same_candidate,
                own_credential="api_key" in ctx.body,
            ),
            services.clock,
            stream=ctx.stream,
            call=lambda attempt: self._start(ctx, upstream, raced, attempt),
            delay_ms=delay_ms,
            allow=allow,
            delay_factor=lambda: delay_factor((raced.bucket, self.total)),
            wanted=lambda: not upstream.client_left,
            judge=_judge(ctx, raced, candidates),
            finished=lambda runner: self._finished(ctx.request_id, runner, raced),
        )

    def _start(self, ctx: RequestContext, upstream: Upstream, raced: RacedModel, attempt: RaceAttempt) -> UpstreamCall:
        counts = raced.counts
        counts.attempts += 1
        counts.extra += attempt.reason in _EXTRA
        counts.replacements += attempt.reason is Reason.REPLACEMENT
        return upstream.start(
            UpstreamRequest(
                target=attempt.entry.target,
                kind=_KINDS[attempt.reason],
                body=ctx.body,
                endpoint=ctx.endpoint,
                stream=ctx.stream,
                parent=ctx,
                timeout_s=attempt.timeout_s,
                labels={"race_leg": str(attempt.number + 1), "race_reason": str(attempt.reason)},
            )
        )

    def _finished(self, request_id: str, runner: RaceRunner, raced: RacedModel) -> None:
        self._running.pop(request_id, None)
        self.cancelling_ms.extend(runner.cancelling_ms)
        if not isinstance(runner.race.result, Won):
            return
        counts, winner = raced.counts, runner.race.result.attempt
        for attempt in runner.attempts:
            value = attempt.value
            if value is None or value.empty:
                continue
            if attempt.number == winner:
                self._statistics.decided(value.deployment.id, won=True)
            elif value.outcome is not Outcome.ERROR:
                self._statistics.decided(value.deployment.id, won=False)
                counts.losers += 1
                counts.losers_usd_micros += value.cost_usd_micros or 0
                if value.usage is not None:
                    counts.losers_tokens += value.usage.total_tokens
                    counts.losers_estimated += value.usage.estimated


def _repeats_in_vain(attempt: RaceAttempt, race: Race) -> bool:
    """Say whether an attempt has no use where the race has called each deployment already.

    LiteLLM's tags, ``order`` and other filters may leave fewer deployments than the group has. To call one again that has
    just failed is a retry, which is LiteLLM's; to call one twice at once is no race.
    """
    if attempt.reason is Reason.REPLACEMENT:
        # Unless it has waited for the provider's own retry-after.
        return attempt.entry.blocked_until_ms <= 0
    return attempt.reason is not Reason.HEDGE or not race.plan.same_candidate


def _judge(
    ctx: RequestContext, raced: RacedModel, candidates: Sequence[CandidateConfig]
) -> Callable[[RaceAttempt], float]:
    """Return what scores an answer; between equal answers the entry's score decides, then the time of the answer."""
    if raced.settings.strategy != "quality":
        return lambda _: 0.0

    def judge(attempt: RaceAttempt) -> float:
        weight = candidates[attempt.entry.candidate].weight if len(candidates) > 1 else 1.0
        answer = attempt.call.answer if attempt.call is not None and attempt.response is not None else None
        return weight * (1.0 if answer is None else quality(answer, ctx.body))

    return judge
