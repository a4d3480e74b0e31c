"""Whether a request may be sent more than once. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Final

from pointsman.types import RequestContext

#: A client sets it to ``false`` when its request must not be sent twice.
HEADER: Final = "x-pointsman-repeatable"

_PROVIDER_STATE: Final = ("previous_response_id", "conversation", "container")
#: The same hosted tool under another provider's name, without its version.
_ALIASES: Final = {"mcp_toolset": "mcp", "code_execution": "code_interpreter"}
_VERSION: Final = re.compile(r"_\d{8}$")
_CLIENT_TOOLS: Final = frozenset({"function", "custom"})
#: What of a body is looked at below.
_FIELDS: Final = frozenset({"store", "background", *_PROVIDER_STATE, "mcp_servers", "tools"})


def not_repeatable_because(ctx: RequestContext, side_effect_tools: Sequence[str]) -> str | None:
    """Return why a request must not be sent more than once, or None when it may.

    A function that the client itself runs is harmless: the client sees the winner's call only. Tools that the provider
    runs are not, and neither is state that the provider keeps.

    Args:
        ctx: The request.
        side_effect_tools: Patterns for names of functions and types of hosted tools.
    """
    # Most requests have none of these fields, and a body is read one by one.
    body = ctx.body if not _FIELDS.isdisjoint(ctx.body) else {}
    if body.get("store") is True:
        return "store"
    if body.get("background") is True:
        return "background"
    for name in _PROVIDER_STATE:
        if body.get(name):
            return name
    if ctx.headers.get(HEADER, "").strip().lower() == "false":
        return HEADER
    for name in _tool_names(body) if body and side_effect_tools else ():
        if any(fnmatchcase(name, pattern) for pattern in side_effect_tools):
            return f"tool {name[:80]}"
    return None


def _tool_names(body: Mapping[str, object]) -> Iterator[str]:
    if body.get("mcp_servers"):
        yield "mcp"
    tools = body.get("tools")
    for tool in tools if isinstance(tools, list | tuple) else ():
        if not isinstance(tool, Mapping):
            continue
        function = tool.get("function")
        names = (function.get("name") if isinstance(function, Mapping) else None, tool.get("name"))
        yield from (name for name in names if isinstance(name, str))
        kind = tool.get("type")
        if isinstance(kind, str) and kind not in _CLIENT_TOOLS:
            yield kind
            if (alias := _ALIASES.get(_VERSION.sub("", kind))) is not None:
                yield alias
