"""The parts into which ``--cases`` divides the tests of this run."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

SETTINGS = Path(__file__).parents[1] / "conftest.py"


def settings(request: pytest.FixtureRequest) -> Any:
    plugins = request.config.pluginmanager.get_plugins()
    return next(plugin for plugin in plugins if getattr(plugin, "__file__", None) == str(SETTINGS))


@dataclass(frozen=True)
class Item:
    nodeid: str


@pytest.mark.parametrize("of", [1, 2, 3])
def test_cases_that_share_a_costly_fixture_stay_together(request: pytest.FixtureRequest, of: int) -> None:
    """Pytest has put them one after another; otherwise what they share would be started for each test."""
    items = [Item(f"test_{name}[{proxy}-{case}]") for proxy in ("one", "other") for name in "abc" for case in range(3)]
    for number in range(1, of + 1):
        kept = settings(request).chosen(items, f"{number}/{of}")
        assert kept == [item for item in items if item in kept]


@pytest.mark.parametrize("of", [1, 2, 3])
def test_each_case_is_in_one_part_and_a_test_with_enough_of_them_in_all(
    request: pytest.FixtureRequest, of: int
) -> None:
    items = request.session.items
    parts = [settings(request).chosen(items, f"{number}/{of}") for number in range(1, of + 1)]
    assert sorted(item.nodeid for part in parts for item in part) == sorted(item.nodeid for item in items)
    cases = Counter(item.nodeid.partition("[")[0] for item in items)
    for part in parts:
        assert {name for name, number in cases.items() if number >= of} <= {i.nodeid.partition("[")[0] for i in part}
