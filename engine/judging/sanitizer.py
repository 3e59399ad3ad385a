"""compute-sanitizer: where it is, how a call from a plan is run under its tools, and what their reports mean.

Reports are read as the tool's manual shows them. Only errors inside a candidate's own kernel count against it: PyTorch
runs kernels of its own in the same process. Standard library only.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from engine.confirmation import SanitizerResult
from engine.judging.messages import Failure
from engine.records import Reason, Status
from engine.worker import scrubbed_environment

NAME = "compute-sanitizer"
FOLDERS = ("/usr/local/cuda*/bin", "/usr/local/cuda*/compute-sanitizer", "/opt/cuda*/bin")
PADDING_BYTES = 1 << 20
"""Left free behind each allocation under memcheck, so that what misses one does not hit the next."""

TOOLS: Mapping[str, tuple[str, ...]] = {
    # Errors of API calls are PyTorch's own, which tries what a driver may not know.
    "memcheck": ("--report-api-errors", "no", "--padding", str(PADDING_BYTES)),
    "racecheck": ("--racecheck-report", "analysis"),
    "initcheck": (),
}
"""Tool -> its own options, in the order in which they are run."""

LOG, DONE, OUTPUT = "report.txt", "done", "output.txt"
"""In the folder of a run: the tool's report, a file that the process makes at its end, and what it printed."""

NOTE_CHARS = 400
PRINT_LIMIT = 20
PACKAGE = Path(__file__).resolve().parents[2]

_PREFIX = "========="
_DEVICE = re.compile(r"(?:Invalid|Misaligned|Uninitialized) __\w+__|Race reported between")
_SUMMARY = re.compile(r"(?:ERROR|RACECHECK) SUMMARY: ")
_MEANS = {
    "memcheck": (Status.FAILED, Reason.CRASH, "a kernel accesses memory outside its tensors"),
    "racecheck": (Status.REJECTED, Reason.UNSTABLE, "threads of one block race for shared memory"),
    "initcheck": (Status.REJECTED, Reason.UNWRITTEN, "a kernel reads memory that nothing has written"),
}


def find_sanitizer() -> str | None:
    """The executable on PATH, else beside CUDA's home, else the newest in the usual folders; None without one."""
    found = shutil.which(NAME)
    if found is not None:
        return found
    home = os.environ.get("CUDA_HOME")
    patterns = (*([f"{home}/bin", f"{home}/{NAME}"] if home else []), *FOLDERS)
    places = [path / NAME for pattern in patterns for path in sorted(Path("/").glob(pattern.lstrip("/")), reverse=True)]
    return next((str(place) for place in places if place.is_file()), None)


def run_tool(
    path: str, tool: str, request: Path, kernels: Sequence[str], environment: Mapping[str, str], timeout_s: float
) -> SanitizerResult:
    """One call of the plan in `request`'s folder under one tool. `kernels`: the candidate's own, by symbol."""
    folder = request / tool
    folder.mkdir()
    options = ("--tool", tool, *TOOLS[tool], "--print-limit", str(PRINT_LIMIT), "--log-file", str(folder / LOG))
    command = [path, *options, sys.executable, "-P", "-m", "engine.judging.sanitized", str(request), str(folder / DONE)]
    own = dict.fromkeys(("HOME", "TMPDIR"), str(folder))
    # Each of PyTorch's tensors is then an allocation of its own, which the tools can tell apart.
    own |= {"PYTHONPATH": str(PACKAGE), "PYTHONDONTWRITEBYTECODE": "1", "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    with (folder / OUTPUT).open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=scrubbed_environment({**own, **environment}),
            cwd=folder,
            start_new_session=True,
        )
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return SanitizerResult(tool, None, f"no end within {timeout_s:g} s")
        finally:
            # Also at the tool's own end: whatever it has started ends with it.
            _end(process)
    report = _text(folder / LOG)
    return parse(tool, report, kernels, finished=(folder / DONE).exists(), output=_text(folder / OUTPUT))


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _text(path: Path) -> str:
    return path.read_text(errors="replace") if path.is_file() else ""


def parse(tool: str, report: str, kernels: Sequence[str], *, finished: bool, output: str = "") -> SanitizerResult:
    """What a report says of `kernels`. `errors` counts what it prints of them (PRINT_LIMIT at most); it is None where
    the call came to no end without such an error, or the tool wrote no summary."""
    blocks = _blocks(report)
    device = [block for block in blocks if _DEVICE.search(block[0])]
    errors = [block for block in device if not block[0].startswith("Warning")]
    mine = [block for block in errors if any(_names(block, kernel) for kernel in kernels)]
    if mine:
        return SanitizerResult(tool, len(mine), " ".join(mine[0])[:NOTE_CHARS])
    if not finished or not any(_SUMMARY.match(block[0]) for block in blocks):
        told = [block[0] for block in blocks if not _SUMMARY.match(block[0]) and block[0] != NAME.upper()]
        tail = " ".join(output[-NOTE_CHARS:].split())
        return SanitizerResult(tool, None, "; ".join(filter(None, ["it came to no end", *told[:1], tail]))[:NOTE_CHARS])
    elsewhere = " ".join(device[0])[:NOTE_CHARS] if device else ""
    return SanitizerResult(tool, 0, f"not counted: {elsewhere}" if elsewhere else "")


def _blocks(report: str) -> list[list[str]]:
    """Each error's lines, the heading first; the lines that belong to it are indented in the report."""
    blocks: list[list[str]] = []
    for line in report.splitlines():
        if not line.startswith(_PREFIX):
            continue
        text = line[len(_PREFIX) :]
        if text.startswith("     ") and blocks:
            blocks[-1].append(text.strip())
        elif text.strip():
            blocks.append([text.strip()])
    return blocks


def _names(block: Sequence[str], kernel: str) -> bool:
    """Whether an error happened in this kernel: another's name may contain its name, in C++ with its namespace."""
    return any(re.search(rf"(?<![\w:]){re.escape(kernel)}(?!\w)", line) for line in block)


def failure_of(result: SanitizerResult) -> Failure | None:
    """What a tool's errors mean for the candidate; None without one."""
    if not result.errors:
        return None
    status, reason, text = _MEANS[result.tool]
    return Failure(status, reason, f"{text} (compute-sanitizer {result.tool}, {result.errors} reported): {result.note}")
