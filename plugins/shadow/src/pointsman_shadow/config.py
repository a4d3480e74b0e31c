"""The shadow's section of the configuration."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from typing import Annotated, Final, Literal, Self, TypeAlias

from pydantic import Field, StringConstraints, field_validator, model_validator

from pointsman.config import Section
from pointsman.plugin import OnFailure, PluginConfig, UnpricedModel

NAME: Final = re.compile(r"^[a-z0-9][a-z0-9_-]{0,63}$")
EVERY_MODEL: Final = "*"
#: Texts in a result are never longer than this.
MAX_TEXT_CHARS: Final = 100_000

Name: TypeAlias = Annotated[str, StringConstraints(pattern=NAME)]
Text: TypeAlias = Annotated[str, StringConstraints(min_length=1, max_length=512)]
Usd: TypeAlias = Annotated[Decimal, Field(gt=0, le=1_000_000, decimal_places=6)]
MirroredEndpoint: TypeAlias = Literal["chat", "messages", "responses"]


class Version(Section):
    """A version of a model in the registry plugin."""

    version: Text = Field(description="The version's id.")


class Filter(Section):
    """Which of the model's requests are mirrored: those that match every field that is set."""

    teams: tuple[Text, ...] = Field(default=(), description="LiteLLM team ids; empty: all teams.")
    key_aliases: tuple[Text, ...] = Field(default=(), description="Aliases of API keys; empty: all keys.")
    tenants: tuple[Text, ...] = Field(
        default=(), description="Tenants, as resolved by a plugin such as quota; empty: all tenants."
    )
    labels: dict[Text, Text] = Field(
        default={}, description="Labels that the primary's route must have, such as arm: stable."
    )
    tools: bool | None = Field(
        default=None, description="true: only requests with tools; false: only requests without; null: both."
    )
    max_prompt_chars: int | None = Field(
        default=None, ge=1, le=10_000_000, description="Longest prompt, in characters; longer requests are skipped."
    )


class BudgetConfig(Section):
    """What a mirror may spend per UTC day, including judge and embeddings, across all workers."""

    tokens_per_day: int | None = Field(
        default=None, ge=1, le=10**12, description="Prompt and completion tokens per UTC day; null: unlimited."
    )
    usd_per_day: Usd | None = Field(
        default=None,
        description="US dollars per UTC day; needs a price of the challenger in the cost map; null: unlimited.",
    )

    @property
    def usd_micros_per_day(self) -> int | None:
        """The money in millionths of a dollar."""
        return None if self.usd_per_day is None else int(self.usd_per_day * 1_000_000)


class Bounds(Section):
    """The largest differences that count; larger ones are clipped, since only the mean of bounded values has an interval."""

    latency_ms: float = Field(
        default=10_000.0, gt=0, le=3_600_000, description="Largest difference of latencies, in milliseconds."
    )
    first_token_ms: float = Field(
        default=5_000.0,
        gt=0,
        le=3_600_000,
        description="Largest difference of times to the first token, in milliseconds.",
    )
    tokens: float = Field(default=2_000.0, gt=0, le=10_000_000, description="Largest difference of completion tokens.")
    cost_usd_micros: float = Field(
        default=50_000.0, gt=0, le=10**9, description="Largest difference of cost, in millionths of a dollar."
    )


class EmbeddingConfig(Section):
    """Similarity of meaning: the cosine of the two answers' embeddings."""

    model: Text = Field(description="Model group or deployment id of an embedding model.")
    sample_rate: float = Field(default=1.0, ge=0, le=1, description="Share of the pairs that are embedded, 0 to 1.")


class JudgeConfig(Section):
    """A model that decides which answer is better; it is asked twice, with the answers in either order."""

    model: Text = Field(description="Model group or deployment id of the judge.")
    sample_rate: float = Field(default=1.0, ge=0, le=1, description="Share of the pairs that are judged, 0 to 1.")
    criteria: str = Field(
        default="Which answer is more correct, more helpful and follows the request better?",
        min_length=1,
        max_length=4000,
        description="The question that the judge answers.",
    )
    max_tokens: int = Field(default=200, ge=1, le=16_384, description="Longest answer of the judge, in tokens.")
    max_chars: int = Field(
        default=20_000,
        ge=100,
        le=1_000_000,
        description="Longest part of the request and of each answer that the judge sees, in characters.",
    )


