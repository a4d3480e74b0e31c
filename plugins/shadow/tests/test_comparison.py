"""What a pair shows, and how pairs are added up."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman.errors import StoreCorrupt
from pointsman.types import Answer, Outcome, ToolCall
from pointsman_shadow import evidence, repository
from pointsman_shadow.comparison import Metric, Side, compare, scale
from pointsman_shadow.config import Bounds, MirrorConfig
from pointsman_shadow.evidence import Batch, Count, Phase

CHAMPION = Side(
    outcome=Outcome.OK,
    deployment="old-1",
    latency_ms=200.0,
    first_token_ms=50.0,
    completion_tokens=10,
    cost_usd_micros=40,
    answer=Answer(text="the same words", finish_reason="stop"),
)
CHALLENGER = replace(CHAMPION, deployment="new-1", latency_ms=100.0, first_token_ms=100.0, completion_tokens=14)
FAILED = Side(outcome=Outcome.ERROR, error="server")
MIRROR = MirrorConfig(name="m", model="chat", challenger="new")


def values(champion=CHAMPION, challenger=CHALLENGER):
    return compare(champion, challenger).values


def test_differences_are_challenger_minus_champion():
    found = values()
    assert found[Metric.LATENCY_MS] == -100.0
    assert found[Metric.LATENCY_RATIO] == -1.0
    assert found[Metric.FIRST_TOKEN_MS] == 50.0
    assert found[Metric.FIRST_TOKEN_RATIO] == 1.0
    assert found[Metric.COMPLETION_TOKENS] == 4
    assert found[Metric.COST_USD_MICROS] == 0
    assert (found[Metric.CHALLENGER_ERROR], found[Metric.CHAMPION_ERROR]) == (0, 0)
    assert (found[Metric.SAME_FINISH], found[Metric.EXACT], found[Metric.EDIT]) == (1, 1, 1)
    assert Metric.SAME_JSON not in found
    assert Metric.SAME_TOOLS not in found


@pytest.mark.parametrize(
    ("champion", "challenger", "errors"),
    [(FAILED, CHALLENGER, (0.0, 1.0)), (CHAMPION, FAILED, (1.0, 0.0)), (FAILED, FAILED, (1.0, 1.0))],
)
def test_with_an_error_only_errors_are_compared(champion, challenger, errors):
    found = values(champion, challenger)
    assert (found.pop(Metric.CHALLENGER_ERROR), found.pop(Metric.CHAMPION_ERROR)) == errors
    assert not found


def test_what_came_from_a_cache_says_nothing_of_time_and_cost():
    found = values(replace(CHAMPION, cached=True))
    assert not {Metric.LATENCY_MS, Metric.FIRST_TOKEN_RATIO, Metric.COST_USD_MICROS} & set(found)
    assert found[Metric.EXACT] == 1.0


def test_what_is_unknown_is_left_out():
    bare = Side(outcome=Outcome.OK)
    assert set(values(bare, bare)) == {Metric.CHALLENGER_ERROR, Metric.CHAMPION_ERROR}


def test_tools_and_finish():
    calls = (ToolCall(name="f", arguments="{}"),)
    found = values(
        replace(CHAMPION, answer=Answer(tool_calls=calls, finish_reason="tool_calls")),
        replace(CHALLENGER, answer=Answer(text="no tools", finish_reason="stop")),
    )
    assert (found[Metric.SAME_TOOLS], found[Metric.SAME_FINISH], found[Metric.EXACT]) == (0, 0, 0)


def test_answers_are_not_in_the_repr():
    assert "same words" not in repr(CHAMPION)


@given(st.sampled_from(list(Metric)), st.floats(-1e12, 1e12))
def test_every_value_is_laid_on_0_to_1_and_read_back(metric, value):
    unit = scale(metric, Bounds())
    laid = unit.normalized(value)
    assert 0 <= laid <= 1
    within = min(max(value, unit.low), unit.high)
    expected = 2**within if unit.ratio else within
    assert unit.denormalized(laid) == pytest.approx(expected, rel=1e-6, abs=1e-6 * (unit.high - unit.low))


def batch(*pairs):
    made = Batch()
    for champion, challenger in pairs:
        made.count(Count.PAIRS)
        made.values.append(values(champion, challenger))
        made.time("champion", "latency_ms", champion.latency_ms)
    return made


def start():
    return evidence.begun(MIRROR.definition(), 5.0, "config", "")


def test_batches_add_up_in_any_split():
    pairs = [(CHAMPION, replace(CHALLENGER, latency_ms=float(latency))) for latency in range(50, 350, 10)]
    whole = evidence.grown(start(), batch(*pairs), MIRROR, 9.0)
    parts = evidence.grown(evidence.grown(start(), batch(*pairs[:7]), MIRROR, 9.0), batch(*pairs[7:]), MIRROR, 9.0)
    assert whole == parts
    figures = {figure.metric: figure for figure in evidence.figures(whole, MIRROR)}
    assert figures[Metric.LATENCY_MS].count == 30
    assert figures[Metric.LATENCY_MS].mean == pytest.approx(sum(range(50, 350, 10)) / 30 - 200)
    assert figures[Metric.LATENCY_MS].low < -5 < figures[Metric.LATENCY_MS].high
    assert figures[Metric.FIRST_TOKEN_RATIO].mean == pytest.approx(2.0)
    assert evidence.quantiles(whole)["champion"]["latency_ms"]["p50"] == pytest.approx(200, rel=0.01)


def test_what_is_beyond_the_bounds_counts_as_the_bound_and_is_reported():
    mirror = MIRROR.model_copy(update={"bounds": Bounds(latency_ms=1000)})
    grown = evidence.grown(start(), batch((CHAMPION, replace(CHALLENGER, latency_ms=99_000.0))), mirror, 9.0)
    figure = next(f for f in evidence.figures(grown, mirror) if f.metric is Metric.LATENCY_MS)
    assert (figure.mean, figure.clipped) == (1000.0, 1)


def test_a_mirror_is_finished_when_it_has_the_pairs_it_wants():
    mirror = MIRROR.model_copy(update={"pairs_wanted": 3})
    two = evidence.grown(start(), batch((CHAMPION, CHALLENGER), (CHAMPION, CHALLENGER)), mirror, 9.0)
    three = evidence.grown(two, batch((CHAMPION, FAILED)), mirror, 11.0)
    assert (two.phase, three.phase, three.changed_at) == (Phase.RUNNING, Phase.FINISHED, 11.0)


def test_a_state_survives_the_store():
    grown = evidence.grown(start(), batch((CHAMPION, CHALLENGER), (CHAMPION, FAILED)), MIRROR, 9.0)
    assert repository.decode(repository.encode(grown)) == grown


@pytest.mark.parametrize("raw", [3, {"definition": {}, "phase": "flying"}, {"definition": {}, "counts": [1]}])
def test_another_state_is_refused(raw):
    with pytest.raises(StoreCorrupt, match="cannot be read"):
        repository.decode(raw)


def test_the_state_does_not_grow_with_the_pairs():
    """Ten thousand pairs of any latency take as much room as a thousand."""

    def size(number):
        made = Batch(counts=Counter({"pairs": number}))
        made.values = [{Metric.LATENCY_MS: float(n % 977)} for n in range(number)]
        for n in range(number):
            made.time("champion", "latency_ms", 1.0 + (n * 7919) % 60_000)
        return len(repr(repository.encode(evidence.grown(start(), made, MIRROR, 9.0))))

    assert size(10_000) < 2.5 * size(1_000) < 8_000
