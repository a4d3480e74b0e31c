"""What a hostile client can do on a websocket, each with what it must get: nothing that is not admitted, and one settlement."""

from __future__ import annotations

import contextlib
import json
import socket as sockets
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from rig import Rig, deployment
from speaker import SOUND, Speaker, speaker
from talking import LAST, PATHS, ask, ended, entry, refused, settled, settlements, socket, until
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from pointsman.litellm.silent_sockets import MOST
from pointsman.testing import eventually

pytestmark = pytest.mark.proxy

OWN = ["talk", "chat", "claude"]
TENANTS = [
    {"id": "o", "models": OWN},
    *({"id": name, "models": OWN, "limits": {"max_concurrent_requests": 1}} for name in "cd"),
]


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Speaker]:
    with speaker(tmp_path_factory.mktemp("speaker")) as running:
        yield running


@pytest.fixture(scope="module")
def rig(provider: Speaker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with Rig(
        tmp_path_factory.mktemp("hostile"),
        lambda upstream: [
            entry("talk", "gpt-realtime", provider.url),
            entry("secret-talk", "gpt-4o-realtime", provider.url),
            entry("chat", "gpt-4o-mini", provider.url),
            entry("secret", "gpt-4o", provider.url),
            deployment(upstream, "claude", "claude-sonnet-4-5", provider="anthropic", id_="claude-1"),
            deployment(upstream, "secret-claude", "claude-opus-4-1", provider="anthropic", id_="secret-claude-1"),
        ],
        plugins=["denier", {"quota": {"tenants": TENANTS, "output": {"default_tokens": 50}}}],
        config={
            "general_settings": {"custom_auth": "pointsman.litellm.custom_auth"},
            "router_settings": {"num_retries": 0, "disable_cooldowns": True},
        },
        env={"SSL_CERT_FILE": str(provider.certificate), "OPENAI_API_KEY": "sk-x", "ANTHROPIC_API_KEY": "sk-x"},
    ) as running:
        yield running


#: How a response names another model than its connection.
OTHER = {
    "flat": {"model": "{model}", "input": "hi"},
    "nested": {"response": {"model": "{model}", "input": "hi"}},
    "both, nested": {"model": "claude", "response": {"model": "{model}", "input": "hi"}},
    "both, flat": {"model": "{model}", "response": {"model": "claude", "input": "hi"}},
}


@pytest.mark.parametrize("how", OTHER)
@pytest.mark.parametrize("model", ["anthropic/claude-opus-4-1", "openai/gpt-4o", "secret-claude"])
@pytest.mark.parametrize("at", ["first", "second"])
def test_a_response_cannot_be_another_models(rig: Rig, how: str, model: str, at: str) -> None:
    """LiteLLM asks whatever model a frame names, at providers whose websockets it makes of HTTP requests."""
    case = f"other-{how}-{model}-{at}"
    before = len(rig.upstream.requests)
    with socket(rig, "responses", case, model="claude") as connection:
        if at == "second":
            ask(connection, "responses", model="claude")
            until(connection, "response.completed")
        connection.send(json.dumps({"type": "response.create", **OTHER[how]}).replace("{model}", model))
        event, code = ended(connection)
    assert (event["type"], event["error"]["code"], code) == ("error", "model_not_allowed", 1008)
    asked = [request.body["model"] for request in rig.upstream.requests[before:]]
    assert asked == ["claude-sonnet-4-5"] * (at == "second")


@pytest.mark.parametrize("model", ["gpt-4o-realtime", "secret-talk", ["talk"]])
def test_a_session_keeps_its_model(rig: Rig, provider: Speaker, model: object) -> None:
    """Some providers serve several on one connection, and let the client choose."""
    with socket(rig, "realtime", f"session-{model}") as connection:
        until(connection, "session.created")
        connection.send(
            json.dumps({"type": "session.update", "session": {"type": "realtime", "model": "gpt-realtime"}})
        )
        until(connection, "session.updated")
        before = len(provider.heard)
        connection.send(json.dumps({"type": "session.update", "session": {"type": "realtime", "model": model}}))
        event, code = ended(connection)
    assert (event["error"]["code"], code) == ("model_not_allowed", 1008)
    assert len(provider.heard) == before


QUERIES = {
    # the last one decides, at LiteLLM and here
    "model=talk&model=secret-talk": 403,
    "model=secret-talk&model=talk": None,
    "model=talk,secret-talk": 403,
    "model=": 403,
    "MODEL=talk": 403,
    "model=openai/gpt-4o-realtime": 403,
    "model=secret-talk-1": 403,
    "model=" + "m" * 4_000: 403,
    "intent=transcription": 403,
    "model=talk%00": 403,
}


@pytest.mark.parametrize("query", QUERIES)
def test_the_model_of_a_connection_is_the_one_that_is_admitted(rig: Rig, provider: Speaker, query: str) -> None:
    before = len(provider.paths)
    url = f"{rig.proxy.url.replace('http', 'ws', 1)}{PATHS['realtime']}?{query}"
    try:
        with connect(url, additional_headers={"authorization": "Bearer tenant-o"}, open_timeout=30) as connection:
            ask(connection, "realtime")
            status = 400 if until(connection, "response.done", "error")["type"] == "error" else None
    except InvalidStatus as err:
        status = err.response.status_code
    except ConnectionClosed:
        status = 400
    if QUERIES[query] is None:
        assert status is None
        assert "secret" not in provider.paths[-1]
    else:
        assert status in {400, 403, 404}
        assert len(provider.paths) == before


def test_a_key_in_a_subprotocol_is_a_key(rig: Rig) -> None:
    """Browsers have no other place for it. It is as secret there as in a header."""
    url = f"{rig.proxy.url.replace('http', 'ws', 1)}{PATHS['realtime']}?model="
    protocols: Any = ["realtime", "openai-insecure-api-key.tenant-o", "openai-beta.realtime-v1"]
    headers = {"x-test-case": "subprotocol"}
    with connect(f"{url}talk", subprotocols=protocols, additional_headers=headers, open_timeout=30) as connection:
        assert connection.subprotocol == "realtime"
        ask(connection, "realtime")
        until(connection, "response.done")
    with pytest.raises(InvalidStatus), connect(f"{url}secret-talk", subprotocols=protocols, open_timeout=30):
        pass
    with pytest.raises(InvalidStatus), connect(f"{url}talk", subprotocols=protocols[:1], open_timeout=30):
        pass
    settlements(rig, "subprotocol", 2)
    assert "insecure-api-key.tenant-o" not in rig.record_path.read_text(encoding="utf-8")


#: What Python cannot read; a provider might take it for a request.
UNREADABLE: dict[str, str | bytes] = {
    "a number of 5000 digits": '{"type": "response.create", "response": {}, "n": ' + "9" * 5_000 + "}",
    "nested 100000 deep": '{"type": "response.create", "metadata": ' + "[" * 100_000 + "]" * 100_000 + "}",
    "a byte order mark": '\ufeff{"type": "response.create", "response": {}}',
    "bytes": b'{"type": "response.create", "response": {}}',
    "cut": '{"type": "response.create", "response": {}',
    "two events": '{"type": "x"}{"type": "response.create"}',
    "a million lists": '{"type": "response.create", "response": {"input": [' + "[]," * 1_000_000 + "[]]}}",
    "nothing": "",
}


@pytest.mark.parametrize("protocol", LAST)
@pytest.mark.parametrize("what", UNREADABLE)
def test_what_cannot_be_read_is_not_passed_on(rig: Rig, provider: Speaker, protocol: str, what: str) -> None:
    """It is an error of its own, and the connection goes on."""
    case = f"unreadable-{protocol}-{what}"
    before = provider.asked()
    with socket(rig, protocol, case) as connection:
        connection.send(UNREADABLE[what])
        assert until(connection, "error", "response.created")["error"]["code"] == "invalid_json"
        ask(connection, protocol)
        until(connection, LAST[protocol])
    assert provider.asked() == before + 1
    settlements(rig, case, 2)


def hundreds(connection: ClientConnection) -> None:
    for _ in range(300):
        connection.send(json.dumps({"type": "input_audio_buffer.append", "audio": SOUND}))


def megabytes(connection: ClientConnection) -> None:
    item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "x y " * 500_000}]}
    for _ in range(4):
        connection.send(json.dumps({"type": "conversation.item.create", "item": item}))


