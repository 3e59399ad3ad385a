"""Plans outside the contract are refused with a text; orders between streams; what results share."""

from __future__ import annotations

import base64
from dataclasses import replace

import pytest
import torch

from engine.judging.plan import (
    Argument,
    Buffer,
    Call,
    HostCall,
    Kernel,
    Launch,
    Life,
    Origin,
    Plan,
    Ref,
    Step,
)
from engine.judging.plan_check import PlanError, check_plan, order_problem, reused_output
from engine.judging.plan_ops import host_ops
from engine.judging.plan_pointers import written_pointers

COPY = """module {
  tt.func public @copy(%arg0: !tt.ptr<f32>, %arg1: !tt.ptr<f32> {tt.divisibility = 16 : i32}, %arg2: i32) {
    %0 = tt.splat %arg0 : !tt.ptr<f32> -> tensor<4x!tt.ptr<f32>>
    %1 = tt.load %0 : tensor<4x!tt.ptr<f32>>
    %2 = tt.splat %arg1 : !tt.ptr<f32> -> tensor<4x!tt.ptr<f32>>
    tt.store %2, %1 : tensor<4x!tt.ptr<f32>>
    tt.return
  }
}
"""
INPUT, WEIGHT, FRESH, RESULT, LITERAL = range(5)
BUFFERS = (
    Buffer(32, "float32", Origin.INPUT, Life.CALL, "0"),
    Buffer(24, "float32", Origin.STATE, Life.KEPT, "weight"),
    Buffer(32, "float32", Origin.EMPTY, Life.CALL),
    Buffer(32, "float32", Origin.OP, Life.CALL),
    Buffer(8, "int64", Origin.LITERAL, Life.KEPT, data=base64.b64encode(bytes(8)).decode()),
)


def pointer(buffer: int, offset: int = 0) -> Argument:
    return Argument("pointer", buffer, offset)


def copies(source: int, target: int, stream: int = 0) -> Step:
    return Step(stream, launch=(Launch(0, (2, 1, 1), (pointer(source), pointer(target), Argument("int", value="8"))),))


def tensor(buffer: int, shape=(8,), stride=(1,), offset=0, dtype="float32"):
    return {"tensor": [buffer, offset, list(shape), list(stride), dtype]}


def added(*operands, keywords=None, op="aten.add.Tensor", results=(RESULT,)) -> Step:
    return Step(call=HostCall(op, list(operands), keywords or {}, results))


WHOLE = Ref(RESULT, 0, (8,), (1,), "float32")
GOOD = Plan(
    BUFFERS,
    (Kernel("copy", COPY, 4, 3),),
    (),
    None,
    Call((copies(INPUT, FRESH), added(tensor(FRESH), tensor(INPUT), keywords={"alpha": 2})), (WHOLE,), "t"),
)


def with_step(*steps: Step, outputs=(WHOLE,), tree="t") -> Plan:
    return replace(GOOD, steady=Call((*GOOD.steady.steps, *steps), outputs, tree))


def instead(*steps: Step) -> Plan:
    return replace(GOOD, steady=Call(steps, (), {"tuple": []}))


def with_buffer(index: int, **changes) -> Plan:
    buffers = list(BUFFERS)
    buffers[index] = replace(buffers[index], **changes)
    return replace(GOOD, buffers=tuple(buffers))


def with_launch(**changes) -> Plan:
    return instead(Step(launch=(replace(copies(INPUT, FRESH).launch[0], **changes),)))


def with_argument(argument: Argument) -> Plan:
    return with_launch(arguments=(argument,))


def check(plan: Plan) -> None:
    check_plan(plan, {"weight": (2, 3)}, [torch.empty(8)])


