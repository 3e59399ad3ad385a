"""The records that parts of the engine exchange: frozen, JSON-able by `engine.codec`, free of behaviour.

Times are microseconds (`_us`) or seconds (`_s`), sizes bytes, shares percent (`_pct`). None means unknown, never zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Status(StrEnum):
    """What the judge says of a candidate."""

    CORRECT = "correct"
    REJECTED = "rejected"
    """It ran, and what it did is not acceptable: wrong numbers, shape, policy."""
    FAILED = "failed"
    """It did not get that far: syntax, compile error, exception, crash, time-out."""
    UNDECIDED = "undecided"
    """The judge cannot know here, e.g. a bf16 dot in the interpreter."""


class Reason(StrEnum):
    """Why a candidate is not correct. Documented with an example each in docs/verdicts.md."""

    SYNTAX = "syntax"
    FORBIDDEN = "forbidden"
    NO_KERNEL = "no_kernel"
    NO_MODEL = "no_model"
    STATE_MISMATCH = "state_mismatch"
    COMPILE = "compile"
    RESOURCES = "resources"
    EXCEPTION = "exception"
    CRASH = "crash"
    TIMEOUT = "timeout"
    OUT_OF_MEMORY = "out_of_memory"
    STRUCTURE = "structure"
    DTYPE = "dtype"
    SHAPE = "shape"
    NON_FINITE = "non_finite"
    WRONG_RESULT = "wrong_result"
    PRECISION = "precision"
    UNWRITTEN = "unwritten"
    UNSTABLE = "unstable"
    MUTATED_INPUT = "mutated_input"
    HOST_OP = "host_op"
    NOT_LAUNCHED = "not_launched"
    REQUIREMENT = "requirement"
    INTERPRETER_LIMIT = "interpreter_limit"
    UNSUPPORTED = "unsupported"
    DEGENERATE_TASK = "degenerate_task"


class Mode(StrEnum):
    """How a candidate was run: from its launch plan, by its own Python on a device, or in Triton's interpreter."""

    PLAN = "plan"
    FALLBACK = "fallback"
    INTERPRETER = "interpreter"


class ScoreKind(StrEnum):
    """Kinds of time; they never rank together."""

    MEASURED = "measured"
    UNVERIFIED = "unverified"
    ESTIMATED = "estimated"


class Precision(StrEnum):
    """Declared arithmetic of fp32 products; the baseline runs under the same one."""

    IEEE = "ieee"
    TF32 = "tf32"
    REDUCED = "reduced"


@dataclass(frozen=True, slots=True)
class Contract:
    """What a task promises and demands; the YAML beside a task file, or what was derived for a foreign one."""

    dtype: str = "float32"
    precision: Precision | None = None
    """None: judge.precision decides."""
    tolerance: str = "default"
    """A class of judge.tolerances."""
    suites: tuple[str, ...] = ()
    """Input suites; empty: judge.suites."""
    variants: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Shape variants by name: module constants replaced; `full` is the file as it stands and always there."""
    host_ops: str | None = None
    """none, library or any; None: judge.host_ops decides."""
    strides: str = "contiguous"
    exact: bool = False
    """Outputs must be bit-identical (gather, copy, min/max)."""


@dataclass(frozen=True, slots=True)
class Task:
    """A reference operator in KernelBench form. `task_hash` covers source and contract."""

    task_id: str
    name: str
    source: str
    contract: Contract
    contract_origin: str
    """declared, or derived: how `contract.variants` came about."""
    task_hash: str
    level: int | None = None
    number: int | None = None


class LintCode(StrEnum):
    """What makes a task prove little. Documented in docs/tasks.md."""

    NON_FINITE = "non_finite"
    CONSTANT_OUTPUT = "constant_output"
    ROW_CONSTANT = "row_constant"
    ZERO_OUTPUT = "zero_output"
    INSENSITIVE_TO_INPUT = "insensitive_to_input"
    INSENSITIVE_TO_PARAMETER = "insensitive_to_parameter"
    RETURNS_INPUT = "returns_input"
    NON_NEGATIVE_INPUTS = "non_negative_inputs"
    STOCHASTIC = "stochastic"
    SINGLE_SHAPE = "single_shape"
    NO_ODD_SHAPE = "no_odd_shape"


class LintSeverity(StrEnum):
    """How much a fault of a task costs."""

    ERROR = "error"
    """The judge accepts a wrong kernel under every suite, so an accepted one proves nothing."""
    WARNING = "warning"
    """The fault holds under every suite; the judge's comparison still tells right from wrong."""
    REPAIRED = "repaired"
    """The draw as shipped has the fault, and what the judge runs beside it does not."""


