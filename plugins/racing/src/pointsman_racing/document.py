"""The performance file: what is known about all deployments as one JSON document, to keep, to move, to look at."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from .standing import Standing

if TYPE_CHECKING:
    from .book import Book

FORMAT: Final = "pointsman-racing/1"
MAX_BYTES: Final = 64 * 1024 * 1024


class NotOurs(ValueError):
    """The document is not a performance file; the message says why."""


def export(book: Book, now: float) -> dict[str, Any]:
    """Return what all workers know.

    Args:
        book: The standings.
        now: Unix seconds.
    """
    standings = {deployment_id: book.together(deployment_id, now).to_json(now) for deployment_id in book.known()}
    return {"format": FORMAT, "at": now, "half_life_s": book.half_life_s, "deployments": standings}


def read(document: object, half_life_s: float) -> dict[str, Standing]:
    """Return the standings of a document.

    Raises:
        NotOurs: it is none of ours.
    """
    if not isinstance(document, Mapping) or document.get("format") != FORMAT:
        raise NotOurs(f'it must be an object with "format": "{FORMAT}"')
    deployments = document.get("deployments")
    if not isinstance(deployments, Mapping):
        raise NotOurs('"deployments" must be an object')
    found = {}
    for deployment_id, row in deployments.items():
        standing = Standing.from_json(row, half_life_s)
        if standing is None:
            raise NotOurs(f"deployments: {str(deployment_id)[:80]!r} is not an object with a number 'at'")
        try:
            str(deployment_id).encode()
        except UnicodeEncodeError as err:
            raise NotOurs(f"deployments: {str(deployment_id)[:80]!r} is no text") from err
        found[str(deployment_id)] = standing
    return found


def load(path: Path, half_life_s: float) -> dict[str, Standing] | None:
    """Read a performance file; None when there is none.

    Raises:
        NotOurs: it is something else.
        OSError: it cannot be read.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise NotOurs(f"it has more than {MAX_BYTES} bytes")
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        return read(json.loads(content.decode()), half_life_s)
    except NotOurs:
        raise
    except (ValueError, RecursionError) as err:
        raise NotOurs(f"it is not JSON: {err}") from err


def write(path: Path, document: Mapping[str, Any]) -> None:
    """Replace a performance file in one step, so that nobody ever reads half of it.

    Raises:
        OSError: it cannot be written.
    """
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(document, file, indent=1, allow_nan=False)
            file.write("\n")
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
