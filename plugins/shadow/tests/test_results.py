from __future__ import annotations

import sys

import pytest

from pointsman.errors import ConfigError
from pointsman.testing.distribution import fake_distribution
from pointsman_shadow.config import Redaction
from pointsman_shadow.results import GROUP, Redactor

MODULE = """
def upper(text):
    return text.upper()


def number(text):
    return 3


constant = 3
"""


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A package with redactors."""
    (tmp_path / "my_redactors.py").write_text(MODULE, encoding="utf-8")
    points = {
        "upper": "my_redactors:upper",
        "number": "my_redactors:number",
        "constant": "my_redactors:constant",
        "broken": "my_redactors:missing",
    }
    fake_distribution(tmp_path, "my-redactors", points, GROUP)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("my_redactors", None)


@pytest.mark.usefixtures("installed")
def test_patterns_then_the_operators_function_then_the_cut():
    redact = Redactor(Redaction(patterns=["se+cret"], replacement="x", hook="upper"))
    assert redact("a seeecret and more", 7) == "A X AND"


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("name", "what"), [("missing", "known: broken"), ("broken", "imported"), ("constant", "not a function")]
)
def test_a_redactor_that_cannot_be_used_stops_the_start(name, what):
    with pytest.raises(ConfigError, match=what):
        Redactor(Redaction(hook=name))


@pytest.mark.usefixtures("installed")
def test_a_redactor_that_returns_no_text_is_an_error():
    with pytest.raises(TypeError, match="returned int"):
        Redactor(Redaction(hook="number"))("text", 10)
