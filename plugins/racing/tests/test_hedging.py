"""The rules of gRFC A6 (client-side hedging), one row each, on the decision logic alone.

https://github.com/grpc/proposal/blob/master/A6-client-retries.md, sections "Hedging Policy" and "Pushback". A row is
what happens at which millisecond, and which attempts are started and what the result is after it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from pointsman.errors import UpstreamError
from pointsman.types import ErrorClass
from pointsman_racing.hedging import (
    RETRY_BUDGET_AFTER,
    Entry,
    Fault,
    Lost,
    Plan,
    Race,
    Reason,
    Verdict,
    Won,
    verdict,
)

DELAY_MS = 100.0


def fault(kind, retry_after_s=None, *, reached=True):
    error = UpstreamError(f"{kind} on purpose", error_class=str(kind), retry_after_s=retry_after_s)
    return Fault.of(error, reached=reached)


def entries(count, **changes):
    return tuple(Entry(candidate=i, target=f"c{i}", **changes) for i in range(count))


@dataclass
class Scenario:
    """A race, and its course so far in words."""

    plan: Plan
    budget: int = 100
    race: Race = field(init=False)
    lines: list[str] = field(default_factory=list)

    def __post_init__(self):
        self.race = Race(self.plan, delay_ms=lambda *_: DELAY_MS, allow=self.allow)

    def allow(self):
        self.budget -= 1
        return self.budget >= 0

    def note(self, at, starts):
        self.lines += [f"{at:g}: {start.reason} {start.entry.target}" for start in starts]
        match self.race.result:
            case Won(number) if not self.lines[-1:] or not self.lines[-1].startswith("won"):
                self.lines.append(f"won by {number}")
            case Lost(why) if not self.lines[-1:] or not self.lines[-1].startswith("lost"):
                self.lines.append(f"lost: {why.kind}")

    def until(self, at):
        """Do everything that is due before this moment."""
        while (due := self.race.due_ms()) is not None and due < at:
            self.note(due, self.race.tick(due))

    def play(self, events):
        self.note(0.0, self.race.begin(0.0))
        for at, what, number, *more in events:
            self.until(at)
            if what == "fails":
                self.note(at, self.race.failed(number, fault(*more), at))
            elif what == "answers":
                self.note(at, self.race.answered(number, at, *more))
            elif what == "is empty":
                self.note(at, self.race.empty(number, at))
            elif what == "finds none":
                self.note(at, self.race.failed(number, fault(*more, reached=False), at))
            else:
                self.note(at, self.race.tick(at))
        self.until(1e6)
        return self.lines


SERVER, LIMIT, CLIENT = ErrorClass.SERVER, ErrorClass.RATE_LIMIT, ErrorClass.CLIENT

TABLE = {
    "the first is started at once, the next after hedgingDelay": (
        {},
        [(250, "answers", 0)],
        ["0: first c0", "100: hedge c1", "200: hedge c2", "won by 0"],
    ),
    "an answer before hedgingDelay: nothing else is sent": ({}, [(99, "answers", 0)], ["0: first c0", "won by 0"]),
    "the first that answers wins, whichever it is": (
        {},
        [(130, "answers", 1), (140, "answers", 0)],
        ["0: first c0", "100: hedge c1", "won by 1"],
    ),
    "a non-fatal error starts the next at once, and hedgingDelay starts again": (
        {},
        [(30, "fails", 0, SERVER), (140, "answers", 1)],
        ["0: first c0", "30: replacement c1", "130: hedge c2", "won by 1"],
    ),
    "a non-fatal error leaves the others running": (
        {},
        [(150, "fails", 1, SERVER), (160, "answers", 0)],
        ["0: first c0", "100: hedge c1", "150: replacement c2", "won by 0"],
    ),
    "a fatal error ends the call for all": (
        {},
        [(150, "fails", 1, CLIENT), (160, "answers", 0)],
        ["0: first c0", "100: hedge c1", "lost: client"],
    ),
    "content policy is fatal": (
        {},
        [(10, "fails", 0, ErrorClass.CONTENT_POLICY)],
        ["0: first c0", "lost: content_policy"],
    ),
    "an empty answer is replaced at once and does not win": (
        {},
        [(10, "is empty", 0), (60, "answers", 1)],
        ["0: first c0", "10: replacement c1", "won by 1"],
    ),
    "an empty answer does not win against one that is still running": (
        {},
        [(150, "is empty", 1), (290, "answers", 0)],
        ["0: first c0", "100: hedge c1", "150: replacement c2", "250: hedge c0", "won by 0"],
    ),
    "when there is nothing else, the first empty answer wins": (
        {"entries": entries(3)},
        [(10, "is empty", 0), (20, "is empty", 1), (30, "fails", 2, SERVER)],
        ["0: first c0", "10: replacement c1", "20: replacement c2", "won by 0"],
    ),
    "a fatal error leaves an empty answer as the best there is": (
        {},
        [(10, "is empty", 0), (20, "fails", 1, CLIENT)],
        ["0: first c0", "10: replacement c1", "won by 0"],
    ),
    "an empty answer wins at the deadline": (
        {"entries": entries(2), "timeout_ms": 500.0, "same_candidate": False},
        [(10, "is empty", 0)],
        ["0: first c0", "10: replacement c1", "won by 0"],
    ),
    "what must not be sent twice is not replaced after an empty answer": (
        {"repeatable": False},
        [(10, "is empty", 0)],
        ["0: first c0", "won by 0"],
    ),
    "that the gateway has no other deployment does not hide the provider's error": (
        {"entries": entries(2)},
        [(10, "fails", 0, SERVER), (20, "finds none", 1, LIMIT)],
        ["0: first c0", "10: replacement c1", "lost: server"],
    ),
    "the gateway has no deployment at all: its own error is the answer": (
        {"entries": entries(2)},
        [(10, "finds none", 0, LIMIT), (20, "finds none", 1, LIMIT)],
        ["0: first c0", "10: replacement c1", "lost: rate_limit"],
    ),
    "all have failed: the last error is the answer": (
        {"entries": entries(2)},
        [(10, "fails", 0, SERVER), (20, "fails", 1, ErrorClass.TIMEOUT)],
        ["0: first c0", "10: replacement c1", "lost: timeout"],
    ),
    "never more than maxAttempts": (
        {"max_attempts": 2, "entries": entries(5)},
        [(500, "answers", 1)],
        ["0: first c0", "100: hedge c1", "won by 1"],
    ),
    "maxAttempts above five counts as five": (
        {"max_attempts": 9, "entries": entries(9)},
        [(5000, "answers", 0)],
        ["0: first c0", "100: hedge c1", "200: hedge c2", "300: hedge c3", "400: hedge c4", "won by 0"],
    ),
    "maxAttempts counts replacements too": (
        {"max_attempts": 2, "entries": entries(3)},
        [(10, "fails", 0, SERVER), (20, "fails", 1, SERVER)],
        ["0: first c0", "10: replacement c1", "lost: server"],
    ),
    "retry-after: the candidate is not called before its end": (
        {"entries": entries(1)},
        [(10, "fails", 0, LIMIT, 0.5), (600, "answers", 1)],
        ["0: first c0", "510: replacement c0", "won by 1"],
    ),
    "retry-after of one does not delay the others": (
        {"entries": entries(2)},
        [(10, "fails", 0, LIMIT, 0.5), (60, "answers", 1)],
        ["0: first c0", "10: replacement c1", "won by 1"],
    ),
    "a retry-after longer than the longest wait ends the call": (
        {"entries": entries(1), "wait_ms": 300.0},
        [(10, "fails", 0, LIMIT, 0.5)],
        ["0: first c0", "lost: rate_limit"],
    ),
    "a retry-after beyond the deadline ends the call": (
        {"entries": entries(1), "timeout_ms": 400.0},
        [(10, "fails", 0, LIMIT, 0.5)],
        ["0: first c0", "lost: rate_limit"],
    ),
    "retry-after holds for hedges to the same candidate": (
        {"entries": entries(1)},
        [(150, "fails", 1, LIMIT, 0.5), (700, "answers", 0)],
        ["0: first c0", "100: hedge c0", "650: replacement c0", "won by 0"],
    ),
    "retry-after from another request: an extra attempt obeys": (
        {"entries": (*entries(1), Entry(candidate=1, target="c1", blocked_until_ms=450)), "same_candidate": False},
        [(500, "answers", 0)],
        ["0: first c0", "450: hedge c1", "won by 0"],
    ),
    "retry-after from another request: a first attempt prefers the others": (
        {"entries": (Entry(candidate=0, target="c0", blocked_until_ms=450), *entries(1))},
        [(50, "answers", 0)],
        ["0: first c0", "won by 0"],
    ),
    "throttled: the budget is empty, nothing is hedged": (
        {"budget": 0},
        [(450, "answers", 0)],
        ["0: first c0", "won by 0"],
    ),
    "throttled: an error is still replaced": (
        {"budget": 0},
        [(10, "fails", 0, SERVER), (450, "answers", 1)],
        ["0: first c0", "10: replacement c1", "won by 1"],
    ),
    "no other candidate: the same one is asked again": (
        {"entries": entries(1)},
        [(150, "answers", 1)],
        ["0: first c0", "100: hedge c0", "won by 1"],
    ),
    "no other candidate, and the same one must not be asked": (
        {"entries": entries(1), "same_candidate": False},
        [(150, "answers", 0)],
        ["0: first c0", "won by 0"],
    ),
    "the deadline ends the call": (
        {"timeout_ms": 150.0},
        [(200, "answers", 0)],
        ["0: first c0", "100: hedge c1", "lost: timeout"],
    ),
    "the deadline ends the call: an attempt that fails with it is not replaced": (
        {"timeout_ms": 150.0},
        [(149.9, "fails", 0, ErrorClass.TIMEOUT), (150, "fails", 1, ErrorClass.TIMEOUT)],
        ["0: first c0", "100: hedge c1", "lost: timeout"],
    ),
    "not repeatable: no hedge": ({"repeatable": False}, [(450, "answers", 0)], ["0: first c0", "won by 0"]),
    "not repeatable: an error after the provider may have begun is final": (
        {"repeatable": False},
        [(10, "fails", 0, SERVER)],
        ["0: first c0", "lost: server"],
    ),
    "not repeatable: an error before the provider has begun is replaced": (
        {"repeatable": False},
        [(10, "fails", 0, LIMIT), (20, "answers", 1)],
        ["0: first c0", "10: replacement c1", "won by 1"],
    ),
    "the gateway's own key is refused: the next has another": (
        {},
        [(10, "fails", 0, ErrorClass.AUTH), (20, "answers", 1)],
        ["0: first c0", "10: replacement c1", "won by 1"],
    ),
    "the client's own key is refused: fatal": (
        {"own_credential": True},
        [(10, "fails", 0, ErrorClass.AUTH)],
        ["0: first c0", "lost: auth"],
    ),
    "hedgingDelay 0, first_wins: all at once": (
        {"strategy": "first_wins"},
        [(30, "answers", 2)],
        ["0: first c0", "0: together c1", "0: together c2", "won by 2"],
    ),
    "all at once, as far as the budget goes": (
        {"strategy": "first_wins", "budget": 1},
        [(30, "answers", 1)],
        ["0: first c0", "0: together c1", "won by 1"],
    ),
    "all at once, not repeatable: one": (
        {"strategy": "first_wins", "repeatable": False},
        [(30, "answers", 0)],
        ["0: first c0", "won by 0"],
    ),
    "weighted: the best score of those within the grace period": (
        {"strategy": "weighted", "grace_ms": 50.0},
        [(30, "answers", 0, 0.2), (60, "answers", 1, 0.9), (90, "answers", 2, 1.0)],
        ["0: first c0", "0: together c1", "0: together c2", "won by 1"],
    ),
    "weighted: no attempt is left to wait for": (
        {"strategy": "weighted", "grace_ms": 5000.0},
        [(30, "answers", 0, 0.2), (40, "fails", 1, SERVER), (50, "answers", 2, 0.1)],
        ["0: first c0", "0: together c1", "0: together c2", "won by 0"],
    ),
    "quality: the deadline is the end of the grace period": (
        {"strategy": "quality", "grace_ms": 5000.0, "timeout_ms": 70.0},
        [(30, "answers", 0, 0.2), (60, "answers", 1, 0.9), (90, "answers", 2, 1.0)],
        ["0: first c0", "0: together c1", "0: together c2", "won by 1"],
    ),
    "quality: a fatal error does not take an answer away that is there": (
        {"strategy": "quality", "grace_ms": 50.0},
        [(30, "answers", 0, 0.2), (40, "fails", 1, CLIENT)],
        ["0: first c0", "0: together c1", "0: together c2", "won by 0"],
    ),
    "quality: equal scores: the better standing, then the first": (
        {
            "strategy": "quality",
            "grace_ms": 50.0,
            "entries": (*entries(2), Entry(candidate=2, target="c2", score=0.5)),
        },
        [(30, "answers", 0, 1.0), (40, "answers", 1, 1.0), (50, "answers", 2, 1.0)],
        ["0: first c0", "0: together c1", "0: together c2", "won by 2"],
    ),
}


@pytest.mark.parametrize(
    ("last", "expected"),
    [
        (("fails", 1, SERVER), "lost: server"),
        (("fails", 1, CLIENT), "lost: client"),
        (("finds none", 1, LIMIT), "won by 0"),
        (("is empty", 1), "won by 0"),
    ],
)
@pytest.mark.parametrize("has_fallback", [True, False])
def test_an_empty_answer_does_not_win_before_a_fallback(last, expected, has_fallback):
    """Only a provider's error makes the gateway go on: when all answers are empty, the client gets one."""
    scenario = Scenario(Plan(entries=entries(2)))
    scenario.race.has_fallback = has_fallback
    lines = scenario.play([(10, "is empty", 0), (20, *last)])
    assert lines[-1] == (expected if has_fallback else "won by 0")


