"""Asks webhooks: the gates of experiments. The only module that makes HTTP requests to the outside."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Final, Literal, Self

import httpx
from pydantic import BaseModel, StringConstraints, ValidationError
from tenacity import (
    AsyncRetrying,
    RetryError,
    retry_if_exception_type,
    stop_after_attempt,
    wait_random_exponential,
)

from . import views

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .config import Webhook
    from .rollout import Gate, Rollout

log: Final = logging.getLogger("pointsman.canary")

_FIRST_WAIT_S: Final = 0.2
_LONGEST_WAIT_S: Final = 2.0
_LONGEST_ANSWER_BYTES: Final = 65_536
_BUSY: Final = frozenset({408, 425, 429})


class _Busy(Exception):
    """The webhook may answer if asked again."""


class _Answer(BaseModel):
    verdict: Literal["go", "wait", "rollback"] = "go"
    reason: Annotated[str, StringConstraints(max_length=500)] = ""


@dataclass(frozen=True, slots=True)
class Ruling:
    """What a webhook has decided.

    Attributes:
        verdict: go, wait or rollback.
        reason: Why, one phrase.
    """

    verdict: Literal["go", "wait", "rollback"]
    reason: str


class Webhooks:
    """Asks webhooks; one connection pool for all of them.

    Args:
        webhooks: By name.
        http: Asks them.
    """

    def __init__(self, webhooks: Mapping[str, Webhook], http: httpx.AsyncClient) -> None:
        self._webhooks = webhooks
        self._http = http

    @classmethod
    async def open(cls, webhooks: Mapping[str, Webhook]) -> Self:
        """Return what asks them over the network."""
        if not any(webhook.url.startswith("https:") for webhook in webhooks.values()):
            return cls(webhooks, httpx.AsyncClient(verify=False))  # noqa: S501  # nothing is encrypted
        # Reads the certificates of the authorities, which takes 50 to 150 ms.
        return cls(webhooks, await asyncio.to_thread(httpx.AsyncClient))

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def ask(self, name: str, gate: Gate, rollout: Rollout) -> Ruling:
        """Ask one webhook; never raises. Takes at most ``attempts`` times ``timeout_s`` and the waits between."""
        webhook = self._webhooks.get(name)
        if webhook is None:
            return Ruling("wait", f"the configuration has no webhook {name!r}; define it in 'webhooks'")
        body = {
            "gate": gate,
            "experiment": rollout.name,
            "model": rollout.experiment.model,
            "run": rollout.run,
            "step": rollout.step,
            "weights_percent": rollout.weights_percent,
            "reason": rollout.reason,
            "analysis": views.findings(rollout.findings()),
        }
        headers = {key: value.get_secret_value() for key, value in webhook.headers.items()}
        # The same question has the same key, also when another worker asks it again after a crash.
        headers["idempotency-key"] = f"{rollout.name}/{rollout.tag}/{gate}"
        try:
            async for attempt in AsyncRetrying(
                stop=stop_after_attempt(webhook.attempts),
                wait=wait_random_exponential(multiplier=_FIRST_WAIT_S, max=_LONGEST_WAIT_S),
                retry=retry_if_exception_type((_Busy, httpx.TransportError, TimeoutError)),
            ):
                with attempt:
                    return _ruling(await self._post(webhook, body, headers), webhook)
        except RetryError as err:
            cause = err.last_attempt.exception()
            why = f"no answer after {webhook.attempts} attempts: {str(cause) or type(cause).__name__}"
        except (httpx.HTTPError, httpx.InvalidURL) as err:
            why = f"{type(err).__name__}: {err}"
        log.warning("webhook %r of %r: %s; its default %r counts", name, rollout.name, why, webhook.default)
        return Ruling(webhook.default, f"default of the webhook: {why}")

    async def _post(self, webhook: Webhook, body: Mapping[str, object], headers: Mapping[str, str]) -> httpx.Response:
        # httpx bounds each part of an exchange; timeout_s bounds the whole answer.
        async with asyncio.timeout(webhook.timeout_s):
            answer = await self._http.post(webhook.url, json=body, headers=headers, timeout=webhook.timeout_s)
        if answer.is_server_error or answer.status_code in _BUSY:
            raise _Busy(f"status {answer.status_code}")
        return answer


def _ruling(answer: httpx.Response, webhook: Webhook) -> Ruling:
    if not answer.is_success:
        return Ruling(webhook.default, f"default of the webhook: it answered {answer.status_code}")
    if not answer.content:
        return Ruling("go", f"answered {answer.status_code}")
    try:
        answered = _Answer.model_validate_json(answer.content[:_LONGEST_ANSWER_BYTES])
    except ValidationError:
        return Ruling(webhook.default, "default of the webhook: its answer is not a verdict")
    return Ruling(answered.verdict, answered.reason or f"answered {answer.status_code}")
