"""The IETF's ``RateLimit`` and ``RateLimit-Policy`` header fields, in all forms of its drafts.

- since draft 08: ``RateLimit-Policy: "burst";q=100;w=60`` and ``RateLimit: "burst";r=50;t=30``
- draft 07: ``RateLimit: limit=100, remaining=50, reset=30`` and ``RateLimit-Policy: 100;w=60``
- draft 06: ``RateLimit-Limit: 100, 100;w=60``, ``RateLimit-Remaining``, ``RateLimit-Reset``

Resets are seconds from now. Pure; never raises.

Source: draft-ietf-httpapi-ratelimit-headers-06 to -11.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from pointsman.types import Limit

from ..parsing import parse_number, parse_reset

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_HEADER_CHARS: Final = 1024
MAX_POLICIES: Final = 8

_ITEM: Final = re.compile(r'\s*(?:"([^"\\]{0,64})"|([A-Za-z0-9_*./-]{1,64}))\s*((?:;[^,]*)?)\s*(?:,|$)', re.ASCII)
_PARAMETER: Final = re.compile(r';\s*([a-z]{1,8})\s*=\s*(?:"([^"]{0,64})"|([^;,"\s]{1,64}))', re.ASCII)
_PAIR: Final = re.compile(r"\s*(limit|remaining|reset)\s*=\s*([0-9.]{1,20})\s*", re.ASCII)


@dataclass(frozen=True, slots=True)
class _Policy:
    unit: str
    quota: float | None
    window_s: float | None


def read_ietf(headers: Mapping[str, str], now: float) -> list[Limit]:
    """Return the quota axes in the header fields; empty when there are none.

    The axis is the quota unit of the policy (``requests`` by default). Several policies of one unit and window keep the
    tightest.
    """
    current, limit = headers.get("ratelimit"), headers.get("ratelimit-limit")
    remaining, reset = headers.get("ratelimit-remaining"), headers.get("ratelimit-reset")
    if current is None and limit is None and remaining is None and reset is None:
        return []
    policy = headers.get("ratelimit-policy") or limit or ""
    policies = _policies(policy) if len(policy) <= MAX_HEADER_CHARS else {}
    if current is not None and len(current) <= MAX_HEADER_CHARS and (pairs := dict(_PAIR.findall(current))):
        return _single(pairs.get("limit"), pairs.get("remaining"), pairs.get("reset"), policies, now)
    if current is not None:
        return _several(current, policies, now)
    return _single((limit or "").partition(",")[0].partition(";")[0], remaining, reset, policies, now)


def _items(text: str) -> list[tuple[str, dict[str, str]]]:
    if len(text) > MAX_HEADER_CHARS:
        return []
    items = []
    for quoted, token, tail in _ITEM.findall(text)[:MAX_POLICIES]:
        parameters = {name: quoted_value or value for name, quoted_value, value in _PARAMETER.findall(tail)}
        items.append((quoted or token, parameters))
    return items


# A policy is the same in answer after answer.
@lru_cache(maxsize=256)
def _policies(text: str) -> Mapping[str, _Policy]:
    policies = {}
    for name, parameters in _items(text):
        quota = parse_number(parameters["q"]) if "q" in parameters else parse_number(name)
        window_s = parse_number(parameters.get("w", ""))
        policies[name] = _Policy(parameters.get("qu", "requests").replace("-", "_"), quota, window_s or None)
    return policies


def _several(text: str, policies: Mapping[str, _Policy], now: float) -> list[Limit]:
    limits: dict[tuple[str, float | None], Limit] = {}
    for name, parameters in _items(text):
        policy = policies.get(name) or _Policy("requests", None, None)
        remaining = parse_number(parameters.get("r", ""))
        resets_at = parse_reset(parameters.get("t", ""), now)
        if remaining is None and resets_at is None:
            continue
        key = (policy.unit, policy.window_s)
        known = limits.get(key)
        if known is not None and known.remaining is not None and (remaining is None or remaining >= known.remaining):
            continue
        limits[key] = Limit(
            axis=policy.unit, window_s=policy.window_s, limit=policy.quota, remaining=remaining, resets_at=resets_at
        )
    return list(limits.values())


def _single(
    limit: str | None, remaining: str | None, reset: str | None, policies: Mapping[str, _Policy], now: float
) -> list[Limit]:
    quota, left = parse_number(limit or ""), parse_number(remaining or "")
    resets_at = parse_reset(reset or "", now)
    if quota is None and left is None and resets_at is None:
        return []
    policy = next((p for p in policies.values() if p.quota == quota and p.window_s), None)
    return [
        Limit(
            axis=policy.unit if policy else "requests",
            window_s=policy.window_s if policy else None,
            limit=quota,
            remaining=left,
            resets_at=resets_at,
        )
    ]
