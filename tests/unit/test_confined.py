"""A command behind the launcher runs confined, in one process group, and the profiler reads its log."""

from __future__ import annotations

import shutil
import stat
import sys
import time
from pathlib import Path

import pytest

from engine.errors import ProfilerError
from engine.judging import confined, sandbox
from engine.judging.confined import OUTPUT, write_launcher
from engine.settings import LimitSettings
from engine.worker import scrubbed_environment
from profilers.ncu import DURATION, Ncu
from profilers.seam import Job

ROOT = Path(__file__).resolve().parents[2]
LIMITS = LimitSettings(60.0, 60.0, 4.0, 512, 64)
TABLE = f'"ID","Process ID","Kernel Name","{DURATION}"\\n"0","1","k","1,000"\\n'


@pytest.fixture
def folder(tmp_path):
    shutil.copytree(ROOT / "engine", tmp_path / "engine", ignore=shutil.ignore_patterns("__pycache__", "_data"))
    return tmp_path


def profiler(folder: Path, body: str, timeout_s: float = 60.0) -> tuple[Ncu, Job]:
    tool = folder / "tool"
    tool.write_text(f"#!{sys.executable}\nimport sys, time\nlog = sys.argv[sys.argv.index('--log-file') + 1]\n{body}\n")
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    environment = scrubbed_environment({"PYTHONPATH": str(folder)})
    launcher = write_launcher(folder, LIMITS, timeout_s, False)
    return Ncu(str(tool), timeout_s, 4, launcher), Job(("none",), str(folder), environment, ("k",), None)


def test_the_tool_writes_its_log_and_prints_into_its_folder(folder):
    ncu, job = profiler(folder, f"open(log, 'w').write('''{TABLE}'''); print('printed')")
    (sample,) = ncu.collect(job, [])
    assert sample.duration_us == 1.0
    assert (folder / OUTPUT).read_text() == "printed\n"


@pytest.mark.parametrize(
    ("required", "absent", "starts"),
    [(True, "landlock", False), (True, "network_namespace", False), (True, None, True), (False, "landlock", True)],
)
def test_a_command_that_requires_all_layers_starts_with_all_or_not_at_all(
    tmp_path, monkeypatch, capfd, required, absent, starts
):
    *_, spec = write_launcher(tmp_path, LIMITS, 5.0, required)
    started = []
    layers = tuple(layer for layer in sandbox.LAYERS if layer != absent)
    monkeypatch.setattr(confined, "confine", lambda *_: layers)
    monkeypatch.setattr(confined.os, "execvp", lambda tool, command: started.append(command))
    monkeypatch.setattr(sys, "argv", ["confined", spec, "tool", "--flag"])
    if starts:
        confined.main()
        assert started == [["tool", "--flag"]]
        return
    with pytest.raises(SystemExit) as ended:
        confined.main()
    assert (ended.value.code, started) == (1, [])
    said = capfd.readouterr().err
    assert "tool was not started" in said and f"layers {absent} are not available" in said


@pytest.mark.skipif(sandbox.landlock_abi() < 1, reason="this kernel has no Landlock")
def test_the_tool_cannot_write_outside_its_folder(folder, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside") / "mark"
    ncu, job = profiler(folder, f"open({str(outside)!r}, 'w').write('x')")
    with pytest.raises(ProfilerError, match="no table"):
        ncu.collect(job, [])
    assert not outside.exists()
    assert "PermissionError" in (folder / OUTPUT).read_text()


def test_a_hanging_tool_is_ended_with_what_it_started(folder):
    body = "import subprocess; p = subprocess.Popen(['sleep', '300']); print(p.pid, flush=True); time.sleep(300)"
    ncu, job = profiler(folder, body, timeout_s=5.0)
    with pytest.raises(ProfilerError, match="did not finish"):
        ncu.collect(job, [])
    pid = int((folder / OUTPUT).read_text())
    time.sleep(0.2)
    status = Path(f"/proc/{pid}/stat")
    assert not status.exists() or status.read_text().rsplit(")", 1)[1].split()[0] == "Z"
