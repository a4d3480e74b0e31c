"""The requests that a worker has finished last: why each went where it went, without prompts, answers, headers or keys."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, Final

from ..frozen import quick
from ..text import one_line
from ..types import Attempt, AttemptKind, Candidate, Denial, Outcome, Route, Settlement
from .decisions import Decision
from .metrics import result_of

#: The longest text of a line.
_MOST_CHARS: Final = 300
#: Candidates that a line names.
_MOST_NAMED: Final = 6
#: Attempts that are explained one by one.
_MOST_ATTEMPTS: Final = 6
#: Responses on a websocket that are told one by one, and other requests of a trace that are named.
_MOST_RELATED: Final = 4
#: A pause that is shorter is not told, in milliseconds.
_LEAST_WAIT_MS: Final = 10.0
_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")


@quick
@dataclass(frozen=True, slots=True)
class Record:
    """One request that has ended.

    Attributes:
        settlement: What became of it.
        decisions: What was decided, in order.
        trace_id: Of its trace, or None when there is none.
        own: Whether it is a plugin's own call.
        parent_id: Of the client's request that an own call was made for, or None.
        unknown_model: Whether no deployment can serve its model.
    """

    settlement: Settlement
    decisions: Sequence[Decision]
    trace_id: str | None = None
    own: bool = False
    parent_id: str | None = None
    unknown_model: bool = False


@dataclass(frozen=True, slots=True)
class NotAdmitted:
    """One request that was never admitted: its key was refused, or no plugin is asked about its route.

    Attributes:
        request_id: Our id of it.
        trace_id: Of its trace, or None when there is none.
        method: The HTTP method.
        path: The path.
        at: When it ended, in Unix seconds.
        outcome: How it ended.
        status: The HTTP status that the client got; 0 when it got none.
        tenant: The caller's, as far as it is known.
        denial: Which of us denied it, and why; None when the gateway did.
        error_type: The type of the gateway's error; empty when it is not known.
    """

    request_id: str
    trace_id: str | None
    method: str
    path: str
    at: float
    outcome: Outcome
    status: int
    tenant: str | None = None
    denial: Denial | None = None
    error_type: str = ""


class Recent:
    """Keeps the last requests of one worker.

    Args:
        capacity: How many; 0 keeps none. As many that were not admitted: clients without a key displace no others.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._records: OrderedDict[str, Record] = OrderedDict()
        self._not_admitted: OrderedDict[str, NotAdmitted] = OrderedDict()

    def __len__(self) -> int:
        return len(self._records)

    def keep(self, record: Record) -> None:
        """Keep a request that has ended, in place of the oldest one."""
        if not self.capacity:
            return
        self._records[record.settlement.request_id] = record
        while len(self._records) > self.capacity:
            self._records.popitem(last=False)

    def keep_not_admitted(self, ended: NotAdmitted) -> None:
        """Keep a request that was never admitted, in place of the oldest of these."""
        if not self.capacity:
            return
        self._not_admitted[ended.request_id] = ended
        while len(self._not_admitted) > self.capacity:
            self._not_admitted.popitem(last=False)

    def find(self, request_id: str) -> Record | NotAdmitted | None:
        """Return a request by our id, by LiteLLM's call id or by its trace's, or None.

        Of several in one trace it is the latest, and a websocket rather than a response on it. While a websocket is open, its id
        finds the latest response on it.
        """
        found = self._records.get(request_id) or self._not_admitted.get(request_id)
        if found is not None or not _ID.fullmatch(request_id):
            return found
        named = [r for r in reversed(self._records.values()) if request_id in {r.settlement.call_id, r.trace_id}]
        whole = [r for r in named if r.settlement.within is None]
        passed = (one for one in reversed(self._not_admitted.values()) if one.trace_id == request_id)
        on_it = (r for r in reversed(self._records.values()) if r.settlement.within == request_id)
        every: Iterator[Record | NotAdmitted] = chain(whole, passed, named, on_it)
        return next(every, None)

    def related(self, record: Record | NotAdmitted) -> list[Record | NotAdmitted]:
        """Return what else belongs to a request, in the order of its end.

        These are the other requests of the same trace, the responses on a websocket, and calls that plugins made for it.
        """
        every: list[Record | NotAdmitted] = [*self._records.values(), *self._not_admitted.values()]
        trace_id, request_id = record.trace_id, _id_of(record)
        return sorted(
            (
                other
                for other in every
                if other is not record
                and (
                    (trace_id is not None and other.trace_id == trace_id)
                    or request_id in {_socket_of(other), _parent_of(other)}
                )
            ),
            key=_ended_at,
        )

    def latest(self, count: int) -> list[Record | NotAdmitted]:
        """Return the latest requests, newest first."""
        both: list[Record | NotAdmitted] = [*islice(reversed(self._records.values()), count)]
        both += islice(reversed(self._not_admitted.values()), count)
        return sorted(both, key=_ended_at, reverse=True)[:count]


