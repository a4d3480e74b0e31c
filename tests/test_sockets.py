"""Websockets on a real proxy: a connection is admitted at its upgrade, and each response on it is metered by itself."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import httpx
import pytest
from openai import OpenAI
from rig import Rig, counts, only
from speaker import SOUND, SPOKEN, Speaker, speaker
from talking import LAST, MODELS, PATHS, USED, ask, ended, entry, refused, settled, settlements, socket, tokens, until
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Subprotocol

from pointsman.testing import eventually

pytestmark = pytest.mark.proxy

BOTH = pytest.mark.parametrize("protocol", USED)


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Speaker]:
    with speaker(tmp_path_factory.mktemp("speaker")) as running:
        yield running


def tenant(name: str, **limits: Any) -> dict[str, Any]:
    return {"id": name, "models": ["talk", "chat", "gone", "unpriced"], "limits": limits}


TENANTS = [
    tenant("o"),
    tenant("c", max_concurrent_requests=1),
    tenant("m", usd_per_day=1),
    *(tenant(name, tokens_per_day=500) for name in "pq"),
    *(tenant(name, requests_per_minute=3) for name in "rs"),
]


@pytest.fixture(scope="module")
def rig(provider: Speaker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with Rig(
        tmp_path_factory.mktemp("sockets"),
        lambda _: [
            entry("talk", "gpt-realtime", provider.url),
            entry("chat", "gpt-4o-mini", provider.url),
            entry("gone", "gpt-realtime", "http://127.0.0.1:9/v1"),
            entry("unpriced", "nobody-knows-realtime", provider.url),
        ],
        plugins=[
            "denier",
            {"quota": {"tenants": TENANTS, "output": {"default_tokens": 50}}},
            {"billing": {"sinks": []}},
        ],
        config={
            "general_settings": {"custom_auth": "pointsman.litellm.custom_auth"},
            "router_settings": {"num_retries": 0, "disable_cooldowns": True},
        },
        env={"SSL_CERT_FILE": str(provider.certificate)},
    ) as running:
        yield running


def with_key_in(header: str, rig: Rig, protocol: str, case: str) -> ClientConnection:
    """Connect as clients do that cannot, or need not, set ``authorization``."""
    url = f"{rig.proxy.url.replace('http', 'ws', 1)}{PATHS[protocol]}?model={MODELS[protocol]}"
    headers = {"x-test-case": case, "x-mcp-mine-authorization": "tenant-o"}
    if header == "sec-websocket-protocol":
        spoken = [
            Subprotocol(name) for name in ("realtime", "openai-insecure-api-key.tenant-o", "openai-beta.realtime-v1")
        ]
        return connect(url, additional_headers=headers, subprotocols=spoken, open_timeout=30)
    return connect(url, additional_headers={**headers, header: "tenant-o"}, open_timeout=30)


@BOTH
@pytest.mark.parametrize("header", ["api-key", "sec-websocket-protocol"])
def test_a_key_reaches_no_plugin_as_a_header(rig: Rig, header: str, protocol: str) -> None:
    case = f"key-{protocol}-{header}"
    with with_key_in(header, rig, protocol, case) as connection:
        ask(connection, protocol)
        until(connection, LAST[protocol])
    settlements(rig, case, 2)
    shown = [row["headers"] for row in rig.rows() if "headers" in row and row["headers"].get("x-test-case") == case]
    assert len(shown) >= 2
    assert not [headers for headers in shown if "tenant-o" in json.dumps(headers)]


@BOTH
def test_each_response_is_a_request_of_its_own(rig: Rig, provider: Speaker, protocol: str) -> None:
    """With OpenAI's own client: hooks, usage and bill of each, and nothing twice; the connection itself uses nothing."""
    case, headers = f"own-{protocol}", {"x-test-case": f"own-{protocol}"}
    with OpenAI(base_url=f"{rig.proxy.url}/v1", api_key="tenant-o") as client:
        if protocol == "realtime":
            with client.realtime.connect(model="talk", extra_headers=headers) as talk:
                for _ in range(3):
                    talk.response.create(response={"instructions": "Be kind."})
                    assert any(event.type == "response.done" for event in until_done(talk))
        else:
            with client.responses.connect(extra_headers=headers) as chat:
                for _ in range(3):
                    chat.response.create(model="chat", input="hi", instructions="Be kind.")
                    assert any(event.type == "response.completed" for event in until_done(chat))
    connection, responses = settlements(rig, case, 4)
    assert (connection["outcome"], connection["status_code"], connection["cost_usd_micros"]) == ("ok", 101, 0)
    # How fast it was opened says nothing about how fast it answers.
    assert [one["attempts"][0]["duration_ms"] is None for one in (connection, *responses)] == [True] + [False] * 3
    assert [tokens(one) for one in responses] == [USED[protocol]] * 3
    assert {one["outcome"] for one in responses} == {"ok"}
    for one in responses:
        rows = [row for row in rig.rows() if row["request"] == one["request_id"]]
        assert only(rows, "pre_route")["within"] == connection["request_id"]
        fired = counts(rows)
        assert (fired["select"], fired["before_attempt"], fired["post_response"], fired["on_error"]) == (0, 1, 1, 0)
        assert only(rows, "post_response")["deployment"] == connection["attempts"][0]["deployment"]["id"]
        assert only(rows, "post_response")["first_token_ms"] is not None
        assert not only(rows, "post_response")["usage"]["estimated"]


