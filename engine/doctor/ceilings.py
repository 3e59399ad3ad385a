"""`python -m engine.doctor --ceilings`: measure a GPU's rates once, keep them, and show what floors use from now on."""

from __future__ import annotations

from pathlib import Path

from engine.backends.ceilings import Ceilings, rows, write
from engine.errors import MissingError
from engine.judging.gpu_state import find_gpu

WIDTHS = (16, 9, 9, 9, 4)


def keep_ceilings(results: Path, ordinal: int) -> tuple[Ceilings, Path]:
    """Measure device `ordinal` and store its rates below `results`. MissingError without a device."""
    try:
        gpu = find_gpu(ordinal)
    except MissingError as error:
        hint = "ceilings are measured on a GPU; without them floors use the rates of backends.<name>.hardware"
        raise MissingError(str(error), hint=hint) from error
    from engine.backends.ceiling_bench import measure_ceilings

    measured = measure_ceilings(gpu)
    return measured, write(results, measured)


def as_text(ceilings: Ceilings, path: Path) -> str:
    """A table of the rates in GB/s and TFLOP/s, under what they were seen, and where they are."""
    head = ("rate", "median", "p10", "p90", "n")
    out = [_row(head) + "  size"]
    for row in rows(ceilings):
        if "median" in row:
            cells = (row["rate"], f"{row['median']:.1f}", f"{row['p10']:.1f}", f"{row['p90']:.1f}", str(row["n"]))
            out.append(f"{_row(cells)}  {row['size']}")
        else:
            out.append(f"{row['rate'].ljust(WIDTHS[0])}  not measured: {row['size']}")
    clocks = " to ".join(f"{clock:.0f}" for clock in ceilings.clock_mhz) or "unknown"
    out.append(
        f"{ceilings.gpu} ({ceilings.uuid}), driver {ceilings.driver}, torch {ceilings.torch}, CUDA {ceilings.cuda}, "
        f"triton {ceilings.triton}, {ceilings.date}; SM clock {clocks} MHz, throttled: {ceilings.throttle}"
    )
    return "\n".join([*out, f"kept in {path}"]) + "\n"


def _row(cells: tuple[str, ...]) -> str:
    first, *others = zip(cells, WIDTHS, strict=True)
    return "  ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)])
