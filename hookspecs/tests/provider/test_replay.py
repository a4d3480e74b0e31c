from __future__ import annotations

import json
import os
from pathlib import Path

import httpx
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman.errors import ConfigError
from pointsman.testing.provider import PICK_HEADER, Behaviour, RecordedExchange, ReplayIndex, UpstreamServer

RECORDING = os.environ.get("POINTSMAN_RECORDING")
CHAT = "/v1/chat/completions"
SSE = "text/event-stream; charset=utf-8"


def exchange(number, path, request, body, kind="application/json", *, status=200, **headers):
    return {
        "id": f"x{number}",
        "source": "test",
        "case": "made here",
        "host": "example.com",
        "path": path,
        "request": request,
        "status": status,
        "headers": {"content-type": kind, **headers} if kind else headers,
        "body": body,
    }


def ask(text, **fields):
    return {"model": "gpt-a", "messages": [{"role": "user", "content": text}], **fields}


EXCHANGES = [
    exchange(0, CHAT, ask("one"), '{"n": 0}', **{"x-ratelimit-remaining-requests": "9", "content-length": "999"}),
    exchange(1, CHAT, ask("one"), '{"n": 1}', **{"content-encoding": "gzip", "transfer-encoding": "chunked"}),
    exchange(2, CHAT, ask("two", tools=[{"a": 1}]), '{"n": 2}'),
    exchange(3, CHAT, ask("two", tools=[{"a": 2}]), '{"n": 3}'),
    exchange(4, CHAT, ask("one", stream=True), 'data: {"n":4}\n\ndata: é\n\ndata: [DONE]\n\n', SSE),
    exchange(5, "/openai/deployments/d/chat/completions", {"messages": []}, '{"error": {}}', "", status=404),
    exchange(
        6, "/v2/chat", ask("hi", stream=True), "event: a\r\ndata: 1\r\n\r\nevent: b\r\ndata: 2", "text/event-stream"
    ),
    exchange(7, "/v1/chat", {"message": "hi", "stream": True}, '{"a":1}\n{"b":2}\n', "application/stream+json"),
    exchange(8, "/api/chat", ask("hi", stream=True), '{"a":1}\n{"b":2}', "application/x-ndjson"),
    exchange(9, "/openai/v1/chat/completions", ask("hi"), '{"groq": true}', status=429, **{"retry-after": "3"}),
]


@pytest.fixture
def index(tmp_path):
    path = tmp_path / "exchanges.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in EXCHANGES), encoding="utf-8")
    return ReplayIndex.load(path)


@pytest.fixture
def http(index):
    with UpstreamServer(replay=index) as server, httpx.Client(base_url=server.url, trust_env=False) as client:
        yield client


def reproduce(http, index):
    """Send the request of each exchange in turn and compare what comes back with what was recorded."""
    for recorded in index:
        answer = http.post(recorded.path, json=recorded.request)
        assert answer.status_code == recorded.status, recorded.id
        assert answer.content == recorded.body.encode(), recorded.id
        left_out = {"content-length", "content-encoding", "transfer-encoding", "connection"}
        expected = {name: value for name, value in recorded.headers.items() if name not in left_out}
        assert {name: answer.headers.get(name) for name in expected} == expected, recorded.id
        assert set(answer.headers) - set(expected) <= {"content-length", "transfer-encoding"}, recorded.id


def test_every_exchange_comes_back_as_recorded(http, index):
    assert len(index) == len(EXCHANGES)
    reproduce(http, index)


@pytest.mark.skipif(not RECORDING, reason="POINTSMAN_RECORDING does not name a recording (exchanges.jsonl)")
def test_every_exchange_of_a_real_recording_comes_back_as_recorded():
    index = ReplayIndex.load(Path(RECORDING))
    assert len(index) > 0
    with UpstreamServer(replay=index) as server, httpx.Client(base_url=server.url, trust_env=False) as client:
        reproduce(client, index)


