"""Wires the plugin: hooks in, one candidate out."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from opentelemetry import trace

from pointsman import PluginInfo, hookimpl
from pointsman.errors import nearest
from pointsman.types import BreakerChanged, Status

from .choose import Chooser
from .config import BalanceConfig
from .members import Members
from .observe import Observer
from .policies import Policies
from .probe import Prober
from .registry import installed
from .shared import Shared
from .surface import Surface
from .tries import Tries
from .view import span_attributes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.routing import BaseRoute

    from pointsman.plugin import Services
    from pointsman.types import Attempt, Candidate, RequestContext

    from .breaker import Change
    from .members import Member

log: Final = logging.getLogger("pointsman.balance")

SWEEP_S: Final = 5.0


class BalancePlugin:
    """Chooses the deployment that serves each attempt.

    Args:
        config: The plugin's section of the configuration.

    Raises:
        PluginLoadError: an installed tactic cannot be used.
    """

    def __init__(self, config: BalanceConfig) -> None:
        self._config = config
        self._policies = Policies(config, installed())
        self._members = Members(config, self._policies, introduced=self._introduced)
        self._tries = Tries()
        self._shared: Shared | None = None
        self._swept_at = float("-inf")

    @hookimpl
    async def startup(self, services: Services) -> None:
        """Learn what the other workers know, and keep up with them."""
        self._services = services
        signal_of = services.signals.get
        self._chooser = Chooser(
            self._config,
            self._policies,
            self._members,
            self._tries,
            signal_of=signal_of,
            prices=services.prices,
            random=services.random,
        )
        self._observer = Observer(self._members, self._tries, signal_of=signal_of, changed=self._changed)
        self._prober = Prober(self._members, services)
        self._shared = Shared(services, self._policies, adopt=self._adopt, settled=self._members.apply)
        await self._shared.sync()
        for problem in self._unknown_groups():
            log.warning(problem)
        services.tasks.every(self._config.sync_s, self._tick, name="keep up")

    @hookimpl
    async def shutdown(self) -> None:
        """Write what is not written yet."""
        if self._shared is not None:
            await self._shared.finish()

    @hookimpl
    def select(self, ctx: RequestContext, candidates: Sequence[Candidate]) -> Sequence[Candidate]:
        """Choose one."""
        return self._chooser.choose(ctx, candidates, self._services.clock.now())

    @hookimpl
    async def before_attempt(self, ctx: RequestContext, attempt: Attempt) -> None:
        """Count the attempt as running."""
        self._observer.begin(ctx, attempt, self._services.clock.now())

    @hookimpl
    def first_token(self, attempt: Attempt, first_token_ms: float) -> None:
        """Learn how long a stream has waited."""
        self._observer.first_token(attempt, first_token_ms, self._services.clock.now())

    @hookimpl
    def post_response(self, ctx: RequestContext, attempt: Attempt) -> None:
        """Learn from an answer."""
        self._ended(ctx, attempt)

    @hookimpl
    def on_error(self, ctx: RequestContext, attempt: Attempt) -> None:
        """Learn from a failure."""
        self._ended(ctx, attempt)

    @hookimpl
    def status(self) -> Status:
        """Say how many deployments are healthy."""
        ill = [member for member in self._members if not member.breaker.healthy]
        total = len(self._members)
        told = f"{total - len(ill)} of {total} deployments healthy" if total else "no deployments yet"
        shared, chooser = self._shared, getattr(self, "_chooser", None)
        failures = shared.failures if shared is not None else 0
        problems = self._problems()
        if failures:
            told += "; breakers are not shared: the store fails"
        elif problems:
            told += f"; {problems[0]}"
        return Status(
            ok=not failures and not problems,
            summary=told,
            details={
                # Whoever narrows the candidates by chance leaves it to the one that chooses.
                "chooses": True,
                "tactic": self._config.tactic.name,
                "open": [{"group": m.key[0], "deployment": m.key[1], "reason": m.breaker.reason} for m in ill[:100]],
                "deployments": total,
                "forgotten": self._members.forgotten,
                "choices": chooser.chosen if chooser is not None else 0,
                "probes": {
                    "requests": chooser.probed if chooser is not None else 0,
                    "calls": self._prober.sent if chooser is not None else 0,
                },
                "nobody_healthy": chooser.nobody_healthy if chooser is not None else 0,
                "store": {"failures_in_a_row": failures},
                "problems": problems,
            },
        )

    @hookimpl
    def routes(self) -> Sequence[BaseRoute]:
        """Offer the admin routes."""
        assert self._shared is not None  # noqa: S101  # the host asks after startup
        return Surface(
            self._members,
            self._policies,
            self._shared,
            self._prober,
            self._services,
            problems=self._problems,
            reset=self._reset,
        ).routes()

    def _problems(self) -> list[str]:
        """Return what an operator should look at."""
        return [] if self._shared is None else [*self._unknown_groups(), *self._shared.problems]

    def _unknown_groups(self) -> list[str]:
        """Return which of the configuration's groups the gateway does not have: settings that nothing is chosen by."""
        catalog = self._services.catalog
        known = {deployment.group for deployment in catalog.deployments()}
        # A gateway may learn its deployments only after the plugins have started.
        return [
            f"balance.groups.{group}: the gateway's configuration has no model group {group!r}{nearest(group, known)}"
            for group in self._config.groups
            if known and not catalog.is_group(group)
        ]

    # -- what happens -------------------------------------------------------------------------------------------------

    def _ended(self, ctx: RequestContext, attempt: Attempt) -> None:
        now = self._services.clock.now()
        member = self._observer.end(ctx, attempt, now)
        span = trace.get_current_span()
        if span.is_recording():
            span.set_attributes(span_attributes(member, stream=ctx.stream))

    def _changed(self, member: Member) -> None:
        """Tell the other workers and the other plugins of a breaker that has changed here."""
        self._announce(member)
        if self._shared is not None:
            self._shared.note(member)

    def _announce(self, member: Member) -> None:
        breaker = member.breaker
        self._services.publish(
            BreakerChanged(
                group=member.key[0],
                deployment_id=member.key[1],
                state=str(breaker.state),
                reason=breaker.reason,
                until=breaker.until or None,
            )
        )

    def _introduced(self, member: Member) -> None:
        """Tell a new member what the other workers know of it."""
        if self._shared is not None and (change := self._shared.changes.get(member.key)) is not None:
            self._take_over(member, change)

    def _adopt(self, key: tuple[str, str], change: Change) -> None:
        member = self._members.find(*key)
        if member is not None:
            self._take_over(member, change)

    def _take_over(self, member: Member, change: Change) -> None:
        if member.breaker.adopt(change, self._services.clock.now()):
            if member.breaker.healthy:
                member.load.recover()
            self._announce(member)

    async def _reset(self, member: Member) -> None:
        """Close a breaker for all workers; they have heard of it within ``sync_s``."""
        member.breaker.reset(self._services.clock.now())
        member.load.recover()
        self._announce(member)
        if self._shared is not None:
            self._shared.note(member)
            await self._shared.flush()

    async def _tick(self) -> None:
        now = self._services.clock.now()
        for member in self._members:
            if member.breaker.elapse(now):
                self._announce(member)
        self._prober.start_due(now)
        if now - self._swept_at >= SWEEP_S:
            self._swept_at = now
            self._tries.sweep(now)
            for member in self._members:
                if member.load.sweep(now):
                    # A request that never came to its attempt may have been the probe.
                    member.breaker.give_back(now)
        if self._shared is not None:
            await self._shared.sync()


plugin = PluginInfo(
    name="balance",
    config=BalanceConfig,
    factory=BalancePlugin,
    summary="Which deployment serves each attempt: tactics and circuit breakers.",
    commands="pointsman_balance.commands:balance",
)
