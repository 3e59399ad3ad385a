"""One variant of one candidate: planned calls, their outputs collected and compared with the reference."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from engine.canonical import Json
from engine.codec import encode
from engine.judging.children import Child
from engine.judging.host_ops import from_json
from engine.judging.inputs import UnsupportedTask, derive_seed, replay
from engine.judging.judge import Findings, Judge, Stop, ask
from engine.judging.messages import Failure, failure_of, is_memory, state_problem
from engine.judging.numerics import Comparison, compare, precision_class, scale_of
from engine.judging.policy import goes_beyond, policy_problem
from engine.judging.reference import tree_text
from engine.judging.references import FULL, Expected, emulated_error, expected, init_json, state_shapes, work_of
from engine.judging.wire import ChannelClosed, read_parts
from engine.records import CheckResult, Precision, Reason, Status, Task
from engine.settings import Tolerance

SLOW_CALL_S = 4.0
"""When one call takes longer than this, only the first two suites are run on the variant, and a remark says so."""

LARGE_OUTPUT_BYTES = 1 << 29
"""Above this size of one result only the first suite is run on the variant, and other poison only if there is no
other variant: each result costs a copy to the host and a pass in fp64."""

UNJUDGED = {"cpu": (1, 3), "cuda": (32, 96)}
"""Least and most calls that nobody looks at, made between two judged ones: a result that goes wrong after some number
of calls shows in the next. Few in the interpreter, where each may take a second."""
UNJUDGED_S = 0.5

_HINTS = {
    "tf32": ' Its error is that of TF32 operands: fp32 products need tl.dot(..., input_precision="ieee").',
    "bf16x3": " Its error is that of split low-precision operands.",
    "reduced": " Its error is that of 16-bit operands: keep fp32 data in fp32.",
    "loose": " Its formula or its order of summation is cruder than PyTorch's.",
}


@dataclass(frozen=True, slots=True)
class Call:
    """One planned forward(): the draws of inputs and parameters, and the poison in fresh memory."""

    name: str
    suite: str
    seed: int
    params_seed: int
    poison: str


class VariantRun:
    """All calls of one variant. Stops the judgement at the first failure."""

    def __init__(
        self, judge: Judge, child: Child, task: Task, variant: str, host_ops: str, found: Findings, deadline: float
    ) -> None:
        self.judge, self.child, self.task, self.variant = judge, child, task, variant
        self.host_ops, self.found, self.deadline = host_ops, found, deadline
        self.reference = judge.references.reference(task, variant)
        self.precision = task.contract.precision or judge.settings.precision
        self.slack = 1.0 if judge.place.device == "cpu" else 0.0

    def all_suites(self, source: str) -> None:
        """Load, call under every applicable suite, compare. Expected results are kept for one batch at a time."""
        self._load(source)
        usable = ((call, result) for call in self._plan() if (result := self._expected(call)) is not None)
        # The first two results are collected after both calls, so that one buffer behind both shows.
        held = list(itertools.islice(usable, 1))
        if not held:
            raise UnsupportedTask(f"{self.variant}: the reference fails under every suite")
        first, size = held[0][0], _bytes(held[0][1])
        large = size > LARGE_OUTPUT_BYTES
        held += [] if large else itertools.islice(usable, 1)
        slowest = self._perform(held, count_ops=True)
        held.clear()
        if large:
            self.found.remark(f"{self.variant}: one result takes {size / 2**30:.1f} GiB, further suites were left out")
        elif slowest > SLOW_CALL_S:
            self.found.remark(f"{self.variant}: a call takes {slowest:.0f} s here, further suites were left out")
        else:
            self._unjudged_calls()
            for number, pair in enumerate(usable):
                self._perform([pair], count_ops=number == 0, late=True)
        if not large or len(self.judge.references.variants(self.task)) == 1:
            self._with_other_poison(first)

    def _plan(self) -> list[Call]:
        settings = self.judge.settings
        suites = self.task.contract.suites or settings.suites
        return [
            self._call(suite, draw, "nan" if (number + draw) % 2 == 0 else "garbage")
            for draw in range(settings.seeds)
            for number, suite in enumerate(suites)
        ]

    def _call(self, suite: str, draw: int, poison: str) -> Call:
        seed = derive_seed(self.found.seed, self.variant, suite, draw)
        params = derive_seed(self.found.seed, self.variant, suite, draw, "params")
        return Call(f"{suite}{draw}", suite, seed, params, poison)

    def _expected(self, call: Call) -> Expected | None:
        """The reference's results; None for a suite that the operator does not admit (log of a negative, say)."""
        try:
            result = expected(self.reference, call.seed, call.params_seed, call.suite, self.precision)
            if _bytes(result) > LARGE_OUTPUT_BYTES:
                self.judge.references.give_back_memory()
        except (RuntimeError, ValueError, IndexError) as error:
            if is_memory(error):
                raise
            if call.suite == "nominal":
                raise UnsupportedTask(f"{self.variant}: the reference fails: {error}") from error
            result = None
        if result is not None and (result.finite or call.suite == "nominal"):
            return result
        self.found.remark(f"{self.variant}: suite {call.suite} left out, the reference is not finite there")
        return None

    def _load(self, source: str) -> None:
        reference = self.reference
        for index, spec in enumerate(reference.params):
            if spec.kind == "keep":
                flat = reference.kept[spec.name].detach().contiguous().cpu().reshape(-1)
                content = flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
                (self.child.scratch / f"param_{index}.bin").write_bytes(content)
        message = {
            "op": "load",
            "source": source,
            "init": init_json(reference.init_inputs),
            "params": encode(reference.params),
            "seed": derive_seed(self.found.seed, self.variant, "init"),
            "device": self.judge.place.device,
            "target": self.judge.place.target,
            "tf32": self.precision is not Precision.IEEE,
        }
        answer = self._ask(message, "while ModelNew was built")
        self._stop_on_error(answer, f"building ModelNew (variant {self.variant})", None)
        problem = state_problem(state_shapes(reference), self._field(answer, "state", dict))
        if problem is not None:
            raise Stop(Failure(Status.FAILED, Reason.STATE_MISMATCH, problem), self.variant)

    def _unjudged_calls(self) -> None:
        """Calls in a number that the candidate cannot know, on inputs that no judged call has."""
        least, most = UNJUDGED[torch.device(self.judge.place.device).type]
        draw = derive_seed(self.found.seed, self.variant, "unjudged")
        message = {
            "op": "repeat",
            "program": encode(self.reference.inputs),
            "seed": draw,
            "suite": "nominal",
            "count": least + draw % (most - least + 1),
            "seconds": UNJUDGED_S,
        }
        answer = self._ask(message, f"in repeated calls of forward() (variant {self.variant})")
        self._stop_on_error(answer, f"repeated calls of forward() (variant {self.variant})", None)

    def _perform(self, pairs: Sequence[tuple[Call, Expected]], *, count_ops: bool, late: bool = False) -> float:
        slowest = 0.0
        for number, (call, _) in enumerate(pairs):
            answer = self._forward(call, count_ops=count_ops and number == 0, late=late)
            slowest = max(slowest, float(self._field(answer, "wall_s", (int, float))))
        outputs = self._collect([call.name for call, _ in pairs], pairs[-1][0].suite)
        for call, result in pairs:
            self._check(call, outputs[call.name], result)
        return slowest

    def _forward(self, call: Call, *, count_ops: bool, late: bool = False) -> Mapping[str, Json]:
        message = {
            "op": "call",
            "id": call.name,
            "program": encode(self.reference.inputs),
            "seed": call.seed,
            "suite": call.suite,
            "params_seed": call.params_seed,
            "poison": call.poison,
            # Guards keep every allocation of a call alive, which the full size may not allow.
            "guard": self.variant != FULL,
            "count_ops": count_ops,
        }
        answer = self._ask(message, f"in forward() (variant {self.variant}, suite {call.suite})", call.suite)
        self._stop_on_error(answer, f"forward() (variant {self.variant}, suite {call.suite})", call.suite)
        mutated = self._field(answer, "mutated", list)
        if mutated:
            text = f"forward() changed its input {', '.join(map(str, mutated))} (variant {self.variant})"
            raise Stop(Failure(Status.REJECTED, Reason.MUTATED_INPUT, text), self.variant, call.suite)
        if self._field(answer, "overwritten", int):
            text = f"a kernel wrote outside its tensors (variant {self.variant}). A mask or an index is wrong."
            raise Stop(Failure(Status.FAILED, Reason.CRASH, text), self.variant, call.suite)
        if count_ops:
            self._policy(answer, call, late=late)
        return answer

    def _policy(self, answer: Mapping[str, Json], call: Call, *, late: bool) -> None:
        """The policy again on what really ran: fake tensors may have taken another branch."""
        host_ops = from_json(answer["host_ops"])
        launches = sum(int(count) for count in self._field(answer, "launches", dict).values())
        trace = self.found.trace
        traced = None if trace is None or self.judge.place.device == "cpu" else trace.host_ops
        if launches and traced is not None and not goes_beyond(host_ops, traced, same_size=self.variant == FULL):
            # The record at full size has decided; a share at the size of a variant says less.
            return
        if late:
            # What an earlier call captured in a CUDA graph is replayed without a launch.
            launches = max(launches, 1)
        inputs = replay(self.reference.inputs, self.reference.device, call.seed, call.suite)
        own, share = work_of(self.reference.model, inputs), self.judge.settings.min_kernel_share
        problem = policy_problem(launches, host_ops, self.host_ops, own, share)
        if problem is not None:
            raise Stop(problem, self.variant, call.suite)

    def _collect(self, names: Sequence[str], suite: str) -> Mapping[str, Json]:
        answer = self._ask({"op": "collect", "ids": list(names)}, "while its outputs were read", suite)
        self._stop_on_error(answer, f"reading the outputs (variant {self.variant})", suite)
        outputs: Mapping[str, Json] = self._field(answer, "outputs", dict)
        return outputs

    def _check(self, call: Call, output: Json, result: Expected) -> None:
        where = f"variant {self.variant}, suite {call.suite}"
        tensors = self._tensors(call, output, result, where)
        worst: Comparison | None = None
        for index, (got, exact, plain, own) in enumerate(
            zip(tensors, result.exact, result.plain, result.own, strict=True)
        ):
            label = f"{where}, output {index}" if len(tensors) > 1 else where
            truth = exact if plain.dtype.is_floating_point else plain
            limits = self._tolerance(plain.dtype)
            slack = self.slack if plain.dtype == torch.bfloat16 else 0.0
            compared = compare(got, truth, own, limits, plain.dtype, slack_ulps=slack, where=label)
            if compared.reason is Reason.WRONG_RESULT and self.precision is not Precision.IEEE:
                compared = self._as_ieee(call, index, got, truth) or compared
            self._note(call, compared)
            if compared.reason is not None:
                self._reject(call, compared, index, exact, self._tolerance(plain.dtype, Precision.IEEE))
            if worst is None or compared.rms_error > worst.rms_error:
                worst = compared
        if worst is not None and self.found.precision_class in (None, "exact"):
            self.found.precision_class = "exact" if worst.rms_error == 0.0 else self._class_when_right()

    def _as_ieee(self, call: Call, index: int, got: torch.Tensor, truth: torch.Tensor) -> Comparison | None:
        """The comparison under ieee limits, if it passes: a policy that allows coarser products forbids nothing."""
        if got.dtype != torch.float32:
            return None
        own = expected(self.reference, call.seed, call.params_seed, call.suite, Precision.IEEE).own[index]
        compared = compare(got, truth, own, self._tolerance(got.dtype, Precision.IEEE), got.dtype)
        return compared if compared.reason is None else None

    def _class_when_right(self) -> str:
        return "ieee" if self.precision is Precision.IEEE else self.precision.value

    def _note(self, call: Call, compared: Comparison) -> None:
        passed = compared.reason is None
        finite = compared.max_abs_error if compared.max_abs_error != float("inf") else None
        self.found.checks.append(
            CheckResult(self.variant, call.suite, compared.ratio, finite, passed, compared.message[:300])
        )

    def _reject(self, call: Call, compared: Comparison, index: int, exact: torch.Tensor, limits: Tolerance) -> None:
        reason, message = compared.reason, compared.message
        assert reason is not None
        if reason is Reason.WRONG_RESULT and exact.dtype.is_floating_point:
            looks = self._looks_like(call, compared, index, exact, limits)
            self.found.precision_class = looks
            if looks in _HINTS:
                reason, message = Reason.PRECISION, message + _HINTS[looks]
        elif reason is Reason.NON_FINITE and self._depends_on_poison(call):
            reason = Reason.UNWRITTEN
            message += ". The values change with what fresh memory held: part of the output is never written."
        raise Stop(Failure(Status.REJECTED, reason, message), self.variant, call.suite)

    def _looks_like(
        self, call: Call, compared: Comparison, index: int, exact: torch.Tensor, limits: Tolerance
    ) -> str | None:
        unit = scale_of(exact) or 1.0
        # Parameters of the reference must be those of this call again.
        again = expected(self.reference, call.seed, call.params_seed, call.suite, Precision.IEEE, extra=False)
        emulated = {
            precision: emulated_error(self.reference, call.seed, call.suite, precision)[index]
            for precision in (Precision.TF32, Precision.REDUCED)
        }
        crude = limits.admit / max(limits.rms, 1.0) * limits.element * again.own[index].largest
        if compared.max_abs_error > max(8.0 * emulated[Precision.REDUCED].largest, crude) * unit:
            return None
        return precision_class(
            compared.rms_error,
            again.own[index].rms * unit,
            limits,
            emulated[Precision.TF32].rms * unit,
            emulated[Precision.REDUCED].rms * unit,
        )

    def _depends_on_poison(self, call: Call) -> bool:
        """Whether other garbage in fresh memory gives another result."""
        contents = []
        for poison in ("nan", "garbage"):
            again = Call("again", call.suite, call.seed, call.params_seed, poison)
            self._forward(again, count_ops=False)
            output = self._collect(["again"], call.suite)["again"]
            contents.append([self._raw(described) for described in output["tensors"]])
        first, second = contents
        return len(first) != len(second) or not all(map(torch.equal, first, second))

    def _with_other_poison(self, call: Call) -> None:
        """The first call again on the other pattern: right with one and wrong with the other means unwritten memory."""
        other = "garbage" if call.poison == "nan" else "nan"
        again = Call(call.name, call.suite, call.seed, call.params_seed, other)
        self._forward(again, count_ops=False)
        output = self._collect([call.name], call.suite)[call.name]
        result = self._expected(call)
        assert result is not None
        try:
            self._check(again, output, result)
        except Stop as stop:
            if stop.failure.reason not in (Reason.WRONG_RESULT, Reason.NON_FINITE):
                raise
            reason = Reason.UNWRITTEN if self._depends_on_poison(call) else Reason.UNSTABLE
            text = f"right once, wrong when repeated on the same values: {stop.failure.message}"
            raise Stop(Failure(Status.REJECTED, reason, text), self.variant, call.suite) from stop

    def _tensors(self, call: Call, output: Json, result: Expected, where: str) -> list[torch.Tensor]:
        described = self._field(output, "tensors", list)
        if output["tree"] != result.tree or len(described) != len(result.plain):
            text = f"{where}: forward() returns {tree_text(output['tree'])}, expected {tree_text(result.tree)}"
            raise Stop(Failure(Status.REJECTED, Reason.STRUCTURE, text), self.variant, call.suite)
        return [
            self._tensor(call, row, plain, f"{where}, output {index}")
            for index, (row, plain) in enumerate(zip(described, result.plain, strict=True))
        ]

    def _tensor(self, call: Call, row: Json, plain: torch.Tensor, where: str) -> torch.Tensor:
        dtype = str(plain.dtype).removeprefix("torch.")
        problem: tuple[Reason, str] | None = None
        if not row["plain"]:
            problem = (Reason.STRUCTURE, f"{where}: expected a plain torch.Tensor, got {row['type']}")
        elif row["shape"] != list(plain.shape):
            problem = (Reason.SHAPE, f"{where}: shape {row['shape']}, expected {list(plain.shape)}")
        elif row["dtype"] != dtype:
            problem = (Reason.DTYPE, f"{where}: dtype {row['dtype']}, expected {dtype}")
        elif row["device"] != torch.device(self.judge.place.device).type:
            problem = (Reason.STRUCTURE, f"{where}: on device {row['device']}, expected the inputs' device")
        if problem is not None:
            raise Stop(Failure(Status.REJECTED, *problem), self.variant, call.suite)
        if row["stride"] != list(plain.stride()) and plain.numel() > 1:
            self.found.remark(f"output stride {row['stride']}, the reference's is {list(plain.stride())}")
        content = self._raw(row, plain.numel() * plain.element_size())
        return content.view(plain.dtype).reshape(plain.shape)

    def _raw(self, row: Json, size: int | None = None) -> torch.Tensor:
        """The bytes of an output on the judge's device; its file is removed, as results at full size fill a disk."""
        name = str(row["file"])
        path = self.child.scratch / name.replace("/", "_")
        try:
            size = path.lstat().st_size if size is None else size
            content = torch.empty(size, dtype=torch.uint8, device=self.judge.place.device)
            for start, part in read_parts(path, size):
                content[start : start + len(part)] = torch.frombuffer(part, dtype=torch.uint8)
            path.unlink()
        except (ChannelClosed, OSError) as error:
            raise self._nonsense(error) from error
        return content

    def _tolerance(self, dtype: torch.dtype, precision: Precision | None = None) -> Tolerance:
        contract, classes = self.task.contract, self.judge.settings.tolerances
        name = "exact" if contract.exact else contract.tolerance
        if name not in classes:
            raise UnsupportedTask(f"the contract names the tolerance {name}, judge.tolerances has {', '.join(classes)}")
        limits = classes[name]
        key = str(dtype).removeprefix("torch.")
        precision = precision or self.precision
        if key == "float32" and precision is not Precision.IEEE and precision.value in limits:
            key = precision.value
        if dtype.is_floating_point and key not in limits:
            raise UnsupportedTask(f"judge.tolerances.{name} has no limits for {key}")
        return limits[key] if key in limits else Tolerance(0.0, 0.0, 0.0)

    def _ask(self, message: Json, when: str, suite: str | None = None) -> Mapping[str, Json]:
        left = max(0.1, self.deadline - time.monotonic())
        return ask(self.child, message, left, when, self.variant, suite)

    def _stop_on_error(self, answer: Mapping[str, Json], when: str, suite: str | None) -> None:
        if "error" in answer:
            raise Stop(failure_of(answer["error"], when), self.variant, suite)

    def _field(self, answer: Json, name: str, kind: type | tuple[type, ...]) -> Json:
        if name not in answer or not isinstance(answer[name], kind):
            raise self._nonsense(TypeError(f"{name} is absent or of another type"))
        return answer[name]

    def _nonsense(self, error: Exception) -> Stop:
        text = f"the candidate's process answered what its protocol does not know: {error}"
        return Stop(Failure(Status.FAILED, Reason.CRASH, text), self.variant)


def _bytes(result: Expected) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in result.plain)
