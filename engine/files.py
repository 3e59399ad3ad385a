"""Files that other processes read while we write them."""

from __future__ import annotations

import os
from pathlib import Path


def write_whole(path: Path, text: str, *, survive_power_cut: bool = False, derived: bool = False) -> None:
    """Replace `path` by `text` at once: a reader sees the old file or the new one, and a kill leaves no half of one.
    `survive_power_cut`: the rename itself is on disk, too, before this returns. `derived`: the file is left to the
    operating system, as it can be written again after a power cut. An OSError leaves the old file and
    nothing beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open("w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            if not derived:
                os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    if survive_power_cut:
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
