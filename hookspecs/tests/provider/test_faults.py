from __future__ import annotations

import json

import httpx
import openai
import pytest

from pointsman.testing.provider import Behaviour, Delay, UpstreamServer

HELLO = [{"role": "user", "content": "Hello"}]
CHAT = {"model": "m", "messages": HELLO}
STREAM = {**CHAT, "stream": True}
PATH = "/v1/chat/completions"
#: Of a client that does not wait for the answer, but until it is connected.
IMPATIENT = httpx.Timeout(30, read=0.2)

STREAMS = [
    (PATH, STREAM),
    ("/openai/deployments/m/chat/completions", STREAM),
    ("/v1/responses", {"model": "m", "input": "Hello", "stream": True}),
    ("/v1/messages", {**STREAM, "max_tokens": 50}),
]


def read_events(http, path, body):
    """Return the events that arrive, and the error that ends them or None."""
    parts, error = [], None
    with http.stream("POST", path, json=body) as answer:
        try:
            parts.extend(answer.iter_bytes())
        except httpx.RemoteProtocolError as err:
            error = err
    return b"".join(parts).decode().split("\n\n")[:-1], error


def ended(upstream, count=1):
    found = upstream.wait_for(lambda requests: len([r for r in requests if r.ended_ms is not None]) >= count)
    return found[-1]


@pytest.mark.parametrize("body", [CHAT, STREAM])
def test_drop_closes_before_the_headers(http, upstream, body):
    upstream.behave("m", Behaviour(fault="drop"))
    with pytest.raises(httpx.RemoteProtocolError, match="without sending a response"):
        http.post(PATH, json=body)
    request = ended(upstream)
    assert (request.status, request.fault, request.closed_early) == (None, "drop", False)


@pytest.mark.parametrize(("path", "body"), STREAMS)
@pytest.mark.parametrize("events", [0, 3])
def test_break_closes_after_so_many_events(http, upstream, path, body, events):
    upstream.behave("m", Behaviour(fault="break", fault_after_events=events))
    found, error = read_events(http, path, body)
    assert len(found) == events
    assert "incomplete chunked read" in str(error)
    request = ended(upstream)
    assert (request.status, request.events, request.closed_early) == (200, events, False)


def test_break_of_a_plain_answer_closes_in_the_middle_of_the_body(http, upstream):
    upstream.behave("m", Behaviour(fault="break"))
    with pytest.raises(httpx.RemoteProtocolError, match="without sending complete message body"):
        http.post(PATH, json=CHAT)
    assert ended(upstream).status == 200


def test_fault_beyond_the_end_of_a_stream_leaves_it_alone(http, upstream):
    upstream.behave("m", Behaviour(fault="break", fault_after_events=1000))
    found, error = read_events(http, PATH, STREAM)
    assert (found[-1], error) == ("data: [DONE]", None)


@pytest.mark.parametrize(("path", "body"), STREAMS)
def test_error_event_ends_the_stream_in_order(http, upstream, path, body):
    upstream.behave("m", Behaviour(fault="error_event", fault_after_events=4))
    found, error = read_events(http, path, body)
    assert error is None
    data = [json.loads(event.rpartition("data: ")[2]) for event in found[4:]]
    if path == "/v1/responses":
        assert [item["type"] for item in data] == ["error", "response.failed"]
        assert [item["sequence_number"] for item in data] == [4, 5]
        assert data[1]["response"]["status"] == "failed"
    else:
        assert len(data) == 1
    assert data[0]["error"]["message"]
    assert ended(upstream).events == len(found)


@pytest.mark.parametrize("endpoint", ["chat", "responses"])
def test_error_event_raises_in_the_sdk_after_the_text_so_far(oai, upstream, endpoint):
    upstream.behave("m", Behaviour(fault="error_event", fault_after_events=5))
    create, prompt = {
        "chat": (oai.chat.completions.create, {"messages": HELLO}),
        "responses": (oai.responses.create, {"input": "Hello"}),
    }[endpoint]
    seen = []
    with pytest.raises(openai.APIError, match="server had an error"):
        seen.extend(create(model="m", stream=True, **prompt))
    assert len(seen) == 5


def test_error_events_do_not_touch_plain_answers(http, upstream):
    upstream.behave("m", Behaviour(fault="error_event"))
    assert http.post(PATH, json=CHAT).status_code == 200


def test_malformed_json_plain_and_streamed(http, oai, upstream):
    upstream.behave("m", Behaviour(fault="malformed_json", fault_after_events=3))
    answer = http.post(PATH, json=CHAT)
    assert answer.status_code == 200
    with pytest.raises(json.JSONDecodeError):
        answer.json()
    seen = []
    with pytest.raises(json.JSONDecodeError):
        seen.extend(oai.chat.completions.create(**STREAM))
    assert len(seen) == 3


