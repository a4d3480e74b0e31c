"""The parts into which ``--cases`` divides the tests of this run."""

from __future__ import annotations

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
def test_all_parts_together_are_all_cases_and_each_has_every_test(request: pytest.FixtureRequest, of: int) -> None:
    items = request.session.items
    parts = [settings(request).chosen(items, f"{number}/{of}") for number in range(1, of + 1)]
    assert {item.nodeid for part in parts for item in part} == {item.nodeid for item in items}
    tests = {item.nodeid.partition("[")[0] for item in items}
    for part in parts:
        assert {item.nodeid.partition("[")[0] for item in part} == tests
        assert len({item.nodeid for item in part}) == len(part)
    assert of == 1 or len(items) == len(tests) or len(parts[0]) < len(items)
