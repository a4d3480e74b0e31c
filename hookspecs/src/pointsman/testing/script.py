"""What a fake upstream answers, attempt by attempt.

A script is one ``Step`` (every attempt gets it), a list of them (one each, in order, then ``ok()``), or a mapping from
deployment id, model group or ``"*"`` to either of the two::

    script=[error(429, retry_after_s=2.0), ok("hello")]
    script={"gpt-a": error(500), "backup": [ok(latency_s=0.2)]}
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, TypeAlias

from ..types import Answer, AttemptError, Deployment, ErrorClass, ToolCall, Usage

ANY: Final = "*"
TEXT: Final = "This is the answer of a fake upstream."
USAGE: Final = Usage(prompt_tokens=10, completion_tokens=5)


class Ending(StrEnum):
    """How a step ends."""

    OK = "ok"
    ERROR = "error"
    BREAKS = "breaks"
    NEVER = "never"
    DISCONNECT = "disconnect"
    CANCEL = "cancel"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What happens in one attempt. Make one with ``ok``, ``error``, ``breaks``, ``never``, ``disconnect``, ``cancel``.

    Attributes:
        ending: How it ends.
        text: The whole answer; a stream brings it word by word.
        usage: What the provider counts, or None when it does not.
        latency_s: Seconds to the whole plain answer, to the first piece of a stream, or to the error.
        piece_s: Seconds between two pieces of a stream.
        after_pieces: For ``breaks``, ``disconnect`` and ``cancel``: how many pieces of a stream arrive before.
        status: The provider's HTTP status; None when it gives none.
        headers: The provider's response headers, lower case.
        error: For ``error`` and ``breaks``: what is wrong.
        model: The model name in the answer; None for the deployment's own.
        cost_usd_micros: The price, or None to compute it from the gateway's prices.
        cached: Whether the gateway's response cache answers.
        tool_calls: The tools that the answer asks for.
        finish_reason: Why the answer ends; None for ``tool_calls`` or ``stop``.
        embed: Returns the vector of an input, where the request is for embeddings; None: vectors that say nothing.
    """

    ending: Ending
    text: str = field(default=TEXT, repr=False)
    usage: Usage | None = USAGE
    latency_s: float = 0.0
    piece_s: float = 0.0
    after_pieces: int = 1
    status: int | None = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    error: AttemptError | None = None
    model: str | None = None
    cost_usd_micros: int | None = None
    cached: bool = False
    tool_calls: tuple[ToolCall, ...] = ()
    finish_reason: str | None = None
    embed: Callable[[str], Sequence[float]] | None = None

    @property
    def answer(self) -> Answer:
        """What the model says."""
        reason = self.finish_reason or ("tool_calls" if self.tool_calls else "stop")
        return Answer(text=self.text, tool_calls=self.tool_calls, finish_reason=reason)

    @property
    def pieces(self) -> tuple[str, ...]:
        """The pieces of a stream; joined they are the text."""
        words = self.text.split(" ")
        return tuple(word if i == 0 else f" {word}" for i, word in enumerate(words) if word or i)


ScriptSource: TypeAlias = "Step | Sequence[Step] | Mapping[str, Step | Sequence[Step]]"


def ok(
    text: str = TEXT,
    *,
    usage: Usage | None = USAGE,
    latency_s: float = 0.0,
    piece_s: float = 0.0,
    headers: Mapping[str, str] | None = None,
    model: str | None = None,
    cost_usd_micros: int | None = None,
    cached: bool = False,
    tool_calls: Sequence[ToolCall] = (),
    finish_reason: str | None = None,
    embed: Callable[[str], Sequence[float]] | None = None,
) -> Step:
    """Answer. The arguments are the attributes of ``Step``."""
    return Step(
        ending=Ending.OK,
        text=text,
        usage=usage,
        latency_s=latency_s,
        piece_s=piece_s,
        headers=headers or {},
        model=model,
        cost_usd_micros=cost_usd_micros,
        cached=cached,
        tool_calls=tuple(tool_calls),
        finish_reason=finish_reason,
        embed=embed,
    )


