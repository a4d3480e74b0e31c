"""A gateway before real servers, llama-server and Ollama: models are loaded, swapped, evicted, cut, and servers killed."""

from __future__ import annotations

import contextlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest

from pointsman.testing import eventually
from pointsman.testing.proxy import ProxyServer

from .llama import make_model
from .real_servers import PARALLEL, LlamaServer, OllamaServer

pytestmark = [pytest.mark.proxy, pytest.mark.services, pytest.mark.timeout(400)]

NAMES = ["one", "two", "three"]
MESSAGES = [{"role": "user", "content": "Say hello."}]
MAX_WAIT_S = 3.0


class Gateway:
    def __init__(self, server, proxy):
        self.server = server
        self.http = httpx.Client(base_url=proxy.url, headers=proxy.headers, timeout=300, trust_env=False)
        self.openai = openai.OpenAI(api_key=proxy.master_key, base_url=f"{proxy.url}/v1", max_retries=0, timeout=300)

    def close(self):
        self.http.close()
        self.openai.close()

    def models(self):
        (pool,) = self.http.get("/pointsman/residency").raise_for_status().json()["pools"]
        return {model["model"]: model for model in pool["models"]}

    def state(self, model):
        return self.models()[model]["state"]

    def ask(self, model, tokens=5):
        """Return how long an answer took, in seconds."""
        began = time.monotonic()
        answer = self.openai.chat.completions.create(model=model, messages=MESSAGES, max_tokens=tokens)
        assert answer.choices[0].finish_reason in {"length", "stop"}
        return time.monotonic() - began

    def stream(self, model, tokens):
        """Return the number of pieces and why it ended; None when it was cut."""
        chunks = self.openai.chat.completions.create(model=model, messages=MESSAGES, max_tokens=tokens, stream=True)
        pieces, reason = 0, None
        with contextlib.suppress(openai.APIError, httpx.HTTPError):
            for chunk in chunks:
                for choice in chunk.choices:
                    pieces += bool(choice.delta.content)
                    reason = choice.finish_reason or reason
        return pieces, reason

    def evict(self, model, **params):
        return self.http.post(f"/pointsman/residency/{model}/evict", params=params)


@pytest.fixture(scope="module", params=[LlamaServer, OllamaServer], ids=["llama-server", "ollama"])
def gateway(request, tmp_path_factory):
    kind = request.param
    if (reason := kind.missing()) is not None:
        pytest.skip(reason)
    pytest.importorskip("gguf", reason="gguf, which writes the models' files, is not installed")
    folder = tmp_path_factory.mktemp(kind.kind)
    files = {name: folder / f"{name}.gguf" for name in NAMES}
    for seed, path in enumerate(files.values()):
        make_model(path, width=128, layers=4, seed=seed)
    home = folder / "server"
    home.mkdir()
    with kind(home, files) as server:
        size = max(server.footprint(name) for name in NAMES)
        pool = {
            # Room for two of the three.
            "budget": int(2.5 * size),
            "server": {"kind": kind.kind, "url": server.url},
            "models": {name: {"footprint": size, "parallel": PARALLEL} for name in NAMES},
            "refresh_s": 0.5,
            "max_wait_s": MAX_WAIT_S,
            # The third one takes the place of the other two.
            "exclusive": [["one", "three"], ["two", "three"]],
        }
        config = {
            "model_list": [server.deployment(name) for name in NAMES],
            "litellm_settings": {"callbacks": ["pointsman.litellm.handler"]},
            "router_settings": {"num_retries": 0, "disable_cooldowns": True},
            "pointsman": {"store": {"backend": "memory"}, "plugins": [{"residency": {"pools": {"memory": pool}}}]},
        }
        with ProxyServer(config, folder / "proxy") as proxy, contextlib.closing(Gateway(server, proxy)) as gateway:
            yield gateway


@pytest.fixture(autouse=True)
def _empty(gateway):
    """Begin with cold models."""
    for name in gateway.server.resident():
        gateway.evict(name).raise_for_status()
    assert eventually(lambda: not gateway.server.resident(), bool)


def test_models_are_loaded_and_swapped_on_the_server_itself(gateway):
    for name, resident in (("one", {"one"}), ("two", {"one", "two"}), ("three", {"three"}), ("two", {"two"})):
        gateway.ask(name)
        assert gateway.server.resident() == resident
        assert {model for model, row in gateway.models().items() if row["state"] == "resident"} == resident


def test_a_footprint_is_never_smaller_than_what_the_server_tells(gateway):
    gateway.ask("two")
    assert sum(gateway.models()["two"]["bytes"].values()) >= gateway.server.bytes_of("two")