@pytest.mark.parametrize(("setting", "events", "expected"), TABLE.values(), ids=TABLE.keys())
def test_a6(setting, events, expected):
    setting = dict(setting)
    budget = setting.pop("budget", 100)
    plan = Plan(**{"entries": entries(3), **setting})
    assert Scenario(plan, budget).play(events) == expected


NEXT = {
    ErrorClass.RATE_LIMIT,
    ErrorClass.AUTH,
    ErrorClass.TIMEOUT,
    ErrorClass.SERVER,
    ErrorClass.NOT_FOUND,
    ErrorClass.CONNECTION,
    ErrorClass.REFUSED,
    ErrorClass.EMPTY,
    ErrorClass.UNKNOWN,
}


@pytest.mark.parametrize("kind", ErrorClass)
def test_every_class_of_error_has_a_verdict(kind):
    """What is the client's fault is fatal; everything else, also an unknown class, starts the next."""
    assert verdict(kind) is (Verdict.NEXT if kind in NEXT else Verdict.FATAL)
    assert verdict(kind, own_credential=True) is (Verdict.NEXT if kind in NEXT - {ErrorClass.AUTH} else Verdict.FATAL)


def test_an_error_class_that_is_not_recognised_is_unknown():
    assert Fault.of(UpstreamError("odd", error_class="klingon")).kind is ErrorClass.UNKNOWN


