"""Mutation operators on kernels: what a mutant is, and where each operator applies, on the syntax tree."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass

ACCESSES = frozenset({"load", "store", "atomic_add", "atomic_max", "atomic_min", "atomic_cas", "atomic_xchg"})
MASKS = ("mask", "other", "boundary_check", "padding_option")


@dataclass(frozen=True, slots=True)
class Mutant:
    """One change of one case. `line`: in the case's own file; `place`: which one of that operator there, from 1."""

    case: str
    operator: str
    line: int
    place: int
    source: str

    @property
    def name(self) -> str:
        return f"{self.case}:{self.operator}:{self.line}.{self.place}"


@dataclass(frozen=True, slots=True)
class Site:
    """Where an operator applies; `change` alters the tree it was found in."""

    line: int
    column: int
    change: Callable[[], None]


Finder = Callable[[ast.Module, str], Iterator[Site]]


def mutants(case: str, source: str, dtype: str) -> Iterator[Mutant]:
    """All mutants of one source, by operator and place; `dtype` is the task's, as fp16 operands are none in fp16."""
    for operator, finder in OPERATORS.items():
        places: dict[int, int] = {}
        for index, site in enumerate(_sites(finder, ast.parse(source), dtype)):
            tree = ast.parse(source)
            _sites(finder, tree, dtype)[index].change()
            places[site.line] = places[site.line] + 1 if site.line in places else 1
            yield Mutant(
                case, operator, site.line, places[site.line], ast.unparse(ast.fix_missing_locations(tree)) + "\n"
            )


def _sites(finder: Finder, tree: ast.Module, dtype: str) -> list[Site]:
    return sorted(finder(tree, dtype), key=lambda site: (site.line, site.column))


def _is_kernel(node: ast.AST) -> bool:
    return isinstance(node, ast.FunctionDef) and any("jit" in ast.unparse(one) for one in node.decorator_list)


def _in_kernels(tree: ast.Module) -> Iterator[ast.AST]:
    return (node for kernel in ast.walk(tree) if _is_kernel(kernel) for node in ast.walk(kernel))


def _called(node: ast.AST, *names: str) -> bool:
    """Whether it is a call of a function or method by one of these last names."""
    if not isinstance(node, ast.Call):
        return False
    function = node.func
    return (function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")) in names


def _swap(node: ast.AST, fields: dict[str, object]) -> Callable[[], None]:
    def change() -> None:
        for name, value in fields.items():
            setattr(node, name, value)

    return change


def _become(parent: ast.AST, field: str, index: int | None, value: ast.expr) -> Callable[[], None]:
    def change() -> None:
        if index is None:
            setattr(parent, field, value)
        else:
            getattr(parent, field)[index] = value

    return change


def _children(tree: ast.Module) -> Iterator[tuple[ast.AST, str, int | None, ast.expr]]:
    """Expressions of kernels with the place that holds them."""
    for parent in _in_kernels(tree):
        for field, value in ast.iter_fields(parent):
            for index, item in enumerate(value) if isinstance(value, list) else ((None, value),):
                if isinstance(item, ast.expr):
                    yield parent, field, index, item


def _expression(text: str) -> ast.expr:
    return ast.parse(text, mode="eval").body


def _method(value: ast.expr, text: str) -> ast.expr:
    """`value` followed by method calls in source form, e.g. `.to(tl.float16)`."""
    return _expression(f"({ast.unparse(value)}){text}")


def mask_dropped(tree: ast.Module, dtype: str) -> Iterator[Site]:
    """An access loses its mask, or a block pointer its boundary check."""
    for node in _in_kernels(tree):
        if isinstance(node, ast.Call) and _called(node, *ACCESSES):
            kept = [keyword for keyword in node.keywords if keyword.arg not in MASKS]
            if len(kept) < len(node.keywords):
                yield Site(node.lineno, node.col_offset, _swap(node, {"keywords": kept}))


def mask_narrowed(tree: ast.Module, dtype: str) -> Iterator[Site]:
    """One side of a mask `a & b` is left out."""
    for parent, field, index, node in _children(tree):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitAnd):
            for side in (node.left, node.right):
                yield Site(side.lineno, side.col_offset, _become(parent, field, index, side))


def bound_off(tree: ast.Module, dtype: str) -> Iterator[Site]:
    """A comparison admits one element more or one less, a loop ends a step early."""
    for node in _in_kernels(tree):
        if isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.Lt):
            less = [ast.BinOp(node.comparators[0], ast.Sub(), ast.Constant(1))]
            yield Site(node.lineno, node.col_offset, _swap(node, {"ops": [ast.LtE()]}))
            yield Site(node.lineno, node.col_offset, _swap(node, {"comparators": less}))
        if isinstance(node, ast.Call) and _called(node, "range") and len(node.args) != 1:
            step = node.args[2] if len(node.args) > 2 else ast.Constant(1)
            early = [node.args[0], ast.BinOp(node.args[1], ast.Sub(), step), *node.args[2:]]
            yield Site(node.lineno, node.col_offset, _swap(node, {"args": early}))