@pytest.mark.parametrize(
    "plan",
    [
        GOOD,
        with_step(Step(2, wait=0), copies(INPUT, FRESH, 2), Step(2, event=0), Step(0, wait_event=0)),
        with_step(
            added(tensor(FRESH, (2, 2), (0, 3), offset=4), op="aten.zero_.default", results=(None,)),
            outputs=(WHOLE, Ref(INPUT, 0, (0,), (1,), "float32")),
            tree={"map": {"a": {"list": ["t"]}, "b": "t", "c": None, "d": "int"}},
        ),
        instead(added(tensor(INPUT), keywords={"approximate": "tanh"}, op="aten.gelu.default")),
        instead(added(tensor(INPUT), [0], False, keywords={"dtype": {"dtype": "float32"}}, op="aten.sum.dim_IntList")),
        instead(
            added(
                [8],
                {"float": "inf"},
                keywords={"dtype": None, "layout": {"layout": "strided"}, "device": {"device": 0}, "pin_memory": False},
                op="aten.full.default",
            )
        ),
        instead(added(tensor(INPUT), keywords={"memory_format": {"memory_format": "contiguous_format"}},
                      op="aten.clone.default")),
        instead(added(tensor(INPUT), 8.0, op="aten.div.Tensor")),
        instead(added([tensor(INPUT), tensor(FRESH)], 0, op="aten.cat.default")),
        with_argument(Argument("float", value="-inf")),
        with_argument(Argument("int", value=str(2**64 - 1))),
        with_argument(pointer(FRESH, 32)),
    ],
    ids=lambda plan: plan.steady.steps[-1].call.op if plan.steady.steps[-1].call else "",
)  # fmt: skip
def test_plans_of_an_honest_tracer(plan):
    check(plan)


