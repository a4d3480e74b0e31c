"""Random configurations on a real proxy: what LiteLLM alone answers every time is answered with plugins on, too."""

from __future__ import annotations

import copy
import json
import os
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gateways import GROUPS, PLUGINS, Broken, draw_batch, draw_case, running

pytestmark = [pytest.mark.proxy, pytest.mark.timeout(1800)]

THOROUGH = bool(os.environ.get("POINTSMAN_THOROUGH"))
CASES = 80 if THOROUGH else 24
#: The first two batches have all plugins, in the recommended order, without and with cooldowns; the others a choice of
#: plugins, in any order.
SEEDS = range(25 if THOROUGH else 2)
ORDERED = 2
#: The smallest case that failed in the latest run, for a report or a test of its own.
FAILED = Path(tempfile.gettempdir()) / "pointsman-generated-proxy-failure.json"


@pytest.mark.parametrize("seed", SEEDS)
def test_what_litellm_answers_is_answered_with_plugins(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    ordered = seed < ORDERED
    batch = draw_batch(rng, plugins=PLUGINS if ordered else None, cooldowns=seed == 1 if ordered else None)
    cases = [draw_case(rng) for _ in range(CASES)]
    with running(batch, cases, tmp_path / "all") as gateways:
        broken, sure = gateways.broken()
    if broken:
        keep(batch, cases[broken[0].case])
        keep(batch, shrunk(batch, cases[broken[0].case], tmp_path))
    assert broken == [], f"the first one made small: {FAILED}"
    # Otherwise nothing would be checked.
    assert sure > CASES / 4


def keep(batch: dict[str, Any], case: dict[str, Any]) -> None:
    FAILED.write_text(json.dumps({"batch": batch, "case": case}, indent=1), encoding="utf-8")


def shrunk(batch: dict[str, Any], case: dict[str, Any], directory: Path) -> dict[str, Any]:
    """Return the smallest case that still breaks: in each round, all that are one step smaller are one batch."""
    for round_ in range(20):
        smaller = list(steps(case))
        if not smaller:
            break
        with running(batch, smaller, directory / f"shrunk-{round_}") as gateways:
            found: list[Broken] = gateways.broken()[0]
        if not found:
            break
        case = smaller[found[0].case]
    return case


def steps(case: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the cases that have one thing less."""

    def without(change: Any) -> dict[str, Any]:
        smaller = copy.deepcopy(case)
        change(smaller)
        return smaller

    for index in range(len(case["requests"]) if case["requests"][1:] else 0):
        yield without(lambda c, i=index: c["requests"].pop(i))
    for group in GROUPS:
        members = case["groups"][group]
        for index in range(len(members) if members[1:] else 0):
            yield without(lambda c, g=group, i=index: c["groups"][g].pop(i))
        for index, member in enumerate(members):
            for name in (name for name, value in member.items() if name != "does" and value is not None):
                yield without(lambda c, g=group, i=index, n=name: c["groups"][g][i].update({n: None}))
    for name in (name for name, value in case.items() if name not in {"groups", "requests"} and value):
        yield without(lambda c, n=name: c.update({n: type(c[n])()}))
    for index, request in enumerate(case["requests"]):
        for name in (name for name, value in request.items() if name != "endpoint" and value):
            empty = {"retries": 0, "stream": False, "long": False, "session": False, "same": False}.get(name)
            yield without(lambda c, i=index, n=name, e=empty: c["requests"][i].update({n: e}))
