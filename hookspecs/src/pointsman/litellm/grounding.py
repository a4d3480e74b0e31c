"""What Gemini has looked up for an answer, by what it says about it: the web, maps, the operator's own data. Pure and total.

An answer names the queries once for everything, and its sources by their kinds. LiteLLM divides queries the same way.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from .reported_counts import MOST_PARTS, object_of

_WEB, _MAPS, _OWN = "web", "maps", "retrievedContext"
_QUERIES: Final = "webSearchQueries"
_OWN_QUERIES: Final = "retrievalQueries"
#: How the names of other queries end.
_OTHER_QUERIES: Final = "Queries"


class Grounding:
    """What was looked up for each candidate of an answer."""

    __slots__ = ("_found",)

    def __init__(self) -> None:
        #: For each candidate the kinds of its sources, and its queries by what they are.
        self._found: dict[Any, tuple[set[str], dict[str, set[str]]]] = {}

    def add(self, candidate: Any, said: Mapping[str, Any]) -> None:
        """Take up what the answer, or a message of its stream, says.

        Args:
            candidate: Which candidate it is about.
            said: Its ``groundingMetadata``.
        """
        place = candidate if isinstance(candidate, int) else 0
        if place not in self._found and len(self._found) >= MOST_PARTS:
            return
        kinds, queries = self._found.setdefault(place, (set(), {}))
        chunks = said.get("groundingChunks")
        for chunk in chunks if isinstance(chunks, list) else ():
            kinds.update(object_of(chunk))
        if said.get("googleMapsWidgetContextToken"):
            kinds.add(_MAPS)
        for name, asked in said.items():
            if name.endswith(_OTHER_QUERIES) and isinstance(asked, list):
                queries.setdefault(name, set()).update(query for query in asked if query and isinstance(query, str))

    def uses(self) -> dict[str, int]:
        """Return how often tools were used, by the names in ``Usage``.

        Each query counts once. Those of an answer whose sources are maps alone are queries of maps; where none is named, it
        was one. Other sources and queries have no price that is known.
        """
        web: set[str] = set()
        maps: set[str] = set()
        own = others = 0
        mapped = False
        for kinds, queries in self._found.values():
            searched = queries.get(_QUERIES, set())
            if _MAPS in kinds:
                mapped = True
            (maps if _MAPS in kinds and _WEB not in kinds else web).update(searched)
            own += len(queries.get(_OWN_QUERIES, ())) or (_OWN in kinds)
            others += len(kinds - {_WEB, _MAPS, _OWN})
            others += sum(len(asked) for name, asked in queries.items() if name not in {_QUERIES, _OWN_QUERIES})
        return {
            "searches": len(web),
            "maps_queries": max(1, len(maps)) if mapped else 0,
            "file_searches": own,
            "other_tools": others,
        }
