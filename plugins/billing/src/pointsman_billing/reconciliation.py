"""Two independent figures for one attempt: ours and the gateway's own, and why they differ. Pure functions.

A reason other than ``different`` is verified: the gateway's figure is what results when this one fact is left out, or
from the gateway's own counts at our prices.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from decimal import Decimal
from itertools import combinations
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final

from pointsman.pricing import uses_tools
from pointsman.types import Usage

from . import pricing

if TYPE_CHECKING:
    from .pricing import Quote

AGREES: Final = ""
#: The gateway has logged no cost of its own.
UNSEEN: Final = "unseen"
#: The call was ended here, as one that loses a race is, and the gateway has logged nothing about it.
CANCELLED: Final = "cancelled"
#: A response on a websocket: the gateway logs what the connection has cost, and nothing about each response.
CONNECTION: Final = "connection"
#: The client left before the first content, and the gateway has logged no cost of a call that came to nothing.
LEFT: Final = "left"
#: There is no figure of ours: no price, or no usage, is known.
UNPRICED: Final = "unpriced"
DIFFERENT: Final = "different"
#: A price rule of the configuration replaces the gateway's prices, or is the only one.
PRICE_RULE: Final = "price_rule"
#: The provider says itself what it charges, and that is ours.
PROVIDER_COST: Final = "provider_cost"
#: Some counts are estimates: the gateway's figure is the price of its own.
ESTIMATED: Final = "estimated"
#: The provider's counts contradict one another: the gateway's figure is the price of what it has made of them.
CONTRADICTORY: Final = "contradictory"
#: The gateway's figure is the price of other counts than the provider's account has.
COUNTS: Final = "counts"
#: The provider charges fewer units than its models have processed, as Cohere does; the gateway charges what they have.
BILLED_UNITS: Final = "billed_units"
#: The provider charges every character of a spoken text; the gateway leaves out white space.
CHARACTERS: Final = "characters"
#: The answer did not reach its end, and the gateway charges nothing for what there was of it.
UNFINISHED: Final = "unfinished"
#: The gateway has no price of the model that answered and charges nothing; ours is that of the model that the deployment names.
UNLISTED: Final = "unlisted"
#: Another model answered than the deployment names; the gateway charges the named one.
SERVED_MODEL: Final = "served_model"
#: Several models worked on the answer; the gateway charges one.
SEVERAL_MODELS: Final = "several_models"
#: The gateway has added margins of its own, or taken off discounts.
ADJUSTED: Final = "adjusted"
#: The provider's SDK has tried again within the attempt; the gateway charges the last try alone.
RETRIED: Final = "retried"
SERVICE_TIER: Final = "service_tier"
CACHE_LIFETIME: Final = "cache_lifetime"
#: The gateway does not charge the provider's searches or other tools.
TOOLS: Final = "tools"
#: The gateway charges a part of the prompt or of the answer (cached, written to a cache, sound, images) as the rest of it,
#: in addition to it, or not at all.
PARTS: Final = "parts"

#: What needs attention.
OPEN: Final = frozenset({UNSEEN, UNPRICED, DIFFERENT, COUNTS})

#: The gateway's figure leaves out something that the provider has said, or nothing explains it: it is not what is charged.
IGNORANT: Final = frozenset(
    {
        DIFFERENT,
        PROVIDER_COST,
        ESTIMATED,
        CONTRADICTORY,
        COUNTS,
        BILLED_UNITS,
        CHARACTERS,
        UNLISTED,
        UNFINISHED,
        SERVED_MODEL,
        SEVERAL_MODELS,
        RETRIED,
        SERVICE_TIER,
        CACHE_LIFETIME,
        TOOLS,
        PARTS,
    }
)

#: The gateway computes in binary floating point.
_RELATIVE: Final = Decimal("1e-9")
_LEAST_USD: Final = Decimal("1e-12")
_COUNTS: Final = tuple(name for name in Usage.__slots__ if name.endswith("_tokens"))
#: The parts that may have prices of their own, and the whole that each belongs to.
_PARTS: Final[Mapping[str, str]] = {
    "cached_tokens": "prompt_tokens",
    "cache_write_tokens": "prompt_tokens",
    "audio_prompt_tokens": "prompt_tokens",
    "image_prompt_tokens": "prompt_tokens",
    "video_prompt_tokens": "prompt_tokens",
    "reasoning_tokens": "completion_tokens",
    "audio_completion_tokens": "completion_tokens",
    "image_completion_tokens": "completion_tokens",
    "video_completion_tokens": "completion_tokens",
}
_parts_of = attrgetter(*_PARTS)
_WHOLE: Final[Mapping[str, Any]] = dict.fromkeys(_PARTS, 0)
_NO_TOOLS: Final = dict.fromkeys(("searches", "maps_queries", "file_searches", "code_sessions", "other_tools"))


def finding(
    usage: Usage | None,
    quote: Quote,
    ours_usd: Decimal | None,
    gateway_usd: Decimal | None,
    gateway_usage: Usage | None = None,
    *,
    gateway_base_usd: Decimal | None = None,
    finished: bool = True,
    cut: bool = False,
    on_connection: bool = False,
    left: bool = False,
) -> str:
    """Return what comparing both figures of an attempt shows.

    Args:
        usage: What was used, or None.
        quote: Its prices.
        ours_usd: Our own figure, or None.
        gateway_usd: What the gateway has logged, or None.
        gateway_usage: What the gateway has counted, or None where that is the same or is not known.
        gateway_base_usd: What the gateway has logged, without margins and discounts of its own; None where it has none.
        finished: Whether the answer reached its end.
        cut: Whether the call was ended here before.
        on_connection: Whether it was a response on a websocket.
        left: Whether its client left before the first content.
    """
    if ours_usd is None:
        return UNPRICED
    if gateway_usd is None:
        # Of a model that only a rule has a price of, the gateway has none.
        otherwise = PRICE_RULE if quote.source == "config" else UNSEEN
        return CONNECTION if on_connection else CANCELLED if cut else LEFT if left else otherwise
    if _same(ours_usd, gateway_usd):
        return AGREES
    if quote.source == "config":
        return PRICE_RULE
    if usage is not None and usage.provider_cost_usd is not None and not quote.price.configured:
        return PROVIDER_COST
    if not gateway_usd and not finished:
        return UNFINISHED
    if gateway_base_usd is not None:
        if _same(ours_usd, gateway_base_usd):
            return ADJUSTED
        gateway_usd = gateway_base_usd
    reason = DIFFERENT if usage is None else _verified(usage, quote, gateway_usd, gateway_usage)
    return UNLISTED if reason == DIFFERENT and quote.unlisted and not gateway_usd else reason


def _verified(usage: Usage, quote: Quote, gateway_usd: Decimal, gateway_usage: Usage | None) -> str:
    """Return the fact or the counts that the gateway's figure is the price of, or that there is none."""
    for reason, cost in (*_without_one_fact(usage, quote), *_without_facts(usage, quote)):
        if cost is not None and _same(cost, gateway_usd):
            return reason
    if gateway_usage is not None and any(
        cost is not None and _same(cost, gateway_usd) for cost in _of_counts(usage, gateway_usage, quote)
    ):
        return _of_other_counts(usage, gateway_usage)
    return DIFFERENT


