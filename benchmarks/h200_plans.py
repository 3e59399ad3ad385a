"""Runs the stage plans of six operators on this GPU from recorded replies, and writes tables of what happened.

    python -m benchmarks.h200_plans --out FOLDER [--tasks NAME ...] [--results FOLDER] [-- key=value ...]

Each operator is one run of the engine, so that a failing one does not hide the rest; what follows `--` goes to all.
A run repeated continues where it stopped. Writes FOLDER/plans.md, plans.json and one log per operator.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from engine.canonical import Json

ROOT = Path(__file__).resolve().parents[1]
TASKS = ("square_matmul", "conv1d", "matmul_sigmoid_sum", "conv2d_relu_bias", "gru_sequence", "gru_last_hidden")
FIXED = ("backend=cuda", "llm=replay", "task=bundled", "display.mode=plain", "judge.allow_unverified=true")


@dataclass(slots=True)
class Plan:
    """What the journal says of one operator's run."""

    task: str
    status: int
    wall_s: float
    events: list[Json] = field(default_factory=list)

    def of(self, kind: str) -> list[Json]:
        return [event for event in self.events if event["kind"] == kind]


def run_plan(task: str, results: Path, logs: Path, timeout_s: float, extra: Sequence[str]) -> Plan:
    """One run of the engine in a process of its own; its time-out ends it, and the journal has what was done."""
    command = [
        sys.executable,
        "-m",
        "engine",
        *FIXED,
        f"task.names=[{task}]",
        f"paths.results={results / task}",
        *extra,
    ]
    started = time.monotonic()
    with (logs / f"{task}.log").open("wb") as log:
        try:
            status = subprocess.run(
                command, cwd=ROOT, stdout=log, stderr=log, timeout=timeout_s, check=False
            ).returncode
        except subprocess.TimeoutExpired:
            status = 124
    return Plan(task, status, round(time.monotonic() - started, 1), _events(results / task))


def _events(results: Path) -> list[Json]:
    journals = sorted((results / "runs").glob("*/events.jsonl"), key=lambda path: path.stat().st_mtime)
    lines = journals[-1].read_text().splitlines() if journals else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def summary_row(plan: Plan) -> dict[str, Json]:
    """The end of one operator's plan: its best kernel against eager and against the fastest baseline."""
    ended = plan.of("task_ended")
    row: dict[str, Json] = {"task": plan.task, "exit": plan.status, "wall_s": plan.wall_s}
    for name in (
        "category",
        "outcome",
        "speedup",
        "speedup_lo",
        "speedup_hi",
        "speedup_fastest",
        "fastest",
        "headroom",
    ):
        row[name] = ended[-1][name] if ended else None
    verdicts = plan.of("verdict")
    row["candidates"] = len(verdicts)
    row["correct"] = sum(event["status"] == "correct" for event in verdicts)
    for event in plan.of("baseline"):
        row[f"{event['who']}_us"] = event["median_us"]
        row["floor_us"] = event["floor_us"]
    return row


def stage_rows(plan: Plan) -> list[dict[str, Json]]:
    """One row a stage: outcome, the gain, failures, and the rules that were obeyed."""
    obeyed: dict[str, list[str]] = defaultdict(list)
    for event in plan.of("rule"):
        if event["fired"]:
            mark = "" if event["obeyed"] else " (not obeyed)"
            obeyed[str(event["stage"])].append(f"{event['rule_kind']}:{event['rule']}{mark}")
    rows = []
    for event in plan.of("stage_ended"):
        row = {"task": plan.task, "stage": event["stage"], "outcome": event["outcome"], "speedup": event["speedup"]}
        row |= {"stage_gain": event["stage_gain"], "failures": event["failures"], "candidates": event["candidates"]}
        rows.append(row | {"rules": ", ".join(obeyed[str(event["stage"])]), "why": event["why"]})
    return rows


