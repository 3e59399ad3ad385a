"""An NPU that is not there: an interpreter with a fake torch_npu on the CPU, and an `msprof` that writes sample files.

Candidates say `# fake: us=50` for their time; without it a side takes 100 µs. They run in Triton's interpreter.
"""

from __future__ import annotations

import shutil
import stat
import sys
from dataclasses import dataclass
from pathlib import Path

DATA = Path(__file__).resolve().parents[1] / "data" / "msprof"

TORCH_NPU = """
import csv, os, re, sys, types
import torch

__version__ = "stand-in"

class _Profile:
    def __init__(self, *, on_trace_ready, experimental_config, **_):
        self.folder = on_trace_ready
    def __enter__(self):
        self.calls, self.wait = 0, torch.cpu.synchronize
        def counted(*arguments):
            self.calls += 1
            return self.wait(*arguments)
        torch.cpu.synchronize = counted
        return self
    def __exit__(self, *_):
        torch.cpu.synchronize = self.wait
        source = open(sys.modules["candidate"].__file__).read()
        found = re.findall(r"#.*\\bus=(\\d+)", source)
        us = float(found[-1]) if found else 100.0
        name = (re.findall(r"def (\\w+_kernel)", source) or ["aclnnRelu"])[0]
        place = os.path.join(self.folder, "host_1_ascend_pt", "ASCEND_PROFILER_OUTPUT")
        os.makedirs(place)
        with open(os.environ["NPU_SAMPLE"]) as file:
            header, first, *_ = list(csv.reader(file))
        with open(os.path.join(place, "kernel_details.csv"), "w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(header)
            for call in range(self.calls):
                row = dict(zip(header, first))
                row |= {"Name": name, "Type": name, "Duration(us)": str(us + 0.01 * call), "Task ID": str(call)}
                rows.writerow(row[column] for column in header)

profiler = types.SimpleNamespace(
    profile=_Profile,
    tensorboard_trace_handler=lambda folder: folder,
    ProfilerActivity=types.SimpleNamespace(NPU="npu"),
    ProfilerLevel=types.SimpleNamespace(Level1=1),
    AiCMetrics=types.SimpleNamespace(PipeUtilization="pipes"),
    _ExperimentalConfig=lambda **given: given,
)
"""

MSPROF = """
import csv, pathlib, shlex, subprocess, sys

SAMPLES = pathlib.Path({samples!r})
options = dict(word[2:].split("=", 1) for word in sys.argv[1:] if word.startswith("--") and "=" in word)
output = pathlib.Path(options["output"])
plain = [word for word in sys.argv[2:] if not word.startswith("--") or "=" not in word]
program = shlex.split(options["application"]) if "application" in options else plain
with pathlib.Path({log!r}).open("a") as log:
    log.write(shlex.join(sys.argv[1:]) + "\\n")
if {broken!r} or ({runs!r} and subprocess.run(program).returncode):
    print("[ERROR] nothing was collected")
    sys.exit(0)
names = options["kernel-name"].split("|") if "kernel-name" in options else []
if sys.argv[1] == "op":
    sample = SAMPLES / "op_synthetic" / "OPPROF_20260105094500_SYNTHETICMULTIOP" / "row_softmax_kernel"
    for launch in range(int(options["launch-count"])):
        for name in (names[0], names[0] + "_of_another"):
            place = output / "OPPROF_20260105094500_AAAA" / "device0" / name / str(launch)
            place.mkdir(parents=True)
            for file in (sample / str(launch % 2)).iterdir():
                (place / file.name).write_text(file.read_text().replace("row_softmax_kernel", name))
else:
    place = output / "PROF_000001_20260511093035_BBBB" / "mindstudio_profiler_output"
    place.mkdir(parents=True)
    text = (SAMPLES / "op_summary_20260511093035.csv").read_text().splitlines()
    rows = [line for line in text[1:] if "matmul_kernel" in line][:4]
    table = "\\n".join([text[0], *rows]).replace("matmul_kernel", {kernel!r})
    (place / "op_summary_20260511093035.csv").write_text(table + "\\n")
"""


@dataclass(frozen=True, slots=True)
class StandIn:
    """`python` for the settings; `tools`: a folder for PATH; `log`: msprof's command lines."""

    python: Path
    tools: Path
    log: Path


def _script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def stand_in(
    folder: Path, *, kernel: str = "own_kernel", broken: bool = False, torch_npu: bool = True, runs: bool = True
) -> StandIn:
    """Scripts below `folder`. `kernel`: what msprof's op_summary calls the kernel; `broken`: msprof ends with 0 and
    writes nothing; without `torch_npu` the interpreter is an ordinary one; `runs`: msprof runs its program, and writes
    nothing when that fails."""
    fakes = folder / "fakes"
    if torch_npu:
        (fakes / "triton_ascend-3.2.0.dist-info").mkdir(parents=True)
        (fakes / "triton_ascend-3.2.0.dist-info" / "METADATA").write_text("Name: triton-ascend\nVersion: 3.2.0\n")
        (fakes / "torch_npu.py").write_text(TORCH_NPU)
    sample = shutil.copy(DATA / "kernel_details.csv", folder / "sample.csv")
    own = f'TRITON_INTERPRET=1 NPU_SAMPLE="{sample}" PYTHONPATH="{fakes}:$PYTHONPATH"'
    python = _script(folder / "npu-python", f'#!/bin/sh\n{own} exec "{sys.executable}" "$@"\n')
    log = folder / "msprof.log"
    code = MSPROF.format(samples=str(DATA), log=str(log), broken=broken, kernel=kernel, runs=runs)
    _script(folder / "tools" / "msprof", f"#!{sys.executable}\n{code}")
    return StandIn(python, folder / "tools", log)
