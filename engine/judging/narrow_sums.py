"""fp32 sums as a GPU adds them. On a CPU, PyTorch accumulates variances, running sums and batch statistics of fp32 data
in fp64, so that its error there is no measure for a kernel that keeps to fp32."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

_VARIANCES = {
    torch.var: (False, False),
    torch.Tensor.var: (False, False),
    torch.std: (True, False),
    torch.Tensor.std: (True, False),
    torch.var_mean: (False, True),
    torch.std_mean: (True, True),
}
"""Function -> whether it takes the root, whether it returns the mean as well."""

_RUNNING = {
    torch.cumsum: np.add,
    torch.Tensor.cumsum: np.add,
    torch.cumprod: np.multiply,
    torch.Tensor.cumprod: np.multiply,
}


LEAST_LANES, MOST_STEPS = 32, 256


class NarrowSums(TorchFunctionMode):
    """Runs the functions above in fp32 throughout; `used` says whether there were any. Other dtypes and devices are
    left alone."""

    def __init__(self) -> None:
        super().__init__()
        self.used = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        source = args[0] if args else None
        if not isinstance(source, torch.Tensor) or source.dtype != torch.float32 or source.device.type != "cpu":
            return func(*args, **kwargs)
        result = None
        if func in _VARIANCES:
            result = _variance(func, source, args[1:], kwargs)
        elif func in _RUNNING:
            result = _running(func, source, args[1:], kwargs)
        elif func is torch.nn.functional.instance_norm:
            result = _instance_norm(*args, **kwargs)
        if result is None:
            return func(*args, **kwargs)
        self.used = True
        return result


def _variance(func: Any, source: torch.Tensor, rest: tuple[Any, ...], named: dict[str, Any]) -> Any:
    """None for a spelling that is not known here."""
    root, with_mean = _VARIANCES[func]
    if set(named) - {"dim", "unbiased", "correction", "keepdim"} or len(rest) > 3 or source.ndim == 0:
        return None
    if rest and isinstance(rest[0], bool):
        rest = (None, *rest)
    values = {"dim": None, "unbiased": True, "keepdim": False}
    values |= dict(zip(("dim", "unbiased", "keepdim"), rest, strict=False)) | named
    correction = named["correction"] if "correction" in named else values["unbiased"]
    if correction is None:
        return None
    dim = values["dim"]
    dims = (dim,) if isinstance(dim, int) else tuple(dim or range(source.ndim))
    mean, squares, count = _welford(source, dims)
    spread = squares / max(0.0, count - float(correction))
    spread = spread.sqrt() if root else spread
    if not values["keepdim"]:
        axes = {axis % source.ndim for axis in dims}
        kept = [size for axis, size in enumerate(source.shape) if axis not in axes]
        mean, spread = mean.reshape(kept), spread.reshape(kept)
    return (spread, mean) if with_mean else spread


def _welford(source: torch.Tensor, dims: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Mean, sum of squared differences (extents of one in `dims`), count: Welford's update in lanes whose results are
    merged in pairs, as PyTorch's kernel for CUDA does."""
    axes = sorted(axis % source.ndim for axis in dims)
    rest = [axis for axis in range(source.ndim) if axis not in axes]
    flat = source.permute(*rest, *axes).reshape(*(source.shape[axis] for axis in rest), -1)
    size = flat.shape[-1]
    shape = [1 if axis in axes else extent for axis, extent in enumerate(source.shape)]
    if size == 0:
        return torch.zeros(shape), torch.zeros(shape), 0
    lanes = min(size, max(LEAST_LANES, size // MOST_STEPS))
    mean, squares = torch.zeros((2, *flat.shape[:-1], lanes))
    counts = torch.zeros(lanes)
    for start in range(0, size, lanes):
        values = flat[..., start : start + lanes]
        here = values.shape[-1]
        counts[:here] += 1.0
        delta = values - mean[..., :here]
        mean[..., :here] += delta / counts[:here]
        squares[..., :here] += delta * (values - mean[..., :here])
    while counts.numel() > 1:
        mean, squares, counts = _merged(mean, squares, counts)
    return mean.reshape(shape), squares.reshape(shape), size


def _merged(mean: torch.Tensor, squares: torch.Tensor, counts: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Each lane of the first half with its partner of the second; one without a partner stays."""
    half = (counts.numel() + 1) // 2
    pairs = counts.numel() - half
    total = counts[:half].clone()
    total[:pairs] += counts[half:]
    delta = mean[..., half:] - mean[..., :pairs]
    share = counts[half:] / total[:pairs]
    merged, sums = mean[..., :half].clone(), squares[..., :half].clone()
    merged[..., :pairs] += delta * share
    sums[..., :pairs] += squares[..., half:] + delta * delta * counts[:pairs] * share
    return merged, sums, total


def _running(func: Any, source: torch.Tensor, rest: tuple[Any, ...], named: dict[str, Any]) -> Any:
    (dim,) = [*rest, *named.values()] if len(rest) + len(named) == 1 else (None,)
    if set(named) - {"dim"} or not isinstance(dim, int) or source.ndim == 0:
        return None
    return torch.from_numpy(_RUNNING[func].accumulate(source.detach().numpy(), axis=dim, dtype=np.float32))


def _instance_norm(
    source: torch.Tensor,
    running_mean: Any = None,
    running_var: Any = None,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    if not use_input_stats or source.ndim < 3:
        return None
    dims = tuple(range(2, source.ndim))
    mean, squares, count = _welford(source, dims)
    result = (source - mean) * torch.rsqrt(squares / count + eps)
    shape = (1, -1, *[1] * len(dims))
    result = result if weight is None else result * weight.reshape(shape)
    return result if bias is None else result + bias.reshape(shape)
