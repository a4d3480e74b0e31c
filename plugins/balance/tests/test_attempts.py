"""Memory stays bounded, and busy or unhealthy deployments are kept longest."""

from __future__ import annotations

import gc
import os

import pytest

from pointsman.types import ErrorClass
from pointsman_balance.attempts import KEPT_S, MAX_REQUESTS, TriedDeployments

from .conftest import NOW, make_attempt, make_deployment, make_request

FEW, MANY = (2000, 10_000) if os.environ.get("POINTSMAN_THOROUGH") else (800, 2400)


@pytest.mark.thorough
def test_memory_is_bounded_with_thousands_of_deployments_seen(table_of):
    table = table_of("a", max_deployments=300)

    def see(first, last):
        for number in range(first, last):
            one = make_deployment(f"d{number}", group=f"g{number % 500}")
            request = make_request()
            now = NOW + number
            kind = ErrorClass.SERVER if number % 3 else None
            for _ in range(4):
                attempt = make_attempt(one, request, at=now, **({"error": kind} if kind else {}))
                table.observer.begin(request, attempt, now)
                table.observer.end(request, attempt, now)
            table.policies.tactic(one.group)
            table.policies.breaker(one.group)
            if number % 100 == 0:
                table.tried.sweep(now)
        gc.collect()
        return len(gc.get_objects())

    few = see(0, FEW)
    many = see(FEW, MANY)
    assert many < few * 1.15
    assert len(table.members) <= 300
    assert table.members.forgotten >= MANY - 300
    assert len(table.policies._tactics) <= 302
    assert len(table.policies._breakers) <= 302


def test_what_runs_or_is_ill_is_forgotten_last(table_of):
    table = table_of("running", "ill", max_deployments=10)
    table.begin("running")
    for _ in range(3):
        table.see("ill", error=ErrorClass.SERVER)
    for number in range(50):
        table.members.of(make_deployment(f"d{number}"), NOW + 1 + number)
    assert len(table.members) <= 10
    assert table.members.find("chat", "running") is not None
    assert table.members.find("chat", "ill") is not None
    for number in range(50):
        ill = make_deployment(f"ill{number}")
        table.members.of(ill, NOW + 100 + number).breaker.record_failure(ErrorClass.AUTH, NOW + 100, NOW + 100)
    assert len(table.members) <= 10, "the bound holds even when all are ill"


def test_tried_deployments_are_bounded_in_number_and_time():
    tried = TriedDeployments()
    for number in range(MAX_REQUESTS + 100):
        tried.add(f"r{number}", "a", NOW)
    assert len(tried) == MAX_REQUESTS
    assert tried.of("r0") == set()
    tried.add(f"r{MAX_REQUESTS + 99}", "b", NOW)
    assert tried.of(f"r{MAX_REQUESTS + 99}") == {"a", "b"}
    tried.sweep(NOW + KEPT_S + 1)
    assert len(tried) == 0
