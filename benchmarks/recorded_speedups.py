"""Recorded speed-ups against what is measured here under equal precision, and why they differ.

    python -m benchmarks.recorded_speedups --work work.json --out FOLDER [--problems 40] [--seconds 540]

Each problem's best kernel by its recorded score is judged under ieee, then, where its numbers are refused, under tf32
and reduced; a correct one is timed beside baselines under the same policy, and eager alone under ieee. Reasons follow
from verdict, times and recorded fields by the rules in `reasons`, in the order of their effect; no one writes them.
Lines go to FOLDER/recorded_speedups.jsonl; what is there is not done again.
"""

from __future__ import annotations

import argparse
import ast
import math
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.compose import compose
from benchmarks.judge_cost import outcome
from benchmarks.worklist import ROOT, Entry, Lines, WorkList, machine, read_work, say, spread, write_report
from engine.backends import open_backend
from engine.backends.detect import resolve
from engine.backends.seam import Backend
from engine.canonical import Json
from engine.codec import encode
from engine.errors import EngineError
from engine.records import Judged, Measurement, Precision, Reason, Status, Verdict

NUMERIC = frozenset({Reason.PRECISION, Reason.WRONG_RESULT, Reason.NON_FINITE})
POLICIES = (Precision.IEEE, Precision.TF32, Precision.REDUCED)
AGREES = 1.1
"""Factor within which a recorded and a measured speed-up are called equal."""

NOTABLE = 1.05
"""Factor from which a cause is named."""

RECORDED_L2_BYTES = 72 << 20
"""Of the GPU that the times were recorded on (RTX 4090); the evaluator emptied no cache between calls."""

LAUNCH_US = 5.0
"""Host time of one launch or operation that a recorded call shows when its kernels are short."""

LAUNCH_SHARE = 0.1
NOT_CORRECT = {
    Reason.PRECISION: "not correct here: arithmetic below every admitted precision",
    Reason.WRONG_RESULT: "wrong result",
    Reason.NON_FINITE: "wrong result: not finite",
    Reason.UNWRITTEN: "wrong result: output not written whole",
    Reason.UNSTABLE: "wrong result: differs from call to call",
    Reason.CRASH: "writes or reads outside its tensors",
    Reason.STATE_MISMATCH: "parameters under other names: the record copied them by shape",
    Reason.HOST_OP: "torch does the work",
    Reason.NOT_LAUNCHED: "launches no kernel",
    Reason.COMPILE: "does not compile here",
    Reason.RESOURCES: "does not fit this GPU",
    Reason.FORBIDDEN: "does what no candidate may",
    Reason.SHAPE: "wrong result: shape",
    Reason.DTYPE: "wrong result: dtype",
    Reason.STRUCTURE: "wrong result: structure",
    Reason.TIMEOUT: "does not end in time",
    Reason.EXCEPTION: "raises here",
    Reason.OUT_OF_MEMORY: "does not fit into memory",
}


def measured(backend: Backend, work: WorkList, entry: Entry) -> dict[str, Json]:
    """One row: verdicts under each policy asked, and times under the first that accepts."""
    verdicts: dict[str, str] = {}
    row: dict[str, Json] = {"id": entry.key, "kind": "problem", "task": entry.task_id}
    verdict: Verdict | None = None
    for policy in POLICIES:
        operator = work.operator(entry.task_id, policy)
        verdict = backend.judge(operator, entry.source)
        verdicts[policy.value] = outcome(verdict)
        if verdict.reason not in NUMERIC:
            break
    assert verdict is not None
    row |= {"recorded": encode(entry.recorded), "verdicts": verdicts, "verdict": said(verdict, policy)}
    row |= {"bytes": operator.facts.bytes, "allocates": allocates(entry.source)}
    if verdict.status is not Status.CORRECT:
        return row | {"times": None, "strict_us": None}
    times = backend.measure(operator, Judged(entry.source, verdict.trace), None)
    strict = times
    if policy is not Precision.IEEE:
        strict = backend.measure(work.operator(entry.task_id, Precision.IEEE), None, None)
    eager = strict.timing("eager")
    return row | {"times": timed(times), "strict_us": None if eager is None else eager.median_us}


