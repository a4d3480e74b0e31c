"""Which stored answers show later what they used, and by which id they are known."""

from __future__ import annotations

import base64
from types import SimpleNamespace
from typing import Any

import pytest

from pointsman.types import Endpoint, Identity, RequestContext


@pytest.fixture
def stored() -> Any:
    return pytest.importorskip("pointsman.litellm.stored_answers")


def context(endpoint: Endpoint, *, generates: bool) -> RequestContext:
    facts = {"request_id": "1", "endpoint": endpoint, "model": "chat", "stream": False, "received_at": 0.0}
    return RequestContext(**facts, identity=Identity(), generates=generates)


def answer(**facts: Any) -> SimpleNamespace:
    return SimpleNamespace(**{"id": "resp_1", "usage": None, **facts})


@pytest.mark.parametrize(
    ("endpoint", "generates", "response", "expected"),
    [
        (Endpoint.RESPONSES, True, answer(status="queued"), (True, False)),
        (Endpoint.RESPONSES, True, answer(status="completed", usage={"input_tokens": 1}), (False, False)),
        (Endpoint.RESPONSES, False, answer(status="in_progress"), (False, False)),
        (Endpoint.RESPONSES, False, answer(status="incomplete", usage={"input_tokens": 1}), (False, True)),
        (Endpoint.BATCHES, True, answer(status="validating"), (True, False)),
        (Endpoint.BATCHES, False, answer(status="in_progress"), (False, False)),
        (Endpoint.BATCHES, False, answer(status="cancelled"), (False, True)),
        (Endpoint.CHAT, True, answer(status="queued"), (False, False)),
        (Endpoint.RESPONSES, True, answer(status="queued", id=None), (False, False)),
        (Endpoint.RESPONSES, True, answer(status="queued", id="x" * 5_000), (False, False)),
        (Endpoint.RESPONSES, False, None, (False, False)),
    ],
)
def test_an_answer_is_charged_later_or_now(
    stored: Any, endpoint: Endpoint, generates: bool, response: Any, expected: tuple[bool, bool]
) -> None:
    """Expected: whether it shows its usage later, and whether a read of it shows it now."""
    ctx = context(endpoint, generates=generates)
    assert (stored.later(ctx, response) is not None, stored.complete(ctx, response) is not None) == expected


@pytest.mark.parametrize(
    "wrapped",
    [
        "resp_abc",
        "resp_" + base64.b64encode(b"litellm:custom_llm_provider:openai;model_id:chat-1;response_id:resp_abc").decode(),
        "resp_"
        + base64.b64encode(b"litellm:custom_llm_provider:openai;model_id:a;response_id:resp_abc").decode().rstrip("="),
    ],
)
def test_an_answer_is_known_by_the_providers_id(stored: Any, wrapped: str) -> None:
    """Whatever LiteLLM has put around it."""
    assert stored.later(context(Endpoint.RESPONSES, generates=True), answer(status="queued", id=wrapped)) == "resp_abc"


@pytest.mark.parametrize("odd", ["resp_é", "_", "resp_%%%", "batch_" + "A" * 4_000])
def test_an_odd_id_is_kept_as_it_is(stored: Any, odd: str) -> None:
    assert stored.later(context(Endpoint.BATCHES, generates=True), answer(status="validating", id=odd)) == odd
