"""Answers of providers and LiteLLM read into values: total for any input, and without secrets."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import httpx
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
def request_values() -> Any:
    return pytest.importorskip("pointsman.litellm.request_values")


@pytest.fixture(scope="module")
def provider_errors() -> Any:
    return pytest.importorskip("pointsman.litellm.provider_errors")


@pytest.fixture(scope="module")
def stream() -> Any:
    return pytest.importorskip("pointsman.litellm.stream")


def counts(usage: Usage | None) -> Usage | None:
    """Return the usage without the provider's own words."""
    return None if usage is None else replace(usage, model=None, raw=None)


def sse(*events: object) -> bytes:
    return b"".join(f"event: x\ndata: {json.dumps(one, ensure_ascii=False)}\n\n".encode() for one in events)


def read(stream: Any, pieces: Sequence[bytes]) -> tuple[Any, list[bool]]:
    reader = stream.StreamReader()
    return reader, [reader.read(piece) for piece in pieces]


@given(given_=st.dictionaries(st.sampled_from(["prompt_tokens", "completion_tokens", "input_tokens"]), JSON))
def test_any_usage_can_be_read(request_values: Any, given_: dict[str, Any]) -> None:
    found = request_values.usage(given_)
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
def test_retry_after(provider_errors: Any, headers: dict[str, str], seconds: float | None) -> None:
    assert provider_errors.retry_after_s(headers, 0.0) == seconds


@given(text=st.text(max_size=30))
def test_any_retry_after_can_be_read(provider_errors: Any, text: str) -> None:
    found = provider_errors.retry_after_s({"retry-after": text}, 1_750_000_000.0)
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
def test_errors_keep_neither_keys_nor_prompts(
    provider_errors: Any, error: Exception, kind: ErrorClass, message: str
) -> None:
    found = provider_errors.attempt_error(error, {}, 0.0)
    assert (found.kind, found.message) == (kind, message)


class Watched:
    """A pattern that records how much text it is given."""

    def __init__(self, pattern: re.Pattern[str], seen: list[int]) -> None:
        self._pattern = pattern
        self._seen = seen

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            self._seen.append(max(len(arg) for arg in args if isinstance(arg, str)))
            return getattr(self._pattern, name)(*args, **kwargs)

        return call


@pytest.mark.parametrize(
    "text",
    [
        "a" * 10**6,
        "a1" * 500_000,
        "'" * 10**6,
        "'\"`" * 333_333,
        "word " * 200_000,
        "\n" * 10**6,
        "{'a': \"" + "b" * 10**6,
    ],
    ids=["letters", "digits", "quotes", "mixed quotes", "words", "lines", "json"],
)
def test_patterns_see_a_bounded_part_of_an_error(
    provider_errors: Any, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    """A provider chooses the length of its error: reading it takes the same work for any length."""
    seen: list[int] = []
    for name, pattern in list(vars(provider_errors).items()):
        if isinstance(pattern, re.Pattern):
            monkeypatch.setattr(provider_errors, name, Watched(pattern, seen))
    error = provider_errors.attempt_error(RateLimitError(text), {"retry-after": text}, 0.0)
    assert len(error.message) <= 400
    assert error.retry_after_s is None
    assert seen
    assert max(seen) <= 2_000


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("Slow down. " + "tell " * 1_000, "Slow down. tell tell"),
        ("Slow down, you said 'tell me a secret " + "x " * 1_000, ": Slow down, you said"),
        ("Slow down " + "y" * 1_980 + " sk-proj-0123456789", ": Slow down"),
        ("z" * 5_000, "RateLimitError (rate_limit_exceeded)"),
    ],
    ids=["plain", "an open quotation", "a cut key", "one word"],
)
def test_a_long_error_keeps_its_beginning(provider_errors: Any, text: str, kept: str) -> None:
    """What the cut leaves unfinished, a quotation or a key, is not kept."""
    message = provider_errors.attempt_error(RateLimitError(text), {}, 0.0).message
    assert kept in message
    assert "secret" not in message
    assert "sk-" not in message


@pytest.mark.parametrize("lead", ["", "It's busy, you've sent ", "Requests' limit; ", "5' is too long: "])
@pytest.mark.parametrize(
    "quoted",
    [
        "'{}'",
        '"{}"',
        "`{}`",
        "“{}”",
        "«{}»",
        "'{}",
        '"{}',
        "'{}\nand more'",
        "{{'role': 'user', 'content': '{}'}}",
    ],
)
@pytest.mark.parametrize(
    "prompt", ["secret", "tell me a secret", "I don't know the secret", "the users' secret isn't out"]
)
def test_a_quoted_prompt_is_not_kept(provider_errors: Any, lead: str, quoted: str, prompt: str) -> None:
    """However it is quoted, whatever apostrophes stand around it or in it."""
    message = provider_errors.attempt_error(
        RateLimitError(f"{lead}{quoted.format(prompt)} Slow down."), {}, 0.0
    ).message
    assert "secret" not in message, message
    assert lead in message


@given(cuts=st.lists(st.integers(1, 400), max_size=6))
def test_a_messages_stream_is_read_however_it_is_cut(stream: Any, cuts: list[int]) -> None:
    """A piece is what the network brought; it ends anywhere, even within a character."""
    whole = sse(START, TEXT, TEXT, END)
    places = [0, *sorted({cut for cut in cuts if cut < len(whole)}), len(whole)]
    reader, content = read(stream, [whole[a:b] for a, b in pairwise(places)])
    assert counts(reader.usage) == Usage(prompt_tokens=25, completion_tokens=15)
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
    assert counts(reader.usage) == Usage(prompt_tokens=25, completion_tokens=15)