def test_the_delay_is_asked_again_when_it_is_over():
    """Once an attempt has reached its deployment, that deployment's own delay counts."""
    delays = iter([100.0, 180.0, 180.0, 100.0])
    race = Race(Plan(entries=entries(2)), delay_ms=lambda *_: next(delays), allow=lambda: True)
    race.begin(0.0)
    assert race.due_ms() == 100
    assert race.tick(100.0) == []
    assert race.due_ms() == 180
    assert [start.reason for start in race.tick(180.0)] == [Reason.HEDGE]


def test_the_delay_factor_may_rise_and_fall():
    """A race that began while there was next to nothing left need not wait once there is."""
    factor = [9.0]
    race = Race(Plan(entries=entries(2)), lambda *_: DELAY_MS, lambda: True, lambda: factor[0])
    race.begin(0.0)
    assert race.due_ms() == DELAY_MS
    assert race.tick(DELAY_MS) == []
    assert race.due_ms() == 2 * DELAY_MS
    factor[0] = 2.5
    assert race.tick(2 * DELAY_MS) == []
    assert race.due_ms() == 2.5 * DELAY_MS
    factor[0] = 1.0
    assert [start.reason for start in race.tick(2.5 * DELAY_MS)] == [Reason.HEDGE]


@pytest.mark.parametrize(("timeout_ms", "at_ms"), [(10 * DELAY_MS, 5 * DELAY_MS), (1.5 * DELAY_MS, DELAY_MS)])
def test_nothing_is_stretched_beyond_half_of_the_time(timeout_ms, at_ms):
    race = Race(Plan(entries=entries(2), timeout_ms=timeout_ms), lambda *_: DELAY_MS, lambda: True, lambda: 9.0)
    race.begin(0.0)
    starts = []
    while not starts:
        now_ms = race.due_ms()
        starts = race.tick(now_ms)
    assert (now_ms, starts[0].reason) == (at_ms, Reason.HEDGE)


