from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman.types import Answer, ToolCall
from pointsman_shadow import judging
from pointsman_shadow.judging import Verdict

A, B, TIE = Verdict.A, Verdict.B, Verdict.TIE


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ('{"verdict": "A"}', A),
        ('```json\n{"verdict": "b"}\n```', B),
        ('Both are fine. {"reason": "x", "verdict": "tie"}', TIE),
        ('{"Winner": "Answer B"}', B),
        ("[[A]]", A),
        ("Final: [[C]]", TIE),
        ("A", A),
        ("**B**.", B),
        ("Answer A", A),
        ("Verdict: B", B),
        ("The better answer is A.", A),
        ("My verdict: **tie**", TIE),
        ("", None),
        ("A cat sat on a mat.", None),
        ("I cannot decide.", None),
        ('{"verdict": "A"} or maybe {"verdict": "B"}', None),
        ('{"verdict": 1}', None),
        ('{"verdict": "Z"}', None),
        ("{" * 10_000, None),
    ],
)
def test_a_verdict_in_a_judges_words(text, verdict):
    assert judging.read(text) == verdict


@given(st.text(max_size=400))
def test_any_text_is_read(text):
    assert judging.read(text) in {None, *Verdict}


@given(st.text(alphabet=st.characters(exclude_characters="{}[]"), max_size=80), st.sampled_from(list(Verdict)))
def test_a_verdict_is_found_whatever_is_said_around_it(noise, verdict):
    assert judging.read(f'{noise}\n{{"verdict": "{verdict}"}}\n{noise}') is verdict


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "text", ["answer " * 5000, "{" * 20_000, "[[" * 10_000, "verdict" + " " * 20_000, "a" * 20_000]
)
def test_no_text_takes_long(text):
    """The patterns do not backtrack without end."""
    judging.read(text)


@pytest.mark.parametrize(
    ("champion_first", "challenger_first", "score", "contradicts"),
    [
        (A, B, 0.0, False),
        (B, A, 1.0, False),
        (A, A, 0.5, True),
        (B, B, 0.5, True),
        (TIE, TIE, 0.5, False),
        (A, TIE, 0.5, False),
        (TIE, A, 0.5, False),
        (None, A, None, False),
        (B, None, None, False),
        (None, None, None, False),
    ],
)
def test_only_a_preference_that_survives_the_change_of_places_counts(
    champion_first, challenger_first, score, contradicts
):
    assert judging.score(champion_first, challenger_first) == score
    assert judging.contradicts(champion_first, challenger_first) == contradicts


def test_the_judge_is_not_told_whose_answer_it_reads():
    system, user = judging.question("Which is better?", "user: hi", "one", "two", "f00d")
    assert (system["role"], user["role"]) == ("system", "user")
    assert user["content"].index("one") < user["content"].index("two")
    assert not {"champion", "challenger", "primary", "mirror"} & set(
        (system["content"] + user["content"]).lower().split()
    )
    assert user["content"].count("f00d") == 6


def test_calls_of_tools_are_shown_and_long_answers_cut():
    answer = Answer(text="ok", tool_calls=(ToolCall(name="f", arguments='{"x": 1}'),))
    assert judging.shown(answer, 1000) == 'ok\n(calls the tool f with {"x": 1})'
    assert judging.shown(Answer(text="x" * 100), 10) == "x" * 10
