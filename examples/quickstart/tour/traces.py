"""What Pointsman says about each request, read from the spans that the proxy exports."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pointsman.testing.otlp import CollectedSpan, Collector

from . import Unexpected

PATIENCE_S: Final = 30.0

_REQUEST_ID: Final = "pointsman.request_id"
_TARGET: Final = "pointsman.target"
_LABEL: Final = "pointsman.label."
_ROUTING: Final = "pre_route"
_ATTEMPT: Final = "pointsman.attempt"


@dataclass(frozen=True, slots=True)
class Decision:
    """What one plugin did to a request's route.

    Attributes:
        plugin: Who.
        what: In words; empty when it only changed the target.
        where: An arrow and the new target; empty when that stayed.
    """

    plugin: str
    what: str
    where: str = ""

    def __str__(self) -> str:
        return " ".join(filter(None, [f"{self.plugin}:", self.what, self.where]))


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenAttempt:
    """One call of one deployment.

    Attributes:
        number: 1 for the first of a request.
        kind: Why it was made.
        deployment: Who was called.
        group: Its model group.
        outcome: How it ended.
        status: The provider's HTTP status, or None.
        error: The class of the error, or None.
        notes: What plugins said while it was chosen.
    """

    number: int
    kind: str
    deployment: str
    group: str
    outcome: str
    status: int | None
    error: str | None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """One client request.

    Attributes:
        request_id: As in the answer's ``x-pointsman-request-id``.
        endpoint: The kind of API.
        model: What the client asked for.
        stream: Whether as a stream.
        decisions: Of the plugins, in order.
        version_id: Id of the version that the registry chose, or None.
        target: Where the request was sent.
        attempts: In order.
        outcome: How it ended for the client.
        status: The HTTP status that the client got.
        input_tokens: Tokens of the prompt, or None.
        output_tokens: Tokens of the answer, or None.
        cost_usd_micros: Price of all attempts.
        first_token_ms: From the request's arrival, or None.
        total_ms: From the request's arrival to its end.
    """

    request_id: str
    endpoint: str
    model: str
    stream: bool
    decisions: tuple[Decision, ...]
    version_id: str | None
    target: str
    attempts: tuple[SeenAttempt, ...]
    outcome: str
    status: int
    input_tokens: int | None
    output_tokens: int | None
    cost_usd_micros: int
    first_token_ms: float | None
    total_ms: float


class Traces:
    """Puts spans together as they come.

    Args:
        collector: Where they come in.
    """

    def __init__(self, collector: Collector) -> None:
        self._collector = collector
        self._children: dict[str, list[CollectedSpan]] = defaultdict(list)
        self._complete: dict[str, Trace] = {}

    def arriving(self, timeout_s: float) -> list[Trace]:
        """Return the requests that have become complete; wait at most this long for news."""
        found = []
        # A request's span is exported after those of its attempts, since it ends last.
        for span in self._collector.take(timeout_s):
            if span.attributes.get("pointsman.kind") == "request" and "pointsman.endpoint" in span.attributes:
                found.append(_trace(span, self._children.pop(span.span_id, ())))
            elif span.name == _ROUTING or _ATTEMPT in span.attributes:
                self._children[span.parent_id].append(span)
        return found

    def of(self, request_ids: Iterable[str]) -> list[Trace]:
        """Return these requests; wait until all of them are complete.

        Raises:
            Unexpected: their spans do not come.
        """
        wanted = list(request_ids)
        deadline = time.monotonic() + PATIENCE_S
        while missing := [each for each in wanted if each not in self._complete]:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise Unexpected(f"the spans of {len(missing)} requests were not exported, first {missing[0]!r}")
            self._complete |= {trace.request_id: trace for trace in self.arriving(left_s)}
        return [self._complete.pop(each) for each in wanted]


def _trace(root: CollectedSpan, children: Sequence[CollectedSpan]) -> Trace:
    said = root.attributes
    spans = sorted((s for s in children if s.name != _ROUTING), key=lambda s: int(s.attributes[_ATTEMPT]))
    return Trace(
        request_id=said[_REQUEST_ID],
        endpoint=said["pointsman.endpoint"],
        model=said["gen_ai.request.model"],
        stream="gen_ai.request.stream" in said,
        decisions=tuple(_decisions(said, [s for s in children if s.name == _ROUTING])),
        version_id=said.get(f"{_LABEL}version_id"),
        target=said.get(_TARGET, said["gen_ai.request.model"]),
        attempts=tuple(_attempt(span.attributes) for span in spans),
        outcome=said["pointsman.outcome"],
        status=said.get("http.response.status_code", 0),
        input_tokens=said.get("gen_ai.usage.input_tokens"),
        output_tokens=said.get("gen_ai.usage.output_tokens"),
        cost_usd_micros=said.get("pointsman.cost_usd_micros", 0),
        first_token_ms=_first_token_ms(root, spans),
        total_ms=(root.end_ns - root.start_ns) / 1e6,
    )


def _attempt(said: Mapping[str, Any]) -> SeenAttempt:
    return SeenAttempt(
        number=said[_ATTEMPT],
        kind=said["pointsman.attempt.kind"],
        deployment=said["pointsman.deployment"],
        group=said["pointsman.group"],
        outcome=said["pointsman.outcome"],
        status=said.get("http.response.status_code"),
        error=said.get("error.type"),
        notes=(*said.get("pointsman.notes", ()), *(f"dropped {each}" for each in said.get("pointsman.dropped", ()))),
    )


def _first_token_ms(root: CollectedSpan, attempts: Sequence[CollectedSpan]) -> float | None:
    for span in reversed(attempts):
        if (waited_s := span.attributes.get("gen_ai.response.time_to_first_chunk")) is not None:
            return (span.start_ns - root.start_ns) / 1e6 + float(waited_s) * 1000
    return None


def _decisions(request: Mapping[str, Any], routing: Iterable[CollectedSpan]) -> Iterable[Decision]:
    """Yield who changed the route, and how."""
    before: Mapping[str, Any] = {_TARGET: request["gen_ai.request.model"]}
    for span in routing:
        for plugin, after in span.events:
            if _TARGET not in after:  # How long a plugin waited, or that it failed: no decision.
                continue
            yield _decision(plugin, before, after)
            before = after
    if denier := request.get("pointsman.denied_by"):
        yield Decision(denier, "denied", str(request["pointsman.denial.code"]))


def _decision(plugin: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> Decision:
    new = {name: value for name, value in after.items() if before.get(name) != value}
    labels = {name.removeprefix(_LABEL): value for name, value in new.items() if name.startswith(_LABEL)}
    # Ids, and repetitions of the model's name, say nothing that is not there already.
    words = [
        f"{name} {value}" for name, value in labels.items() if not name.endswith("_id") and value != before[_TARGET]
    ]
    if (executor := new.get("pointsman.executor")) is not None:
        words.append(f"executed by {executor}")
    where = f"\N{RIGHTWARDS ARROW} {new[_TARGET]}" if _TARGET in new else ""
    return Decision(plugin, ", ".join(words) or ("" if where else "no change"), where)
