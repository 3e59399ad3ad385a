"""Is a result right? Errors of candidate and PyTorch against fp64, compared; every element, no slack.

With e_c, e_r the errors of the candidate and of PyTorch in the task's dtype, y the fp64 result, scale = rms(y):

    finite exactly where fp64 is finite, the same NaN and infinities elsewhere
    rms(e_c)  <= R * rms(e_r)  + ulp(scale) / 2
    |e_c[i]|  <= M * max|e_r|  + 2 * ulp(y[i])        for every i

Integers and bools must be equal. Values are compared in chunks, so that large outputs need no second copy in fp64.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from engine.records import Reason
from engine.settings import Tolerance

CHUNK = 1 << 24
SMALL, THIN = 256, 1024
"""Outputs with fewer elements, or fewer that are not 0 (behind a clamp, say), tell too little about PyTorch's own
error; it is pooled over further draws."""


@dataclass(frozen=True, slots=True)
class ReferenceError:
    """PyTorch's error on one output: root mean square and largest, relative to the output's own scale."""

    rms: float
    largest: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """The outcome for one output. `reason` None: it passes. `ratio`: rms(e_c) / rms(e_r), None where e_r is 0."""

    reason: Reason | None
    ratio: float | None
    rms_error: float
    max_abs_error: float
    message: str = ""


def ulp(dtype: torch.dtype, value: torch.Tensor) -> torch.Tensor:
    """Distance between neighbouring numbers of `dtype` at |value|, in fp64; subnormals count as the smallest normal."""
    info = torch.finfo(dtype)
    magnitude = value.abs().clamp(min=info.tiny)
    _, exponent = torch.frexp(magnitude)
    return torch.ldexp(torch.full_like(magnitude, info.eps), exponent - 1)


def _ulp_at(dtype: torch.dtype, value: float) -> float:
    return float(ulp(dtype, torch.tensor(value, dtype=torch.float64)))


def _chunks(*tensors: torch.Tensor) -> Iterator[tuple[int, tuple[torch.Tensor, ...]]]:
    flat = [tensor.reshape(-1) for tensor in tensors]
    for start in range(0, flat[0].numel(), CHUNK):
        yield start, tuple(part[start : start + CHUNK].double() for part in flat)


def _square(values: torch.Tensor) -> float:
    """Sum of squares, in one pass; not finite where a value is not, or its square."""
    norm = float(torch.linalg.vector_norm(values))
    return norm * norm


def _largest(values: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(values, math.inf))


def reference_error(plain: torch.Tensor, exact: torch.Tensor) -> ReferenceError:
    """PyTorch's error relative to the output's scale, over the elements that are finite in both."""
    squares = count = scale = 0.0
    largest = 0.0
    for _, (mine, true) in _chunks(plain, exact):
        error = mine - true
        square, size = _square(error), _square(true)
        if math.isfinite(square + size):
            squares, scale, count = squares + square, scale + size, count + true.numel()
            largest = max(largest, _largest(error))
            continue
        good = torch.isfinite(true) & torch.isfinite(mine)
        error = torch.where(good, mine - true, 0.0)
        squares += float((error * error).sum())
        scale += float(torch.where(good, true * true, 0.0).sum())
        count += float(good.sum())
        largest = max(largest, float(error.abs().max())) if error.numel() else largest
    if count == 0:
        return ReferenceError(0.0, 0.0)
    root = math.sqrt(scale / count)
    unit = root if root > 0 else 1.0
    return ReferenceError(math.sqrt(squares / count) / unit, largest / unit)


def thin(exact: torch.Tensor) -> bool:
    """Whether few elements tell PyTorch's own error."""
    return exact.is_floating_point() and (exact.numel() < SMALL or int(torch.count_nonzero(exact)) < THIN)


def scale_of(exact: torch.Tensor) -> float:
    """Root mean square over the finite elements, 0 for none."""
    squares = count = 0.0
    for _, (true,) in _chunks(exact):
        square = _square(true)
        if math.isfinite(square):
            squares, count = squares + square, count + true.numel()
            continue
        good = torch.isfinite(true)
        squares += float(torch.where(good, true * true, 0.0).sum())
        count += float(good.sum())
    return math.sqrt(squares / count) if count else 0.0


