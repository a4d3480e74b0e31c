"""What the host counts about requests, attempts, hooks and the store, and how it is read."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from pointsman import PluginInfo, hookimpl
from pointsman.host.counters import MOST_SERIES, OTHER, Counter, Histogram, dump, load, merged, simple, value_of
from pointsman.host.metrics import Metrics
from pointsman.host.recent import NotAdmitted
from pointsman.host.workers import DEAD_S, PUBLISH_EVERY_S, STALE_S, Peers
from pointsman.plugin import PluginConfig
from pointsman.store import open_store
from pointsman.testing import Harness, deployment, error, ok
from pointsman.testing.clock import FakeClock
from pointsman.types import (
    Attempt,
    AttemptError,
    AttemptKind,
    Denial,
    Deployment,
    Endpoint,
    ErrorClass,
    Identity,
    Outcome,
    Settlement,
    Usage,
)
from pointsman.types import Route as RouteValue

if TYPE_CHECKING:
    from opentelemetry.metrics import CallbackOptions, Observation

    from pointsman.plugin import Services
    from pointsman.types import RequestContext, Route


class Gatekeeper:
    """Denies one model, fails at another, counts with its own meter."""

    def __init__(self, config: PluginConfig) -> None:
        self.config = config

    @hookimpl
    async def startup(self, services: Services) -> None:
        from opentelemetry.metrics import Observation as Seen  # noqa: PLC0415

        self.seen = services.meter.create_counter("gatekeeper.seen", unit="{request}", description="Requests seen.")
        self.services = services

        def level(_: CallbackOptions) -> Iterator[Observation]:
            yield Seen(0.5, {"gatekeeper.door": "front"})

        def exits(_: CallbackOptions) -> Iterator[Observation]:
            raise SystemExit(1)

        services.meter.create_observable_gauge("gatekeeper.exits", callbacks=[exits], unit="1", description="None.")
        services.meter.create_observable_gauge("gatekeeper.level", callbacks=[level], unit="1", description="Level.")

    @hookimpl
    async def pre_route(self, ctx: RequestContext, route: Route) -> Route | Denial | None:
        self.seen.add(1, {"gatekeeper.endpoint": str(ctx.endpoint)})
        await self.services.store.get("nothing")
        if ctx.model == "closed":
            return Denial(status=403, code="closed", message="This is closed.")
        if ctx.model == "broken":
            raise RuntimeError("broken")
        return None


GATEKEEPER = PluginInfo(name="gatekeeper", config=PluginConfig, factory=Gatekeeper)
CONTENT = {"messages": [{"role": "user", "content": "the-secret-prompt"}]}


async def read(worker: Harness, accept: str = "") -> tuple[str, str]:
    answer = await worker.admin.get("/metrics", headers={"accept": accept})
    assert answer.status_code == 200
    return answer.text, answer.headers["content-type"]


def samples(text: str, *, openmetrics: bool = False) -> dict[tuple[str, tuple[tuple[str, str], ...]], Any]:
    parse = parse_openmetrics if openmetrics else parse_text
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample
        for family in parse(text)
        for sample in family.samples
    }


def total(found: dict[tuple[str, tuple[tuple[str, str], ...]], Any], name: str, **labels: str) -> float:
    return sum(
        sample.value
        for (sample_name, pairs), sample in found.items()
        if sample_name == name and set(labels.items()) <= set(pairs)
    )


@pytest.mark.parametrize("endpoint", [Endpoint.CHAT, Endpoint.MESSAGES, Endpoint.RESPONSES, Endpoint.EMBEDDINGS])
@pytest.mark.parametrize("stream", [False, True])
async def test_requests_attempts_and_tokens_are_counted_with_the_conventions_names(
    endpoint: Endpoint, stream: bool
) -> None:
    async with Harness([GATEKEEPER]) as worker:
        await worker.request(endpoint=endpoint, stream=stream, body=CONTENT, script=[error(500), ok()])
        await worker.settled()
        text, kind = await read(worker)
    found = samples(text)
    assert kind.startswith("text/plain")
    assert total(found, "pointsman_request_duration_seconds_count", pointsman_endpoint=str(endpoint)) == 1
    assert total(found, "gen_ai_client_operation_duration_seconds_count") == 2
    assert total(found, "gen_ai_client_operation_duration_seconds_count", error_type="server") == 1
    assert total(found, "pointsman_attempts_total", pointsman_attempt_result="failed") == 1
    assert total(found, "pointsman_attempts_total", pointsman_attempt_result="answered") == 1
    operation = "embeddings" if endpoint is Endpoint.EMBEDDINGS else "chat"
    assert total(found, "gen_ai_client_token_usage_sum", gen_ai_operation_name=operation) > 0
    assert total(found, "gen_ai_client_operation_time_to_first_chunk_seconds_count") == int(stream)
    assert "the-secret-prompt" not in text


async def test_a_call_of_the_store_that_is_cancelled_before_it_begins_leaves_nothing_behind(
    recwarn: pytest.WarningsRecorder,
) -> None:
    async with Harness([GATEKEEPER]) as h:
        call = asyncio.ensure_future(h.plugin("gatekeeper").services.store.get("nothing"))
        call.cancel()
        await asyncio.wait({call})
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(h.host.observed.measured(h.store, "gatekeeper").get("nothing"), 0)
    assert not recwarn.list


async def test_denials_faults_hooks_store_and_a_plugins_own_metrics_are_counted() -> None:
    async with Harness([GATEKEEPER]) as worker:
        for model in ("chat", "closed", "broken"):
            await worker.request(model=model)
        await worker.settled()
        found = samples((await read(worker))[0])
    plugin = {"pointsman_plugin": "gatekeeper"}
    assert total(found, "pointsman_denials_total", **plugin, pointsman_denial_code="closed") == 1
    assert total(found, "pointsman_plugin_faults_total", **plugin, pointsman_hook="pre_route") == 1
    assert total(found, "pointsman_hook_calls_total", **plugin, pointsman_hook="pre_route") == 3
    assert total(found, "pointsman_hook_time_seconds_total", **plugin, pointsman_hook="pre_route") > 0
    assert total(found, "pointsman_store_duration_seconds_count", **plugin, pointsman_store_operation="get") == 3
    assert total(found, "gatekeeper_seen_total", gatekeeper_endpoint="chat") == 3
    assert total(found, "gatekeeper_level_ratio", gatekeeper_door="front") == 0.5
    assert total(found, "pointsman_workers") == 1


async def test_openmetrics_has_the_trace_of_one_request_a_bucket() -> None:
    async with Harness([GATEKEEPER], tracing=True) as worker:
        await worker.request()
        await worker.settled()
        text, kind = await read(worker, "application/openmetrics-text; version=1.0.0")
        traces = {f"{span.context.trace_id:032x}" for span in worker.spans if span.context is not None}
    found = samples(text, openmetrics=True)
    exemplars = [s.exemplar for (name, _), s in found.items() if name.startswith("pointsman_request") and s.exemplar]
    assert kind.startswith("application/openmetrics-text")
    assert exemplars
    assert {exemplar.labels["trace_id"] for exemplar in exemplars} <= traces


async def test_nothing_is_counted_when_metrics_are_off() -> None:
    async with Harness([GATEKEEPER], host={"metrics": {"enabled": False}}) as worker:
        await worker.request()
        await worker.settled()
        text, _ = await read(worker)
    assert samples(text) == {}


async def test_metrics_are_json_for_programs() -> None:
    async with Harness([GATEKEEPER]) as worker:
        await worker.request()
        await worker.settled()
        answer = await worker.admin.get("/metrics", params={"format": "json"})
        wrong = await worker.admin.get("/metrics", params={"format": "xml"})
    names = {metric["name"] for metric in answer.json()["metrics"]}
    assert {"pointsman.request.duration", "gen_ai.client.operation.duration"} <= names
    assert wrong.status_code == 422


def test_labels_of_one_instrument_are_bounded() -> None:
    counter = Counter("c", "C.", "1", ("name",))
    histogram = Histogram("h", "H.", "s", ("name",), (1.0,))
    for number in range(MOST_SERIES + 50):
        counter.add((f"n{number}",))
        histogram.record((f"n{number}",), 0.5)
    for family in (counter.read(), histogram.read()):
        assert len(family.points) == MOST_SERIES + 1
        assert value_of([family], family.name, {"name": OTHER}) == 50


def settlement(attempt: Attempt) -> Settlement:
    return Settlement(
        request_id="r",
        endpoint=Endpoint.CHAT,
        model=attempt.deployment.model,
        stream=False,
        identity=Identity(),
        route=RouteValue(target=attempt.deployment.group),
        outcome=attempt.outcome or Outcome.OK,
        status_code=200,
        started_at=0.0,
        finished_at=1.0,
        attempts=(attempt,),
    )


@pytest.mark.parametrize(
    ("denial", "status", "error_type", "counted"),
    [
        (Denial(status=401, code="invalid_api_key", message="No."), 401, "", ("pointsman", "invalid_api_key")),
        (Denial(status=403, code="no", message="No.", plugin="gatekeeper"), 403, "", ("gatekeeper", "no")),
        (None, 401, "token_not_found_in_db", ("litellm", "token_not_found_in_db")),
        (None, 403, "", ("litellm", "403")),
        (None, 500, "", None),
    ],
)
async def test_a_request_that_was_never_admitted_counts_as_denied(
    denial: Denial | None, status: int, error_type: str, counted: tuple[str, str] | None
) -> None:
    outcome = Outcome.ERROR if status == 500 else Outcome.DENIED
    ended = NotAdmitted("r", None, "POST", "/v1/x", 1.0, outcome, status, denial=denial, error_type=error_type)
    async with Harness([GATEKEEPER]) as worker:
        worker.host.observed.not_admitted(ended)
        found = samples((await read(worker))[0])
    denied = {key: one.value for key, one in found.items() if key[0] == "pointsman_denials_total"}
    labels = counted and (("pointsman_denial_code", counted[1]), ("pointsman_plugin", counted[0]))
    assert denied == ({("pointsman_denials_total", labels): 1.0} if labels else {})


@pytest.mark.parametrize(
    ("outcome", "answered_by", "result", "error_type"),
    [
        (Outcome.OK, "a", "answered", ""),
        (Outcome.OK, "b", "lost", ""),
        (Outcome.CANCELLED, "b", "lost", ""),
        (Outcome.CANCELLED, None, "cancelled", ""),
        (Outcome.DISCONNECTED, None, "left", ""),
        (Outcome.ERROR, None, "failed", "timeout"),
        (Outcome.ERROR, "b", "failed", "timeout"),
    ],
)
def test_an_attempt_that_did_not_fail_has_no_error(
    outcome: Outcome, answered_by: str | None, result: str, error_type: str
) -> None:
    """Losers of races and attempts that clients have left are told apart from failures."""
    attempt = Attempt(
        id="a", request_id="r", number=1, kind=AttemptKind.HEDGE, deployment=deployment("d"), started_at=0.0
    )
    failure = None if outcome is Outcome.OK else AttemptError(kind=ErrorClass.TIMEOUT, message="late")
    attempt = replace(attempt, outcome=outcome, duration_ms=5.0, error=failure)
    metrics = Metrics()
    metrics.record(replace(settlement(attempt), answered_by=answered_by), None, own=False)
    (family,) = [one for one in metrics.collect() if one.name == "gen_ai.client.operation.duration"]
    (point,) = family.points
    labels = dict(point.labels)
    assert (labels["pointsman.attempt.result"], labels.get("error.type", "")) == (result, error_type)


def test_names_that_clients_make_up_displace_no_other() -> None:
    """Of a wildcard group and of a pass-through route, whose group is the client's name as well."""
    wild = deployment("wild-1", group="openai/*", model="real")
    passed = deployment("pass-through/openai", group="real", model="real")

    def ended(one: Deployment, model: str, outcome: Outcome) -> Settlement:
        group = model if one is passed else one.group
        called = replace(one, group=group, model=model)
        attempt = Attempt(id="a", request_id="r", number=1, kind=AttemptKind.PRIMARY, deployment=called, started_at=0.0)
        attempt = replace(
            attempt,
            outcome=outcome,
            duration_ms=1.0,
            usage=Usage(prompt_tokens=1, completion_tokens=1),
            cost_usd_micros=1,
        )
        return settlement(attempt)

    metrics = Metrics()
    for number in range(MOST_SERIES + 50):
        for one in (wild, passed):
            metrics.record(ended(one, "real", Outcome.OK), None, own=False)
            metrics.record(ended(one, f"made-up-{number}", Outcome.ERROR), None, own=False)
    for number in range(MOST_SERIES):
        metrics.record(ended(wild, f"answers-to-anything-{number}", Outcome.OK), None, own=False)
    for one in (wild, passed):
        metrics.record(ended(one, "late", Outcome.OK), None, own=False)
    metrics.record(ended(deployment("new-1", group="new", model="new"), "new", Outcome.ERROR), None, own=False)
    found = metrics.collect()
    assert max(len(family.points) for family in found) < MOST_SERIES
    duration = "gen_ai.client.operation.duration"
    for one in (wild, passed):
        labels = {"pointsman.deployment": one.id}
        assert value_of(found, duration, {**labels, "gen_ai.request.model": "real"}) == MOST_SERIES + 50
        assert value_of(found, duration, {**labels, "pointsman.attempt.result": "failed"}) == MOST_SERIES + 50
        assert value_of(found, duration, {**labels, "gen_ai.request.model": "made-up-1"}) == 0
        group = {"pointsman.group": OTHER if one is passed else "openai/*", "pointsman.attempt.result": "failed"}
        assert value_of(found, "pointsman.attempts", {**labels, **group}) == MOST_SERIES + 50
    assert value_of(found, duration, {"gen_ai.request.model": "late"}) == 1
    assert value_of(found, duration, {"gen_ai.request.model": "new"}) == 1


