"""Whatever happens in whatever order: every attempt is observed once, every request settled once."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from pointsman import PluginConfig, PluginInfo, hookimpl
from pointsman.testing import DEFAULT_DEPLOYMENTS, Harness
from pointsman.types import (
    AttemptError,
    AttemptKind,
    Denial,
    Endpoint,
    ErrorClass,
    Identity,
    Outcome,
    Refusal,
    RequestContext,
    Reservation,
    Usage,
)

DEPLOYMENTS = st.sampled_from(DEFAULT_DEPLOYMENTS)
ENDED = st.sampled_from([outcome for outcome in Outcome if outcome is not Outcome.DENIED])
STATUSES = st.sampled_from([0, 200, 400, 429, 500, 503])


class Watch:
    """Counts every hook call; answers and waits as configured."""

    def __init__(self, config):
        self.asked = Counter()
        self.closed = Counter()
        self.observed = {}
        self.settled = {}
        self.settlements = Counter()
        self.gates = []
        self.answers = []

    async def answer(self):
        """Wait behind a gate, then return what the machine has decided."""
        answer, waits = self.answers.pop() if self.answers else (None, False)
        if waits:
            gate = asyncio.get_running_loop().create_future()
            self.gates.append(gate)
            await gate
        return answer

    @hookimpl
    async def pre_route(self, ctx, route):
        self.asked[ctx.request_id] += 1
        route = route.with_reservation(Reservation(plugin="watch", id=ctx.request_id, expires_at=1.0))
        answer = await self.answer()
        return answer if isinstance(answer, Denial) else route

    @hookimpl
    async def before_attempt(self, attempt):
        assert attempt.outcome is None
        self.asked[attempt.id] += 1
        answer = await self.answer()
        return answer if isinstance(answer, Refusal) else None

    @hookimpl
    def post_response(self, ctx, attempt):
        assert attempt.outcome is Outcome.OK
        self.note(ctx, attempt)

    @hookimpl
    def on_error(self, ctx, attempt):
        assert attempt.outcome not in {None, Outcome.OK}
        self.note(ctx, attempt)

    def note(self, ctx, attempt):
        assert attempt.request_id == ctx.request_id
        assert attempt.duration_ms >= 0
        self.closed[attempt.id] += 1
        self.observed[attempt.id] = attempt

    @hookimpl
    async def settle(self, settlement):
        self.settlements[settlement.request_id] += 1
        self.settled[settlement.request_id] = settlement


INFO = PluginInfo(name="watch", config=PluginConfig, factory=Watch)


class Requests(RuleBasedStateMachine):
    """Drives exchanges through every step in any order, several at a time, some of them waiting in a hook."""

    exchanges = Bundle("exchanges")
    attempts = Bundle("attempts")
    tasks = Bundle("tasks")

    def __init__(self):
        super().__init__()
        self.loop = asyncio.new_event_loop()
        # No deadline of a hook that waits behind a gate may run out, however slow the machine is.
        self.harness = Harness([(INFO, {"deadline_ms": 60_000})])
        self.loop.run_until_complete(self.harness.start())
        self.watch = self.harness.plugin("watch")
        self.client = {}
        self.own = []
        self.running = []
        self.opened = {}

    def do(self, coroutine):
        return self.loop.run_until_complete(asyncio.wait_for(coroutine, 30.0))

    def later(self, coroutine):
        """Start a step that may wait in a hook."""

        async def start():
            task = asyncio.create_task(coroutine)
            await self.harness.clock.quiet()
            return task

        task = self.do(start())
        self.running.append(task)
        return task

    def context(self):
        return RequestContext(
            request_id=self.harness.host.new_id(),
            endpoint=Endpoint.CHAT,
            model="chat",
            stream=True,
            identity=Identity(),
            received_at=self.harness.clock.now(),
        )

    # -- steps --------------------------------------------------------------------------------------------------------

    @initialize(target=exchanges)
    def first(self):
        return self.open()

    @rule(target=exchanges)
    def open(self):
        exchange = self.harness.host.open(self.context())
        self.client[exchange.ctx.request_id] = exchange
        return exchange

    @rule(target=exchanges)
    def open_one_of_our_own(self):
        exchange = self.harness.host.detached(self.context(), AttemptKind.PROBE)
        self.own.append(exchange)
        return exchange

    @rule(target=tasks, exchange=exchanges, denies=st.booleans(), waits=st.booleans())
    def admit(self, exchange, denies, waits):
        denial = Denial(status=403, code="no", message="No.") if denies else None
        self.watch.answers = [(denial, waits)]
        return self.later(exchange.admit())

    @rule(exchange=exchanges)
    def select(self, exchange):
        exchange.select(DEFAULT_DEPLOYMENTS)

    @rule(
        target=tasks,
        exchange=exchanges,
        deployment=DEPLOYMENTS,
        refuses=st.booleans(),
        waits=st.booleans(),
        gateway=st.booleans(),
    )
    def begin(self, *, exchange, deployment, refuses, waits, gateway):
        self.watch.answers = [(Refusal(reason="no") if refuses else None, waits)]
        kind = None if gateway else AttemptKind.HEDGE
        return self.later(self.began(exchange, deployment, kind, gateway=gateway))

    async def began(self, exchange, deployment, kind, *, gateway):
        was_closed = exchange.closed
        refusal, opened = await exchange.begin(deployment, kind, gateway=gateway)
        self.opened[opened.attempt.id] = opened
        assert opened.closed or refusal is None
        assert not (was_closed and refusal is None), "an attempt of a request that has ended must be refused"
        assert not (exchange.closed and refusal is None)
        return opened

    @rule(data=st.data())
    def a_hook_goes_on(self, data):
        if waiting := [gate for gate in self.watch.gates if not gate.done()]:
            data.draw(st.sampled_from(waiting)).set_result(None)
            self.do(self.harness.clock.quiet())

    @rule(task=consumes(tasks))
    def a_step_is_cancelled(self, task):
        async def cancel():
            task.cancel()
            await asyncio.wait({task})

        self.do(cancel())

    @rule(data=st.data())
    def first_token(self, data):
        if self.opened:
            self.some(data).first_token()

    @rule(data=st.data(), outcome=ENDED, has_usage=st.booleans())
    def end(self, data, outcome, has_usage):
        if self.opened:
            error = None if outcome is Outcome.OK else AttemptError(kind=ErrorClass.SERVER, message="x")
            usage = Usage(prompt_tokens=3, completion_tokens=2) if has_usage else None
            self.some(data).end(outcome, usage=usage, cost_usd_micros=7 if has_usage else None, error=error)

    def some(self, data):
        return self.opened[data.draw(st.sampled_from(sorted(self.opened)))]

    @rule(exchange=exchanges)
    def the_client_leaves(self, exchange):
        exchange.disconnected = True

    @rule(exchange=exchanges, status=STATUSES)
    def close(self, exchange, status):
        exchange.close(status)

    @rule(seconds=st.floats(0.0, 30.0))
    def time_passes(self, seconds):
        self.do(self.harness.clock.advance(seconds))

    # -- what holds ---------------------------------------------------------------------------------------------------

    @invariant()
    def nothing_is_told_twice(self):
        assert set(self.watch.asked.values()) <= {1}
        assert set(self.watch.closed.values()) <= {1}
        assert set(self.watch.settlements.values()) <= {1}
        assert self.harness.faults == {}

    @invariant()
    def no_step_has_failed(self):
        for task in self.running:
            if task.done() and not task.cancelled():
                task.result()

    @invariant()
    def what_is_told_is_what_is(self):
        for attempt_id, opened in self.opened.items():
            assert opened.closed == (attempt_id in self.watch.closed)
            assert opened.attempt == self.watch.observed.get(attempt_id, opened.attempt)

    def teardown(self):
        try:
            self.do(self.end_it())
        finally:
            self.loop.close()

    async def end_it(self):
        for task in self.running:
            task.cancel()
        if self.running:
            await asyncio.wait(self.running)
        for task in self.running:
            if not task.cancelled():
                task.result()
        for exchange in self.own:
            exchange.close(0)
        await self.harness.stop()
        await self.harness.__aexit__(None, None, None)
        self.everything_was_told()

    def everything_was_told(self):
        watch = self.watch
        self.nothing_is_told_twice()
        self.what_is_told_is_what_is()
        assert set(watch.settlements) == set(self.client), "one settlement for each client request, none for our own"
        for request_id, exchange in self.client.items():
            settlement = watch.settled[request_id]
            begun = [opened.attempt.id for opened in exchange.attempts]
            assert [attempt.id for attempt in settlement.attempts] == begun
            assert [a.number for a in settlement.attempts] == list(range(1, len(begun) + 1))
            assert list(settlement.attempts) == [watch.observed[attempt_id] for attempt_id in begun]
            assert settlement.cost_usd_micros == sum(a.cost_usd_micros or 0 for a in settlement.attempts)
            assert (settlement.outcome is Outcome.DENIED) == (settlement.denial is not None)
            assert replace(settlement.route, reservations=()) == replace(exchange.route, reservations=())
            if settlement.outcome is Outcome.OK:
                assert settlement.status_code < 400


Requests.TestCase.settings = settings(stateful_step_count=30)
TestRequests = Requests.TestCase
