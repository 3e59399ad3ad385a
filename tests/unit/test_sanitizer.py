"""Reports of compute-sanitizer, in the form of its manual, and a stand-in for the tool itself."""

from __future__ import annotations

import stat
import time
from pathlib import Path

import pytest

from engine.confirmation import SanitizerResult
from engine.judging import sanitizer
from engine.judging.sanitizer import failure_of, find_sanitizer, parse, run_tool
from engine.records import Reason, Status

KERNELS = ("kernel", "row_kernel")
WAIT_S = 20.0

CLEAN = "========= COMPUTE-SANITIZER\n========= ERROR SUMMARY: 0 errors\n"
WRITE = """========= COMPUTE-SANITIZER
========= Invalid __global__ write of size 4 bytes
=========     at row_kernel+0x130 in /tmp/x.py:12
=========     by thread (0,0,0) in block (0,0,0)
=========     Address 0x7f2b43a10000 is out of bounds
=========     and is 61,441 bytes after the nearest allocation at 0x7f2b43a00000 of size 4,096 bytes
=========     Saved host backtrace up to driver entry point at kernel launch time
=========     Host Frame: [0x2b5bd6]
=========                in /lib/x86_64-linux-gnu/libcuda.so.1
=========
========= Invalid __global__ write of size 4 bytes
=========     at row_kernel+0x130 in /tmp/x.py:12
=========     by thread (1,0,0) in block (0,0,0)
=========
========= Program hit CUDA_ERROR_LAUNCH_FAILED (error 719) due to "unspecified launch failure" on CUDA API call
========= Target application returned an error
========= ERROR SUMMARY: 3 errors
"""
OLD_READ = """========= COMPUTE-SANITIZER
========= Invalid __global__ read of size 16 bytes
=========     at 0x90 in kernel
=========     by thread (3,0,0) in block (1,0,0)
=========     Address 0x7f2b43a10000 is out of bounds
========= ERROR SUMMARY: 1 error
"""
MISALIGNED = OLD_READ.replace("Invalid __global__ read", "Misaligned __shared__ write")
RACE = """========= COMPUTE-SANITIZER
========= Error: Race reported between Write access at row_kernel+0x2f0 in x.py:9
=========     and Read access at row_kernel+0x410 in x.py:10 [128 hazards]
=========
========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)
"""
RACE_WARNING = RACE.replace("Error: Race", "Warning: Race").replace("1 error, 0 warnings", "0 errors, 1 warning")
NO_RACE = "========= COMPUTE-SANITIZER\n========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n"
UNINITIALIZED = """========= COMPUTE-SANITIZER
========= Uninitialized __global__ memory read of size 4 bytes
=========     at row_kernel+0x1a0
=========     by thread (7,0,0) in block (0,0,0)
=========     Address 0x7fc406200400
========= ERROR SUMMARY: 1 error
"""
TORCH = UNINITIALIZED.replace(
    "at row_kernel+0x1a0", "at void at::native::vectorized_elementwise_kernel<(int)4, at::native::kernel>(int)+0x1a0"
)
HOST = """========= COMPUTE-SANITIZER
========= Host API memory access error at host access to 0x7f14c9e00200 of size 16 bytes
=========     Uninitialized access at 0x7f14c9e00200 on access by cudaMemcpy source
========= ERROR SUMMARY: 1 error
"""
BROKEN = "========= Internal Sanitizer Error: The Sanitizer encountered an error when launching\n"


@pytest.mark.parametrize(
    ("tool", "report", "errors", "told"),
    [
        ("memcheck", CLEAN, 0, ""),
        ("memcheck", WRITE, 2, "Invalid __global__ write of size 4 bytes at row_kernel+0x130"),
        ("memcheck", OLD_READ, 1, "at 0x90 in kernel"),
        ("memcheck", MISALIGNED, 1, "Misaligned __shared__ write"),
        ("racecheck", NO_RACE, 0, ""),
        ("racecheck", RACE, 1, "Read access at row_kernel+0x410"),
        ("racecheck", RACE_WARNING, 0, "not counted: Warning: Race reported"),
        ("initcheck", UNINITIALIZED, 1, "Uninitialized __global__ memory read"),
        ("initcheck", TORCH, 0, "not counted: Uninitialized"),
        ("initcheck", HOST, 0, ""),
    ],
)
def test_reports_of_a_call_that_ended(tool, report, errors, told):
    result = parse(tool, report, KERNELS, finished=True)
    assert (result.tool, result.errors) == (tool, errors)
    assert told in result.note
    assert bool(told) == bool(result.note)


