"""What a candidate's process can and cannot do. The screen is bypassed: the code is handed to the child directly."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from engine.judging import sandbox
from engine.judging.children import Child, ChildEnded, ChildTimeout, ForkServerClient, new_scratch


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    os.environ["SOME_API_KEY"] = "secret"
    folder = tmp_path_factory.mktemp("sandbox")
    started = ForkServerClient({"TRITON_INTERPRET": "1"}, folder / "server.log")
    yield started
    started.close()
    del os.environ["SOME_API_KEY"]


@pytest.fixture
def child(server, tmp_path):
    confinement = sandbox.Confinement(new_scratch(tmp_path / "scratch"), 20, 3 << 30, 256, 1 << 20, False)
    with Child(server, "run", confinement) as started:
        started.start()
        yield started


def load(child, body, timeout_s=15.0):
    message = {"op": "load", "source": body, "init": {"args": [], "kwargs": {}}, "params": [], "seed": 0}
    return child.ask({**message, "device": "cpu", "target": "sm_90", "tf32": False}, timeout_s)


def outcome(child, body):
    """The text that the code raises."""
    return load(child, body)["error"]["message"]


def layer(child, name):
    if name not in child.layers:
        pytest.skip(f"this kernel offers no {name}")


def test_layers_that_always_hold(child):
    assert set(child.layers) >= set(sandbox.LAYERS) - set(sandbox.OPTIONAL)


def test_environment_folders_and_descriptors(child):
    text = outcome(
        child,
        "import os, tempfile\n"
        "open_files = sorted(os.listdir('/proc/self/fd'))\n"
        "raise ValueError(repr((sorted(os.environ), os.getcwd(), tempfile.gettempdir(), open_files)))",
    )
    names, cwd, temporary, descriptors = eval(text)
    assert "SOME_API_KEY" not in names
    assert {"HOME", "TMPDIR", "TRITON_CACHE_DIR"} <= set(names)
    assert cwd == temporary == str(child.scratch)
    # Standard streams, the channel, and the listing itself.
    assert len(descriptors) <= 5


def test_files_outside_the_scratch_folder_are_neither_written_nor_read(child, tmp_path):
    layer(child, "landlock")
    secret = tmp_path / "secret.txt"
    secret.write_text("answer")
    for action in (f"open({str(secret)!r}).read()", f"open({str(tmp_path / 'mark')!r}, 'w')", "open('/etc/mark', 'w')"):
        assert "Permission denied" in outcome(child, action)
    assert not (tmp_path / "mark").exists()


def test_the_project_is_out_of_sight(child):
    layer(child, "landlock")
    assert "Permission denied" in outcome(child, f"open({str(Path(sandbox.__file__))!r}).read()")


def test_no_network(child):
    layer(child, "network_namespace")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        text = outcome(child, f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 2)")
    assert "unreachable" in text or "refused" in text or "denied" in text or "Permission" in text


def test_the_judge_cannot_be_signalled(child):
    layer(child, "landlock")
    if sandbox.landlock_abi() < 6:
        pytest.skip("this kernel cannot scope signals")
    assert "not permitted" in outcome(child, f"import os\nos.kill({os.getpid()}, 0)")


def test_large_files_are_cut(child):
    text = outcome(child, "with open('big', 'wb') as f:\n    f.write(b'0' * (4 << 20))")
    assert "too large" in text


def test_memory_is_limited(child):
    assert load(child, "x = bytearray(4 << 30)")["error"]["type"] == "MemoryError"


def test_an_early_exit_is_no_answer(child):
    with pytest.raises(ChildEnded) as caught:
        load(child, "import os\nos._exit(0)")
    assert caught.value.status == 0


def test_a_crash_names_its_signal(child):
    with pytest.raises(ChildEnded) as caught:
        load(child, "import ctypes\nctypes.string_at(0)")
    assert caught.value.status == -signal.SIGSEGV


def test_silence_kills_the_group_and_what_it_detached(child):
    body = (
        "import os, time\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    open('pid', 'w').write(str(os.getpid()))\n"
        "    time.sleep(600)\n"
        "time.sleep(600)\n"
    )
    with pytest.raises(ChildTimeout):
        load(child, body, timeout_s=1.5)
    orphan = int((child.scratch / "pid").read_text())
    deadline = time.monotonic() + 5
    while Path(f"/proc/{orphan}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{orphan}").exists()


DETACHES = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.setsid()
    open(f'pid-{os.getpid()}', 'w').close()
    time.sleep(600)
while sum(name.startswith('pid-') for name in os.listdir()) < 2:
    time.sleep(0.01)
"""
"""Leaves two processes that are in no group of the candidate's, one below the other."""


