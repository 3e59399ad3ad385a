"""judge.sandbox reaches every process that is started behind a launcher."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks.compose import compose
from engine.backends import cuda
from engine.errors import ProfilerError
from engine.judging.gpu_state import Gpu
from engine.judging.seats import Seat
from engine.judging.service import GpuSide, NcuTool
from tests.unit.test_cuda_backend import CANDIDATE, OPERATOR, SOURCE, TASK, TRACE, FakeJudge

HOW = pytest.mark.parametrize(("sandbox", "required"), [("required", True), ("best_effort", False)])


def asks_for_all(launcher):
    return json.loads(Path(launcher[-1]).read_text())["required"]


@HOW
@pytest.mark.parametrize("tool", ["ncu", "trace"])
def test_a_back_ends_launchers(tmp_path, monkeypatch, sandbox, required, tool):
    found = []

    class Tool:
        name = tool

        def __init__(self, path, timeout_s, max_launches, launcher):
            found.append(asks_for_all(launcher))

        def available(self):
            return None

        def collect(self, job, counters):
            raise ProfilerError("told")

    seat = Seat(Gpu(0, "NVIDIA H200", "GPU-1", "580.1"), None)
    monkeypatch.setattr(cuda, "take_seat", lambda device, find, count: seat)
    monkeypatch.setattr(cuda, "JudgeClient", FakeJudge)
    monkeypatch.setattr(cuda, "lock_path", lambda uuid: tmp_path / "lock")
    monkeypatch.setattr(cuda, "Ncu" if tool == "ncu" else "KernelTrace", Tool)
    settings = compose("cuda", {})
    settings = dataclasses.replace(settings, judge=dataclasses.replace(settings.judge, sandbox=sandbox))
    with cuda.CudaBackend(settings, Path(), tmp_path) as backend:
        profiler = backend._backend.profilers[tool]
        if tool == "ncu":
            backend._ncu_script(profiler, OPERATOR, CANDIDATE.source, TRACE, ("c",))
        else:
            recorded = cuda.Answer("trace", ())
            backend._traced(profiler, OPERATOR, SOURCE, TRACE, sorted(cuda.TRACED)[:1], recorded)
    assert found == [required]


@HOW
def test_the_judges_launcher_of_ncu(tmp_path, sandbox, required):
    limits = compose("cuda", {}).judge.limits
    found = []
    side = SimpleNamespace(
        bench=SimpleNamespace(
            scratch=str(tmp_path),
            limits=limits,
            required=sandbox == "required",
            environment={},
            cuda=SimpleNamespace(flush_l2=False),
        ),
        replays=SimpleNamespace(counted_by=lambda tool, *_, **__: found.append(asks_for_all(tool.launcher))),
    )
    GpuSide.counted_by_ncu(side, TASK, SOURCE, ("c",), 4, NcuTool("ncu", 5.0))
    assert found == [required]
