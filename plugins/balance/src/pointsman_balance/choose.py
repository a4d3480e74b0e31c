"""One choice: leave out who is not healthy, ask the tactic, and say why. Sync and without I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pointsman.types import Candidate, SignalStatus

from .breaker import ALL, CLOSED, NOBODY, PROBE, Cause
from .load import PATIENCE
from .tactic import Ask, Option

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from collections.abc import Set as AbstractSet
    from random import Random

    from pointsman.plugin import Prices
    from pointsman.types import RequestContext, Signal

    from .config import BalanceConfig
    from .members import Member, Members
    from .policies import Policies
    from .tries import Tries

#: How bad it is to send a request there although nobody should be sent there. Having failed this request is worse than
#: errors in general, and better than credentials that are refused.
_BADNESS: Final = {None: 0.0, Cause.ERRORS: 2.0, Cause.RATE_LIMIT: 3.0, Cause.AUTH: 4.0, Cause.NOT_FOUND: 4.0}
_HALF_OPEN_BADNESS: Final = 1.0
_EXHAUSTED_BADNESS: Final = 3.0
_TRIED_BADNESS: Final = 2.5
_TRIED: Final = "has been tried for this request"
#: Part of its usual traffic that a deployment keeps which answers nothing, although not by its own fault as far as is
#: known: enough to see at once that the clients were to blame.
_UNANSWERED_SHARE: Final = 0.1


class _Case:
    """One choice while it is being made; what concerns a candidate has the candidate's place."""

    __slots__ = ("ask", "candidates", "due", "members", "now", "places", "reasons", "thinned", "tried")

    def __init__(self, ask: Ask, candidates: Sequence[Candidate], tried: AbstractSet[str]) -> None:
        self.ask = ask
        self.now = ask.now
        self.candidates = candidates
        self.tried = tried
        self.reasons = [""] * len(candidates)
        self.members: list[Member] = []
        #: The place of each option.
        self.places: list[int] = []
        #: Options that get a part of the requests only: option, place, part.
        self.thinned: list[tuple[Option, int, float]] = []
        #: Places of those that wait for a probe.
        self.due: list[int] = []


