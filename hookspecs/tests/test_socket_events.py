"""What is read in the events of OpenAI's websocket protocols: never an error, whatever they are."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman.counting import read_prompt
from pointsman.litellm import socket_events as events
from pointsman.litellm.socket_events import Conversation, ResponseReader
from pointsman.types import Endpoint, ErrorClass, Usage

WORDS = st.sampled_from(
    ["audio", "delta", "error", "error.event_id", "id", "input", "item", "response", "session", "status", "tools", "type",
     "usage", "instructions", "max_output_tokens", "input_tokens", "event_id", "status_details", "code"]
)  # fmt: skip
TYPES = st.sampled_from(
    [*sorted(events.ENDED), *sorted(events.HEARD), events.ASKS, events.BEGUN, events.ERROR, events.TRANSCRIBED,
     "session.update", "conversation.item.create", "response.output_audio.delta", "response.output_text.delta"]
)  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=8,
)
EVENTS = st.builds(
    lambda fields, type_: {**fields, "type": type_}, st.dictionaries(WORDS, JSON, max_size=6), TYPES | JSON
)


@given(st.lists(EVENTS, max_size=6), st.sampled_from([Endpoint.REALTIME, Endpoint.RESPONSES]))
def test_any_event_is_read(sent: list[dict[str, Any]], endpoint: Endpoint) -> None:
    conversation, reader = Conversation(endpoint), ResponseReader()
    for event in sent:
        assert isinstance(events.kind(event), str)
        assert isinstance(events.response_id(event), str)
        conversation.note(event)
        reader.add(event)
        assert isinstance(conversation.request(event), dict)
        assert conversation.carried(event) >= 0
        assert events.reported_error(event).message
        used = events.transcription_usage(event, conversation.transcriber)
        assert used is None or used.total_tokens >= 0
        assert isinstance(events.concerns(event), str)
        conversation.answered(Usage())
    assert reader.sound_tokens >= 0
    reading = reader.reading()
    assert reading is None or reading.usage.total_tokens >= 0


def test_a_frame_has_an_event_or_none() -> None:
    assert events.parse({"text": '{"type": "x"}'}) == {"type": "x"}
    assert events.parse({"text": "[1]"}) is None
    assert events.parse({"text": '{"audio": "' + "A" * 1_000_000 + '"}'}) is not None


@pytest.mark.parametrize(
    "message",
    [
        {"bytes": b'{"type": "x"}'},
        {"text": None, "bytes": b"\xff\xfe\x00"},
        {"text": "[" * 100_000},
        {"text": '{"n": ' + "9" * 5_000 + "}"},
        {"text": '{"a": [' + "[]," * 300_000 + "[]]}"},
        {"text": "[" * 1_000_000},
        {"text": "{"},
        {},
    ],
    ids=["bytes", "no text", "deep", "long number", "many parts", "very deep", "cut", "empty"],
)
def test_what_cannot_be_read_is_an_error(message: dict[str, Any]) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # json's own among them
        events.parse(message)


LONG, SHORT = "a long text " * 50, "a short one"


@pytest.mark.parametrize("endpoint", [Endpoint.REALTIME, Endpoint.RESPONSES])
@pytest.mark.parametrize(
    "event",
    [
        {"input": LONG},
        {"response": {"input": LONG}},
        {"input": LONG, "response": {}},
        {"input": LONG, "response": {"input": SHORT}},
        {"input": SHORT, "response": {"input": LONG}},
        {"input": [{"role": "user", "content": LONG}], "response": {"input": SHORT}},
        {"instructions": LONG, "response": {"input": SHORT}},
    ],
)
def test_a_text_counts_wherever_it_stands(endpoint: Endpoint, event: dict[str, Any]) -> None:
    """Providers differ in where they look."""
    body = Conversation(endpoint).request({"type": "response.create", **event})
    assert LONG in read_prompt(body).text


def test_of_two_limits_the_larger_counts() -> None:
    event = {"type": "response.create", "max_output_tokens": 1, "response": {"max_output_tokens": 4_000}}
    assert Conversation(Endpoint.RESPONSES).request(event)["max_output_tokens"] == 4_000


def test_a_response_with_an_input_of_its_own_does_not_forget_the_conversation() -> None:
    """Else a long conversation would be admitted as a short one."""
    talk = conversation({"type": "conversation.item.create", "item": {"type": "message", "content": LONG}})
    aside = {"type": "response.create", "response": {"input": [], "conversation": "none"}}
    assert talk.is_aside(aside)
    talk.take(aside)
    talk.answered(Usage(prompt_tokens=5, completion_tokens=2), aside=True)
    body, carried = talk.take({"type": "response.create"})
    assert LONG in read_prompt(body).text
    assert carried == 2
    talk.answered(Usage(prompt_tokens=900, completion_tokens=100))
    talk.answered(Usage(prompt_tokens=5, completion_tokens=2), aside=True)
    assert talk.take({"type": "response.create"})[1] == 1_002


def test_an_item_that_is_referred_to_counts() -> None:
    talk = conversation({"type": "conversation.item.create", "item": {"id": "i", "type": "message", "content": LONG}})
    aside = {"type": "response.create", "response": {"input": [{"type": "item_reference", "id": "i"}]}}
    assert LONG in read_prompt(talk.request(aside)).text


@pytest.mark.parametrize(
    ("event", "names"),
    [
        ({"type": "response.create", "model": "a"}, {"a"}),
        ({"type": "response.create", "model": "a", "response": {"model": "b"}}, {"a", "b"}),
        ({"type": "session.update", "session": {"model": "a"}}, {"a"}),
        ({"type": "session.update", "session": {"model": ["a"]}}, {"['a']"}),
        ({"type": "conversation.item.create", "model": "a"}, set()),
        ({"type": "response.create", "response": "model"}, set()),
    ],
)
def test_the_models_that_an_event_names(event: dict[str, Any], names: set[str]) -> None:
    assert events.named_models(event) == names
    assert not events.named_models(events.without_model({**event, "type": "response.create", "session": None}))


def conversation(*sent: dict[str, Any]) -> Conversation:
    made = Conversation(Endpoint.REALTIME)
    for event in sent:
        made.note(event)
    return made


SESSION = {"instructions": "Be kind.", "tools": [{"name": "look"}], "max_response_output_tokens": 300}


def test_a_realtime_response_reads_the_session_and_what_the_client_has_added() -> None:
    item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]}
    made = conversation(
        {"type": "session.update", "session": SESSION}, {"type": "conversation.item.create", "item": item}
    )
    asked = {"type": "response.create", "response": {"instructions": "Be brief."}}
    body = {"instructions": "Be brief.", "tools": [{"name": "look"}], "max_output_tokens": 300, "input": [item]}
    assert made.take(asked) == (body, 0)
    made.note({"type": "conversation.item.create", "item": "later"})
    made.answered(Usage(prompt_tokens=40, completion_tokens=2))
    assert made.take({}) == ({**body, "instructions": "Be kind.", "input": ["later"]}, 42)


def test_what_was_added_is_counted_as_text_once() -> None:
    """However often a client asks before it has its answer; then it is carried, by its length."""
    item = {"type": "message", "content": "x" * 1_000}
    made = conversation({"type": "conversation.item.create", "item": item})
    (first, _), (second, carried) = made.take({}), made.take({})
    assert (first["input"], second["input"]) == ([item], [])
    assert 500 <= carried < 550


def test_a_limit_that_is_no_number_is_none() -> None:
    """``inf`` is OpenAI's word for no limit."""
    made = conversation({"type": "session.created", "session": {"max_output_tokens": "inf"}})
    assert "max_output_tokens" not in made.request({})


