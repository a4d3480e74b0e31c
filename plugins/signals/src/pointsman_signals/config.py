"""The plugin's section of the configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, SecretStr, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from pointsman.config import Section
from pointsman.errors import nearest
from pointsman.plugin import PluginConfig

from .dialects import installed_dialects

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pointsman.types import Deployment

Pointer = Annotated[
    str,
    Field(pattern=r"^(?:/[^/]{0,100}){1,10}$", description="JSON pointer (RFC 6901) into the document: /a/b/0."),
]
Seconds = Annotated[float, Field(gt=0, le=86_400)]


class LimitFields(Section):
    """Where a document has the figures of one quota axis. Numbers may be text; pointers to nothing are ignored."""

    axis: str = Field(default="requests", pattern=r"^[a-z][a-z0-9_]{0,40}$", description="Name of the axis.")
    window_s: float | None = Field(
        default=None, gt=0, le=400 * 86_400, description="Length of the quota's window, in seconds."
    )
    limit: Pointer | None = Field(default=None, description="Where the quota of a window is.")
    remaining: Pointer | None = Field(default=None, description="Where the remaining quota is.")
    used: Pointer | None = Field(default=None, description="Where the used quota is; needs limit.")
    used_percent: Pointer | None = Field(default=None, description="Where the used share is, 0 to 100.")
    used_ratio: Pointer | None = Field(default=None, description="Where the used share is, 0 to 1.")
    resets_at: Pointer | None = Field(
        default=None, description="Where the reset time is: RFC 3339, or Unix seconds or milliseconds."
    )
    resets_in_s: Pointer | None = Field(
        default=None, description="Where the time until the reset is: seconds, or a duration such as 6m0s."
    )

    @model_validator(mode="after")
    def _has_figure(self) -> Self:
        if not any((self.limit, self.remaining, self.used, self.used_percent, self.used_ratio)):
            raise ValueError("names no figure: set remaining, used, used_percent, used_ratio or limit")
        if self.used and not self.limit:
            raise ValueError("'used' needs 'limit' to derive what is left")
        return self


class Document(Section):
    """Where a JSON document has the status and the quotas of a deployment."""

    status: Pointer | None = Field(
        default=None,
        description="Where the status word is; words other than those of exhausted and degraded mean available.",
    )
    exhausted: tuple[str, ...] = Field(
        default=("exhausted", "limited", "blocked", "rejected"),
        description="Status words that mean exhausted, case-insensitive.",
    )
    degraded: tuple[str, ...] = Field(
        default=("degraded", "warning", "allowed_warning"),
        description="Status words that mean degraded, case-insensitive.",
    )
    written_at: Pointer | None = Field(
        default=None,
        description="Where the document's time is: RFC 3339 or Unix time; one older than ttl_s is ignored.",
    )
    limits: tuple[LimitFields, ...] = Field(default=(), max_length=16, description="Quota axes.")

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.status is None and not self.limits:
            raise ValueError("reads nothing from the document: set status or limits")
        return self


class _Check(Section):
    interval_s: Seconds | None = Field(
        default=None, description="Seconds between two of these checks; null uses check_interval_s."
    )


class ModelsCheck(_Check):
    """GET ``/v1/models`` of the deployment's own server; 2xx means available."""

    kind: Literal["models"] = "models"
    path: str = Field(default="/v1/models", pattern=r"^/[^\s?#]{0,200}$", description="Path on the server.")
    headers: dict[str, SecretStr] = Field(default_factory=dict, description="Request headers, names in lower case.")


class HttpCheck(_Check):
    """GET a URL of the operator's choice; 2xx means available, and its JSON may have the quota."""

    kind: Literal["http"] = "http"
    url: str = Field(pattern=r"^https?://\S{1,2000}$", description="URL to request.")
    headers: dict[str, SecretStr] = Field(default_factory=dict, description="Request headers, names in lower case.")
    document: Document | None = Field(
        default=None, description="How to read the quota from the answer; null ignores it."
    )


class CompletionCheck(_Check):
    """A tiny completion through the gateway: tests the whole path and costs tokens."""

    kind: Literal["completion"] = "completion"
    prompt: str = Field(default="ping", min_length=1, max_length=1000, description="Prompt of the completion.")
    max_tokens: int = Field(default=1, ge=1, le=100, description="Largest number of tokens of the answer.")


class FileCheck(_Check):
    """A JSON file that another program updates, for example the quota cache of a subscription client."""

    kind: Literal["file"] = "file"
    path: str = Field(min_length=1, max_length=4096, description="Path of the file; ~ is the home directory.")
    document: Document = Field(description="How to read the file.")


class CommandCheck(_Check):
    """A command that prints JSON. It runs without a shell and is killed at the deadline."""

    kind: Literal["command"] = "command"
    argv: tuple[str, ...] = Field(min_length=1, max_length=64, description="Program and arguments.")
    document: Document = Field(description="How to read the output.")


class NoCheck(Section):
    """No check."""

    kind: Literal["off"] = "off"


