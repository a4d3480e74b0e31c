"""The client's request read: may it be mirrored, what is sent to the challenger, what did the client ask."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from pointsman.types import Endpoint

#: What speaks to the gateway or to the provider's account, not to the model. A mirror has its own.
_NOT_MIRRORED: Final = frozenset(
    {
        "model",
        "stream",
        "stream_options",
        "metadata",
        "litellm_metadata",
        "user",
        "safety_identifier",
        "prompt_cache_key",
        "store",
        "background",
        "service_tier",
        "num_retries",
        "max_retries",
        "fallbacks",
        "context_window_fallbacks",
        "content_policy_fallbacks",
        "disable_fallbacks",
        "timeout",
        "request_timeout",
        "stream_timeout",
        "cache",
        "caching",
        "ttl",
        "tags",
        "guardrails",
        "api_key",
        "api_base",
        "base_url",
        "api_version",
        "extra_headers",
        "headers",
        "mock_response",
        "mock_timeout",
        "mock_testing_fallbacks",
        "mock_testing_context_fallbacks",
        "mock_testing_content_policy_fallbacks",
        "mock_testing_rate_limit_error",
        "specific_deployment",
        "user_config",
        "priority",
    }
)
_PREFIX: Final = "litellm_"
#: What refers to something that only the primary's provider keeps.
_STATE: Final = ("previous_response_id", "conversation", "container", "prompt")
#: The only kinds of tool that the client runs itself.
_CLIENTS_TOOLS: Final = frozenset({"function", "custom"})
_PROMPT_KEYS: Final = ("system", "instructions", "messages", "input")
_TEXT_KEYS: Final = ("content", "text", "output", "tool_calls", "function", "arguments")
_MAX_DEPTH: Final = 12


def obstacle(endpoint: Endpoint, body: Mapping[str, object], *, server_tools: bool) -> str | None:
    """Return why a request must not be sent a second time, or None when it may.

    Args:
        endpoint: The API.
        body: The client's request.
        server_tools: Whether tools that run at the provider or the gateway are allowed.

    Returns:
        ``background``, ``state`` or ``server_tools``.
    """
    if endpoint is Endpoint.RESPONSES:
        if body.get("background"):
            return "background"
        if any(body.get(name) for name in _STATE):
            return "state"
    if server_tools:
        return None
    if body.get("mcp_servers") or body.get("web_search_options"):
        return "server_tools"
    tools = body.get("tools")
    if isinstance(tools, Sequence) and not isinstance(tools, str):
        for tool in tools:
            # Anthropic's own tools of the client have no type at all.
            kind = tool.get("type") if isinstance(tool, Mapping) else None
            if kind is not None and kind not in _CLIENTS_TOOLS:
                return "server_tools"
    return None


def has_tools(body: Mapping[str, object]) -> bool:
    """Say whether the request offers tools."""
    return bool(body.get("tools") or body.get("functions"))


def mirrored(endpoint: Endpoint, body: Mapping[str, object]) -> dict[str, object]:
    """Return what is sent to the challenger: a copy, so that nobody changes the primary's, without the gateway's part."""
    made = {
        name: _copied(value)
        for name, value in body.items()
        if name not in _NOT_MIRRORED and not name.startswith(_PREFIX)
    }
    if endpoint is Endpoint.RESPONSES:
        # The copy leaves nothing behind at the provider.
        made["store"] = False
    return made


def _copied(value: object) -> object:
    if isinstance(value, dict):
        return {name: _copied(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_copied(item) for item in value]
    return value


def prompt_chars(body: Mapping[str, object]) -> int:
    """Return how many characters of text the request holds."""
    return sum(len(text) for key in _PROMPT_KEYS for _, text in _texts(body.get(key), key, 0))


def prompt_text(body: Mapping[str, object], max_chars: int) -> str:
    """Return the request as text with the role before each part; of a long one, the end."""
    lines = [f"{role}: {text}" for key in _PROMPT_KEYS for role, text in _texts(body.get(key), _role(key), 0)]
    return "\n".join(lines)[-max_chars:]


def _role(key: str) -> str:
    return "user" if key in {"input", "messages"} else "system"


def _texts(value: object, role: str, depth: int) -> Iterator[tuple[str, str]]:
    """Yield role and text of every piece of text, wherever it stands; images and files are left out."""
    if isinstance(value, str):
        if value:
            yield role, value
    elif depth >= _MAX_DEPTH:
        return
    elif isinstance(value, Mapping):
        own = value.get("role")
        role = own if isinstance(own, str) else role
        for key in _TEXT_KEYS:
            if key in value:
                yield from _texts(value[key], role, depth + 1)
    elif isinstance(value, Sequence):
        for item in value:
            yield from _texts(item, role, depth + 1)


def most_tokens(body: Mapping[str, object], otherwise: int) -> int:
    """Return the most tokens that the request allows the answer, or ``otherwise`` when it does not say."""
    for name in ("max_completion_tokens", "max_output_tokens", "max_tokens"):
        value = body.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return otherwise
