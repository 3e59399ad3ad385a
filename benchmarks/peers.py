"""Recorded kernels through two public evaluators on this GPU, beside what our judge took for the same ones.

    python -m benchmarks.peers --work work.json --peers FOLDER --out FOLDER [--ours judge_cost.jsonl] [--seconds 540]

--peers holds checked-out files of both projects: `llmkernel/utils` (Alisehen/LLMKernel d078a38) and
`kernelbench/src/kernelbench` (ScalingIntelligence/KernelBench 423217d), and `site` with Python packages that they need
and this machine lacks (pydantic). Each evaluation is a process of its own, as both projects do it, with an empty Triton
cache; its wall time runs from its start to its end. What KernelBench's package imports for calling models is stubbed.
LLMKernel: 2 warm-ups, 5 timed runs, tolerances of its command line; KernelBench: 5 correctness trials, 100 timed runs.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.util
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.worklist import (
    ROOT,
    BenchmarkError,
    Entry,
    Lines,
    WorkList,
    machine,
    read_work,
    say,
    spread,
    write_report,
)
from engine.canonical import Json

FILES = {
    "LLMKernel": "llmkernel/utils/compile_and_run.py",
    "KernelBench": "kernelbench/src/kernelbench/eval.py",
}
COMMITS = {"LLMKernel": "d078a38", "KernelBench": "423217d"}
SHA256 = {
    "LLMKernel": "a6ddac95b34a9cbf3bd81a50c820fc6834feb6818aee83e3e743e9e4b4da13b8",
    "KernelBench": "b42ce1268ec64ee7274db307ab98945c1e868792b54689554014b28c41787ee6",
}
"""Of `FILES` at these commits."""

TOLERANCE = 1e-1
"""LLMKernel's command line, absolute and relative."""

TARGETS = {"LLMKernel": 10.0, "KernelBench": 40.0}
TAIL_CHARS = 300
STUBS: Mapping[str, Mapping[str, Any]] = {
    "dotenv": {"load_dotenv": lambda *_, **__: None},
    "litellm": {"completion": None},
    "openai": {"OpenAI": object},
}


def llmkernel(reference: Path, candidate: Path, device: str) -> dict[str, Json]:
    """Its verdict: it raises for what it refuses."""
    from utils.compile_and_run import compare_and_bench  # type: ignore[import-not-found]

    found = compare_and_bench(reference, candidate, device_idx=0, warmup=2, repeat=5, tol=TOLERANCE, rtol=TOLERANCE)
    times = {
        "reference_us": found["ref_latency_ms"]["avg"] * 1e3,
        "candidate_us": found["test_latency_ms"]["avg"] * 1e3,
    }
    return {"accepted": True, **times, "said": f"max_abs_err {found['max_abs_err']:.3g}"}


def kernelbench(reference: Path, candidate: Path, device: str) -> dict[str, Json]:
    """Its verdict; times are means, in ms on its side."""
    for name, attributes in STUBS.items():
        module = types.ModuleType(name)
        module.__dict__.update(attributes)
        sys.modules[name] = module
    import torch
    from kernelbench.eval import eval_kernel_against_ref  # type: ignore[import-not-found]

    found = eval_kernel_against_ref(
        reference.read_text(encoding="utf-8"),
        candidate.read_text(encoding="utf-8"),
        num_correct_trials=5,
        num_perf_trials=100,
        measure_performance=True,
        backend="triton",
        device=torch.device(device),
    )
    if found is None:
        return {"accepted": None, "reference_us": None, "candidate_us": None, "said": "no result: asks to be run again"}
    accepted = bool(found.compiled and found.correctness)
    times = {"reference_us": _us(found.ref_runtime), "candidate_us": _us(found.runtime)}
    said = "" if accepted else json.dumps({k: str(v)[-TAIL_CHARS:] for k, v in found.metadata.items()})
    return {"accepted": accepted, **times, "said": said}


def _us(milliseconds: float) -> float | None:
    return milliseconds * 1e3 if milliseconds > 0 else None


EVALUATORS = {"LLMKernel": llmkernel, "KernelBench": kernelbench}


