"""A judged candidate's hardware counters: its plan at full size in an executor, on inputs drawn as those timed."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from pathlib import Path

from engine.canonical import Json, digest
from engine.codec import encode
from engine.judging.executors import ExecutorFault
from engine.judging.inputs import derive_seed
from engine.judging.lone_call import LoneCall, LoneLaunch
from engine.judging.planned_call import PlannedCall
from engine.judging.replayed import POISON, NotReplayable, ReplayedVariant, image_of, settle
from engine.judging.runs import Call
from engine.records import Precision
from profilers.cupti import NoCounters
from profilers.seam import Workload


class CountedReplay(ReplayedVariant):
    """One candidate ready to be counted on one set of buffers, aligned as for the clock."""

    def open(self) -> None:
        """Load the plan and write inputs and parameters."""
        self._load("")
        seed = secrets.randbits(62)
        params = derive_seed(seed, "params")
        call = Call("counted", "nominal", seed, params, "garbage")
        self.fill_state(call)
        self.replay.fill(0, POISON[call.poison])
        self.replay.write_inputs(0, self._inputs(call), first=False)
        settle(self.replay.memory)

    def count(self, counters: Sequence[str], limit: int, *, cold: bool) -> Json:
        """A `Counted`. NoCounters where this machine gives none, Stop or NotReplayable where the call fails."""
        message = {"op": "count", "set": 0, "counters": list(counters), "limit": limit, "cold": cold}
        try:
            return self.executor.ask(message, self._left())
        except ExecutorFault as fault:
            if fault.kind == NoCounters.__name__:
                raise NoCounters(str(fault)) from fault
            raise self._stop(fault, "while its counters were read", None) from fault

    def workload(self, *, cold: bool) -> Workload:
        """What is counted, to be compared with what is timed."""
        contract = self.task.contract
        key = digest(encode(self.compiled.plan))
        return Workload(key, self.variant, contract.dtype or "", self.precision.value, cold)

    def write_request(self, file: Path) -> str:
        """Write what a process that makes this call alone needs; the module that reads it. NotReplayable where no
        kernel of the candidate's is launched."""
        if not self.symbols():
            raise NotReplayable("its call launches no kernel of its own")
        try:
            call: LoneCall | PlannedCall = self.lone_call()
        except NotReplayable:
            call = self.planned_call()
        file.write_text(json.dumps(encode(call)))
        return type(call).__module__

    def lone_call(self) -> LoneCall:
        """The steady call for a process without PyTorch; NotReplayable where host operations are part of it."""
        plan, keys = self.compiled.plan, self.compiled.keys
        if any(step.call is not None for step in plan.steady.steps):
            raise NotReplayable("its call has host operations, which a process without PyTorch cannot make")
        offsets = self.replay.layout.offsets[0]
        launches, choices = [], iter(self.choices)
        for step in plan.steady.steps:
            if step.launch:
                launch = step.launch[next(choices) if len(step.launch) > 1 else 0]
                key = keys[launch.kernel]
                places = tuple(
                    offsets[argument.buffer] if argument.kind == "pointer" else -1 for argument in launch.arguments
                )
                if key is None or any(
                    place < 0 and argument.kind == "pointer"
                    for place, argument in zip(places, launch.arguments, strict=True)
                ):
                    raise NotReplayable("one of its buffers is made by a host operation")
                launches.append(LoneLaunch(key, launch.grid, launch.arguments, places))
        used = {launch.image for launch in launches}
        images = tuple(image_of(kernel) for key, kernel in self.compiled.kernels.items() if key in used)
        token, size = self.executor.shared_memory
        return LoneCall(token, min(size, self.replay.layout.bytes), images, tuple(launches))

    def planned_call(self) -> PlannedCall:
        """The whole plan for a process with PyTorch."""
        token, size = self.executor.shared_memory
        compiled = self.compiled
        images = tuple(map(image_of, compiled.kernels.values()))
        offsets, taken = self.replay.layout.offsets[0], min(size, self.replay.layout.bytes)
        tf32 = self.precision is not Precision.IEEE
        return PlannedCall(token, taken, compiled.plan, compiled.keys, images, offsets, self.choices, tf32)

    def symbols(self) -> tuple[str, ...]:
        """Names of the candidate's own kernels in the order of their launches."""
        steps = [step for step in self.compiled.plan.steady.steps if step.launch]
        choices = iter(self.choices)
        chosen = [step.launch[next(choices) if len(step.launch) > 1 else 0] for step in steps]
        keys = [self.compiled.keys[launch.kernel] for launch in chosen]
        return tuple(self.compiled.kernels[key].symbol for key in keys if key is not None)

    def _layout_seed(self) -> int | None:
        return None

    def _sets(self) -> int:
        return 1
