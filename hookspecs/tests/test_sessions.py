"""Where a session's id is read from, and what is not one."""

from __future__ import annotations

from typing import Any

import pytest

from pointsman.sessions import MAX_CHARS, SESSION_FIELDS, SESSION_HEADERS, end_user_of, session_of

UUID = "0b6f9a6e-54a8-4a2c-9d2e-0f6a9b1c2d3e"


@pytest.mark.parametrize("name", SESSION_HEADERS)
def test_each_header_names_a_session(name: str) -> None:
    assert session_of({name: "s-1"}, {}) == "s-1"


@pytest.mark.parametrize(
    "name", ["session-id", "x-claude-code-session-id", "x-opencode-session", "x-openwebui-chat-id"]
)
def test_the_usual_agents_are_known(name: str) -> None:
    assert session_of({name: "s-1", "x-request-id": "r"}, {"user": "u-1"}) == "s-1"


def test_a_header_of_another_vendor_names_one_too() -> None:
    """Unless a header that is listed does."""
    assert session_of({"x-acme-session-id": "s-1"}, {"session_id": "s-2"}) == "s-1"
    assert session_of({"x-acme-session-id": "s-1", "thread-id": "s-3"}, {}) == "s-3"
    assert session_of({"session-id-x": "s-1"}, {}) is None


@pytest.mark.parametrize(
    ("body", "user"),
    [
        ({"user": "u-1", "metadata": {"user_id": "u-2"}}, "u-1"),
        ({"user": 7, "metadata": {"user_id": "u-2"}}, "u-2"),
        ({"metadata": {"user_id": 7}}, None),
        ({"metadata": "u-1"}, None),
        ({}, None),
    ],
)
def test_an_end_user_is_named_by_the_body(body: dict[str, Any], user: str | None) -> None:
    assert end_user_of(body) == user


@pytest.mark.parametrize(
    "body",
    [
        {"litellm_session_id": UUID},
        {"session_id": UUID},
        {"metadata": {"session_id": UUID}},
        {"litellm_metadata": {"session_id": UUID}},
        {"conversation": UUID},
        {"conversation": {"id": UUID}},
        {"prompt_cache_key": UUID},
        {"metadata": {"user_id": f"user_1a2b_account__session_{UUID}"}},
        {"metadata": {"user_id": f'{{"device_id": "d", "session_id": "{UUID}"}}'}},
    ],
)
def test_each_field_names_a_session(body: dict[str, Any]) -> None:
    assert session_of({}, body) == UUID


def test_the_order_is_that_of_the_list_and_headers_come_first() -> None:
    headers = {name: name for name in reversed(SESSION_HEADERS)}
    body = {"prompt_cache_key": "key", "metadata": {"session_id": "metadata"}}
    assert session_of(headers, body) == SESSION_HEADERS[0]
    assert session_of({}, body) == "metadata"
    assert len(set(SESSION_HEADERS)) == len(SESSION_HEADERS)
    assert len(set(SESSION_FIELDS)) == len(SESSION_FIELDS)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"user": "u"},
        {"session_id": ""},
        {"session_id": 7},
        {"session_id": "x" * (MAX_CHARS + 1)},
        {"metadata": None},
        {"metadata": ["session_id"]},
        {"metadata": {"user_id": "somebody"}},
        {"metadata": {"user_id": "{not json"}},
        {"metadata": {"user_id": "{" + "x" * 10_000}},
        {"metadata": {"user_id": "[1]"}},
        {"conversation": {"id": {}}},
        {"previous_response_id": "changes with every turn"},
    ],
)
def test_anything_else_names_none(body: dict[str, Any]) -> None:
    assert session_of({}, body) is None
