"""msprof's tables and torch_npu's: golden values of real captures, and one test for each trap of these files."""

from __future__ import annotations

import os
import sys

import pytest

from engine.errors import ProfilerError
from engine.records import Launch, Trace
from profilers.ascend_csv import nanoseconds, number, own_name, rows, shapes
from profilers.ascend_tool import Chip, output_folder, refused_parent
from profilers.msprof import (
    Msprof,
    TorchNpu,
    kernels,
    last_call,
    parse_l2_cache,
    parse_op_statistic,
    parse_tasks,
    samples,
)
from profilers.seam import Job
from tests.support.npu import DATA, stand_in

CHIP = Chip(dram_gbps=1800.0, vector_cores=40, cube_cores=20)
OP_SUMMARY = (DATA / "op_summary_20260511093035.csv").read_text()
DETAILS = (DATA / "kernel_details.csv").read_text()


def table(*lines: str) -> str:
    return "\n".join(lines) + "\n"


def trace(count: int) -> Trace:
    return Trace((Launch("own_kernel", (4, 1, 1), count, 1e6, 4, 2, has_dot=False),), ())


def job(folder, *, kernels: tuple[str, ...] = ("own_kernel",), launches: int | None = None, command=None) -> Job:
    program = command or (sys.executable, "-c", "pass")
    return Job(program, str(folder), dict(os.environ), kernels, None if launches is None else trace(launches))


def test_op_summary_to_the_digit():
    tasks = parse_tasks(OP_SUMMARY)
    assert [task.name for task in tasks].count("matmul_kernel") == 5
    first = tasks[4]
    assert (first.name, first.kind, first.task_type) == ("matmul_kernel", "matmul_kernel", "AI_CORE")
    assert (first.device, first.stream, first.task, first.step) == (0, 1332, 6, None)
    assert (first.duration_us, first.block_dim, first.input_shapes) == (6.56, 4, ((32, 32), (32, 32)))
    ratios = ("aic_mac_ratio", "aic_mte2_ratio", "cube_utilization(%)", "aic_total_cycles")
    assert [first.counters[name] for name in ratios] == [0.013, 0.43, 14.166, 40146]


def test_torch_npus_kernel_details_have_the_same_names():
    tasks = parse_tasks(DETAILS)
    assert [task.step for task in tasks] == list(range(1, 11))
    assert {task.name for task in tasks} == {"matmul_kernel"}
    assert (tasks[0].duration_us, tasks[0].task_type, tasks[0].block_dim) == (88.162, "AI_CORE", 256)
    assert set(tasks[0].counters) == set(parse_tasks(OP_SUMMARY)[4].counters)


def test_residency_is_not_work():
    busy = parse_tasks(DETAILS)[0].counters
    assert (busy["cube_utilization(%)"], busy["aic_mac_ratio"]) == (95.479, 0.073)
    assert samples(parse_tasks(DETAILS), CHIP)[0].counters["compute_ratio"] == 0.073


def test_op_statistic_to_the_digit():
    totals = parse_op_statistic((DATA / "op_statistic_20260511093035.csv").read_text())
    assert [(one.kind, one.core_type, one.count) for one in totals] == [
        ("matmul_kernel", "AI_CORE", 5),
        ("Cast", "AI_VECTOR_CORE", 2),
        ("DSARandomNormal", "DSA_SQE", 2),
    ]
    first = totals[0]
    assert (first.total_us, first.min_us, first.avg_us, first.max_us, first.ratio_pct) == (
        30.144,
        5.482,
        6.028,
        6.56,
        74.239,
    )
    own = [task.duration_us or 0.0 for task in parse_tasks(OP_SUMMARY) if task.name == "matmul_kernel"]
    assert sum(own) == pytest.approx(first.total_us)


def test_the_captures_beside_the_checkout_are_the_bundled_ones(shared):
    for name in ("op_summary_20260511093035.csv", "op_statistic_20260511093035.csv", "kernel_details.csv"):
        assert (shared / "samples" / "msprof" / name).read_bytes() == (DATA / name).read_bytes()


def test_task_time():
    text = table(
        "Device_id,kernel_name,kernel_type,stream_id,task_id,task_time(us),task_start(us),task_stop(us)",
        "0,own_kernel_mix_aic,MIX_AIC,3,7,12.5,1778463028574314.896\t,1778463028574327.396\t",
        "0,PROFILING_DISABLE,PROFILING_DISABLE,3,8,0.1,1778463028574400.000\t,1778463028574400.100\t",
    )
    first, last = parse_tasks(text)
    assert (first.name, first.stream, first.task, first.duration_us) == ("own_kernel_mix_aic", 3, 7, 12.5)
    assert first.start_ns == 1778463028574314896
    assert [task.name for task in kernels((first, last), ["own_kernel"])] == ["own_kernel_mix_aic"]


