"""Limits in money: at the dearest price that may apply, and never for a price that is unknown."""

from __future__ import annotations

import asyncio
import base64
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml

from pointsman import pricing
from pointsman.cli.check import inspect
from pointsman.cli.output import Finding, Level
from pointsman.testing import FakeClock, Harness, deployment, error, never, ok
from pointsman.types import Attempt, AttemptKind, Endpoint, Identity, Outcome, Price, Route, Settlement, Usage

from .kit import BODY, call, details, tenant, usage, worker

POOR = tenant(limits={"usd_per_month": "0.001"})
FREE = Price(input_usd=Decimal(0), output_usd=Decimal(0))
CHEAP = Price(input_usd=Decimal("0.000001"), output_usd=Decimal("0.000002"))
DEAR = Price(input_usd=Decimal("0.00001"), output_usd=Decimal("0.00002"))


def priced(chat: Price, backup: Price = FREE) -> dict[str, Price]:
    return {"chat-a": chat, "chat-b": chat, "backup-a": backup}


def reserved(result: Any) -> int:
    return int(result.route.reservations[0].amounts["usd_micros"])


@pytest.mark.parametrize("stream", [False, True])
async def test_a_model_without_a_price_is_refused_where_money_is_limited(*, stream: bool) -> None:
    async with worker(POOR, prices={}) as h:
        result = await call(h, stream=stream)
        assert (result.status, result.denial and result.denial.code) == (403, "model_unpriced")
        assert result.denial is not None
        assert "The price of model 'chat' is unknown" in result.denial.message
        assert not result.attempts


async def test_where_money_is_not_limited_no_price_is_needed() -> None:
    async with worker(tenant(limits={"tokens_per_day": 1000}), prices={}) as h:
        assert (await call(h)).status == 200
        assert h.status("quota").ok


async def test_the_operator_may_let_unknown_prices_pass() -> None:
    async with worker(POOR, prices={}, host={"unpriced": "allow"}) as h:
        assert (await call(h)).status == 200


@pytest.mark.parametrize(("policy", "becomes"), [("deny", "are refused"), ("allow", "are not counted")])
async def test_the_status_says_which_limits_cannot_work(policy: str, becomes: str) -> None:
    tenants = (POOR, tenant("rich"), tenant("other", models=["backup"], limits={"usd_per_day": 1}))
    async with worker(*tenants, prices=priced(Price(), CHEAP), host={"unpriced": policy}) as h:
        (problem,) = details(h)["problems"]
        assert problem == (
            "tenant 'acme' has a limit in money, but the price of 'chat' is unknown, so these requests "
            f"{becomes}; set the prices of these models"
        )
        assert not h.status("quota").ok


async def test_a_price_for_half_of_the_tokens_is_none_in_the_status() -> None:
    async with worker(POOR, prices=priced(Price(input_usd=Decimal(1)), CHEAP)) as h:
        (problem,) = details(h)["problems"]
        assert "the price of 'chat' is unknown" in problem


async def test_the_status_names_the_model_that_is_fallen_back_to() -> None:
    async with worker(tenant(models=["chat"], limits={"usd_per_day": 1}), prices=priced(CHEAP, Price())) as h:
        assert details(h)["problems"] == []
        h.gateway.catalog.fallbacks["chat"] = ["backup"]
        (problem,) = details(h)["problems"]
        assert "the price of 'backup' (which may answer for 'chat') is unknown" in problem


ROWS = (
    ("known", {"model": "openai/gpt-4o-mini"}, {}),
    ("based", {"model": "hosted_vllm/custom"}, {"base_model": "gpt-4o"}),
    ("set", {"model": "hosted_vllm/custom", "input_cost_per_token": 0.001, "output_cost_per_token": 0}, {}),
    ("lost", {"model": "hosted_vllm/nobody-7b"}, {}),
)


def checked(tmp_path: Path, section: dict[str, Any], **document: Any) -> list[Finding]:
    """Check a configuration with these rows; return what is found about its limits in money."""
    models = [{"model_name": name, "litellm_params": params, "model_info": info} for name, params, info in ROWS]
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump({"model_list": models, "pointsman": section, **document}))
    return [finding for finding in inspect(file, {}).findings if finding.subject == "quota"]


