"""The README's examples work and its table of settings is complete."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from pointsman.plugin import PluginConfig
from pointsman.types import Deployment
from pointsman_signals.config import SignalsConfig
from pointsman_signals.dialects import DIALECTS, Dialect, DialectTable

README = Path(__file__).parents[1].joinpath("README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def sections():
    for block in blocks("yaml"):
        document = yaml.safe_load(block)
        plugins = document["pointsman"]["plugins"] if isinstance(document, dict) else document
        yield from (entry["signals"] for entry in plugins if "signals" in entry)


@pytest.mark.parametrize("section", list(sections()))
def test_every_configuration_is_accepted(section):
    config = SignalsConfig.model_validate(section)
    DialectTable(DIALECTS, config.dialects)


def test_the_third_party_dialect_reads_headers():
    (source,) = blocks("python")
    names = {}
    exec(source, names)  # noqa: S102  # our own README
    assert isinstance(names["DIALECT"], Dialect)
    table = DialectTable([*DIALECTS, names["DIALECT"]])
    deployment = Deployment(id="d", group="g", provider="acme", model="m")
    reading = table.reader(deployment).read(
        {"acme-calls-left": "3", "acme-calls-max": "60", "acme-calls-reset": "9s"}, 0.0
    )
    (limit,) = reading.limits
    assert (limit.axis, limit.window_s, limit.limit, limit.remaining, limit.resets_at) == ("requests", 60.0, 60, 3, 9.0)


def test_every_setting_is_in_the_table():
    table = README[README.index("## Settings") :]
    own = SignalsConfig.model_fields.keys() - PluginConfig.model_fields.keys()
    assert {name for name in own if f"`{name}`" not in table} == set()
