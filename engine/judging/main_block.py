"""`if __name__ == "__main__":` of a candidate, which never runs: it is imported under another name."""

from __future__ import annotations

import ast
from collections.abc import Iterator

NAME, MAIN = "__name__", "__main__"


def without_main_block(tree: ast.Module) -> ast.Module:
    """The module less what stands under that test at its top level; unchanged where the file may rename itself."""
    if any(_binds_name(node) for node in ast.walk(tree)):
        return tree
    return ast.Module([kept for node in tree.body for kept in _kept(node)], tree.type_ignores)


def _kept(node: ast.stmt) -> Iterator[ast.stmt]:
    if isinstance(node, ast.If) and _asks_for_main(node.test):
        yield from node.orelse
    else:
        yield node


def _asks_for_main(test: ast.expr) -> bool:
    if not isinstance(test, ast.Compare) or len(test.ops) != 1 or not isinstance(test.ops[0], ast.Eq):
        return False
    left, right = test.left, test.comparators[0]
    return isinstance(left, ast.Name) and left.id == NAME and isinstance(right, ast.Constant) and right.value == MAIN


def _binds_name(node: ast.AST) -> bool:
    """Any mention but a reading one: assignment, import, parameter, capture, `global`, text."""
    if isinstance(node, (ast.Name, ast.Attribute)) and isinstance(node.ctx, ast.Load):
        return False
    values = (value for _, value in ast.iter_fields(node))
    return any(value == NAME or (isinstance(value, list) and NAME in value) for value in values)
