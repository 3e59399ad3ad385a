"""Counters of named chips, asked of the library itself: no GPU is needed, only the wheel nvidia-cuda-cupti."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from engine.errors import ProfilerError
from profilers import cupti_host
from profilers.cupti_host import INSTALL, Host

CHIPS = ("GA100", "GH100", "GB100")

PLANTED = {
    "dram__byte_read.sum": "dram__bytes_read.sum",
    "sm__pipe_tensor_cycle_active.avg.pct_of_peak_sustained_active": (
        "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_active"
    ),
}
COPIED = {
    "smsp__warp_issue_stalled_memory_dependency_per_warp_active.pct": (
        "smsp__warp_issue_stalled_long_scoreboard_per_warp_active.pct"
    ),
    "sm__inst_executed_pipe_fp32.avg.pct_of_peak_sustained_active": (
        "sm__inst_executed_pipe_fma.avg.pct_of_peak_sustained_active"
    ),
    "smsp__inst_executed_op_shared.sum": "smsp__sass_inst_executed_op_shared.sum",
    "smsp__warp_issue_stalled_long_scoreboard_per_issue_active.pct": (
        "smsp__warp_issue_stalled_long_scoreboard_per_warp_active.pct"
    ),
}
"""Names that are copied from project to project and exist on no chip, with what is meant."""

GHOSTS = {**PLANTED, **COPIED}


@pytest.fixture(scope="module")
def host():
    try:
        return Host()
    except ProfilerError as error:
        pytest.skip(f"{error}; {INSTALL}")


@pytest.fixture(scope="module")
def chips(host):
    opened = {name: host.chip(name) for name in CHIPS}
    yield opened
    for chip in opened.values():
        chip.__exit__(None, None, None)


@pytest.mark.parametrize("name", CHIPS)
@pytest.mark.parametrize("ghost", GHOSTS)
def test_ghosts_are_unknown_and_the_right_name_is_suggested(chips, name, ghost):
    assert not chips[name].knows(ghost)
    assert chips[name].suggest(ghost) == GHOSTS[ghost]
    assert chips[name].knows(GHOSTS[ghost])


@pytest.mark.parametrize(
    "name",
    [
        "gpu__time_duration.sum",
        "sm__throughput.avg.pct_of_peak_sustained_elapsed",
        "lts__t_sector_hit_rate.pct",
        # It exists, and is a ratio times 100: nothing that a list of names can tell.
        "smsp__average_warps_issue_stalled_long_scoreboard_per_issue_active.pct",
    ],
)
def test_counters_that_exist(chips, name):
    assert all(chip.knows(name) for chip in chips.values())


@pytest.mark.parametrize(
    "name", ["dram__bytes_read", "dram__bytes_read.foo", "launch__grid_size", "", "xyz__nothing.sum"]
)
def test_a_name_counts_only_whole(chips, name):
    assert not any(chip.knows(name) for chip in chips.values())


def test_a_wrong_suffix_is_replaced_by_one_that_exists(chips):
    chip = chips["GH100"]
    assert chip.suggest("dram__bytes_read.total") == "dram__bytes_read.sum"
    assert chip.suggest("sm__throughput.avg.pct_of_peak") == "sm__throughput.avg.pct_of_peak_sustained_active"
    assert chip.suggest("xyz__nothing.sum") is None


def test_names_depend_on_the_chip(host):
    with host.chip("GB202") as consumer:
        assert not consumer.knows("dram__bytes_read.sum")
        assert consumer.suggest("dram__bytes_read.sum") == "dram__bytes_op_read.sum"


def test_suffixes_of_a_base_name(chips):
    assert ".pct" in chips["GH100"].submetrics("lts__t_sector_hit_rate")


def test_an_unknown_chip_names_near_ones(host):
    with pytest.raises(ProfilerError, match=r"no chip GH10, did you mean GH100"):
        host.chip("GH10")


def test_without_a_library_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(cupti_host, "find_libraries", lambda: ())
    with pytest.raises(ProfilerError) as caught:
        Host()
    assert "libcupti is neither" in str(caught.value) and "pip install 'nvidia-cuda-cupti" in caught.value.hint


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="shared objects of Linux")
def test_a_library_that_does_not_answer_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(cupti_host, "_has_driver", lambda: False)
    library = tmp_path / "libcupti.so.13"
    library.write_bytes(b"not a library")
    (tmp_path / "libnvperf_host.so").write_bytes(b"neither")
    with pytest.raises(ProfilerError, match=r"libcupti\.so\.13: wants the driver"):
        Host(Path(library))
