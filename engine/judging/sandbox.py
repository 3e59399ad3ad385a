"""What surrounds a candidate's process: own session, limits, private folders, Landlock, empty network.

It protects the machine and its secrets, in layers of which each is used where the kernel offers it. It does not
protect the numbers: clock, reference and verdict live in other processes. Nothing here imports torch.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

LAYERS = ("process_group", "rlimits", "private_folders", "environment", "network_namespace", "landlock")
"""What judge.sandbox=required asks of every process; the first four always hold."""

OPTIONAL = ("network_namespace", "landlock")

BUBBLEWRAP = "bubblewrap"
"""A further layer, of processes without a GPU, where `bubblewrap.py` finds it. `required` asks for it only where it is
installed and cannot run: who installed it counts on it."""

_LIBC = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38
_PR_SET_CHILD_SUBREAPER = 36
_CLONE_NEWUSER = 0x10000000
_CLONE_NEWNET = 0x40000000
_LANDLOCK_CREATE_RULESET, _LANDLOCK_ADD_RULE, _LANDLOCK_RESTRICT_SELF = 444, 445, 446
_RULE_PATH_BENEATH = 1
_SCOPE_ABSTRACT_SOCKET, _SCOPE_SIGNAL = 1, 2
_NET_BIND_CONNECT = 3

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 2, 4, 8
_TRUNCATE, _IOCTL_DEVICE = 1 << 14, 1 << 15
_READ = _EXECUTE | _READ_FILE | _READ_DIR
_FILE_ONLY = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEVICE

SYSTEM_READ = ("/usr", "/lib", "/lib32", "/lib64", "/bin", "/sbin", "/etc", "/sys", "/proc", "/dev", "/opt", "/run")
"""Readable inside besides the interpreter's own folders; homes, the project and its results are not."""


@dataclass(frozen=True, slots=True)
class Confinement:
    """What the child is given. `memory_bytes` None: no address-space limit (CUDA reserves far more than it uses)."""

    scratch: str
    cpu_s: int
    memory_bytes: int | None
    processes: int
    file_bytes: int
    gpu: bool
    process_tree: bool = False
    """It starts CUDA processes of its own, as a profiler does: they too must name their threads under /proc."""
    required: bool = False
    """judge.sandbox=required: it must not start without all layers."""


class _RulesetAttr(ctypes.Structure):
    _fields_ = [("fs", ctypes.c_uint64), ("net", ctypes.c_uint64), ("scoped", ctypes.c_uint64)]


class _PathAttr(ctypes.Structure):
    _pack_ = 1
    _layout_ = "ms"
    _fields_ = [("access", ctypes.c_uint64), ("fd", ctypes.c_int32)]


def die_with_parent() -> None:
    """SIGKILL for this process when its parent ends."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def adopt_orphans() -> None:
    """Processes that a candidate detached come to us, so that they can be killed."""
    _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def missing_layers(confinement: Confinement, layers: Sequence[str], *, broken_bubblewrap: bool) -> tuple[str, ...]:
    """What a process with these layers lacks of what `required` asks for; nothing where that is not set."""
    if not confinement.required:
        return ()
    wanted = [*LAYERS, *([BUBBLEWRAP] if broken_bubblewrap and not confinement.gpu else [])]
    return tuple(layer for layer in wanted if layer not in layers)


def confine(
    confinement: Confinement, environment: Mapping[str, str], keep: Sequence[int], *, wrapped: bool = False
) -> tuple[str, ...]:
    """Apply every layer to the calling, just forked process; the descriptors in `keep` stay open. `wrapped`: it is
    behind bubblewrap already.

    Returns the active layers' names, which are part of the verdict.
    """
    with contextlib.suppress(PermissionError):
        # It leads a session already when it was started as one.
        os.setsid()
    die_with_parent()
    _redirect(Path(confinement.scratch))
    _close_descriptors(keep)
    _private_folders(confinement.scratch, environment)
    layers = ["process_group", "rlimits", "private_folders", "environment"]
    if _empty_network() or wrapped:
        layers.append("network_namespace")
    _limits(confinement)
    abi = _landlock(confinement)
    if abi:
        layers.append("landlock")
    return (*layers, BUBBLEWRAP) if wrapped else tuple(layers)


def landlock_abi() -> int:
    """The kernel's Landlock version, 0 without it."""
    version = _LIBC.syscall(_LANDLOCK_CREATE_RULESET, None, 0, 1)
    return max(int(version), 0)