def test_what_is_written_for_other_workers_is_read_as_it_was() -> None:
    histogram = Histogram("h", "H.", "s", ("name",), (1.0, 2.0))
    histogram.record(("a",), 1.0, ("0" * 32, "1" * 16, 5.0))
    assert load(dump([histogram.read()])) == [histogram.read()]
    with pytest.raises(ValueError, match="not metrics of a worker"):
        load([["h"], 3])


def test_sums_are_added_and_gauges_are_the_highest() -> None:
    one, other = Counter("c", "C.", "1", ("name",)), Counter("c", "C.", "1", ("name",))
    one.add(("a",), 2)
    other.add(("a",), 3)
    other.add(("b",), 1)
    both = merged([[one.read()], [other.read()]])
    assert (value_of(both, "c", {"name": "a"}), value_of(both, "c", {"name": "b"})) == (5, 1)


class Crew:
    """Workers that share a store, as the peers see them."""

    def __init__(self, store: Any, clock: FakeClock) -> None:
        self.store = store
        self.clock = clock
        self.known: dict[str, dict[str, Any]] = {}
        self.ids = itertools.count()

    def worker(self, name: str) -> tuple[Peers, Counter]:
        counter = Counter("requests", "R.", "1", ("name",))
        self.known[name] = {}
        peers = Peers(
            self.store,
            worker=name,
            clock=self.clock,
            collect=lambda: [counter.read(), simple("workers", "updown", "1", "W.", [({}, 1)])],
            answer=self.known[name].get,
            new_id=lambda: f"question-{next(self.ids)}",
        )
        return peers, counter


