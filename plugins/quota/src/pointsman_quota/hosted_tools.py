"""How often a request lets the provider use its own tools, which it charges in addition to tokens. Pure, and safe with any body."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from .request_limits import settings_with

#: How the types of tools begin, at Google their fields, without underscores and in lower case, and the names in ``Usage``.
#: All others are the client's, or cost only tokens.
_TOOLS: Final = (
    ("websearch", "searches"),
    ("enterprisewebsearch", "searches"),
    ("openrouter:websearch", "searches"),
    ("googlesearch", "searches"),
    ("googlemaps", "maps_queries"),
    ("filesearch", "file_searches"),
    ("collectionssearch", "file_searches"),
    ("retrieval", "file_searches"),
    ("codeinterpreter", "code_sessions"),
    ("imagegeneration", "other_tools"),
    ("xsearch", "other_tools"),
)
#: The code that Anthropic runs is charged by the hour, that of Google, whose tool has no date in its type, by tokens.
_TYPES: Final = (*_TOOLS, ("codeexecution2", "code_sessions"))
_BEGINNINGS: Final = tuple(begin for begin, _ in _TYPES)
#: One of them serves the whole answer.
_SESSIONS: Final = "code_sessions"
#: Fields of a request that stand for a search (of xAI the last), OpenRouter's field of the kind, and the field in which some APIs
#: limit the uses of all tools together.
_SEARCHING: Final = ("web_search_options", "webSearchOptions", "search_parameters")
_PLUGINS: Final = "plugins"
_MOST_CALLS: Final = "max_tool_calls"
_FIELDS: Final = frozenset({*_SEARCHING, _PLUGINS, "tools"})
_SIZES: Final = ("low", "medium", "high")
_MOST_USES: Final = 1_000
_MOST_TYPE_CHARS: Final = 64


def uses_of(body: Mapping[str, object], usual: int) -> tuple[dict[str, int], str | None]:
    """Return how often tools may be used for one answer, by the names in ``Usage``, and the largest size of searches asked for.

    Args:
        body: The request.
        usual: How often a tool is used whose uses the request does not limit.
    """
    found: dict[str, int] = {}
    sizes: set[str] = set()
    for _, settings in settings_with(_FIELDS, body):
        most = _uses(settings.get(_MOST_CALLS)) or usual
        options = [one for name in _SEARCHING if isinstance(one := settings.get(name), Mapping)]
        tools = settings.get("tools")
        for tool in tools if isinstance(tools, list | tuple) else ():
            if not isinstance(tool, Mapping):
                continue
            for name, uses in _of_tool(tool, most):
                found[name] = min(_MOST_USES, found.get(name, 0) + uses)
                options.append(tool)
        if any(_is_on(settings.get(name)) for name in _SEARCHING) or _has_web_plugin(settings.get(_PLUGINS)):
            found["searches"] = min(_MOST_USES, found.get("searches", 0) + most)
        sizes |= {size for one in options if isinstance(size := one.get("search_context_size"), str)}
    return found, next((size for size in reversed(_SIZES) if size in sizes), None)


def _of_tool(tool: Mapping[str, object], usual: int) -> Iterator[tuple[str, int]]:
    """Yield what one entry of ``tools`` stands for: at Google, several tools."""
    typed = _named(tool.get("type"), _TYPES)
    # LiteLLM leaves out a type that Google does not know, and sends the fields beside it.
    for name in [typed] if typed is not None else [_named(field, _TOOLS) for field in tool]:
        if name is not None:
            yield name, 1 if name == _SESSIONS else _uses(tool.get("max_uses")) or usual


def _named(word: object, kinds: Iterable[tuple[str, str]]) -> str | None:
    plain = str(word)[:_MOST_TYPE_CHARS].replace("_", "").lower()
    if not plain.startswith(_BEGINNINGS):
        return None  # most tools are the client's
    return next((name for begin, name in kinds if plain.startswith(begin)), None)


def _is_on(options: object) -> bool:
    """Return whether options of searches let a model search."""
    return options is not None and not (isinstance(options, Mapping) and options.get("mode") == "off")


def _has_web_plugin(plugins: object) -> bool:
    return isinstance(plugins, list | tuple) and any(
        isinstance(one, Mapping) and one.get("id") == "web" and one.get("enabled") is not False for one in plugins
    )


def _uses(value: object) -> int | None:
    """Return how often a request allows something; None where it does not say it."""
    return min(value, _MOST_USES) if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
