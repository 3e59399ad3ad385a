"""The trusted compiler, without a GPU: what it refuses, keeps and survives, and that it changes no instruction."""

from __future__ import annotations

import base64
import dataclasses
import json
import re

import pytest
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from engine.errors import MissingError
from engine.judging.child_compile import assembly_problem
from engine.judging.children import ForkServerClient
from engine.judging.compiler import (
    CompiledKernel,
    CompileProblem,
    CompileService,
    Confines,
    DeviceLimits,
    kernel_key,
    without_locations,
)
from engine.judging.plan import Kernel
from tests.support.hostile import Scripted

LIMITS = DeviceLimits()

ADD = """#loc = loc("/tmp/c/kernel.py":7:0)
#loc1 = loc("x)"(#loc))
module {
  tt.func public @add(%x: !tt.ptr<f32> {tt.divisibility = 16 : i32} loc(#loc), %n: i32) attributes {noinline = false} {
    %0 = tt.make_range {end = 128 : i32, start = 0 : i32} : tensor<128xi32> loc(#loc1)
    %1 = tt.splat %n : i32 -> tensor<128xi32> loc(#loc)
    %2 = arith.cmpi slt, %0, %1 : tensor<128xi32> loc(callsite(#loc1 at #loc))
    %3 = tt.splat %x : !tt.ptr<f32> -> tensor<128x!tt.ptr<f32>> loc(fused[#loc, #loc1])
    %4 = tt.addptr %3, %0 : tensor<128x!tt.ptr<f32>>, tensor<128xi32> loc(unknown)
    %5 = tt.load %4, %2 : tensor<128x!tt.ptr<f32>>
    BODY
    tt.store %4, VALUE, %2 : tensor<128x!tt.ptr<f32>>
    tt.return
  } loc(#loc)
} loc(#loc)
"""


def asm(text):
    return (
        f'%6 = tt.elementwise_inline_asm "{text}" '
        '{constraints = "=f,f", packed_element = 1 : i32, pure = true} %5 : tensor<128xf32> -> tensor<128xf32>'
    )


def extern(symbol, library="", path=""):
    return (
        f'%6 = tt.extern_elementwise %5 {{libname = "{library}", libpath = "{path}", pure = true, symbol = "{symbol}"}}'
        " : (tensor<128xf32>) -> tensor<128xf32>"
    )


def kernel(body="", before="module {", after="module {", **options):
    """`add` with `body` before its store and `before` in its text replaced by `after`."""
    value = "%6" if body.startswith("%6 = tt.e") else "%5"
    text = ADD.replace("BODY", body).replace("VALUE", value).replace(before, after, 1)
    return Kernel("add", text, **{"num_warps": 4, "num_stages": 3, **options})


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    started = ForkServerClient({}, tmp_path_factory.mktemp("compiler") / "server.log")
    yield started
    started.close()


@pytest.fixture
def service(server, tmp_path):
    made = CompileService(server, tmp_path / "kept", tmp_path / "scratch", Confines(16 << 30, 512, 64 << 20, False), 2)
    yield made
    made.close()


def one(service, what, limits=LIMITS, timeout_s=60.0):
    ((key, outcome),) = service.compile([what], "sm_90", limits, timeout_s).items()
    assert key == kernel_key(what, "sm_90")
    return outcome


