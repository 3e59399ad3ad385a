"""`python -m engine.report RUN`: write a run's summary, usage and figures again from its journal, and show its table.

RUN is a run's folder or its id under results/runs. Exit 0, or 2 when there is no such journal."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from engine.display import end_table
from engine.journal import read_events
from engine.project import resolve
from engine.report import rows, write_reports


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m engine.report", description=__doc__)
    parser.add_argument("run", help="a run's folder, or its id under results/runs")
    named = parser.parse_args(arguments).run
    folder = Path(named) if Path(named).is_dir() else resolve("results") / "runs" / named
    journal = folder / "events.jsonl"
    if not journal.is_file():
        sys.stderr.write(f"no journal at {journal}; `ls {folder.parent}` shows the runs there are\n")
        return 2
    events = read_events(journal)
    write_reports(folder, events)
    sys.stdout.write(end_table(rows(events), str(folder)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
