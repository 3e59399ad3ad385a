"""References per task, kept between candidates: programs of the full variant, runnable variants, results."""

from __future__ import annotations

import dataclasses
import gc
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from engine.canonical import Json
from engine.judging.child import encode_plain
from engine.judging.device_memory import is_scarce
from engine.judging.host_ops import OpRecorder
from engine.judging.inputs import Program, UnsupportedTask, replay
from engine.judging.numerics import ReferenceError, reference_error, thin
from engine.judging.policy import Work
from engine.judging.reference import (
    MANTISSA,
    Reference,
    RoundedProducts,
    fill_parameters,
    leaves,
    load_namespace,
    record_inputs,
    tree_of,
)
from engine.records import Precision, Task
from engine.tasks.form import split_init
from engine.tasks.variants import apply_variant

FULL = "full"
POOL = 4
"""Further draws from which PyTorch's own error on a small output is taken; the largest counts."""
KEPT_TASKS = 4
REMEMBERED_DRAWS = 4096
"""Of which what is small is remembered."""

REMEMBERED_BYTES = {"cpu": 256 << 20, "cuda": 6 << 30}
"""Of results, in fp64."""

SCARCE_BYTES = 256 << 20
"""Of results, in fp64, that are remembered while the device's memory is scarce."""

CACHED_BYTES = 2 << 30
"""Of the device's memory that PyTorch may keep unused between calls."""

LEFT_BYTES = 12 << 30
"""More than this in use between calls is taken for tensors that wait in reference cycles."""
RUNNABLE_FULL_ELEMENTS = 1 << 22
"""On a CPU the full variant is run only for a task without other variants, and only up to this many input elements."""


@dataclass(frozen=True, slots=True)
class Full:
    """What tracing needs of the full variant, and what the reference itself does there."""

    init: Json
    program: Program
    work: Work


@dataclass(frozen=True, slots=True)
class Expected:
    """One draw's results: tensors in order, PyTorch's own error on each, the tree. `plain` has values for integers
    only; of floats, which are compared with `exact`, it keeps the form."""

    exact: tuple[torch.Tensor, ...]
    plain: tuple[torch.Tensor, ...]
    own: tuple[ReferenceError, ...]
    tree: Json
    finite: bool


class References:
    def __init__(self, device: str) -> None:
        self.device = device
        self._full: dict[str, Full] = {}
        self._results: OrderedDict[tuple[object, ...], tuple[Expected, int]] = OrderedDict()
        self._light: OrderedDict[tuple[object, ...], Expected] = OrderedDict()
        """Results without their values, of draws whose values may take too much memory to keep."""
        self._built: dict[tuple[str, str], Reference] = {}

    def full(self, task: Task) -> Full:
        """Recorded on fake tensors: costs no memory, whatever the size. Raises UnsupportedTask."""
        if task.task_hash not in self._full:
            self._drop_old()
            self._full[task.task_hash] = _full_variant(task)
        return self._full[task.task_hash]

    def variants(self, task: Task) -> tuple[str, ...]:
        """Variants that are run here, smallest first as declared; on a GPU the full one comes last."""
        declared = tuple(name for name in task.contract.variants if name != FULL)
        if self.device != "cpu":
            return (*declared, FULL)
        if declared:
            return declared
        with FakeTensorMode(allow_non_fake_inputs=True):
            inputs = replay(self.full(task).program, "cpu", 0, "nominal")
        if sum(tensor.numel() for tensor in leaves(inputs)) > RUNNABLE_FULL_ELEMENTS:
            raise UnsupportedTask("the task has no small shape variant, and its full one is too large for a CPU")
        return (FULL,)

    def reference(self, task: Task, variant: str) -> Reference:
        key = (task.task_hash, variant)
        if key not in self._built:
            self._built[key] = Reference(variant_source(task, variant), self.device, 0)
        return self._built[key]

    def expected(
        self, task: Task, variant: str, seed: int, params_seed: int, suite: str, precision: Precision
    ) -> Expected:
        """Results of one draw, remembered: candidates of one task are judged on the same draws."""
        key = (task.task_hash, variant, seed, params_seed, suite, precision)
        if key in self._results:
            self._results.move_to_end(key)
            return self._results[key][0]
        reference = self.reference(task, variant)
        if key in self._light:
            result = again(self._light[key], reference, seed, params_seed, suite)
        else:
            result = expected(reference, seed, params_seed, suite, precision)
            self._remember_light(key, result)
        size = sum(tensor.numel() * tensor.element_size() for tensor in result.exact)
        limit = REMEMBERED_BYTES["cpu" if self.device == "cpu" else "cuda"]
        if size <= limit // 4:
            self._results[key] = (result, size)
            self._forget(limit)
        return result

    def _forget(self, limit: int) -> None:
        """Oldest results first, until the rest is within `limit` bytes."""
        while sum(held for _, held in self._results.values()) > limit:
            self._results.popitem(last=False)

    def _remember_light(self, key: tuple[object, ...], result: Expected) -> None:
        if all(plain.is_meta for plain in result.plain):
            self._light[key] = dataclasses.replace(result, exact=())
            if len(self._light) > REMEMBERED_DRAWS:
                self._light.popitem(last=False)

    def give_back_memory(self) -> None:
        """Free what PyTorch keeps of the device's memory beyond some, where it is scarce all of it, then results."""
        if self.device == "cpu":
            return
        if torch.cuda.memory_reserved() - torch.cuda.memory_allocated() > CACHED_BYTES:
            torch.cuda.empty_cache()
        if is_scarce():
            _collect()
            if is_scarce():
                self.make_room()

    def make_room(self) -> None:
        """Free results too: candidates and other judges need the device's memory."""
        if self.device != "cpu":
            self._forget(SCARCE_BYTES)
            _collect()

    def _drop_old(self) -> None:
        while len(self._full) >= KEPT_TASKS:
            oldest = next(iter(self._full))
            del self._full[oldest]
            self._built = {key: built for key, built in self._built.items() if key[0] != oldest}


