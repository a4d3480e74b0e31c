"""What a server of models is: list, load, unload.

A server of your own is a class in an installed distribution, named by an entry point::

    [project.entry-points."pointsman_residency.servers"]
    acme = "acme_pointsman:Acme"

::

    from pointsman_residency.servers import Listed, ModelServer

    class Acme(ModelServer):
        summary = "Acme's inference server"

        async def models(self):
            answer = await self.call("GET", "/loaded")
            return {row["name"]: Listed(bytes=row["bytes"]) for row in answer["models"]}

        async def load(self, model):
            await self.call("POST", "/load", {"name": model})

        async def unload(self, model):
            await self.call("POST", "/unload", {"name": model})

and then ``server: {kind: acme, url: ...}``.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar, Final
from urllib.parse import quote

import httpx
from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from pointsman.errors import PointsmanError
from pointsman.plugin import Clock
from pointsman.text import one_line

#: Longest answer that is read.
MAX_ANSWER_BYTES: Final = 4 * 1024 * 1024
MAX_MESSAGE_CHARS: Final = 300
#: Longest and shortest pause before something that is waited for is looked at again, in seconds.
POLL_S: Final = 0.1
QUICK_S: Final = 0.02
#: The pause as a share of the time that it has taken so far: what is short is not prolonged by the pauses.
POLL_RATIO: Final = 0.1

_OUT_OF_MEMORY: Final = ("memory", "vram", "oom", "insufficient", "cudamalloc", "cuda error")


class Trouble(StrEnum):
    """Why a server did not do what it was asked."""

    UNREACHABLE = "unreachable"
    BUSY = "busy"
    MEMORY = "memory"
    MISSING = "missing"
    BROKEN = "broken"


#: Troubles that a moment later may be over.
PASSING: Final = frozenset({Trouble.UNREACHABLE, Trouble.BUSY})


class ServerError(PointsmanError):
    """A server could not be reached, or refused; the message is the server's own, in one line.

    Args:
        message: What happened; no secrets.
        trouble: Its kind.
    """

    def __init__(self, message: str, trouble: Trouble) -> None:
        super().__init__(message)
        self.trouble = trouble


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """A model that a server lists.

    Attributes:
        bytes: The memory that it takes, or None when the server does not tell.
        weights: The bytes of its weights alone, where the server tells them and not its memory: it takes more than these.
        loading: Whether it is still being loaded.
        sleeping: Whether it sleeps: a part of its memory is free, and it has to be woken.
    """

    bytes: int | None = None
    weights: int | None = None
    loading: bool = False
    sleeping: bool = False


class ModelServer(ABC):
    """Loads and unloads the models of one server. Derive from it; the methods are called for names on the server.

    Args:
        url: Base URL without a trailing slash.
        client: HTTP client, with the configured headers.
        clock: Time.
        settings: The further keys of the configuration's ``server``.

    Attributes:
        summary: One line that describes the server.
        tells_bytes: Whether ``models`` says how much memory a model takes.
        sleeps: Whether ``unload`` puts models to sleep.
        keys: Names of the settings that it knows.
    """

    summary: ClassVar[str] = ""
    tells_bytes: ClassVar[bool] = False
    sleeps: ClassVar[bool] = False
    keys: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self, url: str, client: httpx.AsyncClient, clock: Clock, settings: Mapping[str, Any] | None = None
    ) -> None:
        self.url = url
        self.client = client
        self.clock = clock
        self.settings = dict(settings or {})

    @abstractmethod
    async def models(self) -> Mapping[str, Listed]:
        """Return what is in memory, by the server's names. It must not load anything, nor prolong its stay.

        Raises:
            ServerError: the server does not answer, or not as expected.
        """

    @abstractmethod
    async def load(self, model: str) -> None:
        """Load a model, or wake it, and return when it can serve. What is loaded already is no error.

        Raises:
            ServerError: it cannot be loaded.
        """

    @abstractmethod
    async def unload(self, model: str) -> None:
        """Unload a model, or put it to sleep. What is not loaded is no error.

        Raises:
            ServerError: the server refuses.
        """

    async def limit(self) -> int | None:
        """Return how many models the server keeps before it evicts by itself; None when it has no limit or does not tell.

        Raises:
            ServerError: the server does not answer, or not as expected.
        """
        return None

    @property
    def can_list(self) -> bool:
        """Whether the server can say what is resident. If not, what this plugin has done itself is believed."""
        return True

    def canonical(self, model: str) -> str:
        """Return a model's name as ``models`` has it."""
        return model

    # -- for derived classes --------------------------------------------------------------------------------------------

    async def call(
        self, method: str, path: str, body: object = None, *, params: Mapping[str, str] | None = None
    ) -> Any:
        """Make one call and return the answer's JSON, or its text when it is none.

        A call that fails because the server cannot be reached or is busy is tried three times; one that timed out is not.

        Raises:
            ServerError: it failed.
        """
        async for attempt in AsyncRetrying(
            stop=stop_after_attempt(3),
            wait=wait_random_exponential(multiplier=0.1, max=1.0),
            retry=retry_if_exception(_passes),
            sleep=self.clock.sleep,
            reraise=True,
        ):
            with attempt:
                return await self._once(method, path, body, params)
        raise AssertionError("unreachable")  # pragma: no cover  # tenacity re-raises

    async def until_ready(self, model: str) -> None:
        """Wait until ``models`` says that a model is resident.

        Raises:
            ServerError: it disappeared from the list, or cannot be read.
        """
        model = self.canonical(model)
        began = self.clock.monotonic()
        while True:
            listed = (await self.models()).get(model)
            if listed is None:
                raise ServerError(f"the server gave up loading {model!r}", Trouble.BROKEN)
            if not listed.loading and not listed.sleeping:
                return
            await self.clock.sleep(pause_s(self.clock.monotonic() - began))

    async def _once(self, method: str, path: str, body: object, params: Mapping[str, str] | None) -> Any:
        try:
            async with self.client.stream(method, self.url + path, json=body, params=params) as answer:
                raw = bytearray()
                async for chunk in answer.aiter_bytes():
                    raw += chunk
                    if len(raw) > MAX_ANSWER_BYTES:
                        raise ServerError(f"the answer is longer than {MAX_ANSWER_BYTES} bytes", Trouble.BROKEN)
                status = answer.status_code
        except (httpx.HTTPError, httpx.InvalidURL) as err:
            what = "did not answer in time" if isinstance(err, httpx.TimeoutException) else "cannot be reached"
            failure = ServerError(f"the server {what} ({type(err).__name__})", Trouble.UNREACHABLE)
            raise failure from err
        text = raw.decode(errors="replace")
        try:
            document: Any = json.loads(text)
        except (ValueError, RecursionError):
            document = text
        if status >= 400:  # noqa: PLR2004  # HTTP's errors
            message = message_of(document) or f"the server answered {status}"
            raise ServerError(message, trouble_of(status, message))
        return document


