"""How the PostgreSQL sink introduces itself: also a pooler has to take it, and the connection string has its say."""

from __future__ import annotations

import asyncio
import struct
from itertools import pairwise
from pathlib import Path

import pytest

from pointsman_billing.sinks.base import SinkContext, SinkUnavailable
from pointsman_billing.sinks.postgres import PostgresConfig, PostgresSink

pytest.importorskip("psycopg", reason="the extra 'postgres' is not installed")

#: A pooler takes these, and refuses a connection with others.
TAKEN = {"user", "database", "application_name", "client_encoding"}


async def introduced(tmp_path: Path, query: str = "") -> dict[str, str]:
    """Return the parameters that a server hears at the start of a connection; it then refuses it."""
    heard: dict[str, str] = {}

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        (length,) = struct.unpack("!i", await reader.readexactly(4))
        words = (await reader.readexactly(length - 4))[4:].decode().split("\0")
        heard.update((name, value) for name, value in list(pairwise(words))[::2] if name)
        said = b"SFATAL\0VFATAL\0C57P03\0Mnot now\0\0"
        writer.write(b"E" + struct.pack("!i", len(said) + 4) + said)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        dsn = f"postgresql://me:hidden@127.0.0.1:{port}/bills?sslmode=disable&gssencmode=disable{query}"
        sink = PostgresSink(PostgresConfig.model_validate({"dsn": dsn}), SinkContext(base=tmp_path, now=lambda: 0.0))
        with pytest.raises(SinkUnavailable) as refused:
            await sink.open()
        place, _, what = str(refused.value).partition(": ")
        assert (place, what.split()[0]) == (f"127.0.0.1:{port}/bills", "OperationalError")
    return heard


@pytest.mark.parametrize(
    ("dsn", "place"),
    [
        ("postgresql://me:hidden@db:5433/bills", "db:5433/bills"),
        ("host=/run/postgresql dbname=bills password=hidden", "/run/postgresql/bills"),
        ("dbname=bills", "the default host/bills"),
        ("hidden", "the dsn"),
    ],
)
async def test_an_error_says_where_and_nothing_secret(tmp_path: Path, dsn: str, place: str) -> None:
    sink = PostgresSink(PostgresConfig.model_validate({"dsn": dsn}), SinkContext(base=tmp_path, now=lambda: 0.0))
    assert sink._place == place


async def test_a_pooler_is_told_nothing_that_it_refuses(tmp_path: Path) -> None:
    heard = await introduced(tmp_path)
    assert heard["user"] == "me"
    assert heard["application_name"] == "pointsman-billing"
    assert set(heard) <= TAKEN


async def test_what_the_connection_string_says_stays(tmp_path: Path) -> None:
    heard = await introduced(tmp_path, "&options=-c%20search_path%3Dbilling&application_name=mine")
    assert (heard["options"], heard["application_name"]) == ("-c search_path=billing", "mine")