def test_sound_that_was_sent_is_read_at_ten_tokens_a_second() -> None:
    second = base64.b64encode(bytes(48_000)).decode()
    made = conversation({"type": "input_audio_buffer.append", "audio": second})
    assert made.carried({}) == 10


def test_long_conversations_are_counted_by_their_length_and_not_kept() -> None:
    item = {"type": "message", "content": "x" * 400_000}
    made = conversation(*[{"type": "conversation.item.create", "item": item}] * 5)
    assert len(made.request({})["input"]) == 2
    assert made.carried({}) >= 500_000


def test_a_responses_socket_reads_again_what_the_client_refers_to() -> None:
    made = Conversation(Endpoint.RESPONSES)
    made.answered(Usage(prompt_tokens=300, completion_tokens=80), "resp_1")
    assert made.carried({"type": "response.create", "input": "hi"}) == 0
    # Of another connection's, this one knows nothing.
    assert made.carried({"type": "response.create", "input": "hi", "previous_response_id": "resp_0"}) == 0
    assert made.carried({"type": "response.create", "input": "hi", "previous_response_id": "resp_1"}) == 380
    nested = {"type": "response.create", "response": {"input": "hi", "previous_response_id": "resp_1"}}
    assert made.carried(nested) == 380
    assert made.request(nested) == nested["response"]


