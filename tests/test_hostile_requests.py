"""What a tenant with a list of models can put on the wire to reach another one: paths, bodies, encodings, framing."""

from __future__ import annotations

import gzip
import json
import re
import socket
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import pytest
from anything import Anything
from doors import config, environment
from rig import Rig

from pointsman_quota.tenants import hash_key

pytestmark = pytest.mark.proxy

KEY: Final = "sk-narrow-0123456789abcdef"
HI: Final = [{"role": "user", "content": "hi"}]
#: What a provider is asked for when the tenant has got through: the name of the group is that of the provider's model.
SECRET: Final = "secret"
MODELS: Final = {
    "ok": "openai/allowed",
    "ok-claude": "anthropic/allowed",
    "ok-gemini": "gemini/allowed",
    SECRET: "openai/secret",
    "secret-claude": "anthropic/secret",
    "secret-gemini": "gemini/secret",
}
#: One body for all routes.
FORBIDDEN: Final[dict[str, Any]] = {
    "model": SECRET,
    "messages": HI,
    "input": "hi",
    "prompt": "hi",
    "query": "hi",
    "documents": ["a"],
    "contents": [{"role": "user", "parts": [{"text": "hi"}]}],
    "voice": "alloy",
    "max_tokens": 5,
    "document": {"type": "document_url", "document_url": "https://host/a.pdf"},
}


@pytest.fixture(scope="module")
def rig(provider: Anything, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    key = {"name": "k", "hash": hash_key(KEY, "0123456789abcdef")}
    tenant = {"id": "narrow", "keys": [key], "models": ["ok*"], "limits": {"requests_per_minute": 100_000}}
    with Rig(
        tmp_path_factory.mktemp("hostile"),
        lambda _: [
            {
                "model_name": group,
                "litellm_params": {
                    "model": model,
                    "api_base": provider.url + ("/v1" if model.startswith("openai") else ""),
                    "api_key": "sk-provider",
                },
                "model_info": {"id": f"{group}-1", "base_model": "gpt-4o-mini"},
            }
            for group, model in MODELS.items()
        ],
        plugins=[{"quota": {"tenants": [tenant]}}],
        # Without LiteLLM's own checks of models, which would refuse most of it before us.
        config=config(provider),
        env=environment(provider),
    ) as running:
        yield running


@dataclass(frozen=True, slots=True)
class Answer:
    """What comes back, and what the provider got meanwhile."""

    status: int
    text: str
    reached: list[tuple[str, str, bytes]]


def send(
    rig: Rig,
    provider: Anything,
    path: str,
    body: bytes = b"",
    *,
    method: str = "POST",
    headers: dict[str, str] | None = None,
) -> Answer:
    """Send a request exactly as written: clients put paths in order, and complete headers."""
    before = len(provider.requests)
    fields = {"host": "gateway", "authorization": f"Bearer {KEY}", "x-goog-api-key": KEY, "connection": "close"}
    fields |= {"content-type": "application/json", "content-length": str(len(body))} | (headers or {})
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items() if value)
    with socket.create_connection(("127.0.0.1", rig.proxy.port), timeout=60) as connection:
        connection.sendall(f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + body)
        answer = b""
        while piece := connection.recv(65_536):
            answer += piece
    return Answer(int(answer.split(b" ", 2)[1]), answer.decode("latin-1"), provider.requests[before:])


def asked_for_the_secret(answer: Answer) -> list[tuple[str, str, bytes]]:
    named = re.compile(rb'"model"\s*:\s*"[^"]*secret')
    return [one for one in answer.reached if SECRET in one[1] or named.search(one[2])]


