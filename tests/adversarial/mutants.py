"""The mutation test: every honest kernel of the corpus with one thing broken, judged; what is judged correct survives.

    python -m tests.adversarial.mutants [--backend cpu|cuda] [--limit N] [--only TEXT] [--workers N] [--out FILE]

A survivor is a fault of the judge or a mutant equal to its original. Those that were read and found equal are in
equivalent.csv, with the reason. The exit status is 1 when another one survives.
"""

from __future__ import annotations

import argparse
import csv
import functools
import hashlib
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path

from engine.records import Reason, Status, Verdict
from tests.adversarial.corpus import HERE, Row, outcome_of, rows, task_of
from tests.adversarial.judge import judge
from tests.adversarial.operators import Mutant, mutants

CHEAP = frozenset({"softmax", "gelu", "rms_norm", "row_max", "mean_var", "clamp_scale", "argmax_rows", "sum_reduction"})
"""Tasks whose mutants take a second or two in the interpreter."""


class Fate(StrEnum):
    KILLED = "killed"
    SURVIVED = "survived"
    EQUIVALENT = "equivalent"
    """Judged correct, and listed in equivalent.csv."""
    OUT_OF_BOUNDS = "out_of_bounds"
    """Judged correct on a device, which looks for no such access; the interpreter finds it."""
    UNDECIDED = "undecided"
    """The back-end cannot say."""


@dataclass(frozen=True, slots=True)
class Judged:
    """One mutant's end. `outcome`: the verdict's reason, or `correct`."""

    name: str
    fate: Fate
    outcome: str
    message: str
    wall_s: float


def equivalent() -> dict[str, str]:
    """Names of mutants that compute what their original does -> why."""
    with (HERE / "equivalent.csv").open(encoding="utf-8", newline="") as file:
        return {line["mutant"]: line["reason"] for line in csv.DictReader(file)}


@functools.cache
def all_mutants(backend: str) -> tuple[tuple[Row, Mutant], ...]:
    """Mutants of the honest rows that the back-end can judge."""
    found = []
    for row in rows():
        if row.honest and row.outcomes(backend) == {"correct"} and not row.policy:
            dtype = task_of(row.task).contract.dtype
            found += [(row, mutant) for mutant in mutants(row.name, row.source(), dtype)]
    return tuple(found)


def sample(pairs: Sequence[tuple[Row, Mutant]], count: int) -> list[tuple[Row, Mutant]]:
    """`count` mutants by the hash of their names: always the same ones, spread over cases and operators."""

    def place(pair: tuple[Row, Mutant]) -> str:
        return hashlib.sha256(pair[1].name.encode()).hexdigest()

    return sorted(pairs, key=place)[:count]


def fate_of(mutant: Mutant, verdict: Verdict, known: dict[str, str]) -> Judged:
    fate = Fate.KILLED
    if verdict.status is Status.UNDECIDED:
        fate = Fate.UNDECIDED
    elif verdict.status is Status.CORRECT:
        fate = Fate.EQUIVALENT if mutant.name in known else Fate.SURVIVED
    return Judged(mutant.name, fate, outcome_of(verdict), verdict.message[:300], round(verdict.wall_s, 2))


def judge_all(pairs: Iterable[tuple[Row, Mutant]], backend: str, workers: int) -> Iterator[Judged]:
    """Fates in the order of `pairs`; as many judges as workers."""
    known = equivalent()

    def one(pair: tuple[Row, Mutant]) -> Judged:
        row, mutant = pair
        judged = fate_of(mutant, judge(backend, task_of(row.task), mutant.source), known)
        if backend == "cuda" and judged.fate is Fate.SURVIVED:
            again = judge("cpu", task_of(row.task), mutant.source)
            if again.reason is Reason.CRASH:
                return replace(judged, fate=Fate.OUT_OF_BOUNDS, message=again.message[:300])
        return judged

    with ThreadPoolExecutor(workers) as pool:
        yield from pool.map(one, pairs)


def main(arguments: Sequence[str], write: Callable[[str], object]) -> int:
    options = _options(arguments)
    pairs = [pair for pair in all_mutants(options.backend) if options.only in pair[1].name]
    if options.limit is not None:
        pairs = sample(pairs, options.limit)
    done: list[Judged] = []
    with Path(options.out or os.devnull).open("w", encoding="utf-8") as out:
        for judged in judge_all(pairs, options.backend, options.workers):
            done.append(judged)
            print(json.dumps(asdict(judged)), file=out, flush=True)
            if judged.fate is Fate.SURVIVED:
                write(f"survived  {judged.name}\n")
    count = Counter(judged.fate.value for judged in done)
    write(", ".join(f"{count[fate.value]} {fate.value}" for fate in Fate) + f" of {len(done)} on {options.backend}\n")
    stale = sorted(equivalent().keys() & {judged.name for judged in done if judged.fate is Fate.KILLED})
    if stale:
        write(f"listed as equivalent, yet killed: {', '.join(stale)}\n")
    return 1 if count[Fate.SURVIVED.value] else 0


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.adversarial.mutants", description=__doc__)
    parser.add_argument("--backend", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--limit", type=int, help="judge this many, chosen by hash")
    parser.add_argument("--only", default="", help="judge those whose name holds this text")
    parser.add_argument("--workers", type=int, default=1, help="judges at once, each with its own processes")
    parser.add_argument("--out", help="one line of JSON for each mutant goes there")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], sys.stdout.write))
