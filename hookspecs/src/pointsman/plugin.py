"""What a plugin is, and what the host offers it.

A plugin distribution has one entry point in the group ``pointsman`` that names a ``PluginInfo``::

    [project.entry-points.pointsman]
    registry = "pointsman_registry.plugin:plugin"

Importing it must have no effect beyond defining things. The host builds the plugin from its section of the
configuration, calls ``startup(services)``, and from then on only hooks.
"""

from __future__ import annotations

import random
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, Protocol

from opentelemetry.metrics import CallbackOptions, Meter, NoOpMeter, Observation
from pydantic import Field

from .config import Section
from .errors import nearest
from .extensions import Extensions, extensions, load_extension, loaded
from .types import (
    Answer,
    Attempt,
    AttemptKind,
    Chunk,
    Deployment,
    Event,
    Price,
    RequestContext,
    Signal,
    Status,
    UpstreamRequest,
    UpstreamResponse,
    Usage,
)

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

    from .store.protocol import StateStore

OnFailure = Literal["deny", "allow"]


@dataclass(frozen=True, slots=True)
class Remark:
    """What a plugin has found out about something outside, for ``pointsman doctor``.

    Attributes:
        level: ``ok``, ``warning`` when it is probably a mistake, or ``failed`` when it cannot work.
        text: What is so, where, and what to do unless it is ok.
    """

    level: Literal["ok", "warning", "failed"]
    text: str


def _for_no_tenant(tenant: str) -> bool:  # noqa: ARG001  # whichever it is
    return False


@dataclass(frozen=True, slots=True)
class UnpricedModel:
    """A model for which a deployment may answer whose price the gateway does not know, as ``pointsman check`` finds it.

    Attributes:
        name: What requests ask for: a model group, an alias, or a deployment's id.
        group: The model group of that deployment: the same, or one that the gateway falls back to.
        is_deployment: Whether the name is a deployment's id.
        priced_for: Returns whether a plugin's section sets its price for the requests of a tenant, as billing's ``prices``
            does.
    """

    name: str
    group: str
    is_deployment: bool = False
    priced_for: Callable[[str], bool] = field(default=_for_no_tenant, compare=False, repr=False)

    def __str__(self) -> str:
        if self.is_deployment or self.name == self.group:
            return repr(self.name)
        return f"{self.group!r} (which may answer for {self.name!r})"


class PluginConfig(Section):
    """Base of every plugin's configuration. Unknown keys are errors.

    The fields here are the host's and every plugin has them. A plugin whose failure must not let requests pass
    overrides the default of ``on_failure``.
    """

    on_failure: OnFailure = Field(
        default="allow",
        description="Policy when this plugin itself fails: 'deny' or 'allow' the request or attempt.",
    )
    optional: bool = Field(
        default=False,
        description="Whether a plugin that cannot be loaded is left out and reported; false stops the start.",
    )
    deadline_ms: int | None = Field(
        default=None,
        ge=1,
        le=60_000,
        description="Longest time of one pre_route, before_attempt or authenticate call, in milliseconds; null keeps each hook's own deadline.",
    )

    suspend_after: int | None = Field(
        default=20,
        ge=1,
        le=1_000_000,
        description="Failures of one hook in a row after which it is not called for suspend_s, where on_failure is 'allow'; "
        "null never switches it off.",
    )
    suspend_s: float = Field(
        default=30.0,
        gt=0,
        le=3600,
        description="How long a hook that keeps failing is switched off, in seconds; then it is tried again.",
    )

    def warnings(self) -> Iterable[str]:
        """Return what in a valid section is probably a mistake, for ``pointsman check``: where, what and what to do."""
        return ()

    def notes(self) -> Iterable[str]:
        """Return what a valid section comes to, for ``pointsman check``, where its numbers do not say it themselves."""
        return ()

    def check_files(self, base: Path) -> Iterable[str]:  # noqa: ARG002  # which files there are is the section's
        """Return what is wrong with files that this section names, for ``pointsman doctor``; changes nothing.

        Args:
            base: The directory that relative paths start from.
        """
        return ()

    async def check_services(self) -> Iterable[Remark]:
        """Return how the servers that this section names are, for ``pointsman doctor``; asks them, and changes nothing."""
        return ()

    def unpriced(self, models: Sequence[UnpricedModel], policy: OnFailure) -> Sequence[str]:  # noqa: ARG002  # what a section limits is its own
        """Return the problems of limits in money that this section sets, for ``pointsman check``; by default none.

        Args:
            models: Models whose price is unknown.
            policy: What happens to their requests where money is limited: ``unpriced`` of the ``pointsman:`` section.
        """
        return ()

    def has_price(self, models: tuple[str, ...], tenant: str) -> bool:  # noqa: ARG002  # what a section prices is its own
        """Return whether this section sets the price of a model for a tenant, for ``pointsman check``; by default not.

        Args:
            models: The names of the model: the one that is asked for, its group, the provider's.
            tenant: The tenant whose requests are meant.
        """
        return False


