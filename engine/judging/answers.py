"""What a candidate's process answers, parsed once: it may answer anything, and only what has the protocol's form and
sizes goes further."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from engine.canonical import Json
from engine.records import HostOp

MAX_TEXT = 8000
MAX_NAMES = 100_000
MAX_NUMBER = 1 << 62
MAX_DEPTH = 16
_OPERATION = re.compile(r"[\w.:]{1,200}")


class AnswerError(Exception):
    """An answer of another form than its command has."""


@dataclass(frozen=True, slots=True)
class Raised:
    """An exception in the candidate's process. `origin`: the file that raised it, `outer`: the type that arrived."""

    type: str
    message: str
    frames: tuple[str, ...]
    origin: str
    outer: str

    def as_mapping(self) -> Mapping[str, Json]:
        """The form that `messages.failure_of` reads."""
        return {
            "type": self.type,
            "message": self.message,
            "frames": list(self.frames),
            "origin": self.origin,
            "outer": self.outer,
        }


@dataclass(frozen=True, slots=True)
class Built:
    """`load`: names and shapes of the state_dict, and what of torch and Triton the module replaced."""

    state: Mapping[str, tuple[int, ...]]
    replaced: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Called:
    """`call`: `mutated` are positions of inputs, `rewritten` names of parameters, `overwritten` a number of guards."""

    wall_s: float
    mutated: tuple[int, ...]
    rewritten: tuple[str, ...]
    replaced: tuple[str, ...]
    overwritten: int
    launches: int
    host_ops: tuple[HostOp, ...]


@dataclass(frozen=True, slots=True)
class Described:
    """One tensor of a collected result. `at`: where its bytes lie; the meaning is its sender's."""

    plain: bool
    type: str
    dtype: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    device: str
    at: Json


@dataclass(frozen=True, slots=True)
class Output:
    """One result of forward(): its tree, as `reference.tree_of` writes it, and its tensors in order."""

    tree: Json
    tensors: tuple[Described, ...]


def plain_text(text: str) -> str:
    """Text that any file and terminal takes: no half of a surrogate pair."""
    return text.encode("utf-8", "backslashreplace").decode()


def raised_in(answer: Mapping[str, Json]) -> Raised | None:
    """The exception that an answer reports, None for one that reports none."""
    if "error" not in answer:
        return None
    error = _mapping(answer["error"], "error")
    frames = tuple(_text(frame, "frame") for frame in _list(_of(error, "frames"), "frames"))
    return Raised(
        _text(_of(error, "type"), "type"),
        _text(_of(error, "message"), "message"),
        frames[:50],
        _text(_of(error, "origin"), "origin"),
        _text(_of(error, "outer"), "outer"),
    )


def built(answer: Mapping[str, Json]) -> Built:
    state = _mapping(_of(answer, "state"), "state")
    shapes = {_text(name, "state"): _sizes(shape, f"shape of {name[:80]!r}") for name, shape in state.items()}
    return Built(shapes, _names(answer, "replaced"))


def called(answer: Mapping[str, Json]) -> Called:
    launches = _mapping(_of(answer, "launches"), "launches")
    return Called(
        wall_s=_seconds(_of(answer, "wall_s"), "wall_s"),
        mutated=_sizes(_of(answer, "mutated"), "mutated"),
        rewritten=_names(answer, "rewritten"),
        replaced=_names(answer, "replaced"),
        overwritten=_count(_of(answer, "overwritten"), "overwritten"),
        launches=sum(_count(count, "launches") for count in launches.values()),
        host_ops=tuple(_host_op(row) for row in _list(_of(answer, "host_ops"), "host_ops")),
    )


def collected(answer: Mapping[str, Json], names: Sequence[str]) -> dict[str, Json]:
    """The results of the calls named, each still to be parsed by `output`; each file must bear its call's name."""
    outputs = _mapping(_of(answer, "outputs"), "outputs")
    if set(outputs) != set(names):
        raise AnswerError(f"outputs of {', '.join(map(repr, names))} were asked for")
    for name in names:
        rows = _list(_of(_mapping(outputs[name], name), "tensors"), "tensors")
        for index, row in enumerate(rows):
            if _of(_mapping(row, "tensor"), "at") != f"{name}_{index}.bin":
                raise AnswerError(f"expected the file {name}_{index}.bin")
    return dict(outputs)


