"""The names and attributes of spans. Pure.

They follow OpenTelemetry's GenAI semantic conventions 0.1.0 (with the general conventions 1.44.0), and ``pointsman.*`` for
decisions. ``examples/tracing/ATTRIBUTES.md`` lists all of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from opentelemetry.trace import StatusCode

from ..types import Attempt, Candidate, Denial, Deployment, Endpoint, Outcome, RequestContext, Route, Settlement, Usage

if TYPE_CHECKING:
    from .hooks import Dropped

Value = str | bool | int | float | Sequence[str] | Sequence[float]

#: The longest text of an attribute.
_MOST_TEXT_CHARS: Final = 1_024
#: The most elements of a list.
_MOST_ELEMENTS: Final = 128
#: The operations of the conventions; other endpoints have names of their own.
_OPERATIONS: Final[Mapping[Endpoint, str]] = {
    Endpoint.CHAT: "chat",
    Endpoint.MESSAGES: "chat",
    Endpoint.RESPONSES: "chat",
    Endpoint.COMPLETIONS: "text_completion",
    Endpoint.EMBEDDINGS: "embeddings",
    Endpoint.GENERATE_CONTENT: "generate_content",
}
#: LiteLLM's names of providers that the conventions spell otherwise.
_PROVIDERS: Final[Mapping[str, str]] = {
    "azure": "azure.ai.openai",
    "azure_text": "azure.ai.openai",
    "azure_ai": "azure.ai.inference",
    "bedrock": "aws.bedrock",
    "bedrock_converse": "aws.bedrock",
    "cohere_chat": "cohere",
    "gemini": "gcp.gemini",
    "mistral": "mistral_ai",
    "moonshot": "moonshot_ai",
    "text-completion-openai": "openai",
    "vertex_ai": "gcp.vertex_ai",
    "vertex_ai_beta": "gcp.vertex_ai",
    "watsonx": "ibm.watsonx.ai",
    "watsonx_text": "ibm.watsonx.ai",
    "xai": "x_ai",
}
_DEFAULT_PORTS: Final = {"http": 80, "https": 443, "ws": 80, "wss": 443}


def bounded(attributes: Mapping[str, object] | None, into: dict[str, Value] | None = None) -> dict[str, Value]:
    """Return attributes that can be exported: texts and lists are cut, numbers that are not finite become text such as ``inf``.

    Some texts are clients': one that is megabytes long would be in several spans. One infinity makes Jaeger answer every
    query that finds its span with an error. What is neither text, number nor a list of them is left out.

    Args:
        attributes: What is given.
        into: A dictionary that gets them; a new one when None.
    """
    found: dict[str, Value] = {} if into is None else into
    if attributes:
        for name, value in attributes.items():
            # The usual ones by their exact type: every attribute of every span comes by here.
            kind = type(value)
            if kind is str:
                found[name] = value if len(value) <= _MOST_TEXT_CHARS else value[:_MOST_TEXT_CHARS]  # type: ignore[arg-type,assignment,index]  # a str
            elif kind is int or kind is bool:
                found[name] = value  # type: ignore[assignment]  # as seen
            elif kind is float:
                found[name] = value if math.isfinite(value) else str(value)  # type: ignore[arg-type,assignment]  # a float
            elif (kind is list or kind is tuple) and _are_short_texts(value):  # type: ignore[arg-type]  # a list or a tuple
                found[name] = tuple(value)  # type: ignore[arg-type]  # of texts
            elif (other := _bounded_value(value)) is not None:
                found[name] = other
    return found


def _bounded_value(value: object) -> Value | None:
    if isinstance(value, str):
        return str(value)[:_MOST_TEXT_CHARS]
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, bytes | bytearray) or not isinstance(value, list | tuple | Sequence):
        return None
    elements = tuple([v[:_MOST_TEXT_CHARS] if isinstance(v, str) else v for v in value[:_MOST_ELEMENTS]])
    if not all(isinstance(v, str | int | float) for v in elements):
        return None
    return elements if finite(elements) else tuple([str(v) for v in elements])


def _are_short_texts(values: Sequence[object]) -> bool:
    """Return whether a list is one of texts, and nothing of it is to be cut."""
    if len(values) > _MOST_ELEMENTS:
        return False
    for value in values:  # noqa: SIM110  # a generator takes three times as long
        if type(value) is not str or len(value) > _MOST_TEXT_CHARS:
            return False
    return True


def finite(value: object) -> bool:
    """Return whether an attribute's value, or every element of it, is a number that is finite, or no number at all."""
    if isinstance(value, float):
        return math.isfinite(value)
    return not isinstance(value, list | tuple) or all(map(finite, value))


