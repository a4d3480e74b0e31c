"""The plugin: hooks, wired to the modules that do the work."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from pydantic import Field

from pointsman import PluginConfig, PluginInfo, Services, hookimpl
from pointsman.errors import PointsmanError, UpstreamError
from pointsman.types import (
    Answer,
    Attempt,
    AttemptKind,
    Endpoint,
    Outcome,
    Reply,
    RequestContext,
    Route,
    Settlement,
    Status,
    UpstreamRequest,
)

from . import answers
from .question import Question, question_of
from .repository import Repository
from .vectors import packed

HEADER: Final = "x-semantic-cache"
#: Requests whose answer may be kept and that are not settled yet; more are answered and not kept.
_MOST_OPEN: Final = 10_000


class SemanticCacheConfig(PluginConfig):
    """What is answered again."""

    embeddings: str = Field(min_length=1, description="Model group that embeds questions.")
    min_similarity_ratio: float = Field(
        default=0.95,
        ge=0,
        le=1,
        description="Least cosine similarity of two questions with one answer; 1 answers identical ones only.",
    )
    ttl_s: float = Field(default=3600.0, gt=0, le=30 * 86_400, description="How long an answer is used, in seconds.")
    max_answers: int = Field(default=512, ge=32, le=100_000, description="Most answers kept for each caller.")
    max_question_chars: int = Field(default=2000, ge=1, le=20_000, description="Longer questions are not looked up.")
    max_answer_chars: int = Field(default=20_000, ge=1, le=200_000, description="Longer answers are not kept.")
    embedding_timeout_s: float = Field(
        default=1.0, gt=0, le=4, description="Longest wait for an embedding; then the model answers."
    )


class SemanticCache:
    """Answers a question from an earlier answer to one that is similar.

    Args:
        config: The plugin's section.
    """

    def __init__(self, config: SemanticCacheConfig) -> None:
        self._config = config
        self._open: OrderedDict[str, tuple[Question, str]] = OrderedDict()
        self._texts: dict[str, tuple[str, str]] = {}
        self._counts = dict.fromkeys(("hits", "misses", "kept", "failures"), 0)

    @hookimpl
    async def startup(self, services: Services) -> None:
        """Open the repository."""
        self._services = services
        self._repository = Repository(services.store, self._config.max_answers, self._config.ttl_s)

    @hookimpl
    async def pre_route(self, ctx: RequestContext, route: Route) -> Route | Reply | None:
        """Answer, or remember what is asked."""
        question = question_of(ctx, self._config.max_question_chars)
        if question is None:
            return None
        now = self._services.clock.now()
        try:
            vector = await self._embed(ctx, question.text)
            found = None if vector is None else await self._repository.nearest(question, vector, now)
        except PointsmanError:
            # A cache that does not work is no reason not to answer.
            self._counts["failures"] += 1
            return None
        if found is not None and found[1] >= self._config.min_similarity_ratio:
            self._counts["hits"] += 1
            return self._reply(ctx, found[0].text, found[1], int(now))
        self._counts["misses"] += 1
        if vector is not None and len(self._open) < _MOST_OPEN:
            self._open[ctx.request_id] = (question, vector)
        return route.with_headers({HEADER: "miss"})

    async def _embed(self, ctx: RequestContext, text: str) -> str | None:
        """Return the question's vector, packed; None where the provider gave none.

        Raises:
            UpstreamError: it failed.
        """
        call = self._services.upstream.start(
            UpstreamRequest(
                target=self._config.embeddings,
                kind=AttemptKind.PROBE,
                endpoint=Endpoint.EMBEDDINGS,
                body={"input": [text]},
                parent=ctx,
                timeout_s=self._config.embedding_timeout_s,
            )
        )
        body = (await call.response()).body
        try:
            return packed([float(value) for value in body["data"][0]["embedding"]])  # type: ignore[index]  # JSON
        except (KeyError, IndexError, TypeError, ValueError) as err:
            raise UpstreamError("the answer has no embedding") from err

    def _reply(self, ctx: RequestContext, text: str, similar: float, now: int) -> Reply:
        headers = {HEADER: f"hit; similarity={similar:.3f}"}
        arguments = (ctx.endpoint, f"cached-{ctx.request_id}", ctx.model, text, now)
        if ctx.stream:
            return Reply(pieces=answers.pieces(*arguments), headers=headers)
        return Reply(body=answers.body(*arguments), headers=headers)

    @hookimpl
    def post_response(self, ctx: RequestContext, attempt: Attempt, answer: Callable[[], Answer | None]) -> None:
        """Remember what the model said, if it said all of it."""
        if ctx.request_id not in self._open or attempt.request_id != ctx.request_id or attempt.empty:
            return
        said = answer()
        if said is None or said.tool_calls or said.finish_reason != "stop":
            return
        if 0 < len(said.text) <= self._config.max_answer_chars:
            self._texts[ctx.request_id] = (attempt.id, said.text)

    @hookimpl
    async def settle(self, ctx: RequestContext, settlement: Settlement) -> None:
        """Keep the answer that the client got whole; forget the request."""
        asked, said = self._open.get(ctx.request_id), self._texts.get(ctx.request_id)
        if asked is not None and said is not None:
            attempt_id, text = said
            if settlement.outcome is Outcome.OK and settlement.answered_by == attempt_id:
                await self._repository.keep(*self._kept(ctx, asked, text))
                self._counts["kept"] += 1
        self._open.pop(ctx.request_id, None)
        self._texts.pop(ctx.request_id, None)

    def _kept(
        self, ctx: RequestContext, asked: tuple[Question, str], text: str
    ) -> tuple[Question, str, str, str, float]:
        return asked[0], ctx.request_id, asked[1], text, self._services.clock.now()

    @hookimpl
    def status(self) -> Status:
        """Say how often it answered; never what."""
        counts = self._counts
        asked = counts["hits"] + counts["misses"]
        return Status(
            ok=not counts["failures"] or asked > counts["failures"],
            summary=f"answered {counts['hits']} of {asked} questions",
            details={**counts, "open": len(self._open)},
        )


plugin: Final = PluginInfo(
    name="semantic-cache",
    config=SemanticCacheConfig,
    factory=SemanticCache,
    summary="Answers questions that have been asked before, in other words too.",
    requires=">=0.1,<0.2",
    after=("quota",),
)
