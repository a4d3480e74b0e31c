"""What changes an answer on its way out, whatever the gateway has made of it."""

from __future__ import annotations

import gzip
import json
from typing import TYPE_CHECKING, Any

import pytest

from pointsman.litellm.bodies import Rewriter, rewriter

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pointsman.types import Denial

ANSWER = {"choices": [{"message": {"content": "x" * 1000}}]}


class Hooks:
    """One plugin changes plain answers, and insists."""

    transform_response = ("strict",)
    transform_stream = ()

    def unfit(self, hook: str) -> str:
        return f"denied: {hook}"


class Exchange:
    """The part of an exchange that is used. Its plugin adds a field, or leaves the answer as it is."""

    changes_answers = True
    answering = object()
    hooks = Hooks()

    def __init__(self, added: Mapping[str, Any]) -> None:
        self.ctx = type("Context", (), {"generates": True, "stream": False})
        self._added = added

    async def change_answer(self, attempt: object, answer: dict[str, Any]) -> tuple[dict[str, Any], Denial | None]:
        del attempt
        return ({**answer, **self._added} if self._added else answer), None


async def sent(body: bytes, encoding: bytes, added: Mapping[str, Any]) -> tuple[dict[bytes, bytes], bytes] | str:
    """Return the headers and the body that the client gets, or the denial."""
    messages: list[Any] = []

    async def keep(message: Any) -> None:
        messages.append(message)

    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    start = {
        "type": "http.response.start",
        "status": 200,
        "headers": [*headers, (b"Content-Encoding", encoding)] if encoding else headers,
    }
    made = rewriter(Exchange(added), start, keep, keep)  # type: ignore[arg-type]  # the part of it that is used
    if not isinstance(made, Rewriter):
        return str(made)
    await made.send(start)
    await made.send({"type": "http.response.body", "body": body[:20], "more_body": True})
    await made.send({"type": "http.response.body", "body": body[20:]})
    if len(messages) == 1:
        return str(messages[0])
    return {name.lower(): value for name, value in messages[0]["headers"]}, messages[1]["body"]


@pytest.mark.parametrize("encoding", [b"", b"gzip"])
async def test_a_compressed_answer_is_changed_as_another_one(encoding: bytes) -> None:
    body = json.dumps(ANSWER).encode()
    found = await sent(gzip.compress(body) if encoding else body, encoding, {"added": 1})
    assert not isinstance(found, str), found
    headers, text = found
    assert json.loads(text) == {**ANSWER, "added": 1}
    assert b"content-encoding" not in headers
    assert headers[b"content-length"] == str(len(text)).encode()


async def test_a_compressed_answer_that_stays_as_it_is_stays_compressed() -> None:
    body = gzip.compress(json.dumps(ANSWER).encode())
    found = await sent(body, b"gzip", {})
    assert not isinstance(found, str), found
    assert found[0][b"content-encoding"] == b"gzip"
    assert found[1] == body


@pytest.mark.parametrize(
    ("body", "encoding"),
    [(b"{}", b"br"), (b"{}", b"gzip"), (gzip.compress(b"{"), b"gzip")],
    ids=["br", "plain", "no JSON"],
)
async def test_an_answer_that_cannot_be_read_is_refused(body: bytes, encoding: bytes) -> None:
    assert await sent(body, encoding, {"added": 1}) == "denied: transform_response"
