"""What a candidate's module has replaced of the libraries and of us, in its own process: a method that runs while
results are read, or a function that records."""

from __future__ import annotations

import builtins
import functools
import math
import sys
import types
from typing import Any

import torch

_OURS = "engine."
_LIBRARIES = frozenset(
    [
        *("torch", "torch.nn", "torch.nn.functional", "torch.overrides", "torch.utils._python_dispatch"),
        # Below triton.language the interpreter leaves its own functions behind.
        *("triton", "triton.language", "triton.runtime.interpreter", "triton.runtime.jit", "triton.runtime.driver"),
    ]
)


class Untouched:
    """A note of what names stand for; `replaced` compares. Classes: any name. Modules: functions and classes that were
    there, as libraries import parts of their own later, and our own constants."""

    def __init__(self) -> None:
        known = sorted(sys.modules.items())
        loaded = [module for name, module in known if name.startswith(_OURS) or name in _LIBRARIES]
        modules = [*loaded, builtins, math, functools]
        classes: list[type] = [torch.Tensor, torch.nn.Module, torch.nn.Parameter, torch.UntypedStorage]
        for module in loaded:
            if module.__name__.startswith(_OURS):
                own = (value for value in vars(module).values() if isinstance(value, type))
                classes += [value for value in own if value.__module__ == module.__name__]
        self._modules = [(module, _watched(module)) for module in modules]
        self._classes = [(kind, _members(kind)) for kind in dict.fromkeys(classes)]

    def replaced(self) -> list[str]:
        """Names that stand for something else now."""
        found = []
        for module, before in self._modules:
            now = vars(module)
            found += [f"{module.__name__}.{name}" for name, value in before.items() if now.get(name) is not value]
        for kind, members in self._classes:
            later = _members(kind)
            names = members.keys() | later.keys()
            changed = [name for name in names if members.get(name) is not later.get(name)]
            found += [f"{kind.__module__}.{kind.__qualname__}.{name}" for name in sorted(changed)]
        return found


def _watched(module: types.ModuleType) -> dict[str, Any]:
    ours = module.__name__.startswith(_OURS)
    return {k: v for k, v in vars(module).items() if callable(v) or (ours and k.isupper())}


def _members(kind: type) -> dict[str, Any]:
    plain = (types.FunctionType, types.BuiltinFunctionType, classmethod, staticmethod, property)
    return {name: value for name, value in vars(kind).items() if isinstance(value, plain) or callable(value)}
