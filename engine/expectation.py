"""What a run still has to pay: what earlier calls took times the bounds on calls, within the limits of its budget."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from engine.canonical import Json
from engine.forecast import Forecast, roles_bound
from engine.history import History, Own, Taken
from engine.settings import Limits, Settings


@dataclass(frozen=True, slots=True)
class Cost:
    """Of some calls, at the medians of earlier ones; None where no earlier run tells. `seconds`: of replies."""

    calls: int
    tokens: float | None
    usd: float | None
    seconds: float | None


FREE = Cost(0, 0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Expected:
    """What is still to be paid. `n`: the smallest number of earlier calls that a median is made from. `capped`: the
    settings whose limits are below what the plan could take. `done`: the run has gone through it and pays nothing."""

    least: Cost
    most: Cost
    n: int
    capped: tuple[str, ...] = ()
    done: bool = False


@dataclass(frozen=True, slots=True)
class Foretold:
    """`whole`: of all tasks; `own`: what the run did and paid before."""

    tasks: tuple[tuple[Forecast, Expected], ...]
    whole: Expected
    own: Own


def foretell(settings: Settings, tasks: Sequence[Forecast], history: History, own: Own) -> Foretold:
    """What these tasks still cost the run, one by one and in all, within the limits of the run."""
    done = own.done({task.task_id: task.task_hash for task in tasks})
    told = [
        (task, Expected(FREE, FREE, 0, done=True) if task.task_id in done else expected(settings, task, history))
        for task in tasks
    ]
    left = [known for _, known in told if not known.done]
    if not left:
        return Foretold(tuple(told), Expected(FREE, FREE, 0, done=True), own)
    limits, spent = settings.search.budget.of_run, Cost(own.calls, own.tokens, own.usd or 0.0, 0.0)
    most, names = _within(_sum(known.most for known in left), limits, _dearest(history.roles, history), spent)
    capped = {name for known in left for name in known.capped} | {f"search.budget.{name}" for name in names}
    least = _smaller(_sum(known.least for known in left), most)
    whole = Expected(least, most, min(known.n for known in left), tuple(sorted(capped)))
    return Foretold(tuple(told), whole, own)


def expected(settings: Settings, task: Forecast, history: History) -> Expected:
    """What earlier calls of the same roles took, times this task's calls, within the limits of the task and its
    stages. The least is the cheaper of the shortest way through the plan and of seeds none of which is correct."""
    stages = settings.categories[task.category].stages
    seeds, strategy = settings.search.seeds, settings.search.strategy
    bounds = [roles_bound(settings, seeds=True, stage=None)]
    bounds += [roles_bound(settings, seeds=False, stage=stages[stage.name]) for stage in task.stages if stage.calls]
    drafts = sum(stages[stage.name].budget.candidates for stage in task.stages if stage.least)
    solved = {"seed": seeds, "optimise": drafts, "strategy": drafts if strategy else 0}
    unsolved = {"seed": seeds, "repair": seeds * settings.search.seed_repairs}
    roles = {role for bound in bounds for role, n in bound.items() if n}
    one = _dearest(roles, history)
    budget = settings.search.budget
    cut = [_within(_cost(bound, history), budget.stage, one, FREE) for bound in bounds]
    most, names = _within(_sum(bound for bound, _ in cut), budget.task, one, FREE)
    capped = {f"search.budget.stage.{name}" for _, short in cut for name in short}
    capped |= {f"search.budget.task.{name}" for name in names}
    least = _smaller(_smaller(_cost(solved, history), _cost(unsolved, history)), most)
    n = min((history.roles[role].n for role in roles), default=0) if most.tokens is not None else 0
    return Expected(least, most, n, tuple(sorted(capped)))


def _cost(roles: Mapping[str, int], history: History) -> Cost:
    return _sum(_times(history.roles.get(role), n) for role, n in roles.items() if n)


def _times(taken: Taken | None, n: int) -> Cost:
    if taken is None:
        return Cost(n, None, None, None)
    return Cost(n, taken.tokens * n, None if taken.usd is None else taken.usd * n, taken.seconds * n)


def _sum(costs: Iterable[Cost]) -> Cost:
    found = list(costs)
    tokens, usd = _total(cost.tokens for cost in found), _total(cost.usd for cost in found)
    return Cost(sum(cost.calls for cost in found), tokens, usd, _total(cost.seconds for cost in found))


def _total(values: Iterable[float | None]) -> float | None:
    found = list(values)
    known = [value for value in found if value is not None]
    return sum(known) if len(known) == len(found) else None


def _dearest(roles: Iterable[str], history: History) -> Cost:
    """The most that one call of any of these roles takes."""
    ones = [_times(history.roles.get(role), 1) for role in roles]
    tokens, usd = _largest([one.tokens for one in ones]), _largest([one.usd for one in ones])
    return Cost(1, tokens, usd, _largest([one.seconds for one in ones]))


def _largest(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return max(known) if known and len(known) == len(values) else None


def _smaller(a: Cost, b: Cost) -> Cost:
    """Each of the two's; None where either is not known."""
    pairs = ((a.tokens, b.tokens), (a.usd, b.usd), (a.seconds, b.seconds))
    tokens, usd, seconds = (None if x is None or y is None else min(x, y) for x, y in pairs)
    return Cost(min(a.calls, b.calls), tokens, usd, seconds)


