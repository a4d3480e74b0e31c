"""The contract before and after traffic: import, configuration, start and stop."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

from ...errors import PointsmanError
from .base import ContractBase, ContractViolation, check, run

_IMPORTER = """
import importlib, importlib.util, json, os, sys, threading
name, file = sys.argv[1:3]
seen = []
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
WATCHED = {"socket.connect", "socket.bind", "subprocess.Popen", "os.system", "os.mkdir", "os.remove", "os.rename",
           "os.putenv", "os.unsetenv", "os.chdir", "os.fork", "sqlite3.connect"}

def watch(event, arguments):
    if event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITES:
        seen.append(f"writes {arguments[0]}")
    elif event in WATCHED:
        seen.append(f"{event} {arguments[:1]}")

import pointsman, pointsman.store, pointsman.types, pointsman.errors
import asyncio, click, httpx, pydantic, starlette.routing, starlette.responses, opentelemetry.trace
sys.addaudithook(watch)
try:
    found = importlib.util.find_spec(name) is not None
except ModuleNotFoundError:
    found = False
if found:
    importlib.import_module(name)
else:
    spec = importlib.util.spec_from_file_location(name, file)
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
seen += [f"starts thread {thread.name}" for thread in threading.enumerate() if thread is not threading.main_thread()]
seen += [f"imports {name}" for name in ("litellm", "pointsman.host", "pointsman.litellm") if name in sys.modules]
print(json.dumps(seen))
"""


class LifeContract(ContractBase):
    """Import, configuration, start and stop."""

    def test_importing_it_has_no_effect(self) -> None:
        """Nothing is written, connected or started by the import, and neither the host nor LiteLLM is needed for it."""
        module = self.info.factory.__module__
        file = getattr(sys.modules.get(module), "__file__", None) or ""
        done = subprocess.run(  # noqa: S603  # our own command
            [sys.executable, "-B", "-c", _IMPORTER, module, file],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        check(done.returncode == 0, f"{module} cannot be imported by itself:\n{done.stderr}")
        seen = json.loads(done.stdout.splitlines()[-1])
        check(not seen, f"importing {module} has effects: {', '.join(seen)}")

    def test_it_accepts_its_own_configuration(self) -> None:
        """The configuration that the suite is given starts, and builds a new object each time."""
        section = self.info.config.model_validate(dict(self.config))
        check(self.info.factory(section) is not self.info.factory(section), "the factory returns the same object twice")
        run(self._starts(dict(self.config)))

    def test_an_unknown_key_is_refused(self) -> None:
        """A misspelt key stops the start, with a message that names it."""
        message = run(self._refusal({**self.config, "no_such_key": 1}))
        check("no_such_key" in message, f"the message does not name the unknown key: {message}")

    def test_bad_configuration_is_refused(self) -> None:
        """Each bad configuration stops the start, with a message that names what is wrong and where."""
        check(self.bad_configs, "the suite was given no bad_configs: name at least one (section, word of the message)")
        for section, word in self.bad_configs:
            message = run(self._refusal(section))
            check(word in message, f"{section}: the message does not say {word!r}: {message}")
            check(self.info.name in message, f"{section}: the message does not name the plugin: {message}")

    def test_it_starts_and_stops_again_and_again(self) -> None:
        """A second life on the same store works as the first one, and no life leaves anything behind."""
        run(self._lives())

    async def _starts(self, section: dict[str, Any]) -> None:
        async with self.worker(config=section) as h:
            self.check_healthy(h, "after the start")

    async def _refusal(self, section: Any) -> str:
        h = self.make(config=dict(section))
        try:
            await h.start()
        except PointsmanError as err:
            return str(err)
        await h.stop()
        raise ContractViolation(f"the configuration {section} was not refused")

    async def _lives(self) -> None:
        async with self.worker() as h:
            for life in ("first", "second", "third"):
                result = await self.ask(h)
                await h.settled()
                self.check_healthy(h, f"in its {life} life")
                check(result.status < 500, f"in its {life} life a request ended with {result.status}: {result.error}")  # noqa: PLR2004  # HTTP
                await h.restart()
            await h.stop()
            await h.stop()
            self.check_healthy(h, "after the last stop")
