"""What a run would do, without doing it: stages, prompts and the bounds on model calls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from engine.classify import classify
from engine.kernel import fact_operands
from engine.llm.quote import prompt_tokens
from engine.prompts import PromptContext, Prompts
from engine.records import Device, Facts, Message, Operator
from engine.rules import Evaluation, apply, parse
from engine.settings import Rule, Settings, Stage
from engine.vocabulary import operands

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
    task facts alone already skip it."""

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
    """The stage plan of one operator with the bounds on calls of each stage, 0 where facts alone skip it; with the
    prompts of first drafts where templates are given."""
    named = settings.category
    name = classify(operator.facts, settings.categories).category if named == "auto" else named
    stages = []
    ended = False
    for stage_name, stage in settings.categories[name].stages.items():
        skips = _by_facts(settings, operator.facts, stage.skip_when)
        why = next((said.why for said in skips if said.outcome == "true"), None)
        most = 0 if why else calls_bound(settings, seeds=False, stage=stage)
        sure = not ended and all(said.outcome == "false" for said in skips)
        least = stage.budget.candidates * (2 if settings.search.strategy else 1) if sure else 0
        exits = () if why else _by_facts(settings, operator.facts, stage.exit_when)
        ended = ended or any(said.outcome != "false" for said in exits)
        shown = () if why or prompts is None else _stage_prompts(settings, operator, name, stage_name, stage, prompts)
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


def _by_facts(settings: Settings, facts: Facts, rules: Mapping[str, Rule]) -> list[Evaluation]:
    """What task facts and thresholds alone say of each rule; none is obeyed while they are only observed."""
    if settings.search.rules == "observe":
        return []
    known = operands(settings.metrics, settings.thresholds)
    values = dict(fact_operands(facts))
    values |= {f"thresholds.{name}": value for name, value in settings.thresholds.items()}
    return [apply(name, "skip", rule, parse(rule.when, known), values) for name, rule in rules.items()]
