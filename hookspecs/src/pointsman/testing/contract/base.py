"""What the contract's tests have in common: the plugin under test, a worker for it, and how a violation is said."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Final, TypeVar

import pytest

from ...host.implementations import Impl
from ...host.watchdog import OUTSIDE
from ...plugin import PluginConfig, PluginInfo
from ...specs import hookimpl
from ...types import Denial, Deployment, Identity, RequestContext, Route
from ..drive import Result
from ..fakes import DEFAULT_DEPLOYMENTS
from ..harness import BODY, IDENTITY, Harness, Plugin
from ..leaks import no_leaks
from ..script import breaks, cancel, disconnect, error, ok
from .unawaited import unawaited
from .watching import LoopWatch

T = TypeVar("T")


class ContractViolation(AssertionError):
    """The plugin breaks the contract; the message says how."""


def check(condition: object, message: str) -> None:
    """Raise unless the condition holds.

    Raises:
        ContractViolation: it does not.
    """
    if not condition:
        raise ContractViolation(message)


class _Denier:
    """Denies every request that reaches it."""

    def __init__(self, config: PluginConfig) -> None:
        """Need nothing."""

    @hookimpl
    async def pre_route(self, ctx: RequestContext, route: Route) -> Denial:  # noqa: ARG002  # whatever it is
        """Deny."""
        return Denial(status=403, code="not_today", message="This request is denied on purpose.")


DENIER: Final = PluginInfo(name="contract-denier", config=PluginConfig, factory=_Denier)


@dataclass(frozen=True, slots=True)
class Scenario:
    """A way in which a request can end.

    Attributes:
        name: For people.
        request: Arguments of ``Harness.request``.
        denied: A plugin later in the list denies it.
    """

    name: str
    request: Mapping[str, Any] = field(default_factory=dict)
    denied: bool = False

    @property
    def after(self) -> tuple[Plugin, ...]:
        """The plugins that come after the one under test."""
        return (DENIER,) if self.denied else ()


SCENARIOS: Final = (
    Scenario("success", {"script": ok()}),
    Scenario("stream", {"script": ok(latency_s=0.2, piece_s=0.05), "stream": True}),
    Scenario("disconnect", {"script": disconnect(2), "stream": True}),
    Scenario("disconnect before the first piece", {"script": disconnect(0), "stream": True}),
    Scenario("disconnect from a plain request", {"script": disconnect()}),
    Scenario("error", {"script": error(500)}),
    Scenario("error mid-stream", {"script": breaks(2), "stream": True}),
    Scenario("refused by the provider", {"script": error(400)}),
    Scenario("retry", {"script": [error(429, retry_after_s=1.0), ok()]}),
    Scenario("fallback", {"script": [error(503), error(503), error(503), ok()]}),
    Scenario("cancelled", {"script": cancel(1), "stream": True}),
    Scenario("no usage", {"script": ok(usage=None)}),
    Scenario("denied by a later plugin", denied=True),
)


def described(h: Harness, plugin: str | None = None) -> str:
    """Return what has failed, how often and where: of a plugin, or of all of them."""
    faults = h.host.faults
    return "; ".join(
        f"{name}.{hook} ({count} times): {faults.logged.get((name, hook), 'the log says why')}"
        for (name, hook), count in faults.counts.items()
        if plugin in {None, name}
    )


def top_package(found: Any) -> str:
    """Return the top-level package of a class or function."""
    return str(found.__module__).partition(".")[0]


class Judged:
    """Runs tests of an author's code, each in an event loop of its own, whatever the author's pytest does with async tests."""

    held_s: ClassVar[float] = 0.5

    #: What runs outside the hooks.
    outside: ClassVar[str] = OUTSIDE

    #: Why the tests that follow are skipped: the code under test has held the event loop.
    held: ClassVar[str] = ""

    def under_test(self) -> tuple[str, frozenset[str]]:
        """Return the name of the plugin that runs the code, and the top-level packages of the code."""
        raise NotImplementedError

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a test; what does not give the loop back is ended and named, and so is what is not awaited.

        Raises:
            ContractViolation: a hook held the event loop for ``held_s``, or a coroutine was never awaited.
        """
        suite = type(self)
        if suite.held:
            work.close()
            pytest.skip(f"not run, since {suite.held}")
        name, packages = self.under_test()
        watch = LoopWatch(self.held_s, dict.fromkeys(packages, name), self.outside)

        async def watched() -> T:
            with watch.watching():
                return await work

        with unawaited(name, packages) as lost:
            try:
                result = asyncio.run(watched())
            except KeyboardInterrupt:
                raise
            except BaseException as err:
                if watch.held:
                    raise self._violation(watch.held) from err
                raise
        if watch.held:
            raise self._violation(watch.held)
        check(not lost, "; ".join(dict.fromkeys(lost)))
        return result

    def _violation(self, held: str) -> ContractViolation:
        type(self).held = held
        return ContractViolation(
            f"{held}, and was ended; move the work to a thread (asyncio.to_thread), or say how long it may take: held_s = ..."
        )