PATHS: Final = [
    "/v1/chat/completions",
    "//v1/chat/completions",
    "/v1//chat/completions",
    "/v1/chat/completions/",
    "/V1/chat/completions",
    "/v1/Chat/Completions",
    "/v1/chat%2Fcompletions",
    "/v1%2Fchat/completions",
    "/%76%31/chat/completions",
    "/v1/./chat/completions",
    "/v1/../v1/chat/completions",
    "/x/../v1/chat/completions",
    "/pointsman/../v1/chat/completions",
    "/v1/chat/completions?model=ok",
    "/v1/chat/completions;x=1",
    "/v1/chat/completions%00",
    "/v1/chat/completions%20",
    "/v1/chat/completions#x",
    "http://gateway/v1/chat/completions",
    "/openai/v1/chat/completions",
    "/chat/completions",
    "/engines/ok/chat/completions",
    "/engines/secret/chat/completions",
    "/openai/deployments/ok/chat/completions",
    "/openai/deployments/ok/audio/speech",
    "/openai/models/ok/chat/completions",
    "/configured/models/ok",
    "/openai/deployments/secret/chat/completions",
    "/openai/deployments/secret/chat/completions?api-version=2024-06-01",
    "/openai/deployments/ok%2F..%2Fsecret/chat/completions",
    "/openai/deployments/secret%20/chat/completions",
    "/openai/deployments/secret/embeddings",
    "/openai/deployments/secret/completions",
    "/openai/deployments/secret/images/generations",
    "/openai/deployments/secret/audio/speech",
    "/azure/openai/deployments/secret/chat/completions?api-version=1",
    "/azure_ai/chat/completions",
    "/vertex_ai/v1/projects/p/locations/l/publishers/google/models/secret:generateContent",
    "/gemini/v1beta/models/secret:generateContent",
    "/gemini/v1beta/models/ok-gemini/../secret:generateContent",
    "/gemini/v1beta/models/ok-gemini%2F..%2Fsecret:generateContent",
    "/gemini//v1beta/models/secret:generateContent",
    "/gemini/v1beta/models/ok-gemini%252F..%252Fsecret:generateContent",
    "/gemini/v1beta/models/ok-gemini/models/secret:generateContent",
    "/gemini/v1beta/models/secret/models/ok:generateContent",
    "/gemini/v1beta/models/ok-gemini\\..\\secret:generateContent",
    "/gemini/v1beta/models/./secret:generateContent",
    "/gemini/v1beta/models/ok-gemini%5C..%5Csecret:generateContent",
    "/gemini/v1beta/models/ok,secret:generateContent",
    "/gemini/v1beta/tunedModels/secret:generateContent",
    "/gemini/v1beta/models/secret:batchEmbedContents",
    "/bedrock/model/secret/converse",
    "/bedrock/model/secret/invoke",
    "/cohere/v1/chat",
    "/mistral/v1/chat/completions",
    "/vllm/v1/chat/completions",
    "/anthropic/v1/messages",
    "/anthropic//v1/messages",
    "/anthropic/v1/complete",
    "/openai_passthrough/v1/chat/completions",
    "/openai_passthrough/v1/../v1/chat/completions",
    "/configured",
    "/configured/",
    "/v1beta/models/secret:generateContent",
    "/models/secret:generateContent",
    "/v1beta/models/SECRET:generateContent",
    "/v1beta/models/ok-gemini:generateContent/../secret:generateContent",
    "/v1beta/models/models%2Fsecret:generateContent",
    "/v1beta/models/secret:streamGenerateContent",
    "/v1beta/models/secret:countTokens",
    "/v1beta/models/secret:embedContent",
    "/v1/messages",
    "/v1/messages?beta=true",
    "/v1/messages/count_tokens",
    "/v1/responses",
    "/v1/responses/compact",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/rerank",
    "/v2/rerank",
    "/v1/moderations",
    "/v1/audio/speech",
    "/v1/images/generations",
    "/v1/ocr",
    "/v1/videos",
    "/v1beta/interactions",
    "/cursor/chat/completions",
    "/v1/rag/query",
    "/v1/evals",
    "/v1/containers",
    "/v1/realtime/client_secrets",
    "/openrouter/v1/chat/completions",
    "/groq/v1/chat/completions",
    "/databricks/serving-endpoints/secret/invocations",
]


ANSWERED: Final = {
    "/v1/chat/completions?model=ok",
    "/engines/ok/chat/completions",
    "/openai/deployments/ok/chat/completions",
}


@pytest.mark.parametrize("path", PATHS)
def test_no_path_leads_to_a_forbidden_model(rig: Rig, provider: Anything, path: str) -> None:
    answer = send(rig, provider, path, json.dumps(FORBIDDEN).encode())
    assert not asked_for_the_secret(answer)
    # Where path or query name the model, they decide.
    assert answer.status < 500, answer.text
    assert bool(answer.reached) == (path in ANSWERED) == (answer.status < 300)


def chat(start: str) -> bytes:
    return start.encode() + b'"messages":[{"role":"user","content":"hi"}]}'


