"""A pair: one client request and its mirror, from the decision to the comparison. It lives in one worker's memory."""

from __future__ import annotations

from contextvars import Context
from typing import TYPE_CHECKING, Final

from .comparison import Side

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pointsman.types import RequestContext


#: Answers of one primary that are kept until it is known which of them the client got; of more, the newest.
MOST_ANSWERS: Final = 8


class Pair:
    """One mirrored request.

    Attributes:
        ctx: The client's request.
        labels: The labels of its route.
        context: What was current when the primary was sent: the mirror's span is linked to its span.
        queued_at: Monotonic seconds.
        answers: The primary's successful attempts by their ids, the last one last: a race may have several.
        champion: What became of the primary; None while it runs.
        challenger: What became of the mirror; None until it has ended.
        mirror_id: The mirror's own request id.
        over: Nobody waits for it any more.
    """

    __slots__ = (
        "answers",
        "challenger",
        "champion",
        "context",
        "ctx",
        "labels",
        "mirror_id",
        "over",
        "queued_at",
    )

    def __init__(self, ctx: RequestContext, labels: Mapping[str, str], context: Context, queued_at: float) -> None:
        self.ctx = ctx
        self.labels = labels
        self.context = context
        self.queued_at = queued_at
        self.answers: dict[str, Side] = {}
        self.champion: Side | None = None
        self.challenger: Side | None = None
        self.mirror_id = ""
        self.over = False

    def answered(self, attempt_id: str, side: Side) -> None:
        """Keep an answer of the primary's."""
        self.answers[attempt_id] = side
        if len(self.answers) > MOST_ANSWERS:
            del self.answers[next(iter(self.answers))]