# -- names ----------------------------------------------------------------------------------------------------------------


def operation(endpoint: Endpoint) -> str:
    """Return the conventions' name of what a request to this endpoint asks for."""
    return _OPERATIONS.get(endpoint) or str(endpoint)


def request_name(ctx: RequestContext) -> str:
    """Return the name of a client request's span: operation and requested model."""
    return f"{operation(ctx.endpoint)} {ctx.model}".strip()[:_MOST_TEXT_CHARS]


def provider_name(provider: str) -> str:
    """Return the conventions' name of a provider of LiteLLM's."""
    return _PROVIDERS.get(provider, provider)


@lru_cache(maxsize=1024)
def server(url: str | None) -> Mapping[str, Value]:
    """Return address and port of the server that a URL names; empty without one."""
    if not url:
        return {}
    try:
        parts = urlsplit(url)
        port = parts.port or _DEFAULT_PORTS.get(parts.scheme)
    except ValueError:
        return {}
    if not parts.hostname:
        return {}
    address: dict[str, Value] = {"server.address": parts.hostname}
    if port is not None:
        address["server.port"] = port
    return address


def status_of(outcome: Outcome, *, answered: bool = True) -> StatusCode:
    """Return the status of a span: the one rule for requests, attempts and settlements.

    ERROR: it failed. OK: it succeeded, and for an attempt, the client's answer is its answer. UNSET: neither; it was denied,
    cancelled, left by its client, or lost a race.
    """
    if outcome is Outcome.ERROR:
        return StatusCode.ERROR
    return StatusCode.OK if outcome is Outcome.OK and answered else StatusCode.UNSET


# -- a request ------------------------------------------------------------------------------------------------------------


def request_attributes(ctx: RequestContext, kind: str = "request") -> dict[str, Value]:
    """Return the first attributes of a request's span.

    Args:
        ctx: The request.
        kind: ``request`` of a client, or the kind of a plugin's own call.
    """
    attributes: dict[str, Value] = {
        "gen_ai.operation.name": operation(ctx.endpoint),
        "gen_ai.request.model": ctx.model,
        "pointsman.kind": kind,
        "pointsman.request_id": ctx.request_id,
        "pointsman.endpoint": str(ctx.endpoint),
    }
    if ctx.stream:
        attributes["gen_ai.request.stream"] = True
    if ctx.parent_id:
        attributes["pointsman.parent_id"] = ctx.parent_id
    if ctx.call_id:
        attributes["litellm.call_id"] = ctx.call_id
    if ctx.identity.tenant:
        attributes["pointsman.tenant"] = ctx.identity.tenant
    if ctx.session_id:
        attributes["gen_ai.conversation.id"] = ctx.session_id
    return attributes


def route_attributes(route: Route) -> dict[str, Value]:
    """Return where a route goes."""
    attributes: dict[str, Value] = {"pointsman.target": route.target}
    for name, value in route.labels.items():
        attributes[f"pointsman.label.{name}"] = value
    if route.fallbacks:
        attributes["pointsman.fallbacks"] = route.fallbacks
    if route.executor:
        attributes["pointsman.executor"] = route.executor
    if route.reservations:
        attributes["pointsman.reserved_by"] = sorted({r.plugin for r in route.reservations})
        totals: dict[str, int] = {}
        for reservation in route.reservations:
            for unit, amount in reservation.amounts.items():
                totals[unit] = totals.get(unit, 0) + amount
        for unit, amount in totals.items():
            attributes[f"pointsman.reserved.{unit}"] = amount
    return attributes


