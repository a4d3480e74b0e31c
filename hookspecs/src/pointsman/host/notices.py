"""Notices for operators: breakers, exhaustion, rollouts, gates, limits, dead letters; as log lines and to webhooks."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import httpx
from pydantic import Field, SecretStr, StringConstraints, field_validator
from tenacity import (
    AsyncRetrying,
    RetryError,
    retry_if_exception_type,
    stop_after_attempt,
    wait_random_exponential,
)

from .. import __version__
from ..config import Section
from ..errors import StoreError
from ..events import BreakerChanged, Level, Notice, RolloutChanged
from ..text import one_line

if TYPE_CHECKING:
    from ..plugin import Clock
    from ..store.protocol import StateStore
    from ..types import Event
    from .counters import Counter
    from .runtime import TaskGroup

log: Final = logging.getLogger("pointsman")

#: Notices that wait for one webhook; the oldest go first.
MOST_WAITING: Final = 200
#: Within this time, in seconds, the same notice is sent once, by one of the workers.
ONCE_S: Final = 60.0
_MOST_CHARS: Final = 500
_FIRST_WAIT_S: Final = 0.5
_LONGEST_WAIT_S: Final = 30.0
_BUSY: Final = frozenset({408, 425, 429})
_LEVELS: Final[Mapping[str, int]] = {"info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


class NotifyConfig(Section):
    """A webhook that gets notices: ``POST`` of JSON. Only the configuration names addresses; redirects are not followed."""

    url: SecretStr = Field(description="URL, http:// or https://; never shown, since a chat's webhook is a secret.")
    format: Literal["json", "slack"] = Field(
        default="json", description="Form of the body: 'json' has all fields, 'slack' is Slack's incoming webhook."
    )
    kinds: tuple[Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,63}$")], ...] = Field(
        default=(),
        max_length=100,
        description="Kinds to send: breaker, exhausted, rollout, gate, limit, dead_letters, and those of other plugins; empty "
        "sends all.",
    )
    level: Level = Field(default="info", description="Least level to send: 'info', 'warning' or 'error'.")
    headers: dict[str, SecretStr] = Field(
        default={}, description="Request headers; their values are never shown or stored."
    )
    timeout_s: float = Field(default=10.0, gt=0, le=60, description="Timeout of one attempt, in seconds.")
    attempts: int = Field(default=5, ge=1, le=20, description="Attempts before a notice is given up, and logged.")

    @field_validator("url")
    @classmethod
    def _http(cls, url: SecretStr) -> SecretStr:
        text = url.get_secret_value()
        try:
            parsed = httpx.URL(text)
        except (httpx.InvalidURL, UnicodeError):
            raise ValueError("is not a URL") from None
        if parsed.scheme not in {"http", "https"} or not parsed.host or len(text) > 2048:  # noqa: PLR2004  # usual limit
            raise ValueError("must begin with http:// or https:// and name a host")
        return url

    def wants(self, notice: Notice) -> bool:
        """Return whether a notice is sent there."""
        return _LEVELS[notice.level] >= _LEVELS[self.level] and (not self.kinds or notice.kind in self.kinds)


def notice_of(event: Event, now: float) -> Notice | None:
    """Return the notice that an event is or means, or None.

    Args:
        event: The event.
        now: Unix seconds, for events without a time.
    """
    if isinstance(event, Notice):
        return event
    if isinstance(event, BreakerChanged):
        until = f" until {_clock(event.until)}" if event.until is not None and event.state == "open" else ""
        why = f": {event.reason}" if event.reason else ""
        return Notice(
            source=event.source,
            kind="breaker",
            subject=f"{event.group}/{event.deployment_id}",
            text=f"the breaker of {event.deployment_id} in {event.group} is {event.state.replace('_', '-')}{until}{why}",
            level="warning" if event.state == "open" else "info",
            at=now,
        )
    if isinstance(event, RolloutChanged):
        shares = ", ".join(f"{arm} {percent:g} %" for arm, percent in sorted(event.weights_percent.items()))
        return Notice(
            source=event.source,
            kind="rollout",
            subject=event.experiment,
            text=f"{event.experiment} of {event.model}: {event.what.replace('_', ' ')} by {event.who}, now {event.phase}"
            f"{f' at {shares}' if shares else ''}: {event.reason or 'no reason given'}",
            level="error" if event.phase == "rolled_back" else "info",
            at=event.at,
            logged=True,
        )
    return None


def body_of(notice: Notice, form: Literal["json", "slack"], worker: str) -> dict[str, Any]:
    """Return the JSON that a webhook gets."""
    text = one_line(notice.text, _MOST_CHARS)
    if form == "slack":
        mark = {"error": ":red_circle:", "warning": ":large_yellow_circle:", "info": ":large_blue_circle:"}[
            notice.level
        ]
        # Slack's three control characters: a name must not become a link or a mention.
        safe = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        return {"text": f"{mark} *{notice.kind}* {safe} ({_clock(notice.at)})"}
    return {
        "kind": notice.kind,
        "level": notice.level,
        "subject": one_line(notice.subject, _MOST_CHARS),
        "text": text,
        "at": notice.at,
        "plugin": notice.source,
        "worker": worker,
        "version": __version__,
    }


class Notices:
    """Logs notices, and sends them to the webhooks of the configuration.

    Args:
        webhooks: The configuration's ``notify``.
        clock: Time.
        worker: This worker's name.
        counter: Counts notices by plugin and kind.
        transport: Sends the requests; None: the network.
    """

    def __init__(
        self,
        webhooks: Sequence[NotifyConfig],
        *,
        clock: Clock,
        worker: str,
        counter: Counter,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._clock = clock
        self._worker = worker
        self._counter = counter
        self._queues = [_Queue(webhook, self._attempt) for webhook in webhooks]
        self._transport = transport
        self._store: StateStore | None = None
        self._http: httpx.AsyncClient | None = None
        self._heard: dict[str, float] = {}
        self.sent = 0
        self.lost = 0

    async def start(self, store: StateStore, tasks: TaskGroup) -> None:
        """Begin to send.

        Args:
            store: The host's part of the store, in which workers agree on which of them sends.
            tasks: Where the background work runs.
        """
        self._store = store
        if self._queues:
            # Reads the certificates of the authorities, which takes 50 to 150 ms.
            self._http = await asyncio.to_thread(httpx.AsyncClient, transport=self._transport, follow_redirects=False)
        for number, queue in enumerate(self._queues):
            tasks.forever(queue.run, name=f"notify {number + 1}")

    async def close(self) -> None:
        """Close the connections; what still waits is lost."""
        if self._http is not None:
            await self._http.aclose()

    async def hear(self, event: Event) -> None:
        """Log and send what an event means to an operator."""
        notice = notice_of(event, self._clock.now())
        if notice is None:
            return
        self._counter.add((notice.source, notice.kind))
        if not notice.logged:
            log.log(_LEVELS[notice.level], "%s: %s", notice.kind, one_line(notice.text, _MOST_CHARS))
        wanted = [queue for queue in self._queues if queue.webhook.wants(notice)]
        if wanted and await self._first(notice):
            for queue in wanted:
                self.lost += queue.put(notice)

    async def _first(self, notice: Notice) -> bool:
        """Return whether no worker has sent this within the last minute."""
        digest = hashlib.sha256(f"{notice.kind}\0{notice.subject}\0{notice.text}".encode()).hexdigest()[:32]
        now = self._clock.monotonic()
        self._heard = {key: at for key, at in self._heard.items() if now - at < ONCE_S}
        if digest in self._heard:
            return False
        self._heard[digest] = now
        if self._store is None:
            return True
        try:
            return await self._store.compare_and_set(f"notice/{digest}", None, self._worker, ttl_s=ONCE_S)
        except StoreError:
            return True  # twice is better than never

    async def _attempt(self, webhook: NotifyConfig, notice: Notice) -> None:
        assert self._http is not None  # noqa: S101  # queues run only after the start
        body = body_of(notice, webhook.format, self._worker)
        headers = {name: value.get_secret_value() for name, value in webhook.headers.items()}
        try:
            async for attempt in AsyncRetrying(
                stop=stop_after_attempt(webhook.attempts),
                wait=wait_random_exponential(multiplier=_FIRST_WAIT_S, max=_LONGEST_WAIT_S),
                retry=retry_if_exception_type((_Busy, httpx.TransportError, TimeoutError)),
                sleep=self._clock.sleep,
            ):
                with attempt:
                    await self._post(webhook, body, headers)
            self.sent += 1
        except RetryError as err:
            cause = err.last_attempt.exception()
            self._given_up(webhook, notice, str(cause) or type(cause).__name__)
        except _RefusedError as err:
            self._given_up(webhook, notice, str(err))

    async def _post(self, webhook: NotifyConfig, body: Mapping[str, Any], headers: Mapping[str, str]) -> None:
        assert self._http is not None  # noqa: S101  # as above
        # httpx bounds each part of an exchange; timeout_s bounds the whole answer.
        async with asyncio.timeout(webhook.timeout_s):
            url = webhook.url.get_secret_value()
            answer = await self._http.post(url, json=body, headers=headers, timeout=webhook.timeout_s)
        if answer.is_server_error or answer.status_code in _BUSY:
            raise _Busy(f"status {answer.status_code}")
        if not answer.is_success:
            raise _RefusedError(f"status {answer.status_code}")

    def _given_up(self, webhook: NotifyConfig, notice: Notice, why: str) -> None:
        self.lost += 1
        # Neither path nor query: they are a chat's secret.
        host = httpx.URL(webhook.url.get_secret_value()).host
        log.error(
            "notify: the webhook at %s did not take a notice of kind %s: %s", host, notice.kind, one_line(why, 200)
        )


class _Busy(Exception):
    """The webhook may take it later."""


class _RefusedError(Exception):
    """The webhook will not take it."""


class _Queue:
    """What waits for one webhook, in order."""

    def __init__(self, webhook: NotifyConfig, send: Callable[[NotifyConfig, Notice], Any]) -> None:
        self.webhook = webhook
        self._send = send
        self._waiting: deque[Notice] = deque()
        self._wake = asyncio.Event()

    def put(self, notice: Notice) -> int:
        """Add a notice; return how many were dropped for it."""
        dropped = 0
        if len(self._waiting) >= MOST_WAITING:
            self._waiting.popleft()
            dropped = 1
        self._waiting.append(notice)
        self._wake.set()
        return dropped

    async def run(self) -> None:
        """Send until cancelled."""
        while True:
            while self._waiting:
                await self._send(self.webhook, self._waiting.popleft())
            self._wake.clear()
            await self._wake.wait()


def _clock(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%H:%M:%SZ")