@pytest.fixture
async def crew() -> Any:
    store = await open_store("memory")
    yield Crew(store, FakeClock())
    await store.close()


async def test_workers_count_as_one_and_no_sum_falls_when_one_ends(crew: Crew) -> None:
    (one, counts), (other, others) = crew.worker("one"), crew.worker("other")
    counts.add(("a",), 5)
    others.add(("a",), 7)
    await one.tick()
    await other.tick()
    assert value_of(await one.metrics(), "requests") == 12
    counts.add(("a",), 1)
    assert value_of(await one.metrics(), "requests") == 13  # its own figures are of this moment
    await other.leave()
    await other.tick()  # what is still running at that moment writes nothing
    assert value_of(await one.metrics(), "requests") == 13
    next_life, more = crew.worker("next")
    more.add(("a",), 2)
    assert value_of(await next_life.metrics(), "requests") == 15 - 1  # the other worker's row is seconds old


async def test_a_dead_worker_is_counted_once_even_if_it_comes_back(crew: Crew) -> None:
    (one, counts), (other, others) = crew.worker("one"), crew.worker("other")
    counts.add(("a",), 5)
    others.add(("a",), 7)
    await other.tick()
    await crew.clock.advance(DEAD_S + PUBLISH_EVERY_S)
    await one.tick()
    assert value_of(await one.metrics(), "requests") == 12
    assert len(await crew.store.scan("{metrics}/worker/")) == 1
    others.add(("a",), 1)
    await other.publish()
    await other.publish()
    assert value_of(await one.metrics(), "requests") == 13
    assert value_of(await other.metrics(), "requests") == 13