def test_a_check_says_which_limits_cannot_work(tmp_path: Path) -> None:
    """Without a start, by LiteLLM's own cost map: models of it, a base model and configured prices are known."""
    (problem,) = checked(tmp_path, {"plugins": [{"quota": {"tenants": [POOR, tenant("rich")]}}]})
    assert problem.message == (
        "tenant 'acme' has a limit in money, but the price of 'lost' is unknown, so these requests are refused; set the "
        "prices of these models"
    )
    assert problem.level is Level.FAILED


RULE = {"tenants": ["acme"], "models": ["lost"], "input_usd_per_million": "1", "output_usd_per_million": "1"}


@pytest.mark.parametrize(("money_from", "named"), [("events", ["other"]), ("gateway", ["acme", "other"])])
def test_a_rule_for_one_tenant_is_a_price_for_this_tenant(tmp_path: Path, money_from: str, named: list[str]) -> None:
    """Where budgets follow the rules of a billing plugin; for all other tenants the price is unknown."""
    tenants = [POOR, tenant("other", limits={"usd_per_day": 1})]
    billing = {"billing": {"sinks": [], "prices": [RULE]}}
    section = {"plugins": [{"quota": {"tenants": tenants, "money_from": money_from}}, billing]}
    problems = [finding.message for finding in checked(tmp_path, section)]
    assert [problem.split("'")[1] for problem in problems] == named


def test_a_check_only_warns_of_limits_that_the_operator_lets_pass(tmp_path: Path) -> None:
    section = {"unpriced": "allow", "plugins": [{"quota": {"tenants": [POOR]}}]}
    assert [finding.level for finding in checked(tmp_path, section)] == [Level.WARNING]


@pytest.mark.parametrize("through", ["fallbacks", "default_fallbacks", "alias"])
def test_a_check_follows_fallbacks_and_aliases(tmp_path: Path, through: str) -> None:
    settings: dict[str, Any] = {
        "fallbacks": {"litellm_settings": {"fallbacks": [{"known": ["set", "lost"]}]}},
        "default_fallbacks": {"router_settings": {"default_fallbacks": ["lost"]}},
        "alias": {"router_settings": {"model_group_alias": {"known": {"model": "lost", "hidden": True}}}},
    }[through]
    limited = tenant(models=["known"], limits={"usd_per_day": 1})
    section = {"plugins": [{"quota": {"tenants": [limited]}}]}
    assert checked(tmp_path, section) == []
    (problem,) = checked(tmp_path, section, **settings)
    assert "the price of 'lost' (which may answer for 'known') is unknown" in problem.message


@pytest.mark.parametrize(
    ("money_from", "rule", "found"),
    [
        ("events", {"models": ["lost"]}, 0),
        ("events", {"models": ["nobody-*"]}, 0),
        ("events", {"models": ["known"]}, 1),
        ("events", {"tenants": ["other"]}, 1),
        ("gateway", {"models": ["lost"]}, 1),
    ],
)
def test_a_check_knows_the_prices_of_billing_where_budgets_follow_it(
    tmp_path: Path, money_from: str, rule: dict[str, Any], found: int
) -> None:
    pytest.importorskip("pointsman_billing")
    prices = [{"input_usd_per_million": "1", "output_usd_per_million": "2", **rule}]
    section = {"plugins": [{"quota": {"tenants": [POOR], "money_from": money_from}}, {"billing": {"prices": prices}}]}
    assert len(checked(tmp_path, section)) == found


async def test_a_price_that_only_a_fallback_lacks_is_unknown_too() -> None:
    async with worker(POOR, prices=priced(CHEAP, Price())) as h:
        assert (await call(h)).status == 200
        h.gateway.catalog.fallbacks["chat"] = ["backup"]
        assert (await call(h)).status == 403


async def test_the_dearest_model_that_may_answer_is_reserved() -> None:
    """2 and 90 tokens at 1 and 2 millionths; ten times that for what the gateway, or the client, falls back to."""
    async with worker(tenant(limits={"usd_per_month": 1}), prices=priced(CHEAP, DEAR)) as h:
        assert reserved(await call(h)) == 182
        assert reserved(await call(h, body={**BODY, "fallbacks": ["backup"]})) == 1820 + 10, "its name is a word"
        h.gateway.catalog.fallbacks["chat"] = ["backup"]
        assert reserved(await call(h)) == 1820


