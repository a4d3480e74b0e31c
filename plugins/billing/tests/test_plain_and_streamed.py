"""The same answer of every kind of provider, plain and streamed through a real LiteLLM proxy, has the same bill.

The provider is a server that answers in the words of each of them, and names the model as the provider does, which is not
how the configuration calls it.
"""

from __future__ import annotations

import json
import struct
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple, Self

import httpx
import pytest

from pointsman.testing import eventually
from pointsman.testing.proxy import ProxyServer

pytestmark = [pytest.mark.proxy, pytest.mark.timeout(300)]

CHAT, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/messages", "/v1/responses"
ASK = [{"role": "user", "content": "How is the weather in Turin?"}]
BODIES: Mapping[str, dict[str, Any]] = {
    CHAT: {"messages": ASK, "max_tokens": 99},
    MESSAGES: {"messages": ASK, "max_tokens": 99},
    RESPONSES: {"input": "How is the weather in Turin?"},
}
TEXT = "It is warm."
COUNTS = {"prompt_tokens": 1000, "completion_tokens": 50, "total_tokens": 1050}
CLAUDE = {"input_tokens": 1000, "cache_read_input_tokens": 100, "cache_creation_input_tokens": 0, "output_tokens": 50}
SERVED = {"input_tokens": 1000, "output_tokens": 50, "total_tokens": 1050}
#: What two requests never have in common, and what LiteLLM itself has made of them.
OF_EACH = frozenset(
    {"id", "request_id", "started_at_ms", "finished_at_ms", "timestamp", "stream"}
    | {"gateway_cost_usd", "gateway_cost_usd_micros"}
)
EVENTS, LINES, FRAMES, JSON = (
    "text/event-stream",
    "application/x-ndjson",
    "application/vnd.amazon.eventstream",
    "application/json",
)

Answer = tuple[str, bytes]


def as_json(message: Mapping[str, Any]) -> Answer:
    return JSON, json.dumps(message).encode()


def as_events(messages: list[dict[str, Any]], *, named: bool = False, done: bool = False) -> Answer:
    names = [f"event: {message['type']}\n" if named else "" for message in messages]
    text = "".join(f"{name}data: {json.dumps(message)}\n\n" for name, message in zip(names, messages, strict=True))
    return EVENTS, (text + "data: [DONE]\n\n" * done).encode()


def chat(model: str, usage: Mapping[str, Any], *, stream: bool, together: bool = False, **more: Any) -> Answer:
    """Return an answer in OpenAI's words; its usage comes after the last piece of the stream, or together with it."""
    head = {"id": "chatcmpl-1", "created": 1, "model": model, **more}
    if not stream:
        choice = {"index": 0, "message": {"role": "assistant", "content": TEXT}, "finish_reason": "stop"}
        return as_json({**head, "object": "chat.completion", "choices": [choice], "usage": usage})
    head["object"] = "chat.completion.chunk"
    first = {"index": 0, "delta": {"role": "assistant", "content": TEXT}, "finish_reason": None}
    last = {"index": 0, "delta": {}, "finish_reason": "stop"}
    end = {**head, "choices": [last]}
    ends = [{**end, "usage": usage}] if together else [end, {**head, "choices": [], "usage": usage}]
    return as_events([{**head, "choices": [first]}, *ends], done=True)


def claude(*, stream: bool) -> Answer:
    model = "claude-sonnet-4-5-20250929"
    head = {"id": "msg_1", "type": "message", "role": "assistant", "model": model, "stop_sequence": None}
    if not stream:
        content = [{"type": "text", "text": TEXT}]
        return as_json({**head, "content": content, "stop_reason": "end_turn", "usage": CLAUDE})
    start = {**head, "content": [], "stop_reason": None, "usage": {**CLAUDE, "output_tokens": 1}}
    messages = [
        {"type": "message_start", "message": start},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": TEXT}},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 50}},
        {"type": "message_stop"},
    ]
    return as_events(messages, named=True)


def responses(*, stream: bool) -> Answer:
    content = [{"type": "output_text", "text": TEXT, "annotations": []}]
    item = {"type": "message", "id": "msg_1", "status": "completed", "role": "assistant", "content": content}
    whole: dict[str, Any] = {
        "id": "resp_1",
        "object": "response",
        "created_at": 1,
        "status": "completed",
        "model": "gpt-4o-mini-2024-07-18",
        "output": [item],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "usage": SERVED,
    }
    if not stream:
        return as_json(whole)
    place = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
    begun = {**whole, "status": "in_progress", "output": [], "usage": None}
    messages = [
        {"type": "response.created", "response": begun},
        {"type": "response.output_text.delta", "delta": TEXT, **place},
        {"type": "response.completed", "response": whole},
    ]
    return as_events([{**message, "sequence_number": n} for n, message in enumerate(messages)], named=True)


