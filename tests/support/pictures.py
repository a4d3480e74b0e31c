"""Where tests keep the pictures that they draw: ``POINTSMAN_PICTURES``, else a directory of the test's own."""

from __future__ import annotations

import os
from pathlib import Path


def keep(picture: str, name: str, otherwise: Path) -> Path:
    """Write a picture, and return where it is."""
    directory = Path(os.environ.get("POINTSMAN_PICTURES") or otherwise)
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / name
    path.write_text(picture, encoding="utf-8")
    return path