def _without_one_fact(usage: Usage, quote: Quote) -> Iterator[tuple[str, Decimal | None]]:
    """Yield what the attempt would have cost if one fact about it were not known."""
    price = quote.price
    if usage.parts:
        prices = (price, *([quote.configured] if quote.configured is not None else []), *quote.parts)
        reason = SEVERAL_MODELS if any(part.is_part for part in usage.parts) else RETRIED
        for used in (usage, *usage.parts):
            yield from ((reason, pricing.cost_usd(used, of_model)) for of_model in prices)
    if quote.configured is not None and quote.configured is not price:
        yield SERVED_MODEL, pricing.cost_usd(usage, quote.configured)
    for reason, changes in _facts(usage):
        yield reason, pricing.cost_usd(replace(usage, **changes), price)


def _without_facts(usage: Usage, quote: Quote) -> Iterator[tuple[str, Decimal | None]]:
    """Yield what the attempt would have cost if two facts about it were not known, or none of its parts."""
    price = quote.price
    otherwise = list(_otherwise(usage))
    facts = [*_facts(usage), *otherwise]
    yield from ((PARTS, pricing.cost_usd(replace(usage, **changes), price)) for _, changes in otherwise)
    for (reason, changes), (_, others) in combinations(facts, 2):
        yield reason, pricing.cost_usd(replace(usage, **{**changes, **others}), price)
    if any(_parts_of(usage)):
        yield PARTS, pricing.cost_usd(replace(usage, **_WHOLE), price)


