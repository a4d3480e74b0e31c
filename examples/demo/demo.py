#!/usr/bin/env python
"""Runs eight plugins on a real LiteLLM proxy, and tells in about two minutes what they do.

Nothing else is needed: a bundled provider answers as OpenAI does. Everything that the demo says is measured while it
runs and checked; it ends with 1 and one message when something does not hold.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click
from rich.console import Console
from story import Story, UnexpectedError

from pointsman.testing.otlp import Collector
from pointsman.testing.ports import free_port
from pointsman.testing.provider import UpstreamServer
from pointsman.testing.proxy import ProxyFailed, ProxyServer

CONFIG: Final = Path(__file__).with_name("litellm.yaml")
PIPED_WIDTH: Final = 120
INTERRUPTED: Final = 130
JAEGER: Final = "http://localhost:4318"
_LOG_LINES: Final = 15
_UNSET: Final = (
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",
    "OTEL_TRACES_EXPORTER",
    "OTEL_SDK_DISABLED",
)


@contextlib.contextmanager
def running(console: Console, port: int | None, jaeger: str | None) -> Iterator[Story]:
    """Start provider, collector and proxy, and end them. Their directory stays when something went wrong.

    Raises:
        UnexpectedError: the proxy does not start.
    """
    key = f"sk-demo-{secrets.token_hex(12)}"
    directory = Path(tempfile.mkdtemp(prefix="pointsman-demo-"))
    forward = None if jaeger is None else f"{jaeger.rstrip('/')}/v1/traces"
    with UpstreamServer(Story.BEHAVIOURS) as provider, Collector(forward=forward) as collector:
        env: dict[str, str | None] = {
            **dict.fromkeys(_UNSET),
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{collector.url}/v1/traces",
            "OTEL_METRICS_EXPORTER": "none",
            "OTEL_BSP_SCHEDULE_DELAY": "200",
            "LITELLM_MASTER_KEY": key,
            "OPENAI_API_KEY": "bundled",
            "OPENAI_BASE_URL": f"{provider.url}/v1",
        }
        proxy = ProxyServer(CONFIG, directory, env=env, port=port or free_port(), fresh=True)
        keep = True
        try:
            proxy.launch()
            with console.status("Starting the LiteLLM proxy with eight plugins, which takes 10 to 30 s"):
                proxy.wait_ready()
            yield Story(proxy, provider, collector, console, jaeger=jaeger)
            keep = False
        except ProxyFailed as err:
            end = "\n".join(proxy.log().rstrip().splitlines()[-_LOG_LINES:])
            raise UnexpectedError(f"the proxy did not start; {proxy.log_path} ends with\n{end}") from err
        except KeyboardInterrupt:
            keep = False
            raise
        except Exception as err:
            raise UnexpectedError(f"{err}\nThe proxy's log: {proxy.log_path}") from err
        finally:
            # A second Ctrl-C would leave the proxy behind: it is in a session of its own.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            proxy.stop()
            if not keep:
                shutil.rmtree(directory, ignore_errors=True)


@click.command()
@click.option("--once", is_flag=True, help="End afterwards instead of leaving the proxy running.")
@click.option("--port", type=click.IntRange(1, 65_535), help="Where the proxy listens; a free port by default.")
@click.option(
    "--jaeger",
    is_flag=False,
    flag_value=JAEGER,
    default=None,
    metavar="URL",
    help=f"Also send the spans to Jaeger's OTLP port; {JAEGER} without a URL.",
)
def main(*, once: bool, port: int | None, jaeger: str | None) -> None:
    """Show all plugins of Pointsman at work."""
    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console = Console(width=PIPED_WIDTH)
    for name in ("SIGTERM", "SIGHUP"):
        # However the demo is ended, as by Ctrl-C: the proxy has to end with it.
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.default_int_handler)
    os.environ["NO_PROXY"] = ",".join(filter(None, ["127.0.0.1", os.environ.get("NO_PROXY")]))
    try:
        with running(console, port, jaeger) as story:
            story.tell()
            if not once:
                story.leave_running()
    except UnexpectedError as err:
        raise click.ClickException(str(err)) from err
    except KeyboardInterrupt:
        console.print("\nStopped")
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
