"""Wires the plugin: names in, versions out."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from pointsman.events import ActivationRequested
from pointsman.plugin import PluginInfo, Services
from pointsman.specs import hookimpl
from pointsman.types import Attempt, Denial, Event, RequestContext, Route, Status, StoreEmptied

from .config import RegistryConfig
from .instruments import instrument
from .metrics import sample, serves
from .registry import Registry, is_target
from .repository import MetricsRepository
from .routes import Routes

if TYPE_CHECKING:
    from starlette.routing import BaseRoute

HEADER: Final = "x-pointsman-version"
LABEL_NAME: Final = "model_name"
LABEL_VERSION: Final = "version"
LABEL_ID: Final = "version_id"

_STALE_S: Final = 10.0

log: Final = logging.getLogger("pointsman.registry")


class RegistryPlugin:
    """Sends a request for a registered name to the active version of that name.

    A plugin earlier in the list can request a version with the route label ``version_id``; one that is not a version
    of the name is ignored, and the labels then name the version that is used.

    Args:
        config: Its section of the configuration.
    """

    def __init__(self, config: RegistryConfig) -> None:
        self._config = config
        self._services: Services
        self._registry: Registry
        self._metrics: MetricsRepository

    @hookimpl
    async def startup(self, services: Services) -> None:
        """Read the store, register the configuration's versions, begin to follow other workers."""
        self._services = services
        self._registry = Registry(services)
        self._metrics = MetricsRepository(services.store, services.new_id)
        await self._registry.refresh()
        await self._registry.seed(self._config.versions)
        instrument(services.meter, lambda: self._registry.state)
        services.tasks.every(self._config.poll_interval_s, self._poll, name="poll")
        services.tasks.every(self._config.metrics_interval_s, self._metrics.flush, name="metrics")

    @hookimpl
    async def shutdown(self) -> None:
        """Flush the live metrics."""
        await self._metrics.flush()

    @hookimpl
    async def pre_route(self, route: Route) -> Route | Denial | None:
        """Resolve a registered name; leave every other one unchanged."""
        name = route.target
        state = self._registry.state
        if name not in state.active:
            return None
        version = state.active[name]
        requested = state.versions.get(route.labels.get(LABEL_ID, ""))
        if requested is not None and requested.name == name:
            version = requested
        if version is None:
            return Denial(
                status=503,
                code="no_active_version",
                type="server_error",
                param="model",
                message=f"The model {name!r} has no active version; an operator has to activate one.",
            )
        if not is_target(self._services.catalog, version.path):
            return Denial(
                status=503,
                code="version_path_missing",
                type="server_error",
                param="model",
                message=f"Version {version.version} of the model {name!r} cannot be served: its path is no longer in "
                "the gateway's configuration; an operator has to activate another version.",
            )
        labels = {LABEL_NAME: name, LABEL_VERSION: version.version, LABEL_ID: version.id}
        routed = route.to(version.path).with_labels(**labels)
        # A fallback to the name itself is answered by the active version, and the header names what has answered.
        for answering in (state.active[name], version):
            if answering is not None:
                routed = routed.with_target_headers(answering.path, {HEADER: answering.version})
        return routed

    @hookimpl
    def post_response(self, ctx: RequestContext, attempt: Attempt) -> None:
        """Count an attempt that succeeded; reading, or opening a websocket, is none of the version's work."""
        if ctx.generates:
            self._observe(attempt)

    @hookimpl
    def on_error(self, attempt: Attempt) -> None:
        """Count an attempt that did not succeed."""
        self._observe(attempt)

    @hookimpl
    async def on_event(self, event: Event) -> None:
        """Activate the version that another plugin requests; register the configuration's when the store has lost all."""
        if isinstance(event, ActivationRequested):
            await self._registry.activate(event.version_id, event.who, event.reason, name=event.name)
        elif isinstance(event, StoreEmptied):
            await self._registry.refresh()
            await self._registry.seed(self._config.versions)

    @hookimpl
    def status(self) -> Status:
        """Report what is served, and what prevents it."""
        state = self._registry.state
        age_s = self._services.clock.now() - self._registry.read_at
        problems = self._registry.problems()
        if age_s > _STALE_S:
            problems.append(f"the store was last read {age_s:.0f} s ago; changes by other workers are not visible")
        summary = f"{_counted(len(state.versions), 'version')} of {_counted(len(state.active), 'model')}"
        return Status(
            ok=not problems,
            summary=f"{summary}; {problems[0]}" if problems else summary,
            details={
                "active": {name: version.id if version else None for name, version in state.active.items()},
                "previous": {name: (state.name_state(name).earlier or (None,))[-1] for name in state.active},
                "paths": {version.id: version.path for version in state.versions.values()},
                "names": {version.id: version.name for version in state.versions.values()},
                "problems": problems,
                "metrics_waiting": self._metrics.waiting,
                "metrics_dropped": self._metrics.dropped,
            },
        )

    @hookimpl
    def routes(self) -> Sequence[BaseRoute]:
        """Return the admin routes."""
        return Routes(self._registry, self._metrics, self._services.clock).routes()

    async def _poll(self) -> None:
        """Follow other workers; register the configuration's versions again when the store has been emptied."""
        await self._registry.refresh()
        if self._config.versions and self._registry.never_written:
            log.error("the registry's store has been emptied; the configuration's versions are registered again")
            await self._registry.seed(self._config.versions)

    def _observe(self, attempt: Attempt) -> None:
        version = self._registry.state.versions.get(attempt.labels.get(LABEL_ID, ""))
        if version is None or not serves(version.path, attempt.deployment):
            return
        if (taken := sample(attempt, self._services.clock.now())) is not None:
            self._metrics.record(version.id, taken)


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


plugin: Final = PluginInfo(
    name="registry",
    config=RegistryConfig,
    factory=RegistryPlugin,
    summary="Versions of a model: clients call a name, the gateway serves the active version.",
    commands="pointsman_registry.commands:registry",
    replaces_labels=(LABEL_ID,),
    requires=">=0.1,<0.2",
)
