"""The least time that an operator can take: docs/floors.md has the formula, its sources and its limits. Pure.

    floor = max(bytes / copy bandwidth, FLOPs of products / rate of the declared arithmetic, other FLOPs / fp32 rate)

The three overlap on a GPU, so the longest bounds a time from below where their sum would not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from engine.backends.ceilings import COPY, KnownRates
from engine.records import Facts, Measurement, Precision, ScoreKind

FLOOR_VERSION = "2"
"""Part of the key of what holds a floor: raise it when the formula changes."""

BELOW = 0.9
"""A measured time under this share of the floor is flagged: the floor, the facts or the kernel deserve a look."""

SPLIT_PRODUCTS = 3
"""A product of split operands on tensor cores (tl.dot's tf32x3) is as exact as fp32 and takes three TF32 products; on
an H200 such kernels ran at 0.92 to 0.96 of a floor made from the fp32 rate."""

PACKED = 2
"""Element-wise 16-bit arithmetic does two elements an instruction."""

PLAIN = frozenset({"pointwise", "reduce", "norm", "pool"})
"""Kinds of `OpCost` whose FLOPs cannot be given to tensor cores."""

STRUCTURED = frozenset({"diag", "diag_embed", "diagflat", "block_diag", "tril", "triu"})
"""Torch functions that make or leave zeros in a matrix: FLOPs of dense products beside them are not all useful."""

SIXTEEN_BITS = ("float16", "bfloat16")
SIXTEEN_BIT_RATES = ("fp16_tflops", "bf16_tflops")
EIGHT_BITS = {"float8_e4m3fn": "fp8_tflops", "float8_e5m2": "fp8_tflops", "int8": "int8_tflops", "uint8": "int8_tflops"}


@dataclass(frozen=True, slots=True)
class Floor:
    """`us`: the longest of the parts (µs by name: bytes, products, other); `bound` names it, `source` says at which
    rate and whence; `note` what was left out."""

    us: float
    bound: str
    parts: Mapping[str, float]
    source: str
    note: str = ""


def floor(facts: Facts, known: KnownRates, precision: Precision) -> Floor | None:
    """The floor of the variant that `facts` describe; None when they are unknown or, meant for the full size, those of
    a small variant."""
    if facts.bytes <= 0 or facts.traced != "full":
        return None
    products, other = split_flops(facts)
    structure = sorted({cost.name for cost in facts.costs} & STRUCTURED)
    name, product_rate = product_tflops(facts.dtype, known.values, precision)
    wide = PACKED if facts.dtype in SIXTEEN_BITS else 1
    parts = {
        "bytes": facts.bytes / (known.values[COPY] * 1e3),
        "products": 0.0 if structure else products / (product_rate * 1e6),
        "other": other / (known.values["fp32_tflops"] * wide * 1e6),
    }
    bound = max(parts, key=lambda part: parts[part])
    told = {
        "bytes": f"{facts.bytes:.4g} bytes at {known.values[COPY]:.4g} GB/s ({known.origin(COPY)})",
        "products": f"{products:.4g} FLOP of products at {product_rate:.4g} TFLOP/s ({known.origin(name)})",
        "other": f"{other:.4g} FLOP at {known.values['fp32_tflops'] * wide:.4g} TFLOP/s "
        f"({known.origin('fp32_tflops')})",
    }
    note = f"FLOPs of products left out: {', '.join(structure)} makes part of them useless" if structure else ""
    return Floor(parts[bound], bound, parts, told[bound], note if products else "")


def split_flops(facts: Facts) -> tuple[float, float]:
    """FLOPs that tensor cores can do, and those that they cannot. Without a list of costs one kind takes all."""
    if not facts.costs:
        matrix = facts.matmul_ops + facts.conv_ops + facts.recurrent_ops + facts.attention_ops
        return (facts.flops, 0.0) if matrix else (0.0, facts.flops)
    other = sum(cost.count * cost.flops for cost in facts.costs if cost.kind in PLAIN)
    return max(0.0, facts.flops - other), other


def product_tflops(dtype: str, rates: Mapping[str, float], precision: Precision) -> tuple[str, float]:
    """The name and value of the fastest rate at which products of `dtype` may be done under `precision`."""
    if dtype == "float64":
        return _first(rates, "fp64_tflops", "fp32_tflops")
    if dtype in EIGHT_BITS:
        name, value = _first(rates, EIGHT_BITS[dtype], "fp16_tflops")
        return name, value if name == EIGHT_BITS[dtype] else value * PACKED
    if dtype == "bfloat16":
        return _first(rates, *SIXTEEN_BIT_RATES[::-1])
    if dtype == "float16":
        return "fp16_tflops", rates["fp16_tflops"]
    if precision is Precision.REDUCED:
        return max(
            (_first(rates, *names) for names in (SIXTEEN_BIT_RATES, SIXTEEN_BIT_RATES[::-1])), key=lambda r: r[1]
        )
    if precision is Precision.TF32:
        return "tf32_tflops", rates["tf32_tflops"]
    split = rates["tf32_tflops"] / SPLIT_PRODUCTS
    return ("tf32_tflops", split) if split > rates["fp32_tflops"] else ("fp32_tflops", rates["fp32_tflops"])


def _first(rates: Mapping[str, float], *names: str) -> tuple[str, float]:
    return next((name, rates[name]) for name in names if name in rates)


def stated(measurement: Measurement, found: Floor | None) -> Measurement:
    """The measurement with the floor, where it comes from, and whether the candidate's time lies below `BELOW` of it.
    An estimate is never flagged: it is made by the same formula."""
    if found is None:
        return dataclasses.replace(measurement, floor_us=None)
    said = f"{found.source}; {found.note}" if found.note else found.source
    mine = measurement.timing("candidate")
    flagged = mine is not None and mine.score_kind is not ScoreKind.ESTIMATED and mine.median_us < BELOW * found.us
    return dataclasses.replace(
        measurement,
        floor_us=found.us,
        settings={**measurement.settings, "floor": said},
        below_floor=flagged,
    )
