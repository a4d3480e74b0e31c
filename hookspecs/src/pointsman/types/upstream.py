"""Calls of our own to a deployment, and what an executor answers with."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field

from ..frozen import quick
from .attempts import Attempt
from .kinds import AttemptKind, Endpoint
from .requests import RequestContext


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamRequest:
    """A call of our own to a deployment or model group.

    Attributes:
        target: Model group or deployment id.
        kind: ``hedge``, ``mirror``, ``probe`` or ``judge`` (``primary`` for the first attempt of a race).
        body: The request as the endpoint defines it, without ``model`` and ``stream``.
        endpoint: Which API to speak.
        stream: Whether to read it as a stream.
        parent: The client request it is made for, or None.
        tenant: The tenant that pays, when it is not the parent's.
        labels: Facts for the attempt and its span.
        timeout_s: To the first token of a stream, to the end of a plain call; None leaves the gateway's.
    """

    target: str
    kind: AttemptKind
    body: Mapping[str, object] = field(repr=False)
    endpoint: Endpoint = Endpoint.CHAT
    stream: bool = False
    parent: RequestContext | None = None
    tenant: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    timeout_s: float | None = None


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamResponse:
    """A whole answer to a call of our own.

    Attributes:
        attempt: The closed attempt.
        body: The answer as JSON, in the endpoint's shape.
        raw: The gateway's own object, to be handed on untouched by an executor.
    """

    attempt: Attempt
    body: Mapping[str, object] = field(repr=False)
    raw: object = field(repr=False, default=None)


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """One piece of a stream.

    Attributes:
        has_content: Whether it carries text, a tool call or reasoning: not an empty role or a keep-alive.
        text: The text in it, empty when there is none.
        raw: The gateway's own object, to be handed on untouched by an executor.
    """

    has_content: bool
    text: str = field(default="", repr=False)
    raw: object = field(default=None, repr=False)


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """What an executor answers with: a whole response or a stream of chunks, never both.

    Attributes:
        response: For a plain request.
        chunks: For a streamed one; closed by the host.
        headers: Headers to add to the answer; for a stream they must be known when it is returned.
    """

    response: UpstreamResponse | None = None
    chunks: AsyncIterator[Chunk] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
