"""Recorded exchanges with real providers, served again.

The recording is a file of one JSON object a line: ``id``, ``source``, ``case``, ``host``, ``path``, ``request`` (the
body), ``status``, ``headers`` (of the response) and ``body`` (of the response, as text).
"""

from __future__ import annotations

import itertools
import json
import re
from collections import defaultdict
from typing import TYPE_CHECKING, Annotated

from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from pointsman.errors import ConfigError

from .wire import Answer, Stream

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PICK_HEADER = "x-upstream-exchange"
"""A request with this header gets the exchange of that id, whatever else it says."""

_DROPPED = frozenset(
    {
        "connection", "content-encoding", "content-length", "keep-alive", "proxy-authenticate", "proxy-authorization",
        "te", "trailer", "transfer-encoding", "upgrade",
    }
)  # fmt: skip
_LINES = ("application/x-ndjson", "application/stream+json")
_LINE = re.compile(r".+?(?:\n|\Z)", re.DOTALL)
_EVENT = re.compile(r".+?(?:\r?\n\r?\n|\Z)", re.DOTALL)
_PROMPTS = ("messages", "input", "message", "prompt")


def _object(value: object) -> object:
    return value if isinstance(value, dict) else {}


@dataclass(frozen=True, slots=True, kw_only=True, config=ConfigDict(extra="ignore"))
class RecordedExchange:
    """One recorded exchange; ``request`` posted to ``path`` reproduces it.

    Attributes:
        id: Its id in the recording.
        case: What it was recorded for.
        host: The provider's host.
        path: Path of the request, without the query.
        request: The request's body; empty when it was no JSON object.
        status: Status of the response.
        headers: Headers of the response, names in lower case.
        body: Body of the response.
    """

    id: str
    case: str = ""
    host: str = ""
    path: str
    request: Annotated[dict[str, object], BeforeValidator(_object)]
    status: int = Field(ge=100, le=599)
    headers: dict[str, str]
    body: str

    @property
    def stream(self) -> bool:
        """Whether a stream was asked for."""
        return bool(self.request.get("stream"))

    def pieces(self) -> list[bytes]:
        """Return the body cut after each event or line; joined it is the body."""
        cut = _LINE if self.headers.get("content-type", "").startswith(_LINES) else _EVENT
        return [part.encode() for part in cut.findall(self.body)]

    def answer(self) -> Answer:
        """Return the recorded answer with its status, headers and body; hop-by-hop headers are left out."""
        headers = [(k.encode("latin-1"), v.encode("latin-1")) for k, v in self.headers.items() if k not in _DROPPED]
        kind = self.headers.get("content-type", "")
        if kind.startswith(("text/event-stream", *_LINES)):
            stream = Stream(tokens=self.pieces(), failure=list)
            return Answer(status=self.status, headers=headers, stream=stream)
        return Answer(status=self.status, headers=headers, body=self.body.encode())


_RECORDED: TypeAdapter[RecordedExchange] = TypeAdapter(RecordedExchange)


class ReplayIndex:
    """Recorded exchanges, findable by request. Iterate over it for all of them in recorded order.

    Requests that were recorded more than once get their answers in turn, in recorded order.

    Args:
        exchanges: The exchanges.
    """

    def __init__(self, exchanges: list[RecordedExchange]) -> None:
        self._exchanges = tuple(exchanges)
        self._by_id = {exchange.id: exchange for exchange in exchanges}
        self._by_key: defaultdict[str, list[RecordedExchange]] = defaultdict(list)
        self._turns: defaultdict[str, itertools.count[int]] = defaultdict(itertools.count)
        for exchange in exchanges:
            for key in _keys(exchange.path, exchange.request):
                self._by_key[key].append(exchange)

    @classmethod
    def load(cls, path: Path) -> ReplayIndex:
        """Read a recording.

        Raises:
            ConfigError: the file cannot be read, or a line of it is no exchange.
        """
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as err:
            raise ConfigError(f"recording {path}: {err}") from err
        exchanges = []
        for number, line in enumerate(lines, 1):
            try:
                exchanges.append(_RECORDED.validate_json(line))
            except ValidationError as err:
                raise ConfigError(f"recording {path}, line {number}: {err}") from err
        return cls(exchanges)

    def __iter__(self) -> Iterator[RecordedExchange]:
        return iter(self._exchanges)

    def __len__(self) -> int:
        return len(self._exchanges)

    def find(self, path: str, body: dict[str, object], pick: str | None = None) -> RecordedExchange | None:
        """Return the exchange that answers a request best, or None.

        The first of these that finds one decides: the picked id; the same path and body; the same path, model, stream
        flag and prompt; the same path and stream flag.
        """
        if pick is not None:
            return self._by_id.get(pick)
        for key in _keys(path, body):
            if found := self._by_key.get(key):
                return found[next(self._turns[key]) % len(found)]
        return None


def _keys(path: str, body: dict[str, object]) -> tuple[str, str, str]:
    """Return the keys of a request from the most to the least exact."""
    path = path.partition("?")[0]
    streamed = bool(body.get("stream"))
    prompt = next((_plain(body[name]) for name in _PROMPTS if name in body), None)
    keys = (["body", path, body], ["prompt", path, body.get("model"), streamed, prompt], ["path", path, streamed])
    exact, near, loose = (json.dumps(key, sort_keys=True) for key in keys)
    return exact, near, loose


def _plain(prompt: object) -> object:
    """Return a prompt without what clients write differently: a list of text parts is the same as the text."""
    if isinstance(prompt, dict):
        if set(prompt) <= {"type", "text", "cache_control"} and "text" in prompt:
            return prompt["text"]
        return {key: _plain(value) for key, value in prompt.items()}
    if isinstance(prompt, list):
        parts = [_plain(part) for part in prompt]
        texts = [part for part in parts if isinstance(part, str)]
        return "".join(texts) if texts and len(texts) == len(parts) else parts
    return prompt