REFUSED = {
    "state of no such name": (with_buffer(WEIGHT, name="bias"), "no 'bias'"),
    "state of another size": (with_buffer(WEIGHT, bytes=28), "expected 24 bytes, got 28"),
    "state for a call": (with_buffer(WEIGHT, life=Life.CALL), "is kept"),
    "input beyond": (with_buffer(INPUT, name="1"), "has 1 tensors"),
    "input far beyond": (with_buffer(INPUT, name="0" * 9 + "1"), "got position"),
    "input by a word": (with_buffer(INPUT, name="x"), "got position 'x'"),
    "input of another size": (with_buffer(INPUT, bytes=36), "expected 32 bytes"),
    "negative size": (with_buffer(FRESH, bytes=-1), "-1 bytes"),
    "unknown dtype": (with_buffer(FRESH, dtype="nn"), "dtype"),
    "literal and data differ": (with_buffer(LITERAL, data="AAAA"), "expected 3 bytes, got 8"),
    "literal that is no base64": (with_buffer(LITERAL, data="!"), "base64"),
    "data elsewhere": (with_buffer(FRESH, data="AAAA"), "not literal"),
    "name elsewhere": (with_buffer(FRESH, name="weight"), "of the candidate's own"),
    "kernel index": (with_launch(kernel=1), "kernel 1"),
    "grid of nothing": (with_launch(grid=(0, 1, 1)), "grid (0, 1, 1)"),
    "grid too large": (with_launch(grid=(1, 65536, 1)), "grid (1, 65536, 1)"),
    "offset behind the end": (with_argument(pointer(FRESH, 33)), "offset 33 in 32 bytes"),
    "negative offset": (with_argument(pointer(FRESH, -4)), "offset -4"),
    "no such buffer": (with_argument(pointer(5)), "buffer 5 of 5"),
    "negative buffer": (with_argument(pointer(-1)), "buffer -1 of 5"),
    "result before its operation": (with_argument(pointer(RESULT)), "not made yet"),
    "int that is an expression": (with_argument(Argument("int", value="1+1")), "the int '1+1'"),
    "int too wide": (with_argument(Argument("int", value=str(2**64))), "the int"),
    "float that is a word": (with_argument(Argument("float", value="one")), "the number 'one'"),
    "kind": (with_argument(Argument("object")), "the kind 'object'"),
    "two things at once": (instead(replace(copies(INPUT, FRESH), wait=1)), "expected one of"),
    "nothing": (instead(Step()), "expected one of"),
    "stream": (instead(Step(64, wait=0)), "stream 64"),
    "event that is not set": (instead(Step(wait_event=3)), "not set yet"),
    "event set twice": (instead(Step(event=3), Step(event=3)), "event 3"),
    "too many choices": (instead(Step(launch=copies(INPUT, FRESH).launch * 17)), "17 choices"),
    "another namespace": (instead(added(op="prims.add.Tensor")), "expected aten.name.overload"),
    "attribute path": (instead(added(op="aten.add.Tensor.__class__")), "expected aten.name.overload"),
    "no such operation": (instead(added(op="aten.launch.default")), "no operation aten.launch.default"),
    "no such overload": (instead(added(op="aten.relu.Tensor")), "no operation aten.relu.Tensor"),
    "dunder": (instead(added(op="aten.__class__.__name__")), "no operation"),
    "file": (instead(added("/etc/passwd", op="aten.from_file.default")), "the word '/etc/passwd'"),
    "word": (instead(added(tensor(INPUT), keywords={"approximate": "x"}, op="aten.gelu.default")), "the word 'x'"),
    "storage": (instead(added(tensor(INPUT), [4], op="aten.resize_.default")), "changes storages"),
    "generator": (
        instead(added(tensor(INPUT), keywords={"generator": 1}, op="aten.rand_like.generator")),
        "are not taken",
    ),
    "argument too many": (instead(added(*[tensor(INPUT)] * 3)), "3 arguments, takes 2"),
    "argument missing": (instead(added(tensor(INPUT))), "lacks other"),
    "unknown name": (instead(added(*[tensor(INPUT)] * 2, keywords={"beta": 1})), "['beta']"),
    "given twice": (instead(added(*[tensor(INPUT)] * 2, keywords={"other": 1})), "['other']"),
    "text for a tensor": (instead(added(tensor(INPUT), "x")), "expected a tensor"),
    "tensor for a number": (instead(added(*[tensor(INPUT)] * 2, keywords={"alpha": tensor(INPUT)})), "expected number"),
    "half a tensor": (instead(added(tensor(INPUT), {"tensor": [0, 0]})), "expected a tensor"),
    "fraction in a tensor": (
        instead(added(tensor(INPUT), {"tensor": [0, 0.5, [1], [1], "int8"]})),
        "expected a tensor",
    ),
    "dtype of another kind": (
        instead(added(tensor(INPUT), keywords={"dtype": {"device": 0}}, op="aten.sum.default")),
        "expected ScalarType",
    ),
    "device": (instead(added([8], keywords={"device": {"device": 1}}, op="aten.zeros.default")), "device 1"),
    "view outside": (instead(added(tensor(INPUT, (9,)), 1)), "ends at byte 36"),
    "strided view outside": (instead(added(tensor(INPUT, (2, 4), (5, 1)), 1)), "ends at byte 36"),
    "offset view outside": (instead(added(tensor(INPUT, (8,), offset=1), 1)), "ends at byte 36"),
    "wide view outside": (instead(added(tensor(INPUT, dtype="float64"), 1)), "ends at byte 64"),
    "negative stride": (instead(added(tensor(INPUT, (2,), (-1,), offset=4), 1)), "stride (-1,)"),
    "shape and stride differ": (instead(added(tensor(INPUT, (2,), (1, 1)), 1)), "shape (2,)"),
    "no result": (instead(added(*[tensor(INPUT)] * 2, results=())), "0 results, expected 1"),
    "result in other memory": (instead(added(*[tensor(INPUT)] * 2, results=(FRESH,))), "no operation's result"),
    "result made twice": (instead(*[added(*[tensor(INPUT)] * 2)] * 2), "made twice"),
    "output outside": (with_step(outputs=(replace(WHOLE, shape=(9,)),)), "ends at byte 36"),
    "output that nobody made": (replace(GOOD, steady=Call((), (WHOLE,), "t")), "not made yet"),
    "tree of more": (with_step(tree={"list": ["t", "t"]}), "2 tensors in it, 1 outputs"),
    "tree of another form": (with_step(tree=["t"]), "output tree"),
    "memory of a call in __init__": (replace(GOOD, prelude=(copies(WEIGHT, FRESH),)), "lives for a call"),
    "warps": (replace(GOOD, kernels=(Kernel("copy", COPY, 3, 3),)), "num_warps=3"),
    "registers": (replace(GOOD, kernels=(Kernel("copy", COPY, 4, 3, maxnreg=256),)), "maxnreg=256"),
    "kernel name": (replace(GOOD, kernels=(Kernel("../x", COPY, 4, 3),)), "the name '../x'"),
}


