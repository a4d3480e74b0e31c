"""The memory of NVIDIA's devices, as NVML tells it; needs the extra ``nvml``."""

from __future__ import annotations

import re
from typing import Any, Final

#: ``nvml:0`` or ``nvml:0 90%``: the index of a device, and the part of its memory that models may take.
_DEVICE: Final = re.compile(r"nvml:([0-9]{1,3})(?: +([0-9]{1,3})%)?")
_ALL_PERCENT: Final = 100


def from_nvml(value: Any) -> Any:
    """Return the bytes of ``nvml:0`` or ``nvml:0 90%``; anything else as it is.

    Raises:
        ValueError: NVML or the device is not there, or the part is not between 1 and 100.
    """
    match = _DEVICE.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        return value
    percent = int(match[2] or _ALL_PERCENT)
    if not 0 < percent <= _ALL_PERCENT:
        raise ValueError(f"{percent} % is not a part of a memory; write 1% to 100%")
    return _total_bytes(int(match[1])) * percent // _ALL_PERCENT


def _total_bytes(index: int) -> int:
    try:
        import pynvml  # noqa: PLC0415  # an extra, and slow to load where it is not wanted
    except ImportError:
        message = (
            "nvidia-ml-py is not installed; pip install 'pointsman-residency[nvml]', or write bytes, such as 24GiB"
        )
        raise ValueError(message) from None
    try:
        pynvml.nvmlInit()
        try:
            return int(pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(index)).total)
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError as err:
        raise ValueError(
            f"NVML does not report the memory of device {index}: {err}; write bytes, such as 24GiB"
        ) from None
