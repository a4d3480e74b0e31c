"""The answers that are kept: in a fixed number of rows for each owner, and a fixed number of answers in each row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from pointsman.store import Put, StateStore, modify

from .question import Question
from .vectors import similarity

#: Rows for each owner. A row has the answers of some settings; a lookup reads one.
_ROWS: Final = 32


@dataclass(frozen=True, slots=True)
class Kept:
    """An answer that is kept.

    Attributes:
        id: The request that it answered.
        setting: In which setting.
        vector: Its question, packed.
        text: The answer.
        until: Unix seconds after which it is not used any more.
    """

    id: str
    setting: str
    vector: str
    text: str
    until: float


class Repository:
    """Answers, by owner and setting.

    Args:
        store: The plugin's store.
        most: The most answers for each owner.
        ttl_s: How long an answer is used.
    """

    def __init__(self, store: StateStore, most: int, ttl_s: float) -> None:
        self._store = store
        self._most_in_a_row = max(1, most // _ROWS)
        self._ttl_s = ttl_s

    async def nearest(self, question: Question, vector: str, now: float) -> tuple[Kept, float] | None:
        """Return the answer to the most similar question in the same setting, and how similar it is, -1 to 1.

        Raises:
            StoreError: the store failed.
        """
        kept = _read(await self._store.get(self._key(question)))
        fit = [one for one in kept if one.setting == question.setting and one.until > now]
        return max(((one, similarity(one.vector, vector)) for one in fit), key=lambda pair: pair[1], default=None)

    async def keep(self, question: Question, request_id: str, vector: str, text: str, now: float) -> None:
        """Keep an answer, in place of the oldest one where there is no room; the same request's is kept once.

        Raises:
            Conflict, StoreError: it could not be written.
        """

        def change(present: object) -> tuple[Put | None, None]:
            kept = [one for one in _read(present) if one.until > now]
            if any(one.id == request_id for one in kept):
                return None, None
            kept.append(Kept(request_id, question.setting, vector, text, now + self._ttl_s))
            rows = [asdict(one) for one in kept[-self._most_in_a_row :]]
            return Put(rows, ttl_s=self._ttl_s), None

        await modify(self._store, self._key(question), change, what="the row of answers")

    def _key(self, question: Question) -> str:
        return f"answers/{question.owner}/{int(question.setting, 16) % _ROWS}"


def _read(value: Any) -> Sequence[Kept]:
    return [Kept(**one) for one in value if isinstance(one, Mapping)] if isinstance(value, list | tuple) else []
