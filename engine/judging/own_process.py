"""One variant of one candidate run by its own Python in a confined process: in Triton's interpreter, or on a device as
the fallback for what no launch plan describes. What the process answers is a claim."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import torch

from engine.canonical import Json
from engine.codec import encode
from engine.judging.children import Child
from engine.judging.host_ops import from_json
from engine.judging.inputs import derive_seed, replay
from engine.judging.judge import Findings, Judge, Stop, ask
from engine.judging.messages import Failure, failure_of, state_problem
from engine.judging.policy import goes_beyond, policy_problem
from engine.judging.references import FULL, init_json, state_shapes, work_of
from engine.judging.runs import Call, VariantRun
from engine.judging.wire import ChannelClosed, read_parts
from engine.records import Precision, Reason, Status, Task

UNJUDGED = {"cpu": (1, 3), "cuda": (32, 96)}
"""Least and most calls that nobody looks at, made between two judged ones: a result that goes wrong after some number
of calls shows in the next. Few in the interpreter, where each may take a second."""
UNJUDGED_S = 0.5


class OwnProcessVariant(VariantRun):
    """All calls of one variant in the process that the candidate owns."""

    def __init__(
        self, judge: Judge, child: Child, task: Task, variant: str, host_ops: str, found: Findings, deadline: float
    ) -> None:
        super().__init__(judge, task, variant, found, deadline)
        self.child, self.host_ops = child, host_ops

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

    def _further_calls(self) -> None:
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

    def _forward(self, call: Call, *, count_ops: bool, late: bool = False) -> float:
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
        rewritten = self._field(answer, "rewritten", list)
        if rewritten:
            text = f"forward() changed the module's {', '.join(map(str, rewritten))} (variant {self.variant})"
            raise Stop(Failure(Status.REJECTED, Reason.MUTATED_INPUT, text[:400]), self.variant, call.suite)
        if self._field(answer, "overwritten", int):
            text = f"a kernel wrote outside its tensors (variant {self.variant}). A mask or an index is wrong."
            raise Stop(Failure(Status.FAILED, Reason.CRASH, text), self.variant, call.suite)
        if count_ops:
            self._policy(answer, call, late=late)
        return float(self._field(answer, "wall_s", (int, float)))

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
        for output in outputs.values():
            self._field(output, "tensors", list)
        return outputs

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