@dataclass(frozen=True, slots=True)
class LintFinding:
    """One fault of a task. `tensor`: `output`, `inputs`, `input 0`, `parameters`, a parameter's name, or `shapes`."""

    code: LintCode
    severity: LintSeverity
    tensor: str
    suites: tuple[str, ...]
    """Suites of the smallest variant under which it holds."""
    measured: float | None
    """The number that the code's criterion is about, under the first of `suites`."""
    message: str


@dataclass(frozen=True, slots=True)
class TaskLint:
    """What was found wrong with a task, on which variants and suites; `remarks` say what could not be examined."""

    task_id: str
    findings: tuple[LintFinding, ...]
    variants: tuple[str, ...]
    suites: tuple[str, ...]
    remarks: tuple[str, ...] = ()

    @property
    def errors(self) -> tuple[LintFinding, ...]:
        return tuple(finding for finding in self.findings if finding.severity is LintSeverity.ERROR)


@dataclass(frozen=True, slots=True)
class OpCost:
    """`count` equal calls of one torch function of the reference: FLOPs and compulsory bytes of one call."""

    name: str
    kind: str
    """conv, matmul, norm, pool, reduce, pointwise, recurrent, attention, or other."""
    count: int
    flops: float
    bytes: float


@dataclass(frozen=True, slots=True)
class Facts:
    """What the traced reference is, for rules: counts of torch functions by kind, sizes of the `full` variant."""

    ops: int
    conv_ops: int
    matmul_ops: int
    norm_ops: int
    pool_ops: int
    reduce_ops: int
    pointwise_ops: int
    recurrent_ops: int
    attention_ops: int
    kernel_size: int | None
    """Largest spatial window, None without one."""
    time_steps: int | None
    flops: float
    bytes: float
    """Compulsory: each input, parameter and output once."""
    intensity: float
    dtype: str
    traced: str
    """full (fake tensors at full size), small (really run on a small variant), or none."""
    costs: tuple[OpCost, ...] = ()
    note: str = ""


@dataclass(frozen=True, slots=True)
class Operator:
    """A task together with its facts: what a back-end is asked about."""

    task: Task
    facts: Facts


@dataclass(frozen=True, slots=True)
class Launch:
    """`count` equal launches of one kernel: its grid, meta-parameters and the bytes its tensor arguments span."""

    kernel: str
    grid: tuple[int, int, int]
    count: int
    bytes: float
    num_warps: int
    num_stages: int
    has_dot: bool
    registers: int | None = None
    spill_bytes: int | None = None
    shared_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class HostOp:
    """A torch operation that forward() ran outside its kernels, by aten name. `compute`: it does arithmetic."""

    name: str
    count: int
    compute: bool
    flops: float
    bytes: float


@dataclass(frozen=True, slots=True)
class Trace:
    """What one forward() of a candidate does on the `full` variant, recorded on fake tensors."""

    launches: tuple[Launch, ...]
    host_ops: tuple[HostOp, ...]
    remarks: tuple[str, ...] = ()

    @property
    def launch_count(self) -> int:
        return sum(launch.count for launch in self.launches)


@dataclass(frozen=True, slots=True)
class CheckResult:
    """One output comparison: variant, suite, the error ratio against PyTorch's own error, and the largest error."""

    variant: str
    suite: str
    error_ratio: float | None
    max_abs_error: float | None
    passed: bool
    note: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The judge's answer on one candidate. Never an exception: a bad candidate is data."""

    status: Status
    reason: Reason | None
    mode: Mode
    message: str
    """For people and repair prompts: what failed, where, with numbers; trimmed."""
    precision_class: str | None = None
    """What the numbers show: ieee, loose, bf16x3, tf32, reduced, exact."""
    error_ratio: float | None = None
    """Worst rms error ratio over all checks."""
    variant: str | None = None
    suite: str | None = None
    checks: tuple[CheckResult, ...] = ()
    trace: Trace | None = None
    trace_error: str | None = None
    """Why there is no launch record, in a line."""
    remarks: tuple[str, ...] = ()
    sandbox: tuple[str, ...] = ()
    """Layers that were active."""
    seed: int | None = None
    wall_s: float = 0.0
    gpu_s: float = 0.0
    """Seconds for which it held a GPU."""
    stages: Mapping[str, float] = field(default_factory=dict)
    """Wall-clock seconds by stage: screen, trace, compile, check."""


