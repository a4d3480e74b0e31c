"""The plugin's section of the configuration."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from pointsman.plugin import PluginConfig

from .dialects import installed_dialects

Pointer = Annotated[
    str,
    Field(pattern=r"^(?:/[^/]{0,100}){1,10}$", description="JSON pointer (RFC 6901) into the document: /a/b/0."),
]
Seconds = Annotated[float, Field(gt=0, le=86_400)]


class _Part(BaseModel):
    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class LimitFields(_Part):
    """Where a document says one quota axis. Numbers may be written as text; unknown places are left out."""

    axis: str = Field(default="requests", pattern=r"^[a-z][a-z0-9_]{0,40}$", description="Name of the axis.")
    window_s: float | None = Field(default=None, gt=0, le=400 * 86_400, description="Length of the window in seconds.")
    limit: Pointer | None = Field(default=None, description="The most that the window allows.")
    remaining: Pointer | None = Field(default=None, description="What is left.")
    used: Pointer | None = Field(default=None, description="What is used; needs limit.")
    used_percent: Pointer | None = Field(default=None, description="What is used, 0 to 100.")
    used_ratio: Pointer | None = Field(default=None, description="What is used, 0 to 1.")
    resets_at: Pointer | None = Field(default=None, description="RFC 3339, or Unix seconds or milliseconds.")
    resets_in_s: Pointer | None = Field(default=None, description="Seconds from now, or a duration such as 6m0s.")

    @model_validator(mode="after")
    def _has_figure(self) -> Self:
        if not any((self.limit, self.remaining, self.used, self.used_percent, self.used_ratio)):
            raise ValueError("names no figure: give remaining, used, used_percent, used_ratio or limit")
        if self.used and not self.limit:
            raise ValueError("'used' needs 'limit', or nothing says what is left")
        return self


class Document(_Part):
    """Where a JSON document says how a deployment stands."""

    status: Pointer | None = Field(
        default=None, description="A word; those of exhausted and degraded mean that, every other one available."
    )
    exhausted: tuple[str, ...] = Field(
        default=("exhausted", "limited", "blocked", "rejected"), description="Words for exhausted; case does not count."
    )
    degraded: tuple[str, ...] = Field(default=("degraded", "warning", "allowed_warning"), description="For degraded.")
    written_at: Pointer | None = Field(
        default=None,
        description="When the document was true: RFC 3339 or Unix time. An older one than ttl_s is ignored.",
    )
    limits: tuple[LimitFields, ...] = Field(default=(), max_length=16, description="Quota axes.")

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.status is None and not self.limits:
            raise ValueError("says nothing: give status or limits")
        return self


class _Check(_Part):
    interval_s: Seconds | None = Field(default=None, description="Instead of check_interval_s, in seconds.")


class ModelsCheck(_Check):
    """GET ``/v1/models`` of the deployment's own server; 2xx is available."""

    kind: Literal["models"] = "models"
    path: str = Field(default="/v1/models", pattern=r"^/[^\s?#]{0,200}$", description="Path on the server.")
    headers: dict[str, SecretStr] = Field(default_factory=dict, description="Headers to send, lower case.")


class HttpCheck(_Check):
    """GET a URL of the operator's choice; 2xx is available, and its JSON may tell the quota."""

    kind: Literal["http"] = "http"
    url: str = Field(pattern=r"^https?://\S{1,2000}$", description="What to get.")
    headers: dict[str, SecretStr] = Field(default_factory=dict, description="Headers to send, lower case.")
    document: Document | None = Field(default=None, description="How to read the answer; None does not.")


class CompletionCheck(_Check):
    """A tiny completion through the gateway: costs tokens, tests everything."""

    kind: Literal["completion"] = "completion"
    prompt: str = Field(default="ping", min_length=1, max_length=1000, description="What to send.")
    max_tokens: int = Field(default=1, ge=1, le=100, description="Longest answer.")


