"""What this machine's GPU reaches, as a table: copy and read bandwidth, matrix rates of each dtype.

    python -m benchmarks.ceilings --out FOLDER [--device 0] [--results results]

Writes FOLDER/ceilings.json and FOLDER/ceilings.md, and keeps the rates where floors look for them, as
`python -m engine.doctor --ceilings` does.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.worklist import machine, say, write_report
from engine.backends.ceilings import rows
from engine.canonical import Json
from engine.doctor.ceilings import keep_ceilings
from engine.project import resolve


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", type=int, default=0)
    parser.add_argument("--results", type=Path, default=resolve("results"))
    arguments = parser.parse_args()
    measured, path = keep_ceilings(arguments.results, arguments.device)
    arguments.out.mkdir(parents=True, exist_ok=True)
    state: list[dict[str, Json]] = [
        {"what": "SM clock, MHz", "seen": " to ".join(f"{clock:.0f}" for clock in measured.clock_mhz)},
        {"what": "throttled", "seen": measured.throttle},
        {"what": "GPU", "seen": f"{measured.gpu} {measured.uuid}"},
        {"what": "kept in", "seen": path.name},
    ]
    say(write_report(arguments.out, "ceilings", machine("cuda"), {"Rates": rows(measured), "State": state}))


if __name__ == "__main__":
    main()
