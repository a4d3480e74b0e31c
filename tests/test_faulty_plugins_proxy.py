"""Faulty plugins on a real proxy: what the client gets, what other plugins see, and what the status says, as in the kit."""

from __future__ import annotations

import json
import os
import random
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from faults import DENIED, FAULTS, RAISED, TEXT, Fault, prescribed, streams
from rig import SUPPORT, Rig, deployment

from pointsman.testing.distribution import fake_distribution
from pointsman.testing.provider import Behaviour
from pointsman.testing.shapes import text_of

pytestmark = pytest.mark.proxy
THOROUGH = bool(os.environ.get("POINTSMAN_THOROUGH"))
INJECTED = 2000 if THOROUGH else 60
PATHS = {
    "chat": "/v1/chat/completions",
    "messages": "/v1/messages",
    "responses": "/v1/responses",
    "completions": "/v1/completions",
}
FALL_BACK = ("chat", "messages", "responses")


def cases() -> list[Any]:
    """Return each fault with each policy; by day one policy each, and one kind of exception for each hook."""
    everything = [(name, who) for name in FAULTS for who in ("lenient", "strict")]
    if THOROUGH:
        return everything
    raised = [name for name in FAULTS if " raises " in name]
    kept = [name for name in FAULTS if name not in raised] + raised[:: len(RAISED) + 1]
    return [(name, ("lenient", "strict")[number % 2]) for number, name in enumerate(kept)]


#: Left out of a plugin list that says ``optional``: nothing of them may stop the proxy.
BROKEN = ("exits", "misspelt", "unstartable")
BROKEN_SOURCE = """
from pointsman import PluginConfig, PluginInfo, hookimpl


class Misspelt:
    @hookimpl
    async def pre_rout(self):
        pass


class Unstartable:
    @hookimpl
    async def startup(self):
        raise SystemExit(1)


misspelt = PluginInfo(name="misspelt", config=PluginConfig, factory=lambda _: Misspelt())
unstartable = PluginInfo(name="unstartable", config=PluginConfig, factory=lambda _: Unstartable())
"""


def models(upstream: str) -> list[dict[str, Any]]:
    return [
        deployment(upstream, "failing", "gpt-failing", id_="failing-1"),
        deployment(upstream, "gpt", "gpt-4o-mini", id_="gpt-1"),
    ]


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    directory = tmp_path_factory.mktemp("faulty")
    library = directory / "lib"
    library.mkdir()
    shutil.copy(SUPPORT / "faults.py", library)
    (library / "broken_plugins.py").write_text(BROKEN_SOURCE, encoding="utf-8")
    (library / "exits_plugin.py").write_text("raise SystemExit(1)\n", encoding="utf-8")
    points = {name: f"faults:{name}" for name in ("owner", "lenient", "strict", "witness")}
    points |= {name: f"broken_plugins:{name}" for name in BROKEN} | {"exits": "exits_plugin:exits"}
    fake_distribution(library, "pointsman-faults", points)
    plugins: list[Any] = [{name: {"optional": True}} for name in BROKEN]
    settings = {"num_retries": 0, "disable_cooldowns": True, "fallbacks": [{"failing": ["gpt"]}]}
    rig = Rig(
        directory,
        models,
        plugins=[*plugins, "owner", "lenient", "strict", "witness"],
        config={"router_settings": settings},
    )
    rig.upstream.behave("gpt-4o-mini", Behaviour(text=TEXT))
    rig.upstream.behave("gpt-failing", Behaviour(error_ratios={500: 1.0}))
    with rig:
        yield rig


class Seen:
    """What a client got.

    Args:
        answer: The whole answer.
        stream: Whether it asked for a stream.
    """

    def __init__(self, answer: httpx.Response, *, stream: bool) -> None:
        self.status = answer.status_code
        self.headers = answer.headers
        self.request_id = answer.headers.get("x-pointsman-request-id", "")
        self.raw = answer.text
        if answer.status_code != 200:
            self.text, self.code = "", answer.json()["error"].get("code")
        elif stream:
            pieces = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
            self.text = "".join(map(text_of, pieces))
            self.code = next((piece["error"].get("code") for piece in pieces if piece.get("error")), None)
        else:
            self.text, self.code = text_of(answer.json()), None


def ask(rig: Rig, faults: dict[str, Fault], *, endpoint: str, stream: bool, model: str = "failing") -> Seen:
    headers = {**rig.proxy.headers, **{f"x-fault-{who}": fault.name for who, fault in faults.items()}}
    body: dict[str, Any] = {"model": model, "max_tokens": 50, "stream": stream}
    if endpoint == "responses":
        body = {"model": model, "stream": stream, "input": "Hello"}
    elif endpoint == "completions":
        body["prompt"] = "Hello"
    else:
        body["messages"] = [{"role": "user", "content": "Hello"}]
    answer = httpx.post(f"{rig.proxy.url}{PATHS[endpoint]}", json=body, headers=headers, timeout=60)
    return Seen(answer, stream=stream)


def witnessed(rig: Rig, seen: Seen) -> dict[str, Any]:
    """Return what the last plugin has seen of a request, once it is settled."""
    deadline = time.monotonic() + 30.0
    while time.monotonic() < deadline:
        found = httpx.get(
            f"{rig.proxy.url}/pointsman/witness/{seen.request_id}", headers=rig.proxy.headers, timeout=60
        ).json()
        if found["settled"] is not None:
            return dict(found)
        time.sleep(0.02)
    raise TimeoutError(f"request {seen.request_id!r} was not settled; log:\n{rig.proxy.log()[-3000:]}")


