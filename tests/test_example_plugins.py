"""The example plugins on a real proxy with the clients of OpenAI and Anthropic."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest
from rig import Rig, deployment, only

from pointsman.testing.distribution import fake_distribution
from pointsman.testing.provider import Behaviour

pytestmark = pytest.mark.proxy
EXAMPLES = Path(__file__).parents[1] / "examples"
TEXT = "the answer, word by word"


def models(upstream: str) -> list[dict[str, Any]]:
    return [
        deployment(upstream, "gpt", "gpt-4o-mini", id_="gpt-1"),
        deployment(upstream, "dear", "gpt-4o", id_="dear-1"),
        deployment(upstream, "vectors", "text-embedding-3-small", id_="vectors-1"),
    ]


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    directory = tmp_path_factory.mktemp("examples")
    for name in ("semantic_cache", "cost_guard"):
        package = f"pointsman_{name}"
        shutil.copytree(EXAMPLES / name / "src" / package, directory / "lib" / package)
        plugin = name.replace("_", "-")
        fake_distribution(directory / "lib", f"pointsman-{plugin}", {plugin: f"{package}.plugin:plugin"})
    plugins = [
        {"cost-guard": {"budget_usd": 1e-6, "cheaper": {"dear": "gpt"}, "when_spent": "cheapest"}},
        {"semantic-cache": {"embeddings": "vectors"}},
    ]
    rig = Rig(directory, models, plugins=plugins)
    for model in ("gpt-4o-mini", "gpt-4o"):
        rig.upstream.behave(model, Behaviour(text=TEXT))
    with rig:
        yield rig


def generations(rig: Rig) -> int:
    """Return how often a model was asked for text."""
    return sum(not request.path.endswith("/embeddings") for request in rig.upstream.requests)


def say(rig: Rig, endpoint: str, question: str, case: str, *, stream: bool) -> tuple[str, str]:
    """Ask with the endpoint's client; return the answer and what the cache's header says."""
    headers = {"x-test-case": case}
    if endpoint == "messages":
        claude = anthropic.Anthropic(base_url=rig.proxy.url, api_key=rig.proxy.master_key, max_retries=0)
        asked: Any = {"model": "gpt", "max_tokens": 50, "messages": [{"role": "user", "content": question}]}
        if stream:
            with claude.messages.stream(**asked, extra_headers=headers) as events:
                return events.get_final_text(), events.response.headers.get("x-semantic-cache", "")
        plain = claude.messages.with_raw_response.create(**asked, extra_headers=headers)
        return plain.parse().content[0].text, plain.headers.get("x-semantic-cache", "")
    client = openai.OpenAI(base_url=f"{rig.proxy.url}/v1", api_key=rig.proxy.master_key, max_retries=0)
    if endpoint == "responses":
        made: Any = client.responses.with_raw_response.create(
            model="gpt", input=question, stream=stream, extra_headers=headers
        )
        header = made.headers.get("x-semantic-cache", "")
        if not stream:
            return made.parse().output_text, header
        events = list(made.parse())
        assert events[-1].type == "response.completed"
        return "".join(event.delta for event in events if event.type == "response.output_text.delta"), header
    made = client.chat.completions.with_raw_response.create(
        model="gpt", messages=[{"role": "user", "content": question}], stream=stream, extra_headers=headers
    )
    header = made.headers.get("x-semantic-cache", "")
    if not stream:
        return made.parse().choices[0].message.content, header
    return "".join(chunk.choices[0].delta.content or "" for chunk in made.parse() if chunk.choices), header


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("endpoint", ["chat", "messages", "responses"])
def test_a_question_is_answered_from_the_cache(rig: Rig, endpoint: str, stream: bool) -> None:
    """The clients read the answer as the model's own; no model is asked, and the settlement has no attempt."""
    case = f"{endpoint}-{stream}"
    first, miss = say(rig, endpoint, f"What of {case}?", f"{case}-1", stream=stream)
    rig.of_case(f"{case}-1")
    before = generations(rig)
    again, hit = say(rig, endpoint, f"What of {case}?", f"{case}-2", stream=stream)
    assert (first, miss, again) == (TEXT, "miss", TEXT)
    assert hit.startswith("hit; similarity=")
    assert generations(rig) == before
    settlement = only(rig.of_case(f"{case}-2"), "settle")["settlement"]
    assert (settlement.get("attempts", []), settlement["replied_by"]) == ([], "semantic-cache")


def test_a_spent_budget_takes_the_cheaper_model(rig: Rig) -> None:
    """After the first request, whose cost LiteLLM's prices say."""
    answers = []
    for number in (1, 2):
        body = {"model": "dear", "messages": [{"role": "user", "content": f"Question {number} of the rich"}]}
        headers = {**rig.proxy.headers, "x-test-case": f"dear-{number}"}
        answers.append(httpx.post(f"{rig.proxy.url}/v1/chat/completions", json=body, headers=headers, timeout=30))
        rig.of_case(f"dear-{number}")
    assert [answer.status_code for answer in answers] == [200, 200]
    assert answers[1].headers["x-cost-guard"] == "spent; model=gpt"
    assert rig.upstream.requests[-1].body["model"] == "gpt-4o-mini"
