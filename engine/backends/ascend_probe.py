"""What this machine has of Ascend: asked of the other environment's interpreter and of device files, nothing heavy is
imported anywhere."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from engine.codec import decode
from engine.errors import MissingError
from engine.worker import scrubbed_environment

PYTHON = (3, 11)
"""Oldest that our side of a worker runs on; triton-ascend 3.2.0 is made for no newer one."""

HINT = (
    "python -m engine.doctor explains; set backends.ascend.ascend.python or ASCEND_PYTHON to the interpreter of an "
    "environment with Python 3.11, torch_npu and triton-ascend"
)
ANSWER_S = 60.0
DEVICES = Path("/dev")

_QUESTION = """
import importlib.metadata as m, importlib.util as u, json, sys
def version(*names):
    for name in names:
        try:
            return m.version(name)
        except m.PackageNotFoundError:
            pass
def there(name):
    try:
        return u.find_spec(name) is not None
    except (ImportError, ValueError):
        return False
ascend = version("triton-ascend", "triton_ascend")
print(json.dumps({"python": list(sys.version_info[:2]), "torch": version("torch"),
    "torch_npu": (version("torch_npu", "torch-npu") or "unknown") if there("torch_npu") else None,
    "triton_ascend": ascend or ("unknown" if there("triton.backends.ascend") else None)}))
"""


@dataclass(frozen=True, slots=True)
class Environment:
    """What an interpreter has; None: not installed. `triton_ascend`: version of the Triton with an Ascend back-end."""

    python: tuple[int, ...]
    torch: str | None
    torch_npu: str | None
    triton_ascend: str | None

    @property
    def lacks(self) -> tuple[str, ...]:
        """What a worker needs and this environment does not have."""
        found = {"torch_npu": self.torch_npu, "triton-ascend": self.triton_ascend}
        wrong = () if self.python >= PYTHON else (f"Python {'.'.join(map(str, PYTHON))}",)
        return (*wrong, *(name for name, version in found.items() if version is None))


def find_python(name: str) -> str:
    """The interpreter of the settings as a path. MissingError when there is none."""
    found = shutil.which(name)
    if found is None:
        raise MissingError(f"backend=ascend: there is no interpreter {name!r}", hint=HINT)
    return found


def examine(python: str) -> Environment:
    """What this interpreter has. MissingError when it does not say."""
    try:
        done = subprocess.run(
            [python, "-c", _QUESTION],
            capture_output=True,
            text=True,
            timeout=ANSWER_S,
            env=scrubbed_environment(),
            check=True,
        )
        return decode(Environment, json.loads(done.stdout.splitlines()[-1]), "answer of the NPU's interpreter")
    except (OSError, subprocess.SubprocessError, IndexError, ValueError) as error:
        said = f"{type(error).__name__}: {error}"[:200]
        raise MissingError(f"backend=ascend: {python} does not say what it has: {said}", hint=HINT) from error


def devices(folder: Path = DEVICES) -> tuple[str, ...]:
    """Device files of NPUs, such as /dev/davinci0."""
    return tuple(str(path) for path in sorted(folder.glob("davinci[0-9]*")))


def refusal(python: str, found: Environment, msprof: str) -> str | None:
    """In one line why back-end ascend cannot run, None where it can: without msprof, torch_npu's profiler counts."""
    if not found.lacks:
        return None
    tool = "msprof is there" if shutil.which(msprof) else f"{msprof} is not on PATH either"
    return f"backend=ascend needs {', '.join(found.lacks)} in {python}, which lacks that; {tool}"
