"""The contract before and after traffic: import, configuration, start and stop."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from typing import Any, Final

from ...errors import PointsmanError
from ..script import ok
from .base import ContractBase, ContractViolation, check

#: A setting that every plugin has, and that changes nothing in a test.
_OTHER: Final = {"suspend_s": 31.5}
#: The longest that a request may take, in seconds of the kit's clock.
_PATIENCE_S: Final = 120
_LOOKS: Final = 200
_IMPORTER = """
import importlib, importlib.util, json, os, sys, threading
name, file = sys.argv[1:3]
sys.dont_write_bytecode = True
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
            [sys.executable, "-c", _IMPORTER, module, file],
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
        self.run(self._starts(dict(self.config)))

    def test_an_unknown_key_is_refused(self) -> None:
        """A misspelt key stops the start, with a message that names it."""
        message = self.run(self._refusal({**self.config, "no_such_key": 1}))
        check("no_such_key" in message, f"the message does not name the unknown key: {message}")

    def test_bad_configuration_is_refused(self) -> None:
        """Each bad configuration stops the start, with a message that names what is wrong and where."""
        check(self.bad_configs, "the suite was given no bad_configs: name at least one (section, word of the message)")
        for section, word in self.bad_configs:
            message = self.run(self._refusal(section))
            check(word in message, f"{section}: the message does not say {word!r}: {message}")
            check(self.info.name in message, f"{section}: the message does not name the plugin: {message}")

    def test_it_starts_and_stops_again_and_again(self) -> None:
        """A second life on the same store works as the first one, and no life leaves anything behind."""
        self.run(self._lives())

    def test_a_reload_with_another_setting_rebuilds_it(self) -> None:
        """A request that runs meanwhile ends with the old one, the next begins with the new one, each is settled once."""
        self.run(self._reloads())

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

    async def _reloads(self) -> None:
        name = self.info.name
        async with self.worker() as h:
            await self.ask(h)
            running = asyncio.create_task(self.ask(h, script=ok(latency_s=5.0), moves_clock=False))
            await h.clock.quiet()
            result = await h.reload([(self.info, {**self.config, **_OTHER})])
            check(result.error is None, f"it cannot be rebuilt while it runs: {result.error}")
            check(result.started == (name,), f"another setting rebuilds {result.started} instead of {name!r}")
            for _ in range(_PATIENCE_S):
                if running.done():
                    break
                await h.clock.advance(1.0)
            results = [await running, await self.ask(h)]
            await h.settled()
            for which, one in zip(("that ran during the reload", "after the reload"), results, strict=True):
                check(one.status < 500, f"the request {which} ended with {one.status}: {one.error}")  # noqa: PLR2004  # HTTP
                made = [settlement for settlement in h.settlements if settlement.request_id == one.request_id]
                check(len(made) == 1, f"the request {which} was settled {len(made)} times")
            for _ in range(_LOOKS):
                if not h.host.describe()["leaving"]:
                    break
                await h.clock.advance(0.5)
                await asyncio.sleep(0.05)  # its shutdown may need threads
            check(not h.host.describe()["leaving"], "the old one has not ended although nothing needs it")
            self.check_healthy(h, "after the reload")
