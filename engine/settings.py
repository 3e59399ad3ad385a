"""The configuration as frozen dataclasses. Every default lives in conf/, none here; `engine.decode` builds them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from engine.codec import Range
from engine.records import Precision

Count = Annotated[int, Range(0)]
Positive = Annotated[int, Range(1)]
Seconds = Annotated[float, Range(0.0)]
Share = Annotated[float, Range(0.0, 1.0)]
Suite = Literal["nominal", "signed", "scaled", "shift", "structured", "extreme", "integer"]


@dataclass(frozen=True, slots=True)
class Rule:
    """An expression over facts, scores, thresholds and metrics. `on_missing`: what unknown operands mean."""

    when: str
    why: str
    on_missing: Literal["ignore", "fire", "fail"] = "ignore"


@dataclass(frozen=True, slots=True)
class StageBudget:
    candidates: Positive
    """Drafts proposed from the parent."""
    repairs: Count
    """Repair attempts for each failing draft."""


@dataclass(frozen=True, slots=True)
class Stage:
    focus: str
    proposer: str
    """`llm`; the decoder refuses `analysis` and `tune` by name until they exist."""
    metrics: tuple[str, ...]
    budget: StageBudget
    skip_when: Mapping[str, Rule]
    exit_when: Mapping[str, Rule]
    require: Mapping[str, Rule]
    guidance: str | None
    """Template below prompts/templates/guidance/; None: <category>/<stage>, generic/<stage> or generic/default."""
    sequential: bool
    """True: each draft starts from the best so far, with a fresh profile; False: all from the stage's parent."""
    min_confidence: Share = 0.25
    """Metrics below it are missing for this stage's rules and prompts."""


@dataclass(frozen=True, slots=True)
class Match:
    when: str
    priority: int


@dataclass(frozen=True, slots=True)
class Category:
    description: str
    match: Match | None
    """None: never chosen by the classifier, only by name."""
    representatives: tuple[str, ...]
    stages: Mapping[str, Stage]


@dataclass(frozen=True, slots=True)
class CudaSettings:
    """conf/backend/cuda.yaml; absent on other back-ends."""

    device: Count | Literal["auto"]
    standby: Positive
    """Executors kept warm by each judge process."""
    baselines: tuple[Literal["eager", "compile", "eager_graph", "compile_graph"], ...]
    min_blocks: Positive
    max_blocks: Positive
    block_ms: Annotated[float, Range(0.1)]
    ratio_halfwidth: Annotated[float, Range(0.0)]
    timing_budget_s: Seconds
    flush_l2: bool
    python_probe: bool


@dataclass(frozen=True, slots=True)
class CpuSettings:
    """conf/backend/cpu.yaml: what the estimate assumes of the declared chip."""

    launch_overhead_us: Annotated[float, Range(0.0)]
    compile_kernels: bool
    """Ahead-of-time compilation for `target`: registers, spills, shared memory."""


@dataclass(frozen=True, slots=True)
class AscendSettings:
    """conf/backend/ascend.yaml; absent on other back-ends."""

    python: str
    """Interpreter of the environment with torch_npu and triton-ascend: a path, or a name looked up on PATH."""
    device: str
    """torch's name of the NPU, e.g. npu:0."""
    start_s: Seconds
    """For its processes to import torch_npu and Triton and answer."""
    vector_cores: Positive
    cube_cores: Positive
    warm_up: Count
    """Calls before those timed, in each block."""
    active: Positive
    """Timed calls of a block."""
    min_blocks: Positive
    max_blocks: Positive
    ratio_halfwidth: Annotated[float, Range(0.0)]
    timing_budget_s: Seconds


@dataclass(frozen=True, slots=True)
class ProfilerSettings:
    """One profiler of a back-end's ladder. `path`: executable, looked up on PATH when it has no slash."""

    path: str
    timeout_s: Seconds
    max_launches: Positive


@dataclass(frozen=True, slots=True)
class BackendSettings:
    kind: Literal["cuda", "cpu", "ascend"]
    target: str
    """Chip that kernels are compiled for, e.g. sm_90."""
    dialect: str
    """Template under prompts/templates/dialect/."""
    accept_estimates: bool
    """Whether estimated scores count in rules and promotion; search.accept_estimates overrides."""
    profilers: Mapping[str, ProfilerSettings]
    """In order of preference; a metric that one cannot give falls to the next."""
    hardware: Mapping[str, float]
    """Rates for floors and estimates until measured: see docs/measurements."""
    hardware_source: str
    cuda: CudaSettings | None
    cpu: CpuSettings | None
    ascend: AscendSettings | None = None


@dataclass(frozen=True, slots=True)
class RetrySettings:
    attempts: Positive
    base_s: Seconds
    max_s: Seconds


