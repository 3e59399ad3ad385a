"""The declared limits of a run, its tasks and their stages: USD, tokens, calls, seconds of judge steps, wall time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from engine.errors import BudgetSpent
from engine.records import Usage
from engine.settings import BudgetSettings, Limits

Level = Literal["run", "task", "stage"]

JUDGE_STEPS = " for judge steps (wall clock)"
"""What `gpu_s` counts, in words, because tables call the time on a GPU alone by the same name."""


@dataclass(slots=True)
class Account:
    """What one run, task or stage has spent. `gpu_s`: wall seconds of judge steps, on whatever device, with what the
    judge does without it: tracing, compiling, waiting for a turn."""

    level: Level
    where: str
    limits: Limits
    started: float
    name: str | None = None
    """Of the task or stage."""
    usd: float = 0.0
    tokens: int = 0
    calls: int = 0
    gpu_s: float = 0.0
    unpriced: int = 0


class Budget:
    """Adds up what this run pays and refuses what a limit does not allow, before it is spent.

    A call is refused from the limit on, and already where the most that it can take (`most`: its prompt and its
    longest answer) does not fit any more. How long a judge step takes is known only afterwards, so the last one may
    pass a limit; `BudgetSpent` says by how much. Under a limit in USD, a reply with tokens but no known price forbids
    the next call: it would be spending blindly.
    """

    def __init__(self, limits: BudgetSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self.settings = limits
        self.clock = clock
        self.run = Account("run", "", limits.of_run, clock())
        self._open = [self.run]

    @contextmanager
    def task(self, name: str) -> Iterator[None]:
        """What is spent inside counts for this task, too."""
        with self._within(Account("task", f" in task {name}", self.settings.task, self.clock(), name)):
            yield

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """What is spent inside counts for this stage, too."""
        with self._within(Account("stage", f" in stage {name}", self.settings.stage, self.clock(), name)):
            yield

    @contextmanager
    def _within(self, account: Account) -> Iterator[None]:
        self._open.append(account)
        try:
            yield
        finally:
            self._open.remove(account)

    def inside(self, level: Level) -> str | None:
        """The task or stage in which is being spent."""
        return next((account.name for account in self._open if account.level == level), None)

    @property
    def limited(self) -> bool:
        """Whether any limit is set."""
        declared = (self.settings.of_run, self.settings.task, self.settings.stage)
        return any(limits != Limits(None, None, None, None, None) for limits in declared)

    def spend(self, usage: Usage) -> None:
        """Count one reply."""
        tokens = usage.input_tokens + usage.output_tokens
        for account in self._open:
            account.calls += 1
            account.tokens += tokens
            if usage.cost_usd is not None:
                account.usd += usage.cost_usd
            elif tokens:
                account.unpriced += 1

    def spend_gpu(self, seconds: float) -> None:
        """Count one judge step."""
        for account in self._open:
            account.gpu_s += seconds

    def check(self, most: Usage | None = None) -> None:
        """Before a call; `most` it can take. BudgetSpent names the limit, what was spent and what is allowed."""
        tokens = most.input_tokens + most.output_tokens if most else 0
        usd = most.cost_usd if most and most.cost_usd is not None else 0.0
        for account in self._open:
            limits = account.limits
            _check(account, "calls", account.calls, limits.calls, str, 0)
            _check(account, "tokens", account.tokens, limits.tokens, str, tokens)
            _check(account, "usd", account.usd, limits.usd, "{:.4f} USD".format, usd)
            _check(account, "wall_s", self.clock() - account.started, limits.wall_s, _seconds, 0)
            if limits.usd is not None and account.unpriced:
                message = (
                    f"{_setting(account)}.usd: {account.unpriced} replies{account.where} have no known price, so a "
                    f"limit of {limits.usd:g} USD cannot be kept; set llm.price_per_mtok or remove the limit"
                )
                raise BudgetSpent(message, limit="usd", level=account.level)

    def check_gpu(self) -> None:
        """Before a judge step; BudgetSpent as `check`."""
        for account in self._open:
            _check(account, "gpu_s", account.gpu_s, account.limits.gpu_s, _seconds, 0, JUDGE_STEPS)
            _check(account, "wall_s", self.clock() - account.started, account.limits.wall_s, _seconds, 0)


def _setting(account: Account) -> str:
    return "search.budget" if account.level == "run" else f"search.budget.{account.level}"


def _seconds(value: float) -> str:
    """A tenth of a second is enough, but for what is less than one."""
    return f"{value:.1f} s" if value >= 1 else f"{value:.3g} s"


def _check(
    account: Account,
    limit: str,
    spent: float,
    allowed: float | None,
    form: Callable[[float], str],
    most: float,
    on: str = "",
) -> None:
    if allowed is None or (spent < allowed and spent + most <= allowed):
        return
    told = f"{form(spent)} spent of {form(allowed)} allowed{on}{account.where}"
    message = f"{_setting(account)}.{limit}: {told}"
    if spent < allowed:
        message += f", and the next call can take {form(most)}"
    raise BudgetSpent(message, limit=limit, level=account.level)
