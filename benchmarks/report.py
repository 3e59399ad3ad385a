"""Time and size of the report of a large run: `python -m benchmarks.report [--tasks 100] [--repeats 5]`.

The run is made of the recorded exchanges of recordings/bundled, one recorded operator after another dealt to the
tasks, with digits exchanged for each task, so that its prompts, replies and sources are as long and as much alike as
real ones. Scores are random numbers from one seed. Each repeat is a fresh process of `python -m engine.report`.
"""

from __future__ import annotations

import argparse
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.worklist import spread
from engine.canonical import Json, digest_text, short
from engine.extract import extract_code
from engine.folder import RunFolder
from engine.journal import EVENTS, Journal
from engine.llm.recordings import Recording, every
from engine.records import Message

ROOT = Path(__file__).resolve().parents[1]
RUN = "feedfacefeedface"
FLOPS, BYTES, FLOOR_US = 1.7e10, 5e7, 40.0
HARDWARE = {"dram_gbps": 4300.0, "fp32_tflops": 67.0, "tf32_tflops": 494.0, "fp16_tflops": 790.0}
METRICS = ("dram_pct", "dram_bytes", "l2_hit_pct", "occupancy_pct", "registers", "launches")


@dataclass(slots=True)
class Writer:
    """Fills fields that it is not given with null, as the journal wants none absent."""

    journal: Journal
    draw: random.Random = field(default_factory=lambda: random.Random(1))

    def __call__(self, kind: str, task: str | None = None, stage: str | None = None, **fields: Json) -> None:
        self.journal.write(kind, task_id=task, stage=stage, **{**dict.fromkeys(EVENTS[kind]), **fields})


def write_run(results: Path, tasks: int) -> Path:
    """A finished run of `tasks` operators below `results`; its folder."""
    folder = RunFolder(results, RUN)
    journal = Journal(folder.events, RUN)
    write = Writer(journal)
    write("run_started", backend="cuda", model="m", provider="litellm", thresholds={"small": 0.3}, version="1")
    device = {"backend": "cuda", "name": "synthetic", "facts": {}, "hardware": HARDWARE, "ceilings": ""}
    write("environment", device=device, facts={"torch": "2", "triton": "3"})
    recorded: dict[str, list[Recording]] = {}
    for recording in every(ROOT / "recordings" / "bundled"):
        recorded.setdefault(recording.request.slot.task_id, []).append(recording)
    dealt = list(recorded.values())
    for number in range(tasks):
        _task(write, folder, f"level1/task_{number:03}", dealt[number % len(dealt)])
    write("run_ended", outcome="done", tasks=tasks, failed=[], wall_s=3600.0)
    journal.close()
    return folder.path


def _task(write: Writer, folder: RunFolder, task: str, recordings: Sequence[Recording]) -> None:
    category = recordings[0].request.slot.category
    facts = {"flops": FLOPS, "bytes": BYTES, "intensity": FLOPS / BYTES, "ops": 3}
    write("task_started", task, name=task, category=category, classified=category, facts=facts, task_hash=task)
    times = {"score_kind": "measured", "lo_us": 190.0, "hi_us": 210.0, "n": 20, "floor_us": FLOOR_US}
    for who, median in (("eager", 200.0), ("compile", 160.0)):
        write("baseline", task, who=who, median_us=median, **times)
    digits = list("0123456789")
    write.draw.shuffle(digits)
    exchange = str.maketrans("0123456789", "".join(digits))
    best, best_speedup = None, 0.0
    for stage in dict.fromkeys(["seed", *(recording.request.slot.stage for recording in recordings)]):
        rule = {"rule": "at_floor", "rule_kind": "skip", "when": "headroom < thresholds.floor", "why": "close to it"}
        if stage != "seed":
            operands = {"headroom": 3.2, "thresholds.floor": 1.1}
            said = {"outcome": "false", "fired": False, "obeyed": False, "operands": operands, "missing": []}
            write("rule", task, stage, **said, **rule)
            write("stage_started", task, stage, category=category, parent_id=best, audit=False)
            for metric in METRICS:
                value = {"value": write.draw.uniform(1, 90), "unit": "percent", "source": "ncu", "confidence": 1.0}
                write("metric", task, stage, candidate_id=best, metric=metric, note="", contradiction="", **value)
        for recording in (one for one in recordings if one.request.slot.stage == stage):
            speedup, name = _draft(write, folder, task, recording, exchange, best)
            if name is not None and speedup > best_speedup:
                write("promotion", task, stage, candidate_id=name, incumbent_id=best, promoted=True, why="faster")
                best, best_speedup = name, speedup
        if stage != "seed":
            end = {"outcome": "done", "why": "", "stage_gain": 1.1, "failures": 0, "candidates": 1, "best_id": best}
            write("stage_ended", task, stage, category=category, **end)
    score = {"speedup": best_speedup, "speedup_fastest": best_speedup * 0.8, "fastest": "compile", "confirmed": True}
    headroom = 200.0 / best_speedup / FLOOR_US if best_speedup else None
    write("task_ended", task, outcome="done", why="all stages ended", best_id=best, headroom=headroom,
          score_kind="measured", **score)  # fmt: skip


