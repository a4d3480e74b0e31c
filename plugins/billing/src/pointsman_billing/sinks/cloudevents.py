"""Events as CloudEvents 1.0 in the JSON batch format over HTTP, for example to OpenMeter.

CloudEvents 1.0.2, JSON Event Format, section 4 (batch). The receiver de-duplicates by ``source`` and ``id``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

from pydantic import Field, SecretStr

from pointsman_billing.events import BillEvent

from .base import SinkContext, SinkInfo
from .http import HttpPoster, HttpSinkConfig, rejected

_BATCH: Final = "application/cloudevents-batch+json"


class CloudEventsConfig(HttpSinkConfig):
    """The section of a ``cloudevents`` sink."""

    path: str = Field(
        default="/api/v1/events", pattern=r"^/[!-~]*$", description="Path to post to; the default is OpenMeter's."
    )
    token: SecretStr | None = Field(default=None, description="Bearer token, sent in the header 'Authorization'.")
    source: str = Field(
        default="pointsman",
        min_length=1,
        max_length=200,
        description="Source attribute of the events; use the same for all gateways.",
    )
    type_prefix: str = Field(
        default="pointsman.billing.",
        max_length=200,
        description="Prefix of the event types 'attempt' and 'request', which a meter can count.",
    )
    batch_events: int = Field(default=100, ge=1, le=10_000, description="Most events in one request.")


class CloudEventsSink:
    """Posts batches.

    Args:
        config: Its section.
        context: Not needed.
    """

    def __init__(self, config: CloudEventsConfig, context: SinkContext) -> None:
        del context
        self._config = config
        headers = {} if config.token is None else {"authorization": f"Bearer {config.token.get_secret_value()}"}
        self._poster = HttpPoster(str(config.url).rstrip("/") + config.path, headers, config)

    async def open(self) -> None:
        """Make the client."""
        await self._poster.open()

    async def send(self, batch: Sequence[BillEvent]) -> None:
        """Post the batch.

        Raises:
            SinkError: it was not taken.
        """
        answer = await self._poster.post(f"[{','.join(self._cloud_event(event) for event in batch)}]", _BATCH)
        if not answer.is_success:
            raise rejected(answer)

    def _cloud_event(self, event: BillEvent) -> str:
        time = datetime.fromtimestamp(event.at_ms / 1000, UTC).isoformat(timespec="milliseconds")
        head = json.dumps(
            {
                "specversion": "1.0",
                "id": event.id,
                "source": self._config.source,
                "type": f"{self._config.type_prefix}{event.type}",
                "subject": event.tenant,
                "time": time.replace("+00:00", "Z"),
                "datacontenttype": "application/json",
            },
            separators=(",", ":"),
        )
        return f'{head[:-1]},"data":{event.body}}}'

    async def close(self) -> None:
        """Close the connections."""
        await self._poster.close()


cloudevents = SinkInfo(config=CloudEventsConfig, factory=CloudEventsSink)