@pytest.mark.parametrize(
    ("session", "expected"),
    [
        ({"audio": {"output": {"format": {"type": "audio/pcm"}}}}, 20),
        ({"output_audio_format": "pcm16"}, 20),
        ({"output_audio_format": "g711_ulaw"}, 120),
        ({"audio": {"output": {"format": {"type": "audio/pcma"}}}}, 120),
    ],
)
def test_sound_is_estimated_by_its_format(session: dict[str, Any], expected: int) -> None:
    """A second of samples of 16 bits is 48 000 bytes and 20 tokens; of the telephone's 8 bits, 8 000 bytes."""
    made = conversation({"type": "session.updated", "session": session})
    reader = ResponseReader(sampled=made.sampled)
    assert reader.add({"type": "response.output_audio.delta", "delta": base64.b64encode(bytes(48_000)).decode()})
    assert reader.sound_tokens == expected


def test_the_first_content_is_said_once() -> None:
    reader = ResponseReader()
    pieces = ["response.created", "response.output_text.delta", "response.output_text.delta"]
    assert [reader.add({"type": piece, "delta": "a"}) for piece in pieces] == [False, True, False]
    assert reader.generated == "aa"
    assert reader.reading() is None


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        ({"error": {"type": "invalid_request_error"}}, ErrorClass.CLIENT),
        ({"error": {"type": "tokens", "code": "rate_limit_exceeded"}}, ErrorClass.RATE_LIMIT),
        ({"error": {"code": "insufficient_quota"}}, ErrorClass.RATE_LIMIT),
        ({"error": {"type": "server_error"}}, ErrorClass.SERVER),
        ({"error": {"type": "server_error"}, "status": 401}, ErrorClass.AUTH),
        ({}, ErrorClass.SERVER),
    ],
)
def test_errors_have_classes(event: dict[str, Any], expected: ErrorClass) -> None:
    assert events.reported_error(event).kind is expected


def test_an_error_keeps_nothing_of_its_text() -> None:
    """It may quote the prompt."""
    quoted = {"error": {"type": "invalid_request_error", "message": "you said: my secret", "code": "my secret"}}
    assert "secret" not in json.dumps(str(events.reported_error(quoted)))


@pytest.mark.parametrize(
    ("ended", "reasons"),
    [
        ({"type": "response.done", "response": {"id": "r", "status": "completed", "status_details": None}}, ("stop",)),
        (
            {
                "type": "response.done",
                "response": {"id": "r", "status": "incomplete", "status_details": {"reason": "max_output_tokens"}},
            },
            ("length",),
        ),
        (
            {
                "type": "response.done",
                "response": {"id": "r", "status": "cancelled", "status_details": {"reason": "turn_detected"}},
            },
            ("turn_detected",),
        ),
        ({"type": "response.completed", "response": {"id": "r", "status": "completed"}}, ("stop",)),
        (
            {
                "type": "response.incomplete",
                "response": {"id": "r", "status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}},
            },
            ("length",),
        ),
        (None, ()),
    ],
)
def test_a_response_says_what_it_is_called_and_why_it_ended(
    ended: dict[str, Any] | None, reasons: tuple[str, ...]
) -> None:
    reader = ResponseReader()
    reader.add({"type": "response.created", "response": {"id": "r"}})
    if ended is not None:
        reader.add(ended)
    assert (reader.id, reader.finish_reasons) == ("r", reasons)


def test_a_failed_response_says_why() -> None:
    reader = ResponseReader()
    details = {"type": "failed", "error": {"type": "server_error", "code": "rate_limit_exceeded"}}
    reader.add({"type": "response.done", "response": {"status": "failed", "status_details": details}})
    assert reader.failure is not None
    assert reader.failure.kind is ErrorClass.RATE_LIMIT


def test_a_transcription_is_another_models() -> None:
    tokens = {"type": "tokens", "input_tokens": 40, "output_tokens": 8, "input_token_details": {"audio_tokens": 30}}
    found = events.transcription_usage({"usage": tokens}, "whisper")
    assert found is not None
    assert (found.prompt_tokens, found.completion_tokens, found.audio_prompt_tokens, found.model) == (
        40,
        8,
        30,
        "whisper",
    )
    seconds = events.transcription_usage({"usage": {"type": "duration", "seconds": 3.5}}, "whisper")
    assert seconds is not None
    assert seconds.audio_ms == 3_500
    assert events.transcription_usage({"transcript": "hi"}, "whisper") is None
