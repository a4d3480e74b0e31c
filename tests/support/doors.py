"""What tests send to every route, and the configuration that leads all of them to one provider."""

from __future__ import annotations

import json
from typing import Any

from anything import Anything
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from pointsman.testing.proxy import ProxyServer

#: One body that most routes take for theirs.
BODY: dict[str, Any] = {
    "model": "chat",
    "messages": [{"role": "user", "content": "hi"}],
    "input": "hi",
    "prompt": "hi",
    "query": "hi",
    "documents": ["a", "b"],
    "contents": [{"role": "user", "parts": [{"text": "hi"}]}],
    "max_tokens": 5,
    "voice": "alloy",
    "document": {"type": "document_url", "document_url": "https://example.com/a.pdf"},
    "retrieval_config": {"vector_store_id": "vs_1", "custom_llm_provider": "openai"},
    "custom_llm_provider": "openai",
    "name": "n",
    "purpose": "assistants",
    "input_file_id": "file-1",
    "training_file": "file-1",
    "endpoint": "/v1/chat/completions",
    "completion_window": "24h",
    "assistant_id": "asst_1",
    "thread": {"messages": []},
    "session": {"model": "chat", "type": "realtime"},
}


def config(provider: Anything) -> dict[str, Any]:
    openai = {"api_key": "sk-provider", "api_base": f"{provider.url}/v1"}
    return {
        "general_settings": {
            "custom_auth": "pointsman.litellm.custom_auth",
            "pass_through_endpoints": [{"path": "/configured", "target": f"{provider.url}/target", "auth": True}],
        },
        "router_settings": {"num_retries": 0, "disable_cooldowns": True},
        "files_settings": [{"custom_llm_provider": "openai", **openai}],
        "assistant_settings": {"custom_llm_provider": "openai", "litellm_params": openai},
        # No worker looks at what a test has left behind while another one counts who comes to the provider.
        "pointsman": {"background_look_s": 3600},
    }


def environment(provider: Anything) -> dict[str, str]:
    found = {}
    for name in ("OPENAI", "ANTHROPIC", "GEMINI", "COHERE", "MISTRAL", "AZURE", "VLLM", "ASSEMBLYAI"):
        found |= {f"{name}_API_KEY": "sk-provider", f"{name}_API_BASE": provider.url}
    return found | {"OPENAI_BASE_URL": f"{provider.url}/v1", "OPENAI_API_BASE": f"{provider.url}/v1"}


def knock_at_socket(
    proxy: ProxyServer, path: str, key: str = "tenant-a", *, model: str = "chat", case: str = ""
) -> str | int:
    """Ask a websocket for a response; return the type of the last event, the status, or the code it was closed with."""
    url = f"{proxy.url.replace('http', 'ws', 1)}{path}?model={model}"
    last = "nothing"
    try:
        headers = {"authorization": f"Bearer {key}", "x-test-case": case}
        with connect(url, additional_headers=headers, open_timeout=15) as socket:
            socket.send(json.dumps({"type": "response.create", "response": {"model": model}, "model": model}))
            for _ in range(4):
                last = json.loads(socket.recv(2))["type"]
    except InvalidStatus as err:
        return err.response.status_code
    except ConnectionClosed as err:
        return err.rcvd.code if err.rcvd else "cut"
    except TimeoutError:
        return last
    return last
