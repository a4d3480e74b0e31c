"""The shadow's section of the configuration."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Annotated, ClassVar, Final, Literal, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

from pointsman.plugin import PluginConfig

NAME: Final = re.compile(r"^[a-z0-9][a-z0-9_-]{0,63}$")
EVERY_MODEL: Final = "*"
#: Texts in a result are never longer than this.
MAX_TEXT_CHARS: Final = 100_000

Name: TypeAlias = Annotated[str, StringConstraints(pattern=NAME)]
Text: TypeAlias = Annotated[str, StringConstraints(min_length=1, max_length=512)]
Usd: TypeAlias = Annotated[Decimal, Field(gt=0, le=1_000_000, decimal_places=6)]
MirroredEndpoint: TypeAlias = Literal["chat", "messages", "responses"]


class Model(BaseModel):
    """Base of the parts: nothing unknown, nothing infinite, nothing changes."""

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Version(Model):
    """A version of a model in the registry plugin."""

    version: Text = Field(description="The version's id.")


class Filter(Model):
    """Which of the model's requests take part. Every field that is given must hold."""

    teams: tuple[Text, ...] = Field(default=(), description="LiteLLM team ids; none given: all.")
    key_aliases: tuple[Text, ...] = Field(default=(), description="Aliases of API keys; none given: all.")
    tenants: tuple[Text, ...] = Field(default=(), description="Tenants, where a plugin resolves them; none given: all.")
    labels: dict[Text, Text] = Field(default={}, description="Labels of the primary's route, such as arm: stable.")
    tools: bool | None = Field(default=None, description="true: only requests with tools; false: only those without.")
    max_prompt_chars: int | None = Field(
        default=None, ge=1, le=10_000_000, description="Leave out requests with more text than this, in characters."
    )


class Budget(Model):
    """What a mirror may spend in a UTC day, judge and embeddings included, in all workers together."""

    tokens_per_day: int | None = Field(default=None, ge=1, le=10**12, description="Prompt and completion tokens a day.")
    usd_per_day: Usd | None = Field(default=None, description="US dollars a day; needs prices in the cost map.")

    @property
    def usd_micros_per_day(self) -> int | None:
        """The money in millionths of a dollar."""
        return None if self.usd_per_day is None else int(self.usd_per_day * 1_000_000)


class Bounds(Model):
    """Differences beyond these count as these: a mean can only be bounded when its parts are."""

    latency_ms: float = Field(default=10_000.0, gt=0, le=3_600_000, description="Of latencies, in milliseconds.")
    first_token_ms: float = Field(default=5_000.0, gt=0, le=3_600_000, description="Of first tokens, in milliseconds.")
    tokens: float = Field(default=2_000.0, gt=0, le=10_000_000, description="Of completion tokens.")
    cost_usd_micros: float = Field(default=50_000.0, gt=0, le=10**9, description="Of cost, in millionths of a dollar.")


class Embedding(Model):
    """Similarity of meaning: the cosine of the two answers' embeddings."""

    model: Text = Field(description="Model group or deployment id that makes embeddings.")
    sample_rate: float = Field(default=1.0, ge=0, le=1, description="Share of the pairs that are embedded.")


class Judge(Model):
    """A model that says which answer is better, asked twice with the answers in either order."""

    model: Text = Field(description="Model group or deployment id that judges.")
    sample_rate: float = Field(default=1.0, ge=0, le=1, description="Share of the pairs that are judged.")
    criteria: str = Field(
        default="Which answer is more correct, more helpful and follows the request better?",
        min_length=1,
        max_length=4000,
        description="What the judge is asked.",
    )
    max_tokens: int = Field(default=200, ge=1, le=16_384, description="The most the judge may write, in tokens.")
    max_chars: int = Field(
        default=20_000,
        ge=100,
        le=1_000_000,
        description="Of the request and of each answer, shown to it, in characters.",
    )