def test_l2_cache_is_joined_by_task_and_may_lack_the_first():
    text = table(
        "Device_id,Stream Id,Task Id,Hit Rate,Victim Rate,Op Name",
        "0,1332,7,0.93,0.05,matmul_kernel",
    )
    (rate,) = parse_l2_cache(text)
    assert (rate.task, rate.hit_rate, rate.victim_rate) == (7, 0.93, 0.05)
    own = kernels(parse_tasks(OP_SUMMARY), ["matmul_kernel"])
    found = samples(own, CHIP, [rate])
    assert "Hit Rate" not in found[0].counters
    assert found[1].counters["Hit Rate"] == 0.93


def test_a_tab_follows_each_time_stamp_and_16_digits_keep_their_fraction():
    assert "\t" in OP_SUMMARY
    start = parse_tasks(OP_SUMMARY)[0].start_ns
    assert start == 1778463028574314896
    assert round(float("1778463028574314.896") * 1000) != start


@pytest.mark.parametrize(
    ("text", "found"),
    [("12", 12000), ("1.5", 1500), ("0.0004", 0), ("N/A", None), ("", None), ("12.345678\t", 12345)],
    ids=["whole", "fraction", "below a nanosecond", "missing", "empty", "tab"],
)
def test_nanoseconds(text, found):
    assert nanoseconds(text) == found


@pytest.mark.parametrize("token", ["N/A", "NA", "n/a", ""], ids=["N/A", "NA", "n/a", "empty"])
def test_missing_tokens_are_no_value(token):
    text = table("Op Name,Task Type,Task Duration(us),Block Dim,aic_mac_ratio", f"k,AI_CORE,{token},{token},{token}")
    (task,) = parse_tasks(text)
    assert (task.duration_us, task.block_dim, dict(task.counters)) == (None, None, {})


def test_tasks_without_counters_say_nothing_and_an_unused_core_says_zero():
    tasks = parse_tasks(OP_SUMMARY)
    assert "aiv_vec_ratio" not in tasks[0].counters
    assert tasks[4].counters["aiv_vec_ratio"] == 0.0
    assert tasks[1].counters["aic_mac_ratio"] == 0.0


def test_shapes_stand_in_quotes_inside_quotes():
    assert '"""32,32;32,32"""' in OP_SUMMARY
    assert shapes('"256,256;256,256"') == ((256, 256), (256, 256))
    assert shapes("N/A") == ()
    assert shapes('";4"') == ((), (4,))


def test_tasks_that_are_no_kernels_are_left_out():
    tasks = parse_tasks(OP_SUMMARY)
    assert [task.task_type for task in tasks if not task.is_kernel] == ["DSA_SQE", "DSA_SQE"]
    assert len(kernels(tasks, ())) == 7
    mixed = parse_tasks(table("Op Name,Task Type", "k,MIX_AIC", "k,MIX_AIV", "k,AI_CPU", "k,HCCL"))
    assert [task.task_type for task in kernels(mixed, ["k"])] == ["MIX_AIC", "MIX_AIV"]


def test_the_first_wait_holds_the_start_of_everything():
    own = kernels(parse_tasks(OP_SUMMARY), ["matmul_kernel"])
    assert own[0].wait_us == 168250.52
    found = samples(own, CHIP)
    assert "Task Wait Time(us)" not in found[0].counters
    assert found[1].counters["Task Wait Time(us)"] == 210.94


def test_newer_names_of_columns():
    text = table(
        "Name,Type,Accelerator Core,Duration(us),Block Num,Mix Block Num,aic_cube_ratio", "k,k,AI_CORE,3.5,8,0,0.25"
    )
    (task,) = parse_tasks(text)
    assert (task.block_dim, task.duration_us, task.counters["aic_mac_ratio"]) == (8, 3.5, 0.25)
    assert samples([task], CHIP)[0].counters["occupied_pct"] == 40.0


def test_columns_are_found_by_name_wherever_they_stand():
    text = table("aic_mac_ratio,Task Duration(us),Op Name,Task Type", "0.5,2,k,AI_CORE")
    (task,) = parse_tasks(text)
    assert (task.name, task.duration_us, task.counters["aic_mac_ratio"]) == ("k", 2.0, 0.5)


def test_lines_before_the_header_a_byte_order_mark_and_short_lines_are_no_rows():
    text = "\ufeffsome banner\n\nOp Name,Task Type\nk,AI_CORE\ncut\n"
    assert rows(text, "Op Name") == ({"Op Name": "k", "Task Type": "AI_CORE"},)
    assert parse_tasks("") == ()
    assert parse_tasks("nothing of the kind\n") == ()