def _redirect(scratch: Path) -> None:
    null = os.open(os.devnull, os.O_RDONLY)
    log = os.open(scratch / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(null, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)


def _close_descriptors(keep: Sequence[int]) -> None:
    low = 3
    for descriptor in sorted(keep):
        os.closerange(low, descriptor)
        low = descriptor + 1
    os.closerange(low, resource.getrlimit(resource.RLIMIT_NOFILE)[0])


def _private_folders(scratch: str, environment: Mapping[str, str]) -> None:
    private = {"HOME": scratch, "TMPDIR": scratch, "TRITON_CACHE_DIR": f"{scratch}/triton", "PWD": scratch}
    os.environ.clear()
    os.environ.update({**environment, **private})
    os.chdir(scratch)
    os.umask(0o077)
    tempfile.tempdir = scratch


def _limits(confinement: Confinement) -> None:
    def lower(kind: int, value: int) -> None:
        hard = resource.getrlimit(kind)[1]
        limit = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (limit, limit))

    lower(resource.RLIMIT_CORE, 0)
    lower(resource.RLIMIT_CPU, confinement.cpu_s)
    lower(resource.RLIMIT_NPROC, confinement.processes)
    lower(resource.RLIMIT_FSIZE, confinement.file_bytes)
    lower(resource.RLIMIT_NOFILE, 1024)
    if confinement.memory_bytes is not None:
        lower(resource.RLIMIT_AS, confinement.memory_bytes)


def _empty_network() -> bool:
    user, group = os.getuid(), os.getgid()
    if _LIBC.unshare(_CLONE_NEWUSER | _CLONE_NEWNET) != 0:
        return False
    try:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    except OSError:
        return True
    return True


def _landlock(confinement: Confinement) -> int:
    abi = landlock_abi()
    if abi < 1:
        return 0
    rights = (1 << 13) - 1
    rights |= (1 << 13) if abi >= 2 else 0
    rights |= (1 << 14) if abi >= 3 else 0
    rights |= (1 << 15) if abi >= 5 else 0
    attr = _RulesetAttr(
        rights,
        _NET_BIND_CONNECT if abi >= 4 else 0,
        (_SCOPE_ABSTRACT_SOCKET | _SCOPE_SIGNAL) if abi >= 6 else 0,
    )
    size = 24 if abi >= 6 else 16 if abi >= 4 else 8
    ruleset = _LIBC.syscall(_LANDLOCK_CREATE_RULESET, ctypes.byref(attr), ctypes.c_size_t(size), 0)
    if ruleset < 0:
        return 0
    read = _READ & rights
    device = (_READ_FILE | _WRITE_FILE | _TRUNCATE | _IOCTL_DEVICE) & rights
    for path in _readable():
        _allow(ruleset, path, read)
    _allow(ruleset, confinement.scratch, rights)
    _allow(ruleset, "/dev/shm", rights)
    for path in _devices(confinement.gpu):
        _allow(ruleset, path, device)
    # CUDA names its threads through /proc/<pid>/task/<tid>/comm, opened with truncation; without that right cuInit
    # fails with error 304. The rule binds the inode of this very process.
    own = "/proc" if confinement.process_tree else f"/proc/{os.getpid()}"
    _allow(ruleset, own, read | ((_WRITE_FILE | _TRUNCATE) & rights))
    _LIBC.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    done = _LIBC.syscall(_LANDLOCK_RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)
    return abi if done == 0 else 0


def _readable() -> list[str]:
    own = {sys.prefix, sys.base_prefix, sys.exec_prefix, str(Path(sys.executable).resolve().parent)}
    packages = {str(Path(entry)) for entry in sys.path if entry.endswith(("site-packages", "dist-packages"))}
    return sorted(own | packages | set(SYSTEM_READ))


def _devices(gpu: bool) -> list[str]:
    always = ["/dev/null", "/dev/zero", "/dev/urandom", "/dev/random"]
    return always + ([str(path) for path in Path("/dev").glob("nvidia*")] if gpu else [])


def _allow(ruleset: int, path: str, access: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    if not os.path.isdir(path):  # noqa: PTH112 - no pathlib between fork and confinement's end is needed here
        access &= _FILE_ONLY
    rule = _PathAttr(access, descriptor)
    _LIBC.syscall(_LANDLOCK_ADD_RULE, ruleset, _RULE_PATH_BENEATH, ctypes.byref(rule), 0)
    os.close(descriptor)
