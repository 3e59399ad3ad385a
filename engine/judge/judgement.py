"""What the command and the Python API say of one candidate. docs/judge.md documents the keys: they are stable."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from engine import __version__
from engine.backends.estimate import PRODUCTS
from engine.confirmation import Confirmation
from engine.records import (
    CheckResult,
    Device,
    Facts,
    HostOp,
    Measurement,
    Mode,
    Precision,
    Ratio,
    Reason,
    Status,
    Timing,
    Trace,
    Verdict,
)

CANDIDATE = "candidate"
FLOOR = "floor"
"""Key of a measurement's settings."""


@dataclass(frozen=True, slots=True)
class Worst:
    """The comparison with the largest error ratio."""

    variant: str
    suite: str
    error_ratio: float


@dataclass(frozen=True, slots=True)
class HostCall:
    """A torch operation that one forward() ran outside its kernels, by aten name. `computes`: it does arithmetic."""

    name: str
    calls: int
    computes: bool


@dataclass(frozen=True, slots=True)
class KernelShare:
    """Share of the reference's own work that host operations leave to kernels, 0 to 1, counted in two ways."""

    flops: float | None
    """None for a reference without products: FLOPs of elementwise functions are conventions, not counts."""
    bytes: float | None


@dataclass(frozen=True, slots=True)
class Policy:
    """What the candidate was held to. `variants`: shapes beside the full one; `contract`: declared or derived."""

    precision: Precision
    host_ops: str
    variants: tuple[str, ...]
    contract: str


@dataclass(frozen=True, slots=True)
class Versions:
    engine: str
    judge: str
    torch: str
    triton: str


@dataclass(frozen=True, slots=True)
class Judgement:
    """The verdict on one candidate with its times and its work. None means unknown, never zero; times are in µs."""

    candidate: str
    reference: str
    status: Status
    reason: Reason | None
    message: str
    mode: Mode | None
    precision_class: str | None
    error_ratio: float | None
    """Worst ratio of rms errors, the candidate's to PyTorch's own, over all checks that have one."""
    variant: str | None
    """Shape variant and suite at which the judgement ended; None where it is correct or ended before."""
    suite: str | None
    worst: Worst | None
    checks: tuple[CheckResult, ...]
    timing: Timing | None
    baselines: tuple[Timing, ...]
    speedups: tuple[Ratio, ...]
    """Each baseline's time over the candidate's."""
    floor_us: float | None
    floor_source: str
    """What the floor is made of, at which rate, and where that comes from."""
    headroom: float | None
    """The candidate's time over the floor; of an estimate it says little (ADR 0007)."""
    below_floor: bool
    """The time is under nine tenths of the floor: a flag to look at, never a refusal."""
    timing_note: str
    launches: int | None
    """Kernel launches of one forward() at full size; None without a launch record."""
    launched_bytes: float | None
    """Bytes that the tensor arguments of those launches span."""
    host_ops: tuple[HostCall, ...] | None
    kernel_share: KernelShare | None
    remarks: tuple[str, ...]
    sandbox: tuple[str, ...]
    confirmation: Confirmation | None
    """What the last look at a correct candidate found, where it was asked for; status and reason are its own then."""
    policy: Policy
    backend: str
    device: str
    versions: Versions
    seed: int | None
    wall_s: float
    error: str | None
    """The engine's own failure: nothing is known of the candidate then, and the status is `undecided`."""

    @property
    def correct(self) -> bool:
        return self.status is Status.CORRECT


@dataclass(frozen=True, slots=True)
class Setting:
    """What all judgements of one call share."""

    reference: str
    facts: Facts
    policy: Policy
    device: Device
    remarks: tuple[str, ...]


def judgement(setting: Setting, candidate: str, verdict: Verdict, measured: Measurement | None, note: str) -> Judgement:
    """One candidate's judgement. `measured`: its times, if it was timed; `note`: why it was not."""
    trace = verdict.trace
    timings = measured.timings if measured else ()
    checks = tuple(map(_printable, verdict.checks))
    return dataclasses.replace(
        _unknown(setting, candidate),
        status=verdict.status,
        reason=verdict.reason,
        message=verdict.message,
        mode=verdict.mode,
        precision_class=verdict.precision_class,
        error_ratio=_finite(verdict.error_ratio),
        variant=verdict.variant,
        suite=verdict.suite,
        worst=_worst(checks),
        checks=checks,
        timing=measured.timing(CANDIDATE) if measured else None,
        baselines=tuple(timing for timing in timings if timing.who != CANDIDATE),
        speedups=measured.ratios if measured else (),
        floor_us=measured.floor_us if measured else None,
        floor_source=measured.settings[FLOOR] if measured and FLOOR in measured.settings else "",
        headroom=_headroom(measured),
        below_floor=measured.below_floor if measured else False,
        timing_note=measured.note if measured else note,
        launches=trace.launch_count if trace else None,
        launched_bytes=sum(launch.bytes * launch.count for launch in trace.launches) if trace else None,
        host_ops=tuple(map(_host_call, trace.host_ops)) if trace else None,
        kernel_share=kernel_share(trace, setting.facts),
        remarks=_remarks(setting, verdict),
        sandbox=verdict.sandbox,
        seed=verdict.seed,
        wall_s=verdict.wall_s,
    )


