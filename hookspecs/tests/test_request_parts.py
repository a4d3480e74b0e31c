"""A request of very many parts is refused before it is read; texts of any length are not."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from pointsman.litellm.request_parts import PartsCounter

MOST = 100
MESSAGE = {"role": "user", "content": "a"}


def status(body: bytes, content_type: str = "application/json", pieces: int = 1) -> int | None:
    counter = PartsCounter({"headers": [(b"content-type", content_type.encode())]}, lambda: MOST)
    size = -(-len(body) // pieces)
    *first, last = [body[start : start + size] for start in range(0, len(body), size)]
    assert not [piece for piece in first if counter.refused(piece, last=False) is not None]
    denial = counter.refused(last, last=True)
    return None if denial is None else denial.status


MANY: dict[str, Any] = {
    "lists": [[]] * MOST,
    "objects": [{}] * MOST,
    "messages": {"messages": [MESSAGE] * MOST},
    "parts of a message": {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}] * MOST}]},
    "tool outputs": {"input": [{"type": "function_call_output", "call_id": "c", "output": "a"}] * MOST},
    "token ids": {"prompt": [1] * (MOST + 1)},
    "fields": {f"field {number}": number for number in range(MOST + 1)},
}
#: Texts with everything that ends, begins or hides one.
TEXTS = ["[{,}]" * MOST, '"' * MOST + ",", "\\" * MOST + ",", '\\",[' * MOST, "\n,\u2028," * MOST, '","' * MOST]


@pytest.mark.parametrize("pieces", [1, 7])
@pytest.mark.parametrize("what", MANY)
def test_many_parts_are_refused(what: str, pieces: int) -> None:
    assert status(json.dumps(MANY[what]).encode(), pieces=pieces) == 413


@pytest.mark.parametrize("pieces", [1, 7])
@pytest.mark.parametrize("text", TEXTS)
def test_what_stands_in_a_text_is_no_part(text: str, pieces: int) -> None:
    body = json.dumps({"model": "m", "messages": [{**MESSAGE, "content": text}]}).encode()
    assert status(body, pieces=pieces) is None


@pytest.mark.parametrize(
    ("content_type", "expected"),
    [
        ("multipart/form-data; boundary=x", None),
        (" Multipart/Form-Data", None),
        ("application/x-www-form-urlencoded", None),
        ("application/json; charset=utf-8", 413),
        ("multipart/mixed", 413),
        ("text/plain; multipart/form-data", 413),
        ("", 413),
    ],
)
def test_forms_are_no_json(content_type: str, expected: int | None) -> None:
    """And are told from JSON as LiteLLM tells them."""
    assert status(b"[{}," * MOST, content_type) == expected


def test_no_bytes_harm() -> None:
    """Also half a text, half a character and half an escape."""
    chosen = random.Random(1)  # the same in each run
    for _ in range(300):
        status(bytes(chosen.choices(b'"\\,[{}]\xff\xe2a\n', k=4 * MOST)), pieces=chosen.randint(1, 9))


@pytest.mark.parametrize("most", [1_000, 10_000])
def test_the_bound_is_the_one_in_force(most: int) -> None:
    body = b"[" + b"[]," * 2_000 + b"[]]"
    counter = PartsCounter({"headers": []}, lambda: most)
    assert (counter.refused(body, last=True) is None) == (most > len(body) // 2)


def test_the_files_of_a_form_are_not_kept_in_memory() -> None:
    counter = PartsCounter({"headers": [(b"content-type", b"multipart/form-data; boundary=x")]}, lambda: MOST)
    assert counter.refused(b"x" * 4 * MOST, last=False) is None
    assert not counter._pieces
    assert counter.refused(b"x", last=True) is None
