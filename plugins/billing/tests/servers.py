"""A real PostgreSQL and a real Kafka broker, each on a free port with a directory of its own, ended with the test.

``services/install.sh`` gets what they need.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from pointsman.testing.ports import free_port

INSTALL = "plugins/billing/tests/services/install.sh gets it"
KAFKA_JARS = Path(os.environ.get("POINTSMAN_SERVICES") or Path.home() / ".cache" / "pointsman") / "kafka-3.9.1"
_START_S = 60.0


def _wait(ready: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_S
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline:
            text = log.read_text(encoding="utf-8", errors="replace")[-3000:]
            pytest.fail(f"{log.stem} does not start; its log:\n{text}")
        time.sleep(0.1)


def _end(process: subprocess.Popen[bytes], how: signal.Signals) -> None:
    if process.poll() is None:
        process.send_signal(how)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
    if process.poll() is None:
        process.kill()
        process.wait(10)


class PostgresServer:
    """A PostgreSQL that can be stopped and started again.

    Args:
        directory: For data and log; made readable for the user that runs it.
    """

    def __init__(self, directory: Path) -> None:
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[4]))
        if not found:
            pytest.skip(f"PostgreSQL is not installed; {INSTALL}")
        self._bin = found[-1].parent
        self._root = os.geteuid() == 0
        if self._root:
            try:
                pwd.getpwnam("postgres")
            except KeyError:
                pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
            if shutil.which("setpriv") is None:
                pytest.skip("PostgreSQL does not run as root, and setpriv is missing")
        self.port = free_port()
        self.dsn = f"postgresql://postgres@127.0.0.1:{self.port}/postgres"
        # Below /tmp: the user postgres cannot enter pytest's own directory.
        self._home = directory
        self._data = directory / "data"
        self._log = directory / "postgres.log"
        self._process: subprocess.Popen[bytes] | None = None
        if self._root:
            shutil.chown(directory, "postgres", "postgres")
        init = [str(self._bin / "initdb"), "-D", str(self._data), "-U", "postgres", "-A", "trust", "-N", "-E", "UTF8"]
        subprocess.run(self._as_user(init), check=True, stdout=subprocess.DEVNULL, cwd="/")  # noqa: S603  # our own command

    def _as_user(self, command: Sequence[str]) -> list[str]:
        prefix = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if self._root else []
        return [*prefix, *command]

    def start(self) -> None:
        command = [str(self._bin / "postgres"), "-D", str(self._data), "-p", str(self.port), "-h", "127.0.0.1"]
        command += ["-k", str(self._home), "-c", "fsync=off"]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._as_user(command), stdout=log, stderr=log, cwd="/")  # noqa: S603  # as above
        _wait(self._answers, self._process, self._log)

    def _answers(self) -> bool:
        command = [str(self._bin / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        return subprocess.run(command, check=False).returncode == 0  # noqa: S603  # as above

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        if self._process is not None:
            _end(self._process, how)
            self._process = None


class KafkaServer:
    """One Kafka broker in KRaft mode that can be stopped and started again.

    Args:
        directory: For data and log.
    """

    def __init__(self, directory: Path) -> None:
        java = shutil.which("java")
        if java is None or not (KAFKA_JARS / "complete").exists():
            pytest.skip(f"a Kafka broker (java, and jars in {KAFKA_JARS}) is not installed; {INSTALL}")
        self._java = [java, "-Xmx256m", "-Xshare:auto", "-XX:TieredStopAtLevel=1"]
        self._java += ["-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-cp", f"{KAFKA_JARS}/*"]
        self.port = free_port()
        self.bootstrap = f"127.0.0.1:{self.port}"
        controller = free_port()
        self._log = directory / "kafka.log"
        self._properties = directory / "server.properties"
        self._properties.write_text(
            f"""
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=PLAINTEXT://127.0.0.1:{self.port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{self.port}
controller.listener.names=CONTROLLER
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
log.dirs={directory / "data"}
num.partitions=3
offsets.topic.replication.factor=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
group.initial.rebalance.delay.ms=0
""",
            encoding="utf-8",
        )
        self._process: subprocess.Popen[bytes] | None = None
        tool = ["kafka.tools.StorageTool", "format", "-t", "MkU3OEVBNTcwNTJENDM2Qk", "-c", str(self._properties)]
        with self._log.open("ab") as log:
            subprocess.run([*self._java, *tool], check=True, stdout=log, stderr=log)  # noqa: S603  # our own command

    def start(self) -> None:
        with self._log.open("ab") as log:
            command = [*self._java, "kafka.Kafka", str(self._properties)]
            self._process = subprocess.Popen(command, stdout=log, stderr=log)  # noqa: S603  # as above
        _wait(self._answers, self._process, self._log)

    def _answers(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def stop(self, how: signal.Signals = signal.SIGKILL) -> None:
        if self._process is not None:
            _end(self._process, how)
            self._process = None


@contextlib.contextmanager
def running(server: PostgresServer | KafkaServer) -> Iterator[PostgresServer | KafkaServer]:
    """Run a server during the ``with`` block."""
    server.start()
    try:
        yield server
    finally:
        server.stop()
