"""Events to a Kafka topic: idempotent producer, keyed by tenant, confirmed by all in-sync replicas.

The value is the event's JSON text; the header ``id`` holds its id, for consumers that de-duplicate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from pydantic import Field, SecretStr, field_validator

from pointsman_billing.events import BillEvent

from .base import EventsRejected, SinkConfig, SinkContext, SinkInfo, SinkUnavailable, in_thread

if TYPE_CHECKING:
    from confluent_kafka import KafkaError, Producer

_OURS: Final = frozenset({"bootstrap.servers", "enable.idempotence", "acks", "delivery.timeout.ms"})
_FLUSH_MARGIN_S: Final = 1.0


class KafkaConfig(SinkConfig):
    """The section of a ``kafka`` sink."""

    bootstrap_servers: str = Field(min_length=1, max_length=4000, description="host:port, comma-separated.")
    topic: str = Field(
        default="pointsman-billing",
        pattern=r"^[A-Za-z0-9._-]{1,249}$",
        description="Topic that the events are produced to.",
    )
    options: Mapping[str, SecretStr] = Field(
        default={}, description="Further librdkafka settings, for example sasl.password; never shown."
    )

    @field_validator("options")
    @classmethod
    def _not_ours(cls, options: Mapping[str, SecretStr]) -> Mapping[str, SecretStr]:
        if taken := sorted(_OURS & options.keys()):
            raise ValueError(f"{taken[0]} is set by the sink itself and cannot be changed")
        return options


class _Reports:
    """The brokers' reports about each event of a batch."""

    def __init__(self) -> None:
        self.confirmed: set[str] = set()
        self.failures: dict[str, KafkaError] = {}

    def add(self, event_id: str, error: KafkaError | None, _message: object) -> None:
        """Add a report."""
        if error is None:
            self.confirmed.add(event_id)
        else:
            self.failures[event_id] = error

    def check(self, batch: Sequence[BillEvent], where: str) -> None:
        """Raise unless every event is confirmed.

        Args:
            batch: The events.
            where: The brokers, for the message.

        Raises:
            SinkError: as it says.
        """
        from confluent_kafka import KafkaError  # noqa: PLC0415 - an extra

        if len(self.confirmed) == len(batch):
            return
        names = ", ".join(sorted({error.name() for error in self.failures.values()}))
        hopeless = {KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.INVALID_MSG}
        at_fault = frozenset(id_ for id_, error in self.failures.items() if error.code() in hopeless)
        if at_fault and len(self.confirmed) + len(at_fault) == len(batch):
            raise EventsRejected(names, at_fault)
        raise SinkUnavailable(f"{where}: {names or 'no confirmation from the brokers in time'}")


class KafkaSink:
    """Produces batches.

    Args:
        config: Its section.
        context: Not needed.
    """

    def __init__(self, config: KafkaConfig, context: SinkContext) -> None:
        del context
        self._config = config
        self._producer: Producer | None = None

    async def open(self) -> None:
        """Make the producer; it connects by itself.

        Raises:
            SinkUnavailable: the settings are wrong.
        """
        if self._producer is None:
            self._producer = await in_thread(self._make)

    def _make(self) -> Producer:
        from confluent_kafka import KafkaException, Producer  # noqa: PLC0415 - an extra

        settings: dict[str, Any] = {name: value.get_secret_value() for name, value in self._config.options.items()}
        settings |= {
            "bootstrap.servers": self._config.bootstrap_servers,
            "enable.idempotence": True,
            "acks": "all",
            "delivery.timeout.ms": int(self._config.timeout_s * 1000),
            "linger.ms": settings.get("linger.ms", "5"),
            "client.id": settings.get("client.id", "pointsman-billing"),
            "log_level": settings.get("log_level", "2"),
        }
        settings.setdefault("request.timeout.ms", max(1, int(self._config.timeout_s * 1000) - 100))
        try:
            return Producer(settings)
        except KafkaException as err:
            raise SinkUnavailable(f"the settings are not accepted: {err.args[0].name()}") from None

    async def send(self, batch: Sequence[BillEvent]) -> None:
        """Produce the batch and wait for the brokers' report on every event.

        Raises:
            SinkError: not all of them were taken.
        """
        await self.open()
        await in_thread(lambda: self._send(batch))

    def _send(self, batch: Sequence[BillEvent]) -> None:
        assert self._producer is not None  # noqa: S101  # opened above
        reports = _Reports()
        for event in batch:
            self._produce(self._producer, event, reports)
        if self._producer.flush(self._config.timeout_s + _FLUSH_MARGIN_S):
            # Messages that are still in flight would arrive after the next batch.
            self._producer.purge()
            self._producer.flush(_FLUSH_MARGIN_S)
        if any(error.fatal() for error in reports.failures.values()):
            # An idempotent producer that has lost count must be created again.
            self._producer = None
        reports.check(batch, self._config.bootstrap_servers)

    def _produce(self, producer: Producer, event: BillEvent, reports: _Reports) -> None:
        from confluent_kafka import KafkaException  # noqa: PLC0415 - an extra

        try:
            producer.produce(
                self._config.topic,
                value=event.body.encode("ascii"),
                key=event.tenant.encode("utf-8"),
                headers=[("id", event.id.encode("ascii")), ("type", event.type.encode("ascii"))],
                timestamp=event.at_ms,
                on_delivery=partial(reports.add, event.id),
            )
        except BufferError:
            producer.flush(self._config.timeout_s)
            raise SinkUnavailable("the producer's queue is full") from None
        except KafkaException as err:
            reports.add(event.id, err.args[0], None)

    async def close(self) -> None:
        """Release the producer."""
        producer, self._producer = self._producer, None
        if producer is not None:
            await in_thread(lambda: producer.flush(_FLUSH_MARGIN_S))


kafka = SinkInfo(config=KafkaConfig, factory=KafkaSink, modules=("confluent_kafka",), extra="kafka")