async def test_a_free_model_with_a_fallback_that_costs_is_not_free() -> None:
    async with worker(POOR, prices=priced(FREE, DEAR)) as h:
        h.gateway.catalog.fallbacks["chat"] = ["backup"]
        assert (await call(h)).status == 413


async def test_the_tier_of_a_large_prompt_is_reserved() -> None:
    tiered = Price(input_usd=Decimal("0.000001"), output_usd=Decimal("0.000002"), above=((100, DEAR),))
    async with worker(tenant(limits={"usd_per_month": "0.002"}), prices=tiered) as h:
        assert reserved(await call(h, body={"prompt": "word " * 100, "max_tokens": 1})) == 102
        refused = await call(h, body={"prompt": "word " * 201, "max_tokens": 1})
        assert (refused.status, refused.denial and refused.denial.code) == (413, "request_too_large")


async def test_a_service_tier_is_reserved_at_its_prices() -> None:
    tiered = Price(input_usd=Decimal("0.000001"), output_usd=Decimal("0.000002"), tiers={"priority": DEAR})
    async with worker(tenant(limits={"usd_per_month": 1}), prices=tiered) as h:
        assert reserved(await call(h, body={**BODY, "service_tier": "priority"})) == 1820


@pytest.mark.parametrize("tier", ["flex", "FLEX", "balanced"])
async def test_a_cheaper_service_tier_is_reserved_as_none(tier: str) -> None:
    """Whether it serves is not known before the answer."""
    cheap = Price(input_usd=Decimal("0.0000001"), output_usd=Decimal("0.0000002"))
    tiered = Price(
        input_usd=Decimal("0.000001"), output_usd=Decimal("0.000002"), tiers={"flex": cheap, "balanced": cheap}
    )
    async with worker(tenant(limits={"usd_per_month": 1}), prices=tiered) as h:
        assert reserved(await call(h, body={**BODY, "service_tier": tier})) == reserved(await call(h, body=BODY))


async def test_a_service_tier_without_a_price_is_refused_where_money_is_limited() -> None:
    """Otherwise a client could ask for one to use what its budget does not pay for."""
    usual = Price(input_usd=Decimal("0.000001"), output_usd=Decimal("0.000002"), for_all_tiers=False)
    async with worker(tenant(limits={"usd_per_month": 1}), prices=usual) as h:
        assert (await call(h, body={**BODY, "service_tier": "default"})).status == 200
        refused = await call(h, body={**BODY, "service_tier": "priority"})
        assert (refused.status, refused.denial and refused.denial.code) == (403, "model_unpriced")
        assert "in the service tier 'priority' is unknown" in (refused.denial.message if refused.denial else "")


async def test_a_free_model_is_not_refused_because_the_budget_is_used_up() -> None:
    async with worker(POOR, prices=priced(CHEAP)) as h:
        await call(h, script=ok(cost_usd_micros=5000))
        await h.settled()
        assert (await call(h)).status == 429
        assert (await call(h, model="backup")).status == 200


#: A millionth of a dollar a token that is read, and two that is written, but for sound and pictures.
SOUND = replace(CHEAP, audio_input_usd=Decimal("0.00001"), audio_output_usd=Decimal("0.00002"))
PICTURES = replace(CHEAP, image_output_usd=Decimal("0.00003"))
CONTENTS = {"contents": [{"parts": [{"text": "one two"}]}]}
SAID = {"messages": [{"role": "user", "content": "one two"}]}
CLIP = {"data": base64.b64encode(bytes(160_000)).decode(), "format": "wav"}
HEARD = [{"role": "user", "content": [{"type": "input_audio", "input_audio": CLIP}]}]