def confirmed(made: Judgement, confirmation: Confirmation) -> Judgement:
    """The judgement after a last look, which decides."""
    verdict = confirmation.verdict
    return dataclasses.replace(
        made,
        status=verdict.status,
        reason=verdict.reason,
        message=verdict.message,
        variant=verdict.variant,
        suite=verdict.suite,
        confirmation=dataclasses.replace(confirmation, verdict=_printable_verdict(verdict)),
        remarks=tuple(dict.fromkeys((*made.remarks, *verdict.remarks))),
    )


def broken(setting: Setting, candidate: str, error: str) -> Judgement:
    """The judgement where the engine itself failed on this candidate."""
    message = "nothing is known of this candidate: the judge itself failed"
    return dataclasses.replace(_unknown(setting, candidate), message=message, error=error)


def kernel_share(trace: Trace | None, facts: Facts) -> KernelShare | None:
    """What the candidate's host operations leave of the reference's work at full size; None where either is unknown."""
    if trace is None or facts.traced != "full" or not facts.costs:
        return None
    if trace.launch_count == 0:
        return KernelShare(0.0, 0.0)
    hosted = [op for op in trace.host_ops if op.compute]
    flops = sum(cost.count * cost.flops for cost in facts.costs)
    products = any(cost.kind in PRODUCTS for cost in facts.costs)
    return KernelShare(
        _left(sum(op.flops for op in hosted), flops) if products else None,
        _left(sum(op.bytes for op in hosted), sum(cost.count * cost.bytes for cost in facts.costs)),
    )


def _unknown(setting: Setting, candidate: str) -> Judgement:
    facts = setting.device.facts
    return Judgement(
        candidate=candidate,
        reference=setting.reference,
        status=Status.UNDECIDED,
        reason=None,
        message="",
        mode=None,
        precision_class=None,
        error_ratio=None,
        variant=None,
        suite=None,
        worst=None,
        checks=(),
        timing=None,
        baselines=(),
        speedups=(),
        floor_us=None,
        floor_source="",
        headroom=None,
        below_floor=False,
        timing_note="",
        launches=None,
        launched_bytes=None,
        host_ops=None,
        kernel_share=None,
        remarks=setting.remarks,
        sandbox=(),
        confirmation=None,
        policy=setting.policy,
        backend=setting.device.backend,
        device=setting.device.name,
        versions=Versions(__version__, facts["judge"], facts["torch"], facts["triton"]),
        seed=None,
        wall_s=0.0,
        error=None,
    )


def _headroom(measured: Measurement | None) -> float | None:
    mine = measured.timing(CANDIDATE) if measured else None
    return mine.median_us / measured.floor_us if mine and measured and measured.floor_us else None


def _left(done: float, whole: float) -> float | None:
    return 1.0 - min(1.0, done / whole) if whole > 0 else None


def _worst(checks: tuple[CheckResult, ...]) -> Worst | None:
    known = [Worst(c.variant, c.suite, c.error_ratio) for c in checks if c.error_ratio is not None]
    return max(known, key=lambda worst: worst.error_ratio, default=None)


def _host_call(op: HostOp) -> HostCall:
    return HostCall(op.name, op.count, op.compute)


def _remarks(setting: Setting, verdict: Verdict) -> tuple[str, ...]:
    of_trace = verdict.trace.remarks if verdict.trace else ()
    untraced = (f"no launch record: {verdict.trace_error}",) if verdict.trace_error else ()
    return tuple(dict.fromkeys((*setting.remarks, *verdict.remarks, *of_trace, *untraced)))


def _printable_verdict(verdict: Verdict) -> Verdict:
    checks = tuple(map(_printable, verdict.checks))
    return dataclasses.replace(verdict, error_ratio=_finite(verdict.error_ratio), checks=checks)


def _printable(check: CheckResult) -> CheckResult:
    return dataclasses.replace(
        check, error_ratio=_finite(check.error_ratio), max_abs_error=_finite(check.max_abs_error)
    )


def _finite(value: float | None) -> float | None:
    """JSON has no infinity: an error that large is no number to compare with."""
    return value if value is not None and math.isfinite(value) else None
