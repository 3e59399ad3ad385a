"""What is wrong with stage plans beyond their form: rules that cannot fire or always do, limits that no value reaches,
stages that never run, values that nobody measures. Pure; the decoder has checked names and types before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

from engine.codec import did_you_mean
from engine.errors import Fault
from engine.rules import Expression, Node, Type, parse
from engine.settings import BackendSettings, Match, Rule, Settings, Stage
from engine.stageplan.domains import domains
from engine.stageplan.ranges import Domain, Span, given, outcomes
from engine.vocabulary import LAUNCH_RECORD, SCORES, OperandKind, operands

NEVER, ALWAYS = frozenset({False}), frozenset({True})
SAYS = {"skip_when": "skips the stage", "exit_when": "ends the plan", "require": "holds"}


THEN = (
    (("exit_when", "always"), "; no later stage runs"),
    (("require", "never"), "; every candidate goes to repair"),
    (("require", "always"), ", so it demands nothing"),
)


class Severity(StrEnum):
    """A fault makes the plan do other than it says; a warning deserves a look."""

    FAULT = "fault"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Finding:
    severity: Severity
    path: str
    problem: str

    def fault(self) -> Fault:
        return Fault(self.path, f"{self.severity.value}: {self.problem}")


@dataclass(frozen=True)
class Plans:
    """The composed settings, and the declarations of every back-end that could run them, by name."""

    settings: Settings
    backends: Mapping[str, BackendSettings]

    @cached_property
    def known(self) -> Mapping[str, OperandKind]:
        return operands(self.settings.metrics, self.settings.thresholds)

    def read(self, when: str) -> Expression:
        return parse(when, self.known)

    def confidence(self, metric: str, backend: BackendSettings) -> float:
        """The most that this back-end's profilers can give the metric; 0 where none spells it."""
        spellings = self.settings.metrics[metric].spellings
        found = [spelling.confidence for tool, spelling in spellings.items() if tool in backend.profilers]
        return 1.0 if metric in LAUNCH_RECORD else max(found, default=0.0)


@dataclass(frozen=True, slots=True)
class _Place:
    """A rule of a stage: where it stands, what its operands can be, and when the category is chosen at all."""

    kind: str
    path: str
    rule: Rule
    expression: Expression
    stage: Stage
    known: Mapping[str, Domain]
    match: Node | None


def lint(plans: Plans) -> tuple[Finding, ...]:
    """Every finding, in the order of the files, each once."""
    found = [*_matches(plans)]
    for name, category in plans.settings.categories.items():
        match = None if category.match is None else plans.read(category.match.when)
        for position, (stage_name, stage) in enumerate(category.stages.items()):
            path = f"categories.{name}.stages.{stage_name}"
            last = position + 1 == len(category.stages)
            found += _stage(plans, path, stage, None if match is None else match.root, last=last)
    return tuple(dict.fromkeys(found))


def _stage(plans: Plans, path: str, stage: Stage, match: Node | None, *, last: bool) -> Iterator[Finding]:
    known = domains(plans.settings, stage)
    places = [
        _Place(kind, f"{path}.{kind}.{name}", rule, plans.read(rule.when), stage, known, match)
        for kind in SAYS
        for name, rule in getattr(stage, kind).items()
    ]
    for place in places:
        yield from _limits(plans.settings, place)
        yield from _outcome(place)
        yield from _availability(plans, place)
        if place.kind == "exit_when" and last:
            yield _warn(f"{place.path}.when", "ends nothing: no stage comes after this one")
        if place.kind == "require":
            yield from _of_another_kernel(place)
    yield from _together(path, [place for place in places if place.kind == "skip_when"])
    yield from _metrics(plans, path, stage)


def _warn(path: str, problem: str) -> Finding:
    return Finding(Severity.WARNING, path, problem)


def _fault(path: str, problem: str) -> Finding:
    return Finding(Severity.FAULT, path, problem)


def _limits(settings: Settings, place: _Place) -> Iterator[Finding]:
    """Comparisons of one operand with one number that no value of the operand can reach."""
    for name, limit, told in _thresholds(place.expression.root, place.known):
        domain = place.known[name]
        if isinstance(domain, Span) and not domain.low <= limit <= domain.high:
            unit = f" {settings.metrics[name].unit}" if name in settings.metrics else ""
            hint = did_you_mean(name, [other for other in _reaching(place.known, limit) if other != name])
            close = hint if hint.startswith(", did you mean") else ""
            problem = f"compares {name} with {told}, outside its declared range {domain}{unit}{close}"
            yield _fault(f"{place.path}.when", problem)


def _reaching(known: Mapping[str, Domain], limit: float) -> list[str]:
    spans = ((name, domain) for name, domain in known.items() if isinstance(domain, Span) and not domain.point)
    return [name for name, domain in spans if domain.low <= limit <= domain.high]