@pytest.mark.parametrize(
    ("endpoint", "price", "body", "usd_micros"),
    [
        (Endpoint.IMAGES, Price(image_usd=Decimal("0.04")), {"prompt": "a cat", "n": 2}, 80_000),
        (Endpoint.SPEECH, Price(character_usd=Decimal("0.000015")), {"input": "hello " * 10}, 900),
        (Endpoint.TRANSCRIPTIONS, Price(audio_second_usd=Decimal("0.0001")), {"file": b"RIFF" * 1000}, 6000),
        (Endpoint.RERANK, Price(search_unit_usd=Decimal("0.002")), {"query": "q", "documents": ["a"] * 150}, 4000),
        (
            Endpoint.RERANK,
            Price(input_usd=Decimal(0), output_usd=Decimal(0), search_unit_usd=Decimal("0.002")),
            {},
            2000,
        ),
        (Endpoint.OCR, Price(page_usd=Decimal("0.001")), {"document": {"document_url": "https://host/a"}}, 10_000),
        (
            Endpoint.OCR,
            Price(page_usd=Decimal("0.001")),
            {"document": {"document_url": "https://host/a"}, "pages": [0, 1]},
            2000,
        ),
        (
            Endpoint.OCR,
            Price(page_usd=Decimal("0.001")),
            {"document": {"document_url": "https://host/a"}, "pages": []},
            10_000,
        ),
        (
            Endpoint.OCR,
            Price(page_usd=Decimal("0.001")),
            {"document": {"document_url": "https://host/a"}, "pages": list(range(30))},
            30_000,
        ),
        (
            Endpoint.TRANSCRIPTIONS,
            Price(audio_second_usd=Decimal("0.0001")),
            {"file": {"filename": "a", "type": "audio/wav", "data": bytes(16_000 * 500)}},
            50_000,
        ),
        (Endpoint.VIDEOS, Price(video_second_usd=Decimal("0.1")), {"prompt": "a cat", "seconds": "8"}, 800_000),
        (Endpoint.EMBEDDINGS, CHEAP, {"input": ["one two"]}, 2),
        (Endpoint.COMPLETIONS, CHEAP, {"prompt": "one two", "max_tokens": 10}, 22),
        (Endpoint.GENERATE_CONTENT, CHEAP, {"contents": [{"parts": [{"text": "one two"}]}], "max_tokens": 1}, 4),
        (Endpoint.COMPLETIONS, CHEAP, {"prompt": ["one", "two"], "max_tokens": 10, "n": 2}, 82),
        (
            Endpoint.GENERATE_CONTENT,
            CHEAP,
            {**CONTENTS, "generationConfig": {"maxOutputTokens": 100, "candidateCount": 3}},
            # a configuration's words count as well, since it may hold a schema
            602 + 4,
        ),
        # 10 seconds of 32 tokens, rounded up, and those that a message has in addition
        (Endpoint.CHAT, SOUND, {"messages": HEARD, "max_tokens": 1}, 321 * 10 + 7 + 2),
        (Endpoint.CHAT, SOUND, {**SAID, "modalities": ["text", "audio"], "max_tokens": 100}, 9 + 100 * 20),
        (
            Endpoint.GENERATE_CONTENT,
            SOUND,
            {**CONTENTS, "generationConfig": {"responseModalities": ["AUDIO"], "maxOutputTokens": 100}},
            2 + 4 + 100 * 20,
        ),
        (
            Endpoint.GENERATE_CONTENT,
            PICTURES,
            {**CONTENTS, "generationConfig": {"responseModalities": ["TEXT", "IMAGE"], "maxOutputTokens": 100}},
            2 + 5 + 100 * 30,
        ),
        # What LiteLLM and the SDK write over the request counts as well.
        *(
            (
                Endpoint.GENERATE_CONTENT,
                PICTURES,
                {**CONTENTS, name: {"generationConfig": {"responseModalities": ["IMAGE"], "maxOutputTokens": 100}}},
                None,
            )
            for name in ("config", "extra_body")
        ),
    ],
)
async def test_every_kind_of_answer_is_reserved_in_the_units_it_is_charged_by(
    endpoint: Endpoint, price: Price, body: dict[str, Any], usd_micros: int | None
) -> None:
    async with worker(tenant(limits={"usd_per_month": 10}), prices=price) as h:
        found = reserved(await call(h, endpoint=endpoint, body=body))
        assert found == usd_micros if usd_micros is not None else found > 100 * 30
    async with worker(tenant(limits={"usd_per_month": "0.000001"}), prices=price) as h:
        assert (await call(h, endpoint=endpoint, body=body)).status == 413


