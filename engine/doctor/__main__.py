"""`python -m engine.doctor [--json]`: one line per thing a run may need, each ok, warn or fail with its remedy.

Exit 0 when the CPU mode can run, 2 when it cannot."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Mapping
from pathlib import Path

from engine.canonical import Json
from engine.doctor import Line, as_text, exit_code
from engine.doctor.gpu import gpu_lines
from engine.doctor.machine import key_line, machine_lines
from engine.doctor.packages import package_lines
from engine.project import conf_dir, resolve


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m engine.doctor", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    as_json = parser.parse_args(arguments).json
    lines = examine()
    if as_json:
        tree = {"exit_code": exit_code(lines), "lines": [dataclasses.asdict(line) for line in lines]}
        sys.stdout.write(json.dumps(tree, indent=2) + "\n")
    else:
        sys.stdout.write(as_text(lines))
    return exit_code(lines)


def examine() -> list[Line]:
    """Every line, in the order in which a newcomer would fix things."""
    lines = package_lines()
    missing = {line.name for line in lines if line.state == "fail"}
    lines += machine_lines(resolve("results"))
    lines += gpu_lines()
    if "pyyaml" not in missing:
        lines.append(key_line(_models(conf_dir() / "llm")))
    return [*lines, backend_line()]


def backend_line() -> Line:
    from engine.backends.detect import resolve as resolve_backend

    return Line("backend=auto", "ok", f"chooses {resolve_backend('auto')}")


def _models(folder: Path) -> Mapping[str, Json]:
    import yaml

    return {path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.yaml"))}


if __name__ == "__main__":
    sys.exit(main())