def _within(most: Cost, limits: Limits, one: Cost, spent: Cost) -> tuple[Cost, list[str]]:
    """At most what `limits` leave after `spent`, and which of them cut it. `one`: the most of one call, for a limit on
    calls limits the rest."""
    calls = _left(limits.calls, spent.calls)
    asked = most.calls if calls is None else min(most.calls, int(calls))
    tokens, usd = _left(limits.tokens, spent.tokens), _left(limits.usd, spent.usd)
    names = ["calls"] if asked < most.calls else []
    names += ["tokens"] if tokens is not None and most.tokens is not None and tokens < most.tokens else []
    names += ["usd"] if usd is not None and most.usd is not None and usd < most.usd else []
    made = Cost(
        asked,
        _capped(_capped(most.tokens, tokens), None if one.tokens is None else one.tokens * asked),
        _capped(_capped(most.usd, usd), None if one.usd is None else one.usd * asked),
        _capped(most.seconds, None if one.seconds is None else one.seconds * asked),
    )
    return made, names


def _left(limit: float | None, spent: float | None) -> float | None:
    return None if limit is None else max(0.0, limit - (spent or 0.0))


def _capped(value: float | None, limit: float | None) -> float | None:
    return value if value is None or limit is None else min(value, limit)


def as_foretold(told: Foretold, history: History) -> Json:
    """All of it as JSON, prompts by name and size."""
    return {
        "tasks": [_task(*pair) for pair in told.tasks],
        "in_all": _tree(told.whole),
        "paid_before": {"calls": told.own.calls, "tokens": told.own.tokens, "usd": told.own.usd},
        "history": _history(history),
    }


def _task(task: Forecast, known: Expected) -> Json:
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
        "expected": _tree(known),
    }


def _tree(known: Expected) -> Json:
    low, high = known.least, known.most
    return {
        "calls": {"least": low.calls, "most": high.calls},
        "tokens": _pair(low.tokens, high.tokens),
        "usd": _pair(low.usd, high.usd),
        "reply_s": _pair(low.seconds, high.seconds),
        "n": known.n,
        "capped_by": list(known.capped),
        "done": known.done,
    }


def _pair(low: float | None, high: float | None) -> Json:
    return None if low is None or high is None else {"least": low, "most": high}


def _history(history: History) -> Json:
    """The medians that the expectation is made from."""

    def tell(taken: Taken) -> Json:
        return {"n": taken.n, "seconds": taken.seconds, "tokens": taken.tokens, "usd": taken.usd}

    return {
        "model": history.model,
        "roles": {role: tell(taken) for role, taken in sorted(history.roles.items())},
        "judge": {kind: {"n": taken.n, "seconds": taken.seconds} for kind, taken in sorted(history.kinds.items())},
        "calls_a_task": list(history.calls_a_task),
    }