class Chooser:
    """Chooses among candidates.

    Args:
        config: The plugin's configuration.
        policies: Tactics and breaker settings.
        members: What is known of the deployments.
        tries: Which deployments a request has tried.
        signal_of: Returns the latest signal of a deployment, or None.
        prices: Unit prices.
        random: For chance.

    Attributes:
        chosen: Choices so far.
        probed: Choices that made a request a probe.
        nobody_healthy: Choices of the least bad because nobody was healthy.
    """

    def __init__(
        self,
        config: BalanceConfig,
        policies: Policies,
        members: Members,
        tries: Tries,
        *,
        signal_of: Callable[[str], Signal | None],
        prices: Prices,
        random: Random,
    ) -> None:
        self._degraded_share = config.degraded_share_ratio
        self._policies = policies
        self._members = members
        self._tries = tries
        self._signal_of = signal_of
        self._prices = prices
        self._random = random
        self.chosen = 0
        self.probed = 0
        self.nobody_healthy = 0

    def choose(self, ctx: RequestContext, candidates: Sequence[Candidate], now: float) -> list[Candidate]:
        """Return the candidates, all dropped with a reason but the one that is chosen.

        Args:
            ctx: The request.
            candidates: At least one.
            now: Unix seconds.
        """
        ask = Ask(ctx, candidates, now, self._random, self._prices)
        case = _Case(ask, candidates, self._tries.of(ctx.request_id))
        self._sort(case)
        options, reasons = ask.options, case.reasons
        score: float | None = None
        self.chosen += 1
        if case.due and (options or case.thinned):
            chosen = self._probe(case)
        else:
            if case.thinned:
                self._thin(case)
            if not options:
                chosen = self._least_bad(case)
            elif len(options) == 1:
                chosen = case.places[0]
                reasons[chosen] = (
                    f"the only healthy one; {reasons[chosen]}" if reasons[chosen] else "the only healthy one"
                )
            else:
                chosen, score = self._ask(case)
        case.members[chosen].load.pick(ctx.request_id, now)
        # Those that only scored less are left out: their scores are in the note of the one that is chosen, which costs
        # a third of a value each. Those that could not be chosen say why themselves.
        return [
            Candidate(
                deployment=candidate.deployment,
                weight=candidate.weight,
                score=score if place == chosen and score is not None else candidate.score,
                notes=(*candidate.notes, reasons[place]),
                dropped=place != chosen,
            )
            for place, candidate in enumerate(candidates)
            if reasons[place]
        ]

    def _sort(self, case: _Case) -> None:
        """Tell the healthy from those that are left out, or get a part of the requests only."""
        now, tried, ask, reasons = case.now, case.tried, case.ask, case.reasons
        members, options, places = case.members, ask.options, case.places
        of, signal_of = self._members.of, self._signal_of
        for place, candidate in enumerate(case.candidates):
            deployment = candidate.deployment
            member = of(deployment, now)
            members.append(member)
            breaker, share = member.breaker, ALL
            if breaker.state is not CLOSED or now < breaker.ramp_until:
                share = breaker.admits(now)
                if share == PROBE and breaker.rules.probe == "request" and not tried:
                    case.due.append(place)
                if share in (PROBE, NOBODY):
                    reasons[place] = breaker.says(now)
                    continue
            if tried and deployment.id in tried:
                reasons[place] = _TRIED
                continue
            signal = signal_of(deployment.id)
            if member.load.unanswered >= PATIENCE and breaker.rules.enabled:
                share *= _UNANSWERED_SHARE
                reasons[place] = f"no answer to its latest {member.load.unanswered} attempts"
            if signal is not None and signal.status in _TELLING:
                part, reason = self._told(signal, now)
                share *= part
                reasons[place] = reason or reasons[place]
                if part == NOBODY:
                    continue
            option = Option(candidate, member, signal, ask)
            if share == ALL:
                options.append(option)
                places.append(place)
            else:
                case.thinned.append((option, place, share))

    def _told(self, signal: Signal, now: float) -> tuple[float, str]:
        """Return the part of its traffic that a deployment keeps, and why."""
        status = signal.status_at(now)
        if status is SignalStatus.EXHAUSTED:
            return NOBODY, f"exhausted: {signal.reason}"
        # Degraded by errors has no end of its own; how often it fails is seen here, and sooner.
        if status is SignalStatus.DEGRADED and signal.until is not None:
            return self._degraded_share, f"degraded: {signal.reason}"
        return ALL, ""

    def _ask(self, case: _Case) -> tuple[int, float | None]:
        """Let the tactic choose; return the place and the score."""
        ask, reasons, places = case.ask, case.reasons, case.places
        name, tactic = self._policies.tactic(case.candidates[0].deployment.group)
        choice = tactic.choose(ask)
        chosen, scores = places[choice.chosen], choice.scores
        score = scores[choice.chosen]
        others = list(zip(ask.options, scores, strict=True))
        del others[choice.chosen]
        against = ", ".join([one.member.label if value is None else one.member.label_score for one, value in others])
        against %= tuple([value for _, value in others if value is not None])
        if case.thinned:  # nobody else among the options has a reason against it
            for place in places:
                reasons[place] = ""
        why = f", {choice.note}" if choice.note else ""
        reasons[chosen] = f"{name}{why}; against {against}"
        return chosen, score

    def _thin(self, case: _Case) -> None:
        """Let those with a part of the traffic take part in a part of the choices; in all when there is nobody else."""
        options, reasons = case.ask.options, case.reasons
        anyway = not options
        for option, place, share in case.thinned:
            if anyway or self._random.random() < share:
                options.append(option)
                case.places.append(place)
            elif not reasons[place]:
                reasons[place] = option.member.breaker.says(case.now)

    def _probe(self, case: _Case) -> int:
        """Make this request the probe of a half-open breaker: it has others to be retried on."""
        chosen = case.due[int(self._random.random() * len(case.due))]
        case.members[chosen].breaker.lend(case.now)
        self.probed += 1
        case.reasons[chosen] = f"probe: {case.reasons[chosen]}"
        return chosen

    def _least_bad(self, case: _Case) -> int:
        """Choose somebody although all have been tried or nobody is healthy: a poor chance is better than none."""
        now, reasons, tried = case.now, case.reasons, case.tried
        places = range(len(case.candidates))
        bad = [self._badness(case, place) for place in places]

        def rank(place: int) -> tuple[float, float, float]:
            badness, until = bad[place]
            again = _TRIED_BADNESS if case.candidates[place].deployment.id in tried else 0.0
            return badness + again, until, self._random.random()

        chosen = min(places, key=rank)
        breaker = case.members[chosen].breaker
        if not breaker.healthy:
            breaker.lend(now)
        # Who is left out for this request only is no less healthy for it.
        if any(reasons[place] == _TRIED and not bad[place][0] for place in places):
            who = "all" if all(reason == _TRIED for reason in reasons) else "all healthy ones"
            which = "the best of them" if reasons[chosen] == _TRIED else f"the least bad: {reasons[chosen]}"
            reasons[chosen] = f"{who} have been tried for this request, this is {which}"
        else:
            self.nobody_healthy += 1
            reasons[chosen] = f"nobody is healthy, this is the least bad: {reasons[chosen]}"
        return chosen

    def _badness(self, case: _Case, place: int) -> tuple[float, float]:
        """Return how bad it is to send a request there, 0 for a healthy one, and when that ends."""
        breaker, now = case.members[place].breaker, case.now
        bad, until = 0.0, breaker.until
        if not breaker.healthy:
            bad = _BADNESS[breaker.cause] if now < breaker.until else _HALF_OPEN_BADNESS
        signal = self._signal_of(case.candidates[place].deployment.id)
        if signal is not None and signal.status_at(now) is SignalStatus.EXHAUSTED:
            bad, until = max(bad, _EXHAUSTED_BADNESS), max(until, signal.until or 0.0)
        return bad, until


_TELLING: Final = frozenset({SignalStatus.EXHAUSTED, SignalStatus.DEGRADED})
