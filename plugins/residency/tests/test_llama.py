"""A gateway before real models on llama.cpp's server: they are loaded, swapped and evicted, and no answer is cut."""

from __future__ import annotations

import importlib.util
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest

from pointsman.testing import eventually
from pointsman.testing.proxy import ProxyServer

from .llama import LlamaServers, make_model

pytestmark = [
    pytest.mark.proxy,
    pytest.mark.timeout(400),
    pytest.mark.skipif(
        importlib.util.find_spec("xllamacpp") is None or importlib.util.find_spec("gguf") is None,
        reason="xllamacpp and gguf, llama.cpp's server as a wheel and its file format, are not installed",
    ),
]

NAMES = ["one", "two", "three"]
MESSAGES = [{"role": "user", "content": "Say hello."}]


class Gateway:
    def __init__(self, servers, proxy):
        self.servers = servers
        self.http = httpx.Client(base_url=proxy.url, headers=proxy.headers, timeout=120, trust_env=False)
        self.openai = openai.OpenAI(api_key=proxy.master_key, base_url=f"{proxy.url}/v1", max_retries=0)

    def models(self):
        (pool,) = self.http.get("/pointsman/residency").raise_for_status().json()["pools"]
        return {model["model"]: model for model in pool["models"]}

    def resident(self):
        return {name for name, model in self.models().items() if model["state"] == "resident"}

    def ask(self, model, tokens=5):
        answer = self.openai.chat.completions.create(model=model, messages=MESSAGES, max_tokens=tokens)
        return answer.choices[0].message.content

    def stream(self, model, tokens):
        """Return the pieces and the reason of the end."""
        chunks = self.openai.chat.completions.create(model=model, messages=MESSAGES, max_tokens=tokens, stream=True)
        choices = [chunk.choices[0] for chunk in chunks if chunk.choices]
        return sum(bool(choice.delta.content) for choice in choices), choices[-1].finish_reason


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    directory = tmp_path_factory.mktemp("llama")
    files = {name: directory / f"{name}.gguf" for name in NAMES}
    sizes = {name: make_model(path, seed=seed) for seed, (name, path) in enumerate(files.items())}
    with LlamaServers(files) as servers:
        models = {name: {"footprint": size} for name, size in sizes.items()}
        config = {
            "model_list": [
                {
                    "model_name": name,
                    "litellm_params": {"model": f"openai/{name}", "api_base": f"{servers.url}/v1", "api_key": "any"},
                    "model_info": {"id": f"{name}-1"},
                }
                for name in NAMES
            ],
            "litellm_settings": {"callbacks": ["pointsman.litellm.handler"]},
            "router_settings": {"num_retries": 0, "disable_cooldowns": True},
            "pointsman": {
                "store": {"backend": "memory"},
                "plugins": [
                    {
                        "residency": {
                            "pools": {
                                "memory": {
                                    # Room for two of the three.
                                    "budget": int(2.5 * max(sizes.values())),
                                    "server": {"kind": "generic", "url": servers.url, "list": "/list"},
                                    "models": models,
                                    "refresh_s": 0.5,
                                }
                            }
                        }
                    }
                ],
            },
        }
        with ProxyServer(config, directory / "proxy") as proxy:
            gateway = Gateway(servers, proxy)
            yield gateway
            gateway.http.close()
            gateway.openai.close()


def test_models_are_swapped_and_their_processes_end(gateway):
    for name in [*NAMES, "one"]:
        assert gateway.ask(name)
        assert len(gateway.servers.processes) <= 2
    # Which one makes room is weighed by what its load took: where "two" went, "one" need not be loaded again.
    assert gateway.servers.loads in (["one", "two", "three", "one"], ["one", "two", "three"])
    assert set(gateway.servers.processes) == {"three", "one"}
    # A list that the server gave before the last change may be read after it, until the next is read.
    eventually(gateway.resident, lambda names: names == {"three", "one"})


def test_an_eviction_waits_for_the_answers_and_cuts_none(gateway):
    """Streams of one model run while it is evicted; they end with all their tokens, and then its process is gone."""
    gateway.ask("one")
    with ThreadPoolExecutor(4) as pool:
        streams = [pool.submit(gateway.stream, "one", 200) for _ in range(4)]
        eventually(lambda: gateway.models()["one"]["in_flight"], lambda number: number == 4)
        gateway.http.post("/pointsman/residency/one/evict", params={"wait_s": 60}).raise_for_status()
        ended = [stream.result(60) for stream in streams]
    assert {reason for _, reason in ended} <= {"length", "stop"}
    assert "one" not in gateway.servers.processes
    assert all(pieces > 100 for pieces, reason in ended if reason == "length")


def test_a_model_whose_process_was_killed_is_loaded_again(gateway):
    gateway.ask("two")
    gateway.servers.kill("two")
    assert eventually(lambda: gateway.models()["two"]["state"], lambda state: state == "cold")
    assert gateway.ask("two")
