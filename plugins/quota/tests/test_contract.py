"""What every plugin must pass, also as one whose caller shows a key of its own."""

from __future__ import annotations

from typing import Any, ClassVar

from pointsman.testing import ContractSuite
from pointsman_quota.plugin import plugin
from pointsman_quota.tenants import hash_key

KEY = "sk-contract-0123456789"
LIMITS = {
    "max_concurrent_requests": 100,
    "requests_per_minute": 100_000,
    "tokens_per_minute": 10_000_000,
    "tokens_per_day": 10**9,
    "usd_per_month": 1000,
}
TENANT = {
    "id": "acme",
    "match": {"teams": ["team-1"]},
    "keys": [{"name": "ci", "hash": hash_key(KEY, "0123456789abcdef")}],
    "limits": LIMITS,
}

BAD_CONFIGS: list[tuple[dict[str, Any], str]] = [
    ({"tenants": [{"id": "a b"}]}, "id"),
    ({"lease_s": 0}, "lease_s"),
    ({"queue": {"max_wait_ms": 5000}}, "deadline_ms"),
    ({"tenants": [TENANT, {**TENANT, "id": "b"}]}, "both match"),
]


class TestContract(ContractSuite):
    """With every limit in force."""

    info = plugin
    config: ClassVar[dict[str, Any]] = {"tenants": [TENANT]}
    bad_configs = BAD_CONFIGS


class TestContractWithKey(ContractSuite):
    """With a key of the tenant's own, limits over all tenants and a queue."""

    info = plugin
    config: ClassVar[dict[str, Any]] = {
        "tenants": [TENANT],
        "gateway_limits": LIMITS,
        "queue": {"max_wait_ms": 200},
        "on_failure": "allow",
    }
    api_key = KEY
    bad_configs = BAD_CONFIGS
