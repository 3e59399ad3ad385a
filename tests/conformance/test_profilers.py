"""What every profiler keeps. A profiler joins with a subclass of ProfilerConformance that says how to set it up: its
tool is a `script` that stands for the real one. It notes its environment in `environment.json` and, where it hangs,
the pid of a process that it started in `child.pid`, both in the job's folder."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import stat
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from engine.errors import ProfilerError
from engine.records import Launch, Trace
from profilers.ascend_tool import Chip
from profilers.cupti import Counted, Cupti
from profilers.fake import Failure, Fake
from profilers.msprof import Msprof, TorchNpu
from profilers.msprof_op import MsprofOp
from profilers.ncu import DURATION, Ncu
from profilers.seam import Job, KernelSample, Profiler, Workload
from profilers.static import Static, bundled
from profilers.trace import TRACE_FILE, KernelTrace
from tests.support.cubins import written

KERNELS = ("copy_kernel", "strided_kernel")
TRACE = Trace(tuple(Launch(kernel, (8, 1, 1), 1, 0.0, 4, 3, False) for kernel in KERNELS), ())
WORKLOAD = Workload("plan key", "full", "float32", "ieee", cold=True)
ENVIRONMENT = {"PATH": os.environ["PATH"], "ONLY_OURS": "1"}
SHELL_OWN = {"LC_CTYPE", "PWD", "SHLVL", "_"}
"""What an interpreter adds to its environment itself."""

HEAD = f"""#!{sys.executable}
import json, os, subprocess, sys, time
json.dump(dict(os.environ), open('environment.json', 'w'))
print('a line of the tool'); print('another', file=sys.stderr)
"""
HANG = "p = subprocess.Popen(['sleep', '300']); open('child.pid', 'w').write(str(p.pid)); time.sleep(300)\n"
CRASH = "sys.exit(9)\n"


def script(path: Path, body: str) -> str:
    path.write_text(HEAD + body)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def job(folder: Path, *command: str, **more) -> Job:
    return Job(command or ("true",), str(folder), ENVIRONMENT, KERNELS, TRACE, WORKLOAD, **more)


@dataclass(frozen=True)
class Case:
    """A profiler, what it is asked, and a counter that it gives for each kernel of the plan."""

    profiler: Profiler
    job: Job
    counter: str


class ProfilerConformance:
    """`runs_a_tool`: it starts a process, so the tests of environment and time limit apply."""

    runs_a_tool = True

    def working(self, folder: Path) -> Case:
        raise NotImplementedError

    def hanging(self, folder: Path) -> Case:
        """With a time limit that is shorter than the tool's patience."""
        raise NotImplementedError

    def failing(self, folder: Path) -> list[Case]:
        """One for each way to give nothing: a crash, nonsense, silence."""
        raise NotImplementedError

    def absent(self, folder: Path) -> Profiler | None:
        """The profiler without its tool; None where it needs none of its own."""
        raise NotImplementedError

    def samples(self, folder: Path) -> tuple[KernelSample, ...]:
        case = self.working(folder)
        return case.profiler.collect(case.job, [case.counter])

    def test_it_has_a_name_and_can_be_used(self, tmp_path):
        profiler = self.working(tmp_path).profiler
        assert profiler.name.isidentifier()
        reason = profiler.available()
        assert reason is None or reason.startswith("the driver"), reason

    def test_its_absence_is_a_line(self, tmp_path):
        profiler = self.absent(tmp_path)
        if profiler is None:
            pytest.skip("it has no tool of its own that could be absent")
        reason = profiler.available()
        assert reason
        assert "\n" not in reason

    def test_kernels_are_named_as_in_the_plan(self, tmp_path):
        assert {sample.kernel for sample in self.samples(tmp_path)} == set(KERNELS)

    def test_values_are_numbers_and_durations_positive(self, tmp_path):
        case = self.working(tmp_path)
        for sample in case.profiler.collect(case.job, [case.counter]):
            assert case.counter in sample.counters
            assert all(math.isfinite(value) for value in sample.counters.values())
            assert sample.duration_us is None or sample.duration_us > 0
            assert sample.launches >= 1
            assert sample.seen >= 1

    def test_what_it_does_not_know_is_absent_and_never_zero(self, tmp_path):
        case = self.working(tmp_path)
        for sample in case.profiler.collect(case.job, ["no_such__counter.sum", case.counter]):
            assert "no_such__counter.sum" not in sample.counters
            assert case.counter in sample.counters

    def test_asked_for_nothing_it_still_names_the_kernels(self, tmp_path):
        case = self.working(tmp_path)
        assert {sample.kernel for sample in case.profiler.collect(case.job, [])} == set(KERNELS)

    def test_it_says_what_it_profiled(self, tmp_path):
        assert {sample.workload for sample in self.samples(tmp_path)} == {WORKLOAD}

    def test_samples_and_jobs_do_not_change(self, tmp_path):
        case = self.working(tmp_path)
        before = dataclasses.replace(case.job)
        (sample, *_) = case.profiler.collect(case.job, [case.counter])
        assert case.job == before
        with pytest.raises(dataclasses.FrozenInstanceError):
            sample.kernel = "another"

    def test_the_same_job_gives_the_same_again_and_leaves_no_folder(self, tmp_path):
        case = self.working(tmp_path)
        first = case.profiler.collect(case.job, [case.counter])
        folders = {path for path in tmp_path.iterdir() if path.is_dir()}
        assert case.profiler.collect(case.job, [case.counter]) == first
        assert {path for path in tmp_path.iterdir() if path.is_dir()} == folders

    def test_nothing_is_printed(self, tmp_path, capfd):
        self.samples(tmp_path)
        assert capfd.readouterr() == ("", "")

    def test_every_failure_is_a_profiler_error_with_a_reason(self, tmp_path, capfd):
        for number, case in enumerate(self.failing(tmp_path)):
            with pytest.raises(ProfilerError) as caught:
                case.profiler.collect(case.job, [case.counter])
            assert str(caught.value).strip(), f"failure {number} says nothing"
        assert capfd.readouterr() == ("", "")

    def test_the_tool_has_the_jobs_environment_only(self, tmp_path, monkeypatch):
        if not self.runs_a_tool:
            pytest.skip("it starts no process")
        monkeypatch.setenv("SECRET_TOKEN", "value")
        self.samples(tmp_path)
        seen = json.loads((tmp_path / "environment.json").read_text())
        assert seen["ONLY_OURS"] == "1"
        assert set(seen) - SHELL_OWN == set(ENVIRONMENT)

    def test_at_the_time_limit_all_that_was_started_ends(self, tmp_path):
        if not self.runs_a_tool:
            pytest.skip("it starts no process")
        case = self.hanging(tmp_path)
        with pytest.raises(ProfilerError, match="did not finish") as caught:
            case.profiler.collect(case.job, [case.counter])
        assert "timeout_s" in caught.value.hint
        assert gone(int((tmp_path / "child.pid").read_text()))


