"""Frozen dataclasses to JSON trees and back, with every fault reported: the one parser for config and messages."""

from __future__ import annotations

import dataclasses
import difflib
import enum
import functools
import types
import typing
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from engine.canonical import Json
from engine.errors import EngineError, Fault

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, slots=True)
class Range:
    """Inclusive bounds for an annotated number, e.g. `Annotated[int, Range(1)]`."""

    low: float | None = None
    high: float | None = None

    def problem(self, value: float) -> str | None:
        if self.low is not None and value < self.low:
            return f"expected a number >= {self.low:g}, got {value!r}"
        if self.high is not None and value > self.high:
            return f"expected a number <= {self.high:g}, got {value!r}"
        return None


class DecodeError(EngineError):
    """A message that does not have the declared form; carries every fault."""

    def __init__(self, what: str, faults: list[Fault]) -> None:
        super().__init__(f"{what}: " + "; ".join(map(str, faults)))
        self.faults = tuple(faults)


def did_you_mean(name: str, known: typing.Iterable[str]) -> str:
    """', did you mean X?' for a close name, else ' (known: …)', else ''."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return f", did you mean '{close[0]}'?"
    return f" (known: {', '.join(names)})" if names else ""


def encode(value: Any) -> Json:
    """A JSON tree of a record; enums become their values, tuples lists, mappings dicts with str keys."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: encode(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(k): encode(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [encode(v) for v in value]
    return value


def decode(kind: type[T], tree: Json, what: str = "message") -> T:
    """The record of type `kind` in `tree`; raises DecodeError with all faults."""
    faults: list[Fault] = []
    value = decode_collecting(kind, tree, "", faults)
    if faults:
        raise DecodeError(what, faults)
    return typing.cast(T, value)


def decode_collecting(kind: Any, tree: Json, path: str, faults: list[Fault]) -> Any:
    """Decode `tree` at dotted `path`, appending faults; the result is meaningless once there is one."""
    origin = get_origin(kind)
    if origin is Annotated:
        base, *marks = get_args(kind)
        before = len(faults)
        value = decode_collecting(base, tree, path, faults)
        if len(faults) == before and value is not None:
            problems = (mark.problem(value) for mark in marks if isinstance(mark, Range))
            faults.extend(Fault(path, problem) for problem in problems if problem)
        return value
    if origin in (Union, types.UnionType):
        return _decode_optional(kind, tree, path, faults)
    if origin is Literal:
        return _decode_choice(list(get_args(kind)), tree, path, faults)
    if origin is tuple:
        return _decode_tuple(get_args(kind), tree, path, faults)
    if origin in (dict, Mapping):
        return _decode_mapping(get_args(kind)[1], tree, path, faults)
    if dataclasses.is_dataclass(kind):
        return _decode_record(kind, tree, path, faults)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        value = _decode_choice([member.value for member in kind], tree, path, faults)
        return kind(value) if value is not None else None
    return _decode_scalar(kind, tree, path, faults)


def _fault(faults: list[Fault], path: str, problem: str) -> None:
    faults.append(Fault(path or "(top)", problem))


def _decode_optional(kind: Any, tree: Json, path: str, faults: list[Fault]) -> Any:
    options = [option for option in get_args(kind) if option is not type(None)]
    if tree is None and len(options) < len(get_args(kind)):
        return None
    tried: list[list[Fault]] = []
    for option in options:
        found: list[Fault] = []
        value = decode_collecting(option, tree, path, found)
        if not found:
            return value
        tried.append(found)
    faults.extend(tried[0] if len(tried) == 1 else [Fault(path, f"expected {_name(kind)}, got {tree!r}")])
    return None


def _decode_choice(choices: list[Any], tree: Json, path: str, faults: list[Fault]) -> Any:
    if isinstance(tree, (str, int, bool)) and tree in choices:
        return tree
    known = [str(choice) for choice in choices]
    _fault(faults, path, f"expected one of {', '.join(known)}, got {tree!r}" + _close(tree, known))
    return None


def _close(tree: Json, known: list[str]) -> str:
    close = difflib.get_close_matches(str(tree), known, n=1, cutoff=0.6)
    return f", did you mean '{close[0]}'?" if close else ""


def _decode_tuple(args: tuple[Any, ...], tree: Json, path: str, faults: list[Fault]) -> Any:
    if not isinstance(tree, (list, tuple)):
        _fault(faults, path, f"expected a list, got {tree!r}")
        return None
    if len(args) == 2 and args[1] is Ellipsis:
        return tuple(decode_collecting(args[0], item, f"{path}[{i}]", faults) for i, item in enumerate(tree))
    if len(tree) != len(args):
        _fault(faults, path, f"expected {len(args)} items, got {len(tree)}")
        return None
    pairs = zip(args, tree, strict=True)
    return tuple(decode_collecting(arg, item, f"{path}[{i}]", faults) for i, (arg, item) in enumerate(pairs))


def _decode_mapping(kind: Any, tree: Json, path: str, faults: list[Fault]) -> Any:
    if not isinstance(tree, Mapping):
        _fault(faults, path, f"expected a mapping of names, got {tree!r}")
        return None
    prefix = f"{path}." if path else ""
    return {str(name): decode_collecting(kind, item, f"{prefix}{name}", faults) for name, item in tree.items()}


def _decode_record(kind: Any, tree: Json, path: str, faults: list[Fault]) -> Any:
    if not isinstance(tree, Mapping):
        _fault(faults, path, f"expected a mapping with the keys of {kind.__name__}, got {tree!r}")
        return None
    hints, fields = _fields(kind)
    prefix = f"{path}." if path else ""
    before = len(faults)
    for name in tree:
        if name not in fields:
            _fault(faults, f"{prefix}{name}", f"unknown key{did_you_mean(str(name), fields)}")
    values: dict[str, Any] = {}
    for name, spec in fields.items():
        if name in tree:
            values[name] = decode_collecting(hints[name], tree[name], f"{prefix}{name}", faults)
        elif spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING:
            _fault(faults, f"{prefix}{name}", f"missing; expected {_name(hints[name])}")
    return kind(**values) if len(faults) == before else None


@functools.cache
def _fields(kind: Any) -> tuple[Mapping[str, Any], Mapping[str, dataclasses.Field[Any]]]:
    """Types and fields of a record by name. Kept: resolving annotations costs most of a decode."""
    return typing.get_type_hints(kind, include_extras=True), {f.name: f for f in dataclasses.fields(kind)}


def _decode_scalar(kind: Any, tree: Json, path: str, faults: list[Fault]) -> Any:
    if kind is Any:
        return tree
    if kind is float and isinstance(tree, (int, float)) and not isinstance(tree, bool):
        return float(tree)
    if isinstance(tree, kind) and not (kind is int and isinstance(tree, bool)):
        return tree
    _fault(faults, path, f"expected {_name(kind)}, got {tree!r}")
    return None


def _name(kind: Any) -> str:
    if get_origin(kind) is Annotated:
        base, *marks = get_args(kind)
        bounds = [mark for mark in marks if isinstance(mark, Range) and mark.low is not None]
        return _name(base) + "".join(f" >= {mark.low:g}" for mark in bounds)
    if get_origin(kind) in (Union, types.UnionType):
        return " or ".join("null" if option is type(None) else _name(option) for option in get_args(kind))
    if get_origin(kind) in (dict, Mapping):
        return "a mapping of names"
    if get_origin(kind) is tuple:
        return "a list"
    return str(getattr(kind, "__name__", kind))
