"""Measured rates: their arithmetic, their file, and which of several stored ones floors take."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from engine.backends.ceilings import Ceilings, Rate, best, file_of, known_rates, rate_of, read, rows, stored, write
from engine.doctor import __main__ as doctor
from engine.doctor.ceilings import as_text
from engine.errors import ConfigError

HARDWARE = {"sm_count": 132, "dram_gbps": 4300.0, "fp32_tflops": 67.0, "l2_bytes": 6e7}
COPY = Rate(4210.0, 4190.0, 4220.0, 25, "1024 MiB to 1024 MiB")
FOUND = Ceilings(
    v=1,
    gpu="NVIDIA H200",
    uuid="GPU-12345678-aaaa",
    driver="580.1",
    torch="2.11.0",
    triton="3.6.0",
    cuda="13.0",
    date="2026-11-20",
    clock_mhz=(1700.0, 1980.0),
    throttle="none",
    rates={"dram_gbps": COPY, "bf16_tflops": Rate(780.0, 770.0, 785.0, 25, "8192 cubed")},
    absent={"fp8_tflops": "RuntimeError: no such thing"},
)


@pytest.mark.parametrize(
    ("work", "times", "expected"),
    [
        # 2 GB moved in 500 µs: 2e9 bytes / 1e3 over µs is GB/s.
        (2e9 / 1e3, [500.0], (4000.0, 4000.0, 4000.0)),
        (2e9 / 1e3, [400.0, 500.0, 625.0], (4000.0, 2e6 / 600, 2e6 / 420)),
        # 2·8192³ operations in 1.4 ms are 785 TFLOP/s.
        (2 * 8192**3 / 1e6, [1400.0], (785.37, 785.37, 785.37)),
    ],
)
def test_a_rate_is_the_median_with_its_spread(work, times, expected):
    rate = rate_of(work, times, "s")
    assert (rate.value, rate.lo, rate.hi) == pytest.approx(expected, rel=1e-4)
    assert rate.n == len(times)


@pytest.mark.parametrize("times", [[], [0.0, 1.0], [-2.0]])
def test_a_rate_needs_positive_times(times):
    with pytest.raises(ValueError, match="positive"):
        rate_of(1.0, times, "s")


def test_the_best_size_counts():
    slow = replace(COPY, value=4000.0)
    assert best([slow, COPY]) == COPY
    assert best([]) is None


def test_what_is_written_is_read(tmp_path):
    path = write(tmp_path, FOUND)
    assert path == file_of(tmp_path, "NVIDIA H200", "GPU-12345678-aaaa")
    assert path.name == "nvidia-h200-12345678.json"
    assert read(path) == FOUND
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda tree: "no json", "JSON"),
        (lambda tree: json.dumps({**tree, "v": 0}), "version 1"),
        (lambda tree: json.dumps({key: value for key, value in tree.items() if key != "uuid"}), "uuid"),
        (
            lambda tree: json.dumps({**tree, "rates": {"dram_gbps": {**tree["rates"]["dram_gbps"], "lo": 0.0}}}),
            "rates.dram_gbps",
        ),
    ],
)
def test_a_spoilt_file_is_named(tmp_path, change, word):
    path = write(tmp_path, FOUND)
    path.write_text(change(json.loads(path.read_text())))
    with pytest.raises(ConfigError, match=word):
        read(path)


def test_the_own_device_comes_first_then_the_latest_of_its_name(tmp_path):
    assert stored(tmp_path, FOUND.gpu, FOUND.uuid) is None
    other = replace(FOUND, uuid="GPU-99999999-b", date="2026-11-22")
    older = replace(FOUND, uuid="GPU-88888888-c", date="2026-11-01")
    foreign = replace(FOUND, gpu="NVIDIA A100", uuid="GPU-77777777-d", date="2026-12-01")
    for one in (other, older, foreign):
        write(tmp_path, one)
    assert stored(tmp_path, FOUND.gpu, FOUND.uuid) == other
    write(tmp_path, FOUND)
    assert stored(tmp_path, FOUND.gpu, FOUND.uuid) == FOUND
    assert stored(tmp_path, "NVIDIA B200", "GPU-1") is None


def test_measured_rates_replace_declared_ones_and_say_so():
    declared = known_rates(HARDWARE, "datasheet")
    assert declared.values == {"dram_gbps": 4300.0, "fp32_tflops": 67.0}
    assert (declared.origin("dram_gbps"), declared.identity) == ("datasheet", "")
    known = known_rates(HARDWARE, "datasheet", FOUND, FOUND.uuid)
    assert known.values == {"dram_gbps": 4210.0, "fp32_tflops": 67.0, "bf16_tflops": 780.0}
    assert known.origin("dram_gbps") == "measured 2026-11-20"
    assert known.origin("fp32_tflops") == "datasheet"
    foreign = known_rates(HARDWARE, "datasheet", FOUND, "GPU-other")
    assert foreign.origin("dram_gbps") == "measured 2026-11-20 on another NVIDIA H200"


def test_the_identity_follows_the_values():
    known = known_rates(HARDWARE, "datasheet", FOUND, FOUND.uuid)
    again = known_rates(HARDWARE, "datasheet", replace(FOUND, driver="581"), FOUND.uuid)
    moved = replace(FOUND, rates={"dram_gbps": replace(COPY, value=4200.0)})
    assert known.identity == again.identity
    assert known.identity.startswith("2026-11-20 ")
    assert known_rates(HARDWARE, "datasheet", moved, FOUND.uuid).identity != known.identity


def test_the_table_has_every_rate_and_what_is_absent(tmp_path):
    assert [row["rate"] for row in rows(FOUND)] == ["dram_gbps", "bf16_tflops", "fp8_tflops"]
    text = as_text(FOUND, tmp_path / "f.json")
    assert "dram_gbps            4210.0" in text
    assert "not measured: RuntimeError: no such thing" in text
    assert "1700 to 1980 MHz" in text


def test_without_a_gpu_the_command_says_so(monkeypatch, capsys):
    from engine.errors import MissingError

    def refuse(ordinal):
        raise MissingError(f"CUDA device {ordinal} does not answer", hint="what to do")

    monkeypatch.setattr("engine.doctor.ceilings.find_gpu", refuse)
    assert doctor.main(["--ceilings", "--device", "3"]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "CUDA device 3 does not answer" in shown.err
    assert "ceilings are measured on a GPU" in shown.err