@pytest.mark.parametrize(
    ("report", "errors", "told"),
    [
        ("", None, "it came to no end; no such device"),
        (CLEAN, None, "it came to no end"),
        (BROKEN, None, "Internal Sanitizer Error"),
        (WRITE, 2, "row_kernel"),
        (TORCH, None, "Uninitialized"),
    ],
    ids=["nothing", "no error", "the tool itself", "an error of the kernel", "an error elsewhere"],
)
def test_reports_of_a_call_that_came_to_no_end(report, errors, told):
    result = parse("memcheck", report, KERNELS, finished=False, output="no such device")
    assert result.errors == errors
    assert told in result.note


def test_a_report_without_its_summary_proves_nothing():
    assert parse("memcheck", "========= COMPUTE-SANITIZER\n", KERNELS, finished=True).errors is None


@pytest.mark.parametrize(
    ("tool", "status", "reason"),
    [
        ("memcheck", Status.FAILED, Reason.CRASH),
        ("racecheck", Status.REJECTED, Reason.UNSTABLE),
        ("initcheck", Status.REJECTED, Reason.UNWRITTEN),
    ],
)
def test_what_errors_mean(tool, status, reason):
    failure = failure_of(SanitizerResult(tool, 3, "Invalid"))
    assert (failure.status, failure.reason) == (status, reason)
    assert f"{tool}, 3 reported" in failure.message
    assert failure_of(SanitizerResult(tool, 0)) is None
    assert failure_of(SanitizerResult(tool, None, "no end")) is None


def stand_in(folder: Path, script: str) -> str:
    """A tool that is a shell script: $LOG is where its report goes, $DONE what the watched process would make."""
    path = folder / "compute-sanitizer"
    head = '#!/bin/bash\nfor w in "$@"; do [ "$p" = --log-file ] && LOG=$w; p=$w; DONE=$w; done\n'
    path.write_text(head + script)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def run(tmp_path, script, *, tool="memcheck", timeout_s=60.0):
    path = stand_in(tmp_path, script)
    request = tmp_path / "request"
    request.mkdir()
    return run_tool(path, tool, request, KERNELS, {"CUDA_VISIBLE_DEVICES": "GPU-x"}, timeout_s)


def test_the_tool_is_given_its_options_and_the_process(tmp_path):
    script = f'echo "$@" > {tmp_path}/seen; env > {tmp_path}/env; printf "{CLEAN}" > $LOG; touch $DONE\n'
    assert run(tmp_path, script) == SanitizerResult("memcheck", 0)
    seen = (tmp_path / "seen").read_text()
    assert "--tool memcheck" in seen
    assert f"--padding {sanitizer.PADDING_BYTES}" in seen
    assert f"-m engine.judging.sanitized {tmp_path}/request {tmp_path}/request/memcheck/done" in seen
    environment = (tmp_path / "env").read_text().splitlines()
    assert {"CUDA_VISIBLE_DEVICES=GPU-x", "PYTORCH_NO_CUDA_MEMORY_CACHING=1"} <= set(environment)


def test_a_tool_that_fails_says_why(tmp_path):
    result = run(tmp_path, 'echo "no permission" >&2; exit 1\n')
    assert result.errors is None
    assert "no permission" in result.note


def test_a_tool_that_hangs_is_killed_with_all_that_it_started(tmp_path):
    result = run(tmp_path, f"sleep 600 & echo $! > {tmp_path}/pid; wait\n", timeout_s=1.0)
    assert result == SanitizerResult("memcheck", None, "no end within 1 s")
    seen = Path("/proc", (tmp_path / "pid").read_text().strip(), "stat")
    # Killed with its group, which takes a moment, as does init's collecting it.
    until = time.monotonic() + WAIT_S
    while time.monotonic() < until and " (sleep) Z" not in _text(seen):
        time.sleep(0.05)
    assert " (sleep) Z" in _text(seen)


def _text(file):
    """Of a process that is gone, as of one that waits to be collected."""
    try:
        return file.read_text()
    except OSError:
        return " (sleep) Z"


def test_it_is_looked_for_on_the_path_and_beside_cuda_home(tmp_path, monkeypatch):
    monkeypatch.setattr(sanitizer, "FOLDERS", ())
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    monkeypatch.delenv("CUDA_HOME", raising=False)
    assert find_sanitizer() is None
    beside = tmp_path / "cuda" / "bin"
    beside.mkdir(parents=True)
    path = stand_in(beside, "")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
    assert find_sanitizer() == path
    on_path = tmp_path / "first"
    on_path.mkdir()
    first = stand_in(on_path, "")
    monkeypatch.setenv("PATH", str(on_path))
    assert find_sanitizer() == first
