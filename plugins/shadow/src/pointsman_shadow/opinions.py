"""Opinions about a pair of answers: an embedding model's and a judge's. Paid by the mirror, like the mirror itself."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pointsman.errors import UpstreamError
from pointsman.types import Answer, AttemptKind, Endpoint, UpstreamRequest

from . import bodies, calls, judging, similarity
from .budget import Amount

if TYPE_CHECKING:
    from pointsman.plugin import Services

    from .config import Judge, Mirror
    from .pairs import Pair

_EMBEDDED_CHARS: Final = 30_000


@dataclass(frozen=True, slots=True)
class Opinion:
    """What two questions to a judge have brought.

    Attributes:
        score: 1 the challenger is better, 0 the champion, 0.5 neither; None without two verdicts.
        failed: Questions that were not answered.
        unread: Answers without a verdict.
        contradicted: The judge preferred a place.
        spent: What it took.
    """

    score: float | None
    failed: int
    unread: int
    contradicted: bool
    spent: Amount


class Panel:
    """Whoever is asked about one pair.

    Args:
        services: The host's services.
        mirror: Whose pair it is.
        pair: The pair.
    """

    def __init__(self, services: Services, mirror: Mirror, pair: Pair) -> None:
        self._services = services
        self._mirror = mirror
        self._pair = pair

    async def judged(self, judge: Judge, champion: Answer, challenger: Answer) -> Opinion:
        """Ask the judge twice, at the same time, with the answers in either order."""
        first, second = judging.shown(champion, judge.max_chars), judging.shown(challenger, judge.max_chars)
        asked = await asyncio.gather(self._question(judge, first, second), self._question(judge, second, first))
        verdicts = []
        failed = unread = 0
        for called in asked:
            answer = called.side.answer
            verdict = judging.read(answer.text) if answer is not None and called.side.ok else None
            failed += not called.side.ok
            unread += called.side.ok and verdict is None
            verdicts.append(verdict)
        champion_first, challenger_first = verdicts
        return Opinion(
            score=judging.score(champion_first, challenger_first),
            failed=failed,
            unread=unread,
            contradicted=judging.contradicts(champion_first, challenger_first),
            spent=asked[0].spent + asked[1].spent,
        )

    async def _question(self, judge: Judge, first: str, second: str) -> calls.Called:
        asked = bodies.prompt_text(self._pair.ctx.body, judge.max_chars)
        messages = judging.question(judge.criteria, asked, first, second, self._services.new_id()[-12:])
        request = self._request(judge.model, {"messages": messages, "max_tokens": judge.max_tokens}, Endpoint.CHAT)
        return await calls.call(self._services, request, self._mirror.time_limit_s, self._pair.context)

    async def embedded(self, model: str, champion: str, challenger: str) -> tuple[float | None, Amount]:
        """Return the cosine of two texts' embeddings (None when there is none), and what it took."""
        texts = [champion[:_EMBEDDED_CHARS], challenger[:_EMBEDDED_CHARS]]
        request = self._request(model, {"input": texts}, Endpoint.EMBEDDINGS)
        try:
            running = self._pair.context.run(self._services.upstream.start, request)
        except UpstreamError:
            return None, Amount()
        similar: float | None = None
        try:
            response = await calls.within(self._services.clock, self._mirror.time_limit_s, running.response())
            found = similarity.vectors(response.body)
            if len(found) == len(texts):
                similar = similarity.cosine(found[0], found[1])
        except (UpstreamError, calls.OutOfTimeError):
            pass
        finally:
            await running.cancel()
        try:
            return similar, Amount.of(running.attempt)
        except UpstreamError:
            return None, Amount()

    def _request(self, target: str, body: Mapping[str, object], endpoint: Endpoint) -> UpstreamRequest:
        return UpstreamRequest(
            target=target,
            kind=AttemptKind.JUDGE,
            body=body,
            endpoint=endpoint,
            parent=self._pair.ctx,
            tenant=self._mirror.account,
            labels={calls.LABEL_MIRROR: self._mirror.name, calls.LABEL_PRIMARY: self._pair.ctx.request_id},
            timeout_s=self._mirror.time_limit_s,
        )
