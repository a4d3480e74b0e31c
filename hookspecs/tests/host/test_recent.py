"""What a worker remembers of its last requests, and how it explains them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from pointsman import PluginInfo, hookimpl
from pointsman.host.recent import NotAdmitted, Recent, Record, explanation, lines, summary
from pointsman.plugin import PluginConfig
from pointsman.testing import Harness, deployment, error, ok
from pointsman.types import (
    Attempt,
    AttemptKind,
    Candidate,
    Denial,
    Endpoint,
    Identity,
    Outcome,
    Refusal,
    Reservation,
    Settlement,
    Usage,
)
from pointsman.types import Route as RouteValue

if TYPE_CHECKING:
    from pointsman.types import RequestContext, Route

SECRET = "the-secret-prompt"
CONTENT = {"messages": [{"role": "user", "content": SECRET}]}
DEPLOYMENTS = [
    deployment("chat-a", group="chat"),
    deployment("chat-b", group="chat"),
    deployment("spare-a", group="spare"),
]


class Decider:
    """Routes, reserves, scores, leaves out, refuses and denies, by the model's name."""

    def __init__(self, config: PluginConfig) -> None:
        self.config = config

    @hookimpl
    async def pre_route(self, ctx: RequestContext, route: Route) -> Route | Denial | None:
        if ctx.model == "closed":
            return Denial(status=429, code="closed", message="This is closed.", retry_after_s=3)
        if ctx.model == "alias":
            reservation = Reservation(plugin="decider", id=ctx.request_id, expires_at=1e12, amounts={"tokens": 12})
            return route.to("chat").with_labels(version="2").with_reservation(reservation)
        return None

    @hookimpl
    def select(self, ctx: RequestContext, candidates: Sequence[Candidate]) -> Sequence[Candidate]:
        if ctx.model == "chat" and "x-empty" in ctx.headers and candidates[0].deployment.group == "chat":
            return [candidate.drop("broken") for candidate in candidates]
        if len(candidates) < 2:
            return candidates
        first, *others = candidates
        return [first.scored(0.75, "quick"), *(other.drop("slow today") for other in others)]

    @hookimpl
    async def before_attempt(self, ctx: RequestContext, attempt: Attempt) -> Refusal | None:
        return Refusal(reason="not yet", retry_after_s=2) if "x-refuse" in ctx.headers and attempt.number == 1 else None


DECIDER = PluginInfo(name="decider", config=PluginConfig, factory=Decider)


def not_admitted(request_id: str, **fields: Any) -> NotAdmitted:
    number = request_id.partition("-")[2]
    facts: dict[str, Any] = {"method": "POST", "path": "/v1/chat/completions", "outcome": Outcome.DENIED, "status": 401}
    return NotAdmitted(request_id=request_id, trace_id=f"trace-{number}", at=float(number or 0) + 2, **facts | fields)


def settlement(request_id: str, *, at: float = 1.0, within: str | None = None) -> Settlement:
    return Settlement(
        request_id=request_id,
        within=within,
        endpoint=Endpoint.CHAT,
        model="chat",
        stream=False,
        identity=Identity(),
        route=RouteValue(target="chat"),
        outcome=Outcome.OK,
        status_code=200,
        started_at=0.0,
        finished_at=at,
    )


async def explained(worker: Harness, **request: Any) -> tuple[list[str], dict[str, Any]]:
    made = await worker.request(body=CONTENT, **request)
    await worker.settled()
    answer = await worker.admin.get(f"/requests/{made.settlement.request_id}")
    assert answer.status_code == 200
    assert SECRET not in answer.text
    body: dict[str, Any] = answer.json()
    return body["lines"], body


@pytest.fixture
async def worker() -> Any:
    async with Harness([DECIDER], deployments=DEPLOYMENTS, host={"recent_requests": 3}) as running:
        yield running


