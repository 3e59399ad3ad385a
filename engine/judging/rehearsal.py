"""Further traced calls in a number that the candidate cannot know, some on the very tensors of the call before: a
candidate that answers from a cache, or otherwise after some calls, does not do there what its plan says."""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import torch

from engine.judging.plan import Origin, Step
from engine.judging.plan_build import CHANGES
from engine.judging.plan_recorder import PlanRecorder, Recording, Storage

LEAST, MOST = 32, 96
BUDGET_S = 0.25
DEPTH = 3
SAME_EVERY = 3
"""One of so many calls gets the tensors of the one before: same objects, same addresses."""


def rehearse(
    recorder: PlanRecorder,
    steady: Recording,
    first_phase: int,
    make_inputs: Callable[[], Any],
    call: Callable[[Any, int], Recording],
) -> int:
    """Refuses the plan when a call differs from the steady one. Two calls at least, then as many as there is time; how
    many there were."""
    wanted = _form(recorder, steady, first_phase - 1)
    ends = time.monotonic() + BUDGET_S
    inputs = make_inputs()
    done = 0
    for number in range(random.SystemRandom().randint(LEAST, MOST)):
        if number >= 2 and time.monotonic() > ends:
            break
        if number % SAME_EVERY != 1:
            inputs = make_inputs()
        phase = first_phase + number
        if _form(recorder, call(inputs, phase), phase) != wanted:
            recorder.refuse(CHANGES)
            return number + 1
        done = number + 1
    return done


def tensors_held(*owners: object) -> int:
    """Tensors in the attributes of a module or object and in containers there, a few levels deep."""
    return sum(_count(value, DEPTH) for owner in owners for value in vars(owner).values())


def _count(value: object, depth: int) -> int:
    if isinstance(value, torch.Tensor):
        return 1
    if depth == 0 or not isinstance(value, (list, tuple, set, frozenset, deque, dict)):
        return 0
    items = list(value.values()) if isinstance(value, dict) else list(value)
    return sum(_count(item, depth - 1) for item in items)


def _form(recorder: PlanRecorder, call: Recording, phase: int) -> tuple[object, ...]:
    """What a call does, without the buffers: those of a repeated input have the number of its first use."""
    streams: dict[int, int] = {}
    work = [noted.step for noted in call.steps if noted.step.launch or noted.step.call]
    steps = [(streams.setdefault(step.stream, len(streams)), *_work(step)) for step in work]
    storages = recorder.storages
    outputs = [(_source(storages[ref.buffer], phase), ref.shape, ref.stride, ref.dtype) for ref in call.outputs]
    return (steps, outputs, call.tree)


def _source(storage: Storage, phase: int) -> tuple[object, ...]:
    """Where a returned tensor lies: in an input, in memory of this call, or in older memory."""
    return ("input", storage.name) if storage.origin is Origin.INPUT else ("made here", storage.phase == phase)


def _work(step: Step) -> tuple[object, ...]:
    launches = [(launch.kernel, launch.grid, len(launch.arguments)) for launch in step.launch]
    return (launches, None if step.call is None else step.call.op)