def test_numbers_and_names():
    assert (number("4,506.5"), number("YES"), number("1e3")) == (4506.5, None, 1000.0)
    assert [own_name(name) for name in ("k_mix_aic", "k_mix_aiv", "k_mix", "mix_aic_k")] == [
        "k",
        "k",
        "k_mix",
        "mix_aic_k",
    ]


def test_programs_for_each_core_of_the_kind_used():
    text = table("Op Name,Task Type,Block Dim", "v,AI_VECTOR_CORE,20", "c,AI_CORE,20", "m,AI_CORE,400")
    occupied = [one.counters["occupied_pct"] for one in samples(parse_tasks(text), CHIP)]
    assert occupied == [50.0, 100.0, 100.0]


def test_the_last_of_equal_calls_is_read():
    tasks = parse_tasks(DETAILS)
    assert [task.step for task in last_call(tasks, 5, None)] == [9, 10]
    assert [task.step for task in last_call(tasks, 5, 3)] == [8, 9, 10]
    with pytest.raises(ProfilerError, match="multiple of 3 launches for 3 calls, found 10"):
        last_call(tasks, 3, None)


def test_msprof_runs_a_program_and_reads_its_table(tmp_path):
    npu = stand_in(tmp_path)
    tool = Msprof(str(npu.tools / "msprof"), 60, 100, CHIP, calls=4)
    assert tool.available() is None
    found = tool.collect(job(tmp_path, launches=2), ["compute_ratio"])
    assert [one.duration_us for one in found] == [5.78, 6.122]
    assert {one.kernel for one in found} == {"own_kernel"}
    command = npu.log.read_text()
    assert "--task-time=l1" in command
    assert "--aic-metrics=PipeUtilization" in command


def test_fewer_launches_than_a_call_makes_stand_for_the_rest(tmp_path):
    npu = stand_in(tmp_path)
    found = Msprof(str(npu.tools / "msprof"), 60, 2, CHIP, calls=1).collect(job(tmp_path, launches=4), [])
    assert [one.launches for one in found] == [2.0, 2.0]


def test_an_exit_status_of_0_proves_nothing(tmp_path):
    npu = stand_in(tmp_path, broken=True)
    with pytest.raises(ProfilerError, match=r"no op_summary with rows.*nothing was collected \(exit status 0\)"):
        Msprof(str(npu.tools / "msprof"), 60, 100, CHIP).collect(job(tmp_path), [])


def test_a_table_without_the_candidates_kernels_is_no_answer(tmp_path):
    npu = stand_in(tmp_path, kernel="another_kernel")
    with pytest.raises(ProfilerError, match="no launch of own_kernel among 4 device tasks"):
        Msprof(str(npu.tools / "msprof"), 60, 100, CHIP).collect(job(tmp_path), [])


def test_a_tool_that_is_not_there_says_so(tmp_path):
    assert Msprof("no-such-msprof", 60, 100, CHIP).available() == "no-such-msprof is not an executable on PATH"


def test_torch_npu_reads_what_the_program_wrote_itself(tmp_path):
    place = tmp_path / "profile" / "host_1_ascend_pt" / "ASCEND_PROFILER_OUTPUT" / "kernel_details.csv"
    code = f"import pathlib, shutil; p = pathlib.Path({str(place)!r}); p.parent.mkdir(parents=True); "
    code += f"shutil.copy({str(DATA / 'kernel_details.csv')!r}, p)"
    found = TorchNpu(60, 100, CHIP, calls=10).collect(
        job(tmp_path, kernels=("matmul_kernel",), command=(sys.executable, "-c", code)), []
    )
    assert [one.duration_us for one in found] == [parse_tasks(DETAILS)[-1].duration_us]
    with pytest.raises(ProfilerError, match="no kernel_details with rows"):
        (tmp_path / "other").mkdir()
        TorchNpu(60, 100, CHIP, calls=1).collect(job(tmp_path / "other"), [])


def test_the_output_folders_parent_is_one_that_the_tools_accept(tmp_path):
    with output_folder(str(tmp_path)) as folder:
        assert refused_parent(folder) is None
        assert folder.parent.stat().st_mode & 0o077 == 0
    assert not folder.exists()
    open_to_group = tmp_path / "shared"
    open_to_group.mkdir()
    open_to_group.chmod(0o770)
    assert "group and others cannot write, found drwxrwx---" in (refused_parent(open_to_group / "out") or "")
    link = tmp_path / "link"
    link.symlink_to(tmp_path)
    assert "without symbolic links" in (refused_parent(link / "out") or "")
