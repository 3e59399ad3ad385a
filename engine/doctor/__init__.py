"""`python -m engine.doctor`: what this machine can do, what is missing, and the remedy."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Line:
    """One answer. `fail`: the CPU mode cannot run; `warn`: something that some runs need is absent or unwise."""

    name: str
    state: State
    found: str
    remedy: str = ""


def exit_code(lines: Iterable[Line]) -> int:
    """0 when the CPU mode can run, 2 when a line says fail."""
    return 2 if any(line.state == "fail" for line in lines) else 0


def as_text(lines: Iterable[Line]) -> str:
    """Aligned lines, each with its remedy under it where there is something to do."""
    shown = list(lines)
    width = max((len(line.name) for line in shown), default=0)
    out: list[str] = []
    for line in shown:
        out.append(f"{line.state:<4}  {line.name.ljust(width)}  {line.found}")
        if line.remedy and line.state != "ok":
            out.append(f"{'':<6}{'':<{width}}  -> {line.remedy}")
    return "\n".join(out) + "\n"
