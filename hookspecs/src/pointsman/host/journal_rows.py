"""Rows of the journal: settlements and the plugins that have not settled them yet, and how they stand in the store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol

from opentelemetry.trace import NonRecordingSpan, Span, SpanContext
from pydantic import TypeAdapter

from ..store.protocol import JSON
from ..types import RequestContext, Settlement
from .tracing import outgoing_headers, remote_span

if TYPE_CHECKING:
    from .hooks import Hooks

#: One hash tag for all rows: one step writes a row and removes others, and takes rows of other workers over.
ROW: Final = "{journal}/"
#: Where earlier releases wrote rows; they are only taken over.
FORMER_ROW: Final = "journal/"
#: Workers that may have rows in the store, so that recovery reads only the rows of dead workers; with their places.
OWNER: Final = "{journal}owner/"
WORKER: Final = "{journal}worker/"
#: Where earlier releases noted them.
FORMER_OWNER: Final = "owner/"
FORMER_WORKER: Final = "worker/"
#: What cannot be read, put aside so that it holds up nothing; with the rows' hash tag, since one step moves it.
ASIDE: Final = "{journal}aside/"
VERSION: Final = 1
#: How long a heartbeat is kept, in seconds.
HEARTBEAT_TTL_S: Final = 15.0
_SETTLEMENT: Final[TypeAdapter[Settlement]] = TypeAdapter(Settlement)
_PROVIDER_HEADERS: Final = {"attempts": {"__all__": {"headers"}}}


class Completing(Protocol):
    """A closed request whose settlement may be completed by what the gateway logs afterwards."""

    @property
    def awaits_cost(self) -> bool:
        """Whether something is still to be logged."""

    async def cost_known(self) -> None:
        """Wait until it has been."""

    @property
    def settlement(self) -> Settlement | None:
        """The settlement as known now."""


@dataclass(slots=True)
class Entry:
    """One settlement and the plugins that have not settled it yet.

    ``completing`` is None once the settlement is complete. ``request`` is the request's span, to link to; ``span`` is the
    settlement's own, in a trace of its own: the request's has ended.
    """

    ctx: RequestContext
    settlement: Settlement
    pending: list[str]
    request: SpanContext | None = None
    span: Span | None = None
    completing: Completing | None = None
    #: Those of the plugins that it is first settled with; None: the present ones.
    hooks: Hooks | None = None

    def complete(self, *, final: bool) -> bool:
        """Take up what has been logged; return whether the settlement has changed.

        Args:
            final: Do not wait for more.
        """
        if self.completing is None:
            return False
        latest = self.completing.settlement or self.settlement
        changed = latest != self.settlement
        self.settlement = latest
        if final or not self.completing.awaits_cost:
            self.completing = None
        return changed


@dataclass(slots=True)
class Row:
    """The settlements of one write to the journal."""

    key: str
    entries: list[Entry]
    tries: int = 0
    #: Whether it is in the store, and whether it may be, because its write had no answer.
    written: bool = False
    doubtful: bool = False
    #: Requests that plugins with a place of their own have settled, and that are not final yet, by plugin.
    settled: dict[str, list[str]] = field(default_factory=dict)


@dataclass(slots=True)
class Counts:
    """For the status page."""

    submitted: int = 0
    settled: int = 0
    retried: int = 0
    recovered: int = 0
    unjournaled: int = 0
    unreadable: int = 0


def restored_context(settlement: Settlement) -> RequestContext:
    """Return the request's context as far as a settlement remembers it: headers and body are never stored."""
    return RequestContext(
        request_id=settlement.request_id,
        call_id=settlement.call_id,
        endpoint=settlement.endpoint,
        model=settlement.model,
        stream=settlement.stream,
        identity=settlement.identity,
        received_at=settlement.started_at,
    )


def dump(entries: Sequence[Entry]) -> JSON:
    """Return a row's value. Provider headers stay out: they are large, and the journal needs none."""
    return {
        "v": VERSION,
        "entries": [
            {
                "pending": list(entry.pending),
                **({"trace": traced} if (traced := traceparent(entry.request)) else {}),
                "settlement": _SETTLEMENT.dump_python(
                    entry.settlement, mode="json", exclude_defaults=True, exclude=_PROVIDER_HEADERS
                ),
            }
            for entry in entries
        ],
    }


def parse(value: Any) -> tuple[list[Entry], list[JSON]]:
    """Read a row's value.

    Returns:
        The settlements, and those parts of the row that cannot be read.
    """
    items = value.get("entries") if isinstance(value, dict) and value.get("v") == VERSION else None
    if not isinstance(items, list):
        return [], [value]
    entries, unreadable = [], []
    for item in items:
        try:
            settlement = _SETTLEMENT.validate_python(item["settlement"])
            request = remote_span({"traceparent": str(item.get("trace", ""))})
            pending = [str(name) for name in item["pending"]]
            entries.append(Entry(restored_context(settlement), settlement, pending, request))
        except (ValueError, KeyError, TypeError, RecursionError):
            unreadable.append(item)
    return entries, unreadable


def places_of(value: JSON) -> Mapping[str, str]:
    """Return the places in a worker's record."""
    places = value.get("places") if isinstance(value, Mapping) else None
    return {str(plugin): str(place) for plugin, place in places.items()} if isinstance(places, Mapping) else {}


def owner_keys(worker: str) -> Sequence[str]:
    """Return the keys that exist as long as a worker lives, or anything of it is left to be settled."""
    return [prefix + worker for prefix in (OWNER, WORKER, FORMER_OWNER, FORMER_WORKER)]


def traceparent(span: SpanContext | None) -> str:
    """Return a span as the text that ``remote_span`` reads; empty for None."""
    return "" if span is None else outgoing_headers(NonRecordingSpan(span)).get("traceparent", "")
