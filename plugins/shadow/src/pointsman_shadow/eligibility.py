"""Which requests are mirrored, and what of them the challenger is sent. Pure.

Requests are sampled by their id, the same way in every worker and at every look. The id is hashed after the mirror's
salt with BLAKE2b (RFC 7693) in 64 bits; a request is chosen when its hash is below ``rate * 2**64``. So a higher rate
never drops a request that a lower one has chosen, and mirrors with different salts choose independently.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Final, Self

from pointsman.types import Attempt, Endpoint, RequestContext

if TYPE_CHECKING:
    from .config import Filter

#: Parameters that shape an answer on every API, at some providers at least. Nothing else is sent to a challenger:
#: no credentials, addresses, headers and identities of the client's, and no switches of the gateway or of a provider.
_SHAPING: Final = frozenset(
    {
        "temperature",
        "top_p",
        "top_k",
        "top_a",
        "min_p",
        "typical_p",
        "seed",
        "repetition_penalty",
        "frequency_penalty",
        "presence_penalty",
        "min_tokens",
        "max_tokens",
        "tools",
        "tool_choice",
        "parallel_tool_calls",
        "mcp_servers",
        "thinking",
        "enable_thinking",
        "reasoning",
        "reasoning_effort",
        "verbosity",
        "context_management",
        "cache_control",
        "safety_settings",
        "chat_template_kwargs",
        # A prompt that the gateway keeps.
        "prompt_id",
        "prompt_label",
        "prompt_variables",
        "prompt_version",
        # How parameters are treated that a model does not support.
        "drop_params",
        "additional_drop_params",
        "allowed_openai_params",
    }
)
_MIRRORED: Final[Mapping[Endpoint, frozenset[str]]] = {
    Endpoint.CHAT: _SHAPING
    | {
        "messages",
        "n",
        "best_of",
        "stop",
        "stop_token_ids",
        "max_completion_tokens",
        "logit_bias",
        "logprobs",
        "top_logprobs",
        "response_format",
        "guided_choice",
        "guided_grammar",
        "guided_json",
        "guided_regex",
        "structured_outputs",
        "functions",
        "function_call",
        "modalities",
        "audio",
        "prediction",
        "web_search_options",
        "include_reasoning",
    },
    Endpoint.MESSAGES: _SHAPING
    | {"messages", "system", "stop_sequences", "output_config", "output_format", "compaction", "inference_geo"},
    Endpoint.RESPONSES: _SHAPING
    | {
        "input",
        "instructions",
        "include",
        "text",
        "max_output_tokens",
        "max_tool_calls",
        "partial_images",
        "top_logprobs",
        "truncation",
    },
}
#: References to state that only the primary's provider has.
_STATE: Final[Mapping[Endpoint, tuple[str, ...]]] = {
    Endpoint.MESSAGES: ("container",),
    Endpoint.RESPONSES: ("previous_response_id", "conversation", "prompt"),
}
#: With these a server of tools knows the client.
_CREDENTIALS: Final = ("authorization", "authorization_token", "headers")
#: The only kinds of tool that the client runs itself.
_CLIENTS_TOOLS: Final = frozenset({"function", "custom"})
_PROMPT_KEYS: Final = ("system", "instructions", "messages", "input")
_TEXT_KEYS: Final = ("content", "text", "output", "tool_calls", "function", "arguments")
_MAX_DEPTH: Final = 12
#: A request that allows more tokens allows this many; no day's budget is larger.
_MOST_TOKENS: Final = 10**12

_SPACE: Final = 2**64
_MAX_KEY_BYTES: Final = 64


@dataclass(frozen=True, slots=True)
class Sampler:
    """Chooses ids.

    Attributes:
        key: The salt as the hash's key.
        limit: Hashes below this are chosen.
    """

    key: bytes
    limit: int

    @classmethod
    def of(cls, salt: str, rate: float) -> Self:
        """Return a sampler.

        Args:
            salt: Any text.
            rate: The share of ids that are chosen, 0 to 1.
        """
        raw = salt.encode("utf-8", "surrogatepass")
        # Every salt is hashed, so that a long one is not cut and a short one never equals a hashed one.
        return cls(blake2b(raw, digest_size=_MAX_KEY_BYTES).digest(), round(rate * _SPACE))

    def chooses(self, unit: str) -> bool:
        """Say whether the id is chosen."""
        digest = blake2b(unit.encode("utf-8", "surrogatepass"), digest_size=8, key=self.key).digest()
        return int.from_bytes(digest, "big") < self.limit


def matches(wanted: Filter, ctx: RequestContext, attempt: Attempt) -> bool:
    """Say whether a request passes the mirror's filter; the prompt's length apart."""
    who = ctx.identity
    if wanted.teams and who.team_id not in wanted.teams:
        return False
    if wanted.key_aliases and who.key_alias not in wanted.key_aliases:
        return False
    if wanted.tenants and who.tenant not in wanted.tenants:
        return False
    if wanted.tools is not None and has_tools(ctx.body) != wanted.tools:
        return False
    return all(attempt.labels.get(name) == value for name, value in wanted.labels.items())


def obstacle(endpoint: Endpoint, body: Mapping[str, object], *, server_tools: bool) -> str | None:
    """Return why a request must not be sent a second time, or None when it may.

    Args:
        endpoint: The API.
        body: The client's request.
        server_tools: Whether tools that run at the provider or the gateway are allowed.

    Returns:
        ``background``, ``state``, ``server_tools`` or, of tools that run with the client's own, ``credentials``.
    """
    if endpoint is Endpoint.RESPONSES and body.get("background"):
        return "background"
    if any(body.get(name) for name in _STATE.get(endpoint, ())):
        return "state"
    # Anthropic's own tools of the client have no type at all.
    elsewhere = [tool for tool in _objects(body.get("tools")) if tool.get("type") not in {None, *_CLIENTS_TOOLS}]
    servers = _objects(body.get("mcp_servers"))
    if not server_tools:
        return "server_tools" if elsewhere or servers or body.get("web_search_options") else None
    return "credentials" if any(each.get(name) for each in elsewhere + servers for name in _CREDENTIALS) else None


def _objects(value: object) -> list[Mapping[str, object]]:
    if not isinstance(value, Sequence):
        return []
    return [item for item in value if isinstance(item, Mapping)]


def has_tools(body: Mapping[str, object]) -> bool:
    """Say whether the request offers tools."""
    return bool(body.get("tools") or body.get("functions"))


def mirrored(endpoint: Endpoint, body: Mapping[str, object]) -> dict[str, object]:
    """Return the body for the challenger: a copy, independent of the primary's, of the parameters that shape the answer."""
    shaping = _MIRRORED[endpoint]
    mirrored_body = {name: _copied(value) for name, value in body.items() if name in shaping}
    if endpoint is Endpoint.RESPONSES:
        # The copy leaves nothing behind at the provider.
        mirrored_body["store"] = False
    return mirrored_body


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
    """Return the most tokens that the request allows its answers, each with ``otherwise`` when it does not say."""
    answers = _positive(body.get("n")) or 1
    for name in ("max_completion_tokens", "max_output_tokens", "max_tokens"):
        if (each := _positive(body.get(name))) is not None:
            return min(each * answers, _MOST_TOKENS)
    return min(otherwise * answers, _MOST_TOKENS)


def _positive(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
