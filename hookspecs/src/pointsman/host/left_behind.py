"""Settlements in a disk store that the configuration does not use any more: no gateway would ever settle them."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from ..store.rows import count_rows
from .journal_rows import FORMER_ROW, ROW
from .settings import StoreConfig

#: The host's part of a store.
_HOST: Final = "host/"


def unused(config: StoreConfig, base: Path) -> list[Path]:
    """Return where there is a disk store that is not in use.

    Args:
        config: The store in use.
        base: The directory that relative paths start from.
    """
    used = base / config.path if config.backend == "disk" else None
    places = dict.fromkeys((base / config.path, base / StoreConfig().path))
    return [place for place in places if place != used and place.is_dir()]


def left_behind(config: StoreConfig, base: Path) -> str | None:
    """Return which disk store still has settlements that are not in the store of the configuration, and what to do; or None.

    It looks where this configuration, and one without `path`, would keep a disk store. It blocks, and changes nothing.

    Args:
        config: The store in use.
        base: The directory that relative paths start from.
    """
    for directory in unused(config, base):
        if rows := sum(count_rows(directory, f"{_HOST}{row}") for row in (ROW, FORMER_ROW)):
            return (
                f"the disk store in {directory}, which is not in use, has {rows} rows of settlements that nothing settles, so "
                "that they are not billed; start the gateway once with that store to settle them, or remove the directory"
            )
    return None
