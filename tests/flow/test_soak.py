"""Hanging, crashing and hoarding candidates among honest and wrong ones in one judge, and what is left of a judge that
nobody waits for any more."""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.judge_soak import DEVICE, HOG, Kind, Soak, faults, kinds, processes
from benchmarks.worklist import Lines

ROOT = Path(__file__).resolve().parents[2]
CANDIDATES = 14
LIMIT_S = 10.0
"""For tracing and for running one candidate: several times what an honest one of the mix takes."""

SLOW_HOG = "host memory hog"
AT_ONCE = Kind("hog", "harmful", "gelu", DEVICE.format(spoil="", before=HOG), ("failed: out_of_memory",))
"""In place of the corpus's, which takes its memory page by page: seconds, or the limit on a busy machine."""

SAME = ("outcome", "mode", "error_ratio", "variant", "suite", "class")
WAIT_S = 60.0


def soaked(folder: Path, candidates: list) -> tuple[list[dict], list[str]]:
    """Rows of candidates judged one after another by one judge, and what did not hold."""
    lines = Lines(folder / "soak.jsonl")
    Soak(argparse.Namespace(backend="cpu", seconds=600.0, lanes=1, limit_s=LIMIT_S), lines).run(candidates)
    rows = sorted(lines.of("candidate"), key=lambda row: int(row["id"].partition("|")[2]))
    return rows, faults(candidates, lines)


def mixed(harmless: list, harmful: list) -> list:
    """Shuffled: harmful ones once, harmless ones in turn."""
    dealt = [*harmful, *(harmless[number % len(harmless)] for number in range(CANDIDATES - len(harmful)))]
    random.Random(1).shuffle(dealt)
    return dealt


@pytest.mark.slow
def test_what_others_do_to_the_judge_changes_no_verdict(tmp_path):
    found = [AT_ONCE, *(kind for kind in kinds("cpu") if not kind.name.startswith(SLOW_HOG))]
    # Every other one: honest and wrong ones are among them.
    harmless = [kind for kind in found if kind.group != "harmful"][::2]
    assert len({kind.group for kind in harmless}) == 2
    alone, wrong = soaked(tmp_path / "alone", harmless)
    assert wrong == []
    harmful = [kind for kind in found if kind.group == "harmful"]
    dealt = mixed(harmless, harmful)
    assert {kind.name for kind in dealt} == {kind.name for kind in (*harmless, *harmful)}
    rows, wrong = soaked(tmp_path / "mixed", dealt)
    assert wrong == []
    assert len(rows) == CANDIDATES
    by_name = {row["name"]: [row[name] for name in SAME] for row in alone}
    neighbours = [row for row in rows if row["name"] in by_name]
    assert len(neighbours) > len(harmless)
    assert [[row[name] for name in SAME] for row in neighbours] == [by_name[row["name"]] for row in neighbours]


HANGS = """
import torch
import torch.nn as nn
import triton
import triton.language as tl


@triton.jit
def gelu_kernel(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offsets, mask=offsets < n)
    tl.store(y_ptr + offsets, 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476)), mask=offsets < n)


class ModelNew(nn.Module):
    def forward(self, x):
        y = torch.empty_like(x)
        gelu_kernel[(triton.cdiv(x.numel(), 1024),)](x, y, x.numel(), BLOCK=1024)
        print("hangs from here on", flush=True)
        while True:
            pass
"""


def until(condition, what: str):
    deadline = time.monotonic() + WAIT_S
    while not (seen := condition()):
        assert time.monotonic() < deadline, what
        time.sleep(0.1)
    return seen


@pytest.mark.parametrize("ended_by", [signal.SIGTERM, signal.SIGKILL], ids=lambda sent: sent.name)
def test_a_controller_that_ends_while_a_candidate_hangs_leaves_no_process(tmp_path, ended_by):
    candidate = tmp_path / "candidate.py"
    candidate.write_text(HANGS)
    words = [sys.executable, "-m", "engine.judge", "gelu", str(candidate), "--backend", "cpu"]
    with (tmp_path / "log").open("w") as log:
        # The scratch folder lies below TMPDIR, and every process of the judge has it in its environment.
        environment = {**os.environ, "TMPDIR": str(tmp_path)}
        controller = subprocess.Popen(words, cwd=ROOT, env=environment, stdout=log, stderr=log)
    try:
        printed = "kernel-judge-*/judge-*/candidates/c*/output.txt"
        until(
            lambda: any("hangs from here on" in path.read_text() for path in tmp_path.glob(printed)),
            "the candidate was never called",
        )
        # The controller, its judge, two fork servers and the candidate.
        assert len(processes([str(tmp_path)])) >= 5
    finally:
        controller.send_signal(ended_by)
        controller.wait()
    assert controller.returncode == -ended_by
    # Of the ended, those that nobody has waited for yet have no environment any more.
    until(lambda: not processes([str(tmp_path)]), f"left: {processes([str(tmp_path)])}")