#: The bodies, and whether they may be answered, by the model that is allowed.
BODIES: dict[str, tuple[bytes, bool]] = {
    "the name twice": (chat('{"model":"ok","model":"secret",'), False),
    "the name twice, the other way round": (chat('{"model":"secret","model":"ok",'), True),
    "an escaped field": (chat('{"mod\\u0065l":"secret",'), False),
    "an escaped name": (chat('{"model":"s\\u0065cret",'), False),
    "a byte order mark": (b"\xef\xbb\xbf" + chat('{"model":"secret",'), False),
    "UTF-16": (json.dumps(FORBIDDEN).encode("utf-16"), False),
    "two documents": (json.dumps(FORBIDDEN).encode() * 2, False),
    "a list": (b"[" + json.dumps(FORBIDDEN).encode() + b"]", False),
    "a text": (b'"model"', False),
    "null": (b"null", False),
    "a number": (b"1", False),
    "nothing": (b"", False),
    "not a number": (chat('{"model":"secret","temperature":NaN,'), False),
    "half a character": (chat('{"model":"secret\\ud800",'), False),
    "a zero byte": (chat('{"model":"secret\\u0000",'), False),
    "a space": (chat('{"model":" secret",'), False),
    "a provider": (chat('{"model":"openai/secret",'), False),
    "a deployment": (chat('{"model":"secret-1",'), False),
    "upper case": (chat('{"model":"SECRET",'), False),
    "wide letters": (chat('{"model":"\uff53ecret",'), False),
    "the pattern": (chat('{"model":"ok*",'), False),
    "a path": (chat('{"model":"ok/../secret",'), False),
    "two names": (chat('{"model":"ok,secret",'), False),
    "two lines": (chat('{"model":"ok\\nsecret",'), False),
    "a list of names": (chat('{"model":["secret"],'), False),
    "metadata": (chat('{"model":"ok","metadata":{"model_group":"secret","model_info":{"id":"secret-1"}},'), True),
    "LiteLLM's metadata": (chat('{"model":"ok","litellm_metadata":{"model_group":"secret"},'), True),
    "a deployment's facts": (chat('{"model":"ok","model_info":{"id":"secret-1"},'), True),
    "a deployment at the provider": (chat('{"model":"ok","deployment_id":"secret",'), False),
    "a specific deployment": (chat('{"model":"secret-1","specific_deployment":true,'), False),
    "fallbacks": (chat('{"model":"ok","fallbacks":["secret"],"mock_testing_fallbacks":true,'), False),
    "models": (chat('{"model":"ok","models":["secret"],'), False),
    "extra_body": (chat('{"model":"ok","extra_body":{"model":"secret"},'), False),
    "aliases": (chat('{"model":"ok","router_settings_override":{"model_group_alias":{"ok":"secret"}},'), True),
    "a map of aliases": (chat('{"model":"ok","model_alias_map":{"ok":"secret"},'), True),
    "a list of models": (chat('{"model":"ok","model_list":[{"model_name":"ok"}],'), False),
    "a configuration": (chat('{"model":"secret","user_config":{"model_list":[]},'), False),
    "a base model": (chat('{"model":"ok","base_model":"secret",'), True),
    "a window's fallback": (chat('{"model":"ok","context_window_fallback_dict":{"allowed":"openai/secret"},'), True),
    "an own account": (chat('{"model":"ok","api_base":"http://127.0.0.1:1","api_key":"x",'), False),
}


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/messages"])
@pytest.mark.parametrize("what", BODIES)
def test_no_body_leads_to_a_forbidden_model(rig: Rig, provider: Anything, what: str, path: str) -> None:
    body, allowed = BODIES[what]
    if path == "/v1/messages":
        body = body.replace(b'"messages"', b'"max_tokens":5,"messages"').replace(b'"ok"', b'"ok-claude"', 1)
    answer = send(rig, provider, path, body)
    assert not asked_for_the_secret(answer)
    assert allowed or (400 <= answer.status < 500 and not answer.reached), answer.text


JSON: Final = json.dumps(FORBIDDEN).encode()
FORM: Final = b'--x\r\ncontent-disposition: form-data; name="model"\r\n\r\nsecret\r\n--x--\r\n'


def bomb() -> bytes:
    """Return 200 MB of one letter, compressed."""
    pack = zlib.compressobj(1, wbits=31)
    letters = b"a" * 1_000_000
    start, end = b'{"model":"ok","messages":[],"x":"', b'"}'
    return b"".join([*map(pack.compress, [start, *[letters] * 200, end]), pack.flush()])


