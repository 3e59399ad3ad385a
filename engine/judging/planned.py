"""From a candidate's source to what an executor can replay: its launch plans at every variant, checked, their kernels
compiled. No GPU is used."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from torch._subclasses.fake_tensor import FakeTensorMode

from engine.canonical import Json
from engine.codec import DecodeError, decode, encode
from engine.judging import plan_ops
from engine.judging.compiler import CompiledKernel, CompileProblem, CompileService, DeviceLimits, kernel_key
from engine.judging.inputs import flatten, replay
from engine.judging.judge import (
    MALFORMED,
    Findings,
    Judge,
    Stop,
    ask,
    nonsense,
    stop_on_compile_error,
    trace_failure,
)
from engine.judging.messages import Failure, state_problem
from engine.judging.plan import Plan, Step
from engine.judging.plan_check import PlanError, check_plan, order_problem, reused_output
from engine.judging.policy import goes_beyond, policy_problem, trace_from
from engine.judging.references import FULL, init_json, state_shapes, work_of
from engine.judging.replayed import Compiled
from engine.records import Launch, Reason, Status, Task, Trace

MAX_BYTES = 1 << 40
UNORDERED = "nothing orders them"
"""What `order_problem` says of two accesses, unlike of work that is never waited for."""

COMPILE_S = 120.0
"""Wall-clock seconds of one kernel."""


class Untraceable(Exception):
    """No plan describes the candidate; its own process has to run it."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A candidate's compiled plans by variant, in the order in which they are to be checked."""

    variants: Mapping[str, Compiled]
    trace: Trace | None
    """The launch record at full size."""


