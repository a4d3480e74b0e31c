"""The instances of plugins that run in this worker, and what belongs to each: tasks, listed names, routes, timings.

A reload replaces an instance by another one of the same plugin; the former one is put aside, and ends once no request needs
it, or is put back when the new one cannot begin.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from starlette.routing import BaseRoute

from ..errors import PluginLoadError, PointsmanError
from ..plugin import Catalog, Clock, Services
from .discovery import Loaded
from .implementations import Impl
from .isolation import Faults, Timing, bounded, let_through
from .listed_names import InstanceCatalog
from .reloading import Instance
from .runtime import TaskGroup

STARTUP_DEADLINE_S: Final = 30.0
SHUTDOWN_DEADLINE_S: Final = 5.0
INHERIT_DEADLINE_S: Final = 5.0


class Instances:
    """Starts, replaces and ends instances.

    Args:
        clock: Time.
        faults: Where what plugins do wrong is counted.
        catalog: Returns the gateway's catalog.
        services: Returns what a plugin is offered, by its name.
        since: Where the intervals of periodic work begin, as ``TaskGroup`` has it.
    """

    def __init__(
        self,
        clock: Clock,
        faults: Faults,
        catalog: Callable[[], Catalog],
        services: Callable[[str], Services],
        since: float,
    ) -> None:
        self._clock = clock
        self._faults = faults
        self._catalog = catalog
        self._services = services
        self._since = since
        self._listed_by: dict[str, InstanceCatalog] = {}
        #: Every hook that was ever called, also of plugins that a reload has replaced: no sum falls.
        self.timings: dict[tuple[str, str], Timing] = {}
        self.tasks: dict[str, TaskGroup] = {}
        self.catalogs: dict[str, InstanceCatalog] = {}
        self.routes: dict[str, Sequence[BaseRoute]] = {}
        #: How often each plugin has been built.
        self.built: Counter[str] = Counter()
        #: Instances that end with the last request that began with them.
        self.leaving: list[Instance] = []
        self.started: set[str] = set()

    def tasks_of(self, plugin: str) -> TaskGroup:
        """Return the background work of a plugin's present instance."""
        return self.tasks.setdefault(plugin, TaskGroup(plugin, self._clock, self._faults, self._since))

    def catalog_of(self, plugin: str) -> InstanceCatalog:
        """Return the catalog in which a plugin's present instance lists names."""
        return self.catalogs.setdefault(plugin, InstanceCatalog(self._catalog(), self._listed_by))

    def collect_routes(self, plugin: Loaded) -> None:
        """Take up the admin routes of an instance that has been started, if it has such.

        Raises:
            PluginLoadError: it failed.
        """
        if "routes" in plugin.hooks:
            self.routes[plugin.name] = _routes(plugin)

    async def give_up(self, plugin: str) -> None:
        """End the background work of an instance that could not be started."""
        if (tasks := self.tasks.pop(plugin, None)) is not None:
            await tasks.cancel()

    def measured(self, impl: Impl) -> Impl:
        """Return an implementation whose calls are added to those of the plugin's former instances."""
        timing = self.timings.setdefault((impl.plugin, impl.hook), impl.timing)
        return impl if impl.timing is timing else replace(impl, timing=timing)

    async def start_up(self, plugin: Loaded, impl: Impl | None) -> None:
        """Start an instance of a plugin.

        Raises:
            PluginLoadError: it failed.
        """
        self.built[plugin.name] += 1
        if impl is not None:
            try:
                await bounded(impl(self._services(plugin.name)), STARTUP_DEADLINE_S, impl.timing)
            except BaseException as err:
                let_through(err)
                what = f"took longer than {STARTUP_DEADLINE_S:.0f} s" if isinstance(err, TimeoutError) else f"{err}"
                kind = "" if isinstance(err, PointsmanError | TimeoutError) else f"{type(err).__name__}: "
                raise PluginLoadError(plugin.name, f"its start-up failed: {kind}{what}") from err
        self.started.add(plugin.name)

    def put_aside(self, plugin: Loaded) -> Instance:
        """Return a plugin's present instance, so that another one can take its place."""
        name = plugin.name
        return Instance(
            plugin,
            tasks=self.tasks.pop(name, None),
            catalog=self.catalogs.pop(name, None),
            routes=self.routes.pop(name, None),
        )

    def put_back(self, instance: Instance) -> None:
        """Let an instance that was put aside be the present one again."""
        name = instance.plugin.name
        if instance.tasks is not None:
            self.tasks[name] = instance.tasks
        if instance.routes is not None:
            self.routes[name] = instance.routes
        if instance.catalog is not None:
            self.catalogs[name] = instance.catalog
            instance.catalog.restore()

    async def begin(self, new: Sequence[Loaded], begun: list[Instance], former: Mapping[str, Instance]) -> None:
        """Start new instances.

        Args:
            new: The plugins, in order.
            begun: Gets each instance that has begun to start, also one that fails.
            former: The instances that they replace, by name.

        Raises:
            PluginLoadError: one of them failed.
        """
        for plugin in new:
            await self._begin_instance(plugin, begun)
        # Only now, when nothing else can fail: what a plugin gives away, it does not go on with alone.
        for plugin in new:
            await self._inherit(plugin, former.get(plugin.name))

    async def _begin_instance(self, plugin: Loaded, begun: list[Instance]) -> None:
        impl = plugin.hooks.get("startup")
        try:
            await self.start_up(plugin, None if impl is None else self.measured(impl))
            self.collect_routes(plugin)
        finally:
            begun.append(Instance(plugin, self.tasks.get(plugin.name), self.catalogs.get(plugin.name)))
        for hook in plugin.hooks.values():
            self.measured(hook).timing.succeeded()  # what its predecessor failed at is no fault of this one

    async def _inherit(self, plugin: Loaded, former: Instance | None) -> None:
        impl = plugin.hooks.get("inherit")
        if impl is None or former is None or type(former.plugin.instance) is not type(plugin.instance):
            return
        try:
            await bounded(self.measured(impl)(former.plugin.instance), INHERIT_DEADLINE_S, impl.timing)
        except BaseException as err:  # noqa: BLE001  # it starts without what it would have inherited
            let_through(err)
            self._faults.record(plugin.name, "inherit", None, err)

    async def end_leaving(self, instance: Instance) -> None:
        """End an instance that leaves, once: the worker's own end may come meanwhile, and waits."""
        async with instance.ending:
            if instance in self.leaving:
                try:
                    await self.end(instance)
                finally:
                    self.leaving.remove(instance)

    async def end(self, instance: Instance) -> None:
        """Shut an instance down and end all that belongs to it."""
        if (impl := instance.plugin.hooks.get("shutdown")) is not None:
            await self.shut_down(self.measured(impl))
        if instance.tasks is not None:
            await instance.tasks.cancel()
        if instance.catalog is not None:
            instance.catalog.withdraw()

    async def shut_down(self, impl: Impl) -> None:
        """Run a plugin's ``shutdown``; what goes wrong is counted."""
        try:
            await bounded(impl.call(), SHUTDOWN_DEADLINE_S, impl.timing)
        except BaseException as err:  # noqa: BLE001  # the others still shut down
            let_through(err)
            self._faults.record(impl.plugin, "shutdown", None, err)


def _routes(plugin: Loaded) -> list[BaseRoute]:
    """Return a plugin's admin routes.

    Raises:
        PluginLoadError: it failed.
    """
    try:
        routes: list[BaseRoute] = list(plugin.hooks["routes"].call())
    except BaseException as err:
        let_through(err)
        raise PluginLoadError(plugin.name, f"its routes failed: {type(err).__name__}: {err}") from err
    for route in routes:
        if not isinstance(route, BaseRoute):
            raise PluginLoadError(
                plugin.name, f"its routes contain {type(route).__name__}, not a route of starlette.routing"
            )
    return routes
