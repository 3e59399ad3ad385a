"""The CUDA back-end on a real device: `pytest -m gpu` there. Skipped with a reason elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.backends.cuda import COUNTING
from engine.backends.detect import cuda_devices
from engine.records import Judged

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(cuda_devices() == 0, reason="no CUDA device answers"),
]

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def settings():
    from benchmarks.compose import compose

    return compose("cuda", {})


@pytest.fixture(scope="module")
def backend(settings, tmp_path_factory):
    from engine.backends.cuda import CudaBackend

    with CudaBackend(settings, ROOT, tmp_path_factory.mktemp("scratch")) as opened:
        yield opened


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    from benchmarks.device_smoke import CASES, _operators

    operators = _operators(tmp_path_factory.mktemp("facts"))
    return {name: (operators[name], kernel) for name, (_, kernel, _) in CASES.items()}


def test_the_device_is_described_without_torch(backend):
    assert backend.device.backend == "cuda"
    assert {"torch", "triton", "numpy", "python", "driver", "judge"} <= backend.device.facts.keys()
    assert backend.device.facts["driver"] != "unknown"


@pytest.mark.parametrize("name", ["rows", "matmul"])
def test_an_honest_kernel_is_correct(backend, cases, name):
    verdict = backend.judge(*cases[name])
    assert verdict.status.value == "correct", verdict.message


@pytest.mark.parametrize("label", ["wrong values", "does not compile", "tf32 under ieee"])
def test_a_broken_kernel_is_not(backend, cases, label):
    from benchmarks.device_smoke import BROKEN

    name, source, status = BROKEN[label]
    assert backend.judge(cases[name][0], source).status.value == status


def test_a_kernel_paired_with_itself_shows_no_difference(backend, cases):
    operator, kernel = cases["rows"]
    ratio = backend.measure(operator, Judged(kernel, None), Judged(kernel, None)).ratio("incumbent")
    assert ratio.lo - 0.01 <= 1.0 <= ratio.hi + 0.01
    assert ratio.hi / ratio.lo < 1.05


def test_doubled_work_is_recovered(backend, cases):
    operator, kernel = cases["rows"]
    once = "row_softmax_kernel[(rows,)](x, out, columns, BLOCK=triton.next_power_of_2(columns), num_warps=8)"
    assert once in kernel
    twice = kernel.replace(once, f"{once}\n        {once}")
    ratio = backend.measure(operator, Judged(kernel, None), Judged(twice, None)).ratio("incumbent")
    assert ratio.value == pytest.approx(2.0, rel=0.1)


def test_baselines_and_a_replayed_candidate_are_measured(backend, cases):
    operator, kernel = cases["matmul"]
    measurement = backend.measure(operator, Judged(kernel, None), None)
    kinds = {timing.who: timing.score_kind.value for timing in measurement.timings}
    assert kinds["candidate"] == "measured"
    assert kinds["eager"] == "measured"
    assert measurement.settings["matmul_tf32"] == "False"
    assert measurement.floor_us is not None
    assert measurement.timing("eager").median_us > measurement.floor_us * 0.9


def test_a_candidate_that_fails_while_timed_leaves_the_baselines(backend, cases):
    operator, kernel = cases["rows"]
    broken = kernel.replace("rows, columns = x.shape", "raise RuntimeError('not today')")
    measurement = backend.measure(operator, Judged(broken, None), None)
    assert measurement.timing("candidate") is None
    assert "not today" in measurement.note


def test_counters_describe_the_kernel_and_agree_with_algebra(backend, settings, cases):
    operator, kernel = cases["rows"]
    wanted = sorted(settings.metrics)
    candidate = Judged(kernel, backend.judge(operator, kernel).trace)
    values = {value.metric: value for value in backend.profile(operator, candidate, wanted)}
    assert set(values) == set(wanted)
    assert all(value.value is not None or value.note for value in values.values())
    reading = values["dram_read_bytes"]
    if reading.value is None:
        pytest.skip(f"no hardware counters here: {reading.note}")
    assert reading.source in COUNTING
    assert reading.value == pytest.approx(8192 * 8192 * 4, rel=0.2)
    assert values["launches"].value == 1


def test_an_absent_tool_degrades_by_declaration(settings, cases, tmp_path):
    from dataclasses import replace

    from engine.backends.cuda import CudaBackend

    declared = settings.backends["cuda"]
    # CUPTI, which comes before it, needs no tool.
    rungs = {name: rung for name, rung in declared.profilers.items() if name != "cupti"}
    without = replace(declared, profilers={**rungs, "ncu": replace(rungs["ncu"], path="no-such-ncu")})
    with CudaBackend(replace(settings, backends={"cuda": without}), ROOT, tmp_path) as backend:
        operator, kernel = cases["rows"]
        (value,) = backend.profile(operator, Judged(kernel, None), ["dram_pct"])
    assert value.value is None
    assert "no-such-ncu" in value.note
