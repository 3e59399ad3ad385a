"""A small results folder written through Journal and Memo: a sweep of two jobs, and one run with estimates only."""

from __future__ import annotations

from pathlib import Path

from engine.canonical import Json
from engine.journal import Journal
from engine.memo import Memo

LOW, HIGH, ESTIMATED = "aaaaaaaaaaaaaaaa", "bbbbbbbbbbbbbbbb", "cccccccccccccccc"
USAGE = {"input_tokens": 1000, "output_tokens": 200, "cached_tokens": 0, "reasoning_tokens": 0}
FACTS = {"ops": 3, "conv_ops": 1, "norm_ops": 0, "pointwise_ops": 2, "kernel_size": 3, "dtype": "float32", "flops": 1e9}


class Run:
    """Writes the events of one run in the order of the engine."""

    def __init__(self, results: Path, run_id: str, *, kind: str, thresholds: dict[str, float]) -> None:
        self.journal = Journal(results / "runs" / run_id / "events.jsonl", run_id)
        self.kind = kind
        self.thresholds = thresholds
        self.floor = 10.0

    def start(self, backend: str, device: str, sweep: tuple[str, int, list[str]] | None) -> None:
        if sweep is not None:
            self.journal.write("sweep_job", sweep_id=sweep[0], job=sweep[1], overrides=sweep[2])
        self.journal.write(
            "run_started",
            config_hash="c" * 64,
            version="1",
            backend=backend,
            category="auto",
            provider="replay",
            model="m",
            thresholds=self.thresholds,
        )
        self.journal.write("environment", device={"backend": backend, "name": device}, facts={"triton": "3.6.0"})

    def task(self, task: str, category: str, *, text: str = "") -> None:
        self.journal.write(
            "task_started",
            task_id=task,
            name=task,
            category=category,
            named=None,
            classified=category,
            facts=FACTS,
            contract={},
            contract_origin="declared",
            task_hash=task * 2 + text,
            licence=None,
        )
        self.journal.write("classification", task_id=task, evaluations=[])
        for who, median in (("eager", 100.0), ("compile", 80.0)):
            fields = {**self.times(median), "floor_us": self.floor}
            self.journal.write("baseline", task_id=task, who=who, **fields)

    def times(self, median: float) -> Json:
        return {"score_kind": self.kind, "median_us": median, "lo_us": median * 0.9, "hi_us": median * 1.1, "n": 20}

    def draft(self, task: str, stage: str, name: str, speedup: float | None, *, sample: int = 0, **more: Json) -> None:
        """One call and its candidate, timed when correct; `audit`, `promoted`, `ratio` and `category` in `more`."""
        slot = {"role": "seed" if stage == "seed" else "optimise", "attempt": 0, "sample": sample}
        where = {"task_id": task, "stage": stage}
        self.journal.write(
            "llm_call",
            **where,
            **slot,
            **USAGE,
            category=more["category"],
            request_hash=name * 4,
            model="m",
            provider="replay",
            answered_by="someone",
            finish="stop",
            cost_usd=0.01,
            latency_s=2.0,
            attempts=1,
        )
        self.journal.write(
            "candidate",
            **where,
            **slot,
            candidate_id=name,
            parent_id=None,
            proposer="llm",
            audit=more.get("audit", False),
            category=more["category"],
            source_hash=name * 4,
        )
        self.verdict(where, name, correct=speedup is not None)
        if speedup is None:
            return
        floor = {"floor_us": 40.0, "below_floor": 100 / speedup < 36}
        self.journal.write("timing", **where, candidate_id=name, who="candidate", **self.times(100 / speedup), **floor)
        ratio = {"value": speedup, "lo": speedup * 0.9, "hi": speedup * 1.1, "n": 20}
        self.journal.write("ratio", **where, candidate_id=name, over="eager", **ratio)
        promoted = more.get("promoted", True)
        why = "faster" if promoted else "not faster"
        fields = {"incumbent_id": None, "promoted": promoted, "why": why, "ratio": more.get("ratio")}
        self.journal.write("promotion", **where, candidate_id=name, **fields, durable=True)

    def verdict(self, where: Json, name: str, *, correct: bool) -> None:
        self.journal.write(
            "verdict",
            **where,
            candidate_id=name,
            status="correct" if correct else "rejected",
            reason=None if correct else "wrong_result",
            mode="plan",
            precision_class="ieee",
            error_ratio=1.0 if correct else float("inf"),
            variant="full",
            suite="normal",
            launches=2,
            host_ops=["aten.empty"],
            message="" if correct else "out[0] is 1, expected 2",
            seed=7,
            wall_s=1.5,
            gpu_s=0.25,
            stages={"check": 0.5},
        )

    def rule(self, task: str, stage: str, kind: str, name: str, outcome: str, operands: Json, *, obeyed: bool) -> None:
        self.journal.write(
            "rule",
            task_id=task,
            stage=stage,
            rule=name,
            rule_kind=kind,
            when=f"{' and '.join(operands)} > 0",
            outcome=outcome,
            fired=outcome == "true",
            obeyed=obeyed,
            operands=operands,
            missing=[operand for operand, value in operands.items() if value is None],
            why="because",
            candidate_id=None,
        )

    def metrics(self, task: str, stage: str, name: str | None, **values: float | None) -> None:
        for metric, value in values.items():
            doubted = metric == "dram_pct" and value is not None
            self.journal.write(
                "metric",
                task_id=task,
                stage=stage,
                candidate_id=name,
                metric=metric,
                value=value,
                unit="u",
                source="trace",
                confidence=0.0 if doubted else 1.0,
                note="",
                contradiction="bandwidth: more than the memory reaches" if doubted else "",
            )

    def stage_end(self, task: str, stage: str, outcome: str, *, best: str, speedup: float, **more: Json) -> None:
        self.journal.write(
            "stage_ended",
            task_id=task,
            stage=stage,
            category=more["category"],
            outcome=outcome,
            why="because",
            rule=more.get("rule"),
            best_id=best,
            speedup=speedup,
            score_kind=self.kind,
            stage_gain=more.get("gain"),
            failures=0,
            candidates=1,
        )

    def stage_start(self, task: str, stage: str, category: str, *, audit: bool = False) -> None:
        fields = {"category": category, "parent_id": None, "audit": audit}
        self.journal.write("stage_started", task_id=task, stage=stage, **fields)

    def confirmation(self, task: str, name: str, outcome: str = "confirmed", reason: str | None = None) -> None:
        self.journal.write(
            "confirmation",
            task_id=task,
            candidate_id=name,
            outcome=outcome,
            status={"confirmed": "correct", "refused": "rejected"}.get(outcome, outcome),
            reason=reason,
            mode="plan",
            message=reason or "",
            error_ratio=1.0,
            variant=None,
            suite=None,
            variants={"unseen1": {"N": 7}},
            drops=[{"kernel": "k", "effect": True}],
            sanitizers=[{"tool": "memcheck", "errors": 0, "note": ""}],
            ratios=[],
            chosen=None,
            remarks=[],
            seed=9,
            wall_s=2.0,
            gpu_s=1.0,
        )

    def task_end(self, task: str, category: str, outcome: str, best: str | None, speedup: float | None) -> None:
        solved = speedup is not None
        if best is not None:
            self.confirmation(task, best)
        self.journal.write(
            "task_ended",
            task_id=task,
            category=category,
            outcome=outcome,
            why="",
            best_id=best,
            speedup=speedup,
            speedup_lo=speedup * 0.9 if speedup else None,
            speedup_hi=speedup * 1.1 if speedup else None,
            speedup_fastest=speedup * 0.8 if speedup else None,
            fastest="compile" if solved else None,
            headroom=10 / speedup if speedup else None,
            score_kind=self.kind if solved else None,
            confirmed=solved or None,
        )

    def end(self, tasks: int, wall_s: float) -> None:
        self.journal.write("run_ended", outcome="done", tasks=tasks, failed=[], wall_s=wall_s, durable=True)
        self.journal.close()


