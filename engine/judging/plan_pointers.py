"""Which pointers of a kernel may be written through, read from its Triton IR text: two streams may read one buffer."""

from __future__ import annotations

import functools
import re
from collections import defaultdict

_FUNCTION = re.compile(r"tt\.func (?:public )?@")
_NAME = re.compile(r"%[\w#]+")
_ARGUMENT = re.compile(r"%arg(\d+): ")
_RESULT = re.compile(r"^\s*(%\w+)(?::(\d+))?(?:, (%\w+))* = ")
_INIT = re.compile(r"(%\w+) = (%[\w#]+)")
_READS = ("tt.load ", "tt.descriptor_load ")
_LOOPS = ("scf.for ", "scf.if ")
MAX_ROUNDS = 16


@functools.lru_cache(maxsize=256)
def written_pointers(ttir: str, count: int) -> frozenset[int]:
    """Positions, of `count` parameters, that a store, an atomic or anything unknown may write through. All of them
    where the text is not of a known form."""
    everything = frozenset(range(count))
    if len(_FUNCTION.findall(ttir)) != 1 or "tt.call" in ttir or "cf.br" in ttir or "scf.while" in ttir:
        return everything
    start = ttir.index("tt.func ")
    head, _, body = ttir[start:].partition("\n")
    positions = [int(number) for number in _ARGUMENT.findall(head)]
    if positions != list(range(count)):
        return everything
    flow = _Flow()
    for position in positions:
        flow.sources[f"%arg{position}"].add(position)
    lines = body.splitlines()
    for _ in range(MAX_ROUNDS):
        if not flow.passes(lines):
            return frozenset(flow.written)
    return everything


class _Flow:
    """From which parameters each value may point; grown over the lines until nothing changes."""

    def __init__(self) -> None:
        self.sources: dict[str, set[int]] = defaultdict(set)
        self.written: set[int] = set()

    def passes(self, lines: list[str]) -> bool:
        """One round; whether anything grew."""
        before = sum(map(len, self.sources.values())) + len(self.written)
        regions: list[tuple[list[str], list[str]]] = []
        for line in lines:
            self._line(line, regions)
        return sum(map(len, self.sources.values())) + len(self.written) > before

    def _line(self, line: str, regions: list[tuple[list[str], list[str]]]) -> None:
        code = line.strip()
        opens = code.endswith("{")
        if code.startswith("}") and not opens and regions:
            regions.pop()
        results = _results(line)
        operands = _NAME.findall(line[line.index(" = ") :] if results else line)
        if code.startswith("scf.yield") and regions:
            self._join(operands, *regions[-1])
        elif opens and any(loop in code for loop in _LOOPS):
            carried = _INIT.findall(code.partition("iter_args(")[2])
            for inner, outer in carried:
                self.sources[inner] |= self.sources[outer]
            self._join([outer for _, outer in carried], results, [])
            regions.append((results, [inner for inner, _ in carried]))
        elif opens and not code.startswith("}"):
            self._spread(operands, results)
            regions.append((results, []))
        elif not any(read in code for read in _READS):
            self._spread(operands, results, atomic="atomic" in code or "asm" in code or "extern" in code)

    def _join(self, operands: list[str], results: list[str], carried: list[str]) -> None:
        for position, operand in enumerate(operands):
            for names in (results, carried):
                if position < len(names):
                    self.sources[names[position]] |= self.sources[operand]

    def _spread(self, operands: list[str], results: list[str], *, atomic: bool = False) -> None:
        """What yields no value is a store, or unknown here and taken for one."""
        found: set[int] = set().union(*(self.sources[name] for name in operands))
        if not results or atomic:
            self.written |= found
        for name in results:
            self.sources[name] |= found


def _results(line: str) -> list[str]:
    found = _RESULT.match(line)
    if found is None:
        return []
    name, count, more = found.groups()
    if more is not None:
        return _NAME.findall(line[: line.index(" = ")])
    return [name] if count is None else [f"{name}#{position}" for position in range(int(count))]
