"""The CPU back-end: numbers from Triton's interpreter, resources by compiling for a declared chip, times estimated."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from engine.backends.answers import algebra_answer, static_answer, trace_answer
from engine.backends.ceilings import known_rates
from engine.backends.estimate import Rates, candidate_us, eager_us, rates
from engine.backends.floors import Floor, floor, stated
from engine.backends.ladder import Answer, metric_values
from engine.confirmation import Confirmation
from engine.errors import ConfigError, Fault
from engine.judging.client import JUDGE_VERSION, JudgeClient
from engine.records import (
    Device,
    Judged,
    Measurement,
    MetricValue,
    Operator,
    Precision,
    Ratio,
    ScoreKind,
    Timing,
    Trace,
    Verdict,
)
from engine.settings import BackendSettings, CpuSettings, Settings

VERSIONED = ("torch", "triton", "numpy")
ESTIMATE_VERSION = "1"
"""Part of the device's facts: raise it when the formula changes."""


class CpuBackend:
    """Needs no device. `root` is the folder that holds the engine package, `scratch` a writable folder."""

    def __init__(self, settings: Settings, root: Path, scratch: Path) -> None:
        self._settings = settings
        self._backend = settings.backends[settings.backend]
        self._cpu = _cpu_settings(self._backend, settings.backend)
        self.device = describe_device(settings.backend, self._backend)
        self._judge = JudgeClient(settings, "cpu", root, scratch)

    def judge(self, operator: Operator, source: str) -> Verdict:
        """Check one candidate on the small variants; its launches at full size are recorded, its kernels compiled."""
        return self._judge.judge(operator, source)

    def measure(self, operator: Operator, candidate: Judged | None, incumbent: Judged | None) -> Measurement:
        """Estimated times of the candidate, the incumbent and the eager reference: n is 0, intervals are points."""
        rate = self._rates(operator)
        times = {"eager": eager_us(operator.facts, rate)} if operator.facts.costs else {}
        notes = [] if times else ["eager is not estimated: the reference's operations are unknown"]
        for who, judged in (("candidate", candidate), ("incumbent", incumbent)):
            if judged is not None and judged.trace is not None:
                times[who] = candidate_us(judged.trace, operator.facts, rate)
            elif judged is not None:
                notes.append(f"{who} is not estimated: it has no launch record")
        ratios = [_ratio(who, us / times["candidate"]) for who, us in times.items() if "candidate" in times]
        made = Measurement(
            timings=tuple(Timing(who, ScoreKind.ESTIMATED, us, us, us, 0) for who, us in times.items()),
            ratios=tuple(ratio for ratio in ratios if ratio.over != "candidate"),
            floor_us=None,
            settings={
                "protocol": "estimate: max(flops / rate, bytes / bandwidth) per launch, plus overhead",
                "precision": self._precision(operator).value,
                "chip": self._backend.hardware_source,
                "launch_overhead_us": f"{self._cpu.launch_overhead_us:g}",
            },
            note="; ".join(notes),
            # A longer limit on tracing may give one, and is no part of this time's key.
            passing=any(judged is not None and judged.trace is None for judged in (candidate, incumbent)),
        )
        return stated(made, self._floor(operator))

    def confirm(self, operator: Operator, winner: Judged) -> Confirmation:
        """In the interpreter, at small shapes; an estimate is the same each time and is not made again."""
        return self._judge.confirm(operator.task, self._precision(operator), winner, None)

    def profile(self, operator: Operator, candidate: Judged | None, metrics: Sequence[str]) -> tuple[MetricValue, ...]:
        """Resources of the compiled kernels, the launch record and algebra; counters do not exist here."""
        trace = None if candidate is None else candidate.trace
        answers = [self._answer(name, operator, trace) for name in self._backend.profilers]
        return metric_values(metrics, self._settings.metrics, answers)

    def _answer(self, name: str, operator: Operator, trace: Trace | None) -> Answer:
        if name == "static":
            return static_answer(trace, self._backend.target)
        if name == "trace":
            return trace_answer(trace, operator.facts, self._backend.hardware["sm_count"])
        if name == "algebra":
            rate = self._rates(operator)
            time_us = eager_us(operator.facts, rate) if trace is None else candidate_us(trace, operator.facts, rate)
            found = self._floor(operator)
            return algebra_answer(operator.facts, found.us if found else None, time_us if time_us > 0 else None)
        return Answer(name, (), "this back-end has no such profiler")

    def _floor(self, operator: Operator) -> Floor | None:
        # The declared chip is not this machine: what was measured here says nothing of it.
        known = known_rates(self._backend.hardware, self._backend.hardware_source)
        return floor(operator.facts, known, self._precision(operator))

    def _rates(self, operator: Operator) -> Rates:
        overhead_us = self._cpu.launch_overhead_us
        return rates(self._backend.hardware, operator.facts.dtype, self._precision(operator), overhead_us)

    def _precision(self, operator: Operator) -> Precision:
        return operator.task.contract.precision or self._settings.judge.precision

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._judge.close()


def _ratio(over: str, value: float) -> Ratio:
    return Ratio(over, value, value, value, 0)


def _cpu_settings(backend: BackendSettings, name: str) -> CpuSettings:
    if backend.cpu is None:
        raise ConfigError([Fault(f"backends.{name}.cpu", "expected the CPU section, got null")])
    return backend.cpu


def describe_device(name: str, backend: BackendSettings) -> Device:
    """The declared chip and the versions that verdicts depend on."""
    facts: Mapping[str, str] = {
        "python": platform.python_version(),
        **{package: importlib.metadata.version(package) for package in VERSIONED},
        "judge": JUDGE_VERSION,
        "estimate": ESTIMATE_VERSION,
        "chip": backend.hardware_source,
    }
    return Device(name, f"interpreter for {backend.target}", facts, backend.hardware)
