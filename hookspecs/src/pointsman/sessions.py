"""Which session and which end user a request belongs to: the one list of places where clients name them.

``RequestContext.session_id`` and ``Identity.end_user`` are read here, so that affinity, experiments and traces mean the
same. Both are the client's own words: use them to keep requests together, never to decide what a caller may do.
Where a provider keeps a conversation, ``goes_on_from`` says which.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Final

#: Headers, lower case, the first that is present counts.
SESSION_HEADERS: Final = (
    "x-litellm-session-id",
    "x-session-id",
    # Codex.
    "session_id",
    "session-id",
    # Claude Code.
    "x-claude-code-session-id",
    # OpenCode.
    "x-opencode-session",
    "x-session-affinity",
    # Amp.
    "x-amp-thread-id",
    "thread-id",
    # Open WebUI, with ENABLE_FORWARD_USER_INFO_HEADERS.
    "x-openwebui-chat-id",
    "x-conversation-id",
    "conversation-id",
    "conversation_id",
)
#: Fields of the body; with a dot, a field of an object. They come after the headers.
SESSION_FIELDS: Final = (
    "litellm_session_id",
    "session_id",
    "metadata.session_id",
    "litellm_metadata.session_id",
    # OpenAI's Responses API.
    "conversation",
    # OpenAI: requests with the same key are meant to hit the same prompt cache.
    "prompt_cache_key",
    # Claude Code names its session within the user's id.
    "metadata.user_id",
)
#: A longer value is not an id.
MAX_CHARS: Final = 512
_FIELDS: Final = tuple((path, path.partition(".")[0], path.partition(".")[2]) for path in SESSION_FIELDS)
_CLAUDE_CODE: Final = re.compile(r"_session_([0-9a-zA-Z-]{8,64})$")

#: Fields that name what a provider has kept of a conversation, and the parts of a request in which they may stand.
_ANSWERS: Final = frozenset({"previous_interaction_id", "previous_response_id"})
_CONVERSATIONS: Final = _ANSWERS | {"conversation"}
_CONVERSING: Final = frozenset({"pass_through", "responses"})
_PARTS: Final = ("config", "extra_body", "response")
_NAMING: Final = _CONVERSATIONS.union(_PARTS)


def session_of(headers: Mapping[str, str], body: Mapping[str, object]) -> str | None:
    """Return the id of the session that a client names, or None.

    Args:
        headers: Request headers, lower case.
        body: The client's request.
    """
    for name in SESSION_HEADERS:
        if name in headers and (session := _id(headers[name])) is not None:
            return session
    for name, value in headers.items():
        # Other vendors' clients, as LiteLLM recognises them.
        if name.startswith("x-") and name.endswith("-session-id") and (session := _id(value)) is not None:
            return session
    for path, name, inner in _FIELDS:
        if (found := body.get(name)) is not None and (session := _id(_field(path, inner, found))) is not None:
            return session
    return None


def end_user_of(body: Mapping[str, object]) -> str | None:
    """Return the end user that a client names, or None.

    Args:
        body: The client's request.
    """
    user, metadata = body.get("user"), body.get("metadata")
    if not isinstance(user, str):
        user = metadata.get("user_id") if isinstance(metadata, Mapping) else None
    return user if isinstance(user, str) else None


def _field(path: str, inner: str, value: object) -> object:
    """Return what a field of the body says.

    Args:
        path: One of ``SESSION_FIELDS``.
        inner: The field of an object that it names; empty where it is the whole field.
        value: The value of the body's own field.
    """
    if path == "metadata.user_id":
        return _within_user_id(value.get(inner)) if isinstance(value, Mapping) else None
    if inner:
        return value.get(inner) if isinstance(value, Mapping) else None
    # A conversation is its id, or an object with its id.
    return value.get("id") if isinstance(value, Mapping) else value


def _within_user_id(user_id: object) -> object:
    """Return the session that Claude Code names within a user's id: at its end, or as a field of JSON."""
    if not isinstance(user_id, str) or len(user_id) > MAX_CHARS:
        return None
    if found := _CLAUDE_CODE.search(user_id):
        return found[1]
    if not user_id.startswith("{"):
        return None
    try:
        parsed = json.loads(user_id)
    except ValueError:
        return None
    return parsed.get("session_id") if isinstance(parsed, dict) else None


def _id(value: object) -> str | None:
    return value if isinstance(value, str) and 0 < len(value) <= MAX_CHARS else None


def goes_on_from(endpoint: str, body: Mapping[str, object]) -> tuple[str, ...]:
    """Return the ids of what the provider has kept of a conversation and lets the model read again, as the request names it.

    Args:
        endpoint: The API, an ``Endpoint``. Elsewhere than in that of responses, a conversation is a name of the client's own.
        body: The request, or a client's event on a websocket.
    """
    if endpoint == "realtime":
        return ()  # what is said on a connection is counted there
    if _NAMING.isdisjoint(body):
        return ()
    fields = _CONVERSATIONS if endpoint in _CONVERSING else _ANSWERS
    found: list[str] = []
    for part in (body, *(body[name] for name in _PARTS if name in body)):
        if isinstance(part, Mapping) and not fields.isdisjoint(part):
            for name in fields:
                value = part.get(name)
                id_ = value.get("id") if isinstance(value, Mapping) else value
                if isinstance(id_, str) and id_:
                    found.append(id_)
    return tuple(found)
