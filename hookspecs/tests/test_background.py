"""Background responses that no client reads are charged by a worker, once, whatever becomes of workers."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import pytest

from pointsman.host.deferred import key_of
from pointsman.store.memory import MemoryStore
from pointsman.testing import deployment, error
from pointsman.types import Endpoint, Outcome, Usage

pytestmark = pytest.mark.usefixtures("leak_check")

USAGE = {"input_tokens": 1_000, "output_tokens": 2_000, "total_tokens": 3_000}
WORKING = SimpleNamespace(id="resp_1", status="in_progress", usage=None)
COMPLETE = SimpleNamespace(id="resp_1", status="completed", usage=USAGE)
LOOKS = {"background_look_s": 10, "background_wait_s": 1_000}


class Gone(Exception):
    """A provider's 404."""

    status_code = 404


class Provider:
    """Has one response.

    Attributes:
        answers: What is read, one after another; the last stays.
        reads: How often it was read.
    """

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.reads = 0

    async def read(self, answer: str) -> Any:
        assert answer == "resp_1"
        found = self.answers[min(self.reads, len(self.answers) - 1)]
        self.reads += 1
        if isinstance(found, Exception):
            raise found
        return found


class Catalog:
    """Knows one deployment."""

    def by_id(self, _: str) -> Any:
        return deployment("d", model="gpt-4o-mini")

    def deployments(self, _: str) -> Any:
        return (deployment("d", model="gpt-4o-mini"),)