async def test_lines_are_in_the_order_of_what_happened(worker: Harness) -> None:
    """What was left out before an attempt is told before it."""
    lines, _ = await explained(worker, model="chat", headers={"x-empty": "yes"}, fallbacks=["spare"])
    kinds = [line.split(" ")[0] for line in lines[1:]]
    assert kinds.index("no") < kinds.index("attempt") < kinds.index("ended:")
    assert lines[1] == "no candidate was left: chat-a (decider: broken), chat-b (decider: broken)"


@pytest.mark.parametrize("endpoint", [Endpoint.CHAT, Endpoint.MESSAGES, Endpoint.RESPONSES, Endpoint.EMBEDDINGS])
@pytest.mark.parametrize("stream", [False, True])
async def test_every_decision_is_one_line_in_about_ten(worker: Harness, endpoint: Endpoint, stream: bool) -> None:
    lines, body = await explained(worker, model="alias", endpoint=endpoint, stream=stream, script=[error(500), ok()])
    text = "\n".join(lines)
    assert len(lines) <= 10
    assert lines[0].startswith(f"{body['request_id']}: {endpoint}{', stream' if stream else ''} of 'alias'")
    assert "route: decider sends it to 'chat'; with version=2; reserves tokens 12" in text
    assert "attempt 1 (primary) at chat-a: failed" in text
    assert "server 500" in text
    assert "chosen from chat-a (0.75, quick); left out: chat-b (decider: slow today)" in text
    assert "attempt 2 (retry) at chat-a: answered" in text
    assert "ended: ok, status 200" in text
    assert "answered by attempt 2" in text
    assert [made["result"] for made in body["made"]] == ["failed", "answered"]
    assert body["selections"][0]["left_out"] == [{"deployment": "chat-b", "by": "decider", "reason": "slow today"}]


async def test_denials_refusals_and_clients_that_left_are_explained(worker: Harness) -> None:
    lines, _ = await explained(worker, model="closed")
    assert any(line == "denied by decider: closed: This is closed.; retry after 3 s" for line in lines)
    lines, body = await explained(worker, model="chat", headers={"x-refuse": "1"})
    assert any("refused" in line and "not yet" in line and "retry-after 2 s" in line for line in lines)
    assert body["made"][0]["result"] == "refused"
    lines, _ = await explained(worker, model="chat", stream=True, leave_after_pieces=2)
    assert any("left" in line for line in lines if line.startswith("attempt 1"))
    assert lines[-1].startswith("ended: disconnected")


async def test_only_the_last_requests_are_remembered_and_found_by_both_ids(worker: Harness) -> None:
    ids = []
    for number in range(5):
        made = await worker.request(model="chat", call_id=f"call-{number}")
        ids.append(made.settlement.request_id)
    await worker.settled()
    listed = (await worker.admin.get("/requests", params={"limit": "10"})).json()["requests"]
    assert [row["request_id"] for row in listed] == ids[:1:-1]
    assert (await worker.admin.get("/requests/call-4")).json()["request_id"] == ids[4]
    gone = await worker.admin.get(f"/requests/{ids[0]}")
    assert gone.status_code == 404
    assert "each keeps the last 3 finished ones" in gone.json()["error"]["message"]
    assert (await worker.admin.get("/requests", params={"limit": "0"})).status_code == 422


async def test_nothing_is_remembered_when_nothing_should_be() -> None:
    async with Harness([DECIDER], deployments=DEPLOYMENTS, host={"recent_requests": 0}) as worker:
        made = await worker.request(model="chat")
        await worker.settled()
        assert (await worker.admin.get(f"/requests/{made.settlement.request_id}")).status_code == 404


def test_requests_that_were_not_admitted_displace_no_others() -> None:
    """A client without a key can make as many requests as it likes."""
    recent = Recent(2)
    recent.keep(Record(settlement("admitted"), ()))
    for number in range(1000):
        recent.keep_not_admitted(not_admitted(f"refused-{number}"))
    assert recent.find("admitted") is not None
    assert [getattr(recent.find(f"refused-{n}"), "request_id", None) for n in (997, 998)] == [None, "refused-998"]
    assert recent.find("trace-999") is recent.find("refused-999")
    assert [row["request_id"] for row in map(summary, recent.latest(10))] == ["refused-999", "refused-998", "admitted"]
    assert len(recent) == 1