def compare(
    got: torch.Tensor,
    exact: torch.Tensor,
    own: ReferenceError,
    tolerance: Tolerance,
    dtype: torch.dtype,
    *,
    slack_ulps: float = 0.0,
    where: str = "output",
) -> Comparison:
    """Judge one output. `exact` is fp64, or of the task's own dtype for integers; `own` PyTorch's relative error."""
    if not dtype.is_floating_point:
        return _compare_exact(got, exact, where)
    scale = scale_of(exact)
    unit = scale if scale > 0 else 1.0
    own_rms, own_largest = own.rms * unit, own.largest * unit
    squares, count, largest = 0.0, 0.0, 0.0
    worst: tuple[float, int, float, float] | None = None
    for start, (mine, true) in _chunks(got, exact):
        error = mine - true
        square, off = _square(error), _largest(error)
        if math.isfinite(square) and off <= tolerance.element * own_largest:
            # Both are finite everywhere, and no error is beyond what is allowed at every element.
            squares, count, largest = squares + square, count + true.numel(), max(largest, off)
            continue
        mismatch = _non_finite_mismatch(mine, true, dtype)
        if bool(mismatch.any()):
            return _non_finite(mismatch, mine, true, start, got.shape, where)
        good = torch.isfinite(true) & torch.isfinite(mine)
        error = torch.where(good, mine - true, 0.0).abs()
        squares += float((error * error).sum())
        count += float(good.sum())
        largest = max(largest, float(error.max()))
        excess = error - (tolerance.element * own_largest + (2.0 + slack_ulps) * ulp(dtype, true))
        index = int(torch.argmax(torch.where(good, excess, -math.inf)))
        if float(excess[index]) > 0 and (worst is None or float(excess[index]) > worst[0]):
            worst = (float(excess[index]), start + index, float(mine[index]), float(true[index]))
    rms = math.sqrt(squares / count) if count else 0.0
    ratio = rms / own_rms if own_rms > 0 else None
    limit = tolerance.rms * own_rms + (0.5 + slack_ulps) * _ulp_at(dtype, scale)
    if rms <= limit and worst is None:
        return Comparison(None, ratio, rms, largest)
    bad = _count_bad(got, exact, tolerance.element * own_largest, dtype, slack_ulps)
    message = f"{where}: {_first_bad(got, exact, bad, rms, limit)}; rms error {rms:.3g}, allowed {limit:.3g}"
    if ratio is not None:
        message += f" ({ratio:.3g} x PyTorch's own, {tolerance.rms:g} x allowed)"
    return Comparison(Reason.WRONG_RESULT, ratio, rms, largest, message)


def _compare_exact(got: torch.Tensor, exact: torch.Tensor, where: str) -> Comparison:
    different = (got != exact).reshape(-1)
    if not bool(different.any()):
        return Comparison(None, None, 0.0, 0.0)
    index = int(torch.argmax(different.to(torch.uint8)))
    error = float((got.double() - exact.double()).abs().max())
    message = (
        f"{where}: {int(different.sum())} of {different.numel()} elements differ from the exact {got.dtype} result, "
        f"first at {_position(index, got.shape)}: got {got.reshape(-1)[index].item()}, "
        f"expected {exact.reshape(-1)[index].item()}"
    )
    return Comparison(Reason.WRONG_RESULT, None, error, error, message)


def _non_finite_mismatch(mine: torch.Tensor, true: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    # An fp64 value beyond the dtype's range is an infinity there; either answer at the edge is PyTorch's as well.
    edge = true.abs() > torch.finfo(dtype).max
    nan = torch.isnan(mine) != torch.isnan(true)
    infinite = torch.isinf(mine) != torch.isinf(true)
    sign = torch.isinf(mine) & torch.isinf(true) & (mine != true)
    return torch.where(edge & ~torch.isinf(true), ~torch.isinf(mine) & ~torch.isfinite(mine), nan | infinite | sign)


def _non_finite(
    mismatch: torch.Tensor, mine: torch.Tensor, true: torch.Tensor, start: int, shape: torch.Size, where: str
) -> Comparison:
    index = int(torch.argmax(mismatch.to(torch.uint8)))
    message = (
        f"{where}: NaN or infinity where the reference has none (or the reverse) in {int(mismatch.sum())} elements, "
        f"first at {_position(start + index, shape)}: got {float(mine[index])}, expected {float(true[index]):.6g}"
    )
    return Comparison(Reason.NON_FINITE, None, math.inf, math.inf, message)


def _count_bad(
    got: torch.Tensor, exact: torch.Tensor, element: float, dtype: torch.dtype, slack: float
) -> torch.Tensor:
    flat, true = got.reshape(-1)[:CHUNK].double(), exact.reshape(-1)[:CHUNK].double()
    return (flat - true).abs() > element + (2.0 + slack) * ulp(dtype, true)


def _first_bad(got: torch.Tensor, exact: torch.Tensor, bad: torch.Tensor, rms: float, limit: float) -> str:
    flat, true = got.reshape(-1), exact.reshape(-1)
    if not bool(bad.any()):
        index = int((flat[:CHUNK].double() - true[:CHUNK].double()).abs().argmax())
        label = "no single element is far off but the error as a whole is, largest at"
    else:
        index = int(torch.argmax(bad.to(torch.uint8)))
        label = f"{int(bad.sum())} of {flat.numel()} elements are wrong, first at"
    sample = [int(i) for i in torch.nonzero(bad)[:4].reshape(-1)] or [index]
    pairs = ", ".join(
        f"{_position(i, got.shape)}: got {float(flat[i]):.6g}, expected {float(true[i]):.6g}" for i in sample
    )
    return f"{label} {pairs}"


def _position(index: int, shape: torch.Size) -> str:
    place: list[int] = []
    for extent in reversed(shape):
        place.append(index % extent)
        index //= extent
    return "[" + ", ".join(map(str, reversed(place))) + "]"


def precision_class(
    rms_error: float, own_rms: float, tolerance: Tolerance, tf32_rms: float, reduced_rms: float
) -> str | None:
    """What arithmetic an error looks like: exact without any, ieee within limits, loose up to `admit` times PyTorch's
    own (a cruder formula or order of summation), bf16x3, tf32 or reduced by the rms error of emulated operands (within
    a factor of 3), None for an error that no arithmetic explains."""
    if rms_error == 0.0:
        return "exact"
    if rms_error <= tolerance.rms * own_rms:
        return "ieee"
    if rms_error <= tolerance.admit * own_rms:
        return "loose"
    if tf32_rms > 0 and rms_error <= 3.0 * tf32_rms:
        return "tf32" if rms_error > tf32_rms / 8.0 else "bf16x3"
    if reduced_rms > 0 and rms_error <= 3.0 * reduced_rms:
        return "reduced"
    return None