def test_half_of_the_time_counts_from_the_beginning():
    race = Race(Plan(entries=entries(2), timeout_ms=1000), lambda *_: DELAY_MS, lambda: True, lambda: 50.0)
    race.begin(5000.0)
    while not race.tick(now_ms := race.due_ms()):
        pass
    assert now_ms == 5500


def test_a_delay_that_has_grown_is_waited_for_beyond_half_of_the_time():
    """The half bounds how far a delay is stretched, not the delay."""
    delays = iter([DELAY_MS, 800.0, 800.0, 800.0])
    race = Race(Plan(entries=entries(2), timeout_ms=1000), lambda *_: next(delays), lambda: True, lambda: 3.0)
    race.begin(0.0)
    assert race.tick(DELAY_MS) == race.tick(500.0) == []
    assert [start.reason for start in race.tick(800.0)] == [Reason.HEDGE]


def test_a_refusing_budget_is_asked_again_later():
    answers = iter([False, True])
    race = Race(Plan(entries=entries(2)), delay_ms=lambda *_: DELAY_MS, allow=lambda: next(answers))
    race.begin(0.0)
    assert race.tick(100.0) == []
    assert (race.denied, race.due_ms()) == (1, 100 + DELAY_MS * RETRY_BUDGET_AFTER)
    assert race.tick(110.0) == []
    assert [start.reason for start in race.tick(race.due_ms())] == [Reason.HEDGE]


