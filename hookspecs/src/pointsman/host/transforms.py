"""Streams on their way to the client, changed by plugins: one stage for each plugin, in order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Final

from ..frozen import frozen
from ..types import Endpoint
from . import returned_values
from .annotating import streaming
from .isolation import is_stray, let_through

if TYPE_CHECKING:
    from opentelemetry.trace import Span

    from ..types import Attempt, Denial, RequestContext
    from .hooks import Hooks
    from .implementations import Impl

#: Their content is in files, in objects that are stored, or built by the gateway itself.
_OUT_OF_REACH: Final = frozenset(
    {
        Endpoint.ASSISTANTS,
        Endpoint.BATCHES,
        Endpoint.CONTAINERS,
        Endpoint.FILES,
        Endpoint.FINE_TUNING,
        Endpoint.OTHER,
        Endpoint.RAG,
        Endpoint.REALTIME,
        Endpoint.VECTOR_STORES,
    }
)
#: Answers in sound and moving pictures.
_WITHOUT_TEXT: Final = frozenset({Endpoint.SPEECH, Endpoint.VIDEOS})
#: What providers keep of these is a model's answer, whenever it is read.
_KEPT: Final = frozenset({Endpoint.INTERACTIONS, Endpoint.RESPONSES, Endpoint.VIDEOS})
#: Fields of requests that only store something.
_CONTENT: Final = frozenset({"content", "file", "instructions", "messages"})
Piece = Mapping[str, Any]

#: A plugin's own work between two pieces; what it waits for the next piece does not count.
CLOSE_DEADLINE_S: Final = 5.0


def is_out_of_reach(ctx: RequestContext) -> bool:
    """Return whether what a request sends to a provider cannot be changed."""
    return ctx.generates and ctx.endpoint in _OUT_OF_REACH


def carries_unseen(ctx: RequestContext) -> bool:
    """Return whether a request carries content that cannot be changed: all of it, or the files beside its fields."""
    if ctx.endpoint is Endpoint.COUNT_TOKENS or is_out_of_reach(ctx):
        return True
    # What only reads has fields too, such as those of its query.
    return (ctx.endpoint in _OUT_OF_REACH and not _CONTENT.isdisjoint(ctx.body)) or any(map(is_file, ctx.body.values()))


def is_answered_unseen(ctx: RequestContext) -> bool:
    """Return whether the answer to a request cannot be changed: it comes later, in a file, or is not text."""
    return ctx.generates and (ctx.endpoint in _OUT_OF_REACH or ctx.endpoint in _WITHOUT_TEXT)


def has_answer(ctx: RequestContext) -> bool:
    """Return whether a model has made what a request is answered with, now or before."""
    return ctx.generates or ctx.endpoint in _KEPT


def is_file(value: object) -> bool:
    """Return whether a field of a request's body is an uploaded file, or several."""
    if value is None or isinstance(value, str | bytes | int | float):  # as most fields are
        return False
    if isinstance(value, Sequence):
        return any(map(is_file, value))
    return isinstance(value, Mapping) and isinstance(value.get("data"), bytes)


class StreamDeniedError(Exception):
    """A plugin whose policy is to deny has failed while it changed a stream.

    Attributes:
        denial: What the client is told.
    """

    def __init__(self, denial: Denial) -> None:
        super().__init__(denial.message)
        self.denial = denial


def stream(
    hooks: Hooks, ctx: RequestContext, attempt: Attempt, pieces: AsyncIterator[Piece], span: Span | None = None
) -> AsyncIterator[Piece]:
    """Return a stream as the plugins change it.

    Args:
        hooks: The plugins' hooks.
        ctx: The request.
        attempt: The attempt that answers.
        pieces: The stream.
        span: The request's, for annotations.

    Raises:
        StreamDeniedError: while iterating.
    """
    for impl in hooks.transform_stream:
        if not hooks.is_off(impl):
            pieces = _stage(hooks, impl, ctx, attempt, pieces, span=span)
    return pieces


class _Source:
    """What a plugin reads. It knows which pieces the plugin has not answered yet, and pauses the plugin's deadline."""

    def __init__(self, pieces: AsyncIterator[Piece], deadline_s: float | None) -> None:
        self._pieces = pieces
        self._deadline_s = deadline_s
        self.unanswered: list[Piece] = []
        self.limit: asyncio.Timeout | None = None
        self.failed: BaseException | None = None

    def __aiter__(self) -> AsyncIterator[Piece]:
        return self

    async def __anext__(self) -> Piece:
        if not is_stray():
            # The plugin may have cancelled the request's task: that reaches the plugin here, not what it reads from.
            await asyncio.sleep(0)
        self._pause(None)
        try:
            piece = await anext(self._pieces)
        except StopAsyncIteration:
            raise
        except BaseException as err:
            # An earlier stage's, or the request's own: not a fault of the plugin that reads.
            self.failed = err
            raise
        finally:
            self._pause(self._deadline_s)
        shared: Piece = frozen(piece)
        self.unanswered.append(shared)
        return shared

    def _pause(self, seconds: float | None) -> None:
        if self.limit is not None and not self.limit.expired():
            self.limit.reschedule(None if seconds is None else asyncio.get_running_loop().time() + seconds)


async def _stage(
    hooks: Hooks, impl: Impl, ctx: RequestContext, attempt: Attempt, pieces: AsyncIterator[Piece], *, span: Span | None
) -> AsyncIterator[Piece]:
    deadline_s = impl.deadline_s
    source = _Source(pieces, deadline_s)
    is_read = False
    try:
        with streaming(span):
            made = hooks.start_stream(impl, ctx, attempt, source)
        if made is not None:
            async with aclosing(_Closing(made)):
                while True:
                    async with asyncio.timeout(deadline_s) as limit:
                        source.limit = limit
                        with streaming(span):
                            piece = await hooks.next_piece(impl, made)
                    if piece is None:
                        return
                    checked = returned_values.json_object("pieces", piece)
                    source.unanswered.clear()
                    # Not within the plugin's time: the client may take long to read it.
                    is_read = True
                    yield checked
                    is_read = False
    except BaseException as err:
        if is_read:  # its reader has closed it
            raise
        if source.failed is not None:
            raise source.failed from None
        denial = hooks.stream_failed(impl, ctx, err)
        if denial is not None:
            raise StreamDeniedError(denial) from err
    for piece in source.unanswered:
        yield piece
    async for piece in pieces:
        yield piece


class _Closing:
    """Closes an iterator if it can be closed; a fault in it is too late to matter."""

    def __init__(self, made: AsyncIterator[Any]) -> None:
        self._made = made

    async def aclose(self) -> None:
        close = getattr(self._made, "aclose", None)
        if close is not None:
            try:
                async with asyncio.timeout(CLOSE_DEADLINE_S):
                    await close()
            except BaseException as err:  # noqa: BLE001  # the stream has ended for the client
                let_through(err)
