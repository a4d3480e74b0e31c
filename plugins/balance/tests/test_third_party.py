"""A tactic from another distribution, by entry point."""

from __future__ import annotations

from collections import Counter
from importlib.metadata import EntryPoint

import pytest
from pydantic import ValidationError

from pointsman.errors import ConfigError
from pointsman.testing import deployment
from pointsman.testing.distribution import fake_distribution
from pointsman_balance.config import BalanceConfig
from pointsman_balance.plugin import plugin
from pointsman_balance.tactic import Tactic
from pointsman_balance.tactics import BUILT_IN, TacticChoice, installed, make

SOURCE = """
from pointsman_balance.tactic import Tactic


class Alphabetical(Tactic):
    def choose(self, ask):
        return ask.best([-ord(option.id[0]) for option in ask.options], "first by name")
"""


def test_it_takes_less_than_twenty_lines():
    assert len(SOURCE.strip().splitlines()) + 2 < 20


@pytest.fixture
def alphabetical(tmp_path, monkeypatch):
    (tmp_path / "acme_tactics.py").write_text(SOURCE, encoding="utf-8")
    fake_distribution(
        tmp_path, "acme-tactics", {"alphabetical": "acme_tactics:Alphabetical"}, group="pointsman_balance.tactics"
    )
    monkeypatch.syspath_prepend(tmp_path)


async def test_an_installed_tactic_chooses(harness, alphabetical):
    fleet = [deployment(one, "chat") for one in ("c", "a", "b")]
    async with harness([(plugin, {"groups": {"chat": {"tactic": "alphabetical"}}})], deployments=fleet) as h:
        seen = Counter([(await h.request()).attempts[0].deployment.id for _ in range(10)])
        assert seen == {"a": 10}
        assert "alphabetical" in (await h.admin.get("/balance")).json()["tactics"]


@pytest.mark.parametrize(
    ("value", "word"),
    [("no_such_module:X", "cannot be imported"), ("pointsman_balance.config:BalanceConfig", "derived")],
)
def test_a_tactic_that_cannot_be_used_stops_the_start_only_where_it_is_named(monkeypatch, value, word):
    """The error has the key path; without the name, the plugin starts."""
    broken = installed([EntryPoint("acme", value, "pointsman_balance.tactics")])
    monkeypatch.setattr("pointsman_balance.config.installed", lambda: broken)
    BalanceConfig(tactic="p2c")
    with pytest.raises(ValidationError, match=word) as caught:
        BalanceConfig(groups={"chat": {"tactic": "acme"}})
    assert caught.value.errors()[0]["loc"] == ("groups", "chat", "tactic")


def test_an_unknown_tactic_is_named_with_the_nearest():
    with pytest.raises(ConfigError, match=r"there is no tactic 'roundrobin' \(did you mean 'round_robin'"):
        make(TacticChoice(name="roundrobin"), BUILT_IN)


class Moody(Tactic):
    def __init__(self, settings=None):
        raise RuntimeError("not today")

    def choose(self, ask):
        raise NotImplementedError


def test_a_tactic_that_cannot_be_made_is_named():
    with pytest.raises(ConfigError, match="the tactic 'moody' cannot be built: RuntimeError: not today"):
        make(TacticChoice(name="moody"), {"moody": Moody})


async def test_a_tactic_that_fails_is_skipped_and_counted(harness, monkeypatch):
    """The gateway's own strategy chooses then."""
    monkeypatch.setattr(BUILT_IN["random"], "choose", lambda *_: 1 / 0)
    fleet = [deployment(one, "chat") for one in ("a", "b")]
    async with harness([(plugin, {"tactic": "random"})], deployments=fleet) as h:
        assert (await h.request()).status == 200
        assert h.faults == {"balance.tactic random": 1, "balance.select": 1}