def gone(pid: int) -> bool:
    """Whether the process ends; a zombie, whose new parent has not looked yet, has ended."""
    for _ in range(200):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except (OSError, IndexError):
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


HANG_LIMIT_S = 3.0
"""Long enough for an interpreter to start and write its child's pid on a busy machine."""


class TestNcu(ProfilerConformance):
    TABLE = "\n".join(
        [
            f'"ID","Process ID","Kernel Name","Grid Size","dram__bytes_read.sum","{DURATION}"',
            '"","","","","byte","ns"',
            *(f'"{i}","7","{kernel}(float *)","(8, 1, 1)","1,{i}00","2,000"' for i, kernel in enumerate(KERNELS)),
            "",
        ]
    )
    WRITES = "open(sys.argv[sys.argv.index('--log-file') + 1], 'w').write({0!r})\n"

    def case(self, folder: Path, body: str, timeout_s: float = 60.0) -> Case:
        return Case(Ncu(script(folder / "ncu", body), timeout_s, 16), job(folder), "dram__bytes_read.sum")

    def working(self, folder):
        return self.case(folder, self.WRITES.format(self.TABLE))

    def hanging(self, folder):
        return self.case(folder, HANG, HANG_LIMIT_S)

    def failing(self, folder):
        bodies = [CRASH, "pass\n", self.WRITES.format("==ERROR== ERR_NVGPUCTRPERM"), self.WRITES.format("nonsense")]
        for number, _ in enumerate(bodies):
            (folder / str(number)).mkdir()
        return [self.case(folder / str(number), body) for number, body in enumerate(bodies)]

    def absent(self, folder):
        return Ncu(str(folder / "nowhere"), 1.0, 1)


