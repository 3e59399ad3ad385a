"""Launch plans from candidates of all kinds, traced in a process of their own without a device."""

from __future__ import annotations

import atexit
import base64
import functools
import json
import math
import re
import struct
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from engine.codec import decode, encode
from engine.judging.inputs import record
from engine.judging.plan import Life, Origin, Plan, tensors_of
from engine.judging.plan_check import check_plan, order_problem, reused_output

NO_ARGUMENTS = {"args": [], "kwargs": {"map": {}}}
ROOT = Path(__file__).resolve().parents[2]

TRACE = """
import json, os, pathlib, sys
from engine.judging import child, child_trace
for line in sys.stdin:
    if os.fork() == 0:
        folder, messages = json.loads(line)
        tracer = child_trace.Tracer(pathlib.Path(folder))
        try:
            answers = [child_trace.plan(tracer, message) for message in messages]
        except Exception as error:
            answers = [{"error": child.describe(error)}]
        print(json.dumps(answers), flush=True)
        os._exit(0)
    os.wait()
"""


@functools.cache
def tracers() -> subprocess.Popen:
    """Imports torch and Triton once, and forks a tracer for each line."""
    started = subprocess.Popen(
        [sys.executable, "-c", TRACE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )

    def end() -> None:
        started.stdin.close()
        started.stdout.close()
        started.wait(60)

    atexit.register(end)
    return started


HEAD = """
import torch
import torch.nn as nn
import triton
import triton.language as tl

@triton.jit
def scale_kernel(x_ptr, y_ptr, n, factor, BLOCK: tl.constexpr):
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < n
    tl.store(y_ptr + offs, tl.load(x_ptr + offs, mask=mask) * factor, mask=mask)

def scaled(x, y, factor=2.0, n=None):
    scale_kernel[(triton.cdiv(x.numel(), 128),)](x, y, x.numel() if n is None else n, factor, BLOCK=128)
    return y
"""


def forward(body: str, *, init: str = "pass", arguments: str = "x", more: str = "") -> str:
    """A candidate with one jitted kernel, this __init__ and this forward()."""
    return (
        HEAD
        + textwrap.dedent(more)
        + "\nclass ModelNew(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        + textwrap.indent(textwrap.dedent(init).strip(), " " * 8)
        + f"\n    def forward(self, {arguments}):\n"
        + textwrap.indent(textwrap.dedent(body).strip(), " " * 8)
        + "\n"
    )


def inputs(*shapes: tuple[int, ...]):
    def factory():
        import torch

        return [torch.rand(shape) for shape in shapes]

    return encode(record(factory))


def answers(tmp_path: Path, source: str, *programs) -> list[dict]:
    messages = [
        {
            "source": source,
            "init": {"args": [], "kwargs": {"map": {}}},
            "program": program,
            "target": "sm_90",
            "budget_s": 300,
        }
        for program in programs
    ]
    tracers().stdin.write(json.dumps([str(tmp_path), messages]) + "\n")
    tracers().stdin.flush()
    return json.loads(tracers().stdout.readline())


def answer_of(tmp_path: Path, source: str, *shapes: tuple[int, ...]) -> dict:
    (answer,) = answers(tmp_path, source, inputs(*(shapes or ((1000,),))))
    return answer


def plan_of(tmp_path: Path, source: str, *shapes: tuple[int, ...], state=None) -> Plan:
    """The plan, checked as the judge would."""
    import torch

    shapes = shapes or ((1000,),)
    answer = answer_of(tmp_path, source, *shapes)
    assert answer["plan"] is not None, (answer["untraceable"], answer["compile_error"])
    plan = decode(Plan, answer["plan"], "plan")
    check_plan(plan, state or {}, [torch.empty(shape) for shape in shapes])
    return plan


def launches(plan: Plan):
    return [step.launch for step in plan.steady.steps if step.launch]


def operations(plan: Plan) -> list[str]:
    return [step.call.op for step in plan.steady.steps if step.call is not None]


def origins(plan: Plan) -> list[str]:
    return sorted(buffer.origin.value for buffer in plan.buffers)


def test_an_elementwise_kernel(tmp_path):
    plan = plan_of(tmp_path, forward("return scaled(x, torch.empty_like(x))"))
    ((launch,),) = launches(plan)
    assert launch.grid == (8, 1, 1)
    assert [(a.kind, a.value) for a in launch.arguments[2:]] == [("int", "1000"), ("float", "2.0")]
    assert [plan.buffers[a.buffer].origin for a in launch.arguments[:2]] == [Origin.INPUT, Origin.EMPTY]
    assert [b.bytes for b in plan.buffers] == [4000, 4000]
    assert plan.first is None
    assert plan.prelude == ()
    (output,) = plan.steady.outputs
    assert (output.buffer, output.shape, output.stride, output.dtype) == (
        launch.arguments[1].buffer,
        (1000,),
        (1,),
        "float32",
    )
    assert plan.steady.tree == "t"


@pytest.mark.parametrize(
    ("call", "parameters", "values"),
    [
        ("scaled(x, y, n=64)", 4, ["64", "2.0"]),
        ("scaled(x, y, n=63)", 4, ["63", "2.0"]),
        ("scaled(x, y, n=1)", 3, ["2.0"]),
        ("scaled(x, y, n=1 << 40)", 4, [str(1 << 40), "2.0"]),
        ("scaled(x, y, factor=None)", 3, ["1000"]),
        ("scaled(x, y, factor=True)", 4, ["1000", "1"]),
        ("scaled(x, y, factor=3)", 4, ["1000", "3"]),
        ("scaled(x, y, factor=float('inf'))", 4, ["1000", "inf"]),
    ],
    ids=lambda value: str(value) if isinstance(value, str) else "",
)
def test_scalars_as_triton_specialises_them(tmp_path, call, parameters, values):
    kernel = """
    @triton.jit
    def scale_kernel(x_ptr, y_ptr, n, factor, BLOCK: tl.constexpr):
        offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        mask = offs < n
        x = tl.load(x_ptr + offs, mask=mask)
        if factor is not None:
            x = x * factor
        tl.store(y_ptr + offs, x, mask=mask)
    """
    plan = plan_of(tmp_path, forward(f"y = torch.empty_like(x)\nreturn {call}", more=kernel))
    ((launch,),) = launches(plan)
    text = plan.kernels[launch.kernel].ttir
    assert text.count("%arg") - text.count("%arg", text.index("attributes")) == parameters == len(launch.arguments)
    assert [a.value for a in launch.arguments[2:]] == values
    divisible = "%arg2: i32 {tt.divisibility = 16 : i32}" in text
    assert divisible == ("n=64" in call)


@pytest.mark.parametrize(("offset", "aligned"), [(0, True), (4, True), (1, False), (6, False)], ids=str)
def test_pointers_are_as_aligned_as_their_offset(tmp_path, offset, aligned):
    plan = plan_of(tmp_path, forward(f"v = x[{offset}:]\nreturn scaled(v, torch.empty_like(v))"))
    ((launch,),) = launches(plan)
    assert launch.arguments[0].offset == 4 * offset
    assert ("%arg0: !tt.ptr<f32> {tt.divisibility" in plan.kernels[0].ttir) is aligned


def test_views_are_no_steps(tmp_path):
    body = "y = torch.empty(40, 25)\nscaled(x.view(25, 40).t()[2:], y)\nreturn y.t().reshape(-1)[5:], y[None]"
    plan = plan_of(tmp_path, forward(body))
    assert operations(plan) == ["aten.clone.default"]
    assert [ref.shape for ref in plan.steady.outputs] == [(995,), (1, 40, 25)]
    assert plan.steady.tree == {"tuple": ["t", "t"]}
    assert launches(plan)[0][0].arguments[0].offset == 8


@pytest.mark.parametrize(
    ("maker", "op", "value"),
    [
        ("torch.zeros_like(x)", "aten.zero_.default", []),
        ("torch.zeros(1000)", "aten.zero_.default", []),
        ("x.new_ones(1000)", "aten.fill_.Scalar", [1]),
        ("torch.full((1000,), float('-inf'))", "aten.fill_.Scalar", [{"float": "-inf"}]),
        ("torch.full_like(x, 3.5)", "aten.fill_.Scalar", [3.5]),
    ],
    ids=lambda value: str(value) if "(" in str(value) else "",
)
def test_filled_memory_is_empty_memory_and_a_fill(tmp_path, maker, op, value):
    plan = plan_of(tmp_path, forward(f"y = {maker}\nreturn scaled(x, y)"))
    assert operations(plan) == [op]
    assert origins(plan) == ["empty", "input"]
    assert plan.steady.steps[0].call.arguments[1:] == value


def test_host_operations_around_a_kernel(tmp_path):
    body = "y = torch.relu(self.conv(x))\nz = scaled(y, torch.empty_like(y))\nz.add_(1.0, alpha=2)\nreturn z.sum(dim=1)"
    state = {"conv.weight": (4, 3, 3, 3), "conv.bias": (4,)}
    plan = plan_of(tmp_path, forward(body, init="self.conv = nn.Conv2d(3, 4, 3)"), (2, 3, 8, 8), state=state)
    assert operations(plan) == [
        "aten.convolution.default",
        "aten.relu.default",
        "aten.add_.Tensor",
        "aten.sum.dim_IntList",
    ]
    assert plan.prelude == (), "what initialises parameters is left out"
    convolution = plan.steady.steps[0].call
    read = [plan.buffers[ref.buffer] for ref in tensors_of(convolution.arguments)]
    assert [(buffer.origin.value, buffer.name) for buffer in read] == [
        ("input", "0"),
        ("state", "conv.weight"),
        ("state", "conv.bias"),
    ]
    (made,) = convolution.layouts
    assert made.shape == (2, 4, 6, 6)


def test_attention_has_the_name_that_every_device_knows(tmp_path):
    body = "y = torch.nn.functional.scaled_dot_product_attention(x, x, x, is_causal=True)\n"
    plan = plan_of(tmp_path, forward(body + "return scaled(y, torch.empty_like(y))"), (1, 2, 16, 32))
    assert "aten.scaled_dot_product_attention.default" in operations(plan)


def test_a_workspace_that_the_first_call_makes(tmp_path):
    body = """
    if self.work is None:
        self.work = torch.zeros_like(x)
    scaled(x, self.work)
    return scaled(self.work, torch.empty_like(x))
    """
    plan = plan_of(tmp_path, forward(body, init="self.work = None"))
    assert plan.first is not None
    assert [len(plan.first.steps), len(plan.steady.steps)] == [3, 2]
    kept = [buffer for buffer in plan.buffers if buffer.life is Life.KEPT]
    assert [buffer.origin for buffer in kept] == [Origin.EMPTY]
    assert reused_output(plan) is None


def test_weights_transformed_once_are_kept(tmp_path):
    init = "self.weight = nn.Parameter(torch.randn(8, 125))\nself.turned = self.weight.t().contiguous()"
    body = "return scaled(self.turned, torch.empty_like(x))"
    plan = plan_of(tmp_path, forward(body, init=init), state={"weight": (8, 125)})
    assert [step.call.op for step in plan.prelude] == ["aten.clone.default"]
    assert {(b.origin.value, b.life.value) for b in plan.buffers} == {
        ("state", "kept"),
        ("op", "kept"),
        ("empty", "call"),
    }


def test_a_stale_pointer_reads_the_first_calls_input(tmp_path):
    body = """
    if self.seen is None:
        self.seen = x
    return scaled(self.seen, torch.empty_like(x))
    """
    plan = plan_of(tmp_path, forward(body, init="self.seen = None"))
    source = plan.buffers[launches(plan)[0][0].arguments[0].buffer]
    assert (source.origin, source.name, source.life) == (Origin.INPUT, "0", Life.KEPT)


def test_a_static_output_buffer_is_told(tmp_path):
    body = """
    if self.out is None:
        self.out = torch.empty_like(x)
    return scaled(x, self.out)
    """
    plan = plan_of(tmp_path, forward(body, init="self.out = None"))
    assert "every call writes again" in reused_output(plan)


def test_an_output_that_is_an_input_is_told(tmp_path):
    plan = plan_of(tmp_path, forward("scaled(x, torch.empty_like(x))\nreturn x[3:]"))
    lies_in = plan.buffers[plan.steady.outputs[0].buffer]
    assert (lies_in.origin, lies_in.name) == (Origin.INPUT, "0")


def test_calls_that_never_repeat_have_no_plan(tmp_path):
    body = "self.n += 1\nreturn scaled(x, torch.empty_like(x), factor=float(self.n))"
    answer = answer_of(tmp_path, forward(body, init="self.n = 0"))
    assert answer["plan"] is None
    assert "keeps changing" in answer["untraceable"]
    assert len(answer["launches"]) == 1


JOINED = """
s = torch.cuda.Stream()
y, z = torch.empty_like(x), torch.empty_like(x)
s.wait_stream(torch.cuda.current_stream())
with torch.cuda.stream(s):
    scaled(x, y)
scaled(x, z)
"""


def test_two_streams_that_join(tmp_path):
    plan = plan_of(tmp_path, forward(JOINED + "torch.cuda.current_stream().wait_stream(s)\nreturn y + z"))
    order = [(step.stream, step.wait) for step in plan.steady.steps]
    assert order == [(1, 0), (1, None), (0, None), (0, 1), (0, None)]
    assert order_problem(plan.steady, plan.kernels) is None


def test_a_stream_that_nobody_waits_for_is_told(tmp_path):
    plan = plan_of(tmp_path, forward(JOINED + "return y, z"))
    assert "not joined" in order_problem(plan.steady, plan.kernels)


def test_a_result_used_before_its_stream_is_waited_for_is_told(tmp_path):
    body = JOINED + "w = y + z\ntorch.cuda.current_stream().wait_stream(s)\nreturn w"
    plan = plan_of(tmp_path, forward(body))
    assert "a wait is missing" in order_problem(plan.steady, plan.kernels)


def test_an_event_waits_for_no_more_than_came_before_it(tmp_path):
    body = """
    s = torch.cuda.Stream()
    y, z = torch.empty_like(x), torch.empty_like(x)
    s.wait_stream(torch.cuda.current_stream())
    done = torch.cuda.Event()
    with torch.cuda.stream(s):
        scaled(x, y)
        done.record()
        scaled(x, z)
    torch.cuda.current_stream().wait_event(done)
    w = y + 1.0
    torch.cuda.synchronize()
    return w, z + 1.0
    """
    plan = plan_of(tmp_path, forward(body))
    steps = plan.steady.steps
    assert [(step.stream, step.wait, step.event, step.wait_event) for step in steps] == [
        (1, 0, None, None),
        (1, None, None, None),
        (1, None, 0, None),
        (1, None, None, None),
        (0, None, None, 0),
        (0, None, None, None),
        (0, 1, None, None),
        (0, None, None, None),
    ]
    assert order_problem(plan.steady, plan.kernels) is None


TUNED = """
@triton.autotune(
    configs=[triton.Config({"BLOCK": b}, num_warps=w) for b, w in ((64, 2), (128, 4), (256, 8))], key=["n"]
)
@triton.heuristics({"EVEN": lambda args: args["n"] % args["BLOCK"] == 0})
@triton.jit
def tuned_kernel(x_ptr, y_ptr, n, EVEN: tl.constexpr, BLOCK: tl.constexpr):
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    if EVEN:
        tl.store(y_ptr + offs, tl.load(x_ptr + offs))
    else:
        tl.store(y_ptr + offs, tl.load(x_ptr + offs, mask=offs < n), mask=offs < n)
"""


def test_autotuning_and_heuristics_are_choices(tmp_path):
    body = """
    y = torch.empty_like(x)
    tuned_kernel[lambda meta: (triton.cdiv(x.numel(), meta["BLOCK"]),)](x, y, x.numel())
    return y
    """
    plan = plan_of(tmp_path, forward(body, more=TUNED), (4096 + 64,))
    (choices,) = launches(plan)
    assert [choice.grid[0] for choice in choices] == [65, 33, 17]
    kernels = [plan.kernels[choice.kernel] for choice in choices]
    assert [kernel.num_warps for kernel in kernels] == [2, 4, 8]
    assert ["cmpi" in kernel.ttir for kernel in kernels] == [False, True, True]


def test_a_hook_ties_the_launch_to_its_configuration(tmp_path):
    hooked = TUNED.replace("num_warps=w)", 'num_warps=w, pre_hook=lambda args: args["y_ptr"].zero_())')
    body = """
    y = torch.empty_like(x)
    tuned_kernel[lambda meta: (triton.cdiv(x.numel(), meta["BLOCK"]),)](x, y, x.numel())
    return y
    """
    plan = plan_of(tmp_path, forward(body, more=hooked))
    assert operations(plan) == ["aten.zero_.default"]
    assert [len(choices) for choices in launches(plan)] == [1]


def test_a_program_that_asks_for_the_best_configuration_has_one(tmp_path):
    body = """
    y = torch.empty_like(x)
    tuned_kernel[lambda meta: (triton.cdiv(x.numel(), meta["BLOCK"]),)](x, y, x.numel())
    return y[: tuned_kernel.best_config.kwargs["BLOCK"]]
    """
    plan = plan_of(tmp_path, forward(body, more=TUNED))
    assert [len(choices) for choices in launches(plan)] == [1]
    assert plan.steady.outputs[0].shape == (64,)


def test_a_kernel_that_each_call_defines_anew_is_the_same(tmp_path):
    body = """
    @triton.jit
    def local_kernel(x_ptr, y_ptr, BLOCK: tl.constexpr):
        offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        tl.store(y_ptr + offs, tl.load(x_ptr + offs))
    y = torch.empty_like(x)
    local_kernel[(10,)](x, y, BLOCK=128)
    return y
    """
    plan = plan_of(tmp_path, forward(body), (1280,))
    assert plan.first is None
    assert len(plan.kernels) == 1


def test_a_configuration_that_the_launch_names_too_is_refused_as_triton_does(tmp_path):
    body = "y = torch.empty_like(x)\ntuned_kernel[(8,)](x, y, x.numel(), BLOCK=128)\nreturn y"
    answer = answer_of(tmp_path, forward(body, more=TUNED))
    assert answer["error"]["message"].startswith("Conflicting meta-parameters: BLOCK.")


def test_host_data_is_a_literal(tmp_path):
    body = (
        "t = torch.tensor([1.5, -2.0, 3.0, 4.0])\nreturn scaled(t, torch.empty_like(t)), scaled(x, torch.empty_like(x))"
    )
    plan = plan_of(tmp_path, forward(body))
    (literal,) = [buffer for buffer in plan.buffers if buffer.origin is Origin.LITERAL]
    assert struct.unpack("4f", base64.b64decode(literal.data)) == (1.5, -2.0, 3.0, 4.0)
    assert literal.life is Life.CALL


def test_data_of_the_module_is_a_literal_that_is_kept(tmp_path):
    more = "TABLE = torch.arange(4, dtype=torch.int64)"
    plan = plan_of(tmp_path, forward("return scaled(x, torch.empty_like(x)), TABLE * 2", more=more))
    (literal,) = [buffer for buffer in plan.buffers if buffer.origin is Origin.LITERAL]
    assert (literal.life, literal.dtype) == (Life.KEPT, "int64")
    assert plan.first is None


def test_addresses_are_aligned_as_the_executors_and_differ(tmp_path):
    body = """
    y = torch.empty_like(x)
    assert x.data_ptr() % 16 == 0 and x.data_ptr() % 32 != 0
    assert x[1:].data_ptr() == x.data_ptr() + 4
    assert abs(y.data_ptr() - x.data_ptr()) >= 4000 + 512 and y.data_ptr() == y.data_ptr()
    return scaled(x, y)
    """
    assert plan_of(tmp_path, forward(body)).first is None


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("return scaled(x, torch.empty_like(x), n=x.data_ptr())", "address as a number"),
        (
            "t = torch.tensor([x.data_ptr(), 0])\nscaled(t, t)\nreturn scaled(x, torch.empty_like(x))",
            "holds addresses",
        ),
        (
            "try:\n    float(x.sum())\nexcept Exception:\n    pass\nreturn scaled(x, torch.empty_like(x))",
            "reads values on the host",
        ),
        ("x.resize_(2000)\nreturn scaled(x, torch.empty_like(x))", "changes the memory behind"),
        (
            "from triton.tools.tensor_descriptor import TensorDescriptor\n"
            "d = TensorDescriptor.from_tensor(x.view(10, 100), [2, 4])\ny = torch.empty_like(x)\n"
            "scale_kernel[(1,)](d, y, 5, 2.0, BLOCK=4)\nreturn y",
            "TensorDescriptor",
        ),
        (
            "scale_kernel[(8,)](x, x, 5, 2.0, BLOCK=128, ir_override='k.ttgir')\nreturn scaled(x, torch.empty_like(x))",
            "ir_override",
        ),
        (
            "try:\n    torch.cuda.CUDAGraph()\nexcept Exception:\n    pass\nreturn scaled(x, torch.empty_like(x))",
            "CUDA graph",
        ),
    ],
    ids=["address", "address table", "value", "resize", "descriptor", "override", "graph"],
)
def test_what_a_plan_cannot_say(tmp_path, body, reason):
    answer = answer_of(tmp_path, forward(body))
    assert answer["plan"] is None
    assert reason in answer["untraceable"]


