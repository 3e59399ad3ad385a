"""The interpreter's patches, in a process of their own: Triton decides at import whether kernels are interpreted."""

from __future__ import annotations

import os
import subprocess
import sys

LOOP = """
import sys
import torch, triton, triton.language as tl
if {patched}:
    from engine.judging import interpreter
    interpreter.install(lambda name: None)

@triton.jit
def total(x, out, n, BLOCK: tl.constexpr):
    acc = tl.zeros((BLOCK,), tl.float32)
    for i in range(0, tl.cdiv(n, BLOCK)):
        offsets = i * BLOCK + tl.arange(0, BLOCK)
        acc += tl.load(x + offsets, mask=offsets < n, other=0.0)
    tl.store(out, tl.sum(acc, 0))

out = torch.zeros(1)
total[(1,)](torch.ones(100), out, 100, BLOCK=32)
print(out.item())
"""


def run(project, tmp_path, *, patched):
    script = tmp_path / "loop.py"
    script.write_text(LOOP.format(patched=patched))
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(project)}
    command = [sys.executable, "-W", "error:Conversion of an array:DeprecationWarning", str(script)]
    return subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)


def test_loop_bounds_are_read_as_numpy_2_4_demands(project, tmp_path):
    """Before 2.4 NumPy only warns of what it then refuses, so the warning stands for the error here."""
    assert run(project, tmp_path, patched=False).returncode != 0
    done = run(project, tmp_path, patched=True)
    assert done.stdout.strip() == "100.0", done.stderr[-2000:]
