"""The kinds that things are of: endpoints, attempts, outcomes, errors."""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class Endpoint(StrEnum):
    """The kind of API the client called; ``other`` is one that is not known."""

    CHAT = "chat"
    MESSAGES = "messages"
    RESPONSES = "responses"
    EMBEDDINGS = "embeddings"
    COMPLETIONS = "completions"
    IMAGES = "images"
    SPEECH = "speech"
    TRANSCRIPTIONS = "transcriptions"
    RERANK = "rerank"
    MODERATIONS = "moderations"
    OCR = "ocr"
    SEARCH = "search"
    VIDEOS = "videos"
    GENERATE_CONTENT = "generate_content"
    INTERACTIONS = "interactions"
    COUNT_TOKENS = "count_tokens"
    RAG = "rag"
    REALTIME = "realtime"
    BATCHES = "batches"
    FILES = "files"
    CONTAINERS = "containers"
    VECTOR_STORES = "vector_stores"
    FINE_TUNING = "fine_tuning"
    ASSISTANTS = "assistants"
    PASS_THROUGH = "pass_through"  # noqa: S105  # a kind of route
    OTHER = "other"


class AttemptKind(StrEnum):
    """Why an attempt was made."""

    PRIMARY = "primary"
    RETRY = "retry"
    FALLBACK = "fallback"
    HEDGE = "hedge"
    MIRROR = "mirror"
    PROBE = "probe"
    JUDGE = "judge"


OWN_CALLS: Final = frozenset({AttemptKind.MIRROR, AttemptKind.PROBE, AttemptKind.JUDGE})
"""Kinds of the calls that a plugin makes for itself: no client waits for them, and no request is settled for them."""


class Outcome(StrEnum):
    """How an attempt or a whole request ended."""

    OK = "ok"
    ERROR = "error"
    CANCELLED = "cancelled"
    DISCONNECTED = "disconnected"
    DENIED = "denied"


class ErrorClass(StrEnum):
    """The class of the error an attempt ended with, derived from the exception's type and status, never its message."""

    RATE_LIMIT = "rate_limit"
    AUTH = "auth"
    TIMEOUT = "timeout"
    SERVER = "server"
    CLIENT = "client"
    CONTENT_POLICY = "content_policy"
    CONTEXT_WINDOW = "context_window"
    NOT_FOUND = "not_found"
    CONNECTION = "connection"
    REFUSED = "refused"
    #: A success status without content: no text, tool call, reasoning, refusal or filter's verdict, no vector.
    EMPTY = "empty"
    UNKNOWN = "unknown"

    @classmethod
    def of_status(cls, status: int) -> ErrorClass:
        """Return the class that an HTTP error status stands for, where nothing more is known."""
        match status:
            case 401 | 403:
                return cls.AUTH
            case 404:
                return cls.NOT_FOUND
            case 408 | 504:
                return cls.TIMEOUT
            case 429:
                return cls.RATE_LIMIT
        return cls.SERVER if status >= 500 else cls.CLIENT  # noqa: PLR2004  # HTTP's own limit


CALLERS_FAULT: Final = frozenset({ErrorClass.CLIENT, ErrorClass.CONTENT_POLICY, ErrorClass.CONTEXT_WINDOW})
"""Errors that the request itself causes: they do not reflect the deployment's health."""