def _id_of(record: Record | NotAdmitted) -> str:
    return record.request_id if isinstance(record, NotAdmitted) else record.settlement.request_id


def _socket_of(record: Record | NotAdmitted) -> str | None:
    """Return the id of the request that opened the websocket of a response; None for any other."""
    return None if isinstance(record, NotAdmitted) else record.settlement.within


def _parent_of(record: Record | NotAdmitted) -> str | None:
    """Return the id of the client's request that an own call was made for; None for any other."""
    return None if isinstance(record, NotAdmitted) else record.parent_id


def _ended_at(record: Record | NotAdmitted) -> float:
    return record.at if isinstance(record, NotAdmitted) else record.settlement.finished_at


def summary(record: Record | NotAdmitted) -> dict[str, Any]:
    """Return one request in a row, as JSON."""
    if isinstance(record, NotAdmitted):
        return {
            "request_id": record.request_id,
            "call_id": None,
            "trace_id": record.trace_id,
            "own": False,
            "at": record.at,
            "endpoint": None,
            "path": record.path,
            "model": None,
            "tenant": record.tenant,
            "stream": None,
            "outcome": str(record.outcome),
            "status": record.status,
            "attempts": 0,
            "deployment": None,
            "duration_ms": None,
            "first_token_ms": None,
            "cost_usd_micros": 0,
        }
    settlement = record.settlement
    answer = next((a for a in settlement.attempts if a.id == settlement.answered_by), None)
    return {
        "request_id": settlement.request_id,
        "call_id": settlement.call_id,
        "trace_id": record.trace_id,
        "own": record.own,
        "at": settlement.started_at,
        "endpoint": str(settlement.endpoint),
        "model": settlement.model,
        "tenant": settlement.identity.tenant,
        "stream": settlement.stream,
        "outcome": str(settlement.outcome),
        "status": settlement.status_code,
        "attempts": len(settlement.attempts),
        "deployment": answer.deployment.id if answer is not None else None,
        "duration_ms": settlement.duration_ms,
        "first_token_ms": settlement.first_token_ms,
        "cost_usd_micros": settlement.cost_usd_micros,
    }


def explanation(
    record: Record | NotAdmitted, worker: str, related: Sequence[Record | NotAdmitted] = ()
) -> dict[str, Any]:
    """Return why a request went where it went, as JSON: ``lines`` for people, and the facts behind them.

    Args:
        record: The request.
        worker: The worker that remembers it.
        related: Other requests of its trace, and the responses on it if it is a websocket.
    """
    shown = {
        **summary(record),
        "worker": worker,
        "lines": [one_line(line, _MOST_CHARS) for line in (*lines(record), *_others(record, related))],
        "related": [_id_of(other) for other in related],
    }
    if isinstance(record, NotAdmitted):
        return {**shown, "routes": [], "selections": [], "unknown_model": False, "parent_id": None, "made": []}
    settlement = record.settlement
    return {
        **shown,
        "routes": [
            {"plugin": d.by, "at_ms": round(d.at_ms, 3), "target": d.route.target, "labels": dict(d.route.labels)}
            for d in record.decisions
            if d.route is not None
        ],
        "selections": [
            {
                "attempt": d.attempt or None,
                "at_ms": round(d.at_ms, 3),
                "candidates": [
                    {"deployment": c.deployment.id, "score": c.score, "notes": list(c.notes)} for c in d.left
                ],
                "left_out": [{"deployment": x.deployment_id, "by": x.plugin, "reason": x.reason} for x in d.dropped],
            }
            for d in record.decisions
            if d.route is None
        ],
        "unknown_model": record.unknown_model,
        "parent_id": record.parent_id,
        "made": [_attempt_json(a, settlement, own=record.own) for a in settlement.attempts],
    }


