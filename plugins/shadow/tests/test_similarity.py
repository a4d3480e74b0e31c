from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman.types import ToolCall
from pointsman_shadow import similarity

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**6), 10**6) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


@pytest.mark.parametrize(
    ("one", "other", "exact", "edit"),
    [
        ("", "", 1.0, 1.0),
        ("yes", " yes\n", 1.0, 1.0),
        ("yes", "no", 0.0, 0.0),
        ("a  b\tc", "a b c", 0.0, 1.0),
        ("abcd", "abxd", 0.0, 0.75),
    ],
)
def test_text(one, other, exact, edit):
    assert similarity.exact(one, other) == exact
    assert similarity.edit(one, other) == edit


def test_only_the_beginning_of_long_texts_is_compared():
    """So that a megabyte never stops the gateway."""
    same = "x" * similarity.COMPARED_CHARS
    assert similarity.edit(same + "y" * 1_000_000, same + "z" * 1_000_000) == 1.0


@given(st.text(max_size=300), st.text(max_size=300))
def test_edit_is_a_share_symmetric_and_1_for_itself(one, other):
    assert 0 <= similarity.edit(one, other) <= 1
    assert similarity.edit(one, other) == similarity.edit(other, one)
    assert similarity.edit(one, one) == 1


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("hello", "there", None),
        ('{"a": 1, "b": [1, 2]}', '{"b":[1,2],"a":1}', 1.0),
        ('{"a": 1}', '```json\n{"a": 1}\n```', 1.0),
        ('{"a": 1}', '{"a": 1.0}', 1.0),
        ('{"a": 1}', '{"a": true}', 0.0),
        ('{"a": [1, 2]}', '{"a": [2, 1]}', 0.0),
        ('{"a": 1}', "I cannot do that", 0.0),
        ("[1]", "[1", 0.0),
        ("17", "17", None),
    ],
)
def test_json(one, other, same):
    assert similarity.same_json(one, other) == same
    assert similarity.same_json(other, one) == same


@given(JSON.filter(lambda value: isinstance(value, dict | list)))
def test_json_is_the_same_however_it_is_written(value):
    spaced, sorted_keys = json.dumps(value, indent=3), json.dumps(value, sort_keys=True, ensure_ascii=False)
    assert similarity.same_json(spaced, sorted_keys) == 1.0


@given(st.text(max_size=200), st.text(max_size=200))
def test_any_text_can_be_compared_as_json(one, other):
    assert similarity.same_json(one, other) in {None, 0.0, 1.0}


def test_json_that_is_too_long_to_be_read_says_nothing():
    long = json.dumps(["x" * similarity.MAX_JSON_CHARS])
    assert similarity.same_json(long, "[1]") is None
    assert similarity.same_json("[1]", long) is None


def test_deep_json_is_no_error():
    deep = "[" * similarity.MAX_JSON_CHARS
    assert similarity.same_json(deep, deep) is None


def call(name="weather", arguments='{"city": "Oslo"}'):
    return ToolCall(name=name, arguments=arguments)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ([], [], None),
        ([call()], [], 0.0),
        ([call()], [call(arguments='{"city":"Oslo"}')], 1.0),
        ([call()], [call(arguments='{"city":"Rome"}')], 0.0),
        ([call()], [call(name="news")], 0.0),
        ([call(), call("news", "")], [call("news", "{}"), call()], 1.0),
        ([call(), call()], [call(), call("news")], 0.0),
        ([call(arguments="not json")], [call(arguments="not json")], 1.0),
        ([call(arguments='{"n": 1}')], [call(arguments='{"n": true}')], 0.0),
        ([call(), call("news"), call("news")], [call(), call(), call("news")], 0.0),
    ],
)
def test_tools(one, other, same):
    assert similarity.same_tools(one, other) == same


@pytest.mark.parametrize(
    ("one", "other", "cosine"),
    [
        ([1.0, 0.0], [2.0, 0.0], 1.0),
        ([1.0, 0.0], [0.0, 1.0], 0.0),
        ([1.0, 0.0], [-1.0, 0.0], 0.0),
        ([1.0], [1.0, 0.0], None),
        ([0.0], [1.0], None),
        ([], [], None),
        ([1e308, 1e308], [1e308, 1e308], 1.0),
        ([1.3e154, 1.3e154], [1.3e154, -1.3e154], 0.0),
        ([1e-200], [1e-200], 1.0),
        ([float("inf")], [1.0], None),
        ([1.0, float("nan")], [1.0, 1.0], None),
    ],
)
def test_cosine(one, other, cosine):
    assert similarity.cosine(one, other) == (None if cosine is None else pytest.approx(cosine))


def test_vectors_come_in_the_order_of_the_inputs():
    body = {"data": [{"index": 1, "embedding": [2]}, {"index": 0, "embedding": [1, 0.5]}]}
    assert similarity.vectors(body) == [[1.0, 0.5], [2.0]]


def test_many_calls_are_each_read_once(monkeypatch):
    """In whatever order they come: the work does not grow with the square of their number."""
    calls = [call(arguments=json.dumps({"number": number})) for number in range(100)]
    others = [call(arguments=json.dumps({"number": number}, indent=1)) for number in reversed(range(100))]
    read = []
    loads = json.loads
    monkeypatch.setattr(similarity.json, "loads", lambda text, **how: (read.append(text), loads(text, **how))[1])
    assert similarity.same_tools(calls, others) == 1.0
    assert len(read) == 200


def test_arguments_that_are_too_long_together_are_compared_as_text():
    long = json.dumps({"x": "y" * (similarity.MAX_JSON_CHARS // 2)})
    spaced = long.replace(":", ": ", 1)
    assert similarity.same_tools([call(arguments=long)], [call(arguments=spaced)]) == 1.0
    assert similarity.same_tools([call(arguments=long)] * 3, [call(arguments=spaced)] * 3) == 0.0
    assert similarity.same_tools([call(arguments=long)] * 3, [call(arguments=long)] * 3) == 1.0


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"data": 1},
        {"data": [{}]},
        {"data": [{"embedding": "AAAA"}]},
        {"data": [None]},
        {"data": [{"embedding": [10**400, 1]}]},
    ],
)
def test_no_vectors_in_anything_else(body):
    assert similarity.vectors(body) == []
