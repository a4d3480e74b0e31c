"""Values that several plugins share cannot be changed, and are otherwise as usual."""

from __future__ import annotations

import copy
import dataclasses
import dis
import inspect
import json
import pickle
from collections.abc import Mapping
from dataclasses import FrozenInstanceError, dataclass, field

import pytest

from pointsman.frozen import FrozenDict, FrozenList, frozen, frozen_body, quick, replace, thawed
from pointsman.types import (
    Attempt,
    AttemptError,
    Candidate,
    Deployment,
    Execution,
    Identity,
    RequestContext,
    Route,
    Settlement,
    UpstreamResponse,
    Usage,
)

VALUE = {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}], "n": 1}


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.__setitem__("n", 2),
        lambda d: d.update(n=2),
        lambda d: d.setdefault("m", 2),
        lambda d: d.pop("n"),
        lambda d: d.popitem(),
        lambda d: d.clear(),
        lambda d: d.__delitem__("n"),
        lambda d: d.__ior__({"n": 2}),
        lambda d: d["messages"].append({}),
        lambda d: d["messages"].extend([{}]),
        lambda d: d["messages"].insert(0, {}),
        lambda d: d["messages"].clear(),
        lambda d: d["messages"].pop(),
        lambda d: d["messages"].remove(d["messages"][0]),
        lambda d: d["messages"].sort(),
        lambda d: d["messages"].reverse(),
        lambda d: d["messages"].__iadd__([{}]),
        lambda d: d["messages"].__imul__(2),
        lambda d: d["messages"].__setitem__(0, {}),
        lambda d: d["messages"].__delitem__(0),
        lambda d: d["messages"][0].update(role="system"),
        lambda d: d["messages"][0]["content"][0].__setitem__("text", "b"),
    ],
)
def test_no_change_at_any_depth(change):
    """Every method that changes a dictionary or a list is refused, with what to do instead."""
    value = frozen(VALUE)
    with pytest.raises(TypeError, match="deepcopy"):
        change(value)
    assert value == VALUE


def test_it_is_json_and_comparable():
    """Frozen values are dictionaries and lists for isinstance, JSON and comparisons."""
    value = frozen(VALUE)
    assert isinstance(value, dict)
    assert isinstance(value["messages"], list)
    assert json.loads(json.dumps(value)) == VALUE == value


def test_copies_can_be_changed():
    """A copy is the caller's own: a shallow one at its first level, a deep one everywhere."""
    value = frozen(VALUE)
    for same in (
        copy.deepcopy(value),
        thawed(value),
        pickle.loads(pickle.dumps(value)),  # noqa: S301  # our own bytes
        copy.deepcopy(frozen_body(VALUE)),
    ):
        assert type(same) is dict
        same["messages"] = [*same["messages"], {}]
    deep = copy.deepcopy(value)
    deep["messages"][0]["content"][0]["text"] = "b"
    shallow = [value.copy(), copy.copy(value), dict(value)]
    assert all(type(one) is dict for one in shallow)
    assert all(type(one) is list for one in (value["messages"].copy(), copy.copy(value["messages"])))
    assert value == VALUE


def test_a_body_is_frozen_where_it_is_read():
    """A body freezes a value once, when it is first read; changes that the gateway makes later do not reach it."""
    source = copy.deepcopy(VALUE)
    body = frozen_body(source)
    messages = body["messages"]
    assert isinstance(messages, FrozenList)
    assert isinstance(messages[0], FrozenDict)
    source["messages"].append({})
    assert body["messages"] is messages
    assert len(messages) == 1
    assert body.get("absent") is None
    assert ("n" in body, "absent" in body, len(body), list(body)) == (True, False, 2, ["messages", "n"])
    with pytest.raises(TypeError):
        body["n"] = 2


def test_a_body_does_not_show_the_prompt():
    """Its representation, which may reach a log, names fields only."""
    assert "secret" not in repr(frozen_body({"messages": "secret"}))