def gemini(*, stream: bool) -> Answer:
    content = {"role": "model", "parts": [{"text": TEXT}]}
    counts = {"promptTokenCount": 1000, "candidatesTokenCount": 50, "totalTokenCount": 1050}
    answer = {
        "candidates": [{"content": content, "finishReason": "STOP", "index": 0}],
        "usageMetadata": counts,
        "modelVersion": "gemini-2.5-flash-001",
        "responseId": "r-1",
    }
    return as_events([answer]) if stream else as_json(answer)


def ollama(*, stream: bool) -> Answer:
    head = {"model": "llama3:8b-instruct", "created_at": "2025-06-15T00:00:00Z"}
    counts = {"prompt_eval_count": 1000, "eval_count": 50, "total_duration": 1, "eval_duration": 1}
    end = {**head, "done": True, "done_reason": "stop", **counts}
    message = {"role": "assistant", "content": TEXT}
    if not stream:
        return as_json({**end, "message": message})
    pieces = [{**head, "message": message, "done": False}, {**end, "message": {**message, "content": ""}}]
    return LINES, "".join(json.dumps(piece) + "\n" for piece in pieces).encode()


def frame(kind: str, payload: Mapping[str, Any]) -> bytes:
    named = {":event-type": kind, ":content-type": "application/json", ":message-type": "event"}
    headers = b"".join(
        bytes([len(name)]) + name.encode() + b"\x07" + struct.pack(">H", len(value)) + value.encode()
        for name, value in named.items()
    )
    body = json.dumps(payload).encode()
    begin = struct.pack(">II", 16 + len(headers) + len(body), len(headers))
    whole = begin + struct.pack(">I", zlib.crc32(begin)) + headers + body
    return whole + struct.pack(">I", zlib.crc32(whole))


def bedrock(*, stream: bool) -> Answer:
    usage = {"inputTokens": 1000, "outputTokens": 50, "totalTokens": 1050}
    message = {"role": "assistant", "content": [{"text": TEXT}]}
    end = {"usage": usage, "metrics": {"latencyMs": 1}}
    if not stream:
        return as_json({"output": {"message": message}, "stopReason": "end_turn", **end})
    frames = (
        frame("messageStart", {"role": "assistant"}),
        frame("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": TEXT}}),
        frame("contentBlockStop", {"contentBlockIndex": 0}),
        frame("messageStop", {"stopReason": "end_turn"}),
        frame("metadata", end),
    )
    return FRAMES, b"".join(frames)


def openais(model: str, *, together: bool = False, **usage: Any) -> Callable[..., Answer]:
    def answer(*, stream: bool) -> Answer:
        return chat(model, {**COUNTS, **usage}, stream=stream, together=together)

    return answer


class Kind(NamedTuple):
    """A kind of provider: LiteLLM's name of the model, the end of its base URL, the API to ask, what it answers."""

    model: str
    base: str
    path: str
    answer: Callable[..., Answer]


CLAUDES = "anthropic/claude-sonnet-4-5-20250929"
KINDS: dict[str, Kind] = {
    "openai": Kind("openai/gpt-4o-mini", "/v1", CHAT, openais("gpt-4o-mini-2024-07-18")),
    "openai-messages": Kind("openai/gpt-4o-mini", "/v1", MESSAGES, responses),
    "openai-responses": Kind("openai/gpt-4o-mini", "/v1", RESPONSES, responses),
    "azure": Kind("azure/gpt-4o-mini", "", CHAT, openais("gpt-4o-mini-2024-07-18")),
    "anthropic": Kind(CLAUDES, "", MESSAGES, claude),
    "anthropic-chat": Kind(CLAUDES, "", CHAT, claude),
    "anthropic-responses": Kind(CLAUDES, "", RESPONSES, claude),
    "gemini": Kind("gemini/gemini-2.5-flash", "", CHAT, gemini),
    "bedrock": Kind("bedrock/converse/anthropic.claude-haiku-4-5-20251001-v1:0", "", CHAT, bedrock),
    "ollama": Kind("ollama_chat/llama3", "", CHAT, ollama),
    "perplexity": Kind("perplexity/sonar-pro", "", CHAT, openais("sonar-pro", together=True, num_search_queries=1)),
    "openrouter": Kind("openrouter/openai/gpt-4o-mini", "/v1", CHAT, openais("openai/gpt-4o-mini", cost=0.0123)),
    "mistral": Kind("mistral/mistral-small-latest", "/v1", CHAT, openais("mistral-small-2503", together=True)),
    "deepseek": Kind("deepseek/deepseek-chat", "/v1", CHAT, openais("deepseek-v3", prompt_cache_hit_tokens=64)),
    "xai": Kind("xai/grok-4.3", "/v1", CHAT, openais("grok-4.3-0501", cost_in_usd_ticks=37_500_000)),
    "together": Kind("together_ai/meta-llama/Llama-3.3-70B-Instruct-Turbo", "/v1", CHAT, openais("llama-3.3-70b")),
    "vllm": Kind("hosted_vllm/house-7b", "/v1", CHAT, openais("house-7b-awq")),
}


#: A deployment that does not answer, and for how long LiteLLM waits.
SILENT = "silent"
SILENT_S = 1


