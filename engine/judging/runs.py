"""One variant of one candidate: planned calls, their outputs collected and compared with the reference."""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from engine.canonical import Json
from engine.judging.allowance import Allowance
from engine.judging.answers import AnswerError, Described, Output, output
from engine.judging.inputs import SUITES, UnsupportedTask, derive_seed
from engine.judging.judge import Findings, Judge, Stop
from engine.judging.messages import Failure, is_memory
from engine.judging.numerics import Comparison, compare, precision_class, scale_of
from engine.judging.reference import tree_text
from engine.judging.references import FULL, Expected, emulated_error, expected
from engine.records import CheckResult, Precision, Reason, Status, Task
from engine.settings import Tolerance

SLOW_CALL_S = 4.0
"""A call that takes longer is slow: what follows it is made only as far as `VariantRun._goes_on` says."""

LARGE_OUTPUT_BYTES = 1 << 29
"""Above this size of one result only the first suite is run on the variant, and other poison only if there is no
other variant: each result costs a copy to the host and a pass in fp64."""

SCALED = "scaled"
"""The suite of large or small values, by the parity of a call's seed."""

FURTHER_DRAW = 3 << 20
"""The number of a draw that no planned call has."""

INTEGER = "integer"
"""The suite on which fp32 products and sums are exact in any order, so that PyTorch makes no error and TF32 a large
one. Run on operators of nothing else even where it is not asked for."""

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


