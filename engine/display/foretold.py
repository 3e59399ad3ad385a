"""A forecast as plain text."""

from __future__ import annotations

from collections.abc import Sequence

from engine.forecast import Expected, Forecast, Prompt, StageForecast
from engine.history import History, Taken


def forecast_text(told: Sequence[tuple[Forecast, Expected]], history: History) -> str:
    """Stages, prompts, bounds on calls and the expected cost of each task, then of all."""
    lines = [line for task, known in told for line in _task(task, known)]
    least, most = sum(task.least for task, _ in told), sum(task.calls for task, _ in told)
    prompts = [prompt for task, _ in told for prompt in task.prompts]
    lines.append(f"in all {_span(least, most)} model calls; {_sizes(prompts)}")
    lines += _expected("in all", [known for _, known in told], history)
    lines += _history(history)
    return "\n".join(lines) + "\n"


def _task(task: Forecast, known: Expected) -> list[str]:
    lines = [f"{task.task_id}: {task.category}, {_span(task.least, task.calls)} model calls"]
    lines.append(f"  seeds: {_span(task.least_seed_calls, task.seed_calls)} calls; {_sizes(task.seed_prompts)}")
    lines += [f"  {stage.name}: {_stage(stage)}" for stage in task.stages]
    return [*lines, *([f"  expected {_cost(known)}"] if known.tokens is not None else [])]


def _stage(stage: StageForecast) -> str:
    if stage.skipped:
        return f"skipped: {stage.skipped}"
    return f"{_span(stage.least, stage.calls)} calls; {_sizes(stage.prompts)}"


def _sizes(prompts: Sequence[Prompt]) -> str:
    if not prompts:
        return "no prompt"
    chars, tokens = sum(prompt.chars for prompt in prompts), sum(prompt.tokens for prompt in prompts)
    open_ones = sum(not prompt.complete for prompt in prompts)
    without = f", {open_ones} still without the parent kernel" if open_ones else ""
    return f"{len(prompts)} prompts rendered, {chars} characters, about {tokens} tokens{without}"


def _expected(who: str, known: Sequence[Expected], history: History) -> list[str]:
    if any(one.tokens is None for one in known):
        return [f"{who} expected cost: no history of model {history.model} for every role"]
    tokens = _sum([one.tokens for one in known])
    usd = _sum([one.usd for one in known])
    seconds = _sum([one.seconds for one in known])
    whole = Expected(tokens, usd, seconds, min((one.n for one in known), default=0))
    return [f"{who} expected {_cost(whole)}"]


def _sum(pairs: Sequence[tuple[float, float] | None]) -> tuple[float, float] | None:
    known = [pair for pair in pairs if pair is not None]
    if len(known) != len(pairs):
        return None
    return sum(low for low, _ in known), sum(high for _, high in known)


def _cost(known: Expected) -> str:
    assert known.tokens is not None
    assert known.seconds is not None
    money = "price unknown" if known.usd is None else f"{known.usd[0]:.4f} to {known.usd[1]:.4f} USD"
    return (
        f"{known.tokens[0]:.0f} to {known.tokens[1]:.0f} tokens, {money}, replies {known.seconds[0]:.0f} to "
        f"{known.seconds[1]:.0f} s (estimate: medians of at least {known.n} earlier calls a role)"
    )


def _history(history: History) -> list[str]:
    if not history.roles and not history.kinds:
        return ["no history: no earlier run below this results folder"]
    calls = [f"{role} {_call(taken)}" for role, taken in sorted(history.roles.items())]
    steps = [f"{kind} {taken.seconds:.2f} s (n={taken.n})" for kind, taken in sorted(history.kinds.items())]
    lines = [f"earlier calls of {history.model}, medians: {'; '.join(calls)}"] if calls else []
    if history.calls_a_task:
        asked = sorted(history.calls_a_task)
        middle = asked[len(asked) // 2]
        lines.append(f"earlier calls a task: median {middle}, {asked[0]} to {asked[-1]} (n={len(asked)})")
    return [*lines, *([f"earlier judge steps, medians: {'; '.join(steps)}"] if steps else [])]


def _call(taken: Taken) -> str:
    money = "" if taken.usd is None else f", {taken.usd:.5f} USD"
    return f"{taken.tokens:.0f} tokens{money}, {taken.seconds:.1f} s (n={taken.n})"


def _span(least: int, most: int) -> str:
    return str(most) if least == most else f"{least} to {most}"