@BOTH
def test_responses_on_a_websocket_are_reconciled(rig: Rig, protocol: str) -> None:
    """LiteLLM logs their costs for the connection: that they have none of their own is in order."""
    with socket(rig, protocol, f"reconciled-{protocol}") as talk:
        ask(talk, protocol)
        until(talk, LAST[protocol])
    settlements(rig, f"reconciled-{protocol}", 2)
    with rig.proxy.client() as admin:
        findings = eventually(
            lambda: {row["finding"] for row in admin.get("/pointsman/billing/reconcile").json()["comparison"]},
            lambda findings: "connection" in findings,
        )
    assert not findings & {"unseen", "different"}


@BOTH
def test_a_websocket_is_explained_with_the_responses_on_it(rig: Rig, protocol: str) -> None:
    """By the id in the answer to its handshake; each response by its own."""
    with socket(rig, protocol, f"explained-{protocol}") as talk:
        assert talk.response is not None
        request_id = talk.response.headers["x-pointsman-request-id"]
        for _ in range(2):
            ask(talk, protocol)
            until(talk, LAST[protocol])
    connection, responses = settlements(rig, f"explained-{protocol}", 3)
    assert connection["request_id"] == request_id
    with rig.proxy.client() as admin:
        whole = admin.get(f"/pointsman/requests/{request_id}").raise_for_status().json()
        assert whole["related"] == [one["request_id"] for one in responses]
        told = "\n".join(whole["lines"])
        assert "ended: ok, status 101" in told
        for one in responses:
            assert f"response on it: {one['request_id']}: ok, status 200" in told
            alone = admin.get(f"/pointsman/requests/{one['request_id']}").raise_for_status().json()
            assert alone["lines"][0].endswith(f"on the websocket {request_id}")
            assert f"{USED[protocol][0]}+{USED[protocol][1]} tokens" in "\n".join(alone["lines"])


def until_done(connection: Any) -> Iterator[Any]:
    for event in connection:
        yield event
        if event.type in {"response.done", "response.completed", "error"}:
            return


def test_sound_and_cached_tokens_are_priced(rig: Rig) -> None:
    """By OpenAI's list, a million tokens each: 4 of text, 0.40 cached, 32 of sound; 16 and 64 of answers."""
    with socket(rig, "realtime", "priced") as talk:
        ask(talk, "realtime")
        until(talk, "response.done")
    _, (response,) = settlements(rig, "priced", 2)
    (attempt,) = response["attempts"]
    assert attempt["usage"]["audio_prompt_tokens"] == 13
    assert attempt["usage"]["audio_completion_tokens"] == 91
    assert attempt["usage"]["cached_tokens"] == 64
    assert response["cost_usd_micros"] == round(55 * 4 + 64 * 0.4 + 13 * 32 + 30 * 16 + 91 * 64)


@BOTH
def test_a_model_that_is_not_allowed_is_refused_before_the_provider_is_reached(
    rig: Rig, provider: Speaker, protocol: str
) -> None:
    before = len(provider.paths)
    event, code = refused(rig, protocol, f"allowed-{protocol}", model="secret")
    assert (event["status"], event["error"]["code"]) == (403, "model_not_allowed")
    assert code == (403 if protocol == "realtime" else 1008)
    assert len(provider.paths) == before


