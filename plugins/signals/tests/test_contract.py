"""What every plugin must pass."""

from __future__ import annotations

from typing import ClassVar

from pointsman.testing import ContractSuite
from pointsman_signals.plugin import plugin


class TestContract(ContractSuite):
    info = plugin
    config: ClassVar = {"accounts": {"main": ["chat"]}, "checks": {"chat-a": {"kind": "completion"}}}
    bad_configs: ClassVar = [
        ({"ttl_s": 0}, "ttl_s"),
        ({"reserve_ratio": 1.5}, "reserve_ratio"),
        ({"checks": {"chat-a": {"kind": "http"}}}, "url"),
        ({"checks": {"chat-a": {"kind": "file", "path": "q.json", "document": {"status": "no-pointer"}}}}, "status"),
        ({"dialects": {"chat-a": "klingon"}}, "klingon"),
        ({"degraded_share": 0.5}, "degraded_share_ratio"),
    ]
    routes_without_body: ClassVar = ["/{deployment:path}/refresh"]
