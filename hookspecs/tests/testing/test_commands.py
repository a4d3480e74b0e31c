"""Commands of a plugin against a served worker."""

from __future__ import annotations

import threading
from contextlib import asynccontextmanager

import click
import httpx
import pytest

from pointsman.client import admin_options
from pointsman.testing import Harness
from pointsman.testing.commands import CommandLine, served


@asynccontextmanager
async def worker():
    async with Harness([]) as h:
        yield h.app


def test_a_worker_is_served_and_ends_with_the_block():
    before = threading.active_count()
    with served(worker) as url:
        assert httpx.get(f"{url}/pointsman/status", trust_env=False).status_code == 200
        assert threading.active_count() > before
    assert threading.active_count() == before
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/pointsman/status", trust_env=False)


def test_what_a_worker_fails_with_is_raised():
    @asynccontextmanager
    async def broken():
        raise ValueError("no such worker")
        yield

    with pytest.raises(ValueError, match="no such worker"), served(broken):
        raise AssertionError("not reached")


def test_a_command_line_returns_output_or_json_and_checks_the_exit_code():
    @click.command()
    @admin_options
    def status(admin):
        click.echo('{"ok": true}')
        raise click.exceptions.Exit(3 if admin.get("/status")["plugins"] else 0)

    with served(worker) as url:
        run = CommandLine(status, url)
        assert run() == '{"ok": true}\n'
        assert run("--json") == {"ok": True}
        with pytest.raises(AssertionError, match="ended with 0"):
            run(exit_code=3)