def test_an_error_of_the_front_end_is_a_compile_error(tmp_path):
    broken = forward("return scaled(x, torch.empty_like(x))").replace("* factor", "@ factor")
    answer = answer_of(tmp_path, broken)
    assert answer["plan"] is None
    assert answer["compile_error"]["kernel"] == "scale_kernel"
    assert "does not compile" in answer["compile_error"]["message"]


def test_one_process_traces_several_variants(tmp_path):
    source = forward("return scaled(x, torch.empty_like(x))")
    first, second = answers(tmp_path, source, inputs((1024,)), inputs((96,)))
    plans = [decode(Plan, answer["plan"], "plan") for answer in (first, second)]
    assert [plan.buffers[0].bytes for plan in plans] == [4096, 384]
    assert [row["grid"] for answer in (first, second) for row in answer["launches"]] == [[8, 1, 1], [1, 1, 1]]


def test_split_k_into_zeros(tmp_path):
    more = """
    @triton.jit
    def split_kernel(a_ptr, b_ptr, c_ptr, n, B: tl.constexpr):
        i = tl.arange(0, B)
        k = tl.program_id(0) * B + i
        a = tl.load(a_ptr + i[:, None] * n + k[None, :])
        b = tl.load(b_ptr + k[:, None] * B + i[None, :])
        tl.atomic_add(c_ptr + i[:, None] * B + i[None, :], tl.dot(a, b))
    """
    body = "c = torch.zeros(16, 16)\nsplit_kernel[(4,)](a, b, c, 64, B=16)\nreturn c"
    plan = plan_of(tmp_path, forward(body, arguments="a, b", more=more), (16, 64), (64, 16))
    assert operations(plan) == ["aten.zero_.default"]
    assert "tt.dot" in plan.kernels[0].ttir
    assert "loc(" not in plan.kernels[0].ttir