TOOLS = replace(
    CHEAP,
    search_low_usd=Decimal("0.01"),
    search_medium_usd=Decimal("0.02"),
    search_high_usd=Decimal("0.03"),
    file_search_usd=Decimal("0.002"),
    code_session_usd=Decimal("0.05"),
)
GOOGLES = replace(
    CHEAP, search_medium_usd=Decimal("0.02"), search_request_usd=Decimal("0.02"), maps_query_usd=Decimal("0.03")
)
CLAUDES = {"type": "web_search_20250305", "name": "web_search"}
USING: dict[str, tuple[Endpoint, Price, dict[str, Any], int]] = {
    "Anthropic's": (Endpoint.MESSAGES, TOOLS, {**SAID, "tools": [CLAUDES]}, 5 * 20_000),
    "limited": (Endpoint.MESSAGES, TOOLS, {**SAID, "tools": [{**CLAUDES, "max_uses": 2}]}, 2 * 20_000),
    "an invalid limit": (
        Endpoint.MESSAGES,
        TOOLS,
        {**SAID, "tools": [{**CLAUDES, "max_uses": 0}]},
        5 * 20_000,
    ),
    "OpenAI's": (Endpoint.RESPONSES, TOOLS, {"input": "a", "tools": [{"type": "web_search_preview"}]}, 5 * 20_000),
    "a size": (
        Endpoint.RESPONSES,
        TOOLS,
        {"input": "a", "tools": [{"type": "web_search", "search_context_size": "high"}], "max_tool_calls": 3},
        3 * 30_000,
    ),
    "several": (
        Endpoint.RESPONSES,
        TOOLS,
        {"input": "a", "tools": [{"type": "file_search"}, {"type": "code_interpreter"}, {"type": "web_search"}]},
        5 * 2_000 + 50_000 + 5 * 20_000,
    ),
    "in chat": (
        Endpoint.CHAT,
        TOOLS,
        {**SAID, "web_search_options": {"search_context_size": "low"}, "n": 2},
        10 * 10_000,
    ),
    "null": (Endpoint.CHAT, TOOLS, {**SAID, "web_search_options": None}, 0),
    "in extra_body": (Endpoint.CHAT, TOOLS, {**SAID, "extra_body": {"web_search_options": {}}}, 5 * 20_000),
    "Google's": (Endpoint.GENERATE_CONTENT, GOOGLES, {**CONTENTS, "tools": [{"googleSearch": {}}]}, 20_000),
    "Google's, in a configuration": (
        Endpoint.GENERATE_CONTENT,
        GOOGLES,
        {**CONTENTS, "config": {"tools": [{"google_search": {}, "functionDeclarations": []}, {"googleMaps": {}}]}},
        20_000 + 5 * 30_000,
    ),
    "Google's, beside a type": (
        Endpoint.CHAT,
        GOOGLES,
        {**SAID, "tools": [{"type": "x", "googleSearch": {}}, {"type": "function", "googleMaps": {}}]},
        20_000 + 5 * 30_000,
    ),
    "of interactions": (Endpoint.INTERACTIONS, GOOGLES, {"input": "a", "tools": [{"type": "google_search"}]}, 20_000),
    "Anthropic's code": (
        Endpoint.MESSAGES,
        TOOLS,
        {**SAID, "tools": [{"type": "code_execution_20250825", "name": "code_execution"}]},
        50_000,
    ),
    "Google's code": (
        Endpoint.INTERACTIONS,
        GOOGLES,
        {"input": "a", "tools": [{"type": "code_execution"}, {"codeExecution": {}}]},
        0,
    ),
    "xAI's": (Endpoint.CHAT, TOOLS, {**SAID, "search_parameters": {"mode": "auto"}}, 5 * 20_000),
    "xAI's, switched off": (Endpoint.CHAT, TOOLS, {**SAID, "search_parameters": {"mode": "off"}}, 0),
    "OpenRouter's": (Endpoint.CHAT, TOOLS, {**SAID, "plugins": [{"id": "file-parser"}, {"id": "web"}]}, 5 * 20_000),
    "OpenRouter's, switched off": (Endpoint.CHAT, TOOLS, {**SAID, "plugins": [{"id": "web", "enabled": False}, 5]}, 0),
    "the client's": (
        Endpoint.RESPONSES,
        TOOLS,
        {"input": "a", "tools": [{"type": "function", "name": "web_search"}, {"type": "mcp"}, "web_search", None]},
        0,
    ),
}