def _thresholds(node: Node, known: Mapping[str, Domain]) -> Iterator[tuple[str, float, str]]:
    """(operand, number, how it is written) of each comparison of a bare operand with a bare number or threshold."""
    if node.type is Type.CONDITION and len(node.args) == 2:
        left, right = node.args
        for one, other in ((left, right), (right, left)):
            limit = _fixed(other, known)
            if one.op == "name" and _fixed(one, known) is None and limit is not None:
                told = f"{other.value} = {limit:g}" if other.op == "name" else f"{limit:g}"
                yield str(one.value), limit, told
    for arg in node.args:
        yield from _thresholds(arg, known)


def _fixed(node: Node, known: Mapping[str, Domain]) -> float | None:
    if node.op == "constant" and isinstance(node.value, int | float) and not isinstance(node.value, bool):
        return float(node.value)
    if node.op == "neg":
        inner = _fixed(node.args[0], known)
        return None if inner is None else -inner
    domain = known[str(node.value)] if node.op == "name" else None
    return domain.low if isinstance(domain, Span) and domain.point else None


def _outcome(place: _Place) -> Iterator[Finding]:
    path, root = f"{place.path}.when", place.expression.root
    at_large = outcomes(root, place.known)
    if at_large in (NEVER, ALWAYS):
        yield _fault(path, _told(place.kind, at_large, "whatever its operands are"))
        return
    matched = given(place.match, root, place.known)
    if matched in (NEVER, ALWAYS):
        yield _warn(path, _told(place.kind, matched, "for every operator that the category's match lets in"))


def _told(kind: str, said: frozenset[bool], when: str) -> str:
    word = "always" if said == ALWAYS else "never"
    return f"{word} {SAYS[kind]}, {when}" + next((then for at, then in THEN if at == (kind, word)), "")


def _together(path: str, skips: Sequence[_Place]) -> Iterator[Finding]:
    """Rules that each can be false and between them leave nothing."""
    if len(skips) < 2:
        return
    match, known = skips[0].match, skips[0].known
    if any(given(match, place.expression.root, known) == ALWAYS for place in skips):
        return
    whole = Node("or", Type.CONDITION, tuple(place.expression.root for place in skips))
    for condition, severity in ((None, Severity.FAULT), (match, Severity.WARNING)):
        if given(condition, whole, known) == ALWAYS:
            names = ", ".join(place.path.rpartition(".")[2] for place in skips)
            yield Finding(severity, f"{path}.skip_when", f"the stage never runs: {names} cover every case")
            return


def _availability(plans: Plans, place: _Place) -> Iterator[Finding]:
    """Metrics of a rule that no back-end can give, or none at the confidence that the stage demands."""
    for name in sorted(place.expression.names):
        if plans.known[name] is not OperandKind.METRIC:
            continue
        best = {tool: plans.confidence(name, backend) for tool, backend in plans.backends.items()}
        least = place.stage.min_confidence
        unable = sorted(tool for tool, confidence in best.items() if confidence == 0 or confidence < least)
        if len(unable) == len(best):
            reach = max(best.values(), default=0.0)
            why = f"at most {reach:g} of the min_confidence {least:g}" if reach else "no profiler spells it"
            yield _fault(f"{place.path}.when", f"reads {name}, which no back-end can give: {why}")
        elif unable and place.rule.on_missing != "ignore":
            told = f"on_missing: {place.rule.on_missing} acts on every kernel of {', '.join(unable)}, "
            yield _warn(f"{place.path}.on_missing", f"{told}where nothing gives {name}")


def _of_another_kernel(place: _Place) -> Iterator[Finding]:
    for name in sorted(place.expression.names & SCORES):
        told = f"reads {name}, which is the best kernel's so far and not the candidate's"
        yield _warn(f"{place.path}.when", told)


def _metrics(plans: Plans, path: str, stage: Stage) -> Iterator[Finding]:
    for name in sorted({name for name in stage.metrics if stage.metrics.count(name) > 1}):
        yield _warn(f"{path}.metrics", f"lists {name} more than once")
    for name in dict.fromkeys(stage.metrics):
        if all(plans.confidence(name, backend) == 0 for backend in plans.backends.values()):
            yield _fault(f"{path}.metrics", f"lists {name}, which no profiler of any back-end spells")


def _matches(plans: Plans) -> Iterator[Finding]:
    """Match rules that cannot be true, that hide others, or that leave the choice to the alphabet."""
    facts = domains(plans.settings, None)
    rules = [
        (category.match, name, plans.read(category.match.when))
        for name, category in plans.settings.categories.items()
        if category.match is not None
    ]
    for match, name, expression in rules:
        path = f"categories.{name}.match.when"
        said = outcomes(expression.root, facts)
        if said == NEVER:
            yield _fault(path, "is never true, so the category is never chosen")
        below = [other for rival, other, _ in rules if _rank(rival, other) > _rank(match, name)]
        if said == ALWAYS and below:
            yield _fault(path, f"is always true, so the classifier never gets to {', '.join(sorted(below))}")
        for rival, other, theirs in rules:
            if other > name and rival.priority == match.priority:
                both = Node("and", Type.CONDITION, (expression.root, theirs.root))
                if True in outcomes(both, facts):
                    yield _warn(path, f"and that of {other} can be true at once with equal priority: the name decides")


def _rank(match: Match, name: str) -> tuple[int, str]:
    return -match.priority, name