_NAME: Final = re.compile(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*")
_NAME_CHARS: Final = 64
#: Names of the gateway's own: where it keeps its state, routes under ``/pointsman``, commands; and what YAML reads as no text.
_RESERVED: Final = frozenset(
    {
        *("pointsman", "host", "deferred"),
        *("metrics", "reload", "requests", "status"),
        *("check", "doctor", "explain", "hooks", "new-plugin", "plugins", "schema", "top"),
        *("true", "false", "yes", "no", "on", "off", "null"),
    }
)


def name_problem(name: object) -> str:
    """Return why a plugin cannot have this name; empty where it can."""
    if not isinstance(name, str) or not _NAME.fullmatch(name) or len(name) > _NAME_CHARS:
        return f"must be at most {_NAME_CHARS} lower-case letters, digits and single hyphens, for example night-shift"
    return f"must not be {name!r}, which the gateway or YAML uses itself" if name in _RESERVED else ""


@dataclass(frozen=True, slots=True)
class PluginInfo:
    """A plugin, as its entry point names it.

    Attributes:
        name: The name in the configuration and in URLs: lower-case letters, digits, hyphens.
        config: Its configuration model.
        factory: Builds the plugin object from the validated configuration, without I/O.
        summary: One line for ``pointsman plugins list``.
        commands: ``"package.module:group"``, a click group for ``pointsman <name> ...``, or None.
        meters: Whether it limits or bills requests: routes that cannot be metered are then closed by default.
        labels: Labels of routes that no other plugin may set, such as ``tenant``, which says who pays.
        replaces_labels: Labels that it may replace although another plugin has set them: with these, others ask it for
            something, and it says what they got.
        requires: The versions of ``pointsman`` that it is made for, as in ``requires-python``: ``">=0.1,<0.2"``. Empty
            means any.
        needs: Plugins that must also be in the configuration. Where one of them cannot be used, this one does not start.
        conflicts: Plugins that must not be.
        before: Plugins that, where they are in use, come later in the list.
        after: Plugins that, where they are in use, come earlier in the list.

    Raises:
        ValueError: the gateway uses the name itself, or it has other characters; or the plugin needs, excludes or precedes itself.
        TypeError: what has to be a tuple of names is something else, such as one name; or a text is something else.
    """

    name: str
    config: type[PluginConfig]
    factory: Callable[..., object]
    summary: str = ""
    commands: str | None = None
    meters: bool = False
    labels: tuple[str, ...] = ()
    replaces_labels: tuple[str, ...] = ()
    requires: str = ""
    needs: tuple[str, ...] = ()
    conflicts: tuple[str, ...] = ()
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if problem := name_problem(self.name):
            raise ValueError(f"the name of PluginInfo(name={self.name!r:.80}) {problem}")
        for field_name in ("summary", "requires"):
            text: object = getattr(self, field_name)
            if not isinstance(text, str):
                raise TypeError(f"PluginInfo(name={self.name!r}): {field_name} is {text!r:.80}, not a text")
        for names in ("labels", "replaces_labels", "needs", "conflicts", "before", "after"):
            given: object = getattr(self, names)
            if not isinstance(given, tuple | list) or not all(isinstance(name, str) for name in given):
                raise TypeError(
                    f"PluginInfo(name={self.name!r}): {names} is {given!r:.80}, not a tuple of names: ('quota',)"
                )
            if self.name in given and names not in {"labels", "replaces_labels"}:
                raise ValueError(f"PluginInfo(name={self.name!r}): {names} names the plugin itself")


class Timer(Protocol):
    """A call that is due later."""

    def cancel(self) -> object:
        """Call nothing; harmless when it has been called."""


class Clock(Protocol):
    """Time, which a test can control."""

    def now(self) -> float:
        """Return the wall clock in Unix seconds."""

    def monotonic(self) -> float:
        """Return a clock in seconds that never goes back."""

    async def sleep(self, seconds: float) -> None:
        """Wait."""

    def call_later(self, seconds: float, call: Callable[[], object]) -> Timer:
        """Call something later, in a context of its own, unless that is cancelled: for less than a task that sleeps."""


class Tasks(Protocol):
    """Background work, cancelled by the host at shutdown; its errors are logged and counted."""

    def spawn(self, work: Coroutine[object, object, object], *, name: str) -> None:
        """Run a coroutine in the background."""

    def every(self, interval_s: float, work: Callable[[], Awaitable[object]], *, name: str) -> None:
        """Call ``work`` now and then repeatedly until shutdown, at most ``interval_s`` seconds after each call has ended.

        The calls come at multiples of the interval, which begin at the same time for all plugins, so that they wake the worker
        together; there is at least half of the interval between the end of a call and the next one. A call that fails is logged
        and counted; the next one follows as usual.
        """

    def forever(self, work: Callable[[], Awaitable[object]], *, name: str) -> None:
        """Keep ``work``, which does not end by itself, running until shutdown.

        When it fails or ends, that is logged and counted, shown in the worker's status, and it is called again after a
        delay that grows from 1 s to 60 s while it keeps failing.
        """


class Signals(Protocol):
    """The latest signal per deployment, in this worker's memory."""

    def get(self, deployment_id: str) -> Signal | None:
        """Return the latest signal, or None."""

    def put(self, signal: Signal) -> None:
        """Replace the deployment's signal."""

    def forget(self, deployment_id: str) -> None:
        """Remove the deployment's signal, if any. A plugin that puts signals removes those of deployments that are gone."""

    def all(self) -> Mapping[str, Signal]:
        """Return all of them by deployment id, read-only."""


class Catalog(Protocol):
    """What the gateway's configuration can serve. Read it when needed: it changes when the gateway is reconfigured."""

    def deployments(self, target: str | None = None) -> Sequence[Deployment]:
        """Return the deployments that serve a target; all of them for None; empty if there is none.

        Args:
            target: A model group, a deployment id, or a model that a wildcard group serves, such as ``openai/gpt-4o`` where
                there is ``openai/*``; the deployments are then those of the group, with the model asked for.
        """

    def is_group(self, target: str) -> bool:
        """Return whether the target is a model group."""

    def reachable(self, name: str) -> Sequence[Deployment]:
        """Return every deployment that may answer a request for this name; empty if there is none.

        In addition to ``deployments``: what aliases and wildcards stand for, and the gateway's own fallbacks, to any depth.
        """

    def resolved(self, name: str) -> str:
        """Return the model group that a name is the configuration's alias of, or the name itself.

        Names that plugins list are theirs to resolve: they are returned as they are.
        """

    def list_model(self, name: str, target: str | None, *, info: Mapping[str, object] | None = None) -> None:
        """Show ``name`` in ``GET /v1/models`` as an alias of ``target``; None stops showing it.

        Args:
            name: The name that clients ask for.
            target: A model group, a deployment id, or None.
            info: More fields for its entry, as JSON.

        Raises:
            Conflict: when the gateway's configuration itself has a model group of this name.
        """


def unknown_target(target: str, catalog: Catalog) -> str | None:
    """Return what is wrong with a target of the configuration, or None when the gateway has it."""
    if "*" in target and catalog.is_group(target):
        return f"{target!r} stands for many models; name one of them, such as {target.replace('*', 'gpt-4o')!r}"
    if catalog.deployments(target):
        return None
    known = {name for deployment in catalog.deployments() for name in (deployment.group, deployment.id)}
    return f"the gateway has no model group or deployment {target!r}{nearest(target, known)}"


class Prices(Protocol):
    """Unit prices from the gateway's cost map."""

    def get(self, deployment: Deployment, usage: Usage | None = None) -> Price:
        """Return the unit prices of a deployment; a field is None where the map has no price.

        Args:
            deployment: The deployment.
            usage: What an answer used. The prices are then those of the model that answered, where the map knows it, and
                those of its images' size and quality. Neither its counts nor its service tier matter: see ``Price.at``.
        """


class Tokenizer(Protocol):
    """Token counts before the provider has counted."""

    def count(self, model: str, body: Mapping[str, object]) -> int:
        """Count the prompt tokens of a request, as ``pointsman.counting`` reads it.

        An approximation for models whose tokenizer is not public. Takes about a microsecond a word: keep it off the
        request path for long prompts.
        """

    def count_text(self, model: str, text: str) -> int:
        """Count the tokens of a text; the same holds."""


def observe(
    meter: Meter,
    name: str,
    rows: Callable[[], Iterable[tuple[Mapping[str, str], float]]],
    description: str,
    *,
    unit: str = "1",
    kind: Literal["gauge", "counter", "updown"] = "gauge",
) -> None:
    """Let a meter read what a plugin knows anyway, whenever metrics are read; nothing is counted in between.

    Args:
        meter: ``services.meter``.
        name: The metric's name.
        rows: Returns attributes and value of each series. Keep them few, and the attributes names of the configuration. A
            fault is logged, and the metric is then missing.
        description: One sentence.
        unit: In UCUM's form: ``s``, ``1``, ``{request}``.
        kind: ``gauge``: what every worker sees alike; several workers show the highest value. ``counter``: only grows;
            ``updown``: both are added up over workers.
    """

    def callback(_: CallbackOptions) -> Iterable[Observation]:
        return [Observation(value, attributes) for attributes, value in rows()]

    create = {
        "gauge": meter.create_observable_gauge,
        "counter": meter.create_observable_counter,
        "updown": meter.create_observable_up_down_counter,
    }[kind]
    create(name, callbacks=[callback], unit=unit, description=description)


class UpstreamCall(Protocol):
    """One running attempt that a plugin started. Use either ``response`` or ``chunks``, once."""

    @property
    def attempt(self) -> Attempt:
        """The attempt: open while it runs, closed afterwards."""

    @property
    def answer(self) -> Answer | None:
        """What the model said, assembled on access; None unless the call has ended with outcome ``ok``."""

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
        """End the attempt as cancelled and close its connection; no effect once it has ended."""


class PlannedCall(Protocol):
    """A call that starts later. Either start it or drop it; until then its span is open."""

    def start(self, request: UpstreamRequest) -> UpstreamCall:
        """Start it now; like ``Upstream.start``.

        Raises:
            UpstreamError: the target is unknown.
        """

    def drop(self, reason: str) -> None:
        """Say that it will not be made, and why, for the trace; no effect once it has started."""


class Upstream(Protocol):
    """A plugin's own calls through the gateway, with its credentials, cooldowns and costs; they are traced like others."""

    def start(self, request: UpstreamRequest) -> UpstreamCall:
        """Start an attempt at once. It is cancelled when its parent request ends first, unless it is a mirror.

        Raises:
            UpstreamError: the target is unknown.
        """

    def plan(
        self, kind: AttemptKind, target: str, parent: RequestContext, *, about: PlannedCall | None = None
    ) -> PlannedCall:
        """Announce a call that starts after the hook has returned, perhaps after the request's end; call it in the hook.

        From then on the request's trace and the call's link to one another, whatever ends first, and the call's tells how
        long it has waited.

        Args:
            kind: The kind of the call: ``mirror``, ``judge`` or ``probe``.
            target: Model group or deployment id.
            parent: The client's request that it is made for.
            about: Another planned call whose answer this one is about, as a judge's is; their traces link to one another.
        """

    @property
    def client_left(self) -> bool:
        """Whether the client of the request that the running code works for has gone away.

        Its attempts go on for a while, since what they cost is known exactly only when they end; nothing more should be
        started for it. False outside of a client's request.
        """


class Takeovers(Protocol):
    """For a plugin that remembers what it has settled in a place of its own, such as a file of this machine.

    Its memory does not reach a worker of another machine that takes over settlements of a worker that has died, so both
    could count the same request. Such a plugin names its place, and counts a settlement only once it is final.
    """

    def keep_at(
        self, place: str, *, final: Callable[[Sequence[str]], None], taken: Callable[[Sequence[str]], None]
    ) -> bool:
        """Name the place, in ``startup``; the same for all workers that share it, and after a restart.

        Args:
            place: An id that no other place has.
            final: Called with ids of requests that this worker has settled, once no other worker can settle them.
            taken: Called instead with those that a worker of another place has taken over: they must not count here.
                Neither is called again where it fails; that is counted as a fault of the plugin, ``takeovers``.

        Returns:
            Whether settlements have to wait for ``final``. False where all workers share every place (the stores
            ``memory`` and ``disk``): neither function is called then.
        """

    async def taken(self) -> Collection[str]:
        """Return the ids of all requests that have been taken over from this place, also from workers that have died.

        Raises:
            StoreError: the store failed.
        """

    async def has_left(self, worker: str) -> bool:
        """Return whether nothing of this worker is left to be settled: what it has settled is then final, or has been taken.

        Raises:
            StoreError: the store failed.
        """


def _without_life(noted: Collection[str]) -> str:  # noqa: ARG001  # the field's
    return ""


class _Alone:
    """The takeovers of a worker that shares its store with no other machine."""

    def keep_at(
        self,
        place: str,  # noqa: ARG002  # the protocol's
        *,
        final: Callable[[Sequence[str]], None],  # noqa: ARG002  # the protocol's
        taken: Callable[[Sequence[str]], None],  # noqa: ARG002  # the protocol's
    ) -> bool:
        return False

    async def taken(self) -> Collection[str]:
        return ()

    async def has_left(self, worker: str) -> bool:  # noqa: ARG002  # the protocol's
        return True


_ALONE: Final = _Alone()


def _not_traced(attributes: Mapping[str, str | bool | int | float | Sequence[str] | Sequence[float]]) -> None:
    """Write nothing."""


def _not_counted(part: str, err: BaseException) -> None:
    """Count nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """Everything the host offers a plugin; the argument of ``startup``.

    Attributes:
        plugin: The plugin's own name.
        store: Durable state; keys are the plugin's own, the host adds a prefix.
        clock: Time.
        tracer: For spans of the plugin's own; inside a hook the hook's span is the current one.
        meter: For metrics of the plugin's own, named ``pointsman.<plugin>...`` or by the author's own prefix: an OpenTelemetry
            meter. Keep the sets of attributes bounded: names of the configuration, never a client's text. What is true
            just now is best given by an observable gauge; its callback runs in the event loop, when metrics are read.
        tasks: Background work.
        random: Random choices.
        new_id: Returns a new unique id, 32 hexadecimal digits, in order of time.
        signals: The latest signal per deployment.
        catalog: What the gateway can serve.
        prices: Unit prices.
        tokenizer: Token counts.
        upstream: The plugin's own calls.
        publish: Announces an event to the plugins of this worker, and of all others where the event's class says
            ``everywhere``; such an event whose fields have no form in JSON is a TypeError, one above 8 kB a ValueError.
        statuses: The status of every plugin, by name.
        worker: A name for this worker process, unique among all that share the store.
        unpriced: The policy for models whose price is unknown, where money is limited.
        base: The directory that relative paths of the configuration start from.
        takeovers: For a plugin that remembers what it has settled in a place of its own.
        store_life: Returns the store's present life, see ``StoreEmptied``. A plugin that keeps a file of its own notes it
            there, and says in ``startup`` which ones it has noted: where the present one is not among them, the store was
            emptied or exchanged while the gateway was down, and ``StoreEmptied`` follows the start. Given a mapping of
            lives to the Unix seconds at which each was last used, the host also detects a store that went back.
        annotate: Writes attributes on the span of the hook that runs, each as ``pointsman.<plugin>.<name>``: what was decided,
            and why. Names are lower-case letters, digits, ``_`` and ``.``; values texts, numbers or lists of them. At most 16
            at a time, and long texts are cut. ``waited_for`` is also the reason of the event that tells how long an async hook
            has waited; without it that is what is known: ``store``, ``computing`` or ``unknown``. Nothing happens where nothing is traced. Never a prompt, an answer or a key.
        fault: Counts and logs a fault of something that extends the plugin, under the plugin and the part's name, such as
            ``tactic cheapest``, where the plugin goes on without it.
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
    unpriced: Literal["deny", "allow"] = "deny"
    base: Path = Path()
    takeovers: Takeovers = _ALONE
    store_life: Callable[[Collection[str]], str] = _without_life
    meter: Meter = field(default_factory=lambda: NoOpMeter("pointsman"))
    annotate: Callable[[Mapping[str, str | bool | int | float | Sequence[str] | Sequence[float]]], None] = _not_traced
    fault: Callable[[str, BaseException], None] = _not_counted


__all__ = [
    "Catalog",
    "Clock",
    "Extensions",
    "OnFailure",
    "PlannedCall",
    "PluginConfig",
    "PluginInfo",
    "Prices",
    "Remark",
    "RequestContext",
    "Services",
    "Signals",
    "Takeovers",
    "Tasks",
    "Timer",
    "Tokenizer",
    "UnpricedModel",
    "Upstream",
    "UpstreamCall",
    "extensions",
    "load_extension",
    "loaded",
    "observe",
]
