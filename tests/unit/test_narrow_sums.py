"""fp32 sums as a GPU adds them: the same values as PyTorch's, with an fp32 error."""

from __future__ import annotations

import pytest
import torch

from engine.judging.narrow_sums import NarrowSums

X = torch.randn(3, 50, 41) + 100.0


@pytest.mark.parametrize(
    "function",
    [
        pytest.param(lambda x: x.var(dim=-1, unbiased=False), id="var"),
        pytest.param(lambda x: torch.var(x), id="all"),
        pytest.param(lambda x: x.std(1, False, True), id="std-by-position"),
        pytest.param(lambda x: x.std(False), id="biased"),
        pytest.param(lambda x: torch.var_mean(x, dim=(0, 2), correction=0, keepdim=True), id="with-mean"),
        pytest.param(lambda x: torch.cumsum(x, dim=1), id="running-sum"),
        pytest.param(lambda x: torch.nn.functional.instance_norm(x), id="instance-norm"),
    ],
)
def test_values(function):
    exact = function(X.double())
    with NarrowSums() as mode:
        found = function(X)
    assert mode.used
    for mine, true in zip(*((v,) if isinstance(v, torch.Tensor) else v for v in (found, exact)), strict=True):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine.double(), true, rtol=1e-4, atol=1e-4)


def test_the_error_is_that_of_fp32():
    """PyTorch's on a CPU is that of one rounding; a naive variance's is beyond both."""
    rows = torch.randn(64, 1024) + 100.0
    true = rows.double().var(dim=-1, unbiased=False)

    def error(found):
        return float(((found.double() - true) / true).square().mean().sqrt())

    with NarrowSums():
        narrow = error(rows.var(dim=-1, unbiased=False))
    naive = error((rows * rows).mean(dim=-1) - rows.mean(dim=-1).square())
    assert 2.0 * error(rows.var(dim=-1, unbiased=False)) < narrow < naive / 40


@pytest.mark.parametrize(
    "function",
    [
        pytest.param(lambda: torch.var(X, dim=1, correction=None), id="var"),
        pytest.param(lambda: torch.std_mean(X, dim=1, correction=None), id="std_mean"),
        pytest.param(lambda: torch.cumsum(torch.tensor(3.0), 0), id="running-sum-of-a-scalar"),
        pytest.param(lambda: torch.tensor(3.0).cumprod(dim=0), id="running-product-of-a-scalar"),
    ],
)
def test_spellings_that_are_left_to_pytorch(function):
    with NarrowSums() as mode:
        found = function()
    assert not mode.used
    torch.testing.assert_close(found, function(), rtol=0, atol=0)


def test_others_are_left_alone():
    with NarrowSums() as mode:
        X.sum(), X.double().var(), X.mean()
    assert not mode.used