@pytest.mark.parametrize("strategy", ["hedge", "first_wins", "weighted", "quality"])
def test_nothing_more_is_started_for_a_client_that_has_left(strategy):
    """Neither a hedge nor a replacement; what runs goes on, and the race ends with it."""
    waits = True
    plan = Plan(entries=entries(4), strategy=strategy)
    race = Race(plan, lambda *_: DELAY_MS, lambda: True, wanted=lambda: waits)
    started = len(race.begin(0.0))
    waits = False
    assert race.tick(DELAY_MS) == race.tick(5 * DELAY_MS) == []
    assert race.due_ms() is None, "no time-out, so only an event can change anything"
    assert race.failed(0, fault(SERVER), 600.0) == []
    for number in range(1, started):
        assert race.result is None
        assert race.failed(number, fault(SERVER), 700.0) == []
    assert isinstance(race.result, Lost)


def test_a_client_that_has_left_gets_the_answer_that_still_comes():
    race = Race(Plan(entries=entries(2)), lambda *_: DELAY_MS, lambda: True, wanted=lambda: False)
    race.begin(0.0)
    assert race.tick(DELAY_MS) == []
    race.answered(0, 900.0)
    assert race.result == Won(0)


def test_nothing_changes_after_the_result():
    race = Race(Plan(entries=entries(3)), delay_ms=lambda *_: DELAY_MS, allow=lambda: True)
    race.begin(0.0)
    race.answered(0, 50.0)
    assert race.result == Won(0)
    assert race.tick(500.0) == race.failed(0, fault(SERVER), 600.0) == race.answered(0, 700.0) == []
    assert (race.result, race.due_ms(), race.attempts) == (Won(0), None, 1)


