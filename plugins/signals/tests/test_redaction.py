"""Error texts without secrets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman_signals.redaction import MAX_MESSAGE_CHARS, scrub

SECRETS = [
    "sk-proj-abcdefghijklmnop1234",
    "sk-ant-api03-AbCdEfGhIjKlMnOp",
    "gsk_1234567890abcdefghij",
    "hf_abcdefghijklmnopqrst",
    "AIzaSyA1234567890abcdefghijk",
    "ghp_16C7e42F292c6912E7710c838347Ae178B4a",
    "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9",
    "0123456789abcdef0123456789abcdef",
]


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("text", ["Incorrect API key provided: {}.", "{}", "auth ({}) failed", "key={}&x=1", '"{}"'])
def test_keys_are_removed(text, secret):
    assert secret not in scrub(text.format(secret))
    assert secret[8:] not in scrub(text.format(secret))


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("GET https://user:hunter2@host/v1 failed", "GET https://***@host/v1 failed"),
        ("header Authorization: Bearer abc.def", "header ***"),
        ("sent bearer abcdef", "sent ***"),
        ('{"api_key": "tiny", "model": "m"}', '{"***", "model": "m"}'),
        ("?token=short&next=1", "?***&next=1"),
    ],
)
def test_credentials_are_known_by_what_stands_before_them(text, clean):
    assert scrub(text) == clean


@pytest.mark.parametrize(
    "text",
    [
        "Rate limit reached for gpt-4o in organization org-1 on tokens per min (TPM): Limit 30000, Used 29000",
        "Connection refused: 127.0.0.1:8000",
        "HTTPStatusError: 503 Service Unavailable for http://localhost:11434/v1/models",
        "max_tokens: 4096 is too large: at most 2048",
        "model gpt-4o-mini-2024-07-18 is overloaded, try again in 1.2s",
    ],
)
def test_what_helps_people_stays(text):
    assert scrub(text) == text


def test_a_message_is_one_short_printable_line():
    clean = scrub("one\ntwo\t\x1b[31mred\x00 " + "word " * 500)
    assert len(clean) == MAX_MESSAGE_CHARS
    assert clean.isprintable()
    assert clean.startswith("one two")


@given(st.text(max_size=3000))
def test_no_text_breaks_it(text):
    assert len(scrub(text)) <= MAX_MESSAGE_CHARS
