"""Memory stays bounded, and who is remembered is who matters."""

from __future__ import annotations

import gc

from pointsman.types import ErrorClass
from pointsman_balance.tries import KEPT_S, MAX_REQUESTS, Tries

from .conftest import NOW, make_attempt, make_deployment, make_request


def test_memory_is_bounded_with_ten_thousand_deployments_seen(table_of):
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
                table.tries.sweep(now)
        gc.collect()
        return len(gc.get_objects())

    few = see(0, 2000)
    many = see(2000, 10_000)
    assert many < few * 1.15
    assert len(table.members) <= 300
    assert table.members.forgotten >= 9700
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
        table.members.of(ill, NOW + 100 + number).breaker.failed_at(ErrorClass.AUTH, NOW + 100, NOW + 100)
    assert len(table.members) <= 10, "the bound holds even when all are ill"


def test_tries_are_bounded_in_number_and_time():
    tries = Tries()
    for number in range(MAX_REQUESTS + 100):
        tries.add(f"r{number}", "a", NOW)
    assert len(tries) == MAX_REQUESTS
    assert tries.of("r0") == set()
    tries.add(f"r{MAX_REQUESTS + 99}", "b", NOW)
    assert tries.of(f"r{MAX_REQUESTS + 99}") == {"a", "b"}
    tries.sweep(NOW + KEPT_S + 1)
    assert len(tries) == 0
