"""`msprof op`: both folder layouts, rows of cores put together, and one test for each fact of section 3's parser list.

The files are invented in the vendor's layout (tests/data/msprof/SOURCE.md); expected values follow from their sums.
"""

from __future__ import annotations

import os
import sys

import pytest

from engine.errors import ProfilerError
from engine.records import Launch, Trace
from profilers.ascend_tool import Chip, texts
from profilers.msprof_op import (
    BASIC,
    GROUPS,
    MsprofOp,
    groups_for,
    imbalance_pct,
    parse_basic,
    parse_cores,
    parse_folder,
    sample,
    totals,
)
from profilers.seam import Job
from tests.support.npu import DATA, stand_in

CHIP = Chip(dram_gbps=1800.0, vector_cores=40, cube_cores=20)
FOLDER = DATA / "op_synthetic"
MIXED = "OPPROF_20260105093000_SYNTHETICMIXEDOP"
VECTOR = "OPPROF_20260105094500_SYNTHETICMULTIOP"


def read(name: str):
    return parse_folder({f"{name}/{path}": text for path, text in texts(FOLDER / name).items()})


def mixed():
    (profile,) = read(MIXED)
    return profile


def counters(profile):
    found = sample(profile, CHIP)
    assert found is not None
    return found.counters


def job(folder, kernels=("own_kernel",), launches: int | None = None) -> Job:
    launch = Launch("own_kernel", (4, 1, 1), launches or 1, 1e6, 4, 2, has_dot=False)
    trace = None if launches is None else Trace((launch,), ())
    return Job((sys.executable, "-c", "pass"), str(folder), dict(os.environ), kernels, trace)


def test_one_operator_in_the_flat_layout_with_all_eight_files():
    profile = mixed()
    assert profile.basic is not None
    assert (profile.basic.name, profile.basic.kind) == ("linear_sigmoid_kernel_mix_aic", "mix")
    assert (profile.basic.duration_us, profile.basic.block_dim, profile.basic.mix_block_dim) == (24.36, 2, 4)
    assert tuple(profile.groups) == GROUPS
    assert {len(cores) for cores in profile.groups.values()} == {6}


def test_several_launches_in_the_nested_layout_in_order_of_launch():
    first, second = read(VECTOR)
    assert (first.launch, second.launch) == (0, 1)
    assert [p.basic.duration_us for p in (first, second) if p.basic] == [41.92, 40.53]
    assert [p.basic.throttled for p in (first, second) if p.basic] == [True, False]
    assert counters(first)["clock_pct"] == pytest.approx(100 * 1740 / 1800)


def test_launches_are_ordered_as_numbers_and_devices_may_be_a_folder():
    text = "Op Name,Task Duration(us),\nk,1.0,\n"
    files = {f"OPPROF_1_A/device0/k/{n}/{BASIC}_20260105094511207.csv": text for n in (10, 9, 2)}
    assert [profile.launch for profile in parse_folder(files)] == [2, 9, 10]


def test_other_files_of_the_folder_are_left_alone():
    files = {"OPPROF_1_A/dump/x.csv": "a,b\n1,2\n", "OPPROF_1_A/OpBasicInfo.csv": "Op Name,\nk,\n"}
    (profile,) = parse_folder(files)
    assert profile.folder == "OPPROF_1_A"


def test_the_suffix_of_mixed_operators_is_no_part_of_the_name():
    found = sample(mixed(), CHIP)
    assert found is not None
    assert (found.kernel, found.duration_us) == ("linear_sigmoid_kernel", 24.36)


def test_a_trailing_comma_makes_no_column():
    text = (FOLDER / MIXED / "PipeUtilization.csv").read_text()
    assert all(line.endswith(",") for line in text.splitlines() if line)
    assert "" not in parse_cores(text)[0].values


def test_rows_of_cores_by_block_and_kind():
    cores = mixed().groups["PipeUtilization"]
    assert [(row.block, row.core) for row in cores] == [(b, c) for b in (0, 1) for c in ("cube0", "vector0", "vector1")]
    assert "aiv_vec_ratio" not in cores[0].values
    assert "aic_cube_ratio" not in cores[1].values


