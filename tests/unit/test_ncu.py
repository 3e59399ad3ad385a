"""ncu: what is asked of it, what its tables mean, how it fails, and which launches of a long call it measures."""

from __future__ import annotations

import itertools
import stat
import sys
from pathlib import Path

import pytest

from engine.errors import ProfilerError
from engine.records import Launch, Trace
from profilers.ncu import DURATION, Ncu, _counters_for_administrators_only, parse
from profilers.ncu_csv import number, unit_factor
from profilers.seam import Job, Workload, absent, coverage

DRAM = "dram__throughput.avg.pct_of_peak_sustained_elapsed"
READ = "dram__bytes_read.sum"
TEMPLATE = "void at::native::kernel<4, at::native::Functor<float, float>, std::array<char *, 2>>(int, T2, T3)"

WIDE = f"""==PROF== Connected to process 7 (python3)
"a program's own line", "that looks like CSV"
"a quote that is never closed
"ID","Process ID","Kernel Name","Grid Size","CC","{DRAM}","{READ}","{DURATION}","launch__cluster_scheduling_policy"
"","","","","","%","byte","ns",""
"0","7","first_kernel","(64, 2, 1)","9.0","71.86","6,442,487,040","1,252,256","PolicySpread"
candidate output ok, "1","7" of 2
"1","7","{TEMPLATE}","(1, 1, 1)","9.0","n/a","12","500",""
"2","7","cut_off
==PROF== Disconnected from process 7
"""

LONG = f"""kernel,ms
"ID","Process ID","Kernel Name","CC","Section Name","Metric Name","Metric Unit","Metric Value","Rule Name"
"0","7","{TEMPLATE}","9.0","s","{DURATION}","us","1,131.5",""
"0","7","{TEMPLATE}","9.0","s","{READ}","Mbyte","268.5",""
"0","7","{TEMPLATE}","9.0","s","","","","SOLBottleneck"
"1","7","row","9.0","s","{DURATION}","ms","2",""
"1","7","row","9.0","s","no_such.pct","","n/a",""
"""


def test_wide_layout_with_noise_units_separators_and_template_names():
    first, second = parse(WIDE)
    assert (first.kernel, first.duration_us, first.grid) == ("first_kernel", 1252.256, (64, 2, 1))
    assert first.counters == {DRAM: 71.86, READ: 6442487040.0, DURATION: 1252256.0}
    assert (second.kernel, second.duration_us) == (TEMPLATE, 0.5)
    assert DRAM not in second.counters


def test_long_layout_is_grouped_by_launch_in_base_units():
    first, second = parse(LONG)
    assert (first.kernel, first.duration_us, first.grid) == (TEMPLATE, 1131.5, None)
    assert first.counters == {DURATION: 1131.5e3, READ: 268.5e6}
    assert (second.duration_us, second.counters) == (2000.0, {DURATION: 2e6})


def test_only_what_was_asked_for_is_kept_beside_the_duration():
    first, _ = parse(WIDE, [DRAM, "smsp__no_such_metric.pct"])
    assert set(first.counters) == {DRAM, DURATION}


def test_a_counter_that_the_tool_left_out_without_a_word_is_named():
    ghost = "smsp__warp_issue_stalled_memory_dependency_per_warp_active.pct"
    assert absent(parse(WIDE), [DRAM, ghost, READ, ghost]) == (ghost,)
    assert absent((), [DRAM]) == (DRAM,)


def test_launches_of_two_processes_with_equal_ids_stay_apart():
    again = WIDE.replace('"7"', '"8"')
    assert len(parse(WIDE + again)) == 4


@pytest.mark.parametrize("text", ["", "==WARNING== No kernels were profiled.\n", '"ID"\n"0"\n', '"\n'], ids=repr)
def test_text_without_a_table_gives_no_samples(text):
    assert parse(text) == ()


@pytest.mark.parametrize(
    "summary",
    [WIDE.replace('"ID","Process ID"', '"Process ID","Invocations"'), LONG.replace('"Metric Value"', '"Minimum"')],
    ids=["wide", "long"],
)
def test_a_summary_of_kernels_is_no_table_of_launches(summary):
    assert parse(summary) == ()


def test_a_line_that_no_csv_reader_takes_is_noise():
    assert parse('"' + 200_000 * "x" + '"\n' + WIDE) == parse(WIDE)


