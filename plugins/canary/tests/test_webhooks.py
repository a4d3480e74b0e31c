from __future__ import annotations

import asyncio
import json
import threading
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from pointsman.events import Notice
from pointsman.testing import ok
from pointsman_canary import lifecycle
from pointsman_canary.config import Webhook
from pointsman_canary.experiment import Experiment
from pointsman_canary.lifecycle import Cause
from pointsman_canary.rollout import Gate, Phase
from pointsman_canary.webhooks import Webhooks

FINE = {"old": ok("old"), "new": ok("new")}


class Server:
    """A webhook on a real socket: gives the answers set by a test, and records the questions."""

    def __init__(self) -> None:
        self.answers = deque()
        self.always = (200, {"verdict": "go"})
        self.asked = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                server.asked.append((body, dict(self.headers)))
                status, answer = server.answers.popleft() if server.answers else server.always
                if status == 0:
                    server.released.wait(20)
                    status = 200
                raw = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(raw)))
                self.send_header("location", server.url)
                self.end_headers()
                self.wfile.write(raw)

            def log_message(self, *_):
                pass

        self.released = threading.Event()
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/gate"
        self.thread = threading.Thread(target=self.http.serve_forever)
        self.thread.start()

    def close(self):
        self.released.set()
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()


@pytest.fixture
def server():
    made = Server()
    yield made
    made.close()


@pytest.fixture
def state():
    made = Experiment.model_validate({"name": "x", "model": "m", "canary": "c", "gates": {"before_step": "ci"}})
    return lifecycle.create(made, "config", Cause("test", "begin", 0.0))[0]


async def ask(url, state, **fields):
    keeper = await Webhooks.open({"ci": Webhook.model_validate({"url": url, "timeout_s": 5, "attempts": 2, **fields})})
    try:
        return await keeper.ask("ci", Gate.BEFORE_STEP, state)
    finally:
        await keeper.close()


async def test_webhook_is_asked_with_everything_it_needs(server, state):
    server.always = (200, {"verdict": "rollback", "reason": "tests are red"})
    ruling = await ask(server.url, state, headers={"x-token": "hush"})
    assert (ruling.verdict, ruling.reason) == ("rollback", "tests are red")
    ((body, headers),) = server.asked
    assert body == {
        "gate": "before_step",
        "experiment": "x",
        "model": "m",
        "run": 1,
        "step": -1,
        "weights_percent": {"canary": 0},
        "reason": "begin",
        "analysis": {},
    }
    assert headers["x-token"] == "hush"
    assert headers["idempotency-key"] == "x/1.1/before_step"


async def test_busy_webhook_is_asked_again(server, state):
    server.answers.append((503, {}))
    assert (await ask(server.url, state)).verdict == "go"
    assert len(server.asked) == 2


async def test_operators_hear_that_a_gate_waits_and_when_it_is_asked_again(fleet, kit, server):
    server.always = (200, {"verdict": "wait", "reason": "smoke tests run"})
    made = kit.rollout(steps=[20, 100], gates={"before_step": "ci"}, interval_s=2)
    worker = await fleet.worker(made, webhooks={"ci": {"url": server.url}})

    def told():
        return [event for event in worker.events if isinstance(event, Notice)]

    for _ in range(400):
        await fleet.ticks(2)
        if told():
            break
        await asyncio.sleep(0.005)
    assert (told()[0].kind, told()[0].subject) == ("gate", "chat-v2/before_step")
    assert told()[0].text == "chat-v2 waits at the gate before_step: ci: smoke tests run; next try in 30 s"


@pytest.mark.parametrize("status", [500, 429])
async def test_webhook_that_stays_busy_leaves_it_to_the_default(server, state, status):
    server.always = (status, {})
    ruling = await ask(server.url, state, default="rollback")
    assert ruling.verdict == "rollback"
    assert f"after 2 attempts: status {status}" in ruling.reason
    assert len(server.asked) == 2


@pytest.mark.parametrize(
    ("status", "answer"),
    [(404, {}), (302, {}), (200, {"verdict": "perhaps"}), (200, b"yes"), (200, b"[1]"), (200, {"reason": "x" * 501})],
)
async def test_answer_that_says_nothing_leaves_it_to_the_default_at_once(server, state, status, answer):
    server.always = (status, answer)
    assert (await ask(server.url, state, default="wait")).verdict == "wait"
    assert len(server.asked) == 1


async def test_empty_answer_means_go(server, state):
    server.always = (204, b"")
    assert (await ask(server.url, state, default="rollback")).verdict == "go"


async def test_slow_webhook_leaves_it_to_the_default(server, state):
    server.always = (0, {"verdict": "go"})
    ruling = await ask(server.url, state, default="wait", timeout_s=0.05)
    assert ruling.verdict == "wait"
    assert "TimeoutError" in ruling.reason


async def test_webhook_that_is_not_there_leaves_it_to_the_default(server, state):
    assert (await ask("http://127.0.0.1:1/", state, default="go", attempts=1)).verdict == "go"


async def until(fleet, condition):
    """Tick until something is so; webhooks answer in real time."""
    for _ in range(500):
        await fleet.ticks(6)
        if condition(await fleet.state()):
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it never came to that")


async def test_gates_lead_a_rollout_from_the_first_step_to_the_end(fleet, kit, server):
    """Asked before each step and before the promotion, once each, by the one worker that steps."""
    gates = {"before_step": "ci", "before_promotion": "ci", "after_rollback": "ci"}
    made = kit.rollout(steps=[20, 60, 100], gates=gates, interval_s=2, pass_on="samples", min_samples=1)
    webhooks = {"ci": {"url": server.url}}
    workers = [await fleet.worker(made, name=name, webhooks=webhooks) for name in ("one", "two")]
    assert sum((await fleet.state()).weights_bp) == 0
    await until(fleet, lambda state: state.step == 0)
    for _ in range(200):
        if (await fleet.state()).phase is Phase.PROMOTED:
            break
        for worker in workers:
            await kit.send(worker, 5, FINE)
        await fleet.ticks(5)
        await asyncio.sleep(0.005)
    assert (await fleet.state()).phase is Phase.PROMOTED
    await workers[0].admin.post("/canary/chat-v2/rollback")
    await until(fleet, lambda state: state.gate is None)
    assert [body["gate"] for body, _ in server.asked] == [
        "before_step",
        "before_step",
        "before_promotion",
        "after_rollback",
    ]
    assert (await fleet.state()).phase is Phase.ROLLED_BACK
    assert [(entry["what"], entry["who"]) for entry in await fleet.entries()] == [
        ("create", "config"),
        ("step", "webhook:ci"),
        ("step", "webhook:ci"),
        ("promote", "webhook:ci"),
        ("rollback", "admin"),
        ("gate", "webhook:ci"),
    ]


async def test_gate_that_says_no_before_the_first_step_keeps_all_traffic_at_stable(fleet, kit, server):
    server.always = (200, {"verdict": "rollback", "reason": "not today"})
    worker = await fleet.worker(kit.rollout(gates={"before_step": "ci"}), webhooks={"ci": {"url": server.url}})
    await until(fleet, lambda state: state.phase is Phase.ROLLED_BACK)
    assert (await fleet.state()).reason == "not today"
    assert set(kit.arms(await kit.send(worker, 30, FINE))) == {"stable"}
