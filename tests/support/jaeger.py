"""A real Jaeger, and its traces as its own API tells them. ``tests/services/install.sh`` builds it."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import httpx
import pytest

from pointsman.testing.ports import free_port

VERSION: Final = "v1.76.0"
CONFIG: Final = Path(__file__).parents[2] / "examples" / "tracing" / "jaeger.yaml"
_CACHE: Final = Path(os.environ.get("POINTSMAN_SERVICES") or Path.home() / ".cache" / "pointsman")
_START_S: Final = 60.0
_ARRIVE_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class JaegerSpan:
    """One span. Times are in microseconds of Unix time; ``links`` are trace and span ids, with what the other span is."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    start_us: int
    end_us: int
    kind: str
    status: str
    tags: Mapping[str, Any]
    links: Sequence[tuple[str, str]] = ()
    events: Sequence[Mapping[str, Any]] = ()
    warnings: Sequence[str] = ()
    process: Mapping[str, Any] = field(default_factory=dict)

    @property
    def own(self) -> bool:
        """Whether it is Pointsman's."""
        return self.tags.get("otel.scope.name") == "pointsman"


def _tags(pairs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {pair["key"]: pair["value"] for pair in pairs}


def _span(row: Mapping[str, Any], processes: Mapping[str, Any]) -> JaegerSpan:
    tags = _tags(row["tags"])
    references = row.get("references") or []
    parents = [r for r in references if r["refType"] == "CHILD_OF" and r["traceID"] == row["traceID"]]
    parent = parents[0]["spanID"] if parents else ""
    process = processes[row["processID"]]
    return JaegerSpan(
        name=row["operationName"],
        trace_id=row["traceID"],
        span_id=row["spanID"],
        parent_id=parent,
        start_us=row["startTime"],
        end_us=row["startTime"] + row["duration"],
        kind=str(tags.get("span.kind", "internal")),
        status=str(tags.get("otel.status_code", "unset")).lower(),
        tags=tags,
        links=[(r["traceID"], r["spanID"]) for r in references if r not in parents],
        events=[_tags(log["fields"]) for log in row.get("logs") or []],
        warnings=row.get("warnings") or [],
        process={"service.name": process["serviceName"], **_tags(process.get("tags") or [])},
    )


class Jaeger:
    """Runs during the ``with`` block; skips the test, with the reason, where it is not installed.

    Attributes:
        otlp: Where it takes spans, for ``OTEL_EXPORTER_OTLP_ENDPOINT``.
        url: Where its API answers.
    """

    def __init__(self, directory: Path) -> None:
        self._binary = _CACHE / f"jaeger-{VERSION}" / "jaeger"
        if not self._binary.exists():
            pytest.skip("Jaeger is not installed; tests/services/install.sh builds it")
        self._log = directory / "jaeger.log"
        ui, otlp = free_port(), free_port()
        self.url, self.otlp = f"http://127.0.0.1:{ui}", f"http://127.0.0.1:{otlp}"
        self._env = {
            **os.environ,
            "JAEGER_UI": f"127.0.0.1:{ui}",
            "JAEGER_OTLP": f"127.0.0.1:{otlp}",
            "JAEGER_QUERY": f"127.0.0.1:{free_port()}",
        }
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S603  # the binary of our own cache
                [str(self._binary), "--config", str(CONFIG)], env=self._env, stdout=log, stderr=log
            )
        deadline = time.monotonic() + _START_S
        while True:
            try:
                httpx.get(f"{self.url}/api/services", timeout=5).raise_for_status()
            except httpx.HTTPError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    self.__exit__(None, None, None)
                    pytest.fail(f"Jaeger does not start; its log:\n{self._log.read_text()[-3000:]}")
                time.sleep(0.1)
            else:
                return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(10)

    def find(self, service: str, tags: Mapping[str, str]) -> list[list[JaegerSpan]]:
        """Return the traces with a span that has all of these tags, as its search does."""
        query = {"service": service, "tags": json.dumps(dict(tags)), "limit": "1000", "lookback": "1h"}
        answer = httpx.get(f"{self.url}/api/traces", params=query, timeout=30)
        answer.raise_for_status()
        return [[_span(row, found["processes"]) for row in found["spans"]] for found in answer.json()["data"]]

    def request(self, service: str, request_id: str, *, settled: bool = True) -> list[list[JaegerSpan]]:
        """Wait until a request is there, and its settlement if it has one, and return the traces of both."""
        deadline = time.monotonic() + _ARRIVE_S
        while True:
            found = self.find(service, {"pointsman.request_id": request_id})
            kinds = {span.tags.get("pointsman.kind") for spans in found for span in spans}
            if {"request"} | ({"settlement"} if settled else set()) <= kinds:
                return found
            if time.monotonic() > deadline:
                raise TimeoutError(f"request {request_id} is not whole in Jaeger: {kinds}")
            time.sleep(0.2)

    def trace(self, trace_id: str) -> list[JaegerSpan]:
        """Return one trace."""
        answer = httpx.get(f"{self.url}/api/traces/{trace_id}", timeout=30)
        answer.raise_for_status()
        (found,) = answer.json()["data"]
        return [_span(row, found["processes"]) for row in found["spans"]]
