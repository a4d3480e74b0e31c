"""The rules of gRFC A6 (client-side hedging), one row each, on the decision logic alone.

https://github.com/grpc/proposal/blob/master/A6-client-retries.md, sections "Hedging Policy" and "Pushback". A row is
what happens at which millisecond, and which legs are started and what the result is after it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from pointsman.errors import UpstreamError
from pointsman.types import ErrorClass
from pointsman_racing.faults import Fault, Verdict, verdict
from pointsman_racing.race import ASK_AGAIN_AFTER, Entry, Lost, Plan, Race, Reason, Won

DELAY_MS = 100.0


def fault(kind, retry_after_s=None):
    error = UpstreamError(f"{kind} on purpose", error_class=str(kind), retry_after_s=retry_after_s)
    return Fault.of(error)


def entries(count, **changes):
    return tuple(Entry(candidate=i, target=f"c{i}", **changes) for i in range(count))


@dataclass
class Course:
    """A race, and what has come of it so far, in words."""

    plan: Plan
    budget: int = 100
    race: Race = field(init=False)
    said: list[str] = field(default_factory=list)

    def __post_init__(self):
        self.race = Race(self.plan, delay_ms=lambda *_: DELAY_MS, allow=self.allow)

    def allow(self):
        self.budget -= 1
        return self.budget >= 0

    def note(self, at, starts):
        self.said += [f"{at:g}: {start.reason} {start.entry.target}" for start in starts]
        match self.race.result:
            case Won(leg) if not self.said[-1:] or not self.said[-1].startswith("won"):
                self.said.append(f"won by {leg}")
            case Lost(why) if not self.said[-1:] or not self.said[-1].startswith("lost"):
                self.said.append(f"lost: {why.kind}")

    def until(self, at):
        """Do everything that is due before this moment."""
        while (due := self.race.due_ms()) is not None and due < at:
            self.note(due, self.race.tick(due))

    def play(self, events):
        self.note(0.0, self.race.begin(0.0))
        for at, what, leg, *more in events:
            self.until(at)
            if what == "fails":
                self.note(at, self.race.failed(leg, fault(*more), at))
            elif what == "answers":
                self.note(at, self.race.answered(leg, at, *more))
            else:
                self.note(at, self.race.tick(at))
        self.until(1e6)
        return self.said


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
    "a non-fatal error starts the next at once, and hedgingDelay begins anew": (
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
    "push-back: whoever pushes back is not asked before its time": (
        {"entries": entries(1)},
        [(10, "fails", 0, LIMIT, 0.5), (600, "answers", 1)],
        ["0: first c0", "510: replacement c0", "won by 1"],
    ),
    "push-back of one does not hold up the others": (
        {"entries": entries(2)},
        [(10, "fails", 0, LIMIT, 0.5), (60, "answers", 1)],
        ["0: first c0", "10: replacement c1", "won by 1"],
    ),
    "push-back for longer than anybody would wait ends the call": (
        {"entries": entries(1), "wait_ms": 300.0},
        [(10, "fails", 0, LIMIT, 0.5)],
        ["0: first c0", "lost: rate_limit"],
    ),
    "push-back beyond the deadline ends the call": (
        {"entries": entries(1), "timeout_ms": 400.0},
        [(10, "fails", 0, LIMIT, 0.5)],
        ["0: first c0", "lost: rate_limit"],
    ),
    "push-back holds for hedges to the same candidate": (
        {"entries": entries(1)},
        [(150, "fails", 1, LIMIT, 0.5), (700, "answers", 0)],
        ["0: first c0", "100: hedge c0", "650: replacement c0", "won by 0"],
    ),
    "push-back from another request: an extra leg obeys": (
        {"entries": (*entries(1), Entry(candidate=1, target="c1", blocked_until_ms=450)), "same_candidate": False},
        [(500, "answers", 0)],
        ["0: first c0", "450: hedge c1", "won by 0"],
    ),
    "push-back from another request: a first leg prefers the others": (
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
    "the deadline ends the call: a leg that fails with it is not replaced": (
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
    "weighted: nobody is left to wait for": (
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
            "entries": (*entries(2), Entry(candidate=2, target="c2", standing=0.5)),
        },
        [(30, "answers", 0, 1.0), (40, "answers", 1, 1.0), (50, "answers", 2, 1.0)],
        ["0: first c0", "0: together c1", "0: together c2", "won by 2"],
    ),
}


@pytest.mark.parametrize(("setting", "events", "expected"), TABLE.values(), ids=TABLE.keys())
def test_a6(setting, events, expected):
    setting = dict(setting)
    budget = setting.pop("budget", 100)
    plan = Plan(**{"entries": entries(3), **setting})
    assert Course(plan, budget).play(events) == expected


NEXT = {
    ErrorClass.RATE_LIMIT,
    ErrorClass.AUTH,
    ErrorClass.TIMEOUT,
    ErrorClass.SERVER,
    ErrorClass.NOT_FOUND,
    ErrorClass.CONNECTION,
    ErrorClass.REFUSED,
    ErrorClass.UNKNOWN,
}


@pytest.mark.parametrize("kind", ErrorClass)
def test_every_class_of_error_has_a_verdict(kind):
    """What is the client's fault is fatal; everything else, also what nobody knows, starts the next."""
    assert verdict(kind) is (Verdict.NEXT if kind in NEXT else Verdict.FATAL)
    assert verdict(kind, own_credential=True) is (Verdict.NEXT if kind in NEXT - {ErrorClass.AUTH} else Verdict.FATAL)


