"""What a run would do, without doing it: stages, prompts, the bounds on model calls, and what earlier runs took."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

from engine.canonical import Json
from engine.classify import classify
from engine.history import History, Taken
from engine.kernel import fact_operands
from engine.llm.quote import prompt_tokens
from engine.prompts import PromptContext, Prompts
from engine.records import Device, Facts, Message, Operator
from engine.rules import apply, parse
from engine.settings import Settings, Stage
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
    task_id: str
    category: str
    least_seed_calls: int
    seed_calls: int
    stages: tuple[StageForecast, ...]
    seed_prompts: tuple[Prompt, ...] = ()

    @property
    def calls(self) -> int:
        return self.seed_calls + sum(stage.calls for stage in self.stages)

    @property
    def least(self) -> int:
        return self.least_seed_calls + sum(stage.least for stage in self.stages)

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        return (*self.seed_prompts, *(prompt for stage in self.stages for prompt in stage.prompts))


@dataclass(frozen=True, slots=True)
class Expected:
    """The medians of earlier runs times the numbers of calls, least and most; None where no earlier run tells. `n`:
    the smallest number of earlier calls that a median is made from."""

    tokens: tuple[float, float] | None
    usd: tuple[float, float] | None
    seconds: tuple[float, float] | None
    n: int


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
        why = _skipped_by_facts(settings, operator.facts, stage)
        most = 0 if why else calls_bound(settings, seeds=False, stage=stage)
        sure = not why and not ended and not stage.skip_when
        least = stage.budget.candidates * (2 if settings.search.strategy else 1) if sure else 0
        ended = ended or bool(stage.exit_when)
        shown = () if why or prompts is None else _stage_prompts(settings, operator, name, stage_name, stage, prompts)
        stages.append(StageForecast(stage_name, least, most, why, shown))
    seeds = calls_bound(settings, seeds=True, stage=None)
    shown = () if prompts is None else _seed_prompts(settings, operator, name, prompts)
    return Forecast(operator.task.task_id, name, settings.search.seeds, seeds, tuple(stages), shown)


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


def expected(settings: Settings, task: Forecast, history: History) -> Expected:
    """What earlier calls of the same roles took, times this task's calls. `tokens`, `usd` and `seconds` of replies."""
    stages = settings.categories[task.category].stages
    most = Counter(roles_bound(settings, seeds=True, stage=None))
    least = Counter({"seed": settings.search.seeds})
    for stage in task.stages:
        most.update(roles_bound(settings, seeds=False, stage=stages[stage.name]) if stage.calls else {})
        if stage.least:
            drafts = stages[stage.name].budget.candidates
            least.update({"optimise": drafts, **({"strategy": drafts} if settings.search.strategy else {})})
    most = +most
    known = {role: history.roles[role] for role in most if role in history.roles}
    if most.keys() - known.keys():
        return Expected(None, None, None, 0)

    def times(value: Mapping[str, float]) -> tuple[float, float]:
        return sum(value[role] * n for role, n in least.items()), sum(value[role] * n for role, n in most.items())

    prices = {role: taken.usd for role, taken in known.items() if taken.usd is not None}
    return Expected(
        tokens=times({role: taken.tokens for role, taken in known.items()}),
        usd=times(prices) if prices.keys() == known.keys() else None,
        seconds=times({role: taken.seconds for role, taken in known.items()}),
        n=min(taken.n for taken in known.values()),
    )


def as_tree(task: Forecast, told: Expected) -> Json:
    """One task as JSON, prompts by name and size."""
    return {
        "task_id": task.task_id,
        "category": task.category,
        "calls": {"least": task.least, "most": task.calls},
        "seed_calls": {"least": task.least_seed_calls, "most": task.seed_calls},
        "stages": [
            {"stage": stage.name, "least": stage.least, "most": stage.calls, "skipped": stage.skipped}
            for stage in task.stages
        ],
        "prompts": [
            {"name": prompt.name, "chars": prompt.chars, "tokens": prompt.tokens, "complete": prompt.complete}
            for prompt in task.prompts
        ],
        "expected": {
            "tokens": _pair(told.tokens),
            "usd": _pair(told.usd),
            "reply_s": _pair(told.seconds),
            "n": told.n,
        },
    }


def as_history(history: History) -> Json:
    """The medians that the expectation is made from, as JSON."""

    def tell(taken: Taken) -> Json:
        return {"n": taken.n, "seconds": taken.seconds, "tokens": taken.tokens, "usd": taken.usd}

    return {
        "model": history.model,
        "roles": {role: tell(taken) for role, taken in sorted(history.roles.items())},
        "judge": {kind: {"n": taken.n, "seconds": taken.seconds} for kind, taken in sorted(history.kinds.items())},
        "calls_a_task": list(history.calls_a_task),
    }


def _pair(values: tuple[float, float] | None) -> Json:
    return None if values is None else {"least": values[0], "most": values[1]}


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