@pytest.mark.parametrize("body", [CHAT, STREAM])
def test_wrong_content_type_claims_to_be_html(http, upstream, body):
    upstream.behave("m", Behaviour(fault="wrong_content_type"))
    answer = http.post(PATH, json=body)
    assert answer.headers.get_list("content-type") == ["text/html; charset=utf-8"]
    assert "chat.completion" in answer.text


def leave_after(http, events):
    """Leave a stream after this many events."""
    with http.stream("POST", PATH, json=STREAM) as answer:
        for line in answer.iter_lines():
            events -= line.startswith("data:")
            if not events:
                return
    raise AssertionError("the stream has ended")


@pytest.mark.parametrize("body", [CHAT, STREAM])
def test_hang_sends_nothing_until_the_client_gives_up(http, upstream, body):
    upstream.behave("m", Behaviour(fault="hang"))
    with pytest.raises(httpx.ReadTimeout):
        http.post(PATH, json=body, timeout=IMPATIENT)
    request = ended(upstream)
    assert (request.status, request.fault, request.closed_early) == (None, "hang", True)


def test_hang_in_the_middle_of_a_stream(http, upstream):
    upstream.behave("m", Behaviour(fault="hang", fault_after_events=2))
    leave_after(http, 2)
    request = ended(upstream)
    assert (request.status, request.events, request.closed_early) == (200, 2, True)


def test_client_leaving_a_stream_is_noticed_before_the_next_token(http, upstream):
    upstream.behave("m", Behaviour(per_token=Delay(60_000)))
    with http.stream("POST", PATH, json=STREAM) as answer:
        next(answer.iter_bytes())
    request = ended(upstream)
    assert request.closed_early
    assert request.events <= 2


async def test_cancelled_async_client_is_noticed(upstream):
    """A cancelled attempt is seen as closed early: the proof that races need for their losers."""
    upstream.behave("m", Behaviour(per_token=Delay(60_000)))
    async with openai.AsyncOpenAI(base_url=upstream.url, api_key="k", max_retries=0) as client:
        stream = await client.chat.completions.create(**STREAM)
        async for _chunk in stream:
            break
        await stream.close()
    assert ended(upstream).closed_early


@pytest.mark.parametrize(
    ("delay", "status", "events"),
    [("latency", None, 0), ("first_token", 200, 1), ("per_token", 200, 2)],
)
def test_each_delay_of_a_stream_is_before_its_part(http, upstream, delay, status, events):
    """Latency holds back the headers, the first token's delay the text but not the role chunk."""
    upstream.behave("m", Behaviour(**{delay: Delay(60_000)}))
    if events:
        leave_after(http, events)
    else:
        with pytest.raises(httpx.ReadTimeout), http.stream("POST", PATH, json=STREAM, timeout=IMPATIENT):
            pass
    request = ended(upstream)
    assert (request.status, request.events, request.closed_early) == (status, events, True)
    assert (request.first_token_ms is not None) == (delay == "per_token")


@pytest.mark.parametrize("delay", ["latency", "first_token", "per_token"])
def test_plain_answer_waits_for_all_of_it(http, upstream, delay):
    upstream.behave("m", Behaviour(**{delay: Delay(60_000)}))
    with pytest.raises(httpx.ReadTimeout):
        http.post(PATH, json=CHAT, timeout=IMPATIENT)
    assert (ended(upstream).status, ended(upstream).closed_early) == (None, True)


def test_times_are_in_order(http, upstream):
    upstream.behave("m", Behaviour(latency=Delay(5), first_token=Delay(5), per_token=Delay(5), tokens=3))
    http.post(PATH, json=STREAM)
    request = ended(upstream)
    assert 0 < request.headers_ms < request.first_token_ms < request.ended_ms


def test_stopping_ends_what_hangs():
    with UpstreamServer({"m": Behaviour(fault="hang", fault_after_events=1)}) as server:
        with (
            httpx.Client(base_url=server.url, trust_env=False) as http,
            http.stream("POST", PATH, json=STREAM) as answer,
        ):
            parts = answer.iter_bytes()
            next(parts)
            server.stop()
            with pytest.raises(httpx.RemoteProtocolError):
                next(parts)
        (request,) = server.wait_for(lambda found: found[0].ended_ms is not None)
    assert not request.closed_early


def test_server_says_what_to_do_when_not_started_or_started_twice():
    server = UpstreamServer()
    with pytest.raises(RuntimeError, match="call start"):
        _ = server.url
    with server, pytest.raises(RuntimeError, match="make a new one"):
        server.start()


def test_wait_for_gives_up(upstream):
    with pytest.raises(TimeoutError, match="0 requests"):
        upstream.wait_for(lambda requests: requests, timeout_s=0.01)
