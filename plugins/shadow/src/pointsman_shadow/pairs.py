"""A pair: one client request and its mirror, from the decision to the comparison. It lives in one worker's memory."""

from __future__ import annotations

from contextvars import Context
from typing import TYPE_CHECKING

from .comparison import Side

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pointsman.types import RequestContext


class Pair:
    """One mirrored request.

    Attributes:
        ctx: The client's request.
        labels: The labels of its route.
        context: What was current when the primary was sent: the mirror's span is linked to its span.
        queued_at: Monotonic seconds.
        answered: The primary's successful attempt, or None.
        champion: What became of the primary; None while it runs.
        challenger: What became of the mirror; None until it has ended.
        mirror_id: The mirror's own request id.
        over: Nobody waits for it any more.
    """

    __slots__ = (
        "answered",
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
        self.answered: Side | None = None
        self.champion: Side | None = None
        self.challenger: Side | None = None
        self.mirror_id = ""
        self.over = False
