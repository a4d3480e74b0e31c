"""Atomic steps that are useful to many, and the example for those who write their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, cast

from . import encoding
from .base import JSON, AtomicOp, Put, StateStore


def _take_python(values: Sequence[JSON], args: JSON) -> tuple[Mapping[int, Put | None], JSON]:
    given = cast("Mapping[str, JSON]", args)
    amount, limit = cast("int", given["amount"]), cast("int", given["limit"])
    taken = cast("int", values[0] or 0)
    total = taken + amount
    if total > limit:
        return {}, {"granted": False, "total": taken}
    return {0: Put(max(total, 0), ttl_s=cast("float", given["ttl_s"]))}, {"granted": True, "total": max(total, 0)}


TAKE: Final = AtomicOp(
    name="take",
    python=_take_python,
    lua="""
local args = json_decode(ARGV[1])
local taken = tonumber(redis.call('GET', KEYS[1]) or '0')
local total = taken + args.amount
if total > args.limit then
  return json_encode({granted = false, total = taken})
end
total = math.max(total, 0)
redis.call('SET', KEYS[1], json_encode(total), 'PX', math.ceil(args.ttl_s * 1000))
return json_encode({granted = true, total = total})
""",
)
"""Take from a bounded counter unless that would exceed the limit. Use ``take``."""


async def take(store: StateStore, key: str, amount: int, *, limit: int, ttl_s: float) -> tuple[bool, int]:
    """Take ``amount`` out of ``limit``, or nothing at all; a negative amount gives back, never beyond the whole.

    Args:
        store: The store.
        key: The counter of what has been taken.
        amount: How much to take.
        limit: The most that may be taken in all.
        ttl_s: Seconds after the last success at which all of it counts as given back.

    Returns:
        Whether it was granted, and how much is taken now.
    """
    encoding.check_amount(amount)
    encoding.check_amount(limit)
    encoding.check_ttl(ttl_s)
    result = await store.run(TAKE, [key], {"amount": amount, "limit": limit, "ttl_s": ttl_s})
    answer = cast("Mapping[str, JSON]", result)
    return cast("bool", answer["granted"]), cast("int", answer["total"])
