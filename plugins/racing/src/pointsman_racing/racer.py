"""Runs the races of this worker's requests, and books what comes of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from opentelemetry import trace

from pointsman.errors import UpstreamError
from pointsman.types import AttemptKind, Execution, Outcome, UpstreamRequest

from . import view
from .budget import Bucket, patience, take_from_all
from .contest import LOSERS_WITHIN_S, Contest, Leg, Winner, current_leg
from .courses import LABEL, Course, Courses
from .field import line_up
from .quality import quality
from .race import TOGETHER, Entry, Plan, Reason, Won
from .repeatable import why_not

if TYPE_CHECKING:
    from collections.abc import Callable

    from pointsman.plugin import Services, Upstream, UpstreamCall
    from pointsman.types import Attempt, Candidate, Denial, RequestContext, Route

    from .book import Book
    from .config import CandidateConfig, RacingConfig

_KINDS: Final = {
    Reason.FIRST: AttemptKind.PRIMARY,
    Reason.HEDGE: AttemptKind.HEDGE,
    Reason.TOGETHER: AttemptKind.HEDGE,
    # Not an extra attempt: the one it replaces has failed.
    Reason.REPLACEMENT: AttemptKind.FALLBACK,
}
_EXTRA: Final = frozenset({Reason.HEDGE, Reason.TOGETHER})
#: Share of its delay that a second or later leg is waited for. Few get that far, and they have waited once already: a
#: request that has met two slow answers in a row is most of what is left of the tail.
LATER_DELAY: Final = 0.7
#: Durations of cancellations kept for the admin surface.
_CANCELLATIONS: Final = 1000


class Racer:
    """Races requests.

    Args:
        config: The plugin's section.
        book: What is known about deployments.
        services: The host's.

    Attributes:
        courses: What is raced.
        total: The bucket over all races.
        ratio: What a request pays into it; None: as much as into its own race's.
        cancelling_ms: How long the latest losers took to be closed.
    """

    def __init__(self, config: RacingConfig, book: Book, services: Services) -> None:
        self.courses = Courses(config)
        self.total = Bucket(1.0 if config.budget.ratio is None else config.budget.ratio, config.budget.burst)
        self.cancelling_ms: deque[float] = deque(maxlen=_CANCELLATIONS)
        self.ratio = config.budget.ratio
        self._side_effect_tools = config.side_effect_tools
        self._book = book
        self._services = services
        self._running: dict[str, tuple[Contest, Course]] = {}

    @property
    def running(self) -> int:
        """How many races have legs that are not closed."""
        return len(self._running)

    def route(self, ctx: RequestContext, route: Route) -> Route | Denial | None:
        """Send a request into its race; None leaves it alone."""
        return self.courses.route(ctx, route, self._services.plugin, self._services.catalog)

    async def execute(self, ctx: RequestContext, route: Route, upstream: Upstream) -> Execution:
        """Race a request.

        Raises:
            UpstreamError: nobody has won; the last error.
            KeyError: the route does not say which race.
        """
        course = self.courses.by_name[route.labels[LABEL]]
        contest = self._contest(ctx, route, upstream, course)
        self._running[ctx.request_id] = (contest, course)
        tally = course.tally
        try:
            winner = await contest.run()
        except UpstreamError:
            tally.failed += 1
            raise
        except BaseException:
            tally.abandoned += 1
            raise
        tally.answered += 1
        tally.overtaken += winner.number > 0
        headers = {view.HEADER: view.header(winner, course.settings.strategy)}
        if winner.response is None:
            return Execution(chunks=Winner(winner), headers=headers)
        await contest.close(LOSERS_WITHIN_S)
        return Execution(response=winner.response, headers=headers)

    def select(self, ctx: RequestContext, candidates: Sequence[Candidate]) -> Sequence[Candidate] | None:
        """Keep the legs of one race on different deployments of a model group.

        A deployment that has failed in this race is closed for the gateway, and legs that start at the same moment have
        reached nobody yet; both are known here only.
        """
        leg = current_leg.get()
        running = self._running.get(ctx.request_id)
        # What else is started inside a leg, for a mirror or a judge, is a request of its own.
        if leg is None or running is None or running[0] is not leg.contest or not candidates[1:]:
            return None
        siblings = [one for one in leg.contest.legs if one is not leg and one.entry.target == leg.entry.target]
        if not siblings:
            return None
        taken = {one.claimed or ((d := one.deployment) and d.id) for one in siblings}
        left = [c if c.deployment.id not in taken else c.drop("another leg of the race") for c in candidates]
        free = [c for c in left if not c.dropped]
        if not free:
            return None
        if leg.contest.race.plan.strategy in TOGETHER:
            chosen = self._claim(leg, free)
            return [c if c.dropped or c is chosen else c.drop("left to another leg of the race") for c in left]
        return left

    def _claim(self, leg: Leg, free: Sequence[Candidate]) -> Candidate:
        best = max(candidate.score or 0.0 for candidate in free)
        equals = [candidate for candidate in free if (candidate.score or 0.0) == best]
        weights = [max(candidate.weight, 0.0) for candidate in equals]
        chosen = self._services.random.choices(equals, weights if any(weights) else None)[0]
        leg.claimed = chosen.deployment.id
        return chosen

    def observe(self, ctx: RequestContext, attempt: Attempt) -> None:
        """Learn from a closed attempt, raced or not, and say in its span what the race made of it."""
        self._book.observe(attempt, stream=ctx.stream, now=self._services.clock.now())
        found = self._running.get(ctx.request_id)
        if found is None:
            return
        span = trace.get_current_span()
        if span.is_recording():
            contest, course = found
            span.set_attributes(view.attributes(contest, attempt, course.settings.strategy))

    # -- one race -----------------------------------------------------------------------------------------------------

    def _contest(self, ctx: RequestContext, route: Route, upstream: Upstream, course: Course) -> Contest:
        services, settings, tally = self._services, course.settings, course.tally
        candidates = course.candidates(route, services.catalog)
        entries = line_up(
            candidates,
            services.catalog,
            self._book,
            settings.delay,
            stream=ctx.stream,
            now=services.clock.now(),
            now_ms=0.0,
            one_group=len(candidates) == 1,
        )
        if not entries:
            raise UpstreamError(f"no candidate of {course.name!r} is in the gateway's configuration", status=404)
        repeatable = settings.allow_non_repeatable or why_not(ctx, self._side_effect_tools) is None
        tally.requests += 1
        tally.not_repeatable += not repeatable
        course.bucket.earn()
        self.total.earn(course.bucket.ratio if self.ratio is None else self.ratio)

        def call(leg: Leg) -> UpstreamCall:
            return self._start(ctx, upstream, course, leg)

        targets = dict.fromkeys(entry.target for entry in entries)

        def delay_ms(number: int, entry: Entry, leg: Leg | None) -> float:
            rivals = {one.id: one for target in targets for one in services.catalog.deployments(target)}
            return self._book.delay_ms(
                (leg.deployment,) if leg and leg.deployment else services.catalog.deployments(entry.target),
                tuple(rivals.values()),
                settings.delay,
                stream=ctx.stream,
                now=services.clock.now(),
                share=1.0 if number == 0 else LATER_DELAY,
            )

        def allow() -> bool:
            allowed = take_from_all((course.bucket, self.total))
            tally.denied += not allowed
            return allowed

        return Contest(
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
            call=call,
            delay_ms=delay_ms,
            allow=allow,
            patience=lambda: patience((course.bucket, self.total)),
            judge=_judge(ctx, course, candidates),
            finished=lambda contest: self._finished(ctx.request_id, contest, course),
        )

    def _start(self, ctx: RequestContext, upstream: Upstream, course: Course, leg: Leg) -> UpstreamCall:
        tally = course.tally
        tally.attempts += 1
        tally.extra += leg.reason in _EXTRA
        tally.replacements += leg.reason is Reason.REPLACEMENT
        return upstream.start(
            UpstreamRequest(
                target=leg.entry.target,
                kind=_KINDS[leg.reason],
                body=ctx.body,
                endpoint=ctx.endpoint,
                stream=ctx.stream,
                parent=ctx,
                timeout_s=leg.timeout_s,
                labels={"race_leg": str(leg.number + 1), "race_reason": str(leg.reason)},
            )
        )

    def _finished(self, request_id: str, contest: Contest, course: Course) -> None:
        """Book a race all of whose legs are closed."""
        self._running.pop(request_id, None)
        self.cancelling_ms.extend(contest.cancelling_ms)
        if not isinstance(contest.race.result, Won):
            return
        tally, winner = course.tally, contest.race.result.leg
        for leg in contest.legs:
            attempt = leg.attempt
            if attempt is None:
                continue
            if leg.number == winner:
                self._book.decided(attempt.deployment.id, won=True)
            elif attempt.outcome is not Outcome.ERROR:
                self._book.decided(attempt.deployment.id, won=False)
                tally.losers += 1
                tally.losers_usd_micros += attempt.cost_usd_micros or 0
                if attempt.usage is not None:
                    tally.losers_tokens += attempt.usage.total_tokens
                    tally.losers_estimated += attempt.usage.estimated


def _judge(ctx: RequestContext, course: Course, candidates: Sequence[CandidateConfig]) -> Callable[[Leg], float]:
    """Return what scores an answer; between equal scores the entry's standing decides, then who was first."""
    if course.settings.strategy != "quality":
        return lambda _: 0.0

    def judge(leg: Leg) -> float:
        weight = candidates[leg.entry.candidate].weight if len(candidates) > 1 else 1.0
        answer = leg.call.answer if leg.call is not None and leg.response is not None else None
        return weight * (1.0 if answer is None else quality(answer, ctx.body))

    return judge
