"""The launch recorder: what one forward() launches and runs, learnt on fake tensors without a device.

Kernels are not run: grid, arguments and meta-parameters are noted. Afterwards each distinct specialisation may be
compiled for the declared chip by Triton's own compiler.
"""

from __future__ import annotations

import dataclasses
import re
import time
from collections import Counter
from typing import Any

import torch

from engine.judging.child import MODULE, describe
from engine.judging.host_ops import span_bytes
from engine.judging.interpreter import _tensors_in
from engine.judging.lowering import CompileFailed
from engine.judging.plan import MAX_CHOICES, MAX_GRID, Launch
from engine.judging.plan_recorder import PlanRecorder
from engine.judging.pretend import PROPERTIES

DEFAULT_WARPS, DEFAULT_STAGES = 4, 3
WARP = 32
"""Threads."""
MAX_COMPILES = 12
MAX_CONFIGS = 3
"""Autotune configs tried for one kernel when the first cannot be compiled or does not fit."""

_DOT = re.compile(r"\bdot(_scaled)?\s*\(")
_META = frozenset({"num_warps", "num_stages", "num_ctas", "maxnreg", "ir_override", "enable_fp_fusion"})


@dataclasses.dataclass(slots=True)
class Recorded:
    """One distinct launch. `others`: further autotune configs, as keyword arguments."""

    function: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    grid: tuple[int, int, int]
    bytes: int
    others: tuple[dict[str, Any], ...]
    count: int = 1
    compiled: Any = None

    @property
    def name(self) -> str:
        return str(self.function.__name__)

    def option(self, name: str, default: int) -> int:
        value = self.kwargs.get(name)
        return default if value is None else int(value)

    @property
    def specialisation(self) -> tuple[Any, ...]:
        return (self.name, tuple(map(_kind, self.args)), tuple((k, _kind(v)) for k, v in sorted(self.kwargs.items())))


