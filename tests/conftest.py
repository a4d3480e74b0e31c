"""Makes the helpers in ``support`` importable, and starts what several files need."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "support"))

from anything import Anything, anything  # beside this file


@pytest.fixture(scope="module")
def provider() -> Iterator[Anything]:
    """Answers whatever it is asked, and remembers it."""
    with anything() as running:
        yield running
