"""Requests to the endpoints that count in other units than chat tokens, and the deployments that answer them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rig import deployment

PCM = b"RIFF" + bytes(200)


@dataclass(frozen=True)
class Door:
    """One endpoint.

    Attributes:
        endpoint: How settlements name it.
        model: LiteLLM's name of the upstream model, with the provider.
        path: The route; ``{model}`` stands for the model group.
        body: The request without ``model``.
        files: Files of a form.
        used: What the settlement must say was used: at least these fields, with a value.
        priced: Whether LiteLLM or its cost map knows the price.
        base: What the deployment's ``api_base`` ends with.
        stream: Whether the answer is a stream.
    """

    endpoint: str
    model: str
    path: str
    body: dict[str, Any]
    used: tuple[str, ...]
    files: dict[str, Any] = field(default_factory=dict)
    priced: bool = True
    base: str = "/v1"
    stream: bool = False


TEXT = ("prompt_tokens", "completion_tokens")
CONTENTS = {"contents": [{"role": "user", "parts": [{"text": "Say something."}]}]}
DOCUMENT = {"document": {"type": "document_url", "document_url": "https://example.com/a.pdf"}}
DOORS = {
    "completions": Door(
        "completions",
        "text-completion-openai/gpt-3.5-turbo-instruct",
        "/v1/completions",
        {"prompt": "Say something."},
        TEXT,
    ),
    "completions-stream": Door(
        "completions",
        "text-completion-openai/gpt-3.5-turbo-instruct-0914",
        "/v1/completions",
        {"prompt": "Say something.", "stream": True},
        TEXT,
        stream=True,
    ),
    "completions-chat": Door(
        "completions", "openai/gpt-4o-mini", "/v1/completions", {"prompt": "Say something."}, TEXT
    ),
    "completions-chat-stream": Door(
        "completions",
        "openai/gpt-4o",
        "/v1/completions",
        {"prompt": "Say something.", "stream": True},
        TEXT,
        stream=True,
    ),
    "images": Door(
        "images", "openai/gpt-image-1", "/v1/images/generations", {"prompt": "A cat."}, ("image_completion_tokens",)
    ),
    "images-unknown": Door(
        "images", "openai/pictures-1", "/v1/images/generations", {"prompt": "A cat."}, ("images",), priced=False
    ),
    "edits": Door(
        "images",
        "openai/gpt-image-1-mini",
        "/v1/images/edits",
        {"prompt": "A cat."},
        ("image_completion_tokens",),
        files={"image": ("a.png", b"\x89PNG", "image/png")},
    ),
    "speech": Door(
        "speech", "openai/tts-1", "/v1/audio/speech", {"input": "Hello.", "voice": "alloy"}, ("characters",)
    ),
    "transcriptions": Door(
        "transcriptions",
        "openai/whisper-1",
        "/v1/audio/transcriptions",
        {},
        ("audio_ms",),
        files={"file": ("a.wav", PCM, "audio/wav")},
    ),
    "rerank": Door(
        "rerank",
        "cohere/rerank-english-v3.0",
        "/v1/rerank",
        {"query": "q", "documents": ["a", "b"]},
        ("search_units",),
        base="/v1/rerank",
    ),
    "moderations": Door(
        "moderations", "openai/omni-moderation-latest", "/v1/moderations", {"input": "Hello."}, ("prompt_tokens",)
    ),
    "ocr": Door("ocr", "mistral/mistral-ocr-latest", "/v1/ocr", DOCUMENT, ("pages",)),
    "videos": Door("videos", "openai/sora-2", "/v1/videos", {"prompt": "A cat.", "seconds": "4"}, ("video_ms",)),
    "generate": Door(
        "generate_content", "gemini/gemini-2.5-flash", "/v1beta/models/{model}:generateContent", CONTENTS, TEXT, base=""
    ),
    "generate-stream": Door(
        "generate_content",
        "gemini/gemini-2.5-pro",
        "/v1beta/models/{model}:streamGenerateContent?alt=sse",
        CONTENTS,
        TEXT,
        base="",
        stream=True,
    ),
    "generate-openai": Door(
        "generate_content", "openai/gpt-4.1-mini", "/v1beta/models/{model}:generateContent", CONTENTS, TEXT
    ),
}


def sent(door: Door, group: str) -> dict[str, Any]:
    """Return what httpx sends of the request: JSON, or a form where there are files."""
    body = {"model": group, **door.body}
    return {"data": body, "files": door.files} if door.files else {"json": body}


def model_list(upstream: str) -> list[dict[str, Any]]:
    entries = []
    for name, door in DOORS.items():
        provider, _, model = door.model.partition("/")
        for suffix in ("", "-error", "-slow"):
            entry = deployment(
                upstream, f"{name}{suffix}", f"{model}{suffix}", id_=f"{name}{suffix}-1", provider=provider
            )
            entry["litellm_params"]["api_base"] = f"{upstream}{door.base}"
            if door.priced:
                entry["model_info"]["base_model"] = model
            entries.append(entry)
    return entries
