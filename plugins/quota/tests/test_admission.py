"""Requests through a whole host: admitted, refused, reserved, settled."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest

from pointsman import PluginInfo, hookimpl
from pointsman.events import BudgetSpent
from pointsman.plugin import PluginConfig
from pointsman.testing import Harness, breaks, cancel, deployment, disconnect, error, never, ok
from pointsman.types import Attempt, AttemptKind, Denial, Endpoint, Identity, Outcome, Route, Settlement, Usage

from .kit import BODY, call, details, tenant, usage, worker


async def test_unknown_callers_are_refused_with_401() -> None:
    async with worker(tenant()) as h:
        result = await call(h, Identity(team_id="nobody", end_user="team-acme"))
        assert (result.status, result.denial and result.denial.code) == (401, "unknown_tenant")
        assert not result.attempts
        assert (await call(h)).status == 200
        assert details(h)["refused"] == {"unknown_tenant": 1}


async def test_the_admin_key_is_exempt_unless_a_default_or_the_configuration_says_otherwise() -> None:
    admin = Identity(admin=True)
    async with worker(tenant()) as h:
        result = await call(h, admin)
        assert (result.status, result.route.reservations) == (200, ())
    async with worker(tenant(), exempt_admin=False) as h:
        assert (await call(h, admin)).status == 401
    async with worker(tenant(limits={"requests_per_minute": 1}), default_tenant="acme") as h:
        assert [(await call(h, admin)).status for _ in range(2)] == [200, 429]


async def test_a_model_that_is_not_allowed_is_refused_with_403() -> None:
    async with worker(tenant(models=["ch*"])) as h:
        assert (await call(h)).status == 200
        for model in ("backup", "", "chat,backup"):
            result = await call(h, model=model)
            assert (result.status, result.denial and result.denial.code) == (403, "model_not_allowed")
        result = await call(h, body={**BODY, "fallbacks": ["cheap", "backup"]})
        assert result.denial is not None
        assert result.denial.status == 403
        assert "Not allowed for this tenant: 'backup'." in result.denial.message
        assert (await usage(h))["tenant"]["day_tokens"] == 15


@pytest.mark.parametrize(
    ("models", "admitted"),
    [
        (["ch*"], ["chat", "by-alias", "backup-alias"]),
        (["by-alias"], ["by-alias"]),
        (["backup-*"], []),
        (["b*"], ["backup"]),
    ],
)
async def test_an_alias_is_allowed_with_its_model_or_by_its_very_name(models: list[str], admitted: list[str]) -> None:
    """Also as a fallback that the client names; a pattern that fits the alias alone does not open the model behind it."""
    async with worker(tenant(models=models)) as h:
        h.gateway.catalog.aliases |= {"by-alias": "chat", "backup-alias": "chat"}
        for model in ("chat", "backup", "by-alias", "backup-alias"):
            assert (await call(h, model=model)).status == (200 if model in admitted else 403), model
        for model in admitted:
            result = await call(h, model=model, body={**BODY, "fallbacks": ["backup-alias"]})
            assert result.status == (200 if models == ["ch*"] else 403)


async def test_limits_of_a_model_hold_for_its_aliases() -> None:
    limits = {"chat": {"requests_per_minute": 1}}
    async with worker(tenant(model_limits=limits)) as h:
        h.gateway.catalog.aliases["by-alias"] = "chat"
        assert [(await call(h, model=model)).status for model in ("by-alias", "chat")] == [200, 429]


async def test_retry_after_is_exact() -> None:
    """One millisecond before it the request is refused, and then admitted; the headers say what is left."""
    async with worker(tenant(limits={"requests_per_minute": 7, "burst_s": 20})) as h:
        first = await call(h)
        assert first.headers["x-ratelimit-limit-requests"] == "2"
        assert first.headers["x-ratelimit-remaining-requests"] == "1"
        assert first.headers["x-ratelimit-reset-requests"] == "8.572s"
        assert (await call(h)).status == 200
        refused = await call(h)
        assert refused.denial is not None
        assert (refused.status, refused.denial.code) == (429, "requests_per_minute_exceeded")
        assert refused.headers["retry-after-ms"] == "8572"
        assert refused.headers["retry-after"] == "9"
        assert refused.headers["x-ratelimit-remaining-requests"] == "0"
        assert refused.headers["x-pointsman-quota"] == "refused; limit=tenant/requests_per_minute"
        await h.clock.advance(8.571)
        assert (await call(h)).status == 429
        await h.clock.advance(0.001)
        assert (await call(h)).status == 200


async def test_tokens_are_reserved_by_estimate_and_settled_to_what_was_used() -> None:
    async with worker(tenant(limits={"tokens_per_minute": 1000})) as h:
        running = asyncio.create_task(
            call(h, script=ok(usage=Usage(prompt_tokens=10, completion_tokens=40), latency_s=1.0), moves_clock=False)
        )
        await h.clock.quiet()
        held = (await usage(h))["tenant"]
        assert (held["requests_in_flight"], held["reserved_tokens"], held["day_tokens"]) == (1, 92, 0)
        await h.clock.advance(1.0)
        result = await running
        await h.settled()
        assert result.headers["x-ratelimit-remaining-tokens"] == "908"
        settled = (await usage(h))["tenant"]
        assert (settled["requests_in_flight"], settled["reserved_tokens"]) == (0, 0)
        assert (settled["day_tokens"], settled["tokens_left"]) == (50, 950)


@pytest.mark.parametrize(
    ("script", "given", "charged"),
    [
        ([error(500)] * 9, {}, 0),
        ([breaks(after_pieces=3)] * 9, {"stream": True}, 13),
        (disconnect(), {}, 15),
        (disconnect(after_pieces=2), {"stream": True}, 12),
        (cancel(), {}, 0),
        (ok(usage=None), {}, 92),
        (ok(usage=Usage(prompt_tokens=-50, completion_tokens=10)), {}, 92),
        (ok(cached=True), {}, 0),
        (ok(usage=Usage()), {}, 0),
    ],
)
async def test_whatever_becomes_of_a_request_its_hold_ends(script: Any, given: dict[str, Any], charged: int) -> None:
    """Failed, broken off, gone, cancelled, without usage, with absurd usage, cached: charged for what there was."""
    async with worker(tenant(limits={"tokens_per_minute": 1000, "max_concurrent_requests": 1})) as h:
        await call(h, script=script, **given)
        await h.settled()
        after = (await usage(h))["tenant"]
        assert (after["requests_in_flight"], after["reserved_tokens"], after["day_tokens"]) == (0, 0, charged)
        assert details(h)["in_flight"] == 0


def attempt(number: int, **given: Any) -> Attempt:
    fields = {
        "id": str(number), "request_id": "r", "number": number, "kind": AttemptKind.PRIMARY,
        "deployment": deployment("a", "chat"), "started_at": 0.0, "outcome": Outcome.OK,
        "usage": Usage(prompt_tokens=10, completion_tokens=5),
    }  # fmt: skip
    return Attempt(**{**fields, **given})


HEDGE = {
    "kind": AttemptKind.HEDGE,
    "outcome": Outcome.CANCELLED,
    "usage": Usage(prompt_tokens=40, completion_tokens=8, estimated=True),
}


@pytest.mark.parametrize(
    ("attempts", "answer", "charged"),
    [
        ([{}], 0, 15),
        ([{}, HEDGE], 0, 15 + 48),
        ([{}, {**HEDGE, "usage": None}], 0, 15),
        ([{"outcome": Outcome.ERROR, "first_token_ms": 5.0}, {"kind": AttemptKind.FALLBACK}], 1, 15 + 15),
        ([{"outcome": Outcome.ERROR, "status_code": 500}, {"kind": AttemptKind.RETRY}], 1, 15),
        ([{"usage": None}, HEDGE], 0, 92 + 48),
        ([{"cached": True}], 0, 0),
        ([{"cached": True}, HEDGE], 0, 48),
        ([{}, {**HEDGE, "cached": True}], 0, 15),
        *(([{}, {"kind": kind}], 0, 15) for kind in (AttemptKind.MIRROR, AttemptKind.PROBE, AttemptKind.JUDGE)),
        ([{}, {**HEDGE, "usage": Usage(prompt_tokens=10**9)}], 0, 15 + 10**9 - 15),
    ],
)
async def test_every_attempt_is_charged_what_it_used(attempts: list[dict[str, Any]], answer: int, charged: int) -> None:
    """The answer, hedges that lost, what broke off; not the cache, errors for answers, or calls of our own."""
    async with worker(tenant(limits={"tokens_per_minute": 10_000})) as h:
        running = asyncio.create_task(call(h, script=never(), moves_clock=False))
        await h.clock.quiet()
        ((reservation, _),) = h.plugin("quota")._accounts.reservations.values()
        made = tuple(attempt(number, **given) for number, given in enumerate(attempts, 1))
        settlement = Settlement(
            request_id=reservation.id, endpoint=Endpoint.CHAT, model="chat", stream=False, identity=Identity(),
            route=Route(target="chat", reservations=(reservation,)), outcome=Outcome.OK, status_code=200,
            started_at=0.0, finished_at=1.0, attempts=made, usage=made[answer].usage,
        )  # fmt: skip
        await h.plugin("quota").settle(settlement=settlement)
        assert (await usage(h))["tenant"]["day_tokens"] == charged
        running.cancel()
        await asyncio.wait({running})
        await h.settled()


class Denier:
    def __init__(self, _config: PluginConfig) -> None:
        pass

    @hookimpl
    async def pre_route(self, ctx: Any) -> Denial | None:
        return Denial(status=410, code="gone", message="no") if ctx.model == "backup" else None


DENIER = PluginInfo(name="denier", config=PluginConfig, factory=Denier)


async def test_a_later_plugins_denial_gives_the_reservation_back() -> None:
    async with worker(tenant(limits={"max_concurrent_requests": 1, "tokens_per_day": 100}), others=[DENIER]) as h:
        assert [(await call(h, model="backup")).status for _ in range(5)] == [410] * 5
        await h.settled()
        assert (await usage(h))["tenant"]["day_tokens"] == 0
        assert (await call(h)).status == 200


async def test_all_scopes_are_taken_or_none() -> None:
    """A model's limit refuses: the tenant's and the key's counts are as if the request had never come."""
    acme = tenant(
        limits={"requests_per_minute": 10},
        model_limits={"ch*": {"requests_per_minute": 1}, "backup": {"tokens_per_minute": 50}},
    )
    async with worker(acme, gateway_limits={"requests_per_minute": 100}) as h:
        assert (await call(h)).status == 200
        for model, code in (("chat", "requests_per_minute_exceeded"), ("backup", "request_too_large")):
            result = await call(h, model=model)
            assert result.denial is not None
            assert result.denial.code == code
            assert "model '" in result.denial.message
        await h.settled()
        shown = await usage(h)
        assert {scope: row["requests_left"] for scope, row in shown.items() if "requests_left" in row} == {
            "gateway": 99,
            "tenant": 9,
            "model ch*": 0,
        }
        assert (await call(h, model="backup", body={**BODY, "max_tokens": 40})).status == 200


