"""Values that several plugins share cannot be changed, and are otherwise as usual."""

from __future__ import annotations

import copy
import json
import pickle

import pytest

from pointsman.frozen import FrozenDict, FrozenList, frozen, frozen_body, thawed

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
