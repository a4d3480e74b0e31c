"""What providers and LiteLLM say, read into values: total for any input, and nothing kept that may be a secret."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman.types import ErrorClass, Usage

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**400), 10**400) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
START = {"type": "message_start", "message": {"model": "claude", "usage": {"input_tokens": 25, "output_tokens": 1}}}
TEXT = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Grüße"}}
END = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 15}}
FIELDS = ("type", "message", "usage", "delta", "index", "content_block", "text", "model", "stop_reason")


@pytest.fixture(scope="module")
def values() -> Any:
    return pytest.importorskip("pointsman.litellm.values")


@pytest.fixture(scope="module")
def stream() -> Any:
    return pytest.importorskip("pointsman.litellm.stream")


def sse(*events: object) -> bytes:
    return b"".join(f"event: x\ndata: {json.dumps(one, ensure_ascii=False)}\n\n".encode() for one in events)


def read(stream: Any, pieces: Sequence[bytes]) -> tuple[Any, list[bool]]:
    reader = stream.StreamReader()
    return reader, [reader.read(piece) for piece in pieces]


@given(given_=st.dictionaries(st.sampled_from(["prompt_tokens", "completion_tokens", "input_tokens"]), JSON))
def test_any_usage_can_be_read(values: Any, given_: dict[str, Any]) -> None:
    found = values.usage(given_)
    assert found is None or 0 <= found.total_tokens <= 10**16


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
        ({"retry-after": "Thu, 01 Jan 1970 00:01:00 GMT"}, 60.0),
        ({"retry-after": "-5"}, 0.0),
        ({"retry-after": str(31 * 86_400)}, 31 * 86_400.0),
        ({"retry-after": "99999999999"}, None),
        ({"retry-after": "1e300"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "soon"}, None),
    ],
)
def test_retry_after(values: Any, headers: dict[str, str], seconds: float | None) -> None:
    assert values.retry_after_s(headers, 0.0) == seconds


@given(text=st.text(max_size=30))
def test_any_retry_after_can_be_read(values: Any, text: str) -> None:
    found = values.retry_after_s({"retry-after": text}, 1_750_000_000.0)
    assert found is None or 0 <= found <= 31 * 86_400


class AuthenticationError(Exception):
    status_code = 401
    code = "invalid_api_key"


class InternalServerError(Exception):
    status_code = 500
    code = "500"


class RateLimitError(Exception):
    status_code = 429
    code = "rate_limit_exceeded"


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (
            AuthenticationError("Incorrect API key provided: my-internal-key-0123456789"),
            ErrorClass.AUTH,
            "AuthenticationError (invalid_api_key)",
        ),
        (InternalServerError("cannot tokenize: my number is 123"), ErrorClass.SERVER, "InternalServerError"),
        (
            RateLimitError("Limit reached for gpt-4o in organization org-ab12cd34ef56gh78, after 'tell me a secret'"),
            ErrorClass.RATE_LIMIT,
            "RateLimitError (rate_limit_exceeded): Limit reached for gpt-4o in organization *** after ***",
        ),
    ],
)
def test_errors_keep_neither_keys_nor_prompts(values: Any, error: Exception, kind: ErrorClass, message: str) -> None:
    found = values.attempt_error(error, {}, 0.0)
    assert (found.kind, found.message) == (kind, message)


@given(cuts=st.lists(st.integers(1, 400), max_size=6))
def test_a_messages_stream_is_read_however_it_is_cut(stream: Any, cuts: list[int]) -> None:
    """A piece is what the network brought; it ends anywhere, even within a character."""
    whole = sse(START, TEXT, TEXT, END)
    places = [0, *sorted({cut for cut in cuts if cut < len(whole)}), len(whole)]
    reader, content = read(stream, [whole[a:b] for a, b in pairwise(places)])
    assert reader.usage == Usage(prompt_tokens=25, completion_tokens=15)
    assert reader.model == "claude"
    assert "".join(reader.text) == "GrüßeGrüße"
    assert any(content)


@given(event=st.dictionaries(st.sampled_from(FIELDS), JSON), kind=st.sampled_from([START, TEXT, END]))
def test_any_event_of_a_messages_stream_can_be_read(stream: Any, event: dict[str, Any], kind: dict[str, Any]) -> None:
    data = {**kind, **{name: value for name, value in event.items() if name != "type"}}
    reader, _ = read(stream, [sse(START, data, END)])
    reader.answer()
    reader.partial_usage()
    assert reader.usage is None or reader.usage.total_tokens >= 0


@pytest.mark.parametrize(
    "data", [b"[" * 100_000, b'{"a":' * 100_000, b'{"type":"message_start","message":[]}', b"\xff"]
)
def test_odd_lines_are_left_out(stream: Any, data: bytes) -> None:
    reader, _ = read(stream, [b"data: " + data + b"\n\n", sse(START, TEXT, END)])
    assert reader.usage == Usage(prompt_tokens=25, completion_tokens=15)


@pytest.mark.parametrize("index", [{}, [1], None, "0", 2])
def test_tool_calls_with_an_odd_place_can_be_read(stream: Any, index: Any) -> None:
    call = SimpleNamespace(index=index, function=SimpleNamespace(name="weigh", arguments="{}"))
    choice = SimpleNamespace(index=0, finish_reason="tool_calls", delta=SimpleNamespace(tool_calls=[call]))
    reader = stream.StreamReader()
    assert reader.read(SimpleNamespace(choices=[choice]))
    assert [call.name for call in reader.answer().tool_calls] == ["weigh"]