async def test_a_request_larger_than_its_limit_is_told_so_and_not_to_come_back() -> None:
    async with worker(tenant(limits={"tokens_per_minute": 50})) as h:
        result = await call(h)
        assert (result.status, result.denial and result.denial.code) == (413, "request_too_large")
        assert "retry-after" not in result.headers


async def test_a_used_up_day_ends_at_midnight() -> None:
    """The SDKs are told not to wait that long by themselves."""
    async with worker(tenant(limits={"tokens_per_day": 100}), timezone="Europe/Berlin") as h:
        assert (await call(h)).status == 200
        await h.settled()
        refused = await call(h)
        assert refused.denial is not None
        assert refused.denial.code == "tokens_per_day_exceeded"
        assert refused.headers["x-should-retry"] == "false"
        wait_s = int(refused.headers["retry-after"])
        assert (h.clock.now() + wait_s + 2 * 3600) % 86_400 == 0
        await h.clock.skip(wait_s - 1)
        assert (await call(h)).status == 429
        await h.clock.advance(1)
        assert (await call(h)).status == 200


async def test_many_at_once_never_exceed_the_limits() -> None:
    """Two workers on one store, forty requests at the same moment: exactly as many as fit are admitted."""
    async with worker(tenant(limits={"max_concurrent_requests": 7, "requests_per_minute": 30})) as h:
        other = worker(
            tenant(limits={"max_concurrent_requests": 7, "requests_per_minute": 30}),
            store=h.store, clock=h.clock, name="other",
        )  # fmt: skip
        async with other:
            tasks = [
                asyncio.create_task(call(each, script=ok(latency_s=1.0), moves_clock=False))
                for _ in range(20)
                for each in (h, other)
            ]
            await h.clock.quiet()
            assert (await usage(h))["tenant"]["requests_in_flight"] == 7
            await h.clock.advance(1.0)
            statuses = [result.status for result in await asyncio.gather(*tasks)]
            assert (statuses.count(200), statuses.count(429)) == (7, 33)
            await h.settled()
            await other.settled()
            assert (await usage(h))["tenant"]["requests_in_flight"] == 0