async def test_a_killed_worker_is_left_out_of_what_is_true_now_long_before_its_sums_are_taken_over(crew: Crew) -> None:
    (one, _), (other, others) = crew.worker("one"), crew.worker("other")
    others.add(("a",), 7)
    await other.tick()
    for seconds, workers in ((0.0, 2), (STALE_S - 1, 2), (2.0, 1), (DEAD_S, 1), (PUBLISH_EVERY_S, 1)):
        await crew.clock.advance(seconds)
        await one.tick()
        found = await one.metrics()
        assert (value_of(found, "workers"), value_of(found, "requests")) == (workers, 7), seconds


async def test_the_sums_of_the_ended_are_bounded_and_none_falls(crew: Crew) -> None:
    for generation in range(3):
        worker, counts = crew.worker(f"worker-{generation}")
        for number in range(MOST_SERIES):
            counts.add((f"{generation}-{number}",))
        await worker.tick()
        await worker.leave()
    last, _ = crew.worker("last")
    (found,) = [family for family in await last.metrics() if family.name == "requests"]
    assert len(found.points) == MOST_SERIES + 1
    assert value_of([found], "requests", {"name": "0-7"}) == 1
    assert value_of([found], "requests", {"name": OTHER}) == 2 * MOST_SERIES


async def test_a_worker_answers_what_another_is_asked(crew: Crew) -> None:
    (one, _), (other, _) = crew.worker("one"), crew.worker("other")
    crew.known["other"]["r-1"] = {"request_id": "r-1"}

    async def both() -> Any:
        asked = asyncio.create_task(one.ask("r-1"))
        for _ in range(20):
            await other.tick()
            await asyncio.sleep(0)
        return await asked

    assert await crew.clock.run(both()) == {"request_id": "r-1"}
    assert await crew.clock.run(one.ask("unknown")) is None