def _attempt_json(attempt: Attempt, settlement: Settlement, *, own: bool) -> dict[str, Any]:
    error = attempt.error
    return {
        "number": attempt.number,
        "kind": str(attempt.kind),
        "deployment": attempt.deployment.id,
        "group": attempt.deployment.group,
        "at_ms": round((attempt.started_at - settlement.started_at) * 1000, 3),
        "result": result_of(attempt, settlement.answered_by, own=own),
        "status": attempt.status_code,
        "error": None if error is None else {"kind": str(error.kind), "message": error.message},
        "retry_after_s": None if error is None else error.retry_after_s,
        "duration_ms": attempt.duration_ms,
        "first_token_ms": attempt.first_token_ms,
        "prompt_tokens": None if attempt.usage is None else attempt.usage.prompt_tokens,
        "completion_tokens": None if attempt.usage is None else attempt.usage.completion_tokens,
        "cost_usd_micros": attempt.cost_usd_micros,
        "cached": attempt.cached,
    }


def lines(record: Record | NotAdmitted) -> Iterator[str]:
    """Return why a request went where it went, one decision a line."""
    if isinstance(record, NotAdmitted):
        yield from _not_admitted(record)
        return
    settlement = record.settlement
    yield _asked(record)
    if record.unknown_model:
        yield f"unknown model: no deployment serves {settlement.route.target!r}"
    route: Route | None = None
    at_ms = 0.0
    for decision in record.decisions:
        if decision.route is not None:
            at = f" at {decision.at_ms:.0f} ms" if decision.at_ms - at_ms >= _LEAST_WAIT_MS else ""
            yield f"route{at}: {decision.by} {_changed(route, decision.route, settlement.model)}"
            route, at_ms = decision.route, decision.at_ms
    if settlement.denial is not None:
        yield _denied(settlement.denial)
    choices = [d for d in record.decisions if d.route is None]
    chosen = {d.attempt: d for d in choices if d.attempt}
    before: Attempt | None = None
    for attempt in settlement.attempts[:_MOST_ATTEMPTS]:
        choice = chosen.get(attempt.number)
        if choice is not None:
            yield from _none_left(choices[: choices.index(choice)])
            del choices[: choices.index(choice) + 1]
        yield _attempted(attempt, before, settlement, choice, own=record.own)
        before = attempt
    if len(settlement.attempts) > _MOST_ATTEMPTS:
        yield f"{len(settlement.attempts) - _MOST_ATTEMPTS} more attempts"
    yield from _none_left(choices)
    yield _ended(record)
    if record.trace_id is not None:
        yield f"trace: {record.trace_id}"