async def test_too_many_in_flight_is_told_the_usual_duration() -> None:
    """Nobody knows when others end: the wait is what requests usually take, at most a lease."""
    async with worker(tenant(limits={"max_concurrent_requests": 1})) as h:
        for _ in range(60):
            await call(h, script=ok(latency_s=4.0))
        await h.settled()
        task = asyncio.create_task(call(h, script=never(), moves_clock=False))
        await h.clock.quiet()
        refused = await call(h)
        assert refused.denial is not None
        assert refused.denial.code == "max_concurrent_requests_exceeded"
        assert 3 <= int(refused.headers["retry-after"]) <= 5
        task.cancel()
        await asyncio.wait({task})
        await h.settled()


@pytest.mark.parametrize("value", [0, -5, math.nan, math.inf, "x", True, 10**12])
async def test_absurd_amounts_are_refused(value: object) -> None:
    async with worker(tenant(limits={"tokens_per_minute": 1000})) as h:
        for field, endpoint in (("max_tokens", Endpoint.CHAT), ("n", Endpoint.CHAT), ("n", Endpoint.EMBEDDINGS)):
            result = await call(h, endpoint=endpoint, body={**BODY, "n": 1, field: value})
            assert (result.status, result.denial and result.denial.param) == (400, field)
            assert not result.attempts
        assert h.faults == {}


