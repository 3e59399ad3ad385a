"""Draws of a task's reference for the task lint: what the judge would compare with, and what else it would accept."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from engine.judging.inputs import ParamSpec, UnsupportedTask, derive_seed, map_tensors, replay
from engine.judging.messages import is_memory
from engine.judging.numerics import CHUNK, compare
from engine.judging.reference import Reference, fill_parameters, leaves
from engine.judging.references import Expected, References, expected, variant_source
from engine.records import Precision, Task
from engine.settings import JudgeSettings, Tolerance

SHIPPED = "shipped"
"""Beside the judge's suites: inputs as the task draws them, parameters as the model initialises them. The judge never
runs it, because it redraws parameters under every suite."""

NOMINAL = "nominal"
FAILURES = (RuntimeError, ValueError, TypeError, LookupError, ArithmeticError, AssertionError, AttributeError)
"""What a reference may raise on values that it does not admit."""
KEPT_BYTES = 1 << 26
"""Draws with larger results are made again when they are needed again."""


class OutOfTime(Exception):
    """A lint took longer than it may."""


@dataclass(frozen=True, slots=True)
class Draw:
    """One draw of inputs and parameters, and what a candidate's results would be compared with."""

    suite: str
    seed: int
    params_seed: int
    inputs: Any
    result: Expected


class VariantDraws:
    """The reference at one variant under the judge's suites. `remarks` tells what could not be run; `deadline` is in
    terms of time.monotonic(). Raises OutOfTime before a run that begins after it."""

    def __init__(
        self, references: References, task: Task, variant: str, settings: JudgeSettings, seed: int, deadline: float
    ) -> None:
        self.task, self.variant, self.settings = task, variant, settings
        self.device = references.device
        self.reference = references.reference(task, variant)
        self.precision = task.contract.precision or settings.precision
        self.remarks: list[str] = []
        self._seed, self._deadline = seed, deadline
        self._kept: dict[str, tuple[Draw, ...]] = {}
        self._models: tuple[Reference, ...] = ()
        self.params = tuple(spec for spec in self.reference.params if spec.kind != "keep")

    @property
    def _shipped(self) -> tuple[Reference, ...]:
        """Two models as the task makes them. None of their parameters is redrawn: they show the task without judge."""
        if not self._models:
            source = variant_source(self.task, self.variant)
            seeds = [derive_seed(self._seed, "model", number) for number in range(2)]
            self._models = tuple(Reference(source, self.device, seed) for seed in seeds)
            for model in self._models:
                model.params = ()
        return self._models

    def draws(self, suite: str) -> tuple[Draw, ...]:
        """As many draws of a suite as the judge makes, without those that it would leave out.

        Raises UnsupportedTask when the reference fails on the task's own inputs.
        """
        if suite in self._kept:
            return self._kept[suite]
        count = 1 if suite == SHIPPED else self.settings.seeds
        seeds = [derive_seed(self._seed, self.variant, suite, number) for number in range(count)]
        found = tuple(draw for seed in seeds if (draw := self._draw(suite, seed)) is not None)
        if sum(_bytes(draw.result.exact) for draw in found) <= KEPT_BYTES:
            self._kept[suite] = found
        return found

    def _draw(self, suite: str, seed: int) -> Draw | None:
        self._check_time()
        params_seed = derive_seed(seed, "params")
        inputs_as = NOMINAL if suite == SHIPPED else suite
        reference = self._shipped[0] if suite == SHIPPED else self.reference
        problem = "the reference is not finite there"
        try:
            inputs = replay(reference.inputs, self.device, seed, inputs_as)
            result = expected(reference, seed, params_seed, inputs_as, self.precision)
            if result.finite or inputs_as == NOMINAL:
                return Draw(suite, seed, params_seed, inputs, result)
        except FAILURES as error:
            if is_memory(error):
                raise
            problem = f"the reference fails there: {first_line(error)}"
            if inputs_as == NOMINAL:
                raise UnsupportedTask(f"{self.variant}: {problem}") from error
        self.remark(f"{self.variant}: suite {suite} left out, {problem}")
        return None

    def answers(
        self, draw: Draw, inputs: Any = None, changed: Sequence[ParamSpec] = (), *, number: int = 0
    ) -> list[torch.Tensor] | None:
        """Results in the task's dtype for other inputs, or other values of the `changed` parameters (of a model made
        anew, for SHIPPED); None, with a remark, when the reference fails on them. `number` names one redraw."""
        self._check_time()
        inputs = draw.inputs if inputs is None else inputs
        reference = self._shipped[0] if draw.suite == SHIPPED else self.reference
        names = {spec.name for spec in changed}
        before = {name: value.clone() for name, value in reference.model.state_dict().items() if name in names}
        try:
            self._fill(draw, changed, number)
            return leaves(reference.plain(inputs, self.precision))
        except FAILURES as error:
            if is_memory(error):
                raise
            self.remark(f"{self.variant}: suite {draw.suite}, a mixture of draws fails: {first_line(error)}")
            return None
        finally:
            if draw.suite == SHIPPED:
                for name, value in before.items():
                    reference.model.state_dict()[name].copy_(value)

    def _fill(self, draw: Draw, changed: Sequence[ParamSpec], number: int) -> None:
        if draw.suite == SHIPPED:
            mine, other = (reference.model.state_dict() for reference in self._shipped)
            for spec in changed:
                mine[spec.name].copy_(other[spec.name])
            return
        reference = self.reference
        fill = (reference.kept, self.device)
        fill_parameters(reference.model, reference.params, *fill, draw.params_seed, draw.suite)
        other_seed = derive_seed(draw.params_seed, "other", number)
        fill_parameters(reference.model, tuple(changed), *fill, other_seed, draw.suite)

    def other_inputs(self, draw: Draw, number: int) -> Any:
        """Another draw of the same suite, `scaled` by the same factor."""
        seed = derive_seed(draw.seed, "other inputs", number) & ~1 | draw.seed & 1
        return replay(self.reference.inputs, self.device, seed, NOMINAL if draw.suite == SHIPPED else draw.suite)

    def exact_again(self, draw: Draw) -> list[torch.Tensor]:
        """The fp64 results of the same draw, with PyTorch's generator elsewhere."""
        reference = self._shipped[0] if draw.suite == SHIPPED else self.reference
        self._fill(draw, (), 0)
        suite = NOMINAL if draw.suite == SHIPPED else draw.suite
        with torch.random.fork_rng(devices=[] if self.device == "cpu" else [self.device]):
            torch.manual_seed(derive_seed(draw.seed, "again"))
            return leaves(reference.run(draw.seed, suite, self.precision).exact)

    def accepts(self, draw: Draw, index: int, answer: torch.Tensor) -> bool:
        """Whether the judge takes `answer` for the right output `index` of this draw."""
        form = draw.result.plain[index]
        if answer.shape != form.shape:
            return False
        truth = draw.result.exact[index] if form.is_floating_point() else form
        limits = tolerance_of(self.task, self.settings, form.dtype, self.precision)
        return compare(answer.to(form.dtype), truth, draw.result.own[index], limits, form.dtype).reason is None

    def accepts_all(self, draw: Draw, answers: Sequence[torch.Tensor]) -> bool:
        """Whether the judge takes these results for right, output for output."""
        return len(answers) == len(draw.result.exact) and all(
            self.accepts(draw, index, answer) for index, answer in enumerate(answers)
        )

    def _check_time(self) -> None:
        if time.monotonic() > self._deadline:
            raise OutOfTime

    def remark(self, text: str) -> None:
        if text not in self.remarks:
            self.remarks.append(text)