def status(rig: Rig) -> dict[str, Any]:
    return dict(httpx.get(f"{rig.proxy.url}/pointsman/status", headers=rig.proxy.headers, timeout=60).json())


def faults_of(page: dict[str, Any]) -> Counter[str]:
    return Counter({f"{row['plugin']}.{row['hook']}": row["count"] for row in page["faults"]})


def blocked(page: dict[str, Any], who: str, hook: str) -> int:
    return sum(row["blocked"] for row in page["hooks"] if (row["plugin"], row["hook"]) == (who, hook))


USUAL: dict[tuple[str, bool], tuple[Seen, dict[str, Any]]] = {}


def usual(rig: Rig, endpoint: str, *, stream: bool) -> tuple[Seen, dict[str, Any]]:
    """Return what a request without a fault comes to."""
    if (endpoint, stream) not in USUAL:
        seen = ask(rig, {}, endpoint=endpoint, stream=stream)
        USUAL[endpoint, stream] = seen, witnessed(rig, seen)
    return USUAL[endpoint, stream]


@pytest.mark.parametrize(("name", "who"), cases())
def test_a_fault_stays_its_own(rig: Rig, name: str, who: str) -> None:
    """The client is answered by policy, every other plugin has its hooks, and the status says whose fault it was."""
    fault = FAULTS[name]
    endpoint = FALL_BACK[(list(FAULTS).index(name) + (who == "strict")) % len(FALL_BACK)]
    stream = streams(fault, other=who == "strict")
    reference, seen_usually = usual(rig, endpoint, stream=stream)
    before = status(rig)
    seen = ask(rig, {who: fault}, endpoint=endpoint, stream=stream)
    found = witnessed(rig, seen)
    if fault.hook == "status":
        status(rig)  # this one fails
    expected = Counter({f"{who}.{fault.hook}": 1}) if fault.counted else Counter[str]()
    deadline = time.monotonic() + 10.0
    while True:
        after = status(rig)
        counted = faults_of(after) - faults_of(before)
        if counted.keys() == expected.keys() or time.monotonic() > deadline:
            break
        time.sleep(0.05)

    denied = DENIED.get(fault.hook) if who == "strict" and fault.counted else None
    assert reference.text == TEXT, reference.raw[:1000]
    if denied is None:
        assert (seen.status, seen.text) == (200, TEXT), seen.raw[:1000]
        assert found["seen"] == seen_usually["seen"], "every other plugin has its hooks as often as usual"
        assert found["settled"]["outcome"] == "ok"
    elif fault.hook == "transform_stream":
        assert "plugin_failed" in seen.raw
        assert seen.text != TEXT
    else:
        assert (seen.status, seen.code) == (denied, "no_deployment" if denied == 429 else "plugin_failed"), seen.raw
    assert found["seen"]["settle"] == 1
    for what in ("labels", "reservations"):
        assert found["settled"][what] == seen_usually["settled"][what]
    assert found["settled"]["labels"]["owned"] == "mine"
    assert not {"set-cookie", "x-secret"} & set(seen.headers)
    assert counted.keys() == expected.keys(), "the fault is counted against its own plugin and hook, and no other"
    if fault.blocks:
        assert blocked(after, who, fault.hook) > blocked(before, who, fault.hook)
        (held_at,) = [row["held_at"] for row in after["hooks"] if (row["plugin"], row["hook"]) == (who, fault.hook)]
        assert "_block (" in held_at
        assert "faults.py:" in held_at


def test_what_could_not_be_loaded_is_reported(rig: Rig) -> None:
    """A plugin that ends the process at its import, misspells a hook or fails at its start is left out, with the reason."""
    plugins = {plugin["name"]: plugin for plugin in status(rig)["plugins"]}
    assert {name: plugins[name]["ok"] for name in BROKEN} == dict.fromkeys(BROKEN, False)
    for name, reason in (("exits", "SystemExit"), ("misspelt", "pre_route"), ("unstartable", "SystemExit")):
        assert reason in json.dumps(plugins[name])


@pytest.mark.timeout(3600 if THOROUGH else 600)
def test_injected_faults_reach_no_client_that_no_policy_names(rig: Rig) -> None:
    """Faults of two plugins, an error of a provider, streams and endpoints at random: each client gets what policies say."""
    chance = random.Random(11)
    quick = [fault for fault in FAULTS.values() if not fault.slow]
    wrong = []
    for number in range(INJECTED):
        faults = {who: chance.choice(quick) for who in ("lenient", "strict") if chance.random() < 0.6}
        endpoint, stream = chance.choice(list(PATHS)), chance.random() < 0.5
        model = chance.choice(["gpt", "failing"]) if endpoint in FALL_BACK else "gpt"
        seen = ask(rig, faults, endpoint=endpoint, stream=stream, model=model)
        allowed, whole = prescribed(faults.get("strict"), stream=stream)
        cut_off = seen.status == 200 and seen.text != TEXT and (whole or "plugin_failed" not in seen.raw)
        unnamed = seen.status != 200 and seen.code not in {"plugin_failed", "no_deployment"}
        if seen.status not in allowed or cut_off or unnamed:
            wrong.append(f"{number}: {faults} {endpoint} stream={stream}: {seen.status} {seen.raw[:500]}")
        if number % 50 == 0:
            assert witnessed(rig, seen)["seen"]["settle"] == 1
    assert not wrong, wrong[:5]
    assert rig.proxy.running
