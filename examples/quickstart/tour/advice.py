"""How to talk to the proxy that the demo leaves running."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from rich.console import Console

from .stage import Stage


def how_to_talk(console: Console, on: Stage) -> None:
    """Print lines to copy: for the shell, for the clients, for an operator, for tracing.

    Args:
        console: Where.
        on: What is running.
    """
    url, key = on.proxy.url, "$LITELLM_MASTER_KEY"
    # The shell that these are copied to does not have this environment on its PATH.
    pointsman = shlex.quote(str(Path(sys.executable).with_name("pointsman")))
    shell = [f"export LITELLM_MASTER_KEY={on.proxy.master_key}"] if on.own_key else []
    sections = {
        "curl": [
            *shell,
            f"curl -i {url}/v1/chat/completions -H 'content-type: application/json' \\",
            f'     -H "authorization: Bearer {key}" \\',
            '     -d \'{"model": "assistant", "messages": [{"role": "user", "content": "Hello"}]}\'',
        ],
        "Python": [
            f'client = openai.OpenAI(base_url="{url}/v1", api_key=os.environ["LITELLM_MASTER_KEY"])',
            'client.chat.completions.create(model="assistant", messages=[{"role": "user", "content": "Hello"}])',
        ],
        "for operators": [
            f"{pointsman} registry activate assistant-2 --url {url} --key {key}",
            f"{pointsman} registry metrics --url {url} --key {key}",
            f"{pointsman} status --url {url} --key {key}",
        ],
        "traces in Jaeger, or whatever takes OTLP over HTTP; set this before the demo is started": [
            "export OTEL_EXPORTER_OTLP_ENDPOINT=http://localhost:4318",
        ],
    }
    console.print(f"\n[bold]The proxy stays at {url}[/] until Ctrl-C; its log is {on.proxy.log_path}", highlight=False)
    for title, lines in sections.items():
        console.print(f"\n[dim]# {title}[/]", highlight=False)
        for line in lines:
            # Not wrapped: it is there to be copied.
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    console.print("\nRequests from now on:\n", style="bold")