def tolerance_of(task: Task, settings: JudgeSettings, dtype: torch.dtype, precision: Precision) -> Tolerance:
    """The limits for outputs of `dtype`; UnsupportedTask when the configuration has none."""
    name = "exact" if task.contract.exact else task.contract.tolerance
    if name not in settings.tolerances:
        raise UnsupportedTask(f"the contract names the tolerance {name}, judge.tolerances has no such class")
    limits = settings.tolerances[name]
    key = str(dtype).removeprefix("torch.")
    if key == "float32" and precision is not Precision.IEEE and precision.value in limits:
        key = precision.value
    if not dtype.is_floating_point:
        return Tolerance(0.0, 0.0, 0.0)
    if key not in limits:
        raise UnsupportedTask(f"judge.tolerances.{name} has no limits for {key}")
    return limits[key]


def change(one: torch.Tensor, other: torch.Tensor) -> float:
    """rms of the difference over the larger rms, where both are finite; of integers, the share that differs. Results
    of different shapes differ by 1, empty and zero ones by 0."""
    if one.shape != other.shape:
        return 1.0
    if not one.is_floating_point():
        return float((one != other).double().mean()) if one.numel() else 0.0
    difference = mine = theirs = 0.0
    flat, against = one.reshape(-1), other.reshape(-1)
    for start in range(0, flat.numel(), CHUNK):
        a, b = flat[start : start + CHUNK].double(), against[start : start + CHUNK].double()
        good = torch.isfinite(a) & torch.isfinite(b)
        a, b = torch.where(good, a, 0.0), torch.where(good, b, 0.0)
        difference += float(((a - b) ** 2).sum())
        mine += float((a * a).sum())
        theirs += float((b * b).sum())
    largest = max(mine, theirs)
    return math.sqrt(difference / largest) if largest > 0 else 0.0


def spread(values: torch.Tensor, dim: int | None = None) -> float:
    """rms of the deviation from the mean (along `dim`) over the rms of `values`; non-finite values count as 0."""
    wide = torch.nan_to_num(values.double(), nan=0.0, posinf=0.0, neginf=0.0)
    scale = float((wide * wide).mean())
    if scale == 0:
        return 0.0
    variance = wide.var(correction=0) if dim is None else wide.var(dim=dim, correction=0).mean()
    return math.sqrt(float(variance) / scale)


def swap(inputs: Any, others: Any, position: int) -> Any:
    """`inputs` with tensor number `position` taken from `others`, a tree of the same form."""
    theirs = leaves(others)
    count = iter(range(len(theirs)))

    def choose(tensor: torch.Tensor) -> torch.Tensor:
        number = next(count)
        return theirs[number] if number == position else tensor

    return map_tensors(inputs, choose)


def first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _bytes(tensors: Sequence[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