def one(arguments: argparse.Namespace) -> None:
    """The process of one evaluation: its answer goes to a file, whatever it prints."""
    try:
        answer = EVALUATORS[arguments.evaluator](arguments.reference, arguments.candidate, arguments.device)
    except ImportError:
        # The evaluator itself is not complete here; a candidate's failing import it reports itself.
        raise
    except Exception:  # noqa: BLE001 - the boundary of another project's evaluator: what it raises is its verdict
        said = traceback.format_exc().strip()[-TAIL_CHARS:]
        answer = {"accepted": False, "reference_us": None, "candidate_us": None, "said": said}
    arguments.answer.write_text(json.dumps(answer), encoding="utf-8")


def evaluate(evaluator: str, entry: Entry, reference: str, peers: Path, limit_s: float, device: str) -> dict[str, Json]:
    """One evaluation from start to end of its process; over `limit_s` it is killed and has no verdict."""
    with tempfile.TemporaryDirectory(prefix="peer-") as name:
        folder = Path(name)
        (folder / "reference.py").write_text(reference, encoding="utf-8")
        (folder / "candidate.py").write_text(entry.source, encoding="utf-8")
        command = [sys.executable, "-m", "benchmarks.peers", "one", evaluator, device]
        command += [str(folder / file) for file in ("reference.py", "candidate.py", "answer.json")]
        environment = {**os.environ, "PYTHONPATH": _path(peers, evaluator), "TRITON_CACHE_DIR": str(folder / "triton")}
        row: dict[str, Json] = {"id": f"{evaluator}|{entry.key}", "kind": evaluator, "key": entry.key}
        row |= {"task": entry.task_id, "accepted": None, "reference_us": None, "candidate_us": None}
        started = time.monotonic()
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True
            )
            try:
                process.wait(limit_s)
            except subprocess.TimeoutExpired:
                row["said"] = f"killed after {limit_s:g} s"
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        row["wall_s"] = time.monotonic() - started
        if (folder / "answer.json").exists():
            answer: dict[str, Json] = json.loads((folder / "answer.json").read_text(encoding="utf-8"))
            return row | answer
        tail = (folder / "log").read_text(encoding="utf-8", errors="replace").strip()[-TAIL_CHARS:]
        return {"said": f"ended with {process.returncode}: {tail}", **row}


def _path(peers: Path, evaluator: str) -> str:
    """Theirs first, then ours, then packages that this machine lacks."""
    own = {"LLMKernel": peers / "llmkernel", "KernelBench": peers / "kernelbench" / "src"}[evaluator]
    extra = [peers / "site"] if importlib.util.find_spec("pydantic") is None else []
    return os.pathsep.join(str(folder.resolve()) for folder in (own, ROOT, *extra))


def check(peers: Path) -> None:
    """Raises BenchmarkError unless the evaluators are there, as they are at the named commits."""
    for name, file in FILES.items():
        path = peers / file
        found = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "no file"
        if found != SHA256[name]:
            raise BenchmarkError(f"{path}: expected {name} at {COMMITS[name]} (sha256 {SHA256[name]}), found {found}")


def run(arguments: argparse.Namespace) -> Lines:
    """What is left, until the time is over."""
    check(arguments.peers)
    work = read_work(arguments.work)
    lines = Lines(arguments.out / "peers.jsonl")
    for old in arguments.resume:
        lines.add(*(row for row in Lines(old).rows if row["id"] not in lines.done))
    deadline = time.monotonic() + arguments.seconds
    tasks = {task.task_id: task.source for task in work.tasks}
    for evaluator, entry in order(work, arguments.kernels):
        left = deadline - time.monotonic()
        if left > 0 and f"{evaluator}|{entry.key}" not in lines.done:
            limit = min(arguments.limit_s, left)
            row = evaluate(evaluator, entry, tasks[entry.task_id], arguments.peers, limit, arguments.device)
            if row["accepted"] is None and limit < arguments.limit_s:
                break
            lines.add(row)
            say(f"{evaluator} {entry.task_id}: {row['wall_s']:.1f} s, accepted {row['accepted']}")
    return lines


def order(work: WorkList, kernels: int) -> list[tuple[str, Entry]]:
    """Every kernel by LLMKernel's evaluator, those of `slow_peers` by KernelBench's right after."""
    slow = set(work.slow_peers)
    found: list[tuple[str, Entry]] = []
    for entry in work.chosen(work.peers)[:kernels]:
        found.append(("LLMKernel", entry))
        if entry.key in slow:
            found.append(("KernelBench", entry))
    return found


