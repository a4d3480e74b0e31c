"""A plugin's commands against a worker's admin surface, behind a real server."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import TYPE_CHECKING, Any, Final

import uvicorn
from click.testing import CliRunner

if TYPE_CHECKING:
    import click
    from starlette.types import ASGIApp

_PATIENCE_S: Final = 30.0


@contextmanager
def served(make: Callable[[], AbstractAsyncContextManager[ASGIApp]]) -> Iterator[str]:
    """Serve an application on a real socket, in a thread with an event loop of its own; yields its URL.

    Args:
        make: Makes the application, such as ``Harness.app`` of a started worker; entered and left in that thread.

    Raises:
        Exception: what ``make`` raised, at the start or at the end.
        TimeoutError: it took more than 30 s.
    """
    ready, stop = threading.Event(), threading.Event()

    async def serve(listener: socket.socket) -> None:
        async with make() as app:
            server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
            serving = asyncio.create_task(server.serve(sockets=[listener]))
            ready.set()
            await asyncio.to_thread(stop.wait)
            server.should_exit = True
            await serving

    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:
        running = pool.submit(lambda: asyncio.run(serve(listener)))
        running.add_done_callback(lambda _: ready.set())
        try:
            if not ready.wait(_PATIENCE_S):
                raise TimeoutError(f"the application was not made within {_PATIENCE_S:.0f} s")
            if not running.done():
                yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            stop.set()
        running.result(_PATIENCE_S)


class CommandLine:
    """Runs the commands of a group against a gateway.

    Args:
        group: The commands.
        url: The gateway's.
    """

    def __init__(self, group: click.Command, url: str) -> None:
        self.url = url
        self._group = group

    def __call__(self, *args: str, exit_code: int = 0, **given: Any) -> Any:
        """Run one; return its output, or its JSON with ``--json``. More arguments are for ``CliRunner.invoke``.

        Raises:
            AssertionError: it ended with another exit code.
        """
        result = CliRunner().invoke(self._group, [*args, "--url", self.url], catch_exceptions=False, **given)
        if result.exit_code != exit_code:
            raise AssertionError(f"{' '.join(args)} ended with {result.exit_code}: {result.output}")
        return json.loads(result.stdout) if "--json" in args else result.output
