"""Describes tasks: `python -m engine.tasks.facts` answers one JSON line per JSON line.

It runs the task's own Python, so it is a process of its own with a scrubbed environment and limits; the controller
speaks to it through `engine.tasks.facts_client`.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import re
import resource
import sys
import types
import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from engine.canonical import Json
from engine.codec import decode, encode
from engine.records import Facts, Task
from engine.tasks.derive import Probe, derive
from engine.tasks.form import split_init
from engine.tasks.tracer import AtenFlops, Tracer, tensors_of
from engine.tasks.variants import apply_variant

MEMORY_BYTES = 12 << 30
"""Address space of this process: a small variant that needs more is none."""


@dataclass(frozen=True, slots=True)
class Modes:
    """Whether a model is built, and run, on `real` or `fake` tensors. Some read their own numbers while building."""

    build: str
    run: str


def describe_task(task: Task) -> Facts:
    """Facts from fake tensors at full size, else from a real run of the small variant, else none, with a note."""
    run = _attempt(task.source, {}, Modes("fake", "fake"))
    if isinstance(run, str):
        run = _attempt(task.source, {}, Modes("real", "fake"))
    if isinstance(run, Run):
        return _facts(run, "full")
    note = f"not traceable on fake tensors: {run}"
    small = task.contract.variants.get("small")
    if small is None:
        return none_known(task.contract.dtype, f"{note}; no small variant to run instead")
    run = _attempt(task.source, small, Modes("real", "real"))
    if isinstance(run, str):
        return none_known(task.contract.dtype, f"{note}; the small variant fails: {run}")
    facts = _facts(run, "small")
    told = f"{note}; counted on the small variant, FLOPs and bytes are that variant's"
    return dataclasses.replace(facts, note="; ".join(filter(None, [told, facts.note])))


def derive_variants(source: str) -> dict[str, dict[str, int]]:
    """Small and odd variants of a task without a contract."""
    return derive(source, prober(source))


def prober(source: str) -> Probe:
    """Runs a task with other constants, in the cheapest way in which the whole task runs: on fake tensors if it can."""
    ways = (Modes("fake", "fake"), Modes("real", "fake"))
    way = next((way for way in ways if isinstance(_attempt(source, {}, way), Run)), Modes("real", "real"))
    return lambda values: _elements(source, values, way)


def none_known(dtype: str, note: str) -> Facts:
    """Facts of a task that could not be traced: all counts zero."""
    return Facts(0, 0, 0, 0, 0, 0, 0, 0, 0, None, None, 0.0, 0.0, 0.0, dtype, "none", (), note)


@dataclass(frozen=True, slots=True)
class Run:
    """What a task's model got and gave, and what it did."""

    inputs: tuple[Any, ...]
    outputs: Any
    tracer: Tracer


def _attempt(source: str, values: Mapping[str, int], modes: Modes) -> Run | str:
    """A run with these constants, or in one line why there is none."""
    try:
        return _run(apply_variant(source, values), modes)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - outermost boundary to foreign code: it may raise anything
        text = re.sub(r" object at 0x[0-9a-f]+", "", str(error)).strip().splitlines()
        return f"{type(error).__name__}: {text[0][:200]}" if text else type(error).__name__


def _elements(source: str, values: Mapping[str, int], modes: Modes) -> int | None:
    """Elements of the largest input or output, None when the program does not run with these constants."""
    run = _attempt(source, values, modes)
    if isinstance(run, str):
        return None
    return max((tensor.numel() for tensor in tensors_of([list(run.inputs), run.outputs])), default=0)


def _run(source: str, modes: Modes) -> Run:
    """Build and call a task's model. Parameters made for real may be read by fake tensors, which copies nothing."""
    fake = FakeTensorMode(allow_non_fake_inputs=modes.build == "real")
    module = types.ModuleType("task")
    with warnings.catch_warnings(action="ignore"), torch.no_grad():
        torch.manual_seed(0)
        with fake if modes.build == "fake" else nullcontext():
            exec(compile(source, "<task>", "exec"), module.__dict__)
            arguments, keywords = split_init(module.get_init_inputs())
            model = module.Model(*arguments, **keywords).eval()
        with fake if modes.run == "fake" else nullcontext():
            inputs = tuple(module.get_inputs())
            flops = AtenFlops()  # type: ignore[no-untyped-call]
            state = [*model.parameters(), *model.buffers()]
            tracer = Tracer(state, tensors_of(list(inputs)), flops, fake=modes.run == "fake")
            with flops, tracer:
                outputs = model(*inputs)
            return Run(inputs, outputs, tracer)


def _facts(run: Run, traced: str) -> Facts:
    tracer = run.tracer
    counts = tracer.counts
    costs = tracer.costs
    flops = sum(cost.count * cost.flops for cost in costs)
    moved = tracer.compulsory_bytes(run.outputs)
    steps = tracer.loop_steps
    kinds = [tensor.dtype for tensor in tensors_of(run.outputs)]
    dtype = next((kind for kind in kinds if kind.is_floating_point), kinds[0] if kinds else torch.float32)
    return Facts(
        ops=sum(counts.values()) - 2 * counts["implied"],
        conv_ops=counts["conv"],
        matmul_ops=counts["matmul"],
        norm_ops=counts["norm"],
        pool_ops=counts["pool"],
        reduce_ops=counts["reduce"],
        pointwise_ops=counts["pointwise"],
        recurrent_ops=counts["recurrent"] + (1 if steps and not counts["recurrent"] else 0),
        attention_ops=counts["attention"],
        kernel_size=tracer.window,
        time_steps=max(filter(None, (tracer.sequence, steps)), default=None),
        flops=flops,
        bytes=moved,
        intensity=flops / moved if moved else 0.0,
        dtype=str(dtype).removeprefix("torch."),
        traced=traced,
        costs=costs,
        note=f"explicit loop of {steps} timesteps" if steps else "",
    )


def answer(request: Json) -> Json:
    """{describe: task} -> facts; {derive: source} -> variants by name."""
    if "describe" in request:
        return encode(describe_task(decode(Task, request["describe"], "task")))
    return derive_variants(request["derive"])


def main() -> None:
    # A task may print: what it writes must not end up between our answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    torch.set_num_threads(1)
    # Choices of constants that do not run are expected, not errors to log with a traceback each.
    logging.getLogger("torch").setLevel(logging.CRITICAL)
    for line in sys.stdin:
        answers.write(json.dumps(answer(json.loads(line))) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
