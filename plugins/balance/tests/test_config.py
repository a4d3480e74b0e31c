"""Configuration errors name file, key path, value, what is allowed and the nearest name."""

from __future__ import annotations

import pytest

from pointsman.config import validate
from pointsman.errors import ConfigError
from pointsman_balance.plugin import plugin

WHERE = "litellm.yaml: pointsman.plugins[1].balance"
TACTICS = (
    "adaptive, cache_affinity, capacity, headroom, latency_based, least_busy, p2c, random, round_robin, speed_based, "
    "token_based"
)


def refusal(section):
    """Return the lines of the error that ends the start."""
    with pytest.raises(ConfigError) as refused:
        validate(plugin.config, section, WHERE)
    return str(refused.value).splitlines()


@pytest.mark.parametrize(
    ("section", "lines"),
    [
        (
            {"tactic": "adaptve"},
            [f"{WHERE}.tactic: there is no tactic 'adaptve' (did you mean 'adaptive'?); available: {TACTICS}"],
        ),
        (
            {"tactic": {"name": "zzz"}, "groups": {"chat": {"tactic": "p3c"}}},
            [
                f"{WHERE}.tactic: there is no tactic 'zzz'; available: {TACTICS}",
                f"{WHERE}.groups.chat.tactic: there is no tactic 'p3c' (did you mean 'p2c'?); available: {TACTICS}",
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
