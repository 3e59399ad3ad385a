"""Rule expressions: an allow-list over Python's `ast`, checked and typed at load, evaluated in three values, and
translated to SQL from the checked tree.

    rule       := comparisons, `and`, `or`, `not`, True, False
    comparison := number < <= > >= == != number | text == != text | value [not] in [values]; never chained
    number     := 1, 0.5, a fact, score, metric or thresholds.<name>, + - * /, abs(x), min(x, y, ...), max(x, y, ...),
                  len(text or list)

A missing operand, an operand of another type, a division by zero or a result beyond floating point makes the whole
rule unknown (None), whatever the rest of it says. All arithmetic is in double precision, in Python as in SQL.
"""

from __future__ import annotations

import ast
import functools
import math
import operator
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from engine.canonical import digest
from engine.codec import did_you_mean
from engine.errors import EngineError
from engine.settings import Rule, Settings
from engine.vocabulary import TEXT_FACTS, OperandKind

Value = bool | int | float | str

MAX_LENGTH = 500
MAX_DEPTH = 32


class RuleError(EngineError):
    """A rule that is not acceptable; `column` counts characters from 1."""

    exit_code = 2

    def __init__(self, problem: str, column: int) -> None:
        super().__init__(f"column {column}: {problem}")
        self.column = column


class Type(StrEnum):
    NUMBER = "number"
    TEXT = "text"
    CONDITION = "condition"
    LIST = "list"


@dataclass(frozen=True, slots=True)
class Node:
    """One checked operation. `value`: the constant, or the operand's name where `op` is "name"."""

    op: str
    type: Type
    args: tuple[Node, ...] = ()
    value: Value = ""


