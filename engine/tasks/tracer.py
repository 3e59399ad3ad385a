"""Records one forward() of a reference at the level of torch functions.

Each call that a model makes is seen once: while torch runs it, the mode is off, so what it calls inside is not
counted again (F.conv2d of nn.Conv2d, the projections inside nn.MultiheadAttention).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from torch.utils.flop_counter import flop_registry

from engine.records import OpCost
from engine.tasks import opkinds

LOOP_STEPS = 4
"""A weight that is applied this many times to what it produced itself is a loop over time."""

ELEMENT_FLOPS: Mapping[str, float] = {"pointwise": 1.0, "reduce": 1.0, "norm": 4.0, "other": 0.0, "pool": 1.0}
"""FLOPs an element where torch's own formulas say nothing: a norm reads, centres, squares and scales."""


class AtenFlops(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up matrix and convolution FLOPs by the formulas of torch.utils.flop_counter."""

    total = 0.0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.total += formula(*args, **kwargs, out_val=out)
        elif func._overloadpacket in (torch.ops.aten.mv, torch.ops.aten.dot):
            self.total += 2.0 * args[0].numel()
        return out


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a storage comes from: an activation or not, which weights shaped it, and whether it holds attention
    scores (1: a product of two activations, 2: after a non-linear function)."""

    activation: bool
    weights: int
    scores: int


class Tracer(TorchFunctionMode):
    """What a forward() did. `state` are the model's parameters and buffers, `inputs` its arguments."""

    def __init__(
        self, state: Sequence[torch.Tensor], inputs: Sequence[torch.Tensor], flops: AtenFlops, *, fake: bool
    ) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.window: int | None = None
        self.sequence: int | None = None
        self._costs: Counter[tuple[str, str, float, float]] = Counter()
        self._flops = flops
        self._fake = fake
        # Storages are told apart by address, which is only unique while they live.
        self._alive: list[torch.Tensor] = [*state, *inputs]
        bits = {storage_key(tensor): 1 << n for n, tensor in enumerate(state)}
        self._state = bits
        self._origins: dict[int, Origin] = {storage_key(tensor): Origin(True, 0, 0) for tensor in inputs}
        self._origins |= {key: Origin(False, bit, 0) for key, bit in bits.items()}
        self._made: set[int] = set()
        self._read: dict[int, dict[tuple[int, int], float]] = {}
        self._size: dict[int, float] = {}
        self._chains: Counter[int] = Counter()

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", str(func))
        before = self._flops.total
        layer = name in opkinds.RECURRENT_LAYERS and isinstance(args[2], (list, tuple)) and isinstance(args[3], bool)
        # Traced on the CPU, torch would unroll a layer into thousands of additions.
        out = _recurrent_outputs(name, args) if layer and self._fake else func(*args, **kwargs)
        if name in opkinds.QUERIES:
            return out
        flops = self._flops.total - before
        if layer:
            self.sequence = max(self.sequence or 0, args[0].shape[1 if args[8] else 0])
            flops = _recurrent_flops(args)
        elif name == "scaled_dot_product_attention":
            flops = _attention_flops(args)
        self._record(name, args, kwargs, out, flops)
        return out

    @property
    def costs(self) -> tuple[OpCost, ...]:
        return tuple(OpCost(name, kind, n, flops, moved) for (name, kind, flops, moved), n in self._costs.items())

    def compulsory_bytes(self, outputs: Any) -> float:
        """Bytes of what was read from outside plus the outputs, each once; parts of one storage may overlap."""
        outside = sum(min(sum(parts.values()), self._size[key]) for key, parts in self._read.items())
        return outside + sum(span(tensor) for tensor in _unique(tensors_of(outputs)))

    @property
    def loop_steps(self) -> int | None:
        """Timesteps of an explicit Python loop, None without one."""
        longest = max(self._chains.values(), default=0) + 1
        return longest if longest >= LOOP_STEPS else None

    def _record(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any, flops: float) -> None:
        inputs, outputs = tensors_of([args, dict(kwargs)]), tensors_of(out)
        bare = opkinds.plain_name(name)
        written = opkinds.in_place(name)
        known = {storage_key(tensor) for tensor in inputs}
        fresh = [tensor for tensor in outputs if storage_key(tensor) not in known]
        kind = opkinds.kind_of(name, sum(isinstance(arg, torch.Tensor) for arg in args))
        if not fresh and not written and (kind is None or "dropout" in bare or not outputs):
            return
        changed = inputs[:1] if written else fresh or outputs
        self._follow(bare, kind, inputs, changed)
        self._note_reads(inputs, fresh if bare in opkinds.LOOK_UPS else ())
        self._alive += outputs
        self._made |= {storage_key(tensor) for tensor in fresh}
        if bare in opkinds.VIEWS or name in opkinds.VIEWS:
            return
        moves = bare in opkinds.COPIES or bare in opkinds.FACTORIES or (kind is None and written)
        kind = kind or "other"
        moved = float(sum(span(tensor) for tensor in [*_unique(inputs), *changed]))
        self._costs[bare, kind, flops or _element_flops(kind, inputs, changed), moved] += 1
        if not moves:
            self.counts[kind] += 1
        self._note_window(bare, kind, args, kwargs)

    def _follow(
        self, bare: str, kind: str | None, inputs: Sequence[torch.Tensor], changed: Sequence[torch.Tensor]
    ) -> None:
        """Carry origins to what was written; find f(Q K^T) V and weights that feed themselves."""
        keys = [storage_key(tensor) for tensor in inputs]
        origins = [self._origins.get(key, Origin(True, 0, 0)) for key in keys]
        active = [origin for origin in origins if origin.activation]
        scores = max((origin.scores for origin in active), default=0)
        weights = _union(origins)
        if kind in ("matmul", "conv", "recurrent"):
            self._note_chain(keys, active)
            both = len(active) >= 2 and len(active) == len(origins)
            if both and scores == 2 and kind == "matmul":
                self.counts["attention"] += 1
                self.counts["implied"] += 1
            scores = 1 if both and scores != 2 and kind == "matmul" else 0
        elif scores and bare in opkinds.SHARPENING:
            scores = 2
        result = Origin(bool(active), weights, scores)
        self._origins |= {storage_key(tensor): result for tensor in changed}

    def _note_chain(self, keys: Sequence[int], active: Sequence[Origin]) -> None:
        upstream = _union(active)
        for key in dict.fromkeys(keys):
            bit = self._state.get(key, 0)
            if bit & upstream:
                self._chains[key] += 1

    def _note_reads(self, inputs: Sequence[torch.Tensor], found: Sequence[torch.Tensor]) -> None:
        """`found`: the result of a look-up, which needs no more bytes of any table than it returns."""
        limit = sum(span(tensor) for tensor in found) if found else float("inf")
        for tensor in inputs:
            key = storage_key(tensor)
            if key not in self._made:
                self._size[key] = float(tensor.untyped_storage().nbytes())
                needed = span(tensor) if not tensor.is_floating_point() else min(span(tensor), limit)
                part = int(tensor.storage_offset()), tensor.numel()
                parts = self._read.setdefault(key, {})
                parts[part] = max(needed, parts[part]) if part in parts else needed

    def _note_window(self, bare: str, kind: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        if kind == "conv":
            sizes = list(kwargs.get("weight", args[1] if len(args) > 1 else args[0]).shape[2:])
        elif kind == "pool" and not bare.startswith("adaptive"):
            place = 2 if bare.startswith("lp_") else 1
            given = kwargs.get("kernel_size", args[place] if len(args) > place else None)
            sizes = list(given) if isinstance(given, (list, tuple)) else [given]
        else:
            return
        self.window = max([self.window or 0, *(size for size in sizes if isinstance(size, int))]) or None


def _union(origins: Sequence[Origin]) -> int:
    weights = 0
    for origin in origins:
        weights |= origin.weights
    return weights


def storage_key(tensor: torch.Tensor) -> int:
    """Names the memory of a living tensor; views share it."""
    return int(tensor.untyped_storage()._cdata)


def span(tensor: torch.Tensor) -> float:
    """Bytes that a tensor's elements take in memory; an expanded one takes no more than its storage."""
    return float(min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes()))


def tensors_of(tree: Any) -> list[torch.Tensor]:
    """The tensors in nested lists, tuples and dicts, in order."""
    return [leaf for leaf in tree_flatten(tree)[0] if isinstance(leaf, torch.Tensor)]


def _unique(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return list({(storage_key(t), t.storage_offset(), t.numel()): t for t in tensors}.values())


def _element_flops(kind: str, inputs: Sequence[torch.Tensor], changed: Sequence[torch.Tensor]) -> float:
    largest = max((tensor.numel() for tensor in [*inputs, *changed]), default=0)
    return ELEMENT_FLOPS.get(kind, 1.0) * largest


def _recurrent_flops(args: Sequence[Any]) -> float:
    """Two FLOPs for each weight, timestep and batch row: the gates' products; their pointwise part is left out."""
    rows = args[0].shape[0] * args[0].shape[1]
    return 2.0 * float(rows * sum(weight.numel() for weight in args[2] if weight.dim() == 2))


def _attention_flops(args: Sequence[Any]) -> float:
    """Q K^T and the product with V; a causal mask is not credited."""
    query, key, value = args[:3]
    rows = query.numel() // query.shape[-1]
    return 2.0 * float(rows * key.shape[-2] * (query.shape[-1] + value.shape[-1]))


def _recurrent_outputs(name: str, args: Sequence[Any]) -> Any:
    """Empty outputs of nn.GRU, nn.LSTM or nn.RNN, of the right shapes."""
    data, state, bidirectional = args[0], args[1], args[7]
    hidden = state[0] if isinstance(state, (list, tuple)) else state
    features = hidden.shape[-1] * (2 if bidirectional else 1)
    sequence = data.new_empty(*data.shape[:2], features)
    if name == "lstm":
        return sequence, hidden.new_empty(hidden.shape), state[1].new_empty(state[1].shape)
    return sequence, hidden.new_empty(hidden.shape)
