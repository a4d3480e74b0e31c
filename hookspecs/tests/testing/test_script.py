"""Scripts: which attempt gets which step."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman.testing import breaks, cancel, deployment, disconnect, error, never, ok
from pointsman.testing.script import Ending, Script
from pointsman.types import ErrorClass

A, B, OTHER = deployment("a", "chat"), deployment("b", "chat"), deployment("c", "other")


def texts(script, *deployments):
    return [script.next(d).text for d in deployments]


def test_one_step_answers_every_attempt():
    script = Script(ok("one"))
    assert texts(script, A, A, B, OTHER) == ["one"] * 4


def test_a_list_answers_attempts_in_order_then_succeeds():
    script = Script([ok("one"), ok("two")])
    assert texts(script, A, OTHER) == ["one", "two"]
    assert script.next(A).ending is Ending.OK


def test_a_mapping_goes_by_deployment_then_group_then_any():
    script = Script({"a": ok("by id"), "chat": [ok("by group")], "*": ok("any")})
    assert texts(script, A, A, B, OTHER, OTHER) == ["by id", "by id", "by group", "any", "any"]
    assert script.next(B).ending is Ending.OK
    assert script.next(B).text != "any", "a list that has been used up does not fall through to another entry"


def test_no_script_succeeds():
    assert Script().next(A).ending is Ending.OK
    assert Script({"b": error()}).next(A).ending is Ending.OK


@given(st.text())
def test_the_pieces_of_a_stream_are_the_text(text):
    """Joined, the pieces are the text, whatever it is; only an empty text has no piece."""
    step = ok(text)
    assert "".join(step.pieces) == text
    assert bool(step.pieces) == bool(text)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (429, ErrorClass.RATE_LIMIT),
        (401, ErrorClass.AUTH),
        (403, ErrorClass.AUTH),
        (404, ErrorClass.NOT_FOUND),
        (408, ErrorClass.TIMEOUT),
        (504, ErrorClass.TIMEOUT),
        (400, ErrorClass.CLIENT),
        (422, ErrorClass.CLIENT),
        (500, ErrorClass.SERVER),
        (503, ErrorClass.SERVER),
        (None, ErrorClass.CONNECTION),
    ],
)
def test_a_status_says_what_kind_of_error_it_is(status, kind):
    step = error(status)
    assert (step.error.kind, step.error.status) == (kind, status)


def test_an_error_can_ask_for_patience():
    """What the provider asks for is in the error and in its header; a header of its own is kept."""
    step = error(429, retry_after_s=2.5)
    assert (step.error.retry_after_s, step.headers) == (2.5, {"retry-after": "2.5"})
    assert error(429, retry_after_s=2.5, headers={"retry-after": "3"}).headers == {"retry-after": "3"}


def test_each_kind_of_step_ends_in_its_own_way():
    endings = [step.ending for step in (ok(), error(), breaks(), never(), disconnect(), cancel())]
    assert endings == list(Ending)