def _job(results: Path, run_id: str, job: int, small: float, *, exits: bool) -> None:
    run = Run(results, run_id, kind="measured", thresholds={"small": small, "floor": 1.1})
    run.start("cuda", "H200", ("sweep1", job, [f"thresholds.small={small}"]))
    run.task("conv", "windows")
    run.draft("conv", "seed", "c1", None, category="windows")
    run.draft("conv", "seed", "c2", 0.25, sample=1, category="windows")
    known = {"kernel_size": 3, "speedup": 0.25, "thresholds.small": small}
    run.stage_start("conv", "tile", "windows")
    run.metrics("conv", "tile", "c2", launches=2.0, dram_pct=55.5)
    run.metrics("conv", "tile", None, launches=3.0, dram_pct=None)
    run.rule("conv", "tile", "skip", "at_floor", "false", {"headroom": 40.0, "thresholds.floor": 1.1}, obeyed=False)
    run.draft("conv", "tile", "c3", 0.5 if not exits else 0.2, category="windows", promoted=not exits)
    run.rule("conv", "tile", "exit", "small_window", "true" if exits else "false", known, obeyed=exits)
    best, speedup = ("c2", 0.25) if exits else ("c3", 0.5)
    outcome = "exited" if exits else "done"
    gain = 1.0 if exits else 2.0
    run.stage_end("conv", "tile", outcome, best=best, speedup=speedup, gain=gain, category="windows")
    if not exits:
        run.stage_start("conv", "fuse", "windows", audit=True)
        run.rule("conv", "fuse", "skip", "alone", "true", {"norm_ops": 0}, obeyed=True)
        run.draft("conv", "fuse", "c4", 1.5, category="windows", audit=True, promoted=False)
        run.stage_end("conv", "fuse", "audited", best=best, speedup=speedup, rule="alone", category="windows")
    run.task_end("conv", "windows", outcome, best, speedup)
    run.task("relu", "flat")
    run.draft("relu", "seed", "r1", 2.0, category="flat")
    run.stage_start("relu", "tile", "flat")
    run.rule("relu", "tile", "skip", "at_floor", "unknown", {"headroom": None, "thresholds.floor": 1.1}, obeyed=False)
    run.stage_end("relu", "tile", "skipped", best="r1", speedup=2.0, rule="at_floor", category="flat")
    run.task_end("relu", "flat", "done", "r1", 2.0)
    run.end(2, wall_s=60.0 + job)


