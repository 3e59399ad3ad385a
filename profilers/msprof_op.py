"""Ascend's `msprof op`: one kernel at a time, replayed for each group of counters; the counterpart of ncu.

Parsers are pure: the texts of an OPPROF folder in, records out. Rows are one for each core of a block and are put
together here as `totals` says. Layouts are those of the vendor's documents and source for the 910B family; neither
the runner nor the parsers have met an NPU.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from engine.errors import ProfilerError
from profilers.ascend_csv import cell, number, own_name, rows, whole
from profilers.ascend_tool import Chip, output_folder, run, texts
from profilers.msprof import standing_in
from profilers.sampling import weighed
from profilers.seam import Job, KernelSample

BASIC = "OpBasicInfo"
PIPES = "PipeUtilization"
GROUPS = (
    PIPES,
    "ArithmeticUtilization",
    "Memory",
    "MemoryL0",
    "MemoryUB",
    "L2Cache",
    "ResourceConflictRatio",
)
"""What `--aic-metrics` takes and the files are called; together they are `Default`."""

KIB = 1024.0
LAUNCH_LIMIT = 5000
CORES = ("aic", "aiv")
_KIND = re.compile(r"(?:(?P<folder>.*)/)?(?P<kind>[A-Za-z0-9]+?)(?:_\d{8,})?\.csv")
_NAME = re.compile(r"[A-Za-z0-9_]+")
_COLUMNS = {"aic_mac_time(us)": "aic_cube_time(us)", "aic_mac_ratio": "aic_cube_ratio", "Block Num": "Block Dim"}
_COLUMNS |= {"Mix Block Num": "Mix Block Dim"}
_IDENTITY = ("block_id", "sub_block_id")
_SUMMED = re.compile(r"_datas\(KB\)|_instructions$|_instr_number$|_fops$|_cache_hit$|_cache_miss_allocate$|_bw(_|\()")
_AVERAGED = re.compile(r"_active_bw\(|_bw_usage_rate\(")
_LARGEST = re.compile(r"_time\(us\)$|_total_cycles$")


_BASIC_NAMES = frozenset({"duration_us", "Task Duration(us)", "Block Dim", "Current Freq", "clock_pct", "occupied_pct"})
_HOLDS: Mapping[str, re.Pattern[str]] = {
    PIPES: re.compile(
        r"_(cube|vec|mte[123]|fixpipe)_(time\(us\)|ratio)$|_scalar_|_active_bw\(|_icache_"
        r"|^(compute|mte)_ratio$|^(imbalance|core_busy)_pct$"
    ),
    "ArithmeticUtilization": re.compile(r"_(fp16|fp32|int8|int16|int32|misc)_ratio$|_fops$|_instr_number$"),
    "Memory": re.compile(
        r"main_mem|_gm_to_ub_bw|_ub_to_gm_bw|_datas\(KB\)|_bw_usage_rate|_instructions$|_l1_(read|write)_bw"
    ),
    "MemoryL0": re.compile(r"_l0[abc]_"),
    "MemoryUB": re.compile(r"_ub_(read|write)_bw"),
    "L2Cache": re.compile(r"_cache_|hit_rate|^l2_hit_pct$"),
    "ResourceConflictRatio": re.compile(r"_wait_ratio$|_cflt_ratio$"),
}
"""Which columns and stand-ins a group is needed for."""


@dataclass(frozen=True, slots=True)
class Basic:
    """The one row of OpBasicInfo. `kind`: vector, cube or mix; the duration includes scheduling and completion."""

    name: str
    kind: str
    duration_us: float | None
    block_dim: int | None
    mix_block_dim: int | None
    device: int | None
    freq_mhz: float | None
    rated_mhz: float | None

    @property
    def throttled(self) -> bool:
        """Whether it ran below its rated clock."""
        return self.freq_mhz is not None and self.rated_mhz is not None and self.freq_mhz < self.rated_mhz


@dataclass(frozen=True, slots=True)
class CoreRow:
    """One core of one block: cube0, vector0 or vector1. A chip that has no such columns gives None."""

    block: int | None
    core: str | None
    values: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class OpProfile:
    """One launch: its basic information and its rows by group. `launch`: the folder's number in order of launch."""

    launch: int
    folder: str
    basic: Basic | None
    groups: Mapping[str, tuple[CoreRow, ...]]


def parse_basic(text: str) -> Basic | None:
    """OpBasicInfo's row; None without one."""
    found = rows(text, "Op Name")
    if not found:
        return None
    row = {_COLUMNS.get(name) or name: value for name, value in found[0].items()}

    def value(name: str) -> str:
        return cell(row, [name])

    return Basic(
        name=value("Op Name"),
        kind=value("Op Type"),
        duration_us=number(value("Task Duration(us)")),
        block_dim=whole(value("Block Dim")),
        mix_block_dim=whole(value("Mix Block Dim")),
        device=whole(value("Device Id")),
        freq_mhz=number(value("Current Freq")),
        rated_mhz=number(value("Rated Freq")),
    )


