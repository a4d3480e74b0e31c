"""What the tests of this plugin share."""

from __future__ import annotations

from itertools import count

import pytest

from pointsman.testing import Harness, deployment
from pointsman.types import Attempt, AttemptError, AttemptKind, ErrorClass, Outcome, Usage
from pointsman_racing.plugin import plugin

NOW = 1_750_000_000.0
DEPLOYMENTS = (
    deployment("chat-a", "chat"),
    deployment("chat-b", "chat"),
    deployment("backup-a", "backup", provider="anthropic"),
    deployment("tiny", "tiny"),
)
#: Settings that keep most tests simple: fixed delays, and a budget for any number of extra attempts.
EASY = {"delay": {"fixed_ms": 100, "fixed_plain_ms": 100, "floor_ms": 1}, "budget_ratio": 4, "budget_burst": 1000}

_numbers = count(1)


def make_attempt(name="a", *, ms=200.0, first_ms=None, outcome=Outcome.OK, kind=None, retry_after_s=None, **changes):
    """Return a closed attempt; ``kind`` is the class of its error."""
    error = None if kind is None else AttemptError(kind=kind, retry_after_s=retry_after_s)
    return Attempt(
        **{
            "id": f"attempt-{next(_numbers)}",
            "request_id": "r",
            "number": 1,
            "kind": AttemptKind.PRIMARY,
            "deployment": deployment(name),
            "started_at": NOW,
            "outcome": Outcome.ERROR if kind is not None else outcome,
            "duration_ms": ms,
            "first_token_ms": first_ms,
            "error": error,
            "usage": Usage(prompt_tokens=10, completion_tokens=5),
            **changes,
        }
    )


@pytest.fixture
def attempt():
    return make_attempt


@pytest.fixture
def failed():
    return {"kind": ErrorClass.SERVER}


@pytest.fixture
def track():
    """Return a maker of workers with races; ``plugins`` come before this one, those of ``later`` after it."""

    def make(*plugins, models=(), easy=True, later=(), **arguments):
        section = {"defaults": EASY if easy else {}, "budget": {"burst": 1000}, "models": list(models)}
        section |= arguments.pop("config", {})
        arguments.setdefault("deployments", DEPLOYMENTS)
        return Harness([*plugins, (plugin, section), *later], **arguments)

    return make
