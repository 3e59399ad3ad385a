"""Cross-evidence: what contradicts what, which metrics that spoils, and what it leaves alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from engine.backends.ceilings import known_rates
from engine.backends.ladder import Answer
from engine.backends.sanity import Evidence, Run, checked, contradictions, profiled
from engine.records import Facts, HostOp, Launch, MetricValue, OpCost, Trace
from profilers.seam import KernelSample, Workload

# 8.6 GB at 4300 GB/s take 2000 µs; L2 holds 60 MB.
FACTS = Facts(1, 0, 0, 0, 0, 1, 0, 0, 0, None, None, 2e9, 8.6e9, 0.25, "float32", "full")
RATES = {"dram_gbps": 4300.0, "fp32_tflops": 67.0, "tf32_tflops": 494.0, "fp16_tflops": 790.0}
TRACE = Trace((Launch("k", (8, 1, 1), 1, 0.0, 4, 3, False),), ())
EVIDENCE = Evidence(FACTS, known_rates(RATES, "conf"), 6e7, TRACE, Run(us=2100.0), {"ncu": Run(us=2150.0, launches=1)})
GOOD = {"time_us": 2150.0, "dram_read_bytes": 4.4e9, "dram_write_bytes": 4.3e9, "dram_pct": 88.0, "registers": 40.0}
UNITS = {"dram_pct": "percent", "time_us": "us"}


def values(source="ncu", **changed):
    return tuple(
        MetricValue(name, value, UNITS.get(name, "bytes"), source, 1.0) for name, value in {**GOOD, **changed}.items()
    )


def spoilt(given, evidence=EVIDENCE):
    return {value.metric for value in checked(given, evidence) if value.contradiction}


def test_agreeing_evidence_changes_nothing():
    assert checked(values(), EVIDENCE) == values()


MATMUL = replace(FACTS, flops=2e12, costs=(OpCost("matmul", "matmul", 1, 2e12, 0.0),))
DRAM = {"dram_read_bytes", "dram_write_bytes", "dram_pct"}
ALL = set(GOOD)


@pytest.mark.parametrize(
    ("changed", "evidence", "check", "names"),
    [
        pytest.param({"dram_read_bytes": 1e9}, {}, "compulsory bytes", DRAM, id="too-few-bytes"),
        pytest.param(
            {}, {"profiled": {"ncu": Run(us=900.0, launches=1)}}, "profiled time", ALL, id="profiled-too-short"
        ),
        pytest.param(
            {}, {"profiled": {"ncu": Run(us=5000.0, launches=1)}}, "profiled time", ALL, id="profiled-too-long"
        ),
        pytest.param({"time_us": 1500.0}, {}, "bandwidth", {*DRAM, "time_us"}, id="faster-than-the-memory"),
        pytest.param({"time_us": 2150.0}, {"facts": MATMUL}, "arithmetic", {"time_us"}, id="faster-than-arithmetic"),
        pytest.param({}, {"profiled": {"ncu": Run(us=2150.0, launches=2)}}, "launches", ALL, id="more-launches"),
        pytest.param(
            {},
            {"timed": Run(us=2100.0, dtype="float32"), "profiled": {"ncu": Run(dtype="float16")}},
            "dtype",
            ALL,
            id="another-dtype",
        ),
        pytest.param(
            {},
            {"timed": Run(us=2100.0, precision="ieee"), "profiled": {"ncu": Run(precision="tf32")}},
            "precision",
            ALL,
            id="another-precision",
        ),
        pytest.param({"dram_pct": 140.0}, {}, "percentage", {"dram_pct"}, id="percentage-above-100"),
        pytest.param({"dram_pct": -3.0}, {}, "percentage", {"dram_pct"}, id="negative-percentage"),
    ],
)
def test_a_contradiction_takes_confidence_and_says_why(changed, evidence, check, names):
    given = values(**changed)
    held = replace(EVIDENCE, **evidence)
    if "facts" in evidence:
        # 2e12 FLOP in 2150 µs are 930 TFLOP/s, more than the 790 of fp16.
        held = replace(held, facts=MATMUL)
    assert {one.check for one in contradictions(given, held)} == {check}
    assert spoilt(given, held) == names
    for before, after in zip(given, checked(given, held), strict=True):
        assert after.value == before.value
        assert after.confidence == (0.0 if after.metric in names else 1.0)
        assert (check in after.note) == (after.metric in names)


@pytest.mark.parametrize(
    ("changed", "evidence"),
    [
        pytest.param({"dram_read_bytes": 1e6, "dram_write_bytes": 0.0}, {"l2_bytes": 1e10}, id="fits-into-l2"),
        pytest.param({"dram_write_bytes": None, "dram_read_bytes": 1.0}, {}, id="half-of-the-bytes-unknown"),
        pytest.param({"dram_read_bytes": 1e9}, {"facts": replace(FACTS, traced="small")}, id="sizes-unknown"),
        pytest.param(
            {"dram_read_bytes": 1e9},
            {"trace": replace(TRACE, host_ops=(HostOp("aten.add", 1, True, 0.0, 8e9),))},
            id="torch-moves-the-rest",
        ),
        pytest.param({}, {"timed": Run(), "profiled": {"ncu": Run(us=1.0, launches=1)}}, id="no-measured-time"),
        pytest.param({}, {"profiled": {"ncu": Run(us=40.0, launches=16, sampled=True)}, "trace": None}, id="sampled"),
        pytest.param({}, {"profiled": {"ncu": Run(us=2150.0, launches=9)}, "trace": None}, id="eager-has-no-plan"),
        pytest.param({"time_us": 1990.0}, {}, id="within-the-peak"),
    ],
)
def test_what_is_unknown_or_allowed_contradicts_nothing(changed, evidence):
    assert contradictions(values(**changed), replace(EVIDENCE, **evidence)) == ()


@pytest.mark.parametrize(
    ("name", "computes", "contradicted"),
    [
        ("aten.empty_like", False, True),
        ("aten.view", False, True),
        ("aten.copy_", False, False),
        ("aten.add", True, False),
    ],
)
def test_only_host_operations_that_move_bytes_excuse_a_kernel(name, computes, contradicted):
    trace = replace(TRACE, host_ops=(HostOp(name, 1, computes, 0.0, 8e9),))
    found = contradictions(values(dram_read_bytes=3e8, dram_write_bytes=3e8), replace(EVIDENCE, trace=trace))
    assert ("compulsory bytes" in {one.check for one in found}) is contradicted


@pytest.mark.parametrize("sampled", [True, False])
def test_fewer_launches_are_a_sample_and_no_contradiction(sampled):
    trace = Trace((replace(TRACE.launches[0], count=3),), ())
    run = Run(us=700.0, launches=1, sampled=sampled)
    assert contradictions(values(), replace(EVIDENCE, trace=trace, profiled={"ncu": run})) == ()


def test_a_read_peak_that_was_measured_counts():
    known = replace(EVIDENCE.known, values={**RATES, "dram_read_gbps": 4350.0})
    # 4578 GB/s: within the pin rate that a copy suggests, beyond what reading was seen to reach.
    given = values(time_us=1900.0)
    assert contradictions(given, EVIDENCE) == ()
    assert {one.check for one in contradictions(given, replace(EVIDENCE, known=known))} == {"bandwidth"}


def test_only_counters_are_doubted():
    given = values("algebra", dram_read_bytes=1.0, dram_pct=300.0)
    assert contradictions(given, EVIDENCE) == ()


def test_values_of_another_source_keep_their_confidence():
    given = (*values(), MetricValue("launches", 1.0, "launches", "trace", 1.0))
    held = replace(EVIDENCE, profiled={"ncu": Run(us=900.0, launches=1)})
    assert "launches" not in spoilt(given, held)


def test_what_a_ladder_ran_is_read_from_its_samples():
    kernels = (KernelSample("a", 30.0, {}), KernelSample("b", 12.0, {}))
    partial = (KernelSample("a", 30.0, {}), KernelSample("b", None, {}))
    answers = (Answer("ncu", kernels, cut=True), Answer("cupti", partial), Answer("static", kernels))
    assert profiled(answers) == {"ncu": Run(42.0, 2, sampled=True), "cupti": Run(None, 2)}
    assert profiled((Answer("ncu", (), "forbidden"),)) == {}
    averaged = (KernelSample("a", 10.0, {}, launches=3.0, seen=3),)
    assert profiled((Answer("ncu", averaged),)) == {"ncu": Run(30.0, 3)}


@pytest.mark.parametrize(
    ("workload", "run"),
    [
        (Workload("", "full", "float16", "tf32"), Run(5.0, 1, dtype="float16", precision="tf32", shape="full")),
        (Workload("plan key", "small", "float16", "ieee"), Run(5.0, 1, precision="ieee", shape="small")),
    ],
)
def test_what_was_profiled_comes_from_the_workload(workload, run):
    assert profiled((Answer("ncu", (KernelSample("a", 5.0, {}, workload=workload),)),)) == {"ncu": run}


def test_launches_that_were_counted_and_not_profiled():
    kernels = (KernelSample("a", 30.0, {}), KernelSample("b", 12.0, {}))
    assert profiled((Answer("cupti", kernels, of=300),)) == {"cupti": Run(42.0, 300, sampled=True)}
