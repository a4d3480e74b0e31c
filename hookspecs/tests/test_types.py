"""What the values say by themselves."""

from __future__ import annotations

import pytest

from pointsman.types import (
    CREDENTIAL_HEADERS,
    WITHHELD,
    Endpoint,
    ErrorClass,
    Identity,
    RequestContext,
    Route,
    without_credentials,
)


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (400, ErrorClass.CLIENT),
        (401, ErrorClass.AUTH),
        (403, ErrorClass.AUTH),
        (404, ErrorClass.NOT_FOUND),
        (408, ErrorClass.TIMEOUT),
        (422, ErrorClass.CLIENT),
        (429, ErrorClass.RATE_LIMIT),
        (499, ErrorClass.CLIENT),
        (500, ErrorClass.SERVER),
        (503, ErrorClass.SERVER),
        (504, ErrorClass.TIMEOUT),
        (529, ErrorClass.SERVER),
    ],
)
def test_an_error_status_has_one_class(status, expected):
    assert ErrorClass.of_status(status) is expected


@pytest.mark.parametrize("fallbacks", [False, True])
def test_a_route_is_executed_by_a_plugin_with_labels(fallbacks):
    route = Route(target="chat", labels={"arm": "a"}, retries=1)
    labels = {"arm": "a", "race": "chat"}
    expected = Route(target="chat", labels=labels, retries=1, executor="racing", executes_fallbacks=fallbacks)
    assert route.executed_by("racing", fallbacks=fallbacks, race="chat") == expected


def test_credentials_are_removed_from_headers():
    own = {"x-mcp-github-authorization": "secret", "x-organization": "acme"}
    headers = {**dict.fromkeys(CREDENTIAL_HEADERS, "secret"), **own}
    assert without_credentials(headers) == {"x-organization": "acme"}
    assert all(name == name.lower() for name in CREDENTIAL_HEADERS)


def test_a_plugin_sees_that_a_client_has_sent_a_credential_and_not_which() -> None:
    body = {"model": "m", "api_key": "sk-1", "extra_headers": {"authorization": "Bearer 1"}, "headers": None}
    ctx = RequestContext(
        request_id="r", endpoint=Endpoint.CHAT, model="m", stream=False, identity=Identity(), received_at=0.0, body=body
    )
    assert dict(ctx.body) == {"model": "m", "api_key": WITHHELD, "extra_headers": WITHHELD, "headers": None}
    assert body["api_key"] == "sk-1"