class Redaction(Model):
    """What is taken out of texts before they are kept."""

    patterns: tuple[str, ...] = Field(default=(), max_length=64, description="Regular expressions (Python's re).")
    replacement: str = Field(default="[redacted]", max_length=64, description="What replaces a match.")
    hook: Name | None = Field(
        default=None, description="Name of an entry point in the group pointsman_shadow.redactors: a function of text."
    )

    @field_validator("patterns")
    @classmethod
    def _compile(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as err:
                raise ValueError(f"{pattern!r} is no regular expression: {err}") from err
        return patterns


class Mirror(Model):
    """One challenger beside the live traffic of one model."""

    name: Name = Field(description="Unique; in URLs, labels and the store.")
    model: Text = Field(description="The model name that clients ask for, or * for every one.")
    challenger: Text | Version = Field(description="A model group, a deployment id, or {version: id} of the registry.")
    sample_rate: float = Field(default=0.05, ge=0, le=1, description="Share of the matching requests, 0 to 1.")
    salt: str | None = Field(default=None, max_length=128, description="Which requests are chosen; default: the name.")
    filter: Filter = Field(default=Filter(), description="Which requests take part.")
    endpoints: tuple[MirroredEndpoint, ...] = Field(
        default=("chat", "messages", "responses"), min_length=1, description="Which APIs are mirrored."
    )
    streams: Literal["both", "plain", "streamed"] = Field(
        default="both", description="Plain requests, streams, or both."
    )
    max_concurrent: int = Field(default=4, ge=1, le=1000, description="Calls of this mirror at a time, per worker.")
    queue_size: int = Field(default=100, ge=0, le=100_000, description="Pairs that may wait beside, per worker.")
    max_wait_s: float = Field(default=5.0, gt=0, le=3600, description="Longest wait for a free place, in seconds.")
    time_limit_s: float = Field(
        default=60.0, gt=0, le=3600, description="Longest time of one mirrored call, in seconds."
    )
    rest_after: int | None = Field(
        default=10,
        ge=1,
        le=1_000_000,
        description="After so many failures in a row the challenger is asked once after 1 s, 2 s, 4 s and so on, at most"
        " a minute apart, until it answers; null: it is asked on.",
    )
    budget: Budget = Field(default=Budget(), description="What it may spend a day.")
    tenant: Text | None = Field(default=None, description="The account that pays; default: shadow:<name>.")
    pairs_wanted: int | None = Field(
        default=None, ge=1, le=10**9, description="After so many compared pairs it is finished; null: it goes on."
    )
    confidence: float = Field(
        default=0.95, ge=0.5, le=0.9999, description="Of each interval, at all times together, 0 to 1."
    )
    bounds: Bounds = Field(default=Bounds(), description="Bounds of the differences whose means are estimated.")
    embedding: Embedding | None = Field(default=None, description="Compare meanings.")
    judge: Judge | None = Field(default=None, description="Let a model compare.")
    server_tools: bool = Field(
        default=False, description="Mirror also requests whose tools run at the provider or the gateway (MCP, search)."
    )
    keep_results: int = Field(default=1000, ge=0, le=10_000, description="The newest results that are kept.")
    keep_results_days: float = Field(
        default=30.0, gt=0, le=3660, description="A kept result is gone after so many days."
    )
    keep_texts: bool = Field(default=False, description="Keep the answers' texts in the results, redacted.")
    max_text_chars: int = Field(default=8000, ge=1, le=MAX_TEXT_CHARS, description="Of each kept text, in characters.")
    redact: Redaction = Field(default=Redaction(), description="What is taken out of kept texts.")

    @property
    def account(self) -> str:
        """The tenant that pays."""
        return self.tenant or f"shadow:{self.name}"

    @property
    def keep_results_s(self) -> float:
        """How long a result is kept, in seconds."""
        return self.keep_results_days * 86_400

    @property
    def challenger_text(self) -> str:
        """The challenger for people."""
        return self.challenger if isinstance(self.challenger, str) else f"version {self.challenger.version}"

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not self.keep_texts and (self.redact.patterns or self.redact.hook):
            raise ValueError("redact: there is nothing to redact while keep_texts is false")
        return self

    def definition(self) -> dict[str, object]:
        """Return what its figures depend on: figures of two different definitions are not added up."""
        whole = self.model_dump(mode="json")
        return {key: whole[key] for key in _DEFINITION}


_DEFINITION: Final = (
    "model",
    "challenger",
    "filter",
    "endpoints",
    "streams",
    "confidence",
    "bounds",
    "embedding",
    "judge",
)


class ShadowConfig(PluginConfig):
    """Mirrors, and how often the workers hand in what they have seen."""

    mirrors: tuple[Mirror, ...] = Field(default=(), max_length=100, description="The mirrors.")
    flush_s: float = Field(
        default=1.0, ge=0.05, le=60, description="How often a worker hands in its figures, in seconds."
    )
    max_lag_ms: float = Field(
        default=20.0,
        gt=0,
        le=60_000,
        description="No mirror starts while the worker's event loop is later than this, in milliseconds.",
    )

    @model_validator(mode="after")
    def _names(self) -> Self:
        for index, mirror in enumerate(self.mirrors):
            if any(other.name == mirror.name for other in self.mirrors[:index]):
                raise ValueError(f"mirrors[{index}]: the name {mirror.name!r} is used twice")
        return self
