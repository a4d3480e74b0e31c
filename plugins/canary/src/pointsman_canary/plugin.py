"""The canary as a plugin: only wiring."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from pointsman.plugin import PluginInfo, Services
from pointsman.specs import hookimpl
from pointsman.types import (
    Attempt,
    Event,
    MirrorGraduated,
    Outcome,
    RequestContext,
    Route,
    Settlement,
    Status,
    VersionActivated,
)

from . import metrics
from .admin import Admin, summary
from .config import CanaryConfig
from .engine import Engine
from .experiment import MetricName
from .gates import Gatekeeper
from .stepper import Stepper
from .table import LABEL_ARM, LABEL_EXPERIMENT, LABEL_STAGE, Entry, Misplaced

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.routing import BaseRoute

_NOBODYS_FAULT: Final = frozenset({Outcome.DENIED, Outcome.DISCONNECTED, Outcome.CANCELLED})


class CanaryPlugin:
    """Assigns requests to the arms of experiments, and lets the experiments proceed or roll back.

    Args:
        config: Its section of the configuration.
    """

    def __init__(self, config: CanaryConfig) -> None:
        self._config = config
        self._engine: Engine
        self._stepper: Stepper
        self._gatekeeper: Gatekeeper
        #: What requests have shown to be wrong, by experiment and arm.
        self._complaints: dict[tuple[str, str], str] = {}

    @hookimpl
    async def startup(self, services: Services) -> None:
        """Begin or take up the experiments, and go on with them."""
        self._engine = Engine(self._config, services)
        self._gatekeeper = Gatekeeper(self._config.webhooks)
        self._stepper = Stepper(self._engine, self._gatekeeper)
        await self._engine.start()
        services.tasks.every(self._config.tick_s, self._stepper.tick, name="tick")

    @hookimpl
    async def shutdown(self) -> None:
        """Hand in what was observed, and let another worker step."""
        try:
            await self._engine.hand_in()
            await self._stepper.resign()
        finally:
            await self._gatekeeper.close()

    @hookimpl
    async def pre_route(self, ctx: RequestContext, route: Route) -> Route | None:
        """Put the request on its arm of the first experiment that it takes part in."""
        for entry in self._engine.table.get(ctx.model, ()):
            try:
                routed = entry.route(ctx, route)
            except Misplaced as err:
                self._complaints[entry.experiment.name, ""] = str(err)
                continue
            if routed is not None:
                return routed
        return None

    @hookimpl
    def post_response(self, attempt: Attempt) -> None:
        """Count an attempt that succeeded."""
        self._observe(attempt)

    @hookimpl
    def on_error(self, attempt: Attempt) -> None:
        """Count an attempt that did not succeed, at once: the answer that saves the request may take long."""
        self._observe(attempt)

    @hookimpl
    async def settle(self, settlement: Settlement) -> None:
        """Count a request whose arm did not get to a first attempt, or whose first attempt lost a race."""
        labels = settlement.labels
        entry = self._entry(labels)
        if entry is None or settlement.outcome in _NOBODYS_FAULT:
            return
        name, arm = entry.experiment.name, labels[LABEL_ARM]
        if not entry.honoured(arm, labels):
            self._complaints[name, arm] = f"{name}: the registry does not serve the version of {arm}; is it registered?"
            return
        self._complaints.pop((name, arm), None)
        own = [attempt for attempt in settlement.attempts if entry.serves(arm, attempt)]
        if own and own[0].number == 1 and own[0].outcome is not Outcome.CANCELLED:
            return
        answered = any(attempt.outcome is Outcome.OK for attempt in own)
        self._note(entry, labels, {MetricName.ERROR_RATE: metrics.index(MetricName.ERROR_RATE, float(not answered))})

    @hookimpl
    async def on_event(self, event: Event) -> None:
        """Hear which version the registry has activated, and what a mirror has shown of a target."""
        if isinstance(event, VersionActivated):
            await self._stepper.on_activated(event)
        elif isinstance(event, MirrorGraduated):
            await self._stepper.on_graduated(event)

    @hookimpl
    def status(self) -> Status:
        """Say where the experiments stand, for people and for other plugins."""
        rollouts = list(self._engine.rollouts.values())
        complaints = [text for (name, _), text in self._complaints.items() if name in self._engine.rollouts]
        problems = [*complaints, *self._engine.problems()]
        counts = Counter(str(rollout.phase).replace("_", " ") for rollout in rollouts)
        text = ", ".join(f"{count} {phase}" for phase, count in sorted(counts.items())) or "no experiments"
        return Status(
            ok=not problems,
            summary=f"{text}; {problems[0]}" if problems else text,
            details={
                "stepping": self._stepper.leading,
                "problems": problems,
                "experiments": [summary(rollout) for rollout in rollouts],
            },
        )

    @hookimpl
    def routes(self) -> Sequence[BaseRoute]:
        """Offer the admin routes."""
        # The first moment at which all plugins have started, and only then their statuses, and so their order, are known.
        self._engine.warn_of_order()
        return Admin(self._engine).routes()

    def _entry(self, labels: Mapping[str, str]) -> Entry | None:
        # Another plugin may have an experiment label of its own; the stage is only ever ours.
        return self._engine.entries.get(labels.get(LABEL_EXPERIMENT, "")) if LABEL_STAGE in labels else None

    def _observe(self, attempt: Attempt) -> None:
        # Only the first attempt counts: whether there are retries depends on how it ended.
        if attempt.number != 1 or (entry := self._entry(attempt.labels)) is None:
            return
        if entry.serves(attempt.labels[LABEL_ARM], attempt):
            self._note(entry, attempt.labels, metrics.observe(attempt))

    def _note(self, entry: Entry, labels: Mapping[str, str], buckets: Mapping[MetricName, int]) -> None:
        if buckets:
            self._engine.observer.note(entry.experiment.name, labels[LABEL_STAGE], labels[LABEL_ARM], buckets)


plugin: Final = PluginInfo(
    name="canary",
    config=CanaryConfig,
    factory=CanaryPlugin,
    summary="A/B experiments and staged rollouts that roll themselves back.",
    commands="pointsman_canary.commands:canary",
)