@pytest.mark.parametrize("what", USING)
async def test_the_providers_tools_that_a_request_allows_are_reserved(what: str) -> None:
    """As often as it allows them, else as the configuration says."""
    endpoint, price, body, usd_micros = USING[what]
    async with worker(tenant(limits={"usd_per_month": 10}), prices=price) as h:
        tokens = 10_000  # those of the prompt, and of an answer of unknown length
        assert 0 <= reserved(await call(h, endpoint=endpoint, body=body)) - usd_micros < tokens


async def test_how_often_tools_are_used_can_be_configured() -> None:
    body = {**SAID, "tools": [CLAUDES], "max_tokens": 1}
    async with worker(tenant(limits={"usd_per_month": 10}), prices=TOOLS, tool_uses=30) as h:
        assert reserved(await call(h, endpoint=Endpoint.MESSAGES, body=body)) // 20_000 == 30


@pytest.mark.parametrize("tool", [{"type": "web_search"}, {"type": "image_generation"}, {"googleMaps": {}}])
@pytest.mark.parametrize("policy", ["deny", "allow"])
async def test_a_tool_without_a_price_is_refused_where_money_is_limited(policy: str, tool: dict[str, Any]) -> None:
    """Where the operator lets unknown prices pass, the tokens are reserved."""
    body = {"input": "a", "tools": [tool], "max_output_tokens": 100}
    async with worker(tenant(limits={"usd_per_month": 10}), prices=CHEAP, host={"unpriced": policy}) as h:
        answer = await call(h, endpoint=Endpoint.RESPONSES, body=body)
        if policy == "allow":
            assert reserved(answer) >= 200
        else:
            assert answer.denial is not None
            assert (answer.status, answer.denial.code, answer.denial.param) == (403, "model_unpriced", "tools")


@pytest.mark.parametrize(
    ("provider", "model", "searches"),
    [("perplexity", "sonar", 1), ("openai", "gpt-4o-search-preview", 1), ("openai", "gpt-4o", 0)],
)
async def test_a_model_that_searches_by_itself_is_reserved_with_a_search(
    provider: str, model: str, searches: int
) -> None:
    one = deployment("chat-a", "chat", provider=provider, model=model)
    async with worker(tenant(limits={"usd_per_month": 10}), prices=TOOLS, deployments=[one]) as h:
        found = reserved(await call(h, body={**SAID, "max_tokens": 1}))
        assert found // 20_000 == searches


async def test_what_is_spent_is_what_a_bill_charges() -> None:
    """The gateway counts a spoken text without its spaces; where a price is unknown, its figure counts."""
    spoken = Usage(characters=11)
    cases = [(165, spoken, "0.00015", 165), (None, spoken, "0.00015", 150), (None, None, "0.0002", 200)]
    for micros, used, logged, spent in cases:
        async with worker(POOR, prices=Price(character_usd=Decimal("0.000015"))) as h:
            running = asyncio.create_task(
                call(h, endpoint=Endpoint.SPEECH, body={"input": "Hello there"}, script=never(), moves_clock=False)
            )
            await h.clock.quiet()
            ((reservation, _),) = h.plugin("quota")._accounts.reservations.values()
            made = Attempt(
                id="1", request_id="r", number=1, kind=AttemptKind.PRIMARY, started_at=0.0,
                deployment=deployment("chat-a", "chat"),
                outcome=Outcome.OK, usage=used, cost_usd_micros=micros, gateway_cost_usd=Decimal(logged),
            )  # fmt: skip
            settlement = Settlement(
                request_id=reservation.id, endpoint=Endpoint.SPEECH, model="chat", stream=False, identity=Identity(),
                route=Route(target="chat", reservations=(reservation,)), outcome=Outcome.OK, status_code=200,
                started_at=0.0, finished_at=1.0, attempts=(made,), usage=used,
            )  # fmt: skip
            await h.plugin("quota").settle(settlement=settlement)
            assert (await usage(h))["tenant"]["month_usd_micros"] == spent
            running.cancel()
            await asyncio.wait({running})
            await h.settled()