class Planner:
    """Traces and compiles candidates of any task."""

    def __init__(
        self, judge: Judge, compiler: CompileService, limits: DeviceLimits, on_traced: Callable[[], None]
    ) -> None:
        """`on_traced` is called when a candidate has a plan at every variant."""
        self.judge, self.compiler, self.limits, self.on_traced = judge, compiler, limits, on_traced

    def prepare(
        self, task: Task, source: str, host_ops: str, found: Findings, variants: Sequence[str] | None = None
    ) -> Prepared:
        """Stops the judgement where the candidate fails on the way; Untraceable when there is no plan for it.
        `variants` None: all that are judged."""
        order = tuple(variants or self.judge.references.variants(task))
        # The full size first: most that is wrong shows there, and the policy is decided there.
        traced = sorted(order, key=lambda name: name != FULL)
        plans: dict[str, Plan] = {}
        begun: dict[str, Future[CompiledKernel | CompileProblem]] = {}
        target = self.judge.place.target
        try:
            with found.stage("trace"), self.judge.child("trace", found) as child:
                for variant in traced:
                    message = self._message(task, source, variant)
                    limit = self.judge.settings.limits.trace_s
                    answer = ask(child, message, limit, f"while it was traced (variant {variant})", variant)
                    plans[variant] = self._accept(task, variant, host_ops, answer, found)
                    # The compiler works on this one's kernels while the next is traced.
                    fresh = [kernel for kernel in plans[variant].kernels if kernel_key(kernel, target) not in begun]
                    begun |= self.compiler.begin(fresh, target, self.limits, COMPILE_S)
        except BaseException:
            self.compiler.abandon(begun)
            raise
        self.on_traced()
        with found.stage("compile"):
            return self._compile(plans, order, begun, found)

    def _message(self, task: Task, source: str, variant: str) -> Json:
        if variant == FULL:
            full = self.judge.references.full(task)
            init, program = full.init, full.program
        else:
            reference = self.judge.references.reference(task, variant)
            init, program = init_json(reference.init_inputs), reference.inputs
        return {
            "op": "plan",
            "source": source,
            "init": init,
            "program": encode(program),
            "target": self.judge.place.target,
            "budget_s": self.judge.settings.limits.trace_s / 2,
        }

    def _accept(self, task: Task, variant: str, host_ops: str, answer: Mapping[str, Json], found: Findings) -> Plan:
        try:
            if "error" in answer:
                raise Untraceable(trace_failure(answer["error"], f"traced at variant {variant}", variant).message[:400])
            trace, _ = trace_from(answer)
            compile_error, untraceable, raw = answer["compile_error"], answer["untraceable"], answer["plan"]
            state = {str(name): [int(size) for size in shape] for name, shape in answer["state"].items()}
            grows = bool(answer["grows"])
            if variant == FULL:
                found.trace = trace
            stop_on_compile_error(compile_error, variant)
        except MALFORMED as error:
            raise nonsense(error, variant) from error
        if grows:
            text = "forward() keeps more tensors with every call, until memory runs out"
            raise Stop(Failure(Status.FAILED, Reason.OUT_OF_MEMORY, text), variant)
        reference = self.judge.references.reference(task, variant)
        problem = state_problem(state_shapes(reference), state)
        if problem is not None:
            raise Stop(Failure(Status.FAILED, Reason.STATE_MISMATCH, problem), variant)
        if raw is None:
            self._policy(task, variant, host_ops, trace, found)
            raise Untraceable(str(untraceable)[:400])
        plan = self._checked(task, variant, raw)
        try:
            trace = _as_planned(trace, plan)
        except PlanError as error:
            raise nonsense(error, variant) from error
        if variant == FULL:
            found.trace = trace
        self._policy(task, variant, host_ops, trace, found)
        return plan

    def _policy(self, task: Task, variant: str, host_ops: str, trace: Trace, found: Findings) -> None:
        """At full size; and at others where more is done outside the kernels than there."""
        if variant == FULL:
            work = self.judge.references.full(task).work
        elif (
            trace.launch_count
            and found.trace is not None
            and not goes_beyond(trace.host_ops, found.trace.host_ops, same_size=False)
        ):
            return
        else:
            reference = self.judge.references.reference(task, variant)
            work = work_of(reference.model, replay(reference.inputs, reference.device, 0, "nominal"))
        share = self.judge.settings.min_kernel_share
        problem = policy_problem(trace.launch_count, trace.host_ops, host_ops, work, share)
        if problem is not None:
            raise Stop(problem, variant)

    def _checked(self, task: Task, variant: str, raw: Json) -> Plan:
        reference = self.judge.references.reference(task, variant)
        try:
            plan = decode(Plan, raw, "launch plan")
            size = sum(buffer.bytes for buffer in plan.buffers)
            if size > MAX_BYTES:
                text = f"the tensors of one call take {size / 2**30:.0f} GiB, more than a device has"
                raise Stop(Failure(Status.FAILED, Reason.OUT_OF_MEMORY, text), variant)
            state = {spec.name: spec.shape for spec in reference.params}
            with FakeTensorMode(allow_non_fake_inputs=True):
                # Their number and bytes alone are looked at: nothing is drawn on the device, which nobody holds here.
                inputs = flatten(replay(reference.inputs, "cpu", 0, "nominal"))
            check_plan(plan, state, inputs)
        except (DecodeError, PlanError) as error:
            raise nonsense(error, variant) from error
        for call in plan.calls:
            unordered = order_problem(call, plan.kernels)
            if unordered is not None and UNORDERED in unordered:
                # Perhaps two kernels that write different parts of one tensor, which pointers do not tell.
                raise Untraceable(unordered)
            if unordered is not None:
                raise Stop(Failure(Status.REJECTED, Reason.UNSTABLE, unordered), variant)
        reused = reused_output(plan)
        if reused is not None:
            raise Stop(Failure(Status.REJECTED, Reason.WRONG_RESULT, reused), variant)
        return plan

    def _compile(
        self,
        plans: Mapping[str, Plan],
        order: Sequence[str],
        begun: Mapping[str, Future[CompiledKernel | CompileProblem]],
        found: Findings,
    ) -> Prepared:
        target = self.judge.place.target
        kernels = {kernel_key(kernel, target): kernel for plan in plans.values() for kernel in plan.kernels}
        outcome = self.compiler.outcomes(tuple(kernels.values()), begun, target, self.limits)
        prepared = {}
        for variant in order:
            plan = plans[variant]
            keys = tuple(kernel_key(kernel, target) for kernel in plan.kernels)
            usable = _with_usable_choices(plan, keys, outcome, variant, found)
            used = {launch.kernel for step in _steps(usable) for launch in step.launch}
            compiled = {
                keys[index]: kernel for index in used if isinstance(kernel := outcome[keys[index]], CompiledKernel)
            }
            kept = tuple(key if index in used else None for index, key in enumerate(keys))
            prepared[variant] = Compiled(usable, kept, compiled)
            if variant == FULL and found.trace is not None:
                found.trace = _with_resources(found.trace, compiled)
        return Prepared(prepared, found.trace)


