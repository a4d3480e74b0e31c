"""Wires the plugin to the hooks."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from opentelemetry import trace

from pointsman import PluginInfo, hookimpl
from pointsman.errors import nearest
from pointsman.events import BreakerChanged
from pointsman.types import Status

from .attempts import Observer, TriedDeployments
from .config import BalanceConfig
from .instruments import instrument
from .members import Members
from .policies import Policies
from .probe import Prober
from .repository import Repository
from .routes import AdminRoutes
from .selection import Chooser
from .tactics import installed
from .views import span_attributes

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
        self._members = Members(
            self._policies.breaker,
            max_deployments=config.max_deployments,
            tau_s=config.tau_s,
            stale_s=config.stale_s,
            introduced=self._introduced,
        )
        self._tried = TriedDeployments()
        self._repository: Repository | None = None
        self._swept_at = float("-inf")

    @hookimpl
    async def startup(self, services: Services) -> None:
        """Read the shared state, and keep up with it."""
        self._services = services
        signal_of = services.signals.get
        self._chooser = Chooser(
            self._config,
            self._policies,
            self._members,
            self._tried,
            signal_of=signal_of,
            prices=services.prices,
            random=services.random,
            fault=services.fault,
        )
        self._observer = Observer(self._members, self._tried, signal_of=signal_of, changed=self._changed)
        self._prober = Prober(self._members, services)
        self._repository = Repository(services, self._policies, adopt=self._adopt, settled=self._members.apply)
        await self._repository.sync()
        for problem in self._unknown_groups():
            log.warning(problem)
        instrument(services.meter, self._members)
        services.tasks.every(self._config.sync_s, self._tick, name="keep up")

    @hookimpl
    async def inherit(self, previous: BalancePlugin) -> None:
        """Go on with loads, breakers and tactics."""
        self._policies.inherit(previous._policies)
        self._members.inherit(previous._members)

    @hookimpl
    async def shutdown(self) -> None:
        """Write pending changes."""
        if self._repository is not None:
            await self._repository.finish()

    @hookimpl
    def select(self, ctx: RequestContext, candidates: Sequence[Candidate]) -> Sequence[Candidate]:
        """Choose one candidate."""
        return self._chooser.choose(ctx, candidates, self._services.clock.now())

    @hookimpl
    async def before_attempt(self, ctx: RequestContext, attempt: Attempt) -> None:
        """Count the attempt as running."""
        self._observer.begin(ctx, attempt, self._services.clock.now())

    @hookimpl
    def first_token(self, attempt: Attempt, first_token_ms: float) -> None:
        """Learn a stream's wait for its first token."""
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
        """Report how many deployments are healthy."""
        unhealthy = [member for member in self._members if not member.breaker.healthy]
        total = len(self._members)
        summary = f"{total - len(unhealthy)} of {total} deployments healthy" if total else "no deployments yet"
        repository, chooser = self._repository, getattr(self, "_chooser", None)
        failures = repository.failures if repository is not None else 0
        problems = self._problems()
        if failures:
            summary += "; breakers are not shared because the store fails"
        elif problems:
            summary += f"; {problems[0]}"
        return Status(
            ok=not failures and not problems,
            summary=summary,
            details={
                # Tells plugins that thin out candidates at random to leave the choice to this one.
                "chooses": True,
                "tactic": self._config.tactic.name,
                "open": [
                    {"group": m.key[0], "deployment": m.key[1], "reason": m.breaker.reason} for m in unhealthy[:100]
                ],
                "deployments": total,
                "forgotten": self._members.forgotten,
                "choices": chooser.chosen if chooser is not None else 0,
                "probes": {
                    "requests": chooser.probed if chooser is not None else 0,
                    "calls": self._prober.sent if chooser is not None else 0,
                },
                "nobody_healthy": chooser.none_healthy if chooser is not None else 0,
                "left_to_fallback": chooser.left_to_fallback if chooser is not None else 0,
                "store": {"failures_in_a_row": failures},
                "problems": problems,
            },
        )

    @hookimpl
    def routes(self) -> Sequence[BaseRoute]:
        """Offer the admin routes."""
        assert self._repository is not None  # noqa: S101  # the host asks after startup
        return AdminRoutes(
            self._members,
            self._policies,
            self._repository,
            self._prober,
            self._services,
            problems=self._problems,
            reset=self._reset,
        ).routes()

    def _problems(self) -> list[str]:
        """Return the problems for an operator."""
        return [] if self._repository is None else [*self._unknown_groups(), *self._repository.problems]

    def _unknown_groups(self) -> list[str]:
        """Return the configured groups that the gateway does not have, whose settings have no effect."""
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
        """Announce a breaker that changed here to other plugins and other workers."""
        self._announce(member)
        if self._repository is not None:
            self._repository.share(member)

    def _announce(self, member: Member) -> None:
        breaker = member.breaker
        self._services.publish(
            BreakerChanged(
                group=member.key[0],
                deployment_id=member.key[1],
                state=str(breaker.state),
                reason=breaker.reason,
                until=breaker.open_until,
            )
        )

    def _introduced(self, member: Member) -> None:
        """Apply the shared state to a new member."""
        if self._repository is not None and (change := self._repository.changes.get(member.key)) is not None:
            self._take_over(member, change)

    def _adopt(self, key: tuple[str, str], change: Change) -> None:
        member = self._members.find(*key)
        if member is not None:
            self._take_over(member, change)

    def _take_over(self, member: Member, change: Change) -> None:
        now = self._services.clock.now()
        if member.breaker.adopt(change, now):
            # What was learnt after its end, as at a start, is not announced as open.
            member.breaker.elapse(now)
            if member.breaker.healthy:
                member.load.recover()
            self._announce(member)

    async def _reset(self, member: Member) -> None:
        """Close a breaker for all workers; they follow within ``sync_s``."""
        member.breaker.reset(self._services.clock.now())
        member.load.recover()
        self._announce(member)
        if self._repository is not None:
            self._repository.share(member)
            await self._repository.flush()

    async def _tick(self) -> None:
        now = self._services.clock.now()
        for member in self._members:
            if member.breaker.elapse(now):
                self._announce(member)
        self._prober.start_due(now)
        if now - self._swept_at >= SWEEP_S:
            self._swept_at = now
            self._tried.sweep(now)
            for member in self._members:
                if member.load.sweep(now):
                    # A request that never reached its attempt may have been the probe.
                    member.breaker.release_probe(now)
        if self._repository is not None:
            await self._repository.sync()


plugin = PluginInfo(
    name="balance",
    config=BalanceConfig,
    factory=BalancePlugin,
    summary="Which deployment serves each attempt: tactics and circuit breakers.",
    commands="pointsman_balance.commands:balance",
    requires=">=0.1,<0.2",
)
