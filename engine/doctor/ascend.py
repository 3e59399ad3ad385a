"""The Ascend side: what `backend=ascend` would find, and what it refuses for."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence

from engine.backends.ascend_probe import PYTHON, Environment, devices, examine, find_python
from engine.doctor import Line
from engine.errors import MissingError
from engine.worker import ascend_python


def ascend_lines() -> list[Line]:
    """One line; it warns only where there is an NPU or somebody named an interpreter for one."""
    named = ascend_python("")
    try:
        found, problem = examine(find_python(named)), ""
    except MissingError as error:
        found, problem = None, str(error)
    wanted = bool(devices()) or "ASCEND_PYTHON" in os.environ
    cann = "ASCEND_HOME_PATH" in os.environ
    return [ascend_line(named, found, devices(), shutil.which("msprof"), cann=cann, wanted=wanted, problem=problem)]


def ascend_line(
    python: str,
    found: Environment | None,
    npus: Sequence[str],
    msprof: str | None,
    *,
    cann: bool,
    wanted: bool,
    problem: str = "",
) -> Line:
    """`found`: what the interpreter has, None with the `problem`. Without msprof counters come from torch_npu."""
    missing = [problem] if found is None else [f"{python} has no {name}" for name in found.lacks]
    if not npus:
        missing.append("no device file /dev/davinci*")
    if not cann:
        missing.append("ASCEND_HOME_PATH is not set")
    if msprof is None:
        missing.append("msprof is not on PATH")
    if not missing:
        assert found is not None
        versions = f"torch_npu {found.torch_npu}, triton-ascend {found.triton_ascend}"
        return Line("ascend", "ok", f"{len(npus)} NPU, {versions}; this back-end has never run on one: docs/ascend.md")
    if not wanted:
        return Line("ascend", "ok", f"backend=ascend would refuse here: {'; '.join(missing)} (docs/ascend.md)")
    version = ".".join(map(str, PYTHON))
    remedy = (
        f"install CANN and source its set_env.sh; make an environment with Python {version}, torch_npu and "
        "triton-ascend, and point ASCEND_PYTHON or backends.ascend.ascend.python to its interpreter: docs/ascend.md"
    )
    return Line("ascend", "warn", "; ".join(missing), remedy)
