"""Shape variants of a task: its source with other module-level integer constants. Pure, standard library only."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass

from engine.codec import did_you_mean
from engine.errors import Fault


@dataclass(frozen=True, slots=True)
class Constant:
    """A module-level integer: `NAME`, or `NAME[i]` for an element of a tuple or list. `node` holds its value."""

    value: int
    node: ast.expr
    statement: ast.Assign | ast.AnnAssign
    shared: bool
    """Several names are assigned by the same expression, as in `height = width = 64`."""


def constants(source: str) -> Mapping[str, int]:
    """The integer constants of a module by name, in order of appearance; for a name assigned twice, the last value.

    Integer expressions of literals count (`1024 * 2`), expressions with names do not. Raises SyntaxError.
    """
    return {name: constant.value for name, constant in _constants(source).items()}


def apply_variant(source: str, values: Mapping[str, int]) -> str:
    """`source` with the named constants replaced by literals; comments and layout stay.

    Raises KeyError naming the constants that the module does not have, SyntaxError for a broken module.
    """
    known = _constants(source)
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise KeyError(f"{', '.join(unknown)}: not among the integer constants {', '.join(known) or '(none)'}")
    edits: list[tuple[int, int, str]] = []
    lines = _line_starts(source)
    for name, value in values.items():
        constant = known[name]
        if constant.shared:
            end = _offset(source, lines, constant.statement.end_lineno, constant.statement.end_col_offset)
            edits.append((end, end, f"; {name} = {value}"))
        else:
            start = _offset(source, lines, constant.node.lineno, constant.node.col_offset)
            end = _offset(source, lines, constant.node.end_lineno, constant.node.end_col_offset)
            edits.append((start, end, str(value)))
    for start, end, text in sorted(edits, reverse=True):
        source = source[:start] + text + source[end:]
    return source


def variant_faults(path: str, variants: Mapping[str, Mapping[str, int]], source: str) -> list[Fault]:
    """What is wrong with the variants of a contract: a reserved name, constants that are not there, values below 1."""
    known = constants(source)
    faults: list[Fault] = []
    for variant, values in variants.items():
        where = f"variants.{variant}"
        if variant == "full":
            faults.append(Fault(where, "'full' is the file as it stands; choose another name", path))
        for name, value in values.items():
            if name not in known:
                problem = f"no integer constant of the task{did_you_mean(name, known)}"
                faults.append(Fault(f"{where}.{name}", problem, path))
            elif value < 1:
                faults.append(Fault(f"{where}.{name}", f"expected a number >= 1, got {value}", path))
    return faults


def _constants(source: str) -> dict[str, Constant]:
    found: dict[str, Constant] = {}
    for statement in ast.parse(source).body:
        if isinstance(statement, ast.AnnAssign) and statement.value is not None:
            _collect(found, [statement.target], statement.value, statement)
        elif isinstance(statement, ast.Assign):
            _collect(found, statement.targets, statement.value, statement)
    return found


def _collect(
    found: dict[str, Constant], targets: list[ast.expr], value: ast.expr, statement: ast.Assign | ast.AnnAssign
) -> None:
    shared = len(targets) > 1
    for target in targets:
        if isinstance(target, ast.Name):
            _forget(found, target.id)
            _define(found, target.id, value, statement, shared)
        elif isinstance(target, (ast.Tuple, ast.List)):
            parts = value.elts if isinstance(value, (ast.Tuple, ast.List)) else []
            for n, item in enumerate(target.elts):
                if isinstance(item, ast.Name):
                    _forget(found, item.id)
                    if len(parts) == len(target.elts):
                        _define(found, item.id, parts[n], statement, shared)


def _forget(found: dict[str, Constant], name: str) -> None:
    for known in [known for known in found if known == name or known.startswith(f"{name}[")]:
        del found[known]


def _define(
    found: dict[str, Constant], name: str, value: ast.expr, statement: ast.Assign | ast.AnnAssign, shared: bool
) -> None:
    number = _integer(value)
    if number is not None:
        found[name] = Constant(number, value, statement, shared)
    elif isinstance(value, (ast.Tuple, ast.List)) and not shared:
        for n, item in enumerate(value.elts):
            element = _integer(item)
            if element is not None:
                found[f"{name}[{n}]"] = Constant(element, item, statement, False)


def _integer(node: ast.expr) -> int | None:
    if isinstance(node, ast.Constant):
        return node.value if type(node.value) is int else None
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        inner = _integer(node.operand)
        return None if inner is None else -inner
    if isinstance(node, ast.BinOp):
        left, right = _integer(node.left), _integer(node.right)
        return None if left is None or right is None else _combine(node.op, left, right)
    return None


def _combine(operator: ast.operator, left: int, right: int) -> int | None:
    if isinstance(operator, ast.Add):
        return left + right
    if isinstance(operator, ast.Sub):
        return left - right
    if isinstance(operator, ast.Mult):
        return left * right
    if isinstance(operator, ast.FloorDiv) and right:
        return left // right
    if isinstance(operator, ast.Pow) and 0 <= right < 64:
        return int(left**right)
    if isinstance(operator, ast.LShift) and 0 <= right < 64:
        return left << right
    return None


def _line_starts(source: str) -> list[int]:
    starts = [0]
    for line in source.split("\n"):
        starts.append(starts[-1] + len(line) + 1)
    return starts


def _offset(source: str, lines: list[int], line: int | None, column: int | None) -> int:
    """Index into the text of an ast position, whose columns count UTF-8 bytes."""
    assert line is not None and column is not None
    start = lines[line - 1]
    text = source[start : lines[line]]
    return start + len(text.encode()[:column].decode())
