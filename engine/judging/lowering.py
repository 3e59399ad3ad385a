"""How Triton specialises one launch, and the IR that its front end makes of it. No LLVM, no PTX, no device."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from engine.judging.child import describe
from engine.judging.plan import Kernel

_CARRIED = ("num_warps", "num_stages", "num_ctas", "maxnreg", "enable_fp_fusion", "launch_cooperative_grid")
_FRONT_END = frozenset(
    [
        *("debug", "sanitize_overflow", "supported_fp8_dtypes", "deprecated_fp8_dot_operand_dtypes"),
        *("default_dot_input_precision", "allowed_dot_input_precisions", "max_num_imprecise_acc_default"),
    ]
)
"""Options that have done their work once the IR is made."""


class CompileFailed(Exception):
    """A kernel does not compile for the target, or does not fit on it (`resources`)."""

    def __init__(self, kernel: str, text: str, *, resources: bool) -> None:
        super().__init__(text)
        self.kernel, self.text, self.resources = kernel, text, resources


class Unsupported(Exception):
    """A launch that a plan cannot hold."""


class Pointer:
    """Stands for a tensor argument: Triton asks for its dtype, and for its address only to see whether 16 divides it.
    Buffers start at multiples of 16 bytes and no more is promised, so the offset in the buffer answers that."""

    __slots__ = ("dtype", "offset", "tensor")

    def __init__(self, tensor: torch.Tensor, dtype: Any) -> None:
        self.tensor, self.dtype = tensor, dtype
        self.offset = int(tensor.storage_offset()) * tensor.element_size()

    def data_ptr(self) -> int:
        return self.offset


@dataclass(frozen=True, slots=True)
class Specialised:
    """A kernel with the types, constants and options of a launch."""

    function: Any
    source: Any
    options: Any
    backend: Any
    target: Any

    def lower(self) -> Kernel:
        """Triton IR after the front end's passes, without source locations. Raises CompileFailed."""
        from triton._C.libtriton import ir

        name = str(self.function.__name__)
        try:
            context = ir.context()
            ir.load_dialects(context)
            self.backend.load_dialects(context)
            module = self._module(context)
            stages: dict[str, Any] = {}
            self.backend.add_stages(stages, self.options, self.source.language)
            module = stages["ttir"](module, {})
        except Exception as error:  # the kernel's own Python runs inside Triton's front end and may raise anything
            text = describe(error)
            message = f"kernel {name} does not compile: {text['type']}: {text['message']}"
            raise CompileFailed(name, message, resources="OutOfResources" in text["type"]) from error
        # Locations hold paths and lines of a scratch file; without them equal kernels have equal texts.
        return Kernel(name, module.str_nodebug(), **{field: getattr(self.options, field) for field in _CARRIED})

    def _module(self, context: Any) -> Any:
        rest = (
            self.options,
            self.backend.get_codegen_implementation(self.options),
            self.backend.get_module_map(),
            context,
        )
        takes_target = "target" in inspect.signature(self.source.make_ir).parameters
        return self.source.make_ir(self.target, *rest) if takes_target else self.source.make_ir(*rest)


def warm() -> None:
    """Load what Triton imports at its first launch (a second), so that processes forked later have it."""
    from triton.runtime.jit import mangle_type

    mangle_type(1.0)


class Specialiser:
    """Tells launches that share machine code from others, as Triton's own cache does, for all plans of a candidate."""

    def __init__(self) -> None:
        self.kernels: list[Specialised] = []
        self._lowered: dict[int, Kernel | CompileFailed] = {}
        self._places: dict[tuple[object, str, str], int] = {}

    def specialise(
        self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[int, tuple[tuple[str, Any], ...]]:
        """Where in `kernels` is what `function[grid](*args, **kwargs)` would compile, and its runtime arguments in the
        order of the IR function's parameters, each with its Triton type. Raises what Triton raises on wrong arguments,
        and Unsupported for what a plan cannot hold."""
        if function.pre_run_hooks:
            raise Unsupported(f"kernel {function.__name__}: a hook runs before its launches")
        named = {name: _wrapped(value, function) for name, value in kwargs.items()}
        named["debug"] = bool(named.pop("debug", None) or function.debug)
        binder = function.device_caches[0][-1]
        bound, found, options = binder(*(_wrapped(value, function) for value in args), **named)
        # As text, since 1, 1.0 and True are equal as keys and are not as constants.
        key = (_identity(function), repr(found), repr(options))
        if key not in self._places:
            self.kernels.append(_specialised(function, named, bound, found))
            self._places[key] = len(self.kernels) - 1
        place = self._places[key]
        kinds = self.kernels[place].source.signature.items()
        values = (value for name, kind in kinds for value in _runtime(kind, bound[name], function.__name__))
        return place, tuple(values)

    def lower(self, place: int) -> Kernel | CompileFailed:
        """`Specialised.lower`, once."""
        if place not in self._lowered:
            try:
                self._lowered[place] = self.kernels[place].lower()
            except CompileFailed as failed:
                self._lowered[place] = failed
        return self._lowered[place]


def _identity(function: Any) -> object:
    """Equal for functions of equal source and constants: a function defined in forward() is a new object each time."""
    try:
        return (str(function.__name__), str(function.cache_key))
    except (NameError, RuntimeError, AssertionError, TypeError, ValueError, AttributeError):
        # Triton cannot hash what its front end will not compile; the error comes from there.
        return id(function)


def _specialised(function: Any, named: dict[str, Any], bound: Any, found: Any) -> Specialised:
    from triton.compiler import ASTSource

    _, _, target, backend, _ = function.device_caches[0]
    options, signature, constants, attributes = function._pack_args(backend, named, bound, found, None)
    default = vars(backend.parse_options({}))
    for name, value in vars(options).items():
        if name not in _CARRIED and name not in _FRONT_END and value != default[name]:
            raise Unsupported(f"kernel {function.__name__} is launched with {name}={value!r}")
    return Specialised(function, ASTSource(function, signature, constants, attributes), options, backend, target)


def _wrapped(value: Any, function: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return Pointer(value, value.dtype)
    base = getattr(value, "base", None)
    if isinstance(base, torch.Tensor):
        if hasattr(value, "block_shape"):
            raise Unsupported(f"kernel {function.__name__} takes a host TensorDescriptor")
        return Pointer(base, value.dtype)
    if isinstance(value, tuple):
        items = [_wrapped(item, function) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


def _runtime(kind: Any, value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(kind, tuple):
        for inner, item in zip(kind, value, strict=True):
            yield from _runtime(inner, item, name)
    elif kind != "constexpr":
        if kind.startswith("tensordesc") or kind == "nvTmaDesc":
            raise Unsupported(f"kernel {name} takes a host TensorDescriptor")
        yield kind, value
