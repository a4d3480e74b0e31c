"""How long it takes from nothing to a request that a new plugin has routed: each command with its wall time.

It does what the README says to a newcomer, in a new directory with a new virtual environment: install, generate a plugin,
run its tests, configure, check, start the proxy, ask. The model's answer is LiteLLM's ``mock_response``, so no key is needed.
Nothing passes or fails, except that each command must succeed.

    python tests/bench/newcomer.py [--directory NEW] [--here]

With ``--here`` nothing but the plugin is installed, into the environment that runs this.
"""

from __future__ import annotations

import argparse
import os
import platform
import secrets
import shlex
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import httpx

CHECKOUT = Path(__file__).resolve().parents[2]
CONFIG = """\
model_list:
  - model_name: gpt-4o
    litellm_params: {model: openai/gpt-4o, api_key: none, mock_response: "From gpt-4o."}
  - model_name: gpt-4o-mini
    litellm_params: {model: openai/gpt-4o-mini, api_key: none, mock_response: "From gpt-4o-mini."}
general_settings:
  master_key: os.environ/LITELLM_MASTER_KEY
litellm_settings:
  callbacks: ["pointsman.litellm.handler"]
pointsman:
  plugins:
    - hello:
        redirects: {gpt-4o: gpt-4o-mini}
"""
STARTED_WITHIN_S = 600


class Stopwatch:
    """Prints each step with its wall time, and all of them."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def step(self, what: str, do: Callable[[], object]) -> None:
        """Do something and print how long it took."""
        started = time.monotonic()
        do()
        now = time.monotonic()
        print(f"{now - started:8.1f} s  {now - self._began:8.1f} s  {what}", flush=True)  # noqa: T201  # its output


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, help="where to work; by default a temporary directory")
    parser.add_argument("--here", action="store_true", help="use this environment, which has Pointsman installed")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        newcomer((arguments.directory or Path(temporary)).resolve(), new_environment=not arguments.here)


def newcomer(directory: Path, *, new_environment: bool) -> None:
    """Go all the way in a directory."""
    directory.mkdir(parents=True, exist_ok=True)
    load = ", ".join(f"{one:.1f}" for one in os.getloadavg())
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores, load {load}\n    step       total")  # noqa: T201  # its output
    programs = directory / ".venv" / "bin" if new_environment else Path(sys.prefix) / "bin"
    key = f"sk-{secrets.token_hex(8)}"
    env = {**os.environ, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "LITELLM_MASTER_KEY": key}
    watch = Stopwatch()

    def run(command: str, *, shown: str = "", where: Path = directory) -> None:
        def do() -> None:
            done = subprocess.run(  # noqa: S603  # our own commands
                shlex.split(command), cwd=where, env=env, capture_output=True, text=True, check=False
            )
            if done.returncode:
                sys.exit(f"{command} ended with {done.returncode}:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")

        watch.step(shown or command, do)

    if new_environment:
        run(f"{sys.executable} -m venv .venv", shown="python -m venv .venv")
        run(f'pip install "{CHECKOUT}/hookspecs[testing]"', shown='pip install "./hookspecs[testing]"')
    run(
        f'pointsman new-plugin hello --pointsman "{CHECKOUT}/hookspecs[testing]"',
        shown='pointsman new-plugin hello --pointsman "./hookspecs[testing]"',
    )
    run(f"pip --python {programs}/python install -e pointsman-hello", shown="pip install -e pointsman-hello")
    run(
        "pytest -q",
        shown="pytest (the contract suite, the plugin's own tests, one of them through a proxy)",
        where=directory / "pointsman-hello",
    )
    watch.step("write litellm.yaml", lambda: (directory / "litellm.yaml").write_text(CONFIG, encoding="utf-8"))
    run("pointsman check litellm.yaml")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with (directory / "proxy.log").open("wb") as log:
        proxy = subprocess.Popen(  # noqa: S603  # our own
            [programs / "litellm", "--config", "litellm.yaml", "--host", "127.0.0.1", "--port", str(port)],
            cwd=directory,
            env=env,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        watch.step("litellm --config litellm.yaml, until it is ready", lambda: _ready(proxy, url, directory))
        watch.step("a request for gpt-4o, answered by gpt-4o-mini", lambda: _ask(url, key))
    finally:
        proxy.terminate()
        proxy.wait()


def _ready(proxy: subprocess.Popen[bytes], url: str, directory: Path) -> None:
    deadline = time.monotonic() + STARTED_WITHIN_S
    while proxy.poll() is None and time.monotonic() < deadline:
        try:
            if httpx.get(f"{url}/health/readiness", timeout=5).status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            time.sleep(0.1)
    sys.exit(f"the proxy does not start:\n{(directory / 'proxy.log').read_text(errors='replace')[-3000:]}")


def _ask(url: str, key: str) -> None:
    headers = {"authorization": f"Bearer {key}"}
    body = {"model": "gpt-4o", "messages": [{"role": "user", "content": "Hello"}]}
    answer = httpx.post(f"{url}/v1/chat/completions", json=body, headers=headers, timeout=60)
    text = answer.json()["choices"][0]["message"]["content"]
    counted = httpx.get(f"{url}/pointsman/hello", headers=headers, timeout=60).text
    if text != "From gpt-4o-mini." or "1" not in counted:
        sys.exit(f"the plugin has not routed it: {answer.text}; {counted}")


if __name__ == "__main__":
    main()
