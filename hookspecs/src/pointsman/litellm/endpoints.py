"""Which API a request speaks, and whether a model works for it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final
from urllib.parse import unquote

from ..types import Endpoint

_BY_ENDPOINT: Final[Mapping[Endpoint, tuple[str, ...]]] = {
    Endpoint.CHAT: ("completion",),
    Endpoint.MESSAGES: ("anthropic_messages",),
    Endpoint.RESPONSES: (
        "responses",
        "compact_responses",
        "get_responses",
        "delete_responses",
        "cancel_responses",
        "list_input_items",
        "_aresponses_websocket",
    ),
    Endpoint.EMBEDDINGS: ("embedding", "embeddings"),
    Endpoint.COMPLETIONS: ("text_completion",),
    Endpoint.IMAGES: ("image_generation", "image_edit", "image_variation"),
    Endpoint.SPEECH: ("speech",),
    Endpoint.TRANSCRIPTIONS: ("transcription",),
    Endpoint.RERANK: ("rerank",),
    Endpoint.MODERATIONS: ("moderation",),
    Endpoint.OCR: ("ocr",),
    Endpoint.SEARCH: ("search",),
    Endpoint.VIDEOS: (
        "create_video",
        "video_generation",
        "video_remix",
        "video_edit",
        "video_extension",
        "video_create_character",
        "video_get_character",
        "video_list",
        "video_status",
        "video_content",
        "video_retrieve",
        "video_retrieve_job",
        "video_delete",
    ),
    Endpoint.GENERATE_CONTENT: ("generate_content", "generate_content_stream"),
    Endpoint.INTERACTIONS: ("create_interaction", "get_interaction", "delete_interaction", "cancel_interaction"),
    Endpoint.COUNT_TOKENS: ("count_tokens",),
    Endpoint.RAG: ("ingest", "query"),
    Endpoint.REALTIME: (
        "_arealtime",
        "realtime_calls",
        "create_realtime_client_secret",
        "create_realtime_transcription_session",
        "create_realtime_translation_client_secret",
        "realtime_translation_calls",
    ),
    Endpoint.BATCHES: ("create_batch", "retrieve_batch", "cancel_batch", "list_batches"),
    Endpoint.FILES: ("create_file", "file_retrieve", "file_delete", "file_list", "file_content"),
    Endpoint.CONTAINERS: (
        "create_container",
        "list_containers",
        "retrieve_container",
        "delete_container",
        "list_container_files",
        "upload_container_file",
        "retrieve_container_file_content",
    ),
    Endpoint.VECTOR_STORES: (
        "vector_store_create",
        "vector_store_search",
        "vector_store_list",
        "vector_store_retrieve",
        "vector_store_update",
        "vector_store_delete",
        "vector_store_file_create",
        "vector_store_file_list",
        "vector_store_file_retrieve",
        "vector_store_file_content",
        "vector_store_file_update",
        "vector_store_file_delete",
    ),
    Endpoint.FINE_TUNING: (
        "create_fine_tuning_job",
        "cancel_fine_tuning_job",
        "list_fine_tuning_jobs",
        "retrieve_fine_tuning_job",
    ),
    Endpoint.ASSISTANTS: (
        "get_assistants",
        "create_assistants",
        "delete_assistant",
        "create_thread",
        "get_thread",
        "add_message",
        "a_add_message",
        "get_messages",
        "run_thread",
        "run_thread_stream",
        "create_run",
    ),
    Endpoint.PASS_THROUGH: ("pass_through_endpoint", "llm_passthrough_route"),
}
#: LiteLLM's call types by endpoint, with and without the ``a`` of their asynchronous variants.
_ENDPOINTS: Final[Mapping[str, Endpoint]] = {
    name: endpoint for endpoint, names in _BY_ENDPOINT.items() for call in names for name in (call, f"a{call}")
}
#: Calls by POST for which no model works.
_WITHOUT_MODEL: Final = frozenset(
    {
        "add_message",
        "cancel_batch",
        "cancel_fine_tuning_job",
        "cancel_interaction",
        "cancel_responses",
        "count_tokens",
        "create_assistants",
        "create_file",
        "create_thread",
        "upload_container_file",
    }
)
_READING: Final = frozenset({"GET", "HEAD", "DELETE"})
#: Of these is not known what such a call does.
_UNKNOWN_READS: Final = frozenset({Endpoint.PASS_THROUGH, Endpoint.REALTIME, Endpoint.OTHER})


#: Where a provider's own API names the model in the path: Gemini and Vertex AI, Bedrock, Azure.
_PATH_MODEL: Final = re.compile(r"/(?:models|model|deployments)/([^/:?]+)")
#: No path is encoded more often by accident.
_MOST_ENCODINGS: Final = 4
_DOTS: Final = frozenset({".", ".."})
_SEPARATORS: Final = re.compile(r"[/\\]")
#: The first part of LiteLLM's routes to providers, where it is not LiteLLM's name of the provider.
_PROVIDERS: Final[Mapping[str, str]] = {
    "openai_passthrough": "openai",
    "vertex-ai": "vertex_ai",
    "vllm": "hosted_vllm",
}
#: Those whose models stand in the path alone, where one does; and the first parts of Gemini's paths at LiteLLM itself.
_BY_PATH: Final = frozenset({"azure", "azure_ai", "bedrock", "gemini", "models", "v1beta", "vertex_ai"})
#: Operations of providers that answer with what they used: the last part of their paths, or what follows its colon. Others
#: start what is charged later or elsewhere: batches, runs, sessions, tuning.
_ANSWERING: Final = frozenset(
    {
        "chat",
        "compact",
        "complete",
        "completions",
        "converse",
        "converse-stream",
        "edits",
        "embed",
        "embedContent",
        "embeddings",
        "generateContent",
        "generations",
        "interactions",
        "invoke",
        "invoke-with-response-stream",
        "messages",
        "moderations",
        "ocr",
        "predict",
        "rawPredict",
        "rerank",
        "responses",
        "speech",
        "streamGenerateContent",
        "streamRawPredict",
        "transcriptions",
        "translations",
    }
)
_MOST_NAME_CHARS: Final = 200
#: Of these, the operations whose answers providers keep.
_KEEPING: Final = ("/interactions", "/responses")
#: The websockets whose protocol is known.
_SOCKETS: Final = frozenset({"/openai/v1/realtime", "/realtime", "/responses", "/v1/realtime", "/v1/responses"})
#: The routes of Anthropic's API.
_ANTHROPIC: Final = re.compile(r"/anthropic/.*|(/claude_code_gateway)?/v1/messages(/count_tokens)?", re.DOTALL)
#: The routes that count tokens; LiteLLM asks no callback about them before it asks a provider.
_COUNTERS: Final = re.compile(
    r".*/messages/count_tokens|.*/responses/input_tokens|/utils/token_counter|.*/models/[^/]+:countTokens", re.DOTALL
)


def route_path(scope: Mapping[str, Any]) -> str:
    """Return a request's path below the root that the server is mounted at."""
    return str(scope["path"]).removeprefix(str(scope.get("root_path") or ""))


