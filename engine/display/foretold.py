"""A forecast as plain text."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from engine.expectation import Expected, Foretold
from engine.forecast import Forecast, Prompt, StageForecast
from engine.history import History, Own, Taken


def forecast_text(told: Foretold, history: History, write: str | None) -> str:
    """Stages, prompts, bounds on calls and the expected cost of each task, then of all; `write`: the folder into which
    the prompts go."""
    lines = [line for task, known in told.tasks for line in _task(task, known)]
    prompts = [prompt for task, _ in told.tasks for prompt in task.prompts]
    whole = told.whole
    lines.append(f"in all {_span(whole.least.calls, whole.most.calls)} model calls still to be made; {_sizes(prompts)}")
    where = f"the prompts are in {write}" if write is not None else "run.write=FOLDER leaves the prompts there"
    lines += [where] if prompts else []
    lines += _paid(told.own)
    lines += _expected(whole, history)
    lines += _history(history)
    return "\n".join(lines) + "\n"


def _task(task: Forecast, known: Expected) -> list[str]:
    lines = [f"{task.task_id}: {task.category}, {_span(task.least, task.calls)} model calls"]
    lines.append(f"  seeds: {_span(task.least_seed_calls, task.seed_calls)} calls; {_sizes(task.seed_prompts)}")
    lines += [f"  {stage.name}: {_stage(stage)}" for stage in task.stages]
    if known.done:
        return [*lines, f"  {DONE}"]
    return [*lines, *([f"  expected {_cost(known)}"] if known.most.tokens is not None else _caps(known, "  "))]


DONE = "this run has gone through it: nothing is left to pay"


def _paid(own: Own) -> list[str]:
    if not own.calls:
        return []
    usd = "price unknown" if own.usd is None else f"{own.usd:.4f} USD"
    return [f"paid by this run before: {own.calls} calls, {own.tokens} tokens, {usd}"]


def _caps(known: Expected, indent: str) -> list[str]:
    return [f"{indent}{_capped(known)}"] if known.capped else []


def _capped(known: Expected) -> str:
    return f"limited by {', '.join(known.capped)}"


def _stage(stage: StageForecast) -> str:
    if stage.skipped and not stage.calls:
        return f"skipped: {stage.skipped}"
    audit = f"an audit, for a rule skips it ({stage.skipped}): " if stage.skipped else ""
    return f"{audit}{_span(stage.least, stage.calls)} calls; {_sizes(stage.prompts)}"


def _sizes(prompts: Sequence[Prompt]) -> str:
    if not prompts:
        return "no prompt"
    chars, tokens = sum(prompt.chars for prompt in prompts), sum(prompt.tokens for prompt in prompts)
    open_ones = sum(not prompt.complete for prompt in prompts)
    without = f", {open_ones} still without the parent kernel" if open_ones else ""
    return f"{len(prompts)} prompts rendered, {chars} characters, about {tokens} tokens{without}"


def _expected(whole: Expected, history: History) -> list[str]:
    if whole.done:
        return [f"in all: {DONE}"]
    if whole.most.tokens is None:
        return [*_caps(whole, "in all "), f"in all expected cost: no history of model {history.model} for every role"]
    return [f"in all expected {_cost(whole)}"]


def _cost(known: Expected) -> str:
    low, high = known.least, known.most
    assert low.tokens is not None
    assert high.tokens is not None
    assert low.seconds is not None
    assert high.seconds is not None
    money = "price unknown" if low.usd is None or high.usd is None else f"{low.usd:.4f} to {high.usd:.4f} USD"
    tokens = f"{low.tokens:.0f} to {high.tokens:.0f} tokens"
    cut = f", {_capped(known)}" if known.capped else ""
    estimate = f"(estimate: medians of at least {known.n} earlier calls a role)"
    return f"{tokens}, {money}, replies {low.seconds:.0f} to {high.seconds:.0f} s{cut} {estimate}"


def _history(history: History) -> list[str]:
    if not history.roles and not history.kinds:
        return ["no history: no earlier run below this results folder"]
    calls = [f"{role} {_call(taken)}" for role, taken in sorted(history.roles.items())]
    steps = [f"{kind} {taken.seconds:.2f} s (n={taken.n})" for kind, taken in sorted(history.kinds.items())]
    lines = [f"earlier calls of {history.model}, medians: {'; '.join(calls)}"] if calls else []
    if history.calls_a_task:
        asked = sorted(history.calls_a_task)
        middle = statistics.median(asked)
        lines.append(f"earlier calls a task: median {middle:g}, {asked[0]:g} to {asked[-1]:g} (n={len(asked)} tasks)")
    return [*lines, *([f"earlier judge steps, medians: {'; '.join(steps)}"] if steps else [])]


def _call(taken: Taken) -> str:
    money = "" if taken.usd is None else f", {taken.usd:.5f} USD"
    return f"{taken.tokens:.0f} tokens{money}, {taken.seconds:.1f} s (n={taken.n})"


def _span(least: int, most: int) -> str:
    return str(most) if least == most else f"{least} to {most}"
