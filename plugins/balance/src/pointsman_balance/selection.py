"""One choice: exclude unhealthy deployments, ask the tactic, and give the reasons. Sync and without I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pointsman.types import Candidate, SignalStatus

from .breaker import ALL, BLOCKED, CLOSED, PROBE, Cause
from .load import MAX_UNANSWERED
from .tactic import Ask, Choice, Option
from .tactics import BUILT_IN

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from collections.abc import Set as AbstractSet
    from random import Random

    from pointsman.plugin import Prices
    from pointsman.types import RequestContext, Signal

    from .attempts import TriedDeployments
    from .config import BalanceConfig
    from .members import Member, Members
    from .policies import Policies
    from .tactic import Tactic

#: How bad it is to use a deployment that should not be used. Having failed this request is worse than errors in general,
#: and better than rejected credentials.
_BADNESS: Final = {None: 0.0, Cause.ERRORS: 2.0, Cause.RATE_LIMIT: 3.0, Cause.AUTH: 4.0, Cause.NOT_FOUND: 4.0}
#: No better than open: while its probe runs, the rest of the load would fall on it alone.
_HALF_OPEN_BADNESS: Final = 2.0
_EXHAUSTED_BADNESS: Final = 3.0
_TRIED_BADNESS: Final = 2.5
_TRIED: Final = "was tried for this request"
#: Share of its usual traffic that a deployment without recent answers keeps although, as far as is known, the clients are
#: at fault: enough to notice at once when it answers again.
_UNANSWERED_SHARE: Final = 0.1


class _Case:
    """The state of one choice; lists by candidate have the candidates' order."""

    __slots__ = ("ask", "candidates", "due", "members", "now", "places", "reasons", "thinned", "tried")

    def __init__(self, ask: Ask, candidates: Sequence[Candidate], tried: AbstractSet[str]) -> None:
        self.ask = ask
        self.now = ask.now
        self.candidates = candidates
        self.tried = tried
        self.reasons = [""] * len(candidates)
        self.members: list[Member] = []
        #: Index of each option among the candidates.
        self.places: list[int] = []
        #: Options that get only a share of the requests: option, index, share.
        self.thinned: list[tuple[Option, int, float]] = []
        #: Indices of candidates that wait for a probe.
        self.due: list[int] = []


