"""What a plugin is, and what the host offers it.

A plugin distribution has one entry point in the group ``pointsman`` that names a ``PluginInfo``::

    [project.entry-points.pointsman]
    registry = "pointsman_registry.plugin:plugin"

Importing it must have no effect beyond defining things. The host builds the plugin from its section of the
configuration, calls ``startup(services)``, and from then on only hooks.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field

from .errors import nearest
from .types import (
    Answer,
    Attempt,
    Chunk,
    Deployment,
    Event,
    Price,
    RequestContext,
    Signal,
    Status,
    UpstreamRequest,
    UpstreamResponse,
)

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

    from .store.base import StateStore

OnFailure = Literal["deny", "allow"]


class PluginConfig(BaseModel):
    """Base of every plugin's configuration. Unknown keys are errors.

    The fields here are the host's and every plugin has them. A plugin whose failure must not let requests pass
    overrides the default of ``on_failure``.
    """

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    on_failure: OnFailure = Field(
        default="allow",
        description="When this plugin itself fails before a request or an attempt: 'deny' it or 'allow' it.",
    )
    optional: bool = Field(
        default=False,
        description="When this plugin cannot be loaded: true leaves it out and reports it, false stops the start.",
    )
    deadline_ms: int | None = Field(
        default=None,
        ge=1,
        le=60_000,
        description="Longest time one of its pre_route or before_attempt calls may take, in milliseconds.",
    )


@dataclass(frozen=True, slots=True)
class PluginInfo:
    """A plugin, as its entry point names it.

    Attributes:
        name: The name in the configuration and in URLs: lower-case letters, digits, hyphens.
        config: Its configuration model.
        factory: Builds the plugin object from the validated configuration. No I/O.
        summary: One line for ``pointsman plugins list``.
        commands: ``"package.module:group"``, a click group for ``pointsman <name> ...``, or None.
    """

    name: str
    config: type[PluginConfig]
    factory: Callable[..., object]
    summary: str = ""
    commands: str | None = None


class Clock(Protocol):
    """Time, so that a test can stand still."""

    def now(self) -> float:
        """Return the wall clock in Unix seconds."""

    def monotonic(self) -> float:
        """Return a clock in seconds that never goes back."""

    async def sleep(self, seconds: float) -> None:
        """Wait."""


class Tasks(Protocol):
    """Background work that the host cancels at shutdown; an error in it is logged and counted, never lost."""

    def spawn(self, work: Coroutine[object, object, object], *, name: str) -> None:
        """Run a coroutine in the background."""

    def every(self, interval_s: float, work: Callable[[], Awaitable[object]], *, name: str) -> None:
        """Call ``work`` now and then again ``interval_s`` seconds after each call has ended, until shutdown.

        A call that fails is logged and counted, and the next one comes at its time.
        """


class Signals(Protocol):
    """The latest signal per deployment, in this worker's memory."""

    def get(self, deployment_id: str) -> Signal | None:
        """Return the latest signal, or None."""

    def put(self, signal: Signal) -> None:
        """Replace the deployment's signal."""

    def forget(self, deployment_id: str) -> None:
        """Remove the deployment's signal; harmless when there is none. Whoever puts signals keeps them bounded so."""

    def all(self) -> Mapping[str, Signal]:
        """Return all of them by deployment id, read-only."""


class Catalog(Protocol):
    """What the gateway's configuration can serve. Read it when needed: it changes when the gateway is reconfigured."""

    def deployments(self, target: str | None = None) -> Sequence[Deployment]:
        """Return the deployments of a model group or the one with this id; all of them for None; empty if unknown."""

    def is_group(self, target: str) -> bool:
        """Say whether the target is a model group."""

    def list_model(self, name: str, target: str | None, *, info: Mapping[str, object] | None = None) -> None:
        """Show ``name`` in ``GET /v1/models`` as an alias of ``target``; None stops showing it.

        Args:
            name: What clients ask for.
            target: A model group, a deployment id, or None.
            info: More fields for its entry, as JSON.

        Raises:
            Conflict: when the gateway's configuration itself has a model group of this name.
        """


def unknown_target(target: str, catalog: Catalog) -> str | None:
    """Return what is wrong with a target of the configuration, or None when the gateway has it."""
    if catalog.deployments(target):
        return None
    known = {name for each in catalog.deployments() for name in (each.group, each.id)}
    return f"the gateway has no model group or deployment {target!r}{nearest(target, known)}"


class Prices(Protocol):
    """Unit prices from the gateway's cost map."""

    def get(self, deployment: Deployment) -> Price:
        """Return the unit prices of a deployment; fields are None where the map does not know."""


class Tokenizer(Protocol):
    """Token counts before the provider has counted."""

    def count(self, model: str, body: Mapping[str, object]) -> int:
        """Count the prompt tokens of a request; an approximation for models whose tokenizer is not public.

        Takes about a microsecond a word: keep it off the request path for long prompts.
        """


class UpstreamCall(Protocol):
    """One running attempt that a plugin started. Use either ``response`` or ``chunks``, once."""

    @property
    def attempt(self) -> Attempt:
        """The attempt: open while it runs, closed afterwards."""

    @property
    def answer(self) -> Answer | None:
        """What the model said, put together when it is asked for; None unless the call has ended with outcome ``ok``."""

    async def response(self) -> UpstreamResponse:
        """Wait for the whole answer of a plain call.

        Raises:
            UpstreamError: the provider failed, refused or did not answer in time.
        """

    def chunks(self) -> AsyncIterator[Chunk]:
        """Read the answer of a streamed call; ends when the stream does.

        Raises:
            UpstreamError: while iterating, as above.
        """

    async def cancel(self) -> None:
        """End the attempt as cancelled and close its connection. Harmless when it has ended."""


class Upstream(Protocol):
    """Calls of our own through the gateway: with its credentials, cooldowns and cost, and with our spans."""

    def start(self, request: UpstreamRequest) -> UpstreamCall:
        """Start an attempt at once. It is cancelled when its parent request ends first, unless it is a mirror.

        Raises:
            UpstreamError: the target is unknown.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """Everything the host offers a plugin, handed over in ``startup``.

    Attributes:
        plugin: The plugin's own name.
        store: Durable state; keys are the plugin's own, the host adds a prefix.
        clock: Time.
        tracer: For spans of the plugin's own; inside a hook the hook's span is the current one.
        tasks: Background work.
        random: Random choices.
        new_id: Returns a new unique id, 32 hexadecimal digits, in order of time.
        signals: The latest signal per deployment.
        catalog: What the gateway can serve.
        prices: Unit prices.
        tokenizer: Token counts.
        upstream: Calls of our own.
        publish: Announce an event to the other plugins of this worker.
        statuses: The status of every plugin, by name.
        worker: A name for this worker process, unique among all that share the store.
        base: The directory that relative paths of the configuration start from.
    """

    plugin: str
    store: StateStore
    clock: Clock
    tracer: Tracer
    tasks: Tasks
    random: random.Random
    new_id: Callable[[], str]
    signals: Signals
    catalog: Catalog
    prices: Prices
    tokenizer: Tokenizer
    upstream: Upstream
    publish: Callable[[Event], None]
    statuses: Callable[[], Mapping[str, Status]]
    worker: str
    base: Path = Path()


__all__ = [
    "Catalog",
    "Clock",
    "OnFailure",
    "PluginConfig",
    "PluginInfo",
    "Prices",
    "RequestContext",
    "Services",
    "Signals",
    "Tasks",
    "Tokenizer",
    "Upstream",
    "UpstreamCall",
]
