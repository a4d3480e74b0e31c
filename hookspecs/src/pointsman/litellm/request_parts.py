"""How many parts a request's JSON has: each costs the worker some microseconds, during which every other request waits. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from ..types import Denial

if TYPE_CHECKING:
    from collections.abc import Callable

#: What begins each list, each object and each further entry of one.
_MARKS: Final = (b",", b"[", b"{")
#: Within a text these are none. A text that does not end matches as well, so that nothing is tried twice.
_TEXT: Final = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"?', re.DOTALL)
_FORMS: Final = (b"multipart/form-data", b"application/x-www-form-urlencoded")
_CONTENT_TYPE: Final = b"content-type"


class PartsCounter:
    """Counts the parts of one request as its body arrives.

    Args:
        scope: The request, as ASGI has it.
        most: Returns the most parts that a request may have.
    """

    __slots__ = ("_is_form", "_marks", "_most", "_pieces", "_scope")

    def __init__(self, scope: Mapping[str, Any], most: Callable[[], int]) -> None:
        self._scope = scope
        self._most = most
        self._marks = 0
        self._pieces: list[bytes] = []
        self._is_form: bool | None = None

    def refused(self, piece: bytes, *, last: bool) -> Denial | None:
        """Return the denial of a request that has too many parts, once it is complete; None for others.

        Args:
            piece: The next piece of its body.
            last: Whether nothing follows.
        """
        if self._is_form is None:
            self._is_form = _is_form(self._scope)
        if self._is_form:
            # Its files may be larger than the memory, and wait on the disk.
            return None
        self._pieces.append(piece)
        self._marks += sum(map(piece.count, _MARKS))
        if not last:
            return None
        pieces, self._pieces, most = self._pieces, [], self._most()
        if self._marks <= most or _parts(b"".join(pieces)) <= most:
            return None
        return Denial(
            status=413,
            code="too_many_parts",
            message=f"The request has more than {most} lists, objects and entries of them; send several requests, or ask the "
            "operator for more (`request_parts` in the `pointsman:` section).",
        )


def _parts(body: bytes) -> int:
    return sum(map(_TEXT.sub(b"", body).count, _MARKS))


def _is_form(scope: Mapping[str, Any]) -> bool:
    """Return whether LiteLLM reads a body as a form, whose fields and files are few."""
    found = next((value for name, value in scope["headers"] if name == _CONTENT_TYPE), b"")
    return found.partition(b";")[0].strip().lower() in _FORMS
