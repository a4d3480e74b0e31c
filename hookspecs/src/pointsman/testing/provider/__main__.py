"""``python -m pointsman.testing.provider``: the bundled upstream in the foreground."""

from __future__ import annotations

from pathlib import Path

import click

from pointsman.errors import ConfigError

from .app import Upstream
from .behaviour import load_script
from .process import READY
from .replay import ReplayIndex
from .server import listen, make_server, url_of

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.option("--port", type=click.IntRange(0, 65_535), default=0, help="Port to listen on; 0 takes a free one.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--script", type=_FILE, help="Behaviours by model name, YAML or JSON.")
@click.option("--replay", type=_FILE, help="Recorded exchanges to serve, one JSON object a line.")
def main(port: int, host: str, script: Path | None, replay: Path | None) -> None:
    """Run an HTTP server that answers like LLM providers do. It has no authentication."""
    try:
        behaviours = load_script(script) if script else {}
        index = ReplayIndex.load(replay) if replay else None
        listening = listen(host, port)
    except (ConfigError, OSError) as err:
        raise click.ClickException(str(err)) from err
    server = make_server(Upstream(behaviours, replay=index))
    click.echo(READY + url_of(listening))
    server.run([listening])


if __name__ == "__main__":
    main()