def oversized(connection: ClientConnection) -> None:
    # uvicorn's limit is 16 MB
    connection.send(json.dumps({"type": "input_audio_buffer.append", "audio": "A" * (17 << 20)}))
    ended(connection)


def cut(connection: ClientConnection) -> None:
    connection.socket.setsockopt(sockets.SOL_SOCKET, sockets.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    connection.socket.close()


def cut_in_the_middle(connection: ClientConnection) -> None:
    ask(connection, "realtime", "hang")
    until(connection, "response.output_audio.delta")
    cut(connection)


def cut_at_once(connection: ClientConnection) -> None:
    ask(connection, "realtime")
    cut(connection)


def several_at_once(connection: ClientConnection) -> None:
    for _ in range(10):
        ask(connection, "realtime", "hang")


def another_model(connection: ClientConnection) -> None:
    connection.send(json.dumps({"type": "session.update", "session": {"model": "secret-talk"}}))
    ended(connection)


def rejected(connection: ClientConnection) -> None:
    ask(connection, "realtime", "reject")
    until(connection, "error")


ENDS: dict[str, Callable[[ClientConnection], None]] = {
    made.__name__: made
    for made in (
        hundreds, megabytes, oversized, cut, cut_in_the_middle, cut_at_once, several_at_once, another_model, rejected
    )
}  # fmt: skip


@pytest.mark.parametrize("how", ENDS)
def test_a_place_is_free_however_a_connection_ends(rig: Rig, provider: Speaker, how: str) -> None:
    """Of one concurrent request; and everything that was admitted is settled once."""
    case = f"end-{how}"
    with contextlib.suppress(ConnectionClosed, OSError), socket(rig, "realtime", case, "c") as connection:
        ENDS[how](connection)

    def opened() -> bool:
        with contextlib.suppress(InvalidStatus), socket(rig, "realtime", f"after-{how}", "c") as connection:
            ask(connection, "realtime")
            return until(connection, "response.done", "error")["type"] == "response.done"
        return False

    assert eventually(opened, bool)
    admitted = {row["request"] for row in rig.rows() if row.get("case") == case and row["hook"] == "pre_route"}
    found = eventually(lambda: settled(rig, case), lambda found: len(found) == len(admitted))
    assert {one["request_id"] for one in found} == admitted
    eventually(lambda: provider.open, lambda open_: open_ == 0)


def test_a_second_connection_is_refused_while_the_first_is_open(rig: Rig) -> None:
    with socket(rig, "realtime", "first", "d") as connection:
        until(connection, "session.created")
        event, code = refused(rig, "realtime", "second", key="d")
    assert (event["error"]["code"], code) == ("max_concurrent_requests_exceeded", 429)


def test_few_connections_that_ask_for_nothing_are_kept_open(rig: Rig) -> None:
    """One of the responses protocol is not admitted before it names its model."""
    with contextlib.ExitStack() as silent:
        for _ in range(MOST):
            silent.enter_context(socket(rig, "responses", "silent", "c"))
        with pytest.raises(InvalidStatus) as refusal:
            socket(rig, "responses", "silent", "c")
        assert refusal.value.response.status_code == 429
        assert refusal.value.response.headers["retry-after"] == "1"
        with socket(rig, "responses", "not silent", "d") as connection:
            ask(connection, "responses")
            assert until(connection, "response.completed", "error")["type"] == "response.completed"

    def asks() -> bool:
        with contextlib.suppress(InvalidStatus), socket(rig, "responses", "after silence", "c") as connection:
            ask(connection, "responses")
            return until(connection, "response.completed", "error")["type"] == "response.completed"
        return False

    assert eventually(asks, bool)


def test_responses_of_one_id_are_settled_each(rig: Rig) -> None:
    """LiteLLM makes ids for providers whose protocol has none."""
    with socket(rig, "realtime", "twins") as connection:
        for _ in range(3):
            ask(connection, "realtime", "twin")
            until(connection, "response.output_audio.delta")
    _, responses = settlements(rig, "twins", 4)
    assert {one["outcome"] for one in responses} <= {"ok", "disconnected"}
