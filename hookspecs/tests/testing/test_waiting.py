"""Waiting for what a gateway does in its own time."""

from __future__ import annotations

import pytest

from pointsman.testing import eventually


def test_what_was_seen_when_it_was_enough_is_returned() -> None:
    seen = iter(range(10))
    assert eventually(lambda: next(seen), lambda found: found >= 3) == 3
    assert next(seen) == 4


def test_it_looks_once_however_short_the_time() -> None:
    assert eventually(lambda: "there", lambda found: found == "there", within_s=0) == "there"


def test_what_never_comes_is_said() -> None:
    with pytest.raises(AssertionError, match=r"after 0\.1 s it is still \{'state': 'open'\}"):
        eventually(lambda: {"state": "open"}, lambda found: found["state"] == "closed", within_s=0.1)
