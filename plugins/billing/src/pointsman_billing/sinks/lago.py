"""Events to Lago's batch endpoint (``POST /api/v1/events/batch``, at most 100 events).

Lago takes a batch as a whole or not at all, and de-duplicates by ``transaction_id``: where it says that an event exists
already, that event counts as delivered and the others are sent again without it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Final

import httpx
from pydantic import Field, SecretStr

from pointsman_billing.events import BillEvent

from .base import SinkContext, SinkInfo
from .http import HttpPoster, HttpSinkConfig, answer_json, rejected

_EXISTS: Final = "value_already_exist"
_JSON: Final = "application/json"


class LagoConfig(HttpSinkConfig):
    """The section of a ``lago`` sink."""

    api_key: SecretStr = Field(description="Lago's API key.")
    code: str = Field(
        default="pointsman_",
        max_length=200,
        description="Prefix of 'attempt' and 'request' in the codes of the billable metrics.",
    )
    subscriptions: Mapping[str, str] = Field(
        default={}, description="Tenant to Lago's external_subscription_id; other tenants use their own name."
    )
    batch_events: int = Field(default=100, ge=1, le=100, description="Most events in one request.")


class LagoSink:
    """Posts batches.

    Args:
        config: Its section.
        context: Not needed.
    """

    def __init__(self, config: LagoConfig, context: SinkContext) -> None:
        del context
        self._config = config
        headers = {"authorization": f"Bearer {config.api_key.get_secret_value()}"}
        self._poster = HttpPoster(str(config.url).rstrip("/") + "/api/v1/events/batch", headers, config)

    async def open(self) -> None:
        """Make the client."""
        await self._poster.open()

    async def send(self, batch: Sequence[BillEvent]) -> None:
        """Post the batch; again without what Lago has already.

        Raises:
            SinkError: it was not taken.
        """
        left = list(batch)
        while left:
            answer = await self._poster.post(json.dumps({"events": [self._lago_event(e) for e in left]}), _JSON)
            if answer.is_success:
                return
            known, wrong = _errors(answer, left)
            if wrong or not known:
                raise rejected(answer, wrong)
            left = [event for event in left if event.id not in known]

    def _lago_event(self, event: BillEvent) -> dict[str, object]:
        return {
            "transaction_id": event.id,
            "external_subscription_id": self._config.subscriptions.get(event.tenant, event.tenant),
            "code": f"{self._config.code}{event.type}",
            "timestamp": f"{event.at_ms // 1000}.{event.at_ms % 1000:03d}",
            "properties": {k: v for k, v in json.loads(event.body).items() if k != "prices"},
        }

    async def close(self) -> None:
        """Close the connections."""
        await self._poster.close()


def _errors(answer: httpx.Response, batch: Sequence[BillEvent]) -> tuple[frozenset[str], frozenset[str]]:
    """Return the ids that Lago has already, and those that it will never take.

    ``error_details`` maps the position in the batch to what is wrong; for a single event Lago may leave it out.
    """
    details = answer_json(answer).get("error_details")
    if not isinstance(details, Mapping):
        return frozenset(), frozenset()
    by_position = {position: why for position, why in details.items() if str(position).isdigit()}
    if not by_position:
        by_position = {"0": details} if len(batch) == 1 else {}
    known: set[str] = set()
    wrong: set[str] = set()
    for position, why in by_position.items():
        if int(position) < len(batch):
            is_known = isinstance(why, Mapping) and set(why) == {"transaction_id"} and _EXISTS in str(why)
            (known if is_known else wrong).add(batch[int(position)].id)
    return frozenset(known), frozenset(wrong)


lago = SinkInfo(config=LagoConfig, factory=LagoSink)
