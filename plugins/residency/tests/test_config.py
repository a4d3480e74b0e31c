"""What the section says, and what is probably a mistake in it."""

from __future__ import annotations

import pytest

from pointsman_residency.config import ResidencyConfig, bytes_of, spread

from .test_contract import OLLAMA, pool


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("24GiB", 24 * 2**30),
        ("24 gib", 24 * 2**30),
        ("1.5GB", 1_500_000_000),
        ("500MB", 500_000_000),
        ("64KiB", 65_536),
        ("1000", 1000),
        ("7b", 7),
        (12, 12),
    ],
)
def test_a_size_has_a_unit_or_none(text, size):
    assert bytes_of(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "-1GiB", "1e9", "24 parsecs", "1.2.3GB", "9" * 40, "٣GiB"])
def test_what_is_not_a_size_is_refused(text):
    with pytest.raises(ValueError, match="is not a size"):
        bytes_of(text)


def test_a_total_is_spread_over_the_devices_and_rounded_up():
    assert spread(100, ["a", "b", "c"]) == {"a": 34, "b": 34, "c": 34}
    assert spread({"b": 5}, ["a"]) == {"b": 5}
    assert spread(None, ["a"]) == {}


def test_a_hook_may_take_as_long_as_the_longest_wait():
    config = ResidencyConfig.model_validate(pool(deadline_s=300))
    assert config.deadline_ms == 305_000


def test_a_wait_that_ends_before_its_turn_is_a_warning():
    config = ResidencyConfig.model_validate(pool(deadline_s=5, max_wait_s=10))
    (warning,) = config.warnings()
    assert "max_wait_s" in warning


@pytest.mark.parametrize(("footprint", "warned"), [(60, False), (61, True)])
def test_a_model_that_pins_keep_out_is_a_warning(footprint, warned):
    models = {"kept": {"pinned": True, "footprint": 40}, "other": {"footprint": footprint}}
    warnings = list(ResidencyConfig.model_validate(pool(models=models, budget=100)).warnings())
    assert ["pools.gpu.models.other.footprint" in warning for warning in warnings] == [True] * warned


def test_one_blob_under_two_names_is_a_warning():
    """Two contexts of one file are two instances on Ollama, and each request reloads the other one's."""
    models = {"short": {"server_model": "qwen:7b"}, "long": {"server_model": "qwen:7b"}}
    (warning,) = ResidencyConfig.model_validate(pool(models=models)).warnings()
    assert "pools.gpu.models.long" in warning
    assert "'short', which stands for both" in warning
    models["long"]["server"] = {**OLLAMA, "options": {"num_ctx": 8192}}
    (warning,) = ResidencyConfig.model_validate(pool(models=models)).warnings()
    assert "one of them is resident at a time" in warning
    elsewhere = {**models, "long": {"server_model": "qwen:7b", "server": {**OLLAMA, "url": "http://other:11434"}}}
    assert not list(ResidencyConfig.model_validate(pool(models=elsewhere)).warnings())


def test_headers_are_not_shown():
    config = ResidencyConfig.model_validate(pool(server={**OLLAMA, "headers": {"authorization": "Bearer secret-1"}}))
    assert "secret-1" not in repr(config)
    assert "secret-1" not in config.model_dump_json()
