"""Values become canonical texts."""

from __future__ import annotations

import json
import math
from collections import OrderedDict, UserDict, UserList
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from types import MappingProxyType
from typing import NamedTuple
from uuid import UUID

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman.store import StoreCorrupt, open_store
from pointsman.store import json as store_json

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner),
)


class Colour(StrEnum):
    """A text that is an enumeration as well."""

    RED = "red"


class Level(IntEnum):
    """A number that is an enumeration as well."""

    LOW = 1


class Suit(Enum):
    """An enumeration that is not text itself, but stands for one."""

    CLUBS = "clubs"


class Fraction(float):
    """A number of a class of its own."""


class Point(NamedTuple):
    """A list whose items have names."""

    x: float
    y: int


class Shouting(UserDict):
    """A mapping whose names are not those that it was given."""

    def __init__(self, **names):
        super().__init__({name.upper(): value for name, value in names.items()})


def nested(times, kind):
    """Return a number so deep in lists or tuples."""
    value = 1e-7
    for _ in range(times):
        value = kind([value])
    return value


@dataclass
class Named:
    """Not JSON, though a library may write it as such."""

    name: int


@given(value=JSON.filter(lambda value: value is not None))
def test_a_text_means_its_value_and_is_the_only_one(value):
    """Decoding gives the value back, and encoding that gives the same text, whatever the order of names was."""
    text = store_json.encode(value)
    back = store_json.decode(text, "here")
    assert json.dumps(back, sort_keys=True) == json.dumps(value, sort_keys=True)
    assert store_json.encode(back) == text
    assert store_json.decode(text.encode(), "here") == back


@given(value=JSON)
def test_a_result_is_a_copy_as_its_text_would_give_it(value):
    copy = store_json.as_returned(value)
    assert json.dumps(copy, sort_keys=True) == json.dumps(value, sort_keys=True)
    assert store_json.encode_any(copy) == store_json.encode_any(value)


def test_a_result_is_of_plain_types():
    assert store_json.as_returned((Point(1.5, 2**70), {Colour.RED: Level.LOW}, None)) == [
        [1.5, 2**70],
        {"red": 1},
        None,
    ]
    assert store_json.as_returned((Point(1.5, 2), {"a": ()})) == [[1.5, 2], {"a": []}]
    with pytest.raises(ValueError, match="not a JSON value"):
        store_json.as_returned([math.nan])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"b": 1, "a": [1.0, True, None]}, '{"a":[1.0,true,null],"b":1}'),
        ("ü/\n", '"ü/\\n"'),
        ({Colour.RED: Colour.RED, "level": Level.LOW}, '{"level":1,"red":"red"}'),
        (OrderedDict(b=UserDict(c=()), a=UserList([1])), '{"a":[1],"b":{"c":[]}}'),
        (1e16, "1e+16"),
        (-0.0, "-0.0"),
    ],
)
def test_canonical_texts(value, text):
    assert store_json.encode(value) == text


class ById(NamedTuple):
    """An equality of its own, which no encoder may call."""

    id: str
    value: object

    def __eq__(self, other):
        return other.id == self.id

    __hash__ = None


@pytest.mark.parametrize(
    "value",
    [None, [None], {"a": None, "b": ["null", (1.5, None)]}, [ById("a", None)], MappingProxyType({"a": [None, 1.0]})],
)
def test_null_goes_the_quick_way(value, monkeypatch):
    """Unless a number that JSON does not have hides behind it."""
    expected = json.dumps(value, default=dict, sort_keys=True, separators=(",", ":"))
    monkeypatch.setattr(store_json, "_encode_carefully", None)
    assert store_json.encode_any(value) == expected


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "wrap", [lambda x: x, lambda x: [None, x], lambda x: ({"a": (x,)}, None), lambda x: ById("", x)]
)
def test_a_number_that_json_does_not_have_is_not_taken_for_null(odd, wrap):
    with pytest.raises(ValueError, match="not a JSON value"):
        store_json.encode_any(wrap(odd))


@pytest.mark.parametrize(
    ("value", "same"),
    [
        ({Colour.RED: 1e-7}, {"red": 1e-7}),
        ({"red": Fraction(1e-7)}, {"red": 1e-7}),
        (Shouting(a=1e-7), {"A": 1e-7}),
        (nested(300, tuple), nested(300, list)),
        (nested(200, tuple), nested(200, list)),
        (Point(1e-7, 2), [1e-7, 2]),
        ({"p": Point(2**64, 1e-7)}, {"p": [2**64, 1e-7]}),
    ],
)
def test_one_text_whatever_python_types_a_value_came_in(value, same):
    assert store_json.encode(value) == store_json.encode(same)
    assert store_json.encode(store_json.decode(store_json.encode(value), "here")) == store_json.encode(same)


@pytest.mark.parametrize(
    "value",
    [
        math.nan,
        [1, {"a": -math.inf}],
        {1: "a"},
        {"a": {None: 1}},
        {Suit.CLUBS: 1},
        Suit.CLUBS,
        UUID(int=1),
        {"a": orjson.Fragment(b"not json")},
        b"bytes",
        {1, 2},
        Decimal(1),
        datetime(2026, 1, 1, tzinfo=UTC),
        [object()],
        Named(1),
        "half \ud83d",
        {"\udc00": 1},
    ],
)
def test_what_json_does_not_have_is_refused(value):
    with pytest.raises(ValueError, match=r"not a JSON value|half a surrogate"):
        store_json.encode(value)


@pytest.mark.parametrize(
    "text", ["", "null", "{", "NaN", "[Infinity]", "-Infinity", "{'a': 1}", "[1] [2]", b"\xff", b""]
)
def test_what_is_not_json_is_corrupt(text):
    """The message says where, and does not repeat what was found."""
    with pytest.raises(StoreCorrupt, match=r"^here holds something"):
        store_json.decode(text, "here")


def test_white_space_around_a_value_does_no_harm():
    """No encoder here writes any, but somebody who mends a row by hand may."""
    assert store_json.decode(" [1]\n", "here") == [1]
    assert store_json.decode("1 ", "here") == 1


@pytest.mark.parametrize("kind", [list, tuple])
def test_deep_nesting_is_refused_both_ways(kind):
    """Neither direction runs out of stack."""
    value = nested(100_000, kind)
    with pytest.raises(ValueError, match="nested too deeply"):
        store_json.encode(value)
    with pytest.raises(StoreCorrupt):
        store_json.decode("[" * 100_000 + "]" * 100_000, "here")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backend": "disk"}, "needs a path"),
        ({"backend": "redis"}, "needs a url"),
        ({"backend": "etcd"}, "choose memory, disk or redis"),
    ],
)
async def test_open_store_says_what_is_missing(arguments, message):
    with pytest.raises(ValueError, match=message):
        await open_store(**arguments)
