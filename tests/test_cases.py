"""The samples that ``--sample`` takes of the tests of a run."""

from __future__ import annotations

import os
import subprocess
import sys
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
def test_a_test_with_several_cases_has_another_one_in_each_sample_and_others_are_in_one(
    request: pytest.FixtureRequest, of: int
) -> None:
    items = request.session.items
    samples = [settings(request).chosen(items, f"{number}/{of}") for number in range(1, of + 1)]
    assert len({item for sample in samples for item in sample}) == sum(map(len, samples)), "a case is in two samples"
    cases = Counter(item.nodeid.partition("[")[0] for item in items)
    kept = Counter(item.nodeid.partition("[")[0] for sample in samples for item in sample)
    assert kept == {name: number if of == 1 else min(number, of) for name, number in cases.items()}
    for sample in samples:
        assert {name for name, number in cases.items() if number >= of} <= {i.nodeid.partition("[")[0] for i in sample}


def test_all_that_failed_in_a_sample_runs_again(tmp_path: Path) -> None:
    """Otherwise what fails in such a run would pass for what failed beside others only."""
    (tmp_path / "conftest.py").write_text(SETTINGS.read_text())
    failing = "import os\n" + "".join(f"def test_{n}():\n    assert 'MENDED' in os.environ\n" for n in range(6))
    (tmp_path / "test_failing.py").write_text(failing)

    def run(*arguments: str, **env: str) -> str:
        command = [sys.executable, "-m", "pytest", "-p", "no:xdist", "--sample", "2/2", *arguments]
        return subprocess.run(  # noqa: S603  # this pytest
            command, cwd=tmp_path, env={**os.environ, **env}, capture_output=True, text=True, check=False
        ).stdout

    assert "3 failed, 3 deselected" in run()
    assert "3 passed" in run("--last-failed", MENDED="1")