def parse_cores(text: str) -> tuple[CoreRow, ...]:
    """The rows of any other file, in order; cells without a value are absent."""
    found = []
    # Some chips have no block numbers; every group has a core time.
    for row in rows(text, "block_id|aic_time(us)|aicore_time(us)"):
        numbers = {_COLUMNS.get(name) or name: number(value) for name, value in row.items()}
        values = {name: value for name, value in numbers.items() if value is not None and name not in _IDENTITY}
        found.append(CoreRow(whole(cell(row, ["block_id"])), cell(row, ["sub_block_id"]) or None, values))
    return tuple(found)


def parse_folder(files: Mapping[str, str]) -> tuple[OpProfile, ...]:
    """The launches below an output folder, given texts by relative path, in order of launch.

    Both layouts: `OPPROF_*/<Kind>.csv`, and `OPPROF_*/[device<n>/]<OpName>/<launch>/<Kind>_<time>.csv`.
    """
    launches: dict[str, dict[str, str]] = {}
    for path, text in files.items():
        parts = _KIND.fullmatch(path)
        if parts is not None and parts["kind"] in (BASIC, *GROUPS):
            launches.setdefault(parts["folder"] or "", {})[parts["kind"]] = text
    found = [_profile(folder, kinds) for folder, kinds in launches.items()]
    return tuple(sorted(found, key=lambda profile: (profile.launch, profile.folder)))


def _profile(folder: str, kinds: Mapping[str, str]) -> OpProfile:
    last = folder.rsplit("/", 1)[-1]
    basic = parse_basic(kinds[BASIC]) if BASIC in kinds else None
    groups = {kind: parse_cores(kinds[kind]) for kind in GROUPS if kind in kinds}
    return OpProfile(int(last) if last.isdecimal() else 0, folder, basic, {k: v for k, v in groups.items() if v})


def totals(cores: Sequence[CoreRow]) -> Mapping[str, float]:
    """One group over all cores: times and cycles are the largest, ratios and rates means weighted by the core's own
    cycles, bytes, operations, instructions, hits and bandwidths sums. Hit rates come from the summed hits and misses
    where these are there.

    Nothing is derived from another column otherwise: a mixed operator's ratios, core times and duration have
    different denominators and come from different replays.
    """
    names = dict.fromkeys(name for row in cores for name in row.values)
    made = {name: _total(name, cores) for name in names}
    return {**made, **_hit_rates(made)}


def _total(name: str, cores: Sequence[CoreRow]) -> float:
    given = [row for row in cores if name in row.values]
    values = [row.values[name] for row in given]
    if _LARGEST.search(name):
        return max(values)
    if _SUMMED.search(name) and not _AVERAGED.search(name):
        return sum(values)
    cycles = f"{name[:3]}_total_cycles"
    weights = [row.values.get(cycles) or 0.0 for row in given]
    if sum(weights) <= 0:
        weights = [1.0] * len(values)
    return sum(weight * value for weight, value in zip(weights, values, strict=True)) / sum(weights)


def _hit_rates(made: Mapping[str, float]) -> Mapping[str, float]:
    found: dict[str, float] = {}
    both: list[tuple[float, float]] = []
    for core in CORES:
        parts = {"write": ("write_cache",), "read": ("r0_read_cache", "r1_read_cache")}
        counted = {kind: _hits(made, core, of) for kind, of in parts.items()}
        known = [pair for pair in counted.values() if pair is not None]
        if len(known) == len(parts):
            total = (sum(hit for hit, _ in known), sum(miss for _, miss in known))
            counted["total"] = total
            both.append(total)
        for kind, pair in counted.items():
            if pair is not None and sum(pair) > 0:
                found[f"{core}_{kind}_hit_rate(%)"] = 100.0 * pair[0] / sum(pair)
    if both and sum(map(sum, both)) > 0:
        found["l2_hit_pct"] = 100.0 * sum(hit for hit, _ in both) / sum(map(sum, both))
    return found


def _hits(made: Mapping[str, float], core: str, of: Sequence[str]) -> tuple[float, float] | None:
    names = [(f"{core}_{part}_hit", f"{core}_{part}_miss_allocate") for part in of]
    if not all(hit in made and miss in made for hit, miss in names):
        return None
    return sum(made[hit] for hit, _ in names), sum(made[miss] for _, miss in names)


def imbalance_pct(cores: Sequence[CoreRow]) -> float | None:
    """How far the mean core time of a kind of core lies below the longest, of the worse kind; None without times."""
    worst: list[float] = []
    for core in CORES:
        times = [row.values[f"{core}_time(us)"] for row in cores if f"{core}_time(us)" in row.values]
        if times and max(times) > 0:
            worst.append(100.0 * (1.0 - sum(times) / len(times) / max(times)))
    return max(worst, default=None)


