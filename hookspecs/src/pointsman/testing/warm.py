"""Starts LiteLLM proxies by forking a process that has imported LiteLLM already.

A start takes seconds of computing, nearly all of them imports. Here one process, the *warm parent*, imports LiteLLM once
for a whole run of tests, pytest-xdist's workers included; each proxy is a fork of it that gets the arguments,
environment, working directory, module path, log and session of a real start, and then runs LiteLLM's own command. The
parent has one thread and nothing of Pointsman's.

The workers of a proxy with several, which uvicorn spawns after a real start, are forks of the proxy in the same way.

A fork is not a real start in two ways: all proxies of a run share one hash seed, and of several workers what is registered
with ``atexit`` does not run. A variable that LiteLLM has read while it was imported cannot be changed any more: such a proxy is
started for real, and so is everything where there is no Linux.

Run as a file, not as a module, so that nothing of Pointsman's is imported; it uses the standard library alone.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import importlib
import json
import multiprocessing
import os
import selectors
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

VARIABLE: Final = "POINTSMAN_WARM_PROXY"
"""The environment variable that names the directory of a run's warm parent; unset: every start is real."""

_SOCKET: Final = "socket"
_LOG: Final = "log"
_RUN: Final = "run"
_LENGTH: Final = struct.Struct("!I")
_START_S: Final = 240.0
_POLL_S: Final = 0.05
_REQUEST_S: Final = 10.0
#: Variables that are read with all others by one look at the environment: whether they are set decides what an import does.
_READ_WITH_ALL: Final = frozenset({"LITELLM_OTEL_V2"})
#: Set for the parent alone: numpy's own threads would be a second one.
_ONE_THREAD: Final = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


# ---- in the process that wants a proxy


def prepare(directory: Path) -> None:
    """Let proxies of this process and its children share a warm parent, which ends with this process.

    Args:
        directory: An empty one with a short path that is private: this process's environment is written to it.
    """
    run = {"pid": os.getpid(), "env": {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}}
    (directory / _RUN).write_text(json.dumps(run), encoding="utf-8")
    os.environ[VARIABLE] = str(directory)


