"""What every plugin must pass, with two sinks; each worker has an outbox of its own, which its restarts keep."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

from pointsman.testing import ContractSuite, Harness
from pointsman_billing.plugin import plugin


class TestContract(ContractSuite):
    """With a file and overrides."""

    info = plugin
    #: Request ids whose announcement it remembers.
    remembers_requests = 2_000
    config: ClassVar[dict[str, Any]] = {
        "sinks": [{"ndjson": {"path": "bills.ndjson"}}, {"ndjson": {"name": "second", "path": "second.ndjson"}}],
        "prices": [{"models": ["backup"], "input_usd_per_million": 1, "output_usd_per_million": 2}],
        "margins": [{"tenants": ["team-1"], "margin_ratio": "0.2"}],
    }
    bad_configs: ClassVar[list[tuple[dict[str, Any], str]]] = [
        ({"sinks": [{"ndjsn": {"path": "x"}}]}, "did you mean 'ndjson'"),
        ({"sinks": [{"ndjson": {"pth": "x"}}]}, "pth"),
        ({"sinks": ["stdout", "stdout"]}, "two sinks are called 'stdout'"),
        (
            {"sinks": [{"ndjson": {"path": "a"}}, {"ndjson": {"name": "b", "path": "./a"}}]},
            "each needs a file of its own",
        ),
        ({"sinks": [{"lago": {"url": "https://user:secret@lago.test", "api_key": "k"}}]}, "neither credentials"),
        ({"margins": [{"margin_ratio": -2}]}, "margin_ratio"),
        ({"outbox": {"path": ""}}, "path"),
        ({"timezone": "Mars/Olympus"}, "time zone"),
    ]

    @pytest.fixture(autouse=True)
    def _directories(self, tmp_path: Path) -> None:
        type(self).directory = tmp_path

    directory: ClassVar[Path] = Path()

    def make(self, *, config: Mapping[str, Any] | None = None, after: Sequence[Any] = (), **arguments: Any) -> Harness:
        arguments.setdefault("path", Path(tempfile.mkdtemp(dir=self.directory)))
        return super().make(config=config, after=after, **arguments)
