"""The contracts of tactics, sinks and dialects: a sound one passes, and each fault is found."""

from __future__ import annotations

import json
import time

import pytest
from pydantic import ConfigDict

from pointsman.testing import DialectContract, SinkContract, TacticContract
from pointsman.testing.contract import ContractViolation
from pointsman_balance.tactic import Choice, NoSettings, Tactic
from pointsman_billing.sinks.base import SinkConfig, SinkInfo, SinkUnavailable
from pointsman_signals.dialects import Dialect


class ByName(Tactic):
    def choose(self, ask):
        return ask.best([-ord(option.id[-1]) for option in ask.options], "first by name")


class TestTactic(TacticContract):
    """A sound tactic passes."""

    tactic = ByName


class OutOfRange(Tactic):
    def choose(self, ask):
        return Choice(len(ask.options), [None] * len(ask.options))


class NeedsPrices(Tactic):
    def choose(self, ask):
        return ask.best([1 / option.price_usd for option in ask.options])


class Slow(Tactic):
    def choose(self, ask):
        time.sleep(0.12)
        return ask.best([0.0] * len(ask.options))


class NeverReturns(Tactic):
    def choose(self, ask):
        while True:
            pass


class Returns(Tactic):
    def choose(self, ask):
        return ask.options[0]


class LaxSettings(NoSettings):
    model_config = ConfigDict(extra="ignore")


class Lax(ByName):
    Settings = LaxSettings


@pytest.mark.parametrize(
    ("kind", "test", "says"),
    [
        (OutOfRange, "test_it_chooses_among_what_is_there", "balance.tactic contract-part"),
        (
            NeedsPrices,
            "test_it_chooses_among_what_is_there",
            r"balance.tactic contract-part .*TypeError: .*, in NeedsPrices.choose.* \(.*test_parts.py:\d+\)",
        ),
        (Returns, "test_it_chooses_among_what_is_there", r"Returns.choose returned Option, not a Choice"),
        (Slow, "test_it_chooses_among_what_is_there", "held the event loop"),
        (
            NeverReturns,
            "test_it_leaves_what_fails",
            r"'balance': the hook 'select' held the event loop for more than 0.5 s, in NeverReturns.choose \(.*test_parts.py:\d+\)",
        ),
        (Lax, "test_unknown_and_bad_settings_are_refused", "not refused"),
    ],
)
def test_a_faulty_tactic_is_found(kind, test, says):
    class Suite(TacticContract):
        tactic = kind

    with pytest.raises(ContractViolation, match=says):
        getattr(Suite(), test)()


class FileConfig(SinkConfig):
    path: str


class File:
    def __init__(self, config, context):
        self.path = context.base / config.path

    async def open(self):
        if not self.path.parent.exists():
            raise SinkUnavailable("there is no such directory")

    async def send(self, batch):
        with self.path.open("a") as file:
            file.writelines(json.dumps(event.id) + "\n" for event in batch)

    async def close(self):
        pass


class FileContract(SinkContract):
    """What all sinks of this module have in common. Not collected by itself."""

    unreachable = {"path": "no/such/directory/events"}  # noqa: RUF012  # the suite's attribute

    def section(self, directory):
        return {"path": f"{directory.name}/events"}

    def received(self, directory):
        file = directory / "events"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


class TestSink(FileContract):
    """A sound sink passes."""

    sink = SinkInfo(config=FileConfig, factory=File)


class ExitsOnce(File):
    exits = True

    async def send(self, batch):
        if ExitsOnce.exits:
            ExitsOnce.exits = False
            raise SystemExit(1)
        await super().send(batch)


def test_a_sink_that_ends_the_process_does_not():
    """Whatever a sink raises, its events are delivered afterwards."""

    class Suite(FileContract):
        sink = SinkInfo(config=FileConfig, factory=ExitsOnce)

    Suite().test_every_event_arrives()


class Loses(File):
    async def send(self, batch):
        await super().send(batch[:-1])


class NotAsynchronous(File):
    def send(self, batch):
        with self.path.open("a") as file:
            file.writelines(json.dumps(event.id) + "\n" for event in batch)


