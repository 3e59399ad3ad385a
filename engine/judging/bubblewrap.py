"""Bubblewrap around fork servers whose children need no GPU: folders, processes, network and IPC names of their own.

It is used where `bwrap` is installed and can run, beside the other layers. Executors and what else uses CUDA stay
outside: the judge maps their memory through CUDA IPC, which is not shown to work between namespaces. Nothing here
imports torch.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.worker import scrubbed_environment

PROGRAM = "bwrap"
PROBE_S = 30.0

NAMESPACES = (
    "--unshare-user-try",
    "--unshare-pid",
    "--unshare-net",
    "--unshare-ipc",
    "--unshare-uts",
    "--unshare-cgroup-try",
)

SYSTEM = (
    *("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64"),
    *("/etc/alternatives", "/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d"),
    *("/etc/localtime", "/etc/nsswitch.conf", "/etc/passwd", "/etc/group"),
    "/sys/devices/system",
)
"""Read-only inside: programs, libraries, what the dynamic linker and the C library read, and the processors' table."""

PATHS = ("LD_LIBRARY_PATH", "CUDA_HOME", "TRITON_LIBCUDA_PATH", "TRITON_PTXAS_PATH", "CC")
"""Variables of a worker's environment whose paths are shown as well."""

PACKAGES = ("engine", "profilers")
"""Of our own code the only folders that are seen; tasks, configuration and results are not."""


@dataclass(frozen=True, slots=True)
class Bubblewrap:
    """What this machine offers. `program`: its path, None where it is not installed; `problem`: why it cannot run."""

    program: str | None
    problem: str = ""

    @property
    def works(self) -> bool:
        return self.program is not None and not self.problem

    @property
    def broken(self) -> bool:
        """Installed, and of no use: judge.sandbox=required refuses that."""
        return self.program is not None and bool(self.problem)


@functools.cache
def bubblewrap() -> Bubblewrap:
    """Found by running Python behind it once in this process: a kernel or container may forbid what it needs."""
    program = shutil.which(PROGRAM)
    if program is None:
        return Bubblewrap(None)
    environment = scrubbed_environment()
    with tempfile.TemporaryDirectory(prefix="bwrap-") as folder:
        words = [*command(program, Path(folder), environment), sys.executable, "-I", "-c", "import json"]
        try:
            done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=PROBE_S, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            return Bubblewrap(program, str(error))
    if done.returncode != 0:
        said = done.stderr.strip().splitlines()
        return Bubblewrap(program, said[-1] if said else f"it ended with status {done.returncode}")
    return Bubblewrap(program)


def command(program: str, scratch: Path, environment: Mapping[str, str]) -> list[str]:
    """The words before a command that shall run behind bubblewrap, where it can write in `scratch` and in a /tmp of its
    own. It is process 1 of its namespace: its end is that of whatever it started, and nothing inside can kill it."""
    words = [program, *NAMESPACES, "--as-pid-1", "--die-with-parent", "--new-session", "--cap-drop", "ALL"]
    words += ["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"]
    shown = [*SYSTEM, *_own_folders(), *_named_by(environment)]
    for path in [*shown, *_links(Path(sys.executable), shown)]:
        words += ["--ro-bind-try", path, path]
    return [*words, "--bind", str(scratch), str(scratch), "--chdir", str(scratch)]


def _own_folders() -> list[str]:
    """The interpreter, the packages that it imports, and our own."""
    root = Path(__file__).resolve().parents[2]
    prefixes = {sys.prefix, sys.base_prefix, sys.exec_prefix, str(Path(sys.executable).resolve().parent)}
    packages = {entry for entry in sys.path if entry.endswith(("site-packages", "dist-packages"))}
    return _outermost({*prefixes, *packages, *(str(root / name) for name in PACKAGES)})


def _named_by(environment: Mapping[str, str]) -> list[str]:
    """Where libraries and compilers are, as far as variables say so."""
    values = [environment[name] for name in PATHS if name in environment]
    return _outermost({path for value in values for path in value.split(os.pathsep) if path.startswith("/")})


def _outermost(paths: set[str]) -> list[str]:
    """Sorted, without those that lie below another or in SYSTEM: each is shown once."""
    return sorted(path for path in paths if not _is_below(path, [*SYSTEM, *(paths - {path})]))


def _links(path: Path, shown: Sequence[str]) -> list[str]:
    """What lies between the link `path` and its file, itself included, outside of what is shown."""
    found = []
    while path.is_symlink():
        path = Path(os.path.normpath(path.parent / path.readlink()))
        if not _is_below(str(path), shown):
            found.append(str(path))
    return found


def _is_below(path: str, folders: Sequence[str]) -> bool:
    return any(path == folder or path.startswith(folder + "/") for folder in folders)
