"""Names that ncu works out itself, which no list of a chip's counters has, and ncu's own lists where ncu is installed.

Declared from Nsight Compute's documentation (Metrics Reference, launch metrics); `query` asks the tool that is present.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence

from engine.errors import ProfilerError

COMPUTED = frozenset(
    [
        *(f"launch__block_dim_{axis}" for axis in "xyz"),
        *(f"launch__grid_dim_{axis}" for axis in "xyz"),
        *(f"launch__cluster_dim_{axis}" for axis in "xyz"),
        "launch__block_size",
        "launch__cluster_max_active",
        "launch__cluster_size",
        "launch__grid_size",
        "launch__occupancy_limit_barriers",
        "launch__occupancy_limit_blocks",
        "launch__occupancy_limit_registers",
        "launch__occupancy_limit_shared_mem",
        "launch__occupancy_limit_warps",
        "launch__registers_per_thread",
        "launch__registers_per_thread_allocated",
        "launch__shared_mem_config_size",
        "launch__shared_mem_per_block",
        "launch__shared_mem_per_block_allocated",
        "launch__shared_mem_per_block_driver",
        "launch__shared_mem_per_block_dynamic",
        "launch__shared_mem_per_block_static",
        "launch__sm_count",
        "launch__stack_size",
        "launch__thread_count",
        "launch__waves_per_multiprocessor",
        "sm__maximum_warps_avg_per_active_cycle",
        "sm__maximum_warps_per_active_cycle_pct",
    ]
)

QUERY_S = 120.0
_NAME = re.compile(r"^\s*([a-z][a-z0-9]*__[A-Za-z0-9_.]+)(?:\s|$)")


def parse_query(text: str) -> frozenset[str]:
    """The names in a list of `ncu --query-metrics`: the first word of each row of its tables, without rollups."""
    found = (_NAME.match(line) for line in text.splitlines())
    return frozenset(match.group(1) for match in found if match)


def query(path: str, chip: str | None) -> frozenset[str]:
    """What the ncu at `path` lists for a chip (GH100), or without one the attributes of a launch. ProfilerError when it
    lists nothing, as versions differ in what can be asked."""
    asked: Sequence[str] = ("--query-metrics-collection", "launch") if chip is None else ("--chips", chip.lower())
    try:
        done = subprocess.run(
            [path, "--query-metrics", *asked], capture_output=True, text=True, timeout=QUERY_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ProfilerError(f"{path} --query-metrics {' '.join(asked)}: {error}") from error
    names = parse_query(done.stdout)
    if done.returncode != 0 or not names:
        said = (done.stdout + done.stderr).strip()[-200:] or "nothing"
        raise ProfilerError(f"{path} --query-metrics {' '.join(asked)} ended with {done.returncode}; it said: {said}")
    return names
