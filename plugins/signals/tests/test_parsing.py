"""Numbers, durations and instants, however providers write them."""

from __future__ import annotations

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pointsman_signals import parsing

NOW = 1_700_000_000.0

ANY_TEXT = st.one_of(
    st.text(max_size=200),
    st.text(alphabet="0123456789.eE+-nmsuµhdw :TZ,/", max_size=40),
    st.from_regex(r"-?\d{1,400}(\.\d{1,30})?(ms|s|m|h|d)?"),
    st.floats().map(str),
    st.integers().map(str),
    st.datetimes().map(str),
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("6m0s", 360.0),
        ("12ms", 0.012),
        ("1.5s", 1.5),
        ("1m30s", 90.0),
        ("20m52.666s", 1252.666),
        ("17.563999999s", 17.563999999),
        ("1h2m3s", 3723.0),
        ("1d", 86_400.0),
        ("1h0m0.5s", 3600.5),
        ("250µs", 0.00025),
        ("3", 3.0),
        ("0", 0.0),
        ("33011.382867", 33011.382867),
        (" 7 ", 7.0),
        ("0s", 0.0),
    ],
)
def test_durations_are_read_in_seconds(text, seconds):
    assert parsing.parse_duration(text) == pytest.approx(seconds, abs=1e-12)


@pytest.mark.parametrize(
    "text", ["", " ", "soon", "-1", "-1s", "1x", "s", "ms", "1s2", "nan", "inf", "1e999", "9" * 5000, "12:30", "٣s"]
)
def test_what_is_no_duration_is_none(text):
    assert parsing.parse_duration(text) is None


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("2025-08-02T12:08:56Z", 1_754_136_536.0),
        ("2025-08-02T14:08:56+02:00", 1_754_136_536.0),
        ("2025-08-02T12:08:56.250Z", 1_754_136_536.25),
        ("2025-08-02 12:08:56", 1_754_136_536.0),
        ("Sat, 02 Aug 2025 12:08:56 GMT", 1_754_136_536.0),
        ("1754136536", 1_754_136_536.0),
        ("1754136536000", 1_754_136_536.0),
        ("1754136536.5", 1_754_136_536.5),
    ],
)
def test_instants_are_read_in_unix_seconds(text, at):
    assert parsing.parse_instant(text) == pytest.approx(at)


@pytest.mark.parametrize(
    "text", ["", "never", "12", "-1754136536", "2025-13-45T99:00:00Z", "0001-01-01T00:00:00Z", "1e18"]
)
def test_what_is_no_instant_is_none(text):
    assert parsing.parse_instant(text) is None


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("30", NOW + 30),
        ("1m", NOW + 60),
        ("1700000060", NOW + 60),
        ("1700000060000", NOW + 60),
        ("2023-11-14T22:14:20Z", NOW + 60),
        ("9999-12-31T23:59:59Z", None),
        ("99999999999", None),
        ("123456789", None),
    ],
)
def test_a_reset_is_a_duration_or_a_date_and_never_years_ahead(text, at):
    assert parsing.parse_reset(text, NOW) == (pytest.approx(at) if at is not None else None)


@pytest.mark.parametrize(
    ("seconds", "milliseconds", "wait_s"),
    [
        ("59", None, 59.0),
        ("7.66", None, 7.66),
        ("Tue, 14 Nov 2023 22:14:20 GMT", None, 60.0),
        ("Tue, 14 Nov 2023 22:00:00 GMT", None, 0.0),
        ("1", "250", 0.25),
        (None, "1500", 1.5),
        ("1", "0", 1.0),
        (None, "0", 0.0),
        ("soon", None, None),
        ("-5", None, None),
        ("2", "garbage", 2.0),
        (None, None, None),
    ],
)
def test_retry_after_is_read_in_seconds_milliseconds_or_as_a_date(seconds, milliseconds, wait_s):
    assert parsing.parse_retry_after(seconds, milliseconds, NOW) == (None if wait_s is None else pytest.approx(wait_s))


@pytest.mark.parametrize(("text", "flag"), [("True", 1.0), ("no", 0.0), ("YES", 1.0), ("0", 0.0), ("maybe", None)])
def test_flags(text, flag):
    assert parsing.parse_flag(text) == flag


def sound(value):
    return value is None or (math.isfinite(value) and value >= 0.0)


@given(ANY_TEXT, st.one_of(st.none(), ANY_TEXT))
@example("1" * 5000, "9" * 400)
@example("1" + "0" * 300 + "s", None)
@example("Mon, 99 Foo 99999 99:99:99 -9999", None)
@example("1m" * 60, None)
@example("9999-12-31T23:59:59-23:59", None)
def test_no_text_makes_any_parser_raise_or_answer_a_negative_or_unreal_number(text, other):
    assert sound(parsing.parse_number(text))
    assert sound(parsing.parse_duration(text))
    assert sound(parsing.parse_instant(text))
    assert sound(parsing.parse_reset(text, NOW))
    assert sound(parsing.parse_retry_after(text, other, NOW))
    assert parsing.parse_flag(text) in {None, 0.0, 1.0}


@given(st.integers(0, 99), st.integers(0, 59), st.integers(0, 59), st.integers(0, 999))
def test_a_duration_is_the_sum_of_its_parts(hours, minutes, seconds, milliseconds):
    text = f"{hours}h{minutes}m{seconds}s{milliseconds}ms"
    assert parsing.parse_duration(text) == pytest.approx(hours * 3600 + minutes * 60 + seconds + milliseconds / 1000)
