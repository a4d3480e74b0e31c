"""Whether a request may be made twice. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Final

from pointsman.types import RequestContext

#: A client that knows its request must not be made twice says so with the value ``false``.
HEADER: Final = "x-pointsman-repeatable"

_STATE_AT_PROVIDER: Final = ("previous_response_id", "conversation", "container")
#: The same hosted tool by another provider's name, its version left out.
_ALSO: Final = {"mcp_toolset": "mcp", "code_execution": "code_interpreter"}
_VERSION: Final = re.compile(r"_\d{8}$")
_TOOLS_OF_THE_CLIENT: Final = frozenset({"function", "custom"})


def why_not(ctx: RequestContext, side_effect_tools: Sequence[str]) -> str | None:
    """Return why a request must not be made more than once, or None when it may.

    A function that the client itself runs is harmless: the client sees the winner's call only. Tools that the provider
    runs are not, and neither is what the provider keeps.

    Args:
        ctx: The request.
        side_effect_tools: Patterns for names of functions and types of hosted tools.
    """
    body = ctx.body
    if body.get("store") is True:
        return "store"
    if body.get("background") is True:
        return "background"
    for name in _STATE_AT_PROVIDER:
        if body.get(name):
            return name
    if ctx.headers.get(HEADER, "").strip().lower() == "false":
        return HEADER
    for name in _tool_names(body) if side_effect_tools else ():
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
        found = (function.get("name") if isinstance(function, Mapping) else None, tool.get("name"))
        yield from (name for name in found if isinstance(name, str))
        kind = tool.get("type")
        if isinstance(kind, str) and kind not in _TOOLS_OF_THE_CLIENT:
            yield kind
            if (also := _ALSO.get(_VERSION.sub("", kind))) is not None:
                yield also