class FileCheck(_Check):
    """A JSON file that something else keeps up to date, for example the quota cache of a subscription harness."""

    kind: Literal["file"] = "file"
    path: str = Field(min_length=1, max_length=4096, description="The file; ~ is the home directory.")
    document: Document = Field(description="How to read it.")


class CommandCheck(_Check):
    """A command that prints JSON. It is run without a shell, and ended at the deadline."""

    kind: Literal["command"] = "command"
    argv: tuple[str, ...] = Field(min_length=1, max_length=64, description="Program and arguments.")
    document: Document = Field(description="How to read its output.")


class NoCheck(_Part):
    """No check."""

    kind: Literal["off"] = "off"


AnyCheck = Annotated[
    ModelsCheck | HttpCheck | CompletionCheck | FileCheck | CommandCheck | NoCheck, Field(discriminator="kind")
]


class SignalsConfig(PluginConfig):
    """What is believed for how long, what is checked, and whether it steers the traffic."""

    ttl_s: float = Field(default=300.0, ge=1, le=86_400, description="Knowledge older than this counts as none.")
    window_s: float = Field(default=300.0, ge=6, le=86_400, description="Length of the statistics window.")
    reserve_ratio: float = Field(
        default=0.05, ge=0, lt=1, description="A quota with less than this part left makes its deployment degraded."
    )
    degraded_error_ratio: float = Field(
        default=0.2, gt=0, le=1, description="This part of the attempts failing makes a deployment degraded."
    )
    min_attempts: int = Field(default=10, ge=1, le=10_000, description="Attempts before errors are judged.")
    assumed_reset_s: Seconds = Field(default=60.0, description="Exhaustion of which nobody says when it ends.")
    refused_s: Seconds = Field(default=30.0, description="Exhaustion after a 429 that does not say when to come back.")
    steer: bool | Literal["auto"] = Field(
        default="auto",
        description="Take part in select: avoid exhausted deployments, send less to degraded ones. 'auto' leaves that to "
        "a plugin that chooses by the signals itself, when there is one.",
    )
    degraded_share_ratio: float = Field(
        default=0.25,
        ge=0,
        le=1,
        description="Part of its usual traffic that a degraded deployment keeps while another one is available.",
    )
    max_deployments: int = Field(default=2_000, ge=1, le=100_000, description="Deployments remembered at most.")
    share_interval_s: float = Field(default=2.0, ge=0.1, le=60, description="Between two exchanges with the store.")
    check_interval_s: Seconds = Field(
        default=60.0, description="Between two checks of a deployment, give or take 20 %."
    )
    check_deadline_s: float = Field(default=5.0, ge=0.1, le=30, description="Longest time a refresh may take.")
    check_local: bool = Field(default=True, description="Check local servers without being asked to.")
    checks: dict[str, AnyCheck] = Field(
        default_factory=dict, description="Deployment id, model group or provider to its check."
    )
    dialects: dict[str, str] = Field(
        default_factory=dict, description="Deployment id, model group or provider to its header dialect."
    )
    accounts: dict[str, tuple[str, ...]] = Field(
        default_factory=dict,
        description="Account name to the deployment ids, model groups or providers whose quotas are common.",
    )

    @model_validator(mode="after")
    def _dialects_are_there(self) -> Self:
        """Refuse dialects that are not installed.

        Raises:
            PluginLoadError: an installed dialect cannot be used.
        """
        known = sorted({dialect.name for dialect in installed_dialects()}) if self.dialects else []
        # The host looks for the nearest name among those in 'expected'.
        context = {"names": ", ".join(known), "expected": ", ".join(map(repr, known))}
        wrong = [
            InitErrorDetails(
                type=PydanticCustomError("dialect", "it must be one of {names}", context),
                loc=("dialects", target),
                input=name,
            )
            for target, name in self.dialects.items()
            if name not in known
        ]
        if wrong:
            raise ValidationError.from_exception_data(type(self).__name__, wrong)
        return self