async def test_output_is_estimated_by_maximum_choices_and_what_was_learnt() -> None:
    async def reserved(h: Harness, **body: object) -> int:
        result = await call(h, body={"prompt": BODY["prompt"], **body})
        return result.route.reservations[0].amounts["tokens"]

    async with worker(tenant()) as h:
        assert await reserved(h) == 2 + 1024
        assert await reserved(h, max_tokens=7, n=3) == 2 + 21
        for _ in range(20):
            await call(h, script=ok(usage=Usage(prompt_tokens=10, completion_tokens=60)))
        await h.settled()
        assert await reserved(h) == 2 + 64
        assert await reserved(h, max_tokens=5000) == 2 + 5000
        result = await call(h, endpoint=Endpoint.EMBEDDINGS, body={"input": "one two three"})
        assert result.route.reservations[0].amounts["tokens"] == 3
    async with worker(tenant(), output={"by": "learnt"}) as h:
        for _ in range(20):
            await call(h, script=ok(usage=Usage(prompt_tokens=10, completion_tokens=60)))
        await h.settled()
        assert await reserved(h, max_tokens=5000) == 2 + 64
        assert await reserved(h, max_tokens=50) == 2 + 50


async def test_a_prompt_that_cannot_be_counted_is_no_way_round() -> None:
    """Its length is used instead, also where failures would let requests pass."""
    async with worker(tenant(limits={"tokens_per_minute": 100}), on_failure="allow") as h:

        def fail(_model: str, _text: str) -> int:
            raise KeyError("no tokenizer")

        h.plugin("quota")._estimator._services.tokenizer.count_text = fail
        long = {"messages": [{"role": "user", "content": "x" * 1000}], "max_tokens": 1}
        assert (await call(h, body=long)).status == 413
        assert (await call(h, body={"prompt": "x", "max_tokens": 1})).status == 200
        assert details(h)["uncountable_prompts"] == 2


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [], "system": "word " * 500},
        {"input": "hi", "instructions": "word " * 500},
        {"messages": [], "tools": [{"type": "function", "function": {"name": "f", "description": "word " * 500}}]},
        {"input": [list(range(500))]},
        {"contents": [{"parts": [{"text": "word " * 500}]}]},
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_every_part_of_a_request_is_reserved_before_it_is_answered(body: dict[str, object], stream: bool) -> None:
    async with worker(tenant(limits={"tokens_per_minute": 400})) as h:
        result = await call(h, body={**body, "max_tokens": 1}, stream=stream)
        assert (result.status, result.denial and result.denial.code) == (413, "request_too_large")
        assert not result.attempts


