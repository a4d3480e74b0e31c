"""The mirrors of one worker at work: what happens on the request path, and what a dispatcher does beside it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from opentelemetry import trace

from pointsman.errors import ConfigError, StoreError
from pointsman.plugin import unknown_target
from pointsman.types import Answer, Attempt, AttemptKind, Outcome, Price, RequestContext, Settlement

from . import bodies, calls
from .budget import Amount, Held, Purse, day_of, estimate
from .comparison import Comparison, Metric, Side, compare
from .config import EVERY_MODEL, Mirror, ShadowConfig, Version
from .evidence import Count
from .line import Line
from .opinions import Panel
from .pace import PROBE_S, Pace
from .pairs import Pair

if TYPE_CHECKING:
    from collections.abc import Callable

    from pointsman.plugin import Services

#: Attempts of a client's request; a mirror's own are none of these, so that nothing is mirrored twice.
_CLIENTS: Final = frozenset({AttemptKind.PRIMARY, AttemptKind.RETRY, AttemptKind.FALLBACK, AttemptKind.HEDGE})
#: A pair whose primary is not heard of for so long beyond its time is given up.
_FORGOTTEN_S: Final = 3600.0
#: An answer is reckoned to be this long when the request sets no limit.
_USUAL_TOKENS: Final = 1_000


class Engine:
    """Mirrors requests.

    Args:
        config: The plugin's configuration.
        services: The host's services.

    Raises:
        ConfigError: a redactor cannot be found.

    Attributes:
        lines: The mirrors by name.
        pace: Whether the worker has time for mirrors.
    """

    def __init__(self, config: ShadowConfig, services: Services) -> None:
        self.config = config
        self.services = services
        self.lines = {
            mirror.name: Line(mirror, Purse(mirror, services.store, services.clock)) for mirror in config.mirrors
        }
        self._every = tuple(line for line in self.lines.values() if line.mirror.model == EVERY_MODEL)
        models = {line.mirror.model for line in self.lines.values()} - {EVERY_MODEL}
        self._by_model = {
            model: tuple(line for line in self.lines.values() if line.mirror.model in {model, EVERY_MODEL})
            for model in models
        }
        self._pending: dict[str, list[tuple[Line, Pair]]] = {}
        self._wake = asyncio.Event()
        self.pace = Pace(config.max_lag_ms / 1000)

    # -- on the request path ------------------------------------------------------------------------------------------

    def consider(self, ctx: RequestContext, attempt: Attempt) -> None:
        """Decide whether the request is mirrored. Its first attempt is about to be sent; the mirror follows at once."""
        lines = self._by_model.get(ctx.model, self._every)
        if not lines or attempt.number != 1 or attempt.kind not in _CLIENTS:
            return
        now = self.services.clock.monotonic()
        for line in lines:
            pair = line.consider(ctx, attempt, now)
            if pair is not None:
                self._pending.setdefault(ctx.request_id, []).append((line, pair))
                self._wake.set()
                trace.get_current_span().set_attribute(f"pointsman.shadow.{line.mirror.name}", "mirrored")

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
        for line, pair in self._pending.pop(settlement.request_id, ()):
            line.concluded(pair, _champion(settlement, pair))
            pair.answers.clear()
            if not pair.over and pair.challenger is not None:
                self._complete(line, pair)

    # -- beside it ----------------------------------------------------------------------------------------------------

    async def dispatch(self) -> None:
        """Give waiting pairs a place, for ever: one of each mirror at a time, and none while the worker is late."""
        clock = self.services.clock
        while True:
            await self._wake.wait()
            self._wake.clear()
            while any(line.can_start for line in self.lines.values()):
                begun = clock.monotonic()
                # The primaries go first: a mirror follows a few milliseconds behind its own.
                await clock.sleep(PROBE_S)
                now = clock.monotonic()
                self.pace.note(now - begun - PROBE_S, now)
                for line in self.lines.values():
                    if self.pace.busy:
                        line.expire(now, "busy")
                    else:
                        self._start_next(line, now)

    def _start_next(self, line: Line, now: float) -> None:
        pair = line.next(now)
        if pair is None:
            return
        work = self._mirror(line, pair) if pair.challenger is None else self._weigh(line, pair)
        self.services.tasks.spawn(work, name=f"mirror {line.mirror.name}")

    def sweep(self) -> None:
        """Give up pairs whose primary nobody has heard of for very long; look for those that have waited too long."""
        now = self.services.clock.monotonic()
        for request_id, pairs in list(self._pending.items()):
            left = []
            for line, pair in pairs:
                if now - pair.queued_at < _FORGOTTEN_S + line.mirror.time_limit_s:
                    left.append((line, pair))
                elif not pair.over:
                    line.unpair(pair, "no_primary")
            if left:
                self._pending[request_id] = left
            else:
                del self._pending[request_id]
        for line in self.lines.values():
            line.expire(now, "busy" if self.pace.busy else "waited_too_long")

    @property
    def alive(self) -> int:
        """Pairs between the decision and the comparison."""
        return sum(line.alive for line in self.lines.values())

    async def _mirror(self, line: Line, pair: Pair) -> None:
        called: calls.Called | None = None
        try:
            held = await self._hold(line, pair)
            if isinstance(held, str):
                line.drop(pair, held)
                return
            request = calls.mirror_request(line, pair)
            called = await calls.call(self.services, request, line.mirror.time_limit_s, pair.context)
            pair.mirror_id = called.request_id
            line.mirrored(called.side, self.services.clock.monotonic())
            await self._spent(line, called.spent, held)
        except Exception:
            if called is None:
                line.drop(pair, "fault")
            raise
        finally:
            line.running -= 1
            self._wake.set()
            if called is None:
                line.release(pair)
            else:
                pair.challenger = called.side
                if pair.champion is not None and not pair.over:
                    self._complete(line, pair)

    async def _hold(self, line: Line, pair: Pair) -> Held | str | None:
        """Set the mirror's estimate aside; return why not when that cannot be."""
        if not line.purse.limited:
            return None
        body = pair.ctx.body
        try:
            return await line.purse.hold(
                estimate(bodies.prompt_chars(body), bodies.most_tokens(body, _USUAL_TOKENS), self._price(line))
            )
        except StoreError:
            return "store"

    def _price(self, line: Line) -> Price:
        found = self.services.catalog.deployments(line.target) if line.target else ()
        return self.services.prices.get(found[0]) if found else Price()

    async def _spent(self, line: Line, spent: Amount, held: Held | None = None) -> None:
        line.batch.count(Count.TOKENS, spent.tokens)
        line.batch.count(Count.COST_USD_MICROS, spent.usd_micros)
        if line.purse.limited:
            try:
                await line.purse.book(held or Held(day_of(self.services.clock.now()), Amount()), spent)
            except StoreError:
                # What was set aside stays so: the budget errs on the side of spending less.
                line.batch.count(Count.SKIPPED, of="booking")

    def _complete(self, line: Line, pair: Pair) -> None:
        """Both sides are there: compare them, or let the pair wait for a place when somebody has to be asked."""
        champion, challenger = pair.champion, pair.challenger
        assert champion is not None  # noqa: S101  # both sides are there
        assert challenger is not None  # noqa: S101
        comparison = compare(champion, challenger)
        if self._wants_opinions(line, champion, challenger):
            line.queue.append(pair)
            self._wake.set()
            return
        self._record(line, pair, comparison)

    def _wants_opinions(self, line: Line, champion: Side, challenger: Side) -> bool:
        mirror = line.mirror
        if mirror.judge is None and mirror.embedding is None:
            return False
        return champion.answer is not None and challenger.answer is not None and line.purse.empty() is None

    async def _weigh(self, line: Line, pair: Pair) -> None:
        """Ask those who have an opinion; whatever they do, the pair is recorded."""
        champion, challenger = pair.champion, pair.challenger
        assert champion is not None  # noqa: S101  # both sides are there
        assert challenger is not None  # noqa: S101
        comparison = compare(champion, challenger)
        try:
            if champion.answer is not None and challenger.answer is not None:
                values = {
                    **await self._embedded(line, pair, champion.answer, challenger.answer),
                    **await self._judged(line, pair, champion.answer, challenger.answer),
                }
                comparison = replace(comparison, values={**comparison.values, **values})
        finally:
            line.running -= 1
            self._wake.set()
            self._record(line, pair, comparison)

    async def _embedded(self, line: Line, pair: Pair, champion: Answer, challenger: Answer) -> Mapping[Metric, float]:
        wanted = line.mirror.embedding
        if wanted is None or not champion.text or not challenger.text or not self._chance(wanted.sample_rate):
            return {}
        panel = Panel(self.services, line.mirror, pair)
        similar, spent = await panel.embedded(wanted.model, champion.text, challenger.text)
        await self._spent(line, spent)
        if similar is None:
            line.batch.count(Count.EMBEDDING_FAILED)
            return {}
        return {Metric.EMBEDDING: similar}

    async def _judged(self, line: Line, pair: Pair, champion: Answer, challenger: Answer) -> Mapping[Metric, float]:
        judge = line.mirror.judge
        if judge is None or not self._chance(judge.sample_rate):
            return {}
        opinion = await Panel(self.services, line.mirror, pair).judged(judge, champion, challenger)
        await self._spent(line, opinion.spent)
        for name, amount in (
            (Count.JUDGE_FAILED, opinion.failed),
            (Count.JUDGE_UNREAD, opinion.unread),
            (Count.JUDGE_CONTRADICTED, int(opinion.contradicted)),
        ):
            if amount:
                line.batch.count(name, amount)
        return {} if opinion.score is None else {Metric.JUDGE: opinion.score}

    def _chance(self, rate: float) -> bool:
        return self.services.random.random() < rate

    def _record(self, line: Line, pair: Pair, comparison: Comparison) -> None:
        if pair.over or pair.champion is None or pair.challenger is None:
            return
        line.record(pair, pair.champion, pair.challenger, comparison, self.services.clock.now())
        line.release(pair)

    # -- the gateway --------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Refuse targets that the gateway does not have.

        Raises:
            ConfigError: naming all of them.
        """
        # Some gateways know their deployments only after the plugins have started; ``problems`` looks again.
        if not self.services.catalog.deployments():
            return
        wrong = [
            f"{self.services.plugin}.mirrors[{index}].{key}: {why}"
            for index, mirror in enumerate(self.config.mirrors)
            for key, why in self._unknown(mirror).items()
        ]
        if wrong:
            raise ConfigError("\n".join(wrong))

    def resolve(self) -> None:
        """Look up what the challengers' versions are served by."""
        versions = [line for line in self.lines.values() if isinstance(line.mirror.challenger, Version)]
        if not versions:
            return
        registry = self.services.statuses().get("registry")
        paths = registry.details.get("paths") if registry is not None else None
        for line in versions:
            challenger = line.mirror.challenger
            assert isinstance(challenger, Version)  # noqa: S101  # chosen above
            path = paths.get(challenger.version) if isinstance(paths, Mapping) else None
            line.target = path if isinstance(path, str) and self._known(path) else None

    def problems(self) -> list[str]:
        """Return what an operator should look at."""
        found: list[str] = []
        for name, line in self.lines.items():
            mirror = line.mirror
            found += [f"{name}: {key}: {why}" for key, why in self._unknown(mirror).items()]
            if line.target is None:
                found.append(f"{name}: nobody serves the challenger, {mirror.challenger_text}; is it registered?")
            if line.rest.resting:
                wait_s = max(0.0, line.rest.until - self.services.clock.monotonic())
                again = "being asked again" if line.rest.asking else f"asked again in {wait_s:.0f} s"
                found.append(
                    f"{name}: {mirror.challenger_text} has failed {line.rest.failures} times in a row; it is {again}"
                )
            if line.unreadable is not None:
                found.append(f"{name}: {line.unreadable}; it mirrors nothing until it is reset")
            if line.superseded:
                found.append(f"{name}: another worker has begun a newer definition; this one mirrors nothing")
            if line.lost:
                found.append(f"{name}: the figures of {line.lost} pairs are lost: the store did not take them")
            if mirror.budget.usd_per_day is not None and line.target is not None:
                price = self._price(line)
                if price.input_usd is None or price.output_usd is None:
                    found.append(f"{name}: usd_per_day cannot be kept: the cost map has no price for {line.target!r}")
        return found

    def _unknown(self, mirror: Mirror) -> dict[str, str]:
        """Return what is wrong with the names that the gateway would have to know, by their keys."""
        named = {
            "challenger": mirror.challenger,
            "judge.model": mirror.judge.model if mirror.judge else None,
            "embedding.model": mirror.embedding.model if mirror.embedding else None,
        }
        found = {
            key: unknown_target(target, self.services.catalog)
            for key, target in named.items()
            if isinstance(target, str)
        }
        return {key: why for key, why in found.items() if why is not None}

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
