"""What is wrong with the configuration is said as the host says it: file, key path, value, what is allowed, nearest."""

from __future__ import annotations

import pytest

from pointsman.errors import PointsmanError
from pointsman.host import config, manager
from pointsman_balance.plugin import plugin

WHERE = "litellm.yaml: pointsman.plugins[1].balance"
TACTICS = (
    "adaptive, cache_affinity, capacity, headroom, latency_based, least_busy, p2c, random, round_robin, speed_based, "
    "token_based"
)


def refusal(section):
    """Return the lines with which a start ends, without what names the plugin before them."""
    entry = config.PluginEntry("balance", section, "litellm.yaml: pointsman.plugins[1]")
    ((_, outcome),) = manager.load_each([entry], {"balance": plugin})
    assert isinstance(outcome, PointsmanError), "it was accepted"
    return str(outcome).removeprefix("plugin 'balance': ").splitlines()


@pytest.mark.parametrize(
    ("section", "lines"),
    [
        (
            {"tactic": "adaptve"},
            [f"{WHERE}.tactic: there is no tactic 'adaptve' (did you mean 'adaptive'?); there are {TACTICS}"],
        ),
        (
            {"tactic": {"name": "zzz"}, "groups": {"chat": {"tactic": "p3c"}}},
            [
                f"{WHERE}.tactic: there is no tactic 'zzz'; there are {TACTICS}",
                f"{WHERE}.groups.chat.tactic: there is no tactic 'p3c' (did you mean 'p2c'?); there are {TACTICS}",
            ],
        ),
        (
            {"tactic": {"name": "latency_based", "god_ms": 1, "good_ms": -1}},
            [
                f"{WHERE}.tactic: good_ms: input should be greater than 0; god_ms: unknown key (did you mean 'good_ms'?); set"
            ],
        ),
        ({"breaker": "swfit"}, [f"{WHERE}.breaker: 'swfit' is not allowed: input should be 'swift' or 'classic'"]),
        (
            {"groups": {"chat": {"breaker": "clasic"}}},
            [f"{WHERE}.groups.chat.breaker: 'clasic' is not allowed: input should be 'swift' or 'classic'"],
        ),
        (
            {"breaker": {"preset": "clasic"}},
            [f"{WHERE}.breaker.preset: 'clasic' is not allowed: input should be 'swift' or 'classic'"],
        ),
        (
            {"breaker": {"max_open_s": 60}, "groups": {"chat": {"breaker": {"open_s": 300}}}},
            [f"{WHERE}.groups.chat.breaker: open_s (300) is above max_open_s (60)"],
        ),
    ],
)
def test_what_is_wrong_is_said_with_file_and_key(section, lines):
    for line, expected in zip(refusal(section), lines, strict=True):
        assert line.startswith(expected)
        if "is not allowed" in expected:
            assert "did you mean" in line.removeprefix(expected)
