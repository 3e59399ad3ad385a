"""Python, the packages and the start-up hooks of site-packages; from metadata, nothing is imported."""

from __future__ import annotations

import importlib.metadata
import re
import site
import sys
from collections.abc import Iterable, Mapping
from fnmatch import fnmatch
from pathlib import Path

from engine.doctor import Line

OLDEST_PYTHON = (3, 11)
REQUIRED = {
    "torch": (2, 8),
    "triton": (3, 4),
    "numpy": (1, 26),
    "hydra-core": (1, 3, 8),
    "omegaconf": (2, 3, 1),
    "duckdb": (1, 4, 5),
    "pandas": (2, 2),
    "jinja2": (3, 1),
    "rich": (13,),
    "pyyaml": (6,),
}
"""Lowest versions; pyproject.toml says the same to pip."""
INTERPRETER_LIMIT = (2, 4)
"""numpy from this version on makes the interpreter of Triton 3.6 raise TypeError in loops."""
COMPROMISED = {"litellm": ("1.82.7", "1.82.8")}
EXPECTED_PTH = (
    "distutils-precedence.pth",
    "__editable__*.pth",
    "_editable_impl_*.pth",
    "_virtualenv.pth",
    "a1_coverage.pth",
    "*-nspkg.pth",
)
"""Start-up hooks that packaging tools and coverage leave behind."""


def package_lines() -> list[Line]:
    names = (*REQUIRED, "litellm")
    versions = {name: _version(name) for name in names}
    return [*version_lines(sys.version_info[:3], versions), pth_line(_site_folders())]


def version_lines(python: tuple[int, ...], versions: Mapping[str, str | None]) -> list[Line]:
    """Judgement on installed versions; None means not installed."""
    lines = [_python_line(python)]
    for name, lowest in REQUIRED.items():
        lines.append(_required(name, lowest, versions[name], versions))
    lines.append(_litellm(versions["litellm"]))
    return lines


def pth_line(folders: Iterable[Path]) -> Line:
    """`.pth` files with code run at every start of Python: a compromised package once came that way."""
    strange = [
        path
        for folder in folders
        if folder.is_dir()
        for path in sorted(folder.glob("*.pth"))
        if _runs_code(path) and not any(fnmatch(path.name, known) for known in EXPECTED_PTH)
    ]
    if not strange:
        return Line("start-up hooks", "ok", "no .pth file with code besides the packaging tools' own")
    names = ", ".join(str(path) for path in strange)
    return Line(
        "start-up hooks",
        "warn",
        f"code runs at every start of Python: {names}",
        "read these files; delete them if you do not know which package brought them",
    )


def _python_line(python: tuple[int, ...]) -> Line:
    found = ".".join(map(str, python))
    if python[:2] >= OLDEST_PYTHON:
        return Line("python", "ok", found)
    return Line(
        "python",
        "fail",
        f"{found}, expected >= {_dotted(OLDEST_PYTHON)}",
        "make a virtual environment with a newer Python",
    )


def _required(name: str, lowest: tuple[int, ...], found: str | None, versions: Mapping[str, str | None]) -> Line:
    if found is None:
        return Line(name, "fail", "not installed", "pip install -e . -c constraints.txt")
    if _numbers(found) < lowest:
        remedy = "pip install -e . -c constraints.txt"
        return Line(name, "fail", f"{found}, expected >= {_dotted(lowest)}", remedy)
    triton = versions["triton"]
    if name == "numpy" and triton and _numbers(triton)[:2] <= (3, 6) and _numbers(found) >= INTERPRETER_LIMIT:
        problem = f"{found}: the interpreter of triton {triton} raises TypeError in loops with numpy >= 2.4"
        return Line(name, "warn", problem, "pip install 'numpy<2.4'; only backend=cpu is affected")
    return Line(name, "ok", found)


def _litellm(found: str | None) -> Line:
    if found is None:
        return Line("litellm", "warn", "not installed", "needed for a live model only: pip install litellm")
    if found in COMPROMISED["litellm"]:
        remedy = "pip install -c constraints.txt litellm, then rotate every key this machine has held"
        return Line("litellm", "fail", f"{found} is a compromised release", remedy)
    return Line("litellm", "ok", found)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    release = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, release.group().split("."))) if release else ()


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _site_folders() -> list[Path]:
    return [Path(folder) for folder in (*site.getsitepackages(), site.getusersitepackages())]


def _runs_code(path: Path) -> bool:
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return any(line.startswith(("import ", "import\t")) for line in lines)