def tables(lines: Lines, ours: Sequence[Mapping[str, Json]]) -> dict[str, list[dict[str, Json]]]:
    """Medians over kernels with how many times ours they are, and one row a kernel. `ours`: lines of judge_cost."""
    return {
        "Wall seconds per candidate": [row for name in EVALUATORS for row in total_rows(name, lines, ours)],
        "Kernels": kernel_rows(lines, ours),
    }


def total_rows(name: str, lines: Lines, ours: Sequence[Mapping[str, Json]]) -> list[dict[str, Json]]:
    """One row for each way of asking ours, over the kernels that both judged; evaluations without a verdict (killed, or
    the evaluator itself broke) have no time and are counted apart."""
    rows = lines.of(name)
    theirs = {row["key"]: float(row["wall_s"]) for row in rows if row["accepted"] is not None}
    counts = {"accepted": sum(row["accepted"] is True for row in rows), "no verdict": len(rows) - len(theirs)}
    label: dict[str, Json] = {"evaluator": f"{name} {COMMITS[name]}", **counts}
    alone = spread(theirs.values())
    found: list[dict[str, Json]] = [] if alone is None else [{**label, **alone.cells("s"), "ours": "-"}]
    for kind in ("warm", "cold"):
        mine = own_walls(ours, kind)
        both = [key for key in theirs if key in mine]
        walls, ratios = spread(theirs[key] for key in both), spread(theirs[key] / mine[key] for key in both)
        if walls is not None and ratios is not None:
            median = statistics.median(mine[key] for key in both)
            cells = {**label, **walls.cells("s"), "ours": kind, "ours median s": median}
            cells |= {"ratio of medians": walls.median / median, "median ratio": ratios.median}
            found.append(cells | ({"target": TARGETS[name]} if kind == "warm" else {}))
    return found


def own_walls(ours: Sequence[Mapping[str, Json]], kind: str) -> dict[str, float]:
    """Median wall seconds of our judgements of each kernel; judge and clock together."""
    walls: dict[str, list[float]] = {}
    for row in ours:
        if row["kind"] == kind:
            walls.setdefault(str(row["key"]), []).append(float(row["wall_s"]))
    return {key: statistics.median(values) for key, values in walls.items()}


def kernel_rows(lines: Lines, ours: Sequence[Mapping[str, Json]]) -> list[dict[str, Json]]:
    keys = dict.fromkeys(row["key"] for name in EVALUATORS for row in lines.of(name))
    found: list[dict[str, Json]] = []
    for key in keys:
        cells: dict[str, Json] = {"kernel": key}
        for name in EVALUATORS:
            for row in lines.of(name):
                if row["key"] == key:
                    cells |= {f"{name} s": row["wall_s"], f"{name} accepts": row["accepted"]}
                    cells |= {f"{name} speed-up": _speedup(row), f"{name} said": row["said"][-120:]}
        for kind in ("warm", "cold"):
            mine = own_walls(ours, kind)
            cells |= {f"ours {kind} s": mine[key]} if key in mine else {}
        verdicts = [row["outcome"] for row in ours if row["kind"] in ("warm", "cold") and row["key"] == key]
        found.append(cells | {"our verdict": verdicts[-1] if verdicts else None})
    return found


def _speedup(row: Mapping[str, Json]) -> float | None:
    times = row["reference_us"], row["candidate_us"]
    return None if None in times else float(times[0]) / float(times[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    if sys.argv[1:2] == ["one"]:
        parser.add_argument("command")
        parser.add_argument("evaluator", choices=list(EVALUATORS))
        parser.add_argument("device")
        for name in ("reference", "candidate", "answer"):
            parser.add_argument(name, type=Path)
        one(parser.parse_args())
        return
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--peers", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--ours", type=Path, help="lines of benchmarks.judge_cost")
    parser.add_argument("--resume", type=Path, action="append", default=[])
    parser.add_argument("--seconds", type=float, default=540.0)
    parser.add_argument("--limit-s", type=float, default=120.0, help="for one evaluation")
    parser.add_argument("--kernels", type=int, default=1000)
    parser.add_argument("--device", default="cuda:0")
    arguments = parser.parse_args()
    lines = run(arguments)
    ours = [] if arguments.ours is None else Lines(arguments.ours).rows
    write_report(arguments.out, "peers", machine("cuda"), tables(lines, ours))
    say((arguments.out / "peers.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
