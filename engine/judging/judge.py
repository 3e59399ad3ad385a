"""The order of a judgement: screen, trace and compile, run on variants and suites, compare. Trusted code only."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from engine.canonical import Json
from engine.codec import encode
from engine.errors import MissingError
from engine.judging import sandbox
from engine.judging.allowance import Allowance
from engine.judging.answers import plain_text
from engine.judging.children import Child, ChildEnded, ChildTimeout, ForkServerClient, new_scratch
from engine.judging.inputs import UnsupportedTask
from engine.judging.lint import lint, lint_problem
from engine.judging.messages import Failure, ended, failure_of, is_memory
from engine.judging.policy import policy_problem, trace_from
from engine.judging.references import References, init_json
from engine.judging.static_screen import screen
from engine.records import CheckResult, LintSeverity, Mode, Reason, Status, Task, TaskLint, Trace, Verdict
from engine.settings import JudgeSettings

MESSAGE_CHARS = 4000
DECIDED_BY_TEXT = (Reason.SYNTAX, Reason.NO_MODEL)
MALFORMED = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
"""What reading an answer of another form than its protocol's raises: a candidate's process may answer anything."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where candidates run. `device`: `cpu` is Triton's interpreter, else a torch device. `target`: chip to compile
    for. `scratch`: a folder whose content is ours."""

    device: str
    target: str
    compile_kernels: bool
    scratch: Path

    @property
    def mode(self) -> Mode:
        return Mode.INTERPRETER if self.device == "cpu" else Mode.PLAN


class Stop(Exception):
    """The end of a judgement before all checks are done."""

    def __init__(self, failure: Failure, variant: str | None = None, suite: str | None = None) -> None:
        super().__init__(failure.message)
        self.failure, self.variant, self.suite = failure, variant, suite


@dataclass(slots=True)
class Findings:
    """What is known so far of one candidate."""

    seed: int
    remarks: list[str] = field(default_factory=list)
    layers: tuple[str, ...] = ()
    checks: list[CheckResult] = field(default_factory=list)
    precision_class: str | None = None
    trace: Trace | None = None
    trace_error: str | None = None
    interpreter_limit: tuple[str, ...] = ()
    mode: Mode | None = None
    """None: as the place has it."""
    stages: dict[str, float] = field(default_factory=dict)
    gpu_s: float = 0.0

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Adds the wall-clock seconds of what runs inside."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.stages[name] = self.stages.setdefault(name, 0.0) + time.monotonic() - started

    def remark(self, text: str) -> None:
        if text not in self.remarks:
            self.remarks.append(text)


class OnDevice(Protocol):
    """What a judge with a device asks of it."""

    def decide(self, task: Task, source: str, host_ops: str, found: Findings) -> bool:
        """Check a candidate from its launch plans; False when no plan describes it."""

    def shared(self, *, large: bool = False) -> contextlib.AbstractContextManager[None]:
        """Hold the device together with others that check; `large`: with none that needs much of its memory too."""

    def alone(self) -> contextlib.AbstractContextManager[None]:
        """Hold it with nobody beside."""

    def make_room(self) -> None:
        """Memory lacks: free what this process holds on the device only to save time, and let others know."""


class Judge:
    """Judges candidates one after another; references of a task are kept between them."""

    def __init__(
        self, settings: JudgeSettings, place: Place, tracer: ForkServerClient, runner: ForkServerClient
    ) -> None:
        self.settings, self.place = settings, place
        self._servers = {"trace": tracer, "run": runner}
        self.references = References(place.device)
        self._lints: dict[str, TaskLint] = {}
        self.device: OnDevice | None = None
        """Replays launch plans where there is a device; the service puts it there."""

    def judge(
        self,
        task: Task,
        source: str,
        seed: int,
        *,
        further: Callable[[Findings], None] | None = None,
        trace: Trace | None = None,
    ) -> Verdict:
        """The verdict on one candidate; candidates' failures are data, EngineError means ours broke. `further`: checks
        after those of every candidate, in place of the task's lint; it may raise Stop. `trace`: its launch record where
        it has been traced and held to the policy before."""
        started = time.monotonic()
        found = Findings(seed, trace=trace)
        stop: Stop | None = None
        try:
            self._decide(task, source, found, further)
        except Stop as stopped:
            # Without its traceback, whose frames hold the tensors compared.
            stop = Stop(stopped.failure, stopped.variant, stopped.suite)
        except UnsupportedTask as error:
            stop = Stop(Failure(Status.UNDECIDED, Reason.UNSUPPORTED, str(error)))
        except RuntimeError as error:
            if not is_memory(error):
                raise
            text = f"the device's memory does not hold the reference now: {str(error).splitlines()[0]}"
            stop = Stop(Failure(Status.UNDECIDED, Reason.OUT_OF_MEMORY, text))
        self.references.give_back_memory()
        ratios = [check.error_ratio for check in found.checks if check.error_ratio is not None]
        return Verdict(
            status=Status.CORRECT if stop is None else stop.failure.status,
            reason=None if stop is None else stop.failure.reason,
            mode=found.mode or self.place.mode,
            message="" if stop is None else plain_text(stop.failure.message[:MESSAGE_CHARS]),
            precision_class=found.precision_class,
            error_ratio=max(ratios) if ratios else None,
            variant=None if stop is None else stop.variant,
            suite=None if stop is None else stop.suite,
            checks=tuple(found.checks),
            trace=found.trace,
            trace_error=None if found.trace_error is None else plain_text(found.trace_error),
            remarks=tuple(map(plain_text, found.remarks)),
            sandbox=found.layers,
            seed=seed,
            wall_s=time.monotonic() - started,
            gpu_s=found.gpu_s,
            stages=dict(found.stages),
        )

    def _decide(self, task: Task, source: str, found: Findings, further: Callable[[Findings], None] | None) -> None:
        with found.stage("screen"):
            screened = screen(source)
        found.remarks.extend(screened.remarks)
        if screened.reason is not None:
            status = Status.FAILED if screened.reason in DECIDED_BY_TEXT else Status.REJECTED
            raise Stop(Failure(status, screened.reason, screened.message))
        host_ops = task.contract.host_ops or self.settings.host_ops
        if self.device is None or not self.device.decide(task, source, host_ops, found):
            self._in_own_process(task, source, host_ops, found)
        if further is not None:
            further(found)
            return
        with found.stage("lint"):
            self._lint(task, found)

    def _in_own_process(self, task: Task, source: str, host_ops: str, found: Findings) -> None:
        """By the candidate's own Python: in the interpreter, or on a device when no plan describes it."""
        # own_process.py needs Stop and Findings from here.
        from engine.judging.own_process import OwnProcessVariant

        if self.place.device != "cpu":
            found.mode = Mode.FALLBACK
        if found.trace is None:
            with found.stage("trace"):
                self._trace(task, source, host_ops, found)
        if self.place.device == "cpu" and found.interpreter_limit:
            names = ", ".join(found.interpreter_limit)
            text = f"tl.dot on bf16 or fp8 in {names}: the interpreter computes it wrongly, so nothing can be said here"
            raise Stop(Failure(Status.UNDECIDED, Reason.INTERPRETER_LIMIT, text))

        def check(held: contextlib.AbstractContextManager[None]) -> None:
            with found.stage("check"), held, self.child("run", found) as child:
                allowance = Allowance(self.settings.limits.run_s, lambda: child.waited_s)
                for variant in self.references.variants(task):
                    OwnProcessVariant(self, child, task, variant, host_ops, found, allowance).all_suites(source)

        self.with_memory(found, check)

    def _lint(self, task: Task, found: Findings) -> None:
        """Whether passing every check of this task proves anything; examined once a task, on the reference alone."""
        if task.task_hash not in self._lints:

            def examine(held: contextlib.AbstractContextManager[None]) -> None:
                with held:
                    self._lints[task.task_hash] = lint(task, self.references, self.settings)

            self.with_memory(None, examine)
        linted = self._lints[task.task_hash]
        for finding in linted.findings:
            if finding.severity is not LintSeverity.REPAIRED:
                found.remark(f"task: {finding.code.value}: {finding.message}"[:300])
        problem = lint_problem(linted)
        if problem is not None:
            raise Stop(problem)

    def with_memory(
        self,
        found: Findings | None,
        check: Callable[[contextlib.AbstractContextManager[None]], None],
        *,
        large: bool = False,
    ) -> None:
        """`check` beside others, given the lease to hold; once more alone when memory lacked, for others may have held
        what it needs. What is missing then is missing. `large`: it needs much of the device's memory."""
        if self.device is None:
            check(contextlib.nullcontext())
            return
        try:
            check(self.device.shared(large=large))
            return
        except (Stop, RuntimeError) as error:
            if not _lacks_memory(error):
                raise
            lacking = str(error).splitlines()[0][:120]
        if found is not None:
            found.checks.clear()
            found.remark(f"checked again alone on the GPU: {lacking}")
        self.device.make_room()
        check(self.device.alone())

    def _trace(self, task: Task, source: str, host_ops: str, found: Findings) -> None:
        full = self.references.full(task)
        limit = self.settings.limits.trace_s
        message = {
            "op": "trace",
            "source": source,
            "init": full.init,
            "program": encode(full.program),
            "target": self.place.target,
            "compile": self.place.compile_kernels,
            "budget_s": limit / 2,
            "real": False,
        }
        with self.child("trace", found) as child:
            answer = ask(child, message, limit, "while it was imported and traced at full size", "full")
        if "error" in answer and self.place.device == "cpu" and self.place.compile_kernels:
            self._compile_on_values(task, message, found)
        try:
            if "error" in answer:
                found.trace_error = trace_failure(answer["error"], "traced at full size", "full").message[:400]
                return
            found.trace, found.interpreter_limit = trace_from(answer)
            stop_on_compile_error(answer["compile_error"], "full")
        except MALFORMED as error:
            raise nonsense(error, "full") from error
        problem = policy_problem(
            found.trace.launch_count, found.trace.host_ops, host_ops, full.work, self.settings.min_kernel_share
        )
        if problem is not None:
            raise Stop(problem, "full")

    def _compile_on_values(self, task: Task, message: Mapping[str, Json], found: Findings) -> None:
        """What fake tensors cannot follow is traced on a small variant's values, so that its kernels are compiled: the
        interpreter runs what no compiler takes. What fails there is left to the run."""
        variant = self.references.variants(task)[0]
        reference = self.references.reference(task, variant)
        init, program = init_json(reference.init_inputs), encode(reference.inputs)
        again = {**message, "init": init, "program": program, "real": True}
        with self.child("trace", found) as child:
            limit = self.settings.limits.trace_s
            answer = ask(child, again, limit, f"while it was traced (variant {variant})", variant)
        if "error" in answer:
            return
        try:
            _, found.interpreter_limit = trace_from(answer)
            stop_on_compile_error(answer["compile_error"], variant)
        except MALFORMED as error:
            raise nonsense(error, variant) from error

    @contextlib.contextmanager
    def child(self, kind: str, found: Findings) -> Iterator[Child]:
        """A confined process; MissingError when a required layer of the sandbox is absent."""
        limits = self.settings.limits
        seconds = limits.trace_s if kind == "trace" else limits.run_s
        on_gpu = kind == "run" and self.place.device != "cpu"
        confinement = sandbox.Confinement(
            scratch=new_scratch(self.place.scratch),
            cpu_s=math.ceil(2 * seconds) + 30,
            # CUDA reserves far more address space than it uses.
            memory_bytes=None if on_gpu else int(limits.memory_gib * 2**30),
            processes=limits.processes,
            file_bytes=1 << 40 if on_gpu else limits.file_mib << 20,
            gpu=on_gpu,
            required=self.settings.sandbox == "required",
        )
        with Child(self._servers[kind], kind, confinement) as child:
            try:
                child.start()
            except (ChildEnded, ChildTimeout) as error:
                hint = f"{child.output()[-400:]}\npython -m engine.doctor names the layers"
                raise MissingError(f"the sandbox did not start: {error}", hint=hint) from error
            found.layers = child.layers
            yield child


