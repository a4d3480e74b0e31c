"""Budgets that NVML tells. Without a device the real library says so; what it says of one is set here."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from pointsman_residency.config import PoolConfig

from .test_contract import pool

pynvml = pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")
GIB = 2**30
POOL = pool()["pools"]["gpu"]


@pytest.fixture
def devices(monkeypatch):
    """Two devices, of which the library tells the memory, and whether it is left as it was found."""
    opened = []
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: opened.append(True))
    monkeypatch.setattr(pynvml, "nvmlShutdown", opened.pop)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByIndex", _handle)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetMemoryInfo", lambda handle: SimpleNamespace(total=handle * GIB))
    yield
    assert not opened


def _handle(index):
    if index > 1:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)
    return (24, 48)[index]


@pytest.mark.parametrize(
    ("budget", "sizes"),
    [
        ("nvml:0", {"memory": 24 * GIB}),
        ("nvml:1 50%", {"memory": 24 * GIB}),
        (
            {"gpu0": "nvml:0 90%", "gpu1": "nvml:1", "main": "8GiB"},
            {"gpu0": 24 * GIB * 9 // 10, "gpu1": 48 * GIB, "main": 8 * GIB},
        ),
    ],
)
@pytest.mark.usefixtures("devices")
def test_a_budget_is_the_devices_memory_or_a_part_of_it(budget, sizes):
    assert PoolConfig.model_validate({**POOL, "budget": budget}).sizes() == sizes


@pytest.mark.parametrize(
    ("budget", "said"),
    [("nvml:7", "device 7"), ("nvml:0 0%", "1% to 100%"), ("nvml:0 101%", "1% to 100%"), ("nvml", "not a size")],
)
@pytest.mark.usefixtures("devices")
def test_what_is_not_there_is_an_error_that_says_what_to_write(budget, said):
    with pytest.raises(ValueError, match=said):
        PoolConfig.model_validate({**POOL, "budget": budget})


def test_without_a_driver_the_library_itself_says_so():
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        with pytest.raises(ValueError, match=r"NVML does not report the memory of device 0: .*; write bytes"):
            PoolConfig.model_validate({**POOL, "budget": "nvml:0"})
    else:
        pynvml.nvmlShutdown()
        pytest.skip("there is a driver on this machine")


def test_without_the_extra_the_error_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(ValueError, match=r"pip install 'pointsman-residency\[nvml\]'"):
        PoolConfig.model_validate({**POOL, "budget": "nvml:0"})