AnyCheck = Annotated[
    ModelsCheck | HttpCheck | CompletionCheck | FileCheck | CommandCheck | NoCheck, Field(discriminator="kind")
]


class SignalsConfig(PluginConfig):
    """How long observations count, what is checked, and whether signals steer the traffic."""

    ttl_s: float = Field(
        default=300.0, ge=1, le=86_400, description="Seconds after which an observation no longer counts."
    )
    window_s: float = Field(default=300.0, ge=6, le=86_400, description="Length of the statistics window, in seconds.")
    windows_s: dict[str, Annotated[float, Field(ge=6, le=86_400)]] = Field(
        default_factory=dict,
        description="Window in seconds by deployment id, model group or provider, instead of window_s: a longer one for "
        "rarely used deployments.",
    )
    reserve_ratio: float = Field(
        default=0.05,
        ge=0,
        lt=1,
        description="Remaining share of a quota below which its deployment is degraded, 0 to 1.",
    )
    degraded_error_ratio: float = Field(
        default=0.2, gt=0, le=1, description="Share of failed attempts from which a deployment is degraded, 0 to 1."
    )
    min_attempts: int = Field(
        default=10,
        ge=1,
        le=10_000,
        description="Attempts in the window below which degraded_error_ratio is not evaluated.",
    )
    assumed_reset_s: Seconds = Field(
        default=60.0, description="Seconds of exhaustion when neither reset nor window of the quota is known."
    )
    refused_s: Seconds = Field(
        default=30.0, description="Seconds of exhaustion after a 429 without retry-after or a known reset time."
    )
    steer: bool | Literal["auto"] = Field(
        default="auto",
        description="Whether to exclude exhausted deployments and thin out degraded ones; 'auto' leaves that to a plugin "
        "that chooses by the signals itself, if there is one.",
    )
    degraded_share_ratio: float = Field(
        default=0.25,
        ge=0,
        le=1,
        description="Share of its usual traffic that a degraded deployment keeps while another one is available, 0 to 1.",
    )
    max_deployments: int = Field(
        default=2_000,
        ge=1,
        le=100_000,
        description="Largest number of deployments kept in memory; those unused for longest go first.",
    )
    share_interval_s: float = Field(
        default=2.0, ge=0.1, le=60, description="Seconds between two exchanges with the store."
    )
    check_interval_s: Seconds = Field(default=60.0, description="Seconds between two checks of a deployment, +/- 20 %.")
    check_deadline_s: float = Field(default=5.0, ge=0.1, le=30, description="Seconds that a check may take.")
    check_local: bool = Field(
        default=True,
        description="Whether local servers without an entry in checks are checked while they answer no traffic.",
    )
    checks: dict[str, AnyCheck] = Field(
        default_factory=dict,
        description="Check by deployment id, model group or provider; the first that matches applies.",
    )
    dialects: dict[str, str] = Field(
        default_factory=dict,
        description="Header dialect by deployment id, model group or provider, instead of the detected one.",
    )
    accounts: dict[str, tuple[str, ...]] = Field(
        default_factory=dict,
        description="Deployment ids, model groups or providers that share quotas, by account name.",
    )

    @model_validator(mode="after")
    def _dialects_are_there(self) -> Self:
        """Reject dialects that are not installed or cannot be used."""
        if not self.dialects:
            return self
        installed = installed_dialects()
        known = sorted({row.name for rows in installed.values() for row in rows})
        # The host suggests the nearest of the names in 'expected'.
        context = {"names": ", ".join(known), "expected": ", ".join(map(repr, known))}
        wrong = [
            InitErrorDetails(
                type=PydanticCustomError("value_error", "{reason}", {"reason": installed.broken[name]})
                if name in installed.broken
                else PydanticCustomError("dialect", "it must be one of {names}", context),
                loc=("dialects", target),
                input=name,
            )
            for target, name in self.dialects.items()
            if name not in known
        ]
        if wrong:
            raise ValidationError.from_exception_data(type(self).__name__, wrong)
        return self

    def window_of(self, deployment: Deployment) -> float:
        """Return the length of a deployment's statistics window, in seconds."""
        for target in (deployment.id, deployment.group, deployment.provider):
            if target in self.windows_s:
                return self.windows_s[target]
        return self.window_s

    def unknown_targets(self, deployments: Iterable[Deployment]) -> list[str]:
        """Return the configured names that the gateway does not have, each with its key path.

        Args:
            deployments: All that the gateway has; if there are none, nothing is unknown: it may learn them later.
        """
        known = {name for one in deployments for name in (one.id, one.group, one.provider)}
        places = [(f"checks.{name}", name) for name in self.checks]
        places += [(f"dialects.{name}", name) for name in self.dialects]
        places += [(f"windows_s.{name}", name) for name in self.windows_s]
        for account, names in self.accounts.items():
            places += [(f"accounts.{account}[{index}]", name) for index, name in enumerate(names)]
        return [
            f"signals.{place}: the gateway's configuration has no deployment id, model group or provider {name!r}"
            f"{nearest(name, known)}"
            for place, name in places
            if known and name not in known
        ]