def test_times_are_the_largest_bytes_add_up_and_ratios_are_weighted_by_cycles():
    profile = mixed()
    pipes = totals(profile.groups["PipeUtilization"])
    assert (pipes["aic_time(us)"], pipes["aiv_time(us)"], pipes["aic_total_cycles"]) == (21.62, 17.23, 38916)
    expected = (38160 * 0.418149 + 38916 * 0.430694) / (38160 + 38916)
    assert pipes["aic_cube_ratio"] == pytest.approx(expected)
    memory = totals(profile.groups["Memory"])
    assert memory["read_main_memory_datas(KB)"] == 2 * (1540.5 + 65.25 + 65.25)
    assert memory["aic_mte2_instructions"] == 192
    assert memory["aic_main_mem_read_bw(GB/s)"] == pytest.approx(2 * 60.30933)
    assert memory["GM_to_UB_bw_usage_rate(%)"] == pytest.approx(1.170215)
    arithmetic = totals(profile.groups["ArithmeticUtilization"])
    assert arithmetic["aic_cube_fops"] == 2 * 67108864


def test_bandwidth_while_a_unit_is_busy_does_not_add_up():
    pipes = totals(mixed().groups["PipeUtilization"])
    assert 62.3 < pipes["aic_fixpipe_active_bw(GB/s)"] < 64.3


def test_hit_rates_come_from_all_hits_and_misses_of_writes_and_both_reads():
    cache = totals(mixed().groups["L2Cache"])
    hits = 966 + 7420 + 7391 + 963 + 7453 + 7412
    misses = 58 + 4868 + 4897 + 61 + 4835 + 4876
    assert cache["aic_total_hit_rate(%)"] == pytest.approx(100 * hits / (hits + misses))
    vector = [(481 + 402 + 399, 31 + 110 + 113), (482 + 400 + 400, 30 + 112 + 112)]
    vector += [(483 + 398 + 401, 29 + 114 + 111), (484 + 396 + 402, 28 + 116 + 110)]
    all_hits, all_misses = hits + sum(h for h, _ in vector), misses + sum(m for _, m in vector)
    assert cache["l2_hit_pct"] == pytest.approx(100 * all_hits / (all_hits + all_misses))


def test_one_straggling_core_is_an_imbalance():
    cores = read(VECTOR)[1].groups["PipeUtilization"]
    times = [row.values["aiv_time(us)"] for row in cores]
    assert imbalance_pct(cores) == pytest.approx(100 * (1 - sum(times) / len(times) / max(times)))
    assert (imbalance_pct(cores) or 0) > 20
    assert (imbalance_pct(mixed().groups["PipeUtilization"]) or 0) < 2
    assert imbalance_pct(()) is None


def test_mixed_operators_keep_the_tools_own_denominators():
    """Unit time over core time would be another number: the ratio of a mixed operator is over a whole-operator time."""
    profile = mixed()
    cube = profile.groups["PipeUtilization"][0].values
    assert cube["aic_cube_time(us)"] / cube["aic_time(us)"] != pytest.approx(cube["aic_cube_ratio"], rel=0.02)
    found = counters(profile)
    assert found["aic_cube_ratio"] == pytest.approx(0.424483, abs=1e-6)
    assert found["compute_ratio"] == found["aic_cube_ratio"]


def test_main_memory_against_the_declared_bandwidth_with_kib():
    found = counters(read(VECTOR)[1])
    kib = 8 * (2054.5 + 1025.25)
    assert found["main_mem_pct"] == pytest.approx(100 * kib * 1024 / (40.53e-6 * 1800e9))
    # "GB/s" of the tool is GiB/s: its own columns say the same bytes.
    assert found["aiv_main_mem_read_bw(GB/s)"] == pytest.approx(8 * 2054.5 / 2**20 / 40.53e-6, rel=1e-4)


def test_stand_ins_of_a_vector_kernel():
    found = counters(read(VECTOR)[1])
    assert found["occupied_pct"] == 20.0
    assert found["core_busy_pct"] == pytest.approx(20.0 * (1 - found["imbalance_pct"] / 100))
    assert found["mte_ratio"] == found["aiv_mte2_ratio"]
    assert found["compute_wait_ratio"] == found["aiv_vec_wait_ratio"]
    assert "aic_cube_ratio" not in found


def test_the_newer_order_of_columns_gives_the_same_values():
    newer = parse_cores((FOLDER / "newer_layout" / "PipeUtilization.csv").read_text())
    older = mixed().groups["PipeUtilization"]
    same = set(newer[0].values) & set(older[0].values)
    assert {"aic_cube_ratio", "aic_scalar_ratio", "aic_mte2_time(us)"} <= same
    assert {name: newer[0].values[name] for name in same} == {name: older[0].values[name] for name in same}
    assert newer[0].values["aic_scalar_wait_time(us)"] == 0.248


