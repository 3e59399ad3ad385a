"""A planned call for a process without PyTorch: what it is told, and arguments as a launch needs them."""

from __future__ import annotations

import ctypes
import json
import struct
import subprocess
import sys
from types import SimpleNamespace

import pytest

from engine.codec import decode, encode
from engine.judging.counted import CountedReplay
from engine.judging.images import ReplayError, packed
from engine.judging.lone_call import LoneCall
from engine.judging.plan import Argument, Buffer, Call, HostCall, Kernel, Launch, Life, Origin, Plan, Step
from engine.judging.replayed import Compiled, NotReplayable


def address(buffer):
    return 0x1000 * (buffer + 1)


@pytest.mark.parametrize(
    ("kind", "argument", "raw"),
    [
        ("pointer", Argument("pointer", 2, 16), struct.pack("<Q", 0x3010)),
        ("i1", Argument("int", value="1"), b"\x01"),
        ("i8", Argument("int", value="-1"), b"\xff"),
        ("i16", Argument("int", value="-2"), struct.pack("<h", -2)),
        ("i32", Argument("int", value="2147483647"), struct.pack("<i", 2147483647)),
        ("i32", Argument("int", value="4294967295"), struct.pack("<I", 4294967295)),
        ("i64", Argument("int", value="-9223372036854775808"), struct.pack("<q", -(2**63))),
        ("i64", Argument("int", value="18446744073709551615"), struct.pack("<Q", 2**64 - 1)),
        ("f32", Argument("float", value="0.1"), struct.pack("<f", 0.1)),
        ("f32", Argument("float", value="inf"), struct.pack("<f", float("inf"))),
        ("f64", Argument("float", value="0.1"), struct.pack("<d", 0.1)),
        ("f16", Argument("float", value="1.5"), struct.pack("<e", 1.5)),
        ("bf16", Argument("float", value="1.5"), struct.pack("<f", 1.5)[2:]),
        ("f32", Argument("int", value="3"), struct.pack("<f", 3.0)),
    ],
)
def test_arguments_of_a_kernel_are_the_bytes_of_their_type(kind, argument, raw):
    assert bytes(packed(kind, argument, address)) == raw


@pytest.mark.parametrize(
    ("kind", "argument", "words"),
    [
        ("pointer", Argument("int", value="4096"), "expects a pointer"),
        ("i64", Argument("pointer", 0, 0), "gives a pointer"),
    ],
)
def test_a_number_is_never_taken_for_an_address(kind, argument, words):
    with pytest.raises(ReplayError, match=words):
        packed(kind, argument, address)


def test_values_are_of_the_size_that_the_driver_copies():
    assert ctypes.sizeof(packed("i8", Argument("int", 0, 0, "3"), address)) == 1


def test_the_process_that_ncu_watches_imports_no_torch():
    code = "import sys, engine.judging.lone_call; print('torch' in sys.modules, 'triton' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


INPUT, EMPTY, OP = Origin.INPUT, Origin.EMPTY, Origin.OP
BUFFERS = (Buffer(64, "float32", INPUT, Life.CALL, "0"), Buffer(64, "float32", EMPTY, Life.CALL))


def launch(kernel, *buffers):
    return Launch(kernel, (4, 1, 1), (*(Argument("pointer", b, 8) for b in buffers), Argument("int", value="16")))


def counted(steps, choices=(), keys=("k0", "k1"), offsets=(4096, 8192)):
    """A CountedReplay of these steady steps, loaded, without an executor behind it."""
    kernels = tuple(Kernel(f"kernel{n}", "", 4, 3) for n in range(len(keys)))
    plan = Plan(BUFFERS, kernels, (), None, Call(tuple(steps), (), "t"))
    compiled = {key: SimpleNamespace(**IMAGE, key=key) for key in keys if key is not None}
    made = object.__new__(CountedReplay)
    made.compiled, made.choices = Compiled(plan, tuple(keys), compiled), tuple(choices)
    made.replay = SimpleNamespace(layout=SimpleNamespace(offsets=(offsets,), bytes=16384))
    made.executor = SimpleNamespace(shared_memory=("handle", 1 << 20))
    return made


IMAGE = {
    "cubin": b"machine code",
    "symbol": "kernel",
    "parameters": ("pointer", "i32"),
    "threads": 128,
    "shared_bytes": 0,
    "cluster": (1, 1, 1),
    "cooperative": False,
    "global_scratch_bytes": 0,
}


def test_a_call_of_launches_alone_is_told_whole():
    told = counted([Step(launch=(launch(0, 0),)), Step(stream=1, wait=0), Step(launch=(launch(1, 1),))]).lone_call()
    assert (told.token, told.bytes) == ("handle", 16384)
    assert [(one.image, one.grid, one.offsets) for one in told.launches] == [
        ("k0", (4, 1, 1), (4096, -1)),
        ("k1", (4, 1, 1), (8192, -1)),
    ]
    assert sorted(image.key for image in told.images) == ["k0", "k1"]
    assert decode(LoneCall, json.loads(json.dumps(encode(told)))) == told


def test_of_an_autotuned_launch_the_frozen_choice_is_told():
    tuned = Step(launch=(launch(0, 0), launch(1, 0)))
    assert [one.image for one in counted([tuned], choices=(1,)).lone_call().launches] == ["k1"]


@pytest.mark.parametrize(
    ("steps", "keys", "offsets", "why"),
    [
        pytest.param([Step(call=HostCall("aten.relu.default", [], {}, ()))], ("k0",), (0, 0), "host", id="host-call"),
        pytest.param([Step(launch=(launch(0, 1),))], ("k0",), (4096, -1), "made by a host", id="buffer-of-a-host-call"),
        pytest.param([Step(launch=(launch(0, 0),))], (None,), (0, 64), "made by a host", id="not-compiled"),
    ],
)
def test_what_needs_pytorch_is_not_replayable_alone(steps, keys, offsets, why):
    with pytest.raises(NotReplayable, match=why):
        counted(steps, keys=keys, offsets=offsets).lone_call()
