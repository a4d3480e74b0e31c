"""The demo as a new user runs it: all scenes hold, and nothing is left behind."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from pointsman.testing.otlp import Collector

DEMO = Path(__file__).parents[1] / "examples" / "demo"
UNSET = ("OPENAI_API_KEY", "OPENAI_BASE_URL", "LITELLM_MASTER_KEY")


def run(command: list[str | Path], temp: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a command without keys and exporters; what it leaves behind is in ``temp``."""
    clean = {name: value for name, value in os.environ.items() if name not in UNSET and not name.startswith("OTEL_")}
    env = clean | {"TMPDIR": str(temp), "COLUMNS": "132"} | env
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)  # noqa: S603 - our own commands


def test_the_configuration_passes_the_check(tmp_path: Path) -> None:
    pointsman = Path(sys.executable).with_name("pointsman")
    env = {"LITELLM_MASTER_KEY": "sk-0123456789", "OPENAI_API_KEY": "none", "OPENAI_BASE_URL": "http://localhost/v1"}
    done = run([pointsman, "check", DEMO / "litellm.yaml"], tmp_path, **env)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("width", [40, 80, 200])
def test_what_it_says_to_type_works_in_another_terminal(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is copied from a terminal of any width, by a shell that knows nothing of the environment that runs the demo."""
    monkeypatch.syspath_prepend(str(DEMO))
    from story import Story  # noqa: PLC0415  # beside the demo

    out = io.StringIO()
    proxy: Any = SimpleNamespace(url="http://127.0.0.1:12345", master_key=f"sk-demo-{'0' * 24}", running=False)
    nothing: Any = None
    Story(proxy, nothing, nothing, Console(file=out, width=width), jaeger=None).leave_running()
    commands = [line.strip() for line in out.getvalue().splitlines() if line.startswith("  ")]
    export = next(command for command in commands if command.startswith("export "))
    script = f'{export}\npointsman requests --help\nprintf %s "$POINTSMAN_URL $POINTSMAN_KEY"'
    shell = ["/bin/sh", "-ec", script]
    done = subprocess.run(shell, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, check=False)  # noqa: S603 - what it says
    assert done.returncode == 0, done.stderr
    assert "List the last finished requests" in done.stdout
    assert done.stdout.endswith(f"{proxy.url} {proxy.master_key}")
    assert any(command.startswith("curl ") and command.endswith("/pointsman/metrics") for command in commands)


@pytest.mark.proxy
@pytest.mark.timeout(900)
def test_every_scene_holds_and_the_spans_go_to_jaeger(tmp_path: Path) -> None:
    with Collector() as jaeger:
        done = run([sys.executable, DEMO / "demo.py", "--once", "--jaeger", jaeger.url], tmp_path)
        out = done.stdout
        assert done.returncode == 0, out + done.stderr
        assert len(jaeger.spans) > 100
    for number in range(1, 10):
        assert re.search(rf"^{number}\. ", out, re.MULTILINE), number
    assert re.search(r"^[0-9]+ requests, 0 failed\.$", out, re.MULTILINE)
    assert "It rolled itself back to 0 %: worse than stable" in out
    assert "Promoted: " in out
    assert re.search(r"^ *hedged +60 ", out, re.MULTILINE)
    assert re.search(r"pair-sick +[0-9]+ +(open|half)", out)
    assert re.search(r"with the client's own retries +200", out)
    assert "attempts cost what LiteLLM says, to the cent" in out
    assert re.search(r"^chat (tail|gpt-4o) .*outcome=ok", out, re.MULTILINE)
    assert "answered by attempt" in out
    assert "All as it should be" in out
    assert list(tmp_path.iterdir()) == []
