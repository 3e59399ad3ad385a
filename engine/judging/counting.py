"""Counts in the process that replays: hardware counters of each launch of one call, with the launch's kernel."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import torch

from engine.canonical import Json
from engine.codec import encode
from engine.errors import ProfilerError
from engine.judging.gpu_graphs import Flush
from profilers.cupti import DURATION, Counted, Preparation, RangeProfiler
from profilers.seam import KernelSample

LIBRARY = "library"
"""Stands for a kernel whose name cannot be told."""

_KERNEL_NODE = 0


class _NodeParameters(ctypes.Structure):
    """CUDA_KERNEL_NODE_PARAMS_v2."""

    _fields_ = [
        ("function", ctypes.c_void_p),
        *((f"extent{k}", ctypes.c_uint) for k in range(7)),
        ("arguments", ctypes.c_void_p),
        ("extra", ctypes.c_void_p),
        ("kernel", ctypes.c_void_p),
        ("context", ctypes.c_void_p),
    ]


def count(
    call: Callable[[], object], counters: Sequence[str], limit: int, names: Sequence[str] | None, *, cold: bool
) -> Json:
    """`Counted` of a call, of `limit` launches at most; the call is made once a pass. `names`: the kernels in order,
    where the caller knows them; otherwise they are read from a captured call. `cold`: L2 is emptied before each pass,
    as it is before each timed sample."""

    def settled() -> None:
        call()
        torch.cuda.synchronize()

    settled()
    found = captured_names(call) if names is None else names
    emptying = _emptied() if cold else None
    extra = 0 if emptying is None else emptying.launches
    with RangeProfiler(counters, limit + extra) as profiler:
        values, dropped = profiler.collect(settled, emptying)
    if len(found) != len(values) + dropped:
        found = [LIBRARY] * len(values)
    samples = [
        KernelSample(kernel, launch[DURATION] / 1e3 if DURATION in launch else None, launch)
        for kernel, launch in zip(found, values, strict=False)
    ]
    return encode(Counted(tuple(samples), len(values) + dropped, profiler.passes, profiler.unknown))


def _emptied() -> Preparation:
    flush = Flush()

    def before() -> None:
        flush.reset()
        torch.cuda.synchronize()

    return Preparation(before, flush.wipe, Flush.LAUNCHES)


def captured_names(call: Callable[[], object]) -> list[str]:
    """Names of the kernels that a call launches, in the order of capture; empty where it cannot be captured or this
    version of torch does not keep the graph."""
    try:
        graph: Any = torch.cuda.CUDAGraph(keep_graph=True)
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            call()
        return _kernels(graph.raw_cuda_graph())
    except (TypeError, AttributeError, RuntimeError, ProfilerError):
        torch.cuda.synchronize()
        return []


def _kernels(graph: int) -> list[str]:
    driver = ctypes.CDLL("libcuda.so.1")
    count = ctypes.c_size_t()
    handle = ctypes.c_void_p(graph)
    _check(driver.cuGraphGetNodes(handle, None, ctypes.byref(count)))
    nodes = (ctypes.c_void_p * count.value)()
    _check(driver.cuGraphGetNodes(handle, nodes, ctypes.byref(count)))
    names = []
    for node in nodes:
        kind = ctypes.c_int()
        _check(driver.cuGraphNodeGetType(ctypes.c_void_p(node), ctypes.byref(kind)))
        if kind.value == _KERNEL_NODE:
            names.append(_name(driver, node))
    return names


def _name(driver: ctypes.CDLL, node: int | None) -> str:
    parameters, text = _NodeParameters(), ctypes.c_char_p()
    _check(driver.cuGraphKernelNodeGetParams_v2(ctypes.c_void_p(node), ctypes.byref(parameters)))
    if parameters.function:
        status = driver.cuFuncGetName(ctypes.byref(text), ctypes.c_void_p(parameters.function))
    else:
        status = driver.cuKernelGetName(ctypes.byref(text), ctypes.c_void_p(parameters.kernel))
    return LIBRARY if status != 0 or text.value is None else text.value.decode()


def _check(status: int) -> None:
    if status != 0:
        raise ProfilerError(f"reading a captured call: CUDA error {status}")