def metric_rows(plan: Plan) -> list[dict[str, Json]]:
    """One row a stage and metric: the reference's value beside each profiled kernel's, with the source."""
    rows = []
    for event in plan.of("metric"):
        whose = "eager" if event["candidate_id"] is None else event["candidate_id"][:8]
        row = {"task": plan.task, "stage": event["stage"], "kernel": whose, "metric": event["metric"]}
        row |= {"value": event["value"], "unit": event["unit"], "source": event["source"]}
        rows.append(row | {"confidence": event["confidence"], "note": event["note"]})
    return rows


def verdict_rows(plan: Plan) -> list[dict[str, Json]]:
    """One row a candidate: what the judge said, its launches, and its time with interval where it was timed."""
    ratios = {event["candidate_id"]: event for event in plan.of("ratio") if event["over"] == "eager"}
    times = {event["candidate_id"]: event for event in plan.of("timing") if event["who"] == "candidate"}
    rows = []
    for event in plan.of("verdict"):
        name = event["candidate_id"]
        row = {"task": plan.task, "stage": event["stage"], "candidate": name[:8], "status": event["status"]}
        row |= {"reason": event["reason"], "precision": event["precision_class"], "launches": event["launches"]}
        row["median_us"] = times[name]["median_us"] if name in times else None
        row["over_eager"] = _interval(ratios[name]) if name in ratios else None
        rows.append(row | {"wall_s": event["wall_s"]})
    return rows


def _interval(event: Mapping[str, Json]) -> str:
    return f"{event['value']:.3f} [{event['lo']:.3f}, {event['hi']:.3f}] n={event['n']}"


def markdown(title: str, rows: Iterable[Mapping[str, Json]]) -> str:
    """A table of all columns that any row has."""
    rows = list(rows)
    if not rows:
        return f"## {title}\n\nnothing\n"
    columns = list(dict.fromkeys(column for row in rows for column in row))
    lines = [f"## {title}", "", "| " + " | ".join(columns) + " |", "| " + " | ".join("---" for _ in columns) + " |"]
    lines += ["| " + " | ".join(_cell(row.get(column)) for column in columns) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _cell(value: Json) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value).replace("|", "/").replace("\n", " ")[:160]


def write(plans: Sequence[Plan], folder: Path) -> str:
    """Write plans.md and plans.json; returns the short table of all operators."""
    tables = {
        "Operators": [summary_row(plan) for plan in plans],
        "Stages": [row for plan in plans for row in stage_rows(plan)],
        "Candidates": [row for plan in plans for row in verdict_rows(plan)],
        "Metrics": [row for plan in plans for row in metric_rows(plan)],
    }
    environment = [event for plan in plans for event in plan.of("environment")][:1]
    (folder / "plans.json").write_text(
        json.dumps({"environment": environment, "tables": tables, "plans": [asdict(plan) for plan in plans]}, indent=1)
    )
    (folder / "plans.md").write_text("\n".join(markdown(title, rows) for title, rows in tables.items()))
    return markdown("Operators", tables["Operators"]) + markdown("Stages", tables["Stages"])


def main() -> None:
    arguments, extra = _arguments()
    arguments.out.mkdir(parents=True, exist_ok=True)
    results = (arguments.results or arguments.out / "results").resolve()
    deadline = time.monotonic() + arguments.seconds
    plans = []
    for task in arguments.tasks:
        left = deadline - time.monotonic()
        if left <= 0:
            sys.stdout.write(f"no time left for {task}\n")
            continue
        plan = run_plan(task, results, arguments.out, min(left, arguments.task_seconds), extra)
        sys.stdout.write(f"{task}: exit {plan.status}, {plan.wall_s} s, {len(plan.events)} events\n")
        sys.stdout.flush()
        plans.append(plan)
    sys.stdout.write(write(plans, arguments.out))
    sys.exit(0 if all(plan.status == 0 for plan in plans) else 1)


def _arguments() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--results", type=Path, help="keep it over several commands to resume")
    parser.add_argument("--seconds", type=float, default=560.0, help="for all operators")
    parser.add_argument("--task-seconds", type=float, default=300.0, help="for one operator")
    own, extra = sys.argv[1:], []
    if "--" in own:
        own, extra = own[: own.index("--")], own[own.index("--") + 1 :]
    return parser.parse_args(own), extra


if __name__ == "__main__":
    main()
