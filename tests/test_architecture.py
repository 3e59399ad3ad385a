"""Imports point down, each library has one place, and no name of the configuration is written into the engine."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("engine", "profilers")

LAYERS = {
    0: {"errors", "command", "canonical", "codec", "records", "confirmation", "worker", "sink", "files", "ids"},
    1: {"settings", "decode", "crossref", "project", "rules", "vocabulary", "journal", "memo", "prompts", "extract"},
    2: {"llm", "store", "tasks", "backends", "judging"},
    3: {
        "classify",
        "kernel",
        "paid",
        "confirm",
        "draft",
        "stage",
        "task_run",
        "paths",
        "folder",
        "forecast",
        "expectation",
        "history",
        "run",
        "report",
    },
    4: {"__main__", "display", "doctor", "results", "judge", "metrics", "stageplan", "steps", "app", "sweeping"},
}
SIDEWAYS = {("backends", "judging"), ("backends", "tasks"), ("judging", "tasks")}
"""Packages of layer 2 that may know another: a back-end speaks to the judge through its client modules."""

PROFILERS_MAY_IMPORT = {"records", "errors", "canonical", "codec"}

ONLY_IN = {
    "hydra": ("engine/__main__.py", "engine/sweeping.py"),
    "omegaconf": ("engine/__main__.py", "engine/sweeping.py"),
    "litellm": ("engine/llm/",),
    "duckdb": ("engine/store/",),
    "jinja2": ("engine/prompts.py", "engine/prompts/", "engine/report/"),
    "rich": ("engine/display/",),
    "pandas": ("engine/store/", "engine/report/"),
    "torch": ("engine/judging/", "engine/tasks/", "engine/backends/"),
    "triton": ("engine/judging/", "engine/tasks/", "engine/backends/"),
}
LAZY = {"litellm", "torch", "triton", "pandas", "duckdb"}
"""Never imported by the modules that a bare `--help` loads."""

GENERAL_WORDS = {
    "auto": "the default that lets the classifier or the device decide; also a mode of the display",
    "default": "a name of files and of Python's own vocabulary",
    "recurrent": "also a kind of torch function in the facts: records.OpCost",
    "attention": "also a kind of torch function in the facts: records.OpCost",
}
"""Names in conf/ that are also ordinary words of the engine, each with the reason."""


def modules() -> list[Path]:
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py") if "_data" not in path.parts)


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and dotted name of every import, also inside functions; those for type checkers alone are left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            yield node.lineno, node.module or ""
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def layer(name: str) -> int:
    return next(number for number, names in LAYERS.items() if name in names)


def noun(path: Path) -> str:
    """`llm` for engine/llm/caller.py; a command's `__main__` counts as the top layer."""
    parts = path.relative_to(ROOT / "engine").with_suffix("").parts
    return "__main__" if parts[-1] == "__main__" else parts[0]


def nouns() -> set[str]:
    """Modules and packages right below engine/."""
    inside = (path for path in (ROOT / "engine").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists())
    return {path.stem for path in inside} - {"__init__"}


def inner_imports() -> list[tuple[str, int, str, str]]:
    """(file, line, its noun, imported noun) of every import of the engine by the engine."""
    found = []
    for path in (path for path in modules() if path.is_relative_to(ROOT / "engine") and path.name != "__init__.py"):
        for line, name in imports(path):
            parts = name.split(".")
            if parts[0] == "engine" and len(parts) > 1 and parts[1] in nouns():
                found.append((relative(path), line, noun(path), parts[1]))
    return sorted(set(found))


def test_every_module_has_a_layer():
    assert nouns() - set().union(*LAYERS.values()) == set()


def test_imports_point_down():
    wrong = [
        f"{file}:{line}: {mine} (layer {layer(mine)}) imports {theirs} (layer {layer(theirs)})"
        for file, line, mine, theirs in inner_imports()
        if layer(theirs) > layer(mine)
    ]
    assert wrong == []


