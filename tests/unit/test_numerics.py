"""The pass formula: what it lets through and what not, on results with known errors."""

from __future__ import annotations

import pytest
import torch

from engine.judging import numerics
from engine.judging.numerics import ReferenceError, compare, precision_class, reference_error, ulp
from engine.judging.reference import round_mantissa
from engine.records import Reason
from engine.settings import Tolerance

FP32 = Tolerance(rms=12, element=16, admit=40)
HALF = Tolerance(rms=2, element=4, admit=12)
EXACT = Tolerance(rms=0, element=0, admit=0)


def product(k=256, n=48):
    generator = torch.Generator().manual_seed(3)
    a = torch.randn(n, k, generator=generator)
    b = torch.randn(k, n, generator=generator)
    return a, b, a @ b, a.double() @ b.double()


def sequential(a, b):
    total = torch.zeros(a.shape[0], b.shape[1])
    for k in range(a.shape[1]):
        total += a[:, k : k + 1] * b[k : k + 1]
    return total


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda a, b, plain: plain, None),
        (lambda a, b, plain: sequential(a, b), None),
        (lambda a, b, plain: round_mantissa(a, 10) @ round_mantissa(b, 10), Reason.WRONG_RESULT),
        (lambda a, b, plain: (a.half() @ b.half()).float(), Reason.WRONG_RESULT),
        (lambda a, b, plain: plain * 0, Reason.WRONG_RESULT),
        (lambda a, b, plain: torch.where(torch.arange(plain.numel()).reshape(plain.shape) == 77, 0.0, plain), "one"),
        (lambda a, b, plain: torch.where(plain == plain[3, 5], float("nan"), plain), Reason.NON_FINITE),
        (lambda a, b, plain: torch.where(plain == plain[3, 5], float("inf"), plain), Reason.NON_FINITE),
    ],
    ids=["same", "sequential", "tf32", "half", "zeros", "one_element", "one_nan", "one_inf"],
)
def test_fp32_product(change, reason):
    a, b, plain, exact = product()
    compared = compare(change(a, b, plain), exact, reference_error(plain, exact), FP32, torch.float32)
    assert compared.reason == (Reason.WRONG_RESULT if reason == "one" else reason)
    if reason == "one":
        assert "1 of 2304 elements are wrong, first at [1, 29]" in compared.message


def test_half_results_may_differ_by_rounding_only():
    a, b, _, _ = product()
    a, b = a.half(), b.half()
    exact = a.double() @ b.double()
    plain = (a.float() @ b.float()).half()
    own = reference_error(plain, exact)
    assert compare(plain, exact, own, HALF, torch.float16).reason is None
    low_accumulator = sequential(a.half(), b.half()).half()
    rough = torch.zeros_like(plain)
    for k in range(a.shape[1]):
        rough = rough + a[:, k : k + 1] * b[k : k + 1]
    assert compare(low_accumulator, exact, own, HALF, torch.float16).reason is None
    assert compare(rough, exact, own, HALF, torch.float16).reason is Reason.WRONG_RESULT


def test_bf16_truncation_needs_the_interpreter_slack():
    exact = torch.linspace(1.0, 2.0, 4001, dtype=torch.float64)
    plain = exact.bfloat16()
    truncated = (exact.float().view(torch.int32) >> 16 << 16).view(torch.float32).bfloat16()
    own = reference_error(plain, exact)
    assert compare(truncated, exact, own, HALF, torch.bfloat16, slack_ulps=1.0).reason is None


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.bool])
def test_integers_are_exact(dtype):
    exact = torch.tensor([[0, 1], [1, 0]]).to(dtype)
    other = exact.clone()
    own = ReferenceError(0.0, 0.0)
    assert compare(other, exact, own, EXACT, dtype).reason is None
    other[1, 1] = 1
    compared = compare(other, exact, own, EXACT, dtype)
    assert compared.reason is Reason.WRONG_RESULT
    assert "first at [1, 1]" in compared.message


def test_nan_and_infinity_match_where_the_reference_has_them():
    exact = torch.tensor([1.0, float("nan"), float("inf"), -float("inf")], dtype=torch.float64)
    own = ReferenceError(1e-8, 1e-8)
    assert compare(exact.float(), exact, own, FP32, torch.float32).reason is None
    flipped = torch.tensor([1.0, float("nan"), -float("inf"), -float("inf")])
    assert compare(flipped, exact, own, FP32, torch.float32).reason is Reason.NON_FINITE


@pytest.mark.parametrize("chunk", [1, 3, 1 << 24])
@pytest.mark.parametrize("special", [float("nan"), float("inf")])
def test_whole_results_are_compared_chunk_by_chunk(monkeypatch, chunk, special):
    """Chunks of ordinary values take a short way; the outcome is that of the whole."""
    monkeypatch.setattr(numerics, "CHUNK", chunk)
    plain = torch.linspace(-3, 3, 12, dtype=torch.float64) + 1e-9
    exact = torch.linspace(-3, 3, 12, dtype=torch.float64)
    plain[7] = exact[7] = special
    own = reference_error(plain, exact)
    finite = torch.isfinite(exact)
    scale = float(exact[finite].pow(2).mean().sqrt())
    assert own.rms == pytest.approx(float((plain - exact)[finite].pow(2).mean().sqrt()) / scale)
    assert own.largest == pytest.approx(1e-9 / scale)
    same = compare(plain, exact, own, FP32, torch.float64)
    assert (same.reason, same.ratio) == (None, pytest.approx(1.0))
    far = plain.clone()
    far[2] += 1e-6
    assert compare(far, exact, own, FP32, torch.float64).reason is Reason.WRONG_RESULT
    lost = plain.clone()
    lost[10] = float("nan")
    assert compare(lost, exact, own, FP32, torch.float64).reason is Reason.NON_FINITE


def test_beyond_the_range_of_the_dtype_an_infinity_is_right():
    exact = torch.tensor([1.0, 70000.0], dtype=torch.float64)
    got = torch.tensor([1.0, float("inf")], dtype=torch.float16)
    assert compare(got, exact, ReferenceError(1e-4, 1e-4), HALF, torch.float16).reason is None


@pytest.mark.parametrize(
    ("dtype", "value", "distance"),
    [
        (torch.float32, 1.0, 2**-23),
        (torch.float32, 3.0, 2**-22),
        (torch.float16, 1.0, 2**-10),
        (torch.float32, 0, None),
    ],
)
def test_ulp(dtype, value, distance):
    found = float(ulp(dtype, torch.tensor(float(value), dtype=torch.float64)))
    info = torch.finfo(dtype)
    assert found == (distance if distance is not None else info.tiny * info.eps)


@pytest.mark.parametrize(
    ("rms", "expected"),
    [(0.0, "exact"), (5e-8, "ieee"), (4e-7, "loose"), (1e-5, "bf16x3"), (4e-4, "tf32"), (3e-3, "reduced"), (1.0, None)],
)
def test_precision_class(rms, expected):
    assert precision_class(rms, 2e-8, FP32, 5e-4, 4e-3) == expected
