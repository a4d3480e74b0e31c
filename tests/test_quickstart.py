"""The quickstart as a new user runs it: its configuration passes the check, and the demo keeps what it promises."""

from __future__ import annotations

import io
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from pointsman.testing.otlp import Collector
from pointsman.testing.ports import free_port
from pointsman.testing.provider import Behaviour, UpstreamServer

QUICKSTART = Path(__file__).parents[1] / "examples" / "quickstart"
KEYS = ("OPENAI_API_KEY", "OPENAI_BASE_URL", "ANTHROPIC_API_KEY", "ANTHROPIC_BASE_URL", "LITELLM_MASTER_KEY")


def run(command: list[str | Path], temp: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a command in an environment without any key or exporter but these; what it leaves behind is in ``temp``."""
    clean = {name: value for name, value in os.environ.items() if name not in KEYS and not name.startswith("OTEL_")}
    env = clean | {"TMPDIR": str(temp), "COLUMNS": "132"} | env
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)  # noqa: S603 - our own commands


def demo(temp: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return run([sys.executable, QUICKSTART / "demo.py", *arguments], temp, **env)


def rows(output: str, call: str) -> list[str]:
    """Return the first lines of the request table's rows that show a call."""
    return [line.rstrip() for line in output.splitlines() if re.match(rf"\d+ +{re.escape(call)} ", line)]


def test_the_configuration_passes_the_check(tmp_path: Path) -> None:
    """With the variables that it names there is not even a warning."""
    pointsman = Path(sys.executable).with_name("pointsman")
    done = run([pointsman, "check", QUICKSTART / "litellm.yaml"], tmp_path, LITELLM_MASTER_KEY="sk-0123456789")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "registry" in done.stdout
    assert "warning" not in done.stdout.replace("no warnings", "")


@pytest.mark.proxy
@pytest.mark.timeout(300)
def test_the_demo_shows_every_kind_of_request_and_checks_itself(tmp_path: Path) -> None:
    """Without keys: both clients, all endpoints, a retry, a fallback, a denial, a promotion; nothing is left behind."""
    done = demo(tmp_path, "--once")
    out = done.stdout
    assert done.returncode == 0, out + done.stderr
    assert "OpenAI bundled, Anthropic bundled" in out
    counts = {f"OpenAI {each}": len(rows(out, f"OpenAI {each}")) for each in ("chat", "responses", "embeddings")}
    assert counts == {"OpenAI chat": 5, "OpenAI responses": 2, "OpenAI embeddings": 1}
    assert len(rows(out, "Anthropic messages")) == 3
    assert re.search(r"primary small-[ab] 503 server", out)
    assert re.search(r"retry small-[ab] ok", out)
    assert "primary retired-a 404 not_found" in out
    assert re.search(r"fallback small-[ab] ok", out)
    (denied,) = (row for row in rows(out, "OpenAI chat") if "registry: denied" in row)
    assert denied.endswith(" 503")
    assert "'preview' has no active version" in out
    for phase in ("before +registry: version 1", "promoted +registry: version 2", "rolled back +registry: version 1"):
        assert re.search(phase, out), phase
    assert re.search(r"assistant-1 .*\n.*assistant-2 ", out)
    assert "All as it should be" in out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.proxy
@pytest.mark.timeout(300)
def test_the_same_configuration_serves_a_provider_of_which_there_is_a_key(tmp_path: Path) -> None:
    """With a key the provider itself is asked and the key is never shown; the user's collector gets the spans too."""
    retired = Behaviour(error_ratios={404: 1.0})
    with UpstreamServer({"gpt-4.5-preview": retired}) as provider, Collector() as collector:
        done = demo(
            tmp_path,
            "--once",
            f"--port={free_port()}",
            OPENAI_API_KEY="sk-of-the-user-5f1c",
            OPENAI_BASE_URL=f"{provider.url}/v1",
            LITELLM_MASTER_KEY="sk-master-of-the-user-77ab",
            OTEL_EXPORTER_OTLP_ENDPOINT=collector.url,
        )
        asked = {request.model for request in provider.requests}
        deployments = {span.attributes.get("pointsman.deployment") for span in collector.spans}
    out = done.stdout + done.stderr
    assert done.returncode == 0, out
    assert "OpenAI real, Anthropic bundled" in out
    assert "sk-of-the-user" not in out
    assert "sk-master-of-the-user" not in out
    assert asked == {"gpt-4o-mini", "gpt-4o-mini-2024-07-18", "gpt-4.5-preview", "text-embedding-3-small"}
    assert {"claude-a", "small-a"} <= deployments
    assert "0 exports were not accepted" in out


@pytest.mark.parametrize("width", [40, 200])
def test_what_it_says_to_type_works_in_another_terminal(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is copied, also where ``pointsman`` is on the PATH of the demo alone, as in an environment of tox."""
    monkeypatch.syspath_prepend(str(QUICKSTART))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:/usr/bin:/bin")
    from tour.advice import how_to_talk  # noqa: PLC0415  # beside the demo

    out = io.StringIO()
    proxy = SimpleNamespace(url="http://127.0.0.1:12345", master_key="sk-demo-0123456789", log_path="proxy.log")
    on: Any = SimpleNamespace(proxy=proxy, own_key=True)
    how_to_talk(Console(file=out, width=width), on)
    lines = out.getvalue().splitlines()
    export = next(line for line in lines if line.startswith("export LITELLM_MASTER_KEY="))
    command = next(line for line in lines if " registry metrics " in line)
    shell = ["/bin/sh", "-ec", f"{export}\n{command} --help"]
    done = subprocess.run(shell, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, check=False)  # noqa: S603 - what it says
    assert done.returncode == 0, done.stderr
    assert "--url" in done.stdout


def test_a_port_that_is_taken_is_one_clear_message(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = demo(tmp_path, "--once", f"--port={port}")
    assert done.returncode == 1
    assert done.stderr == f"Error: port {port} cannot be used (Address already in use); choose another with --port\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.proxy
def test_a_proxy_that_does_not_start_ends_the_demo_with_the_reason(tmp_path: Path) -> None:
    """LiteLLM refuses a publicly known master key; the demo says so, and where the log is."""
    done = demo(tmp_path, "--once", f"--port={free_port()}", LITELLM_MASTER_KEY="sk-1234")
    assert done.returncode == 1
    assert done.stderr.startswith("Error: the proxy did not start; ")
    assert "the master key is a publicly known default" in done.stderr
    (directory,) = tmp_path.iterdir()
    assert str(directory / "proxy.log") in done.stderr
