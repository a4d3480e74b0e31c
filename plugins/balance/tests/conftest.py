"""What the tests of this plugin share: deployments, requests and attempts as values, and a chooser without a host."""

from __future__ import annotations

import random
from itertools import count

import pytest

from pointsman.testing.fakes import FakePrices
from pointsman.types import (
    Attempt,
    AttemptError,
    AttemptKind,
    Candidate,
    Deployment,
    Endpoint,
    Identity,
    Outcome,
    RequestContext,
    Usage,
)
from pointsman_balance.attempts import Observer, TriedDeployments
from pointsman_balance.config import BalanceConfig
from pointsman_balance.members import Members
from pointsman_balance.policies import Policies
from pointsman_balance.selection import Chooser
from pointsman_balance.tactics import BUILT_IN

NOW = 1_700_000_000.0
_numbers = count(1)


def make_deployment(id_="d1", group="chat", **changes):
    return Deployment(**{"id": id_, "group": group, "provider": "openai", "model": "m", **changes})


def raises(part, err):
    """Let a fault of a tactic fail the test."""
    raise err


def make_request(**changes):
    made = {
        "request_id": f"request-{next(_numbers)}",
        "endpoint": Endpoint.CHAT,
        "model": "chat",
        "stream": True,
        "identity": Identity(),
        "received_at": NOW,
        "body": {"messages": [{"role": "user", "content": "hello"}]},
    }
    return RequestContext(**made | changes)


def make_attempt(deployment, request=None, *, at=NOW, ms=500.0, first_ms=100.0, error=None, **changes):
    """Return a closed attempt that began at ``at``."""
    made = {
        "id": f"attempt-{next(_numbers)}",
        "request_id": request.request_id if request else f"request-{next(_numbers)}",
        "number": 1,
        "kind": AttemptKind.PRIMARY,
        "deployment": deployment,
        "started_at": at,
        "outcome": Outcome.OK,
        "duration_ms": ms,
        "first_token_ms": first_ms,
        "usage": Usage(prompt_tokens=100, completion_tokens=41),
    }
    if error is not None:
        retry_after_s = changes.pop("retry_after_s", None)
        failure = AttemptError(kind=error, retry_after_s=retry_after_s)
        made |= {"outcome": Outcome.ERROR, "error": failure, "usage": None, "first_token_ms": None}
    return Attempt(**made | changes)


class Table:
    """A chooser and an observer over some deployments, with signals that a test may put."""

    def __init__(self, deployments, config):
        self.config = BalanceConfig(**config)
        self.deployments = {d.id: d for d in deployments}
        self.candidates = tuple(Candidate(deployment=d, weight=d.weight) for d in deployments)
        self.signals = {}
        self.changes = []
        self.policies = Policies(self.config, BUILT_IN)
        self.members = Members(
            self.policies.breaker,
            max_deployments=self.config.max_deployments,
            tau_s=self.config.tau_s,
            stale_s=self.config.stale_s,
        )
        self.tried = TriedDeployments()
        self.chooser = Chooser(
            self.config,
            self.policies,
            self.members,
            self.tried,
            signal_of=self.signals.get,
            prices=FakePrices(),
            random=random.Random(7),
            fault=raises,
        )
        self.observer = Observer(
            self.members,
            self.tried,
            signal_of=self.signals.get,
            changed=lambda member: self.changes.append((member.key[1], str(member.breaker.state))),
        )

    def member(self, id_, now=NOW):
        return self.members.of(self.deployments[id_], now)

    def ask(self, request=None, now=NOW, candidates=None):
        """Return the whole answer by deployment id."""
        answer = self.chooser.choose(request or make_request(), candidates or self.candidates, now)
        return {candidate.deployment.id: candidate for candidate in answer}

    def choose(self, request=None, now=NOW, candidates=None):
        """Return the id that is chosen; no attempt follows."""
        request = request or make_request()
        answer = self.ask(request, now, candidates)
        (chosen,) = [id_ for id_, candidate in answer.items() if not candidate.dropped]
        self.members.of(self.deployments[chosen], now).load.picks.pop(request.request_id)
        return chosen

    def begin(self, id_, request=None, now=NOW):
        """Begin an attempt that stays open; return it."""
        request = request or make_request()
        attempt = make_attempt(self.deployments[id_], request, at=now, outcome=None)
        self.observer.begin(request, attempt, now)
        return attempt

    def see(self, id_, now=NOW, *, request=None, took_s=0.0, **changes):
        """Let an attempt start and end at once, or after ``took_s`` seconds."""
        request = request or make_request()
        attempt = make_attempt(self.deployments[id_], request, at=now, **changes)
        self.observer.begin(request, attempt, now)
        self.observer.end(request, attempt, now + took_s)
        return request


@pytest.fixture
def table_of():
    """Return a maker of tables: ids or deployments, and configuration."""

    def make(*deployments, **config):
        made = [make_deployment(d) if isinstance(d, str) else d for d in deployments or ("a", "b", "c")]
        return Table(made, config)

    return make


@pytest.fixture
def request_of():
    return make_request


@pytest.fixture
def deployment_of():
    return make_deployment