def said(verdict: Verdict, policy: Precision) -> dict[str, Json]:
    """What the rules need of a verdict."""
    launches = None if verdict.trace is None else verdict.trace.launch_count
    operations = None if verdict.trace is None else sum(op.count for op in verdict.trace.host_ops if op.compute)
    return {
        "policy": policy.value,
        "status": verdict.status.value,
        "reason": None if verdict.reason is None else verdict.reason.value,
        "class": verdict.precision_class,
        "mode": verdict.mode.value,
        "error_ratio": verdict.error_ratio,
        "launches": launches,
        "operations": operations,
        "message": verdict.message[:200],
    }


def timed(found: Measurement) -> dict[str, Json]:
    return {
        "us": {timing.who: timing.median_us for timing in found.timings},
        "kinds": {timing.who: timing.score_kind.value for timing in found.timings},
        "ratios": {ratio.over: [ratio.value, ratio.lo, ratio.hi, ratio.n] for ratio in found.ratios},
        "settings": dict(found.settings),
        "note": found.note[:200],
    }


def allocates(source: str) -> bool:
    """Whether forward() or what it calls makes uninitialised tensors; a source that is no Python does not."""
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return False
    names = ("empty", "empty_like", "new_empty", "empty_strided")
    return any(isinstance(node, ast.Attribute) and node.attr in names for node in ast.walk(tree))


def reasons(row: Mapping[str, Json]) -> list[str]:
    """Why the recorded speed-up is not the one measured here, the factors that can be stated first, by their size."""
    verdict, times, recorded = row["verdict"], row["times"], row["recorded"]
    if times is None:
        reason = verdict["reason"]
        text = NOT_CORRECT[Reason(reason)] if reason in NOT_CORRECT else f"{verdict['status']}: {reason}"
        return [f"{text}; {_tolerance(recorded)}" if reason in NUMERIC else text]
    if "eager" not in times["ratios"]:
        return [f"not timed here: {times['note']}"]
    factors: list[tuple[float, str]] = []
    for text, factor in (("baseline", baseline_factor(row)), ("precision", precision_factor(row))):
        if factor is not None and max(factor, 1 / factor) >= NOTABLE:
            factors.append((abs(math.log(factor)), _factor_text(text, factor, row)))
    found = [text for _, text in sorted(factors, reverse=True)]
    if row["bytes"] and row["bytes"] <= RECORDED_L2_BYTES:
        found.append(f"cold L2: {row['bytes'] / 2**20:.0f} MiB stayed in L2 when recorded")
    share = launch_share(row)
    if share is not None and share >= LAUNCH_SHARE:
        found.append(f"launch overhead: {share:.0%} of the recorded call at {LAUNCH_US:g} µs a launch, none in a graph")
    if row["allocates"]:
        found.append("the record paid a NaN fill for every torch.empty (deterministic mode)")
    if agrees(row):
        return ["agrees", *found[:1]]
    return [*found, "another GPU"]


def _factor_text(cause: str, factor: float, row: Mapping[str, Json]) -> str:
    if cause == "baseline":
        return f"recorded over a baseline of another run, {factor:.2f}x that of its own"
    return f"{row['verdict']['class']} arithmetic: eager under ieee takes {factor:.2f}x eager under the same precision"


def _tolerance(recorded: Mapping[str, Json]) -> str:
    if recorded["max_abs_err"] is None:
        return "error not recorded"
    return f"recorded error {recorded['max_abs_err']:.2g} within tolerance {recorded['tolerance']:g}"


def baseline_factor(row: Mapping[str, Json]) -> float | None:
    """Recorded score over what its own process measured; None where either is unknown."""
    recorded = row["recorded"]
    known = [recorded[name] for name in ("score", "ref_ms", "test_ms")]
    return None if None in known or 0 in known else float(known[0] * known[2] / known[1])


def precision_factor(row: Mapping[str, Json]) -> float | None:
    """Eager under ieee over eager under the policy that the kernel needs; 1 under ieee."""
    if row["verdict"]["policy"] == Precision.IEEE.value:
        return 1.0
    times = row["times"]["us"]
    return None if row["strict_us"] is None or "eager" not in times else float(row["strict_us"] / times["eager"])


def launch_share(row: Mapping[str, Json]) -> float | None:
    """Host time of the launches over the recorded call; None without a launch record or a recorded time."""
    launches, operations = row["verdict"]["launches"], row["verdict"]["operations"]
    milliseconds = row["recorded"]["test_ms"]
    if launches is None or operations is None or not milliseconds:
        return None
    return float(LAUNCH_US * (launches + operations) / (milliseconds * 1e3))


