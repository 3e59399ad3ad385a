"""What the last look at a kernel sees: a clean kernel and four broken ones, on a GPU, through tracer, compiler,
executor and compute-sanitizer, as a table.

    python -m benchmarks.confirm_smoke [--out FILE.json]

Each kernel goes through the drop test and all three tools, then, except the race, through a whole confirmation. Triton
puts barriers where they belong, so that no source of its own races: the race is PTX put in place of a compiled kernel.
Exit status 1 when something was not seen that should be, or seen that is not there.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.compose import compose
from engine.canonical import Json
from engine.codec import encode
from engine.judging.gpu_state import find_gpu
from engine.judging.messages import Failure
from engine.judging.sanitizer import TOOLS, failure_of, find_sanitizer, run_tool
from engine.judging.service import ConfirmRequest, GpuSide, Opening, Service
from engine.records import Contract, Precision, Task
from engine.settings import Settings
from engine.tasks.contracts import make_task

SEED = 20
FAR = 16384
"""Elements of four bytes: 64 KiB behind a buffer, far beyond the guards."""

REFERENCE = """
import torch
import torch.nn as nn

ROWS = 4096


class Model(nn.Module):
    def forward(self, x):
        return x * 2.0


def get_inputs():
    return [torch.rand(ROWS)]


def get_init_inputs():
    return []
"""
VARIANTS = {"small": {"ROWS": 512}, "odd": {"ROWS": 1023}}

HEAD = """
import torch
import torch.nn as nn
import triton
import triton.language as tl


