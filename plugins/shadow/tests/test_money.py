"""A mirror whose budget of money cannot work is a problem before it starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from pointsman.cli.check import inspect
from pointsman.cli.output import Finding, Level

ROWS = (
    ("chat", "openai/gpt-4o-mini", "chat-1"),
    ("next", "hosted_vllm/nobody-7b", "next-1"),
)


@pytest.mark.parametrize(
    ("challenger", "budget", "found"),
    [
        ("next", {"usd_per_day": 1}, True),
        ("next-1", {"usd_per_day": 1}, True),
        ("chat", {"usd_per_day": 1}, False),
        ("chat-1", {"usd_per_day": 1}, False),
        ("next", {"tokens_per_day": 1000}, False),
        ({"version": "next"}, {"usd_per_day": 1}, False),
    ],
)
def test_a_check_names_the_mirrors_whose_challenger_has_no_price(
    tmp_path: Path, challenger: Any, budget: dict[str, Any], found: bool
) -> None:
    problems = checked(tmp_path, {"challenger": challenger, "budget": budget})
    assert [problem.level for problem in problems] == [Level.FAILED] * found
    if found:
        assert problems[0].message.startswith(f"mirrors[0]: the price of {challenger} is unknown")


@pytest.mark.parametrize("asked", ["judge", "embedding"])
@pytest.mark.parametrize(("model", "found"), [("next", 1), ("chat", 0)])
def test_a_check_names_judges_and_embeddings_without_a_price(
    tmp_path: Path, asked: str, model: str, found: int
) -> None:
    """A budget of money counts them, too."""
    problems = checked(tmp_path, {"challenger": "chat", "budget": {"usd_per_day": 1}, asked: {"model": model}})
    assert len(problems) == found
    assert all(f"the price of {asked}.model next is unknown" in problem.message for problem in problems)


def checked(tmp_path: Path, mirror: dict[str, Any]) -> list[Finding]:
    mirror = {"name": "m", "model": "chat", **mirror}
    document = {
        "model_list": [
            {"model_name": group, "litellm_params": {"model": model}, "model_info": {"id": id_}}
            for group, model, id_ in ROWS
        ],
        "pointsman": {"plugins": [{"shadow": {"mirrors": [mirror]}}]},
    }
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(document))
    return [finding for finding in inspect(file, {}).findings if finding.subject == "shadow"]
