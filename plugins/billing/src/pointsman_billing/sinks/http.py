"""What the HTTP sinks share: a POST request and the meaning of its response."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Final

import httpx
from pydantic import AnyHttpUrl, Field, field_validator

from pointsman.text import one_line

from .base import EventsKnown, EventsRejected, SinkConfig, SinkUnavailable

#: The events themselves are invalid: sending them again would not help.
REJECTIONS: Final = frozenset(
    {
        HTTPStatus.BAD_REQUEST,
        HTTPStatus.CONFLICT,
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        HTTPStatus.UNPROCESSABLE_ENTITY,
    }
)
_SHOWN_CHARS: Final = 200
_MOST_ANSWER_BYTES: Final = 1_000_000


class HttpSinkConfig(SinkConfig):
    """The keys that every HTTP sink has."""

    url: AnyHttpUrl = Field(description="Base URL of the service.")
    verify_tls: bool = Field(default=True, description="false accepts any certificate; for tests only.")

    @field_validator("url")
    @classmethod
    def _no_credentials(cls, url: AnyHttpUrl) -> AnyHttpUrl:
        if url.username or url.password or url.query or url.fragment:
            raise ValueError("must contain neither credentials nor a query; secrets have keys of their own")
        return url


class HttpPoster:
    """Posts to one address.

    Args:
        url: The address.
        headers: Sent with every request; they may hold secrets and are never shown.
        config: Time limit and TLS.
    """

    def __init__(self, url: str, headers: Mapping[str, str], config: HttpSinkConfig) -> None:
        self._url = url
        # A path may hold what is secret.
        self._place = str(httpx.URL(url).copy_with(userinfo=b"", raw_path=b"")).rstrip("/")
        self._headers = dict(headers)
        self._config = config
        self._client: httpx.AsyncClient | None = None

    async def open(self) -> None:
        """Make the client."""
        if self._client is None:
            # It reads the certificates of the authorities, which takes 50 to 150 ms.
            self._client = await asyncio.to_thread(
                httpx.AsyncClient,
                headers=self._headers,
                timeout=self._config.timeout_s,
                verify=self._config.verify_tls,
            )

    async def close(self) -> None:
        """Close the connections."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    async def post(self, body: str, content_type: str) -> httpx.Response:
        """Post a body; return the answer if it is a success or a rejection.

        Raises:
            SinkUnavailable: there was no response in time, or one that does not reject the events.
        """
        await self.open()
        assert self._client is not None  # noqa: S101  # just opened
        try:
            answer = await self._client.post(
                self._url, content=body.encode("utf-8"), headers={"content-type": content_type}
            )
        except httpx.TimeoutException:
            raise SinkUnavailable(f"{self._place}: no answer within {self._config.timeout_s:g} s") from None
        except httpx.HTTPError as err:
            # Its text may repeat the URL, path and all.
            raise SinkUnavailable(f"{self._place}: the connection failed: {type(err).__name__}") from None
        if answer.is_success or answer.status_code in REJECTIONS:
            return answer
        raise SinkUnavailable(f"{self._place}: HTTP {answer.status_code}", _retry_after_s(answer))


def rejected(answer: httpx.Response, ids: frozenset[str] = frozenset()) -> EventsRejected:
    """Return the error for an answer that rejects events, or (409) says that it has some of them already."""
    kind = EventsKnown if answer.status_code == HTTPStatus.CONFLICT else EventsRejected
    return kind(f"HTTP {answer.status_code}: {shown(answer)}", ids)


def shown(answer: httpx.Response) -> str:
    """Return the beginning of a response on one line, without control characters."""
    return one_line(answer.text, _SHOWN_CHARS)


def answer_json(answer: httpx.Response) -> Mapping[str, object]:
    """Return a response's JSON object; empty if it is something else."""
    if len(answer.content) > _MOST_ANSWER_BYTES:
        return {}
    try:
        value = json.loads(answer.content)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _retry_after_s(answer: httpx.Response) -> float | None:
    text = answer.headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:6])
    try:
        date = parsedate_to_datetime(answer.headers.get("date", ""))
        return max(0.0, (parsedate_to_datetime(text) - date).total_seconds())
    except (TypeError, ValueError):
        return None
