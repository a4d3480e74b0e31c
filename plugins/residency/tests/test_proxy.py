"""Two gateways on one store, with the providers' own clients, before a server of models that is too small for all."""

from __future__ import annotations

import contextlib
import random
import signal
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import anthropic
import httpx
import openai
import pytest
from click.testing import CliRunner

from pointsman.testing import eventually
from pointsman.testing.provider import Behaviour
from pointsman.testing.proxy import ProxyServer
from pointsman_residency.commands import residency

from .model_server import ModelServer
from .simulation import belady

pytestmark = [pytest.mark.proxy, pytest.mark.timeout(400)]

MESSAGES = [{"role": "user", "content": "Say hello."}]
#: Room for three of the ten small ones; the wide ones take all of it.
NAMES = [f"m{number}" for number in range(10)]
SIZES = {**dict.fromkeys(NAMES, 30), "wide": 90, "wider": 90, "claude": 90, "broken": 30}
BUDGET = 100


class Gateways:
    """Two gateways, their model server, and clients."""

    def __init__(self, server, proxies):
        self.server, self.proxies = server, proxies
        self.http = [httpx.Client(base_url=p.url, headers=p.headers, timeout=120, trust_env=False) for p in proxies]
        self.openai = [openai.OpenAI(api_key=p.master_key, base_url=f"{p.url}/v1", max_retries=0) for p in proxies]
        first = proxies[0]
        self.anthropic = anthropic.Anthropic(auth_token=first.master_key, base_url=first.url, max_retries=0)

    def close(self):
        for client in (*self.http, *self.openai, self.anthropic):
            client.close()

    def models(self, gateway=0):
        pools = self.http[gateway].get("/pointsman/residency").raise_for_status().json()["pools"]
        return {model["model"]: model for model in pools[0]["models"]}

    def states(self, gateway=0):
        return {name: model["state"] for name, model in self.models(gateway).items()}

    def empty(self):
        """Evict everything, so that a test begins with cold models."""
        for name, state in self.states().items():
            if state != "cold":
                self.http[0].post(f"/pointsman/residency/{name}/evict").raise_for_status()


def config(server, directory, **pool):
    params = {"api_key": "any"}
    models = [
        {
            "model_name": name,
            "litellm_params": {**params, "model": f"openai/{name}", "api_base": f"{server.url}/v1"},
            "model_info": {"id": f"{name}-1"},
        }
        for name in SIZES
        if name != "claude"
    ]
    models.append(
        {
            "model_name": "claude",
            "litellm_params": {**params, "model": "anthropic/claude", "api_base": server.url},
            "model_info": {"id": "claude-1"},
        }
    )
    # As an operator has it whose server is local: a short time-out, which a load must not use up.
    return {
        "model_list": models,
        "litellm_settings": {"callbacks": ["pointsman.litellm.handler"]},
        "router_settings": {"num_retries": 0, "disable_cooldowns": True},
        "pointsman": {
            "store": {"backend": "disk", "path": str(directory / "store")},
            "plugins": [
                {
                    "residency": {
                        "pools": {
                            "gpu": {
                                "budget": BUDGET,
                                "server": {"kind": "ollama", "url": server.url},
                                "models": {name: {"footprint": size} for name, size in SIZES.items()},
                                "min_residence_s": 0.2,
                                "max_wait_s": 3,
                                "refresh_s": 0.5,
                                **pool,
                            }
                        }
                    }
                }
            ],
        },
    }


@contextlib.contextmanager
def two_gateways(directory, deadline_s):
    behaviours = {"wide": Behaviour(per_token=5, tokens=30), "*": Behaviour(latency=20)}
    with ModelServer(SIZES, capacity=BUDGET, behaviours=behaviours) as server:
        document = config(server, directory, deadline_s=deadline_s)
        document["litellm_settings"]["sse_keepalive_ping_interval_seconds"] = 0.4
        first, second = (ProxyServer(document, directory / name) for name in ("first", "second"))
        with first, second:
            gateways = Gateways(server, (first, second))
            yield gateways
            gateways.close()


@pytest.fixture(scope="module")
def gateways(tmp_path_factory):
    """Two that wait for as long as a busy machine needs."""
    with two_gateways(tmp_path_factory.mktemp("residency"), 120) as gateways:
        yield gateways