BUILD = """
import json, pathlib, sys
from engine.judging import pretend
pretend.install_driver("sm_90")
from engine.codec import decode
from engine.judging import child, lowering
from engine.judging.plan import Plan
import torch, triton
from triton.backends.compiler import GPUTarget
folder = pathlib.Path(sys.argv[1])
module = child.import_candidate(sys.argv[2], folder)
x = torch.empty(64, 64)
specialiser = lowering.Specialiser()
function = getattr(module, sys.argv[3])
place, values = specialiser.specialise(function, *eval(sys.argv[4]))
made = specialiser.kernels[place]
kernel = specialiser.lower(place)
direct = triton.compile(made.source, target=made.target, options=vars(made.options))
path = folder / "kernel.ttir"
path.write_text(kernel.ttir)
options = {"num_warps": kernel.num_warps, "num_stages": kernel.num_stages, "num_ctas": kernel.num_ctas}
again = triton.compile(str(path), target=GPUTarget("cuda", 90, 32), options=options)
print(json.dumps([direct.asm["cubin"] == again.asm["cubin"], len(direct.asm["cubin"]), len(values)]))
"""

PRODUCT = """
import triton
import triton.language as tl

@triton.jit
def product(a_ptr, b_ptr, c_ptr, n, B: tl.constexpr):
    i = tl.arange(0, B)
    acc = tl.zeros((B, B), tl.float32)
    for k in range(0, n, B):
        a = tl.load(a_ptr + i[:, None] * n + (k + i)[None, :])
        acc = tl.dot(a, tl.load(b_ptr + (k + i)[:, None] * B + i[None, :]), acc)
    tl.store(c_ptr + i[:, None] * B + i[None, :], acc)
"""


