"""One call from a launch plan, for compute-sanitizer to watch: `python -m engine.judging.sanitized FOLDER DONE`.

Trusted code that reads plan, machine code and values from FOLDER, runs `prelude`, `first` where there is one, and
`steady` once each, and makes the file DONE. Every buffer is an allocation of its own, so that a tool sees where it
ends; what the candidate allocates is left as the driver gives it, so that reading it before writing it is seen.
"""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from engine.codec import decode, encode
from engine.judging import replaying
from engine.judging.compiler import CompiledKernel
from engine.judging.driver import DeviceBytes, Driver
from engine.judging.images import Image
from engine.judging.plan import Buffer, Origin, Plan
from engine.judging.replayed import Compiled, image_of, input_bytes, state_bytes

REQUEST, VALUES = "request.json", "values"
IN_ARENA = frozenset({Origin.INPUT, Origin.STATE, Origin.EMPTY, Origin.LITERAL})


@dataclass(frozen=True, slots=True)
class SanitizedCall:
    """`keys`: of the images by kernel, None for one that nothing launches; `values`: indices of the buffers whose bytes
    lie in a file of that name."""

    plan: Plan
    keys: tuple[str | None, ...]
    images: tuple[Image, ...]
    values: tuple[int, ...]
    tf32: bool


def write_call(
    folder: Path,
    compiled: Compiled,
    inputs: Sequence[torch.Tensor],
    state: Mapping[str, torch.Tensor],
    *,
    tf32: bool,
) -> None:
    """The files of one call on these inputs and parameters. Raises NotReplayable where they do not fit the plan."""
    plan = compiled.plan
    (folder / VALUES).mkdir(parents=True)
    contents = dict(state_bytes(plan, state))
    for index, buffer in enumerate(plan.buffers):
        if buffer.origin is Origin.INPUT:
            contents[index] = input_bytes(inputs[int(buffer.name)], buffer.bytes)
    for index, content in contents.items():
        (folder / VALUES / str(index)).write_bytes(content.cpu().numpy().tobytes())
    kernels: Sequence[CompiledKernel] = tuple(compiled.kernels.values())
    call = SanitizedCall(plan, compiled.keys, tuple(map(image_of, kernels)), tuple(contents), tf32)
    (folder / REQUEST).write_text(json.dumps(encode(call)))


class OwnMemory:
    """An allocation of the driver's for each buffer of a plan that an arena would hold."""

    def __init__(self, folder: Path, call: SanitizedCall) -> None:
        self._driver, self._folder, self._call = Driver(), folder, call

    def give(self, session: replaying.Session) -> None:
        for index, buffer in enumerate(self._call.plan.buffers):
            if buffer.origin in IN_ARENA:
                session.place(index, self._made(index, buffer))

    def _made(self, index: int, buffer: Buffer) -> torch.Tensor:
        address = self._driver.allocate(max(1, buffer.bytes))
        memory = torch.as_tensor(DeviceBytes(address, max(1, buffer.bytes)), device="cuda")
        content = b""
        if index in self._call.values:
            content = (self._folder / VALUES / str(index)).read_bytes()
        elif buffer.origin is Origin.LITERAL:
            content = base64.b64decode(buffer.data)
        if content:
            memory[: len(content)].copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8))
        return memory


def perform(folder: Path) -> None:
    """Run the call in `folder` on this process's device."""
    call = decode(SanitizedCall, json.loads((folder / REQUEST).read_text()), REQUEST)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = call.tf32
    # The context that the driver's calls below are made in.
    torch.cuda.current_stream().synchronize()
    loaded = {image.key: replaying.load_image(image) for image in call.images}
    kernels = [None if key is None else loaded[key] for key in call.keys]
    nowhere = [[-1] * len(call.plan.buffers)]
    session = replaying.Session(call.plan, kernels, torch.empty(0, dtype=torch.uint8, device="cuda"), nowhere, "cuda")
    OwnMemory(folder, call).give(session)
    for part in ("prelude", *(["first"] if call.plan.first is not None else []), "steady"):
        session.run(part, 0)
        torch.cuda.synchronize()


def main() -> None:
    folder, done = map(Path, sys.argv[1:])
    with torch.no_grad():
        perform(folder)
    done.touch()


if __name__ == "__main__":
    main()
