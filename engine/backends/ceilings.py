"""What a machine's memory and arithmetic were seen to reach, and which rates floors therefore use. Pure but for files.

`python -m engine.doctor --ceilings` measures them once a GPU and keeps them below results/ceilings.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from engine.canonical import Json, digest, short
from engine.codec import decode_collecting, encode
from engine.errors import ConfigError, Fault

FOLDER = "ceilings"
"""Below the results folder."""

VERSION = 1
COPY = "dram_gbps"
READ = "dram_read_gbps"
COMPUTE = (
    "fp64_tflops",
    "fp32_tflops",
    "tf32_tflops",
    "fp16_tflops",
    "bf16_tflops",
    "fp8_tflops",
    "int8_tflops",
)
"""Dense matrix products: 2·m·n·k operations over time, for integers too."""


@dataclass(frozen=True, slots=True)
class Rate:
    """A rate in GB/s or TFLOP/s: the best size's median over `n` repeats, with its 10th and 90th percentile."""

    value: float
    lo: float
    hi: float
    n: int
    size: str


@dataclass(frozen=True, slots=True)
class Ceilings:
    """Rates of one GPU by name (`COPY`, `READ`, `COMPUTE`), and what they were seen under. `absent`: rate -> why it was
    not measured. `clock_mhz`: lowest and highest SM clock seen; empty where NVML does not answer."""

    v: int
    gpu: str
    uuid: str
    driver: str
    torch: str
    triton: str
    cuda: str
    date: str
    clock_mhz: tuple[float, ...]
    throttle: str
    rates: Mapping[str, Rate]
    absent: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class KnownRates:
    """The rates that floors use, and where each comes from. `identity`: empty for the configuration's alone."""

    values: Mapping[str, float]
    origins: Mapping[str, str]
    identity: str

    def origin(self, name: str) -> str:
        """Where a rate that is known comes from."""
        return self.origins[name]


def best(tried: Iterable[Rate]) -> Rate | None:
    """The rate with the highest median; None for none."""
    return max(tried, key=lambda rate: rate.value, default=None)


def rate_of(work: float, times_us: Iterable[float], size: str) -> Rate:
    """`work` in bytes or operations, done once in each of the times: GB/s or TFLOP/s are 1e3 or 1e6 of it in 1 µs, so
    the caller scales `work`. ValueError without a positive time."""
    found = sorted(times_us)
    if not found or found[0] <= 0:
        raise ValueError(f"expected positive times in µs, got {found[:3]}")
    # A rate falls where a time grows, so the percentiles change places.
    return Rate(work / _at(found, 0.5), work / _at(found, 0.9), work / _at(found, 0.1), len(found), size)


def _at(ordered: list[float], share: float) -> float:
    place = share * (len(ordered) - 1)
    low = int(place)
    return ordered[low] + (place - low) * (ordered[min(low + 1, len(ordered) - 1)] - ordered[low])


def file_of(results: Path, gpu: str, uuid: str) -> Path:
    """Where one GPU's ceilings are kept: named by its model and the start of its UUID."""
    slug = re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")
    return results / FOLDER / f"{slug}-{uuid.removeprefix('GPU-')[:8]}.json"


def write(results: Path, ceilings: Ceilings) -> Path:
    """Replace what was known of this GPU; the file."""
    path = file_of(results, ceilings.gpu, ceilings.uuid)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".tmp")
    beside.write_text(json.dumps(encode(ceilings), indent=1) + "\n", encoding="utf-8")
    beside.replace(path)
    return path


def read(path: Path) -> Ceilings:
    """Stored ceilings. ConfigError for a file that holds something else, or numbers that no rate can be."""
    hint = "delete the file, or measure again: python -m engine.doctor --ceilings"
    try:
        tree: Json = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError([Fault("ceilings", f"expected JSON: {error}", str(path))], hint=hint) from error
    if not isinstance(tree, dict) or "v" not in tree or tree["v"] != VERSION:
        raise ConfigError([Fault("ceilings.v", f"expected version {VERSION} of the form", str(path))], hint=hint)
    faults: list[Fault] = []
    found: Ceilings = decode_collecting(Ceilings, tree, "", faults)
    if faults:
        raise ConfigError([replace(fault, file=str(path)) for fault in faults], hint=hint)
    wrong = [name for name, rate in found.rates.items() if not 0 < rate.lo <= rate.value <= rate.hi]
    if wrong:
        told = "expected 0 < lo <= value <= hi"
        raise ConfigError([Fault(f"ceilings.rates.{name}", told, str(path)) for name in wrong], hint=hint)
    return found


def stored(results: Path, gpu: str, uuid: str) -> Ceilings | None:
    """The ceilings of this GPU; else the latest of another one of the same name; None where there are none."""
    own = file_of(results, gpu, uuid)
    if own.is_file():
        return read(own)
    others = [read(path) for path in sorted((results / FOLDER).glob("*.json"))]
    return max((found for found in others if found.gpu == gpu), key=lambda found: found.date, default=None)


def known_rates(
    hardware: Mapping[str, float], hardware_source: str, measured: Ceilings | None = None, uuid: str = ""
) -> KnownRates:
    """Measured rates where there are any, the configuration's `hardware` for the rest; `uuid`: the GPU at hand."""
    rates = {name: value for name, value in hardware.items() if name.endswith(("_gbps", "_tflops"))}
    origins = dict.fromkeys(rates, hardware_source)
    if measured is None:
        return KnownRates(rates, origins, "")
    whose = "" if measured.uuid == uuid else f" on another {measured.gpu}"
    for name, rate in measured.rates.items():
        rates[name] = rate.value
        origins[name] = f"measured {measured.date}{whose}"
    told = {name: rate.value for name, rate in measured.rates.items()}
    return KnownRates(rates, origins, f"{measured.date} {short(digest(told))}")


def rows(ceilings: Ceilings) -> list[dict[str, Json]]:
    """One row a rate, those that are absent last, for a table."""
    found: list[dict[str, Json]] = []
    for name in (COPY, READ, *COMPUTE):
        if name in ceilings.rates:
            rate = ceilings.rates[name]
            found.append(
                {"rate": name, "median": rate.value, "p10": rate.lo, "p90": rate.hi, "n": rate.n, "size": rate.size}
            )
    return found + [{"rate": name, "size": why} for name, why in ceilings.absent.items()]
