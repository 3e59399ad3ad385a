"""Confine this process, then become another command: for tools that start a candidate themselves, such as a profiler.

`python -m engine.judging.confined SPEC COMMAND...`, SPEC a file with the JSON of a `sandbox.Confinement`. Where that
requires layers which this machine lacks, the command is not started: status 1, and stderr names them.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

from engine.codec import decode, encode
from engine.judging.sandbox import Confinement, confine, missing_layers
from engine.settings import LimitSettings

PACKAGE = Path(__file__).resolve().parents[2]
"""Folder that holds the engine package, a checkout's root or site-packages."""

SPEC = "confinement.json"
OUTPUT = "output.txt"
"""Where, in its folder, a confined command's output goes."""


def copied_package(folder: Path) -> None:
    """A copy of the engine in `folder`: all of ours that a command confined to it may read."""
    ignored = shutil.ignore_patterns("__pycache__", "_data")
    shutil.copytree(PACKAGE / "engine", folder / "engine", ignore=ignored)


def write_launcher(folder: Path, limits: LimitSettings, cpu_s: float, required: bool) -> tuple[str, ...]:
    """The words to put before a command that shall run confined to `folder`, with `cpu_s` seconds for each process;
    `required`: with all layers or not at all."""
    confinement = Confinement(
        scratch=str(folder),
        cpu_s=max(1, round(cpu_s)),
        memory_bytes=None,
        processes=limits.processes,
        file_bytes=limits.file_mib << 20,
        gpu=True,
        process_tree=True,
        required=required,
    )
    spec = folder / SPEC
    spec.write_text(json.dumps(encode(confinement)))
    return (sys.executable, "-P", "-m", "engine.judging.confined", str(spec))


def main() -> None:
    spec, *command = sys.argv[1:]
    confinement = decode(Confinement, json.loads(Path(spec).read_text()), spec)
    # Confinement sends stderr to a file in its folder; this copy is closed by exec.
    report = os.dup(2)
    layers = confine(confinement, dict(os.environ), [report])
    missing = missing_layers(confinement, layers, broken_bubblewrap=False)
    if missing:
        text = (
            f"{command[0]} was not started: judge.sandbox=required, and the layers {', '.join(missing)} are not "
            "available here; provide them or set judge.sandbox=best_effort\n"
        )
        os.write(report, text.encode())
        sys.exit(1)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
