"""The admin routes."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Final, TypeVar
from zoneinfo import ZoneInfo

from pydantic import Field, StringConstraints
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from pointsman.admin import Input, read_body
from pointsman.errors import AdminError, InvalidInput, NotFound
from pointsman.text import printable

from .aggregates import Span
from .errors import OutboxUnavailable
from .focus import focus
from .reports import in_order
from .views import GROUPS, PERIODS, Question, as_csv, report

if TYPE_CHECKING:
    from pointsman.plugin import Clock

    from .aggregates import SharedAggregates
    from .outbox import Outbox
    from .reports import Reports

T = TypeVar("T")

_MOST_IDS: Final = 10_000
_DEFAULT_DAYS: Final = 31
_DAY_S: Final = 86_400
_LATEST_S: Final = 10**11
_DEFAULT_LIMIT: Final = 100
_MOST_ROWS: Final = 10_000
_SHOWN_CHARS: Final = 200


class Redrive(Input):
    """``POST /dead/redrive``: what to deliver again; without names everything.

    Attributes:
        sink: The sink; None: all of them.
        ids: The events.
    """

    sink: str | None = None
    ids: tuple[Annotated[str, StringConstraints(pattern="^[0-9A-Za-z]{1,64}$")], ...] = Field((), max_length=_MOST_IDS)


class Unavailable(AdminError):
    """The outbox cannot be read or written now."""

    status = 503
    code = "outbox_unavailable"


class AdminRoutes:
    """``/usage``, ``/reconcile``, ``/sinks``, ``/dead``, ``/dead/redrive``, ``/requests/{id}``.

    Args:
        outbox: For what changes something.
        reports: For what only reads.
        shared: The other machines.
        machine: This machine's outbox.
        sinks: The names of the configuration's sinks.
        clock: Time.
        zone: The time zone of days and months.
        redriven: Called when dead letters are to be delivered again.
    """

    def __init__(
        self,
        *,
        outbox: Outbox,
        reports: Reports,
        shared: SharedAggregates,
        machine: str,
        sinks: tuple[str, ...],
        clock: Clock,
        zone: ZoneInfo,
        redriven: Callable[[], None],
    ) -> None:
        self._outbox = outbox
        self._reports = reports
        self._shared = shared
        self._machine = machine
        self._sinks = sinks
        self._clock = clock
        self._zone = zone
        self._redriven = redriven

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            Route("/usage", self._usage, methods=["GET"]),
            Route("/reconcile", self._reconcile, methods=["GET"]),
            Route("/sinks", self._show_sinks, methods=["GET"]),
            Route("/dead", self._dead, methods=["GET"]),
            Route("/dead/redrive", self._redrive, methods=["POST"]),
            Route("/requests/{id:path}", self._request, methods=["GET"]),
        ]

    async def _usage(self, request: Request) -> Response:
        query = _query(request, {"tenant", "model", "from", "to", "group_by", "period", "format", "timezone"})
        span = self._span(query)
        form = _one_of("format", query.get("format", "json"), ("json", "csv", "focus"))
        question = Question(
            tenant=query.get("tenant"),
            model=query.get("model"),
            group_by=GROUPS if form == "focus" else _dimensions(query.get("group_by")),
            period=_one_of("period", query.get("period", "day"), PERIODS[:-1] if form == "focus" else PERIODS),
        )
        zone = self._zone_of(query)
        usage = await self._read(lambda: self._reports.usage(span))
        usage += await self._shared.others_rows(span)
        rows = report(usage, question, zone)
        if form == "focus":
            return Response(as_csv(focus(rows, question.period, zone)), media_type="text/csv")
        if form == "csv":
            return Response(as_csv(rows), media_type="text/csv")
        return JSONResponse(
            {
                "from": span.from_s,
                "to": span.to_s,
                "timezone": str(zone),
                "period": question.period,
                "group_by": list(question.group_by),
                "usage": rows,
            }
        )

    async def _reconcile(self, request: Request) -> JSONResponse:
        span = self._span(_query(request, {"from", "to"}))
        found = await self._read(lambda: self._reports.reconcile(span))
        others = await self._shared.others()
        return JSONResponse({"machine": self._machine, "in_order": in_order(found), **found, "other_machines": others})

    async def _show_sinks(self, _request: Request) -> JSONResponse:
        return JSONResponse({"machine": self._machine, "sinks": await self._read(self._reports.sinks)})

    async def _dead(self, request: Request) -> JSONResponse:
        query = _query(request, {"sink", "limit"})
        limit = _whole("limit", query.get("limit"), _DEFAULT_LIMIT, 1, _MOST_ROWS)
        return JSONResponse(await self._read(lambda: self._reports.dead(query.get("sink"), limit)))

    async def _redrive(self, request: Request) -> JSONResponse:
        wanted = await read_body(Redrive, request)
        if wanted.sink is not None and wanted.sink not in self._sinks:
            known = ", ".join(self._sinks) or "none: there are no sinks"
            raise InvalidInput(f"sink: must be one of {known}", param="sink")
        count = await self._write(list(wanted.ids), wanted.sink)
        self._redriven()
        return JSONResponse({"redriven": count})

    async def _write(self, ids: list[str], sink: str | None) -> int:
        try:
            return await self._outbox.write(lambda db: db.redrive(sink, ids))
        except OutboxUnavailable as err:
            raise Unavailable(str(err)) from err

    async def _request(self, request: Request) -> JSONResponse:
        request_id = request.path_params["id"]
        if "\0" in request_id or not _is_text(request_id):
            raise NotFound("there is no request with this id", param="id")
        found = await self._read(lambda: self._reports.request(request_id))
        if found is None:
            raise NotFound(
                "there is no record of this request here: it is not settled yet, was settled by another machine, or is older "
                "than outbox.retention_days",
                param="id",
            )
        return JSONResponse(found)

    async def _read(self, work: Callable[[], T]) -> T:
        try:
            return await asyncio.to_thread(work)
        except OutboxUnavailable as err:
            raise Unavailable(str(err)) from err

    def _span(self, query: Mapping[str, str]) -> Span:
        now, zone = int(self._clock.now()), self._zone_of(query)
        to_s = _time("to", query.get("to"), now + _DAY_S, zone)
        from_s = _time("from", query.get("from"), min(now, to_s) - _DEFAULT_DAYS * _DAY_S, zone)
        if from_s >= to_s:
            raise InvalidInput("must be before 'to'", param="from")
        return Span(from_s, to_s)

    def _zone_of(self, query: Mapping[str, str]) -> ZoneInfo:
        name = query.get("timezone")
        if name is None:
            return self._zone
        try:
            return ZoneInfo(name)
        except (LookupError, ValueError, OSError):
            raise InvalidInput("is not an IANA time zone, for example Europe/Berlin", param="timezone") from None


def _query(request: Request, known: set[str]) -> dict[str, str]:
    """Return the query's parameters.

    Raises:
        InvalidInput: one is unknown, or is not valid text.
    """
    query = {name: value for name, value in request.query_params.items() if value != ""}
    for name, value in query.items():
        if name not in known:
            raise InvalidInput(
                f"unknown parameter; allowed: {', '.join(sorted(known))}", param=printable(name, _SHOWN_CHARS)
            )
        if "\0" in value or not _is_text(value):
            raise InvalidInput("is not valid text", param=name)
    return query


def _is_text(value: str) -> bool:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _time(name: str, text: str | None, default: int, zone: ZoneInfo) -> int:
    """Return a time in Unix seconds, given as such or as ISO 8601 (in ``zone`` unless it says otherwise).

    Raises:
        InvalidInput: it is neither.
    """
    if text is None:
        return default
    try:
        seconds = float(text)
    except ValueError:
        try:
            # An unescaped plus sign arrives as a space.
            at = datetime.fromisoformat(text.replace(" ", "+") if "T" in text else text)
            seconds = (at if at.tzinfo else at.replace(tzinfo=zone)).timestamp()
        except (ValueError, OverflowError):
            raise InvalidInput("must be Unix seconds or an ISO 8601 date, for example 2026-01-31", param=name) from None
    if not (math.isfinite(seconds) and 0 <= seconds <= _LATEST_S):
        raise InvalidInput("is out of range", param=name)
    return int(seconds)


def _dimensions(text: str | None) -> tuple[str, ...]:
    names = tuple(name.strip() for name in ("tenant,model" if text is None else text).split(","))
    if names == ("none",):
        return ()
    for name in names:
        _one_of("group_by", name, GROUPS)
    return tuple(dict.fromkeys(names))


def _one_of(param: str, value: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise InvalidInput(f"must be one of {', '.join(allowed)}", param=param)
    return value


def _whole(param: str, text: str | None, default: int, least: int, most: int) -> int:
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(most)) and least <= int(text) <= most):
        raise InvalidInput(f"must be a whole number from {least} to {most}", param=param)
    return int(text)