def output(value: Json) -> Output:
    found = _mapping(value, "output")
    rows = _list(_of(found, "tensors"), "tensors")
    return Output(_tree(_of(found, "tree"), 0), tuple(_described(_mapping(row, "tensor")) for row in rows))


def _described(row: Mapping[str, Json]) -> Described:
    shape, stride = _sizes(_of(row, "shape"), "shape"), _sizes(_of(row, "stride"), "stride")
    if len(shape) != len(stride):
        raise AnswerError(f"a shape of {len(shape)} extents and {len(stride)} strides")
    plain = _of(row, "plain")
    if not isinstance(plain, bool):
        raise AnswerError("plain: expected true or false")
    texts = {name: _text(_of(row, name), name)[:80] for name in ("type", "dtype", "device")}
    return Described(plain, texts["type"], texts["dtype"], shape, stride, texts["device"], _of(row, "at"))


def _tree(tree: Json, depth: int) -> Json:
    """A tree as `reference.tree_of` writes it."""
    if depth > MAX_DEPTH:
        raise AnswerError(f"a result nested deeper than {MAX_DEPTH}")
    if tree is None:
        return None
    if isinstance(tree, str):
        return _text(tree, "tree")
    found = _mapping(tree, "tree")
    if len(found) != 1 or set(found) - {"map", "list", "tuple"}:
        raise AnswerError(f"tree: expected one of map, list, tuple, got {', '.join(map(repr, found))[:80]}")
    ((kind, items),) = found.items()
    if kind == "map":
        return {kind: {_text(name, "key"): _tree(item, depth + 1) for name, item in _mapping(items, "map").items()}}
    return {kind: [_tree(item, depth + 1) for item in _list(items, kind)]}


def _host_op(row: Json) -> HostOp:
    columns = _list(row, "host operation")
    if len(columns) != 5:
        raise AnswerError(f"host operation: expected 5 columns, got {len(columns)}")
    name, count, compute, flops, size = columns
    if not isinstance(name, str) or _OPERATION.fullmatch(name) is None or not isinstance(compute, bool):
        raise AnswerError(f"host operation {str(name)[:80]!r}")
    return HostOp(name, _count(count, name), compute, _seconds(flops, name), _seconds(size, name))


def _of(row: Mapping[str, Json], name: str) -> Json:
    if name not in row:
        raise AnswerError(f"{name} is absent")
    return row[name]


def _mapping(value: Json, what: str) -> Mapping[str, Json]:
    if not isinstance(value, Mapping) or len(value) > MAX_NAMES:
        raise AnswerError(f"{what}: expected an object, got {type(value).__name__}")
    return value


def _list(value: Json, what: str) -> Sequence[Json]:
    if not isinstance(value, list) or len(value) > MAX_NAMES:
        raise AnswerError(f"{what}: expected a list, got {type(value).__name__}")
    return value


def _text(value: Json, what: str) -> str:
    if not isinstance(value, str):
        raise AnswerError(f"{what}: expected text, got {type(value).__name__}")
    return plain_text(value[:MAX_TEXT])


def _names(answer: Mapping[str, Json], name: str) -> tuple[str, ...]:
    return tuple(_text(item, name)[:200] for item in _list(_of(answer, name), name))


def _count(value: Json, what: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_NUMBER:
        raise AnswerError(f"{what}: expected a natural number, got {str(value)[:40]}")
    return value


def _sizes(value: Json, what: str) -> tuple[int, ...]:
    return tuple(_count(size, what) for size in _list(value, what))


def _seconds(value: Json, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < MAX_NUMBER:
        raise AnswerError(f"{what}: expected a finite number, got {str(value)[:40]}")
    return float(value)
