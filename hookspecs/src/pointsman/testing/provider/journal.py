"""What the upstream received, for tests to look at. In memory only; keys are never kept."""

from __future__ import annotations

import itertools
import threading
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from ...types import is_credential_header

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_KEPT = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceivedRequest:
    """One request and what became of it. Times are those of the upstream.

    Attributes:
        number: Counts from 0 since the start or the last reset.
        path: Path without the query.
        model: Model or deployment asked for.
        stream: Whether a stream was asked for.
        headers: Request headers, names in lower case; credentials are replaced by ``[redacted]``.
        body: The request's JSON object; empty when it was none.
        received_at: When it came, in Unix seconds.
        status: The status answered with, or None as long as there was none.
        fault: The fault it met, or None.
        events: How many events of a stream were sent.
        prompt_tokens: Prompt tokens counted; None on a replay or a failure.
        output_tokens: Output tokens of the whole answer, whether they were sent or not; None as above.
        headers_ms: From receipt to the response headers, in milliseconds, or None.
        first_token_ms: From receipt to the first token of a stream, in milliseconds, or None.
        ended_ms: From receipt to the end, in milliseconds; None while it runs.
        closed_early: Whether the client closed the connection before the end of the answer.
    """

    number: int
    path: str
    model: str
    stream: bool
    headers: dict[str, str]
    body: dict[str, Any]
    received_at: float
    status: int | None = None
    fault: str | None = None
    events: int = 0
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    headers_ms: float | None = None
    first_token_ms: float | None = None
    ended_ms: float | None = None
    closed_early: bool = False


REQUESTS: TypeAdapter[tuple[ReceivedRequest, ...]] = TypeAdapter(tuple[ReceivedRequest, ...])
"""Reads and writes requests as JSON."""


def redact(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """Return headers as text without credentials."""
    decoded = ((name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in headers)
    return {name: "[redacted]" if is_credential_header(name) else value for name, value in decoded}


class Journal:
    """The requests of one upstream, the newest 20 000. Safe to use from any thread."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._entries: dict[int, ReceivedRequest] = {}
        self._numbers = itertools.count()
        self._epoch = 0

    def open(self, **fields: Any) -> Entry:
        """Note a request that has come; the fields are those of ``ReceivedRequest`` but the number."""
        with self._changed:
            number = next(self._numbers)
            self._entries[number] = ReceivedRequest(number=number, **fields)
            if len(self._entries) > _KEPT:
                del self._entries[next(iter(self._entries))]
            self._changed.notify_all()
            return Entry(self, self._epoch, number)

    def update(self, epoch: int, number: int, changes: dict[str, Any]) -> None:
        """Note what became of a request; nothing when it has been forgotten."""
        with self._changed:
            if epoch == self._epoch and number in self._entries:
                self._entries[number] = replace(self._entries[number], **changes)
                self._changed.notify_all()

    def all(self) -> tuple[ReceivedRequest, ...]:
        """Return the requests in the order in which they came."""
        with self._changed:
            return tuple(self._entries.values())

    def clear(self) -> None:
        """Forget everything."""
        with self._changed:
            self._entries.clear()
            self._numbers = itertools.count()
            self._epoch += 1

    def wait_for(
        self, condition: Callable[[tuple[ReceivedRequest, ...]], object], timeout_s: float
    ) -> tuple[ReceivedRequest, ...]:
        """Wait until the requests fulfil a condition, and return them.

        Raises:
            TimeoutError: they did not in time.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: condition(tuple(self._entries.values())), timeout_s):
                raise TimeoutError(f"upstream: the {len(self._entries)} requests did not become so in {timeout_s} s")
            return tuple(self._entries.values())


class Entry:
    """The journal's line of one request that is being answered."""

    __slots__ = ("_changes", "_epoch", "_journal", "_number", "_started")

    def __init__(self, journal: Journal, epoch: int, number: int) -> None:
        self._journal = journal
        self._epoch = epoch
        self._number = number
        self._started = time.monotonic()
        self._changes: dict[str, Any] = {}

    def note(self, **changes: Any) -> None:
        """Remember what became of the request, to be written at the end."""
        self._changes.update(changes)

    def elapsed_ms(self) -> float:
        """Return the milliseconds since the request came."""
        return (time.monotonic() - self._started) * 1000

    def write(self, **changes: Any) -> None:
        """Write what was noted."""
        self._changes.update(changes)
        self._journal.update(self._epoch, self._number, self._changes)
        self._changes = {}