class Blocks(File):
    async def send(self, batch):
        time.sleep(0.12)  # noqa: ASYNC251  # its fault
        await super().send(batch)


class NeverSends(File):
    async def send(self, batch):
        time.sleep(30)  # noqa: ASYNC251  # its fault


class ForgetsToAwait(File):
    async def send(self, batch):
        await super().send(batch)
        self.note()

    async def note(self):
        pass


class LaxConfig(FileConfig):
    model_config = ConfigDict(extra="ignore")


@pytest.mark.parametrize(
    ("kind", "config", "test", "says"),
    [
        (Loses, FileConfig, "test_every_event_arrives", "have arrived"),
        (NotAsynchronous, FileConfig, "test_every_event_arrives", "NotAsynchronous.send is not a coroutine function"),
        (Blocks, FileConfig, "test_every_event_arrives", r"'send' held the event loop .*to_thread"),
        (
            NeverSends,
            FileConfig,
            "test_every_event_arrives",
            r"'send' held the event loop for more than 0.5 s, in NeverSends.send \(.*test_parts.py:\d+\)",
        ),
        (
            ForgetsToAwait,
            FileConfig,
            "test_every_event_arrives",
            r"ForgetsToAwait.note\(...\) is not awaited in send \(.*test_parts.py:\d+\)",
        ),
        (File, LaxConfig, "test_an_unknown_key_is_refused", "was not refused"),
    ],
)
def test_a_faulty_sink_is_found(monkeypatch, kind, config, test, says):
    monkeypatch.setattr("pointsman.testing.parts._DELIVERED_WITHIN_S", 0.5)

    class Suite(FileContract):
        sink = SinkInfo(config=config, factory=kind)

    with pytest.raises(ContractViolation, match=says):
        getattr(Suite(), test)()


ACME = {
    "providers": ("acme",),
    "headers": (r"acme-(?P<axis>calls)-(?P<part>left|max|reset)",),
    "parts": {"left": "remaining", "max": "limit"},
    "axes": {"calls": "requests"},
}
ANSWERS = (({"acme-calls-left": "3", "acme-calls-max": "9", "acme-calls-reset": "30"}, {"requests": (9.0, 3.0)}),)


class TestDialect(DialectContract):
    """A sound dialect passes."""

    dialect = Dialect(name="acme", **ACME)
    answers = ANSWERS
    resets = {"requests": 30.0}  # noqa: RUF012  # the suite's attribute


class Panic(BaseException):
    """As the panics of extensions that are written in Rust."""


def sleeps(*_):
    time.sleep(2.0)


def raises(err):
    def reset(*_):
        raise err

    return reset


def never_understands(text, now, axis):
    return float(text)


@pytest.mark.parametrize(
    ("changes", "test", "says"),
    [
        ({"name": "groq"}, "test_it_is_found", "built-in"),
        ({"parts": {"left": "limit", "max": "remaining"}}, "test_it_reads_answers", "instead of"),
        ({"reset": lambda *_: None}, "test_it_reads_answers", "resets at None"),
        (
            {"headers": (*ACME["headers"], r"acme-calls-left(-a1|-a1)+x")},
            "test_it_survives_whatever_a_provider_sends",
            r"the dialect held",
        ),
        ({"reset": sleeps}, "test_it_reads_answers", r"the dialect held .* in sleeps \(.*test_parts.py:\d+\)"),
        ({"reset": raises(SystemExit(1))}, "test_it_reads_answers", "cannot be read: SystemExit: 1"),
        ({"reset": raises(Panic("a"))}, "test_it_survives_whatever_a_provider_sends", "cannot be read: Panic: a"),
        ({"providers": ("acme", "openai"), "name": "acme"}, None, ""),
    ],
)
def test_a_faulty_dialect_is_found(changes, test, says):
    class Suite(DialectContract):
        dialect = Dialect(**{"name": "acme", **ACME, **changes})
        answers = ANSWERS
        resets = {"requests": 30.0}  # noqa: RUF012  # the suite's attribute

    if test is None:
        Suite().test_it_is_found()
        return
    with pytest.raises(ContractViolation, match=says):
        getattr(Suite(), test)()