@pytest.mark.parametrize(
    ("source", "name", "call"),
    [
        (HEAD, "scale_kernel", "((x, x, 4096, 2.0), {'BLOCK': 256})"),
        (HEAD, "scale_kernel", "((x[1:], x, 63, 2.0), {'BLOCK': 128, 'num_warps': 8})"),
        (PRODUCT, "product", "((x, x, x, 64), {'B': 32, 'num_stages': 4})"),
    ],
    ids=["elementwise", "unaligned", "product"],
)
def test_the_text_compiles_to_the_same_machine_code_as_the_source(tmp_path, monkeypatch, source, name, call):
    # Line tables name the source's file, which the text does not have; instructions are what is compared.
    monkeypatch.setenv("TRITON_DISABLE_LINE_INFO", "1")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    done = subprocess.run(
        [sys.executable, "-c", BUILD, str(tmp_path), source, name, call],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    same, size, arguments = json.loads(done.stdout)
    assert same
    assert size > 1000
    assert arguments == 4


def test_the_ir_does_not_say_where_the_source_lies(tmp_path):
    plan = plan_of(tmp_path, forward("return scaled(x, torch.empty_like(x))"))
    assert not re.search(r"candidate|loc\(|/tmp", plan.kernels[0].ttir)
    assert math.prod(launches(plan)[0][0].grid) == 8
