"""Which launches of a long call are measured, and how many each of them stands for."""

from __future__ import annotations

import pytest

from engine.records import Launch, Trace
from profilers.sampling import function_name, weighed, window
from profilers.seam import KernelSample, coverage


@pytest.mark.parametrize(
    ("printed", "bare"),
    [
        ("row_kernel", "row_kernel"),
        ("row_kernel(float *, int)", "row_kernel"),
        ("void at::native::kernel<4, Functor<float, float>, std::array<char *, 2>>(int, T2)", "kernel"),
        ("void (anonymous namespace)::softmax<float, 10>(float *)", "softmax"),
        ("void ns<int>::inner::gemm<(Kind)2, true>(Params<ns<int>>)", "gemm"),
        ("_Z3fooPfi", "_Z3fooPfi"),
        ("", ""),
    ],
)
def test_the_bare_name_of_a_kernel(printed, bare):
    assert function_name(printed) == bare


@pytest.mark.parametrize(
    ("order", "limit", "chosen"),
    [
        pytest.param("abcabcabc", 5, (0, 3), id="time-loop"),
        pytest.param("aaaab", 3, (3, 2), id="rare-kernel-last"),
        pytest.param("aaaabaaaac", 3, (3, 2), id="not-all-in-reach"),
        pytest.param("aaaa", 2, (0, 1), id="one-kernel"),
        pytest.param("ab", 9, (0, 2), id="all"),
        pytest.param("abbbbbac", 4, (5, 3), id="shortest"),
        pytest.param("", 4, (0, 0), id="nothing"),
    ],
)
def test_the_window_holds_the_most_kernels_in_the_fewest_launches(order, limit, chosen):
    skip, count = window(tuple(order), limit)
    assert (skip, count) == chosen
    assert count <= limit


def test_the_window_agrees_with_trying_every_stretch():
    order = tuple("aabacadbbacdabcdaabb")
    for limit in range(1, 8):
        stretches = [(s, n) for n in range(1, limit + 1) for s in range(len(order) - n + 1)]
        best = max(stretches, key=lambda each: (len(set(order[each[0] : sum(each)])), -each[1], -each[0]))
        assert window(order, limit) == best


def launch(kernel: str, count: int, grid=(8, 1, 1)) -> Launch:
    return Launch(kernel, grid, count, 0.0, 4, 3, False)


def sample(kernel: str, grid=(8, 1, 1)) -> KernelSample:
    return KernelSample(kernel, 1.0, {}, grid=grid)


def weights(record: Trace | None, *samples: KernelSample) -> list[float]:
    return [each.launches for each in weighed(samples, record)]


def test_each_sample_stands_for_its_kernels_launches():
    record = Trace((launch("a", 3000), launch("b", 1)), ())
    assert weights(record, sample("a"), sample("a"), sample("b")) == [1500.0, 1500.0, 1.0]


def test_samples_of_different_grids_stand_for_the_launches_of_their_grid():
    record = Trace((launch("a", 30), launch("a", 10, (1, 1, 1)), launch("a", 40, (2, 1, 1))), ())
    assert weights(record, sample("a"), sample("a", (1, 1, 1))) == [60.0, 20.0]
    assert weights(record, sample("a"), sample("a", (7, 1, 1))) == [40.0, 40.0]
    assert weights(record, sample("a", None), sample("a", None)) == [40.0, 40.0]


def test_what_the_record_does_not_have_counts_as_measured():
    record = Trace((launch("a", 1),), ())
    assert weights(record, sample("library"), sample("a"), sample("a")) == [1.0, 1.0, 1.0]
    assert weights(None, sample("a")) == [1.0]


def test_the_weights_add_up_to_the_launches_of_the_kernels_that_were_seen():
    record = Trace((launch("a", 7), launch("a", 5, (1, 1, 1)), launch("b", 100)), ())
    samples = weighed((sample("a"), sample("a"), sample("a", (1, 1, 1)), sample("b")), record)
    assert sum(each.launches for each in samples) == pytest.approx(112)
    assert coverage(samples) == "4 of 112 launches were measured, of 2 kernels"
