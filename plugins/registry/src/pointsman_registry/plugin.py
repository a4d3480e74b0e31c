"""The registry as a plugin: only wiring."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from pointsman.plugin import PluginInfo, Services
from pointsman.specs import hookimpl
from pointsman.types import ActivationRequested, Attempt, Denial, Event, Route, Status

from .api import Api
from .config import RegistryConfig
from .meter import Meter
from .registry import Registry, is_target
from .tally import sample, serves

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

    A plugin earlier in the list can ask for a version of its own choice with the route label ``version_id``; one that
    is not a version of the name is ignored, and the labels then name the version that is really used.

    Args:
        config: Its section of the configuration.
    """

    def __init__(self, config: RegistryConfig) -> None:
        self._config = config
        self._services: Services
        self._registry: Registry
        self._meter: Meter

    @hookimpl
    async def startup(self, services: Services) -> None:
        """Read the store, register the configuration's versions, keep up with other workers."""
        self._services = services
        self._registry = Registry(services)
        self._meter = Meter(services.store, services.new_id)
        await self._registry.refresh()
        await self._registry.seed(self._config.versions)
        services.tasks.every(self._config.poll_interval_s, self._poll, name="poll")
        services.tasks.every(self._config.metrics_interval_s, self._meter.hand_in, name="metrics")

    @hookimpl
    async def shutdown(self) -> None:
        """Hand in what has been measured."""
        await self._meter.hand_in()

    @hookimpl
    async def pre_route(self, route: Route) -> Route | Denial | None:
        """Resolve a registered name; leave every other one alone."""
        name = route.target
        state = self._registry.state
        if name not in state.active:
            return None
        version = state.active[name]
        wanted = state.versions.get(route.labels.get(LABEL_ID, ""))
        if wanted is not None and wanted.name == name:
            version = wanted
        if version is None:
            return Denial(
                status=503,
                code="no_active_version",
                type="server_error",
                param="model",
                message=f"The model {name!r} has no active version at present; an operator has to activate one.",
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
        return route.to(version.path).with_labels(**labels).with_headers({HEADER: version.version})

    @hookimpl
    def post_response(self, attempt: Attempt) -> None:
        """Count an attempt that succeeded."""
        self._observe(attempt)

    @hookimpl
    def on_error(self, attempt: Attempt) -> None:
        """Count an attempt that did not succeed."""
        self._observe(attempt)

    @hookimpl
    async def on_event(self, event: Event) -> None:
        """Activate what another plugin asks for."""
        if isinstance(event, ActivationRequested):
            await self._registry.activate(event.version_id, event.who, event.reason, name=event.name)

    @hookimpl
    def status(self) -> Status:
        """Say what is served, and what stands in the way."""
        state = self._registry.state
        age_s = self._services.clock.now() - self._registry.read_at
        problems = self._registry.problems()
        if age_s > _STALE_S:
            problems.append(f"the store was last read {age_s:.0f} s ago; changes made by others are not seen")
        summary = f"{_counted(len(state.versions), 'version')} of {_counted(len(state.active), 'model')}"
        return Status(
            ok=not problems,
            summary=f"{summary}; {problems[0]}" if problems else summary,
            details={
                "active": {name: version.id if version else None for name, version in state.active.items()},
                "paths": {version.id: version.path for version in state.versions.values()},
                "problems": problems,
                "metrics_waiting": self._meter.waiting,
                "metrics_dropped": self._meter.dropped,
            },
        )

    @hookimpl
    def routes(self) -> Sequence[BaseRoute]:
        """Offer the admin routes."""
        return Api(self._registry, self._meter, self._services.clock).routes()

    async def _poll(self) -> None:
        """Keep up with other workers; register the configuration's versions again when the store has been emptied."""
        await self._registry.refresh()
        if self._config.versions and self._registry.never_written:
            log.error("the registry's store has been emptied; the configuration's versions are registered again")
            await self._registry.seed(self._config.versions)

    def _observe(self, attempt: Attempt) -> None:
        version = self._registry.state.versions.get(attempt.labels.get(LABEL_ID, ""))
        if version is None or not serves(version.path, attempt.deployment):
            return
        if (seen := sample(attempt, self._services.clock.now())) is not None:
            self._meter.note(version.id, seen)


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


plugin: Final = PluginInfo(
    name="registry",
    config=RegistryConfig,
    factory=RegistryPlugin,
    summary="Versions of a model: clients call a name, the gateway serves the active version.",
    commands="pointsman_registry.commands:registry",
)