def _as_planned(trace: Trace, plan: Plan) -> Trace:
    """The record with the host operations that the plan has, whatever its maker says of them; a launch that the record
    lacks is added without its sizes."""
    ops = list(plan_ops.host_ops(plan.steady))
    if plan.first is not None:
        known = {op.name for op in ops}
        ops += [op for op in plan_ops.host_ops(plan.first) if op.name not in known]
    planned = sum(bool(step.launch) for step in plan.steady.steps)
    if planned == trace.launch_count:
        return dataclasses.replace(trace, host_ops=tuple(ops))
    firsts = [step.launch[0] for step in plan.steady.steps if step.launch]
    counts = Counter((plan.kernels[launch.kernel], launch.grid) for launch in firsts)
    launches = tuple(
        Launch(kernel.name, grid, count, 0.0, kernel.num_warps, kernel.num_stages, "tt.dot" in kernel.ttir)
        for (kernel, grid), count in counts.items()
    )
    return Trace(launches, tuple(ops), trace.remarks)


def _steps(plan: Plan) -> list[Step]:
    return [*plan.prelude, *(step for call in plan.calls for step in call.steps)]


def _with_usable_choices(
    plan: Plan,
    keys: Sequence[str],
    outcome: Mapping[str, CompiledKernel | CompileProblem],
    variant: str,
    found: Findings,
) -> Plan:
    """The plan without autotune choices that do not compile or fit; Stop where a launch has none left."""

    def usable(step: Step) -> Step:
        good = tuple(choice for choice in step.launch if isinstance(outcome[keys[choice.kernel]], CompiledKernel))
        if len(good) == len(step.launch):
            return step
        problems = [outcome[keys[choice.kernel]] for choice in step.launch]
        problem = next(found for found in problems if isinstance(found, CompileProblem))
        if not good:
            reason = Reason.RESOURCES if problem.resources else Reason.COMPILE
            raise Stop(Failure(Status.FAILED, reason, problem.text), variant)
        found.remark(f"{problem.kernel}: an autotune config does not fit the target, others are used")
        return dataclasses.replace(step, launch=good)

    def of(steps: tuple[Step, ...]) -> tuple[Step, ...]:
        return tuple(map(usable, steps))

    steady = dataclasses.replace(plan.steady, steps=of(plan.steady.steps))
    first = None if plan.first is None else dataclasses.replace(plan.first, steps=of(plan.first.steps))
    return dataclasses.replace(plan, prelude=of(plan.prelude), first=first, steady=steady)


def _with_resources(trace: Trace, compiled: Mapping[str, CompiledKernel]) -> Trace:
    """The record with registers, spills and shared memory of the compiled kernels, by name."""
    by_name = {kernel.symbol: kernel for kernel in compiled.values()}

    def filled(launch: Launch) -> Launch:
        if launch.kernel not in by_name:
            return launch
        kernel = by_name[launch.kernel]
        return dataclasses.replace(
            launch, registers=kernel.registers, spill_bytes=kernel.spill_bytes, shared_bytes=kernel.shared_bytes
        )

    return dataclasses.replace(trace, launches=tuple(map(filled, trace.launches)))