class Redaction(Section):
    """What is removed from texts before they are stored."""

    patterns: tuple[str, ...] = Field(
        default=(), max_length=64, description="Regular expressions of Python's re; every match is replaced."
    )
    replacement: str = Field(default="[redacted]", max_length=64, description="Text that replaces a match.")
    hook: Name | None = Field(
        default=None,
        description="Entry point in the group pointsman_shadow.redactors: a function from text to text, called last.",
    )

    @field_validator("patterns")
    @classmethod
    def _compile(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as err:
                raise ValueError(f"{pattern!r} is not a regular expression: {err}") from err
        return patterns


class MirrorConfig(Section):
    """One challenger that receives copies of the live traffic of one model."""

    name: Name = Field(description="Unique name; part of URLs, labels and store keys.")
    model: Text = Field(description="The model name that clients request; * for every model.")
    challenger: Text | Version = Field(description="A model group, a deployment id, or {version: id} of the registry.")
    sample_rate: float = Field(
        default=0.05, ge=0, le=1, description="Share of the matching requests that is mirrored, 0 to 1."
    )
    salt: str | None = Field(
        default=None, max_length=128, description="Changes which requests are sampled; null: the name."
    )
    filter: Filter = Field(default=Filter(), description="Which requests can be mirrored.")
    endpoints: tuple[MirroredEndpoint, ...] = Field(
        default=("chat", "messages", "responses"), min_length=1, description="Which APIs are mirrored."
    )
    streams: Literal["both", "plain", "streamed"] = Field(
        default="both", description="Plain requests, streams, or both."
    )
    max_concurrent: int = Field(default=4, ge=1, le=1000, description="Concurrent calls of this mirror, per worker.")
    queue_size: int = Field(
        default=100,
        ge=0,
        le=100_000,
        description="Pairs that wait in addition to the running ones, per worker; more are dropped.",
    )
    max_wait_s: float = Field(
        default=5.0, gt=0, le=3600, description="Longest wait for a free slot, in seconds; then the pair is dropped."
    )
    time_limit_s: float = Field(default=60.0, gt=0, le=3600, description="Timeout of one mirrored call, in seconds.")
    rest_after: int | None = Field(
        default=10,
        ge=1,
        le=1_000_000,
        description="Consecutive failures that begin a backoff: one trial call after 1 s, 2 s, 4 s and so on, at most a"
        " minute apart, until the challenger answers; null disables it.",
    )
    budget: BudgetConfig = Field(default=BudgetConfig(), description="What the mirror may spend per UTC day.")
    tenant: Text | None = Field(default=None, description="Tenant that pays for the calls; null: shadow:<name>.")
    pairs_wanted: int | None = Field(
        default=None, ge=1, le=10**9, description="Compared pairs that finish the mirror; null: it does not end."
    )
    confidence: float = Field(
        default=0.95, ge=0.5, le=0.9999, description="Confidence of each interval, at all times together, 0 to 1."
    )
    bounds: Bounds = Field(default=Bounds(), description="Largest differences that count.")
    embedding: EmbeddingConfig | None = Field(
        default=None, description="Compares the meaning of the answers; null: off."
    )
    judge: JudgeConfig | None = Field(
        default=None, description="Lets a model decide which answer is better; null: off."
    )
    server_tools: bool = Field(
        default=False, description="Also mirror requests whose tools run at the provider or the gateway (MCP, search)."
    )
    keep_results: int = Field(default=1000, ge=0, le=10_000, description="Number of results that are kept, the newest.")
    keep_results_days: float = Field(
        default=30.0, gt=0, le=3660, description="Age at which a result is deleted, in days."
    )
    keep_texts: bool = Field(default=False, description="Store the answers' texts, redacted, in the results.")
    max_text_chars: int = Field(
        default=8000, ge=1, le=MAX_TEXT_CHARS, description="Longest stored text, in characters."
    )
    redact: Redaction = Field(default=Redaction(), description="What is removed from stored texts.")

    @property
    def account(self) -> str:
        """The tenant that pays."""
        return self.tenant or f"shadow:{self.name}"

    @property
    def keep_results_s(self) -> float:
        """Age at which a result is deleted, in seconds."""
        return self.keep_results_days * 86_400

    @property
    def challenger_text(self) -> str:
        """The challenger as messages name it."""
        return self.challenger if isinstance(self.challenger, str) else f"version {self.challenger.version}"

    def unpriced_problems(self, unknown: Callable[[str | Version], bool]) -> Iterator[str]:
        """Yield what is wrong where money is limited although a price is unknown.

        Args:
            unknown: Whether the price of a target is.
        """
        if self.budget.usd_per_day is None:
            return
        if unknown(self.challenger):
            yield (
                f"the price of {self.challenger_text} is unknown, so nothing is mirrored within 'budget.usd_per_day'; "
                "configure a price for it at the gateway, or limit 'budget.tokens_per_day' instead"
            )
        for name, asked in (("judge", self.judge), ("embedding", self.embedding)):
            if asked is not None and unknown(asked.model):
                yield (
                    f"the price of {name}.model {asked.model} is unknown, so what it costs is not counted in "
                    "'budget.usd_per_day'; configure a price for it at the gateway, or limit 'budget.tokens_per_day' instead"
                )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not self.keep_texts and (self.redact.patterns or self.redact.hook):
            raise ValueError("redact has no effect while keep_texts is false; set keep_texts: true or remove redact")
        return self

    def definition(self) -> dict[str, object]:
        """Return the settings that the figures depend on: figures of two different definitions are not added up."""
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
    """Mirrors, and how often the workers flush their figures."""

    mirrors: tuple[MirrorConfig, ...] = Field(default=(), max_length=100, description="The mirrors.")
    flush_s: float = Field(
        default=1.0,
        ge=0.05,
        le=60,
        description="Interval at which a worker flushes its figures to the store, in seconds.",
    )
    max_lag_ms: float = Field(
        default=20.0,
        gt=0,
        le=60_000,
        description="No mirror starts while the worker's event loop lags by more than this, in milliseconds.",
    )

    def unpriced(self, models: Sequence[UnpricedModel], policy: OnFailure) -> list[str]:  # noqa: ARG002  # a mirror is not a tenant
        """Return the mirrors whose budget of money cannot work; see the base class.

        What a version of the registry stands for is known only to the running gateway, whose status names it.
        """
        unknown = {model.name for model in models if model.is_deployment or model.name == model.group}
        return [
            f"mirrors[{index}]: {problem}"
            for index, mirror in enumerate(self.mirrors)
            for problem in mirror.unpriced_problems(lambda target: target in unknown)
        ]

    @model_validator(mode="after")
    def _names(self) -> Self:
        for index, mirror in enumerate(self.mirrors):
            if any(other.name == mirror.name for other in self.mirrors[:index]):
                raise ValueError(f"mirrors[{index}]: the name {mirror.name!r} is used twice; names must be unique")
        return self