async def test_money_is_reserved_by_price_and_settled_to_cost() -> None:
    """Two prompt tokens at 1 and 90 output tokens at 2 millionths: 182, then 10 + 2 * 5 = 20 as the gateway computes."""
    async with worker(tenant(limits={"usd_per_day": 0.0003, "usd_per_month": "0.01"})) as h:
        result = await call(h)
        assert result.route.reservations[0].amounts == {"tokens": 92, "usd_micros": 182}
        await h.settled()
        assert (await usage(h))["tenant"]["day_usd_micros"] == 20
        await call(h, script=ok(cost_usd_micros=250))
        await h.settled()
        refused = await call(h)
        assert refused.denial is not None
        assert refused.denial.code == "usd_per_day_exceeded"
        assert "0.0003 US dollars a day" in refused.denial.message
        assert (await usage(h))["tenant"]["month_usd_micros"] == 270


async def test_money_that_belongs_to_no_settlement_is_spent_when_it_is_announced() -> None:
    async with worker(tenant(limits={"usd_per_day": 0.001}), money_from="events") as h:
        for amount in (100, -50, 0, 10**18):
            h.publish(BudgetSpent(tenant="acme", cost_usd_micros=amount, at=h.clock.now()))
        h.publish(BudgetSpent(tenant="nobody", cost_usd_micros=5, at=h.clock.now()))
        await h.settled()
        assert (await usage(h))["tenant"]["day_usd_micros"] == 100
        h.publish(BudgetSpent(tenant="acme", cost_usd_micros=900, at=h.clock.now()))
        await h.settled()
        assert (await call(h)).status == 429


@pytest.mark.parametrize("where", ["section", "tenant"])
async def test_dry_run_counts_and_marks_but_never_refuses(where: str) -> None:
    acme = tenant(limits={"requests_per_minute": 1, "tokens_per_day": 100}, models=["chat"], dry_run=where == "tenant")
    async with worker(acme, dry_run=where == "section") as h:
        assert "x-pointsman-quota" not in (await call(h)).headers
        await h.settled()
        result = await call(h)
        assert result.status == 200
        assert result.headers["x-pointsman-quota"].startswith("would-refuse; limit=tenant/tokens_per_day")
        assert result.route.labels["quota"] == "would-refuse tenant/tokens_per_day"
        assert (await call(h, model="backup")).headers["x-pointsman-quota"] == "would-refuse; limit=model_not_allowed"
        assert (await call(h, body={**BODY, "max_tokens": -1})).status == 200
        assert (await call(h, Identity())).status == (200 if where == "section" else 401)
        await h.settled()
        assert (await usage(h))["tenant"]["day_tokens"] == 45
        assert details(h)["would_refuse"]["tenant/tokens_per_day"] == 1