def _others(record: Record | NotAdmitted, related: Sequence[Record | NotAdmitted]) -> Iterator[str]:
    """Return calls that plugins made for a request, the responses on a websocket, and which other requests are in the trace."""
    calls = [r for r in related if isinstance(r, Record) and r.parent_id == _id_of(record)]
    for call in calls[:_MOST_RELATED]:
        kind = call.settlement.attempts[0].kind if call.settlement.attempts else "own call"
        ended = _ended(call).removeprefix("ended: ")
        yield f"{kind}: {call.settlement.request_id}: {call.settlement.model!r}: {ended}"
    if len(calls) > _MOST_RELATED:
        yield f"{len(calls) - _MOST_RELATED} more mirrors and judges"
    responses = [r for r in related if isinstance(r, Record) and r.settlement.within == _id_of(record)]
    for response in responses[:_MOST_RELATED]:
        yield f"response on it: {response.settlement.request_id}: {_ended(response).removeprefix('ended: ')}"
    if len(responses) > _MOST_RELATED:
        yield f"{len(responses) - _MOST_RELATED} more responses on it"
    others = [_id_of(other) for other in related if other not in responses and other not in calls]
    if others:
        more = f" and {len(others) - _MOST_RELATED} more" if len(others) > _MOST_RELATED else ""
        yield f"in the same trace: {', '.join(others[-_MOST_RELATED:])}{more}"


def _denied(denial: Denial) -> str:
    again = f"; retry after {denial.retry_after_s:g} s" if denial.retry_after_s is not None else ""
    return f"denied by {denial.plugin or 'pointsman'}: {denial.code}: {denial.message}{again}"


def _not_admitted(ended: NotAdmitted) -> Iterator[str]:
    """Return why a request was not admitted; the gateway's own message is not known here, since it can contain a key."""
    caller = f" for {ended.tenant}" if ended.tenant else ""
    yield f"{ended.request_id}: {ended.method} {ended.path}{caller}, never admitted"
    if ended.outcome is Outcome.OK:
        yield "answered by the gateway, which asks no plugin about this route: nothing was decided or counted for it"
    elif ended.denial is not None:
        yield _denied(ended.denial)
    elif ended.status:
        yield f"ended by the gateway: {ended.error_type or 'it does not say why'}"
    yield f"ended: {ended.outcome}, status {ended.status}"
    if ended.trace_id is not None:
        yield f"trace: {ended.trace_id}"


def _none_left(choices: Sequence[Decision]) -> Iterator[str]:
    """Return that there was nothing to choose between two attempts, once: the gateway may have asked several times."""
    if none := [d for d in choices if not d.attempt]:
        yield f"no candidate was left: {_left_out(none[-1]) or 'the gateway offered none'}"


def _asked(record: Record) -> str:
    settlement = record.settlement
    stream = ", stream" if settlement.stream else ""
    payer = settlement.identity.tenant or settlement.identity.key_alias or settlement.identity.user_id
    caller = f" for {payer}" if payer else ""
    own = "own call: " if record.own else ""
    socket = f", on the websocket {settlement.within}" if settlement.within is not None else ""
    parent = f", for the request {record.parent_id}" if record.parent_id is not None else ""
    return (
        f"{settlement.request_id}: {own}{settlement.endpoint}{stream} of {settlement.model!r}{caller}{socket}{parent}"
    )


def _changed(before: Route | None, after: Route, model: str) -> str:
    parts = []
    if after.target != (before.target if before is not None else model):
        parts.append(f"sends it to {after.target!r}")
    known = before.labels if before is not None else {}
    if labels := {name: value for name, value in after.labels.items() if known.get(name) != value}:
        parts.append("with " + ", ".join(f"{name}={value}" for name, value in sorted(labels.items())))
    if after.executor != (before.executor if before is not None else None):
        parts.append(f"lets {after.executor} make the attempts")
    if after.fallbacks != (before.fallbacks if before is not None else ()):
        parts.append(f"falls back to {', '.join(after.fallbacks)}")
    for reservation in after.reservations[len(before.reservations) if before is not None else 0 :]:
        amounts = ", ".join(f"{name} {amount}" for name, amount in sorted(reservation.amounts.items()))
        parts.append(f"reserves {amounts or 'a slot'}")
    return "; ".join(parts) or "changes nothing that is shown"


def _pause_ms(attempt: Attempt, before: Attempt | None) -> float:
    """Return how long the gateway waited between an attempt that had ended and the one that follows it; 0 for others."""
    if before is None or before.duration_ms is None or attempt.kind not in {AttemptKind.RETRY, AttemptKind.FALLBACK}:
        return 0.0
    return (attempt.started_at - before.started_at) * 1000 - before.duration_ms


