"""What a judgement is given: the reference with its contract and facts, and the candidates' texts."""

from __future__ import annotations

import dataclasses
import itertools
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.codec import did_you_mean
from engine.errors import ConfigError, Fault, MissingError
from engine.records import Contract, Operator, Precision, Task
from engine.tasks.contracts import HOST_OPS, make_task, read_contract, source_faults
from engine.tasks.facts_client import derive_variants, describe
from engine.tasks.sources import natural_key
from engine.tasks.variants import apply_variant
from engine.worker import scrubbed_environment

PathLike = str | Path
IMPORT_S = 120.0
REFERENCE_FORM = "REFERENCE is a file with Model, get_inputs and get_init_inputs, or the name of a bundled task"
CANDIDATE_FORM = "each CANDIDATE is a Python file with a class ModelNew, or a folder of such files"

_END = "the reference came to its end"
_IMPORTS = f"import runpy, sys; runpy.run_path(sys.argv[1], run_name='reference'); print({_END!r})"
_RUNS = (
    """
import runpy, sys, torch
reference = runpy.run_path(sys.argv[1], run_name="reference")
given, named = list(reference["get_init_inputs"]()), {}
if len(given) == 2 and isinstance(given[0], (list, tuple)) and isinstance(given[1], dict):
    given, named = given
with torch.no_grad():
    reference["Model"](*given, **named)(*reference["get_inputs"]())
"""
    + f"print({_END!r})\n"
)


@dataclass(frozen=True, slots=True)
class Candidate:
    path: str
    source: str


@dataclass(frozen=True, slots=True)
class Demands:
    """What the caller asks beyond the contract; None keeps what the contract, else conf/judge, says. `variants`: only
    the first so many shape variants beside the full one."""

    host_ops: str | None = None
    precision: Precision | None = None
    variants: int | None = None


def demands(host_ops: str | None, precision: str | None, variants: int | None) -> Demands:
    """Demands from plain values; ConfigError with every fault."""
    faults = []
    if host_ops is not None and host_ops not in HOST_OPS:
        faults.append(Fault("host_ops", _expected(HOST_OPS, host_ops)))
    known = tuple(member.value for member in Precision)
    if precision is not None and precision not in known:
        faults.append(Fault("precision", _expected(known, precision)))
    if variants is not None and variants < 1:
        faults.append(Fault("variants", f"expected a number >= 1, got {variants}"))
    if faults:
        raise ConfigError(faults)
    return Demands(host_ops, None if precision is None else Precision(precision), variants)


def _expected(known: Sequence[str], got: str) -> str:
    return f"expected one of {', '.join(known)}, got {got!r}{did_you_mean(got, known)}"


def read_candidates(paths: Iterable[PathLike], reference: PathLike) -> tuple[Candidate, ...]:
    """Every file named, and every .py file below a folder named except the reference itself, each once, in natural
    order within a folder. Raises ConfigError with all that is absent, empty or unreadable."""
    faults: list[Fault] = []
    own = Path(reference).expanduser()
    # Path("") is the working folder, which an empty variable of a shell hardly meant.
    given = list(paths)
    named = [path for path in given if path != ""]
    faults += [Fault("candidate", "expected a file or a folder, got an empty text")] * (len(given) - len(named))
    files = dict.fromkeys(file for path in named for file in _files(Path(path).expanduser(), own, faults))
    found = [candidate for file in files if (candidate := _candidate(file, faults)) is not None]
    if not files and not faults:
        faults.append(Fault("candidate", "expected at least one, got none"))
    if faults:
        raise ConfigError(faults, hint=CANDIDATE_FORM)
    return tuple(found)


def _files(path: Path, reference: Path, faults: list[Fault]) -> list[Path]:
    if not path.is_dir():
        return [path]
    hidden = (".", "__")
    visible = (f for f in path.rglob("*.py") if not any(p.startswith(hidden) for p in f.relative_to(path).parts))
    found = [file for file in visible if file.resolve() != reference.resolve()]
    if not found:
        faults.append(Fault("candidate", "expected Python files in this folder, found none", str(path)))
    return sorted(found, key=lambda file: natural_key(str(file)))


def _candidate(file: Path, faults: list[Fault]) -> Candidate | None:
    source = _text("candidate", file, faults)
    return None if source is None else Candidate(str(file), source)


def _text(what: str, file: Path, faults: list[Fault]) -> str | None:
    try:
        return file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        faults.append(Fault(what, "no such file", str(file)))
    except (OSError, UnicodeDecodeError) as error:
        faults.append(Fault(what, f"cannot be read as UTF-8 text: {error}", str(file)))
    return None


