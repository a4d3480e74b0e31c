"""The adapter of llama-swap before a real one, built by ``tests/services/install.sh``, whose models are llama.cpp's."""

from __future__ import annotations

import contextlib
import importlib.util
import subprocess
import sys

import pytest
import yaml

from pointsman.testing.ports import free_port
from pointsman_residency.diagnosis import WallClock
from pointsman_residency.servers import BUILT_IN, Listed, ServerError, Trouble
from pointsman_residency.servers.connect import connect

from . import llama
from .real_servers import CACHE, PATIENCE_S

PROGRAM = CACHE / "llama-swap-fdda55e46644" / "llama-swap"

pytestmark = [
    pytest.mark.services,
    pytest.mark.timeout(400),
    pytest.mark.skipif(
        not PROGRAM.exists(), reason=f"{PROGRAM} is missing; plugins/residency/tests/services/install.sh builds it"
    ),
    pytest.mark.skipif(
        importlib.util.find_spec("xllamacpp") is None or importlib.util.find_spec("gguf") is None,
        reason="xllamacpp and gguf, llama.cpp's server as a wheel and its file format, are not installed",
    ),
]


@contextlib.asynccontextmanager
async def running(folder):
    """Yield the adapter of a llama-swap with two models, and one whose process ends at once."""
    models = {"broken": {"cmd": f"{sys.executable} -c 'raise SystemExit(1)' ${{PORT}}"}}
    for name in ("one", "two"):
        llama.make_model(folder / f"{name}.gguf")
        models[name] = {"cmd": f"{sys.executable} {llama.__file__} {folder / name}.gguf ${{PORT}}"}
    # Both may be in memory: what goes is the pool's to decide.
    groups = {"pool": {"swap": False, "members": list(models)}}
    (folder / "config.yaml").write_text(yaml.safe_dump({"models": models, "groups": groups}))
    address = f"127.0.0.1:{free_port()}"
    with (folder / "log").open("wb") as log:
        command = [PROGRAM, "-config", folder / "config.yaml", "-listen", address]
        process = subprocess.Popen(command, stdout=log, stderr=log)  # noqa: S603, ASYNC220  # our own command, at once
    adapter = connect(
        BUILT_IN["llama_swap"],
        f"http://{address}",
        headers={},
        settings={},
        clock=WallClock(),
        timeout_s=PATIENCE_S,
    )
    try:
        async with adapter.client:
            while not await listening(adapter):
                assert process.poll() is None, (folder / "log").read_text()
                await WallClock.sleep(0.1)
            yield adapter
    finally:
        process.terminate()
        process.wait(30)


async def listening(adapter):
    try:
        await adapter.models()
    except ServerError:
        return False
    return True


async def test_it_lists_loads_and_unloads_on_a_real_llama_swap(tmp_path):
    async with running(tmp_path) as adapter:
        assert await adapter.models() == {}
        await adapter.load("one")
        await adapter.load("two")
        await adapter.load("one")
        assert await adapter.models() == {"one": Listed(), "two": Listed()}
        await adapter.unload("one")
        while "one" in await adapter.models():
            await WallClock.sleep(0.1)
        await adapter.unload("one")
        assert await adapter.models() == {"two": Listed()}
        with pytest.raises(ServerError) as broken:
            await adapter.load("broken")
        assert broken.value.trouble is Trouble.BROKEN
        with pytest.raises(ServerError) as unknown:
            await adapter.load("nowhere")
        assert unknown.value.trouble is Trouble.MISSING
        assert await adapter.models() == {"two": Listed()}