WIRE: dict[str, tuple[bytes | Callable[[], bytes], dict[str, str]]] = {
    "gzip": (gzip.compress(JSON), {"content-encoding": "gzip"}),
    "a bomb": (bomb, {"content-encoding": "gzip"}),
    "deflate": (zlib.compress(JSON), {"content-encoding": "deflate"}),
    "an unknown encoding": (JSON, {"content-encoding": "br"}),
    "a form": (b"model=secret&messages=[]", {"content-type": "application/x-www-form-urlencoded"}),
    "a form of parts": (FORM, {"content-type": "multipart/form-data; boundary=x"}),
    "text": (JSON, {"content-type": "text/plain"}),
    "another alphabet": (JSON.decode().encode("utf-16"), {"content-type": "application/json; charset=utf-16"}),
    "another method": (JSON, {"x-http-method-override": "GET"}),
    "chunks and a length": (
        b"0\r\n\r\nPOST /v1/chat/completions HTTP/1.1\r\n\r\n",
        {"transfer-encoding": "chunked", "content-length": "5"},
    ),
    "two lengths": (JSON, {"content-length": str(len(JSON)), "Content-Length": "3"}),
    "another path": (JSON, {"x-original-url": "/v1/models", "x-rewrite-url": "/v1/models"}),
    "another model": (JSON, {"x-litellm-model": "ok", "x-model": "ok"}),
    "another key": (JSON, {"x-api-key": "sk-pointsman-test-wrong"}),
}


@pytest.mark.parametrize("how", WIRE)
def test_no_framing_leads_to_a_forbidden_model(rig: Rig, provider: Anything, how: str) -> None:
    written, headers = WIRE[how]
    body = written() if callable(written) else written
    answer = send(rig, provider, "/v1/chat/completions", body, headers=headers)
    assert not answer.reached
    assert 400 <= answer.status < 500, answer.text
    # The connection was not taken for another request's.
    assert send(rig, provider, "/health/liveliness", method="GET").status == 200


#: A path, and how a body of 15 MB begins, what it repeats, and how it ends.
MANY: dict[str, tuple[str, tuple[str, str, str]]] = {
    "lists": ("/v1/chat/completions", ('{"model":"ok","messages":[],"x":[', "[]", "]}")),
    "empty messages": ("/v1/chat/completions", ('{"model":"ok","messages":[', "{}", "]}")),
    "messages": ("/v1/messages", ('{"model":"ok","messages":[', '{"role":"user","content":"a"}', "]}")),
    "tool outputs": (
        "/v1/responses",
        ('{"model":"ok","input":[', '{"type":"function_call_output","call_id":"c","output":"a"}', "]}"),
    ),
    "token ids": ("/v1/embeddings", ('{"model":"ok","input":[', "1", "]}")),
    "contents": ("/v1beta/models/ok:generateContent", ('{"contents":[', '{"parts":[{"text":"a"}]}', "]}")),
    "a pass-through": ("/configured", ('{"model":"ok","x":[', "[]", "]}")),
}


@pytest.mark.parametrize("what", MANY)
def test_a_body_of_very_many_parts_is_refused_unread(rig: Rig, provider: Anything, what: str) -> None:
    """Reading one would stall the worker for ten seconds."""
    path, (start, part, end) = MANY[what]
    body = f"{start}{','.join([part] * (15_000_000 // (len(part) + 1)))}{end}"
    answer = send(rig, provider, path, body.encode())
    assert answer.status == 413
    assert '"code":"too_many_parts"' in answer.text.replace(": ", ":")
    assert not answer.reached


def test_a_body_of_very_many_fields_is_refused(rig: Rig, provider: Anything) -> None:
    fields = ",".join(f'"field {number}":0' for number in range(50_000))
    answer = send(rig, provider, "/v1/chat/completions", chat(f'{{"model":"ok",{fields},'))
    assert (answer.status, answer.reached) == (400, [])
    assert "too_many_fields" in answer.text


def test_a_long_text_with_the_marks_of_parts_is_answered(rig: Rig, provider: Anything) -> None:
    body = chat('{"model":"ok",').replace(b'"hi"', b'"' + b"a, [b] {c} " * 100_000 + b'"')
    answer = send(rig, provider, "/v1/chat/completions", body)
    assert answer.status == 200, answer.text


def test_what_is_allowed_is_answered(rig: Rig, provider: Anything) -> None:
    """So that the above is not refused for another reason."""
    answer = send(rig, provider, "/v1/chat/completions", chat('{"model":"ok",'))
    assert answer.status == 200
    assert json.loads(answer.reached[0][2])["model"] == "allowed"
