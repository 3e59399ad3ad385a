"""Ascend's `msprof`: a table of all device tasks of a program, and torch_npu's profiler, which writes the same one.

Parsers are pure: text in, records out, columns by name with aliases. The runner has never run on an NPU; layouts are
those of captures from a 910B and of the vendor's documents.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from engine.errors import ProfilerError
from profilers.ascend_csv import cell, nanoseconds, number, own_name, rows, shapes, whole
from profilers.ascend_tool import Chip, output_folder, run, texts
from profilers.sampling import weighed
from profilers.seam import Job, KernelSample

ALIASES: Mapping[str, tuple[str, ...]] = {
    "Device_id": ("Device_id", "Device Id", "Device ID"),
    "Step Id": ("Step Id", "Step ID"),
    "Stream ID": ("Stream ID", "Stream Id", "stream_id"),
    "Task ID": ("Task ID", "Task Id", "task_id"),
    "Op Name": ("Op Name", "Name", "kernel_name"),
    "OP Type": ("OP Type", "Type"),
    "Task Type": ("Task Type", "Accelerator Core", "kernel_type"),
    "Task Start Time(us)": ("Task Start Time(us)", "Start Time(us)", "task_start(us)"),
    "Task Stop Time(us)": ("task_stop(us)",),
    "Task Duration(us)": ("Task Duration(us)", "Duration(us)", "task_time(us)"),
    "Task Wait Time(us)": ("Task Wait Time(us)", "Wait Time(us)"),
    "Block Dim": ("Block Dim", "Block Num"),
    "Mix Block Dim": ("Mix Block Dim", "Mix Block Num"),
    "Input Shapes": ("Input Shapes",),
    "aicore_time(us)": ("aicore_time(us)", "aic_time(us)"),
    "aic_mac_time(us)": ("aic_mac_time(us)", "aic_cube_time(us)"),
    "aic_mac_ratio": ("aic_mac_ratio", "aic_cube_ratio"),
}
"""Our name of a column, which is that of op_summary, and what versions and tools call it."""

KERNEL_TYPES = ("AI_CORE", "AI_VECTOR_CORE", "MIX_")
"""Beginnings of the task types that are kernels; the rest is random numbers, copies, events and host work."""

KERNEL_DETAILS = "kernel_details"

_CANONICAL = {alias: name for name, aliases in ALIASES.items() for alias in aliases}
_WORDS = frozenset(
    ["Op Name", "OP Type", "Task Type", "OP State", "HF32 Eligible", "Device_id", "Step Id", "Model ID", "Context ID"]
)


@dataclass(frozen=True, slots=True)
class OpTask:
    """One device task. `start_ns`: whole nanoseconds; times in microseconds; None: the file does not say.

    `counters`: every numeric column under our name of it, without identities and time stamps.
    """

    name: str
    kind: str
    task_type: str
    device: int | None
    stream: int | None
    task: int | None
    step: int | None
    start_ns: int | None
    duration_us: float | None
    wait_us: float | None
    block_dim: int | None
    input_shapes: tuple[tuple[int, ...], ...]
    counters: Mapping[str, float]

    @property
    def is_kernel(self) -> bool:
        """By task type; newer ones, such as MIX_AIC, count as well."""
        return self.task_type.startswith(KERNEL_TYPES)


@dataclass(frozen=True, slots=True)
class OpTotal:
    """One line of op_statistic: all tasks of one operator and core type."""

    kind: str
    core_type: str
    count: int
    total_us: float
    min_us: float | None
    avg_us: float | None
    max_us: float | None
    ratio_pct: float | None


@dataclass(frozen=True, slots=True)
class L2Rate:
    """One line of l2_cache, to be joined by device, stream and task: rates from 0 to 1 as the tool prints them."""

    device: int | None
    stream: int | None
    task: int | None
    name: str
    hit_rate: float | None
    victim_rate: float | None


def parse_tasks(text: str) -> tuple[OpTask, ...]:
    """The tasks of op_summary, task_time or torch_npu's kernel_details, in the file's order."""
    return tuple(_task(_renamed(row)) for row in rows(text, "|".join(ALIASES["Op Name"])))


def parse_op_statistic(text: str) -> tuple[OpTotal, ...]:
    """The totals of op_statistic, msprof's or torch_npu's."""
    found = []
    for row in rows(text, "OP Type"):
        count, total = whole(cell(row, ["Count"])), number(cell(row, ["Total Time(us)"]))
        if count is not None and total is not None:
            least, mean, most = (number(cell(row, [f"{name} Time(us)"])) for name in ("Min", "Avg", "Max"))
            ratio = number(cell(row, ["Ratio(%)"]))
            found.append(OpTotal(row["OP Type"], cell(row, ["Core Type"]), count, total, least, mean, most, ratio))
    return tuple(found)


def parse_l2_cache(text: str) -> tuple[L2Rate, ...]:
    """The rates of l2_cache; on A2 and A3 the first operator is missing from it."""
    found = []
    for row in rows(text, "Hit Rate"):
        device, stream, task = (whole(cell(row, ALIASES[name])) for name in ("Device_id", "Stream ID", "Task ID"))
        hit, victim = number(cell(row, ["Hit Rate"])), number(cell(row, ["Victim Rate"]))
        found.append(L2Rate(device, stream, task, cell(row, ALIASES["Op Name"]), hit, victim))
    return tuple(found)


def kernels(tasks: Sequence[OpTask], names: Sequence[str]) -> tuple[OpTask, ...]:
    """The kernels among the tasks, of these names where there are any, by exact name without `_mix_aic`."""
    wanted = set(names)
    return tuple(task for task in tasks if task.is_kernel and (not wanted or own_name(task.name) in wanted))


def samples(tasks: Sequence[OpTask], chip: Chip, rates: Sequence[L2Rate] = ()) -> tuple[KernelSample, ...]:
    """One sample for each task. Beside the file's columns: `Hit Rate` from l2_cache where it has the task, and what
    `standing_in` derives. The wait of the first task holds the start of everything and is left out."""
    hits = {(rate.device, rate.stream, rate.task): rate.hit_rate for rate in rates if rate.hit_rate is not None}
    found = []
    for index, task in enumerate(tasks):
        counters = dict(task.counters)
        if index == 0:
            counters.pop("Task Wait Time(us)", None)
        key = (task.device, task.stream, task.task)
        if key in hits:
            counters["Hit Rate"] = hits[key]
        counters |= standing_in(counters, task.task_type, chip)
        found.append(KernelSample(own_name(task.name), task.duration_us, counters))
    return tuple(found)


def standing_in(counters: Mapping[str, float], core: str, chip: Chip) -> Mapping[str, float]:
    """Roles that no column gives: `compute_ratio`, the larger of matrix and vector unit; `mte_ratio`, the busiest of
    the units that move data between memory and core; `occupied_pct`, programs for each core of the kind used."""
    derived: dict[str, float] = {}
    compute = [counters[name] for name in ("aic_mac_ratio", "aic_cube_ratio", "aiv_vec_ratio") if name in counters]
    moving = ("aic_mte2_ratio", "aic_mte3_ratio", "aic_fixpipe_ratio", "aiv_mte2_ratio", "aiv_mte3_ratio")
    busy = [counters[name] for name in moving if name in counters]
    if compute:
        derived["compute_ratio"] = max(compute)
    if busy:
        derived["mte_ratio"] = max(busy)
    if "Block Dim" in counters:
        cores = chip.vector_cores if "vec" in core.lower() else chip.cube_cores
        derived["occupied_pct"] = 100.0 * min(1.0, counters["Block Dim"] / cores)
    return derived


def last_call(found: Sequence[OpTask], calls: int, launches: int | None) -> tuple[OpTask, ...]:
    """The launches of the last of `calls` equal calls: the last `launches` where a record of one call says how many.
    ProfilerError where the rows do not divide."""
    if launches is not None and launches <= len(found):
        return tuple(found[len(found) - launches :])
    if not found or len(found) % calls:
        raise ProfilerError(f"expected a multiple of {calls} launches for {calls} calls, found {len(found)}")
    return tuple(found[len(found) - len(found) // calls :])


@dataclass(frozen=True, slots=True)
class Msprof:
    """Runs `path` over a job whose command makes `calls` equal calls; counters describe the last one."""

    path: str
    timeout_s: float
    max_launches: int
    chip: Chip
    calls: int = 1
    name: str = "msprof"

    def available(self) -> str | None:
        return None if shutil.which(self.path) else f"{self.path} is not an executable on PATH"

    def command(self, job: Job, output: str) -> tuple[str, ...]:
        """Counter columns need `--task-time=l1`; at l0 they are N/A."""
        options = ("--ai-core=on", "--aic-mode=task-based", "--aic-metrics=PipeUtilization", "--task-time=l1")
        tables = ("--runtime-api=on", "--l2=on", "--type=text", "--summary-format=csv")
        return (self.path, f"--application={shlex.join(job.command)}", f"--output={output}", *options, *tables)

    def collect(self, job: Job, counters: Sequence[str]) -> tuple[KernelSample, ...]:
        """The launches of one call; ProfilerError when there is no table, or none with a kernel of the job."""
        with output_folder(job.cwd) as folder:
            said = run(self.command(job, str(folder)), job, self.timeout_s)
            files = texts(folder)
        tasks = [task for text in _named(files, "op_summary") for task in parse_tasks(text)]
        if not tasks:
            raise ProfilerError(f"{self.path} wrote no op_summary with rows; it said: {said}")
        rates = [rate for text in _named(files, "l2_cache") for rate in parse_l2_cache(text)]
        return _of_job(tasks, job, self.calls, self.max_launches, self.chip, rates)


@dataclass(frozen=True, slots=True)
class TorchNpu:
    """Reads the kernel_details that the job's command writes below its folder with torch_npu's profiler, over `calls`
    equal calls; counters describe the last one."""

    timeout_s: float
    max_launches: int
    chip: Chip
    calls: int
    name: str = "torch_npu"

    def available(self) -> str | None:
        return None

    def collect(self, job: Job, counters: Sequence[str]) -> tuple[KernelSample, ...]:
        """As `Msprof.collect`."""
        said = run(job.command, job, self.timeout_s)
        files = texts(Path(job.cwd), f"{KERNEL_DETAILS}*.csv")
        tasks = [task for text in files.values() for task in parse_tasks(text)]
        if not tasks:
            raise ProfilerError(f"torch_npu's profiler wrote no {KERNEL_DETAILS} with rows; the program said: {said}")
        return _of_job(tasks, job, self.calls, self.max_launches, self.chip)


def _named(files: Mapping[str, str], beginning: str) -> list[str]:
    return [text for path, text in files.items() if path.rsplit("/", 1)[-1].startswith(beginning)]


def _of_job(
    tasks: Sequence[OpTask], job: Job, calls: int, limit: int, chip: Chip, rates: Sequence[L2Rate] = ()
) -> tuple[KernelSample, ...]:
    own = kernels(tasks, job.kernels)
    if not own:
        names = ", ".join(job.kernels) or "any kernel"
        raise ProfilerError(f"there is no launch of {names} among {len(tasks)} device tasks")
    launches = job.trace.launch_count if job.trace is not None and job.trace.launch_count else None
    found = samples(last_call(own, calls, launches)[:limit], chip, rates)
    return weighed([replace(one, workload=job.workload) for one in found], job.trace)


def _renamed(row: Mapping[str, str]) -> Mapping[str, str]:
    return {_CANONICAL.get(name) or name: value for name, value in row.items()}


def _task(row: Mapping[str, str]) -> OpTask:
    def text(name: str) -> str:
        return cell(row, [name])

    values = {name: number(value) for name, value in row.items() if name not in _WORDS and not name.endswith(" ID")}
    stamps = ("Task Start Time(us)", "Task Stop Time(us)")
    return OpTask(
        name=text("Op Name"),
        kind=text("OP Type"),
        task_type=text("Task Type"),
        device=whole(text("Device_id")),
        stream=whole(text("Stream ID")),
        task=whole(text("Task ID")),
        step=whole(text("Step Id")),
        start_ns=nanoseconds(text("Task Start Time(us)")),
        duration_us=number(text("Task Duration(us)")),
        wait_us=number(text("Task Wait Time(us)")),
        block_dim=whole(text("Block Dim")),
        input_shapes=shapes(text("Input Shapes")),
        counters={name: value for name, value in values.items() if value is not None and name not in stamps},
    )