@pytest.fixture
def impatient(tmp_path):
    """Two that wait for a place no longer than a test of that wants to."""
    with two_gateways(tmp_path, 15) as gateways:
        yield gateways
        assert gateways.server.faults == []


@pytest.fixture(autouse=True)
def _nothing_went_wrong(request):
    if "gateways" not in request.fixturenames:
        yield
        return
    gateways = request.getfixturevalue("gateways")
    gateways.empty()
    gateways.server.ollama.log.clear()
    yield
    assert gateways.server.faults == []


def chat(gateways, model, gateway=0):
    return gateways.openai[gateway].chat.completions.create(model=model, messages=MESSAGES).choices[0].message.content


def chat_stream(gateways, model, gateway=0):
    pieces = gateways.openai[gateway].chat.completions.create(model=model, messages=MESSAGES, stream=True)
    chunks = [piece for piece in pieces if piece.choices]
    assert chunks[-1].choices[0].finish_reason == "stop"
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


def responses(gateways, model, gateway=0):
    return gateways.openai[gateway].responses.create(model=model, input="Say hello.").output_text


def responses_stream(gateways, model, gateway=0):
    events = gateways.openai[gateway].responses.create(model=model, input="Say hello.", stream=True)
    return "".join(event.delta for event in events if event.type == "response.output_text.delta")


def embeddings(gateways, model, gateway=0):
    return gateways.openai[gateway].embeddings.create(model=model, input="Hello.").data[0].embedding


def messages(gateways, model="claude"):
    answer = gateways.anthropic.messages.create(model=model, messages=MESSAGES, max_tokens=50)
    return "".join(block.text for block in answer.content if block.type == "text")


def messages_stream(gateways, model="claude"):
    with gateways.anthropic.messages.stream(model=model, messages=MESSAGES, max_tokens=50) as stream:
        return "".join(stream.text_stream)


