"""The ledger against an exact oracle, on every store, under any interleaving."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import uuid
from collections.abc import Callable, Coroutine
from datetime import datetime
from functools import partial
from typing import Any, ClassVar
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from pointsman.store import StateStore, open_store
from pointsman_quota.ledger import LEDGER, MAX_AHEAD_MS, PICOS, Caps, Result
from pointsman_quota.limits import LimitName, breaches, left
from pointsman_quota.periods import Calendar

from .ledger_oracle import Scope

#: 20 seconds before midnight at the end of a month, so that days and months turn within a run.
START_MS = 1_764_547_180_000
KEEP_S = 100 * 86_400
FAR_MS = 70 * 86_400_000

tokens = st.integers(0, 120)
money = st.integers(0, 50)
#: A micro-dollar in picodollars is the least that is not below it.
picos = st.sampled_from([0, 0, 1, 400_000, 999_999])
#: Few, so that several requests expire in the same second and time can pass to exactly that second.
leases = st.sampled_from([5, 30, 60, 90])
caps = st.fixed_dictionaries(
    {},
    optional={
        "requests": st.integers(1, 200),
        "tokens": st.integers(1, 5000),
        "concurrent": st.integers(1, 4),
        "day_tokens": st.integers(30, 300),
        "day_usd_micros": st.integers(20, 200),
        "month_tokens": st.integers(30, 600),
        "month_usd_micros": st.integers(20, 300),
    },
)


def with_bursts(limits: dict[str, int], requests_burst: int, tokens_burst: int) -> Caps:
    made = dict(limits)
    if "requests" in made:
        made["requests_burst"] = requests_burst
    if "tokens" in made:
        made["tokens_burst"] = tokens_burst
    return made  # type: ignore[return-value]


class LedgerMachine(RuleBasedStateMachine):
    """Requests of three scopes (tenant, key, model) come, end, are settled twice, forgotten and renewed.

    Answers of the store are lost, its steps are carried out late, clocks differ and are set back.
    """

    open_store: ClassVar[Callable[[], Coroutine[Any, Any, StateStore]]]

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.store = self.runner.run(type(self).open_store())
        self.calendar = Calendar(ZoneInfo("Europe/Berlin"))
        self.now_ms = START_MS
        self.tag = f"{{{uuid.uuid4().hex}}}"
        self.count = 0
        self.scopes: dict[str, Scope] = {}
        self.open: dict[str, tuple[list[str], bool]] = {}
        self.settled: list[tuple[str, list[str], bool]] = []

    def teardown(self) -> None:
        self.runner.run(self.store.close())
        self.runner.close()

    @initialize(
        limits=st.tuples(caps, caps, caps),
        requests_burst=st.integers(1, 6),
        tokens_burst=st.integers(60, 300),
    )
    def configure(self, limits: Any, requests_burst: int, tokens_burst: int) -> None:
        for name, own in zip(("tenant", "key", "model"), limits, strict=True):
            self.scopes[name] = Scope(with_bursts(own, requests_burst, tokens_burst), self.calendar)

    def step(
        self, do: str, request: str, names: list[str], *, behind_ms: int = 0, limited: bool = True, **given: Any
    ) -> Any:
        now_ms = self.now_ms - behind_ms
        period = self.calendar.at(now_ms)
        args = {
            "do": do, "now_ms": now_ms, "day": period.day, "month": period.month,
            "keep_s": KEEP_S, "hold_keep_s": KEEP_S, "caps": [self.scopes[name].caps if limited else {} for name in names],
            "tokens": 0, "usd_micros": 0, "usd_picos": 0, "requests": 0, "slots": 1, "expires_s": 0, "force": False, "without_hold": False, **given,
        }  # fmt: skip
        keys = [f"{self.tag}h/{request}", *(f"{self.tag}{name}" for name in names)]
        return Result.read(self.runner.run(self.store.run(LEDGER, keys, args)))

    def look(self, names: list[str], behind_ms: int = 0) -> list[Any]:
        scopes: list[Any] = self.step("look", "-", names, behind_ms=behind_ms).scopes
        return scopes

    @rule(
        names=st.sampled_from([["tenant"], ["tenant", "key"], ["tenant", "model"], ["tenant", "key", "model"]]),
        take=tokens, usd_micros=money, usd_picos=picos, lease_s=leases, behind_ms=st.sampled_from([0, 0, 0, 1700]),
        force=st.sampled_from([False, False, False, True]), slots=st.sampled_from([1, 1, 1, 0]),
    )  # fmt: skip
    def admit(
        self, *, names: list[str], take: int, usd_micros: int, usd_picos: int, lease_s: int, behind_ms: int, force: bool,
        slots: int,
    ) -> None:  # fmt: skip
        """``slots`` is 0 for a request that shares another's: concurrency does not limit it, and it takes none."""
        usd = usd_micros * PICOS + usd_picos
        request = f"r{self.count}"
        self.count += 1
        now_ms = self.now_ms - behind_ms
        seen = [self.scopes[name].seen_at(now_ms) for name in names]
        expected = {(index, limit) for index, scope in enumerate(seen) for limit in scope.refusing(now_ms, take, usd)}
        expires_s = -(-now_ms // 1000) + lease_s
        given = {
            "tokens": take, "usd_micros": usd_micros, "usd_picos": usd_picos, "expires_s": expires_s, "force": force,
            "slots": slots,
        }  # fmt: skip
        result = self.step("reserve", request, names, behind_ms=behind_ms, **given)
        limits = [self.scopes[name].caps for name in names]
        found = breaches(result.scopes, limits, self.calendar.at, (take, usd), now_ms)
        if not slots:
            expected = {(index, limit) for index, limit in expected if limit is not LimitName.CONCURRENT_REQUESTS}
            found = [breach for breach in found if breach.limit is not LimitName.CONCURRENT_REQUESTS]

        assert result.fits is (not expected)
        assert result.done is (force or not expected)
        assert {(breach.scope, breach.limit) for breach in found} == expected
        for breach in found:
            scope = seen[breach.scope]
            if breach.wait_ms is None:
                assert breach.limit in scope.refusing(now_ms + FAR_MS, take, usd)
            else:
                assert breach.wait_ms > 0
                assert breach.limit in scope.refusing(now_ms + breach.wait_ms - 1, take, usd)
                assert breach.limit not in scope.refusing(now_ms + breach.wait_ms, take, usd)
                assert breach.idle_wait_ms is not None
                assert breach.idle_wait_ms <= breach.wait_ms
        if not result.done:
            return
        for name in names:
            self.scopes[name].take(request, now_ms, (expires_s, take, usd, slots))
        self.open[request] = (names, bool(expected))
        if not expected:
            for axis in left(result.scopes, limits, self.calendar.at, (1, take), now_ms):
                assert axis is None or 0 <= axis.remaining <= axis.limit
        again = self.step("reserve", request, names, behind_ms=behind_ms, **given)
        assert again.done

    @precondition(lambda self: self.open)
    @rule(
        data=st.data(), used=st.integers(0, 200), usd_micros=st.integers(0, 80), usd_picos=picos,
        requests=st.sampled_from([0, 0, 0, 2]), behind_ms=st.sampled_from([0, 0, 900]),
        without_hold=st.booleans(), limited=st.sampled_from([True, True, True, False]),
    )  # fmt: skip
    def settle(
        self, *, data: Any, used: int, usd_micros: int, usd_picos: int, requests: int, behind_ms: int, without_hold: bool,
        limited: bool,
    ) -> None:  # fmt: skip
        """``without_hold``: the reservation's answer was lost. Not ``limited``: the tenant has been removed meanwhile."""
        request = data.draw(st.sampled_from(sorted(self.open)))
        names, forced = self.open.pop(request)
        spent = {"tokens": used, "usd_micros": usd_micros, "usd_picos": usd_picos, "requests": requests}
        given = {"behind_ms": behind_ms, "limited": limited, "without_hold": without_hold, **spent}
        assert self.step("settle", request, names, **given).done
        for name in names:
            now_ms = self.now_ms - behind_ms
            usd = usd_micros * PICOS + usd_picos
            assert self.scopes[name].settle(
                request, now_ms, used, usd, forced=forced, limited=limited, requests=requests
            )
        self.settled.append((request, names, without_hold))

    @precondition(lambda self: self.settled)
    @rule(data=st.data(), used=tokens)
    def settle_again(self, data: Any, used: int) -> None:
        """The answer was lost, so whoever settles tries again."""
        request, names, without_hold = data.draw(st.sampled_from(self.settled))
        before = self.look(names)
        done = self.step("settle", request, names, tokens=used, usd_micros=used, without_hold=without_hold).done
        assert [self.scopes[name].settle(request, self.now_ms, used, used * PICOS) for name in names] == [done] * len(
            names
        )
        assert self.look(names) == before

    @rule(used=st.integers(0, 120), usd_micros=money)
    def settle_what_was_never_held(self, used: int, usd_micros: int) -> None:
        request = f"r{self.count}"
        self.count += 1
        given = {"tokens": used, "usd_micros": usd_micros, "without_hold": True}
        assert self.step("settle", request, ["tenant"], **given).done
        assert self.scopes["tenant"].settle(request, self.now_ms, used, usd_micros * PICOS)
        self.settled.append((request, ["tenant"], True))

    @precondition(lambda self: any(without_hold for _, _, without_hold in self.settled))
    @rule(data=st.data(), take=tokens, force=st.booleans())
    def a_reservation_arrives_after_its_settlement(self, data: Any, take: int, force: bool) -> None:
        """Whoever sent it has had no answer in time, and has settled or released it: it is void."""
        request, names, _ = data.draw(st.sampled_from([settled for settled in self.settled if settled[2]]))
        before = self.look(names)
        self.step("reserve", request, names, tokens=take, expires_s=self.now_ms // 1000 + 60, force=force)
        assert self.look(names) == before
        assert not self.step("renew", request, names, expires_s=self.now_ms // 1000 + 60).done

    @rule(usd_micros=money, usd_picos=picos)
    def spend_money(self, usd_micros: int, usd_picos: int) -> None:
        assert self.step("spend", "-", ["tenant"], usd_micros=usd_micros, usd_picos=usd_picos).done
        self.scopes["tenant"].spend("-", self.now_ms, 0, usd_micros * PICOS + usd_picos)

    @rule(
        month=st.tuples(tokens, money, picos),
        day=st.tuples(tokens, money, picos),
        ago_ms=st.sampled_from([0, 0, 90_000]),
    )
    def what_was_spent_before_is_restored(self, month: Any, day: Any, ago_ms: int) -> None:
        """Once, whoever else knows it; it is in the sums of its own day and month, and counts for no rate."""
        request = f"r{self.count}"
        self.count += 1
        period = self.calendar.at(self.now_ms - ago_ms)
        given = {
            "of_day": period.day, "of_month": period.month, "tokens": month[0] + day[0],
            "usd_micros": month[1] + day[1], "usd_picos": (month[2] + day[2]) % PICOS,
            "day_tokens": day[0], "day_usd_micros": day[1], "day_usd_picos": day[2],
        }  # fmt: skip
        given["usd_micros"] += (month[2] + day[2]) // PICOS
        assert self.step("restore", request, ["tenant"], **given).done
        scope = self.scopes["tenant"]
        scope.restore(
            self.now_ms,
            period,
            earlier=(month[0], month[1] * PICOS + month[2]),
            today=(day[0], day[1] * PICOS + day[2]),
        )
        before = self.look(["tenant"])
        assert not self.step("restore", request, ["tenant"], **given).done
        assert self.look(["tenant"]) == before

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def an_answer_is_complete(self, data: Any) -> None:
        """Its slot is free at once, its tokens and its money are when it is settled; doing it again changes nothing."""
        request = data.draw(st.sampled_from(sorted(self.open)))
        names, _ = self.open[request]
        done = self.step("free", request, names).done
        assert done is bool(self.scopes[names[0]].holds[request][3])
        for name in names:
            if done:
                self.scopes[name].free(request, self.now_ms)
        before = self.look(names)
        assert not self.step("free", request, names).done
        assert self.look(names) == before

    @precondition(lambda self: self.open)
    @rule(data=st.data(), lease_s=leases)
    def renew(self, data: Any, lease_s: int) -> None:
        request = data.draw(st.sampled_from(sorted(self.open)))
        names, _ = self.open[request]
        expires_s = -(-self.now_ms // 1000) + lease_s
        assert self.step("renew", request, names, expires_s=expires_s).done
        for name in names:
            scope = self.scopes[name]
            scope.touch(self.now_ms)
            scope.holds[request] = (expires_s, *scope.holds[request][1:])
            if request in scope.lapsed:  # it was free meanwhile, so others may have taken its place
                scope.lapsed.remove(request)
                self.open[request] = (names, True)

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def worker_dies(self, data: Any) -> None:
        for request in data.draw(st.lists(st.sampled_from(sorted(self.open)), min_size=1, unique=True)):
            del self.open[request]

    @rule(
        ms=st.one_of(
            st.integers(0, 3000),
            st.integers(0, 100_000),
            st.sampled_from([1000, 5000, 25_000, 30_000, 86_400_000, 31 * 86_400_000]),
        )
    )
    def time_passes(self, ms: int) -> None:
        self.now_ms += ms

    @rule(ms=st.sampled_from([1000, 20_000, 60_000, 60_001, 3_600_000, 7_200_000, 86_400_000, 40 * 86_400_000]))
    def the_clock_is_set_back(self, ms: int) -> None:
        """By more than two machines may differ, or less. Nobody settles what had lapsed, or lapses by it, any more."""
        self.now_ms -= ms
        for request, (names, _) in list(self.open.items()):
            if not all(self.scopes[name].lives(request, self.now_ms) for name in names):
                del self.open[request]

    @precondition(lambda self: self.open)
    @rule(data=st.data(), early_ms=st.integers(0, 1))
    def time_passes_to_an_expiry(self, data: Any, early_ms: int) -> None:
        request = data.draw(st.sampled_from(sorted(self.open)))
        expires_s = self.scopes[self.open[request][0][0]].holds[request][0]
        self.now_ms = max(self.now_ms, expires_s * 1000 - early_ms)

    @invariant()
    def states_are_exact(self) -> None:
        if not self.scopes:
            return
        seen = [scope.seen_at(self.now_ms) for scope in self.scopes.values()]
        for state, scope in zip(self.look(list(self.scopes)), seen, strict=True):
            at_ms, day, month = scope.moment(self.now_ms)
            assert (state.at_ms, state.day, state.month) == (at_ms, day, month)
            assert at_ms - self.now_ms <= MAX_AHEAD_MS
            live = scope.live(self.now_ms)
            leases: dict[str, list[int]] = {}
            for expires_s, take, usd_picos, slots in live:
                count = leases.setdefault(str(expires_s), [0, 0, 0, 0])
                money = divmod(count[2] * PICOS + count[3] + usd_picos, PICOS)
                count[:] = [count[0] + slots, count[1] + take, *money]
            assert state.leases == {expiry: lease for expiry, lease in leases.items() if any(lease)}
            for name, tat in (("requests", scope.requests_tat), ("tokens", scope.tokens_tat)):
                rate: Any = scope.caps.get(name)
                assert getattr(state, name) == (scope.level(tat, rate, self.now_ms) if rate else 0)
            today = [s for s in scope.spendings if s.day == day]
            this_month = [s for s in scope.spendings if s.month == month]
            assert state.day_tokens == sum(s.tokens for s in today)
            assert state.month_tokens == sum(s.tokens for s in this_month)
            assert (state.day_usd_micros, state.day_usd_picos) == divmod(sum(s.usd_picos for s in today), PICOS)
            assert (state.month_usd_micros, state.month_usd_picos) == divmod(
                sum(s.usd_picos for s in this_month), PICOS
            )

    @invariant()
    def nothing_is_overspent_within_the_estimates(self) -> None:
        for scope in self.scopes.values():
            assert scope.overspent() is None

    @precondition(lambda self: self.scopes)
    @rule()
    def every_hold_is_free_after_its_lease(self) -> None:
        self.now_ms += 92_000
        ends = (hold[0] * 1000 for scope in self.scopes.values() for hold in scope.live(self.now_ms))
        self.now_ms = max((*ends, self.now_ms))
        assert all(not state.leases for state in self.look(list(self.scopes)))


def run(open_store: Callable[[], Coroutine[Any, Any, StateStore]], examples: int, steps: int) -> None:
    machine = type("Machine", (LedgerMachine,), {"open_store": staticmethod(open_store)})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples, stateful_step_count=steps, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


@pytest.mark.thorough
@pytest.mark.timeout(900)
def test_on_memory() -> None:
    """Decisions, waits, remainders and sums are those of the oracle, whatever happens in whatever order."""
    run(partial(open_store, "memory"), settings.default.max_examples, 40)


@pytest.mark.thorough
@pytest.mark.timeout(900)
def test_on_disk() -> None:
    """The same on the disk store."""
    directory = tempfile.mkdtemp()
    try:
        run(lambda: open_store("disk", path=tempfile.mkdtemp(dir=directory)), settings.default.max_examples // 4, 25)
    finally:
        shutil.rmtree(directory)


def test_what_is_restored_of_a_former_day_moves_nothing_there() -> None:
    """Right after midnight, on a machine whose clock is behind the one that has changed the scope last."""
    machine: Any = type("Machine", (LedgerMachine,), {"open_store": staticmethod(partial(open_store, "memory"))})()
    try:
        machine.configure(limits=({}, {}, {}), requests_burst=1, tokens_burst=60)
        machine.now_ms = round(datetime(2025, 12, 1, 0, 1, 30, tzinfo=ZoneInfo("Europe/Berlin")).timestamp() * 1000)
        machine.settle_what_was_never_held(used=2, usd_micros=5)
        machine.the_clock_is_set_back(ms=60_001)
        machine.what_was_spent_before_is_restored(month=(0, 0, 0), day=(7, 0, 0), ago_ms=90_000)
        machine.states_are_exact()
        (state,) = machine.look(["tenant"])
        assert (state.day_tokens, state.day_usd_micros) == (2, 5)
    finally:
        machine.teardown()


@pytest.mark.services
def test_on_redis(redis_url: str) -> None:
    """The same on redis: the script and the Python function are one step."""
    run(partial(open_store, "redis", url=redis_url), 40, 30)
