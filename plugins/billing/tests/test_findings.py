"""On a real LiteLLM proxy: why LiteLLM's own figure differs from ours, said by name, and where it is not a whole figure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from decimal import Decimal
from http.server import BaseHTTPRequestHandler
from typing import Any, Final

import httpx
import pytest

from pointsman.testing import eventually
from pointsman.testing.proxy import ProxyServer

from .providers import Server

pytestmark = [pytest.mark.proxy, pytest.mark.timeout(300)]

RESPONSES: Final = "/v1/responses"
CLAUDE: Final = "claude-sonnet-4-5-20250929"
ASKED: Final = "Say something about bills, please."
FIRST: Final = "These are the first words, "
#: A stream is silent for so long between two pieces, so that what came before is on its way to the client.
PAUSE_S: Final = 0.4

#: By name: the model, the end of the provider's base URL, and whether LiteLLM falls back to ``other`` from it.
MODELS: Final[Mapping[str, tuple[str, str, bool]]] = {
    "voice": ("openai/tts-1", "/v1", False),
    "pages": ("mistral/mistral-ocr-latest", "/v1", False),
    "legacy": ("openai/gpt-3.5-turbo-instruct", "/v1", False),
    "native": ("gemini/gemini-2.5-flash", "", False),
    "torn": (f"anthropic/{CLAUDE}", "", False),
    "saved": ("anthropic/claude-opus-4-5-20251101", "", True),
    "other": ("anthropic/claude-haiku-4-5-20251001", "", False),
    "grounded": ("gemini/gemini-nobody-knows", "", False),
}


def event(message: Mapping[str, Any]) -> str:
    return f"event: {message['type']}\ndata: {json.dumps(message)}\n\n" if "type" in message else data(message)


def data(message: Mapping[str, Any]) -> str:
    return f"data: {json.dumps(message)}\n\n"


def claude(*, torn: bool) -> list[str]:
    head = {"id": "msg_1", "type": "message", "role": "assistant", "model": CLAUDE, "content": [], "stop_reason": None}
    delta = {"type": "text_delta", "text": FIRST}
    pieces = [
        {"type": "message_start", "message": {**head, "usage": {"input_tokens": 1000, "output_tokens": 1}}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": delta},
    ]
    if not torn:
        pieces += [
            {"type": "content_block_stop", "index": 0},
            {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 50}},
            {"type": "message_stop"},
        ]
    return [event(piece) for piece in pieces]


def gemini(**more: Any) -> dict[str, Any]:
    content = {"role": "model", "parts": [{"text": FIRST}]}
    counts = {"promptTokenCount": 100, "candidatesTokenCount": 5, "totalTokenCount": 105}
    return {
        "candidates": [{"content": content, "index": 0, **more}],
        "usageMetadata": counts,
        "modelVersion": "unheard-of",
    }


def completion(text: str) -> str:
    choice = {"index": 0, "text": text, "finish_reason": None}
    return data({"id": "cmpl-1", "object": "text_completion", "created": 1, "model": "legacy-1", "choices": [choice]})


def answer(name: str, *, stream: bool) -> bytes | list[str]:
    """Return a whole answer, or the pieces of a stream that does not end by itself."""
    match name:
        case "voice":
            return b"ID3"
        case "pages":
            page = {"index": 0, "markdown": "x", "images": [], "dimensions": None}
            usage = {"pages_processed": 3, "doc_size_bytes": 10}
            return json.dumps({"pages": [page] * 3, "model": "mistral-ocr-2505", "usage_info": usage}).encode()
        case "legacy":
            return [completion(FIRST)]
        case "native":
            return [data(gemini())]
        case "grounded":
            found = gemini(finishReason="STOP", groundingMetadata={"webSearchQueries": ["a", "b"]})
            return data(found).encode() if stream else json.dumps(found).encode()
        case "other":
            return "".join(claude(torn=False)).encode()
    return claude(torn=True)


class Provider(Server):
    """Answers under ``/<name>/...``; it breaks torn streams and waits at the end of all others."""

    def answer(self, request: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        name = request.path.split("/")[1]
        stream = bool(body.get("stream")) or "stream" in request.path
        found = answer(name, stream=stream)
        kinds = {"voice": "audio/mpeg"} if not stream else {}
        request.send_response(200)
        request.send_header("content-type", kinds.get(name, "text/event-stream" if stream else "application/json"))
        if isinstance(found, bytes):
            request.send_header("content-length", str(len(found)))
            request.end_headers()
            request.wfile.write(found)
            return
        request.send_header("transfer-encoding", "chunked")
        request.end_headers()
        for piece in found:
            chunk = piece.encode()
            request.wfile.write(f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n")
            self.over.wait(PAUSE_S)
        if name not in {"torn", "saved"}:
            self.over.wait()
        request.close_connection = True


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with Provider() as provider:
        config = {
            "model_list": [
                {
                    "model_name": name,
                    "litellm_params": {"model": model, "api_base": f"{provider.url}/{name}{base}", "api_key": "any"},
                    "model_info": {"id": name},
                }
                for name, (model, base, _) in MODELS.items()
            ],
            "router_settings": {
                "num_retries": 0,
                "disable_cooldowns": True,
                "fallbacks": [{name: ["other"]} for name, (_, _, falls_back) in MODELS.items() if falls_back],
            },
            "litellm_settings": {"callbacks": ["pointsman.litellm.handler"], "num_retries": 0},
            "pointsman": {"store": {"backend": "memory"}, "plugins": [{"billing": {}}]},
        }
        with ProxyServer(config, tmp_path_factory.mktemp("findings")) as proxy, proxy.client(timeout=60) as client:
            yield client


def bill(client: httpx.Client, request_id: str) -> dict[str, Any]:
    at = f"/pointsman/billing/requests/{request_id}"
    return dict(eventually(lambda: client.get(at), lambda one: one.status_code == 200).json())


def attempts(client: httpx.Client, answer: httpx.Response) -> list[dict[str, Any]]:
    events = bill(client, answer.headers["x-pointsman-request-id"])["events"]
    return [event for event in events if event["type"] == "attempt"]


def finding(client: httpx.Client, model: str) -> str:
    """Return what reconciliation has found about a model that this test alone asks for."""
    rows = client.get("/pointsman/billing/reconcile").raise_for_status().json()["comparison"]
    (found,) = [row["finding"] for row in rows if row["model"] == model]
    return str(found)


def test_every_character_of_a_spoken_text_is_charged_and_litellm_leaves_out_white_space(client: httpx.Client) -> None:
    spoken = client.post("/v1/audio/speech", json={"model": "voice", "voice": "alloy", "input": "Pay the\tbill\n now."})
    (attempt,) = attempts(client, spoken.raise_for_status())
    assert (attempt["usage"]["characters"], attempt["amount_usd"]) == (18, "0.00027")
    assert attempt["gateway_cost_usd"] == "0.00021"
    assert finding(client, "tts-1") == "characters"


def test_litellm_charges_nothing_for_a_model_that_it_does_not_know(client: httpx.Client) -> None:
    """The provider names the version that has read the pages, which is not in the map."""
    document = {"type": "document_url", "document_url": "https://documents.example/bill.pdf"}
    read = client.post("/v1/ocr", json={"model": "pages", "document": document})
    (attempt,) = attempts(client, read.raise_for_status())
    assert (attempt["usage"]["pages"], attempt["cost_basis"], attempt["gateway_cost_usd"]) == (3, "prices", "0")
    assert Decimal(attempt["amount_usd"]) > 0
    assert finding(client, "mistral-ocr-2505") == "unlisted"


@pytest.mark.parametrize(
    ("path", "body", "model"),
    [
        ("/v1/completions", {"model": "legacy", "prompt": ASKED, "stream": True}, "legacy-1"),
        (
            "/v1beta/models/native:streamGenerateContent?alt=sse",
            {"contents": [{"role": "user", "parts": [{"text": ASKED}]}]},
            "unheard-of",
        ),
    ],
    ids=["completions", "generate"],
)
def test_a_stream_that_its_client_leaves_is_missing_in_litellms_sum(
    client: httpx.Client, path: str, body: Mapping[str, Any], model: str
) -> None:
    with client.stream("POST", path, json=body) as answer:
        pieces = ""
        for piece in answer.iter_text():
            pieces += piece
            if FIRST.strip() in pieces:
                break
    (attempt,) = attempts(client, answer)
    assert (attempt["status"], attempt["metering"], attempt["gateway_cost_usd"]) == ("disconnected", "estimated", None)
    assert attempt["completion_tokens"] > 0
    assert finding(client, model) == "left"


@pytest.mark.parametrize("name", ["torn", "saved"])
def test_what_came_of_a_broken_stream_is_paid_for_also_where_litellm_goes_on_to_another_attempt(
    client: httpx.Client, name: str
) -> None:
    """LiteLLM logs what the first attempt has cost when the second one has begun."""
    answer = client.post(RESPONSES, json={"model": name, "input": ASKED, "stream": True})
    assert FIRST.strip() in answer.text
    broken, *rest = attempts(client, answer)
    assert (broken["status"], broken["metering"], broken["prompt_tokens"]) == ("error", "estimated", 1000)
    assert broken["completion_tokens"] > 1, "the text that has come"
    assert broken["gateway_cost_usd"] == broken["cost_usd"]
    assert [(one["kind"], one["completion_tokens"], one["metering"]) for one in rest] == (
        [("fallback", 50, "exact")] if name == "saved" else []
    )


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
def test_what_litellm_charges_for_searches_is_not_the_price_of_the_tokens_beside_them(
    client: httpx.Client, stream: bool
) -> None:
    """It has a price of searches for every model of Gemini's, also for those whose tokens have none."""
    body = {"model": "grounded", "messages": [{"role": "user", "content": ASKED}], "stream": stream}
    (attempt,) = attempts(client, client.post("/v1/chat/completions", json=body).raise_for_status())
    assert (attempt["usage"]["searches"], attempt["prompt_tokens"]) == (2, 100)
    assert (attempt["cost_basis"], attempt["amount_usd"]) == (None, None)
