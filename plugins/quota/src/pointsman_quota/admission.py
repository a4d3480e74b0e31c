"""Admission: from a request to a reservation or a refusal."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Final, NamedTuple

from opentelemetry import trace

from pointsman.errors import StoreError
from pointsman.types import Denial, Reservation

from . import answers
from .asked import OddRequest, choices, models_named, primary_models
from .scopes import target_of
from .tenants import allowed, limited_patterns
from .verdict import LimitName, breaches, left, others_first

if TYPE_CHECKING:
    from pointsman.plugin import Services
    from pointsman.types import RequestContext, Route

    from .answers import Refused
    from .config import QuotaConfig
    from .durations import Durations
    from .estimate import Estimator
    from .gate import Gate, Reserved
    from .queue import FairQueue
    from .scopes import Target
    from .tenants import Caller, Directory
    from .verdict import Breach

#: Label on the route: who pays. Other plugins read it there.
TENANT_LABEL: Final = "tenant"
#: Label on the route: what dry-run would have refused.
MARK_LABEL: Final = "quota"
#: The most combinations of a caller and patterns whose scopes are remembered.
_MOST_TARGETS: Final = 4096


@dataclass(slots=True)
class Counts:
    """What admission did so far in this worker."""

    admitted: int = 0
    exempt: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    would_refuse: Counter[str] = field(default_factory=Counter)


@dataclass(slots=True)
class Ask:
    """What a request wants.

    Attributes:
        ctx: The request.
        caller: Who calls.
        target: The scopes it takes from.
        take: Estimated tokens and micro-dollars.
        choices: How many answers it asks each model for.
        mark: What dry-run has let pass already, or None.
        dry: Whether it is never refused.
        doubtful: Whether the store may have made a reservation without saying so.
    """

    ctx: RequestContext
    caller: Caller
    target: Target
    take: tuple[int, int]
    choices: int
    dry: bool
    mark: str | None
    doubtful: bool = False


class Answer(NamedTuple):
    """What the ledger said to an ``Ask``.

    Attributes:
        reserved: What became of the reservation.
        why: The limit that refuses, or None if it fits.
    """

    reserved: Reserved
    why: Refused | None


class Admission:
    """Decides about requests.

    Args:
        config: The plugin's section.
        services: The host's services.
        gate: The ledger.
        estimator: Estimates requests.
        queue: The queue, or None.
        durations: How long requests usually take.
    """

    def __init__(
        self,
        config: QuotaConfig,
        services: Services,
        *,
        gate: Gate,
        estimator: Estimator,
        queue: FairQueue | None,
        durations: Durations,
    ) -> None:
        self._config = config
        self._services = services
        self._gate = gate
        self._estimator = estimator
        self._queue = queue
        self._durations = durations
        self._target_of = lru_cache(_MOST_TARGETS)(partial(target_of, gateway=config.gateway_limits))
        self.counts = Counts()

    async def admit(self, ctx: RequestContext, route: Route, directory: Directory) -> Route | Denial | None:
        """Admit a request or deny it; see ``pre_route``."""
        caller = directory.by_identity(ctx.identity, ctx.headers)
        if caller is None:
            if self._config.exempt_admin and ctx.identity.admin:
                self.counts.exempt += 1
                return None
            return self._refuse(route, answers.unknown_caller(), dry=self._config.dry_run)
        dry = self._config.dry_run or caller.tenant.dry_run
        try:
            names = models_named(ctx.model, ctx.body)
            if not (permitted := allowed(caller.tenant, names)) and not dry:
                refused = [name for name in names if not allowed(caller.tenant, (name,))]
                return self._refuse(route, answers.model_not_allowed(refused), dry=dry)
            models = primary_models(ctx.model)
            answers_wanted = choices(ctx.body)
            prompt_tokens, output_tokens = await self._estimator.tokens(
                ctx, caller.tenant.id, models=len(models), choices=answers_wanted
            )
        except OddRequest as err:
            return self._refuse(route, answers.odd_request(str(err), err.param), dry=dry)
        target = self._target_of(caller, limited_patterns(caller.tenant, names))
        usd_micros = self._estimator.usd_micros(models, prompt_tokens, output_tokens) if target.limits_money else 0
        ask = Ask(
            ctx,
            caller,
            target,
            (prompt_tokens + output_tokens, usd_micros),
            answers_wanted,
            dry,
            None if permitted else "model_not_allowed",
        )
        try:
            answer = await self._ask_or_wait(ask)
        except (asyncio.CancelledError, StoreError):
            # Nobody will settle it, and whether the store has carried it out is unknown.
            self._gate.abandon(target, ctx.request_id)
            raise
        if ask.doubtful and not answer.reserved.result.done:
            self._gate.abandon(target, ctx.request_id)
        return self._conclude(ask, answer, route)

    async def _ask_or_wait(self, ask: Ask) -> Answer:
        queue = self._queue
        if queue is None or ask.dry:
            return await self._ask(ask)
        lanes = ask.target.scope_keys
        priority = ask.caller.priority
        answer: Answer | None = None
        limited = (lane for lane, caps in zip(lanes, ask.target.caps, strict=True) if "concurrent" in caps)
        lane = queue.lane_ahead(limited, priority)
        if lane is None:
            answer = await self._ask(ask)
            if answer.why is None or answer.why.breach.limit is not LimitName.CONCURRENT_REQUESTS:
                return answer
            lane = lanes[answer.why.breach.scope]

        async def attempt() -> Answer | None:
            nonlocal answer
            answer = await self._ask(ask)
            waiting = answer.why is not None and answer.why.breach.limit is LimitName.CONCURRENT_REQUESTS
            return None if waiting else answer

        return await queue.wait(lane, priority, attempt) or answer or await self._turn_away(ask, lanes.index(lane))

    async def _ask(self, ask: Ask) -> Answer:
        reserved = await self._gate.reserve(ask.target, ask.ctx.request_id, ask.take, force=ask.dry)
        ask.doubtful = ask.doubtful or reserved.doubtful
        if reserved.result.fits:
            return Answer(reserved, None)
        return self._refusal(ask, reserved, [])

    async def _turn_away(self, ask: Ask, scope: int) -> Answer:
        """Refuse without having asked: a slot that is free by now belongs to those who wait for it."""
        reserved = await self._gate.reserve(ask.target, ask.ctx.request_id, ask.take, look=True)
        cap = ask.target.caps[scope]["concurrent"]
        return self._refusal(ask, reserved, [others_first(scope, cap, reserved.result.scopes[scope], reserved.now_ms)])

    def _refusal(self, ask: Ask, reserved: Reserved, known: list[Breach]) -> Answer:
        states, now_ms = reserved.result.scopes, reserved.now_ms
        found = breaches(states, ask.target.caps, self._gate.period_at, ask.take, now_ms)
        typical_ms = self._durations.typical_ms(ask.caller.tenant.id)
        return Answer(reserved, answers.refused(found + known, ask.target.scopes, typical_ms))

    def _conclude(self, ask: Ask, answer: Answer, route: Route) -> Route | Denial:
        reserved = answer.reserved
        taken = (1, ask.take[0]) if reserved.result.done else (0, 0)
        axes = left(reserved.result.scopes, ask.target.caps, self._gate.period_at, taken, reserved.now_ms)
        headers = answers.limit_headers(*axes)
        span = trace.get_current_span()
        if span.is_recording():
            span.set_attributes(
                {
                    "pointsman.quota.tenant": ask.caller.tenant.id,
                    "pointsman.quota.reserved_tokens": ask.take[0],
                    "pointsman.quota.limit": answer.why.mark if answer.why else "",
                    "pointsman.quota.local": reserved.local,
                }
            )
        if answer.why is not None and not ask.dry:
            self.counts.refused[answer.why.mark] += 1
            return answers.over_limit(answer.why, headers, ask.take)
        self.counts.admitted += 1
        labels = {TENANT_LABEL: ask.caller.tenant.id}
        if (mark := ask.mark or (answer.why.mark if answer.why else None)) is not None:
            self.counts.would_refuse[mark] += 1
            labels[MARK_LABEL] = f"would-refuse {mark}"
            headers |= answers.would_refuse(mark)
        return replace(
            route,
            labels={**route.labels, **labels},
            headers={**route.headers, **headers},
            reservations=(*route.reservations, self._reservation(ask, reserved)),
        )

    def _reservation(self, ask: Ask, reserved: Reserved) -> Reservation:
        return Reservation(
            plugin=self._services.plugin,
            id=ask.ctx.request_id,
            expires_at=float(reserved.expires_s),
            amounts={"tokens": ask.take[0], "usd_micros": ask.take[1]},
            data={**ask.target.data, "local": reserved.local or ask.doubtful, "choices": ask.choices},
        )

    def _refuse(self, route: Route, denial: Denial, *, dry: bool) -> Route | Denial:
        trace.get_current_span().set_attribute("pointsman.quota.limit", denial.code)
        if not dry:
            self.counts.refused[denial.code] += 1
            return denial
        self.counts.would_refuse[denial.code] += 1
        labels = {MARK_LABEL: f"would-refuse {denial.code}"}
        return route.with_labels(**labels).with_headers(answers.would_refuse(denial.code))
