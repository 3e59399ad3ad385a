"""The static screen: what it refuses, what it only remarks, and that recorded honest kernels pass."""

from __future__ import annotations

import pytest

from engine.judging.static_screen import screen
from engine.records import Reason

HEAD = "import torch\nimport torch.nn as nn\nimport triton\nimport triton.language as tl\n"
KERNEL = "@triton.jit\ndef kernel(x_ptr, n, BLOCK: tl.constexpr):\n    tl.store(x_ptr, 1.0)\n"
MODEL = "class ModelNew(nn.Module):\n    def forward(self, x):\n        kernel[(1,)](x, 1, BLOCK=1)\n        return x\n"
HONEST = HEAD + KERNEL + MODEL
MAIN = 'if __name__ == "__main__":\n    import os\n'


def inside(statement):
    return HONEST.replace("        return x", f"        {statement}\n        return x")


@pytest.mark.parametrize(
    ("source", "reason", "words"),
    [
        ("import os\n" + HONEST, Reason.FORBIDDEN, "import of os"),
        ("from os import path\n" + HONEST, Reason.FORBIDDEN, "os.path"),
        ("import torch.utils.cpp_extension\n" + HONEST, Reason.FORBIDDEN, "cpp_extension"),
        ("from torch import _inductor\n" + HONEST, Reason.FORBIDDEN, "_inductor"),
        ("from triton import testing\n" + HONEST, Reason.FORBIDDEN, "testing"),
        ("from . import other\n" + HONEST, Reason.FORBIDDEN, "relative"),
        (inside("exec('1')"), Reason.FORBIDDEN, "exec"),
        (inside("e = eval"), Reason.FORBIDDEN, "eval"),
        (inside("open('/tmp/x')"), Reason.FORBIDDEN, "open"),
        (inside("globals()['x'] = 1"), Reason.FORBIDDEN, "globals"),
        (inside("getattr(torch, 'mat' + 'mul')"), Reason.FORBIDDEN, "getattr"),
        (inside("getattr(torch, f'{x}mul')"), Reason.FORBIDDEN, "getattr"),
        (inside("torch.matmul = None"), Reason.FORBIDDEN, "assignment to torch"),
        (inside("t = torch\n        t.matmul = None"), Reason.FORBIDDEN, "assignment to torch"),
        (inside("setattr(torch, 'x', 1)"), Reason.FORBIDDEN, "setattr"),
        (inside("().__class__.__bases__"), Reason.FORBIDDEN, "__"),
        (inside("f = error.tb_frame"), Reason.FORBIDDEN, "tb_frame"),
        (inside("torch.compile(torch.relu)(x)"), Reason.FORBIDDEN, "torch.compile"),
        (inside("print(__builtins__)"), Reason.FORBIDDEN, "__builtins__"),
        (inside("getattr(torch, 'sys').modules"), Reason.FORBIDDEN, "torch.sys"),
        (inside("map(getattr, [x], ['data'])"), Reason.FORBIDDEN, "as a value"),
        (inside("frame = getattr(walk, 'gi_frame')"), Reason.FORBIDDEN, "gi_frame"),
        (inside("frame = walk.ag_frame"), Reason.FORBIDDEN, "ag_frame"),
        (inside("m = [torch.cuda.memory][0]"), Reason.FORBIDDEN, "torch.cuda.memory as a value"),
        (inside("m = [getattr(torch.cuda, 'memory')][0]"), Reason.FORBIDDEN, "torch.cuda.memory as a value"),
        (inside("s = getattr(m[0], 'ctypes')"), Reason.FORBIDDEN, "ctypes"),
        ("import functools\n" + inside("functools.wraps(x, ('y',), ())(z)"), Reason.FORBIDDEN, "wraps"),
        ("import functools\n" + inside("map(functools.wraps, x, y)"), Reason.FORBIDDEN, "wraps as a value"),
        (HONEST + "class A:\n    def __del__(self):\n        pass\n", Reason.FORBIDDEN, "__del__"),
        (inside("for m in (torch, nn):\n            m.x = 1"), Reason.FORBIDDEN, "as a value"),
        (inside("match x:\n            case object(_C=y):\n                pass"), Reason.FORBIDDEN, "_C"),
        (inside("x.a = '__globals__'"), Reason.FORBIDDEN, "__globals__"),
        (inside("x.numpy().tofile('y')"), Reason.FORBIDDEN, "tofile"),
        (inside("torch.library.custom_op('a::b', mutates_args=())"), Reason.FORBIDDEN, "torch.library"),
        (inside("torch.load('x')"), Reason.FORBIDDEN, "torch.load"),
        ("from typing import sys as s\n" + HONEST, Reason.FORBIDDEN, "typing.sys"),
        ("import dataclasses\n" + inside("dataclasses._create_fn('f', (), [])"), Reason.FORBIDDEN, "_create_fn"),
        (HONEST.replace("x_ptr, 1.0", "x_ptr, x_ptr.handle"), Reason.FORBIDDEN, "handle"),
        (HEAD + "class ModelNew(nn.Module):\n    pass\n", Reason.NO_KERNEL, "found none"),
        ("from triton import jit\n" + HEAD + "class ModelNew(nn.Module):\n    pass\n", Reason.NO_KERNEL, "found none"),
        ("import warnings\n" + inside("warnings.sys"), Reason.FORBIDDEN, "sys"),
        ("import warnings\n" + inside("warnings.catch_warnings()"), Reason.FORBIDDEN, "warnings.catch_warnings"),
        ("from warnings import sys\n" + HONEST, Reason.FORBIDDEN, "sys"),
        ("from warnings import *\n" + HONEST, Reason.FORBIDDEN, "warnings.*"),
        ("import enum\n" + inside("enum.bltns"), Reason.FORBIDDEN, "bltns"),
        ("from enum import Enum\n" + inside("Enum._convert_('E', 'x', bool)"), Reason.FORBIDDEN, "_convert_"),
        ("import collections\n" + inside("collections._sys"), Reason.FORBIDDEN, "_sys"),
        ("import collections.abc\n" + HONEST, Reason.FORBIDDEN, "collections.abc"),
        ("import enum\n" + inside("launch(enum)"), Reason.FORBIDDEN, "the module enum as a value"),
        ("from torch.autograd import graph\n" + HONEST, Reason.FORBIDDEN, "autograd.graph"),
        ("from torch.nn.init import warnings\n" + HONEST, Reason.FORBIDDEN, "warnings"),
        ("import torch.nn.init\n" + inside("torch.nn.init.torch.load('x')"), Reason.FORBIDDEN, "torch.nn.init.torch"),
        ("__name__ = '__main__'\n" + HONEST + MAIN, Reason.FORBIDDEN, "import of os"),
        ("import torch as __name__\n" + HONEST + MAIN, Reason.FORBIDDEN, "import of os"),
        (HONEST + "def main():\n    global __name__\n" + MAIN, Reason.FORBIDDEN, "import of os"),
        (HONEST + MAIN.replace("==", "!="), Reason.FORBIDDEN, "import of os"),
        (HONEST + MAIN + "else:\n    import sys\n", Reason.FORBIDDEN, "import of sys"),
        (
            HEAD + "def f(x):\n    x.handle\nkernel = triton.jit(f)\n" + MODEL,
            Reason.FORBIDDEN,
            "handle in the kernel f",
        ),
        (HEAD + KERNEL, Reason.NO_MODEL, "ModelNew"),
        (HONEST + "def broken(:\n", Reason.SYNTAX, "line 12"),
    ],
)
def test_refused(source, reason, words):
    screened = screen(source)
    assert screened.reason is reason
    assert words in screened.message