def test_names_of_op_summary_and_newer_ones_are_understood():
    (row,) = parse_cores("block_id,sub_block_id,aic_time(us),aic_mac_ratio\n0,cube0,1.0,0.5\n")
    assert row.values["aic_cube_ratio"] == 0.5
    basic = parse_basic("Op Name,Op Type,Block Num,Mix Block Num,\nk,mix,2,4,\n")
    assert basic is not None
    assert (basic.block_dim, basic.mix_block_dim) == (2, 4)


def test_a_chip_without_block_numbers_has_rows_all_the_same():
    (row,) = parse_cores("aic_time(us),aic_total_cycles,aic_l2_cache_hit_rate(%),\n2.0,100,55.0,\n")
    assert (row.block, row.core, row.values["aic_l2_cache_hit_rate(%)"]) == (None, None, 55.0)


def test_files_without_rows_are_no_information():
    assert parse_basic("Op Name,Op Type,\n") is None
    assert parse_cores("") == ()
    profile = parse_folder({"OPPROF_1_A/Memory.csv": "block_id,\n"})[0]
    assert sample(profile, CHIP) is None
    assert dict(profile.groups) == {}


@pytest.mark.parametrize(
    ("wanted", "groups"),
    [
        (["aic_cube_ratio", "compute_ratio"], ("PipeUtilization",)),
        (["main_mem_pct", "l2_hit_pct"], ("Memory", "L2Cache")),
        (["aiv_vec_bank_cflt_ratio"], ("ResourceConflictRatio",)),
        (["aic_cube_fp16_ratio"], ("ArithmeticUtilization",)),
        (["Block Dim", "duration_us"], ("PipeUtilization",)),
        (["of a later version"], GROUPS),
    ],
    ids=["pipes", "memory and cache", "conflicts", "arithmetic", "basic", "unknown"],
)
def test_only_the_groups_that_are_needed_are_replayed(wanted, groups):
    assert groups_for(wanted) == groups


def test_every_column_of_the_samples_is_known_to_a_group():
    for profile in (mixed(), *read(VECTOR)):
        for group, cores in profile.groups.items():
            shared_columns = {"aic_time(us)", "aiv_time(us)", "aic_total_cycles", "aiv_total_cycles"}
            names = {name for row in cores for name in row.values} - shared_columns
            assert {name for name in names if len(groups_for([name])) == len(GROUPS)} == set(), group


def test_a_run_takes_the_kernels_of_the_job_by_exact_name(tmp_path):
    """The stand-in collects own_kernel and own_kernel_of_another, as the tool's match by beginnings would."""
    npu = stand_in(tmp_path)
    tool = MsprofOp(str(npu.tools / "msprof"), 60, 16, CHIP)
    found = tool.collect(job(tmp_path, launches=2), ["main_mem_pct"])
    assert [(one.kernel, one.duration_us) for one in found] == [("own_kernel", 41.92), ("own_kernel", 40.53)]
    command = npu.log.read_text()
    assert command.startswith("op --kernel-name=own_kernel --launch-count=2 --warm-up=5 --aic-metrics=Memory --output=")


def test_fewer_launches_than_a_call_makes_stand_for_the_rest(tmp_path):
    npu = stand_in(tmp_path)
    found = MsprofOp(str(npu.tools / "msprof"), 60, 2, CHIP).collect(job(tmp_path, launches=6), [])
    assert [one.launches for one in found] == [3.0, 3.0]


def test_an_exit_status_of_0_proves_nothing(tmp_path):
    npu = stand_in(tmp_path, broken=True)
    with pytest.raises(ProfilerError, match=r"wrote no OpBasicInfo with rows.*\(exit status 0\)"):
        MsprofOp(str(npu.tools / "msprof"), 60, 16, CHIP).collect(job(tmp_path), [])


@pytest.mark.parametrize(
    ("kernels", "said"),
    [((), "named kernels only"), (("f<int>",), "letters, digits and _ only, not f<int>")],
    ids=["none", "strange"],
)
def test_kernels_that_cannot_be_named(tmp_path, kernels, said):
    with pytest.raises(ProfilerError, match=said):
        MsprofOp("msprof", 60, 16, CHIP).command(job(tmp_path, kernels), [], "out")


def test_the_invented_files_beside_the_checkout_are_the_bundled_ones(shared):
    theirs = texts(shared / "samples" / "msprof" / "msprof_op_synthetic")
    assert dict(theirs) == dict(texts(FOLDER))
