"""Error answers as the providers word them.

Source: the providers' error references, and recorded or reported error bodies.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .behaviour import BadRequest
    from .wire import Dialect

SERVER_ERROR = {
    "message": "The server had an error while processing your request. Sorry about that!",
    "type": "server_error",
    "param": None,
    "code": None,
}
"""OpenAI's error object for a failure of its own, in a body or in a stream."""

OVERLOADED = {"type": "overloaded_error", "message": "Overloaded"}
"""Anthropic's error object for an overload, in a body or in a stream."""

_BUSY = "The server is currently overloaded with other requests. Sorry about that! You can retry your request."
_TOO_LONG = "This model's maximum context length is 8192 tokens. Please reduce the length of the messages."
# LiteLLM 1.110 recognises a refusal on chat by its text alone: the words of "the safety system".
_FILTERED = "Your request was rejected as a result of the safety system: the prompt triggers its content policy."

_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}
_ANTHROPIC_MESSAGES = {
    400: "messages: at least one message is required",
    401: "invalid x-api-key",
    403: "Your API key does not have permission to use the specified resource.",
    413: "Request exceeds the maximum size",
    429: "This request would exceed your organization's rate limit. Please try again later.",
    529: "Overloaded",
}


def failure(
    dialect: Dialect,
    status: int,
    *,
    model: str,
    request_id: str,
    reason: BadRequest = "invalid",
    message: str | None = None,
    param: str | None = None,
    exceeded: str = "requests",
) -> dict[str, Any]:
    """Return the body of an error answer.

    Args:
        dialect: Whose API.
        status: HTTP status.
        model: The model that was asked for.
        request_id: The id that the headers carry too.
        reason: What a 400 complains about.
        message: The message instead of the provider's usual one.
        param: The field at fault, for a 400.
        exceeded: The limit that a 429 is about: ``requests`` or ``tokens``.
    """
    if dialect == "anthropic":
        return _anthropic(status, model, request_id, reason, message)
    if dialect == "azure":
        found = _azure(status, reason, exceeded)
        if found is not None:
            return {"error": found if message is None else {**found, "message": message}}
    error = _openai(status, model, reason, exceeded)
    return {"error": error | ({"message": message} if message else {}) | ({"param": param} if param else {})}


def _openai(status: int, model: str, reason: BadRequest, exceeded: str) -> dict[str, Any]:
    if status == 429:  # noqa: PLR2004 - a status is clearest as its number
        text = f"Rate limit reached for {model} on {exceeded} per min. Please slow down and try again later."
        return _error(text, exceeded, "rate_limit_exceeded")
    if status == 400:  # noqa: PLR2004 - as above
        return {
            "invalid": _error("Invalid request.", "invalid_request_error", None),
            "context_window": _error(_TOO_LONG, "invalid_request_error", "context_length_exceeded", "messages"),
            "content_policy": _error(_FILTERED, "invalid_request_error", "content_policy_violation"),
        }[reason]
    missing = f"The model `{model}` does not exist or you do not have access to it."
    known = {
        401: _error("Incorrect API key provided.", "invalid_request_error", "invalid_api_key"),
        403: _error(
            "Country, region, or territory not supported",
            "request_forbidden",
            "unsupported_country_region_territory",
        ),
        404: _error(missing, "invalid_request_error", "model_not_found"),
        503: _error(_BUSY, "server_error", None),
        529: _error(_BUSY, "server_error", None),
    }
    if status in known:
        return known[status]
    return SERVER_ERROR if status >= 500 else _error("Invalid request.", "invalid_request_error", None)  # noqa: PLR2004 - as above


def _azure(status: int, reason: BadRequest, exceeded: str) -> dict[str, Any] | None:
    """Return the error object where Azure's differs from OpenAI's, else None."""
    limit = "token" if exceeded == "tokens" else "call"
    if status == 400:  # noqa: PLR2004 - a status is clearest as its number
        result = {"filtered": True, "severity": "high"}
        filtered = {
            **_error(_FILTERED, None, "content_filter", "prompt"),
            "status": 400,
            "innererror": {
                "code": "ResponsibleAIPolicyViolation",
                "content_filter_result": {"violence": result, "jailbreak": {"filtered": False, "detected": False}},
            },
        }
        return filtered if reason == "content_policy" else None
    return {
        401: {
            "code": "401",
            "message": "Access denied due to invalid subscription key or wrong API endpoint. Make sure to provide a "
            "valid key for an active subscription and use a correct regional API endpoint for your resource.",
        },
        404: {
            "type": "invalid_request_error",
            "code": "DeploymentNotFound",
            "message": "The API deployment for this resource does not exist. If you created the deployment within the "
            "last 5 minutes, please wait a moment and try again.",
        },
        429: {
            "code": "429",
            "message": f"Requests to the ChatCompletions_Create Operation have exceeded {limit} rate limit of your "
            "current OpenAI S0 pricing tier. Please retry later.",
        },
    }.get(status)


def _anthropic(status: int, model: str, request_id: str, reason: BadRequest, message: str | None) -> dict[str, Any]:
    text = message or _ANTHROPIC_MESSAGES.get(status, "Internal server error")
    if message is None and status == 404:  # noqa: PLR2004 - a status is clearest as its number
        text = f"model: {model}"
    if message is None and status == 400 and reason != "invalid":  # noqa: PLR2004 - as above
        text = {
            "context_window": "prompt is too long: 200001 tokens > 200000 maximum",
            "content_policy": "Output blocked by content filtering policy",
        }[reason]
    kind = _ANTHROPIC_TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")  # noqa: PLR2004 - as above
    return {"type": "error", "error": {"type": kind, "message": text}, "request_id": request_id}


def _error(message: str, kind: str | None, code: str | None, param: str | None = None) -> dict[str, Any]:
    return {"message": message, "type": kind, "param": param, "code": code}