def detached(scratch: Path, name="pid-*"):
    return [int(path.name.partition("-")[2]) for path in scratch.glob(name)]


def gone(pids, within_s=20.0):
    deadline = time.monotonic() + within_s
    while (left := [pid for pid in pids if Path(f"/proc/{pid}").exists()]) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not left


def started(server, folder):
    confinement = sandbox.Confinement(new_scratch(folder), 60, 3 << 30, 256, 1 << 20, False)
    child = Child(server, "run", confinement)
    child.start()
    return child


def test_the_end_of_a_child_is_the_end_of_what_it_detached_twice(server, tmp_path):
    with started(server, tmp_path) as child:
        load(child, DETACHES)
        left = detached(child.scratch)
        assert len(left) == 2
        assert not gone(left, 0.1)
        child.end()
    assert gone(left, 0.0)


def test_a_closed_server_leaves_nothing_of_its_children(tmp_path):
    server = ForkServerClient({"TRITON_INTERPRET": "1"}, tmp_path / "server.log")
    child = started(server, tmp_path)
    load(child, DETACHES)
    left = [child.pid, *detached(child.scratch)]
    server.close()
    assert gone([server.process.pid, *left], 0.0)
    child.channel.close()


KILLED = """
import os, signal, sys
from pathlib import Path
from engine.judging.children import ForkServerClient
from tests.unit.test_sandbox import DETACHES, load, started

folder = Path(sys.argv[1])
server = ForkServerClient({"TRITON_INTERPRET": "1"}, folder / "server.log")
child = started(server, folder)
load(child, DETACHES)
(folder / f"pid-{server.process.pid}").touch()
(folder / f"pid-{child.pid}").touch()
os.killpg(0, signal.SIGKILL)
"""


def test_a_killed_judge_leaves_nothing_of_its_children(tmp_path):
    words = [sys.executable, "-c", KILLED, str(tmp_path)]
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(words, cwd=root, start_new_session=True, capture_output=True, timeout=300, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    left = [*detached(tmp_path), *detached(tmp_path, "c*/pid-*")]
    assert len(left) == 4
    assert gone(left)


def test_a_server_that_was_killed_is_replaced(tmp_path):
    server = ForkServerClient({"TRITON_INTERPRET": "1"}, tmp_path / "server.log")
    with contextlib.closing(server):
        with started(server, tmp_path) as child:
            threading.Timer(0.5, server.process.kill).start()
            with pytest.raises(ChildEnded) as caught:
                load(child, "import time\ntime.sleep(600)", 60.0)
            assert caught.value.status == -signal.SIGKILL
        with started(server, tmp_path) as second:
            assert "outer" in load(second, "raise ValueError")["error"]
            # The first one's number is no child of the new server.
            assert server.end(child.pid) == -signal.SIGKILL
            assert "outer" in load(second, "raise ValueError")["error"]


def test_exceptions_carry_the_candidates_lines(child):
    error = load(child, "def f():\n    return 1 / 0\n\n\nf()")["error"]
    assert error["type"] == "ZeroDivisionError"
    assert error["frames"] == ["line 5, in <module>: f()", "line 2, in f: return 1 / 0"]