@pytest.mark.parametrize(
    "source",
    [
        HONEST,
        "from __future__ import annotations\nimport math\nfrom typing import Optional\n" + HONEST,
        "from triton.language.extra import libdevice\nimport torch.nn.functional as F\n" + HONEST,
        HONEST.replace("@triton.jit", "@triton.autotune(configs=[triton.Config({})], key=[])\n@triton.jit"),
        HEAD.replace("import triton\n", "import triton\nfrom triton import jit\n")
        + KERNEL.replace("@triton.jit", "@jit")
        + MODEL,
        inside("input = x"),
        inside("w = getattr(self, f'weight_l{0}')"),
        inside("super().__init__()"),
        inside("libdevice = getattr(tl, 'math', None)\n        ok = hasattr(torch, 'xpu') and torch is not None"),
        inside("x.library, x.load, x.os, x.backends"),
        "__all__ = ['ModelNew']\n" + HONEST,
        HONEST + MAIN,
        HEAD + KERNEL + "class ModelNew(nn.Module):\n    pass\n",
        HONEST.replace("@triton.jit\n", "") + "kernel = triton.jit(kernel)\n",
        HONEST.replace("class ModelNew", "class Other") + "ModelNew: type = Other\n",
        "from torch.autograd import Function\nfrom torch.nn.parameter import Parameter\n" + HONEST,
        "import itertools, torch.nn.init as init\n" + inside("init.ones_(x), itertools.product((1,), (2,))"),
        "import warnings\nfrom collections import namedtuple\nfrom enum import IntEnum\n"
        + inside("warnings.warn('x')"),
        inside("torch.backends.cuda.matmul.allow_tf32 = False"),
        HONEST.replace("kernel[(1,)]", "launch").replace(
            "class", "def launch(x, n, BLOCK):\n    kernel[(1,)](x)\n\n\nclass"
        ),
    ],
)
def test_accepted(source):
    assert screen(source).reason is None


@pytest.mark.parametrize(
    ("source", "remark"),
    [
        (inside("y = x.data_ptr()"), "reads data_ptr"),
        (inside("s = torch.cuda.Stream()"), "uses CUDA streams"),
        (HONEST.replace(KERNEL, KERNEL + KERNEL.replace("def kernel", "def spare")), "spare is not used"),
    ],
)
def test_remarks(source, remark):
    screened = screen(source)
    assert screened.reason is None
    assert any(remark in found for found in screened.remarks)


def test_recorded_kernels_that_ran_pass(shared):
    """What remains refused patches an imported module, imports einops, or has no kernel: 18 of 772 that ran."""
    duckdb = pytest.importorskip("duckdb")
    file = shared / "data" / "recorded_replies.parquet"
    rows = duckdb.sql(f"select kernel_code from '{file}' where runnable and kernel_code is not null").fetchall()
    refused = [screened for (code,) in rows if (screened := screen(code)).reason is not None]
    assert len(refused) <= 0.025 * len(rows)
    for screened in refused:
        assert any(words in screened.message for words in ("assignment to", "setattr", "einops", "found none"))