class LaunchRecorder:
    """Replaces Triton's launch path in this process, once. `launches` holds what was noted since `clear`. While `plan`
    is set, it hears each launch with all its autotune configurations."""

    def __init__(self) -> None:
        self.plan: PlanRecorder | None = None
        self.counting = True
        self.asks_for_best = False
        self._choices: list[Launch] | None = None
        self.launches: dict[tuple[Any, ...], Recorded] = {}
        self.foreign: Counter[str] = Counter()
        self.remarks: list[str] = []
        self._others: tuple[dict[str, Any], ...] = ()
        self._compile: Any = None

    def install(self) -> None:
        from triton.runtime import autotuner
        from triton.runtime.jit import JITFunction

        self._compile = JITFunction.run
        recorder = self

        def run(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
            if not warmup:
                recorder.note(self, args, kwargs, grid)

        def tune(self: Any, *args: Any, **kwargs: Any) -> Any:
            return recorder.tuned(self, args, kwargs)

        JITFunction.run = run
        autotuner.Autotuner.run = tune

    def clear(self) -> None:
        """Forget what was noted and count again."""
        self.launches, self.foreign, self.remarks, self.counting = {}, Counter(), [], True

    def tuned(self, tuner: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """An autotuned launch: the first config is noted, the others are kept in case it does not fit."""
        tuner.nargs = dict(zip(tuner.arg_names, args, strict=False))
        configs = list(tuner.prune_configs(kwargs))
        first = configs[0]
        conflicts = sorted(kwargs.keys() & first.kwargs.keys())
        if conflicts:
            raise ValueError(
                f"Conflicting meta-parameters: {', '.join(conflicts)}. Make sure that you don't re-define auto-tuned "
                "symbols."
            )
        if first.pre_hook is not None:
            first.pre_hook({**tuner.nargs, **kwargs, **first.all_kwargs()})
        self._others = tuple(config.all_kwargs() for config in configs[1:MAX_CONFIGS])
        if len(configs) > 1:
            self.remark(f"autotune {tuner.base_fn.__name__}: {len(configs)} configs, first used: {first}")
        tuner.best_config = first
        try:
            if self.plan is None:
                return tuner.fn.run(*args, **kwargs, **first.all_kwargs())
            self._tune(tuner, configs, args, kwargs)
        finally:
            self._others = ()

    def _tune(self, tuner: Any, configs: list[Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Each configuration a choice of one launch; a hook before the launch, or a program that asks which one was
        chosen, ties the plan to the first."""
        assert self.plan is not None
        tied = self.asks_for_best or configs[0].pre_hook is not None
        chosen = configs[:1] if tied else [config for config in configs if config.pre_hook is None]
        self._choices = []
        try:
            for config in chosen[:MAX_CHOICES]:
                tuner.fn.run(*args, **kwargs, **config.all_kwargs())
            if self._choices:
                self.plan.launch(tuple(self._choices))
        finally:
            self._choices = None

    def remark(self, text: str) -> None:
        if text not in self.remarks:
            self.remarks.append(text)

    def note(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], grid: Any) -> None:
        if getattr(function.fn, "__module__", "") != MODULE:
            self.foreign[str(function.__name__)] += self.counting
            if self.plan is not None:
                self.plan.refuse(f"a kernel of another file, {function.__name__}")
            return
        if grid is None:
            raise TypeError(f"kernel {function.__name__} launched without a grid")
        extent = _grid(grid, function, args, kwargs)
        if not all(size >= 1 for size in extent):
            # An empty grid launches nothing, on a device as well.
            return
        if any(size > limit for size, limit in zip(extent, MAX_GRID, strict=True)):
            raise CompileFailed(
                function.__name__,
                f"kernel {function.__name__}: grid {extent} exceeds the limits {MAX_GRID}",
                resources=True,
            )
        _check_arguments(function, args, kwargs)
        if self.plan is not None:
            self._plan_launch(self.plan, self.plan.choice(function, args, kwargs, extent))
            if not self.counting or (self._choices is not None and len(self._choices) > 1):
                return
        with torch._C.DisableTorchFunction():
            size = _bytes_of(args, kwargs)
        recorded = Recorded(function, args, dict(kwargs), extent, size, self._others)
        key = (*recorded.specialisation, extent, recorded.bytes)
        if key in self.launches:
            self.launches[key].count += 1
        else:
            self.launches[key] = recorded

    def _plan_launch(self, plan: PlanRecorder, launch: Launch | None) -> None:
        if launch is not None and self._choices is not None:
            self._choices.append(launch)
        elif launch is not None:
            plan.launch((launch,))

    def compile_all(self, deadline: float) -> None:
        """Compile each specialisation; raises CompileFailed. What the deadline leaves out is remarked."""
        done: dict[tuple[Any, ...], Any] = {}
        for recorded in self.launches.values():
            key = recorded.specialisation
            if key not in done:
                if len(done) >= MAX_COMPILES or time.monotonic() > deadline:
                    self.remark(f"not compiled for lack of time: {recorded.name}")
                    continue
                done[key] = self._compile_one(recorded)
            recorded.compiled = done[key]

    def _compile_one(self, recorded: Recorded) -> Any:
        failure: CompileFailed | None = None
        for config in ({}, *recorded.others):
            try:
                compiled = self._attempt(recorded, {**recorded.kwargs, **config})
            except CompileFailed as failed:
                failure = failure or failed
                continue
            if failure is not None:
                self.remark(f"{recorded.name}: an autotune config does not fit the target, a later one is used")
                recorded.kwargs.update(config)
            return compiled
        assert failure is not None
        raise failure

    def _attempt(self, recorded: Recorded, kwargs: dict[str, Any]) -> Any:
        name = recorded.name
        try:
            mocked = [_mock(value) for value in recorded.args]
            named = {key: _mock(value) for key, value in kwargs.items()}
            with torch._C.DisableTorchFunction():
                compiled = self._compile(recorded.function, *mocked, grid=(1,), warmup=True, **named)
        except Exception as error:  # the kernel's own Python runs inside Triton's front end and may raise anything
            text = describe(error)
            message = f"kernel {name} does not compile: {text['type']}: {text['message']}"
            raise CompileFailed(name, message, resources="OutOfResources" in text["type"]) from error
        threads, most = WARP * int(compiled.metadata.num_warps), PROPERTIES["max_threads_per_block"]
        if threads > most:
            text = f"threads, required {threads}, hardware limit {most}. Reduce num_warps."
            raise CompileFailed(name, f"kernel {name}: out of resource: {text}", resources=True)
        limit = PROPERTIES["shared_memory_per_block_optin"]
        if compiled.metadata.shared > limit:
            raise CompileFailed(
                name,
                f"kernel {name}: out of resource: shared memory, required {compiled.metadata.shared}, hardware limit "
                f"{limit}. Reduce block sizes or num_stages.",
                resources=True,
            )
        return compiled


def _grid(grid: Any, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[int, int, int]:
    if callable(grid):
        bound = {parameter.name: parameter.default for parameter in function.params if parameter.has_default}
        bound.update(zip(function.arg_names, args, strict=False))
        bound.update(kwargs)
        grid = grid(bound)
    sizes = [int(size) for size in (grid if isinstance(grid, (tuple, list)) else (grid,))]
    if not 1 <= len(sizes) <= 3:
        raise ValueError(f"kernel {function.__name__}: expected a grid of 1 to 3 sizes, got {grid}")
    sizes += [1] * (3 - len(sizes))
    return sizes[0], sizes[1], sizes[2]


def _check_arguments(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    given = set(function.arg_names[: len(args)])
    if len(args) > len(function.arg_names):
        raise TypeError(f"kernel {function.__name__} takes {len(function.arg_names)} arguments, {len(args)} were given")
    for name in kwargs:
        if name not in function.arg_names and name not in _META:
            raise KeyError(f"Keyword argument {name} was specified but unrecognised by kernel {function.__name__}")
        if name in given:
            raise TypeError(f"kernel {function.__name__} got multiple values for argument '{name}'")
    defaults = {parameter.name for parameter in function.params if parameter.has_default}
    missing = [name for name in function.arg_names if name not in given | set(kwargs) | defaults]
    if missing:
        raise TypeError(f"kernel {function.__name__} missing arguments: {', '.join(missing)}")


def _bytes_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    seen: dict[tuple[Any, ...], int] = {}
    for tensor in _tensors_in([*args, *kwargs.values()]):
        place = (id(tensor.untyped_storage()), tensor.storage_offset(), tuple(tensor.shape), tuple(tensor.stride()))
        seen[place] = span_bytes(tensor)
    return sum(seen.values())


def _kind(value: Any) -> Any:
    """What a value contributes to a specialisation: Triton distinguishes 1, multiples of 16, and the width."""
    if isinstance(value, torch.Tensor):
        return ("tensor", str(value.dtype))
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return value
    if isinstance(value, int):
        return ("int", value == 1, value % 16 == 0, -(2**31) <= value < 2**31, value if abs(value) <= 65536 else None)
    return ("float",) if isinstance(value, float) else repr(value)[:200]


def _mock(value: Any) -> Any:
    from triton.runtime.jit import MockTensor

    if isinstance(value, torch.Tensor):
        return MockTensor(value.dtype)
    base = getattr(value, "base", None)
    if isinstance(base, torch.Tensor) and dataclasses.is_dataclass(value) and not isinstance(value, type):
        clone = object.__new__(type(value))
        clone.__dict__.update({**value.__dict__, "base": MockTensor(base.dtype)})
        return clone
    if isinstance(value, (list, tuple)):
        items = [_mock(item) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


def has_dot(function: Any, seen: frozenset[str] = frozenset()) -> bool:
    """Whether a kernel, or a jitted function that its source names, multiplies tiles."""
    from triton.runtime.jit import JITFunction

    if _DOT.search(function.src):
        return True
    names = set(re.findall(r"\b\w+\b", function.src)) - seen
    scope = function.fn.__globals__
    called = [scope[name] for name in names if isinstance(scope.get(name), JITFunction) and scope[name] is not function]
    return any(has_dot(callee, seen | names) for callee in called)


def low_precision_dot(recorded: Recorded) -> bool:
    """A tile product on bf16 operands, which no Triton interpreter computes rightly."""
    dtypes = {tensor.dtype for tensor in _tensors_in([*recorded.args, *recorded.kwargs.values()])}
    low = torch.bfloat16 in dtypes or "bfloat16" in recorded.function.src or "float8" in recorded.function.src
    return low and has_dot(recorded.function)
