"""What a usage block says is charged besides tokens: the provider's own tools, and the cost that it names. Pure and total."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from decimal import Decimal
from typing import Any, Final

from .reported_counts import mapping, money, number

#: The provider's own tools, by the names in ``Usage``.
TOOLS: Final = ("searches", "maps_queries", "file_searches", "code_sessions")
#: Where blocks say how often they were used: by which name, and under which they count here. None: they cost only tokens.
_USES: Final[Mapping[str, Mapping[str, str | None]]] = {
    "server_tool_use": {
        "web_search_requests": "searches",
        "code_execution_requests": "code_sessions",
        "web_fetch_requests": None,
        "tool_search_requests": None,
    },
    "server_side_tool_usage_details": {
        "web_search_calls": "searches",
        "code_interpreter_calls": "code_sessions",
        "file_search_calls": "file_searches",
        "mcp_calls": None,
    },
    # Mistral's, of which none has a price.
    "connectors": {},
}
#: The same, in the block itself: of Perplexity and of xAI.
_COUNTED: Final = {
    "num_search_queries": "searches",
    "citation_tokens": "citation_tokens",
    "num_sources_used": "other_tools",
}
#: xAI's count of all uses of its tools.
_ALL_USES: Final = "num_server_side_tools_used"
_BY_TOOL: Final = "server_side_tool_usage_details"
_SIZE: Final = "search_context_size"
_SIZES: Final = frozenset({"low", "medium", "high"})
_TOOLS: Final = frozenset({*_USES, *_COUNTED, _ALL_USES, _SIZE})
_COSTS: Final = frozenset({"cost", "cost_in_usd_ticks"})


def charged(get: Mapping[str, Any], tokens: int, named: int = 0) -> dict[str, Any]:
    """Return what a block says about money and tools.

    Args:
        get: The block.
        tokens: All that it counts.
        named: How often the answer itself names a tool of the provider's.
    """
    facts = tools(get, named)
    if _COSTS.isdisjoint(get):
        return facts
    cost = _cost(get)
    # A server that does not know the price says 0; whether the tokens are free is in the prices.
    if cost or (cost is not None and not tokens):
        facts["provider_cost_usd"] = cost
    return facts


def tools(get: Mapping[str, Any], named: int = 0) -> dict[str, Any]:
    """Return how often the provider's own tools were used, by the names in ``Usage``; without those that were not.

    Uses of a tool that is not known, or of which the number cannot be read, are ``other_tools``: they have no price.

    Args:
        get: The block.
        named: How often the answer itself names a tool of the provider's.
    """
    details = mapping(get.get("prompt_tokens_details"))
    searches, maps = details.get("web_search_requests"), details.get("google_maps_grounding_requests")
    if _TOOLS.isdisjoint(get) and not (searches or maps):
        return {}
    said: list[tuple[str | None, Any]] = [("searches", searches), ("maps_queries", maps)]
    for place, names in _USES.items():
        said += [(names.get(name, "other_tools"), value) for name, value in mapping(get.get(place)).items()]
    said += [(name, get.get(key)) for key, name in _COUNTED.items()]
    if (every := get.get(_ALL_USES)) is not None:
        said.append(("other_tools", _unnamed(every, mapping(get.get(_BY_TOOL)), named)))
    facts: dict[str, Any] = {}
    for name, value in said:
        count = number(value)
        if name is None or not value or count == 0:
            continue
        if count is None or name == "other_tools":
            facts["other_tools"] = facts.get("other_tools", 0) + (count or 1)
        else:
            facts.setdefault(name, count)
    if (size := search_size(get.get(_SIZE))) is not None:
        facts["search_context"] = size
        if "num_search_queries" not in get:
            # Perplexity says then only that it has searched.
            facts.setdefault("searches", 1)
    return facts


def _unnamed(every: Any, by_tool: Mapping[str, Any], named: int) -> Any:
    """Return how many of all uses of tools are of none that is named; what is no count as it is."""
    count = number(every)
    return every if count is None else max(0, count - max(named, sum(number(uses) or 0 for uses in by_tool.values())))


def unknown_uses(counts: Mapping[str, Any], known: Collection[str]) -> int:
    """Return how often what is not known was used; 1 for what is no count.

    Args:
        counts: Counts by name.
        known: The names that are known.
    """
    others = ((number(value), value) for name, value in counts.items() if name not in known)
    return sum(1 if count is None else count for count, value in others if value)


def search_size(value: Any) -> str | None:
    """Return the size of searches; None for what is none."""
    return value if isinstance(value, str) and value in _SIZES else None


def _cost(get: Mapping[str, Any]) -> Decimal | None:
    """Return what the provider says that it charges."""
    cost = get.get("cost")
    if isinstance(cost, Mapping):
        cost = cost.get("total_cost")
    if (ticks := number(get.get("cost_in_usd_ticks"))) is not None:
        # xAI: ten thousand million of them are a dollar.
        return Decimal(ticks).scaleb(-10)
    usd = money(cost)
    if usd is not None and get.get("is_byok") is True:
        # The provider behind the broker charges its own account in addition.
        behind = money(mapping(get.get("cost_details")).get("upstream_inference_cost"))
        return None if behind is None else usd + behind
    return usd
