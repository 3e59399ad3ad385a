"""Times on an NPU: the durations that torch_npu's profiler gives each device task, which is how triton-ascend's own
`do_bench_npu` times; versions of that return µs or ms, so its table is read here instead. Never run on an NPU."""

from __future__ import annotations

import dataclasses
import math
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.backends.npu_child import Npu, NpuChild
from engine.codec import encode
from engine.judging import timing
from engine.judging.children import ChildEnded, ChildTimeout
from engine.judging.gpu_state import lease
from engine.judging.inputs import UnsupportedTask, derive_seed
from engine.judging.references import Full, References
from engine.records import Measurement, Ratio, ScoreKind, Task, Timing
from profilers.ascend_tool import texts
from profilers.msprof import KERNEL_DETAILS, OpTask, parse_tasks

EAGER = "eager"
CANDIDATE = "candidate"
TRACED_FOR = "sm_90"
"""What community Triton is told to trace for; nothing is compiled for it."""

AS_CANDIDATE = "\n\nModelNew = Model\n"
"""Makes a reference a candidate of its own."""


class LostSide(Exception):
    """A side that cannot be timed any further."""

    def __init__(self, who: str, why: str) -> None:
        super().__init__(f"{who}: {why}")
        self.who = who


@dataclass(frozen=True, slots=True)
class _Side:
    who: str
    child: NpuChild
    full: Full
    seed: int


def call_times(tasks: Sequence[OpTask], calls: int, warm_up: int) -> list[float]:
    """Microseconds of each call after the first `warm_up`: the sum over its device tasks, kernels or not. ValueError
    where tasks lack a duration or do not divide among the calls."""
    if not tasks or len(tasks) % calls:
        raise ValueError(f"expected a multiple of {calls} device tasks for {calls} equal calls, found {len(tasks)}")
    durations = [task.duration_us for task in tasks]
    known = [us for us in durations if us is not None]
    if len(known) < len(durations):
        raise ValueError(f"{len(durations) - len(known)} of {len(durations)} device tasks have no duration")
    each = len(tasks) // calls
    return [math.fsum(known[start : start + each]) for start in range(warm_up * each, len(known), each)]


class NpuClock:
    """Times sides in blocks of random order, each in a process of its own, alone on the NPU."""

    def __init__(self, npu: Npu, references: References, lock: Path) -> None:
        self.npu, self.references, self.lock = npu, references, lock

    def measure(self, task: Task, source: str | None, incumbent: str | None) -> Measurement:
        """Paired times at full size; a side that fails is left out with a note. Without a source the baseline alone."""
        try:
            full = self.references.full(task)
        except UnsupportedTask as error:
            return Measurement((), (), None, self._settings(), str(error), passing=True)
        sources = {CANDIDATE: source, "incumbent": incumbent, EAGER: task.source + AS_CANDIDATE}
        wanted = {who: text for who, text in sources.items() if text is not None}
        notes: list[str] = []
        with lease(self.lock):
            while wanted:
                try:
                    return self._paired(wanted, full, notes)
                except LostSide as lost:
                    notes.append(str(lost)[:400])
                    wanted = {who: text for who, text in wanted.items() if who != lost.who}
        return Measurement((), (), None, self._settings(), "; ".join(notes), passing=True)

    def _paired(self, sources: Mapping[str, str], full: Full, notes: Sequence[str]) -> Measurement:
        sides: dict[str, _Side] = {}
        try:
            seed = secrets.randbits(62)
            for who, source in sources.items():
                side = _Side(who, NpuChild(self.npu), full, seed)
                sides[who] = side
                self._load(side, source)
            settings = self.npu.settings
            protocol = timing.Protocol(
                settings.min_blocks, settings.max_blocks, 0.0, settings.ratio_halfwidth, settings.timing_budget_s
            )
            samplers = {who: self._sampler(side) for who, side in sides.items()}
            paired = timing.run_paired(
                samplers, protocol, seed=derive_seed(seed, "order") & 0xFFFFFFFF, now=time.monotonic
            )
        finally:
            for side in sides.values():
                side.child.__exit__(None, None, None)
        return self._measurement(paired, notes)

    def _load(self, side: _Side, source: str) -> None:
        side.child.ready(self.npu.settings.start_s)
        seed = derive_seed(side.seed, "init")
        arithmetic = {"target": TRACED_FOR, "tf32": False}
        message = {"op": "load", "source": source, "init": side.full.init, "params": [], "seed": seed, **arithmetic}
        self._ask(side, message)

    def _sampler(self, side: _Side) -> timing.Sampler:
        def block(_: float) -> list[float]:
            folder = side.child.scratch / f"block-{secrets.token_hex(4)}"
            warm_up, active = self.npu.settings.warm_up, self.npu.settings.active
            message = {
                "op": "time",
                "program": encode(side.full.program),
                "seed": derive_seed(side.seed, "inputs"),
                "warm_up": warm_up,
                "active": active,
                "folder": str(folder),
            }
            self._ask(side, message)
            tasks = [task for text in texts(folder, f"{KERNEL_DETAILS}*.csv").values() for task in parse_tasks(text)]
            try:
                return call_times(tasks, warm_up + active, warm_up)
            except ValueError as error:
                raise LostSide(side.who, f"{KERNEL_DETAILS}: {error}") from error

        return block

    def _ask(self, side: _Side, message: Mapping[str, object]) -> None:
        try:
            answer = side.child.ask(message, self.npu.limits.run_s)
        except (ChildEnded, ChildTimeout) as error:
            raise LostSide(side.who, f"{error}: {' '.join(side.child.output(200).split())}") from error
        if "error" in answer:
            raise LostSide(side.who, str(answer["error"])[:300])

    def _measurement(self, paired: timing.Paired, notes: Sequence[str]) -> Measurement:
        times = tuple(
            Timing(who, _kind(who), found.value, found.lo, found.hi, found.n) for who, found in paired.medians.items()
        )
        alone = CANDIDATE not in paired.medians
        ratios = () if alone else tuple(Ratio(over, r.value, r.lo, r.hi, r.n) for over, r in paired.ratios.items())
        settings = {**self._settings(), "blocks": str(paired.blocks), "stopped": paired.stopped}
        return Measurement(times, ratios, None, settings, "; ".join(notes), passing=bool(notes))

    def _settings(self) -> dict[str, str]:
        asked = dataclasses.asdict(self.npu.settings)
        kept = {name: str(asked[name]) for name in ("device", "warm_up", "active")}
        return {"protocol": "device durations from torch_npu's profiler, one process a side", **kept}


def _kind(who: str) -> ScoreKind:
    """The baseline's process runs the user's own file; a candidate's owns the clock that it reads."""
    return ScoreKind.MEASURED if who == EAGER else ScoreKind.UNVERIFIED