@pytest.mark.parametrize(("plan", "text"), REFUSED.values(), ids=REFUSED)
def test_what_no_honest_tracer_emits(plan, text):
    with pytest.raises(PlanError) as error:
        check(plan)
    assert text in str(error.value)


def test_kept_results_of_the_first_call_are_there_later_and_others_are_not():
    steady = replace(GOOD.steady, steps=(copies(RESULT, FRESH),))
    kept = replace(with_buffer(RESULT, life=Life.KEPT), first=GOOD.steady, steady=steady)
    check(kept)
    with pytest.raises(PlanError, match="not made yet"):
        check(replace(GOOD, first=GOOD.steady, steady=steady))


def order(*steps: Step) -> str | None:
    return order_problem(Call(steps, (), None), GOOD.kernels)


FORK, JOIN, MARK = Step(1, wait=0), Step(0, wait=1), Step(1, event=5)


@pytest.mark.parametrize(
    ("steps", "text"),
    [
        ((copies(0, 2), copies(2, 3)), None),
        ((FORK, copies(0, 2, 1), JOIN), None),
        ((FORK, copies(0, 2, 1), copies(0, 3), JOIN), None),
        ((copies(0, 2), FORK, copies(2, 3, 1), JOIN, copies(3, 2)), None),
        ((FORK, copies(0, 2, 1), Step(2, wait=1), copies(2, 3, 2), Step(0, wait=2)), None),
        ((FORK, copies(0, 2, 1), MARK, copies(0, 3, 1), Step(wait_event=5), copies(2, 4), JOIN), None),
        ((FORK, copies(0, 2, 1)), "not joined"),
        ((FORK, JOIN, copies(0, 2, 1)), "not joined"),
        ((copies(0, 2, 1), JOIN), "does not wait for the stream on which forward() was called"),
        ((FORK, copies(0, 2), copies(2, 3, 1), JOIN), "buffer 2"),
        ((FORK, copies(0, 2, 1), copies(2, 3), JOIN), "buffer 2"),
        ((FORK, copies(0, 2, 1), copies(0, 2), JOIN), "buffer 2"),
        ((FORK, copies(2, 3, 1), copies(0, 2), JOIN), "buffer 2"),
        ((FORK, copies(0, 2, 1), MARK, copies(0, 3, 1), Step(wait_event=5), copies(3, 4), JOIN), "buffer 3"),
        (
            (
                FORK,
                copies(0, 2, 1),
                added(tensor(2), op="aten.zero_.default", results=(None,)),
                JOIN,
            ),
            "buffer 2",
        ),
        ((FORK, copies(0, 2, 1), added(tensor(0), tensor(0)), JOIN), None),
    ],
    ids=[
        "one stream", "joined", "both read one", "there and back", "through a third", "event in time", "left alone",
        "after the join", "not forked", "reads too early", "reads too soon", "both write", "writes what is read",
        "after the event", "operation in place", "operation reads",
    ],
)  # fmt: skip
def test_order_between_streams(steps, text):
    found = order(*steps)
    assert found is None if text is None else text in found


def test_without_kernels_every_pointer_is_written():
    steps = (FORK, copies(0, 2, 1), copies(0, 3), JOIN)
    assert "buffer 0" in order_problem(Call(steps, (), None))


