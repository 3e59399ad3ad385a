"""The layer around fork servers without a GPU: its command line by table, and really run where `bwrap` is."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from engine.judging import bubblewrap as module
from engine.judging import sandbox
from engine.judging.bubblewrap import SYSTEM, bubblewrap, command
from engine.judging.children import Child, ForkServerClient, new_scratch

ROOT = Path(__file__).resolve().parents[2]


def words(scratch="/scratch", environment=None):
    return command("/usr/bin/bwrap", Path(scratch), environment or {})


def bound(found, option="--ro-bind-try"):
    """What is shown inside, all at the path that it has outside."""
    places = [(found[at + 1], found[at + 2]) for at, word in enumerate(found) if word == option]
    assert all(outside == inside for outside, inside in places)
    return [outside for outside, _ in places]


@pytest.mark.parametrize(
    "option",
    [
        *("--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-user-try"),
        *("--as-pid-1", "--die-with-parent", "--new-session"),
    ],
)
def test_namespaces_and_ends(option):
    assert option in words()


def test_the_scratch_folder_is_all_that_is_written_besides_a_private_tmp():
    found = words("/tmp/judge/candidates")
    assert bound(found, "--bind") == ["/tmp/judge/candidates"]
    assert not {"--dev-bind", "--dev-bind-try", "--bind-try", "--share-net"} & {*found}
    # A later mount hides an earlier one at the same place or above.
    assert found.index("--tmpfs") < found.index("--ro-bind-try") < found.index("--bind")
    assert found[found.index("--chdir") + 1] == "/tmp/judge/candidates"


def test_of_the_project_only_the_packages_are_shown():
    shown = bound(words())
    assert {str(ROOT / "engine"), str(ROOT / "profilers")} <= {*shown}
    for name in ("", "tasks", "conf", "results", "tests"):
        hidden = str(ROOT / name).rstrip("/")
        assert not any(path == hidden or hidden.startswith(path + "/") for path in shown), hidden
    assert not {"/", "/etc", "/proc", "/run", "/home", str(Path.home())} & {*shown}


def test_the_interpreter_and_its_packages_are_shown():
    shown = bound(words())
    needed = [sys.prefix, sys.base_prefix, *(path for path in sys.path if path.endswith("site-packages"))]
    assert [path for path in needed if not any(Path(path).is_relative_to(other) for other in shown)] == []


@pytest.mark.parametrize(
    ("environment", "shown"),
    [
        pytest.param({"LD_LIBRARY_PATH": "/data/cuda/lib:/data/other:relative:"}, {"/data/cuda/lib", "/data/other"}),
        pytest.param({"LD_LIBRARY_PATH": "/data/cuda/lib", "CUDA_HOME": "/data/cuda"}, {"/data/cuda"}, id="once"),
        pytest.param({"TRITON_PTXAS_PATH": "/data/bin/ptxas", "CC": "gcc"}, {"/data/bin/ptxas"}, id="a-file"),
        pytest.param({"CUDA_HOME": "/usr/local/cuda"}, set(), id="there-already"),
        pytest.param({"PATH": "/data/bin", "HOME": "/data/home", "OTHER": "/data/x"}, set(), id="nothing-else"),
    ],
)
def test_variables_show_libraries_and_compilers(environment, shown):
    assert {*bound(words(environment=environment))} - {*bound(words())} == shown


def test_links_to_the_interpreter_are_shown_as_far_as_they_lie_elsewhere(tmp_path, monkeypatch):
    for name in ("venv", "versions", "real"):
        (tmp_path / name).mkdir()
    (tmp_path / "real" / "python").touch()
    (tmp_path / "versions" / "python").symlink_to("../real/python")
    (tmp_path / "venv" / "python").symlink_to(tmp_path / "versions" / "python")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "venv" / "python"))
    shown = bound(words())
    assert str(tmp_path / "real") in shown
    assert str(tmp_path / "versions" / "python") in shown
    assert str(tmp_path / "versions") not in shown


def test_paths_are_shown_once_and_in_no_other():
    shown = bound(words())[len(SYSTEM) :]
    assert len(shown) == len({*shown})
    assert not [path for path in shown for other in (*SYSTEM, *shown) if path.startswith(other + "/")]


@pytest.mark.parametrize(
    ("script", "works", "broken", "problem"),
    [
        pytest.param(None, False, False, "", id="absent"),
        pytest.param("exit 0", True, False, "", id="runs"),
        pytest.param("echo first >&2; echo 'no permission' >&2; exit 1", False, True, "no permission", id="forbidden"),
        pytest.param("exit 3", False, True, "status 3", id="silent"),
        pytest.param("exec sleep 60", False, True, "timed out", id="hangs"),
    ],
)
def test_it_is_tried_once(tmp_path, monkeypatch, script, works, broken, problem):
    program = tmp_path / "bin" / "bwrap"
    program.parent.mkdir()
    if script is not None:
        program.write_text(f'#!/bin/sh\necho tried >> "{tmp_path}/tries"\n{script}\n')
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent) if script is None else f"{program.parent}:{os.environ['PATH']}")
    if problem == "timed out":
        monkeypatch.setattr(module, "PROBE_S", 0.5)
    bubblewrap.cache_clear()
    try:
        found = [bubblewrap() for _ in range(2)]
    finally:
        bubblewrap.cache_clear()
    assert [(each.works, each.broken) for each in found] == [(works, broken)] * 2
    assert problem in found[0].problem
    assert script is None or (tmp_path / "tries").read_text() == "tried\n"


@pytest.fixture(scope="module")
def wrapped(tmp_path_factory):
    if not bubblewrap().works:
        pytest.skip(f"bubblewrap is absent or cannot run here: {bubblewrap().problem or 'bwrap is not on the PATH'}")
    folder = tmp_path_factory.mktemp("bubblewrap")
    server = ForkServerClient({"TRITON_INTERPRET": "1"}, folder / "server.log", gpu=False)
    yield server
    server.close()


@pytest.fixture
def child(wrapped):
    scratch = new_scratch(wrapped.log.parent)
    with Child(wrapped, "run", sandbox.Confinement(scratch, 20, 3 << 30, 256, 1 << 20, False)) as started:
        started.start()
        yield started


def raised(child, body):
    message = {"op": "load", "source": body, "init": {"args": [], "kwargs": {}}, "params": [], "seed": 0}
    return child.ask({**message, "device": "cpu", "target": "sm_90", "tf32": False}, 30.0)["error"]["message"]


def test_it_is_a_layer_beside_the_others(child):
    assert child.layers[-1] == sandbox.BUBBLEWRAP
    assert {"process_group", "rlimits", "private_folders", "environment", "network_namespace"} <= {*child.layers}


def test_what_is_not_shown_does_not_exist(child, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("answer")
    for path in (secret, ROOT / "tasks" / "gelu.py", "/etc/shadow", Path("/proc") / str(os.getpid()) / "status"):
        assert "No such file" in raised(child, f"open({str(path)!r}).read()"), path


def test_nobody_outside_is_seen_and_the_server_cannot_be_killed(child):
    text = raised(child, "import os\nraise ValueError([int(n) for n in os.listdir('/proc') if n.isdecimal()])")
    assert "Permission denied" in text or max(eval(text)) < 100
    raised(child, "import os\nos.kill(1, 9)")
    assert "alive" in raised(child, "raise ValueError('alive')")


def test_its_end_is_the_end_of_all_inside(wrapped, child):
    """The last test of this server."""
    raised(child, "import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(600)\nraise ValueError")
    mark = str(wrapped.log.parent)
    assert running(mark)
    wrapped.process.kill()
    wrapped.process.wait()
    assert running(mark, wait=True) == []


def running(mark: str, *, wait: bool = False) -> list[str]:
    """Processes with `mark` in their environment."""
    deadline = time.monotonic() + 20
    while True:
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                found += [path.parent.name] if mark.encode() in path.read_bytes() else []
            except OSError:
                continue
        if not wait or not found or time.monotonic() > deadline:
            return found
        time.sleep(0.1)