FACTS = {
    "symbol": "add",
    "signature": ["*f32", "i32"],
    "parameter_bytes": [8, 4, 8, 8],
    **{"num_warps": 4, "num_ctas": 1, "cluster": [1, 1, 1], "shared_bytes": 0, "cooperative": False},
    **{"global_scratch_bytes": 0, "global_scratch_align": 1, "profile_scratch_bytes": 0, "profile_scratch_align": 1},
    **{"registers": 8, "spill_bytes": 0},
}
CUBIN = base64.b64encode(b"\x7fELF").decode()


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        pytest.param({}, "cubin", id="empty"),
        pytest.param({"error": "text"}, "another form", id="an-error-of-another-form"),
        pytest.param({"error": {"type": "RuntimeError"}}, "another form", id="an-error-without-text"),
        pytest.param({"error": {"type": [1], "message": {"a": 1}}}, r"\[1\]: \{", id="an-error-of-other-types"),
        pytest.param({"refused": {"a": [1]}}, "refused", id="refused-for-no-words"),
        pytest.param({"cubin": 7, "facts": FACTS}, "launched", id="a-number-for-a-cubin"),
        pytest.param({"cubin": "\u00e9", "facts": FACTS}, "ASCII", id="no-base64"),
        pytest.param({"cubin": "AAAA", "facts": FACTS}, "ELF", id="no-elf"),
        pytest.param({"cubin": CUBIN, "facts": [1]}, "mapping", id="facts-of-another-form"),
        pytest.param({"cubin": CUBIN, "facts": {**FACTS, "registers": 10**19}}, "registers", id="countless-registers"),
        pytest.param({"cubin": CUBIN, "facts": {**FACTS, "symbol": "a b"}}, "C name", id="no-symbol"),
        pytest.param({"cubin": CUBIN, "facts": {**FACTS, "parameter_bytes": [8]}}, "parameters of", id="too-few"),
    ],
)
def test_whatever_the_compiling_process_answers_is_the_kernels_problem(tmp_path, answer, words):
    scripted = Scripted(json.dumps(answer).encode() + b"\n", None)
    made = CompileService(scripted, tmp_path / "kept", tmp_path, Confines(1 << 30, 512, 1 << 20, False), 1)
    problem = one(made, kernel())
    made.close()
    assert isinstance(problem, CompileProblem)
    assert re.search(words, problem.text)
    assert len(problem.text) < 5000


def test_a_required_layer_that_a_compiling_process_lacks_is_missing(tmp_path):
    scripted = Scripted(None, layers=("process_group",))
    made = CompileService(scripted, tmp_path / "kept", tmp_path, Confines(1 << 30, 512, 1 << 20, True), 1)
    with pytest.raises(MissingError, match="landlock"):
        one(made, kernel())
    made.close()