@pytest.mark.parametrize(
    ("origin", "life", "written", "told"),
    [
        (Origin.EMPTY, Life.KEPT, True, True),
        (Origin.EMPTY, Life.CALL, True, False),
        (Origin.EMPTY, Life.KEPT, False, False),
    ],
    ids=["static buffer", "fresh", "constant"],
)
def test_results_in_memory_of_all_calls(origin, life, written, told):
    plan = with_buffer(FRESH, origin=origin, life=life)
    steps = (copies(INPUT, FRESH),) if written else (copies(FRESH, RESULT),)
    plan = replace(plan, steady=Call(steps, (replace(WHOLE, buffer=FRESH),), "t"))
    assert (reused_output(plan) is not None) is told


def test_host_operations_are_counted_from_the_plan():
    product = added(tensor(INPUT, (2, 4), (4, 1)), tensor(FRESH, (4, 2), (2, 1)), op="aten.mm.default")
    product = replace(product, call=replace(product.call, layouts=(Ref(RESULT, 0, (2, 2), (2, 1), "float32"),)))
    fill = added(tensor(FRESH), op="aten.zero_.default", results=(None,))
    ops = {op.name: op for op in host_ops(Call((fill, product, copies(INPUT, FRESH)), (), None))}
    assert set(ops) == {"aten.zero_", "aten.mm"}
    assert not ops["aten.zero_"].compute
    # Two FLOPs per multiply-add of 2 x 4 x 2; both operands and the result once.
    assert (ops["aten.mm"].flops, ops["aten.mm"].bytes) == (32.0, 4.0 * (8 + 8 + 4))


LOOP = """module {
  tt.func public @k(%arg0: !tt.ptr<f32>, %arg1: !tt.ptr<f32>, %arg2: !tt.ptr<f32>, %arg3: !tt.ptr<i64>) {
    %0 = tt.splat %arg0 : !tt.ptr<f32> -> tensor<4x!tt.ptr<f32>>
    %1 = tt.splat %arg1 : !tt.ptr<f32> -> tensor<4x!tt.ptr<f32>>
    %2:2 = scf.for %arg4 = %c0 to %n step %c1 iter_args(%arg5 = %0, %arg6 = %1) -> (tensor<4>, tensor<4>)  : i32 {
      %5 = tt.load %arg5 : tensor<4x!tt.ptr<f32>>
      STORE
      %6 = tt.addptr %arg5, %cst : tensor<4x!tt.ptr<f32>>, tensor<4xi32>
      %7 = tt.addptr %arg6, %cst : tensor<4x!tt.ptr<f32>>, tensor<4xi32>
      scf.yield YIELD : tensor<4x!tt.ptr<f32>>, tensor<4x!tt.ptr<f32>>
    }
    %8 = tt.load %arg3 : !tt.ptr<i64>
    AFTER
    tt.return
  }
}
"""


@pytest.mark.parametrize(
    ("store", "carried", "after", "expected"),
    [
        ("tt.store %arg6, %5 : tensor<4x!tt.ptr<f32>>", "%6, %7", "", {1}),
        ("tt.store %arg6, %5 : tensor<4x!tt.ptr<f32>>", "%7, %6", "", {0, 1}),
        ("", "%6, %7", "tt.store %2#0, %5 : tensor<4x!tt.ptr<f32>>", {0}),
        ("", "%6, %7", "%9 = tt.atomic_rmw fadd, acq_rel, gpu, %arg2, %5, %t : (!tt.ptr<f32>) -> f32", {2}),
        ("", "%6, %7", "tt.call @other(%arg2) : (!tt.ptr<f32>) -> ()", {0, 1, 2, 3}),
        ("", "%6, %7", "", set()),
    ],
    ids=["loop", "swapped", "after the loop", "atomic", "call", "none"],
)
def test_pointers_that_a_kernel_writes_through(store, carried, after, expected):
    text = LOOP.replace("STORE", store).replace("YIELD", carried).replace("AFTER", after)
    assert written_pointers(text, 4) == expected


def test_a_text_of_another_form_writes_through_all():
    assert written_pointers("module {}", 2) == {0, 1}
    assert written_pointers(COPY, 2) == {0, 1}, "the text has three parameters"