def sample(profile: OpProfile, chip: Chip) -> KernelSample | None:
    """One launch: the totals of its groups, the numbers of its OpBasicInfo, `msprof.standing_in` and `_standing_in`.
    None without OpBasicInfo."""
    basic = profile.basic
    if basic is None:
        return None
    counters: dict[str, float] = {}
    # Files repeat columns such as ratios; the pipes' own come last and win.
    for group in reversed(GROUPS):
        if group in profile.groups:
            counters |= totals(profile.groups[group])
    told = {"Task Duration(us)": basic.duration_us, "Block Dim": basic.block_dim, "Current Freq": basic.freq_mhz}
    counters |= {name: float(value) for name, value in told.items() if value is not None}
    counters |= standing_in(counters, basic.kind, chip)
    spread = [value for cores in profile.groups.values() if (value := imbalance_pct(cores)) is not None]
    if spread:
        counters["imbalance_pct"] = max(spread)
    return KernelSample(own_name(basic.name), basic.duration_us, {**counters, **_standing_in(counters, basic, chip)})


def _standing_in(counters: Mapping[str, float], basic: Basic, chip: Chip) -> Mapping[str, float]:
    """`core_busy_pct`: the occupied cores times their evenness. `compute_wait_ratio`: of the cube or vector unit that
    waits longer. `clock_pct`: of the rated one. `main_mem_pct`: main memory's bytes over the task's duration against
    the chip's bandwidth, an upper bound where L2 hits."""
    derived: dict[str, float] = {}
    if "occupied_pct" in counters and "imbalance_pct" in counters:
        derived["core_busy_pct"] = counters["occupied_pct"] * (1.0 - counters["imbalance_pct"] / 100.0)
    waits = [counters[name] for name in ("aic_cube_wait_ratio", "aiv_vec_wait_ratio") if name in counters]
    if waits:
        derived["compute_wait_ratio"] = max(waits)
    if basic.freq_mhz is not None and basic.rated_mhz:
        derived["clock_pct"] = 100.0 * basic.freq_mhz / basic.rated_mhz
    columns = ("read_main_memory_datas(KB)", "write_main_memory_datas(KB)")
    moved = [counters[name] for name in columns if name in counters]
    if moved and basic.duration_us:
        derived["main_mem_pct"] = 100.0 * sum(moved) * KIB / (basic.duration_us * chip.dram_gbps * 1e3)
    return derived


def select(found: Sequence[KernelSample], names: Sequence[str]) -> tuple[KernelSample, ...]:
    """The samples of exactly these kernels: the tool's own filter matches beginnings."""
    return tuple(one for one in found if one.kernel in names)


def groups_for(counters: Sequence[str]) -> tuple[str, ...]:
    """The groups that hold these counters, each of which costs replays; all where one is not known."""
    wanted = [group for group in GROUPS if any(_HOLDS[group].search(name) for name in counters)]
    known = all(any(holds.search(name) for holds in _HOLDS.values()) or name in _BASIC_NAMES for name in counters)
    return tuple(wanted) if known and wanted else (PIPES,) if known else GROUPS


@dataclass(frozen=True, slots=True)
class MsprofOp:
    """Runs `path` (msprof) over a job whose command makes one call."""

    path: str
    timeout_s: float
    max_launches: int
    chip: Chip
    warm_up: int = 5
    """Replays before the counted one; short kernels otherwise run before the clock rises."""
    name: str = "msprof_op"

    def available(self) -> str | None:
        return None if shutil.which(self.path) else f"{self.path} is not an executable on PATH"

    def command(self, job: Job, counters: Sequence[str], output: str) -> tuple[str, ...]:
        """ProfilerError for kernel names that `--kernel-name` cannot say, and without names: the tool would take the
        program's first operator, whatever it is."""
        if not job.kernels:
            raise ProfilerError("msprof op counts named kernels only, and this call has none of its own")
        strange = [name for name in job.kernels if not _NAME.fullmatch(name)]
        if strange:
            raise ProfilerError(f"msprof op selects names of letters, digits and _ only, not {', '.join(strange)}")
        chosen = f"--kernel-name={'|'.join(job.kernels)}"
        wanted = self._launches(job)
        groups = f"--aic-metrics={','.join(groups_for(counters))}"
        bounds = (f"--launch-count={wanted}", f"--warm-up={self.warm_up}")
        return (self.path, "op", chosen, *bounds, groups, f"--output={output}", *job.command)

    def _launches(self, job: Job) -> int:
        one_call = job.trace.launch_count if job.trace is not None and job.trace.launch_count else self.max_launches
        return max(1, min(one_call, self.max_launches, LAUNCH_LIMIT))

    def collect(self, job: Job, counters: Sequence[str]) -> tuple[KernelSample, ...]:
        """One sample a launch; ProfilerError when no file with rows came of it, or none of the job's kernels."""
        with output_folder(job.cwd) as folder:
            said = run(self.command(job, counters, str(folder)), job, self.timeout_s)
            profiles = parse_folder(texts(folder))
        found = [one for profile in profiles if (one := sample(profile, self.chip)) is not None]
        if not found:
            raise ProfilerError(f"{self.path} op wrote no {BASIC} with rows; it said: {said}")
        own = select(found, job.kernels)
        if not own:
            others = ", ".join(sorted({one.kernel for one in found}))
            raise ProfilerError(f"{self.path} op collected {others}, none of {', '.join(job.kernels)}")
        sampled = [replace(one, workload=job.workload) for one in own[: self.max_launches]]
        return weighed(sampled, job.trace)
