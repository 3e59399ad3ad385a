"""What a run would do, without doing it: stages, prompts and the bounds on model calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from engine.classify import classify
from engine.kernel import fact_operands
from engine.llm.quote import prompt_tokens
from engine.prompts import PromptContext, Prompts
from engine.records import Device, Facts, Message, Operator
from engine.rules import Evaluation, apply, audited, parse
from engine.settings import Rule, Settings, Stage
from engine.vocabulary import OperandKind, operands

PARENT = "# The best kernel so far stands here. What it is, its scores and its metrics are known only in the run."


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt as it would be sent now. `complete`: nothing in it depends on what the run finds."""

    name: str
    messages: tuple[Message, ...]
    complete: bool

    @property
    def chars(self) -> int:
        return sum(len(message.content) for message in self.messages)

    @property
    def tokens(self) -> int:
        """Estimated, as a budget's quote is."""
        return prompt_tokens(self.messages)


@dataclass(frozen=True, slots=True)
class StageForecast:
    """`least`, `calls`: of model calls; `least` is 0 where a rule may leave the stage out. `skipped`: the reason where
    task facts alone already skip it; `calls` is then 0, but for an audit."""

    name: str
    least: int
    calls: int
    skipped: str | None
    prompts: tuple[Prompt, ...] = ()


@dataclass(frozen=True, slots=True)
class Forecast:
    """`unsolved_calls`: those of seeds none of which is ever correct, after which the plan ends."""

    task_id: str
    task_hash: str
    category: str
    least_seed_calls: int
    unsolved_calls: int
    seed_calls: int
    stages: tuple[StageForecast, ...]
    seed_prompts: tuple[Prompt, ...] = ()

    @property
    def calls(self) -> int:
        return self.seed_calls + sum(stage.calls for stage in self.stages)

    @property
    def least(self) -> int:
        """Every draft correct at once and the plan cut short wherever a rule may do so, or no seed correct at all."""
        return min(self.least_seed_calls + sum(stage.least for stage in self.stages), self.unsolved_calls)

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        return (*self.seed_prompts, *(prompt for stage in self.stages for prompt in stage.prompts))


def calls_bound(settings: Settings, *, seeds: bool, stage: Stage | None) -> int:
    """The most model calls that the seeds, or one stage, can make."""
    return sum(roles_bound(settings, seeds=seeds, stage=stage).values())


def roles_bound(settings: Settings, *, seeds: bool, stage: Stage | None) -> Mapping[str, int]:
    """The same by role."""
    search = settings.search
    if not seeds and stage is None:
        return {}
    drafts = search.seeds if seeds or stage is None else stage.budget.candidates
    repairs = drafts * (search.seed_repairs if seeds or stage is None else stage.budget.repairs)
    roles = {"seed" if seeds else "optimise": drafts, "repair": repairs}
    roles |= {"error_analysis": repairs} if search.error_analysis else {}
    return roles if seeds or not search.strategy else {**roles, "strategy": drafts}


def forecast(settings: Settings, operator: Operator, prompts: Prompts | None = None) -> Forecast:
    """The stage plan of one operator with the bounds on calls of each stage, 0 where facts alone skip it and no audit
    runs it all the same; with the prompts of first drafts where templates are given."""
    named = settings.category
    name = classify(operator.facts, settings.categories).category if named == "auto" else named
    stages = []
    ended = False
    for stage_name, stage in settings.categories[name].stages.items():
        skips = _by_facts(settings, operator.facts, stage.skip_when)
        why = next((said.why for said in skips if said.outcome == "true"), None)
        drawn = _drawn(settings, operator.task.task_id, stage_name, skips) if why else [True]
        most = calls_bound(settings, seeds=False, stage=stage) if any(drawn) else 0
        runs = all(drawn) if why else all(said.outcome == "false" for said in skips)
        sure = runs and not ended
        least = stage.budget.candidates * (2 if settings.search.strategy else 1) if sure else 0
        exits = () if why else _by_facts(settings, operator.facts, stage.exit_when)
        ended = ended or any(said.outcome != "false" for said in exits)
        shown = _stage_prompts(settings, operator, name, stage_name, stage, prompts) if most and prompts else ()
        stages.append(StageForecast(stage_name, least, most, why, shown))
    seeds = calls_bound(settings, seeds=True, stage=None)
    shown = () if prompts is None else _seed_prompts(settings, operator, name, prompts)
    drafts = settings.search.seeds
    unsolved = drafts * (1 + settings.search.seed_repairs)
    task = operator.task
    return Forecast(task.task_id, task.task_hash, name, drafts, unsolved, seeds, tuple(stages), shown)