@pytest.fixture
def background(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    module = pytest.importorskip("pointsman.litellm.background")
    prices = pytest.importorskip("pointsman.litellm.prices")
    return lambda h, provider: module.Background(h.host, Catalog(), prices.CostMap(), provider.read)


async def accepted(h: Any, worker: Any) -> Any:
    """Accept a background response; return its request."""
    before = await h.request(script=error(400))
    await h.settled()
    h.settlements.clear()
    exchange = h.host.open(replace(before.ctx, request_id="mine", endpoint=Endpoint.RESPONSES))
    await exchange.admit()
    _, opened = await exchange.begin(deployment("d", model="gpt-4o-mini"), gateway=True)
    assert await worker.follow(exchange, opened, WORKING, "resp_1")
    exchange.answered()
    return exchange


async def settled(h: Any) -> tuple[Any, Any]:
    await h.settled()
    (settlement,) = h.settlements
    (attempt,) = settlement.attempts
    assert (settlement.outcome, attempt.outcome) == (Outcome.OK, Outcome.OK)
    return settlement, attempt


async def test_a_response_that_nobody_reads_is_charged_when_it_is_complete(harness, background):
    """Until then its request is open, and so is its reservation."""
    provider = Provider(WORKING, WORKING, COMPLETE)
    async with harness([], host=LOOKS) as h:
        exchange = await accepted(h, background(h, provider))
        await h.clock.advance(10 + 20)
        assert (provider.reads, exchange.closed, h.settlements) == (2, False, [])
        await h.clock.advance(40)
        settlement, attempt = await settled(h)
        assert (settlement.request_id, attempt.usage.total_tokens) == ("mine", 3_000)
        # 0.15 and 0.60 dollars a million.
        assert attempt.cost_usd_micros == 1_350
        await h.clock.advance(1_000)
        assert provider.reads == 3


async def test_a_read_of_the_clients_is_charged_instead(harness, background):
    """The request settles at once with nothing; in another worker, at its next look."""
    async with harness([], host=LOOKS) as h:
        worker, provider = background(h, Provider(WORKING)), Provider(COMPLETE)
        exchange = await accepted(h, worker)
        assert await h.host.deferred.claim("resp_1") is not None
        worker.charged("resp_1")
        assert exchange.closed
        _, attempt = await settled(h)
        assert (attempt.usage, attempt.cost_usd_micros) == (Usage(), 0)

        exchange = await accepted(h, background(h, provider))
        assert await h.host.deferred.claim("resp_1") is not None
        await h.clock.advance(20)
        _, attempt = await settled(h)
        assert (attempt.usage, provider.reads) == (Usage(), 0)


@pytest.mark.parametrize("answer", [Gone(), WORKING, TimeoutError()], ids=["gone", "working", "failing"])
async def test_what_is_never_known_costs_what_was_reserved(harness, background, answer):
    """A deleted response at once, others when the wait is over: usage and cost are unknown, not zero."""
    async with harness([], host=LOOKS) as h:
        await accepted(h, background(h, Provider(answer)))
        await h.clock.advance(10)
        assert bool(h.settlements) is isinstance(answer, Gone)
        await h.clock.advance(1_000)
        _, attempt = await settled(h)
        assert (attempt.usage, attempt.cost_usd_micros) == (None, None)


async def test_a_failed_response_without_usage_costs_nothing(harness, background):
    failed = SimpleNamespace(id="resp_1", status="failed", usage=None)
    async with harness([], host=LOOKS) as h:
        await accepted(h, background(h, Provider(failed)))
        await h.clock.advance(10)
        _, attempt = await settled(h)
        assert (attempt.usage, attempt.cost_usd_micros) == (Usage(), 0)


async def test_the_next_worker_goes_on(harness, background):
    """One that stops settles with nothing, and leaves its note: the next one opens a request of the same tenant."""
    store = MemoryStore()
    async with harness([], host=LOOKS, store=store) as h:
        await accepted(h, background(h, Provider(WORKING)))
        assert await h.host.deferred.is_pending(key_of("resp_1"))
        (exchange,) = [one for one in h.host._open if one.ctx.request_id == "mine"]  # what a stop closes
        exchange.close(0)
        await h.settled()
        (settlement,) = h.settlements
        assert settlement.attempts[0].usage == Usage()
        h.settlements.clear()

        provider = Provider(COMPLETE)
        worker = background(h, provider)
        await worker.adopt()
        await h.clock.advance(10)
        settlement, attempt = await settled(h)
        assert settlement.request_id != "mine"
        assert settlement.identity.tenant == exchange.ctx.identity.tenant
        assert attempt.usage.total_tokens == 3_000
        await worker.adopt()
        await h.clock.advance(1_000)
        assert provider.reads == 1


async def test_two_workers_that_look_charge_once(harness, background):
    """Also where the one that accepted it comes second."""
    async with harness([], host=LOOKS) as h:
        await accepted(h, background(h, Provider(COMPLETE)))
        await background(h, Provider(COMPLETE)).adopt()
        await h.clock.advance(60)
        await h.settled()
        used = [attempt.usage.total_tokens for one in h.settlements for attempt in one.attempts]
        assert sorted(used) in ([3_000], [0, 3_000])


DAY_S = 86_400


class Batches:
    """A provider that says nothing of a batch, or fails, until it says what the batch has used."""

    def __init__(self, module: Any, *answers: Any) -> None:
        self.answers = [module.batches.Used(*one) if isinstance(one, tuple) else one for one in answers]
        self.looks: list[tuple[str, str, str]] = []

    async def look(self, *about: str) -> Any:
        self.looks.append(about)
        found = self.answers[min(len(self.looks), len(self.answers)) - 1]
        if isinstance(found, Exception):
            raise found
        return found


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    module = pytest.importorskip("pointsman.litellm.background")
    prices = pytest.importorskip("pointsman.litellm.prices")

    def make(h: Any, *answers: Any) -> Any:
        provider = Batches(module, *answers)
        return module.Background(h.host, Catalog(), prices.CostMap(), None, provider.look), provider

    return make


async def created(h: Any, worker: Any) -> None:
    """Create a batch; its own request is settled with nothing."""
    before = await h.request(script=error(400))
    exchange = h.host.open(replace(before.ctx, request_id="mine", endpoint=Endpoint.BATCHES))
    await exchange.admit()
    _, opened = await exchange.begin(deployment("d", model="gpt-4o-mini"), gateway=True)
    batch = SimpleNamespace(id="batch_1", status="validating")
    assert await worker.follow_batch(exchange, opened, batch, "batch_1", key=None)
    opened.end(Outcome.OK, usage=Usage(), cost_usd_micros=0)
    exchange.close(200)
    await h.settled()
    h.settlements.clear()


async def test_a_batch_that_nobody_reads_is_charged_in_a_request_of_its_own(harness, batches):
    """Also after failures; by the prices of batches, of a usage that says so."""
    usage = Usage(prompt_tokens=1_000, completion_tokens=2_000, service_tier="batch")
    async with harness([], host=LOOKS) as h:
        worker, provider = batches(h, None, TimeoutError(), (usage, None))
        await created(h, worker)
        await h.clock.advance(10 + 20 + 40)
        settlement, attempt = await settled(h)
        assert (settlement.endpoint, attempt.usage, attempt.duration_ms) == (Endpoint.BATCHES, usage, None)
        assert attempt.cost_usd_micros == 675
        assert provider.looks == [("batch_1", "d", "openai")] * 3
        await h.clock.skip(DAY_S)
        assert len(provider.looks) == 3


async def test_a_batch_without_a_price_costs_what_the_gateway_computes(harness, batches, monkeypatch):
    monkeypatch.setattr(Catalog, "by_id", lambda *_: deployment("d", model="nobody-knows-it"))
    usage = Usage(prompt_tokens=1, completion_tokens=2)
    async with harness([], host=LOOKS) as h:
        worker, _ = batches(h, (usage, Decimal("0.0123")))
        await created(h, worker)
        await h.clock.advance(10)
        _, attempt = await settled(h)
        assert attempt.gateway_cost_usd == Decimal("0.0123")
        assert attempt.cost_usd_micros == 12_300


async def test_a_batch_that_a_client_has_read_is_not_charged_again(harness, batches):
    async with harness([], host=LOOKS) as h:
        worker, provider = batches(h, (Usage(prompt_tokens=1), None))
        await created(h, worker)
        assert await h.host.deferred.claim("batch_1") is not None
        worker.charged("batch_1")
        await h.clock.skip(DAY_S)
        assert (h.settlements, provider.looks) == ([], [])


async def test_a_batch_whose_end_is_never_known_is_unpriced_a_day_later_than_a_response(harness, batches):
    async with harness([], host=LOOKS) as h:
        worker, _ = batches(h, None)
        await created(h, worker)
        await h.clock.advance(DAY_S)
        assert h.settlements == []
        await h.clock.advance(1_000)
        _, attempt = await settled(h)
        assert (attempt.usage, attempt.cost_usd_micros) == (None, None)


async def test_the_next_worker_looks_after_the_batches_of_the_last(harness, batches):
    async with harness([], host=LOOKS) as h:
        first, _ = batches(h, None)
        await created(h, first)
        other, provider = batches(h, (Usage(prompt_tokens=1_000), None))
        await other.adopt()
        await h.clock.advance(60)
        settlement, attempt = await settled(h)
        assert (attempt.usage.total_tokens, len(provider.looks)) == (1_000, 1)
        assert settlement.request_id != "mine"