def _attempted(
    attempt: Attempt, before: Attempt | None, settlement: Settlement, chosen: Decision | None, *, own: bool
) -> str:
    result = result_of(attempt, settlement.answered_by, own=own)
    after = f" after {attempt.duration_ms:.0f} ms" if attempt.duration_ms is not None else ""
    pause_ms = _pause_ms(attempt, before)
    waited = f", {pause_ms:.0f} ms after the one before" if pause_ms >= _LEAST_WAIT_MS else ""
    text = f"attempt {attempt.number} ({attempt.kind}) at {attempt.deployment.id}{waited}: {result}{after}"
    if attempt.first_token_ms is not None:
        text += f", first content {attempt.first_token_ms:.0f} ms"
    if attempt.cached:
        text += ", from the gateway's cache"
    elif attempt.cost_usd_micros and len(settlement.attempts) > 1:
        text += f", {_usd(attempt.cost_usd_micros)}"
    if attempt.error is not None and attempt.outcome is not Outcome.OK:
        status = f" {attempt.error.status}" if attempt.error.status else ""
        text += f", {attempt.error.kind}{status}"
        if attempt.error.message and result in {"refused", "failed"}:
            text += f": {one_line(attempt.error.message, 80)}"
        if attempt.error.retry_after_s is not None:
            text += f", retry-after {attempt.error.retry_after_s:g} s"
    if chosen is not None:
        if len(chosen.left) > 1 or any(c.score is not None or c.notes for c in chosen.left):
            text += f"; chosen from {_named(chosen.left)}"
        if out := _left_out(chosen):
            text += f"; left out: {out}"
    return text


def _named(left: Sequence[Candidate]) -> str:
    named = []
    for candidate in left[:_MOST_NAMED]:
        facts = [f"{candidate.score:.3g}"] if candidate.score is not None else []
        facts += list(candidate.notes)
        named.append(candidate.deployment.id + (f" ({', '.join(facts)})" if facts else ""))
    more = len(left) - _MOST_NAMED
    return ", ".join(named) + (f" and {more} more" if more > 0 else "")


def _left_out(decision: Decision) -> str:
    return ", ".join(f"{d.deployment_id} ({d.plugin}: {d.reason})" for d in decision.dropped[:_MOST_NAMED])


def _usd(micros: int) -> str:
    return f"${micros / 1_000_000:.6f}"


def _ended(record: Record) -> str:
    settlement = record.settlement
    answer = next((a for a in settlement.attempts if a.id == settlement.answered_by), None)
    text = f"ended: {settlement.outcome}, status {settlement.status_code}"
    if settlement.duration_ms is not None:
        text += f", {settlement.duration_ms:.0f} ms"
    if settlement.first_token_ms is not None:
        text += f", first content {settlement.first_token_ms:.0f} ms"
    if answer is not None:
        text += f", answered by attempt {answer.number}"
    if settlement.usage is not None:
        estimated = " (estimated)" if settlement.usage.estimated else ""
        text += f", {settlement.usage.prompt_tokens}+{settlement.usage.completion_tokens} tokens{estimated}"
    known = [a for a in settlement.attempts if a.cost_usd_micros is not None]
    if answer is not None and answer.cost_usd_micros not in {None, settlement.cost_usd_micros}:
        text += f", {_usd(answer.cost_usd_micros or 0)}; {_usd(settlement.cost_usd_micros)} with all attempts"
    elif known:
        text += f", {_usd(settlement.cost_usd_micros)}"
    # Nothing is charged for a request that does not generate, such as the opening of a websocket.
    unknown = settlement.generates and sum(
        a.cost_usd_micros is None and a.outcome is Outcome.OK for a in settlement.attempts
    )
    return text + (f", the cost of {unknown} attempts is unknown" if unknown else "")