@dataclass(frozen=True, slots=True)
class Judged:
    """A correct candidate as a back-end needs it for times and profiles: its source and its launch record, if any.
    `time_us`: the median of its own measurement, for cross-checks of a profile; None where it has none."""

    source: str
    trace: Trace | None
    time_us: float | None = None


@dataclass(frozen=True, slots=True)
class Timing:
    """A distribution's median and 95 % interval over n samples; `who`: candidate, incumbent, eager or compile."""

    who: str
    score_kind: ScoreKind
    median_us: float
    lo_us: float
    hi_us: float
    n: int


@dataclass(frozen=True, slots=True)
class Ratio:
    """Time of `over` divided by the candidate's, paired in one run: above 1 the candidate is faster."""

    over: str
    value: float
    lo: float
    hi: float
    n: int


@dataclass(frozen=True, slots=True)
class Measurement:
    """Times of one candidate and what it was paired with. Without a candidate: the baselines alone."""

    timings: tuple[Timing, ...]
    ratios: tuple[Ratio, ...]
    floor_us: float | None
    settings: Mapping[str, str]
    """What both sides ran under: TF32, determinism, autograd, clocks, protocol."""
    note: str = ""
    gpu_s: float = 0.0
    """Seconds for which it held the GPU alone."""
    refuted: str = ""
    """How outputs of the candidate's timed calls are wrong; it then has no time and may not become the best."""
    below_floor: bool = False
    """The candidate's time is under nine tenths of the floor: a flag to look at (docs/floors.md), never a refusal."""
    passing: bool = False
    """A process was lost or memory lacked, so that the next time may give more: not to be remembered."""

    def timing(self, who: str) -> Timing | None:
        return next((timing for timing in self.timings if timing.who == who), None)

    def ratio(self, over: str) -> Ratio | None:
        return next((ratio for ratio in self.ratios if ratio.over == over), None)


@dataclass(frozen=True, slots=True)
class MetricValue:
    """One canonical metric of one call. `source`: ncu, static, trace, algebra, …; value None says `note` why."""

    metric: str
    value: float | None
    unit: str
    source: str
    confidence: float
    note: str = ""
    contradiction: str = ""
    """The evidence that speaks against the value; its confidence is then 0."""


@dataclass(frozen=True, slots=True)
class Device:
    """What results depend on besides their inputs; part of every step key of a back-end."""

    backend: str
    name: str
    """GPU name, or the CPU mode's target chip."""
    facts: Mapping[str, str]
    """driver, torch, triton, numpy, python versions; judge version."""
    hardware: Mapping[str, float]
    """For prompts and floors: sm_count, dram_gbps, fp32_tflops, tf32_tflops, fp16_tflops, l2_bytes, shared_bytes."""
    ceilings: str = ""
    """Names the measured rates that floors use in place of these; empty: there are none. Part of the keys of times and
    profiles, not of verdicts."""


@dataclass(frozen=True, slots=True)
class Message:
    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Slot:
    """A reply's place in the stage plan: the address under which recordings travel between machines. `stage`: a name or
    `seed`; `role`: seed, error_analysis, repair, strategy or optimise; `attempt`: 0 for the first try, n for the n-th
    repair; `sample`: which seed or candidate of the stage, from 0."""

    task_id: str
    category: str
    stage: str
    role: str
    attempt: int
    sample: int

    def path(self) -> str:
        """Relative path of the recording, without suffix."""
        task = self.task_id.replace("/", "__")
        return f"{task}/{self.category}/{self.stage}/{self.role}.{self.attempt}.{self.sample}"


@dataclass(frozen=True, slots=True)
class Request:
    """One model call. Its hash covers model, messages, params and sample; the slot is only an address."""

    slot: Slot
    model: str
    messages: tuple[Message, ...]
    params: Mapping[str, str | int | float | bool]
    sample: int


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one call, and money where a price is known."""

    input_tokens: int
    output_tokens: int
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    cost_usd: float | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """What a model answered. `finish`: stop, length, content_filter or error."""

    text: str
    finish: str
    usage: Usage
    latency_s: float
    model: str
    provider: str
    answered_by: str = ""
    date: str = ""
    attempts: int = 1
    drift: str | None = None
    """Under replay by slot: how the recorded prompt differs from the one asked now, or None."""
