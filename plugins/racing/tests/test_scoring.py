"""The quality of an answer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman.types import Answer, ToolCall
from pointsman_racing.scoring import quality

CALL = ToolCall(name="f", arguments="{}")
SCHEMA = {"required": ["a", "b"]}
AS_CHAT = {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}}
AS_RESPONSES = {"text": {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA}}}


@pytest.mark.parametrize(
    ("answer", "request_body", "wanted"),
    [
        (Answer(text="hello", finish_reason="stop"), {}, 1.0),
        (Answer(text="hello"), {}, 1.0),
        (Answer(text="hel", finish_reason="length"), {}, 0.5),
        (Answer(text="h", finish_reason="content_filter"), {}, 0.1),
        (Answer(text=" \n", finish_reason="stop"), {}, 0.0),
        (Answer(tool_calls=(CALL,), finish_reason="tool_calls"), {}, 1.0),
        (Answer(tool_calls=(CALL,)), {"tool_choice": "required"}, 1.0),
        (Answer(text="no call"), {"tool_choice": "required"}, 0.2),
        (Answer(text="no call"), {"tool_choice": {"type": "function", "function": {"name": "f"}}}, 0.2),
        (Answer(text="no call"), {"tool_choice": {"type": "any"}}, 0.2),
        (Answer(text="no call"), {"tool_choice": "auto"}, 1.0),
        (Answer(text='{"a": 1}'), {"response_format": {"type": "json_object"}}, 1.0),
        (Answer(text="no json"), {"response_format": {"type": "json_object"}}, 0.2),
        (Answer(text='{"a": 1, "b": 2}'), AS_CHAT, 1.0),
        (Answer(text='{"a": 1}'), AS_CHAT, 0.5),
        (Answer(text="{}"), AS_CHAT, 0.2),
        (Answer(text="[1]"), AS_CHAT, 0.2),
        (Answer(text='{"a": 1}'), AS_RESPONSES, 0.5),
        (Answer(tool_calls=(CALL,)), AS_CHAT, 1.0),
        (Answer(text="plain"), {"response_format": {"type": "text"}}, 1.0),
        (Answer(text="plain"), {"response_format": "json", "text": 5, "tool_choice": []}, 1.0),
        (Answer(text="[" * 200_000), {"response_format": {"type": "json_object"}}, 0.2),
        (Answer(text='{"a": 1}'), {"response_format": {"type": "json_schema", "schema": {"required": [["a"]]}}}, 1.0),
        (Answer(text='{"a": 1}'), {"response_format": {"type": "json_schema", "schema": {"required": ["b", {}]}}}, 0.2),
        (Answer(text="plain"), {"response_format": {"type": {}}, "tool_choice": {"type": {}}}, 1.0),
    ],
)
def test_quality(answer, request_body, wanted):
    assert quality(answer, request_body) == pytest.approx(wanted)


@given(st.text(), st.one_of(st.none(), st.text()), st.dictionaries(st.text(), st.integers() | st.text()))
def test_it_is_always_between_0_and_1(text, ending, body):
    assert 0 <= quality(Answer(text=text, finish_reason=ending), body) <= 1
