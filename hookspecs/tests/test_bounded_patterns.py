from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from litellm.litellm_core_utils import secret_redaction

from pointsman.litellm.bounded_patterns import (
    END_CHARS,
    WORD_CHARS,
    BoundedPattern,
    with_short_words,
    without_middle,
)

SECRET = BoundedPattern(secret_redaction._SECRET_RE, without_middle)
INTERNAL = BoundedPattern(secret_redaction._INTERNAL_DETAIL_RE, with_short_words)
#: What a pattern goes back over again and again.
UNITS = [
    "x y1",
    "a-",
    "a.",
    "aaaa",
    "eyJaaaaaaaaaaaa.",
    "key",
    '{"a":',
    "{",
    "   ",
    "sk-",
    "litellm.a",
    "QUJD+/",
    "-----BEGIN ",
]
PEM = "-----BEGIN PRIVATE KEY-----\n" + "MIIEvQIBADANBgkqhkiG9w0\n" * 40 + "-----END PRIVATE KEY-----"


def seconds(text: str) -> float:
    began = time.thread_time()
    INTERNAL.sub("", SECRET.sub("", text))
    return time.thread_time() - began


@pytest.mark.parametrize("unit", UNITS)
def test_the_time_does_not_grow_with_the_text(unit):
    """The text is fifty times as long; as it is, LiteLLM takes fifty to a hundred thousand times as long for it."""
    short, long = 4 * END_CHARS, 200 * END_CHARS
    quick = min(seconds((unit * short)[:short]) for _ in range(3))
    assert min(seconds((unit * long)[:long]) for _ in range(3)) < 10 * quick


@given(st.text("ab \n.-", max_size=2 * END_CHARS))
def test_a_text_of_usual_length_stays(text):
    assert without_middle(text) == text


@given(st.lists(st.text("ab.-/", min_size=1, max_size=WORD_CHARS), max_size=20))
def test_words_of_usual_length_stay(words):
    assert with_short_words(" ".join(words)) == " ".join(words)


def test_of_a_long_text_both_ends_are_kept_and_what_is_left_out_is_said():
    text = "invalid timeout: " + "x" * 50_000 + " in line 7 of a file, ValueError: that is no number"
    shown = without_middle(text)
    assert shown.startswith("invalid timeout: ... (")
    assert shown.endswith(" of a file, ValueError: that is no number")
    left_out = int(re.search(r"\((\d+) characters left out\)", shown)[1])
    assert left_out + len(shown) - len(f" ... ({left_out} characters left out) ... ") == len(text)


def test_of_a_traceback_the_error_is_kept():
    shown = without_middle(
        "Traceback (most recent call last):\n" + '  File "x.py", line 1\n' * 5_000 + "ValueError: no"
    )
    assert shown.startswith("Traceback (most recent call last):\n")
    assert shown.endswith("\nValueError: no")


@pytest.mark.parametrize("at", [*range(0, 40, 5), 500, *range(len(PEM) - 40, len(PEM) + 1, 5)])
@pytest.mark.parametrize(
    "secret", ["Authorization: Bearer opaque-token-of-somebody", PEM, "api_key = 'sk-0123456789abcdef'"]
)
def test_a_secret_at_the_cut_is_not_shown_in_part(secret, at):
    """Wherever the cut is: neither as the last word of the beginning nor as the first one of the end."""
    for place in (END_CHARS, 60_000 - END_CHARS):
        before = ("word " * 20_000)[: place - at % (len(secret) + 1)]
        text = f"{before} {secret} {'word ' * 20_000}"[:60_000]
        shown = SECRET.sub("REDACTED", text)
        for part in ("opaque", "MIIEv", "0123456789"):
            assert part not in shown


def test_names_of_hosts_and_paths_are_still_found():
    text = f"cannot reach db.cluster.internal at 10.0.0.7, see /var/log/x.log {'y' * 1_000}"
    shown = INTERNAL.sub("-", text)
    assert shown == f"cannot reach - at -, see - {'y' * WORD_CHARS}..."
    assert INTERNAL.flags & re.IGNORECASE
