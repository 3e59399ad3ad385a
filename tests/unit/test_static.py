"""Resource usage as the tools print it."""

from __future__ import annotations

import pytest

from engine.errors import ProfilerError
from profilers.seam import Job
from profilers.static import Resources, Static, bundled_cuobjdump, parse_ptxas, parse_resource_usage

USAGE = """
Resource usage:
 Common:
  GLOBAL:0
 Function softmax_kernel:
  REG:98 STACK:16 SHARED:1024 LOCAL:8 CONSTANT[0]:560 TEXTURE:0 SURFACE:0 SAMPLER:0
 Function other:
  REG:16 STACK:0 SHARED:0 LOCAL:0 CONSTANT[0]:560
"""
PTXAS = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'matmul_kernel' for 'sm_90a'
ptxas info    : Function properties for matmul_kernel
    24 bytes stack frame, 20 bytes spill stores, 28 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 4096 bytes smem, 408 bytes cmem[0]
"""


def test_cuobjdump_listing():
    assert parse_resource_usage(USAGE) == (
        Resources("softmax_kernel", 98, 24, 1024),
        Resources("other", 16, 0, 0),
    )


def test_ptxas_listing():
    assert parse_ptxas(PTXAS) == (Resources("matmul_kernel", 255, 20, 4096),)


@pytest.mark.parametrize("parse", [parse_resource_usage, parse_ptxas])
def test_nothing_in_nothing(parse):
    assert parse("ptxas fatal\n") == ()


def test_the_triton_package_carries_the_tool():
    assert bundled_cuobjdump() is not None
    assert Static("no-such-tool", 5.0, 1).available() is None


def test_a_broken_cubin_is_a_profiler_error(tmp_path):
    (tmp_path / "k.cubin").write_bytes(b"no ELF")
    job = Job((), str(tmp_path), {}, (), None)
    with pytest.raises(ProfilerError, match=r"k\.cubin"):
        Static("no-such-tool", 20.0, 1).collect(job, ("registers",))