@pytest.mark.parametrize("index", [{}, [1], None, "0", 2])
def test_tool_calls_with_an_odd_place_can_be_read(stream: Any, index: Any) -> None:
    call = SimpleNamespace(index=index, function=SimpleNamespace(name="weigh", arguments="{}"))
    choice = SimpleNamespace(index=0, finish_reason="tool_calls", delta=SimpleNamespace(tool_calls=[call]))
    reader = stream.StreamReader()
    assert reader.read(SimpleNamespace(choices=[choice]))
    assert [call.name for call in reader.answer().tool_calls] == ["weigh"]


def _raised(name: str, *bases: type[BaseException], **fields: object) -> BaseException:
    return type(name, bases or (Exception,), fields)("broken")


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (httpx.ReadError("broken"), ErrorClass.CONNECTION),
        (httpx.RemoteProtocolError("broken"), ErrorClass.CONNECTION),
        (httpx.ReadTimeout("slow"), ErrorClass.TIMEOUT),
        (TimeoutError(), ErrorClass.TIMEOUT),
        (ConnectionResetError(), ErrorClass.CONNECTION),
        (_raised("ClientPayloadError", type("ClientError", (Exception,), {})), ErrorClass.CONNECTION),
        (_raised("MidStreamFallbackError", status_code=503, original_exception=None), ErrorClass.SERVER),
        (
            _raised("MidStreamFallbackError", status_code=503, original_exception=httpx.ReadError("broken")),
            ErrorClass.CONNECTION,
        ),
        (ValueError("odd"), ErrorClass.UNKNOWN),
    ],
)
def test_what_breaks_a_stream_is_an_error_of_its_class(
    provider_errors: Any, error: BaseException, kind: ErrorClass
) -> None:
    assert provider_errors.attempt_error(error, {}, 0.0).kind is kind


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ({"a": None, "b": None}, {"a": 1.0, "b": 1.0}),
        ({"a": 3, "b": None}, {"a": 3.0, "b": 0.0}),
        ({"a": 0, "b": None}, {"a": 0.0, "b": 1.0}),
        ({"a": 0, "b": 2.5, "c": None}, {"a": 0.0, "b": 2.5, "c": 0.0}),
    ],
)
def test_a_missing_weight_counts_as_in_litellms_own_choice(
    request_values: Any, weights: dict[str, float | None], expected: dict[str, float]
) -> None:
    entries = [
        {"model_name": "chat", "litellm_params": {"model": "openai/m", "weight": weight}, "model_info": {"id": id_}}
        for id_, weight in weights.items()
    ]
    other = {"model_name": "other", "litellm_params": {"model": "openai/m"}, "model_info": {"id": "other"}}
    assert {d.id: d.weight for d in request_values.deployments([*entries, other])} == {**expected, "other": 1.0}

    if not any(weights.values()):
        return  # LiteLLM chooses among all then; for us a weight of 0 always means drained
    shuffle = pytest.importorskip("litellm.router_strategy.simple_shuffle").simple_shuffle
    chosen = {shuffle(lambda _: None, entries, "chat", {})["model_info"]["id"] for _ in range(200)}
    assert chosen == {id_ for id_, weight in expected.items() if weight > 0}


@pytest.mark.parametrize(
    ("settings", "withheld"),
    [
        (None, set()),
        ({}, set()),
        ({"litellm_key_header_name": "X-Proxy"}, {"x-proxy"}),
        (
            {"pass_through_endpoints": [{"path": "/x", "headers": {"litellm_user_api_key": "Own-Name"}}, {}]},
            {"own-name"},
        ),
        (
            {
                "litellm_key_header_name": "x-proxy",
                "pass_through_endpoints": [{"path": "/x", "headers": {"litellm_user_api_key": "own-name"}}],
            },
            {"x-proxy", "own-name"},
        ),
    ],
)
def test_headers_that_the_configuration_names_for_keys_are_withheld(
    request_values: Any, settings: dict[str, Any] | None, withheld: set[str]
) -> None:
    ours = {"host": "h", "x-proxy": "sk-1", "own-name": "sk-2"}
    raw = [(name.title().encode(), value.encode()) for name, value in ours.items()] + [
        (b"Authorization", b"Bearer sk-3")
    ]
    left = {name: value for name, value in ours.items() if name not in withheld}
    assert request_values.client_headers(raw, settings) == left


@pytest.mark.parametrize("name", ["X-Request-Id", "user-agent"])
def test_a_key_is_withheld_also_in_a_header_in_which_usually_none_is_sent(request_values: Any, name: str) -> None:
    raw = [(b"Host", b"h"), (name.encode(), b"sk-1")]
    assert request_values.client_headers(raw, {"litellm_key_header_name": name}) == {"host": "h"}


def test_settings_are_rarely_asked_for_headers_in_which_usually_no_key_is_sent(request_values: Any) -> None:
    class Counted(dict[str, Any]):
        asked = 0

        def get(self, *name: Any) -> Any:
            self.asked += 1
            return super().get(*name)

    now = 0.0
    settings = Counted()
    known = request_values.KeyHeaders(lambda: now)
    usual = {"host": "h", "user-agent": "OpenAI/Python", "x-stainless-lang": "python"}

    def left(headers: dict[str, str]) -> dict[str, str]:
        headers = dict(headers)
        known.remove(headers, settings)
        return headers

    assert left(usual) == usual
    asked = settings.asked
    assert left(usual) == usual
    assert settings.asked == asked
    settings["litellm_key_header_name"] = "User-Agent"
    now = 10.0
    assert "user-agent" not in left(usual)
    settings["litellm_key_header_name"] = "x-own"
    assert left({**usual, "x-own": "sk-1"}) == usual  # a header that is not usual is looked up at once