def _seed_prompts(settings: Settings, operator: Operator, category: str, prompts: Prompts) -> tuple[Prompt, ...]:
    context = _context(settings, operator, category, None, None)
    made = []
    for sample in range(settings.search.seeds):
        numbered = _sampled(context, sample, settings.search.seeds)
        made.append(Prompt(f"seed.seed.0.{sample}", prompts.render("seed", numbered), complete=True))
    return tuple(made)


def _stage_prompts(
    settings: Settings, operator: Operator, category: str, name: str, stage: Stage, prompts: Prompts
) -> tuple[Prompt, ...]:
    context = _context(settings, operator, category, name, stage)
    roles = ("strategy", "optimise") if settings.search.strategy else ("optimise",)
    return tuple(
        Prompt(f"{name}.{role}.0.{n}", prompts.render(role, _sampled(context, n, stage.budget.candidates)), False)
        for n in range(stage.budget.candidates)
        for role in roles
    )


def _sampled(context: PromptContext, sample: int, samples: int) -> PromptContext:
    return replace(context, sample=sample, samples=samples)


def _context(
    settings: Settings, operator: Operator, category: str, name: str | None, stage: Stage | None
) -> PromptContext:
    back_end = settings.backends[settings.backend]
    contract = operator.task.contract
    return PromptContext(
        operator=operator,
        category=category,
        category_settings=settings.categories[category],
        stage=name,
        stage_settings=stage,
        # No device is opened: its name and rates are those that the configuration declares.
        device=Device(settings.backend, back_end.target, {}, back_end.hardware),
        dialect=back_end.dialect,
        precision=(contract.precision or settings.judge.precision).value,
        host_ops=contract.host_ops or settings.judge.host_ops,
        parent_source=None if stage is None else PARENT,
        broken_source=None,
        error=None,
        analysis=None,
        strategy=None,
        metrics=(),
        scores=None,
        history=(),
        sample=0,
        samples=1,
        trace=None,
    )


def _drawn(settings: Settings, task_id: str, stage: str, skips: Sequence[Evaluation]) -> list[bool]:
    """For each rule that may be the one to skip the stage, which facts skip for sure, whether the audit runs it then. A
    rule that reads scores may be the first to fire; those that read metrics are not looked at any more."""
    known = operands(settings.metrics, settings.thresholds)
    sure = next(number for number, said in enumerate(skips) if said.outcome == "true")
    may = [said for said in skips[: sure + 1] if said.outcome != "false"]
    first = [said for said in may if not any(known[name] is OperandKind.METRIC for name in said.operands)]
    return [audited(settings, task_id, stage, said.rule) for said in first]


def _by_facts(settings: Settings, facts: Facts, rules: Mapping[str, Rule]) -> list[Evaluation]:
    """What task facts and thresholds alone say of each rule; none is obeyed while they are only observed."""
    if settings.search.rules == "observe":
        return []
    known = operands(settings.metrics, settings.thresholds)
    values = dict(fact_operands(facts))
    values |= {f"thresholds.{name}": value for name, value in settings.thresholds.items()}
    return [apply(name, "skip", rule, parse(rule.when, known), values) for name, rule in rules.items()]
