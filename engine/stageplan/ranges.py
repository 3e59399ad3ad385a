"""What a rule can say when its operands lie in declared ranges: interval reasoning over the checked tree, and cutting
ranges at the rule's own constants until nothing is left to learn. Pure.

Sound: an outcome that is left out cannot occur. Operands are taken to be independent of each other, except that equal
names are equal values, and a rule that is unknown has neither outcome.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from engine.rules import Node, Type

MOST_CELLS = 20000
"""Boxes looked at before both outcomes are taken to be possible."""

BOTH = frozenset({True, False})
EVERYTHING = math.inf


@dataclass(frozen=True, slots=True)
class Span:
    """Numbers from `low` to `high`, the ends included unless open; `whole`: integers only. Infinite ends mean that
    there is no bound."""

    low: float = -EVERYTHING
    high: float = EVERYTHING
    low_open: bool = False
    high_open: bool = False
    whole: bool = False

    @property
    def point(self) -> bool:
        return self.low == self.high

    @property
    def empty(self) -> bool:
        return self.low > self.high or (self.point and (self.low_open or self.high_open))

    def __str__(self) -> str:
        if self.point:
            return f"{self.low:g}"
        if self.high == EVERYTHING:
            return "any number" if self.low == -EVERYTHING else f"{self.low:g} or more"
        return f"up to {self.high:g}" if self.low == -EVERYTHING else f"{self.low:g} to {self.high:g}"


@dataclass(frozen=True, slots=True)
class Words:
    """Texts that a text can be; None: any other one too."""

    of: frozenset[str | None]


Domain = Span | Words
Domains = Mapping[str, Domain]


def number(value: float) -> Span:
    return Span(value, value)


def whole_from(low: float) -> Span:
    """Integers from `low`."""
    return Span(low, whole=True)


ANY_TEXT = Words(frozenset({None}))


def outcomes(root: Node, domains: Domains) -> frozenset[bool]:
    """The outcomes that are possible; `domains` has every operand of the rule."""
    cuts = _cuts(root, domains)
    boxes: list[Mapping[str, Domain]] = [{name: _spelled(domains[name], cuts[name]) for name in sorted(_names(root))}]
    found: set[bool] = set()
    for _ in range(MOST_CELLS):
        if not boxes or found == BOTH:
            return frozenset(found)
        box = boxes.pop()
        said = _conditions(root, box)
        if len(said) == 1:
            found |= said
            continue
        split = next((name for name in box if len(_pieces(box[name], cuts[name])) > 1), None)
        if split is None:
            found |= said
            continue
        boxes += [{**box, split: piece} for piece in _pieces(box[split], cuts[split])]
    return BOTH


def given(condition: Node | None, root: Node, domains: Domains) -> frozenset[bool]:
    """The outcomes that are possible where `condition` holds."""
    if condition is None:
        return outcomes(root, domains)
    both = Node("and", Type.CONDITION, (condition, root))
    other = Node("and", Type.CONDITION, (condition, Node("not", Type.CONDITION, (root,))))
    return _either(True in outcomes(both, domains), True in outcomes(other, domains))


def _names(node: Node) -> frozenset[str]:
    own = frozenset({str(node.value)}) if node.op == "name" else frozenset()
    return own.union(*(_names(arg) for arg in node.args))


def _cuts(root: Node, domains: Domains) -> dict[str, tuple[float | str, ...]]:
    """For each name the constants, and values of names that have only one, that it meets in a comparison."""
    found: dict[str, set[float | str]] = {name: set() for name in _names(root)}
    for comparison in _comparisons(root):
        met = set(_constants(comparison, domains))
        for name in _names(comparison):
            found[name] |= met
    return {name: tuple(sorted(values, key=lambda v: (isinstance(v, str), v))) for name, values in found.items()}


def _comparisons(node: Node) -> Iterable[Node]:
    if node.type is Type.CONDITION and node.args and node.args[0].type is not Type.CONDITION:
        yield node
    for arg in node.args:
        yield from _comparisons(arg)


def _constants(node: Node, domains: Domains) -> Iterable[float | str]:
    if node.op == "constant" and not isinstance(node.value, bool):
        yield node.value
    if node.op == "name":
        domain = domains[str(node.value)]
        if isinstance(domain, Span) and domain.point:
            yield domain.low
    for arg in node.args:
        yield from _constants(arg, domains)


def _spelled(domain: Domain, cuts: Iterable[float | str]) -> Domain:
    """A text that can be any, as each that the rule names and another; afterwards None is that other."""
    if isinstance(domain, Words) and None in domain.of:
        return Words(domain.of | {cut for cut in cuts if isinstance(cut, str)})
    return domain


def _pieces(domain: Domain, cuts: Iterable[float | str]) -> list[Domain]:
    """`domain` cut at each constant into points and what lies between; texts one by one."""
    if isinstance(domain, Words):
        return [Words(frozenset({text})) for text in sorted(domain.of, key=str)]
    ends = [cut for cut in cuts if not isinstance(cut, str) and domain.low <= cut <= domain.high]
    borders = [domain.low, *ends, domain.high]
    pieces = [number(cut) for cut in ends if not _outside(cut, domain)]
    for low, high in itertools.pairwise(borders):
        low_open = low in ends or domain.low_open
        high_open = high in ends or domain.high_open
        pieces.append(_tidy(Span(low, high, low_open, high_open, domain.whole)))
    kept = [piece for piece in dict.fromkeys(pieces) if not piece.empty]
    return list(kept) if len(kept) > 1 else [domain]


def _outside(cut: float, domain: Span) -> bool:
    at_open_end = (cut == domain.low and domain.low_open) or (cut == domain.high and domain.high_open)
    return at_open_end or (domain.whole and cut != int(cut))


def _tidy(span: Span) -> Span:
    """Integers with closed ends."""
    if not span.whole:
        return span
    low, high = span.low, span.high
    if math.isfinite(low):
        low = math.floor(low) + 1 if span.low_open else math.ceil(low)
    if math.isfinite(high):
        high = math.ceil(high) - 1 if span.high_open else math.floor(high)
    return Span(low, high, whole=True)


def _conditions(node: Node, box: Domains) -> frozenset[bool]:
    if node.op == "constant":
        return frozenset({bool(node.value)})
    if node.op == "not":
        return frozenset(not one for one in _conditions(node.args[0], box))
    if node.op in ("and", "or"):
        parts = [_conditions(arg, box) for arg in node.args]
        return _all(parts) if node.op == "and" else _any(parts)
    if node.op in ("in", "not in"):
        return _membership(node, box)
    left, right = node.args
    if left.type is Type.CONDITION:
        pairs = itertools.product(_conditions(left, box), _conditions(right, box))
        return frozenset((a == b) == (node.op == "==") for a, b in pairs)
    if left == right and node.op in ("==", "<=", ">="):
        return frozenset({True})
    if left == right and node.op in ("!=", "<", ">"):
        return frozenset({False})
    if left.type is Type.TEXT:
        same = _same_text(_words(left, box), _words(right, box))
    else:
        return _compared(node.op, _span(left, box), _span(right, box))
    return same if node.op == "==" else frozenset(not one for one in same)


def _all(parts: list[frozenset[bool]]) -> frozenset[bool]:
    return _either(all(True in part for part in parts), any(False in part for part in parts))


def _any(parts: list[frozenset[bool]]) -> frozenset[bool]:
    return _either(any(True in part for part in parts), all(False in part for part in parts))


def _membership(node: Node, box: Domains) -> frozenset[bool]:
    item, members = node.args
    inside = _any([_conditions(Node("==", Type.CONDITION, (item, member)), box) for member in members.args])
    return inside if node.op == "in" else frozenset(not one for one in inside)


def _words(node: Node, box: Domains) -> Words:
    if node.op == "constant":
        return Words(frozenset({str(node.value)}))
    domain = box[str(node.value)]
    return domain if isinstance(domain, Words) else ANY_TEXT


def _same_text(left: Words, right: Words) -> frozenset[bool]:
    """None stands for a text that no constant names, so it equals none of them, and perhaps another such."""
    pairs = itertools.product(left.of, right.of)
    return frozenset(itertools.chain.from_iterable(BOTH if a is None and b is None else {a == b} for a, b in pairs))


def _compared(op: str, left: Span, right: Span) -> frozenset[bool]:
    if op == ">":
        return _compared("<", right, left)
    if op == ">=":
        return _compared("<=", right, left)
    if op == "<=":
        return frozenset(not one for one in _compared("<", right, left))
    if op == "<":
        return _either(_below(left, right), _reaches(left, right))
    equal = not (_below_all(left, right) or _below_all(right, left))
    other = not (left.point and right.point and left.low == right.low)
    return _either(equal, other) if op == "==" else _either(other, equal)


def _either(true: bool, false: bool) -> frozenset[bool]:
    return frozenset(outcome for outcome, possible in ((True, true), (False, false)) if possible)


def _below(left: Span, right: Span) -> bool:
    """Whether some number of `left` is less than some of `right`."""
    return left.low < right.high


def _reaches(left: Span, right: Span) -> bool:
    """Whether some number of `left` is at least some of `right`."""
    if left.high == right.low:
        return not (left.high_open or right.low_open)
    return left.high > right.low


def _below_all(left: Span, right: Span) -> bool:
    """Whether every number of `left` is less than every one of `right`."""
    return not _reaches(left, right)


def _span(node: Node, box: Domains) -> Span:
    if node.op == "constant":
        return number(float(node.value))
    if node.op == "name":
        domain = box[str(node.value)]
        return domain if isinstance(domain, Span) else Span()
    if node.op == "len":
        measured = node.args[0]
        return number(float(len(measured.args))) if measured.op == "list" else whole_from(0)
    return _ARITHMETIC[node.op](*(_span(arg, box) for arg in node.args))


def _plus(left: Span, right: Span) -> Span:
    return Span(left.low + right.low, left.high + right.high, whole=left.whole and right.whole)


def _negative(one: Span) -> Span:
    return Span(-one.high, -one.low, one.high_open, one.low_open, one.whole)


def _times(left: Span, right: Span) -> Span:
    ends = [_product(a, b) for a in (left.low, left.high) for b in (right.low, right.high)]
    return Span(min(ends), max(ends), whole=left.whole and right.whole)


def _product(left: float, right: float) -> float:
    # An infinite end stands for numbers without bound, never for infinity itself.
    return 0.0 if left == 0 or right == 0 else left * right


def _over(left: Span, right: Span) -> Span:
    if right.low <= 0 <= right.high:
        return Span()
    return _times(left, Span(1 / right.high, 1 / right.low))


def _absolute(one: Span) -> Span:
    least = 0.0 if one.low <= 0 <= one.high else min(abs(one.low), abs(one.high))
    return Span(least, max(abs(one.low), abs(one.high)), whole=one.whole)


def _extreme(choose: Callable[[Iterable[float]], float]) -> Callable[..., Span]:
    def combined(*spans: Span) -> Span:
        whole = all(span.whole for span in spans)
        return Span(choose(span.low for span in spans), choose(span.high for span in spans), whole=whole)

    return combined


_ARITHMETIC: Mapping[str, Callable[..., Span]] = {
    "+": _plus,
    "-": lambda left, right: _plus(left, _negative(right)),
    "*": _times,
    "/": _over,
    "neg": _negative,
    "abs": _absolute,
    "min": _extreme(min),
    "max": _extreme(max),
}