def test_a_connection_without_a_price_is_not_opened_where_money_is_limited(rig: Rig, provider: Speaker) -> None:
    before = len(provider.paths)
    event, code = refused(rig, "realtime", "unpriced", key="m", model="unpriced")
    assert (event["error"]["code"], code) == ("model_unpriced", 403)
    assert len(provider.paths) == before
    with socket(rig, "realtime", "money", "m") as talk:
        ask(talk, "realtime")
        until(talk, "response.done")


@BOTH
def test_a_denied_connection_says_when_to_come_again(rig: Rig, protocol: str) -> None:
    """Realtime: with its status at the handshake. Responses: LiteLLM reads the first event before it asks for admission."""
    event, code = refused(rig, protocol, f"denied-{protocol}", x_test_deny="429")
    assert (event["status"], event["error"]["code"], event["headers"]["retry-after"]) == (429, "told_to_deny", "3")
    assert code == (429 if protocol == "realtime" else 1008)
    connection, responses = settlements(rig, f"denied-{protocol}", 1)
    assert (connection["outcome"], responses) == ("denied", [])


@BOTH
def test_a_response_that_is_denied_closes_the_connection(rig: Rig, provider: Speaker, protocol: str) -> None:
    """With an event that says why; the provider does not hear of it."""
    before = provider.asked()
    with socket(rig, protocol, f"mid-{protocol}", x_test_deny_response="429") as connection:
        ask(connection, protocol)
        event, code = ended(connection)
    assert (event["type"], event["error"]["code"], event["headers"]["retry-after"]) == ("error", "told_to_deny", "3")
    assert code == 1008
    assert provider.asked() == before
    _, (response,) = settlements(rig, f"mid-{protocol}", 2)
    assert (response["outcome"], response["attempts"]) == ("denied", [])


@pytest.mark.parametrize(("protocol", "name", "answers"), [("realtime", "p", 1), ("responses", "q", 2)])
def test_a_budget_that_is_gone_closes_the_connection(rig: Rig, protocol: str, name: str, answers: int) -> None:
    """After the responses that it has room for: of 500 tokens a day, each uses what the provider says."""
    with socket(rig, protocol, f"budget-{protocol}", name) as connection:
        for number in range(answers):
            ask(connection, protocol)
            until(connection, LAST[protocol])
            # Until a response is settled, its estimate counts.
            eventually(lambda: settled(rig, f"budget-{protocol}"), lambda found: len(found) > number)  # noqa: B023
        ask(connection, protocol)
        event, code = ended(connection)
    assert (event["error"]["code"], event["status"], code) == ("tokens_per_day_exceeded", 429, 1008)
    assert int(event["headers"]["retry-after"]) > 0


@BOTH
def test_a_connection_keeps_its_place_among_concurrent_requests(rig: Rig, protocol: str) -> None:
    """As long as it is open, also while nothing is said; its own responses share it."""
    with socket(rig, protocol, f"place-{protocol}", "c") as connection:
        for _ in range(5):
            ask(connection, protocol)
            until(connection, LAST[protocol])
        event, _ = refused(rig, "realtime", f"second-{protocol}", key="c")
        assert (event["status"], event["error"]["code"]) == (429, "max_concurrent_requests_exceeded")
        ask(connection, protocol)
        until(connection, LAST[protocol])
    settlements(rig, f"place-{protocol}", 7)
    with socket(rig, protocol, f"after-{protocol}", "c") as connection:
        ask(connection, protocol)
        until(connection, LAST[protocol])


@pytest.mark.parametrize(("protocol", "name"), [("realtime", "r"), ("responses", "s")])
def test_each_response_counts_against_the_rate(rig: Rig, protocol: str, name: str) -> None:
    """And so does the connection: with three a minute, the third response is one too many."""
    with socket(rig, protocol, f"rate-{protocol}", name) as connection:
        for _ in range(2):
            ask(connection, protocol)
            until(connection, LAST[protocol])
        ask(connection, protocol)
        event, code = ended(connection)
    assert (event["error"]["code"], code) == ("requests_per_minute_exceeded", 1008)


FAULTS = {
    # what the provider is asked to do: outcome of the attempt, its error, whether its usage is an estimate
    "fail": ("error", "server", True),
    "mute": ("ok", None, True),
    "hang": ("disconnected", None, True),
    "hang up": ("disconnected", None, True),
}


