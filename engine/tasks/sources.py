"""Where tasks come from: the bundled ones, a file, a directory, a glob, or a KernelBench data set."""

from __future__ import annotations

import glob
import importlib
import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from engine.canonical import Json
from engine.codec import DecodeError, decode
from engine.errors import ConfigError, Fault, MissingError
from engine.records import Contract, Task
from engine.tasks.contracts import make_task, read_contract, source_faults

_LEVEL = re.compile(r"^level(\d+)$")
_NUMBER = re.compile(r"^(\d+)_")
_PIECES = re.compile(r"(\d+)")
COLUMNS = ("level", "problem_id", "name", "code")


def natural_key(text: str) -> tuple[tuple[int, str], ...]:
    """Sorts `level1/2_x` before `level1/10_x`."""
    return tuple((int(piece), "") if piece.isdigit() else (-1, piece) for piece in _PIECES.split(text) if piece)


def from_files(path: str) -> list[Task]:
    """Tasks of a .py file, of a directory with all below it, or of a glob; contracts are the .yaml files beside them.

    Raises MissingError when there is nothing, ConfigError with the faults of all files at once.
    """
    faults: list[Fault] = []
    tasks = [task for file in _files(path) if (task := _from_file(file, faults)) is not None]
    return _checked(tasks, faults)


def from_dataset(path: str) -> list[Task]:
    """Tasks of a KernelBench data set in parquet or JSONL with the columns level, problem_id, name and code.

    Raises MissingError when the file or the parquet reader is absent, ConfigError for rows of another form.
    """
    file = Path(path)
    if not file.is_file():
        raise MissingError(f"no data set at {path}", hint="set task.path to a .parquet or .jsonl file")
    faults: list[Fault] = []
    tasks = []
    for n, row in enumerate(_parquet(file) if file.suffix == ".parquet" else _jsonl(file)):
        where = f"{path}, row {n + 1}"
        task = _from_row(row, where, faults)
        if task is not None:
            tasks.append(task)
    return _checked(tasks, faults)


def _files(path: str) -> list[Path]:
    place = Path(path)
    if place.is_dir():
        found = [file for file in place.rglob("*.py") if not _hidden(file.relative_to(place))]
    elif place.is_file():
        found = [place]
    else:
        found = [Path(name) for name in glob.glob(path, recursive=True) if name.endswith(".py")]  # noqa: PTH207
    if not found:
        raise MissingError(f"no task at {path}", hint="set task.path to a .py file, a directory or a glob of them")
    return sorted(found, key=lambda file: natural_key(str(file)))


def _hidden(relative: Path) -> bool:
    return relative.name == "__init__.py" or any(part.startswith((".", "__pycache__")) for part in relative.parts)


def _from_file(file: Path, faults: list[Fault]) -> Task | None:
    """The task of one file. Kept while neither it nor its contract changes: every job of a sweep asks for it."""
    stats = [path.stat() for path in (file, file.with_suffix(".yaml")) if path.exists()]
    marks = tuple((stat.st_mtime_ns, stat.st_size) for stat in stats)
    if (file, marks) not in _known:
        task = _read(file, faults)
        if task is None:
            return None
        _known[file, marks] = task
    return _known[file, marks]


_known: dict[tuple[Path, tuple[tuple[int, int], ...]], Task] = {}


def _read(file: Path, faults: list[Fault]) -> Task | None:
    try:
        source = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        faults.append(Fault("task", f"cannot be read: {error}", str(file)))
        return None
    found = source_faults(source, str(file))
    beside = file.with_suffix(".yaml")
    contract = read_contract(beside, source, found) if beside.exists() and not found else Contract()
    faults.extend(found)
    if contract is None or found:
        return None
    level = _LEVEL.match(file.parent.name)
    number = _NUMBER.match(file.stem)
    task_id = f"{file.parent.name}/{file.stem}" if level else file.stem
    return make_task(
        task_id,
        file.stem,
        source,
        contract,
        "declared" if beside.exists() else "derived",
        int(level[1]) if level else None,
        int(number[1]) if number else None,
    )


def _from_row(row: Json, where: str, faults: list[Fault]) -> Task | None:
    try:
        level, number = decode(int, row["level"], "level"), decode(int, row["problem_id"], "problem_id")
        name, code = decode(str, row["name"], "name"), decode(str, row["code"], "code")
    except (KeyError, TypeError, DecodeError) as error:
        problem = f"expected the columns {', '.join(COLUMNS)} (int, int, str, str): {error}"
        faults.append(Fault("task", problem, where))
        return None
    found = source_faults(code, where)
    faults.extend(found)
    return None if found else make_task(f"level{level}/{name}", name, code, Contract(), "derived", level, number)


def _parquet(file: Path) -> Iterable[Json]:
    try:
        pandas = importlib.import_module("pandas")
        table = pandas.read_parquet(file)
    except ImportError as error:
        hint = "pip install pyarrow, or give the data set as .jsonl"
        raise MissingError(f"reading {file} needs a parquet reader for pandas", hint=hint) from error
    rows: Iterable[Json] = json.loads(table.to_json(orient="records"))
    return rows


def _jsonl(file: Path) -> Iterable[Json]:
    for n, line in enumerate(file.read_text(encoding="utf-8").splitlines()):
        if line.strip():
            try:
                yield json.loads(line)
            except ValueError as error:
                raise ConfigError([Fault("task.path", f"line {n + 1} is no JSON: {error}", str(file))]) from error


def _checked(tasks: list[Task], faults: list[Fault]) -> list[Task]:
    repeated = [task_id for task_id, n in Counter(task.task_id for task in tasks).items() if n > 1]
    faults += [Fault("task", f"two tasks are called {task_id}; rename one") for task_id in repeated]
    if faults:
        raise ConfigError(faults)
    return sorted(tasks, key=lambda task: natural_key(task.task_id))
