"""A plan where the driver reserves hardware counters: it runs to its end on what needs no permission, and the database
says which values stand for which counters."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from benchmarks.compose import compose as compose_device
from engine import store
from engine.backends import cuda
from engine.canonical import digest_text
from engine.errors import ProfilerError
from engine.judging.gpu_state import Gpu
from engine.metrics.__main__ import main as metrics
from engine.records import Launch, Trace
from tests.flow.test_runner import FAST_STAGES, go, of  # noqa: F401
from tests.support.fake_backend import FakeBackend

FORBIDDEN = "the driver reserves hardware counters for administrators"
COMPILED = Launch("kernel", (64, 1, 1), 3, 4e6, 4, 2, has_dot=False, registers=168, spill_bytes=0, shared_bytes=49152)


class NoCounters:
    """Stands for the judge's client and for ncu: both are refused counters."""

    name = "ncu"

    def __init__(self, *_: object) -> None:
        pass

    def available(self) -> str:
        return FORBIDDEN

    def count(self, *_: object) -> None:
        raise ProfilerError(FORBIDDEN)

    def close(self) -> None:
        pass


class WithoutCounters(FakeBackend):
    """A fake judge and clock before the real ladder of the CUDA back-end."""

    def __init__(self, ladder: cuda.CudaBackend) -> None:
        super().__init__()
        self.ladder = ladder

    def judge(self, operator, source):
        return dataclasses.replace(super().judge(operator, source), trace=Trace((COMPILED,), ()))

    def profile(self, operator, candidate, metrics):
        return self.ladder.profile(operator, candidate, metrics)


@pytest.fixture
def forbidden(tmp_path, monkeypatch):
    monkeypatch.setattr(cuda, "find_gpu", lambda ordinal: Gpu(0, "NVIDIA H200", "GPU-1", "580.1"))
    monkeypatch.setattr(cuda, "JudgeClient", NoCounters)
    monkeypatch.setattr(cuda, "Ncu", NoCounters)
    with cuda.CudaBackend(compose_device("cuda", {}), Path(), tmp_path) as ladder:
        yield WithoutCounters(ladder)


STAGE = "categories.fusion_memory.stages.primary_conv"
LISTED = "[dram_pct,dram_bytes,l2_hit_pct,occupancy_pct,registers,compute_pct,time_us]"


def test_the_plan_ends_and_the_database_says_what_stands_for_what(go, forbidden):  # noqa: F811
    events, outcome, llm = go(FAST_STAGES, f"{STAGE}.metrics={LISTED}", backend=forbidden)
    assert outcome.exit_code == 0, of(events, "task_failed")
    assert of(events, "task_ended")[0]["outcome"] == "done"

    results = go.folder / "results"
    store.ingest(results)
    rows = store.query(
        results,
        "SELECT metric, value IS NOT NULL, source, confidence, note FROM metrics "
        "WHERE stage = 'primary_conv' AND candidate_id IS NOT NULL ORDER BY seq",
    ).rows
    found = {metric: (known, source, confidence) for metric, known, source, confidence, _ in rows}
    assert found == {
        "dram_pct": (True, "algebra", 0.3),
        "dram_bytes": (True, "trace", 0.4),
        "l2_hit_pct": (False, "", 0.0),
        "occupancy_pct": (True, "static", 0.5),
        "registers": (True, "static", 1.0),
        "compute_pct": (True, "algebra", 0.3),
        "time_us": (True, "algebra", 0.9),
    }
    notes = {metric: note for metric, *_, note in rows}
    assert f"ncu: {FORBIDDEN}" in notes["dram_pct"] and "a lower bound" in notes["dram_pct"]
    assert f"ncu: {FORBIDDEN}" in notes["l2_hit_pct"]
    assert notes["registers"] == ""

    prompt = llm.prompts["primary_conv.optimise.0.0"]
    assert "[algebra] (a substitute, confidence 0.3: compulsory bytes at copy bandwidth" in prompt
    assert "best kernel now: 18.75; best before it: not available; PyTorch: not available [static]" in prompt


def test_a_stage_may_demand_more_confidence_than_substitutes_have(go, forbidden):  # noqa: F811
    name = f"{STAGE}.skip_when.busy"
    rule = f"+{name}={{when: 'dram_pct > 0', why: busy}}"
    skipped, _, _ = go(FAST_STAGES, rule, f"{STAGE}.metrics=[dram_pct]", backend=forbidden)
    assert of(skipped, "rule", rule="busy")[0]["outcome"] == "true"

    events, outcome, llm = go(
        FAST_STAGES, rule, f"{STAGE}.metrics=[dram_pct]", f"+{STAGE}.min_confidence=0.5", backend=forbidden
    )
    assert outcome.exit_code == 0
    (evaluation,) = of(events, "rule", rule="busy")
    assert (evaluation["outcome"], evaluation["missing"]) == ("unknown", ["dram_pct"])
    stored = next(e for e in of(events, "metric", stage="primary_conv") if e["candidate_id"])
    assert stored["value"] is not None
    assert stored["note"].startswith("not used: confidence 0.3 is below this stage's min_confidence 0.5; ")
    prompt = llm.prompts["primary_conv.optimise.0.0"]
    assert "best kernel now: not available" in prompt
    assert "(not used: confidence 0.3 is below this stage's min_confidence 0.5)" in prompt


def test_recorded_metrics_are_shown_by_file_and_by_candidate(go, forbidden, capsys):  # noqa: F811
    events, _, _ = go(FAST_STAGES, f"{STAGE}.metrics={LISTED}", backend=forbidden)
    results = go.folder / "results"
    store.ingest(results)
    (seed,) = of(events, "candidate", stage="seed")
    files = results.glob("runs/*/tasks/toy/**/*.py")
    file = next(path for path in files if digest_text(path.read_text()) == seed["source_hash"])
    assert metrics(["show", seed["candidate_id"], "--results", str(results)]) == 0
    shown = capsys.readouterr().out
    assert "dram_pct" in shown and "algebra" in shown and "0.3" in shown and FORBIDDEN in shown
    assert metrics(["show", str(file), "--results", str(results)]) == 0
    assert capsys.readouterr().out == shown


@pytest.mark.parametrize("kernel_name", ["no_such_file.py", "abcdef0123"])
def test_a_kernel_without_records_ends_with_2(go, capsys, kernel_name):  # noqa: F811
    go(FAST_STAGES)
    results = go.folder / "results"
    store.ingest(results)
    assert metrics(["show", kernel_name, "--results", str(results)]) == 2
    assert kernel_name in capsys.readouterr().err
