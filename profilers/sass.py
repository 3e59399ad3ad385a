"""What a kernel's machine code consists of: instructions counted in a disassembly, whatever their share of the time.

Counts are of instructions in the code, not of executions: one in a loop counts once. Left out are padding (NOP) and
what never runs (predicated by !PT)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

PREFIX = "sass_"

_FUNCTION = re.compile(r"^\s*Function : (\S+)\s*$|^\.text\.(\S+):\s*$")
_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:\{\s*)?(?:@(!?\w+)\s+)?([A-Z][A-Z0-9_]*)((?:\.\w+)*)")

FAMILIES: Mapping[str, tuple[str, ...]] = {
    "ldg": ("LDG",),
    "stg": ("STG",),
    "ldgsts": ("LDGSTS",),
    "utma": ("UTMALDG", "UTMASTG", "UTMAREDG", "UTMAPF", "UBLKCP", "UBLKRED", "UBLKPF"),
    "lds": ("LDS",),
    "sts": ("STS",),
    "ldsm": ("LDSM",),
    "stsm": ("STSM",),
    "ldl": ("LDL",),
    "stl": ("STL",),
    "local": ("LDL", "STL"),
    "atom": ("ATOM", "ATOMG", "RED", "REDG"),
    "atoms": ("ATOMS",),
    "hmma": ("HMMA",),
    "imma": ("IMMA",),
    "dmma": ("DMMA",),
    "wgmma": ("HGMMA", "QGMMA", "IGMMA", "BGMMA"),
    "tcgen05": ("UTCHMMA", "UTCQMMA", "UTCIMMA", "UTCOMMA"),
    "tensor": (
        *("HMMA", "IMMA", "DMMA", "BMMA", "QMMA", "OMMA"),
        *("HGMMA", "QGMMA", "IGMMA", "BGMMA"),
        *("UTCHMMA", "UTCQMMA", "UTCIMMA", "UTCOMMA"),
    ),
    "ffma": ("FFMA", "FFMA2"),
    "fp32": ("FFMA", "FFMA2", "FADD", "FADD2", "FMUL", "FMUL2"),
    "fp64": ("DFMA", "DADD", "DMUL"),
    "hfma2": ("HFMA2", "HADD2", "HMUL2"),
    "mufu": ("MUFU",),
    "shfl": ("SHFL",),
    "bar": ("BAR",),
    "branch": ("BRA", "BRX", "CALL"),
}
"""Opcodes of each count, as the CUDA binary utilities list them per architecture. HFMA2.MMA of sm_80 is an fp16
multiply-add, often a constant being made, and no matrix instruction."""

_WIDE = {"8": 1, "U8": 1, "S8": 1, "16": 2, "U16": 2, "S16": 2, "64": 8, "128": 16, "256": 32}
"""Bytes of an access by its modifier; without one it is 4. LTC128B is a prefetch hint, not a width."""

WIDTHS: Mapping[str, tuple[str, ...]] = {
    "ldg": ("LDG",),
    "stg": ("STG",),
    "ldgsts": ("LDGSTS",),
    "load": ("LDG", "LDGSTS"),
}
"""Accesses to global memory whose bytes a thread are told; TMA moves whole tiles and has none."""

_WORD_BYTES = 4


def parse_sass(text: str) -> Mapping[str, Mapping[str, float]]:
    """Counters by function of `nvdisasm -c` or `cuobjdump -sass`: sass_instructions, sass_<family> of FAMILIES, and of
    WIDTHS sass_<access>_bytes_min, _max and _mean, absent where a function has no such access."""
    functions: dict[str, list[tuple[str, tuple[str, ...]]]] = {}
    current: list[tuple[str, tuple[str, ...]]] = []
    for line in text.splitlines():
        heading = _FUNCTION.match(line)
        if heading:
            current = functions.setdefault(heading[1] or heading[2], [])
            continue
        found = _INSTRUCTION.match(line)
        if found and found[1] not in ("!PT", "!UPT") and found[2] != "NOP":
            current.append((found[2], tuple(found[3].split(".")[1:])))
    return {name: _counters(code) for name, code in functions.items() if code}


def _counters(code: Sequence[tuple[str, tuple[str, ...]]]) -> Mapping[str, float]:
    opcodes = Counter(opcode for opcode, _ in code)
    found = {f"{PREFIX}instructions": float(len(code))}
    for family, members in FAMILIES.items():
        found[f"{PREFIX}{family}"] = float(sum(opcodes[member] for member in members))
    for access, members in WIDTHS.items():
        widths = [_bytes(modifiers) for opcode, modifiers in code if opcode in members]
        if widths:
            found[f"{PREFIX}{access}_bytes_min"] = float(min(widths))
            found[f"{PREFIX}{access}_bytes_max"] = float(max(widths))
            found[f"{PREFIX}{access}_bytes_mean"] = sum(widths) / len(widths)
    return found


def _bytes(modifiers: Sequence[str]) -> int:
    return next((_WIDE[modifier] for modifier in modifiers if modifier in _WIDE), _WORD_BYTES)
