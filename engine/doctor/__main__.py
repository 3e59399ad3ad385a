"""`python -m engine.doctor [--json]`: one line per thing a run may need, each ok, warn or fail with its remedy.
With `--ceilings`: measure what the GPU's memory and matrix units reach, once a machine, and keep it for floors.

Exit 0 when the CPU mode can run, 2 when it cannot, or when ceilings are asked for without a GPU."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Mapping
from pathlib import Path

from engine.canonical import Json
from engine.codec import encode
from engine.doctor import Line, as_text, exit_code
from engine.doctor.ascend import ascend_lines
from engine.doctor.ceilings import as_text as ceilings_text
from engine.doctor.ceilings import keep_ceilings
from engine.doctor.gpu import gpu_lines
from engine.doctor.machine import key_line, machine_lines
from engine.doctor.packages import package_lines
from engine.errors import EngineError
from engine.project import conf_dir, resolve


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m engine.doctor", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    parser.add_argument("--ceilings", action="store_true", help="measure bandwidth and matrix rates of the GPU")
    parser.add_argument("--device", type=int, default=0, metavar="N", help="which GPU (%(default)s)")
    options = parser.parse_args(arguments)
    if options.ceilings:
        return _ceilings(options.device, as_json=options.json)
    as_json = options.json
    lines = examine()
    if as_json:
        tree = {"exit_code": exit_code(lines), "lines": [dataclasses.asdict(line) for line in lines]}
        sys.stdout.write(json.dumps(tree, indent=2) + "\n")
    else:
        sys.stdout.write(as_text(lines))
    return exit_code(lines)


def _ceilings(device: int, *, as_json: bool) -> int:
    try:
        measured, path = keep_ceilings(resolve("results"), device)
    except EngineError as error:
        sys.stderr.write(f"{error}\n" + (f"{error.hint}\n" if error.hint else ""))
        return error.exit_code
    sys.stdout.write(json.dumps(encode(measured), indent=2) + "\n" if as_json else ceilings_text(measured, path))
    return 0


def examine() -> list[Line]:
    """Every line, in the order in which a newcomer would fix things."""
    lines = package_lines()
    missing = {line.name for line in lines if line.state == "fail"}
    lines += machine_lines(resolve("results"))
    lines += gpu_lines() + ascend_lines()
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
