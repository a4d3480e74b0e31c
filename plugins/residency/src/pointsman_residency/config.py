"""The plugin's section of the configuration."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar, Final, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    StringConstraints,
    ValidationError,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from pointsman.admin import printable
from pointsman.config import Section
from pointsman.errors import nearest
from pointsman.plugin import Clock, PluginConfig, Remark

from .devices import from_nvml
from .diagnosis import ANSWER_S, Subject, WallClock, diagnose
from .policy import Policy
from .servers import ModelServer, installed, unknown
from .servers.connect import connect
from .slots import Model

#: The device of a budget that is one number.
MEMORY: Final = "memory"
MAX_NAME_CHARS: Final = 128

_UNITS: Final = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}
_SIZE: Final = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,9})?) ?([kmgt]?i?b)?", re.IGNORECASE)
#: What a hook may take beyond the longest wait, in seconds: the answer has to be made.
_SLACK_S: Final = 5.0
_MAX_DEADLINE_S: Final = 3_600.0


def bytes_of(value: Any) -> Any:
    """Return a size as a number of bytes: ``24GiB``, ``500 MB`` or a number.

    Raises:
        ValueError: it is a text that is not a size.
    """
    if not isinstance(value, str):
        return value
    match = _SIZE.fullmatch(value.strip())
    if match is None or (match[2] or "").lower() not in _UNITS:
        raise ValueError("is not a size; write a number of bytes or one with a unit, such as 24GiB or 500MB")
    return math.floor(float(match[1]) * _UNITS[(match[2] or "").lower()])


Bytes = Annotated[int, Field(gt=0, le=2**53), BeforeValidator(bytes_of)]
Budget = Annotated[int, Field(gt=0, le=2**53), BeforeValidator(bytes_of), BeforeValidator(from_nvml)]
Name = Annotated[str, StringConstraints(min_length=1, max_length=MAX_NAME_CHARS), AfterValidator(printable)]
Url = Annotated[str, StringConstraints(max_length=2048, pattern=r"^https?://[^\s@?#]+$")]


class ServerConfig(Section):
    """The server that holds the models of a pool. Further keys are settings of its kind."""

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="allow")

    kind: str = Field(
        min_length=1, max_length=64, description="ollama, llama_cpp, llama_swap, vllm, lm_studio, generic."
    )
    url: Url = Field(description="Base URL of its management API, without credentials and query.")
    headers: Mapping[str, SecretStr] = Field(
        default_factory=dict, description="Request headers, for example authorization; never shown."
    )

    @property
    def settings(self) -> dict[str, Any]:
        """The further keys."""
        return dict(self.model_extra or {})

    def connect(self, kinds: Mapping[str, type[ModelServer]], clock: Clock, timeout_s: float) -> ModelServer:
        """Return what calls this server; its ``client`` is the caller's to close.

        Args:
            kinds: The available kinds.
            clock: Time.
            timeout_s: Longest time that a call may take.
        """
        return connect(
            kinds[self.kind],
            self.url,
            headers={name: secret.get_secret_value() for name, secret in self.headers.items()},
            settings=self.settings,
            clock=clock,
            timeout_s=timeout_s,
        )


class ModelConfig(Section):
    """A model of a pool."""

    deployments: tuple[Name, ...] = Field(
        default=(), description="Deployment ids or model groups that the model serves; by default its own name."
    )
    server_model: str | None = Field(
        default=None, max_length=512, description="Name of the model on the server; by default the deployment's model."
    )
    server: ServerConfig | None = Field(default=None, description="Server of this model, where it is not the pool's.")
    footprint: Bytes | Mapping[str, Bytes] | None = Field(
        default=None,
        description="Bytes that the model occupies, or bytes by device; null: taken from the server where it reports them, and all that evictions can free until then.",
    )
    devices: tuple[Name, ...] = Field(
        default=(),
        description="Devices that hold the model, in equal shares of its bytes; by default the pool's first.",
    )
    residual: Bytes | None = Field(default=None, description="Bytes that the model keeps while it sleeps; null: none.")
    pinned: bool = Field(default=False, description="Whether the model is never evicted.")
    priority: int = Field(
        default=0,
        ge=-1000,
        le=1000,
        description="Priority: models with a higher one are evicted later and loaded earlier.",
    )
    preload: bool = Field(default=False, description="Whether the model is loaded at start-up, if it fits.")
    idle_ttl_s: float | None = Field(
        default=None,
        gt=0,
        description="Idle time in seconds, since the end of the latest request, after which the model is evicted.",
    )
    parallel: int = Field(default=1, ge=1, le=10_000, description="Requests that the server processes concurrently.")


class PoolConfig(Section):
    """Models that share a memory."""

    budget: Budget | Mapping[Name, Budget] = Field(
        description="Bytes for all of them, or bytes by device; 'nvml:0' or 'nvml:0 90%' is that much of a device's memory."
    )
    server: ServerConfig | None = Field(default=None, description="Server of the models that do not name one.")
    models: Mapping[Name, ModelConfig] = Field(min_length=1, description="The models by name.")
    exclusive: tuple[tuple[Name, ...], ...] = Field(
        default=(), description="Groups of models of which at most one is resident at a time."
    )
    deadline_s: float = Field(
        default=60.0,
        gt=0,
        le=_MAX_DEADLINE_S,
        description="Longest time a request waits for its model, in seconds; then it is answered with 503.",
    )
    max_wait_s: float = Field(
        default=10.0,
        gt=0,
        description="Seconds of waiting after which a model replaces a busier one.",
    )
    min_residence_s: float = Field(default=0.2, ge=0, description="Minimum residence of a loaded model, in seconds.")
    swap_ratio: float = Field(
        default=2.0,
        ge=0,
        le=1000,
        description="Factor of a swap: it happens when requests have waited this many times as long as the swap itself makes others wait; a higher factor means fewer loads.",
    )
    demand_half_life_s: float = Field(default=30.0, gt=0, description="Half-life of the request rate, in seconds.")
    load_timeout_s: float = Field(default=600.0, gt=0, description="Deadline for loading a model, in seconds.")
    confirm_s: float = Field(
        default=5.0, gt=0, le=600, description="Deadline for the server's list to confirm an unload, in seconds."
    )
    refresh_s: float = Field(
        default=2.0,
        ge=0.1,
        le=3600,
        description="Interval at which one of the workers reads the server's list, in seconds.",
    )

    def sizes(self) -> dict[str, int]:
        """Return the budget by device."""
        return {MEMORY: self.budget} if isinstance(self.budget, int) else dict(self.budget)

    def servers(self) -> list[ServerConfig]:
        """Return the servers of the models, each once."""
        found: list[ServerConfig] = []
        for model in self.models.values():
            server = model.server or self.server
            if server is not None and server not in found:
                found.append(server)
        return found

    def policy(self) -> Policy:
        """Return the settings of the choice."""
        return Policy(
            max_wait_s=self.max_wait_s,
            min_residence_s=self.min_residence_s,
            swap_ratio=self.swap_ratio,
            demand_half_life_s=self.demand_half_life_s,
        )

    def members(self, pool: str) -> list[Model]:
        """Return the models of the pool of this name as the policy sees them."""
        devices = tuple(self.sizes())
        return [
            Model(
                name=name,
                pool=pool,
                footprint=spread(config.footprint, config.devices or devices[:1]),
                pinned=config.pinned,
                priority=config.priority,
                preload=config.preload,
                idle_ttl_s=config.idle_ttl_s,
                excludes=frozenset(other for group in self.exclusive if name in group for other in group) - {name},
                residual=spread(config.residual, config.devices or devices[:1]),
                devices=config.devices or devices[:1],
                parallel=config.parallel,
            )
            for name, config in self.models.items()
        ]

    @model_validator(mode="after")
    def _models_fit(self) -> Self:
        budget = self.sizes()
        pinned: dict[str, int] = {}
        for name, config in self.models.items():
            where = f"models.{name}"
            if config.server is None and self.server is None:
                raise ValueError(f"{where}: it has no server; set server for it or for the pool")
            footprint = spread(config.footprint, config.devices or tuple(budget)[:1])
            for device in {*config.devices, *footprint}:
                if device not in budget:
                    raise ValueError(f"{where}: the budget has no device {device!r}{nearest(device, budget)}")
            if any(size > budget[device] for device, size in footprint.items()):
                raise ValueError(f"{where}.footprint: it is larger than the budget, so the model can never be loaded")
            for device, size in footprint.items() if config.pinned else ():
                pinned[device] = pinned.get(device, 0) + size
        if any(size > budget[device] for device, size in pinned.items()):
            raise ValueError("the pinned models together are larger than the budget")
        return self

    @model_validator(mode="after")
    def _exclusive_are_known(self) -> Self:
        for name in (name for group in self.exclusive for name in group):
            if name not in self.models:
                raise ValueError(f"exclusive: the pool has no model {name!r}{nearest(name, self.models)}")
        return self


def same_model(name: str, first: str) -> str:
    """Return what it means that two members are one model on one server, loaded with the same settings."""
    return (
        f"{name!r} is the same model on the same server as {first!r}, which stands for both with its own settings; "
        f"give the deployments of both to {first!r}, or a server with its own options to each"
    )


def rival_model(name: str, first: str) -> str:
    """Return what it means that two members are one model on one server, loaded with other settings."""
    return f"{name!r} is the same model on the same server as {first!r} with other options; one of them is resident at a time"


def spread(size: int | Mapping[str, int] | None, devices: Iterable[str]) -> dict[str, int]:
    """Return a size by device; a single number in equal shares, rounded up."""
    if size is None:
        return {}
    if not isinstance(size, int):
        return dict(size)
    devices = tuple(devices)
    return dict.fromkeys(devices, -(-size // len(devices)))


class ResidencyConfig(PluginConfig):
    """Which models share which memory, and on which servers they are."""

    pools: Mapping[Name, PoolConfig] = Field(min_length=1, description="Pools by name.")
    hedges_load: bool = Field(
        default=False, description="Whether a hedge of a race may load a model; false refuses the hedge instead."
    )
    tick_ms: int = Field(
        default=100,
        ge=10,
        le=5_000,
        description="Longest interval at which a worker checks waits and residence times and reads the decisions of "
        "the others, in milliseconds; it is shorter while a model changes.",
    )
    steer: bool | Literal["auto"] = Field(
        default="auto",
        description="Whether to drop cold candidates while a warm one is quicker: true, false, or auto: unless a plugin that chooses is installed.",
    )
    deadline_ms: int | None = Field(
        default=None,
        ge=1,
        le=int((_MAX_DEADLINE_S + _SLACK_S) * 1000),
        description="Longest time of one pre_route or before_attempt call, in milliseconds; null: the longest deadline_s and 5 s.",
    )

    @model_validator(mode="after")
    def _deadline(self) -> Self:
        longest_s = max(pool.deadline_s for pool in self.pools.values())
        if self.deadline_ms is None:
            object.__setattr__(self, "deadline_ms", int((longest_s + _SLACK_S) * 1000))
        elif self.deadline_ms < longest_s * 1000:
            raise ValueError(
                f"deadline_ms: {self.deadline_ms} ms is shorter than the longest deadline_s ({longest_s:g} s); leave it out"
            )
        return self

    @model_validator(mode="after")
    def _servers_exist(self) -> Self:
        """Reject servers that are not installed or have wrong settings, and footprints that nothing tells."""
        kinds, wrong = installed(), list[InitErrorDetails]()

        def check(problem: str, *place: str) -> None:
            reason = PydanticCustomError("value_error", "{reason}", {"reason": problem})
            # The input is not the text that was written, so that the message does not repeat it.
            wrong.append(InitErrorDetails(type=reason, loc=place, input={}))

        for pool, config in self.pools.items():
            servers: list[tuple[tuple[str, ...], ServerConfig | None]] = [(("pools", pool, "server"), config.server)]
            servers += [
                (("pools", pool, "models", name, "server"), model.server) for name, model in config.models.items()
            ]
            for place, server in servers:
                if server is not None and (problem := unknown(server.kind, kinds, server.settings)):
                    check(problem, *place)
            for name, model in config.models.items():
                server = model.server or config.server
                kind = kinds[server.kind] if server is not None and server.kind in kinds else None
                if kind is not None and not kind.tells_bytes and model.footprint is None:
                    problem = "its server does not report how much memory a model takes, so it has to be set"
                    check(problem, "pools", pool, "models", name, "footprint")
        if wrong:
            raise ValidationError.from_exception_data(type(self).__name__, wrong)
        return self

    @model_validator(mode="after")
    def _one_pool_each(self) -> Self:
        seen: dict[str, str] = {}
        for pool, config in self.pools.items():
            for name, model in config.models.items():
                for target in model.deployments or (name,):
                    if target in seen:
                        raise ValueError(
                            f"pools.{pool}.models.{name}: the deployment {target!r} is served by {seen[target]} already"
                        )
                    seen[target] = f"pools.{pool}.models.{name}"
        return self

    async def check_services(self) -> Iterable[Remark]:
        """Return how the servers of the pools are."""
        return await diagnose(
            Subject(
                where=f"pools.{name}",
                kind=server.kind,
                server=server.connect(installed(), WallClock(), ANSWER_S),
                budget=pool.sizes(),
                models=[
                    model for model in pool.members(name) if (pool.models[model.name].server or pool.server) == server
                ],
            )
            for name, pool in self.pools.items()
            for server in pool.servers()
        )

    def warnings(self) -> Iterable[str]:
        """Return what is probably a mistake."""
        for pool, config in self.pools.items():
            if config.max_wait_s >= config.deadline_s:
                yield (
                    f"pools.{pool}.max_wait_s: {config.max_wait_s:g} s is not shorter than deadline_s "
                    f"({config.deadline_s:g} s), so requests for a rarely used model end before it is their turn"
                )
            models = config.members(pool)
            for member in models:
                pinned = [one for one in models if one.pinned and one is not member]
                if not member.pinned and any(
                    size + sum(one.footprint.get(device, 0) for one in pinned) > config.sizes()[device]
                    for device, size in member.footprint.items()
                ):
                    yield (
                        f"pools.{pool}.models.{member.name}.footprint: it does not fit beside the pinned models, so its "
                        "requests wait for deadline_s and get 503; raise the budget, or pin less"
                    )
            same: dict[tuple[str, str], tuple[str, ServerConfig]] = {}
            for name, model in config.models.items():
                server = model.server or config.server
                if server is None or model.server_model is None:
                    continue
                key = (server.url, model.server_model)
                first, settings = same.setdefault(key, (name, server))
                if first != name:
                    problem = same_model(name, first) if settings == server else rival_model(name, first)
                    yield f"pools.{pool}.models.{name}: {problem}"