class Provider:
    """Answers under ``/<kind>/...`` as that kind does, or not at all; runs during the ``with`` block."""

    def __enter__(self) -> Self:
        over = self._over = threading.Event()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                place = self.path.lower()
                stream = bool(body.get("stream")) or "stream" in place
                if place.startswith(f"/{SILENT}/"):
                    over.wait()
                    return
                content_type, answer = KINDS[place.split("/")[1]].answer(stream=stream)
                self.send_response(200)
                self.send_header("content-type", content_type)
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def deployment(name: str, url: str) -> dict[str, Any]:
    kind = KINDS[name]
    params = {"model": kind.model, "api_base": f"{url}/{name}{kind.base}", "api_key": "any"}
    if name == "azure":
        params["api_version"] = "2024-02-01"
    if name == "bedrock":
        keys = {"aws_access_key_id": "any", "aws_secret_access_key": "any", "aws_region_name": "us-east-1"}
        params = {"model": kind.model, "aws_bedrock_runtime_endpoint": f"{url}/{name}", **keys}
    return {"model_name": name, "litellm_params": params, "model_info": {"id": name}}


def silent(url: str) -> dict[str, Any]:
    params = {"model": "openai/gpt-4o-mini", "api_base": f"{url}/{SILENT}/v1", "api_key": "any", "timeout": SILENT_S}
    return {"model_name": SILENT, "litellm_params": params, "model_info": {"id": SILENT}}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with Provider() as provider:
        config = {
            "model_list": [*(deployment(name, provider.url) for name in KINDS), silent(provider.url)],
            "router_settings": {"num_retries": 0, "disable_cooldowns": True},
            "litellm_settings": {"callbacks": ["pointsman.litellm.handler"], "num_retries": 0},
            "pointsman": {"store": {"backend": "memory"}, "plugins": [{"billing": {}}]},
        }
        with ProxyServer(config, tmp_path_factory.mktemp("kinds")) as proxy, proxy.client(timeout=60) as client:
            yield client


def billed(client: httpx.Client, name: str, *, stream: bool) -> list[dict[str, Any]]:
    path = KINDS[name].path
    answer = client.post(path, json={"model": name, "stream": stream, **BODIES[path]})
    assert answer.status_code == 200, answer.text
    assert TEXT in answer.text
    return events_of(client, answer)


def events_of(client: httpx.Client, answer: httpx.Response) -> list[dict[str, Any]]:
    at = f"/pointsman/billing/requests/{answer.headers['x-pointsman-request-id']}"
    events = eventually(lambda: client.get(at), lambda one: one.status_code == 200).json()["events"]
    for event in events:
        if raw := (event["usage"] or {}).pop("raw", None):
            # A stream may say the same in another order.
            event["usage"]["raw"] = json.loads(raw)
    return [{name: value for name, value in event.items() if name not in OF_EACH} for event in events]


@pytest.mark.parametrize("name", KINDS)
def test_the_same_answer_has_the_same_bill_plain_and_streamed(client: httpx.Client, name: str) -> None:
    plain, streamed = (billed(client, name, stream=stream) for stream in (False, True))
    assert plain == streamed
    attempt, request = plain
    assert (attempt["type"], request["type"], attempt["metering"]) == ("attempt", "request", "exact")
    cached = 100 if "anthropic" in name else 0
    assert (attempt["prompt_tokens"], attempt["completion_tokens"]) == (1000 + cached, 50)
    if name != "bedrock":
        # It names none.
        said = json.loads(KINDS[name].answer(stream=False)[1])
        assert attempt["model_served"] == said.get("model", said.get("modelVersion"))


def test_aws_event_streams_are_heard_on_a_pass_through(client: httpx.Client) -> None:
    body = {"messages": [{"role": "user", "content": [{"text": "How is the weather in Turin?"}]}]}
    bills = []
    for operation in ("converse", "converse-stream"):
        answer = client.post(f"/bedrock/model/bedrock/{operation}", json=body)
        assert (answer.status_code, TEXT.encode() in answer.content) == (200, True)
        bills.append(events_of(client, answer))
    plain, streamed = bills
    assert (plain[0]["prompt_tokens"], plain[0]["completion_tokens"], plain[0]["metering"]) == (1000, 50, "exact")
    assert [event["amount_usd"] for event in plain] == [event["amount_usd"] for event in streamed] != [None, None]


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("path", BODIES)
def test_an_answer_for_which_the_gateway_has_stopped_waiting_is_not_free(
    client: httpx.Client, path: str, stream: bool
) -> None:
    """The provider has the request and may charge it, as that of a client that has left."""
    answer = client.post(path, json={"model": SILENT, "stream": stream, **BODIES[path]})
    assert answer.is_error
    attempt = events_of(client, answer)[0]
    assert (attempt["type"], attempt["status"], attempt["metering"]) == ("attempt", "error", "estimated")
    assert attempt["prompt_tokens"] > 0
    assert attempt["completion_tokens"] == 0
    assert attempt["amount_usd"] not in {None, "0"}