@pytest.mark.parametrize(
    "change",
    [
        lambda body: body.__setitem__("user", "x"),
        lambda body: body.__delitem__("model"),
        lambda body: body.update(user="x"),
        lambda body: body.pop("model"),
        lambda body: body.setdefault("user", "x"),
    ],
)
def test_a_body_that_is_changed_says_what_to_do(change):
    body = frozen_body({"model": "chat"})
    with pytest.raises(TypeError, match=r"change a copy of it: copy.deepcopy\(value\)"):
        change(body)
    assert dict(body) == {"model": "chat"}


# -- dataclasses --------------------------------------------------------------------------------------------------------


@quick
@dataclass(frozen=True, slots=True)
class Point:
    x: int
    y: int = 2
    names: list[str] = field(default_factory=list, kw_only=True)
    rest: Mapping[str, int] = field(default_factory=dict, kw_only=True, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "rest", FrozenDict(self.rest))


class Named(Point):
    """Has a dictionary of its own, so that it cannot change its class."""


#: Those that are built on every request.
QUICK = (
    Usage,
    Attempt,
    AttemptError,
    Settlement,
    Identity,
    RequestContext,
    Deployment,
    Candidate,
    Route,
    Execution,
    UpstreamResponse,
)


def test_a_quick_value_is_built_as_any_dataclass():
    assert Point(1) == Point(x=1, y=2, names=[], rest={}) != Point(1, 3)
    assert Point(1).names is not Point(1).names
    assert type(Point(1)) is Point
    assert type(Point(1).rest) is FrozenDict
    assert repr(Point(1, names=["a"])) == "Point(x=1, y=2, names=['a'])"
    assert str(inspect.signature(Point)).startswith("(x: 'int', y: 'int' = 2, *, names: 'list[str]'")


@pytest.mark.parametrize("call", [Point, lambda: Point(1, z=2), lambda: Point(1, 2, [])])
def test_a_quick_value_takes_no_other_arguments(call):
    with pytest.raises(TypeError, match=r"Point\.__init__|built_"):
        call()


def test_a_quick_value_cannot_be_changed():
    point = replace(Point(1), y=3)
    for change in (lambda: setattr(point, "x", 2), lambda: delattr(point, "x"), lambda: setattr(point, "z", 2)):
        with pytest.raises((FrozenInstanceError, TypeError, AttributeError)):
            change()
    assert point == Point(1, 3)


def test_a_copy_of_a_quick_value_has_other_fields_and_nothing_else():
    point = Point(1, names=["a"], rest={"b": 1})
    copied = replace(point, x=2, rest={"c": 1})
    assert copied == Point(2, names=["a"], rest={"c": 1}) == dataclasses.replace(point, x=2, rest={"c": 1})
    assert (type(copied), type(copied.rest), point.x) == (Point, FrozenDict, 1)
    with pytest.raises(TypeError):
        replace(point, z=1)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])  # noqa: S301  # our own
def test_a_quick_value_can_be_copied(copied):
    assert copied(Point(1, names=["a"])) == Point(1, names=["a"])
    assert type(copied(Point(1))) is Point


def test_a_subclass_of_a_quick_value_stays_one():
    named = Named(1, names=["a"])
    assert (type(named), named.y, named.names, type(named.rest)) == (Named, 2, ["a"], FrozenDict)
    assert type(replace(named, x=2)) is Named


@pytest.mark.parametrize("kind", QUICK)
def test_the_values_of_a_request_are_set_without_a_call_for_each_field(kind):
    assert inspect.signature(kind).parameters.keys() == {f.name for f in dataclasses.fields(kind)}
    steps = [step.opname for step in dis.get_instructions(kind.__init__.__code__)]
    calls, stores = sum(step.startswith("CALL") for step in steps), steps.count("STORE_ATTR")
    assert stores > len(dataclasses.fields(kind)) > 0
    assert calls < 10
