"""What every plugin must pass."""

from __future__ import annotations

from typing import ClassVar

from pointsman.testing import ContractSuite
from pointsman_balance.attempts import KEPT_S
from pointsman_balance.plugin import SWEEP_S, plugin


class TestContract(ContractSuite):
    info = plugin
    config: ClassVar = {"groups": {"backup": {"tactic": "cache_affinity", "breaker": "classic"}}}
    bad_configs: ClassVar = [
        ({"tactic": "adaptiv"}, "adaptive"),
        ({"tactic": {"name": "adaptive", "latncy": 1}}, "latency"),
        ({"tactic": {"name": "cache_affinity", "balance_factor": 0.5}}, "balance_factor"),
        ({"breaker": {"open_s": 0}}, "open_s"),
        ({"breaker": "clasic"}, "classic"),
        ({"groups": {"chat": {"tactic": "nobody"}}}, "groups.chat"),
        ({"groups": {"chat": {"breaker": {"successes": 0}}}}, "successes"),
        ({"degraded_share": 0.5}, "degraded_share_ratio"),
    ]
    #: A breaker looks back at a bounded number of attempts; what an unanswered request has tried counts for its retries.
    remembers_requests: ClassVar = 300
    forgets_within_s: ClassVar = KEPT_S + 2 * SWEEP_S
    routes_without_body: ClassVar = ["/{deployment:path}/reset", "/{deployment:path}/probe"]