@dataclass(frozen=True, slots=True)
class RoleSettings:
    """Overrides for one role; null keeps the general value."""

    model: str | None = None
    params: Mapping[str, str | int | float | bool] | None = None


@dataclass(frozen=True, slots=True)
class LlmSettings:
    provider: Literal["litellm", "replay", "mailbox", "batch", "scripted"]
    model: str
    api_base: str | None
    key_env: str | None
    """Environment variable that holds the key; null: none is needed."""
    params: Mapping[str, str | int | float | bool]
    roles: Mapping[str, RoleSettings]
    timeout_s: Seconds
    retry: RetrySettings
    match: Literal["slot", "exact"]
    recordings: str | None
    """Folder of recordings read by replay, relative to the project or absolute."""
    record: str | None
    """Folder to which every reply of any provider is recorded; null: none."""
    mailbox: str | None
    """Folder with out/ and in/ for mailbox and batch."""
    script: str | None
    """JSON file of replies for `scripted`."""
    answered_by: str
    """Stored in recordings made by this run."""
    price_per_mtok: Mapping[str, float] | None
    """{input, cached, output} USD per million tokens where litellm knows no price; null: unknown."""


@dataclass(frozen=True, slots=True)
class TaskSettings:
    source: Literal["bundled", "path", "kernelbench"]
    path: str | None
    """File, directory or glob of task files; parquet or JSONL for kernelbench."""
    of_category: bool
    """With a named category: take its representatives instead of `names`."""
    names: tuple[str, ...]
    """Names or glob patterns; empty: all."""
    exclude: tuple[str, ...]
    levels: tuple[int, ...]
    numbers: str | None
    """'3', '1-10' or '1-10,45'."""
    first: Positive | None
    sample: Positive | None
    seed: int


@dataclass(frozen=True, slots=True)
class Limits:
    """Null: none. Checked before each model call, `gpu_s` and `wall_s` before each judge step, too."""

    usd: Annotated[float, Range(0.0)] | None
    tokens: Count | None
    calls: Count | None
    gpu_s: Seconds | None
    """Wall seconds of judge steps, on whatever device: verdicts, baselines, timings, promotions, profiles,
    confirmations."""
    wall_s: Seconds | None


@dataclass(frozen=True, slots=True)
class BudgetSettings:
    """Limits of one run, and of each task and each stage in it (the seeds count as one)."""

    usd: Annotated[float, Range(0.0)] | None
    tokens: Count | None
    calls: Count | None
    gpu_s: Seconds | None
    wall_s: Seconds | None
    task: Limits
    stage: Limits

    @property
    def of_run(self) -> Limits:
        return Limits(self.usd, self.tokens, self.calls, self.gpu_s, self.wall_s)


@dataclass(frozen=True, slots=True)
class AuditSettings:
    share: Share
    """Share of skipped stages that run anyway, to price the rule; forced to 0 under replay."""
    seed: int


@dataclass(frozen=True, slots=True)
class SearchSettings:
    seeds: Positive
    seed_repairs: Count
    error_analysis: bool
    """One JSON call before each repair."""
    strategy: bool
    """One JSON call before each optimisation."""
    rules: Literal["obey", "observe"]
    every_path: bool
    """Under observe: also make the judge steps that other outcomes of the rules would need."""
    accept_estimates: bool | None
    """null: as the back-end declares."""
    min_gain: Annotated[float, Range(1.0)]
    """A candidate becomes best when the lower end of incumbent/candidate exceeds this."""
    history: Count
    """Failed attempts shown in a prompt."""
    error_chars: Positive
    """Length to which an error is trimmed in prompts."""
    audit: AuditSettings
    fresh: tuple[Literal["timing", "profile"], ...]
    """What this run measures itself, whatever is remembered; its replies stay those of the run without it."""
    repeat: Positive
    """Another number of a fresh run measures again."""
    budget: BudgetSettings


@dataclass(frozen=True, slots=True)
class Tolerance:
    """Error-ratio limits of one dtype class (docs/verdicts.md): rms and element-wise multiples of PyTorch's error."""

    rms: Annotated[float, Range(0.0)]
    element: Annotated[float, Range(0.0)]
    admit: Annotated[float, Range(0.0)]
    """rms ratios up to this get a precision class of their own instead of plain rejection."""


@dataclass(frozen=True, slots=True)
class LimitSettings:
    """Of the candidate's process group."""

    trace_s: Seconds
    run_s: Seconds
    memory_gib: Annotated[float, Range(0.1)]
    processes: Positive
    file_mib: Positive


@dataclass(frozen=True, slots=True)
class ConfirmSettings:
    """The last look at each task's best kernel (docs/judging.md)."""

    enabled: bool
    variants: Positive
    """Shape variants drawn anew; on a GPU the full size comes on top."""
    sanitizer: Literal["auto", "off"]
    """auto: compute-sanitizer where a GPU's machine has it."""
    sanitizer_s: Seconds
    """For one of its tools."""
    repeats: Positive
    """Measurements in fresh processes on a GPU, the middle one of which is reported."""