class VariantRun(ABC):
    """All calls of one variant. Stops the judgement at the first failure."""

    @abstractmethod
    def _load(self, source: str) -> None:
        """Make the candidate ready for this variant."""

    @abstractmethod
    def _forward(self, call: Call, *, count_ops: bool, late: bool = False) -> float:
        """One call on its draw of inputs and parameters, whose results are held; seconds it took."""

    @abstractmethod
    def _collect(self, names: Sequence[str], suite: str) -> Mapping[str, Json]:
        """Held results by call: `tree`, and `tensors` with plain, type, dtype, shape, stride, device of each."""

    @abstractmethod
    def _raw(self, row: Json, size: int | None = None) -> torch.Tensor:
        """The bytes of one tensor of a collected result (`at` in its row), on the judge's device; `size` is what they
        should be."""

    @abstractmethod
    def _further_calls(self) -> None:
        """Calls between the first judged ones and the rest."""

    held_bytes = 0
    """Of results that may wait until the last call of a variant, to be collected then."""

    def __init__(self, judge: Judge, task: Task, variant: str, found: Findings, allowance: Allowance) -> None:
        self.judge, self.task, self.variant = judge, task, variant
        self.found, self.allowance = found, allowance
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
        first, size = held[0][0], result_bytes(held[0][1])
        large = size > LARGE_OUTPUT_BYTES
        held += [] if large else itertools.islice(usable, 1)
        slowest = self._perform(held, count_ops=True)
        held.clear()
        if large:
            self.found.remark(f"{self.variant}: one result takes {size / 2**30:.1f} GiB, further suites were left out")
        elif self._goes_on(slowest):
            self._rest(usable, first, size)
        if not large or len(self.judge.references.variants(self.task)) == 1:
            self._with_other_poison(first)

    def _goes_on(self, slowest: float) -> bool:
        """Whether further suites are run. A slow candidate does not choose its checks: without the time for them it is
        undecided, except at full size, when smaller variants have been through all of them."""
        if slowest <= SLOW_CALL_S:
            return True
        if self.variant == FULL and len(self.judge.references.variants(self.task)) > 1:
            self.found.remark(f"{self.variant}: a call takes {slowest:.0f} s here, further suites were left out")
            return False
        needed_s, left_s = slowest * len(self._plan()), self.allowance.left_s
        if needed_s > left_s:
            text = (
                f"a call takes {slowest:.0f} s here (variant {self.variant}): further suites need about {needed_s:.0f} "
                f"s, {left_s:.0f} s are left, and nothing can be said without them"
            )
            raise Stop(Failure(Status.UNDECIDED, Reason.UNSUPPORTED, text), self.variant)
        return True

    def _rest(self, usable: Iterator[tuple[Call, Expected]], first: Call, size: int) -> None:
        """The suites after the first two. Where results are small, they are held over all further calls and collected
        at the end: a ring of buffers behind the results of many calls shows."""
        if size > self.held_bytes // len(SUITES):
            self._further_calls()
            for number, pair in enumerate(usable):
                self._perform([pair], count_ops=number == 0, late=True)
            return
        again = self._call(first.suite, FURTHER_DRAW, first.poison)
        pairs = list(itertools.islice(usable, 1)) or [(again, result) for result in [self._expected(again)] if result]
        slowest = self._forward_all(pairs, count_ops=True, late=True)
        self._further_calls()
        if self._goes_on(slowest):
            more = list(usable)
            self._forward_all(more, count_ops=False, late=True)
            pairs += more
        self._compare_all(pairs)

    def _plan(self) -> list[Call]:
        settings = self.judge.settings
        suites = self.task.contract.suites or settings.suites
        if INTEGER not in suites and self.judge.references.full(self.task).work.linear:
            suites = (*suites, INTEGER)
        draws = [(number, suite, draw) for draw in range(settings.seeds) for number, suite in enumerate(suites)]
        if SCALED in suites and settings.seeds == len(self.judge.references.variants(self.task)) == 1:
            draws.append((1, SCALED, 1))
        return [
            self._call(suite, draw, "nan" if (number + draw) % 2 == 0 else "garbage") for number, suite, draw in draws
        ]

    def _call(self, suite: str, draw: int, poison: str) -> Call:
        seed = derive_seed(self.found.seed, self.variant, suite, draw)
        if suite == SCALED:
            # Variants take turns, so that a verdict sees large values and small ones.
            turn = self.judge.references.variants(self.task).index(self.variant) + draw + self.found.seed
            seed = seed & ~1 | turn & 1
        params = derive_seed(self.found.seed, self.variant, suite, draw, "params")
        return Call(f"{suite}{draw}", suite, seed, params, poison)

    def _expected(self, call: Call) -> Expected | None:
        """The reference's results; None for a suite that the operator does not admit (log of a negative, say)."""
        try:
            result = self.judge.references.expected(
                self.task, self.variant, call.seed, call.params_seed, call.suite, self.precision
            )
            if result_bytes(result) > LARGE_OUTPUT_BYTES:
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

    def _perform(self, pairs: Sequence[tuple[Call, Expected]], *, count_ops: bool, late: bool = False) -> float:
        slowest = self._forward_all(pairs, count_ops=count_ops, late=late)
        self._compare_all(pairs)
        return slowest

    def _forward_all(self, pairs: Sequence[tuple[Call, Expected]], *, count_ops: bool, late: bool) -> float:
        slowest = 0.0
        for number, (call, _) in enumerate(pairs):
            slowest = max(slowest, self._forward(call, count_ops=count_ops and number == 0, late=late))
        return slowest

    def _compare_all(self, pairs: Sequence[tuple[Call, Expected]]) -> None:
        if not pairs:
            return
        outputs = self._collect([call.name for call, _ in pairs], pairs[-1][0].suite)
        for call, result in pairs:
            self._check(call, outputs[call.name], result)

    def _check(self, call: Call, output: Json, result: Expected) -> None:
        where = f"variant {self.variant}, suite {call.suite}"
        tensors = self._tensors(call, self._parsed(output, call), result, where)
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
        try:
            if reason is Reason.WRONG_RESULT and exact.dtype.is_floating_point:
                looks = self._looks_like(call, compared, index, exact, limits)
                self.found.precision_class = looks
                if looks in _HINTS:
                    reason, message = Reason.PRECISION, message + _HINTS[looks]
            elif reason is Reason.NON_FINITE and self._depends_on_poison(call):
                reason = Reason.UNWRITTEN
                message += ". The values change with what fresh memory held: part of the output is never written."
        except RuntimeError as error:
            # Wrong it is; only why is not known.
            if not is_memory(error):
                raise
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

    def _parsed(self, value: Json, call: Call) -> Output:
        try:
            return output(value)
        except AnswerError as error:
            text = f"the result of forward() was described by what the protocol does not know: {error}"
            raise Stop(Failure(Status.FAILED, Reason.CRASH, text), self.variant, call.suite) from error

    def _depends_on_poison(self, call: Call) -> bool:
        """Whether other garbage in fresh memory gives another result."""
        contents = []
        for poison in ("nan", "garbage"):
            again = Call("again", call.suite, call.seed, call.params_seed, poison)
            self._forward(again, count_ops=False)
            collected = self._collect(["again"], call.suite)["again"]
            rows = self._parsed(collected, call).tensors
            contents.append([self._raw({"at": row.at}, _bytes_of(row)) for row in rows])
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

    def _tensors(self, call: Call, found: Output, result: Expected, where: str) -> list[torch.Tensor]:
        described = found.tensors
        if found.tree != result.tree or len(described) != len(result.plain):
            text = f"{where}: forward() returns {tree_text(found.tree)}, expected {tree_text(result.tree)}"
            raise Stop(Failure(Status.REJECTED, Reason.STRUCTURE, text), self.variant, call.suite)
        return [
            self._tensor(call, row, plain, f"{where}, output {index}")
            for index, (row, plain) in enumerate(zip(described, result.plain, strict=True))
        ]

    def _tensor(self, call: Call, row: Described, plain: torch.Tensor, where: str) -> torch.Tensor:
        dtype = str(plain.dtype).removeprefix("torch.")
        problem: tuple[Reason, str] | None = None
        if not row.plain:
            problem = (Reason.STRUCTURE, f"{where}: expected a plain torch.Tensor, got {row.type}")
        elif row.shape != tuple(plain.shape):
            problem = (Reason.SHAPE, f"{where}: shape {list(row.shape)}, expected {list(plain.shape)}")
        elif row.dtype != dtype:
            problem = (Reason.DTYPE, f"{where}: dtype {row.dtype}, expected {dtype}")
        elif row.device != torch.device(self.judge.place.device).type:
            problem = (Reason.STRUCTURE, f"{where}: on device {row.device}, expected the inputs' device")
        elif self.task.contract.strides == "contiguous" and not _usual_layout(row.shape, row.stride, plain):
            text = f"strides {list(row.stride)}, expected {list(plain.stride())} or a contiguous result"
            problem = (Reason.STRUCTURE, f"{where}: {text}")
        if problem is not None:
            raise Stop(Failure(Status.REJECTED, *problem), self.variant, call.suite)
        if row.stride != plain.stride() and plain.numel() > 1:
            self.found.remark(f"output stride {list(row.stride)}, the reference's is {list(plain.stride())}")
        content = self._raw({"at": row.at}, plain.numel() * plain.element_size())
        return content.view(plain.dtype).reshape(plain.shape)

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


def _usual_layout(shape: Sequence[int], stride: Sequence[int], plain: torch.Tensor) -> bool:
    """Whether strides are the reference's or contiguous; those of extents of one are free."""

    def meaningful(strides: Sequence[int]) -> list[int]:
        return [step for extent, step in zip(shape, strides, strict=True) if extent > 1]

    packed = torch.empty(tuple(shape), device="meta").stride()
    return plain.numel() == 0 or meaningful(stride) in (meaningful(plain.stride()), meaningful(packed))


def _bytes_of(row: Described) -> int:
    """What its file should have; 0 for a dtype that there is not."""
    dtype = getattr(torch, row.dtype, None) if row.dtype.isidentifier() else None
    return math.prod(row.shape) * dtype.itemsize if isinstance(dtype, torch.dtype) else 0


def result_bytes(result: Expected) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in result.plain)