def agrees(row: Mapping[str, Json]) -> bool:
    here, then = row["times"]["ratios"]["eager"][0], row["recorded"]["score"]
    return then is not None and max(here / then, then / here) <= AGREES


def problem_row(row: Mapping[str, Json]) -> dict[str, Json]:
    """One line of the honest table."""
    times, verdict = row["times"], row["verdict"]
    cells: dict[str, Json] = {"problem": row["task"], "recorded": row["recorded"]["score"], "recorded n": 5}
    cells |= {"policy": verdict["policy"], "class": verdict["class"], "mode": verdict["mode"]}
    ratios = {} if times is None else times["ratios"]
    if "eager" in ratios:
        value, lo, hi, n = ratios["eager"]
        cells |= {"here, over eager": value, "95 %": f"{lo:.3f} - {hi:.3f}", "n": n}
        over = min(ratios, key=lambda who: ratios[who][0])
        cells |= {"over the fastest": ratios[over][0], "fastest": over}
        cells |= {"over eager under ieee": value * (precision_factor(row) or math.nan)}
    else:
        cells["here, over eager"] = outcome_text(row)
    return cells | {"why": "; ".join(reasons(row))}


def outcome_text(row: Mapping[str, Json]) -> str:
    return "; ".join(f"{policy}: {text}" for policy, text in row["verdicts"].items())


def tables(lines: Lines) -> dict[str, list[dict[str, Json]]]:
    rows = lines.of("problem")
    timed_rows = [row for row in rows if row["times"] is not None and "eager" in row["times"]["ratios"]]
    then = spread(row["recorded"]["score"] for row in timed_rows if row["recorded"]["score"] is not None)
    here = spread(row["times"]["ratios"]["eager"][0] for row in timed_rows)
    totals: list[dict[str, Json]] = [{"what": "problems", "n": len(rows)}]
    for name, found in (("recorded speed-up of those timed", then), ("speed-up over eager here", here)):
        totals += [] if found is None else [{"what": name, **found.cells("x")}]
    totals.append({"what": "agree within 10 %", "n": sum(agrees(row) for row in timed_rows)})
    totals.append({"what": "recorded above 1, here below 1", "n": sum(_reversed(row) for row in timed_rows)})
    causes = Counter(text.partition(":")[0].partition(",")[0] for row in rows for text in reasons(row))
    return {
        "Totals": totals,
        "Causes": [{"cause": cause, "problems": n} for cause, n in causes.most_common()],
        "Problems": [problem_row(row) for row in rows],
        "Errors": [{"problem": row["task"], "error": row["text"]} for row in lines.of("error")],
    }


def _reversed(row: Mapping[str, Json]) -> bool:
    then = row["recorded"]["score"]
    return then is not None and then > 1 > row["times"]["ratios"]["eager"][0]


def run(arguments: argparse.Namespace) -> Lines:
    lines = Lines(arguments.out / "recorded_speedups.jsonl")
    for old in arguments.resume:
        lines.add(*(row for row in Lines(old).rows if row["id"] not in lines.done))
    work = read_work(arguments.work)
    deadline = time.monotonic() + arguments.seconds
    backend = resolve(arguments.backend)
    scratch = Path(tempfile.mkdtemp(prefix="recorded-speedups-"))
    chosen: Sequence[Entry] = work.chosen(work.speedups)[: arguments.problems]
    try:
        with open_backend(backend, compose(backend, {}), ROOT, scratch) as opened:
            for entry in chosen:
                if entry.key in lines.done or time.monotonic() >= deadline:
                    continue
                try:
                    lines.add(measured(opened, work, entry))
                except EngineError as error:
                    text = f"{type(error).__name__}: {error}"[:300]
                    row: dict[str, Json] = {"id": f"error|{entry.key}|{time.time()}", "kind": "error"}
                    lines.add(row | {"task": entry.task_id, "text": text})
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--resume", type=Path, action="append", default=[])
    parser.add_argument("--problems", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=540.0)
    parser.add_argument("--backend", default="auto")
    arguments = parser.parse_args()
    lines = run(arguments)
    write_report(arguments.out, "recorded_speedups", machine(resolve(arguments.backend)), tables(lines))
    say((arguments.out / "recorded_speedups.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