def test_packages_of_one_layer_do_not_know_each_other():
    wrong = [
        f"{file}:{line}: {mine} imports {theirs}"
        for file, line, mine, theirs in inner_imports()
        if layer(mine) == layer(theirs) == 2 and mine != theirs and (mine, theirs) not in SIDEWAYS
    ]
    assert wrong == []


def test_profilers_know_records_and_errors_only():
    wrong = [
        f"{relative(path)}:{line}: {name}"
        for path in (ROOT / "profilers").rglob("*.py")
        for line, name in imports(path)
        if name.startswith("engine") and name.split(".")[1:2] and name.split(".")[1] not in PROFILERS_MAY_IMPORT
    ]
    assert wrong == []


@pytest.mark.parametrize("library", ONLY_IN)
def test_one_library_one_place(library):
    wrong = [
        f"{relative(path)}:{line}: {name}"
        for path in modules()
        for line, name in imports(path)
        if name.split(".")[0] == library and not relative(path).startswith(ONLY_IN[library])
    ]
    assert wrong == []


def test_litellm_is_imported_by_one_module():
    users = {relative(path) for path in modules() for _, name in imports(path) if name.split(".")[0] == "litellm"}
    assert len(users) <= 1


@pytest.mark.parametrize(
    "module", ["engine.__main__", "engine.run", "engine.doctor.__main__", "engine.judge.__main__", "engine.llm.caller"]
)
def test_heavy_libraries_are_not_loaded_at_import(module):
    code = f"import sys, importlib; importlib.import_module('{module}'); print(*sorted(set(sys.modules) & {LAZY!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def string_literals() -> Iterator[tuple[str, int, str]]:
    """Every string of the engine that is not a docstring."""
    for path in (path for path in modules() if path.is_relative_to(ROOT / "engine")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        documented = {
            id(node.value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documented:
                yield relative(path), node.lineno, node.value


def configuration(group: str) -> dict[str, dict]:
    """Option name -> tree of one group of conf/."""
    files = sorted((ROOT / "conf" / group).glob("*.yaml"))
    return {path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) or {} for path in files}


def category_names() -> set[str]:
    return {name for name, tree in configuration("category").items() if "stages" in tree}


def stage_names() -> set[str]:
    return {stage for tree in configuration("category").values() for stage in tree.get("stages") or {}}


def model_names() -> set[str]:
    models = {tree["model"] for tree in configuration("llm").values() if "/" in str(tree.get("model"))}
    return models | {name.partition("/")[2] for name in models}


def counter_names() -> set[str]:
    """Spellings that tools use for a metric, as conf/metric declares them."""
    found: set[str] = set()
    for tree in configuration("metric").values():
        for metric in tree.values():
            spellings = metric.get("spellings") or {} if isinstance(metric, dict) else {}
            forms = [form for spelling in spellings.values() for form in spelling.values()]
            listed = [name for form in forms if isinstance(form, list) for name in form]
            found |= {
                name for name in [*forms, *listed] if isinstance(name, str) and re.fullmatch(r"\w+__[\w.]+", name)
            }
    return found


@pytest.mark.parametrize(
    "names", [category_names, stage_names, model_names, counter_names], ids=lambda function: function.__name__
)
def test_no_name_of_the_configuration_in_the_engine(names):
    known = names() - GENERAL_WORDS.keys()
    assert known, "conf/ declares none, so the test reads the wrong place"
    wrong = [f"{file}:{line}: {text!r}" for file, line, text in string_literals() if text in known]
    assert wrong == []


def test_no_raw_counter_in_the_engine():
    raw = re.compile(r"\b(sm|smsp|dram|lts|l1tex|gpu|gpc|fbpa|launch)__\w+")
    assert [f"{file}:{line}: {text!r}" for file, line, text in string_literals() if raw.search(text)] == []


def test_general_words_are_still_needed():
    declared = category_names() | stage_names() | model_names() | set(configuration("category"))
    assert set(GENERAL_WORDS) <= declared | {"default"}
