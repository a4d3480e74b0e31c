"""What the tests of this plugin share: a fake server whose kind is ``fake``."""

from __future__ import annotations

import pytest

from pointsman_residency.servers import registry

from . import fakes


@pytest.fixture
def machine(monkeypatch):
    """Return a maker of machines; the newest one is what ``fakes.URL`` reaches."""
    monkeypatch.setattr(registry, "BUILT_IN", {**registry.BUILT_IN, "fake": fakes.FakeServer})
    machines = {}
    monkeypatch.setattr(fakes.FakeServer, "machines", machines)

    def make(sizes, url=fakes.URL, **options):
        machines[url] = fakes.Machine(sizes, **options)
        return machines[url]

    return make
