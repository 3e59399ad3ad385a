"""ncu's parser against files that ncu wrote on an H200: excerpts, and whole files where they lie beside this folder."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from engine.backends.ladder import Answer, metric_values
from engine.settings import Metric, Spelling
from profilers.ncu import DURATION, parse
from profilers.seam import absent

EXCERPTS = Path(__file__).resolve().parents[1] / "data" / "ncu"
SAMPLES = Path(__file__).resolve().parents[3] / "shared" / "samples" / "ncu"
DRAM = "dram__throughput.avg.pct_of_peak_sustained_elapsed"
L2 = "lts__t_sector_hit_rate.pct"
GHOSTS = (
    "smsp__warp_issue_stalled_memory_dependency_per_warp_active.pct",
    "sm__inst_executed_pipe_fp32.avg.pct_of_peak_sustained_active",
)

whole_files = pytest.mark.skipif(not SAMPLES.is_dir(), reason=f"no ncu samples at {SAMPLES}")

FILES = {
    "matmul_sigmoid_sum_core6": 6,
    "matmul_sigmoid_sum_core6_clock_none_cache_none": 6,
    "softmax_3_kernels_core6": 18,
    "softmax_3_kernels_core6_clock_none_cache_none": 18,
    "softmax_3_kernels_core6_nofilter": 18,
    "softmax_3_kernels_full24": 18,
}


def test_the_wide_excerpt_to_the_digit():
    samples = parse((EXCERPTS / "wide_3_kernels.csv").read_text())
    assert [(s.kernel, s.duration_us, s.counters[DRAM], s.counters[L2], s.grid) for s in samples] == [
        ("softmax_max_kernel", 1427.04, 93.89, 0.53, (4096, 1, 1)),
        ("softmax_exp_sum_kernel", 1440.032, 93.04, 0.48, (4096, 1, 1)),
        ("softmax_final_kernel", 3275.84, 81.75, 50.93, (4096, 1, 1)),
    ]
    first = samples[0].counters
    assert first["launch__registers_per_thread"] == 20
    assert first["launch__shared_mem_config_size"] == 32768
    assert first["device__attribute_max_gpu_frequency_khz"] == 1980000
    assert {"launch__cluster_scheduling_policy", "launch__kernel_name", "device__attribute_display_name"}.isdisjoint(
        first
    )
    assert absent(samples, [DRAM, *GHOSTS, L2]) == GHOSTS


def test_roll_ups_that_come_unasked_are_left_out():
    (first, *_) = parse((EXCERPTS / "wide_3_kernels.csv").read_text(), [DRAM])
    assert first.counters == {DRAM: 93.89, DURATION: 1427040.0}


def test_the_kernels_of_the_excerpt_add_up_to_the_call_that_events_timed():
    samples = parse((EXCERPTS / "wide_3_kernels.csv").read_text())
    assert sum(sample.duration_us or 0.0 for sample in samples) == pytest.approx(6200, rel=0.02)


def test_the_long_excerpt_to_the_digit():
    samples = parse((EXCERPTS / "long_2_kernels.csv").read_text())
    assert [(s.duration_us, s.counters["dram__bytes_read.sum"]) for s in samples] == [
        (131.264, 268435968.0),
        (128.928, 268436480.0),
        (130.912, 268436224.0),
    ]
    assert samples[1].kernel.startswith("void at::native::vectorized_elementwise_kernel<4, at::native::AUnaryFunctor")
    assert all("smsp__no_such_metric.pct" not in sample.counters for sample in samples)


def read(name: str):
    return parse((SAMPLES / f"{name}.csv").read_text())


@whole_files
@pytest.mark.parametrize(("name", "launches"), FILES.items(), ids=FILES)
def test_every_launch_of_a_whole_file_is_read_with_its_duration_and_counters(name, launches):
    samples = read(name)
    lines = (SAMPLES / f"{name}.csv").read_text().splitlines()
    data = [row for row in csv.reader(lines) if row and row[0].isdecimal()]
    assert len(samples) == len(data) == launches
    for sample in samples:
        assert sample.duration_us is not None
        assert 100 < sample.duration_us < 10_000
        assert sample.counters[DURATION] == pytest.approx(sample.duration_us * 1e3)
        assert 0 < sample.counters[DRAM] <= 100
    assert absent(samples, [DRAM, L2, *GHOSTS]) == GHOSTS


@whole_files
def test_the_first_row_of_a_whole_file_to_the_digit():
    first = read("matmul_sigmoid_sum_core6")[0]
    assert first.kernel == "linear_sigmoid_row_sum_kernel"
    assert first.duration_us == 1252.256
    assert (first.counters[DRAM], first.counters[L2]) == (71.86, 37.44)
    assert first.counters["launch__registers_per_thread"] == 226
    assert first.counters["launch__shared_mem_config_size"] == 233472
    assert "launch__cluster_scheduling_policy" not in first.counters


@whole_files
def test_six_calls_of_three_kernels_repeat_in_order():
    samples = read("softmax_3_kernels_core6_clock_none_cache_none")
    names = [sample.kernel for sample in samples]
    assert names == names[:3] * 6
    assert len(set(names)) == 3
    assert sum(sample.duration_us or 0.0 for sample in samples[:3]) == pytest.approx(6150, rel=0.02)


@whole_files
def test_the_long_layout_of_a_whole_file():
    samples = read("synthetic_long_layout")
    assert [sample.duration_us for sample in samples] == [131.264, 128.928, 130.912]
    assert samples[0].counters["dram__bytes_read.sum"] == 268435968
    assert all("smsp__no_such_metric.pct" not in sample.counters for sample in samples)


@whole_files
def test_aggregation_weights_kernels_by_time():
    call = read("softmax_3_kernels_core6")[:3]
    vocabulary = {
        "mean": Metric("%", "max", "DRAM use.", 0, 100, "time_mean", {"ncu": Spelling(DRAM)}),
        "time": Metric("us", "min", "Time.", 0, None, "sum", {"ncu": Spelling(DURATION, scale=0.001)}),
        "ghost": Metric("%", "min", "Named on no chip.", 0, 100, "time_mean", {"ncu": Spelling(GHOSTS[0])}),
    }
    mean, time, ghost = metric_values(list(vocabulary), vocabulary, [Answer("ncu", call)])
    times = [sample.duration_us or 0.0 for sample in call]
    shares = [sample.counters[DRAM] for sample in call]
    assert time.value == pytest.approx(sum(times))
    assert mean.value == pytest.approx(sum(t * s for t, s in zip(times, shares, strict=True)) / sum(times))
    assert min(shares) < (mean.value or 0) < max(shares)
    assert ghost.value is None
    assert GHOSTS[0] in ghost.note