@pytest.mark.parametrize(
    ("cell", "value"),
    [
        ("71.86", 71.86),
        ("1,234.5", 1234.5),
        ("4,506,109,003,042.78", 4506109003042.78),
        ("1e+06", 1e6),
        ("-3", -3.0),
        ("0", 0.0),
        (".5", 0.5),
        ("n/a", None),
        ("", None),
        ("  ", None),
        ("inf", None),
        ("-Infinity", None),
        ("nan", None),
        ("1e999", None),
        ("PolicySpread", None),
        ("(128, 1, 1)", None),
        ("0x1f", None),
    ],
)
def test_numbers(cell, value):
    assert number(cell) == value


@pytest.mark.parametrize("cell", ["1.234,5", "0,5", "12,34", "1.234.567", "1 234", "1\u202f234,5", "1'234.5", "0,500"])
def test_numbers_of_another_locale_are_refused_and_never_misread(cell):
    with pytest.raises(ValueError, match=r"\d"):
        number(cell)
    wide = WIDE.replace('"71.86"', f'"{cell}"')
    with pytest.raises(ProfilerError, match=r"expected 1,234\.5") as caught:
        parse(wide, [DRAM])
    assert "LC_ALL" in caught.value.hint
    assert parse(wide.replace(DRAM, "numa__cpus"))[0].counters.keys() == {READ, DURATION}


@pytest.mark.parametrize(
    ("unit", "factor"),
    [
        ("ns", 1.0),
        ("nsecond", 1.0),
        ("us", 1e3),
        ("usecond", 1e3),
        ("msecond", 1e6),
        ("second", 1e9),
        ("byte", 1.0),
        ("Kbyte", 1e3),
        ("Gbyte", 1e9),
        ("Gbyte/second", 1e9),
        ("Tbyte/s", 1e12),
        ("byte/nsecond", 1e9),
        ("Kbyte/block", 1e3),
        ("Ghz", 1e9),
        ("cycle/usecond", 1e6),
        ("Kinst", 1e3),
        ("%", 1.0),
        ("register/thread", 1.0),
        ("", 1.0),
    ],
)
def test_units_come_down_to_base_units(unit, factor):
    assert unit_factor(unit) == pytest.approx(factor)


def job(tmp_path: Path, kernels=("a", "b.c"), **more) -> Job:
    return Job(
        ("python3", "-m", "driver"), str(tmp_path), {"PATH": "/usr/bin:/bin"}, kernels, **{"trace": None, **more}
    )


def options(command):
    return dict(itertools.pairwise(command))


def test_the_command_bounds_what_is_profiled_and_leaves_clocks_alone(tmp_path):
    command = Ncu("ncu", 60.0, 12).command(job(tmp_path), ["x.sum", DURATION, "x.sum"], "log.csv")
    said = options(command)
    assert said["--metrics"] == f"x.sum,{DURATION}"
    assert said["--kernel-name"] == r"regex:^(a|b\.c)$"
    assert said["--launch-count"] == "12"
    assert "--launch-skip" not in said
    assert said["--profile-from-start"] == "off"
    assert said["--replay-mode"] == "kernel"
    assert said["--clock-control"] == said["--cache-control"] == "none"
    assert said["--target-processes"] == "all"
    assert command[-3:] == ("python3", "-m", "driver")
    assert "sudo" not in command


def test_a_kernel_is_chosen_by_its_bare_name_whatever_its_signature(tmp_path):
    command = Ncu("ncu", 60.0, 12).command(job(tmp_path, (TEMPLATE, "kernel", "x+y")), [], "log.csv")
    assert options(command)["--kernel-name"] == r"regex:^(kernel|x\+y)$"
    assert options(command)["--kernel-name-base"] == "function"


@pytest.mark.parametrize(("cold", "caches"), [(True, "all"), (False, "none")])
def test_caches_are_as_they_were_for_the_clock(tmp_path, cold, caches):
    workload = Workload("key", "full", "float32", "ieee", cold)
    command = Ncu("ncu", 60.0, 12).command(job(tmp_path, workload=workload), [], "log.csv")
    assert options(command)["--cache-control"] == caches


def test_of_a_call_whose_order_is_known_the_shortest_stretch_with_every_kernel_is_measured(tmp_path):
    order = ("a",) * 500 + ("library", "b.c") + ("a",) * 500
    said = options(Ncu("ncu", 60.0, 12).command(job(tmp_path, order=order), [], "log.csv"))
    assert (said["--launch-skip"], said["--launch-count"]) == ("499", "2")
    short = options(Ncu("ncu", 60.0, 12).command(job(tmp_path, order=("a", "b.c")), [], "log.csv"))
    assert "--launch-skip" not in short


def test_a_launcher_comes_before_the_tool(tmp_path):
    assert Ncu("ncu", 60.0, 12, ("confine", "x")).command(job(tmp_path), [], "log")[:3] == ("confine", "x", "ncu")