class TestKernelTrace(ProfilerConformance):
    EVENTS = tuple(
        {"ph": "X", "cat": "kernel", "name": kernel, "ts": 1.0, "dur": 2.0, "args": {"grid": [8, 1, 1]}}
        for kernel in (*KERNELS, *KERNELS, "library_kernel")
    )

    def case(self, folder: Path, body: str, timeout_s: float = 60.0) -> Case:
        command = (sys.executable, script(folder / "call.py", body))
        return Case(KernelTrace("", timeout_s, 1), job(folder, *command), "time_share_pct")

    def working(self, folder):
        return self.case(folder, f"open({TRACE_FILE!r}, 'w').write({json.dumps({'traceEvents': self.EVENTS})!r})\n")

    def hanging(self, folder):
        return self.case(folder, HANG, HANG_LIMIT_S)

    def failing(self, folder):
        bodies = [CRASH, "pass\n", f"open({TRACE_FILE!r}, 'w').write('nonsense')\n"]
        for number, _ in enumerate(bodies):
            (folder / str(number)).mkdir()
        return [self.case(folder / str(number), body) for number, body in enumerate(bodies)]

    def absent(self, folder):
        return None


class TestStatic(ProfilerConformance):
    def case(self, folder: Path, body: str, timeout_s: float = 120.0) -> Case:
        """The tools are scripts in `folder` that run `body`, where None the bundled ones."""
        for tool in ("cuobjdump", "nvdisasm"):
            script(folder / tool, body.replace("TOOL", str(bundled(tool))))
        cubins = tuple(written(folder, name, 90) for name in ("copy", "strided"))
        return Case(Static(str(folder), timeout_s, 16), job(folder, cubins=cubins), "sass_ldg_bytes_max")

    def working(self, folder):
        return self.case(folder, "sys.stdout.flush(); os.execv('TOOL', ['TOOL', *sys.argv[1:]])\n")

    def hanging(self, folder):
        return self.case(folder, HANG, HANG_LIMIT_S)

    def failing(self, folder):
        for number in range(2):
            (folder / str(number)).mkdir()
        cases = [self.case(folder / "0", CRASH), self.case(folder / "1", "pass\n")]
        empty = dataclasses.replace(cases[0].job, cubins=(), cwd=str(folder))
        return [*cases, Case(cases[0].profiler, empty, "registers")]

    @pytest.fixture(autouse=True)
    def _without_the_bundled_tools(self, monkeypatch, request):
        if "absence" in request.node.name:
            monkeypatch.setattr("profilers.static.bundled", lambda tool: None)

    def absent(self, folder):
        return Static(str(folder / "nowhere"), 1.0, 1)


HITS = "lts__t_sector_hit_rate.pct"


class TestCupti(ProfilerConformance):
    runs_a_tool = False

    def case(self, folder, samples):
        def count(counters):
            if isinstance(samples, Exception):
                raise samples
            given = {HITS: 7.0, DURATION: 2000.0}
            known = {name: given[name] for name in (*counters, DURATION) if name in given}
            return Counted(tuple(KernelSample(kernel, 2.0, known) for kernel in samples), len(samples), 8, ())

        return Case(Cupti(count), job(folder), HITS)

    def working(self, folder):
        return self.case(folder, KERNELS)

    def failing(self, folder):
        return [self.case(folder, ()), self.case(folder, ProfilerError("insufficient privileges"))]

    def absent(self, folder):
        return None


class TestFake(ProfilerConformance):
    runs_a_tool = False

    def working(self, folder):
        script = {kernel: {"hits": 50.0, "duration_us": 2.0} for kernel in KERNELS}
        return Case(Fake(script), job(folder), "hits")

    def failing(self, folder):
        return [Case(Fake({}, failure), job(folder), "hits") for failure in (*Failure, None)]

    def absent(self, folder):
        return Fake({}, Failure.ABSENT)