def grid_floored(tree: ast.Module, dtype: str) -> Iterator[Site]:
    """A ceiling division becomes a floor: the last block is left out."""
    for node in ast.walk(tree):
        for field, value in ast.iter_fields(node):
            for index, item in enumerate(value) if isinstance(value, list) else ((None, value),):
                if isinstance(item, ast.Call) and _called(item, "cdiv") and len(item.args) == 2:
                    floor = ast.BinOp(item.args[0], ast.FloorDiv(), item.args[1])
                    yield Site(item.lineno, item.col_offset, _become(node, field, index, floor))


def fp16_operands(tree: ast.Module, dtype: str) -> Iterator[Site]:
    """Operands of a product, or loaded values, pass through half precision."""
    if dtype != "float32":
        return
    for parent, field, index, node in _children(tree):
        if isinstance(node, ast.Call) and _called(node, "dot"):
            cast = [_method(value, ".to(tl.float16)") for value in node.args[:2]] + node.args[2:]
            kept = [keyword for keyword in node.keywords if keyword.arg != "input_precision"]
            yield Site(node.lineno, node.col_offset, _swap(node, {"args": cast, "keywords": kept}))
        elif isinstance(node, ast.Call) and _called(node, "load"):
            through = _method(node, ".to(tl.float16).to(tl.float32)")
            yield Site(node.lineno, node.col_offset, _become(parent, field, index, through))


def strides_swapped(tree: ast.Module, dtype: str) -> Iterator[Site]:
    """Two strides change places: `*x.stride()` at a launch, or `i * stride + j` in an address."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Starred) and _called(node.value, "stride"):
            yield Site(node.lineno, node.col_offset, _swap(node, {"value": _method(node.value, "[::-1]")}))
    for node in _in_kernels(tree):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add) and not isinstance(node.right, ast.BinOp):
            for holder in _sum(node.left):
                if isinstance(holder.right, ast.Name):
                    fields = {"right": ast.BinOp(node.right, ast.Mult(), holder.right)}
                    yield Site(node.lineno, node.col_offset, _both(_swap(node, fields), _one(holder)))
                    break


def _sum(node: ast.expr) -> Iterator[ast.BinOp]:
    """The products among the terms of a sum, the last one first."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        yield from _sum(node.right)
        yield from _sum(node.left)
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        yield node


def _one(product: ast.BinOp) -> Callable[[], None]:
    return _swap(product, {"right": ast.Constant(1)})


def _both(*changes: Callable[[], None]) -> Callable[[], None]:
    def change() -> None:
        for one in changes:
            one()

    return change


def max_removed(tree: ast.Module, dtype: str) -> Iterator[Site]:
    """`x - max(x)` becomes `x`, `maximum(a, b)` becomes either, another `max` becomes a sum."""
    subtracted: set[int] = set()
    for parent, field, index, node in _children(tree):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Sub) and _called(node.right, "max"):
            subtracted.add(id(node.right))
            yield Site(node.lineno, node.col_offset, _become(parent, field, index, node.left))
        elif isinstance(node, ast.Call) and _called(node, "maximum", "minimum"):
            for side in node.args[:2]:
                yield Site(node.lineno, node.col_offset, _become(parent, field, index, side))
        elif isinstance(node, ast.Call) and _called(node, "max") and id(node) not in subtracted:
            total = ast.Call(_expression("tl.sum"), node.args, node.keywords)
            yield Site(node.lineno, node.col_offset, _become(parent, field, index, total))


def other_changed(tree: ast.Module, dtype: str) -> Iterator[Site]:
    """The value of masked lanes is another: minus infinity becomes 0, any other 1."""
    for node in _in_kernels(tree):
        if isinstance(node, ast.keyword) and node.arg == "other":
            value = 0.0 if "inf" in ast.unparse(node.value) else 1.0
            yield Site(node.value.lineno, node.value.col_offset, _swap(node, {"value": ast.Constant(value)}))


OPERATORS: dict[str, Finder] = {
    "mask_dropped": mask_dropped,
    "mask_narrowed": mask_narrowed,
    "bound_off": bound_off,
    "grid_floored": grid_floored,
    "fp16_operands": fp16_operands,
    "strides_swapped": strides_swapped,
    "max_removed": max_removed,
    "other_changed": other_changed,
}