def test_requests_that_come_together_load_once(gateway):
    before = gateway.models()["one"]["loads"]
    with ThreadPoolExecutor(20) as pool:
        list(pool.map(gateway.ask, ["one"] * 20))
    assert gateway.models()["one"]["loads"] == before + 1


def test_an_eviction_waits_for_the_answers_and_cuts_none(gateway):
    gateway.ask("one")
    with ThreadPoolExecutor(PARALLEL) as pool:
        streams = [pool.submit(gateway.stream, "one", 300) for _ in range(PARALLEL)]
        eventually(lambda: gateway.models()["one"]["in_flight"], lambda number: number == PARALLEL)
        gateway.evict("one", wait_s=120).raise_for_status()
        ended = [stream.result(120) for stream in streams]
    assert {reason for _, reason in ended} <= {"length", "stop"}
    assert "one" not in gateway.server.resident()


def test_a_forced_eviction_does_what_the_server_does_with_a_busy_model(gateway):
    """llama-server cuts the answer. Ollama ends it first, and until then says that it still has the model."""
    ends_answers = isinstance(gateway.server, OllamaServer)
    gateway.ask("one")
    with ThreadPoolExecutor(1) as pool:
        stream = pool.submit(gateway.stream, "one", 300 if ends_answers else 1500)
        eventually(lambda: gateway.models()["one"]["in_flight"], lambda number: number == 1)
        answer = gateway.evict("one", force=True)
        try:
            pieces, reason = stream.result(200)
        except openai.APIError:
            pieces, reason = 0, None  # the model went before it had begun to answer
    if ends_answers:
        assert reason in {"length", "stop"}
        assert answer.status_code in {200, 409}
    else:
        # LiteLLM ends a stream that was cut as if it had stopped.
        assert pieces < 1500
        assert answer.json()["state"] == "cold"
    eventually(gateway.server.resident, lambda resident: "one" not in resident)


def test_what_something_else_unloads_is_loaded_again_and_no_request_fails(gateway):
    gateway.ask("two")
    gateway.server.unload("two")
    assert eventually(lambda: gateway.state("two"), lambda state: state == "cold") == "cold"
    gateway.ask("two")


def test_an_unload_by_something_else_in_the_middle_of_an_answer_is_followed(gateway):
    """Ollama ends the answer first, llama-server cuts it; either way what comes later is answered."""
    gateway.ask("two")
    with ThreadPoolExecutor(1) as pool:
        stream = pool.submit(gateway.stream, "two", 300)
        eventually(lambda: gateway.models()["two"]["in_flight"], lambda number: number == 1)
        gateway.server.unload("two")
        with contextlib.suppress(openai.APIError):
            _, reason = stream.result(200)
            assert reason in {"length", "stop"} or not isinstance(gateway.server, OllamaServer)
    eventually(gateway.server.resident, lambda resident: "two" not in resident)
    assert eventually(lambda: gateway.state("two"), lambda state: state == "cold") == "cold"
    gateway.ask("two")


def test_a_server_that_is_killed_while_it_loads_loses_no_request(gateway):
    """It is started again, loads the model, and the requests that waited are answered."""
    with ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(gateway.ask, "three") for _ in range(3)]
        eventually(lambda: gateway.state("three"), lambda state: state != "cold")
        gateway.server.freeze()
        # What it had answered before has been read when the gateway has answered this often.
        killed_while = [gateway.state("three") for _ in range(10)][-1]
        gateway.server.kill()
        gateway.server.start()
        if killed_while == "loading":
            assert all(one.result(200) for one in waiting)
        else:
            # It was quicker than the look at it: what it was answering is cut, what comes later is answered.
            for one in waiting:
                with contextlib.suppress(openai.APIError):
                    one.result(200)
    gateway.ask("three")
    assert gateway.server.resident() == {"three"}


def test_a_model_that_is_kept_busy_lets_another_one_in(gateway):
    """Six clients keep a model busy; one for another waits max_wait_s, their longest answer and the loads, not more."""
    gateway.ask("three")
    gateway.ask("one")
    stop, longest = threading.Event(), []

    def keep_busy():
        while not stop.is_set():
            began = time.monotonic()
            gateway.ask("one", 60)
            longest.append(time.monotonic() - began)

    with ThreadPoolExecutor(6) as pool:
        busy = [pool.submit(keep_busy) for _ in range(6)]
        eventually(lambda: len(longest), lambda number: number >= 6, within_s=60)
        waited_s = gateway.ask("three")
        again_s = gateway.ask("one")
        stop.set()
        for one in busy:
            one.result(120)
    loads_s = sum(gateway.models()[name]["load_s"] or 0 for name in ("one", "three"))
    # On a slow machine the answers take longer too: those that came meanwhile count.
    assert max(waited_s, again_s) <= MAX_WAIT_S + 3 * max(longest) + 2 * loads_s + 5