@dataclass(frozen=True, slots=True)
class JudgeSettings:
    precision: Precision
    host_ops: Literal["none", "library", "any"]
    min_kernel_share: Share
    """Least share of the operator, by the reference's FLOPs or bytes, that is left to kernels under `library`."""
    suites: tuple[Suite, ...]
    seeds: Positive
    """Draws of inputs and parameters per suite and variant."""
    seed: int | None
    """null: drawn anew for each verdict and recorded in it."""
    tolerances: Mapping[str, Mapping[str, Tolerance]]
    """class -> dtype -> limits."""
    allow_unverified: bool
    """Whether a fallback result may become parent or best (always so on cuda until launch plans exist)."""
    sandbox: Literal["best_effort", "required"]
    confirm: ConfirmSettings
    limits: LimitSettings


@dataclass(frozen=True, slots=True)
class Spelling:
    """How one tool says a metric: exactly one of `name`, `plus`, `over` and `least`, computed for each launch before
    the launches of a call are aggregated, and multiplied by `scale`."""

    name: str | None = None
    """One counter."""
    plus: tuple[str, ...] = ()
    """The sum of counters."""
    over: tuple[str, ...] = ()
    """The quotient of two counters; without a value where the second is 0."""
    least: tuple[str, ...] = ()
    """The smallest of counters."""
    scale: float = 1.0
    confidence: Share = 1.0
    """Below 1: a substitute, not a measurement of the thing itself."""
    note: str = ""
    """What a reader of the value must know; kept with it."""

    @property
    def counters(self) -> tuple[str, ...]:
        """The raw counters that it needs, in its order."""
        return (self.name, *self.plus, *self.over, *self.least) if self.name else (*self.plus, *self.over, *self.least)


Aggregate = Literal["time_mean", "sum", "max", "min", "last"]


@dataclass(frozen=True, slots=True)
class Metric:
    unit: str
    better: Literal["min", "max", "none"]
    meaning: str
    """One sentence; it goes into prompts."""
    low: float | None
    high: float | None
    aggregate: Aggregate
    spellings: Mapping[str, Spelling]
    """By profiler: ncu, cupti, static, trace, algebra, msprof, msprof_op."""
    on_missing: Literal["unknown", "note"] = "unknown"
    """Rules that read a missing value are unknown either way; `note` also leaves its row out of prompts, because its
    absence is ordinary."""


@dataclass(frozen=True, slots=True)
class RawMetric:
    """A counter that a stage may name as raw.<alias>: passed through, no meaning is claimed."""

    unit: str
    aggregate: Aggregate
    ncu: str | None = None
    cupti: str | None = None
    """null: as ncu says it."""
    msprof: str | None = None
    msprof_op: str | None = None


@dataclass(frozen=True, slots=True)
class PathSettings:
    results: str
    tasks: str
    prompts: str


@dataclass(frozen=True, slots=True)
class DisplaySettings:
    mode: Literal["auto", "rich", "plain", "none"]


@dataclass(frozen=True, slots=True)
class RunSettings:
    mode: Literal["run", "forecast"]
    """forecast: print what would be done and what it can cost; spends nothing."""
    form: Literal["text", "json"]
    """How a forecast is printed."""
    write: str | None
    """Folder for a forecast and the prompts it renders; null: they are not written."""
    debug: bool
    """Show tracebacks of engine errors."""
    sweep: str | None
    """Set by the engine under -m; names the sweep that this job belongs to."""
    label: str | None
    """A name of the user's for this run, for comparisons; not part of its identity."""


@dataclass(frozen=True, slots=True)
class Settings:
    category: str
    """`auto`, or the named category that beats the classifier."""
    backend: str
    """A resolved back-end name: `auto` has been decided."""
    categories: Mapping[str, Category]
    backends: Mapping[str, BackendSettings]
    llm: LlmSettings
    task: TaskSettings
    search: SearchSettings
    judge: JudgeSettings
    metrics: Mapping[str, Metric]
    thresholds: Mapping[str, float]
    paths: PathSettings
    display: DisplaySettings
    run: RunSettings
    raw: Mapping[str, RawMetric] = field(default_factory=dict)
    """By alias; `metrics` holds them as raw.<alias> once the settings are decoded."""


@dataclass(frozen=True, slots=True)
class SweepJob:
    """One job among those of a sweep, for the `sweep` view; never part of the run's identity."""

    sweep_id: str
    job: int
    overrides: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class JobEnd:
    """How a job ended, for the command that started it. `results`: the folder to ingest, None where it never got one;
    `why`: what to say of a job that is not done."""

    job: int
    code: int
    run_id: str | None
    results: str | None
    why: str
