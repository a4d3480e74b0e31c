"""A request's way to its models: which one it waits for, what it holds, and when it gives that back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from opentelemetry import trace

from pointsman.types import AttemptKind, Denial, Refusal

from .pool import Unavailable
from .slots import State

if TYPE_CHECKING:
    from pointsman.plugin import Catalog
    from pointsman.types import Attempt, RequestContext, Route

    from .members import Member, Members
    from .scheduler import Scheduler
    from .slots import Slot

#: Calls that no client waits for: they never load a model.
_IDLE_KINDS: Final = frozenset({AttemptKind.MIRROR, AttemptKind.PROBE, AttemptKind.JUDGE})
_RETRY_S: Final = 1.0


class Admission:
    """Holds models for requests.

    A request that had to wait holds its model until its attempt begins, and each attempt holds its own until it ends, so
    a model is not evicted between the two, nor while it answers.

    Args:
        schedulers: Pool to its scheduler.
        members: The models of targets and deployments.
        catalog: Returns the gateway's deployments, once the plugin has started.
        hedges_load: Whether a hedge may load a model.
    """

    def __init__(
        self,
        schedulers: Mapping[str, Scheduler],
        members: Members,
        catalog: Callable[[], Catalog],
        *,
        hedges_load: bool,
    ) -> None:
        self._schedulers = schedulers
        self._members = members
        self._catalog = catalog
        self._hedges_load = hedges_load
        #: Request or attempt id to the model that it holds.
        self._held: dict[str, Member] = {}
        #: Request id to the model that it does not wait for any more, and why.
        self._given_up: dict[str, tuple[Member, Unavailable]] = {}

    @property
    def held(self) -> int:
        """How many requests and attempts hold a model."""
        return len(self._held)

    def held_by(self, request_id: str) -> Slot | None:
        """Return the model that was made ready for a request whose attempt has not begun, or None."""
        member = self._held.get(request_id)
        return None if member is None else self.slot(member)

    def slot(self, member: Member) -> Slot:
        """Return a model's slot."""
        return self._schedulers[member.pool].pool.slots[member.model]

    async def request(self, ctx: RequestContext, route: Route) -> Denial | None:
        """Make sure that one of the target's models is resident, and hold it for the request.

        Where another deployment could answer, nothing is waited for: the choice weighs the wait. Where the request has a
        fallback, it is not denied: its attempt is refused, and the gateway goes on.
        """
        target = self._members.targets.get(route.target)
        if target is None or not target.only or not ctx.generates or ctx.request_id in self._held:
            return None
        member = self._best(target.members)
        try:
            await self._hold(member, ctx.request_id)
        except Unavailable as err:
            if self._has_fallback(ctx, route):
                self._given_up[ctx.request_id] = (member, err)
                return None
            return Denial(
                status=503,
                code=err.code,
                type="service_unavailable_error",
                param="model",
                message=str(err),
                retry_after_s=err.retry_after_s,
            )
        return None

    async def attempt(self, ctx: RequestContext, attempt: Attempt) -> Refusal | None:
        """Make sure that an attempt's model is resident, and hold it."""
        member = self._members.of(attempt.deployment)
        if member is None:
            return None
        scheduler = self._schedulers[member.pool]
        waited_for = self._held.get(ctx.request_id)
        if waited_for is not None:
            del self._held[ctx.request_id]
            if waited_for == member and scheduler.pool.move(member.model, ctx.request_id, attempt.id):
                self._held[attempt.id] = member
                return None
            self._schedulers[waited_for.pool].release(waited_for.model, ctx.request_id)
        if (kind := attempt.kind) in _IDLE_KINDS or (kind is AttemptKind.HEDGE and not self._hedges_load):
            slot = scheduler.pool.slots[member.model]
            if slot.state is not State.RESIDENT:
                return Refusal(reason=f"the model {member.model!r} is {slot.state}, and a {kind} does not load it")
        given_up = self._given_up.get(ctx.request_id)
        try:
            if (
                given_up is not None
                and given_up[0] == member
                and scheduler.pool.slots[member.model].state is not State.RESIDENT
            ):
                raise given_up[1]
            await self._hold(member, attempt.id)
        except Unavailable as err:
            return Refusal(reason=str(err), retry_after_s=err.retry_after_s or _RETRY_S, status=503, code=err.code)
        return None

    def ended(self, attempt: Attempt) -> None:
        """Give an attempt's model back, and learn how long it took."""
        member = self._held.pop(attempt.id, None)
        if member is None:
            return
        scheduler = self._schedulers[member.pool]
        if attempt.duration_ms is not None and not attempt.cached:
            slot = scheduler.pool.slots[member.model]
            slot.attempt_s.add(attempt.duration_ms / 1000, attempt.started_at)
        scheduler.release(member.model, attempt.id)

    def answered(self, ctx: RequestContext) -> None:
        """Give back what a request holds that never came to its attempt."""
        self._given_up.pop(ctx.request_id, None)
        member = self._held.pop(ctx.request_id, None) if self._held else None
        if member is not None:
            self._schedulers[member.pool].release(member.model, ctx.request_id)

    def _has_fallback(self, ctx: RequestContext, route: Route) -> bool:
        """Return whether the gateway goes on elsewhere when the attempt is refused."""
        if route.fallbacks or ctx.body.get("fallbacks"):
            return True
        mine = {deployment.id for deployment in self._catalog().deployments(route.target)}
        return any(deployment.id not in mine for deployment in self._catalog().reachable(route.target))

    def _best(self, members: tuple[Member, ...]) -> Member:
        """Return the model with the shortest expected wait; a resident one that is free at once."""
        if len(members) == 1:
            return members[0]
        return min(members, key=self.expected_s)

    def expected_s(self, member: Member) -> float:
        """Return the seconds that a new request has to expect on a model before its own work begins."""
        pool = self._schedulers[member.pool].pool
        return pool.expected_s(pool.slots[member.model])

    async def _hold(self, member: Member, ticket: str) -> None:
        scheduler = self._schedulers[member.pool]
        if not scheduler.admit(member.model, ticket):
            slot = self.slot(member)
            state = str(slot.state)
            try:
                waited_s = await scheduler.wait(member.model, ticket, scheduler.config.deadline_s)
            finally:
                span = trace.get_current_span()
                if span.is_recording():
                    span.set_attributes(
                        {
                            "pointsman.residency.model": member.model,
                            "pointsman.residency.pool": member.pool,
                            "pointsman.residency.state": state,
                            "pointsman.residency.blocked": slot.blocked,
                            "pointsman.residency.waited_for": f"model {member.model!r}, which was {state}",
                        }
                    )
            if span.is_recording():
                span.set_attribute("pointsman.residency.waited_ms", round(waited_s * 1000, 3))
        self._held[ticket] = member
