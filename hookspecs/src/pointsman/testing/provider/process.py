"""The upstream in a process of its own, where it must not share the interpreter with what is measured."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import TYPE_CHECKING, Self

import httpx

from .behaviour import BEHAVIOUR
from .journal import REQUESTS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from .behaviour import Behaviour
    from .journal import ReceivedRequest

_POLL_S = 0.02
_STOP_S = 10
READY = "upstream listening on "
"""How the line begins that the process writes when it accepts connections; the base URL follows."""


class UpstreamProcess:
    """A bundled upstream in a process of its own, on a free loopback port. Used like ``UpstreamServer``.

    Args:
        behaviours: How models behave, by upstream model name; ``*`` is for all others. They go before the script's.
        script: A script file that it starts with, or None.
        replay: A recording to serve, or None.
        port: Port to listen on; 0 takes a free one.
    """

    def __init__(
        self,
        behaviours: Mapping[str, Behaviour] | None = None,
        *,
        script: Path | None = None,
        replay: Path | None = None,
        port: int = 0,
    ) -> None:
        self._behaviours = dict(behaviours or {})
        self._command = [sys.executable, "-m", "pointsman.testing.provider", "--port", str(port)]
        self._command += ["--script", str(script)] if script else []
        self._command += ["--replay", str(replay)] if replay else []
        self._process: subprocess.Popen[str] | None = None
        self._client: httpx.Client | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """Base URL without ``/v1``.

        Raises:
            RuntimeError: it does not run.
        """
        return str(self._control.base_url).rstrip("/")

    @property
    def requests(self) -> tuple[ReceivedRequest, ...]:
        """What it received since the start or the last reset, in order."""
        return REQUESTS.validate_json(self._control.get("/_control/requests").raise_for_status().content)

    def start(self) -> None:
        """Start it; returns when it accepts connections.

        Raises:
            RuntimeError: it ended at once; its own message is on standard error.
        """
        self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, text=True)  # noqa: S603 - our own module
        line = self._process.stdout.readline() if self._process.stdout else ""
        if not line.startswith(READY):
            self.stop()
            raise RuntimeError("upstream: the process did not start; see its message on standard error")
        self._client = httpx.Client(base_url=line.removeprefix(READY).strip(), trust_env=False)
        self._behave_as_at_start()

    def stop(self) -> None:
        """End it. Harmless when it does not run."""
        if self._client is not None:
            self._client.close()
            self._client = None
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            if self._process.stdout:
                self._process.stdout.close()
            self._process = None

    def behave(self, model: str, behaviour: Behaviour) -> None:
        """Set a model's behaviour from now on; its counts and limits start anew."""
        body = {"model": model, "behaviour": BEHAVIOUR.dump_python(behaviour, mode="json")}
        self._control.post("/_control/behaviour", json=body).raise_for_status()

    def reset(self) -> None:
        """Forget all requests, counts and limits, and every behaviour set since the start."""
        self._control.post("/_control/reset").raise_for_status()
        self._behave_as_at_start()

    def wait_for(
        self, condition: Callable[[tuple[ReceivedRequest, ...]], object], *, timeout_s: float = 10.0
    ) -> tuple[ReceivedRequest, ...]:
        """Block until the requests fulfil a condition, and return them.

        Raises:
            TimeoutError: they did not in time.
        """
        end = time.monotonic() + timeout_s
        while not condition(found := self.requests):
            if time.monotonic() > end:
                raise TimeoutError(f"upstream: the {len(found)} requests did not become so in {timeout_s} s")
            time.sleep(_POLL_S)
        return found

    def _behave_as_at_start(self) -> None:
        for model, behaviour in self._behaviours.items():
            self.behave(model, behaviour)

    @property
    def _control(self) -> httpx.Client:
        if self._client is None:
            raise RuntimeError("upstream: not started; use it as a context manager or call start()")
        return self._client