def denial_attributes(denial: Denial) -> dict[str, Value]:
    """Return which plugin denied a request, and why."""
    attributes: dict[str, Value] = {
        "pointsman.denied_by": denial.plugin or "pointsman",
        "pointsman.denial.code": denial.code,
        "pointsman.denial.reason": denial.message,
    }
    if denial.retry_after_s is not None:
        attributes["pointsman.retry_after_s"] = denial.retry_after_s
    return attributes


def end_attributes(settlement: Settlement) -> dict[str, Value]:
    """Return how a request ended."""
    attributes: dict[str, Value] = {
        "pointsman.outcome": str(settlement.outcome),
        "pointsman.attempts": len(settlement.attempts),
    }
    if settlement.status_code:
        attributes["http.response.status_code"] = settlement.status_code
    if (cost := _known_cost(settlement)) is not None:
        attributes["pointsman.cost_usd_micros"] = cost
    if settlement.usage is not None:
        attributes.update(usage_attributes(settlement.usage))
    answer = next((a for a in settlement.attempts if a.id == settlement.answered_by), None)
    if answer is not None:
        attributes["pointsman.answered_by"] = answer.deployment.id
        attributes["gen_ai.provider.name"] = provider_name(answer.deployment.provider)
        if (model := answering_model(answer)) is not None:
            attributes["gen_ai.response.model"] = model
        if answer.cached:
            attributes["pointsman.cached"] = True
    if settlement.first_token_ms is not None and settlement.stream:
        attributes["gen_ai.response.time_to_first_chunk"] = settlement.first_token_ms / 1000
    if settlement.outcome is Outcome.ERROR:
        attributes["error.type"] = error_type(settlement)
    return attributes


def error_type(settlement: Settlement) -> str:
    """Return why a request failed: the class of the last error of its attempts, else the status that was sent."""
    errors = [a.error.kind for a in settlement.attempts if a.outcome is Outcome.ERROR and a.error is not None]
    return str(errors[-1]) if errors else str(settlement.status_code or "_OTHER")


def _known_cost(settlement: Settlement) -> int | None:
    """Return what the attempts cost; None when the cost of one that used something is not known."""
    costs = [a.cost_usd_micros for a in settlement.attempts if a.usage is not None or a.cost_usd_micros is not None]
    return None if any(cost is None for cost in costs) else sum(cost or 0 for cost in costs)


def settlement_attributes(settlement: Settlement, pending: Iterable[str] = ()) -> dict[str, Value]:
    """Return what a settlement settles.

    Args:
        settlement: As it was given to the plugins.
        pending: The plugins that have not settled it; they will be asked again.
    """
    attributes = {**route_attributes(settlement.route), **end_attributes(settlement)}
    attributes.pop("error.type", None)
    if settlement.duration_ms is not None:
        attributes["pointsman.duration_ms"] = settlement.duration_ms
    waiting = sorted(pending)
    attributes["pointsman.settled"] = not waiting
    if waiting:
        attributes["pointsman.waiting"] = waiting
    return attributes


# -- an attempt -----------------------------------------------------------------------------------------------------------


def selection_attributes(left: Sequence[Candidate], dropped: Sequence[Dropped]) -> dict[str, Value]:
    """Return the remaining candidates with scores and notes, and the dropped ones with plugin and reason."""
    attributes: dict[str, Value] = {"pointsman.candidates": [c.deployment.id for c in left]}
    scores = [c.score for c in left if c.score is not None]
    if scores and len(scores) == len(left) and finite(scores):
        attributes["pointsman.scores"] = scores
    if notes := [f"{c.deployment.id}: {'; '.join(c.notes)}" for c in left if c.notes]:
        attributes["pointsman.notes"] = notes
    if dropped:
        attributes["pointsman.dropped"] = [f"{d.deployment_id}: {d.reason} ({d.plugin})" for d in dropped]
    return attributes


