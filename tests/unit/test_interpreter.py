"""The interpreter's patches, in a process of their own: Triton decides at import whether kernels are interpreted."""

from __future__ import annotations

import ast
import os
import subprocess
import sys

import pytest

from engine.judging.interpreter import _looks_again

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


@pytest.mark.parametrize(
    ("loop", "waits"),
    [
        pytest.param("while tl.load(flag) == 0:\n    pass", True, id="load"),
        pytest.param("while tl.atomic_cas(lock, 0, 1) != 0:\n    pass", True, id="atomic"),
        pytest.param("while locked(flag):\n    pass", True, id="helper"),
        pytest.param("while go:\n    seen = tl.load(flag)\n    go = seen == 0", True, id="by-names"),
        pytest.param("while start < n:\n    acc += tl.load(x + start)\n    start += step", False, id="walks"),
        pytest.param("while min(i, n) < n:\n    i += 1", False, id="builtin"),
    ],
)
def test_loops_that_wait_for_memory(loop, waits):
    assert _looks_again(ast.parse(loop).body[0]) is waits