def path_model(path: str) -> str | None:
    """Return the model that the path of a request to a provider's own API names; None when it names none.

    Several are joined by commas, as LiteLLM's lists of models are:
    which of them the provider takes is not known here.
    """
    found = dict.fromkeys(unquote(name) for name in _PATH_MODEL.findall(path))
    return ",".join(found) or None


def asked_model(path: str, named: object) -> str | None:
    """Return the model that a request to a provider's own API asks for; several, joined by commas, where each may be meant.

    Args:
        path: The request's path.
        named: The model in its body.
    """
    in_path = path_model(path)
    in_body = named if isinstance(named, str) and named else None
    if in_path is None or in_body is None or in_path == in_body or path_provider(path) in _BY_PATH:
        return in_path or in_body
    return f"{in_path},{in_body}"


def has_dots(path: str) -> bool:
    """Return whether a path leads up or nowhere, as ``..`` and ``.`` do, however often they are encoded.

    The client of the provider resolves them, after the model in the path has been admitted.
    """
    if "." not in path and "%" not in path:
        return False
    for _ in range(_MOST_ENCODINGS):
        plain = unquote(path)
        if plain == path:
            return not _DOTS.isdisjoint(_SEPARATORS.split(path))
        path = plain
    return True


def path_provider(path: str) -> str:
    """Return LiteLLM's name of the provider that a pass-through route leads to, or the first part of a configured route."""
    first = path.strip("/").partition("/")[0][:_MOST_NAME_CHARS]
    return _PROVIDERS.get(first, first)


def answers_with_usage(method: str, path: str, configured: Iterable[str]) -> bool:
    """Return whether a pass-through's answer says what was used.

    Args:
        method: The HTTP method: only POST generates; others read or change what the provider has stored, for all tenants.
        path: The request's path.
        configured: The paths of the pass-throughs in LiteLLM's configuration: what they lead to is the operator's choice.
    """
    if method == "POST" and path.rstrip("/").rpartition("/")[2].rpartition(":")[2] in _ANSWERING:
        return True
    return any(path == own or path.startswith(f"{own.rstrip('/')}/") for own in configured)


def answers_are_kept(endpoint: Endpoint, path: str) -> bool:
    """Return whether a provider keeps the answers to requests, by whose ids later ones go on, and LiteLLM does not guard them.

    Args:
        endpoint: The API.
        path: The request's path.
    """
    return endpoint is Endpoint.INTERACTIONS or (endpoint is Endpoint.PASS_THROUGH and path.endswith(_KEEPING))


def counts_tokens(path: str) -> bool:
    """Return whether a route counts tokens."""
    return _COUNTERS.fullmatch(path) is not None


def speaks_anthropic(path: str) -> bool:
    """Return whether errors of a route have Anthropic's shape."""
    return _ANTHROPIC.fullmatch(path) is not None


def is_metered_socket(scope: Mapping[str, Any]) -> bool:
    """Return whether a connection is a websocket whose responses are metered."""
    return scope["type"] == "websocket" and route_path(scope) in _SOCKETS


def endpoint(call_type: str, path: str = "") -> Endpoint:
    """Return the kind of API that LiteLLM's call type stands for; ``other`` when it is not known.

    Args:
        call_type: LiteLLM's call type.
        path: The request's path: LiteLLM lists files as if they were fine-tuning jobs.
    """
    found = _ENDPOINTS.get(call_type, Endpoint.OTHER)
    return Endpoint.FILES if found is Endpoint.FINE_TUNING and path.endswith("/files") else found


def in_file(call_type: str) -> bool:
    """Return whether a request names the models that it asks in a file that was uploaded before."""
    return call_type.removeprefix("a") == "create_batch"


def generates(call_type: str, method: str) -> bool:
    """Return whether a model works for a request; what is not known is taken for a request that generates.

    Args:
        call_type: LiteLLM's call type.
        method: The HTTP method. GET reads and DELETE removes what exists, but what a configured pass-through does with
            them is not known.
    """
    if method in _READING and endpoint(call_type) not in _UNKNOWN_READS:
        return False
    return call_type not in _WITHOUT_MODEL and call_type.removeprefix("a") not in _WITHOUT_MODEL