def attempt_start_attributes(ctx: RequestContext, attempt: Attempt) -> dict[str, Value]:
    """Return the first attributes of an attempt's span."""
    deployment: Deployment = attempt.deployment
    attributes: dict[str, Value] = {
        "gen_ai.operation.name": operation(ctx.endpoint),
        "gen_ai.provider.name": provider_name(deployment.provider),
        "gen_ai.request.model": deployment.model,
        **server(deployment.api_base),
        "pointsman.attempt": attempt.number,
        "pointsman.attempt.id": attempt.id,
        "pointsman.attempt.kind": str(attempt.kind),
        "pointsman.deployment": deployment.id,
        "pointsman.group": deployment.group,
    }
    if ctx.stream:
        attributes["gen_ai.request.stream"] = True
    for name, value in attempt.labels.items():
        attributes[f"pointsman.label.{name}"] = value
    return attributes


def attempt_name(ctx: RequestContext, attempt: Attempt) -> str:
    """Return the name of an attempt's span: operation and the provider's model."""
    return f"{operation(ctx.endpoint)} {attempt.deployment.model}".strip()[:_MOST_TEXT_CHARS]


def attempt_attributes(attempt: Attempt, *, stream: bool) -> dict[str, Value]:
    """Return how an attempt ended."""
    attributes: dict[str, Value] = {"pointsman.outcome": str(attempt.outcome)}
    if attempt.usage is not None:
        attributes.update(usage_attributes(attempt.usage))
    if (model := answering_model(attempt)) is not None:
        attributes["gen_ai.response.model"] = model
    if attempt.status_code is not None:
        attributes["http.response.status_code"] = attempt.status_code
    if attempt.first_token_ms is not None and stream:
        attributes["gen_ai.response.time_to_first_chunk"] = attempt.first_token_ms / 1000
    if attempt.cost_usd_micros is not None:
        attributes["pointsman.cost_usd_micros"] = attempt.cost_usd_micros
    if attempt.cached:
        attributes["pointsman.cached"] = True
    if attempt.error is not None:
        if attempt.outcome is Outcome.ERROR:
            attributes["error.type"] = str(attempt.error.kind)
        else:
            attributes["pointsman.ended_because"] = attempt.error.message
        if attempt.error.retry_after_s is not None:
            attributes["pointsman.retry_after_s"] = attempt.error.retry_after_s
    return attributes


def answering_model(attempt: Attempt) -> str | None:
    """Return the model that answered, as the provider says, else as the gateway does: it names a stream by the request."""
    said = attempt.usage.model if attempt.usage is not None else None
    return said or attempt.model


def usage_attributes(usage: Usage) -> dict[str, Value]:
    """Return token counts; a kind that the provider does not name is left out."""
    attributes: dict[str, Value] = {
        "gen_ai.usage.input_tokens": usage.prompt_tokens,
        "gen_ai.usage.output_tokens": usage.completion_tokens,
    }
    kinds = {
        "gen_ai.usage.cache_read.input_tokens": usage.cached_tokens,
        "gen_ai.usage.cache_write.input_tokens": usage.cache_write_tokens,
        "gen_ai.usage.reasoning.output_tokens": usage.reasoning_tokens,
        "gen_ai.usage.audio.input_tokens": usage.audio_prompt_tokens,
        "gen_ai.usage.audio.output_tokens": usage.audio_completion_tokens,
        "gen_ai.usage.image.input_tokens": usage.image_prompt_tokens,
        "gen_ai.usage.image.output_tokens": usage.image_completion_tokens,
    }
    attributes |= {name: count for name, count in kinds.items() if count}
    if usage.estimated:
        attributes["pointsman.usage.estimated"] = True
    return attributes


def error_text(attempt: Attempt) -> str | None:
    """Return the description of a failed attempt's status; None for any other.

    An attempt that was cancelled, or that the client left, has not failed: error rates over spans are about providers.
    """
    if attempt.outcome is not Outcome.ERROR:
        return None
    return f"{attempt.outcome}: {attempt.error.message}" if attempt.error else str(attempt.outcome)