def error(
    status: int | None = 500,
    *,
    kind: ErrorClass | None = None,
    retry_after_s: float | None = None,
    message: str = "the fake upstream fails on purpose",
    latency_s: float = 0.0,
    headers: Mapping[str, str] | None = None,
) -> Step:
    """Fail before anything was answered.

    Args:
        status: The provider's HTTP status; None when there is no answer at all.
        kind: The class of the error; by default what the status says.
        retry_after_s: What the provider asks for; also becomes its ``retry-after`` header.
        message: Its words.
        latency_s: Seconds until it fails.
        headers: Its response headers.
    """
    return Step(
        ending=Ending.ERROR,
        usage=None,
        latency_s=latency_s,
        status=status,
        headers=_with_retry_after(headers, retry_after_s),
        error=AttemptError(kind=kind or kind_of(status), status=status, message=message, retry_after_s=retry_after_s),
    )


def breaks(
    after_pieces: int = 1,
    *,
    text: str = TEXT,
    kind: ErrorClass = ErrorClass.CONNECTION,
    message: str = "the fake upstream breaks off on purpose",
    latency_s: float = 0.0,
    piece_s: float = 0.0,
) -> Step:
    """Break off in the middle of a stream; a plain answer fails without one."""
    return Step(
        ending=Ending.BREAKS,
        text=text,
        usage=None,
        latency_s=latency_s,
        piece_s=piece_s,
        after_pieces=after_pieces,
        error=AttemptError(kind=kind, message=message),
    )


def never() -> Step:
    """Do not answer, ever."""
    return Step(ending=Ending.NEVER, usage=None, status=None)


def disconnect(after_pieces: int = 1, *, text: str = TEXT, latency_s: float = 0.0, piece_s: float = 0.0) -> Step:
    """Let the client go away: from a stream after some pieces; from a plain request before the answer has come."""
    return Step(ending=Ending.DISCONNECT, text=text, after_pieces=after_pieces, latency_s=latency_s, piece_s=piece_s)


def cancel(after_pieces: int = 0, *, text: str = TEXT, latency_s: float = 0.0, piece_s: float = 0.0) -> Step:
    """Let the gateway cancel the request, as it does when it shuts down."""
    return Step(ending=Ending.CANCEL, text=text, after_pieces=after_pieces, latency_s=latency_s, piece_s=piece_s)


def kind_of(status: int | None) -> ErrorClass:
    """Return the class of error that an HTTP status stands for."""
    if status is None:
        return ErrorClass.CONNECTION
    return ErrorClass.of_status(status)


def _with_retry_after(headers: Mapping[str, str] | None, retry_after_s: float | None) -> dict[str, str]:
    found = dict(headers or {})
    if retry_after_s is not None:
        found.setdefault("retry-after", f"{retry_after_s:g}")
    return found


class Script:
    """Hands out the steps of a script.

    Args:
        source: What the module's docstring describes; None answers everything with ``ok()``.
    """

    def __init__(self, source: ScriptSource | None = None) -> None:
        if source is None or isinstance(source, Step):
            source = {ANY: ok() if source is None else source}
        elif not isinstance(source, Mapping):
            source = {ANY: source}
        self._always = {name: step for name, step in source.items() if isinstance(step, Step)}
        self._once = {name: list(steps) for name, steps in source.items() if not isinstance(steps, Step)}

    def next(self, deployment: Deployment) -> Step:
        """Return what this attempt gets: by deployment id, else by model group, else by ``"*"``, else ``ok()``."""
        for name in (deployment.id, deployment.group, ANY):
            if name in self._always:
                return self._always[name]
            if self._once.get(name):
                return self._once[name].pop(0)
            if name in self._once:
                return ok()
        return ok()
