from __future__ import annotations

import json
import subprocess
import sys

import pytest

from engine.doctor import Line, as_text, exit_code
from engine.doctor.gpu import (
    Driver,
    cuda_driver,
    find_tool,
    gpu_line,
    gpu_lines,
    ncu_line,
    permission_line,
    sanitizer_line,
)
from engine.doctor.machine import bubblewrap_line, disk_line, key_line, landlock_line, namespace_line, writable_line
from engine.doctor.packages import REQUIRED, pth_line, version_lines
from engine.judging.bubblewrap import Bubblewrap

GOOD = {name: ".".join(map(str, lowest)) for name, lowest in REQUIRED.items()} | {"litellm": "1.106.2"}
DRIVER = Driver("13.0", ("NVIDIA H200",))


@pytest.mark.parametrize(
    ("python", "changed", "name", "state", "words"),
    [
        ((3, 11, 7), {}, "python", "ok", "3.11.7"),
        ((3, 10, 9), {}, "python", "fail", "expected >= 3.11"),
        ((3, 11, 7), {"torch": None}, "torch", "fail", "not installed"),
        ((3, 11, 7), {"torch": "2.7.1"}, "torch", "fail", "expected >= 2.8"),
        ((3, 11, 7), {"torch": "2.13.0+cpu"}, "torch", "ok", "2.13.0+cpu"),
        ((3, 11, 7), {"numpy": "2.4.0", "triton": "3.6.0"}, "numpy", "warn", "TypeError in loops"),
        ((3, 11, 7), {"numpy": "2.4.0", "triton": "3.9.0"}, "numpy", "ok", "2.4.0"),
        ((3, 11, 7), {"numpy": "2.3.5", "triton": "3.6.0"}, "numpy", "ok", "2.3.5"),
        ((3, 11, 7), {"litellm": None}, "litellm", "warn", "not installed"),
        ((3, 11, 7), {"litellm": "1.82.7"}, "litellm", "fail", "compromised"),
        ((3, 11, 7), {"litellm": "1.82.8"}, "litellm", "fail", "compromised"),
    ],
)
def test_versions(python, changed, name, state, words):
    line = next(line for line in version_lines(python, GOOD | changed) if line.name == name)
    assert line.state == state
    assert words in line.found
    assert line.remedy or state == "ok"


@pytest.mark.parametrize(
    ("name", "text", "state"),
    [
        ("litellm_init.pth", "import os; os.system('x')\n", "warn"),
        ("paths.pth", "/some/where\n", "ok"),
        ("distutils-precedence.pth", "import os\n", "ok"),
        ("__editable__.thing-1.pth", "import x\n", "ok"),
    ],
)
def test_start_up_hooks(tmp_path, name, text, state):
    (tmp_path / name).write_text(text)
    line = pth_line([tmp_path, tmp_path / "absent"])
    assert line.state == state
    assert state == "ok" or name in line.found


@pytest.mark.parametrize(
    ("status", "output", "state", "words"),
    [
        (0, "==PROF== Disconnected", "ok", "were read"),
        (1, "==ERROR== ERR_NVGPUCTRPERM - no permission", "warn", "administrators"),
        (0, "==ERROR== ERR_NVGPUCTRPERM - no permission", "warn", "administrators"),
        (9, "first\nlast words\n", "warn", "last words"),
        (None, "no answer within 180 s", "warn", "no answer"),
    ],
)
def test_permission(status, output, state, words):
    line = permission_line(status, output)
    assert (line.state, words in line.found) == (state, True)


@pytest.mark.parametrize(
    ("line", "state"),
    [
        (gpu_line(None), "warn"),
        (gpu_line(DRIVER), "ok"),
        (ncu_line(None, DRIVER), "warn"),
        (ncu_line(None, None), "ok"),
        (ncu_line("/usr/bin/ncu", DRIVER), "ok"),
        (landlock_line(0), "warn"),
        (landlock_line(3), "ok"),
        (landlock_line(7), "ok"),
        (namespace_line(True), "ok"),
        (namespace_line(False), "warn"),
        (bubblewrap_line(Bubblewrap(None)), "warn"),
        (bubblewrap_line(Bubblewrap("/usr/bin/bwrap")), "ok"),
        (bubblewrap_line(Bubblewrap("/usr/bin/bwrap", "no permission to make a namespace")), "warn"),
    ],
    ids=lambda value: value.name + ": " + value.found[:20] if isinstance(value, Line) else "",
)
def test_states(line, state):
    assert line.state == state
    assert line.remedy or state == "ok"