def test_none_is_remembered_where_none_is_asked_for() -> None:
    recent = Recent(0)
    recent.keep_not_admitted(not_admitted("refused"))
    assert recent.latest(10) == []


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({}, "ended by the gateway: it does not say why"),
        ({"error_type": "auth_error"}, "ended by the gateway: auth_error"),
        ({"denial": Denial(status=401, code="unknown", message="Unknown.")}, "denied by pointsman: unknown: Unknown."),
        ({"outcome": Outcome.DISCONNECTED, "status": 0}, "ended: disconnected, status 0"),
        (
            {"outcome": Outcome.OK, "status": 101},
            "answered by the gateway, which asks no plugin about this route: nothing was decided or counted for it",
        ),
    ],
)
def test_a_request_that_was_not_admitted_says_why(fields: dict[str, Any], line: str) -> None:
    assert line in explanation(not_admitted("one", **fields), "worker")["lines"]


@pytest.mark.parametrize("generates", [True, False])
async def test_a_cost_that_is_not_known_is_told_where_there_is_one(worker: Harness, generates: bool) -> None:
    made = await worker.request(model="chat", script=ok())
    attempts = tuple(replace(attempt, cost_usd_micros=None) for attempt in made.settlement.attempts)
    recent = Recent(1)
    recent.keep(Record(replace(made.settlement, attempts=attempts, generates=generates), ()))
    record = recent.find(made.settlement.request_id)
    assert record is not None
    told = "\n".join(explanation(record, "worker")["lines"])
    assert ("the cost of 1 attempts is unknown" in told) == generates


@pytest.mark.parametrize("responses", [1, 4, 9])
def test_a_websocket_is_explained_with_the_responses_on_it(responses: int) -> None:
    """By its id and by its trace's, while it is open and afterwards."""
    recent = Recent(20)
    recent.keep(Record(settlement("other"), (), "trace-2"))
    ids = [f"response-{number}" for number in range(responses)]
    for number, name in enumerate(ids):
        recent.keep(Record(settlement(name, at=2.0 + number, within="socket"), (), "trace-1"))
    for name in ("socket", "trace-1"):
        open_one = recent.find(name)
        assert open_one is recent.find(ids[-1])
        assert open_one is not None
        shown = explanation(open_one, "worker", recent.related(open_one))
        assert shown["lines"][0].endswith("on the websocket socket")
        assert shown["related"] == ids[:-1]
    recent.keep(Record(settlement("socket", at=20.0), (), "trace-1"))
    for name in ("socket", "trace-1"):
        closed = recent.find(name)
        assert closed is not None
        shown = explanation(closed, "worker", recent.related(closed))
        assert shown["request_id"] == "socket"
        assert shown["related"] == ids
        assert f"response on it: {ids[0]}: ok, status 200" in shown["lines"]
        assert len(shown["lines"]) <= 10
        assert (f"{responses - 4} more responses on it" in shown["lines"]) == (responses > 4)


def test_other_requests_of_a_clients_trace_are_named() -> None:
    recent = Recent(20)
    recent.keep_not_admitted(not_admitted("refused-1"))
    for number in range(6):
        recent.keep(Record(settlement(f"r-{number}", at=5.0 + number), (), "trace-1"))
    found = recent.find("trace-1")
    assert found is recent.find("r-5")
    assert found is not None
    shown = explanation(found, "worker", recent.related(found))
    assert shown["lines"][-1] == "in the same trace: r-1, r-2, r-3, r-4 and 2 more"
    assert shown["related"] == ["refused-1", "r-0", "r-1", "r-2", "r-3", "r-4"]


