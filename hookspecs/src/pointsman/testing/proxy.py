"""A real LiteLLM proxy as a subprocess, for tests, benchmarks and the demo."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import httpx
import yaml

from ..config import ENVIRONMENT, variable
from . import warm
from .ports import free_port

MASTER_KEY: Final = "sk-pointsman-test-0123456789"
START_TIMEOUT_S: Final = 240.0
_LOOK: Final = "/health/liveliness"
_LOOK_AGAIN_S: Final = 0.1
_LOG_CHARS: Final = 8000
_STACKS_S: Final = 2.0
#: What uvicorn logs of each worker.
_STARTED: Final = "Application startup complete"
#: What the host writes of a worker that ends in its start.
_CANNOT_START: Final = "pointsman: cannot start: "


class ProxyFailed(RuntimeError):
    """The proxy did not start; the message ends with its output."""


class ProxyServer:
    """A LiteLLM proxy that runs until the end of the ``with`` block.

    Args:
        config: The LiteLLM configuration as a mapping; a master key is added when it has none. Or a file: it is copied
            into the directory as it is, so relative paths in it start there, and its master key has to be known.
        directory: Where the configuration and the log are written; also the working directory.
        workers: ``--num_workers``.
        env: More environment variables; a value of None removes one.
        port: The port; a free one by default.
        python_path: Directories to put first on the module path, for plugins or callbacks of a test.
        fresh: Start LiteLLM's own command even where a warm parent could be forked; see ``pointsman.testing.warm``.
        python: The Python of the environment whose LiteLLM is started, always fresh; None: of this one.
    """

    def __init__(
        self,
        config: Mapping[str, Any] | Path,
        directory: Path,
        *,
        workers: int = 1,
        env: Mapping[str, str | None] | None = None,
        port: int | None = None,
        python_path: tuple[Path, ...] = (),
        fresh: bool = False,
        python: Path | None = None,
    ) -> None:
        # Its command runs there, so that a relative path would be looked for below it.
        self.directory = directory = directory.absolute()
        self.workers = workers
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log_path = directory / "proxy.log"
        self.config_path = directory / "litellm.yaml"
        self._env = dict(env or {})
        self._python_path = python_path
        self._fresh = fresh or python is not None
        self._python = Path(sys.executable) if python is None else python
        self._may_end = False
        self._group_ended = False
        self._logged_before = 0
        self._process: subprocess.Popen[bytes] | warm.Forked | None = None
        directory.mkdir(parents=True, exist_ok=True)
        self.master_key: str
        if isinstance(config, Path):
            text = config.read_text(encoding="utf-8")
            general = yaml.safe_load(text).get("general_settings") or {}
            self.master_key = self._variable(general.get("master_key", f"{ENVIRONMENT}LITELLM_MASTER_KEY"))
        else:
            document = dict(config)
            document["general_settings"] = {"master_key": MASTER_KEY, **(config.get("general_settings") or {})}
            self.master_key = self._variable(document["general_settings"]["master_key"])
            text = yaml.safe_dump(document, sort_keys=False)
        self.config_path.write_text(text, encoding="utf-8")

    def _variable(self, value: str) -> str:
        """Return a value of the configuration, or of the variable of the proxy's environment that it names."""
        if (name := variable(value)) is None:
            return value
        found = self._env.get(name, os.environ.get(name))
        if not found:
            raise ProxyFailed(f"the configuration takes its master key from {name}, which is not set")
        return found

    @property
    def headers(self) -> dict[str, str]:
        """Request headers with the master key."""
        return {"authorization": f"Bearer {self.master_key}"}

    @property
    def pid(self) -> int:
        """The process id of the proxy, or of its supervisor with several workers."""
        assert self._process is not None  # noqa: S101  # it has been started
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process has been started and has not ended."""
        return self._process is not None and self._process.poll() is None

    @property
    def failure(self) -> str | None:
        """What to say of a proxy that has ended by itself; None while it runs, or when it was stopped or waited for."""
        if self._process is None or self._may_end or self._process.poll() is None:
            return None
        return f"the proxy ended by itself with code {self._process.returncode}; its output:\n{self._end_of_log()}"

    def log(self) -> str:
        """Return the proxy's output so far."""
        return self.log_path.read_text(encoding="utf-8", errors="replace") if self.log_path.exists() else ""

    def launch(self) -> None:
        """Start the process without waiting until it answers."""
        self._may_end = self._group_ended = False
        env = {**os.environ, **warm.standard_environment()}
        for name, value in self._env.items():
            if value is None:
                env.pop(name, None)
            else:
                env[name] = value
        path = [str(directory) for directory in self._python_path]
        env["PYTHONPATH"] = os.pathsep.join([*path, *filter(None, [env.get("PYTHONPATH")])])
        command = [
            str(self._python.with_name("litellm")),
            "--config",
            str(self.config_path),
            "--host",
            "127.0.0.1",
            "--port",
            str(self.port),
            "--num_workers",
            str(self.workers),
            # Clients keep connections for as long as uvicorn does by default: one closed at that moment fails a request.
            "--keepalive_timeout",
            "120",
        ]
        if self.workers > 1:
            # uvicorn's supervisor kills a worker that does not answer within 5 s; importing LiteLLM takes longer.
            command += ["--timeout_worker_healthcheck", "120"]
        self._logged_before = len(self.log())
        with self.log_path.open("ab") as log:
            if not self._fresh:
                self._process = warm.fork(command, env, self.directory, log.fileno())
                if self._process is not None:
                    return
            self._process = subprocess.Popen(  # noqa: S603  # our own command
                command, cwd=self.directory, env=env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )

    def wait_ready(
        self, timeout_s: float = START_TIMEOUT_S, *, meanwhile: Callable[[float], object] = lambda _: None
    ) -> None:
        """Wait until the proxy answers and, with several workers, each of them has logged that it has started.

        Args:
            timeout_s: The longest wait.
            meanwhile: Called again and again while it does not, with the seconds waited so far.

        Raises:
            ProxyFailed: it ended, or did not answer in time.
        """
        began = time.monotonic()
        with self.client(timeout=2.0) as client:
            while (waited_s := time.monotonic() - began) < timeout_s:
                meanwhile(waited_s)
                if self._process is None or self._process.poll() is not None:
                    code = self._process.returncode if self._process else None
                    raise ProxyFailed(f"the proxy ended with code {code}; its output:\n{self._end_of_log()}")
                if self.workers > 1 and _CANNOT_START in self._new_log():
                    # uvicorn looks after a worker only when its time for an answer is over, which is minutes here.
                    raise ProxyFailed(f"a worker of the proxy could not start; its output:\n{self._end_of_log()}")
                with contextlib.suppress(httpx.HTTPError):
                    if client.get(_LOOK).is_success and self._all_started():
                        return
                time.sleep(_LOOK_AGAIN_S)
        self._show_stacks()
        raise ProxyFailed(f"the proxy did not answer within {timeout_s:.0f} s; its output:\n{self._end_of_log()}")

    def _all_started(self) -> bool:
        """Whether uvicorn has said so of every worker: one that answers says nothing of the others."""
        return self.workers == 1 or self._new_log().count(_STARTED) >= self.workers

    def _show_stacks(self) -> None:
        """Let all its processes write to the log where they are: what hangs says why. It ends them."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGABRT)
        time.sleep(_STACKS_S)

    def _end_of_log(self) -> str:
        """Return the last output, without this object's own requests."""
        lines = [line for line in self.log().splitlines() if _LOOK not in line]
        return "\n".join(lines)[-_LOG_CHARS:]

    def _new_log(self) -> str:
        """Return the output since the last launch."""
        return self.log()[self._logged_before :]

    def start(self) -> Self:
        """Start the process and wait until it answers.

        Raises:
            ProxyFailed: it did not start.
        """
        self.launch()
        try:
            self.wait_ready()
        except BaseException:
            # No ``with`` block has been entered yet that would end it, not even for a Ctrl-C.
            self.stop(signal.SIGKILL)
            raise
        return self

    def wait_exit(self, timeout_s: float = START_TIMEOUT_S) -> int:
        """Wait for the process to end by itself; return its exit code."""
        self._may_end = True
        assert self._process is not None  # noqa: S101  # it has been started
        return self._process.wait(timeout_s)

    def stop(self, how: signal.Signals = signal.SIGTERM, timeout_s: float = 40.0) -> int | None:
        """End the process (with SIGKILL: all its workers too) and return its exit code."""
        self._may_end = True
        if self._process is None:
            return None
        if self._process.poll() is None:
            if how is signal.SIGKILL:
                os.killpg(self._process.pid, signal.SIGKILL)
            else:
                self._process.send_signal(how)
            try:
                self._process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait(10)
        if not self._group_ended:
            # Once: later, the number may be that of other processes.
            self._group_ended = True
            with contextlib.suppress(ProcessLookupError):
                # Workers whose supervisor is gone would keep the port.
                os.killpg(self._process.pid, signal.SIGKILL)
        return self._process.returncode

    def client(self, **kwargs: Any) -> httpx.Client:
        """Return an HTTP client with the master key."""
        # Nothing is encrypted, and the certificates of all authorities take longer to read than a request takes.
        kwargs = {"timeout": 30.0, "trust_env": False, "verify": False, **kwargs}
        return httpx.Client(base_url=self.url, headers=self.headers, **kwargs)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
