"""A real LiteLLM proxy as a subprocess, for tests, benchmarks and the demo."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import httpx
import yaml

MASTER_KEY: Final = "sk-pointsman-test-0123456789"
START_TIMEOUT_S: Final = 240.0
_ENV: Final = "os.environ/"


class ProxyFailed(RuntimeError):
    """The proxy did not start; the message ends with its output."""


def free_port() -> int:
    """Return a port on the loopback interface that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


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
    ) -> None:
        self.directory = directory
        self.workers = workers
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log_path = directory / "proxy.log"
        self.config_path = directory / "litellm.yaml"
        self._env = dict(env or {})
        self._python_path = python_path
        self._process: subprocess.Popen[bytes] | None = None
        directory.mkdir(parents=True, exist_ok=True)
        self.master_key: str
        if isinstance(config, Path):
            text = config.read_text(encoding="utf-8")
            general = yaml.safe_load(text).get("general_settings") or {}
            self.master_key = self._variable(general.get("master_key", f"{_ENV}LITELLM_MASTER_KEY"))
        else:
            document = dict(config)
            document["general_settings"] = {"master_key": MASTER_KEY, **(config.get("general_settings") or {})}
            self.master_key = self._variable(document["general_settings"]["master_key"])
            text = yaml.safe_dump(document, sort_keys=False)
        self.config_path.write_text(text, encoding="utf-8")

    def _variable(self, value: str) -> str:
        """Return a value of the configuration, or of the variable of the proxy's environment that it names."""
        if not value.startswith(_ENV):
            return value
        name = value.removeprefix(_ENV)
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

    def log(self) -> str:
        """Return the proxy's output so far."""
        return self.log_path.read_text(encoding="utf-8", errors="replace") if self.log_path.exists() else ""

    def launch(self) -> None:
        """Start the process without waiting until it answers."""
        env: dict[str, str] = {
            **os.environ,
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "PYTHONUNBUFFERED": "1",
            "NO_PROXY": "127.0.0.1,localhost",
        }
        for name, value in self._env.items():
            if value is None:
                env.pop(name, None)
            else:
                env[name] = value
        # A crash of a compiled dependency leaves a trace of where it was.
        env.setdefault("PYTHONFAULTHANDLER", "1")
        path = [str(directory) for directory in self._python_path]
        env["PYTHONPATH"] = os.pathsep.join([*path, *filter(None, [env.get("PYTHONPATH")])])
        command = [
            str(Path(sys.executable).with_name("litellm")),
            "--config",
            str(self.config_path),
            "--host",
            "127.0.0.1",
            "--port",
            str(self.port),
            "--num_workers",
            str(self.workers),
        ]
        if self.workers > 1:
            # uvicorn's supervisor kills a worker that does not answer within 5 s; importing LiteLLM takes longer.
            command += ["--timeout_worker_healthcheck", "120"]
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603  # our own command
                command, cwd=self.directory, env=env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )

    def wait_ready(
        self, timeout_s: float = START_TIMEOUT_S, *, meanwhile: Callable[[float], object] = lambda _: None
    ) -> None:
        """Wait until the proxy answers.

        Args:
            timeout_s: The longest wait.
            meanwhile: Called again and again while it does not, with the seconds waited so far.

        Raises:
            ProxyFailed: it ended, or did not answer in time.
        """
        began = time.monotonic()
        while (waited_s := time.monotonic() - began) < timeout_s:
            meanwhile(waited_s)
            if self._process is None or self._process.poll() is not None:
                code = self._process.returncode if self._process else None
                raise ProxyFailed(f"the proxy ended with code {code}; its output:\n{self.log()[-8000:]}")
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{self.url}/health/liveliness", timeout=2.0, trust_env=False).is_success:
                    return
            time.sleep(0.2)
        raise ProxyFailed(f"the proxy did not answer within {timeout_s:.0f} s; its output:\n{self.log()[-8000:]}")

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
        assert self._process is not None  # noqa: S101  # it has been started
        return self._process.wait(timeout_s)

    def stop(self, how: signal.Signals = signal.SIGTERM, timeout_s: float = 40.0) -> int | None:
        """End the process (with SIGKILL: all its workers too) and return its exit code."""
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
        with contextlib.suppress(ProcessLookupError):
            # Workers whose supervisor is gone would keep the port.
            os.killpg(self._process.pid, signal.SIGKILL)
        return self._process.returncode

    def client(self, **kwargs: Any) -> httpx.Client:
        """Return an HTTP client with the master key."""
        kwargs = {"timeout": 30.0, "trust_env": False, **kwargs}
        return httpx.Client(base_url=self.url, headers=self.headers, **kwargs)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
