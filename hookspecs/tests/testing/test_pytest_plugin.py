"""The pytest plugin as an author meets it: in a project of his own, in a run of his own."""

from __future__ import annotations

import subprocess
import sys

import pytest

AUTHOR = """
import asyncio
import sys
import threading
import urllib.request

import pytest

from pointsman import PluginConfig, PluginInfo

INFO = PluginInfo(name="mine", config=PluginConfig, factory=lambda config: object())


@pytest.mark.asyncio
async def test_harness(harness, leak_check, tmp_path):
    async with harness([INFO], store="disk") as h:
        assert (await h.request()).status == 200
    assert (tmp_path / "store").is_dir()


@pytest.mark.asyncio
async def test_clock(fake_clock):
    await fake_clock.advance(5.0)
    assert fake_clock.monotonic() == 5.0


def test_upstream(upstream_server):
    server = upstream_server()
    with pytest.raises(urllib.error.HTTPError):
        urllib.request.urlopen(server.url + "/nothing", timeout=5)


@pytest.mark.asyncio
async def test_leaking_task(leak_check):
    test_leaking_task.task = asyncio.create_task(asyncio.sleep(60), name="forgotten")


def test_leaking_thread(leak_check):
    threading.Thread(target=threading.Event().wait, name="forgotten", daemon=True).start()


def test_no_litellm():
    assert "litellm" not in sys.modules
"""

STRANGER = """
import sys

def test_nothing_of_ours_is_there(request):
    ours = sorted(name for name in sys.modules if name.split(".")[0] == "pointsman")
    assert ours == ["pointsman", "pointsman.testing", "pointsman.testing.pytest_plugin"]
    assert not [name for name in sys.modules if name.split(".")[0] in ("pydantic", "opentelemetry", "litellm", "httpx")]
    assert not [name for name in request.fixturenames if "leak" in name or "harness" in name]
"""

ENDING = """
import subprocess
import sys
from types import SimpleNamespace

import pytest

from pointsman.testing.proxy import ProxyServer


class Ending(ProxyServer):
    def launch(self):
        command = [sys.executable, "-c", "print('last words'); input(); sys.exit(7)"]
        with self.log_path.open("wb") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log)


@pytest.fixture(scope="module")
def rig(tmp_path_factory):
    proxy = Ending({}, tmp_path_factory.mktemp("proxy"))
    proxy.launch()
    yield SimpleNamespace(proxy=proxy)
    proxy._process.stdin.close()


def test_before(rig):
    assert rig.proxy.running


def test_during(rig):
    rig.proxy._process.communicate(b"go")
    RAISES


def test_after(rig):
    raise AssertionError("it does not run")


test_later = test_after
"""

#: What pytest-asyncio wants to be told.
ASYNCIO = ("-o", "asyncio_default_fixture_loop_scope=function")


def run(directory, text, *arguments):
    (directory / "test_it.py").write_text(text)
    (directory / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\naddopts = --strict-markers\n")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "-rfE", *arguments]
    return subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=120, check=False)  # noqa: S603  # our own


def test_the_fixtures_work_in_a_project_of_its_own(tmp_path):
    """In strict mode, with warnings as errors: everything works, and only the two that leak fail."""
    done = run(tmp_path, AUTHOR, *ASYNCIO)
    assert "6 passed, 2 errors" in done.stdout, done.stdout
    assert "left behind: task forgotten" in done.stdout
    assert "left behind: thread forgotten" in done.stdout


@pytest.mark.parametrize("arguments", [ASYNCIO, ("-p", "no:asyncio", "-p", "no:anyio")])
def test_a_run_that_uses_nothing_gets_nothing(tmp_path, arguments):
    """The plugin alone imports nothing, adds no fixture by itself and warns of nothing."""
    done = run(tmp_path, STRANGER, "-p", "no:hypothesispytest", *arguments)
    assert "1 passed" in done.stdout, done.stdout + done.stderr
    assert "warning" not in done.stdout


@pytest.mark.parametrize("statement", ["pass", "raise KeyError('the consequence')"])
def test_a_proxy_that_ends_by_itself_fails_one_test_with_its_output(tmp_path, statement):
    """Whether the test notices or not; the others that share the proxy are skipped."""
    done = run(tmp_path, ENDING.replace("RAISES", statement), *ASYNCIO)
    assert "1 failed, 1 passed, 2 skipped" in done.stdout, done.stdout
    assert "ended by itself with code 1" in done.stdout
    assert "last words" in done.stdout
    assert ("the consequence" in done.stdout) == ("consequence" in statement)