@triton.jit
def scale_kernel(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < n
    tl.store(y_ptr + offsets, tl.exp(tl.load(x_ptr + offsets, mask=mask)) * 2.0, mask=mask)


@triton.jit
def product_kernel(a_ptr, b_ptr, c_ptr, K, stride, M: tl.constexpr, N: tl.constexpr, STEP: tl.constexpr):
    rows, columns, inner = tl.arange(0, M), tl.arange(0, N), tl.arange(0, STEP)
    total = tl.zeros((M, N), tl.float32)
    for k in range(0, K, STEP):
        a = tl.load(a_ptr + rows[:, None] * stride + (k + inner)[None, :])
        b = tl.load(b_ptr + (k + inner)[:, None] * stride + columns[None, :])
        total = tl.dot(a, b, total)
    tl.store(c_ptr + rows[:, None] * stride + columns[None, :], total)


@triton.jit
def every_type_kernel(x_ptr, h_ptr, flag, i8, i16, i32, i64, u32, f16, bf16, f32, f64):
    total = i8 + i16 + i32 + i64 + u32 + f16 + bf16 + f32 + f64
    if flag:
        tl.store(x_ptr, total.to(tl.float32))
    tl.store(h_ptr, f16)


@triton.jit
def described_kernel(x_ptr, n, BLOCK: tl.constexpr):
    described = tl.make_tensor_descriptor(x_ptr, [n, BLOCK], [BLOCK, 1], [16, BLOCK])
    described.store([0, 0], described.load([16, 0]) + 1.0)


SCALE = (scale_kernel, {"x_ptr": "*fp32", "y_ptr": "*fp32", "n": "i32"}, {"BLOCK": 1024})
PRODUCT = (
    product_kernel,
    {"a_ptr": "*fp16", "b_ptr": "*fp16", "c_ptr": "*fp32", "K": "i32", "stride": "i32"},
    {"M": 64, "N": 64, "STEP": 32},
)


@pytest.fixture
def compiled_here(tmp_path, monkeypatch):
    """Triton's own way from source to cubin, in this process."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "triton"))
    monkeypatch.setenv("TRITON_DISABLE_LINE_INFO", "1")

    def compiled(function, signature, constants, **options):
        if not isinstance(function, triton.runtime.jit.JITFunction):
            pytest.skip("Triton's interpreter is on in this process")
        kinds = {**signature, **dict.fromkeys(constants, "constexpr")}
        aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(signature.values()) if kind[0] in "*i"}
        source = ASTSource(function, kinds, constants, aligned)
        return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)

    return compiled


def traced(compiled, **options):
    return Kernel(compiled.name, compiled.asm["ttir"], **{"num_warps": 4, "num_stages": 3, **options})


@pytest.mark.parametrize("what", [SCALE, PRODUCT], ids=["elementwise", "dot"])
def test_the_cubin_is_byte_for_byte_that_of_the_source(service, compiled_here, what):
    options = {"num_warps": 8, "num_stages": 2}
    source = compiled_here(*what, **options)
    outcome = one(service, traced(source, **options))
    assert isinstance(outcome, CompiledKernel), outcome
    assert outcome.cubin == source.asm["cubin"]
    assert (outcome.symbol, outcome.threads) == (source.metadata.name, 256)
    assert outcome.shared_bytes == source.metadata.shared


def test_every_kind_of_parameter(service, compiled_here):
    kinds = ["i1", "i8", "i16", "i32", "i64", "i32", "f16", "bf16", "f32", "f64"]
    names = ["flag", "i8", "i16", "i32", "i64", "u32", "f16", "bf16", "f32", "f64"]
    written = ["u1", "i8", "i16", "i32", "i64", "u32", "fp16", "bf16", "fp32", "fp64"]
    signature = {"x_ptr": "*fp32", "h_ptr": "*fp16", **dict(zip(names, written, strict=True))}
    outcome = one(service, traced(compiled_here(every_type_kernel, signature, {})))
    assert outcome.parameters == ("pointer", "pointer", *kinds)
    assert outcome.parameter_bytes[: len(outcome.parameters)] == (8, 8, 1, 1, 2, 4, 8, 4, 2, 2, 4, 8)
    assert outcome.scratch_pointers in (1, 2)


def test_scratch_of_descriptors_that_a_kernel_makes(service, compiled_here):
    source = compiled_here(described_kernel, {"x_ptr": "*fp32", "n": "i32"}, {"BLOCK": 64})
    outcome = one(service, traced(source))
    assert outcome.global_scratch_bytes == source.metadata.global_scratch_size > 0
    assert outcome.global_scratch_align == source.metadata.global_scratch_align
    assert outcome.profile_scratch_bytes == 0


def test_options_reach_the_back_end(service, compiled_here):
    text = traced(compiled_here(*PRODUCT[:2], {"M": 128, "N": 128, "STEP": 32}))
    plain = one(service, text)
    few = one(service, dataclasses.replace(text, maxnreg=160))
    assert few.registers <= 160 < plain.registers
    starved = one(service, dataclasses.replace(text, maxnreg=24))
    assert isinstance(starved, CompileProblem)
    assert starved.resources
    assert str(service.scratch) not in starved.text
    cluster = one(service, dataclasses.replace(text, num_ctas=2, launch_cooperative_grid=True))
    assert (cluster.num_ctas, sorted(cluster.cluster), cluster.cooperative) == (2, [1, 1, 2], True)
    assert (plain.cluster, plain.cooperative) == ((1, 1, 1), False)
    unfused = one(service, dataclasses.replace(text, enable_fp_fusion=False))
    assert len({plain.key, few.key, cluster.key, unfused.key}) == 4


GOOD = {
    "plain": kernel(),
    "libdevice": kernel(extern("__nv_tanhf")),
    "libdevice by name": kernel(extern("__nv_tanhf", "libdevice")),
    "arithmetic assembly": kernel(asm("ex2.approx.f32 $0, $1;")),
    "private function": kernel(
        "%6 = tt.call @half(%n) : (i32) -> i32",
        "module {",
        "module {\n  tt.func private @half(%y: i32) -> i32 attributes {noinline = true} {\n    tt.return %y : i32\n  }",
    ),
}


@pytest.mark.parametrize("what", GOOD.values(), ids=GOOD)
def test_compiled(service, what):
    outcome = one(service, what)
    assert isinstance(outcome, CompiledKernel), outcome
    assert (outcome.symbol, outcome.parameters) == ("add", ("pointer", "i32"))
    assert outcome.cubin.startswith(b"\x7fELF")
    assert outcome.registers is None or outcome.registers > 0


REFUSED = {
    "clock": (kernel(asm("mov.u32 $0, %globaltimer_lo;")), "special register %globaltimer_lo"),
    "trap": (kernel(asm("trap; mov.b32 $0, $1;")), "`trap`"),
    "quoted operation": (
        kernel(
            '%6 = "tt.elementwise_inline_asm"(%5) <{asm_string = "\\74rap; mov.b32 $0, $1;", constraints = "=f,f", '
            "packed_element = 1 : i32, pure = true}> : (tensor<128xf32>) -> tensor<128xf32>"
        ),
        "`trap`",
    ),
    "llvm assembly": (
        kernel('%6 = llvm.inline_asm has_side_effects "mov.u32 $0, %smid;", "=r" : () -> i32'),
        "operation llvm.inline_asm",
    ),
    "gpu dialect": (kernel("%6 = gpu.thread_id x"), "operation gpu.thread_id"),
    "layout dialect": (kernel("%6 = ttg.local_alloc %5 : (tensor<128xf32>) -> tensor<128xf32>"), ""),
    "abort": (kernel('%t = arith.constant true\n cf.assert %t, "x"'), "operation cf.assert"),
    "foreign symbol": (kernel(extern("vprintf")), "external function 'vprintf'"),
    "foreign library": (kernel(extern("__nv_tanhf", "other")), "of 'other'"),
    "library's path": (kernel(extern("__nv_tanhf", "libdevice", "/tmp/evil.bc")), "/tmp/evil.bc"),
    "bodiless function": (
        kernel("tt.call @vprintf(%n) : (i32) -> ()", "module {", "module {\n  tt.func private @vprintf(i32)"),
        "external function vprintf",
    ),
    "two kernels": (
        kernel(before="module {", after="module {\n  tt.func public @other() {\n    tt.return\n  }"),
        "one public function, found 2",
    ),
    "implicitly public": (
        kernel(before="module {", after="module {\n  tt.func @other() {\n    tt.return\n  }"),
        "one public function, found 2",
    ),
    "no kernel": (kernel(before="func public", after="func private"), "found 0"),
    "module attribute": (
        kernel(
            before="module {", after='module attributes {"ttg.profile_scratch_memory_size" = 1099511627776 : i64} {'
        ),
        "module without attributes",
    ),
    "function attribute": (
        kernel(before="{noinline = false}", after='{noinline = false, passthrough = [["a", "b"]]}'),
        "unknown attributes passthrough",
    ),
    "parameter's attribute": (
        kernel(before="{tt.divisibility", after="{llvm.noalias, tt.divisibility"),
        "llvm.noalias",
    ),
    "print": (kernel('tt.print "x" {hex = false, isSigned = array<i32: 0>} : %5 : tensor<128xf32>'), "tt.print"),
    "assert": (kernel('tt.assert %2, "x" : tensor<128xi1>'), "tt.assert"),
    "descriptor as parameter": (
        kernel(before="%n: i32)", after="%n: i32, %d: !tt.tensordesc<tensor<16x64xf32>>)"),
        "",
    ),
    "pointer to shared memory": (kernel(before="%n: i32)", after="%n: i32, %d: !tt.ptr<f32, 3>)"), ""),
    "odd integer": (kernel(before="%n: i32)", after="%n: i32, %d: i24)"), ""),
    "tensor parameter": (kernel(before="%n: i32)", after="%n: i32, %d: tensor<16xf32>)"), ""),
    "odd number of warps": (kernel(num_warps=3), "num_warps=3"),
    "garbage": (Kernel("add", "module { nonsense", 4, 3), "error:"),
    "not UTF-8": (Kernel("add", "module { \ud800", 4, 3), "error:"),
    "empty": (Kernel("add", "", 4, 3), ""),
}
"""Where the message is left open, Triton's own words differ between versions."""


@pytest.mark.parametrize(("what", "says"), REFUSED.values(), ids=REFUSED)
def test_refused(service, what, says):
    outcome = one(service, what)
    assert isinstance(outcome, CompileProblem)
    assert says in outcome.text
    assert (outcome.kernel, outcome.resources) == ("add", False)
    assert not list(service.folder.rglob("*.json"))


ASSEMBLY = {
    "scope": ("{ .reg .b32 t; ex2.approx.f32 t, $1; mov.b32 $0, t; }", True),
    "fp8 conversion": (
        "{                                      \n.reg .b32 a<2>, b<2>;                  \n"
        "prmt.b32 a0, 0, $2, 0x5746;            \nand.b32 b0, a0, 0x7f007f00;            \n"
        "lop3.b32 $0, b0, 0x80008000, a0, 0xf8; \nshr.b32  b0, b0, 1;                    \n}",
        True,
    ),
    "packing": ("mov.b32 $0, {$1, $2};", True),
    "packing last": ("{ .reg .b16 lo, hi; mov.b32 {lo, hi}, $1; mov.b32 $0, {hi, lo}; }", True),
    "predicate": ("{ .reg .pred p; setp.gt.f32 p, $1, 0f00000000; selp.f32 $0, $1, $2, p; @!p neg.f32 $0, $0; }", True),
    "register with percent": ("{ .reg .b32 %t<3>; mov.b32 %t1, $1; mov.b32 $0, %t1; }", True),
    "comment": ("mov.b32 $0, $1; // not a trap;\n", True),
    "nothing": ("", True),
    "after a comment": ("// note\ntrap;", False),
    "comment's end": ("/* // */ trap; /* */", False),
    "carriage return": ("// note\rtrap;", False),
    "clock": ("mov.u64 $0, %clock64;", False),
    "sneaked register": ("{ .reg .b32 %t; mov.u32 %t, %smid; mov.b32 $0, %t; }", False),
    "load": ("ld.global.f32 $0, [$1];", False),
    "address": ("mov.b32 $0, [x];", False),
    "label": ("again: mov.b32 $0, $1;", False),
    "branch": ("bra again;", False),
    "sleep": ("nanosleep.u32 100;", False),
    "cache": ("discard.global.L2 [$1], 128;", False),
    "predicated": ("@$1 exit;", False),
    "launch control": ("griddepcontrol.wait; // dummy $0", False),
    "other lanes": ("shfl.sync.bfly.b32 $0, $1, 1, 31, -1;", False),
    "pragma": ('.pragma "nounroll";', False),
    "variant": ("mo$(v$|x$).b32 $0, $1;", False),
    "modifier": ("mov.b32 ${0:c}, $1;", False),
    "two in one": ("mov.b32 $0, $1\n(trap);", False),
}


@pytest.mark.parametrize(("text", "allowed"), ASSEMBLY.values(), ids=ASSEMBLY)
def test_inline_assembly(text, allowed):
    assert (assembly_problem(text) is None) == allowed


def test_locations_do_not_matter():
    elsewhere = Kernel("add", ADD.replace("/tmp/c", "/home/other").replace("BODY", "").replace("VALUE", "%5"), 4, 3)
    assert kernel_key(elsewhere, "sm_90") == kernel_key(kernel(), "sm_90")
    assert "loc" not in without_locations(ADD)
    spelt = 'tt.print " loc(" : %x loc(#loc1)\n#loc1 = loc("a\\")b")\ntt.return loc(callsite(#loc at "f"(#loc)))\n'
    assert without_locations(spelt) == 'tt.print " loc(" : %x\ntt.return\n'


@pytest.mark.parametrize(
    "change",
    [{"num_warps": 8}, {"num_stages": 2}, {"num_ctas": 2}, {"maxnreg": 64}, {"enable_fp_fusion": False}],
    ids=lambda change: next(iter(change)),
)
def test_the_key_holds_every_option(change):
    assert kernel_key(kernel(**change), "sm_90") != kernel_key(kernel(), "sm_90")


def test_the_key_holds_the_target():
    assert kernel_key(kernel(), "sm_90") != kernel_key(kernel(), "sm_100")


def test_what_was_compiled_is_kept(server, service):
    first = one(service, kernel())
    again = CompileService(server, service.folder, service.scratch, service.confines)
    assert one(again, kernel()) == first
    assert (service.started, again.started) == (1, 0)
    again.close()


def edited(entry, change):
    tree = json.loads(entry.read_text())
    change(tree)
    entry.write_text(json.dumps(tree))


DAMAGE = {
    "cut": lambda entry: entry.write_bytes(entry.read_bytes()[:-100]),
    "bytes": lambda entry: entry.write_bytes(b"\xff\x00" + entry.read_bytes()),
    "cubin": lambda entry: edited(entry, lambda tree: tree.update(cubin="f0VMRgAA" + tree["cubin"][8:-8])),
    "facts": lambda entry: edited(entry, lambda tree: tree["facts"].update(shared_bytes=64)),
    "key": lambda entry: edited(entry, lambda tree: tree.update(key="0" * 64)),
    "form": lambda entry: entry.write_text("[]"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_entry_is_compiled_again(service, damage):
    first = one(service, kernel())
    (entry,) = service.folder.rglob("*.json")
    damage(entry)
    assert one(service, kernel()) == first
    assert service.started == 2
    assert one(service, kernel()) == first
    assert service.started == 2


def test_a_crash_of_the_compiler_is_a_problem_of_its_kernel(service):
    deep = dataclasses.replace(kernel(before="{noinline = false}", after="{a = " + "[" * 1_000_000), name="deep")
    outcomes = service.compile([deep, kernel()], "sm_90", LIMITS, 60.0)
    crashed, fine = outcomes[kernel_key(deep, "sm_90")], outcomes[kernel_key(kernel(), "sm_90")]
    assert isinstance(crashed, CompileProblem)
    assert (crashed.kernel, crashed.resources) == ("deep", False)
    assert "the compiler ended with status -" in crashed.text
    assert isinstance(fine, CompiledKernel)
    assert list(service.scratch.iterdir()) == []


def test_a_slow_compilation_is_stopped_and_not_kept(service):
    outcome = one(service, kernel(), timeout_s=0.001)
    assert isinstance(outcome, CompileProblem)
    assert "within 0.001 s" in outcome.text
    assert isinstance(one(service, kernel()), CompiledKernel)


def test_shared_memory(service, compiled_here):
    large = {"M": 256, "N": 128, "STEP": 128}
    source = compiled_here(PRODUCT[0], PRODUCT[1], large, num_warps=8, num_stages=4)
    what = traced(source, num_warps=8, num_stages=4)
    outcome = one(service, what)
    assert isinstance(outcome, CompileProblem)
    assert outcome.resources
    assert f"required {source.metadata.shared}, hardware limit 232448" in outcome.text
    # The machine code does not depend on the limits: a larger device takes what was kept.
    assert isinstance(one(service, what, DeviceLimits(shared_bytes=source.metadata.shared)), CompiledKernel)
    assert service.started == 1


@pytest.mark.parametrize(
    ("what", "limits", "says", "started"),
    [
        (kernel(num_warps=64), LIMITS, "threads of a block, required 2048, hardware limit 1024", 0),
        (kernel(num_ctas=32), LIMITS, "blocks of a cluster, required 32", 0),
        (kernel(), DeviceLimits(registers=256), "registers of a block", 1),
    ],
    ids=["threads", "cluster", "registers"],
)
def test_other_resources(service, what, limits, says, started):
    outcome = one(service, what, limits)
    assert isinstance(outcome, CompileProblem)
    assert outcome.resources
    assert says in outcome.text
    assert service.started == started


def test_what_nobody_waits_for_is_not_compiled(server, tmp_path):
    """One worker, held by the first; of what is abandoned before its turn only what another caller wants is built."""
    made = CompileService(server, tmp_path / "kept", tmp_path / "scratch", Confines(16 << 30, 512, 64 << 20, False), 1)
    first, second, third = (kernel(asm(f"add.f32 $0, $1, 0f3F90000{i};")) for i in range(3))
    begun = made.begin([first, second, third], "sm_90", LIMITS, 60.0)
    wanted = made.begin([third], "sm_90", LIMITS, 60.0)
    made.abandon(begun)
    (outcome,) = made.outcomes([third], wanted, "sm_90", LIMITS).values()
    assert isinstance(outcome, CompiledKernel)
    assert begun[kernel_key(second, "sm_90")].cancelled()
    assert isinstance(one(made, second), CompiledKernel)
    assert made.started == 3
    made.close()


def test_misses_in_parallel_and_each_once(service):
    kernels = [kernel(asm(f"add.f32 $0, $1, 0f3F80000{i};")) for i in range(4)]
    outcomes = service.compile([*kernels, *kernels], "sm_90", LIMITS, 60.0)
    assert set(outcomes) == {kernel_key(what, "sm_90") for what in kernels}
    assert all(isinstance(outcome, CompiledKernel) for outcome in outcomes.values()), outcomes
    assert service.started == 4
    assert len({outcome.cubin for outcome in outcomes.values()}) == 4
