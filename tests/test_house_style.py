"""The habits of CONTRIBUTING.md that a program can measure, over engine/ and profilers/."""

from __future__ import annotations

import ast
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted(
    path for package in ("engine", "profilers") for path in (ROOT / package).rglob("*.py") if "_data" not in path.parts
)

LONGEST_FILE = 450
LONGEST_FUNCTION = 60
FUNCTION_SHARE = 0.95
"""Of all functions are at most 50 lines long."""
TARGET_FUNCTION = 50

PRINTS = ("engine/display/",)
ENVIRONMENT = {
    "engine/__main__.py": "tells Hydra to raise, and passes the sweep's folder to jobs",
    "engine/worker.py": "builds the scrubbed environment of workers",
    "engine/llm/": "reads the key that the configuration names",
    "engine/judging/": "builds and checks the sandbox",
    "engine/doctor/": "says which keys are set",
    "engine/display/__init__.py": "NO_COLOR and CI belong to the terminal",
}

EMOJI = re.compile("[\U0001f300-\U0001faff\u2600-\u27bf\u2b50\u2b55]")
BANNER = re.compile(r"#\s*[-=*#~_]{4,}")
EDITS_PATH = re.compile(r"\bsys\.path\b\s*(\.|\[|\+?=)")


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def trees() -> Iterator[tuple[str, ast.Module]]:
    for path in FILES:
        yield name_of(path), ast.parse(path.read_text(encoding="utf-8"))


def functions() -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for file, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield file, node


def length(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    assert node.end_lineno is not None
    return node.end_lineno - node.lineno + 1


def calls(tree: ast.Module) -> Iterator[ast.Call]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.Call))


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_are_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST_FILE, "two nouns: split it"


def test_functions_are_short():
    long = [f"{f}:{n.lineno}: {n.name}, {length(n)} lines" for f, n in functions() if length(n) > LONGEST_FUNCTION]
    assert long == []


def test_nearly_all_functions_reach_the_target():
    lengths = [length(node) for _, node in functions()]
    assert sum(size <= TARGET_FUNCTION for size in lengths) >= FUNCTION_SHARE * len(lengths)


def test_arguments_and_results_are_annotated():
    wrong = []
    for file, node in functions():
        every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        bare = [a.arg for a in every if a.annotation is None and a.arg not in ("self", "cls")]
        if bare or node.returns is None:
            wrong.append(f"{file}:{node.lineno}: {node.name} {bare}")
    assert wrong == []


BROAD = ("Exception", "BaseException")


def is_broad(handler: ast.ExceptHandler) -> bool:
    names = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(name is None or (isinstance(name, ast.Name) and name.id in BROAD) for name in names)


def raises_again(handler: ast.ExceptHandler) -> bool:
    """It cleans up and lets everything rise: nothing is caught."""
    last = handler.body[-1]
    return isinstance(last, ast.Raise) and last.exc is None


def broad_handlers() -> Iterator[tuple[Path, ast.ExceptHandler]]:
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ExceptHandler) and is_broad(node) and not raises_again(node):
                yield path, node


def test_broad_handlers_name_their_boundary():
    wrong = []
    for path, node in broad_handlers():
        lines = path.read_text(encoding="utf-8").splitlines()
        beside = "\n".join(lines[node.lineno - 2 : node.lineno + 1])
        comment = re.sub(r"#\s*noqa:\s*[A-Z0-9, ]+", "#", beside).partition("#")[2]
        if len(comment.strip(" -#")) < 15:
            wrong.append(f"{name_of(path)}:{node.lineno}: says no boundary")
    assert wrong == []


def test_no_handler_is_silent_about_everything():
    wrong = [
        f"{name_of(path)}:{node.lineno}"
        for path, node in broad_handlers()
        if all(isinstance(line, ast.Pass | ast.Continue) for line in node.body)
    ]
    assert wrong == []


def test_broad_handlers_are_rare():
    lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in FILES)
    assert sum(1 for _ in broad_handlers()) <= max(1, lines / 1000)


def test_defaults_live_in_yaml_not_in_get():
    lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in FILES)
    found = [
        f"{file}:{call.lineno}"
        for file, tree in trees()
        for call in calls(tree)
        if isinstance(call.func, ast.Attribute) and call.func.attr == "get" and len(call.args) == 2
    ]
    assert len(found) <= max(1, lines / 1000), found


def test_print_only_in_the_display():
    wrong = [
        f"{file}:{call.lineno}"
        for file, tree in trees()
        for call in calls(tree)
        if isinstance(call.func, ast.Name) and call.func.id == "print" and not file.startswith(PRINTS)
    ]
    assert wrong == []


def test_the_environment_is_read_in_few_places():
    wrong = [
        f"{file}:{node.lineno}"
        for file, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and node.attr in ("environ", "getenv", "putenv")
        and isinstance(node.value, ast.Name)
        and node.value.id == "os"
        and not file.startswith(tuple(ENVIRONMENT))
    ]
    assert wrong == []


@pytest.mark.parametrize("pattern", [EMOJI, BANNER, EDITS_PATH], ids=["emoji", "banner", "sys.path"])
def test_not_written(pattern):
    wrong = []
    for path in FILES:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if pattern.search(line):
                wrong.append(f"{name_of(path)}:{number}: {line.strip()}")
    assert wrong == []


def test_comments_are_few():
    """Above a fifth of all lines, comments narrate."""
    comments = lines = 0
    for path in FILES:
        lines += len(path.read_text(encoding="utf-8").splitlines())
        with path.open("rb") as file:
            comments += sum(token.type == tokenize.COMMENT for token in tokenize.tokenize(file.readline))
    assert comments <= 0.2 * lines


def is_frozen(decorator: ast.expr) -> bool:
    words = ast.unparse(decorator)
    return "frozen=True" in words and "slots=True" in words


def test_records_are_frozen_with_slots():
    tree = ast.parse((ROOT / "engine" / "records.py").read_text(encoding="utf-8"))
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and not node.bases]
    assert classes
    assert [node.name for node in classes if not any(map(is_frozen, node.decorator_list))] == []


def test_seams_are_small():
    seams = [path for path in FILES if path.name in ("seam.py", "sink.py")]
    assert len(seams) == 5
    for path in seams:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and any(ast.unparse(base) == "Protocol" for base in node.bases):
                assert sum(isinstance(inner, ast.FunctionDef) for inner in node.body) <= 4, path
