"""Compiled kernels as the bundled tools read them: real machine code of chips that need not be here."""

from __future__ import annotations

import base64
import json
import sys

import pytest

from engine.errors import ProfilerError
from profilers.sass import FAMILIES, parse_sass
from profilers.seam import Job
from profilers.static import Resources, Static, bundled, bundled_cuobjdump, parse_resource_usage
from tests.support.cubins import cubin, written

USAGE = """
Resource usage:
 Common:
  GLOBAL:0
 Function softmax_kernel:
  REG:98 STACK:16 SHARED:1024 LOCAL:8 CONSTANT[0]:560 TEXTURE:0 SURFACE:0 SAMPLER:0
 Function cut_off:
  REG:98
 Function other:
  REG:16 STACK:0 SHARED:0 LOCAL:0 CONSTANT[0]:560
"""


def test_cuobjdump_listing():
    found = parse_resource_usage(USAGE)
    assert found[0] == Resources("softmax_kernel", 98, 24, 1024)
    assert found[-1] == Resources("other", 16, 0, 0)
    assert len(found) == 2


def test_nothing_in_nothing():
    assert parse_resource_usage("ptxas fatal\n") == ()


def code(*instructions: str) -> str:
    lines = [f"        /*{16 * i:04x}*/                   {text} ;" for i, text in enumerate(instructions)]
    return "\n".join([".text.k:", *lines])


@pytest.mark.parametrize(
    ("instruction", "width"),
    [
        ("LDG.E R0, desc[UR4][R2.64]", 4),
        ("LDG.E.64 R0, desc[UR4][R2.64]", 8),
        ("LDG.E.128.CONSTANT R0, [R2.64]", 16),
        ("LDG.E.U16 R0, [R2.64]", 2),
        ("LDG.E.S8 R0, [R2.64]", 1),
        ("LDG.E.ENL2.256 R4, R8, desc[UR4][R2.64]", 32),
        pytest.param("LDG.E.LTC128B R0, [R2.64]", 4, id="prefetch-hint-is-no-width"),
        pytest.param("@P0 LDG.E.LTC128B.128 R0, [R2.64]", 16, id="predicated"),
    ],
)
def test_the_width_of_a_load(instruction, width):
    counters = parse_sass(code(instruction))["k"]
    assert counters["sass_ldg"] == 1
    assert counters["sass_ldg_bytes_max"] == counters["sass_load_bytes_min"] == width
    assert "sass_stg_bytes_max" not in counters


@pytest.mark.parametrize(
    ("instruction", "family"),
    [
        ("HMMA.16816.F32 R4, R8, R12, R4", "hmma"),
        ("HGMMA.64x128x16.F32 R24, gdesc[UR8], R24", "wgmma"),
        ("QGMMA.64x64x32.F32.E4M3.E4M3 R24, gdesc[UR8], R24", "wgmma"),
        ("UTCHMMA gdesc[UR6], gdesc[UR4], tmem[UR12]", "tcgen05"),
        ("IMMA.16832.S8.S8 R4, R8.ROW, R12.COL, R4", "imma"),
        ("DMMA.884 R4, R8, R12, R4", "dmma"),
    ],
)
def test_matrix_instructions(instruction, family):
    counters = parse_sass(code(instruction))["k"]
    assert counters[f"sass_{family}"] == counters["sass_tensor"] == 1


@pytest.mark.parametrize(
    "instruction",
    [
        pytest.param("HFMA2.MMA R7, -RZ, RZ, 0, 2.384185791015625e-07", id="fp16-constant-named-mma"),
        pytest.param("UTMACMDFLUSH", id="flush-of-tma"),
        pytest.param("LDGDEPBAR", id="wait-for-copies"),
        pytest.param("LDSM.16.M88.4 R4, [R2]", id="matrix-load"),
    ],
)
def test_what_is_named_like_a_matrix_instruction_or_a_load_is_none(instruction):
    counters = parse_sass(code(instruction))["k"]
    assert counters["sass_instructions"] == 1
    assert counters["sass_tensor"] == counters["sass_utma"] == counters["sass_ldg"] == counters["sass_ldgsts"] == 0


def test_padding_and_what_never_runs_do_not_count():
    counters = parse_sass(code("@!PT LDS RZ, [RZ]", "@P1 LDS R0, [R1]", "@!UPT UMOV UR4, 0x1", "NOP", "EXIT"))["k"]
    assert (counters["sass_instructions"], counters["sass_lds"]) == (2, 1)


def test_functions_of_both_tools_and_nothing_in_nothing():
    listing = code("EXIT").replace(".text.k:", "\t\tFunction : first") + "\n" + code("NOP", "EXIT", "EXIT")
    assert {name: values["sass_instructions"] for name, values in parse_sass(listing).items()} == {"first": 1, "k": 2}
    assert parse_sass("nvdisasm fatal : no ELF\n") == {}


def job(folder, kernels=(), **more) -> Job:
    return Job((), str(folder), {}, kernels, **{"trace": None, **more})


ALL = (
    *("registers", "spill_bytes", "static_shared_bytes", "shared_bytes", "sass_instructions"),
    *(f"sass_{family}" for family in FAMILIES),
    *(f"sass_{access}_bytes_{how}" for access in ("ldg", "stg", "ldgsts", "load") for how in ("min", "max", "mean")),
)


def counters(folder, name: str, capability: int):
    path = written(folder, name, capability)
    (sample,) = Static("", 120.0, 4).collect(job(folder, cubins=(path,)), ALL)
    assert sample.duration_us is None
    return sample.counters