def test_keys_are_named_and_never_shown(monkeypatch):
    models = {"a": {"key_env": "A_KEY_FOR_TEST"}, "b": {"key_env": "B_KEY_FOR_TEST"}, "c": {"key_env": None}, "d": None}
    monkeypatch.delenv("A_KEY_FOR_TEST", raising=False)
    monkeypatch.delenv("B_KEY_FOR_TEST", raising=False)
    none = key_line(models)
    assert none.state == "warn"
    assert "A_KEY_FOR_TEST (a)" in none.remedy
    monkeypatch.setenv("B_KEY_FOR_TEST", "secret-value")
    one = key_line(models)
    assert (one.state, one.found) == ("ok", "set: B_KEY_FOR_TEST (b)")
    assert "secret-value" not in repr(one)


@pytest.mark.parametrize(("free_gib", "state"), [(0.5, "fail"), (5, "warn"), (50, "ok")])
def test_disk(tmp_path, monkeypatch, free_gib, state):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": free_gib * 2**30}))
    assert disk_line(tmp_path / "not" / "yet").state == state


def test_results_folder(tmp_path, monkeypatch):
    assert writable_line(tmp_path / "new").state == "ok"
    assert not (tmp_path / "new").exists()

    def refused(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refused)
    line = writable_line(tmp_path)
    assert (line.state, "Permission denied" in line.found) == ("fail", True)


def test_tool_is_found_off_the_path(tmp_path):
    tool = tmp_path / "2025.1" / "no_such_tool_on_path"
    tool.parent.mkdir()
    tool.write_text("")
    assert find_tool(tool.name, (f"{tmp_path}/*",)) == str(tool)
    assert find_tool(tool.name, (f"{tmp_path}/nothing*",)) is None


def test_text_and_exit_code():
    lines = [Line("a", "ok", "fine", "hidden"), Line("longer", "warn", "hm", "do this")]
    assert as_text(lines) == "ok    a       fine\nwarn  longer  hm\n              -> do this\n"
    assert exit_code(lines) == 0
    assert exit_code([*lines, Line("c", "fail", "no")]) == 2


def test_command_answers_in_json_without_importing_torch():
    code = (
        "import sys, engine.doctor.__main__ as m; status = m.main(['--json']);"
        "sys.stderr.write(','.join(n for n in ('torch', 'triton', 'litellm', 'duckdb') if n in sys.modules));"
        "sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    tree = json.loads(done.stdout)
    assert done.returncode == tree["exit_code"]
    assert done.stderr == ""
    names = [line["name"] for line in tree["lines"]]
    expected = {"python", "torch", "gpu", "ncu permission", "landlock", "namespaces", "bubblewrap", "disk", "keys"}
    assert expected | {"results"} <= {*names}
    assert all(line["remedy"] for line in tree["lines"] if line["state"] != "ok")


@pytest.mark.parametrize(
    ("path", "driver", "state"),
    [("/usr/bin/compute-sanitizer", None, "ok"), (None, None, "ok"), (None, Driver("13.0", ("GPU",)), "warn")],
)
def test_the_sanitizer_is_named_with_its_remedy(path, driver, state):
    line = sanitizer_line(path, driver)
    assert (line.name, line.state, bool(line.remedy)) == ("compute-sanitizer", state, state == "warn")
    assert path is None or path in line.found


@pytest.mark.gpu
@pytest.mark.skipif(cuda_driver() is None, reason="no CUDA device answers")
def test_on_a_gpu_driver_clock_and_permission_are_really_asked():
    lines = {line.name: line for line in gpu_lines()}
    assert lines["gpu"].state == lines["driver"].state == "ok"
    assert "SM clock" in lines["driver"].found
    assert lines["ncu permission"].found != "not probed: no GPU"