@BOTH
@pytest.mark.parametrize("what", FAULTS)
def test_a_response_that_does_not_end_well_is_accounted_for(rig: Rig, protocol: str, what: str) -> None:
    """By what has come, where the provider does not say what it has used: its text, and its sound."""
    case = f"fault-{what}-{protocol}"
    with socket(rig, protocol, case) as connection:
        ask(connection, protocol, what)
        if what == "hang up" and protocol == "realtime":
            ended(connection)
        elif "hang" in what:
            # LiteLLM keeps a responses socket open whose provider has left.
            until(connection, "response.output_audio.delta", "response.output_text.delta")
        else:
            until(connection, LAST[protocol], "response.failed")
    _, (response,) = settlements(rig, case, 2)
    (attempt,) = response["attempts"]
    outcome, error, estimated = FAULTS[what]
    assert (attempt["outcome"], attempt["error"] and attempt["error"]["kind"]) == (outcome, error)
    assert attempt["usage"]["estimated"] is estimated
    assert attempt["usage"]["prompt_tokens"] > 0
    if what != "fail":
        assert attempt["usage"]["completion_tokens"] >= 5
        # 4 800 bytes are a tenth of a second.
        assert attempt["usage"]["audio_completion_tokens"] == (2 if protocol == "realtime" else 0)


@BOTH
def test_an_error_event_ends_what_it_is_about(rig: Rig, protocol: str) -> None:
    """The connection stays open, and the next response is served."""
    with socket(rig, protocol, f"reject-{protocol}") as connection:
        ask(connection, protocol, "reject")
        until(connection, "error")
        ask(connection, protocol)
        until(connection, LAST[protocol])
    connected, responses = settlements(rig, f"reject-{protocol}", 3)
    assert connected["outcome"] == "ok"
    assert [one["outcome"] for one in responses] == ["error", "ok"]
    assert responses[0]["attempts"][0]["error"]["kind"] == "client"
    assert responses[0]["cost_usd_micros"] == 0


def test_a_provider_that_answers_by_itself_is_metered(rig: Rig) -> None:
    """Admitted with the first sound, before the provider hears it; the transcription is another model's, and charged too."""
    with socket(rig, "realtime", "voice") as talk:
        until(talk, "session.created")
        talk.send(json.dumps({"type": "input_audio_buffer.append", "audio": SOUND}))
        talk.send(json.dumps({"type": "input_audio_buffer.append", "audio": SPOKEN}))
        until(talk, "conversation.item.input_audio_transcription.completed")
    # LiteLLM before 1.108 asks for another response after each transcription by itself; the client may have left before.
    asks_again = tuple(map(int, version("litellm").split(".")[:2])) < (1, 108)
    _, (spoken, written, *_) = settlements(rig, "voice", 3, more=int(asks_again))
    assert tokens(spoken) == USED["realtime"]
    assert tokens(written) == (40, 8)
    assert written["attempts"][0]["usage"]["model"] == "gpt-4o-mini-transcribe"
    # By the gateway's price map: 1.25 for what is read, 5 for what is written, in dollars a million tokens.
    assert written["cost_usd_micros"] == round(40 * 1.25 + 8 * 5)


@pytest.mark.parametrize("model", ["chat", "secret-transcribe"])
@pytest.mark.parametrize("first", [True, False])
def test_what_transcribes_has_to_be_allowed(rig: Rig, model: str, first: bool) -> None:
    """Named before the first sound or after it; the provider does not hear of a model that is not."""
    heard = {"input": {"transcription": {"model": model}}}
    with socket(rig, "realtime", f"transcriber-{model}-{first}") as talk:
        until(talk, "session.created")
        events = [
            {"type": "session.update", "session": {"type": "realtime", "audio": heard}},
            {"type": "input_audio_buffer.append", "audio": SOUND},
        ]
        for event in events if first else reversed(events):
            talk.send(json.dumps(event))
        if model == "chat":
            until(talk, "session.updated")
            return
        error, code = ended(talk)
    assert (error["error"]["code"], code) == ("model_not_allowed", 1008)