class Forked:
    """A process that the warm parent has forked; used like ``subprocess.Popen``.

    Args:
        connection: To the warm parent, which sends the exit code.
        pid: The process id, also of its session and process group.
    """

    def __init__(self, connection: socket.socket, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._connection = connection

    def poll(self) -> int | None:
        """Return the exit code, negative after a signal; None while it runs."""
        return self._ended(0.0)

    def wait(self, timeout: float) -> int:
        """Wait for the exit code.

        Raises:
            subprocess.TimeoutExpired: it still runs after that many seconds.
        """
        code = self._ended(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(f"forked proxy {self.pid}", timeout)
        return code

    def send_signal(self, sig: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, sig)

    def _ended(self, timeout_s: float) -> int | None:
        if self.returncode is None:
            self._connection.settimeout(timeout_s)
            try:
                said = _receive(self._connection)
            except (BlockingIOError, TimeoutError):
                return None
            # Without the parent there are no proxies.
            self.returncode = -signal.SIGKILL if said is None else said["exit"]
            self._connection.close()
        return self.returncode


def fork(argv: Sequence[str], env: Mapping[str, str], cwd: Path, log: int) -> Forked | None:
    """Start a proxy as a fork of the run's warm parent, which is started when there is none yet.

    Args:
        argv: The command of a real start.
        env: The whole environment.
        cwd: The working directory.
        log: The file descriptor for its output.

    Returns:
        The process, or None when this proxy needs a real start.

    Raises:
        RuntimeError: the warm parent does not start.
    """
    directory = os.environ.get(VARIABLE)
    if not directory or sys.platform != "linux":
        return None
    connection = _connect(Path(directory))
    try:
        payload = json.dumps({"argv": list(argv), "env": dict(env), "cwd": str(cwd)}).encode()
        socket.send_fds(connection, [_LENGTH.pack(len(payload))], [log])
        connection.sendall(payload)
        connection.settimeout(_REQUEST_S)
        answer = _receive(connection)
    except BaseException:
        connection.close()
        raise
    if answer is None or "pid" not in answer:
        connection.close()
        return None
    return Forked(connection, answer["pid"])


def _connect(directory: Path) -> socket.socket:
    import fcntl  # noqa: PLC0415  # only on Unix

    # The first of the run's processes starts the parent; the others wait for the lock.
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        connection = socket.socket(socket.AF_UNIX)
        try:
            with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
                connection.connect(str(directory / _SOCKET))
                return connection
            _start_parent(directory)
            connection.connect(str(directory / _SOCKET))
        except BaseException:
            connection.close()
            raise
        return connection


_parents: Final[list[subprocess.Popen[bytes]]] = []
"""Kept, so that nothing complains that they still run."""


def _start_parent(directory: Path) -> None:
    # The environment of now may be one test's.
    run = json.loads((directory / _RUN).read_text(encoding="utf-8"))
    env = run["env"] | standard_environment() | _ONE_THREAD
    # Without the directory of this file on the module path.
    command = [sys.executable, "-P", __file__, str(directory), str(run["pid"])]
    with (directory / _LOG).open("wb") as log:
        parent = subprocess.Popen(  # noqa: S603  # this file
            command, cwd="/", env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    _parents.append(parent)
    deadline = time.monotonic() + _START_S
    while not (directory / _SOCKET).exists():
        if parent.poll() is not None or time.monotonic() > deadline:
            said = (directory / _LOG).read_text(encoding="utf-8", errors="replace")
            raise RuntimeError(f"the warm parent of proxies did not start; its output:\n{said[-8000:]}")
        time.sleep(_POLL_S)


def standard_environment() -> dict[str, str]:
    """Return the variables that every proxy is started with."""
    return {
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "PYTHONUNBUFFERED": "1",
        "NO_PROXY": "127.0.0.1,localhost",
        # A crash of a compiled dependency leaves a trace of where it was.
        "PYTHONFAULTHANDLER": os.environ.get("PYTHONFAULTHANDLER", "1"),
    }


def _send(connection: socket.socket, message: Mapping[str, Any]) -> None:
    payload = json.dumps(message).encode()
    connection.sendall(_LENGTH.pack(len(payload)) + payload)


def _receive(connection: socket.socket) -> dict[str, Any] | None:
    """Return the next message; None when the other end has closed the connection."""
    try:
        head = connection.recv(_LENGTH.size)
        if not head:
            return None
        return json.loads(_exactly(connection, *_LENGTH.unpack(head)))  # type: ignore[no-any-return]
    except ConnectionError:
        return None


def _exactly(connection: socket.socket, size: int) -> bytes:
    received = b""
    while len(received) < size:
        part = connection.recv(size - len(received))
        if not part:
            raise ConnectionResetError(errno.ECONNRESET, "the other end has closed the connection")
        received += part
    return received


# ---- in the warm parent


@dataclass(frozen=True, slots=True)
class Job:
    """A proxy to be."""

    argv: list[str]
    env: dict[str, str]
    cwd: str
    log: int


class WarmParent:
    """Listens on a socket and forks.

    Args:
        directory: Where the socket is.
        run: The process id of the run, with which this process ends.
    """

    def __init__(self, directory: Path, run: int) -> None:
        self._read, self._env, self._own = _imported()
        self._children: dict[int, tuple[int, socket.socket]] = {}
        self._selector = selectors.DefaultSelector()
        self._run = os.pidfd_open(run)
        self._selector.register(self._run, selectors.EVENT_READ)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(directory / f"{_SOCKET}.new"))
        self._listener.listen(64)
        self._selector.register(self._listener, selectors.EVENT_READ)
        (directory / f"{_SOCKET}.new").rename(directory / _SOCKET)

    def serve(self) -> Job | None:
        """Fork until the run has ended; return None then, and in each child its job."""
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._listener:
                    job = self._accept()
                    if job is not None:
                        return job
                elif key.fileobj == self._run:
                    for pid, _ in self._children.values():
                        with contextlib.suppress(ProcessLookupError):
                            os.killpg(pid, signal.SIGKILL)
                    return None
                else:
                    self._reap(int(key.fd))

    def _accept(self) -> Job | None:
        """Take one request; return the job in the child."""
        connection, _ = self._listener.accept()
        connection.settimeout(_REQUEST_S)
        head, fds, _, _ = socket.recv_fds(connection, _LENGTH.size, 1)
        job = Job(**json.loads(_exactly(connection, *_LENGTH.unpack(head))), log=fds[0])
        reason = self._reason_against(job)
        if reason is not None:
            print(reason, flush=True)  # noqa: T201  # its log
            os.close(job.log)
            _send(connection, {"refused": reason})
            connection.close()
            return None
        pid = os.fork()
        if pid == 0:
            connection.close()
            self._close()
            return job
        os.close(job.log)
        pidfd = os.pidfd_open(pid)
        self._children[pidfd] = (pid, connection)
        self._selector.register(pidfd, selectors.EVENT_READ)
        with contextlib.suppress(OSError):  # who asked may have ended
            _send(connection, {"pid": pid})
        return None

    def _reason_against(self, job: Job) -> str | None:
        """Say why a fork would not be what a real start is; None if it would."""
        threads = threading.active_count()
        if threads > 1:
            return f"{threads} threads run in the parent"
        names = {name for name in {*self._env, *job.env} if name in self._read or name.startswith("PYTHON")}
        # A test that has imported LiteLLM as well has what that sets.
        changed = sorted(
            name
            for name in names - {"PYTHONPATH"}
            if job.env.get(name) not in {self._env.get(name), self._own.get(name, self._env.get(name))}
        )
        return f"{job.argv}: read at import, and other values now: {', '.join(changed)}" if changed else None

    def _reap(self, pidfd: int) -> None:
        self._selector.unregister(pidfd)
        pid, connection = self._children.pop(pidfd)
        os.close(pidfd)
        _, status = os.waitpid(pid, 0)
        with contextlib.suppress(OSError), connection:  # who asked may have ended
            _send(connection, {"exit": os.waitstatus_to_exitcode(status)})

    def _close(self) -> None:
        """Close in a child what belongs to the parent."""
        self._selector.close()
        self._listener.close()
        os.close(self._run)
        for pidfd, (_, connection) in self._children.items():
            os.close(pidfd)
            connection.close()


def _imported() -> tuple[frozenset[str], Mapping[str, str], Mapping[str, str]]:
    """Import LiteLLM.

    Returns:
        The names of the variables that this has read, the environment at that time, and what LiteLLM has set in it.
    """
    read: set[str] = set()
    plain = type(os.environ)

    class Recording(plain):  # type: ignore[valid-type,misc]  # os has no public name for it
        def __getitem__(self, key: str) -> str:
            read.add(key)
            value: str = super().__getitem__(key)
            return value

    before, path = dict(os.environ), list(sys.path)
    os.environ.__class__ = Recording
    try:
        import litellm  # noqa: PLC0415  # what takes the time
        import litellm.proxy.proxy_server  # noqa: PLC0415  # as above

        for model in ("gpt-4o", "claude-haiku-4-5"):
            litellm.token_counter(model=model, text="loaded")
    finally:
        os.environ.__class__ = plain
    # Otherwise each fork's first collection would copy all of it, page by page.
    gc.collect()
    gc.freeze()
    # LiteLLM puts directories there that depend on the working directory.
    sys.path[:] = path
    ours = [name for name in sys.modules if name.partition(".")[0].startswith("pointsman")]
    if ours:
        raise RuntimeError(f"LiteLLM has imported {', '.join(ours)}: its code would not be what a proxy's start loads")
    own = {name: value for name, value in os.environ.items() if before.get(name) != value}
    return frozenset(read - set(_ONE_THREAD) | _READ_WITH_ALL), before, own


def _become(job: Job) -> None:
    """Make this process what a real start would have made it."""
    os.setsid()
    os.dup2(job.log, 1)
    os.dup2(job.log, 2)
    os.close(job.log)
    os.chdir(job.cwd)
    os.environ.clear()
    os.environ.update(job.env)
    modules = filter(None, job.env.get("PYTHONPATH", "").split(os.pathsep))
    sys.path[:0] = [str(Path("../..").resolve()), str(Path(job.argv[0]).parent), *modules]
    sys.argv[:] = job.argv
    _customize()
    from litellm.proxy import proxy_cli  # noqa: PLC0415  # not before LiteLLM

    # Its thread in the supervisor may hold a lock, of an import, while a worker is forked, in which nothing frees it.
    proxy_cli.start_query_engine_reaper = lambda: None
    # Spawned, each worker would import LiteLLM again.
    from uvicorn import _subprocess  # noqa: PLC0415  # not before LiteLLM

    _subprocess.spawn = multiprocessing.get_context("fork")  # type: ignore[assignment]  # it has the same methods


def _customize() -> None:
    """Load the ``sitecustomize`` of the module path of now; the parent may have loaded another one, as Debian's Python has."""
    sys.modules.pop("sitecustomize", None)
    with contextlib.suppress(ModuleNotFoundError):
        importlib.import_module("sitecustomize")


def main() -> None:
    """Serve until the run has ended; in a child, run LiteLLM's command."""
    job = WarmParent(Path(sys.argv[1]), int(sys.argv[2])).serve()
    if job is None:
        # Nothing is left to be cleaned up, and what LiteLLM does at exit takes its time.
        os._exit(0)
    _become(job)
    from litellm import run_server  # noqa: PLC0415  # as LiteLLM's console script does

    sys.exit(run_server())


if __name__ == "__main__":
    main()
