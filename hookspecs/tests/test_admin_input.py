"""What admin routes read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import pytest
from pydantic import Field
from starlette.requests import Request

from pointsman.admin import MAX_BODY_BYTES, USER_HEADER, Input, Signed, read_body, read_query, user
from pointsman.errors import InvalidInput


class Limits(Input):
    tokens: int = Field(ge=0)


class Tenant(Input):
    id: str
    secret: str = Field(default="", max_length=4)
    limits: Limits | None = None
    by_model: dict[str, Limits] = Field(default_factory=dict)


class Page(Input):
    limit: int = Field(default=10, ge=1, le=100)


def request(body: bytes = b"", query: str = "", headers: Mapping[str, str] | None = None) -> Request:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    raw = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
    return Request({"type": "http", "method": "POST", "query_string": query.encode(), "headers": raw}, receive)


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        (b"{", "body", "the body: is not JSON: "),
        (b"\xff\xfe", "body", "the body: is not JSON: "),
        (b'{"id": "\\ud800"}', "body", "the body: is not JSON: "),
        (b"[" * 100_000, "body", "the body: is not JSON: "),
        (b"[]", "body", "the body: it must be a mapping"),
        (b"", "id", "id: Field required"),
        (b'{"idd": "a"}', "idd", "idd: unknown key (did you mean 'id'?); allowed: by_model, id, limits, secret"),
        (b'{"id": "a", "limits": {"tokens": -1}}', "limits.tokens", "limits.tokens: Input should be greater"),
        (b'{"id": "a", "limits": {"tokens": NaN}}', "limits.tokens", "limits.tokens: "),
        (b'{"id": "a", "limits": {"token": 1}}', "limits.token", "limits.token: unknown key (did you mean 'tokens'?)"),
        (b'{"id": "a", "by_model": {"m": {"token": 1}}}', "by_model.m.token", "(did you mean 'tokens'?)"),
        (b'{"id": "' + b"x" * MAX_BODY_BYTES + b'"}', "body", f"the body is larger than {MAX_BODY_BYTES} bytes"),
    ],
)
async def test_a_wrong_body_is_refused_with_the_field(body: bytes, param: str, message: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        await read_body(Tenant, request(body))
    assert (refused.value.param, message in str(refused.value)) == (param, True), refused.value


async def test_a_refusal_does_not_repeat_what_was_sent() -> None:
    with pytest.raises(InvalidInput) as refused:
        await read_body(Tenant, request(json.dumps({"id": "a", "secret": "sk-hidden"}).encode()))
    assert refused.value.param == "secret"
    assert "sk-hidden" not in str(refused.value)
    assert refused.value.__cause__ is None
    assert refused.value.__suppress_context__


async def test_what_is_right_is_read() -> None:
    assert (await read_body(Tenant, request(b'{"id": "a", "limits": {"tokens": 3}}'))).limits == Limits(tokens=3)
    assert await read_body(Signed, request()) == Signed()
    assert read_query(Page, request(query="limit=7")).limit == 7
    assert read_query(Page, request(query="limit=7&limit=8")).limit == 8
    assert read_query(Page, request()).limit == 10


@pytest.mark.parametrize(
    ("query", "param", "message"),
    [
        ("limit=x", "limit", "limit: Input should be a valid integer"),
        ("limit=101", "limit", "limit: Input should be less than or equal to 100"),
        ("limits=5", "limits", "limits: unknown key (did you mean 'limit'?); allowed: limit"),
    ],
)
def test_a_wrong_query_is_refused_with_the_parameter(query: str, param: str, message: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        read_query(Page, request(query=query))
    assert (refused.value.param, message in str(refused.value)) == (param, True), refused.value


@pytest.mark.parametrize(
    ("header", "who"),
    [
        (None, "admin"),
        ("anna", "anna"),
        (quote("Jürgen Groß"), "Jürgen Groß"),
        (quote("李")[:-1], "\ufffd%8"),  # cut by the bridge
        (quote("a\x1b[31m"), quote("a\x1b[31m")),  # no escape sequence reaches a terminal
        (quote("a\u2028b"), quote("a\u2028b")),
        ("50%", "50%"),
    ],
)
def test_the_author_is_the_owner_of_the_key(header: str | None, who: str) -> None:
    asked = request(headers={} if header is None else {USER_HEADER: header})
    assert user(asked) == Signed().by(asked) == who
    assert Signed(who="carla").by(asked) == "carla"


@pytest.mark.parametrize("header", ["", "  ", "x" * 129])
def test_a_header_without_a_name_is_refused(header: str) -> None:
    with pytest.raises(InvalidInput, match=USER_HEADER) as refused:
        user(request(headers={USER_HEADER: header}))
    assert refused.value.param == USER_HEADER


@pytest.mark.parametrize("text", ["a\x1b[31m", "a\nb", "a\x85b", "a\u2029b"])
@pytest.mark.parametrize("field", ["who", "reason"])
async def test_what_is_kept_can_be_shown(field: str, text: str) -> None:
    with pytest.raises(InvalidInput, match=f"{field}: must not contain control characters"):
        await read_body(Signed, request(json.dumps({field: text}).encode()))