class ContractBase(Judged):
    """The plugin under test. See ``ContractSuite``."""

    info: ClassVar[PluginInfo]
    config: ClassVar[Mapping[str, Any]] = {}
    bad_configs: ClassVar[Sequence[tuple[Mapping[str, Any], str]]] = ()
    deployments: ClassVar[Sequence[Deployment]] = DEFAULT_DEPLOYMENTS
    model: ClassVar[str] = "chat"
    identity: ClassVar[Identity] = IDENTITY
    api_key: ClassVar[str | None] = None
    headers: ClassVar[Mapping[str, str]] = {}
    body: ClassVar[Mapping[str, object]] = BODY
    keeps_request_keys: ClassVar[bool] = False
    background_s: ClassVar[float] = 0.0
    routes_without_body: ClassVar[Sequence[str]] = ()
    streaming_routes: ClassVar[Sequence[str]] = ()

    def under_test(self) -> tuple[str, frozenset[str]]:
        """Return the plugin's name and its package."""
        return self.info.name, frozenset({top_package(self.info.factory)})

    async def prepare(self, h: Harness) -> None:
        """Bring the plugin into the state in which it does its work: register, create, activate what it needs."""

    def make(
        self, *, config: Mapping[str, Any] | None = None, after: Sequence[Plugin] = (), **arguments: Any
    ) -> Harness:
        """Return a worker with the plugin, not yet started."""
        section = self.config if config is None else config
        return Harness([(self.info, section), *after], deployments=self.deployments, **arguments)

    @contextlib.asynccontextmanager
    async def worker(self, **arguments: Any) -> AsyncIterator[Harness]:
        """Run a prepared worker, and check that it leaves nothing behind."""
        async with no_leaks(), self.make(**arguments) as h:
            await self.prepare(h)
            yield h

    async def ask(self, h: Harness, **changes: Any) -> Result:
        """Make a request that the plugin admits."""
        groups = list(dict.fromkeys(deployment.group for deployment in self.deployments))
        arguments: dict[str, Any] = {
            "model": self.model,
            "identity": self.identity,
            "api_key": self.api_key,
            "headers": self.headers,
            "body": self.body,
            "fallbacks": groups[1:],
        }
        return await h.request(**{**arguments, **changes})

    def need(self, hook: str) -> None:
        """Skip the test when the plugin has no such hook."""
        if not hasattr(self.info.factory(self.info.config.model_validate(dict(self.config))), hook):
            pytest.skip(f"the plugin {self.info.name!r} has no {hook}")

    def check_healthy(self, h: Harness, when: str) -> None:
        """Check that no hook or task of the plugin has failed."""
        name = self.info.name
        faults = h.host.faults.of(name)
        check(not faults, f"{when}: hooks of {name!r} failed: {described(h, name)}")

    def hooks(self, h: Harness) -> dict[str, Callable[..., Any]]:
        """Return the plugin's hooks, to call with all arguments of their specifications."""
        loaded = next(loaded for loaded in h.host.plugins.loaded if loaded.name == self.info.name)
        return {hook: lambda *args, impl=impl: impl.call(*args[impl.takes]) for hook, impl in loaded.hooks.items()}

    def rewire(self, h: Harness, hook: str, call: Callable[..., Any]) -> None:
        """Let the host call something else instead of the plugin's hook, with all arguments of the specification."""

        def other(impl: Impl) -> Impl:
            return replace(impl, call=call, takes=slice(None))

        hooks = h.host.hooks
        found = getattr(hooks, hook)
        name = self.info.name
        if isinstance(found, Mapping):
            rewired: Any = {n: other(impl) if n == name else impl for n, impl in found.items()}
        else:
            rewired = tuple(other(impl) if impl.plugin == name else impl for impl in found)
        # In place: the journal holds the same object.
        object.__setattr__(hooks, hook, rewired)