def test_a_failed_attempt_cannot_answer_any_more():
    """Its call is closed: an answer that is reported late neither wins nor ends the wait for the replacement."""
    race = Race(Plan(entries=entries(2), strategy="weighted", grace_ms=50.0), lambda *_: DELAY_MS, lambda: True)
    race.begin(0.0)
    race.failed(0, fault(SERVER), 10.0)
    assert race.answered(0, 20.0, score=1.0) == []
    assert (race.result, race.due_ms()) == (None, None)
    race.answered(1, 30.0)
    assert race.result == Won(1)


def test_an_attempt_that_has_answered_cannot_fail_any_more():
    race = Race(Plan(entries=entries(2), strategy="weighted", grace_ms=50.0), lambda *_: DELAY_MS, lambda: True)
    race.begin(0.0)
    race.answered(0, 10.0)
    assert race.failed(0, fault(CLIENT), 20.0) == []
    race.tick(60.0)
    assert race.result == Won(0)


def test_the_earliest_of_several_waits_is_due_next():
    """Two candidates have a retry-after, a third attempt runs: the earlier end, then the later one, then the deadline."""
    plan = Plan(entries=entries(3), strategy="first_wins", max_attempts=5, timeout_ms=900.0)
    race = Race(plan, lambda *_: DELAY_MS, lambda: True)
    race.begin(0.0)
    assert race.due_ms() == 900
    race.failed(0, fault(LIMIT, 0.5), 10.0)
    assert race.due_ms() == 510
    race.failed(1, fault(LIMIT, 0.2), 20.0)
    assert race.due_ms() == 220
    (start,) = race.tick(220.0)
    assert (start.entry.target, start.reason, race.due_ms()) == ("c1", Reason.REPLACEMENT, 510)
    (start,) = race.tick(510.0)
    assert (start.entry.target, start.reason, race.due_ms()) == ("c0", Reason.REPLACEMENT, 900)


@pytest.mark.parametrize(("retry_after_s", "due_ms", "reason"), [(0.05, 160, "replacement"), (0.5, 200, "hedge")])
def test_of_retry_after_and_hedging_delay_the_earlier_one_is_due(retry_after_s, due_ms, reason):
    """While one attempt runs, another has failed and its replacement waits for the same candidate."""
    race = Race(Plan(entries=entries(2)), lambda *_: DELAY_MS, lambda: True)
    race.begin(0.0)
    race.tick(100.0)
    race.failed(1, fault(LIMIT, retry_after_s), 110.0)
    assert race.due_ms() == due_ms
    assert [start.reason for start in race.tick(due_ms)] == [reason]


def test_of_candidates_that_are_all_blocked_the_one_that_is_free_first_starts():
    blocked = tuple(
        Entry(candidate=i, target=f"c{i}", blocked_until_ms=ms) for i, ms in enumerate((300.0, 100.0, 200.0))
    )
    race = Race(Plan(entries=blocked, same_candidate=False), lambda *_: DELAY_MS, lambda: True)
    assert [start.entry.target for start in race.begin(0.0)] == ["c1"]
    assert race.due_ms() == 200


def test_a_race_without_entries_is_refused():
    with pytest.raises(ValueError, match="at least one entry"):
        Race(Plan(entries=()), delay_ms=lambda *_: 0.0, allow=lambda: True).begin(0.0)
