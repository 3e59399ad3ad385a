"""One variant of one candidate run by its own Python in a confined process: in Triton's interpreter, or on a device as
the fallback for what no launch plan describes. What the process answers is a claim."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch

from engine.canonical import Json
from engine.codec import encode
from engine.judging.allowance import Allowance
from engine.judging.answers import AnswerError, Called, built, called, collected, raised_in
from engine.judging.children import Child
from engine.judging.inputs import derive_seed, replay
from engine.judging.judge import Findings, Judge, Stop, ask
from engine.judging.messages import Failure, failure_of, state_problem
from engine.judging.policy import Work, goes_beyond, policy_problem
from engine.judging.references import FULL, init_json, state_shapes, work_of
from engine.judging.runs import Call, VariantRun
from engine.judging.wire import ChannelClosed, read_parts
from engine.records import Precision, Reason, Status, Task

UNJUDGED = {"cpu": (10, 48), "cuda": (32, 96)}
"""Least and most calls that nobody looks at, made between two judged ones: a result that goes wrong after some number
of calls shows in the next."""
UNJUDGED_S = {"cpu": 0.2, "cuda": 0.5}
"""For these calls; the least number of them may take four times as long."""

Answer = TypeVar("Answer")


HELD_BYTES = 256 << 20
"""Of results that a process keeps until the last call of a variant."""


class OwnProcessVariant(VariantRun):
    """All calls of one variant in the process that the candidate owns."""

    held_bytes = HELD_BYTES

    def __init__(
        self, judge: Judge, child: Child, task: Task, variant: str, host_ops: str, found: Findings, allowance: Allowance
    ) -> None:
        super().__init__(judge, task, variant, found, allowance)
        self.child, self.host_ops = child, host_ops
        self._calls = 0
        self._work: Work | None = None

    def _load(self, source: str) -> None:
        reference = self.reference
        for index, spec in enumerate(reference.params):
            if spec.kind == "keep":
                flat = reference.kept[spec.name].detach().contiguous().cpu().reshape(-1)
                content = flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
                self._hand_over(f"param_{index}.bin", content)
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
        answer = self._ask(message, "while ModelNew was built", f"building ModelNew (variant {self.variant})", built)
        self._untouched(answer.replaced, None)
        problem = state_problem(state_shapes(reference), {name: list(shape) for name, shape in answer.state.items()})
        if problem is not None:
            raise Stop(Failure(Status.FAILED, Reason.STATE_MISMATCH, problem), self.variant)

    def _hand_over(self, name: str, content: bytes) -> None:
        """Write a file into the candidate's folder, where a link may bear its name already and lead elsewhere."""
        path = self.child.scratch / name
        try:
            path.unlink(missing_ok=True)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise self._nonsense(error) from error
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)

    def _further_calls(self) -> None:
        """Calls in a number that the candidate cannot know, on inputs that no judged call has."""
        kind = torch.device(self.judge.place.device).type
        least, most = UNJUDGED[kind]
        draw = derive_seed(self.found.seed, self.variant, "unjudged")
        message = {
            "op": "repeat",
            "program": encode(self.reference.inputs),
            "seed": draw,
            "suite": "nominal",
            "least": least,
            "count": least + draw % (most - least + 1),
            "seconds": UNJUDGED_S[kind],
        }
        what = f"repeated calls of forward() (variant {self.variant})"
        self._ask(message, f"in {what}", what, lambda answer: None)

    def _forward(self, call: Call, *, count_ops: bool, late: bool = False) -> float:
        # Few operations reach the interpreter's process, so that all calls can be counted there.
        late = late or not count_ops
        count_ops = count_ops or self.judge.place.device == "cpu"
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
            "reuse": self._calls % 2 == 1,
            "backwards": self._calls % 4 >= 2,
        }
        self._calls += 1
        what = f"forward() (variant {self.variant}, suite {call.suite})"
        answer = self._ask(message, f"in {what}", what, called, call.suite)
        self._untouched(answer.replaced, call.suite)
        changed = [f"input {position}" for position in answer.mutated[:1]]
        changed += [f"module's {', '.join(answer.rewritten)}"] if answer.rewritten else []
        if changed:
            text = f"forward() changed its {' and its '.join(changed)} (variant {self.variant})"
            raise Stop(Failure(Status.REJECTED, Reason.MUTATED_INPUT, text[:400]), self.variant, call.suite)
        if answer.overwritten:
            text = f"a kernel wrote outside its tensors (variant {self.variant}). A mask or an index is wrong."
            raise Stop(Failure(Status.FAILED, Reason.CRASH, text), self.variant, call.suite)
        if count_ops:
            self._policy(answer, call, late=late)
        return answer.wall_s

    def _untouched(self, replaced: Sequence[str], suite: str | None) -> None:
        if replaced:
            text = f"the candidate replaces {', '.join(replaced[:4])}, which is not its own"
            raise Stop(Failure(Status.REJECTED, Reason.FORBIDDEN, text), self.variant, suite)

    def _policy(self, answer: Called, call: Call, *, late: bool) -> None:
        """The policy again on what really ran: fake tensors may have taken another branch."""
        host_ops, launches = answer.host_ops, answer.launches
        trace = self.found.trace
        traced = None if trace is None or self.judge.place.device == "cpu" else trace.host_ops
        if launches and traced is not None and not goes_beyond(host_ops, traced, same_size=self.variant == FULL):
            # The record at full size has decided; a share at the size of a variant says less.
            return
        if late:
            # What an earlier call captured in a CUDA graph is replayed without a launch.
            launches = max(launches, 1)
        if self._work is None:
            inputs = replay(self.reference.inputs, self.reference.device, call.seed, call.suite)
            self._work = work_of(self.reference.model, inputs)
        problem = policy_problem(launches, host_ops, self.host_ops, self._work, self.judge.settings.min_kernel_share)
        if problem is not None:
            raise Stop(problem, self.variant, call.suite)

    def _collect(self, names: Sequence[str], suite: str) -> Mapping[str, Json]:
        message = {"op": "collect", "ids": list(names)}
        what = f"reading the outputs (variant {self.variant})"
        return self._ask(message, "while its outputs were read", what, lambda answer: collected(answer, names), suite)

    def _raw(self, row: Json, size: int | None = None) -> torch.Tensor:
        """The bytes of an output on the judge's device; its file is removed, as results at full size fill a disk."""
        path = self.child.scratch / str(row["at"])
        try:
            there = path.lstat().st_size
            if size is not None and there != size:
                raise ChannelClosed(f"an output of {there} bytes where {size} were described")
            size = there
            content = torch.empty(size, dtype=torch.uint8, device=self.judge.place.device)
            for start, part in read_parts(path, size):
                content[start : start + len(part)] = torch.frombuffer(part, dtype=torch.uint8)
            path.unlink()
        except (ChannelClosed, OSError) as error:
            raise self._nonsense(error) from error
        return content

    def _ask(
        self,
        message: Json,
        when: str,
        what: str,
        parse: Callable[[Mapping[str, Json]], Answer],
        suite: str | None = None,
    ) -> Answer:
        """One command and its answer, parsed; an exception in the process ends the judgement as a failure of `what`."""
        left_s = self.allowance.left_s
        if left_s < self.allowance.seconds:
            when += f" (of the {self.allowance.seconds:g} s that all calls together may take)"
        answer = ask(self.child, message, left_s, when, self.variant, suite)
        try:
            raised = raised_in(answer)
            if raised is None:
                return parse(answer)
        except AnswerError as error:
            raise self._nonsense(error) from error
        raise Stop(failure_of(raised.as_mapping(), what), self.variant, suite)

    def _nonsense(self, error: Exception) -> Stop:
        text = f"the candidate's process answered what its protocol does not know: {error}"
        return Stop(Failure(Status.FAILED, Reason.CRASH, text), self.variant)
