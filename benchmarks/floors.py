"""How far the best recorded kernels are from the floor of their operators.

    python -m benchmarks.floors --work work.json --out FOLDER [--speedups FOLDER/recorded_speedups.jsonl] [--variants]

`--speedups` are lines of benchmarks.recorded_speedups: verdict, precision policy and times of each problem's best
kernel. Without them the floors alone are computed, on the CPU. Rates are those of backends.<name>.hardware, or measured
ones where `--ceilings` names a file of `python -m engine.doctor --ceilings` (default: what this GPU has in results/).
A kernel under nine tenths of its floor gets an explanation by the rules in `explanations`, or none: then look at it.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from benchmarks.compose import compose
from benchmarks.worklist import Lines, WorkList, machine, read_work, say, spread, write_report
from engine.backends.ceilings import KnownRates, known_rates, read, stored
from engine.backends.floors import BELOW, STRUCTURED, Floor, floor
from engine.canonical import Json
from engine.errors import MissingError
from engine.judging.gpu_state import find_gpu
from engine.project import resolve
from engine.records import Facts, Precision, Task
from engine.tasks.facts_client import describe
from engine.tasks.variants import apply_variant

LEAST_PROBLEMS = 30
WINOGRAD_WINDOW = 3
SUMS = frozenset({"sum", "mean", "logsumexp", "max", "min", "amax", "amin", "avg_pool2d", "avg_pool3d"})


def known(backend: str, ceilings: Path | None) -> tuple[KnownRates, float]:
    """Rates and L2 bytes: of a named file, else of the GPU that is here, else as configured."""
    declared = compose(backend, {}).backends[backend]
    measured, uuid = None, ""
    if ceilings is not None:
        measured = read(ceilings)
        uuid = measured.uuid
    else:
        try:
            gpu = find_gpu(0)
            measured, uuid = stored(resolve("results"), gpu.name, gpu.uuid), gpu.uuid
        except MissingError:
            say("no GPU here: floors at the configured rates")
    rates = known_rates(declared.hardware, declared.hardware_source, measured, uuid)
    return rates, declared.hardware["l2_bytes"]


def policy_of(row: Mapping[str, Json] | None) -> Precision:
    """The precision under which the kernel was accepted and timed; ieee where nothing is recorded."""
    return Precision.IEEE if row is None else Precision(row["verdict"]["policy"])


def time_of(row: Mapping[str, Json] | None, who: str = "candidate") -> float | None:
    """The measured median in µs; None where there is none, or it is not measured."""
    times = None if row is None else row["times"]
    return None if times is None or who not in times["us"] else float(times["us"][who])


def floor_row(
    task_id: str, facts: Facts, rates: KnownRates, l2_bytes: float, row: Mapping[str, Json] | None
) -> dict[str, Json]:
    """One line of the table: the floor, the best recorded kernel and eager against it, and what explains a flag."""
    policy = policy_of(row)
    found = floor(facts, rates, policy)
    cells: dict[str, Json] = {"problem": task_id, "policy": policy.value}
    if found is None:
        return cells | {"floor us": None, "explanation": facts.note or "sizes unknown"}
    cells |= {"floor us": found.us, "bound": found.bound, "bytes": facts.bytes, "FLOP": facts.flops}
    kernel, eager = time_of(row), time_of(row, "eager")
    if kernel is not None and row is not None:
        cells |= {"kernel us": kernel, "headroom": kernel / found.us, "class": row["verdict"]["class"]}
        cells |= {"kind": row["times"]["kinds"]["candidate"], "flag": "below" if kernel < BELOW * found.us else ""}
    if eager is not None:
        cells |= {"eager us": eager, "eager headroom": eager / found.us}
    flagged = kernel is not None and kernel < BELOW * found.us
    return cells | {"explanation": "; ".join(explanations(facts, found, l2_bytes)) if flagged else found.note}


def explanations(facts: Facts, found: Floor, l2_bytes: float) -> Iterator[str]:
    """Why an honest kernel can be faster than this floor; docs/floors.md says each at length."""
    names = {cost.name for cost in facts.costs}
    if found.bound == "bytes" and facts.bytes <= 2 * l2_bytes:
        yield "output stays in L2: written bytes need not reach DRAM within the call"
    if found.bound == "products":
        if names & STRUCTURED:
            yield "structured operand: part of the dense products is useless"
        if facts.conv_ops and facts.kernel_size is not None and 1 < facts.kernel_size <= WINOGRAD_WINDOW:
            yield "small window: Winograd's form needs fewer products"
        if facts.matmul_ops + facts.conv_ops and names & SUMS:
            yield "a reduction follows a product: it may be done before it, on less data"


def at_variant(task: Task, name: str) -> Task:
    """The task at one of its shape variants, as a task of its own."""
    source = apply_variant(task.source, task.contract.variants[name])
    suffix = f"@{name}"
    return replace(task, source=source, task_id=task.task_id + suffix, task_hash=task.task_hash + suffix)


def variant_rows(work: WorkList, rates: KnownRates, l2_bytes: float) -> list[dict[str, Json]]:
    """The floor of each shape variant of each task, from its own traced facts."""
    tasks = [at_variant(task, name) for task in work.tasks for name in task.contract.variants]
    with tempfile.TemporaryDirectory() as scratch:
        facts = describe(tasks, Path(scratch))
    pairs = zip(tasks, facts, strict=True)
    return [floor_row(task.task_id, traced, rates, l2_bytes, None) for task, traced in pairs]


def tables(work: WorkList, lines: Lines | None, rates: KnownRates, l2_bytes: float) -> dict[str, list[dict[str, Json]]]:
    recorded = {row["task"]: row for row in lines.of("problem")} if lines is not None else {}
    facts = {task.task_id: found for task, found in zip(work.tasks, work.facts, strict=True)}
    chosen = [name for name in facts if not recorded or name in recorded]
    rows = [floor_row(name, facts[name], rates, l2_bytes, recorded.get(name)) for name in chosen]
    timed = [row for row in rows if "headroom" in row]
    below = [row for row in timed if row["flag"]]
    totals: list[dict[str, Json]] = [
        {"what": "problems", "n": len(rows)},
        {"what": "with a floor", "n": sum(row["floor us"] is not None for row in rows)},
        {"what": "with a timed kernel", "n": len(timed)},
        {"what": "below 0.9 of the floor", "n": len(below)},
        {"what": "of these without an explanation", "n": sum(not row["explanation"] for row in below)},
    ]
    for what, column in (("headroom of the best recorded kernel", "headroom"), ("headroom of eager", "eager headroom")):
        found = spread(row[column] for row in rows if column in row)
        totals += [] if found is None else [{"what": what, **found.cells("x")}]
    told = [{"rate": name, "value": rates.values[name], "from": rates.origin(name)} for name in sorted(rates.values)]
    return {"Totals": totals, "Rates": told, "Problems": sorted(rows, key=_by_headroom)}


def _by_headroom(row: Mapping[str, Json]) -> tuple[bool, float, str]:
    timed = "headroom" in row
    return not timed, row["headroom"] if timed else 0.0, row["problem"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--speedups", type=Path, help="lines of benchmarks.recorded_speedups")
    parser.add_argument("--ceilings", type=Path)
    parser.add_argument("--variants", action="store_true", help="also the floors of small and odd shape variants")
    parser.add_argument("--backend", default="cuda")
    arguments = parser.parse_args()
    if arguments.speedups is not None and not arguments.speedups.is_file():
        raise SystemExit(f"no lines at {arguments.speedups}: run python -m benchmarks.recorded_speedups first")
    work = read_work(arguments.work)
    rates, l2_bytes = known(arguments.backend, arguments.ceilings)
    lines = None if arguments.speedups is None else Lines(arguments.speedups)
    found = tables(work, lines, rates, l2_bytes)
    if arguments.variants:
        found["Variants"] = variant_rows(work, rates, l2_bytes)
    arguments.out.mkdir(parents=True, exist_ok=True)
    say(write_report(arguments.out, "floors", machine(arguments.backend), found))
    if len(found["Problems"]) < LEAST_PROBLEMS:
        say(f"only {len(found['Problems'])} problems; a table for docs/measurements needs {LEAST_PROBLEMS}")


if __name__ == "__main__":
    main()