CHIP = Chip(dram_gbps=1800.0, vector_cores=40, cube_cores=20)
OUTPUT = "folder = next(word.split('=', 1)[1] for word in sys.argv if word.startswith('--output='))\n"


class TestMsprof(ProfilerConformance):
    TABLE = "\n".join(
        [
            "Op Name,Task Type,Task Duration(us),Block Dim",
            *(f"{kernel},AI_VECTOR_CORE,2.5,20" for kernel in KERNELS),
            "library_op,AI_CORE,9.0,20",
            "",
        ]
    )
    WRITES = OUTPUT + "os.makedirs(folder + '/PROF_1'); open(folder + '/PROF_1/op_summary_1.csv', 'w').write({0!r})\n"

    def case(self, folder: Path, body: str, timeout_s: float = 60.0) -> Case:
        return Case(Msprof(script(folder / "msprof", body), timeout_s, 16, CHIP), job(folder), "Block Dim")

    def working(self, folder):
        return self.case(folder, self.WRITES.format(self.TABLE))

    def hanging(self, folder):
        return self.case(folder, HANG, HANG_LIMIT_S)

    def failing(self, folder):
        bodies = [
            CRASH,
            "pass\n",
            self.WRITES.format("nonsense"),
            self.WRITES.format(self.TABLE.splitlines()[0] + "\n"),
        ]
        for number, _ in enumerate(bodies):
            (folder / str(number)).mkdir()
        return [self.case(folder / str(number), body) for number, body in enumerate(bodies)]

    def absent(self, folder):
        return Msprof(str(folder / "nowhere"), 1.0, 1, CHIP)


class TestTorchNpu(TestMsprof):
    """The program itself writes the table; what msprof calls an output is a fixed place in its folder."""

    WRITES = "os.makedirs('profile', exist_ok=True); open('profile/kernel_details.csv', 'w').write({0!r})\n"

    def case(self, folder: Path, body: str, timeout_s: float = 60.0) -> Case:
        command = (sys.executable, script(folder / "call.py", body))
        return Case(TorchNpu(timeout_s, 16, CHIP, calls=1), job(folder, *command), "Block Dim")

    def absent(self, folder):
        return None

    def test_the_same_job_gives_the_same_again_and_leaves_no_folder(self, tmp_path):
        case = self.working(tmp_path)
        assert case.profiler.collect(case.job, [case.counter]) == case.profiler.collect(case.job, [case.counter])


class TestMsprofOp(ProfilerConformance):
    HEAD = "Op Name,Op Type,Task Duration(us),Block Dim,Mix Block Dim,Device Id,Pid,Current Freq,Rated Freq,\n"
    WRITES = (
        OUTPUT + "for number, kernel in enumerate({1!r}):\n"
        "    place = folder + '/OPPROF_1_A/' + kernel + '/' + str(number)\n"
        "    os.makedirs(place)\n"
        "    row = kernel + ',vector,2.5,20,NA,0,NA,1800,1800,\\n'\n"
        "    open(place + '/OpBasicInfo_20260105094511207.csv', 'w').write({0!r} + row)\n"
    )

    def case(self, folder: Path, body: str, timeout_s: float = 60.0) -> Case:
        return Case(MsprofOp(script(folder / "msprof", body), timeout_s, 16, CHIP), job(folder), "Block Dim")

    def working(self, folder):
        return self.case(folder, self.WRITES.format(self.HEAD, KERNELS))

    def hanging(self, folder):
        return self.case(folder, HANG, HANG_LIMIT_S)

    def failing(self, folder):
        bodies = [
            CRASH,
            "pass\n",
            self.WRITES.format("nonsense\n", KERNELS),
            self.WRITES.format(self.HEAD, ["another"]),
        ]
        for number, _ in enumerate(bodies):
            (folder / str(number)).mkdir()
        return [self.case(folder / str(number), body) for number, body in enumerate(bodies)]

    def absent(self, folder):
        return MsprofOp(str(folder / "nowhere"), 1.0, 1, CHIP)
