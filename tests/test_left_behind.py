"""Settlements in a disk store that the configuration does not use any more are said aloud, until they are settled."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from pointsman.host.host import Host
from pointsman.host.left_behind import left_behind
from pointsman.host.settings import StoreConfig, parse
from pointsman.store import open_store
from pointsman.testing import FakeGateway

ROW = "host/{journal}/worker-1/000000000001"


async def leave(directory: Path, key: str = ROW) -> None:
    """Leave a row in a disk store."""
    store = await open_store("disk", path=directory)
    await store.put(key, {"v": 1, "entries": []})
    await store.close()


@pytest.mark.parametrize(
    ("section", "key", "said"),
    [
        ({"backend": "redis", "url": "redis://x"}, ROW, True),
        ({"backend": "memory"}, ROW, True),
        ({"backend": "memory"}, "host/journal/worker-1/000000000001", True),
        ({"backend": "disk", "path": "elsewhere"}, ROW, True),
        ({"backend": "disk"}, ROW, False),
        ({"backend": "memory"}, "quota/tenant/acme", False),
        ({"backend": "memory"}, "host/{journal}owner/worker-1", False),
    ],
)
async def test_rows_are_found_where_the_store_was_before(
    tmp_path: Path, section: dict[str, str], key: str, said: bool
) -> None:
    await leave(tmp_path / ".pointsman", key)
    found = left_behind(StoreConfig.model_validate(section), tmp_path)
    assert (found is not None) is said
    if found is not None:
        assert f"{tmp_path / '.pointsman'}" in found


async def test_the_place_that_is_configured_is_looked_at_and_no_place_is_made(tmp_path: Path) -> None:
    config = StoreConfig.model_validate({"backend": "redis", "url": "redis://x", "path": "mine"})
    assert left_behind(config, tmp_path) is None
    assert os.listdir(tmp_path) == []  # noqa: PTH208  # pathlib blocks no longer than this
    await leave(tmp_path / "mine")
    assert left_behind(config, tmp_path) is not None
    (tmp_path / "mine" / "cache.db").write_bytes(b"no database")
    assert left_behind(config, tmp_path) is None


async def test_the_status_says_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    await leave(tmp_path / ".pointsman")
    section = {"store": {"backend": "memory"}, "plugins": []}
    host = Host(parse(section, "proxy.yaml", tmp_path), FakeGateway())
    await host.start()
    try:
        await host._look_for_left_behind()
        assert "1 rows of settlements" in host.problems()[0]
        assert not host.describe()["ok"]
        store = await open_store("disk", path=tmp_path / ".pointsman")
        await store.delete(ROW)
        await store.close()
        await host._look_for_left_behind()
        assert host.problems() == []
    finally:
        await host.stop()
    assert sum(
        "which is not in use" in record.message for record in caplog.records if record.levelno == logging.WARNING
    )
