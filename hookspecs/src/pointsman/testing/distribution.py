"""Make a module look like an installed plugin distribution, without installing anything."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def fake_distribution(directory: Path, name: str, entry_points: Mapping[str, str], group: str = "pointsman") -> None:
    """Write the metadata of a distribution into a directory that is (or will be) on the module path.

    Args:
        directory: Where; the modules that the entry points name should be importable from there.
        name: The distribution's name.
        entry_points: Plugin name to ``"module:attribute"``.
        group: The entry-point group.
    """
    info = directory / f"{name.replace('-', '_')}-0.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0\n", encoding="utf-8")
    lines = [f"[{group}]", *(f"{point} = {value}" for point, value in entry_points.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