@pytest.mark.parametrize(
    ("ask", "model"),
    [
        (chat, "wide"),
        (chat_stream, "wide"),
        (responses, "wide"),
        (responses_stream, "wide"),
        (embeddings, "wide"),
        (messages, "claude"),
        (messages_stream, "claude"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_cold_model_takes_the_place_of_another_on_every_endpoint(gateways, ask, model):
    """It is loaded, answers, gives way to another one that needs all the memory, and comes back."""
    assert ask(gateways, model)
    assert chat(gateways, "wider")
    assert ask(gateways, model)
    assert [entry for entry in gateways.server.ollama.log if entry[0] == "load"] == [
        ("load", model),
        ("load", "wider"),
        ("load", model),
    ]


@pytest.mark.parametrize(
    ("path", "model", "body"),
    [
        ("/v1/chat/completions", "wide", {"messages": MESSAGES}),
        ("/v1/responses", "wide", {"input": "Say hello."}),
        ("/v1/messages", "claude", {"messages": MESSAGES, "max_tokens": 50}),
    ],
    ids=["chat", "responses", "messages"],
)
def test_streams_are_kept_alive_while_their_model_loads(gateways, path, model, body):
    """Comments come before the answer, as often as LiteLLM's own setting says; the load is longer than that."""
    gateways.server.ollama.load_s = 1.5
    answer = gateways.http[0].post(path, json={"model": model, "stream": True, **body})
    gateways.server.ollama.load_s = 0.5
    assert answer.status_code == 200
    assert answer.text.startswith(": ping\n\n: ping\n\n")
    assert "data: " in answer.text
    assert "error" not in answer.text


def test_a_stampede_on_two_gateways_loads_once(gateways):
    """A hundred requests for one cold model: all are answered, and the server saw one load."""
    gateways.server.ollama.load_s = 2.0
    asks = [chat, chat_stream, responses, responses_stream]
    with ThreadPoolExecutor(100) as pool:
        answers = list(pool.map(lambda n: asks[n % 4](gateways, "m0", n // 4 % 2), range(100)))
    gateways.server.ollama.load_s = 0.5
    assert all(answers)
    assert len(answers) == 100
    assert gateways.server.count("load") == 1


def test_evictions_cut_no_stream(gateways):
    """Forty streams on two gateways while an operator evicts their model again and again: all of them end properly."""
    stop = threading.Event()
    evicted = Counter()

    def evict():
        rng = random.Random(1)
        while not stop.is_set():
            answer = gateways.http[1].post("/pointsman/residency/wide/evict", params={"wait_s": 20})
            evicted[answer.status_code] += 1
            stop.wait(rng.random() / 2)

    evicting = threading.Thread(target=evict)
    evicting.start()
    try:
        with ThreadPoolExecutor(10) as pool:
            texts = list(pool.map(lambda n: chat_stream(gateways, "wide", n % 2), range(40)))
    finally:
        stop.set()
        evicting.join()
    assert len({len(text) for text in texts}) == 1
    assert set(evicted) <= {200, 409}
    assert gateways.server.count("unload") > 0


def test_ten_models_with_room_for_three(gateways):
    """Two hundred requests by twenty clients on two gateways, some models asked for much more than others: none fails."""
    rng = random.Random(7)
    asked = rng.choices(NAMES, weights=[1 / (rank + 1) for rank in range(10)], k=200)
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda n: chat(gateways, asked[n], n % 2), range(200)))
    assert all(answers)
    # With the optimum for this order of requests, if they were served one after another.
    assert gateways.server.count("load") <= 1.3 * belady(asked, 3)


def test_a_broken_model_is_refused_with_the_reason_and_a_time(gateways):
    for _ in range(2):
        answer = gateways.http[0].post("/v1/chat/completions", json={"model": "broken", "messages": MESSAGES})
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "model_not_loaded"
        assert "llama runner process has terminated" in answer.json()["error"]["message"]
        assert int(answer.headers["retry-after"]) >= 1
    assert gateways.server.count("load", "broken") == 0


def test_operators_see_and_change_it_on_either_gateway(impatient):
    """What is done at one is seen at the other; the pinned model stays, and its rivals are answered with 503.

    A stream that was kept alive until then is told the same by its client's own exception.
    """
    runner = CliRunner()

    def run(gateway, *arguments):
        options = ["--url", impatient.proxies[gateway].url, "--key", impatient.proxies[gateway].master_key]
        result = runner.invoke(residency, [*arguments, *options])
        assert result.exit_code == 0, result.output
        return result.output

    assert "resident" in run(1, "load", "wide", "--wait", "60")
    run(0, "pin", "wide")
    assert eventually(lambda: impatient.models(1)["wide"], lambda model: model["pinned"])
    assert "wide" in run(1, "list")
    body = {"model": "wider", "messages": MESSAGES}
    with ThreadPoolExecutor(1) as pool:
        streamed = pool.submit(messages_stream, impatient)
        answer = impatient.http[0].post("/v1/chat/completions", json=body, timeout=200)
        with pytest.raises(anthropic.APIStatusError, match="only pinned or busy models are left: wide"):
            streamed.result()
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "model_not_ready")
    assert "only pinned or busy models are left: wide" in answer.json()["error"]["message"]
    run(1, "unpin", "wide")
    assert "cold" in run(1, "evict", "wide")
    assert eventually(lambda: impatient.states(0)["wide"], lambda state: state == "cold") == "cold"


def test_what_something_else_unloaded_is_loaded_again(gateways):
    """Its server forgets it; within the time of a look the gateway knows, and no request fails."""
    chat(gateways, "m1")
    gateways.server.ollama.loaded.clear()
    assert eventually(lambda: gateways.states(1)["m1"], lambda state: state == "cold") == "cold"
    assert chat(gateways, "m1", 1)
    assert gateways.server.count("load", "m1") == 2


def test_a_gateway_that_dies_while_it_loads_loses_no_request_of_the_other(tmp_path):
    """The deciding gateway is killed in the middle of a load; the other one takes over and answers its clients."""
    with ModelServer({**SIZES}, capacity=BUDGET, load_s=4.0) as server:
        document = config(server, tmp_path, deadline_s=60)
        first = ProxyServer(document, tmp_path / "first")
        first.start()
        try:
            with ProxyServer(document, tmp_path / "second") as second:
                gateways = Gateways(server, (first, second))
                assert gateways.http[0].get("/pointsman/residency").json()["pools"][0]["decides"]
                with ThreadPoolExecutor(10) as pool:
                    waiting = [pool.submit(chat, gateways, "m0", 1) for _ in range(10)]
                    eventually(lambda: server.ollama.loaded.get("m0"), lambda state: state == "loading")
                    first.stop(signal.SIGKILL)
                    assert all(one.result(60) for one in waiting)
                assert gateways.http[1].get("/pointsman/residency").json()["pools"][0]["decides"]
                assert server.faults == []
                gateways.close()
        finally:
            first.stop(signal.SIGKILL)
