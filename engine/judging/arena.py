"""Memory that the judge and an executor both see: the executor replays in it, the judge fills and reads it.

On a GPU it is one allocation of the executor's, mapped by the judge; on a CPU, where only tests replay plans without
kernels, a file. Whatever a kernel does to it, the judge's own memory is elsewhere.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path
from typing import Protocol

import torch

from engine.judging.driver import DeviceBytes, Driver


class Arena(Protocol):
    """`bytes`: all of it as a uint8 tensor. `token`: what `attach` needs in another process."""

    bytes: torch.Tensor
    token: str

    def close(self) -> None: ...


class DeviceArena:
    """An allocation of this process, or with `token` one of another process."""

    def __init__(self, size: int, token: str | None = None) -> None:
        torch.cuda.current_stream()
        self._driver, self._owned = Driver(), token is None
        self._address = self._driver.allocate(size) if token is None else self._driver.open_handle(bytes.fromhex(token))
        self.token = token if token is not None else self._driver.export_handle(self._address).hex()
        self.bytes = torch.as_tensor(DeviceBytes(self._address, size), device="cuda")

    def close(self) -> None:
        """Unmap it. The allocation itself lives until its owner closes it or ends."""
        self.bytes = torch.empty(0, dtype=torch.uint8)
        if self._owned:
            self._driver.free(self._address)
        else:
            self._driver.close_handle(self._address)


class FileArena:
    """A shared mapping of a file; `token` is its path."""

    def __init__(self, size: int, token: str | None = None) -> None:
        self._owned = token is None
        if token is None:
            descriptor, token = tempfile.mkstemp(prefix="arena-")
            os.ftruncate(descriptor, size)
            os.close(descriptor)
        self.token = token
        self.bytes = torch.from_file(token, shared=True, size=size, dtype=torch.uint8)

    def close(self) -> None:
        self.bytes = torch.empty(0, dtype=torch.uint8)
        if self._owned:
            with contextlib.suppress(FileNotFoundError):
                Path(self.token).unlink()


def create(device: str, size: int) -> Arena:
    """An arena of `size` bytes in this process."""
    return FileArena(size) if device == "cpu" else DeviceArena(size)


def attach(device: str, size: int, token: str) -> Arena:
    """The arena of `size` bytes that another process made."""
    return FileArena(size, token) if device == "cpu" else DeviceArena(size, token)