class Chooser:
    """Chooses among candidates.

    Args:
        config: The plugin's configuration.
        policies: Tactics and breaker settings.
        members: The known deployments.
        tried: Which deployments each request has tried.
        signal_of: Returns the latest signal of a deployment, or None.
        prices: Unit prices.
        random: Source of random numbers.
        fault: Counts a fault of a part of the plugin, by its name.

    Attributes:
        chosen: Number of choices.
        probed: Choices that used a request as a probe.
        none_healthy: Choices of the least bad because no deployment was healthy.
        left_to_fallback: Choices of none because no deployment was healthy and the request has a fallback.
    """

    def __init__(
        self,
        config: BalanceConfig,
        policies: Policies,
        members: Members,
        tried: TriedDeployments,
        *,
        signal_of: Callable[[str], Signal | None],
        prices: Prices,
        random: Random,
        fault: Callable[[str, BaseException], None],
    ) -> None:
        self._denies = config.on_failure == "deny"
        self._fault = fault
        self._otherwise = BUILT_IN["random"]({})
        self._degraded_share = config.degraded_share_ratio
        self._policies = policies
        self._members = members
        self._tried = tried
        self._signal_of = signal_of
        self._prices = prices
        self._random = random
        self.chosen = 0
        self.probed = 0
        self.none_healthy = 0
        self.left_to_fallback = 0

    def choose(self, ctx: RequestContext, candidates: Sequence[Candidate], now: float) -> list[Candidate]:
        """Return the chosen candidate, and the excluded ones as dropped with their reasons.

        None is chosen when no deployment is healthy, a probe is not due, and the gateway can fall back.

        Args:
            ctx: The request.
            candidates: At least one.
            now: Unix seconds.
        """
        tried = self._tried.of(ctx.request_id)
        ask = Ask(ctx, candidates, now, self._random, self._prices, again=bool(tried))
        case = _Case(ask, candidates, tried)
        self._sort(case)
        options, reasons = ask.options, case.reasons
        score: float | None = None
        self.chosen += 1
        let_through = False
        if case.due and (options or case.thinned or candidates[0].has_fallback):
            chosen = self._probe(case)
        else:
            if case.thinned:
                self._thin(case)
            if not options:
                bad = [self._badness(case, place) for place in range(len(candidates))]
                if candidates[0].has_fallback and all(bad):
                    self.left_to_fallback += 1
                    return [one.drop(reason) for one, reason in zip(candidates, reasons, strict=True)]
                chosen, let_through = self._least_bad(case, bad)
            elif len(options) == 1:
                chosen = case.places[0]
                why = "the only candidate" if len(candidates) == 1 else "the only healthy one"
                reasons[chosen] = f"{why}; {reasons[chosen]}" if reasons[chosen] else why
            else:
                chosen, score = self._ask(case)
        case.members[chosen].load.pick(ctx.request_id, now, let_through=let_through)
        # Candidates that only scored less are omitted: their scores are in the note of the chosen one, which costs a
        # third of a value each. Those that could not be chosen carry their own reason.
        return [
            Candidate(
                deployment=candidate.deployment,
                weight=candidate.weight,
                score=score if place == chosen and score is not None else candidate.score,
                notes=(*candidate.notes, reasons[place]),
                dropped=place != chosen,
                has_fallback=candidate.has_fallback,
            )
            for place, candidate in enumerate(candidates)
            if reasons[place]
        ]

    def _sort(self, case: _Case) -> None:
        """Divide the candidates into options, excluded ones, and those that get only a share of the requests."""
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
                if share in (PROBE, BLOCKED):
                    reasons[place] = breaker.describe(now)
                    continue
            if tried and deployment.id in tried:
                reasons[place] = _TRIED
                continue
            signal = signal_of(deployment.id)
            if member.load.unanswered >= MAX_UNANSWERED and breaker.rules.enabled:
                share *= _UNANSWERED_SHARE
                reasons[place] = f"no answer to its latest {member.load.unanswered} attempts"
            if signal is not None and signal.status in _LIMITING:
                part, reason = self._signalled_share(signal, now)
                share *= part
                reasons[place] = reason or reasons[place]
                if part == BLOCKED:
                    continue
            option = Option(candidate, member, signal, ask)
            if share == ALL:
                options.append(option)
                places.append(place)
            else:
                case.thinned.append((option, place, share))
        self._exclude_delayed(case)

    @staticmethod
    def _exclude_delayed(case: _Case) -> None:
        """Exclude the options whose delay alone is longer than the whole wait on another one, whatever the tactic weighs."""
        options = case.ask.options
        if not sum([option.candidate.delay_s for option in options]):
            return
        quickest_s = min((option.wait_ms or 0.0) / 1e3 for option in options)
        left = [index for index, option in enumerate(options) if option.candidate.delay_s <= quickest_s]
        # The quickest option's wait includes its own delay, so it stays.
        for index in sorted(set(range(len(options))) - set(left)):
            delay_s = options[index].candidate.delay_s
            case.reasons[case.places[index]] = f"starts after {delay_s:.1f} s, {quickest_s:.1f} s elsewhere"
        case.ask.options[:] = [options[index] for index in left]
        case.places[:] = [case.places[index] for index in left]

    def _signalled_share(self, signal: Signal, now: float) -> tuple[float, str]:
        """Return the share of its traffic that a deployment keeps by its signal, and why."""
        status = signal.status_at(now)
        if status is SignalStatus.EXHAUSTED:
            return BLOCKED, f"exhausted: {signal.reason}"
        # A signal degraded by errors has no end; failures are seen here, and sooner.
        if status is SignalStatus.DEGRADED and signal.until is not None:
            return self._degraded_share, f"degraded: {signal.reason}"
        return ALL, ""

    def _ask(self, case: _Case) -> tuple[int, float | None]:
        """Let the tactic choose; return the index and the score. A tactic that fails is counted, and the choice is random."""
        group, options = case.candidates[0].deployment.group, tuple(case.ask.options)
        try:
            return self._asked(case, *self._policies.tactic(group))
        except KeyboardInterrupt:
            raise
        except BaseException as err:
            if self._denies:
                raise
            name = self._policies.choice(group).name
            self._fault(f"tactic {name}", err)
            case.ask.options[:] = options
            return self._asked(case, f"random, since the tactic {name} failed", self._otherwise)

    def _asked(self, case: _Case, name: str, tactic: Tactic) -> tuple[int, float | None]:
        ask, reasons, places = case.ask, case.reasons, case.places
        choice: object = tactic.choose(ask)
        if not isinstance(choice, Choice):
            kind = type(tactic).__qualname__
            raise TypeError(
                f"{kind}.choose returned {type(choice).__name__}, not a Choice such as ask.best(scores) makes"
            )
        chosen, scores = places[choice.chosen], choice.scores
        score = scores[choice.chosen]
        others = list(zip(ask.options, scores, strict=True))
        del others[choice.chosen]
        against = ", ".join([one.member.label if value is None else one.member.label_score for one, value in others])
        against %= tuple([value for _, value in others if value is not None])
        if case.thinned:  # only thinned options have a reason so far
            for place in places:
                reasons[place] = ""
        why = f", {choice.note}" if choice.note else ""
        reasons[chosen] = f"{name}{why}; against {against}"
        return chosen, None if score is None else float(score)

    def _thin(self, case: _Case) -> None:
        """Admit options with a share of the traffic to that share of the choices; to all when there are no others."""
        options, reasons = case.ask.options, case.reasons
        alone = not options
        for option, place, share in case.thinned:
            if alone or self._random.random() < share:
                options.append(option)
                case.places.append(place)
            elif not reasons[place]:
                reasons[place] = option.member.breaker.describe(case.now)

    def _probe(self, case: _Case) -> int:
        """Use this request as the probe of a half-open breaker: there are other deployments to retry on."""
        chosen = case.due[int(self._random.random() * len(case.due))]
        case.members[chosen].breaker.start_probe(case.now)
        self.probed += 1
        case.reasons[chosen] = f"probe: {case.reasons[chosen]}"
        return chosen

    def _least_bad(self, case: _Case, bad: Sequence[float]) -> tuple[int, bool]:
        """Choose among the least bad deployments when all have been tried or none is healthy, so that the load spreads.

        Returns:
            The index, and whether the request is let through an open breaker without being its probe.
        """
        now, reasons, tried = case.now, case.reasons, case.tried
        places = range(len(case.candidates))

        def rank(place: int) -> tuple[float, int, float]:
            again = _TRIED_BADNESS if case.candidates[place].deployment.id in tried else 0.0
            return bad[place] + again, case.members[place].load.in_flight, self._random.random()

        chosen = min(places, key=rank)
        breaker = case.members[chosen].breaker
        let_through = not breaker.healthy
        if let_through and breaker.rules.probe == "request" and breaker.admits(now) == PROBE:
            breaker.start_probe(now)
            let_through = False
        # A deployment excluded for this request only is still healthy.
        if any(reasons[place] == _TRIED and not bad[place] for place in places):
            which = "all" if all(reason == _TRIED for reason in reasons) else "all healthy ones"
            this = "the best of them" if reasons[chosen] == _TRIED else f"the least bad: {reasons[chosen]}"
            reasons[chosen] = f"{which} were tried for this request, this is {this}"
        else:
            self.none_healthy += 1
            reasons[chosen] = f"none is healthy, this is one of the least bad: {reasons[chosen]}"
        return chosen, let_through

    def _badness(self, case: _Case, place: int) -> float:
        """Return how bad it is to use a candidate: 0 for a healthy one."""
        breaker, now = case.members[place].breaker, case.now
        bad = 0.0
        if not breaker.healthy:
            bad = _BADNESS[breaker.cause] if now < breaker.until else _HALF_OPEN_BADNESS
        signal = self._signal_of(case.candidates[place].deployment.id)
        if signal is not None and signal.status_at(now) is SignalStatus.EXHAUSTED:
            bad = max(bad, _EXHAUSTED_BADNESS)
        return bad


_LIMITING: Final = frozenset({SignalStatus.EXHAUSTED, SignalStatus.DEGRADED})
