"""What a run still has to pay: what earlier calls took times the bounds on calls, within the limits of its budget."""

from __future__ import annotations

import math
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
    bounds = [bound for task, known in told if not known.done for bound in _bounds(settings, task)]
    most, names = _within(_sum(known.most for known in left), limits, _ones(bounds, history), spent)
    capped = {name for known in left for name in known.capped} | {f"search.budget.{name}" for name in names}
    least = _smaller(_sum(known.least for known in left), most)
    whole = Expected(least, most, min(known.n for known in left), tuple(sorted(capped)))
    return Foretold(tuple(told), whole, own)


def expected(settings: Settings, task: Forecast, history: History) -> Expected:
    """What earlier calls of the same roles took, times this task's calls, within the limits of the task and its
    stages. The least is the cheaper of the shortest way through the plan and of seeds none of which is correct."""
    stages = settings.categories[task.category].stages
    seeds, strategy = settings.search.seeds, settings.search.strategy
    bounds = _bounds(settings, task)
    drafts = sum(stages[stage.name].budget.candidates for stage in task.stages if stage.least)
    solved = {"seed": seeds, "optimise": drafts, "strategy": drafts if strategy else 0}
    unsolved = {"seed": seeds, "repair": seeds * settings.search.seed_repairs}
    ones = _ones(bounds, history)
    budget = settings.search.budget
    cut = [_within(_cost(bound, history), budget.stage, _ones([bound], history), FREE) for bound in bounds]
    most, names = _within(_sum(bound for bound, _ in cut), budget.task, ones, FREE)
    capped = {f"search.budget.stage.{name}" for _, short in cut for name in short}
    capped |= {f"search.budget.task.{name}" for name in names}
    least = _smaller(_smaller(_cost(solved, history), _cost(unsolved, history)), most)
    n = min((history.roles[role].n for role in _roles(bounds)), default=0) if most.tokens is not None else 0
    return Expected(least, most, n, tuple(sorted(capped)))


def _bounds(settings: Settings, task: Forecast) -> list[Mapping[str, int]]:
    """The most calls by role, of the seeds and of each stage that may run."""
    stages = settings.categories[task.category].stages
    seeds = roles_bound(settings, seeds=True, stage=None)
    return [seeds, *(roles_bound(settings, seeds=False, stage=stages[one.name]) for one in task.stages if one.calls)]


def _roles(bounds: Iterable[Mapping[str, int]]) -> set[str]:
    return {role for bound in bounds for role, n in bound.items() if n}


def _ones(bounds: Iterable[Mapping[str, int]], history: History) -> list[Cost]:
    """One call of each role."""
    return [_times(history.roles.get(role), 1) for role in sorted(_roles(bounds))]


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


def _smaller(a: Cost, b: Cost) -> Cost:
    """Each of the two's; None where either is not known."""
    pairs = ((a.tokens, b.tokens), (a.usd, b.usd), (a.seconds, b.seconds))
    tokens, usd, seconds = (None if x is None or y is None else min(x, y) for x, y in pairs)
    return Cost(min(a.calls, b.calls), tokens, usd, seconds)


def _within(most: Cost, limits: Limits, ones: Sequence[Cost], spent: Cost) -> tuple[Cost, list[str]]:
    """At most what `limits` leave after `spent`, and which of them cut it. `ones`: one call of each role; what is left
    of one quantity allows of another at most what the role gives that has most of it for the first."""
    left = {name: _left(getattr(limits, name), getattr(spent, name)) for name in ("calls", "tokens", "usd")}
    cut: dict[str, float] = {}
    for name, room in left.items():
        asked = getattr(most, name)
        if room is not None and asked is not None and room < asked:
            cut[name] = room

    def at_most(what: str) -> float | None:
        rooms = [room if name == what else _worth(room, name, what, ones) for name, room in cut.items()]
        value: float | None = getattr(most, what)
        return None if value is None else min([value, *(room for room in rooms if room is not None)])

    # The last call may begin below a limit and end above it.
    calls = math.ceil(round(at_most("calls") or 0.0, 6))
    return Cost(calls, at_most("tokens"), at_most("usd"), at_most("seconds")), list(cut)


def _worth(room: float, name: str, what: str, ones: Sequence[Cost]) -> float | None:
    """The most of `what` for so much of `name`; None where a role takes nothing of that, or nobody knows."""
    pairs = [(getattr(one, what), getattr(one, name)) for one in ones]
    known = [many / each for many, each in pairs if many is not None and each]
    return room * max(known) if known and len(known) == len(pairs) else None


def _left(limit: float | None, spent: float | None) -> float | None:
    return None if limit is None else max(0.0, limit - (spent or 0.0))


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