def pause_s(elapsed_s: float, longest_s: float = POLL_S) -> float:
    """Return the seconds before something that is waited for is looked at again.

    Args:
        elapsed_s: How long it has been waited for.
        longest_s: The longest pause.
    """
    return min(longest_s, max(QUICK_S, POLL_RATIO * elapsed_s))


def segment(text: str) -> str:
    """Return a name as one segment of a URL's path."""
    return quote(text, safe="")


def message_of(document: Any) -> str:
    """Return the message of an error's body, in one line."""
    if isinstance(document, Mapping):
        document = document.get("error", document.get("detail", document.get("message", "")))
        if isinstance(document, Mapping):
            document = document.get("message", "")
    return one_line(document[: 4 * MAX_MESSAGE_CHARS], MAX_MESSAGE_CHARS) if isinstance(document, str) else ""


def trouble_of(status: int, message: str) -> Trouble:
    """Return the kind of an error answer. Servers give 500 for most, so the message says more."""
    lower = message.lower()
    if any(word in lower for word in _OUT_OF_MEMORY):
        return Trouble.MEMORY
    if status == 404:  # noqa: PLR2004  # not found
        return Trouble.MISSING
    if status in {429, 503} or "limit reached" in lower:
        return Trouble.BUSY
    return Trouble.BROKEN


def mapping(value: Any, where: str) -> Mapping[str, Any]:
    """Return a JSON object.

    Raises:
        ServerError: it is something else.
    """
    if not isinstance(value, Mapping):
        raise ServerError(f"{where}: the answer is not a JSON object", Trouble.BROKEN)
    return value


def rows(value: Any, where: str) -> list[Mapping[str, Any]]:
    """Return a JSON list of objects.

    Raises:
        ServerError: it is something else.
    """
    if not isinstance(value, list):
        raise ServerError(f"{where}: the answer is not a list", Trouble.BROKEN)
    return [mapping(row, where) for row in value]


def _passes(error: BaseException) -> bool:
    if not isinstance(error, ServerError) or error.trouble not in PASSING:
        return False
    # After a time-out the server may still be at work.
    return not isinstance(error.__cause__, httpx.TimeoutException)


__all__ = [
    "PASSING",
    "QUICK_S",
    "Listed",
    "ModelServer",
    "ServerError",
    "Trouble",
    "mapping",
    "message_of",
    "pause_s",
    "rows",
    "segment",
    "trouble_of",
]
