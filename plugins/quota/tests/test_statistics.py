"""What is learnt from answers: lengths and durations."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from pointsman_quota.statistics import BOUNDS, DEFAULT_MS, MIN_SAMPLES, Durations, OutputLengths


@given(st.lists(st.integers(0, 100_000), min_size=MIN_SAMPLES, max_size=300), st.floats(0.5, 0.99))
def test_a_quantile_is_never_too_low_and_at_most_half_too_high(lengths: list[int], ratio: float) -> None:
    """Against the sorted list: at least the true quantile, at most one bucket above it."""
    outputs = OutputLengths()
    for length in lengths:
        outputs.add("t", "m", length)
    exact = sorted(lengths)[min(len(lengths) - 1, max(0, -int(-ratio * len(lengths) // 1) - 1))]
    guess = outputs.quantile("t", "m", ratio)
    assert guess is not None
    assert sum(length <= guess for length in lengths) >= ratio * len(lengths)
    assert guess <= max(BOUNDS[0], exact * 1.5 + 1)


def test_nothing_is_guessed_from_too_few_answers() -> None:
    outputs = OutputLengths()
    for _ in range(MIN_SAMPLES - 1):
        outputs.add("t", "m", 50)
    assert outputs.quantile("t", "m", 0.95) is None
    outputs.add("t", "m", 50)
    assert outputs.quantile("t", "m", 0.95) == 64
    assert outputs.quantile("other", "m", 0.95) is None


def test_old_answers_fade_and_memory_is_bounded() -> None:
    outputs = OutputLengths(capacity=2)
    for _ in range(1990):
        outputs.add("t", "m", 8000)
    for _ in range(30_000):
        outputs.add("t", "m", 20)
    assert outputs.quantile("t", "m", 0.95) == BOUNDS[1]
    for number in range(5):
        outputs.add("t", f"m{number}", 1)
    assert len(outputs) == 2


def test_the_usual_duration_follows_what_is_seen() -> None:
    durations = Durations(capacity=1)
    assert durations.typical_ms("t") == DEFAULT_MS
    chance = random.Random(1)
    for _ in range(200):
        durations.add("t", chance.uniform(150, 250))
    assert 170 <= durations.typical_ms("t") <= 230
    durations.add("u", 5)
    assert durations.typical_ms("t") == DEFAULT_MS
