"""The operating system: what the sandbox can use, disk space, a folder for results, keys by name."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from engine.canonical import Json
from engine.doctor import Line
from engine.judging.bubblewrap import Bubblewrap, bubblewrap

LANDLOCK_CREATE_RULESET = 444
VERSION_FLAG = 1
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
LOW_DISK_GIB, NO_DISK_GIB = 10.0, 1.0
GIB = 2**30


def machine_lines(results: Path) -> list[Line]:
    return [
        landlock_line(landlock_abi()),
        namespace_line(namespaces_work()),
        bubblewrap_line(bubblewrap()),
        disk_line(results),
        writable_line(results),
    ]


def landlock_abi() -> int:
    """The kernel's Landlock version, 0 where it has none."""
    abi = ctypes.CDLL(None, use_errno=True).syscall(LANDLOCK_CREATE_RULESET, None, 0, VERSION_FLAG)
    return max(int(abi), 0)


def landlock_line(abi: int) -> Line:
    if abi == 0:
        remedy = "use a Linux kernel >= 5.13 with landlock enabled; until then judge.sandbox=required refuses to start"
        return Line("landlock", "warn", "not offered by this kernel", remedy)
    found = f"ABI {abi}"
    return Line("landlock", "ok", found if abi >= 4 else f"{found}: file rules only, TCP rules need ABI 4")


def namespaces_work() -> bool:
    """Whether a process of ours may make a user and a network namespace; tried in a child, which then ends."""
    code = f"import ctypes, sys; sys.exit(ctypes.CDLL(None).unshare({CLONE_NEWUSER | CLONE_NEWNET}) != 0)"
    return subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, timeout=30).returncode == 0


def namespace_line(works: bool) -> Line:
    if works:
        return Line("namespaces", "ok", "user and network namespaces can be made")
    remedy = "sysctl kernel.unprivileged_userns_clone=1, or kernel.apparmor_restrict_unprivileged_userns=0"
    return Line("namespaces", "warn", "a candidate keeps the machine's network", remedy)


def bubblewrap_line(found: Bubblewrap) -> Line:
    if found.program is None:
        remedy = "install bubblewrap (its command is bwrap); candidates then see no process and no folder but their own"
        return Line("bubblewrap", "warn", "not installed, the other layers hold without it", remedy)
    if found.broken:
        remedy = "allow user namespaces, or remove it; until then judge.sandbox=required refuses to start"
        return Line("bubblewrap", "warn", f"{found.program} cannot run: {found.problem}"[:200], remedy)
    return Line("bubblewrap", "ok", found.program)


def disk_line(results: Path) -> Line:
    free = shutil.disk_usage(_existing(results)).free / GIB
    found = f"{free:.1f} GiB free at {_existing(results)}"
    if free < NO_DISK_GIB:
        return Line("disk", "fail", found, "free some space, or set paths.results to another disk")
    if free < LOW_DISK_GIB:
        return Line("disk", "warn", found, "sweeps and profiles want more than 10 GiB")
    return Line("disk", "ok", found)


def writable_line(results: Path) -> Line:
    folder = _existing(results)
    try:
        with tempfile.TemporaryFile(dir=folder):
            return Line("results", "ok", f"{results} can be written")
    except OSError as error:
        remedy = "change the folder's owner, or set paths.results"
        return Line("results", "fail", f"cannot write in {folder}: {error.strerror}", remedy)


def key_line(models: Mapping[str, Json]) -> Line:
    """Which of the keys that conf/llm names are set. `models`: option name -> its YAML tree; values are never read."""
    wanted: dict[str, list[str]] = {}
    for option, tree in sorted(models.items()):
        if isinstance(tree, dict) and isinstance(tree.get("key_env"), str):
            wanted.setdefault(tree["key_env"], []).append(option)
    told = [f"{name} ({', '.join(options)})" for name, options in wanted.items()]
    present = [words for name, words in zip(wanted, told, strict=True) if os.environ.get(name)]
    if present:
        return Line("keys", "ok", "set: " + "; ".join(present))
    remedy = f"export one of {'; '.join(told)}" if told else "conf/llm names no key"
    return Line("keys", "warn", "none set; llm=replay, llm=mailbox and a local server need none", remedy)


def _existing(path: Path) -> Path:
    return next(folder for folder in (path, *path.absolute().parents) if folder.is_dir())
