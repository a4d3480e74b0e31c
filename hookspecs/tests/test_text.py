"""Text fit for a terminal, a header or a log line, and durations."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman.text import duration, one_line, printable


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", ""),
        ("  two\t words \n", "two words"),
        ("\x1b[31mred", "\N{REPLACEMENT CHARACTER}[31mred"),
        ("a\u2028b\x85c\x00d", "a b c\N{REPLACEMENT CHARACTER}d"),
        ("half \ud800", "half \N{REPLACEMENT CHARACTER}"),
        ("  cut at ten characters", "cut at ten"),
    ],
)
def test_one_line(text, line):
    assert one_line(text, 10 if "cut" in text else None) == line


@given(text=st.text(st.characters(), max_size=60), chars=st.integers(0, 70))
def test_whatever_comes_in_is_printable_and_bounded(text, chars):
    """No control sequence reaches a terminal, and what cannot be encoded is gone."""
    for shown in (printable(text, chars), one_line(text, chars)):
        assert shown.isprintable()
        assert len(shown) <= chars
        shown.encode()


def test_printable_keeps_what_it_is_asked_to_keep():
    assert printable("a\nb\x07", keep="\n") == "a\nb\N{REPLACEMENT CHARACTER}"
    assert printable("a\r\nb", instead=" ") == "a  b"
    assert printable("as it is") == "as it is"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"), (0.006, "6ms"), (0.0001, "1ms"), (1, "1s"), (1.5, "1.5s"), (59.999, "59.999s"), (60, "1m0s"),
        (1252.666, "20m52.666s"), (3600, "1h0m0s"), (86_400, "24h0m0s"),
    ],
)  # fmt: skip
def test_durations_are_written_as_openai_does(seconds, text):
    assert duration(seconds) == text
