"""What distributions add to a plugin: checked, left out when it cannot be used, and never in place of what is built in."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import pytest

from pointsman.errors import ConfigError
from pointsman.plugin import extensions


def point(name, value="collections:OrderedDict"):
    return EntryPoint(name, value, "mine.kinds")


def test_what_is_installed_comes_beside_the_built_in(caplog):
    found = extensions("mine", "mine.kinds", dict, {"plain": dict}, [point("ordered")])
    assert [(name, kind.__name__) for name, kind in found.items()] == [("plain", "dict"), ("ordered", "OrderedDict")]
    assert not caplog.records


def test_a_built_in_name_stays_built_in(caplog):
    """A distribution cannot take the name, and the log says so."""
    found = extensions(
        "mine", "mine.kinds", dict, {"plain": dict}, [point("plain"), point("plain", "collections:Counter")]
    )
    assert (found["plain"], found.broken) == (dict, {})
    assert (
        "entry point 'plain' of mine.kinds (collections:OrderedDict) is left out: the name is built in" in caplog.text
    )


def exits(_):
    raise SystemExit(1)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("gone:Thing", "cannot be imported: ModuleNotFoundError"),
        ("collections:deque", "derived from builtins.dict"),
        ("collections:missing", "cannot be imported: AttributeError"),
    ],
)
def test_what_cannot_be_used_is_an_error_once_it_is_named(caplog, value, message):
    """It stops nothing until then, and the log names it."""
    found = extensions("mine", "mine.kinds", dict, {"plain": dict}, [point("other", value)])
    assert (list(found), "other" in found, len(found)) == (["plain"], False, 1)
    assert message in caplog.text
    with pytest.raises(ConfigError, match=message):
        found["other"]
    with pytest.raises(ConfigError, match=message):
        found.get("other")
    assert found.get("another") is None


def test_a_module_that_ends_the_process_does_not(monkeypatch):
    """Whatever an import raises, it is only this name that cannot be used."""
    monkeypatch.setattr(EntryPoint, "load", exits)
    found = extensions("mine", "mine.kinds", dict, {}, [point("other")])
    assert "cannot be imported: SystemExit" in found.broken["other"]


def test_a_name_of_two_distributions_is_nobodys():
    """Which one is meant cannot be known."""
    found = extensions("mine", "mine.kinds", dict, {}, [point("other"), point("other", "collections:Counter")])
    with pytest.raises(ConfigError, match="two installed packages provide it"):
        found["other"]