def attempted(number: int, kind: AttemptKind, *, started_at: float, **fields: Any) -> Attempt:
    facts: dict[str, Any] = {"outcome": Outcome.OK, "duration_ms": 100.0, **fields}
    return Attempt(
        id=f"a{number}",
        request_id="r",
        number=number,
        kind=kind,
        deployment=DEPLOYMENTS[0],
        started_at=started_at,
        **facts,
    )


@pytest.mark.parametrize(
    ("kind", "waited_s", "told"),
    [
        (AttemptKind.RETRY, 0.5, True),
        (AttemptKind.FALLBACK, 0.5, True),
        (AttemptKind.RETRY, 0.001, False),
        (AttemptKind.HEDGE, 0.5, False),
    ],
)
def test_a_wait_between_two_attempts_is_told(kind: AttemptKind, waited_s: float, told: bool) -> None:
    """LiteLLM's back-off; a hedge waits for nothing."""
    first = attempted(1, AttemptKind.PRIMARY, started_at=1.0, outcome=Outcome.ERROR)
    second = attempted(2, kind, started_at=1.1 + waited_s)
    ended = replace(settlement("r"), attempts=(first, second), answered_by="a2")
    (line,) = [line for line in lines(Record(ended, ())) if line.startswith("attempt 2")]
    assert (", 500 ms after the one before: answered" in line) is told


def test_the_answers_cost_stands_beside_its_tokens_and_that_of_the_losers_apart() -> None:
    usage = Usage(prompt_tokens=10, completion_tokens=20)
    first = attempted(
        1, AttemptKind.PRIMARY, started_at=1.0, usage=replace(usage, completion_tokens=5), cost_usd_micros=100
    )
    second = attempted(2, AttemptKind.HEDGE, started_at=1.1, usage=usage, cost_usd_micros=30)
    ended = replace(settlement("r"), attempts=(first, second), answered_by="a2", usage=usage, cost_usd_micros=130)
    told = list(lines(Record(ended, ())))
    assert told[-1].endswith("answered by attempt 2, 10+20 tokens, $0.000030; $0.000130 with all attempts")
    assert ["$0.000100" in line for line in told[1:3]] == [True, False]
    alone = replace(ended, attempts=(second,), cost_usd_micros=30)
    assert list(lines(Record(alone, ())))[-1].endswith("10+20 tokens, $0.000030")


def test_a_request_names_its_mirrors_and_judges_and_they_name_it() -> None:
    recent = Recent(9)
    primary = Record(settlement("r", at=1.0), (), "trace-1")
    recent.keep(primary)
    for number, kind in enumerate((AttemptKind.MIRROR, AttemptKind.JUDGE)):
        ended = replace(settlement(f"own-{kind}", at=2.0 + number), attempts=(attempted(1, kind, started_at=1.0),))
        recent.keep(Record(ended, (), f"trace-{kind}", own=True, parent_id="r"))
    recent.keep(Record(settlement("other", at=9.0), (), "trace-3"))
    found = explanation(primary, "w", recent.related(primary))
    assert found["related"] == ["own-mirror", "own-judge"]
    told = [line.partition(", status")[0] for line in found["lines"][-2:]]
    assert told == ["mirror: own-mirror: 'chat': ok", "judge: own-judge: 'chat': ok"]
    mirror = recent.find("own-mirror")
    assert mirror is not None
    assert explanation(mirror, "w")["lines"][0].endswith("own call: chat of 'chat', for the request r")


def test_a_model_that_does_not_exist_is_said_before_what_follows_from_it() -> None:
    denial = Denial(status=403, code="model_unpriced", message="The price is unknown.", plugin="quota")
    ended = replace(
        settlement("r"), outcome=Outcome.DENIED, status_code=403, denial=denial, route=RouteValue(target="gpt-9")
    )
    told = list(lines(Record(ended, (), unknown_model=True)))
    assert told[1:3] == [
        "unknown model: no deployment serves 'gpt-9'",
        "denied by quota: model_unpriced: The price is unknown.",
    ]
    assert "unknown model" not in "".join(lines(Record(ended, ())))