@triton.jit
def double_kernel(x_ptr, out_ptr, rows, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < rows
    x = tl.load(x_ptr + offsets, mask=mask, other=0.0)
    tl.store(out_ptr + offsets, x * 2.0, mask=mask)
"""
CLEAN = (
    HEAD
    + """

class ModelNew(nn.Module):
    def forward(self, x):
        out = torch.empty_like(x)
        double_kernel[(triton.cdiv(x.numel(), 256),)](x, out, x.numel(), BLOCK=256)
        return out
"""
)
MASK = "    mask = offsets < rows\n"
STORE = "    tl.store(out_ptr + offsets, x * 2.0, mask=mask)\n"
CALL = "        double_kernel[(triton.cdiv(x.numel(), 256),)](x, out, x.numel(), BLOCK=256)\n"
OUT_OF_BOUNDS = CLEAN.replace(
    STORE,
    STORE
    + f"    far = tl.load(x_ptr + rows + {FAR} + offsets, mask=mask, other=0.0)\n"
    + f"    tl.store(out_ptr + rows + {FAR} + offsets, far, mask=mask)\n",
)
UNWRITTEN = (
    CLEAN.replace("x_ptr, out_ptr, rows", "x_ptr, scratch_ptr, out_ptr, rows")
    .replace("x * 2.0, mask", "tl.where(left == 123.0, x * 2.000001, x * 2.0), mask")
    .replace(MASK, MASK + "    left = tl.load(scratch_ptr + offsets, mask=mask)\n")
    .replace("](x, out,", "](x, torch.empty_like(x), out,")
)
DECOY = HEAD.replace("double_kernel", "decoy_kernel") + CLEAN.partition("import triton.language as tl\n")[2].replace(
    CALL, CALL + CALL.replace("double_kernel", "decoy_kernel").replace("(x, out,", "(x, torch.empty_like(x),")
)
RACE_PTX = """.version 7.4
.target sm_80
.address_size 64
.visible .entry double_kernel(.param .u64 x, .param .u64 out, .param .u32 rows, .param .u64 a, .param .u64 b)
{
  .reg .b32 %r<8>;
  .reg .b64 %rd<5>;
  .shared .align 4 .b8 cells[4096];
  mov.u32 %r1, %tid.x;
  shl.b32 %r2, %r1, 2;
  mov.u32 %r3, cells;
  add.u32 %r4, %r3, %r2;
  st.shared.u32 [%r4], %r1;
  xor.b32 %r5, %r2, 256;
  add.u32 %r6, %r3, %r5;
  ld.shared.u32 %r7, [%r6];
  ld.param.u64 %rd1, [out];
  cvta.to.global.u64 %rd2, %rd1;
  cvt.u64.u32 %rd3, %r2;
  add.u64 %rd4, %rd2, %rd3;
  st.global.u32 [%rd4], %r7;
  ret;
}
"""
"""Each thread writes a cell and reads the one of a thread two warps away, with no barrier between."""


@dataclass(frozen=True, slots=True)
class Case:
    """`accused`: tools that must object. `without_effect`: kernels whose launches change nothing. `ptx`: what takes the
    place of the compiled kernel."""

    source: str
    accused: frozenset[str] = frozenset()
    without_effect: frozenset[str] = frozenset()
    ptx: str = ""


CASES: Mapping[str, Case] = {
    "clean": Case(CLEAN),
    "out of bounds": Case(OUT_OF_BOUNDS, frozenset({"memcheck"})),
    "race": Case(CLEAN, frozenset({"racecheck"}), ptx=RACE_PTX),
    "unwritten": Case(UNWRITTEN, frozenset({"initcheck"})),
    "decoy": Case(DECOY, without_effect=frozenset({"decoy_kernel"})),
}


def open_service(settings: Settings, scratch: Path) -> Service:
    """A judge in this process, as the back-end opens one in its own."""
    backend = settings.backends[settings.backend]
    gpu = find_gpu(0)
    return Service(
        Opening(
            settings.judge,
            "cuda:0",
            backend.target,
            True,
            str(scratch / "candidates"),
            {"CUDA_VISIBLE_DEVICES": gpu.uuid},
            gpu.uuid,
            backend.cuda,
            int(backend.hardware["shared_bytes"]),
            str(scratch / "compiled"),
        )
    )


def tried(service: Service, gpu: GpuSide, task: Task, case: Case, scratch: Path, timeout_s: float) -> Json:
    """The drop test and every tool on one case, whatever the others say."""
    from engine.judging.confirm import write_request
    from engine.judging.dropped import DropTest, launched
    from engine.judging.judge import Findings, Stop

    found = Findings(SEED)
    compiled = gpu.replays.prepared(task, case.source, "library", found).variants["small"]
    if case.ptx:
        image = case.ptx.encode() + b"\0"
        swapped = {key: dataclasses.replace(kernel, cubin=image) for key, kernel in compiled.kernels.items()}
        compiled = dataclasses.replace(compiled, kernels=swapped)
    told: dict[str, Json] = {}
    with gpu.replays.one_shot(), gpu.replays.shared():
        try:
            drops = DropTest(service.judge, gpu.replays.executor, compiled, task, "small", found).run()
            told["drop"] = {drop.kernel: drop.effect for drop in drops}
        except Stop as stop:
            told["drop"] = stop.failure.message
    folder = Path(tempfile.mkdtemp(prefix="sanitize-", dir=scratch))
    write_request(service.judge, folder, task, compiled, "small", SEED)
    path = find_sanitizer()
    for tool in TOOLS if path is not None else ():
        started = time.monotonic()
        result = run_tool(path or "", tool, folder, launched(compiled.plan), service.opening.environment, timeout_s)
        failure: Failure | None = failure_of(result)
        told[tool] = {
            "errors": result.errors,
            "reason": None if failure is None else failure.reason.value,
            "note": result.note,
            "seconds": round(time.monotonic() - started, 1),
        }
    return told


def whole(service: Service, task: Task, case: Case) -> Json:
    """What a confirmation decides, if it is not the race, which no source has."""
    if case.ptx:
        return None
    started = time.monotonic()
    request = ConfirmRequest(task, Precision.IEEE, case.source, None, None)
    made = service.handle_confirm({"request": encode(request)})["confirmation"]
    verdict = made["verdict"]
    return {
        "status": verdict["status"],
        "reason": verdict["reason"],
        "message": verdict["message"],
        "remarks": verdict["remarks"],
        "variants": made["variants"],
        "ratios": [measured["ratios"] for measured in made["measurements"]],
        "seconds": round(time.monotonic() - started, 1),
    }


def problems(name: str, case: Case, told: Json) -> list[str]:
    """What was not seen, or seen where nothing is."""
    found = []
    effects = told["drop"]
    silent = {kernel for kernel, effect in effects.items() if not effect} if isinstance(effects, dict) else {"all"}
    if silent != case.without_effect:
        found.append(f"{name}: kernels without effect {sorted(silent)}, expected {sorted(case.without_effect)}")
    for tool in TOOLS:
        if tool not in told:
            found.append(f"{name}: {tool} did not run, compute-sanitizer is absent")
        elif told[tool]["errors"] is None or bool(told[tool]["errors"]) != (tool in case.accused):
            found.append(f"{name}: {tool} says {told[tool]['errors']} errors; {told[tool]['note']}")
    return found


def _cell(told: Json) -> str:
    if not isinstance(told, dict):
        return "-" if told is None else str(told)[:24]
    if "errors" in told:
        return f"{told['errors']} {told['reason'] or ''} {told['seconds']:g} s"
    if "status" in told:
        return f"{told['status']} {told['reason'] or ''} {told['seconds']:g} s"
    return ", ".join(f"{name} {'effect' if effect else 'none'}" for name, effect in told.items())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, help="JSON of everything that was said")
    options = parser.parse_args()
    settings = compose("cuda", {"judge.sandbox": "best_effort"})
    task = make_task("double", "double", REFERENCE, Contract(variants=VARIANTS), "declared", None, None)
    told: dict[str, Json] = {}
    wrong: list[str] = []
    columns = ("drop", *TOOLS, "confirm")
    sys.stdout.write("  ".join(word.ljust(24) for word in ("case", *columns)).rstrip() + "\n")
    with tempfile.TemporaryDirectory(prefix="confirm-smoke-") as folder:
        service = open_service(settings, Path(folder))
        assert service.gpu is not None
        try:
            for name, case in CASES.items():
                row = tried(service, service.gpu, task, case, Path(folder), settings.judge.confirm.sanitizer_s)
                row["confirm"] = whole(service, task, case)
                told[name] = row
                wrong += problems(name, case, row)
                cells = [_cell(row[column]) if column in row else "absent" for column in columns]
                sys.stdout.write("  ".join(cell.ljust(24) for cell in (name, *cells)).rstrip() + "\n")
                sys.stdout.flush()
        finally:
            service.close()
    sys.stdout.write("".join(f"WRONG {line}\n" for line in wrong))
    if options.out is not None:
        options.out.write_text(json.dumps(told, indent=1))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