def test_without_kernels_every_launch_of_the_marked_call_counts(tmp_path):
    assert "--kernel-name" not in Ncu("ncu", 60.0, 12).command(job(tmp_path, ()), [], "log.csv")


def stub(tmp_path: Path, body: str) -> str:
    tool = tmp_path / "ncu-stub"
    tool.write_text(f"#!{sys.executable}\nimport sys, time\nlog = sys.argv[sys.argv.index('--log-file') + 1]\n{body}\n")
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    return str(tool)


def table(*launches: tuple[str, int]) -> str:
    """A table of (kernel, duration in ns)."""
    rows = [f'"{i}","7","{kernel}","(8, 1, 1)","{ns:,}"' for i, (kernel, ns) in enumerate(launches)]
    return "\n".join([f'"ID","Process ID","Kernel Name","Grid Size","{DURATION}"', *rows, ""])


def test_collect_reads_the_log_file(tmp_path):
    tool = stub(tmp_path, f"open(log, 'w').write({WIDE!r}); print('noise')")
    samples = Ncu(tool, 30.0, 5).collect(job(tmp_path), [DRAM])
    assert [sample.counters.get(DRAM) for sample in samples] == [71.86, None]


def test_a_kernel_has_the_jobs_name_whatever_the_tool_prints(tmp_path):
    tool = stub(tmp_path, f"open(log, 'w').write({WIDE!r})")
    _, second = Ncu(tool, 30.0, 5).collect(job(tmp_path, ("first_kernel", "kernel")), [DRAM])
    assert second.kernel == "kernel"


def launch(kernel: str, count: int, grid=(8, 1, 1)) -> Launch:
    return Launch(kernel, grid, count, 0.0, 4, 3, False)


LONG_CALL = Trace((launch("a", 1000), launch("b.c", 2000)), ())
SAMPLING_TOOL = f"""
names = sys.argv[sys.argv.index('--kernel-name') + 1]
open('runs', 'a').write(names + chr(10))
tables = ({table(("a", 1000), ("a", 3000))!r}, {table(("b.c", 500), ("b.c", 700))!r})
open(log, 'w').write(tables['(a' not in names])
"""


def test_a_kernel_that_the_first_launches_miss_is_measured_in_a_run_of_its_own(tmp_path):
    samples = Ncu(stub(tmp_path, SAMPLING_TOOL), 60.0, 2).collect(job(tmp_path, trace=LONG_CALL), [])
    assert [(sample.kernel, sample.duration_us, sample.launches) for sample in samples] == [
        ("a", 1.0, 500.0),
        ("a", 3.0, 500.0),
        ("b.c", 0.5, 1000.0),
        ("b.c", 0.7, 1000.0),
    ]
    assert (tmp_path / "runs").read_text().split() == [r"regex:^(a|b\.c)$", r"regex:^(b\.c)$"]
    assert coverage(samples) == "4 of 3000 launches were measured, of 2 kernels"
    assert sum((sample.duration_us or 0) * sample.launches for sample in samples) == pytest.approx(3200)


def test_a_further_run_that_fails_leaves_what_the_first_gave(tmp_path):
    tool = stub(tmp_path, SAMPLING_TOOL.replace("open(log", "sys.exit(3) if '(a' not in names else open(log"))
    samples = Ncu(tool, 60.0, 2).collect(job(tmp_path, trace=LONG_CALL), [])
    assert [(sample.kernel, sample.launches) for sample in samples] == [("a", 500.0), ("a", 500.0)]


def test_of_a_short_call_every_launch_stands_for_itself(tmp_path):
    record = Trace((launch("a", 2), launch("b.c", 1)), ())
    tool = stub(tmp_path, f"open(log, 'w').write({table(('a', 5), ('b.c', 6), ('a', 7))!r})")
    samples = Ncu(tool, 30.0, 3).collect(job(tmp_path, trace=record), [])
    assert [sample.launches for sample in samples] == [1.0, 1.0, 1.0]
    assert coverage(samples) == ""


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
        pytest.param(
            f"open(log, 'w').write({WIDE!r} + '==ERROR== The application returned an error code (11).'); sys.exit(11)",
            "failed with status 11 after 2 launches: .*error code",
            "",
            id="crashed-target",
        ),
        pytest.param(
            "print('ncu: error while loading shared libraries: libInjectionBase.so: cannot open'); sys.exit(127)",
            "does not start: .*libInjectionBase",
            "reinstall",
            id="missing-library",
        ),
        pytest.param("sys.exit(127)", "does not start: exit status 127", "path", id="missing-interpreter"),
        pytest.param("pass", "no table; it said: nothing", "", id="silence"),
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
