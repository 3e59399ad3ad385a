"""A results folder of any size: journals with the mixture of events that real runs leave, and the steps' ledger.

What is random comes from one seed, so a folder of a size is always the same. Events have every field that the engine
writes; `engine.journal.EVENTS` is checked by the test of this module.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from engine.canonical import Json

TASKS = 20
"""Tasks of one run."""
JOBS = 16
"""Jobs of one sweep."""
STAGES = ("tile", "fuse", "stage_memory", "vectorise", "schedule")
METRICS = (
    "dram_pct",
    "dram_bytes",
    "l2_hit_pct",
    "occupancy_pct",
    "registers",
    "launches",
    "sm_busy_pct",
    "tensor_pct",
    "stall_long_pct",
    "bank_conflict_pct",
)
CATEGORIES = ("dense", "traffic", "fused", "looped")
THRESHOLDS = ("floor_headroom", "counter_headroom", "small_conv_speedup", "swizzle_speedup", "idle_dram_pct")
FAILURES = ("wrong_result", "compile_error", "out_of_bounds", "timeout", "wrong_shape")
COSTS = [{"name": name, "kind": "conv", "count": 1, "flops": 1.5e9, "bytes": 2.5e7} for name in ("conv2d", "relu")]
START = 1.7e9


@dataclass(slots=True)
class Synthetic:
    """Writes one run after another; `rows` counts events and ledger lines."""

    root: Path
    seed: int = 0
    rows: int = 0
    runs: list[str] = field(default_factory=list)

    def fill(self, rows: int) -> None:
        """Runs of `TASKS` tasks until there are at least `rows` rows."""
        ledger = self.root / "steps" / "ledger.jsonl"
        ledger.parent.mkdir(parents=True, exist_ok=True)
        with ledger.open("w", encoding="utf-8") as steps:
            while self.rows < rows:
                run = _Run(len(self.runs), self.seed)
                folder = self.root / "runs" / run.run_id
                folder.mkdir(parents=True, exist_ok=True)
                lines = [json.dumps(event, separators=(",", ":")) for event in run.events()]
                (folder / "events.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
                steps.writelines(json.dumps(step, separators=(",", ":")) + "\n" for step in run.steps)
                self.rows += len(lines) + len(run.steps)
                self.runs.append(run.run_id)


class _Run:
    def __init__(self, number: int, seed: int) -> None:
        self.number = number
        self.draw = random.Random(f"{seed} {number}")
        self.run_id = _hash(f"run {seed} {number}")[:16]
        self.kind = "measured" if number % 8 else "estimated"
        self.thresholds = {name: round(self.draw.uniform(0.1, 2.0), 3) for name in THRESHOLDS}
        self.seq = 0
        self.steps: list[Json] = []

    def event(self, kind: str, task: str | None = None, stage: str | None = None, **fields: Json) -> Json:
        head = {"v": 1, "run_id": self.run_id, "seq": self.seq, "t": START + self.number * 4e3 + self.seq / 7}
        self.seq += 1
        return {**head, "kind": kind, "task_id": task, "stage": stage, **fields}

    def events(self) -> Iterator[Json]:
        job, sweep = self.number % JOBS, self.number // JOBS
        overrides = [f"thresholds.small_conv_speedup={self.thresholds['small_conv_speedup']}"]
        yield self.event("sweep_job", sweep_id=f"sweep{sweep}", job=job, overrides=overrides)
        yield self.event(
            "run_started",
            config_hash=_hash(self.run_id),
            version="0.1.0",
            backend="cuda" if self.kind == "measured" else "cpu",
            category="auto",
            provider="litellm",
            model=("large", "small")[self.number % 2],
            thresholds=self.thresholds,
        )
        device = {"backend": "cuda", "name": "H200", "arch": "sm_90", "facts": {}, "ceilings": None}
        yield self.event("environment", device=device, facts={"triton": "3.6.0", "torch": "2.11.0", "driver": "580"})
        for number in range(TASKS):
            yield from self.task(f"level{1 + number % 3}/{number}_operator")
        yield self.event("run_ended", outcome="done", tasks=TASKS, failed=[], wall_s=self.seq / 7)

    def task(self, task: str) -> Iterator[Json]:
        category = CATEGORIES[len(task) % len(CATEGORIES)]
        facts = {"ops": 3, "conv_ops": 1, "norm_ops": 0, "kernel_size": self.draw.choice((1, 3, 5)), "dtype": "float32"}
        facts |= {"flops": 3e9, "bytes": 5e7, "intensity": 60.0, "costs": COSTS, "note": "", "traced": True}
        contract = {"dtype": "float32", "tolerance": "default", "suites": ["nominal", "signed"], "exact": False}
        contract |= {"variants": {"small": {"BATCH": 2, "HEIGHT": 18}, "odd": {"BATCH": 3, "HEIGHT": 13}}}
        known = {"named": None, "classified": category, "facts": facts, "contract": contract, "licence": "MIT"}
        identity = {"name": task, "category": category, "contract_origin": "declared", "task_hash": _hash(task)}
        yield self.event("task_started", task, **identity, **known)
        match = {"rule": category, "when": "conv_ops >= 1 and ops >= 2", "outcome": "true", "operands": {"ops": 3}}
        yield self.event("classification", task, evaluations=[match] * 4)
        yield self.judge_step("baseline", task, None, 8.0)
        for who, median in (("eager", 100.0), ("compile", 80.0), ("eager_graph", 90.0), ("compile_graph", 75.0)):
            times = self.times(median)
            extra = {"settings": {"clock": "graph", "flush": "yes"}, "note": ""}
            yield self.event("baseline", task, who=who, **times, floor_us=12.0, **extra)
        state = _Task(self, task, category)
        yield from state.seeds()
        if state.best is not None:
            yield from state.stages()
        yield from state.end()

    def times(self, median: float) -> Json:
        median *= self.draw.uniform(0.98, 1.02)
        return {"score_kind": self.kind, "median_us": median, "lo_us": median * 0.99, "hi_us": median * 1.01, "n": 30}

    def step(self, kind: str, cost: Json) -> str:
        """A line of the ledger; the step's address."""
        key = _hash(f"{self.run_id} {len(self.steps)}")
        now = START + len(self.steps)
        self.steps.append({"t": now, "run_id": self.run_id, "kind": kind, "key": key, "cost": cost, "pid": 1})
        return key

    def judge_step(self, kind: str, task: str, stage: str | None, wall_s: float) -> Json:
        """The event of a step of judge, clock or profiler that this run paid for."""
        return self.event("step", task, stage, step_kind=kind, step=self.step(kind, {"wall_s": wall_s}), wall_s=wall_s)


