"""The texts in the pieces of streams, in each of the APIs' shapes. Pure."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any, Final

from .redaction import Tail, Vault, mapped

#: Fields of a piece with a part of a text that goes on in the next piece.
_PARTS: Final = ("content", "text", "reasoning_content", "arguments", "partial_json", "thinking", "refusal")
#: Events after which a text does not go on.
_ENDS: Final = frozenset({"content_block_stop", "response.output_text.done", "message_stop", "response.completed"})


class Restorer:
    """Restores the texts of one stream.

    Args:
        vault: The request's placeholders.
    """

    def __init__(self, vault: Vault) -> None:
        self._vault = vault
        self._tails: dict[tuple[object, ...], Tail] = {}
        self._last: dict[tuple[object, ...], Mapping[str, Any]] = {}

    def push(self, piece: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
        """Yield the piece with its texts restored, after what was held back if the texts have ended."""
        changed = copy.deepcopy(dict(piece))
        parts = list(_parts(changed))
        if not parts:
            if piece.get("type") in _ENDS or any(choice.get("finish_reason") for choice in _choices(piece)):
                yield from self.end()
            yield mapped(changed, self._vault.restore)
            return
        for key, holder, name in parts:
            tail = self._tails.setdefault(key, Tail(self._vault))
            holder[name] = tail.push(holder[name])
            self._last[key] = piece
            if any(choice.get("finish_reason") for choice in _choices(piece)):
                holder[name] += tail.end()
        yield changed

    def end(self) -> Iterator[Mapping[str, Any]]:
        """Yield what is still held back, each in a piece like the last one of its text."""
        for key, tail in self._tails.items():
            if held := tail.end():
                piece = copy.deepcopy(dict(self._last[key]))
                for other, holder, name in _parts(piece):
                    holder[name] = held if other == key else ""
                yield piece


def _choices(piece: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    choices = piece.get("choices")
    return [choice for choice in choices if isinstance(choice, Mapping)] if isinstance(choices, list) else []


def _parts(piece: dict[str, Any]) -> Iterator[tuple[tuple[object, ...], dict[str, Any], str]]:
    """Yield each part of a text: which text it belongs to, and where it stands."""
    for choice in _choices(piece):
        for holder in (choice, choice.get("delta")):
            yield from _of(holder, ("choice", choice.get("index")))
    delta, kind = piece.get("delta"), piece.get("type")
    if isinstance(delta, str):
        yield (kind, piece.get("output_index"), piece.get("content_index")), piece, "delta"
    yield from _of(delta, ("block", piece.get("index")))


def _of(holder: object, key: tuple[object, ...]) -> Iterator[tuple[tuple[object, ...], dict[str, Any], str]]:
    if isinstance(holder, dict):
        for name in _PARTS:
            if isinstance(holder.get(name), str):
                yield (*key, name), holder, name
