"""Settings of all tests."""

from __future__ import annotations

import gc
import itertools
import os
from collections.abc import Generator
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
    """Add the option that chooses some of all cases."""
    parser.addoption(
        "--sample",
        metavar="NUMBER/OF",
        default="1/1",
        help="run one case of each test that has several, and of the other tests one part in OF; samples of other numbers "
        "have other cases and tests; with --last-failed, run all that failed",
    )


def chosen(items: list[pytest.Item], sample: str) -> list[pytest.Item]:
    """Return a sample of all cases, disjoint with the others; in the order that spares fixtures, which pytest has made.

    Every test with as many cases as there are samples has one in each; of those with fewer, each sample has its part.
    """
    number, of = map(int, sample.split("/"))
    if of == 1:
        return items
    cases: dict[str, list[pytest.Item]] = {}
    for item in items:
        cases.setdefault(item.nodeid.partition("[")[0], []).append(item)
    kept = {found[(2 * number - 1) * len(found) // (2 * of)] for found in cases.values() if len(found) >= of}
    few = itertools.chain.from_iterable(found for found in cases.values() if len(found) < of)
    kept.update(list(few)[number - 1 :: of])
    return [item for item in items if item in kept]


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collect without the garbage collector, which would look again and again at what all stays."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


@pytest.hookimpl(trylast=True)  # of the cases that are left
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is not in the sample, and put files in the order in which workers are given them.

    Those with proxies, in which much is waited for, are spread over the run, so that there is always something to compute.
    Of each kind, files whose tests may take long come first, and those with proxies end earlier: no worker is left alone
    with a long one at the end.
    """
    # Pytest has collected only what failed: a sample of that would lose the rest.
    kept = items if config.getoption("lf", False) else chosen(items, config.getoption("--sample"))
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