def test_responses_at_the_same_time_are_admitted_each(rig: Rig) -> None:
    """A client that asks again before it has its answer does not get one for nothing."""
    with socket(rig, "realtime", "several") as talk:
        for _ in range(3):
            ask(talk, "realtime", "hang", conversation="none")
        for _ in range(3):
            until(talk, "response.output_audio.delta")
    _, responses = settlements(rig, "several", 4)
    assert len({one["request_id"] for one in responses}) == 3
    assert all(one["attempts"][0]["usage"]["estimated"] for one in responses)


def test_a_provider_that_is_not_reached_is_an_error_of_the_connection(rig: Rig) -> None:
    with pytest.raises((ConnectionClosed, InvalidStatus)), socket(rig, "realtime", "gone", model="gone") as talk:
        talk.recv(30)
    connection, responses = settlements(rig, "gone", 1)
    assert (connection["outcome"], responses) == ("error", [])
    assert connection["attempts"][0]["error"]["kind"] == "connection"


def test_what_has_no_meaning_is_passed_on(rig: Rig) -> None:
    """Neither broken frames nor events of any shape harm what is metered."""
    with socket(rig, "realtime", "noise") as talk:
        until(talk, "session.created")
        for frame in ("[]", '{"type": 5}', '{"type": "session.update", "session": {"tools": 3, "audio": []}}'):
            talk.send(frame)
        until(talk, "session.updated")
        ask(talk, "realtime")
        until(talk, "response.done")
    _, responses = settlements(rig, "noise", 2)
    assert [one["outcome"] for one in responses] == ["ok"]


HIDDEN = {
    "escaped": '{"ty\\u0070e": "response\\u002ecreate", "response": {}}',
    "twice": '{"type": "session.update", "type": "response.create"}',
    "spaces": ' \n{"type" : "response.create"}',
}


@pytest.mark.parametrize("how", HIDDEN)
def test_a_request_cannot_be_hidden_from_admission(rig: Rig, provider: Speaker, how: str) -> None:
    """What the provider would take for a request is one here, however it is written."""
    before = provider.asked()
    with socket(rig, "realtime", f"hidden-{how}", x_test_deny_response="429") as talk:
        until(talk, "session.created")
        talk.send(HIDDEN[how])
        _, code = ended(talk)
    assert code == 1008
    assert provider.asked() == before


def test_hostile_events_stall_no_one(rig: Rig) -> None:
    """Depth, size and number: the next connection is served, and nothing is left behind."""
    with socket(rig, "realtime", "hostile") as talk:
        until(talk, "session.created")
        item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "x" * 400_000}]}
        for _ in range(5):
            talk.send(json.dumps({"type": "conversation.item.create", "item": item}))
        for _ in range(20):
            ask(talk, "realtime")
        for _ in range(20):
            until(talk, "response.done")
        talk.send("[" * 50_000)
    settlements(rig, "hostile", 21)
    with socket(rig, "realtime", "friendly") as talk:
        ask(talk, "realtime")
        until(talk, "response.done")


def test_a_socket_whose_protocol_is_not_known_stays_closed(rig: Rig, provider: Speaker) -> None:
    before = len(provider.paths)
    with pytest.raises(InvalidStatus) as refusal, socket(rig, "live", "live"):
        pass
    assert refusal.value.response.status_code == 403
    assert json.loads(refusal.value.response.body)["error"]["code"] == "unmetered_route"
    assert len(provider.paths) == before
    assert httpx.get(f"{rig.proxy.url}/health/liveliness").status_code == 200


@BOTH
@pytest.mark.parametrize("key", ["o", "c"])
def test_a_websocket_names_what_its_tenant_has_made(rig: Rig, provider: Speaker, protocol: str, key: str) -> None:
    """Responses on websockets included, which LiteLLM does not guard."""
    with socket(rig, "responses", "making") as chat:
        ask(chat, "responses")
        made = until(chat, "response.completed")["response"]["id"]
    before = provider.asked()
    with socket(rig, protocol, f"naming-{protocol}-{key}", key) as talk:
        if protocol == "responses":
            ask(talk, protocol, previous_response_id=made)
        else:
            until(talk, "session.created")
            content = [{"type": "input_image", "file_id": made}]
            item = {"type": "message", "role": "user", "content": content}
            talk.send(json.dumps({"type": "conversation.item.create", "item": item}))
            ask(talk, protocol)
        if key == "o":
            until(talk, LAST[protocol])
            return
        error, code = ended(talk)
    assert (error["error"]["code"], code) == ("not_found", 1008)
    assert provider.asked() == before
