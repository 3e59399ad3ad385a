"""What both timed processes share: arithmetic settings, modules from source text, inputs made on the device, and the
loop that answers JSON lines."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from engine.canonical import Json
from engine.errors import EngineError
from engine.judging.gpu_clock import set_count
from engine.records import Precision
from engine.tasks.form import split_init

DEVICE = "cuda"
MESSAGE_CHARS = 2000


@dataclass(frozen=True, slots=True)
class Open:
    """First request of a timed process. `source` None: the reference itself. `seed` draws inputs and parameters."""

    task_source: str
    source: str | None
    precision: Precision
    seed: int
    folder: str
    flush_l2: bool
    trace: bool = False
    """Of a profiled process: launches and their times go to a file in `folder` instead of a mark for another tool."""


def apply_precision(precision: Precision) -> None:
    """Arithmetic of fp32 products and convolutions in this process; both sides of a pair get the same."""
    tf32 = precision is not Precision.IEEE
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32
    reduced = precision is Precision.REDUCED
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = reduced
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = reduced


def settings_in_force() -> dict[str, str]:
    """What this process computes under, read back from torch, for the record."""
    return {
        "matmul_tf32": str(torch.backends.cuda.matmul.allow_tf32),
        "cudnn_tf32": str(torch.backends.cudnn.allow_tf32),
        "cudnn_benchmark": str(torch.backends.cudnn.benchmark),
        "deterministic_algorithms": str(torch.are_deterministic_algorithms_enabled()),
        "autograd": "off" if torch.is_inference_mode_enabled() else "on",
    }


def load_module(source: str, name: str, folder: str) -> ModuleType:
    """Import `source` from a file of its own, because Triton reads a kernel's text from its file."""
    path = Path(folder, f"{name}.py")
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise EngineError(f"{path} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def device_inputs(task: ModuleType, seed: int) -> list[Any]:
    """`get_inputs()` with its factory calls answered by the GPU, so that gigabytes are not drawn on the host."""
    torch.manual_seed(seed)
    with torch.inference_mode(False), torch.no_grad(), torch.device(DEVICE):
        return [_on_device(value) for value in task.get_inputs()]


def build_model(task: ModuleType, owner: ModuleType, name: str, seed: int) -> torch.nn.Module:
    """`owner.name` built from `get_init_inputs()` on the GPU in evaluation mode, as it is judged.

    Built outside inference mode, because the compiler refuses some parameters that were made inside it.
    """
    torch.manual_seed(seed)
    with torch.inference_mode(False), torch.device(DEVICE):
        arguments, keywords = split_init(task.get_init_inputs())
        named = {key: _on_device(value) for key, value in keywords.items()}
        model: torch.nn.Module = getattr(owner, name)(*map(_on_device, arguments), **named)
    return model.to(DEVICE).eval()


def input_sets(task: ModuleType, seed: int) -> list[list[Any]]:
    """Input sets with values of their own, enough to rotate through more than L2 holds."""
    first = device_inputs(task, seed)
    count = set_count(sum(tensor.nbytes for tensor in first if isinstance(tensor, torch.Tensor)))
    return [first, *(device_inputs(task, seed + number) for number in range(1, count))]


def _on_device(value: Any) -> Any:
    return value.to(DEVICE) if isinstance(value, torch.Tensor) else value


def calls_of(model: Callable[..., object], sets: Sequence[Sequence[Any]]) -> list[Callable[[], object]]:
    """One call per input set."""

    def bound(arguments: Sequence[Any]) -> Callable[[], object]:
        return lambda: model(*arguments)

    return [bound(arguments) for arguments in sets]


def serve(handle: Callable[[Mapping[str, Json]], Json]) -> None:
    """Answer requests on stdin until it closes. What the served code prints goes to stderr, not into the answers.

    An exception becomes {"error": text}: this is the process's outermost boundary, and the code that it runs may be a
    candidate's.
    """
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for line in sys.stdin:
        try:
            answer = handle(json.loads(line))
        except Exception as error:  # noqa: BLE001 - outermost boundary of a process that runs unknown code
            answer = {"error": f"{type(error).__name__}: {error}"[:MESSAGE_CHARS]}
        answers.write(json.dumps(answer) + "\n")
