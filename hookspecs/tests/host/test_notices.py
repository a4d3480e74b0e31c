"""Notices for operators: what becomes one, what the log says, and what webhooks get."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Sequence
from typing import Any

import httpx
import pytest

from pointsman.errors import ConfigError
from pointsman.events import BreakerChanged, Notice, RolloutChanged
from pointsman.host.counters import Counter, value_of
from pointsman.host.isolation import Faults
from pointsman.host.notices import MOST_WAITING, Notices, NotifyConfig
from pointsman.host.runtime import TaskGroup
from pointsman.host.settings import parse
from pointsman.store import open_store
from pointsman.testing.clock import FakeClock

OPENED = BreakerChanged(
    source="balance",
    group="chat",
    deployment_id="chat-a",
    state="open",
    reason="3 errors in a row",
    until=1_700_000_060.0,
)
ROLLED_BACK = RolloutChanged(
    source="canary",
    experiment="new",
    model="chat",
    what="rollback",
    who="canary",
    reason="errors are higher",
    at=1_700_000_000.0,
    phase="rolled_back",
    weights_percent={"canary": 0.0},
)


class Hook:
    """A webhook that answers what it is told, then 200."""

    def __init__(self, *statuses: int) -> None:
        self.statuses = list(statuses)
        self.got: list[dict[str, Any]] = []
        self.headers: list[httpx.Headers] = []

    async def answer(self, request: httpx.Request) -> httpx.Response:
        self.got.append(json.loads(request.content))
        self.headers.append(request.headers)
        status = self.statuses.pop(0) if self.statuses else 200
        return httpx.Response(status, headers={"location": "http://elsewhere.test/"} if status == 302 else {})


class Worker:
    def __init__(self, hook: Hook, store: Any, clock: FakeClock, name: str, **settings: Any) -> None:
        self.counter = Counter("notices", "N.", "1", ("plugin", "kind"))
        webhook = NotifyConfig.model_validate({"url": "https://hooks.test/secret-path", **settings})
        self.notices = Notices(
            [webhook],
            clock=clock,
            worker=name,
            counter=self.counter,
            transport=httpx.MockTransport(hook.answer),
        )
        self.clock = clock
        self.tasks = TaskGroup("test", clock, Faults())
        self._store = store
        self._started = False

    async def hear(self, *events: Any) -> None:
        if not self._started:
            self._started = True
            await self.notices.start(self._store, self.tasks)
        for event in events:
            await self.notices.hear(event)
        for _ in range(60):
            await asyncio.sleep(0)
            await self.clock.advance(1.0)


@pytest.fixture
async def shared() -> Any:
    store, clock, made = await open_store("memory"), FakeClock(), []

    def worker(hook: Hook, name: str = "worker", **settings: Any) -> Worker:
        made.append(Worker(hook, store, clock, name, **settings))
        return made[-1]

    yield worker
    for each in made:
        await each.tasks.cancel()
        await each.notices.close()
    await store.close()


@pytest.mark.parametrize(
    ("event", "expected", "words"),
    [
        (OPENED, ("breaker", "warning"), ["chat-a", "open until 22:14:20Z", "3 errors in a row"]),
        (ROLLED_BACK, ("rollout", "error"), ["new of chat", "rolled_back", "errors are higher"]),
        (Notice(kind="limit", subject="t", text="tenant t", at=5.0), ("limit", "warning"), ["tenant t"]),
    ],
)
async def test_what_happened_is_logged_counted_and_sent(
    shared: Any, caplog: pytest.LogCaptureFixture, event: Any, expected: tuple[str, str], words: Sequence[str]
) -> None:
    hook = Hook()
    worker = shared(hook)
    with caplog.at_level(logging.INFO, "pointsman"):
        await worker.hear(event)
    (got,) = hook.got
    assert (got["kind"], got["level"]) == expected
    kind, _ = expected
    for word in words:
        assert word in got["text"]
        # The plugin logs a change of its rollout itself.
        assert kind == "rollout" or word in caplog.text
    assert value_of([worker.counter.read()], "notices", {"kind": kind}) == 1


async def test_slack_gets_its_own_form_and_no_mentions(shared: Any) -> None:
    hook = Hook()
    await shared(hook, format="slack").hear(Notice(kind="limit", subject="s", text="<!channel> & more", at=0.0))
    (got,) = hook.got
    assert set(got) == {"text"}
    assert "&lt;!channel&gt; &amp; more" in got["text"]


async def test_a_webhook_that_is_busy_is_tried_again_and_one_that_refuses_is_not(
    shared: Any, caplog: pytest.LogCaptureFixture
) -> None:
    busy, refusing, elsewhere = Hook(503, 429, 200), Hook(400), Hook(302)
    await shared(busy).hear(OPENED)
    assert len(busy.got) == 3
    await shared(refusing, "other").hear(ROLLED_BACK)
    await shared(elsewhere, "third").hear(Notice(kind="limit", subject="s", text="t", at=0.0))
    assert (len(refusing.got), len(elsewhere.got)) == (1, 1)
    assert "hooks.test did not take a notice of kind rollout: status 400" in caplog.text
    assert "secret-path" not in caplog.text


async def test_one_of_several_workers_sends(shared: Any) -> None:
    hook = Hook()
    one, other = shared(hook, "one"), shared(hook, "other")
    await one.hear(OPENED)
    await other.hear(OPENED)
    assert len(hook.got) == 1
    await one.hear(BreakerChanged(group="chat", deployment_id="chat-a", state="closed", reason="it answers"))
    assert len(hook.got) == 2


async def test_kinds_and_levels_choose_and_headers_are_sent(shared: Any) -> None:
    hook = Hook()
    worker = shared(hook, kinds=["rollout"], level="error", headers={"x-token": "t0ken"})
    await worker.hear(OPENED, ROLLED_BACK)
    assert [got["kind"] for got in hook.got] == ["rollout"]
    assert hook.headers[0]["x-token"] == "t0ken"


async def test_what_waits_for_a_dead_webhook_is_bounded(shared: Any) -> None:
    hook = Hook(*[500] * 10_000)
    worker = shared(hook, attempts=20)
    for number in range(MOST_WAITING + 50):
        await worker.notices.hear(Notice(kind="limit", subject=str(number), text="t", at=0.0))
    assert worker.notices.lost >= 49


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"url": "ftp://x"}, "must begin with http"),
        ({"url": "https://x", "kinds": ["Not A Kind"]}, "kinds"),
        ({"url": "https://x", "level": "loud"}, "level"),
        ({}, "url"),
    ],
)
def test_a_wrong_webhook_is_named_without_its_address(wrong: dict[str, Any], says: str, tmp_path: Any) -> None:
    with pytest.raises(ConfigError, match=says) as raised:
        parse({"notify": [wrong]}, "litellm.yaml", tmp_path)
    assert "ftp://x" not in str(raised.value)
