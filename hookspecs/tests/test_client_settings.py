"""What clients set for their own requests: which errors it explains, and how many retries it gets."""

from __future__ import annotations

from typing import Any

import pytest

from pointsman.litellm.client_settings import (
    blamed,
    cap_retries,
    malformed,
    may_fail_alone,
    misshapen,
    too_long,
    wrong_timeout,
)
from pointsman.types import AttemptError, Endpoint, ErrorClass, Identity, RequestContext


def request(headers: dict[str, str] | None = None, **body: Any) -> RequestContext:
    facts: dict[str, Any] = {"request_id": "r", "endpoint": Endpoint.CHAT, "model": "m", "stream": False}
    return RequestContext(**facts, identity=Identity(), received_at=0.0, headers=headers or {}, body=body)


TIMED = [request(timeout=0.001), request(stream_timeout=1), request({"x-litellm-timeout": "1"})]
CONNECTED = [
    request(extra_headers={"a": "b"}),
    request(api_key="sk-own"),
    request(api_base="https://example.com"),
    request(deployment_id="elsewhere"),
    request(vertex_location="nowhere"),
]
PLAIN = [request(), request(timeout=None, extra_headers=None), request({"x-other": "1"}, temperature=1)]


def caused(kind: ErrorClass, ctx: RequestContext) -> bool:
    return blamed(AttemptError(kind=kind), ctx).client_caused


@pytest.mark.parametrize("kind", ErrorClass)
def test_a_timeout_explains_timeouts_and_a_connection_everything(kind: ErrorClass) -> None:
    assert all(caused(kind, ctx) == (kind is ErrorClass.TIMEOUT) for ctx in TIMED)
    assert all(caused(kind, ctx) for ctx in CONNECTED)
    assert not any(caused(kind, ctx) for ctx in PLAIN)


def test_only_such_requests_may_fail_alone() -> None:
    assert all(may_fail_alone(ctx) for ctx in (*TIMED, *CONNECTED))
    assert not any(may_fail_alone(ctx) for ctx in PLAIN)


@pytest.mark.parametrize(
    ("asked", "capped"),
    [
        ({}, {}),
        ({"num_retries": 2}, {"num_retries": 2}),
        ({"num_retries": 10**9}, {"num_retries": 3}),
        ({"max_retries": 5}, {"max_retries": 0}),
        ({"num_retries": None}, {"num_retries": None}),
    ],
)
def test_retries_are_capped_and_those_of_the_sdk_are_none(asked: dict[str, object], capped: dict[str, object]) -> None:
    assert cap_retries(asked, 3) is None
    assert asked == capped


@pytest.mark.parametrize("asked", [-1, True, "2", 1.5, [1]])
@pytest.mark.parametrize("name", ["num_retries", "max_retries"])
def test_what_is_not_a_number_of_retries_is_named(name: str, asked: object) -> None:
    assert cap_retries({name: asked}, 3) == name


@pytest.mark.parametrize(
    ("name", "value", "fits"),
    [
        (b"x-litellm-timeout", b"30", True),
        (b"x-litellm-timeout", b"0.5", True),
        (b"x-litellm-timeout", b"30s", False),
        (b"x-litellm-timeout", b"inf", False),
        (b"x-litellm-timeout", b"1" * 5_000, False),
        (b"x-litellm-stream-timeout", b"-1", False),
        (b"x-litellm-keepalive-seconds", b"nan", False),
        (b"x-litellm-num-retries", b"2", True),
        (b"x-litellm-num-retries", b"2.0", False),
        (b"x-litellm-num-retries", b"9" * 5_000, False),
        (b"x-other", b"text", True),
    ],
)
def test_headers_that_litellm_takes_for_numbers_have_to_be_numbers(name: bytes, value: bytes, fits: bool) -> None:
    denial = malformed([(b"accept", b"*/*"), (name, value)])
    assert (denial is None) == fits
    if denial is not None:
        assert (denial.status, denial.code, denial.param) == (400, "invalid_header", name.decode())
        assert value.decode() not in denial.message


@pytest.mark.parametrize(
    ("body", "wrong"),
    [
        ({"temperature": 1}, None),
        ({"timeout": None, "stream_timeout": 0}, None),
        ({"timeout": 0.5, "request_timeout": "30"}, None),
        ({"timeout": "30s"}, "timeout"),
        ({"timeout": float("nan")}, "timeout"),
        ({"request_timeout": -1}, "request_timeout"),
        ({"stream_timeout": True}, "stream_timeout"),
        ({"stream_timeout": 10**400}, "stream_timeout"),
    ],
)
def test_timeouts_have_to_be_seconds(body: dict[str, Any], wrong: str | None) -> None:
    assert wrong_timeout(body) == wrong


DEEP: Any = []
for _ in range(100_000):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    ("data", "long"),
    [
        ({"api_key": "k" * 8_193}, "api_key"),
        ({"extra_headers": {"a": "b" * 8_193}}, "extra_headers"),
        ({"extra_headers": {"b" * 8_193: "a"}}, "extra_headers"),
        ({"extra_headers": {str(number): number for number in range(10_000)}}, "extra_headers"),
        ({"extra_query": {"a": [[["b" * 8_193]]]}}, "extra_query"),
        ({"extra_query": DEEP}, "extra_query"),
        ({"organization": ["a"] * 10_000}, "organization"),
        ({"extra_headers": {"a": "b"}, "extra_query": {"c": ["d"] * 100}, "api_key": None}, None),
        ({"response_format": {"schema": "s" * 100_000}}, None),
        ({"messages": "a" * 100_000}, None),
    ],
)
def test_a_setting_has_a_bounded_length_whatever_its_shape(data: dict[str, object], long: str | None) -> None:
    assert too_long(data) == long


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ({"extra_headers": {"a": 1}}, "extra_headers"),
        ({"extra_headers": ["a"]}, "extra_headers"),
        ({"headers": "a: b"}, "headers"),
        ({"extra_body": "a"}, "extra_body"),
        ({"extra_query": ["a"]}, "extra_query"),
        ({"response_format": ["json"]}, "response_format"),
        ({"organization": ["a"]}, "organization"),
        ({"api_version": {}}, "api_version"),
        ({"response_format": "json", "extra_body": {}, "extra_headers": {"a": "b"}, "organization": None}, None),
    ],
)
def test_a_setting_of_another_shape_is_named(data: dict[str, object], name: str | None) -> None:
    found = misshapen(data)
    assert (None if found is None else found[0]) == name
