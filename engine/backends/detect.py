"""Which back-end this machine has, asked of the driver itself: no torch import, no context, a few milliseconds.

An Ascend NPU is never chosen by itself: its back-end has not run on one."""

from __future__ import annotations

import ctypes

AUTO = "auto"


def cuda_devices() -> int:
    """CUDA devices that the driver shows this process; 0 without a driver, a device or permission."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


def resolve(name: str) -> str:
    """`auto` becomes cuda where a CUDA device answers, else cpu; any other name is kept."""
    if name != AUTO:
        return name
    return "cuda" if cuda_devices() > 0 else "cpu"
