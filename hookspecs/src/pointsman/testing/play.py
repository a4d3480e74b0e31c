"""Plays a scripted step as one attempt: the waiting, the pieces, the end, and the answer's shape."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, NoReturn

from ..types import AttemptError, Endpoint, ErrorClass, Outcome, Usage, without_credentials
from .script import Ending, Step

if TYPE_CHECKING:
    from ..host.attempt import OpenAttempt
    from ..plugin import Clock
    from .fakes import FakePrices

_FILTERED = "content_filter"
_EMPTY = AttemptError(kind=ErrorClass.EMPTY, status=200, message="the answer has no content")
_FAILED = AttemptError(kind=ErrorClass.UNKNOWN, message="the fake upstream fails on purpose")


class StepFailed(Exception):
    """The provider failed."""

    def __init__(self, error: AttemptError) -> None:
        super().__init__(error.message)
        self.error = error


class ClientGone(Exception):
    """The client has gone away."""


async def play(
    step: Step, clock: Clock, started_at: float, *, stream: bool, task: asyncio.Task[object] | None
) -> AsyncGenerator[str, None]:
    """Yield the pieces of a stream, or the whole text once, when their time has come.

    The provider works at its own pace: time counts from ``started_at``, however late somebody reads.

    Args:
        step: What to play.
        clock: Time.
        started_at: The clock's monotonic time when the call was made.
        stream: Whether it is read as a stream.
        task: What answers the request, for a step that cancels it; None for a call that is a request of its own.

    Raises:
        StepFailed: the step is an error, or breaks off.
        ClientGone: the step lets the client go away.
        CancelledError: the step cancels the request.
    """
    if step.ending is Ending.NEVER:
        await asyncio.Event().wait()
    await _until(clock, started_at + step.latency_s)
    if step.ending is not Ending.OK and (not stream or step.ending is Ending.ERROR):
        await _end(step, task)
    if not stream:
        yield step.text
        return
    limit = None if step.ending is Ending.OK else step.after_pieces
    for number, piece in enumerate(step.pieces[:limit]):
        await _until(clock, started_at + step.latency_s + number * step.piece_s)
        yield piece
    if step.ending is not Ending.OK:
        await _end(step, task)


async def _until(clock: Clock, due: float) -> None:
    if (left := due - clock.monotonic()) > 0:
        await clock.sleep(left)


async def _end(step: Step, task: asyncio.Task[object] | None) -> NoReturn:
    if step.ending is Ending.DISCONNECT:
        raise ClientGone
    if step.ending is Ending.CANCEL:
        if task is not None and not task.done():
            # From outside, as a gateway does: what waits here is then cancelled with the rest of the request.
            asyncio.get_running_loop().call_soon(task.cancel)
            await asyncio.Event().wait()
        raise asyncio.CancelledError
    raise StepFailed(step.error or _FAILED)


def end_ok(opened: OpenAttempt, step: Step, prices: FakePrices) -> None:
    """Close an attempt with the whole answer."""
    deployment = opened.attempt.deployment
    cost = step.cost_usd_micros
    if cost is None:
        cost = 0 if step.cached else prices.cost_usd_micros(deployment, step.usage)
    opened.end(
        Outcome.OK,
        usage=step.usage,
        cost_usd_micros=cost,
        status_code=step.status,
        headers=without_credentials(step.headers),
        model=step.model or deployment.model,
        error=None if step.text.strip() or step.tool_calls or step.finish_reason == _FILTERED else _EMPTY,
        cached=step.cached,
        answer=lambda: step.answer,
    )


def end_failed(opened: OpenAttempt, step: Step, error: AttemptError, pieces: int, prices: FakePrices) -> None:
    """Close an attempt that failed, possibly after some pieces; what arrived is counted as an estimate."""
    usage = estimate(pieces)
    opened.end(
        Outcome.ERROR,
        usage=usage,
        cost_usd_micros=prices.cost_usd_micros(opened.attempt.deployment, usage),
        status_code=error.status,
        headers=without_credentials(step.headers),
        error=error,
    )


def end_left(
    opened: OpenAttempt,
    outcome: Outcome,
    step: Step,
    pieces: int,
    prices: FakePrices,
    *,
    usage: Usage | None = None,
    error: AttemptError | None = None,
) -> None:
    """Close an attempt that is not wanted any more: its client has gone, or it was cancelled."""
    usage = usage or estimate(pieces)
    opened.end(
        outcome,
        usage=usage,
        cost_usd_micros=prices.cost_usd_micros(opened.attempt.deployment, usage),
        headers=without_credentials(step.headers),
        error=error,
    )


def estimate(pieces: int) -> Usage | None:
    """Return what the gateway estimates for an unfinished stream; None when nothing came."""
    return usage_given_up(pieces) if pieces else None


def usage_given_up(pieces: int) -> Usage:
    """Return what a call that was given up has used: its prompt, and one token a piece."""
    return Usage(prompt_tokens=10, completion_tokens=pieces, estimated=True)


def answer_body(endpoint: Endpoint, model: str, text: str, usage: Usage | None, inputs: int = 1) -> dict[str, object]:
    """Return an answer as the endpoint's JSON; embeddings have one for each of the ``inputs``."""
    tokens = usage or Usage()
    match endpoint:
        case Endpoint.MESSAGES:
            return {
                "type": "message",
                "role": "assistant",
                "model": model,
                "content": [{"type": "text", "text": text}],
                "stop_reason": "end_turn",
                "usage": {"input_tokens": tokens.prompt_tokens, "output_tokens": tokens.completion_tokens},
            }
        case Endpoint.RESPONSES:
            content = [{"type": "output_text", "text": text, "annotations": []}]
            return {
                "object": "response",
                "status": "completed",
                "model": model,
                "output": [{"type": "message", "role": "assistant", "content": content}],
                "usage": {"input_tokens": tokens.prompt_tokens, "output_tokens": tokens.completion_tokens},
            }
        case Endpoint.EMBEDDINGS:
            return {
                "object": "list",
                "model": model,
                "data": [
                    {"object": "embedding", "index": index, "embedding": [float(len(text)), 0.5, -0.5]}
                    for index in range(inputs)
                ],
                "usage": {"prompt_tokens": tokens.prompt_tokens, "total_tokens": tokens.prompt_tokens},
            }
    return {
        "object": "chat.completion",
        "model": model,
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"},
        ],
        "usage": {
            "prompt_tokens": tokens.prompt_tokens,
            "completion_tokens": tokens.completion_tokens,
            "total_tokens": tokens.total_tokens,
        },
    }


def piece_body(model: str, text: str) -> dict[str, object]:
    """Return one piece of a chat stream as JSON."""
    return {
        "object": "chat.completion.chunk",
        "model": model,
        "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}],
    }
