from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman.testing.provider import count_tokens, filler, prompt_tokens, split_tokens
from pointsman.testing.provider.samples import example
from pointsman.testing.provider.tokens import encoded_tokens


@given(st.text())
def test_tokens_join_to_the_text_and_are_counted(text):
    tokens = split_tokens(text)
    assert "".join(tokens) == text
    assert count_tokens(text) == len(tokens)
    assert [json.loads(token) for token in encoded_tokens(text)] == tokens


def test_a_token_is_up_to_four_characters_with_the_space_before():
    assert split_tokens("the weather \n") == ["the", " weat", "her", " \n"]


@given(st.integers(1, 2000))
def test_filler_has_exactly_the_tokens_asked_for(tokens):
    assert count_tokens(filler(tokens)) == tokens


def test_prompt_counts_every_text_and_the_tools():
    tools = [{"name": "f"}]
    body = {
        "system": "sys",
        "messages": [
            {
                "role": "user",
                "content": [{"type": "text", "text": "word"}, {"type": "image", "source": {"data": "xxxx"}}],
            },
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]},
        ],
        "tools": tools,
    }
    assert prompt_tokens(body) == 3 + count_tokens(json.dumps(tools))


@given(
    st.recursive(
        st.none() | st.booleans() | st.text() | st.integers(),
        lambda x: st.lists(x) | st.dictionaries(st.sampled_from(["content", "text", "output"]), x),
    )
)
def test_any_json_can_be_counted(value):
    assert prompt_tokens({"messages": value}) >= 0


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"type": "string"}, "text"),
        ({"type": ["integer", "null"]}, 1),
        ({"enum": ["b", "a"]}, "b"),
        ({"const": 7}, 7),
        ({"anyOf": [{"type": "number"}, {"type": "null"}]}, 1.5),
        ({"type": "array", "items": {"type": "boolean"}, "minItems": 2}, [True, True]),
        ({"type": "object"}, {}),
        ({"properties": {"a": {"type": "null"}, "b": {}}, "required": ["a"]}, {"a": None}),
        ({"$defs": {"P": {"type": "integer"}}, "properties": {"p": {"$ref": "#/$defs/P"}}}, {"p": 1}),
        ({"$ref": "#/$defs/missing"}, None),
    ],
)  # fmt: skip
def test_examples_fit_their_schema(schema, value):
    assert example(schema) == value


def test_schema_that_contains_itself_ends():
    schema = {"type": "object", "properties": {"next": {"$ref": "#"}}, "required": ["next"]}
    assert "next" in example(schema)
