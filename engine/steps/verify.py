"""Whether the memo is whole: every step is read, its address and its outcome are worked out again."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from engine.canonical import Json
from engine.codec import DecodeError, decode
from engine.memo import LEDGER, VERSION, Memo, outcome_sum, step_key
from engine.steps.stored import OUTCOMES, StepFile, kind_folders, left_over, read_ledger, read_pruned, step_files

DELETE = "delete that file; its step is done again when it is asked for"


class Fault(StrEnum):
    """What can be wrong with the memo. The first two are errors, the others notes."""

    CORRUPT = "corrupt"
    MISPLACED = "misplaced"
    LOST = "lost"
    """A ledger line whose step is not there, and that `prune` did not take away."""
    UNLISTED = "unlisted"
    """A step without a ledger line: its process was killed, or the disk was full, between the two."""
    TORN = "torn"
    LEFT_OVER = "left_over"


ERRORS = (Fault.CORRUPT, Fault.MISPLACED)


@dataclass(frozen=True, slots=True)
class Finding:
    """One fault, where it is, what it is, and what to do."""

    fault: Fault
    path: Path
    problem: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.path}: {self.fault}: {self.problem}; {self.remedy}"


@dataclass(frozen=True, slots=True)
class Verified:
    steps: int
    findings: tuple[Finding, ...]

    @property
    def errors(self) -> int:
        """Findings that a run can stumble over."""
        return sum(finding.fault in ERRORS for finding in self.findings)


def verify(root: Path, kinds: Sequence[str] = ()) -> Verified:
    """Read every step of these kinds (none: all). What a running engine adds or takes away meanwhile is no finding."""
    findings: list[Finding] = []
    seen: set[tuple[str, str]] = set()
    for step in step_files(root, kinds):
        seen.add((step.kind, step.key))
        found = _step(step)
        findings += [found] if found else []
    findings += _strangers(root, kinds)
    findings += _ledger(root, kinds, seen)
    for path in left_over(root, kinds, time.time()):
        problem, remedy = "left by a process that ended while it wrote or removed a step", "prune --yes removes it"
        findings.append(Finding(Fault.LEFT_OVER, path, problem, remedy))
    return Verified(len(seen), tuple(findings))


def _step(step: StepFile) -> Finding | None:
    try:
        tree = json.loads(step.path.read_bytes())
        version, kind, inputs, outcome, *_ = (tree[name] for name in ("v", "kind", "inputs", "outcome", "cost", "t"))
        stated = tree.get("outcome_sha256")
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return Finding(Fault.CORRUPT, step.path, f"not a step: {type(error).__name__} {error}", DELETE)
    if version != VERSION:
        problem = f"expected version {VERSION} of the form, found {version!r}"
        return Finding(Fault.CORRUPT, step.path, problem, DELETE)
    if kind != step.kind:
        problem = f"a step of kind {kind!r} among those of kind {step.kind!r}"
        return Finding(Fault.MISPLACED, step.path, problem, DELETE)
    return _addressed(step, inputs) or _readable(step, outcome, stated)


def _addressed(step: StepFile, inputs: Json) -> Finding | None:
    try:
        key = step_key(step.kind, inputs)
    except ValueError as error:
        return Finding(Fault.CORRUPT, step.path, f"its inputs have no address: {error}", DELETE)
    if (key, key[:2]) == (step.key, step.path.parent.name):
        return None
    problem = f"its kind and inputs have the address {key}: it was moved, or its inputs were changed"
    return Finding(Fault.MISPLACED, step.path, problem, DELETE)


def _readable(step: StepFile, outcome: Json, stated: Json) -> Finding | None:
    if stated is not None and stated != outcome_sum(outcome):
        return Finding(Fault.CORRUPT, step.path, "its outcome is not the one that was stored", DELETE)
    if step.kind in OUTCOMES:
        try:
            decode(OUTCOMES[step.kind], outcome, f"stored {step.kind}")
        except DecodeError as error:
            return Finding(Fault.CORRUPT, step.path, f"this version cannot read its outcome: {error}", DELETE)
    return None


def _strangers(root: Path, kinds: Sequence[str]) -> Iterator[Finding]:
    """Files where no step can be found."""
    for folder in kind_folders(root, kinds):
        known = {path for path in folder.glob("[0-9a-f][0-9a-f]/[0-9a-f]*.json")}
        for path in sorted(folder.rglob("*")):
            if path.is_file() and path not in known and not path.name.startswith("."):
                problem = "no step is looked for here"
                yield Finding(Fault.MISPLACED, path, problem, "delete or move that file away")


def _ledger(root: Path, kinds: Sequence[str], seen: set[tuple[str, str]]) -> Iterator[Finding]:
    # Read after the steps, and what is missing is looked for once more: a running engine writes the step first.
    ledger, pruned, memo = read_ledger(root), read_pruned(root), Memo(root, "")
    path = root / LEDGER
    for number in ledger.torn:
        remedy = "nothing to do; what that step cost is unknown to SQL"
        yield Finding(Fault.TORN, path, f"line {number} cannot be read", remedy)
    for kind, key in sorted(ledger.entries.keys() - seen - pruned):
        if (not kinds or kind in kinds) and not memo.path(kind, key).exists():
            problem = f"{kind} {key} was paid for, and the step is gone"
            yield Finding(Fault.LOST, path, problem, "restore it from a copy, or it is paid again when it is asked for")
    for kind, key in sorted(seen - ledger.entries.keys()):
        if memo.path(kind, key).exists():
            problem = "no line in the ledger: its process ended between storing the step and noting its cost"
            remedy = "nothing to do; the step is used, SQL does not know who paid for it"
            yield Finding(Fault.UNLISTED, memo.path(kind, key), problem, remedy)