def _facts(usage: Usage) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the facts about a usage, each with the values that it has without that fact."""
    if usage.service_tier is not None:
        yield SERVICE_TIER, {"service_tier": None}
    if usage.cache_write_1h_tokens:
        yield CACHE_LIFETIME, {"cache_write_1h_tokens": 0}
    if usage.explicit_cached_tokens:
        yield PARTS, {"explicit_cached_tokens": 0}
    if uses_tools(usage):
        yield from ((TOOLS, changes) for changes in (_NO_TOOLS, {"search_context": None}, {"citation_tokens": 0}))
    for name, count in zip(_PARTS, _parts_of(usage), strict=True):
        if count:
            yield PARTS, {name: 0}


def _otherwise(usage: Usage) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the parts of a usage, each with the values that it has when these tokens do not count, or count twice."""
    for (name, whole), count in zip(_PARTS.items(), _parts_of(usage), strict=True):
        if count:
            tokens = getattr(usage, whole)
            yield PARTS, {name: 0, whole: max(0, tokens - count)}
            yield PARTS, {whole: tokens + count}


def _of_counts(usage: Usage, counted: Usage, quote: Quote) -> Iterator[Decimal | None]:
    """Yield the price of the gateway's counts: of all else as it was, without one other fact, and of its counts alone."""
    counts = {name: getattr(counted, name) for name in _COUNTS}
    if counted.characters is not None:
        counts["characters"] = counted.characters
    theirs = replace(usage, parts=(), **counts)
    # The gateway charges for reasoning also where it is more than the whole answer.
    beside = replace(theirs, completion_tokens=max(theirs.completion_tokens, theirs.reasoning_tokens))
    for used in (theirs, beside, counted):
        yield pricing.cost_usd(used, quote.price)
        yield from (cost for _, cost in _without_one_fact(used, quote))


def _of_other_counts(usage: Usage, counted: Usage) -> str:
    """Return why the gateway's figure is the price of other counts than ours."""
    if counted.characters is not None and counted.characters != usage.characters:
        return CHARACTERS
    if _processed(usage) == (counted.prompt_tokens, counted.completion_tokens):
        return BILLED_UNITS
    return CONTRADICTORY if usage.contradictory else ESTIMATED if usage.estimated else COUNTS


def _processed(usage: Usage) -> tuple[object, object] | None:
    """Return the tokens that the provider names beside those that it charges; None where it names none."""
    account = _account(usage)
    tokens = account.get("tokens") if "billed_units" in account else None
    return (tokens.get("input_tokens"), tokens.get("output_tokens")) if isinstance(tokens, dict) else None


def by_own_key(usage: Usage) -> bool:
    """Return whether a broker has used a key of the operator's own: what it charges is its fee alone."""
    return usage.provider_cost_usd is None and _account(usage).get("is_byok") is True


def _account(usage: Usage) -> dict[str, Any]:
    """Return the provider's own account; empty where there is none, or only a part of it was kept."""
    try:
        account = json.loads(usage.raw or "{}")
    except (ValueError, RecursionError):
        return {}
    return account if isinstance(account, dict) else {}


def _same(one_usd: Decimal, other_usd: Decimal) -> bool:
    return abs(one_usd - other_usd) <= max(_LEAST_USD, _RELATIVE * abs(other_usd))