def test_same_request_recorded_twice_gets_its_answers_in_turn(http):
    assert [http.post(CHAT, json=ask("one")).json()["n"] for _ in range(5)] == [0, 1, 0, 1, 0]


def test_the_whole_body_decides_before_the_prompt(http):
    assert http.post(CHAT, json=ask("two", tools=[{"a": 2}])).json()["n"] == 3


def test_prompt_decides_when_the_body_was_never_seen(http):
    parts = [{"type": "text", "text": "tw"}, {"type": "text", "text": "o"}]
    answers = [http.post(CHAT, json=ask(text, temperature=0)).json()["n"] for text in ("two", parts, "two")]
    assert answers == [2, 3, 2]


def test_path_and_stream_flag_decide_last(http):
    assert http.post(CHAT, json=ask("never", model="other")).json()["n"] == 0
    assert http.post(CHAT, json=ask("never", model="other", stream=True)).text.startswith('data: {"n":4}')


def test_picked_exchange_comes_whatever_the_request_says(http):
    assert http.post(CHAT, json={}, headers={PICK_HEADER: "x9"}).json() == {"groq": True}
    assert http.post(CHAT, json={}, headers={PICK_HEADER: "nobody"}).status_code == 404


def test_unknown_path_says_so(http):
    answer = http.post("/v1/other", json={})
    assert answer.status_code == 404
    assert "No recorded exchange for POST /v1/other" in answer.json()["error"]["message"]


def test_events_and_lines_arrive_one_by_one(index):
    pieces = {recorded.id: len(recorded.pieces()) for recorded in index}
    assert (pieces["x4"], pieces["x6"], pieces["x7"], pieces["x8"]) == (3, 2, 2, 2)


@given(st.text(alphabet="ab\r\n", max_size=40), st.sampled_from([SSE, "application/x-ndjson"]))
def test_pieces_join_to_the_body(body, kind):
    recorded = RecordedExchange(id="x", path="/", request={}, status=200, headers={"content-type": kind}, body=body)
    assert b"".join(recorded.pieces()) == body.encode()


def test_behaviours_still_decide_about_failures_and_faults(index):
    behaviours = {"gpt-a": Behaviour(fail_first=1, fail_with=503, fault="break", fault_after_events=1)}
    with UpstreamServer(behaviours, replay=index) as server, httpx.Client(base_url=server.url, trust_env=False) as http:
        assert http.post(CHAT, json=ask("one", stream=True)).status_code == 503
        with pytest.raises(httpx.RemoteProtocolError):
            http.post(CHAT, json=ask("one", stream=True))
        requests = server.wait_for(lambda found: found[-1].ended_ms is not None)
        assert [request.events for request in requests] == [0, 1]


def test_sdk_reads_a_replayed_stream(tmp_path):
    chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "gpt-a", "choices": []}
    parts = [{**chunk, "choices": [{"index": 0, "delta": {"content": text}}]} for text in ("Hel", "lo")]
    body = "".join(f"data: {json.dumps(part)}\n\n" for part in parts) + "data: [DONE]\n\n"
    path = tmp_path / "one.jsonl"
    path.write_text(json.dumps(exchange(0, CHAT, ask("hi", stream=True), body, SSE)))
    with (
        UpstreamServer(replay=ReplayIndex.load(path)) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="k") as client,
    ):
        stream = client.chat.completions.create(**ask("hi", stream=True))
        assert "".join(part.choices[0].delta.content for part in stream) == "Hello"


@pytest.mark.parametrize(
    "text", ["{", '{"id": "a"}', "\n", '{"id":"a","path":"/","request":{},"status":99,"headers":{},"body":""}']
)
def test_wrong_recording_names_file_and_line(tmp_path, text):
    path = tmp_path / "wrong.jsonl"
    path.write_text(json.dumps(EXCHANGES[0]) + "\n" + text)
    with pytest.raises(ConfigError, match=r"wrong\.jsonl, line 2"):
        ReplayIndex.load(path)
    with pytest.raises(ConfigError, match=r"missing\.jsonl"):
        ReplayIndex.load(tmp_path / "missing.jsonl")