@dataclass(frozen=True, slots=True)
class Subject:
    """What candidates are judged against; `remarks` say what the caller's demands left out."""

    operator: Operator
    remarks: tuple[str, ...]


def load_subject(reference: PathLike, contract: PathLike | None, asked: Demands, bundled: Path) -> Subject:
    """The reference as the judge takes it, with facts traced from it; `bundled`: the folder of the bundled tasks.

    Its contract is `contract`, else the .yaml beside it, else one with derived shape variants. Starts a process that
    runs the reference's own Python. Raises MissingError where there is no such reference, ConfigError for one that is
    not in KernelBench's form, does not import, or has a faulty contract.
    """
    file = _reference_file(reference, bundled)
    task = _task(file, None if contract is None else Path(contract).expanduser())
    with tempfile.TemporaryDirectory(prefix="kernel-judge-") as scratch:
        folder = Path(scratch)
        if task.contract_origin == "derived":
            (variants,) = derive_variants([task.source], folder)
            task = _changed(task, dataclasses.replace(task.contract, variants=variants))
        whole, task = task, _changed(task, _demanded(task.contract, asked))
        (facts,) = describe([task], folder)
        if facts.traced == "none":
            _check_runs(file, task, folder)
    kept, declared = len(task.contract.variants), len(whole.contract.variants)
    remarks = () if kept == declared else (f"judged on {kept} of {declared} shape variants, as asked",)
    return Subject(Operator(task, facts), remarks)


def _reference_file(reference: PathLike, bundled: Path) -> Path:
    given = Path(reference).expanduser()
    if given.is_file():
        return given
    if given.is_dir():
        raise MissingError(f"{given} is a folder, expected one reference", hint=REFERENCE_FORM)
    named = bundled / f"{reference}.py"
    if named.is_file():
        return named
    names = [path.stem for path in bundled.glob("*.py")]
    problem = f"no reference '{reference}': no such file, and no bundled task{did_you_mean(str(reference), names)}"
    raise MissingError(problem, hint=REFERENCE_FORM)


def _task(file: Path, contract_file: Path | None) -> Task:
    faults: list[Fault] = []
    source = _text("reference", file, faults)
    if source is not None:
        faults += source_faults(source, str(file))
    if faults or source is None:
        raise ConfigError(faults, hint=f"{REFERENCE_FORM}; it comes before the candidates")
    beside = contract_file or file.with_suffix(".yaml")
    declared = contract_file is not None or beside.is_file()
    contract = read_contract(beside, source, faults) if declared else Contract()
    if contract is None:
        raise ConfigError(faults, hint="docs/tasks.md describes contracts")
    return make_task(file.stem, file.stem, source, contract, "declared" if declared else "derived", None, None)


def _demanded(contract: Contract, asked: Demands) -> Contract:
    return dataclasses.replace(
        contract,
        host_ops=asked.host_ops or contract.host_ops,
        precision=asked.precision or contract.precision,
        variants=dict(itertools.islice(contract.variants.items(), asked.variants)),
    )


def _changed(task: Task, contract: Contract) -> Task:
    return make_task(task.task_id, task.name, task.source, contract, task.contract_origin, task.level, task.number)


def _check_runs(file: Path, task: Task, scratch: Path) -> None:
    """ConfigError with the exception's line when the module does not import, or its Model fails on its own inputs, at
    the first variant where there is one. One that runs and cannot be traced here may still be judged."""
    _require(_IMPORTS, file, file, "a module that imports", scratch)
    smallest = scratch / "smallest.py"
    variants = list(task.contract.variants.values())
    smallest.write_text(apply_variant(task.source, variants[0]) if variants else task.source, encoding="utf-8")
    _require(_RUNS, smallest, file, "a Model that runs on its own inputs", scratch)


def _require(script: str, module: Path, file: Path, what: str, scratch: Path) -> None:
    command = [sys.executable, "-c", script, str(module.resolve())]
    environment = scrubbed_environment({"PYTHONDONTWRITEBYTECODE": "1"})
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=IMPORT_S, cwd=scratch, env=environment, check=False
        )
    except subprocess.TimeoutExpired as error:
        problem = f"expected {what}, found one that takes longer than {IMPORT_S:g} s"
        raise ConfigError([Fault("reference", problem, str(file))]) from error
    # sys.exit(0) ends a process as if all were well.
    if done.returncode != 0 or _END not in done.stdout:
        left = f"it ends its own process, with status {done.returncode}"
        said = (done.stderr.strip().rpartition("\n")[2] if done.returncode != 0 else "") or left
        hint = f"{sys.executable} {file} shows the whole error" if script is _IMPORTS else REFERENCE_FORM
        raise ConfigError([Fault("reference", f"expected {what}: {said}", str(file))], hint=hint)