def write_results(results: Path) -> Path:
    """Fill `results` with runs and steps; returns it."""
    _job(results, LOW, 0, 0.2, exits=False)
    _job(results, HIGH, 1, 0.3, exits=True)
    run = Run(results, ESTIMATED, kind="estimated", thresholds={"small": 0.3, "floor": 1.1})
    run.start("cpu", "sm_90", None)
    run.task("conv", "windows")
    run.draft("conv", "seed", "e1", 8.0, category="windows")
    run.task_end("conv", "windows", "done", "e1", 8.0)
    run.task("gru", "flat")
    run.journal.write("step", task_id="gru", stage=None, step_kind="baseline", step="7" * 64, wall_s=8.0)
    run.draft("gru", "seed", "e2", None, category="flat")
    run.journal.write("llm_failed", task_id="gru", stage="seed", **_slot(), failure="timeout", message="no answer")
    run.task_end("gru", "flat", "unsolved", None, None)
    run.end(2, wall_s=5.0)
    for run_id in (LOW, HIGH):
        memo = Memo(results / "steps", run_id)
        memo.step("reply", {"prompt": 1}, lambda: ("code", {"usage": {"cost_usd": 0.01}, "latency_s": 2.0}))
        memo.step("timing", {"source": 1}, lambda: ("times", {"wall_s": 3.5, "gpu_s": 0.5}))
        memo.step("timing", {"source": run_id}, lambda: ("times", {"wall_s": 1.0, "gpu_s": 0.25}))
    return results


def _slot() -> Json:
    return {"role": "repair", "attempt": 1, "sample": 0}
