"""What a plan will do with one operator, in words: which rules are decided already, what is measured, what it may cost.
Pure; docs/categories.md shows an example."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from engine.backends.answers import given
from engine.backends.ceilings import known_rates
from engine.backends.floors import floor
from engine.classify import classify
from engine.crossref import AUTO
from engine.display.lines import microseconds
from engine.forecast import calls_bound
from engine.kernel import accepts_estimates
from engine.records import Facts, Operator
from engine.rules import Evaluation, Expression, parse
from engine.settings import Rule, Settings, Stage
from engine.stageplan.domains import domains, known_facts
from engine.stageplan.ranges import Domain, Span, Words, outcomes
from engine.vocabulary import LAUNCH_RECORD, SCORES, THRESHOLD_PREFIX, OperandKind, operands

KINDS = ("conv", "matmul", "norm", "pool", "reduce", "pointwise", "recurrent", "attention")
WHEN = {"skip": "skips", "require": "holds", "exit": "ends the plan"}
INDENT, LABEL = "  ", 10


@dataclass(frozen=True, slots=True)
class _Known:
    """What is certain of one operator on one back-end before anything runs."""

    settings: Settings
    facts: Mapping[str, Domain]
    unknown: Mapping[str, str]
    """Operand -> why it will not be known."""


def explain(settings: Settings, operator: Operator) -> str:
    """The plan of one operator: lines with a line break each."""
    chosen = classify(operator.facts, settings.categories, otherwise=settings.category)
    name = chosen.category if settings.category == AUTO else settings.category
    known = _known(settings, operator.facts)
    lines = [f"{operator.task.task_id}: {name}{'' if settings.category == AUTO else ' (named)'}"]
    lines += [INDENT + line for line in _chosen(settings, name, chosen.evaluations)]
    lines += [INDENT + line for line in _operator(settings, operator)]
    seeds = settings.search.seeds
    calls = calls_bound(settings, seeds=True, stage=None)
    told = f"{_number(seeds, 'draft')}, {_number(settings.search.seed_repairs, 'repair')} each"
    lines.append(INDENT + _labelled("seed", f"{told}: at most {calls} model calls"))
    for stage_name, stage in settings.categories[name].stages.items():
        lines.append(f"{INDENT}{stage_name}: {stage.focus}")
        stage_lines, spent = _stage(known, stage)
        lines += [INDENT * 2 + line for line in stage_lines]
        calls += spent
    lines.append(f"{INDENT}at most {calls} model calls{_policy(settings)}")
    return "\n".join(lines) + "\n"


def _labelled(label: str, text: str) -> str:
    return f"{label.ljust(LABEL)}{text}"


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _policy(settings: Settings) -> str:
    if settings.search.rules == "observe":
        return "; rules are evaluated and none is obeyed (search.rules=observe)"
    share = 0.0 if settings.llm.provider == "replay" else settings.search.audit.share
    return f"; of skipped stages {share:.0%} run all the same, as an audit" if share else ""


def _chosen(settings: Settings, name: str, evaluations: tuple[Evaluation, ...]) -> Iterator[str]:
    """The match rule that decided, and those that came before it."""
    priorities = {key: category.match.priority for key, category in settings.categories.items() if category.match}
    for evaluation in evaluations:
        verb = "match" if evaluation.rule == name else "not"
        whose = f"{evaluation.rule} ({priorities[evaluation.rule]}): {evaluation.when}"
        yield _labelled(verb, f"{whose}, {evaluation.outcome} with {_values(evaluation)}")
        if evaluation.rule == name:
            return


def _values(evaluation: Evaluation) -> str:
    return ", ".join(f"{name} = {_plain(value)}" for name, value in evaluation.operands.items())


def _plain(value: object) -> str:
    if value is None:
        return "unknown"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _operator(settings: Settings, operator: Operator) -> Iterator[str]:
    facts, backend = operator.facts, settings.backends[settings.backend]
    parts = [f"{count} {kind}" for kind in KINDS if (count := getattr(facts, f"{kind}_ops"))]
    told = f"{_number(facts.ops, 'operation')} ({', '.join(parts) or 'none of a known kind'}), {facts.dtype}"
    if facts.traced == "full":
        told += f"; {facts.flops:.4g} FLOP, {facts.bytes:.4g} compulsory bytes, {facts.intensity:.4g} FLOP/byte"
    extra = [f"window {facts.kernel_size}"] if facts.kernel_size else []
    extra += [f"{facts.time_steps} timesteps"] if facts.time_steps else []
    yield _labelled("operator", "; ".join([told, *extra, *filter(None, (facts.note,))]))
    precision = operator.task.contract.precision or settings.judge.precision
    found = floor(facts, known_rates(backend.hardware, backend.hardware_source), precision)
    told = "unknown" if found is None else f"{microseconds(found.us)} under {precision}, {found.source}"
    yield _labelled("floor", told + (f"; {found.note}" if found and found.note else ""))


def _known(settings: Settings, facts: Facts) -> _Known:
    backend = settings.backends[settings.backend]
    found, untold = known_facts(facts)
    unknown = {name: "the reference does not show it" for name in untold}
    if backend.cpu is not None:
        unknown["headroom"] = "an estimate has none"
        if not accepts_estimates(settings):
            unknown |= dict.fromkeys(sorted(SCORES - {"headroom", "failures"}), "estimates do not count")
    return _Known(settings, found, unknown)


def _sources(settings: Settings, stage: Stage, metric: str) -> list[str]:
    """Who can give a metric here, in the order in which they are asked, substitutes with their confidence; those below
    what the stage demands are left out."""
    backend, spellings = settings.backends[settings.backend], settings.metrics[metric].spellings
    told = [
        tool if spellings[tool].confidence == 1 else f"{tool} at confidence {spellings[tool].confidence:g}"
        for tool in backend.profilers
        if tool in spellings and spellings[tool].confidence >= stage.min_confidence and given(backend, spellings[tool])
    ]
    return told or (["the launch record"] if metric in LAUNCH_RECORD else [])


def _stage(known: _Known, stage: Stage) -> tuple[list[str], int]:
    """The lines of one stage, and the most model calls that it makes."""
    metrics = known.settings.metrics
    reading = operands(metrics, known.settings.thresholds)

    def rules(kind: str, chosen: Mapping[str, Rule]) -> Iterator[tuple[str, bool, bool]]:
        """(line, whether a metric is read, whether it is certain to fire)."""
        for name, rule in chosen.items():
            expression = parse(rule.when, reading)
            said, certain = _said(known, stage, kind, rule, expression)
            measured = any(reading[operand] is OperandKind.METRIC for operand in expression.names)
            yield _labelled(kind, f"{name}: {_shown(known, rule.when, expression)}; {said}"), measured, certain

    skips = list(rules("skip", stage.skip_when))
    early = [line for line, measured, _ in skips if not measured]
    if any(certain for _, measured, certain in skips if not measured) and known.settings.search.rules == "obey":
        return [*early, "the stage does not run"], 0
    calls = calls_bound(known.settings, seeds=False, stage=stage)
    profile = "; ".join(
        f"{name} from {', else '.join(sources)}"
        if (sources := _sources(known.settings, stage, name))
        else f"{name} not available"
        for name in stage.metrics
    )
    whence = "each from the best so far, profiled anew" if stage.sequential else "all from the best kernel so far"
    budget = f"{_number(stage.budget.candidates, 'draft')}, {_number(stage.budget.repairs, 'repair')} each"
    return [
        *early,
        _labelled("profile", profile or "nothing"),
        *(line for line, measured, _ in skips if measured),
        _labelled("propose", f"by {stage.proposer}, {budget}, {whence}: at most {calls} model calls"),
        *(line for line, _, _ in rules("require", stage.require)),
        *(line for line, _, _ in rules("exit", stage.exit_when)),
    ], calls


def _shown(known: _Known, when: str, expression: Expression) -> str:
    """The rule as written, each threshold with its number."""
    thresholds = known.settings.thresholds
    told = ", ".join(
        f"{name.removeprefix(THRESHOLD_PREFIX)} = {thresholds[name.removeprefix(THRESHOLD_PREFIX)]:g}"
        for name in sorted(expression.names)
        if name.startswith(THRESHOLD_PREFIX)
    )
    return f"{when} ({told})" if told else when


def _said(known: _Known, stage: Stage, kind: str, rule: Rule, expression: Expression) -> tuple[str, bool]:
    """What is certain of one rule now, and whether it is certain to fire."""
    unknown = {**known.unknown, **_unmeasured(known, stage, expression)}
    missing = sorted(expression.names & unknown.keys())
    if missing:
        why = "; ".join(f"{name}: {unknown[name]}" for name in missing)
        acts = "does not act" if rule.on_missing == "ignore" else f"acts all the same (on_missing: {rule.on_missing})"
        return f"unknown here ({why}), {acts}", rule.on_missing != "ignore"
    possible = {**domains(known.settings, stage), **known.facts}
    said = outcomes(expression.root, possible)
    facts = ", ".join(f"{name} = {_value(known.facts[name])}" for name in sorted(expression.names & set(known.facts)))
    if said == frozenset({True}):
        return f"{WHEN[kind]}: {facts or 'always'}", True
    if said == frozenset({False}):
        return f"never {WHEN[kind]} here: {facts or 'never'}", False
    open_ones = sorted(
        name for name in expression.names if name not in known.facts and not name.startswith(THRESHOLD_PREFIX)
    )
    return f"decided by {', '.join(open_ones)}" + (f", given {facts}" if facts else ""), False


def _unmeasured(known: _Known, stage: Stage, expression: Expression) -> dict[str, str]:
    """The rule's metrics that this back-end cannot give at the confidence that the stage demands."""
    settings = known.settings
    kinds = operands(settings.metrics, settings.thresholds)
    metrics = (name for name in expression.names if kinds[name] is OperandKind.METRIC)
    why = f"{settings.backend} does not give it at confidence {stage.min_confidence:g}"
    return {name: why for name in metrics if not _sources(settings, stage, name)}


def _value(domain: Domain) -> str:
    if isinstance(domain, Words):
        return ", ".join(sorted(text for text in domain.of if text is not None))
    return f"{domain.low:.4g}" if isinstance(domain, Span) else ""
