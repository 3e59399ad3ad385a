from __future__ import annotations

import itertools
import stat
import sys
from pathlib import Path

import pytest

from engine.errors import ProfilerError
from profilers.ncu import DURATION, Ncu, _counters_for_administrators_only, parse
from profilers.seam import Job

DRAM = "dram__throughput.avg.pct_of_peak_sustained_elapsed"
TEMPLATE = "void at::native::kernel<4, at::native::Functor<float, float>, std::array<char *, 2>>(int, T2, T3)"

WIDE = f"""==PROF== Connected to process 7 (python3)
"a program's own line", "that looks like CSV"
"ID","Process ID","Kernel Name","CC","{DRAM}","dram__bytes_read.sum","{DURATION}","launch__cluster_scheduling_policy"
"","","","","%","byte","ns",""
"0","7","first_kernel","9.0","71.86","6,442,487,040","1,252,256","PolicySpread"
candidate output ok
"1","7","{TEMPLATE}","9.0","n/a","12","500",""
==PROF== Disconnected from process 7
"""

LONG = f"""kernel,ms
"ID","Process ID","Kernel Name","CC","Section Name","Metric Name","Metric Unit","Metric Value"
"0","7","{TEMPLATE}","9.0","s","{DURATION}","us","1,131.5"
"0","7","{TEMPLATE}","9.0","s","dram__bytes_read.sum","Mbyte","268.5"
"1","7","row","9.0","s","{DURATION}","ms","2"
"1","7","row","9.0","s","no_such.pct","","n/a"
"""


def test_wide_layout_with_noise_units_separators_and_template_names():
    first, second = parse(WIDE)
    assert (first.kernel, first.duration_us) == ("first_kernel", 1252.256)
    assert first.counters == {DRAM: 71.86, "dram__bytes_read.sum": 6442487040.0, DURATION: 1252256.0}
    assert (second.kernel, second.duration_us) == (TEMPLATE, 0.5)
    assert DRAM not in second.counters


def test_long_layout_is_grouped_by_launch_in_base_units():
    first, second = parse(LONG)
    assert (first.kernel, first.duration_us) == (TEMPLATE, 1131.5)
    assert first.counters["dram__bytes_read.sum"] == 268.5e6
    assert (second.duration_us, second.counters) == (2000.0, {DURATION: 2e6})


def test_launches_of_two_processes_with_equal_ids_stay_apart():
    again = WIDE.replace('"7"', '"8"')
    assert len(parse(WIDE + again)) == 4


@pytest.mark.parametrize("text", ["", "==WARNING== No kernels were profiled.\n", '"ID"\n"0"\n'], ids=repr)
def test_text_without_a_table_gives_no_samples(text):
    assert parse(text) == ()


def job(tmp_path: Path, kernels=("a", "b.c")) -> Job:
    return Job(("python3", "-m", "driver"), str(tmp_path), {"PATH": "/usr/bin:/bin"}, kernels, None)


def test_the_command_bounds_what_is_profiled_and_leaves_clocks_alone(tmp_path):
    command = Ncu("ncu", 60.0, 12).command(job(tmp_path), ["x.sum", DURATION, "x.sum"], "log.csv")
    options = dict(itertools.pairwise(command))
    assert options["--metrics"] == f"x.sum,{DURATION}"
    assert options["--kernel-name"] == r"regex:^(a|b\.c)$"
    assert options["--launch-count"] == "12"
    assert options["--profile-from-start"] == "off"
    assert options["--clock-control"] == options["--cache-control"] == "none"
    assert options["--target-processes"] == "all"
    assert command[-3:] == ("python3", "-m", "driver")
    assert "sudo" not in command


def test_a_launcher_comes_before_the_tool(tmp_path):
    assert Ncu("ncu", 60.0, 12, ("confine", "x")).command(job(tmp_path), [], "log")[:3] == ("confine", "x", "ncu")


def test_without_kernels_every_launch_of_the_marked_call_counts(tmp_path):
    assert "--kernel-name" not in Ncu("ncu", 60.0, 12).command(job(tmp_path, ()), [], "log.csv")


def stub(tmp_path: Path, body: str) -> str:
    tool = tmp_path / "ncu-stub"
    tool.write_text(f"#!{sys.executable}\nimport sys, time\nlog = sys.argv[sys.argv.index('--log-file') + 1]\n{body}\n")
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    return str(tool)


def test_collect_reads_the_log_file(tmp_path):
    tool = stub(tmp_path, f"open(log, 'w').write({WIDE!r}); print('noise')")
    samples = Ncu(tool, 30.0, 5).collect(job(tmp_path), [DRAM])
    assert [sample.counters.get(DRAM) for sample in samples] == [71.86, None]


@pytest.mark.parametrize(
    ("body", "message", "hint"),
    [
        pytest.param(
            "open(log, 'w').write('==ERROR== ERR_NVGPUCTRPERM - The user does not have permission'); sys.exit(1)",
            "may not read",
            "NVreg_RestrictProfilingToAdminUsers",
            id="permission",
        ),
        pytest.param("time.sleep(60)", "did not finish within 0.5 s", "timeout_s", id="time-out"),
        pytest.param(
            "open(log, 'w').write('==WARNING== No kernels were profiled.')", "no launch of a, b.c", "", id="no-kernels"
        ),
        pytest.param("print('boom'); sys.exit(3)", "status 3.*boom", "", id="crash"),
    ],
)
def test_a_failing_tool_is_a_profiler_error_that_says_why(tmp_path, body, message, hint):
    timeout = 0.5 if "sleep" in body else 30.0
    with pytest.raises(ProfilerError, match=message) as caught:
        Ncu(stub(tmp_path, body), timeout, 5).collect(job(tmp_path), [DRAM])
    assert hint in caught.value.hint


def test_an_absent_tool_is_named(tmp_path):
    profiler = Ncu(str(tmp_path / "nowhere"), 1.0, 1)
    assert "nowhere" in (profiler.available() or "")
    with pytest.raises(ProfilerError, match="does not start"):
        profiler.collect(job(tmp_path), [])


@pytest.mark.parametrize(
    ("text", "reserved"),
    [("RmProfilingAdminOnly: 1\n", True), ("Other: 1\nRmProfilingAdminOnly: 0\n", False), (None, False)],
    ids=["reserved", "open", "no-driver"],
)
def test_the_drivers_own_word_on_permission(tmp_path, text, reserved):
    parameters = tmp_path / "params"
    if text is not None:
        parameters.write_text(text)
    assert _counters_for_administrators_only(parameters) is reserved
