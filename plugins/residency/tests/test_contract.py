"""What every plugin must pass."""

from __future__ import annotations

from typing import ClassVar

import pytest

from pointsman.testing import ContractSuite
from pointsman_residency.plugin import plugin

from .fakes import URL

FAKE = {"kind": "fake", "url": URL}
OLLAMA = {"kind": "ollama", "url": "http://127.0.0.1:11434"}


def pool(**changes):
    return {"pools": {"gpu": {"budget": "8GiB", "server": OLLAMA, "models": {"chat-a": {}}, **changes}}}


class TestContract(ContractSuite):
    info = plugin
    # Room for one of the two, so that every scenario loads, waits and evicts.
    config: ClassVar = {
        "pools": {
            "gpu": {
                "budget": 100,
                "server": FAKE,
                "models": {"chat-a": {"footprint": 60}, "chat-b": {"footprint": 60}},
                "min_residence_s": 0,
            }
        }
    }
    bad_configs: ClassVar = [
        (pool(budget=0), "budget"),
        (pool(budget="8 elephants"), "24GiB"),
        (pool(models={}), "models"),
        (pool(models={"chat-a": {"footprint": "9GiB"}}), "can never be loaded"),
        (
            pool(models={"chat-a": {"footprint": "5GiB", "pinned": True}, "b": {"footprint": "5GiB", "pinned": True}}),
            "pinned",
        ),
        (pool(models={"chat-a": {"footprint": {"gpu7": 1}}}), "gpu7"),
        (pool(server=None), "no server"),
        (pool(server={"kind": "olama", "url": "http://x"}), "ollama"),
        (pool(server={"kind": "ollama", "url": "ftp://x"}), "url"),
        (pool(server={"kind": "vllm", "url": "http://x", "levle": 1}, models={"chat-a": {"footprint": 1}}), "level"),
        (pool(server={"kind": "llama_cpp", "url": "http://x"}), "footprint"),
        (pool(exclusive=[["chat-a", "chat-z"]]), "chat-z"),
        (pool(deadline_s=0), "deadline_s"),
        ({**pool(), "deadline_ms": 1000}, "deadline_ms"),
        ({"pools": {**pool()["pools"], "two": pool()["pools"]["gpu"]}}, "served by"),
        ({"pools": {}}, "pools"),
    ]
    routes_without_body: ClassVar = ["/{model:path}/pin"]

    @pytest.fixture(autouse=True)
    def _server(self, machine):
        machine({"chat-a": 60, "chat-b": 60})