HALF = Price(input_usd=Decimal("0.000001"))


@pytest.mark.parametrize(
    ("policy", "price", "used", "logged", "spent"),
    [
        # Nothing is reserved for what has no price.
        ("allow", Price(), Usage(prompt_tokens=100, completion_tokens=50), "0", 0),
        ("allow", HALF, Usage(prompt_tokens=100, completion_tokens=50), "0", 0),
        ("allow", HALF, Usage(prompt_tokens=100, completion_tokens=50), "0.0001", 100),
        # A zero is not the price of a tool that has none.
        ("deny", CHEAP, Usage(prompt_tokens=100, other_tools=1), "0", -1),
        ("deny", CHEAP, Usage(prompt_tokens=100, other_tools=1), "0.0001", 100),
        ("deny", CHEAP, Usage(prompt_tokens=100), "0", 100),
    ],
)
async def test_a_logged_zero_is_no_price(policy: str, price: Price, used: Usage, logged: str, spent: int) -> None:
    """What LiteLLM has logged counts where a price is unknown and it is not zero; else what was reserved."""
    async with worker(POOR, prices=priced(price), host={"unpriced": policy}) as h:
        running = asyncio.create_task(call(h, script=never(), moves_clock=False))
        await h.clock.quiet()
        ((reservation, _),) = h.plugin("quota")._accounts.reservations.values()
        known = pricing.total_usd(used, lambda _: price)
        made = Attempt(
            id="1", request_id="r", number=1, kind=AttemptKind.PRIMARY, started_at=0.0,
            deployment=deployment("chat-a", "chat"), outcome=Outcome.OK, status_code=200, usage=used,
            cost_usd_micros=round(Decimal(logged) * 10**6) if known is None else round(known * 10**6),
            gateway_cost_usd=Decimal(logged),
        )  # fmt: skip
        settlement = Settlement(
            request_id=reservation.id, endpoint=Endpoint.CHAT, model="chat", stream=False, identity=Identity(),
            route=Route(target="chat", reservations=(reservation,)), outcome=Outcome.OK, status_code=200,
            started_at=0.0, finished_at=1.0, attempts=(made,), usage=used,
        )  # fmt: skip
        await h.plugin("quota").settle(settlement=settlement)
        expected = reservation.amounts["usd_micros"] if spent < 0 else spent
        assert (await usage(h))["tenant"]["month_usd_micros"] == expected
        running.cancel()
        await asyncio.wait({running})
        await h.settled()


async def test_a_refusal_names_its_amounts_without_exponents() -> None:
    price = Price(input_usd=Decimal("0.0000002"), output_usd=Decimal("0.000001"))
    async with worker(tenant(limits={"usd_per_month": "0.000005"}), prices=priced(price)) as h:
        denial = (await call(h)).denial
        assert denial is not None
        assert "allows 0.000005 US dollars" in denial.message
        assert "may use 0.0" in denial.message
        assert "e-" not in denial.message


#: What the requests of the next test reserve.
RESERVED = -1


@pytest.mark.parametrize("money_from", ["gateway", "events"])
@pytest.mark.parametrize(
    ("status", "counted", "raw", "spent"),
    [
        (500, True, None, 0),
        (500, True, '{"total_tokens":150}', 150),
        (500, False, None, 0),
        (200, True, None, 150),
        (200, False, None, RESERVED),
    ],
)
async def test_tokens_of_an_answer_that_failed_are_spent_where_its_provider_has_counted_them(
    status: int, counted: bool, raw: str | None, spent: int, money_from: str
) -> None:
    """Before its first content, or because the gateway could not read it; an estimate of an error is not.

    Where the provider has answered with success and nothing is known, what was reserved is spent.
    """
    used = Usage(prompt_tokens=100, completion_tokens=50, raw=raw) if counted else None
    limits = {"tokens_per_day": 10_000, "usd_per_day": "1"}
    async with worker(tenant(limits=limits), prices=CHEAP, money_from=money_from, money_wait_ms=1) as h:
        running = asyncio.create_task(call(h, script=never(), moves_clock=False))
        await h.clock.quiet()
        ((reservation, _),) = h.plugin("quota")._accounts.reservations.values()
        made = Attempt(
            id="1", request_id="r", number=1, kind=AttemptKind.PRIMARY, started_at=0.0,
            deployment=deployment("chat-a", "chat"), outcome=Outcome.ERROR, status_code=status, usage=used,
        )  # fmt: skip
        settlement = Settlement(
            request_id=reservation.id, endpoint=Endpoint.CHAT, model="chat", stream=False, identity=Identity(),
            route=Route(target="chat", reservations=(reservation,)), outcome=Outcome.ERROR, status_code=500,
            started_at=0.0, finished_at=1.0, attempts=(made,), usage=used,
        )  # fmt: skip
        await h.plugin("quota").settle(settlement=settlement)
        seen, reserved = (await usage(h))["tenant"], reservation.amounts
        assert seen["day_tokens"] == (reserved["tokens"] if spent == RESERVED else spent)
        # Of what has answered with success the cost is unknown here, too.
        assert seen["day_usd_micros"] == (reserved["usd_micros"] if status == 200 else 0)
        assert reserved["usd_micros"] > 0
        running.cancel()
        await asyncio.wait({running})
        await h.settled()


