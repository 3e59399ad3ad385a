"""Whether a candidate's kernels matter: its plan is replayed without the launches of one of them at a time, on poisoned
memory. A result that stays the same to the last bit shows that nothing of that kernel's work is in it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager

import torch

from engine.confirmation import DropResult
from engine.judging.allowance import Allowance
from engine.judging.executors import Executor
from engine.judging.judge import Findings, Judge, Stop
from engine.judging.messages import Failure
from engine.judging.plan import Plan, Step
from engine.judging.replayed import Compiled, NotReplayable, ReplayedVariant
from engine.judging.runs import Call
from engine.records import Reason, Status, Task

MOST_KERNELS = 16
CALL_S = 20.0
"""For one replay without a kernel: another may wait for what it does."""
DRAW = 4 << 20


class DroppedVariant(ReplayedVariant):
    """A plan, perhaps without some launches. Nothing is compared with the reference."""

    def outputs(self) -> list[torch.Tensor]:
        """The bytes of the results of one call. Raises Stop or NotReplayable."""
        self._load("")
        call = self._call("nominal", DRAW, "nan")
        self._forward_part(call, "steady")
        return [self._raw(row) for row in self._collect([call.name], call.suite)[call.name]["tensors"]]

    def _tune(self) -> None:
        """The default choices will do."""

    def _first(self) -> None:
        self._forward_part(self._call("nominal", 1 << 20, "garbage"), "first")

    def _intact(self, number: int, byte: int, inputs: Sequence[torch.Tensor], call: Call) -> None:
        """What a kernel does on poison in place of another's results is nobody's fault."""

    def _sets(self) -> int:
        return 1


def launched(plan: Plan) -> tuple[str, ...]:
    """Names of the kernels that any part of a plan launches, in order."""
    steps = [*plan.prelude, *(step for call in plan.calls for step in call.steps)]
    return tuple(dict.fromkeys(name for step in steps if (name := _kernel_of(plan, step)) is not None))


def without(plan: Plan, names: Collection[str]) -> Plan:
    """The plan without the launches of these kernels."""

    def left(steps: Sequence[Step]) -> tuple[Step, ...]:
        return tuple(step for step in steps if _kernel_of(plan, step) not in names)

    steady = dataclasses.replace(plan.steady, steps=left(plan.steady.steps))
    first = None if plan.first is None else dataclasses.replace(plan.first, steps=left(plan.first.steps))
    return dataclasses.replace(plan, prelude=left(plan.prelude), first=first, steady=steady)


def _kernel_of(plan: Plan, step: Step) -> str | None:
    return plan.kernels[step.launch[0].kernel].name if step.launch else None


class DropTest:
    """The test of one variant of one candidate. `executor`: a fresh one for each replay."""

    def __init__(
        self,
        judge: Judge,
        executor: Callable[[], AbstractContextManager[Executor]],
        compiled: Compiled,
        task: Task,
        variant: str,
        found: Findings,
    ) -> None:
        self._judge, self._executor, self._compiled = judge, executor, compiled
        self._task, self._variant, self._found = task, variant, found

    def run(self) -> tuple[DropResult, ...]:
        """One result a kernel, with a remark for each that has no effect or whose replay ran out of time, which shows
        nothing and gives no result; Stop where not even all together have one, or where memory is short: undecided."""
        names = launched(self._compiled.plan)
        if not names:
            return ()
        whole = self._whole()
        if whole is None or not any(tensor.numel() for tensor in whole):
            return ()
        if len(names) > MOST_KERNELS:
            self._found.remark(f"{len(names)} kernels, the drop test leaves out only {MOST_KERNELS} of them in turn")
        effects = {name: self._differs(whole, [name]) for name in names[:MOST_KERNELS]}
        for name, effect in effects.items():
            if effect is None:
                text = f"the drop test of {name} did not end within {CALL_S:g} s (variant {self._variant}): no result"
                self._found.remark(text)
            elif not effect:
                self._found.remark(f"launch of {name} has no effect (variant {self._variant})")
        if not any(effects.values()) and self._differs(whole, names) is False:
            text = "the results are the same without any launch of its kernels: none of them does the operator's work"
            raise Stop(Failure(Status.REJECTED, Reason.HOST_OP, text), self._variant, "nominal")
        return tuple(DropResult(name, effect) for name, effect in effects.items() if effect is not None)

    def _whole(self) -> list[torch.Tensor] | None:
        """The results with every launch; None, with a remark, where they cannot be had."""
        try:
            return self._outputs(())
        except (Stop, NotReplayable) as error:
            if isinstance(error, Stop) and error.failure.reason is Reason.OUT_OF_MEMORY:
                raise
            self._found.remark(f"no drop test: the whole plan gave no results (variant {self._variant}): {error}")
            return None

    def _differs(self, whole: Sequence[torch.Tensor], names: Collection[str]) -> bool | None:
        """True also where the rest of the plan fails without them; None where it ran out of time."""
        try:
            outputs = self._outputs(names)
        except NotReplayable:
            return True
        except Stop as stop:
            if stop.failure.reason is Reason.OUT_OF_MEMORY:
                raise
            return None if stop.failure.reason is Reason.TIMEOUT else True
        return len(outputs) != len(whole) or not all(map(torch.equal, whole, outputs))

    def _outputs(self, names: Collection[str]) -> list[torch.Tensor]:
        """The results without these kernels. Raises NotReplayable, and Stop: for want of memory always undecided, since
        it is no fault of a candidate whose whole plan was judged."""
        compiled = dataclasses.replace(self._compiled, plan=without(self._compiled.plan, names))
        # Remarks of a replay that nobody judges are not about the candidate.
        found = Findings(self._found.seed)
        try:
            with self._executor() as executor:
                allowance = Allowance(CALL_S, lambda: executor.waited_s)
                run = DroppedVariant(self._judge, executor, compiled, self._task, self._variant, found, allowance)
                return run.outputs()
        except Stop as stop:
            if stop.failure.reason is not Reason.OUT_OF_MEMORY:
                raise
            short = Failure(Status.UNDECIDED, Reason.OUT_OF_MEMORY, f"in the drop test: {stop.failure.message}")
            raise Stop(short, self._variant, "nominal") from stop
