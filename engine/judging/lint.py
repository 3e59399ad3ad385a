"""Task lint: is a task able to tell a right kernel from a wrong one? Works with the reference alone.

A fault is looked for on the draw as shipped and on the judge's `nominal` one; where it is found, the other suites and
shape variants of the judge decide what it costs (`records.LintSeverity`). Criteria: evaluation, task linter.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from engine.judging.inputs import UnsupportedTask, derive_seed, replay
from engine.judging.lint_checks import CHECKS, INPUTS, PARAMETERS, Check, Observation
from engine.judging.lint_draws import NOMINAL, SHIPPED, OutOfTime, VariantDraws, first_line
from engine.judging.messages import Failure, is_memory
from engine.judging.reference import leaves
from engine.judging.references import FULL, References
from engine.records import LintCode, LintFinding, LintSeverity, Reason, Status, Task, TaskLint
from engine.settings import JudgeSettings

LINT_SEED = 0
"""A lint needs no secret: no candidate is run. One seed gives one answer."""

LIMIT_S = 60.0
"""A judgement waits for this at most, once a task."""

BLOCK = 8
"""An odd extent above this is no multiple of the smallest block."""

FATAL = frozenset(
    {
        LintCode.NON_FINITE,
        LintCode.ZERO_OUTPUT,
        LintCode.CONSTANT_OUTPUT,
        LintCode.INSENSITIVE_TO_INPUT,
        LintCode.RETURNS_INPUT,
        LintCode.STOCHASTIC,
    }
)
PER_OUTPUT = frozenset({LintCode.NON_FINITE, LintCode.ZERO_OUTPUT, LintCode.CONSTANT_OUTPUT, LintCode.STOCHASTIC})
"""Codes that are errors only when every output has the fault: a kernel must still get the other outputs right."""

ENDING = frozenset({LintCode.STOCHASTIC, LintCode.NON_FINITE})
"""Codes whose errors leave nothing for the others to measure."""

TURNS = 16
"""Judgements that are drawn before a fault is no error: what passes in one of them passes in some verdicts."""

MESSAGE_CHARS = 1000

Place = tuple[str, str]
"""A variant and a suite."""


def lint(
    task: Task,
    references: References,
    settings: JudgeSettings,
    seed: int = LINT_SEED,
    limit_s: float = LIMIT_S,
) -> TaskLint:
    """The faults of a task under the suites and variants that the judge runs on the references' device; `full` only
    where there is no smaller variant. What could not be examined, or not in time, is a remark; a model that cannot be
    built raises."""
    examined = _Lint(task, references, settings, seed, time.monotonic() + limit_s)
    problem = ""
    try:
        examined.run()
    except UnsupportedTask as error:
        problem = str(error)
    except OutOfTime:
        problem = f"{limit_s:g} s are over"
    except RuntimeError as error:
        if not is_memory(error):
            raise
        problem = f"memory ran out: {first_line(error)}"
    return examined.result(problem)


def lint_problem(found: TaskLint) -> Failure | None:
    """Why a candidate that passed every check is still not known to be right; None for a task without errors."""
    if not found.errors:
        return None
    text = "; ".join(f"{finding.code.value}: {finding.message}" for finding in found.errors)
    text = f"every check passed, but this task cannot tell a right kernel from a wrong one. {text}"
    return Failure(Status.UNDECIDED, Reason.DEGENERATE_TASK, text[:MESSAGE_CHARS])


class _Seen:
    """Observations of one criterion on one tensor, by variant and suite."""

    def __init__(self) -> None:
        self.by_place: dict[Place, Observation] = {}

    def holds(self, places: Sequence[Place]) -> list[bool]:
        return [place in self.by_place and self.by_place[place].holds for place in places]

    def accepted(self, places: Sequence[Place]) -> bool:
        return all(place in self.by_place and self.by_place[place].accepted for place in places)


class _Lint:
    """One task; findings are complete when `run` returns, and as far as it came when it raises."""

    def __init__(self, task: Task, references: References, settings: JudgeSettings, seed: int, deadline: float) -> None:
        self.task, self.references, self.settings, self.seed = task, references, settings, seed
        self._deadline = deadline
        self.suites = tuple(dict.fromkeys(task.contract.suites or settings.suites))
        self.findings: list[LintFinding] = []
        self.judged: tuple[str, ...] = ()
        self.variants: list[VariantDraws] = []

    def run(self) -> None:
        self.judged = self.references.variants(self.task)
        names = tuple(name for name in self.judged if name != FULL) or self.judged
        for name in names:
            self.variants.append(self._variant(name, self.seed))
        for code, check in CHECKS.items():
            self._apply(code, check)
            if code in ENDING and any(finding.severity is LintSeverity.ERROR for finding in self.findings):
                return
        self._shapes()
        self._drop_implied()

    def _variant(self, name: str, seed: int) -> VariantDraws:
        return VariantDraws(self.references, self.task, name, self.settings, seed, self._deadline)

    def result(self, problem: str) -> TaskLint:
        remarks = [remark for variant in self.variants for remark in variant.remarks]
        remarks += [f"not examined further: {problem}"] if problem else []
        names = tuple(variant.variant for variant in self.variants)
        return TaskLint(self.task.task_id, tuple(self.findings), names, self.suites, tuple(remarks))

    def _apply(self, code: LintCode, check: Check) -> None:
        """The criterion on the draws as shipped and on the first suite; where it fails, on all others."""
        lead = self.variants[0]
        first = NOMINAL if NOMINAL in self.suites else self.suites[0]
        seen: dict[str, _Seen] = defaultdict(_Seen)
        for suite in (SHIPPED, first):
            self._observe(check, lead, suite, None, seen)
        at_first = [(lead.variant, SHIPPED), (lead.variant, first)]
        faulty = frozenset(label for label, one in seen.items() if any(one.holds(at_first)))
        judged = self._rest(check, lead, [suite for suite in self.suites if suite != first], faulty, seen)
        judged = self._places(lead, [first]) + judged
        for variant in self.variants[1:]:
            everywhere = frozenset(label for label in faulty if all(seen[label].holds(judged)))
            judged += self._rest(check, variant, self.suites, everywhere, seen)
        if faulty and not judged:
            raise UnsupportedTask(f"{lead.variant}: the reference fails under every suite")
        fatal, turn = self._fatal(code, check, faulty, seen, judged) if code in FATAL else (frozenset(), 0)
        for label, one in seen.items():
            if label in faulty:
                self.findings.append(self._finding(code, label, one, judged, turn if label in fatal else None))

    def _fatal(
        self, code: LintCode, check: Check, labels: frozenset[str], seen: Mapping[str, _Seen], judged: Sequence[Place]
    ) -> tuple[frozenset[str], int]:
        """The tensors on which one judgement could take a wrong answer for right everywhere, and the turn of draws
        that showed it: 0 for those already seen."""
        results = [draw.result for suite in self.suites for draw in self.variants[0].draws(suite)[:1]]
        wanted = len(results[0].exact) if code in PER_OUTPUT and results else 1
        labels = frozenset(label for label in labels if any(one.accepted for one in seen[label].by_place.values()))
        found = frozenset(label for label in labels if seen[label].accepted(judged))
        # What told them apart once is asked first.
        places = [(variant.variant, suite) for variant in self.variants for suite in self.suites]
        places.sort(key=lambda place: place not in judged or all(seen[label].accepted([place]) for label in labels))
        turn = 0
        while len(found) < wanted <= len(labels) and turn + 1 < TURNS:
            turn += 1
            found = self._accepted_again(check, labels, places, derive_seed(self.seed, "turn", turn))
        return (found, turn) if len(found) >= wanted else (frozenset(), 0)

    def _accepted_again(
        self, check: Check, labels: frozenset[str], places: Sequence[Place], seed: int
    ) -> frozenset[str]:
        """Of `labels` those accepted everywhere under other draws; stops where none is left."""
        made: dict[str, VariantDraws] = {}
        for name, suite in places:
            if not labels:
                break
            if name not in made:
                made[name] = self._variant(name, seed)
            if made[name].draws(suite):
                seen: dict[str, _Seen] = defaultdict(_Seen)
                self._observe(check, made[name], suite, labels, seen)
                labels = frozenset(label for label in labels if seen[label].accepted([(name, suite)]))
        return labels

    def _rest(
        self,
        check: Check,
        variant: VariantDraws,
        suites: Sequence[str],
        labels: frozenset[str],
        seen: Mapping[str, _Seen],
    ) -> list[Place]:
        if not labels:
            return []
        for suite in suites:
            self._observe(check, variant, suite, labels, seen)
        return self._places(variant, suites)

    def _places(self, variant: VariantDraws, suites: Sequence[str]) -> list[Place]:
        """Where the judge would compare."""
        return [(variant.variant, suite) for suite in suites if variant.draws(suite)]

    def _observe(
        self,
        check: Check,
        variant: VariantDraws,
        suite: str,
        labels: frozenset[str] | None,
        seen: Mapping[str, _Seen],
    ) -> None:
        """Of several draws one is enough for a fault, and all must accept a wrong answer."""
        where = (variant.variant, suite)
        for draw in variant.draws(suite):
            for label, found in check(variant, draw, labels).items():
                place = seen[label].by_place
                if where in place:
                    before = place[where]
                    worse = found if found.holds and not before.holds else before
                    found = replace(worse, accepted=found.accepted and before.accepted)
                place[where] = found

    def _finding(
        self, code: LintCode, label: str, one: _Seen, judged: Sequence[Place], turn: int | None
    ) -> LintFinding:
        lead = self.variants[0].variant
        suites = tuple(suite for suite in (SHIPPED, *self.suites) if one.holds([(lead, suite)])[0])
        held = one.holds(judged)
        shown = one.by_place[lead, suites[0]]
        if turn is not None:
            drawn = f" in draw {turn + 1} of {TURNS}" if turn else ""
            severity = LintSeverity.ERROR
            tail = f"under everything the judge runs{drawn}, so an accepted kernel proves nothing"
        elif all(held):
            variant, suite = max(judged, key=lambda place: one.by_place[place].measured)
            most = f"{one.by_place[variant, suite].measured:.2g} under {suite} of {variant}"
            severity, tail = LintSeverity.WARNING, f"under everything the judge runs (its largest number: {most})"
        else:
            cleared = next(place for place, holds in zip(judged, held, strict=True) if not holds)
            severity = LintSeverity.REPAIRED
            tail = f"under {', '.join(suites)}; not under {cleared[1]} (variant {cleared[0]})"
        measured = shown.measured if math.isfinite(shown.measured) else None
        return LintFinding(code, severity, label, suites, measured, f"{label}: {shown.told}, {tail}")

    def _shapes(self) -> None:
        if len(self.judged) == 1:
            text = f"the judge runs one shape here ({self.judged[0]}); a contract with variants adds others"
            self._warn(LintCode.SINGLE_SHAPE, 1.0, text)
        largest = max(self._largest_odd(variant) for variant in self.judged)
        if largest <= BLOCK:
            text = f"no variant has an input or output with an odd extent above {BLOCK}, so masks of blocks go untried"
            self._warn(LintCode.NO_ODD_SHAPE, float(largest), text)

    def _warn(self, code: LintCode, measured: float, text: str) -> None:
        self.findings.append(LintFinding(code, LintSeverity.WARNING, "shapes", (), measured, f"shapes: {text}"))

    def _largest_odd(self, name: str) -> int:
        """The largest odd extent of inputs and outputs at a variant, 0 for none; of a `full` that is not run, of its
        inputs."""
        tensors: list[torch.Tensor] = []
        for variant in self.variants:
            if variant.variant == name:
                draw = next(draw for suite in (SHIPPED, *self.suites) for draw in variant.draws(suite))
                tensors = [*leaves(draw.inputs), *draw.result.plain]
        if not tensors:
            with FakeTensorMode(allow_non_fake_inputs=True):
                tensors = leaves(replay(self.references.full(self.task).program, "cpu", 0, NOMINAL))
        return max((extent for tensor in tensors for extent in tensor.shape if extent % 2), default=0)

    def _drop_implied(self) -> None:
        """Findings that only repeat another: a constant output has equal slices, and where all inputs or parameters
        together have no effect, none has."""
        lasting = {(f.code, f.tensor) for f in self.findings if f.severity is not LintSeverity.REPAIRED}
        repaired = {(f.code, f.tensor) for f in self.findings if f.severity is LintSeverity.REPAIRED}
        groups = {
            LintCode.ROW_CONSTANT: (LintCode.CONSTANT_OUTPUT, None),
            LintCode.INSENSITIVE_TO_INPUT: (LintCode.INSENSITIVE_TO_INPUT, INPUTS),
            LintCode.INSENSITIVE_TO_PARAMETER: (LintCode.INSENSITIVE_TO_PARAMETER, PARAMETERS),
        }

        def implied(finding: LintFinding) -> bool:
            if finding.code not in groups or finding.tensor in (INPUTS, PARAMETERS):
                return False
            code, group = groups[finding.code]
            other = (code, group or finding.tensor.partition(",")[0])
            return other in lasting or (finding.severity is LintSeverity.REPAIRED and other in repaired)

        self.findings = [finding for finding in self.findings if not implied(finding)]
