"""The canary as a plugin: only wiring."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from pointsman.events import MirrorGraduated, VersionActivated
from pointsman.plugin import PluginInfo, Services
from pointsman.specs import hookimpl
from pointsman.types import Event, Outcome, RequestContext, Route, Settlement, Status, StoreEmptied

from . import metrics, views
from .config import CanaryConfig
from .coordinator import Coordinator
from .instruments import instrument
from .observations import Observation
from .routes import Admin
from .routing import LABEL_ARM, LABEL_EXPERIMENT, LABEL_STAGE, Entry, Misplaced
from .stepper import Stepper
from .webhooks import Webhooks

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from starlette.routing import BaseRoute

    from .rollout import Rollout


class CanaryPlugin:
    """Assigns requests to the arms of experiments, and lets the experiments proceed or roll back.

    Args:
        config: Its section of the configuration.
    """

    def __init__(self, config: CanaryConfig) -> None:
        self._config = config
        self._coordinator: Coordinator
        self._stepper: Stepper
        self._webhooks: Webhooks
        #: Problems that requests have revealed, by experiment and arm.
        self._revealed: dict[tuple[str, str], str] = {}

    @hookimpl
    async def startup(self, services: Services) -> None:
        """Begin or continue the experiments."""
        self._coordinator = Coordinator(self._config, services)
        self._webhooks = await Webhooks.open(self._config.webhooks)
        self._stepper = Stepper(self._coordinator, self._webhooks)
        await self._coordinator.start()
        instrument(services.meter, self._experiments)
        services.tasks.every(self._config.tick_s, self._stepper.tick, name="tick")

    @hookimpl
    async def shutdown(self) -> None:
        """Flush the observations, and let another worker step."""
        try:
            await self._coordinator.flush()
            await self._stepper.resign()
        finally:
            await self._webhooks.close()

    @hookimpl
    async def pre_route(self, ctx: RequestContext, route: Route) -> Route | None:
        """Route the request to its arm of the first experiment that it takes part in."""
        for entry in self._coordinator.table.get(ctx.model, ()):
            self._coordinator.stirred = True
            try:
                routed = entry.route(ctx, route)
            except Misplaced as err:
                self._revealed[entry.experiment.name, ""] = str(err)
                continue
            if routed is not None:
                return routed
        return None

    @hookimpl
    async def settle(self, settlement: Settlement) -> None:
        """Count a request for its arm, as its client saw it; once, however often it is settled."""
        labels = settlement.labels
        if (entry := self._entry(labels)) is None:
            return
        name, arm = entry.experiment.name, labels[LABEL_ARM]
        if not entry.honoured(arm, labels):
            if settlement.outcome is not Outcome.DENIED:
                self._revealed[name, arm] = (
                    f"{name}: the registry does not serve the version of the arm {arm!r}; register it"
                )
            return
        self._revealed.pop((name, arm), None)
        own = entry.own_attempts(arm, settlement, self._coordinator.services.catalog)
        if buckets := metrics.observe(settlement, own):
            observation = Observation(labels[LABEL_STAGE], arm, int(settlement.finished_at), buckets)
            self._coordinator.observer.note_request(name, settlement.request_id, observation)

    @hookimpl
    async def on_event(self, event: Event) -> None:
        """Note which version the registry has activated, and the figures of a mirror that graduated.

        When the store has lost everything, the experiments of the configuration begin again.
        """
        if isinstance(event, VersionActivated):
            await self._stepper.on_activated(event)
        elif isinstance(event, MirrorGraduated):
            await self._stepper.on_graduated(event)
        elif isinstance(event, StoreEmptied):
            await self._coordinator.start()

    @hookimpl
    def status(self) -> Status:
        """Return the state of the experiments, for people and for other plugins."""
        rollouts = list(self._coordinator.rollouts.values())
        revealed = [text for (name, _), text in self._revealed.items() if name in self._coordinator.rollouts]
        problems = [*revealed, *self._coordinator.problems()]
        counts = Counter(str(rollout.phase).replace("_", " ") for rollout in rollouts)
        text = ", ".join(f"{count} {phase}" for phase, count in sorted(counts.items())) or "no experiments"
        return Status(
            ok=not problems,
            summary=f"{text}; {problems[0]}" if problems else text,
            details={
                "stepping": self._stepper.leading,
                "problems": problems,
                "experiments": [views.summary(rollout) for rollout in rollouts],
            },
        )

    @hookimpl
    def routes(self) -> Sequence[BaseRoute]:
        """Offer the admin routes."""
        # The first moment at which all plugins have started, and only then their statuses, and so their order, are known.
        self._coordinator.all_started = True
        self._coordinator.warn()
        return Admin(self._coordinator).routes()

    def _experiments(self) -> Iterable[Rollout]:
        return self._coordinator.rollouts.values()

    def _entry(self, labels: Mapping[str, str]) -> Entry | None:
        # Another plugin may have an experiment label of its own; the stage is only ever ours.
        return self._coordinator.entries.get(labels.get(LABEL_EXPERIMENT, "")) if LABEL_STAGE in labels else None


plugin: Final = PluginInfo(
    name="canary",
    config=CanaryConfig,
    factory=CanaryPlugin,
    summary="A/B experiments and staged rollouts that roll themselves back.",
    commands="pointsman_canary.commands:canary",
    requires=">=0.1,<0.2",
)
