"""Whatever happens in whatever order, a breaker keeps its promises."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule

from pointsman.types import ErrorClass
from pointsman_balance.breaker import ALL, BLOCKED, PROBE, RETRYABLE, Breaker, BreakerConfig, BreakerState, Cause

START = 1_700_000_000.0
RULES = BreakerConfig(
    consecutive_errors=3,
    error_ratio=0.5,
    min_attempts=4,
    window_s=10,
    open_s=2,
    backoff_factor=2,
    max_open_s=20,
    auth_s=15,
    successes=2,
    probe_timeout_s=5,
    ramp_s=8,
    ramp_start_ratio=0.2,
    calm_s=30,
)


AT_ONCE = {ErrorClass.AUTH, ErrorClass.NOT_FOUND, ErrorClass.RATE_LIMIT}


class BreakerMachine(RuleBasedStateMachine):
    """Two workers' breakers of one deployment: attempts begin, end in any order, and the workers tell one another."""

    attempts = Bundle("attempts")

    def __init__(self):
        super().__init__()
        self.now = START
        self.workers = [Breaker(RULES), Breaker(RULES)]
        #: When the probes that are out were sent, by worker.
        self.probes = [[], []]
        #: Answers to attempts from after the opening, by worker.
        self.answers = [0, 0]

    # -- what happens -------------------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([0.0, 0.01, 0.5, 1.0, 2.0, 3.0, 7.0, 20.0, 61.0]))
    def wait(self, seconds):
        self.now += seconds
        for worker in self.workers:
            before = worker.state
            if worker.elapse(self.now):
                assert (before, worker.state) == (BreakerState.OPEN, BreakerState.HALF_OPEN)
                assert self.now >= worker.until

    @rule(target=attempts, worker=st.integers(0, 1), forced=st.booleans())
    def begin(self, worker, forced):
        """Send a request if it may pass, or although it may not, as when none is healthy."""
        one = self.workers[worker]
        admitted = one.admits(self.now)
        if admitted == PROBE:
            out = [at for at in self.probes[worker] if self.now < at + RULES.probe_timeout_s]
            assert not out, "a second probe while one is out"
            one.start_probe(self.now)
            self.probes[worker].append(self.now)
        elif admitted == BLOCKED and not forced:
            return (worker, None)
        return (worker, self.now)

    @rule(attempt=consumes(attempts))
    def answer(self, attempt):
        worker, started_at = attempt
        if started_at is None:
            return
        one = self.workers[worker]
        before, counts = one.state, started_at >= one.changed_at
        changed = one.record_success(started_at, self.now)
        self.back(worker, counts)
        assert changed == (before is not one.state)
        if before is not BreakerState.CLOSED:
            assert counts or not changed, "an answer from before the opening closed it"
            self.answers[worker] += counts
            if changed:
                assert self.answers[worker] >= RULES.successes
        if changed:
            self.fresh(worker)

    @rule(attempt=consumes(attempts), kind=st.sampled_from(list(ErrorClass)), after_s=st.none() | st.floats(0, 100))
    def fail(self, attempt, kind, after_s):
        worker, started_at = attempt
        if started_at is None:
            return
        one = self.workers[worker]
        before, until, counts = one.state, one.until, started_at >= one.changed_at
        comes_back_at = None if after_s is None else self.now + after_s
        changed = one.record_failure(kind, started_at, self.now, comes_back_at)
        if kind in RETRYABLE:
            self.back(worker, counts)
        elif counts:
            self.probes[worker] = [at for at in self.probes[worker] if at > started_at]
        if kind not in RETRYABLE | AT_ONCE:
            assert not changed, "somebody else's fault changed it"
            assert one.state is before
        if before is BreakerState.CLOSED and counts and kind in AT_ONCE:
            assert one.state is BreakerState.OPEN
        if not changed:
            assert (one.state, one.until) == (before, until)
            return
        assert one.state is BreakerState.OPEN
        assert counts or kind is ErrorClass.RATE_LIMIT, "a failure from before the opening changed it"
        assert counts or (before is BreakerState.OPEN and self.now < until < one.until)
        if kind is ErrorClass.RATE_LIMIT:
            assert one.until == self.now + (30.0 if after_s is None else after_s) or one.until == comes_back_at
        else:
            assert 0 < one.until - self.now <= RULES.max_open_s
        self.fresh(worker)

    @rule(attempt=consumes(attempts))
    def cancel(self, attempt):
        worker, started_at = attempt
        if started_at is not None:
            before = self.workers[worker].state
            self.workers[worker].release_probe(started_at)
            self.probes[worker] = [at for at in self.probes[worker] if at > started_at]
            assert self.workers[worker].state is before

    @rule(worker=st.integers(0, 1))
    def reset(self, worker):
        self.workers[worker].reset(self.now)
        self.fresh(worker)
        assert self.workers[worker].admits(self.now) == ALL

    @rule(worker=st.integers(0, 1))
    def tell(self, worker):
        """The other worker hears what this one has decided last."""
        one, other = self.workers[worker], self.workers[1 - worker]
        newer = one.changed_at > other.changed_at
        other.adopt(one.change(), self.now)
        if newer:
            assert other.healthy == one.healthy
            assert (other.until, other.openings, other.changed_at) == (one.until, one.openings, one.changed_at)
            self.fresh(1 - worker)

    # -- what always holds --------------------------------------------------------------------------------------------

    @invariant()
    def shares_are_shares(self):
        for one in self.workers:
            share = one.admits(self.now)
            assert share == PROBE or BLOCKED <= share <= ALL
            assert one.describe(self.now)

    @invariant()
    def an_open_breaker_admits_none_before_its_end(self):
        for one in self.workers:
            if one.state is BreakerState.OPEN and self.now < one.until:
                assert one.admits(self.now) == BLOCKED
            assert (one.cause is None) == one.healthy
            assert one.cause in {None, *Cause}

    @precondition(lambda self: all(one.healthy for one in self.workers))
    @invariant()
    def a_closed_breaker_gives_everybody_at_least_the_start_of_the_ramp(self):
        for one in self.workers:
            assert one.admits(self.now) >= RULES.ramp_start_ratio

    @invariant()
    def the_window_counts_what_is_in_it(self):
        for one in self.workers:
            assert one._errors == sum(failed for _, failed in one._recent)

    def back(self, worker, verdict):
        """Whatever gives the verdict that a probe was sent for ends the probe."""
        if verdict:
            self.probes[worker] = []

    def fresh(self, worker):
        self.probes[worker], self.answers[worker] = [], 0


TestBreakerMachine = BreakerMachine.TestCase
TestBreakerMachine.settings = settings(stateful_step_count=40)
