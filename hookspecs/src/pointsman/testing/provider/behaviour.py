"""How one upstream model behaves: speed, text, usage, failures, limits. Values only; ``plan`` decides with them.

A behaviour is set per upstream model name, by a script at the start or live through the control surface. In JSON and
YAML the fields have the same names; a ``Delay`` may be written as a plain number of milliseconds.
"""

from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Annotated, Literal, Self

import yaml
from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from pointsman.errors import ConfigError

Fault = Literal["drop", "hang", "break", "error_event", "malformed_json", "wrong_content_type"]
BadRequest = Literal["invalid", "context_window", "content_policy"]
ErrorStatus = Annotated[int, Field(ge=400, le=599)]
Ratio = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]

ANY_MODEL = "*"
"""The name under which a script keeps the behaviour of every model that it does not name."""

_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True, slots=True, config=_STRICT)
class Delay:
    """A distribution of waiting times; one value is drawn per request.

    Attributes:
        median_ms: The fixed delay, or the median when ``sigma`` is set, in milliseconds.
        sigma: Standard deviation of the delay's logarithm; above 0 the delay is lognormal.
        values_ms: Request n waits ``values_ms[n % len(values_ms)]`` milliseconds; replaces the two above.
    """

    median_ms: float = Field(default=0.0, ge=0)
    sigma: float = Field(default=0.0, ge=0)
    values_ms: tuple[Annotated[float, Field(ge=0)], ...] = ()


def _delay(value: object) -> object:
    return {"median_ms": value} if isinstance(value, (int, float)) else value


Pause = Annotated[Delay, BeforeValidator(_delay)]


@dataclass(frozen=True, slots=True, kw_only=True, config=_STRICT)
class Limits:
    """What one model may be asked for in a window. Used-up capacity comes back evenly over the window.

    Attributes:
        requests: Requests per window.
        tokens: Prompt and output tokens together per window.
        input_tokens: Prompt tokens per window; None is the same as ``tokens``.
        output_tokens: Output tokens per window; None is the same as ``tokens``.
        window_s: Length of the window in seconds.
    """

    requests: int = Field(default=30_000, ge=1)
    tokens: int = Field(default=150_000_000, ge=1)
    input_tokens: int | None = Field(default=None, ge=1)
    output_tokens: int | None = Field(default=None, ge=1)
    window_s: float = Field(default=60.0, gt=0)


@dataclass(frozen=True, slots=True, kw_only=True, config=_STRICT)
class BrownOut:
    """A time of trouble, counted from the moment the behaviour was set.

    Attributes:
        start_s: When it begins, in seconds.
        end_s: When it is over, in seconds.
        error_ratio: Share of the requests in it that fail.
        status: The status they fail with.
        delay_factor: By how much every delay is longer while it lasts.
    """

    start_s: float = Field(ge=0)
    end_s: float = Field(gt=0)
    error_ratio: Ratio = 1.0
    status: ErrorStatus = 503
    delay_factor: float = Field(default=1.0, ge=0)


@dataclass(frozen=True, slots=True, kw_only=True, config=_STRICT)
class Behaviour:
    """How one upstream model behaves. Deterministic: request n of a model always gets the same draws.

    Attributes:
        latency: Wait before the response headers.
        first_token: Further wait before the first token. A plain answer waits for all its tokens before its headers.
        per_token: Wait between tokens.
        tokens: Length of the generated text in tokens; the request's own maximum can only shorten it.
        text: The text to answer with instead of a generated one.
        call_tools: How many of the offered tools to call where the request leaves the choice to the model. A request
            that demands a call gets one in any case; after a tool's result there is text.
        dimensions: Length of embedding vectors where the request does not say.
        cached_prompt_tokens: Prompt tokens reported as read from the provider's cache, at most all of them.
        reasoning_tokens: Output tokens reported beyond those of the text.
        empty_role_chunk: Whether a chat stream begins, before the first token's delay, with a chunk that has a role and
            no text; otherwise the role comes with the first token.
        error_ratios: Share of the requests that fail, by status: ``{429: 0.1, 500: 0.02}``.
        fail_first: The first so many requests fail with ``fail_with``, the others do not for this reason.
        fail_with: A status or a fault.
        bad_request: What status 400 complains about.
        retry_after_s: Value of the header ``retry-after`` on 429, 503 and 529, in seconds; None leaves it out.
        retry_after_ms: Value of the header ``retry-after-ms`` on the same, in milliseconds; None leaves it out.
        fault: What goes wrong with requests that do not fail with a status. ``drop``: the connection is closed before the headers. ``hang``: nothing
            more comes, for ever. ``break``: the connection is closed in the middle. ``error_event``: a stream ends with
            the provider's error event. ``malformed_json``: half of the JSON is missing. ``wrong_content_type``: the
            answer claims to be HTML.
        fault_ratio: Share of the requests that the fault meets.
        fault_after_events: How many events of a stream are sent before ``hang``, ``break``, ``error_event`` or the
            event that ``malformed_json`` spoils. A stream that has fewer is left alone. Plain answers break in the
            middle of the body, and have no error events.
        straggler_ratio: Share of the requests that are slow.
        straggler_factor: By how much all delays of a slow request are longer.
        brown_outs: Times of trouble; the first that fits counts.
        limits: The rate limit that is enforced and reported in headers.
        seed: Seed of all random choices.
    """

    latency: Pause = Delay()
    first_token: Pause = Delay()
    per_token: Pause = Delay()
    tokens: int = Field(default=16, ge=1, le=100_000)
    text: str | None = None
    call_tools: Count = 0
    dimensions: int = Field(default=1536, ge=1, le=16_384)
    cached_prompt_tokens: Count = 0
    reasoning_tokens: Count = 0
    empty_role_chunk: bool = True
    error_ratios: Mapping[ErrorStatus, Ratio] = field(default_factory=dict)
    fail_first: Count = 0
    fail_with: ErrorStatus | Fault = 500
    bad_request: BadRequest = "invalid"
    retry_after_s: Count | None = None
    retry_after_ms: Count | None = None
    fault: Fault | None = None
    fault_ratio: Ratio = 1.0
    fault_after_events: Count = 0
    straggler_ratio: Ratio = 0.0
    straggler_factor: float = Field(default=8.0, ge=0)
    brown_outs: tuple[BrownOut, ...] = ()
    limits: Limits = Limits()
    seed: int = 0

    @model_validator(mode="after")
    def _ratios_add_up(self) -> Self:
        if sum(self.error_ratios.values()) > 1:
            raise ValueError("error_ratios: the shares add up to more than 1")
        return self


BEHAVIOUR: TypeAdapter[Behaviour] = TypeAdapter(Behaviour)
"""Reads and writes a behaviour as JSON."""

_SCRIPT: TypeAdapter[dict[str, Behaviour]] = TypeAdapter(dict[str, Behaviour])


def load_script(path: Path) -> dict[str, Behaviour]:
    """Read behaviours by model name from a YAML or JSON file; ``*`` is for all models that it does not name.

    Raises:
        ConfigError: the file cannot be read or has something in it that no behaviour has.
    """
    try:
        return _SCRIPT.validate_python(yaml.safe_load(path.read_text(encoding="utf-8")) or {})
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ValidationError) as err:
        raise ConfigError(f"upstream script {path}: {err}") from err