def test_an_error_class_that_nobody_knows_is_unknown():
    assert Fault.of(UpstreamError("odd", error_class="klingon")).kind is ErrorClass.UNKNOWN


def test_the_delay_is_asked_again_when_it_is_over():
    """Once a leg has reached its deployment, that deployment's own delay counts."""
    delays = iter([100.0, 180.0, 180.0, 100.0])
    race = Race(Plan(entries=entries(2)), delay_ms=lambda *_: next(delays), allow=lambda: True)
    race.begin(0.0)
    assert race.due_ms() == 100
    assert race.tick(100.0) == []
    assert race.due_ms() == 180
    assert [start.reason for start in race.tick(180.0)] == [Reason.HEDGE]


def test_patience_may_come_and_go():
    """A race that began while there was next to nothing left need not wait once there is."""
    patience = [9.0]
    race = Race(Plan(entries=entries(2)), lambda *_: DELAY_MS, lambda: True, lambda: patience[0])
    race.begin(0.0)
    assert race.due_ms() == DELAY_MS
    assert race.tick(DELAY_MS) == []
    assert race.due_ms() == 2 * DELAY_MS
    patience[0] = 2.5
    assert race.tick(2 * DELAY_MS) == []
    assert race.due_ms() == 2.5 * DELAY_MS
    patience[0] = 1.0
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
    assert (race.denied, race.due_ms()) == (1, 100 + DELAY_MS * ASK_AGAIN_AFTER)
    assert race.tick(110.0) == []
    assert [start.reason for start in race.tick(race.due_ms())] == [Reason.HEDGE]


def test_nothing_changes_after_the_result():
    race = Race(Plan(entries=entries(3)), delay_ms=lambda *_: DELAY_MS, allow=lambda: True)
    race.begin(0.0)
    race.answered(0, 50.0)
    assert race.result == Won(0)
    assert race.tick(500.0) == race.failed(0, fault(SERVER), 600.0) == race.answered(0, 700.0) == []
    assert (race.result, race.due_ms(), race.legs) == (Won(0), None, 1)


def test_a_race_without_entries_is_refused():
    with pytest.raises(ValueError, match="at least one entry"):
        Race(Plan(entries=()), delay_ms=lambda *_: 0.0, allow=lambda: True).begin(0.0)