CHIPS = pytest.mark.parametrize("capability", [80, 90, 100])


@CHIPS
def test_a_copy_moves_16_bytes_at_a_time_and_a_strided_read_4(tmp_path, capability):
    copied, strided = counters(tmp_path, "copy", capability), counters(tmp_path, "strided", capability)
    assert copied["sass_ldg_bytes_min"] == copied["sass_stg_bytes_min"] == 16
    assert (strided["sass_ldg_bytes_max"], strided["sass_stg_bytes_min"]) == (4, 16)
    assert strided["sass_ldg"] == 4 * copied["sass_ldg"]
    assert (copied["sass_mufu"], strided["sass_mufu"]) == (0, 8)
    assert copied["sass_tensor"] == copied["spill_bytes"] == copied["sass_local"] == 0
    assert "shared_bytes" not in copied


@pytest.mark.parametrize(("capability", "family"), [(80, "hmma"), (90, "wgmma"), (100, "tcgen05")])
def test_a_product_of_halves_uses_the_matrix_instruction_of_its_chip(tmp_path, capability, family):
    values = counters(tmp_path, "product", capability)
    assert values[f"sass_{family}"] == values["sass_tensor"] > 0
    assert values["sass_ldgsts_bytes_min"] == 16
    assert values["sass_ldg"] == 0
    assert "sass_ldg_bytes_max" not in values


def test_a_tile_that_does_not_fit_in_registers_spills(tmp_path):
    big, small = counters(tmp_path, "big_tile", 80), counters(tmp_path, "product", 80)
    assert big["registers"] == 255
    assert big["spill_bytes"] > 0
    assert big["sass_local"] == big["sass_ldl"] + big["sass_stl"] > 0
    assert small["spill_bytes"] == small["sass_local"] == 0


@pytest.mark.parametrize("capability", [90, 100])
def test_descriptors_become_tma(tmp_path, capability):
    values = counters(tmp_path, "described", capability)
    assert values["sass_utma"] >= 2
    assert values["sass_ldg"] == 0
    assert "sass_load_bytes_max" not in values


def test_an_entry_of_the_compile_cache_knows_the_shared_memory_of_the_launch(tmp_path):
    entry = tmp_path / "ab.json"
    machine_code = base64.b64encode(cubin("product", 90)).decode()
    entry.write_text(json.dumps({"key": "ab", "cubin": machine_code, "facts": {"shared_bytes": 24576}}))
    (sample,) = Static("", 60.0, 4).collect(job(tmp_path, cubins=(str(entry),)), ("shared_bytes", "registers"))
    assert (sample.kernel, sample.counters["shared_bytes"]) == ("product_kernel", 24576.0)
    assert 0 < sample.counters["registers"] < 255


def test_only_the_jobs_kernels_are_read(tmp_path):
    paths = (written(tmp_path, "copy", 90), written(tmp_path, "strided", 90))
    wanted = ("registers", "sass_no_such_thing")
    (sample,) = Static("", 60.0, 4).collect(job(tmp_path, ("strided_kernel",), cubins=paths), wanted)
    assert (sample.kernel, set(sample.counters)) == ("strided_kernel", {"registers"})
    with pytest.raises(ProfilerError, match="none_of_these"):
        Static("", 60.0, 4).collect(job(tmp_path, ("none_of_these",), cubins=paths), wanted)


def test_the_triton_package_carries_the_tools():
    assert bundled_cuobjdump() == bundled("cuobjdump") is not None
    assert bundled("nvdisasm") is not None
    assert Static("no-such-tool", 5.0, 1).available() is None
    assert bundled("no-such-tool") is None


def test_a_tool_that_is_nowhere_is_named(monkeypatch):
    monkeypatch.setattr("profilers.static.bundled", lambda tool: None)
    assert "cuobjdump and nvdisasm: neither at ''" in (Static("", 5.0, 1).available() or "")


def test_the_tools_of_a_folder_are_preferred(tmp_path):
    tool = tmp_path / "cuobjdump"
    tool.write_text(f"#!{sys.executable}\nprint(' Function mine:\\n  REG:7 STACK:0 SHARED:0 LOCAL:0')\n")
    tool.chmod(0o755)
    (tmp_path / "k.cubin").write_bytes(b"\x7fELF")
    for path in (str(tmp_path), str(tool)):
        (sample,) = Static(path, 20.0, 1).collect(job(tmp_path), ("registers",))
        assert (sample.kernel, sample.counters) == ("mine", {"registers": 7.0})


@pytest.mark.parametrize(
    ("name", "content"),
    [
        pytest.param("k.cubin", b"no ELF", id="no-elf"),
        pytest.param("k.json", b"{", id="no-json"),
        pytest.param("k.json", b'{"cubin": "AA==", "facts": {}}', id="no-facts"),
        pytest.param("k.json", b'{"cubin": "!", "facts": {"shared_bytes": 0}}', id="no-base64"),
    ],
)
def test_a_broken_file_is_a_profiler_error_that_names_it(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ProfilerError, match=name):
        Static("no-such-tool", 20.0, 1).collect(job(tmp_path, cubins=(str(tmp_path / name),)), ("registers",))


def test_without_a_compiled_kernel_there_is_a_reason(tmp_path):
    with pytest.raises(ProfilerError, match="no compiled kernel"):
        Static("", 20.0, 1).collect(job(tmp_path), ("registers",))
    with pytest.raises(ProfilerError, match="gone"):
        Static("", 20.0, 1).collect(job(tmp_path, cubins=(str(tmp_path / "gone"),)), ("registers",))
