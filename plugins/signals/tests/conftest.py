"""What the tests of this plugin share: attempts as values."""

from __future__ import annotations

from itertools import count

import pytest

from pointsman.types import Attempt, AttemptError, AttemptKind, Deployment, ErrorClass, Outcome, Usage
from pointsman_signals.config import SignalsConfig
from pointsman_signals.dialects import DialectTable
from pointsman_signals.tracker import Tracker

NOW = 1_700_000_000.0


def make_deployment(id_="d1", group="chat", provider="openai", **changes):
    return Deployment(**{"id": id_, "group": group, "provider": provider, "model": "m", **changes})


def make_attempt(deployment=None, *, at=NOW, ms=200.0, error=None, retry_after_s=None, message="", **changes):
    """Return a closed attempt that began at ``at``."""
    made = {
        "id": f"attempt-{next(_numbers)}",
        "request_id": "r1",
        "number": 1,
        "kind": AttemptKind.PRIMARY,
        "deployment": deployment or make_deployment(),
        "started_at": at,
        "outcome": Outcome.OK,
        "duration_ms": ms,
        "usage": Usage(prompt_tokens=100, completion_tokens=50),
    }
    if error is not None:
        failure = AttemptError(kind=error, message=message, retry_after_s=retry_after_s)
        made |= {"outcome": Outcome.ERROR, "error": failure, "usage": None}
    return Attempt(**made | changes)


_numbers = count(1)


@pytest.fixture
def attempt():
    return make_attempt


@pytest.fixture
def deployment():
    return make_deployment


@pytest.fixture
def tracker_of():
    """Return a maker of books."""

    def make(**config):
        config = SignalsConfig(**config)
        return Tracker(config, DialectTable(chosen=config.dialects))

    return make


@pytest.fixture
def rate_limited():
    return {"error": ErrorClass.RATE_LIMIT, "status_code": 429}
