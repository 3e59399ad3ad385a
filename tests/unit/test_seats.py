"""Engines spread over the GPUs of a machine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from engine.errors import MissingError
from engine.judging.gpu_state import Gpu
from engine.judging.seats import AUTO, take_seat

H200, OTHER = "NVIDIA H200", "NVIDIA L4"


def gpus(*names):
    found = [Gpu(ordinal, name, f"GPU-{ordinal}", "580.1") for ordinal, name in enumerate(names)]

    def find(ordinal):
        if ordinal >= len(found):
            raise MissingError(f"no device {ordinal}", hint="none")
        return found[ordinal]

    return find, lambda: len(found)


def test_engines_share_gpus_evenly_and_a_freed_one_is_taken_next(tmp_path):
    find, count = gpus(H200, H200)
    seats = [take_seat(AUTO, find, count, tmp_path) for _ in range(4)]
    assert [seat.gpu.ordinal for seat in seats] == [0, 1, 0, 1]
    seats[1].close()
    again = take_seat(AUTO, find, count, tmp_path)
    assert again.gpu.ordinal == 1


def test_only_gpus_of_the_first_ones_kind_are_chosen_by_themselves(tmp_path):
    find, count = gpus(H200, OTHER, H200)
    assert [take_seat(AUTO, find, count, tmp_path).gpu.ordinal for _ in range(4)] == [0, 2, 0, 2]


def test_a_named_device_is_kept_however_many_use_it_and_counts_for_the_others(tmp_path):
    find, count = gpus(H200, H200)
    assert [take_seat(0, find, count, tmp_path).gpu.ordinal for _ in range(2)] == [0, 0]
    assert [take_seat(AUTO, find, count, tmp_path).gpu.ordinal for _ in range(3)] == [1, 1, 0]


def test_no_device_is_an_error_by_name(tmp_path):
    find, count = gpus()
    with pytest.raises(MissingError, match="no device 0"):
        take_seat(AUTO, find, count, tmp_path)


def test_a_dead_engine_holds_no_seat(tmp_path):
    code = (
        "import os, sys; from pathlib import Path; from engine.judging.gpu_state import Gpu;"
        "from engine.judging.seats import take_seat;"
        "seat = take_seat(0, lambda n: Gpu(n, 'NVIDIA H200', f'GPU-{n}', '1'), lambda: 2, Path(sys.argv[1]));"
        "print(seat.gpu.uuid, flush=True); os.kill(os.getpid(), 9)"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=root, capture_output=True, text=True)
    assert (done.stdout.strip(), done.returncode) == ("GPU-0", -9)
    find, count = gpus(H200, H200)
    assert take_seat(AUTO, find, count, tmp_path).gpu.ordinal == 0
