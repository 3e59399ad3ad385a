"""The contract beside a task file, parsed strictly: every fault with its place."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import yaml

from engine.canonical import Json, digest
from engine.codec import decode_collecting, did_you_mean, encode
from engine.errors import Fault
from engine.records import Contract, Task
from engine.tasks.variants import constants, variant_faults

DTYPES = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
SUITES = ("nominal", "signed", "scaled", "shift", "structured", "extreme", "integer")
HOST_OPS = ("none", "library", "any")
STRIDES = ("contiguous", "any")

REQUIRED = ("Model", "get_inputs", "get_init_inputs")
"""What a task module defines at top level."""


def read_contract(path: Path, source: str, faults: list[Fault]) -> Contract | None:
    """The contract in `path`, or None with its faults appended."""
    where = str(path)
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        faults.append(Fault("contract", f"cannot be read as YAML: {error}", where))
        return None
    found: list[Fault] = []
    tree = {} if tree is None else tree
    contract = decode_collecting(Contract, tree, "", found)
    sound = contract if not found else _sound(tree, found)
    if sound is not None:
        found += [*_unknown_names(sound), *variant_faults("", sound.variants, source)]
    faults.extend(Fault(fault.path, fault.problem, where) for fault in found)
    return None if found else contract


def _sound(tree: Json, faults: Sequence[Fault]) -> Contract | None:
    """What is left of a contract without its faulty entries, so that the others' faults are told as well."""
    if not isinstance(tree, Mapping):
        return None
    faulty = {re.split(r"[.\[]", fault.path)[0] for fault in faults}
    left = {name: value for name, value in tree.items() if str(name) not in faulty}
    more: list[Fault] = []
    contract = decode_collecting(Contract, left, "", more)
    return None if more else cast(Contract, contract)


def _unknown_names(contract: Contract) -> list[Fault]:
    choices = [("dtype", contract.dtype, DTYPES), ("strides", contract.strides, STRIDES)]
    choices += [(f"suites[{n}]", suite, SUITES) for n, suite in enumerate(contract.suites)]
    if contract.host_ops is not None:
        choices.append(("host_ops", contract.host_ops, HOST_OPS))
    return [
        Fault(path, f"expected one of {', '.join(known)}, got {value!r}{did_you_mean(value, known)}")
        for path, value, known in choices
        if value not in known
    ]


def source_faults(source: str, where: str) -> list[Fault]:
    """What keeps a text from being a task: a syntax error, or a name of KernelBench's form that it does not define."""
    try:
        constants(source)
    except SyntaxError as error:
        return [Fault("task", f"syntax error in line {error.lineno}: {error.msg}", where)]
    missing = [name for name in REQUIRED if not _defines(source, name)]
    return (
        [Fault("task", f"defines no {', '.join(missing)}; a task has {', '.join(REQUIRED)}", where)] if missing else []
    )


def _defines(source: str, name: str) -> bool:
    return any(line.startswith((f"class {name}", f"def {name}", f"{name} =")) for line in source.splitlines())


def make_task(
    task_id: str, name: str, source: str, contract: Contract, origin: str, level: int | None, number: int | None
) -> Task:
    """A task with its hash over source and contract."""
    task_hash = digest({"source": source, "contract": encode(contract)})
    return Task(task_id, name, source, contract, origin, task_hash, level, number)
