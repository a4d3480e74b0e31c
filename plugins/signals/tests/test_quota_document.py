"""Quota documents whose shape the operator describes."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pointsman.types import Limit, SignalStatus
from pointsman_signals.config import Document
from pointsman_signals.quota_document import read_document, resolve

NOW = 1_700_000_000.0

CLAUDE = {
    "five_hour": {"utilization": 12.5, "resets_at": "2023-11-14T23:13:20+00:00"},
    "seven_day": {"utilization": 100},
}
CODEX = {
    "rate_limits": {
        "primary": {"used_percent": 3.0, "window_minutes": 300, "resets_in_seconds": 1200},
        "secondary": {"used_percent": "55", "resets_at": 1700086400},
    }
}
GEMINI = {"buckets": [{"remainingFraction": 0.25, "resetTime": "2023-11-15T00:00:00Z"}], "state": "Limited"}


def form(**fields):
    return Document.model_validate(fields)


def test_percentages_with_a_date():
    document = form(
        limits=[
            {
                "axis": "five_hour",
                "window_s": 18_000,
                "used_percent": "/five_hour/utilization",
                "resets_at": "/five_hour/resets_at",
            },
            {"axis": "seven_day", "window_s": 604_800, "used_percent": "/seven_day/utilization"},
        ]
    )
    stated = read_document(document, CLAUDE, NOW, 300)
    assert stated.reading.limits == (
        Limit(axis="five_hour", window_s=18_000, limit=1.0, remaining=0.875, resets_at=NOW + 3600),
        Limit(axis="seven_day", window_s=604_800, limit=1.0, remaining=0.0),
    )
    assert (stated.status, stated.problem, stated.at) == (None, "", NOW)


def test_percentages_with_seconds_or_unix_time():
    document = form(
        limits=[
            {"used_percent": f"/rate_limits/{name}/used_percent", "axis": name, **where}
            for name, where in (
                ("primary", {"resets_in_s": "/rate_limits/primary/resets_in_seconds"}),
                ("secondary", {"resets_at": "/rate_limits/secondary/resets_at"}),
            )
        ]
    )
    primary, secondary = read_document(document, CODEX, NOW, 300).reading.limits
    assert (primary.remaining, primary.resets_at) == (pytest.approx(0.97), NOW + 1200)
    assert (secondary.remaining, secondary.resets_at) == (pytest.approx(0.45), NOW + 86_400)


def test_a_status_word_and_an_element_of_a_list():
    document = form(
        status="/state", limits=[{"remaining": "/buckets/0/remainingFraction", "resets_at": "/buckets/0/resetTime"}]
    )
    stated = read_document(document, GEMINI, NOW, 300)
    assert stated.status is SignalStatus.EXHAUSTED
    assert stated.reading.limits[0].remaining == 0.25


@pytest.mark.parametrize(
    ("word", "status"),
    [("ok", SignalStatus.AVAILABLE), ("WARNING", SignalStatus.DEGRADED), ("exhausted", SignalStatus.EXHAUSTED)],
)
def test_words_are_compared_without_case(word, status):
    assert read_document(form(status="/s"), {"s": word}, NOW, 300).status is status


def test_used_and_limit_say_what_is_left():
    document = form(limits=[{"used": "/used", "limit": "/max"}])
    assert read_document(document, {"used": 30, "max": 100}, NOW, 300).reading.limits[0].remaining == 70


def test_a_document_that_is_too_old_says_nothing():
    document = form(status="/s", written_at="/at")
    assert read_document(document, {"s": "exhausted", "at": NOW - 299}, NOW, 300).at == NOW - 299
    stated = read_document(document, {"s": "exhausted", "at": NOW - 301}, NOW, 300)
    assert (stated.status, stated.problem) == (None, "the document is 301 s old")
    assert "has no time at /at" in read_document(document, {"s": "ok"}, NOW, 300).problem


def test_a_document_without_the_places_that_were_named_says_so():
    document = form(status="/status", limits=[{"remaining": "/left"}])
    assert read_document(document, {"x": 1}, NOW, 300).problem == "the document has nothing at /status, /left"


@pytest.mark.parametrize(
    ("pointer", "found"),
    [
        ("/a/b", 1),
        ("/a~1b", 2),
        ("/m~0n", 3),
        ("/list/1", 5),
        ("/list/9", None),
        ("/list/x", None),
        ("/a/b/c", None),
        ("/no", None),
    ],
)
def test_json_pointers(pointer, found):
    assert resolve({"a": {"b": 1}, "a/b": 2, "m~n": 3, "list": [4, 5]}, pointer) == found


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"limits": [{"axis": "tokens"}]},
        {"limits": [{"used": "/used"}]},
        {"status": "no-pointer"},
        {"status": "/s", "limit": []},
    ],
)
def test_a_description_that_cannot_work_is_refused(fields):
    with pytest.raises(ValidationError):
        form(**fields)


JSONS = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=10,
)
EVERYTHING = form(
    status="/a",
    limits=[
        {"remaining": "/a", "limit": "/b", "resets_at": "/c"},
        {"used": "/b/a", "limit": "/a/0", "resets_in_s": "/c/0"},
        {"used_percent": "/a/b", "axis": "x"},
        {"used_ratio": "/c", "axis": "y"},
    ],
)


@given(JSONS)
def test_no_document_makes_it_raise_or_answer_a_negative_or_unreal_number(data):
    stated = read_document(EVERYTHING, data, NOW, 300)
    for limit in stated.reading.limits:
        for number in (limit.limit, limit.remaining, limit.resets_at):
            assert number is None or (math.isfinite(number) and number >= 0)