async def test_an_answer_of_unknown_cost_takes_what_was_reserved() -> None:
    async with worker(POOR, prices=CHEAP) as h:
        await call(h, script=ok(usage=None))
        await h.settled()
        assert (await usage(h))["tenant"]["month_usd_micros"] == 182


async def test_attempts_that_the_client_has_chosen_count_as_requests() -> None:
    """One request and two more attempts, of five; the gateway's own retries are not the client's."""
    scripts = [error(500), error(500), ok()]
    for body, left in (({**BODY, "num_retries": 2}, 2), (BODY, 4)):
        async with worker(tenant(limits={"requests_per_minute": 5}), clock=FakeClock()) as h:
            result = await call(h, script=list(scripts), body=body, moves_clock=False)
            assert len(result.attempts) == 3
            await h.settled()
            assert (await usage(h))["tenant"]["requests_left"] == left


async def test_a_request_that_does_not_generate_takes_neither_tokens_nor_money() -> None:
    limits = {"usd_per_month": "0.000001", "tokens_per_day": 1, "requests_per_minute": 2}
    async with worker(tenant(models=["chat"], limits=limits), prices=CHEAP) as h:
        assert (await call(h)).status == 413
        assert [await read(h, "chat") for _ in range(3)] == [200, 200, 429]
        assert await read(h, "backup") == 403
    async with worker(tenant(models=["chat"], limits=limits), prices=CHEAP) as h:
        # Lists and uploads name no model, which only this kit's gateway does not serve; a request that generates must.
        assert await read(h, "") == 400
        assert (await call(h, model="", moves_clock=False)).status == 403
        used = (await usage(h))["tenant"]
        assert (used["day_tokens"], used["month_usd"]) == (0, "0")


async def read(h: Harness, model: str) -> int:
    result = await call(h, model=model, generates=False, script=ok(usage=Usage(prompt_tokens=900)), moves_clock=False)
    await h.settled()
    return result.status


async def test_a_budget_is_used_up_to_the_last_part_of_a_micro_dollar() -> None:
    """Requests that are expected to cost 0.4 micro-dollars each, and do: 25 of them are 10."""
    price = Price(input_usd=Decimal("0.0000002"), output_usd=Decimal(0))
    async with worker(tenant(limits={"usd_per_month": "0.00001"}), prices=priced(price)) as h:
        answer = ok(usage=Usage(prompt_tokens=2), cost_usd_micros=0)
        statuses = []
        for _ in range(26):
            statuses.append((await call(h, script=answer)).status)
            await h.settled()
        assert statuses == [200] * 25 + [429]
        assert Decimal((await usage(h))["tenant"]["month_usd"]) == Decimal("0.00001")


async def test_an_answer_of_unknown_cost_takes_exactly_what_was_reserved() -> None:
    price = Price(input_usd=Decimal("0.0000002"), output_usd=Decimal(0))
    async with worker(tenant(limits={"usd_per_month": "0.00001"}), prices=priced(price)) as h:
        await call(h, script=ok(usage=None, cost_usd_micros=None))
        await h.settled()
        assert Decimal((await usage(h))["tenant"]["month_usd"]) == Decimal("0.0000004")
