"""What goes into an operator: `get_inputs` recorded as a small program, replayed from a seed under a value suite.

The judge and the candidate's process replay the same program from the same seed, so no input ever travels. Values are
drawn where the task draws them (`torch.rand`, `torch.randn`, ...), which keeps the structure that a task builds on
top of them (triangular, symmetric, normalised).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.overrides import TorchFunctionMode, resolve_name

from engine.canonical import Json

RANDOM_FLOAT = frozenset({"torch.rand", "torch.randn", "torch.rand_like", "torch.randn_like", "torch.normal"})
RANDOM_IN_PLACE = frozenset({"torch.Tensor.uniform_", "torch.Tensor.normal_"})
SUITES = ("nominal", "signed", "scaled", "shift", "structured", "extreme", "integer")
"""evaluation: values as the task draws them; N(0,1); times 30 (odd seeds) or 1/30; plus 100; ramp, loud row, duplicated
rows, rows mostly zero, all negative and with ties, extremes at the ends of a row, alternating signs, the first and the
last class; plus or minus 80 (16 bit: near the maximum / 16); small integers."""


class UnsupportedTask(Exception):
    """The task's inputs or parameters have a form that the judge cannot replay."""


@dataclass(frozen=True, slots=True)
class Program:
    """`steps`: calls of torch functions in order; `result`: the tree that get_inputs returned, with references."""

    steps: tuple[Json, ...]
    result: Json


