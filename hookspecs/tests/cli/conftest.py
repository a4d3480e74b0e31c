"""Commands run in process, configuration files, and plugins that look installed."""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import uvicorn
import yaml
from click.testing import CliRunner, Result
from starlette.applications import Starlette
from starlette.routing import Mount

from pointsman.cli import main
from pointsman.host.host import Host
from pointsman.host.settings import parse
from pointsman.testing.distribution import fake_distribution
from pointsman.testing.fakes import FakeCatalog

KEY = "sk-test-0123456789"
HANDLER = "pointsman.litellm.handler"

#: A plugin with hooks of every colour. A test changes a part of it.
PLUGIN = """
    from pointsman import PluginConfig, PluginInfo, hookimpl
    from pointsman.types import Status

    class Config(PluginConfig):
        limit: int = 3

    class Plugin:
        def __init__(self, config):
            self.config = config

        @property
        def services(self):
            raise RuntimeError("not started yet")

        @hookimpl
        async def startup(self, services):
            pass

        @hookimpl
        async def shutdown(self):
            pass

        @hookimpl
        async def pre_route(self, ctx, route):
            return None

        @hookimpl
        def status(self):
            return Status(ok=True, summary="fine")

    plugin = PluginInfo(name="NAME", config=Config, factory=Plugin, summary="For tests.", commands=None)
"""

Run = Callable[..., Result]
Install = Callable[..., str]


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no variable of this machine take part."""
    for name in ("POINTSMAN_URL", "POINTSMAN_KEY", "FORCE_COLOR", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("LITELLM_MASTER_KEY", KEY)


@pytest.fixture
def run() -> Run:
    """Run ``pointsman`` with these arguments."""

    def invoke(*args: str | Path) -> Result:
        return CliRunner().invoke(main, [str(arg) for arg in args], prog_name="pointsman")

    return invoke


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Make plugins look installed: ``install(name, (old, new), ...)`` writes a module with these changes of ``PLUGIN``."""
    library = tmp_path / "library"
    library.mkdir()
    monkeypatch.syspath_prepend(library)
    modules: list[str] = []

    def add(name: str, *changes: tuple[str, str], package: str | None = None) -> str:
        package = package or f"pointsman-{name}"
        module = package.replace("-", "_")
        text = textwrap.dedent(PLUGIN)
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        text = text.replace("NAME", name).replace("MODULE", module)
        (library / f"{module}.py").write_text(text, encoding="utf-8")
        fake_distribution(library, package, {name: f"{module}:plugin"})
        modules.append(module)
        importlib.invalidate_caches()
        return module

    yield add
    for module in modules:
        sys.modules.pop(module, None)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write a LiteLLM configuration that is correct except for the test's changes."""

    def document(section: Any = None, *, name: str = "litellm.yaml", **changes: Any) -> Path:
        content = {
            "model_list": [{"model_name": "chat", "litellm_params": {"model": "openai/gpt-4o"}}],
            "litellm_settings": {"callbacks": [HANDLER]},
            "general_settings": {"master_key": "os.environ/LITELLM_MASTER_KEY"},
            "pointsman": {"plugins": []} if section is None else section,
            **changes,
        }
        file = tmp_path / name
        file.write_text(yaml.safe_dump({key: value for key, value in content.items() if value is not ...}))
        return file

    return document


@pytest.fixture
def problems(run: Run, write: Callable[..., Path]) -> Callable[..., list[str]]:
    """Return the messages of ``pointsman check`` for a section, errors first, each with its level."""

    def messages(section: Any = None, **changes: Any) -> list[str]:
        result = run("check", write(section, **changes), "--json")
        answer = json.loads(result.stdout)
        assert result.exit_code == (0 if answer["ok"] else 1)
        assert answer["ok"] is not bool(answer["errors"])
        return [f"{found['level']}: {found['message']}" for found in [*answer["errors"], *answer["warnings"]]]

    return messages


@pytest.fixture
def serving() -> Callable[..., AbstractContextManager[tuple[str, Host]]]:
    """Serve the admin surface of a host during a ``with`` block."""
    return _serving


@contextmanager
def _serving(section: dict[str, Any], base: Path) -> Iterator[tuple[str, Host]]:
    """Serve the admin surface of a real host, started with this section; yield its URL and the host."""
    host = Host(
        parse(section, "test.yaml", base),
        SimpleNamespace(catalog=FakeCatalog([]), prices=None, tokenizer=None, upstream=None),
    )
    server = uvicorn.Server(uvicorn.Config(Starlette(), port=0, log_level="error", lifespan="off"))
    ready = threading.Event()

    async def serve() -> None:
        await host.start()
        server.config.app = Starlette(routes=[Mount("/pointsman", app=host.admin)])
        task = asyncio.create_task(server.serve())
        while not server.started and not task.done():  # noqa: ASYNC110 - uvicorn has a flag and no event
            await asyncio.sleep(0.01)
        ready.set()
        try:
            await task
        finally:
            await host.abandon()

    thread = threading.Thread(target=asyncio.run, args=(serve(),), name="admin")
    thread.start()
    assert ready.wait(20), "the server did not start"
    try:
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}", host
    finally:
        server.should_exit = True
        thread.join()
