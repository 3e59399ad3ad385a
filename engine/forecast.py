"""What a run would do, without doing it: category, stages and the bound on model calls of each task."""

from __future__ import annotations

from dataclasses import dataclass

from engine.classify import classify
from engine.kernel import fact_operands
from engine.records import Facts, Operator
from engine.rules import apply, parse
from engine.settings import Settings, Stage
from engine.vocabulary import operands


@dataclass(frozen=True, slots=True)
class StageForecast:
    """`calls`: the most model calls; `skipped`: the reason where task facts alone already skip the stage."""

    name: str
    calls: int
    skipped: str | None


@dataclass(frozen=True, slots=True)
class Forecast:
    task_id: str
    category: str
    seed_calls: int
    stages: tuple[StageForecast, ...]

    @property
    def calls(self) -> int:
        return self.seed_calls + sum(stage.calls for stage in self.stages)


def calls_bound(settings: Settings, *, seeds: bool, stage: Stage | None) -> int:
    """The most model calls that the seeds, or one stage, can make."""
    search = settings.search
    repair = 2 if search.error_analysis else 1
    if seeds:
        return search.seeds * (1 + search.seed_repairs * repair)
    if stage is None:
        return 0
    draft = (2 if search.strategy else 1) + stage.budget.repairs * repair
    return stage.budget.candidates * draft


def forecast(settings: Settings, operator: Operator) -> Forecast:
    """The stage plan of one operator with the bound on calls of each stage, 0 where facts alone skip it."""
    named = settings.category
    name = classify(operator.facts, settings.categories).category if named == "auto" else named
    stages = []
    for stage_name, stage in settings.categories[name].stages.items():
        why = _skipped_by_facts(settings, operator.facts, stage)
        calls = 0 if why else calls_bound(settings, seeds=False, stage=stage)
        stages.append(StageForecast(stage_name, calls, why))
    return Forecast(operator.task.task_id, name, calls_bound(settings, seeds=True, stage=None), tuple(stages))


def _skipped_by_facts(settings: Settings, facts: Facts, stage: Stage) -> str | None:
    known = operands(settings.metrics, settings.thresholds)
    values = dict(fact_operands(facts))
    values |= {f"thresholds.{name}": value for name, value in settings.thresholds.items()}
    if settings.search.rules == "observe":
        return None
    for name, rule in stage.skip_when.items():
        evaluation = apply(name, "skip", rule, parse(rule.when, known), values)
        if evaluation.fired and evaluation.outcome == "true":
            return rule.why
    return None