@dataclass(frozen=True, slots=True)
class ParamSpec:
    """How one entry of state_dict is redrawn. `kind`: normal (mean + std * N), positive (|mean + N/2| + 0.1), or keep
    (the reference's own value, from a raw file)."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    kind: str
    mean: float
    std: float


def derive_seed(base: int, *parts: object) -> int:
    """A 62-bit seed for one use, from the verdict's seed; uses do not reveal each other."""
    text = "/".join(map(str, (base, *parts)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) >> 2


class _Recorder(TorchFunctionMode):
    """Runs torch functions on meta tensors and notes the calls."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[Json] = []
        self._where: dict[int, tuple[int, int | None]] = {}
        self._alive: list[Any] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = resolve_name(func) or ""
        if name in ("torch.tensor", "torch.from_numpy", "torch.as_tensor"):
            result = func(*args, **kwargs)
            literal = {"literal": result.tolist(), "dtype": str(result.dtype).removeprefix("torch.")}
            result = result.to("meta") if result.device.type != "meta" else result
            return self._note(literal, result)
        step = {"f": name, "a": self.encode(list(args)), "k": self.encode(kwargs)}
        if "generator" in kwargs:
            raise UnsupportedTask("get_inputs uses a generator of its own")
        if not _tensors(args) and not _tensors(kwargs.values()) and name.startswith("torch.") and "Tensor" not in name:
            kwargs["device"] = "meta"
        try:
            result = func(*args, **kwargs)
        except TypeError:
            kwargs.pop("device", None)
            result = func(*args, **kwargs)
        return self._note(step, result)

    def _note(self, step: Json, result: Any) -> Any:
        found = [result] if isinstance(result, torch.Tensor) else list(result) if isinstance(result, tuple) else []
        found = [item for item in found if isinstance(item, torch.Tensor)]
        if not found and not str(step["f"]).endswith(("__setitem__", "manual_seed")):
            return result
        index = len(self.steps)
        self.steps.append(step)
        for position, item in enumerate(found):
            self._where[id(item)] = (index, None if isinstance(result, torch.Tensor) else position)
            self._alive.append(item)
        return result

    def encode(self, value: Any) -> Json:  # noqa: C901 - one case per kind of value
        if isinstance(value, torch.Tensor):
            if id(value) not in self._where:
                raise UnsupportedTask("a tensor of get_inputs does not come from a torch function")
            index, position = self._where[id(value)]
            return {"ref": index, "item": position}
        if isinstance(value, torch.dtype):
            return {"dtype": str(value).removeprefix("torch.")}
        if isinstance(value, torch.device):
            return {"device": 0}
        if isinstance(value, slice):
            return {"slice": [self.encode(part) for part in (value.start, value.stop, value.step)]}
        if value is Ellipsis:
            return {"ellipsis": 0}
        if isinstance(value, tuple):
            return {"tuple": [self.encode(item) for item in value]}
        if isinstance(value, list):
            return [self.encode(item) for item in value]
        if isinstance(value, Mapping):
            return {"map": {str(name): self.encode(item) for name, item in value.items() if name != "device"}}
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        raise UnsupportedTask(f"get_inputs uses a value of type {type(value).__name__}, which cannot be replayed")


def _tensors(values: Iterable[Any]) -> bool:
    return bool(flatten(list(values)))


def record(factory: Callable[[], Any]) -> Program:
    """The program of a `get_inputs`; UnsupportedTask when it cannot be replayed on another device."""
    recorder = _Recorder()
    try:
        with recorder:
            result = factory()
    except (RuntimeError, NotImplementedError, TypeError, AttributeError) as error:
        raise UnsupportedTask(f"get_inputs cannot be recorded without making its values: {error}") from error
    return Program(tuple(recorder.steps), recorder.encode(result))


class _Replay:
    def __init__(self, device: str, seed: int, suite: str) -> None:
        self.device, self.suite, self.seed = device, suite, seed
        self.generator = torch.Generator(device).manual_seed(seed)
        self.values: list[Any] = []
        self.drawn = 0

    def run(self, step: Json) -> Any:
        if "literal" in step:
            return torch.tensor(step["literal"], dtype=getattr(torch, step["dtype"]), device=self.device)
        name = step["f"]
        function: Any = torch
        for part in name.split(".")[1:]:
            function = getattr(function, part)
        args, kwargs = self.decode(step["a"]), self.decode(step["k"])
        if name in ("torch.random.manual_seed", "torch.manual_seed"):
            return None
        if not _tensors(args) and not _tensors(kwargs.values()) and "Tensor" not in name:
            kwargs["device"] = self.device
        result = function(*args, **kwargs)
        if name in RANDOM_FLOAT and result.is_floating_point():
            return self.revalue(result)
        if name == "torch.randint" and self.suite == "structured" and result.numel() > 1:
            return _with_ends(result, step)
        if name in RANDOM_IN_PLACE:
            return args[0].copy_(self.revalue(args[0]))
        return result

    def revalue(self, nominal: torch.Tensor) -> torch.Tensor:
        """The suite's values for one random tensor, in its own shape and dtype."""
        self.drawn += 1
        return suite_values(nominal, self.suite, self.drawn - 1, self.seed, self.generator)

    def decode(self, value: Json) -> Any:
        if isinstance(value, list):
            return [self.decode(item) for item in value]
        if not isinstance(value, dict):
            return value
        (key, content), *rest = value.items()
        if key == "ref":
            found = self.values[content]
            return found if rest[0][1] is None else found[rest[0][1]]
        if key == "dtype":
            return getattr(torch, content)
        if key == "device":
            return torch.device(self.device)
        if key == "slice":
            return slice(*(self.decode(item) for item in content))
        if key == "ellipsis":
            return Ellipsis
        if key == "tuple":
            return tuple(self.decode(item) for item in content)
        return {name: self.decode(item) for name, item in content.items()}


def replay(program: Program, device: str, seed: int, suite: str) -> Any:
    """The inputs for a seed and suite, made on `device`; equal calls give equal values on equal devices."""
    replayed = _Replay(device, seed, suite)
    # Random functions of the program draw from the global generator; it is put back for whoever runs next.
    state = torch.random.get_rng_state()
    _seed_generators(seed, device)
    try:
        with torch.no_grad():
            for step in program.steps:
                replayed.values.append(replayed.run(step))
        return replayed.decode(program.result)
    finally:
        torch.random.set_rng_state(state)


def _seed_generators(seed: int, device: str) -> None:
    """As torch.manual_seed, which also queues a call with its stack for every kind of device that there is not."""
    torch.default_generator.manual_seed(seed)
    if torch.device(device).type == "cuda":
        torch.cuda.manual_seed(seed)


def suite_values(
    nominal: torch.Tensor, suite: str, position: int, seed: int, generator: torch.Generator
) -> torch.Tensor:
    """Values of one random tensor of the task under a suite; `position` counts the task's random tensors."""
    if suite == "nominal":
        return nominal
    normal = torch.randn(nominal.shape, generator=generator, device=nominal.device, dtype=torch.float32)
    if suite == "scaled":
        normal = normal * (30.0 if seed % 2 else 1.0 / 30.0)
    elif suite == "shift":
        normal = normal + 100.0
    elif suite == "structured":
        normal = _structured(normal)
    elif suite == "extreme":
        high = 80.0 if nominal.dtype in (torch.float32, torch.float64, torch.bfloat16) else 4000.0
        normal = torch.where(normal > 0, high, -high) + normal
    elif suite == "integer":
        limit = 4095 if position == 0 else 1
        normal = torch.randint(-limit, limit + 1, nominal.shape, generator=generator, device=nominal.device).float()
    return normal.to(nominal.dtype)


def _with_ends(drawn: torch.Tensor, step: Json) -> torch.Tensor:
    """Whole numbers with the least and the largest possible one first and last: class 0 and the last class occur."""
    given = [value for value in step["a"] if isinstance(value, int)]
    placed = dict(zip(("high",) if len(given) == 1 else ("low", "high"), given, strict=False))
    bounds = {"low": 0, "high": None} | placed | step["k"]["map"]
    if isinstance(bounds["low"], int) and isinstance(bounds["high"], int):
        drawn.view(-1)[0], drawn.view(-1)[-1] = bounds["low"], bounds["high"] - 1
    return drawn


def _structured(normal: torch.Tensor) -> torch.Tensor:
    if normal.ndim == 0 or normal.numel() < 2:
        return normal
    width = normal.shape[-1]
    ramp = torch.linspace(0.1, 2.0, width, device=normal.device)
    signs = torch.ones(width, device=normal.device)
    signs[1::2] = -1.0
    values = normal.abs() * ramp * signs
    if normal.ndim > 1 and normal.shape[0] > 1:
        values[0] *= 50.0
        values[-1] = values[0]
    if normal.ndim > 1 and normal.shape[0] > 2:
        keep = torch.arange(values[1].numel(), device=normal.device).reshape(values[1].shape) % 17 == 0
        values[1] = torch.where(keep, values[1], torch.zeros_like(values[1]))
    if normal.ndim > 1 and normal.shape[0] > 3:
        values[2] = -values[2].abs() - 0.01
    if normal.ndim > 1 and normal.shape[0] > 4:
        values[3] = normal[3].round()
    if normal.ndim > 1 and normal.shape[0] > 6:
        # The loud row's largest value stands last, a negative row's first: a bound that is off by one misses them. The
        # negative row is quiet, so that sums of the others, which nearly cancel, keep their weight.
        values[-2] = -0.02 * values[-2].abs() - 0.001
        values[-2, ..., 0] = -0.0005
        place = values[0].argmax(dim=-1, keepdim=True)
        largest, last = values[0].gather(-1, place), values[0, ..., -1:].clone()
        values[0].scatter_(-1, place, last)
        values[0, ..., -1:] = largest
        values[-1] = values[0]
    return values


def parameter_specs(state: Mapping[str, torch.Tensor]) -> tuple[ParamSpec, ...]:
    """How to redraw each entry: normal with the mean and spread of its initial value; a constant one varies by 0.5, so
    that an affine at its default cannot be ignored. Running variances stay positive, other buffers are kept."""
    return tuple(_spec(name, value) for name, value in state.items())


def _spec(name: str, value: torch.Tensor) -> ParamSpec:
    shape, dtype = tuple(value.shape), str(value.dtype).removeprefix("torch.")
    leaf = name.rsplit(".", 1)[-1]
    is_buffer = not isinstance(value, torch.nn.Parameter)
    if not value.is_floating_point() or value.numel() == 0 or (is_buffer and not leaf.startswith("running_")):
        return ParamSpec(name, shape, dtype, "keep", 0.0, 0.0)
    wide = value.detach().double()
    mean = float(wide.mean())
    std = float(wide.std()) if value.numel() > 1 else 0.0
    if leaf == "running_var":
        return ParamSpec(name, shape, dtype, "positive", mean, 0.5)
    return ParamSpec(name, shape, dtype, "normal", mean, std if std > 1e-6 * (abs(mean) + 1e-6) else 0.5)


def parameter_value(spec: ParamSpec, device: str, seed: int, suite: str) -> torch.Tensor:
    """A new value, exact in the entry's dtype; equal arguments give equal values on equal devices."""
    generator = torch.Generator(device).manual_seed(derive_seed(seed, spec.name))
    if suite == "integer" and spec.kind == "normal":
        drawn = torch.randint(-1, 2, spec.shape, generator=generator, device=device).float()
    else:
        drawn = torch.randn(spec.shape, generator=generator, device=device) * spec.std + spec.mean
    if spec.kind == "positive":
        drawn = drawn.abs() + 0.1
    return drawn.to(getattr(torch, spec.dtype))


def flatten(tree: Any) -> list[torch.Tensor]:
    """The tensors of nested lists, tuples and dictionaries, in order. Nothing that a subclass overrides is called: a
    candidate's may compute when it is looked at."""
    kind = type(tree)
    if issubclass(kind, torch.Tensor):
        return [tree]
    if issubclass(kind, dict):
        items = iter(dict.values(tree))
    elif issubclass(kind, list):
        items = list.__iter__(tree)
    elif issubclass(kind, tuple):
        items = tuple.__iter__(tree)
    else:
        return []
    return [leaf for item in items for leaf in flatten(item)]


def map_tensors(tree: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """The same tree with each tensor replaced."""
    if isinstance(tree, torch.Tensor):
        return change(tree)
    if isinstance(tree, Mapping):
        return {name: map_tensors(item, change) for name, item in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(map_tensors(item, change) for item in tree)
    return tree
