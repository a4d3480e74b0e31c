"""Proxies that are forks of a warm parent: what is as after a real start, and what needs one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import litellm
import pytest

from pointsman.testing import warm
from pointsman.testing.proxy import ProxyServer

pytestmark = pytest.mark.proxy

MODEL = {"model_name": "chat", "litellm_params": {"model": "openai/gpt-4o", "api_key": "none"}}

CALLBACKS = """
import json
import os
import sys

from litellm.integrations.custom_logger import CustomLogger

print("SHOWN", json.dumps([os.getcwd(), sys.argv, os.environ.get("ONLY_HERE"), os.getsid(0) == os.getpid(), sys.path]))
handler = CustomLogger()
"""

ORPHANS = """
import sys
from pathlib import Path
from pointsman.testing import warm
from pointsman.testing.proxy import ProxyServer

directory = Path(sys.argv[1])
(directory / "warm").mkdir()
warm.prepare(directory / "warm")
server = ProxyServer({"model_list": []}, directory / "proxy")
server.launch()
server.wait_ready()
print(server.pid, warm._parents[0].pid, flush=True)
os = __import__("os")
os._exit(0)
"""


def shown(proxy: ProxyServer) -> str:
    return next(line for line in proxy.log().splitlines() if line.startswith("SHOWN"))


def test_a_fork_is_what_a_real_start_is(tmp_path, monkeypatch):
    """Arguments, environment, directory, session, module path and exit codes."""
    (tmp_path / "library").mkdir()
    (tmp_path / "library" / "shows.py").write_text(CALLBACKS)
    config = {"model_list": [MODEL], "litellm_settings": {"callbacks": ["shows.handler"]}}
    outputs = {}
    for name, fresh in (("forked", False), ("real", True)):
        proxy = ProxyServer(
            config,
            tmp_path / name / "proxy",
            env={"ONLY_HERE": "yes"},
            python_path=(tmp_path / "library",),
            fresh=fresh,
        )
        with proxy:
            assert isinstance(proxy._process, warm.Forked) != fresh
            output = shown(proxy).replace(str(proxy.port), "PORT").replace(f"/{name}", "/NAME")
        outputs[name] = (output, proxy.stop())
    assert outputs["forked"] == outputs["real"]
    with ProxyServer({"model_list": [MODEL]}, tmp_path / "killed") as killed, monkeypatch.context() as patch:
        assert killed.stop(signal.SIGKILL) == -signal.SIGKILL
        # The number may be that of another proxy by then.
        patch.setattr(os, "killpg", lambda *_: pytest.fail("a group that has ended is ended again"))
        assert killed.stop() == -signal.SIGKILL


def test_several_workers_are_forks_too(tmp_path):
    """Each starts as LiteLLM does, and all end with their supervisor, with the code of a real start."""
    (tmp_path / "library").mkdir()
    (tmp_path / "library" / "shows.py").write_text(CALLBACKS)
    config = {"model_list": [MODEL], "litellm_settings": {"callbacks": ["shows.handler"]}}
    with ProxyServer(config, tmp_path / "proxy", workers=2, python_path=(tmp_path / "library",)) as proxy:
        assert isinstance(proxy._process, warm.Forked)
        assert len(list(Path(f"/proc/{proxy.pid}/task").iterdir())) == 1, (
            "a lock of another thread is held for ever in a fork"
        )
        # A supervisor that spawns has one more, for semaphores.
        workers = [int(pid) for pid in Path(f"/proc/{proxy.pid}/task/{proxy.pid}/children").read_text().split()]
        assert len(workers) == 2
        assert proxy.log().count("SHOWN") == 2
    assert proxy.stop() == 0
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists() and not zombie(pid)]


@pytest.mark.parametrize(("name", "value"), [("LITELLM_LOG", "ERROR"), ("LITELLM_OTEL_V2", "true")])
def test_a_variable_that_litellm_reads_at_import_needs_a_real_start(tmp_path, name, value):
    proxy = ProxyServer({"model_list": [MODEL]}, tmp_path, env={name: value})
    proxy.launch()
    try:
        assert isinstance(proxy._process, subprocess.Popen)
    finally:
        proxy.stop(signal.SIGKILL)


def test_what_litellm_itself_sets_when_it_is_imported_needs_none(tmp_path):
    """Tests of one process share its environment, and some of them use LiteLLM."""
    litellm.token_counter(model="gpt-4o", text="loaded")
    assert "TIKTOKEN_CACHE_DIR" in os.environ
    with ProxyServer({"model_list": [MODEL]}, tmp_path) as proxy:
        assert isinstance(proxy._process, warm.Forked)


@pytest.mark.parametrize("own", [False, True], ids=["none of its own", "one of its own"])
def test_a_fork_loads_its_sitecustomize_where_the_parent_has_another(tmp_path, monkeypatch, own):
    """Debian's Python brings one, which the parent has loaded."""
    debian, mine = tmp_path / "debian", tmp_path / "mine"
    for directory in (debian, mine):
        directory.mkdir()
        monkeypatch.syspath_prepend(directory)
    (debian / "sitecustomize.py").write_text("whose = 'debian'")
    if own:
        (mine / "sitecustomize.py").write_text("whose = 'mine'")
    monkeypatch.setitem(sys.modules, "sitecustomize", ModuleType("sitecustomize"))
    warm._customize()
    expected = "mine" if own else "debian"
    assert sys.modules["sitecustomize"].whose == expected


def test_without_a_run_every_start_is_real(tmp_path, monkeypatch):
    monkeypatch.delenv(warm.VARIABLE)
    assert warm.fork(["litellm"], {}, tmp_path, 1) is None


def test_nothing_outlives_the_run(tmp_path):
    """Not even when the run is killed: its parent ends with it, and the proxies with the parent."""
    env = {name: value for name, value in os.environ.items() if name != warm.VARIABLE}
    done = subprocess.run(  # noqa: S603  # our own
        [sys.executable, "-c", ORPHANS, tmp_path], env=env, capture_output=True, text=True, timeout=150, check=True
    )
    pids = [int(word) for word in done.stdout.split()]
    deadline = time.monotonic() + 30
    while left := [pid for pid in pids if Path(f"/proc/{pid}").exists() and not zombie(pid)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def zombie(pid: int) -> bool:
    """Say whether a process has ended and waits for its parent, which may be an init that does not look after it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True