def ask(
    child: Child, message: Json, timeout_s: float, when: str, variant: str, suite: str | None = None
) -> Mapping[str, Json]:
    """One command to a candidate's process; its end or silence stops the judgement."""
    try:
        answer = child.ask(message, timeout_s)
    except ChildTimeout as error:
        text = f"no answer within {timeout_s:g} s {when}; its processes were killed"
        raise Stop(Failure(Status.FAILED, Reason.TIMEOUT, text), variant, suite) from error
    except ChildEnded as error:
        raise Stop(ended(error.status, when, child.output()), variant, suite) from error
    except RecursionError as error:
        text = f"its process answered lists within lists beyond any reading, {when}"
        raise Stop(Failure(Status.FAILED, Reason.CRASH, text), variant, suite) from error
    if not isinstance(answer, Mapping):
        text = f"its process answered {type(answer).__name__} where an object was expected, {when}"
        raise Stop(Failure(Status.FAILED, Reason.CRASH, text), variant, suite)
    return answer


def trace_failure(error: Mapping[str, Json], when: str, variant: str) -> Failure:
    """What an exception in a traced process means; Stop where it is a kernel that does not fit."""
    failure = failure_of(error, when)
    if error["type"] == "CompileFailed":
        raise Stop(Failure(Status.FAILED, Reason.RESOURCES, str(error["message"])), variant)
    return failure


def stop_on_compile_error(error: Mapping[str, Json] | None, variant: str) -> None:
    """Stop where the traced process says that a kernel does not compile."""
    if error is not None:
        reason = Reason.RESOURCES if error["resources"] else Reason.COMPILE
        raise Stop(Failure(Status.FAILED, reason, str(error["message"])), variant)


def nonsense(error: Exception, variant: str) -> Stop:
    """The end of a judgement whose traced process does not keep to its protocol."""
    text = f"the traced process answered nonsense: {type(error).__name__}: {str(error)[:600]}"
    return Stop(Failure(Status.FAILED, Reason.CRASH, text), variant)


def _lacks_memory(error: Stop | RuntimeError) -> bool:
    if isinstance(error, Stop):
        return error.failure.reason is Reason.OUT_OF_MEMORY
    return is_memory(error)
