"""ncu's parser against files that ncu wrote on an H200, and against the ladder's aggregation."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from engine.backends.ladder import Answer, metric_values
from engine.settings import Metric, Spelling
from profilers.ncu import DURATION, parse

SAMPLES = Path(__file__).resolve().parents[2].parent / "shared" / "samples" / "ncu"
DRAM = "dram__throughput.avg.pct_of_peak_sustained_elapsed"
L2 = "lts__t_sector_hit_rate.pct"
GHOST = "smsp__warp_issue_stalled_memory_dependency_per_warp_active.pct"

pytestmark = pytest.mark.skipif(not SAMPLES.is_dir(), reason=f"no ncu samples at {SAMPLES}")

FILES = {
    "matmul_sigmoid_sum_core6": 6,
    "matmul_sigmoid_sum_core6_clock_none_cache_none": 6,
    "softmax_3_kernels_core6": 18,
    "softmax_3_kernels_core6_clock_none_cache_none": 18,
    "softmax_3_kernels_core6_nofilter": None,
    "softmax_3_kernels_full24": 18,
}


def read(name: str):
    return parse((SAMPLES / f"{name}.csv").read_text())


@pytest.mark.parametrize(("name", "launches"), FILES.items(), ids=FILES)
def test_every_launch_is_read_with_its_duration_and_counters(name, launches):
    samples = read(name)
    lines = (SAMPLES / f"{name}.csv").read_text().splitlines()
    data = [row for row in csv.reader(lines) if row and row[0].isdecimal()]
    assert len(samples) == len(data)
    assert launches is None or len(samples) == launches
    for sample in samples:
        assert sample.duration_us is not None
        assert 100 < sample.duration_us < 10_000
        assert sample.counters[DURATION] == pytest.approx(sample.duration_us * 1e3)
        assert 0 < sample.counters[DRAM] <= 100
        assert GHOST not in sample.counters


def test_the_first_row_of_a_measured_file_to_the_digit():
    first = read("matmul_sigmoid_sum_core6")[0]
    assert first.kernel == "linear_sigmoid_row_sum_kernel"
    assert first.duration_us == 1252.256
    assert (first.counters[DRAM], first.counters[L2]) == (71.86, 37.44)
    assert first.counters["launch__registers_per_thread"] == 226
    assert first.counters["launch__shared_mem_config_size"] == 233472
    assert "launch__cluster_scheduling_policy" not in first.counters


def test_three_kernels_of_one_call_add_up_to_the_timed_call():
    samples = read("softmax_3_kernels_core6_clock_none_cache_none")
    call = samples[:3]
    assert len({sample.kernel for sample in call}) == 3
    total = sum(sample.duration_us or 0.0 for sample in call)
    assert total == pytest.approx(6150, rel=0.02)


def test_aggregation_weights_kernels_by_time():
    call = read("softmax_3_kernels_core6")[:3]
    vocabulary = {
        "mean": Metric("%", "max", "DRAM use.", 0, 100, "time_mean", {"ncu": Spelling(DRAM)}),
        "time": Metric("us", "min", "Time.", 0, None, "sum", {"ncu": Spelling(DURATION, 0.001)}),
        "ghost": Metric("%", "min", "Named on no chip.", 0, 100, "time_mean", {"ncu": Spelling(GHOST)}),
    }
    mean, time, ghost = metric_values(list(vocabulary), vocabulary, [Answer("ncu", call)])
    times = [sample.duration_us or 0.0 for sample in call]
    shares = [sample.counters[DRAM] for sample in call]
    assert time.value == pytest.approx(sum(times))
    assert mean.value == pytest.approx(sum(t * s for t, s in zip(times, shares, strict=True)) / sum(times))
    assert min(shares) < (mean.value or 0) < max(shares)
    assert ghost.value is None
    assert GHOST in ghost.note


def test_the_long_layout():
    samples = read("synthetic_long_layout")
    assert [sample.duration_us for sample in samples][::2] == [131.264, 130.912]
    assert samples[1].kernel.startswith("void at::native::vectorized_elementwise_kernel<4, at::native::AUnaryFunctor")
    assert samples[0].counters["dram__bytes_read.sum"] == 268435968
    assert all("smsp__no_such_metric.pct" not in sample.counters for sample in samples)