def _collect() -> None:
    if torch.cuda.memory_allocated() > LEFT_BYTES:
        gc.collect()
    torch.cuda.empty_cache()


def variant_source(task: Task, variant: str) -> str:
    """The task's source at a variant; UnsupportedTask for constants that it does not have."""
    if variant == FULL:
        return task.source
    try:
        return apply_variant(task.source, task.contract.variants[variant])
    except KeyError as error:
        raise UnsupportedTask(f"variant {variant}: {error}") from error


def _full_variant(task: Task) -> Full:
    namespace = load_namespace(task.source)
    program, init_inputs = record_inputs(namespace)
    arguments, keywords = split_init(init_inputs)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
            inputs = replay(program, "cpu", 0, "nominal")
            model = namespace["Model"](*arguments, **keywords).eval()
            work = work_of(model, inputs)
    except (RuntimeError, NotImplementedError, TypeError):
        # A reference that fake tensors cannot follow (data-dependent Python) still can be run; its share is unknown.
        work = Work((), 0.0)
    return Full(init_json(init_inputs), program, work)


def work_of(model: torch.nn.Module, inputs: Any) -> Work:
    """What one call of the reference does."""
    recorder = OpRecorder()
    # Before the call, which may write into them.
    tensors = [*leaves(inputs), *model.state_dict().values()]
    with torch.no_grad(), recorder:
        tensors += leaves(model(*inputs))
    return Work(recorder.ops(), float(sum(tensor.numel() * tensor.element_size() for tensor in tensors)))


def init_json(init_inputs: Any) -> Json:
    """ModelNew's arguments as JSON; UnsupportedTask for values that are not plain."""
    arguments, keywords = split_init(init_inputs)
    try:
        return {"args": encode_plain(list(arguments)), "kwargs": encode_plain(dict(keywords))}
    except TypeError as error:
        raise UnsupportedTask(str(error)) from error


def expected(
    reference: Reference, seed: int, params_seed: int, suite: str, precision: Precision, *, extra: bool = True
) -> Expected:
    """Results of one draw. The error on outputs of few elements is pooled over further draws of the same suite."""
    fill_parameters(reference.model, reference.params, reference.kept, reference.device, params_seed, suite)
    answers = reference.run(seed, suite, precision)
    exact, plain = leaves(answers.exact), leaves(answers.plain)
    own = [_own(mine, true) for mine, true in zip(plain, exact, strict=True)]
    if answers.narrow is not None:
        narrow = [_own(mine, true) for mine, true in zip(leaves(answers.narrow), exact, strict=True)]
        own = [_worse(one, other) for one, other in zip(own, narrow, strict=True)]
    few = [extra and thin(true) for true in exact]
    if any(few):
        for number in range(POOL):
            more = expected(reference, seed + 7919 * (number + 1), params_seed, suite, precision, extra=False)
            own = [_worse(a, b) if pooled else a for a, b, pooled in zip(own, more.own, few, strict=True)]
    finite = all(bool(torch.isfinite(true).all()) for true in exact if true.is_floating_point())
    kept = (_form(mine) if mine.is_floating_point() else mine for mine in plain)
    return Expected(tuple(exact), tuple(kept), tuple(own), tree_of(answers.plain), finite)


def again(light: Expected, reference: Reference, seed: int, params_seed: int, suite: str) -> Expected:
    """The whole of `light`, whose values are computed once more and whose errors are known."""
    fill_parameters(reference.model, reference.params, reference.kept, reference.device, params_seed, suite)
    return dataclasses.replace(light, exact=tuple(leaves(reference.exact(seed, suite))))


def _form(tensor: torch.Tensor) -> torch.Tensor:
    """Shape, strides and dtype without values."""
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def emulated_error(reference: Reference, seed: int, suite: str, precision: Precision) -> tuple[ReferenceError, ...]:
    """The error that `precision` operands would make on this draw, under the current parameters."""
    inputs = replay(reference.inputs, reference.device, seed, suite)
    with torch.no_grad(), RoundedProducts(MANTISSA[precision]):
        rough = leaves(reference.model(*inputs))
    exact = leaves(reference.run(seed, suite, Precision.IEEE).exact)
    return tuple(_own(mine, true) for mine, true in zip(rough, exact, strict=True))


def _own(mine: torch.Tensor, true: torch.Tensor) -> ReferenceError:
    return reference_error(mine, true) if mine.is_floating_point() else ReferenceError(0.0, 0.0)


def _worse(one: ReferenceError, other: ReferenceError) -> ReferenceError:
    return ReferenceError(max(one.rms, other.rms), max(one.largest, other.largest))


def state_shapes(reference: Reference) -> Mapping[str, tuple[int, ...]]:
    return {spec.name: spec.shape for spec in reference.params}