def _draft(
    write: Writer, folder: RunFolder, task: str, recording: Recording, exchange: dict[int, int], best: str | None
) -> tuple[float, str | None]:
    """One recorded exchange as a call of `task`; the speed-up and name of its candidate, 0 and None without a correct
    one."""
    slot = replace(recording.request.slot, task_id=task)
    named = {"role": slot.role, "attempt": slot.attempt, "sample": slot.sample}
    reply = replace(recording.reply, text=recording.reply.text.translate(exchange))
    messages = [Message(message.role, message.content) for message in recording.request.messages]
    messages[-1] = Message(messages[-1].role, messages[-1].content.translate(exchange))
    folder.write_exchange(slot, tuple(messages), reply)
    usage = {"input_tokens": 3500, "output_tokens": 900, "cached_tokens": 0, "reasoning_tokens": 0}
    write("llm_call", task, slot.stage, **named, **usage, model="m", finish="stop", cost_usd=0.02, latency_s=9.5)
    source = extract_code(reply).code
    if source is None or slot.role not in ("seed", "optimise", "repair"):
        return 0.0, None
    name = short(digest_text(task + source))
    folder.write_source(task, name, source)
    parent = {"parent_id": best, "source_hash": digest_text(source), "proposer": "llm", "audit": False}
    write("candidate", task, slot.stage, candidate_id=name, **named, **parent)
    correct = write.draw.random() < 0.7
    verdict = {"status": "correct", "message": ""} if correct else {"status": "rejected", "reason": "wrong_result"}
    told = {"message": "out[3, 5] is 4.0, expected 2.0 (variant odd, suite nominal)\n" * 4, **verdict}
    write("verdict", task, slot.stage, candidate_id=name, mode="plan", launches=2, error_ratio=1.2, gpu_s=0.4, **told)
    if not correct:
        return 0.0, None
    speedup = write.draw.lognormvariate(0.2, 0.6)
    times = {"score_kind": "measured", "median_us": 200 / speedup, "n": 20, "floor_us": FLOOR_US, "below_floor": False}
    write("timing", task, slot.stage, candidate_id=name, who="candidate", **times)
    interval = {"lo": speedup * 0.97, "hi": speedup * 1.03, "n": 20}
    write("ratio", task, slot.stage, candidate_id=name, over="eager", value=speedup, **interval)
    return speedup, name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = write_run(Path(folder), options.tasks)
        texts = sum(path.stat().st_size for path in run.rglob("*") if path.suffix in (".md", ".py"))
        events = (run / "events.jsonl").read_bytes().count(b"\n")
        sys.stdout.write(f"{options.tasks} tasks, {events} events, {texts / 1e6:.1f} MB of prompts, replies, sources\n")
        taken = [_timed(run) for _ in range(options.repeats)]
        sys.stdout.write(f"report.html {(run / 'report.html').stat().st_size / 1e6:.2f} MB\n")
        for name, seconds in zip(("wall", "CPU"), zip(*taken, strict=True), strict=True):
            found = spread(seconds)
            assert found is not None
            told = f"{name} {found.median:.2f} s (n = {found.n}, {found.least:.2f} to {found.largest:.2f} s)"
            sys.stdout.write(f"python -m engine.report: {told}\n")


def _timed(run: Path) -> tuple[float, float]:
    """Wall-clock and CPU seconds of the command in a fresh process."""
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "engine.report", str(run)], check=True, capture_output=True, cwd=ROOT)
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
