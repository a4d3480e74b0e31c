"""Settings of all tests."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Enough examples to find what a change breaks; ``tox run -e long`` takes four times as many.
EXAMPLES = 100 if os.environ.get("POINTSMAN_THOROUGH") else 25

# The same examples in each run, so that a run judges the change and not luck; POINTSMAN_EXPLORE tries others.
EXPLORES = bool(os.environ.get("POINTSMAN_EXPLORE"))

# How long an example takes depends on what else the machine does.
settings.register_profile(
    "pointsman",
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=not EXPLORES,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("pointsman")

# LiteLLM's bundled prices: importing it must not wait for the network.
os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")

# LiteLLM's router waits before each of its retries: half a second, then twice as long each time, and up to 0.75 s more.
# It is the same retry after a fiftieth of that.
os.environ.setdefault("INITIAL_RETRY_DELAY", "0.01")
os.environ.setdefault("JITTER", "0.015")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that divides the cases."""
    parser.addoption(
        "--cases",
        metavar="NUMBER/OF",
        default="1/1",
        help="run one part of all cases: 1/2 every second of them, 2/2 the others",
    )


def chosen(items: list[pytest.Item], part: str) -> list[pytest.Item]:
    """Return one of several parts of all cases, disjoint ones; in the order that spares fixtures, which pytest has made."""
    number, of = map(int, part.split("/"))
    # The cases of a test follow one another: one with several has some in each part.
    cases: dict[str, list[pytest.Item]] = {}
    for item in items:
        cases.setdefault(item.nodeid.partition("[")[0], []).append(item)
    kept = set(list(itertools.chain.from_iterable(cases.values()))[number - 1 :: of])
    return [item for item in items if item in kept]


@pytest.hookimpl(trylast=True)  # of the cases that are left
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the cases of other parts, and put files in the order in which workers are given them.

    Those with proxies, in which much is waited for, are spread over the run, so that there is always something to compute.
    Of each kind, files whose tests may take long come first, and those with proxies end earlier: no worker is left alone
    with a long one at the end.
    """
    kept = chosen(items, config.getoption("--cases"))
    if left_out := set(items) - set(kept):
        config.hook.pytest_deselected(items=list(left_out))

    def weight(item: pytest.Item) -> tuple[bool, float]:
        limit = item.get_closest_marker("timeout")
        allowed_s = float(limit.args[0]) if limit is not None and limit.args else 0.0
        return item.get_closest_marker("proxy") is not None, allowed_s

    of_file: dict[Path, tuple[bool, float]] = {}
    for item in kept:
        of_file[item.path] = max(of_file.get(item.path, (False, 0.0)), weight(item))
    place: dict[Path, float] = {}
    for proxies, part_of_the_run in ((True, 0.9), (False, 1.0)):
        files = [path for path, (has_one, _) in of_file.items() if has_one is proxies]
        files.sort(key=lambda path: of_file[path], reverse=True)
        place.update((path, part_of_the_run * number / len(files)) for number, path in enumerate(files))
    items[:] = sorted(kept, key=lambda item: place[item.path])
