"""The device and the profilers: asked through the driver and real runs, never through torch in this process."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.doctor import Line
from engine.judging.sanitizer import find_sanitizer

NAME_BYTES = 128
PROBE_TIMEOUT_S = 180
TINY_RUN = "import torch; x = torch.ones(64, device='cuda'); x.add_(1); torch.cuda.synchronize()"
NCU_FOLDERS = ("/usr/local/cuda*/bin", "/opt/nvidia/nsight-compute/*")
PERMISSION = "ERR_NVGPUCTRPERM"


@dataclass(frozen=True, slots=True)
class Driver:
    """What the CUDA driver answers. `cuda`: the newest CUDA version it supports, e.g. 13.0."""

    cuda: str
    devices: tuple[str, ...]


def gpu_lines() -> list[Line]:
    driver = cuda_driver()
    ncu = find_tool("ncu", NCU_FOLDERS)
    return [gpu_line(driver), *_clocks(driver), ncu_line(ncu, driver), _permission(ncu, driver), *_more(driver)]


def _more(driver: Driver | None) -> list[Line]:
    return [sanitizer_line(find_sanitizer(), driver), msprof_line()]


def cuda_driver() -> Driver | None:
    """The driver's answer, or None without a driver or a device. Makes no context, so no GPU memory is taken."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    count, version = ctypes.c_int(), ctypes.c_int()
    if cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count)) or cuda.cuDriverGetVersion(ctypes.byref(version)):
        return None
    names = tuple(_device_name(cuda, index) for index in range(count.value))
    return Driver(f"{version.value // 1000}.{version.value % 1000 // 10}", names) if names else None


def _device_name(cuda: ctypes.CDLL, index: int) -> str:
    device, name = ctypes.c_int(), ctypes.create_string_buffer(NAME_BYTES)
    cuda.cuDeviceGet(ctypes.byref(device), index)
    cuda.cuDeviceGetName(name, NAME_BYTES, device)
    return name.value.decode()


def gpu_line(driver: Driver | None) -> Line:
    if driver is None:
        remedy = "backend=cpu needs none; for backend=cuda install the NVIDIA driver and check `nvidia-smi`"
        return Line("gpu", "warn", "no CUDA device answers", remedy)
    return Line("gpu", "ok", f"{', '.join(driver.devices)}; driver supports CUDA {driver.cuda}")


def _clocks(driver: Driver | None) -> list[Line]:
    """Driver version and clocks as nvidia-smi tells them; nothing without a device or the tool."""
    tool = shutil.which("nvidia-smi")
    if driver is None or tool is None:
        return []
    query = "--query-gpu=driver_version,clocks.sm,clocks.max.sm,memory.total"
    done = _run([tool, query, "--format=csv,noheader"], timeout_s=30)
    if done is None or done.returncode:
        return [Line("driver", "warn", "nvidia-smi does not answer", "a driver update may wait for a reboot")]
    first = done.stdout.strip().splitlines()[0]
    version, clock, ceiling, memory = (part.strip() for part in first.split(","))
    return [Line("driver", "ok", f"{version}; SM clock {clock} of {ceiling}; {memory}")]


def find_tool(name: str, folders: Sequence[str]) -> str | None:
    """The executable on PATH, else the newest under the usual folders."""
    found = shutil.which(name)
    if found is not None:
        return found
    places = [path / name for pattern in folders for path in sorted(Path("/").glob(pattern.lstrip("/")), reverse=True)]
    return next((str(place) for place in places if place.is_file()), None)


def ncu_line(path: str | None, driver: Driver | None) -> Line:
    if path is not None:
        return Line("ncu", "ok", path)
    if driver is None:
        return Line("ncu", "ok", "not installed, and without a GPU not needed")
    return Line("ncu", "warn", "not found", "install Nsight Compute; until then stages go on without hardware counters")


def sanitizer_line(path: str | None, driver: Driver | None) -> Line:
    if path is not None:
        return Line("compute-sanitizer", "ok", path)
    if driver is None:
        return Line("compute-sanitizer", "ok", "not installed, and without a GPU not needed")
    remedy = "it comes with the CUDA toolkit; until then the best kernels are confirmed without it"
    return Line("compute-sanitizer", "warn", "neither on PATH nor beside CUDA_HOME", remedy)


def _permission(path: str | None, driver: Driver | None) -> Line:
    if path is None or driver is None:
        return Line("ncu permission", "ok", "not probed: no " + ("GPU" if driver is None else "ncu"))
    done = _run([path, "--launch-count", "1", sys.executable, "-c", TINY_RUN], timeout_s=PROBE_TIMEOUT_S)
    if done is None:
        return permission_line(None, f"no answer within {PROBE_TIMEOUT_S} s")
    return permission_line(done.returncode, done.stdout + done.stderr)


def permission_line(status: int | None, output: str) -> Line:
    """What a real ncu run on one kernel showed. `status`: its exit status, None when it was stopped."""
    if PERMISSION in output:
        remedy = "as root: NVreg_RestrictProfilingToAdminUsers=0 for the nvidia module, or CAP_SYS_ADMIN in a container"
        return Line("ncu permission", "warn", f"{PERMISSION}: counters are for administrators only", remedy)
    if status != 0:
        last = output.strip().splitlines()[-1][:200] if output.strip() else f"status {status}"
        return Line("ncu permission", "warn", f"a probe of one kernel failed: {last}", "run the same ncu by hand")
    return Line("ncu permission", "ok", "counters of one kernel were read")


def msprof_line() -> Line:
    found = shutil.which("msprof")
    return Line("msprof", "ok", found or "not installed; only Ascend devices use it")


def _run(command: Sequence[str], *, timeout_s: float) -> subprocess.CompletedProcess[str] | None:
    """The finished process, or None where it could not start or ran out of time."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s)
    except (OSError, subprocess.TimeoutExpired):
        return None