@dataclass(frozen=True, slots=True)
class Expression:
    """A checked rule."""

    text: str
    root: Node
    names: frozenset[str]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What one rule said. `missing`: operands without a usable value; empty with outcome unknown: the arithmetic
    itself has no value. `failed`: unknown, and the rule declares that to be a failure."""

    rule: str
    kind: str
    when: str
    why: str
    outcome: Literal["true", "false", "unknown"]
    fired: bool
    operands: Mapping[str, Value | None]
    missing: tuple[str, ...]
    failed: bool = False


_BINARY: Mapping[type[ast.operator], str] = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}
_COMPARE: Mapping[type[ast.cmpop], str] = {
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
    ast.Eq: "==",
    ast.NotEq: "!=",
    ast.In: "in",
    ast.NotIn: "not in",
}
_FUNCTIONS: Mapping[str, str] = {
    "min": "two or more numbers",
    "max": "two or more numbers",
    "abs": "one number",
    "len": "one text or list",
}


def parse(text: str, known: Mapping[str, OperandKind]) -> Expression:
    """Check `text` against the grammar and the known names; raises RuleError at the first fault."""
    if len(text) > MAX_LENGTH:
        raise RuleError(f"{len(text)} characters, at most {MAX_LENGTH}", MAX_LENGTH + 1)
    body = text.strip()
    if not body:
        raise RuleError("empty, expected a condition", 1)
    try:
        with warnings.catch_warnings():
            # Python only warns about forms like '\d' or '1in (2,)'; a rule has no use for them.
            warnings.simplefilter("error")
            tree = ast.parse(body, mode="eval")
    except SyntaxError as error:
        # Python gives no place for a rule that ends too soon.
        column = error.offset or len(body) + 1
        raise RuleError(f"not an expression: {error.msg}", _shift(text) + column) from error
    except (ValueError, RecursionError, MemoryError) as error:
        raise RuleError(f"not an expression: {error}", 1) from error
    checker = _Checker(text, body, known)
    root = checker.check(tree.body, 1)
    if root.type is not Type.CONDITION:
        raise RuleError(f"expected a condition such as 'ops > 1', found a {root.type}", _shift(text) + 1)
    return Expression(text, root, frozenset(checker.names))


def _shift(text: str) -> int:
    return len(text) - len(text.lstrip())


class _Checker:
    """Turns allowed `ast` nodes into typed ones; everything not named here is refused."""

    def __init__(self, text: str, body: str, known: Mapping[str, OperandKind]) -> None:
        self.known = known
        self.names: set[str] = set()
        self._lines = body.split("\n")
        self._first = _shift(text)

    def check(self, node: ast.expr, depth: int) -> Node:
        if depth > MAX_DEPTH:
            raise self._error(node, f"nested deeper than {MAX_DEPTH}")
        for kind, method in _FORMS.items():
            if isinstance(node, kind):
                return method(self, node, depth)
        raise self._error(node, f"{type(node).__name__} is not part of the rule language")

    def _error(self, node: ast.expr, problem: str) -> RuleError:
        # ast counts bytes of the UTF-8 line, people count characters.
        before = sum(len(line) + 1 for line in self._lines[: node.lineno - 1])
        inside = len(self._lines[node.lineno - 1].encode()[: node.col_offset].decode(errors="ignore"))
        return RuleError(problem, self._first + before + inside + 1)

    def _typed(self, node: ast.expr, depth: int, *wanted: Type) -> Node:
        found = self.check(node, depth + 1)
        if found.type not in wanted:
            raise self._error(node, f"expected a {' or '.join(wanted)}, found a {found.type}")
        return found

    def _bool_op(self, node: ast.BoolOp, depth: int) -> Node:
        args = tuple(self._typed(value, depth, Type.CONDITION) for value in node.values)
        return Node("and" if isinstance(node.op, ast.And) else "or", Type.CONDITION, args)

    def _unary(self, node: ast.UnaryOp, depth: int) -> Node:
        if isinstance(node.op, ast.Not):
            return Node("not", Type.CONDITION, (self._typed(node.operand, depth, Type.CONDITION),))
        if isinstance(node.op, ast.USub):
            return Node("neg", Type.NUMBER, (self._typed(node.operand, depth, Type.NUMBER),))
        raise self._error(node, "only 'not' and '-' may stand before a value")

    def _binary(self, node: ast.BinOp, depth: int) -> Node:
        op = _BINARY.get(type(node.op))
        if op is None:
            raise self._error(node, f"operator {type(node.op).__name__} is not allowed; use + - * /")
        args = (self._typed(node.left, depth, Type.NUMBER), self._typed(node.right, depth, Type.NUMBER))
        return Node(op, Type.NUMBER, args)

    def _comparison(self, node: ast.Compare, depth: int) -> Node:
        if len(node.ops) > 1:
            raise self._error(node, "comparisons cannot be chained; write 'a < b and b < c'")
        op = _COMPARE.get(type(node.ops[0]))
        if op is None:
            raise self._error(node, f"comparison {type(node.ops[0]).__name__} is not allowed; use == or !=")
        left = self._typed(node.left, depth, Type.NUMBER, Type.TEXT, Type.CONDITION)
        right = node.comparators[0]
        if op in ("in", "not in"):
            members = self._typed(right, depth, Type.LIST)
            for item, member in zip(members.args, right.elts if isinstance(right, _SEQUENCE) else (), strict=True):
                if item.type is not left.type:
                    raise self._error(member, f"expected a {left.type}, found a {item.type}")
            return Node(op, Type.CONDITION, (left, members))
        if op not in ("==", "!=") and left.type is not Type.NUMBER:
            raise self._error(node, f"'{op}' compares numbers, found a {left.type}")
        return Node(op, Type.CONDITION, (left, self._typed(right, depth, left.type)))

    def _name(self, node: ast.Name, depth: int) -> Node:
        return self._operand(node, node.id)

    def _attribute(self, node: ast.Attribute, depth: int) -> Node:
        if not isinstance(node.value, ast.Name):
            raise self._error(node, "a dotted name has two parts, such as thresholds.floor")
        return self._operand(node, f"{node.value.id}.{node.attr}")

    def _operand(self, node: ast.expr, name: str) -> Node:
        if name not in self.known:
            raise self._error(node, f"unknown name '{name}'{did_you_mean(name, self.known)}")
        self.names.add(name)
        return Node("name", Type.TEXT if name in TEXT_FACTS else Type.NUMBER, (), name)

    def _constant(self, node: ast.Constant, depth: int) -> Node:
        value = node.value
        if isinstance(value, bool):
            return Node("constant", Type.CONDITION, (), value)
        if isinstance(value, str):
            if "\0" in value:
                raise self._error(node, "a text cannot hold a NUL character")
            return Node("constant", Type.TEXT, (), value)
        if isinstance(value, (int, float)):
            number = _finite(value)
            if number is None:
                raise self._error(node, "a number beyond double precision")
            return Node("constant", Type.NUMBER, (), number)
        raise self._error(node, f"{value!r} is not a number, a text, True or False")

    def _sequence(self, node: ast.List | ast.Tuple, depth: int) -> Node:
        args = tuple(self._typed(item, depth, Type.NUMBER, Type.TEXT, Type.CONDITION) for item in node.elts)
        return Node("list", Type.LIST, args)

    def _call(self, node: ast.Call, depth: int) -> Node:
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        if name not in _FUNCTIONS:
            raise self._error(
                node, f"only {', '.join(sorted(_FUNCTIONS))} can be called, not '{ast.unparse(node.func)}'"
            )
        count = len(node.args)
        if node.keywords or (count != 1 if name in ("abs", "len") else count < 2):
            raise self._error(node, f"{name} takes {_FUNCTIONS[name]}")
        wanted = (Type.TEXT, Type.LIST) if name == "len" else (Type.NUMBER,)
        return Node(name, Type.NUMBER, tuple(self._typed(arg, depth, *wanted) for arg in node.args))


_SEQUENCE = (ast.List, ast.Tuple)
_FORMS: Mapping[type[ast.expr], Callable[..., Node]] = {
    ast.BoolOp: _Checker._bool_op,
    ast.UnaryOp: _Checker._unary,
    ast.BinOp: _Checker._binary,
    ast.Compare: _Checker._comparison,
    ast.Name: _Checker._name,
    ast.Attribute: _Checker._attribute,
    ast.Constant: _Checker._constant,
    ast.List: _Checker._sequence,
    ast.Tuple: _Checker._sequence,
    ast.Call: _Checker._call,
}


class _Unknown(Exception):
    """The rule has no value."""


def _finite(value: Value | None) -> float | None:
    """`value` as a finite double, None where it is not one."""
    if value is None or isinstance(value, (bool, str)):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _usable(name: str, value: Value | None) -> Value | None:
    if name in TEXT_FACTS:
        return value if isinstance(value, str) else None
    return _finite(value)


def evaluate(expression: Expression, operands: Mapping[str, Value | None]) -> bool | None:
    """True, False, or None for unknown; names absent from `operands` are missing operands."""
    values = {name: _usable(name, operands.get(name)) for name in expression.names}
    if any(value is None for value in values.values()):
        return None
    try:
        return bool(_value(expression.root, values))
    except _Unknown:
        return None


def _divide(left: float, right: float) -> float:
    if right == 0:
        raise _Unknown
    return left / right


_OPERATIONS: Mapping[str, Callable[..., object]] = {
    "and": lambda *args: all(args),
    "or": lambda *args: any(args),
    "not": operator.not_,
    "neg": operator.neg,
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": _divide,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
    "in": lambda item, items: item in items,
    "not in": lambda item, items: item not in items,
    "list": lambda *args: args,
    "min": min,
    "max": max,
    "abs": abs,
    "len": lambda items: float(len(items)),
}


def _value(node: Node, values: Mapping[str, Value | None]) -> object:
    """All parts are computed, none skipped: what is unknown anywhere makes the rule unknown."""
    if node.op == "constant":
        return node.value
    if node.op == "name":
        return values[str(node.value)]
    result = _OPERATIONS[node.op](*[_value(arg, values) for arg in node.args])
    if isinstance(result, float) and not math.isfinite(result):
        raise _Unknown
    return result


def apply(name: str, kind: str, rule: Rule, expression: Expression, operands: Mapping[str, Value | None]) -> Evaluation:
    """Evaluate one named rule. `fired`: true, or unknown where `on_missing` is fire or fail."""
    used = {operand: operands.get(operand) for operand in sorted(expression.names)}
    missing = tuple(operand for operand, value in used.items() if _usable(operand, value) is None)
    result = evaluate(expression, used)
    unknown = result is None
    return Evaluation(
        rule=name,
        kind=kind,
        when=rule.when,
        why=rule.why,
        outcome="unknown" if unknown else "true" if result else "false",
        fired=rule.on_missing != "ignore" if unknown else bool(result),
        operands=used,
        missing=missing,
        failed=unknown and rule.on_missing == "fail",
    )


def audited(settings: Settings, task_id: str, stage: str, rule: str) -> bool:
    """Whether a stage that this rule leaves out runs all the same, as an audit: a draw by name, the same for every run.
    Never under replay, for which nobody has recorded it."""
    audit = settings.search.audit
    if settings.llm.provider == "replay" or audit.share <= 0:
        return False
    mark = digest([task_id, stage, rule, audit.seed])
    return int(mark[:13], 16) / float(16**13) < audit.share


def quote(text: str) -> str:
    """An SQL string literal."""
    return "'" + text.replace("'", "''") + "'"


def to_sql(expression: Expression, column: Callable[[str], str]) -> str:
    """A DuckDB expression of type BOOLEAN with the value of `evaluate`, NULL for unknown.

    `column` gives the SQL of an operand, of any type; what is no number (no text for a text) is unknown.
    """
    sql = functools.partial(_sql, column=column)
    guards = sorted({_guard(node, sql(node)) for node in _partial(expression.root)})
    whole = sql(expression.root)
    return f"CASE WHEN {' OR '.join(guards)} THEN NULL ELSE {whole} END" if guards else f"({whole})"


def _partial(node: Node) -> list[Node]:
    """The operations that can be without a value."""
    inner = [found for arg in node.args for found in _partial(arg)]
    return [*inner, node] if node.op in ("name", "+", "-", "*", "/") else inner


def _guard(node: Node, sql: str) -> str:
    # Without coalesce a NULL would make the whole OR unknown, and DuckDB's least, greatest, AND and OR pass over NULLs.
    return f"({sql}) IS NULL" if node.type is Type.TEXT else f"coalesce(NOT isfinite({sql}), TRUE)"


_SQL_WORDS: Mapping[str, str] = {
    **{word: word for word in ("+", "-", "*", "<", "<=", ">", ">=", "in", "not in", "and", "or")},
    "==": "=",
    "!=": "<>",
}
_SQL_CALLS: Mapping[str, str] = {"min": "least", "max": "greatest", "abs": "abs", "neg": "-", "not": "NOT "}


def _sql(node: Node, *, column: Callable[[str], str]) -> str:
    if node.op == "constant":
        return _sql_constant(node.value)
    if node.op == "name":
        target = "VARCHAR" if node.type is Type.TEXT else "DOUBLE"
        return f"TRY_CAST({column(str(node.value))} AS {target})"
    args = [_sql(arg, column=column) for arg in node.args]
    if node.op == "len":
        measured = node.args[0]
        return (
            f"CAST({len(measured.args)} AS DOUBLE)" if measured.op == "list" else f"CAST(length({args[0]}) AS DOUBLE)"
        )
    if node.op in ("in", "not in") and not node.args[1].args:
        return "FALSE" if node.op == "in" else "TRUE"
    if node.op in _SQL_CALLS:
        return f"{_SQL_CALLS[node.op]}({', '.join(args)})"
    if node.op == "list":
        return f"({', '.join(args)})"
    if node.op == "/":
        return f"({args[0]} / nullif({args[1]}, 0))"
    return "(" + f" {_SQL_WORDS[node.op]} ".join(args) + ")"


def _sql_constant(value: Value) -> str:
    if isinstance(value, bool):
        return "TRUE" if value else "FALSE"
    if isinstance(value, str):
        return quote(value)
    # A plain 0.1 would be a DECIMAL with other rounding.
    return f"CAST('{value!r}' AS DOUBLE)"
