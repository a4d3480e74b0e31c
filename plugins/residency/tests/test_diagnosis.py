"""``pointsman doctor`` asks the servers of the pools, on sockets, and changes nothing there."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
import uvicorn
import yaml
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from pointsman.cli.doctor import examine
from pointsman.testing import FakeClock
from pointsman.testing.ports import free_port
from pointsman.testing.provider.server import listen, url_of
from pointsman_residency.config import ResidencyConfig

from .recorded import SERVERS


@contextlib.asynccontextmanager
async def served(app):
    """Yield the URL of an application."""
    listening = listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, ws="none", lifespan="off", log_config=None))
    task = asyncio.ensure_future(server.serve([listening]))
    try:
        yield url_of(listening)
    finally:
        server.should_exit = True
        await task


def section(kind, url, models=("a", "b"), budget=10_000_000, footprint=2_307_584, **settings):
    server = {"kind": kind, "url": url, **SERVERS[kind].settings, **settings}
    return {
        "pools": {
            "gpu": {"budget": budget, "server": server, "models": {name: {"footprint": footprint} for name in models}}
        }
    }


async def remarks(document):
    return [(remark.level, remark.text) for remark in await ResidencyConfig.model_validate(document).check_services()]


@pytest.mark.parametrize("kind", sorted(SERVERS))
async def test_a_server_that_answers_is_fine_and_is_left_as_it_is(kind):
    recorded = SERVERS[kind](FakeClock())
    before = recorded.state()
    async with served(recorded.app) as url:
        ((level, text),) = await remarks(section(kind, url))
    assert (level, url in text) == ("ok", True)
    assert recorded.state() == before
    assert {method for method, _ in recorded.calls} == {"GET"}


@pytest.mark.parametrize("kind", sorted(SERVERS))
async def test_a_server_that_is_not_there_is_a_failure_that_says_where(kind):
    url = f"http://127.0.0.1:{free_port()}"
    ((level, text),) = await remarks(section(kind, url))
    assert (level, f"pools.gpu: {kind} at {url}" in text, "start it" in text) == ("failed", True, True)


@pytest.mark.parametrize("kind", sorted(SERVERS))
async def test_a_server_of_another_kind_is_a_failure(kind):
    other = Starlette(routes=[Route("/{path:path}", lambda _: PlainTextResponse("Hello"))])
    async with served(other) as url:
        ((level, text),) = await remarks(section(kind, url))
    assert (level, f"not as {kind} does" in text) == ("failed", True)


async def test_what_is_in_memory_beyond_the_budget_is_a_warning():
    recorded = SERVERS["ollama"](FakeClock())
    recorded.loaded.update(a="ready", b="ready")
    async with served(recorded.app) as url:
        assert [level for level, _ in await remarks(section("ollama", url, budget=5_000_000))] == ["ok"]
        ((level, text),) = await remarks(section("ollama", url, budget=3_000_000))
    assert (level, "4615168 bytes of a budget of 3000000" in text) == ("warning", True)


@pytest.mark.parametrize(("most", "warned"), [(1, True), (2, False), (0, False)])
async def test_a_server_whose_own_limit_is_below_what_fits_is_a_warning(most, warned):
    recorded = SERVERS["llama_cpp"](FakeClock())
    recorded.most = most
    async with served(recorded.app) as url:
        found = await remarks(section("llama_cpp", url))
    assert any(level == "warning" and "2 fit into the budget" in text for level, text in found) is warned


async def test_a_server_without_a_list_is_a_warning():
    document = section("generic", "http://models.test")
    del document["pools"]["gpu"]["server"]["list"]
    ((level, text),) = await remarks(document)
    assert (level, "set list" in text) == ("warning", True)


async def test_doctor_shows_it(tmp_path):
    """Two servers of one pool: one is there, and one is not."""
    gone = f"http://127.0.0.1:{free_port()}"
    async with served(SERVERS["ollama"](FakeClock()).app) as url:
        document = section("ollama", url)
        document["pools"]["gpu"]["models"]["b"]["server"] = {"kind": "ollama", "url": gone}
        file = tmp_path / "litellm.yaml"
        file.write_text(yaml.safe_dump({"model_list": [], "pointsman": {"plugins": [{"residency": document}]}}))
        found = [finding for finding in await examine(file, None, None) if finding.subject == "residency"]
    assert {(finding.level.value, url in finding.message, gone in finding.message) for finding in found} >= {
        ("ok", True, False),
        ("failed", False, True),
    }
