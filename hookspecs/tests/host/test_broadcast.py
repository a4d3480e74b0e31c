"""Events whose class says so reach the plugins of every worker that shares the store, once."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, ClassVar

import pytest

from pointsman import hookimpl
from pointsman.errors import StoreError
from pointsman.host import broadcast
from pointsman.store.memory import MemoryStore
from pointsman.testing import FakeClock
from pointsman.types import Event


@pytest.fixture
def kinds() -> Any:
    """Classes of events; they are gone after the test, since every worker looks whether there is one."""
    # What is there already is not looked through when they are collected: with LiteLLM that takes most of the time.
    gc.freeze()

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Everywhere(Event):
        everywhere: ClassVar[bool] = True
        text: str = ""
        money: Decimal = Decimal(0)

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Here(Event):
        text: str = ""

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Shapeless(Event):
        everywhere: ClassVar[bool] = True
        what: object = None

    yield [Everywhere, Here, Shapeless]
    del Everywhere, Here, Shapeless
    broadcast._ADAPTERS.clear()
    gc.collect()
    gc.unfreeze()


class Hearing:
    """Notes what it hears."""

    @hookimpl
    async def startup(self, services: Any) -> None:
        self.heard: list[Event] = []
        self.services = services

    @hookimpl
    async def on_event(self, event: Event) -> None:
        self.heard.append(event)


async def test_an_event_reaches_every_worker_once(kinds: Any, harness: Any, plugin: Any, shared: Any) -> None:
    everywhere, here, _ = kinds
    clock = shared["clock"]
    workers = [harness([plugin(Hearing)], **shared, name=name) for name in ("one", "two", "three")]
    async with workers[0], workers[1], workers[2]:
        await clock.advance(1.0)
        hearing = [worker.plugin("hearing") for worker in workers]
        sent = everywhere(text="to all", money=Decimal("0.25"))
        hearing[0].services.publish(sent)
        hearing[0].services.publish(here(text="to one"))
        for _ in range(4):
            await clock.advance(1.0)
        named = everywhere(source=hearing[0].services.plugin, text="to all", money=Decimal("0.25"))
        assert [h.heard for h in hearing] == [[named, here(source=named.source, text="to one")], [named], [named]]


class Workers:
    """Two broadcasts on one store."""

    def __init__(self) -> None:
        self.clock, self.store = FakeClock(), FailingStore()
        self.heard: list[Event] = []
        self.ids = iter(range(10**6))
        self.one, self.two = (
            broadcast.Broadcast(
                self.store,
                worker=name,
                clock=self.clock,
                new_id=lambda: f"id-{next(self.ids)}",
                hear=self.heard.append,
            )
            for name in ("one", "two")
        )


class FailingStore(MemoryStore):
    """Fails while it is told to."""

    fails = False

    async def get(self, key: str) -> Any:
        if self.fails:
            raise StoreError("gone")
        return await super().get(key)


async def test_what_the_store_cannot_take_is_sent_later(kinds: Any) -> None:
    everywhere, *_ = kinds
    workers = Workers()
    await workers.two.tick()
    workers.one.send(everywhere(text="first"))
    workers.store.fails = True
    with pytest.raises(StoreError):
        await workers.one.tick()
    workers.store.fails = False
    workers.one.send(everywhere(text="second"))
    await workers.one.leave()
    await workers.two.tick()
    await workers.two.tick()
    assert [event.text for event in workers.heard] == ["first", "second"]


async def test_a_worker_does_not_hear_what_was_announced_before_it_ran(kinds: Any) -> None:
    everywhere, *_ = kinds
    workers = Workers()
    workers.one.send(everywhere(text="before"))
    await workers.one.tick()
    await workers.two.tick()
    workers.one.send(everywhere(text="after"))
    await workers.one.tick()
    await workers.two.tick()
    assert [event.text for event in workers.heard] == ["after"]


async def test_what_is_too_much_is_lost_and_counted(kinds: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Waiting for a store that does not answer, or in it."""
    everywhere, *_ = kinds
    workers = Workers()
    await workers.two.tick()
    for number in range(broadcast.MOST + 3):
        workers.one.send(everywhere(text=str(number)))
    assert workers.one.lost == 3
    await workers.one.tick()
    workers.one.send(everywhere(text="one more"))
    await workers.one.tick()
    assert workers.one.lost == 4
    await workers.two.tick()
    assert [event.text for event in workers.heard][-2:] == [str(broadcast.MOST + 2), "one more"]
    assert "events for other workers were lost" in caplog.text


async def test_what_cannot_be_sent_is_the_authors_error(kinds: Any) -> None:
    everywhere, _, shapeless = kinds
    workers = Workers()
    with pytest.raises(TypeError, match=r"Shapeless cannot be sent to other workers"):
        workers.one.send(shapeless(what=object()))
    with pytest.raises(ValueError, match="at most 8192 reach other workers"):
        workers.one.send(everywhere(text="x" * 9_000))


@pytest.mark.parametrize(
    "row", [None, "text", ["id"], ["id", 1e12, "other", "no.such:Event", {}], ["id", 1e12, "o", "here", 3]]
)
async def test_what_cannot_be_read_is_left_out(kinds: Any, row: Any) -> None:
    """Of a newer version, or of a plugin that this worker does not have."""
    everywhere, *_ = kinds
    workers = Workers()
    await workers.two.tick()
    if isinstance(row, list) and row[-2:-1] == ["here"]:
        row = [*row[:3], broadcast._name(everywhere), row[4]]
    await workers.store.put("events", [row])
    await workers.two.tick()
    assert workers.heard == []


def test_nothing_is_read_where_no_event_asks_for_it() -> None:
    """None of the events that come with Pointsman does."""
    ours = {kind for kind in Event.__subclasses__() if kind.__module__.startswith("pointsman")}
    assert ours
    assert not any(kind.everywhere for kind in ours)
