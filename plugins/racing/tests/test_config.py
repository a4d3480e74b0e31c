"""Which configurations are taken as they are meant."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from pointsman_racing.config import RacingConfig

from .test_contract import ALL


@pytest.mark.parametrize(
    "section",
    [
        {"models": [{**ALL, "budget_burst": 2}], "budget": {"burst": 2, "ratio": 2}},
        {"models": [{**ALL, "max_attempts": 2, "budget_burst": 1}], "budget": {"burst": 1}},
        {"models": [{**ALL, "max_attempts": 1, "budget_ratio": 0}], "budget": {"ratio": 0}},
        {"models": [{**ALL, "strategy": "hedge", "budget_ratio": 0, "budget_burst": 1}]},
        {"models": [{**ALL, "strategy": "hedge"}], "budget": {"ratio": 0.01, "burst": 1}},
    ],
)
def test_what_can_work_is_accepted(section):
    assert RacingConfig.model_validate(section).models[0].name == "smart"


@pytest.mark.parametrize("groups", [["chat"], ("chat",), {"chat": {}}, {"chat": None}])
def test_groups_have_the_defaults(groups):
    made = RacingConfig.model_validate({"groups": groups, "defaults": {"max_attempts": 2}})
    assert {name: group.max_attempts for name, group in made.groups.items()} == {"chat": 2}


@pytest.mark.parametrize(
    ("candidates", "where"),
    [([], ()), ([{"target": "chat", "priorty": 0}], (0, "priorty")), ([{"target": ""}], (0, "target"))],
)
def test_wrong_candidates_are_one_error(candidates, where):
    with pytest.raises(ValidationError) as caught:
        RacingConfig.model_validate({"models": [{"name": "smart", "candidates": candidates}]})
    assert [detail["loc"] for detail in caught.value.errors()] == [("models", 0, "candidates", *where)]


@pytest.mark.parametrize(
    ("defaults", "where"),
    [
        ({"strategy": "fastest"}, ("defaults", "strategy")),
        ({"delay": {"floor_ms": -1}}, ("defaults", "delay", "floor_ms")),
        ({"grace": 5}, ("defaults", "grace")),
    ],
)
def test_a_wrong_default_is_one_error_where_it_was_written(defaults, where):
    section = {"models": [{"name": "smart", "candidates": ["chat"]}], "groups": {"chat": {}}, "defaults": defaults}
    with pytest.raises(ValidationError) as caught:
        RacingConfig.model_validate(section)
    assert [detail["loc"] for detail in caught.value.errors()] == [where]


@pytest.mark.parametrize(
    ("priorities", "warned"), [((0, 1), False), ((0, 0), False), ((10, 5), True), ((1, 2, 1), False)]
)
def test_priorities_that_fall_may_be_meant_the_other_way_round(priorities, warned):
    """Lower comes first here; elsewhere a larger number is a higher priority."""
    candidates = [{"target": f"c{number}", "priority": priority} for number, priority in enumerate(priorities)]
    config = RacingConfig.model_validate({"models": [{"name": "smart", "candidates": candidates}]})
    assert ["c1" in warning for warning in config.warnings()] == [True] * warned
