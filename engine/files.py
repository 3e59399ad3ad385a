"""Files that other processes read while we write them."""

from __future__ import annotations

import os
from pathlib import Path


def write_whole(path: Path, text: str, *, survive_power_cut: bool = False) -> None:
    """Replace `path` by `text` at once: a reader sees the old file or the new one, and a kill leaves no half of one.
    `survive_power_cut`: the rename itself is on disk, too, before this returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    with beside.open("w", encoding="utf-8", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
    if survive_power_cut:
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