async def test_the_tenant_is_on_the_route_for_others_to_see() -> None:
    async with worker(tenant()) as h:
        result = await call(h, script=ok())
        assert result.route.labels["tenant"] == "acme"
        assert result.attempts[0].labels["tenant"] == "acme"
        assert result.outcome is Outcome.OK


async def test_the_trace_says_what_is_left_before_and_after() -> None:
    """Of requests, tokens and money: at admission without what is set aside, after settlement without what was used."""
    limits = {"requests_per_minute": 60, "tokens_per_day": 1000, "usd_per_day": 1}
    async with worker(tenant(limits=limits), tracing=True) as h:
        for _ in range(2):
            await call(h)
            await h.settled()
        every = {
            name: [dict(span.attributes or {}) for span in h.spans if span.name == name]
            for name in ("pre_route", "settle chat")
        }
        shown = (await usage(h))["tenant"]

    def left(name: str) -> list[tuple[object, ...]]:
        return [
            tuple(span[f"pointsman.quota.remaining_{unit}"] for unit in ("requests", "tokens", "usd_micros"))
            for span in every[name]
        ]

    assert left("pre_route") == [(59, 908, 999_818), (58, 893, 999_798)]
    assert left("settle chat") == [(59, 985, 999_980), (58, 970, 999_960)]
    assert left("settle chat")[-1] == (
        shown["requests_left"],
        1000 - shown["day_tokens"],
        1_000_000 - shown["day_usd_micros"],
    )


@pytest.mark.parametrize(
    ("endpoint", "body", "sizes", "section", "tokens"),
    [
        (Endpoint.RESPONSES, {"previous_response_id": "resp_1"}, (500, 900), {}, 900),
        (Endpoint.RESPONSES, {"conversation": {"id": "conv_1"}}, (500,), {}, 500),
        (Endpoint.RESPONSES, {"extra_body": {"previous_response_id": "resp_1"}}, (500,), {}, 500),
        (Endpoint.INTERACTIONS, {"previous_interaction_id": "int_1"}, (500,), {}, 500),
        (Endpoint.RESPONSES, {"previous_response_id": "resp_1"}, (), {}, 128_000),
        (Endpoint.RESPONSES, {"previous_response_id": "resp_1"}, (500,), {"unknown_history_tokens": 70}, 71),
        (Endpoint.RESPONSES, {"previous_response_id": "resp_1", "fallbacks": ["large"]}, (500,), {}, 7000),
        (Endpoint.RESPONSES, {"previous_response_id": None}, (500,), {}, 1),
        (Endpoint.CHAT, {"conversation": "mine"}, (500,), {}, 1),
    ],
)
async def test_a_conversation_of_unknown_length_is_reserved_as_the_most_that_a_model_can_read(
    endpoint: Endpoint, body: dict[str, Any], sizes: tuple[int, ...], section: dict[str, Any], tokens: int
) -> None:
    """Or as the configuration says."""
    deployments = [deployment(f"chat-{size}", "chat", max_input_tokens=size) for size in sizes] or [deployment("chat")]
    deployments.append(deployment("large", "large", max_input_tokens=7000))
    async with worker(tenant(limits={"tokens_per_day": 10**6}), deployments=deployments, **section) as h:
        result = await call(h, endpoint=endpoint, body={"input": "a", "max_output_tokens": 1, **body})
        assert result.route.reservations[0].amounts["tokens"] == tokens + 1
