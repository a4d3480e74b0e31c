"""What a provider says that is not understood, cannot be or contradicts itself is marked or unpriced, never free and exact.

On a real LiteLLM proxy: every case plain and streamed, with the cost from our prices and from LiteLLM's own figure.
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any, NamedTuple

import httpx
import pytest

from pointsman.testing import eventually
from pointsman.testing.proxy import ProxyServer

from .providers import (
    BODIES,
    CHAT,
    FAILED,
    GOOGLES,
    MESSAGES,
    RESPONSES,
    Answer,
    Provider,
    as_events,
    as_json,
    chat,
    claude,
    gemini,
    responses,
)

pytestmark = [pytest.mark.proxy, pytest.mark.timeout(300)]

GENERATE = "/v1beta/models/{}:generateContent"
EMBEDDINGS, IMAGES = "/v1/embeddings", "/v1/images/generations"
MODES = ("prices", "gateway")
CLAUDES, MINI, SOUND = "anthropic/claude-sonnet-4-5-20250929", "openai/gpt-4o-mini", "openai/gpt-audio"
OPUS, FLASH = "anthropic/claude-opus-4-6", "gemini/gemini-2.5-flash"
GPT = "openai/gpt-4.1"
#: Cases of which older maps do not have the prices.
OF_NEW_PRICES = frozenset({"qwen-written", "qwen-read"})
SEARCH = {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"type": "search", "query": "a"}}
NO_SEARCH, NOT_DRAWN = {"num_requests": 0}, {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}
KIMI, QWEN = "moonshot/kimi-k2.6", "dashscope/qwen3.7-max"
DEEPSEEK, SONAR, GROK = "deepseek/deepseek-chat", "perplexity/sonar-pro", "xai/grok-4.3"
EXACT, ESTIMATED, CONTRADICTORY = "exact", "estimated", "contradictory"
#: Of which the tokens alone cost 0.00135; the cache writes, 0.00255.
WRITTEN = {"input_tokens": 200, "cache_creation_input_tokens": 680, "output_tokens": 50}
#: LiteLLM's price of a prompt that is estimated depends on its words.
ANY = "any"


class Case(NamedTuple):
    """A model, the API to ask, what the provider says, and what is owed for it; None where that is unpriced."""

    model: str
    path: str
    answer: Callable[..., Answer]
    owed: str | None
    metering: str
    more: Mapping[str, Any] = {}


def of_chat(model: str, prompt: int, completion: int, **more: Any) -> Callable[..., Answer]:
    counts = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion, **more}

    def answer(*, stream: bool) -> Answer:
        return chat(model.partition("/")[2], counts, stream=stream, together=model == SONAR)

    return answer


def of_claude(**usage: Any) -> Callable[..., Answer]:
    return lambda *, stream: claude({**WRITTEN, **usage}, stream=stream)


def of_responses(**usage: Any) -> Callable[..., Answer]:
    return lambda *, stream: responses(usage, stream=stream)


def of_gemini(**usage: Any) -> Callable[..., Answer]:
    return lambda *, stream: gemini({**GOOGLES, **usage}, stream=stream)


def of_opus(region: str) -> Callable[..., Answer]:
    usage = {"input_tokens": 1000, "output_tokens": 50, "inference_geo": region}
    return lambda *, stream: claude(usage, stream=stream, model="claude-opus-4-6")


def grounded(owed: str | None, *, web: bool = False, maps: bool = False, **said: Any) -> dict[str, Any]:
    """Return what is owed for an answer of Gemini that has looked something up."""
    chunks = [{kind: {"title": "x"}} for kind, known in (("web", web), ("maps", maps)) if known]
    found = {"groundingMetadata": {"groundingChunks": chunks, **said}}
    return {"answer": lambda *, stream: gemini(stream=stream, **found), "owed": owed}


def of_kimi(*, stream: bool) -> Answer:
    """Answer as Moonshot does: its streams count within the last choice."""
    usage = {"prompt_tokens": 1000, "completion_tokens": 50, "total_tokens": 1050, "cached_tokens": 400}
    if not stream:
        return chat("kimi-k2.6", usage, stream=False)
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "kimi-k2.6"}
    first = {"index": 0, "delta": {"role": "assistant", "content": "It is warm."}, "finish_reason": None}
    last = {"index": 0, "delta": {}, "finish_reason": "stop", "usage": usage}
    return as_events([{**head, "choices": [first]}, {**head, "choices": [last]}], done=True)


def of_qwen(*, read: int = 0, written: int = 0, **more: Any) -> Callable[..., Answer]:
    """Answer as Alibaba does where the request has had something cached."""
    made = {"cache_creation": {"ephemeral_5m_input_tokens": written}, "cache_creation_input_tokens": written}
    return of_chat(QWEN, 2000, 50, prompt_tokens_details={"cached_tokens": read, **(made if more else {}), **more})


def of_grok(calls: Iterable[str] = (), **usage: Any) -> Callable[..., Answer]:
    items = [{"type": kind, "id": f"x_{n}", "status": "completed"} for n, kind in enumerate(calls)]
    counts = {"input_tokens": 1000, "output_tokens": 50, "total_tokens": 1050, **usage}
    return lambda *, stream: responses(counts, stream=stream, model="grok-4.3", calls=items)


def of_tools(calls: Iterable[Mapping[str, Any]] = (), **used: Mapping[str, int]) -> Callable[..., Answer]:
    usage = {"input_tokens": 1000, "output_tokens": 50, "total_tokens": 1050}
    return lambda *, stream: responses(usage, stream=stream, model="gpt-4.1", calls=calls, tool_usage=used)


def of_embedding(**usage: int) -> Callable[..., Answer]:
    vector = {"object": "embedding", "index": 0, "embedding": [0.1, 0.2]}
    return lambda *, stream: as_json(
        {"object": "list", "model": "e", "data": [vector], "usage": usage, "stream": stream}
    )


def of_image(*, stream: bool) -> Answer:
    return as_json({"created": 1, "data": [{"b64_json": "eA=="}], "usage": DRAWN, "stream": stream})


def of_cohere(**units: int) -> Callable[..., Answer]:
    meta = {"api_version": {"version": "2"}, "billed_units": units}
    return lambda *, stream: as_json(
        {"id": "x", "embeddings": {"float": [[0.1]]}, "texts": ["x"], "meta": meta, "stream": stream}
    )


def lifetimes(minutes: int, hour: int) -> dict[str, int]:
    return {"ephemeral_5m_input_tokens": minutes, "ephemeral_1h_input_tokens": hour}


def searched(owed: str, more: Mapping[str, Any] = {}, **usage: Any) -> Case:
    return Case(SONAR, CHAT, of_chat(SONAR, 1000, 50, num_search_queries=2, **usage), owed, EXACT, more)


def embedded(owed: str, marked: str, **usage: int) -> Case:
    return Case("openai/text-embedding-3-small", EMBEDDINGS, of_embedding(**usage), owed, marked)


def units(owed: str | None, **billed: int) -> Case:
    return Case("cohere/embed-v4.0", EMBEDDINGS, of_cohere(**billed), owed, EXACT)


SPOKEN = {"prompt_tokens_details": {"audio_tokens": 10}, "completion_tokens_details": {"audio_tokens": 5}}
NAMED = {"prompt_tokens_details": {"audio_tokens": 60, "text_tokens": 90}}
MODALITIES = [{"modality": "TEXT", "tokenCount": 900}, {"modality": "AUDIO", "tokenCount": 300}]
SIZED = {"web_search_options": {"search_context_size": "high"}}

CASES: dict[str, Case] = {
    **{
        f"{name}{path.rpartition('/')[2]}": Case(CLAUDES, path, answer, owed, metering)
        for path in (CHAT, MESSAGES, RESPONSES)
        for name, answer, owed, metering in (
            ("written-", of_claude(), "0.0039", EXACT),
            ("written-5m-", of_claude(cache_creation=lifetimes(680, 0)), "0.0039", EXACT),
            # LiteLLM charges the life times alone.
            ("written-none-", of_claude(cache_creation=lifetimes(0, 0)), "0.0039", CONTRADICTORY),
            ("written-fewer-", of_claude(cache_creation=lifetimes(80, 100)), "0.004125", CONTRADICTORY),
            ("huge-", of_claude(input_tokens=10**12, cache_creation_input_tokens=0), ANY, ESTIMATED),
            ("tool-", of_claude(server_tool_use={"web_fetch_requests": 1, "new_requests": 3}), None, EXACT),
            ("fetched-", of_claude(server_tool_use={"web_fetch_requests": 2}), "0.0039", EXACT),
        )
    },
    "huge": Case(MINI, CHAT, of_chat(MINI, 3 * 10**10, 50), ANY, ESTIMATED),
    "huge-responses": Case(
        MINI, RESPONSES, of_responses(input_tokens=10**12, output_tokens=50, total_tokens=10**12 + 50), ANY, ESTIMATED
    ),
    "huge-part": Case(
        MINI, CHAT, of_chat(MINI, 1000, 50, prompt_tokens_details={"cached_tokens": 10**12}), "0.00018", CONTRADICTORY
    ),
    "no-total": Case(MINI, CHAT, of_chat(MINI, 100, 50, total_tokens=0), "0.000045", CONTRADICTORY),
    "no-total-responses": Case(
        MINI, RESPONSES, of_responses(input_tokens=100, output_tokens=50, total_tokens=0), "0.000045", CONTRADICTORY
    ),
    # Of a stream, LiteLLM charges the spoken part of the answer as text, too.
    "spoken": Case(SOUND, CHAT, of_chat(SOUND, 100, 50, **SPOKEN), "0.001315", EXACT),
    "more-than-all": Case(SOUND, CHAT, of_chat(SOUND, 100, 50, **NAMED), "0.00252", CONTRADICTORY),
    "modalities": Case(
        "gemini/gemini-2.5-flash", CHAT, of_gemini(promptTokensDetails=MODALITIES), "0.000635", CONTRADICTORY
    ),
    "missed": Case(
        DEEPSEEK,
        CHAT,
        of_chat(DEEPSEEK, 1000, 50, prompt_cache_hit_tokens=100, prompt_cache_miss_tokens=500),
        "0.0002758",
        CONTRADICTORY,
    ),
    "searched": searched("0.01575"),
    "searched-low": searched("0.01575", search_context_size="low"),
    "searched-medium": searched("0.02375", search_context_size="medium"),
    "searched-high": searched("0.03175", search_context_size="high"),
    "asked-high": searched("0.03175", SIZED),
    "asked-high-served-low": searched("0.01575", SIZED, search_context_size="low"),
    "sources": Case(GROK, CHAT, of_chat(GROK, 1000, 50, num_sources_used=4), None, EXACT),
    "sources-priced": Case(
        GROK, CHAT, of_chat(GROK, 1000, 50, num_sources_used=4, cost_in_usd_ticks=10**7), "0.001", EXACT
    ),
    "tools-grok": Case(GROK, CHAT, of_chat(GROK, 1000, 50, num_server_side_tools_used=2), None, EXACT),
    "no-tools-grok": Case(GROK, CHAT, of_chat(GROK, 1000, 50, num_server_side_tools_used=0), "0.001375", EXACT),
    "tools-grok-priced": Case(
        GROK, CHAT, of_chat(GROK, 1000, 50, num_server_side_tools_used=2, cost_in_usd_ticks=10**7), "0.001", EXACT
    ),
    "tools-grok-named": Case(
        GROK,
        RESPONSES,
        of_grok(num_server_side_tools_used=1, server_side_tool_usage_details={"mcp_calls": 1}),
        "0.001375",
        EXACT,
    ),
    "tools-grok-unnamed": Case(
        GROK,
        RESPONSES,
        of_grok(num_server_side_tools_used=3, server_side_tool_usage_details={"mcp_calls": 1}),
        None,
        EXACT,
    ),
    "mcp-grok": Case(GROK, RESPONSES, of_grok(["mcp_call"], num_server_side_tools_used=1), "0.001375", EXACT),
    "x-grok": Case(GROK, RESPONSES, of_grok(["x_search_call"]), None, EXACT),
    "new-call": Case(MINI, RESPONSES, of_grok(["something_new_call"]), None, EXACT),
    "shell": Case(MINI, RESPONSES, of_grok(["shell_call", "apply_patch_call"]), "0.00018", EXACT),
    # The tokens cost 0.0024, a search 0.025.
    "no-uses": Case(GPT, RESPONSES, of_tools(web_search=NO_SEARCH, image_gen=NOT_DRAWN), "0.0024", EXACT),
    "uses": Case(GPT, RESPONSES, of_tools(web_search={"num_requests": 2}), "0.0524", EXACT),
    "uses-and-calls": Case(GPT, RESPONSES, of_tools([SEARCH], web_search={"num_requests": 1}), "0.0274", EXACT),
    "uses-drawn": Case(GPT, RESPONSES, of_tools(image_gen={**NOT_DRAWN, "output_tokens": 9}), None, EXACT),
    "uses-new": Case(GPT, RESPONSES, of_tools(something_new={"num_requests": 1}), None, EXACT),
    "kimi": Case(KIMI, CHAT, of_kimi, "0.000834", EXACT),
    "qwen-written": Case(QWEN, CHAT, of_qwen(written=1500, cache_type="ephemeral"), "0.0063125", EXACT),
    "qwen-read": Case(QWEN, CHAT, of_qwen(read=1500, cache_type="ephemeral"), "0.002", EXACT),
    "qwen-read-by-itself": Case(QWEN, CHAT, of_qwen(read=1500), "0.002375", EXACT),
    "us": Case(OPUS, MESSAGES, of_opus("us"), "0.006875", EXACT),
    "global": Case(OPUS, MESSAGES, of_opus("global"), "0.00625", EXACT),
    **{f"eu-{path.rpartition('/')[2]}": Case(OPUS, path, of_opus("eu"), None, EXACT) for path in BODIES},
    **{
        f"{name}-{end}": Case(FLASH, path, **case, metering=EXACT)
        for end, path in (("chat", CHAT), ("messages", MESSAGES), ("responses", RESPONSES), ("native", GENERATE))
        for name, case in {
            # The tokens cost 0.000425.
            "searched-twice": grounded("0.035425", web=True, webSearchQueries=["a", "b"]),
            "mapped": grounded("0.025425", maps=True, webSearchQueries=["a", "b"]),
            "mapped-silently": grounded("0.025425", maps=True),
            "mapped-and-searched": grounded("0.060425", web=True, maps=True, webSearchQueries=["a"]),
            "own-files": grounded("0.000425", retrievalQueries=["a"]),
            "pictures": grounded(None, imageSearchQueries=["a"]),
        }.items()
    },
    "embedded": embedded("0.00002", EXACT, prompt_tokens=1000, total_tokens=1000),
    "embedded-less": embedded("0.00001", CONTRADICTORY, prompt_tokens=1000, total_tokens=500),
    "embedded-more": embedded("0.00004", CONTRADICTORY, prompt_tokens=1000, total_tokens=2000),
    # 0.00035 dollars, and 0.00014 for the router.
    "routed": Case("azure_ai/model_router/mine", CHAT, of_chat("openai/gpt-5-mini", 1000, 50), "0.00049", EXACT),
    "routed-anywhere": Case("azure_ai/model_router/mine", CHAT, of_chat("openai/a-new-model", 1000, 50), None, EXACT),
    "units": units("0.000012", input_tokens=100),
    "units-images": units(None, images=2),
    "units-classes": units(None, input_tokens=100, classifications=1),
}


def model_of(name: str) -> str:
    if name in CASES:
        return CASES[name].model
    if name in ADJUSTED:
        return ADJUSTED[name][0]
    return MINI if name.startswith("failing") else "openai/gpt-image-1"


def deployment(name: str, url: str) -> dict[str, Any]:
    model = model_of(name)
    provider = model.partition("/")[0]
    base = {"anthropic": "", "gemini": "", "cohere": "/v2/embed"}.get(provider, "/v1")
    params = {"model": model, "api_base": f"{url}/{name}{base}", "api_key": "any"}
    if name == "slow":
        params["timeout"] = PATIENCE_S
    return {"model_name": name, "litellm_params": params, "model_info": {"id": name}}


#: What LiteLLM takes off and adds itself, by provider.
DISCOUNTS, MARGINS = {"cerebras": 0.05}, {"mistral": {"percentage": 0.1, "fixed_amount": 0.001}}
#: What is owed for 1000 and 50 tokens, by mode.
ADJUSTED = {
    "discounted": ("cerebras/llama3.1-8b", {"prices": "0.000105", "gateway": "0.00009975"}),
    "with-margin": ("mistral/mistral-large-latest", {"prices": "0.000575", "gateway": "0.0016325"}),
}
over = threading.Event()
#: How often each of these models has been asked: every first answer is an error that says what was used.
asked: Counter[str] = Counter()
#: An image, and the same without the errors before it: 0.0021 dollars.
OF_PROMPT = {"text_tokens": 20, "image_tokens": 0}
DRAWN = {"input_tokens": 20, "output_tokens": 50, "total_tokens": 70, "input_tokens_details": OF_PROMPT}
USED = {"prompt_tokens": 100, "completion_tokens": 0, "total_tokens": 100}


def failing(name: str, usage: Mapping[str, Any], at_last: Callable[..., Answer], every: int) -> Callable[..., Answer]:
    def answer(*, stream: bool) -> Answer:
        asked[name] += 1
        if asked[name] % every:
            error = {"message": "It broke.", "type": "server_error", "code": "500"}
            return FAILED, json.dumps({"error": error, "usage": usage}).encode()
        return at_last(stream=stream)

    return answer


def slow(*, stream: bool) -> Answer:
    """Answer when LiteLLM no longer waits, and each second time at once."""
    asked["slow"] += 1
    if asked["slow"] % 2:
        over.wait(10 * PATIENCE_S)
    return of_image(stream=stream)


#: For how long LiteLLM waits for an answer of the slow provider, in seconds.
PATIENCE_S = 1

FAILING = {
    "failing": failing("failing", USED, of_chat(MINI, 1000, 50), 2),
    "failing-silently": failing("failing-silently", {}, of_chat(MINI, 1000, 50), 2),
    "within": failing("within", USED, of_image, 3),
    "within-silently": failing("within-silently", {}, of_image, 3),
    "always": failing("always", USED, of_image, 10**6),
    "slow": slow,
}


@pytest.fixture(scope="module")
def clients(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, httpx.Client]]:
    with ExitStack() as stack:
        adjusted = {name: of_chat(model, 1000, 50) for name, (model, _) in ADJUSTED.items()}
        answers = {name: case.answer for name, case in CASES.items()} | FAILING | adjusted
        provider = stack.enter_context(Provider(answers))
        clients = {}
        for mode in MODES:
            config = {
                "model_list": [deployment(name, provider.url) for name in (*CASES, *FAILING, *ADJUSTED)],
                "router_settings": {"num_retries": 0, "disable_cooldowns": True},
                "litellm_settings": {
                    "callbacks": ["pointsman.litellm.handler"],
                    "num_retries": 0,
                    "cost_discount_config": DISCOUNTS,
                    "cost_margin_config": MARGINS,
                },
                "pointsman": {"store": {"backend": "memory"}, "plugins": [{"billing": {"cost_from": mode}}]},
            }
            proxy = stack.enter_context(ProxyServer(config, tmp_path_factory.mktemp(mode)))
            clients[mode] = stack.enter_context(proxy.client(timeout=60))
        yield clients
        over.set()


def billed(client: httpx.Client, name: str, *, stream: bool) -> dict[str, Any]:
    """Return the event of the attempt."""
    case = CASES[name]
    body = {"input": "x"} if case.path == EMBEDDINGS else {**BODIES.get(case.path, {}), "stream": stream, **case.more}
    if case.path == GENERATE:
        way = "streamGenerateContent?alt=sse" if stream else "generateContent"
        contents = [{"role": "user", "parts": [{"text": "How is the weather in Turin?"}]}]
        answer = client.post(f"/v1beta/models/{name}:{way}", json={"contents": contents})
    else:
        answer = client.post(case.path, json={"model": name, **body})
    assert answer.status_code == 200, answer.text
    at = f"/pointsman/billing/requests/{answer.headers['x-pointsman-request-id']}"
    bill = eventually(lambda: client.get(at), lambda one: one.status_code == 200).json()
    assert bill["bill"] == ("unpriced" if case.owed is None else "billed"), bill["events"][0]
    event: dict[str, Any] = bill["events"][0]
    return event


@pytest.mark.parametrize("name", CASES)
def test_what_is_not_known_is_said_and_the_bill_is_the_same_in_every_way(
    clients: dict[str, httpx.Client], name: str
) -> None:
    case = CASES[name]
    prices = pytest.importorskip("litellm").model_cost.get(QWEN, {})
    if name in OF_NEW_PRICES and "explicit_cache_read_input_token_cost" not in prices:
        pytest.skip("the map of this LiteLLM has no such prices")
    streams = (False,) if case.path == EMBEDDINGS else (False, True)
    events = [billed(clients[mode], name, stream=stream) for mode in MODES for stream in streams]
    if case.owed == ANY:
        # The prompt is estimated: a thousandth of a dollar at most.
        assert {float(event["amount_usd"]) < 0.001 for event in events} == {True}
    else:
        assert {event["amount_usd"] for event in events} == {case.owed}
    assert {event["metering"] for event in events} == {case.metering}
    assert len({(event["prompt_tokens"], event["completion_tokens"], event["amount_usd"]) for event in events}) == 1


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ADJUSTED)
def test_discounts_and_margins_of_litellm_are_in_its_own_figure(
    clients: dict[str, httpx.Client], name: str, mode: str, stream: bool
) -> None:
    answer = clients[mode].post(CHAT, json={"model": name, "stream": stream, **BODIES[CHAT]})
    (attempt,) = attempts_of(clients[mode], answer)
    assert (attempt["amount_usd"], attempt["cost_basis"]) == (ADJUSTED[name][1][mode], mode)
    assert attempt["gateway_cost_usd"] == ADJUSTED[name][1]["gateway"]


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("name", "owed"), [("failing", ["0.000015", "0.00018"]), ("failing-silently", ["0.00018"])])
def test_an_error_that_says_what_was_used_is_billed_also_when_it_is_retried(
    clients: dict[str, httpx.Client], name: str, owed: list[str], mode: str, stream: bool
) -> None:
    client = clients[mode]
    answer = client.post(CHAT, json={"model": name, "stream": stream, "num_retries": 1, **BODIES[CHAT]})
    assert answer.status_code == 200, answer.text
    attempts = attempts_of(client, answer)
    assert [event["amount_usd"] for event in attempts] == owed
    assert attempts[-1]["status"] == "ok"


def attempts_of(client: httpx.Client, answer: httpx.Response) -> list[dict[str, Any]]:
    at = f"/pointsman/billing/requests/{answer.headers['x-pointsman-request-id']}"
    bill = eventually(lambda: client.get(at), lambda one: one.status_code == 200).json()
    return [event for event in bill["events"] if event["type"] == "attempt"]


def draw(client: httpx.Client, name: str) -> tuple[int, dict[str, Any]]:
    """Ask for an image: a provider's SDK asks again by itself, within one attempt. Return the status and the attempt."""
    before = asked[name]
    answer = client.post(IMAGES, json={"model": name, "prompt": "A tower."})
    if asked[name] == before + 1:
        pytest.skip("this LiteLLM tries only once within an attempt")
    (attempt,) = attempts_of(client, answer)
    return answer.status_code, attempt


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("name", "owed"), [("within", "0.0031"), ("within-silently", "0.0021")])
def test_an_error_that_says_what_was_used_is_billed_also_when_it_is_retried_within_the_attempt(
    clients: dict[str, httpx.Client], name: str, owed: str, mode: str
) -> None:
    status, attempt = draw(clients[mode], name)
    assert (status, attempt["status"], attempt["metering"], attempt["amount_usd"]) == (200, "ok", "exact", owed)


@pytest.mark.parametrize("mode", MODES)
def test_all_errors_of_an_attempt_that_failed_are_billed(clients: dict[str, httpx.Client], mode: str) -> None:
    status, attempt = draw(clients[mode], "always")
    assert (status, attempt["status"], attempt["prompt_tokens"]) == (500, "error", 300)
    assert (attempt["completion_tokens"], attempt["amount_usd"]) == (0, "0.0015")


@pytest.mark.parametrize("mode", MODES)
def test_a_try_within_the_attempt_that_was_not_waited_for_costs_its_prompt(
    clients: dict[str, httpx.Client], mode: str
) -> None:
    status, attempt = draw(clients[mode], "slow")
    assert (status, attempt["status"], attempt["metering"]) == (200, "ok", "estimated")
    assert attempt["prompt_tokens"] > DRAWN["input_tokens"]
    assert 0.0021 < float(attempt["amount_usd"]) < 0.0022