class _Task:
    def __init__(self, run: _Run, task: str, category: str) -> None:
        self.run, self.task, self.category = run, task, category
        self.draw = run.draw
        self.best: str | None = None
        self.speedup = 0.0
        self.outcome = "done"

    def event(self, kind: str, stage: str | None, **fields: Json) -> Json:
        return self.run.event(kind, self.task, stage, **fields)

    def seeds(self) -> Iterator[Json]:
        for sample in range(2):
            yield from self.draft("seed", "seed", sample, audit=False)

    def stages(self) -> Iterator[Json]:
        for stage in STAGES:
            before, audit = self.speedup, self.draw.random() < 0.05
            skip = audit or self.draw.random() < 0.2
            yield self.rule(stage, "skip", "at_floor", {"headroom": 10.0 / self.speedup}, fired=skip)
            yield from self.profile(stage)
            yield self.event("stage_started", stage, category=self.category, parent_id=self.best, audit=audit)
            if skip and not audit:
                yield self.ended(stage, "skipped", "at_floor", None, 0)
                continue
            for sample in range(2):
                yield from self.draft(stage, "optimise", sample, audit=audit)
            if audit:
                yield self.ended(stage, "audited", "at_floor", None, 2)
                continue
            gain = self.speedup / before
            leave = self.draw.random() < 0.05
            read = {"kernel_size": 3, "speedup": self.speedup, "stage_gain": gain}
            yield self.rule(stage, "exit", "small_conv", read, fired=leave)
            yield self.rule(stage, "exit", "no_gain", {"stage_gain": gain, "failures": 0}, fired=False)
            yield self.ended(stage, "exited" if leave else "done", "small_conv" if leave else None, gain, 2)
            if leave:
                self.outcome = "exited"
                return

    def profile(self, stage: str) -> Iterator[Json]:
        yield self.run.judge_step("profile", self.task, stage, 0.5)
        for kernel in (self.best, None):
            for metric in METRICS:
                value, note = self.draw.uniform(0, 100), ""
                found = {"metric": metric, "value": value, "unit": "%", "source": "cupti", "confidence": 1.0}
                yield self.event("metric", stage, candidate_id=kernel, **found, note=note, contradiction="")

    def rule(self, stage: str, kind: str, name: str, operands: Json, *, fired: bool) -> Json:
        said = {"outcome": "true" if fired else "false", "fired": fired, "obeyed": fired, "missing": []}
        words = {"rule": name, "rule_kind": kind, "when": f"{' and '.join(operands)} > thresholds.small_conv_speedup"}
        read = {**operands, "thresholds.small_conv_speedup": self.run.thresholds["small_conv_speedup"]}
        return self.event("rule", stage, **words, **said, operands=read, why="the library wins", candidate_id=self.best)

    def ended(self, stage: str, outcome: str, rule: str | None, gain: float | None, count: int) -> Json:
        why = {"outcome": outcome, "why": "near the floor" if rule else "", "rule": rule}
        best = {"best_id": self.best, "speedup": self.speedup, "score_kind": self.run.kind, "stage_gain": gain}
        return self.event("stage_ended", stage, category=self.category, **why, **best, failures=0, candidates=count)

    def call(self, stage: str, role: str, sample: int, attempt: int) -> Json:
        tokens = {"input_tokens": self.draw.randrange(2000, 9000), "output_tokens": self.draw.randrange(500, 4000)}
        cost = {"cost_usd": tokens["input_tokens"] * 3e-6, "latency_s": tokens["output_tokens"] / 70, "attempts": 1}
        asked = {"category": self.category, "request_hash": _hash(f"{self.run.seq}"), "model": "large"}
        self.run.step("reply", {"usage": {**tokens, "cost_usd": cost["cost_usd"]}, "latency_s": cost["latency_s"]})
        answered = {"provider": "litellm", "answered_by": "large", "finish": "stop"}
        slot = {"role": role, "attempt": attempt, "sample": sample, "cached_tokens": 0, "reasoning_tokens": 0}
        return self.event("llm_call", stage, **slot, **asked, **answered, **tokens, **cost)

    def draft(self, stage: str, role: str, sample: int, *, audit: bool) -> Iterator[Json]:
        if stage != "seed":
            yield self.call(stage, "strategy", sample, 0)
        parent = self.best if stage != "seed" else None
        for attempt in range(3):
            yield self.call(stage, role if attempt == 0 else "repair", sample, attempt)
            if self.draw.random() < 0.04:
                slot = {"role": role, "attempt": attempt, "sample": sample}
                yield self.event("reply_unusable", stage, **slot, problem="no_code", message="no block of code")
                continue
            name = _hash(f"{self.run.number % JOBS} {self.task} {self.run.seq}")
            slot = {"role": role if attempt == 0 else "repair", "attempt": attempt, "sample": sample}
            made = {"proposer": "llm", "audit": audit, "category": self.category, "source_hash": name}
            yield self.event("candidate", stage, candidate_id=name[:16], parent_id=parent, **slot, **made)
            correct = self.draw.random() < 0.7
            yield self.run.judge_step("verdict", self.task, stage, 1.2)
            yield self.verdict(stage, name[:16], correct=correct)
            if correct:
                yield from self.timed(stage, name[:16], audit=audit)
                return
            parent = name[:16]

    def verdict(self, stage: str, name: str, *, correct: bool) -> Json:
        said = {
            "status": "correct" if correct else "rejected",
            "reason": None if correct else self.draw.choice(FAILURES),
        }
        mode = {"mode": "plan", "precision_class": "ieee", "error_ratio": 0.4, "variant": "full", "suite": "signed"}
        trace = {"launches": 2, "host_ops": ["aten.empty", "aten.view"], "trace_error": "", "remarks": []}
        message = "" if correct else "out[0] at (3, 17): expected 0.25, found 0.5; 12 of 4096 elements differ"
        spent = {"wall_s": 1.2, "gpu_s": 0.2, "stages": {"screen": 0.01, "trace": 0.3, "compile": 0.4, "check": 0.5}}
        found = {**said, **mode, **trace, "message": message, "sandbox": ["namespaces"], "seed": 7}
        return self.event("verdict", stage, candidate_id=name, **found, **spent)

    def timed(self, stage: str, name: str, *, audit: bool) -> Iterator[Json]:
        speedup = self.draw.lognormvariate(0.0, 0.5)
        yield self.run.judge_step("timing", self.task, stage, 4.0)
        sides = [("candidate", 100 / speedup), ("eager", 100.0), ("compile_graph", 75.0)]
        yield from self.sides(stage, name, sides)
        yield from (self.ratio(stage, name, who, us * speedup / 100) for who, us in sides[1:])
        better = self.best is not None and speedup > self.speedup and not audit
        if better:
            yield self.run.judge_step("promotion", self.task, stage, 4.0)
            yield from self.sides(stage, name, [sides[0], ("incumbent", 100 / self.speedup), sides[1]])
            yield self.ratio(stage, name, "incumbent", speedup / self.speedup)
            yield self.ratio(stage, name, "eager", speedup)
        promoted = better or self.best is None
        decided = {"incumbent_id": self.best, "promoted": promoted, "why": "lower end 1.2 above 1.01"}
        yield self.event("promotion", stage, candidate_id=name, **decided, ratio=speedup if better else None)
        if promoted:
            self.best, self.speedup = name, speedup

    def sides(self, stage: str, name: str, sides: list[tuple[str, float]]) -> Iterator[Json]:
        for who, median in sides:
            floor = {"floor_us": 12.0, "below_floor": False}
            yield self.event("timing", stage, candidate_id=name, who=who, **self.run.times(median), **floor)

    def ratio(self, stage: str, name: str, over: str, value: float) -> Json:
        interval = {"value": value, "lo": value * 0.97, "hi": value * 1.03, "n": 30}
        return self.event("ratio", stage, candidate_id=name, over=over, **interval)

    def end(self) -> Iterator[Json]:
        if self.best is not None:
            yield self.run.judge_step("confirm", self.task, None, 9.0)
            held = {"outcome": "confirmed", "status": "correct", "reason": None, "mode": "plan", "message": ""}
            held |= {"error_ratio": 0.5, "variant": None, "suite": None, "variants": {"unseen1": {"BATCH": 7}}}
            held |= {"drops": [{"kernel": "k", "effect": True}], "sanitizers": [], "ratios": [], "chosen": None}
            cost = {"remarks": [], "seed": 9, "wall_s": 9.0, "gpu_s": 6.0}
            yield self.event("confirmation", None, candidate_id=self.best, **held, **cost)
        score = self.speedup if self.best else None
        spread = {"speedup_lo": score and score * 0.97, "speedup_hi": score and score * 1.03}
        best = {"best_id": self.best, "speedup": score, **spread, "speedup_fastest": score and score * 0.75}
        best |= {"fastest": "compile_graph" if score else None, "headroom": score and 8.0 / score}
        kind = {"score_kind": self.run.kind if score else None, "confirmed": True if score else None}
        outcome = self.outcome if score else "unsolved"
        yield self.event("task_ended", None, category=self.category, outcome=outcome, why="", **best, **kind)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
