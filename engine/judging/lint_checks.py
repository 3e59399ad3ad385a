"""The criteria of the task lint, each measured on one draw of the reference."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch

from engine.judging.lint_draws import Draw, VariantDraws, change, spread, swap
from engine.judging.numerics import scale_of
from engine.judging.reference import leaves
from engine.records import LintCode

LEAST_REDRAW = 1e-2
"""Of its scale an output changes at least by this when all inputs, or all parameters, are drawn anew."""
LEAST_SINGLE = 1e-3
"""The same when a single tensor is drawn anew."""
LEAST_SPREAD = 1e-2
"""Of its scale an output varies at least by this over its elements, and differs from each input."""
REPEAT = 1e-9
"""Two fp64 runs on equal values agree to this share of the scale."""
REDRAWS = 2
"""Further draws of the inputs that an output is compared with; the largest change counts."""
MOST_TENSORS = 64
"""Single inputs or parameters redrawn one by one; a remark tells of those left out."""

INPUTS = "inputs"
PARAMETERS = "parameters"


@dataclass(frozen=True, slots=True)
class Observation:
    """One criterion on one tensor of one draw. `holds`: the fault is there. `accepted`: the judge takes the answer
    that exploits it for right. `told`: what the fault is, for the message."""

    measured: float
    holds: bool
    accepted: bool
    told: str


Check = Callable[[VariantDraws, Draw, frozenset[str] | None], Mapping[str, Observation]]
"""Observations by tensor, of all tensors or those named."""


def stochastic(draws: VariantDraws, draw: Draw, _: frozenset[str] | None) -> Mapping[str, Observation]:
    found: dict[str, Observation] = {}
    for label, index, again in _outputs(draw, draws.exact_again(draw)):
        first = draw.result.exact[index]
        scale = scale_of(first)
        measured = change(first, again)
        # Where the result is itself rounding noise, so is its repetition on a device.
        noise = 1e-3 * draw.result.own[index].rms
        differs = measured > (REPEAT + noise if scale > 0 else 0.0)
        told = f"two runs in eval mode on equal values differ by {measured:.2g} of the scale"
        found[label] = Observation(measured, differs, differs, told)
    return found


def non_finite(draws: VariantDraws, draw: Draw, _: frozenset[str] | None) -> Mapping[str, Observation]:
    found: dict[str, Observation] = {}
    for label, _index, exact in _outputs(draw):
        if exact.is_floating_point():
            share = 1.0 - float(torch.isfinite(exact).double().mean())
            told = f"{100 * share:.3g} % of the values are NaN or infinite"
            found[label] = Observation(share, share > 0, share == 1.0, told)
    return found


def zero_output(draws: VariantDraws, draw: Draw, _: frozenset[str] | None) -> Mapping[str, Observation]:
    found: dict[str, Observation] = {}
    for label, index, exact in _outputs(draw):
        scale = scale_of(exact)
        accepted = draws.accepts(draw, index, exact.new_zeros(()).expand(exact.shape))
        filled = float((exact != 0).double().mean())
        told = f"zeros pass for it (rms {scale:.2g})" if accepted else f"only {100 * filled:.2g} % of it is not 0"
        found[label] = Observation(scale, accepted or filled < LEAST_SPREAD, accepted, told)
    return found


def constant_output(draws: VariantDraws, draw: Draw, _: frozenset[str] | None) -> Mapping[str, Observation]:
    found: dict[str, Observation] = {}
    for label, index, exact in _outputs(draw):
        if exact.numel() < 2:
            continue
        middle = _middle(exact)
        measured = spread(exact) if exact.is_floating_point() else change(exact, middle.expand(exact.shape))
        own = draws.accepts(draw, index, middle.expand(exact.shape))
        holds = own or measured < LEAST_SPREAD
        # What a kernel may know beforehand is the number of another draw.
        other = draws.answers(draw, draws.other_inputs(draw, 0)) if own else None
        accepted = other is not None and draws.accepts(draw, index, _middle(other[index]).expand(exact.shape))
        told = f"one number fits all its elements, they vary by {measured:.2g} of the scale"
        found[label] = Observation(measured, holds, accepted, told)
    return found


def _middle(values: torch.Tensor) -> torch.Tensor:
    """The mean of the finite values, the median of integers."""
    if values.is_floating_point():
        finite = torch.where(torch.isfinite(values), values.double(), math.nan)
        return finite.nanmean().to(values.dtype)
    return values.reshape(-1).to(torch.int64).median().to(values.dtype)


def row_constant(draws: VariantDraws, draw: Draw, _: frozenset[str] | None) -> Mapping[str, Observation]:
    found: dict[str, Observation] = {}
    for label, _index, exact in _outputs(draw):
        for dim, extent in enumerate(exact.shape):
            if 1 < extent < exact.numel() and exact.is_floating_point():
                measured = spread(exact, dim)
                told = f"its slices along dimension {dim} are equal, they vary by {measured:.2g} of the scale"
                found[f"{label}, dimension {dim}"] = Observation(measured, measured < LEAST_SPREAD, False, told)
    return found


def insensitive_to_input(draws: VariantDraws, draw: Draw, only: frozenset[str] | None) -> Mapping[str, Observation]:
    found: dict[str, Observation] = {}
    mine = leaves(draw.inputs)
    redrawn = [draws.other_inputs(draw, number) for number in range(REDRAWS)]
    if only is None or INPUTS in only:
        all_anew = _sensitivity(
            draws, draw, [draws.answers(draw, other) for other in redrawn], LEAST_REDRAW, "the inputs"
        )
        found |= {INPUTS: all_anew} if all_anew is not None else {}
    if len(mine) < 2:
        return found
    for position in range(min(len(mine), MOST_TENSORS)):
        label = f"input {position}"
        if only is not None and label not in only:
            continue
        if all(torch.equal(mine[position], leaves(other)[position]) for other in redrawn):
            found[label] = Observation(0.0, True, False, "it is the same in every draw")
            continue
        answers = [draws.answers(draw, swap(draw.inputs, other, position)) for other in redrawn]
        observed = _sensitivity(draws, draw, answers, LEAST_SINGLE, "this input alone")
        if observed is not None:
            # A kernel that leaves it out must still get right what the other inputs do.
            found[label] = replace(observed, accepted=False)
    return found


def insensitive_to_parameter(draws: VariantDraws, draw: Draw, only: frozenset[str] | None) -> Mapping[str, Observation]:
    found: dict[str, Observation] = {}
    groups = {PARAMETERS: draws.params} if len(draws.params) > 1 else {}
    groups |= {spec.name: (spec,) for spec in draws.params[:MOST_TENSORS]}
    if len(draws.params) > MOST_TENSORS:
        draws.remark(f"of {len(draws.params)} parameters only {MOST_TENSORS} were redrawn one by one")
    for label, specs in groups.items():
        if only is None or label in only:
            least = LEAST_SINGLE if len(specs) == 1 else LEAST_REDRAW
            answers = [draws.answers(draw, changed=specs, number=number) for number in range(REDRAWS)]
            what = "this parameter alone" if len(specs) == 1 else "the parameters"
            observed = _sensitivity(draws, draw, answers, least, what)
            found |= {label: observed} if observed is not None else {}
    return found


def _sensitivity(
    draws: VariantDraws, draw: Draw, answers: list[list[torch.Tensor] | None], least: float, what: str
) -> Observation | None:
    """How far the results move, at most over the redraws and the outputs; None when no redraw could be run."""
    run = [answer for answer in answers if answer is not None]
    if not run:
        return None
    measured = max(
        (change(mine, other) for answer in run for mine, other in zip(_truths(draw), answer, strict=True)), default=0.0
    )
    accepted = all(draws.accepts_all(draw, answer) for answer in run)
    told = f"drawing {what} anew changes the results by {measured:.2g} of their scale, {least:g} is asked"
    if accepted:
        told = f"drawing {what} anew does not change the results (by {measured:.2g} of their scale)"
    return Observation(measured, accepted or measured < least, accepted, told)


def returns_input(draws: VariantDraws, draw: Draw, _: frozenset[str] | None) -> Mapping[str, Observation]:
    found: dict[str, Observation] = {}
    for position, tensor in enumerate(leaves(draw.inputs)):
        alike = [
            (change(exact, tensor), label)
            for label, _index, exact in _outputs(draw)
            if exact.shape == tensor.shape and exact.is_floating_point() == tensor.is_floating_point()
        ]
        if alike:
            measured, label = min(alike)
            accepted = draws.accepts_all(draw, [tensor] * len(draw.result.exact))
            told = f"{label} is this input up to {measured:.2g} of its scale"
            found[f"input {position}"] = Observation(measured, accepted or measured < LEAST_SPREAD, accepted, told)
    return found


def non_negative_inputs(draws: VariantDraws, draw: Draw, _: frozenset[str] | None) -> Mapping[str, Observation]:
    found: dict[str, Observation] = {}
    other = leaves(draws.other_inputs(draw, 0))
    for position, tensor in enumerate(leaves(draw.inputs)):
        if tensor.is_floating_point() and tensor.numel() and not torch.equal(tensor, other[position]):
            # There is no least of 8 bits.
            least = float((tensor.float() if tensor.element_size() == 1 else tensor).min())
            told = f"no value is below {least:.2g}, so errors on negative ones stay hidden"
            found[f"input {position}"] = Observation(least, least >= 0, False, told)
    return found


CHECKS: Mapping[LintCode, Check] = {
    LintCode.STOCHASTIC: stochastic,
    LintCode.NON_FINITE: non_finite,
    LintCode.ZERO_OUTPUT: zero_output,
    LintCode.CONSTANT_OUTPUT: constant_output,
    LintCode.ROW_CONSTANT: row_constant,
    LintCode.INSENSITIVE_TO_INPUT: insensitive_to_input,
    LintCode.INSENSITIVE_TO_PARAMETER: insensitive_to_parameter,
    LintCode.RETURNS_INPUT: returns_input,
    LintCode.NON_NEGATIVE_INPUTS: non_negative_inputs,
}
"""In the order of the findings."""


def _truths(draw: Draw) -> list[torch.Tensor]:
    """What outputs are compared with: in fp64, integers as they are."""
    result = draw.result
    return [
        exact if plain.is_floating_point() else plain for exact, plain in zip(result.exact, result.plain, strict=True)
    ]


def _outputs(draw: Draw, values: list[torch.Tensor] | None = None) -> Iterator[tuple[str, int, torch.Tensor]]:
    """Name, number and value of each output that has elements."""
    found = _truths(draw) if values is None else values
    for index, value in enumerate(found):
        if value.numel():
            yield "output" if len(found) == 1 else f"output {index}", index, value
