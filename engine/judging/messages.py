"""Words for what went wrong in a candidate's process: one reason, and a text that a repair prompt can use."""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from engine.canonical import Json
from engine.records import Reason, Status

_MEMORY_WORDS = (
    "not enough memory",
    "can't allocate memory",
    "cannot allocate memory",
    "out of memory",
    "_status_alloc_failed",
)
_DEVICE_WORDS = ("not compiled with cuda enabled", "found no nvidia driver", "nvtx functions not installed")
"""What a build of torch without CUDA says."""

_INTERPRETER_GAPS = frozenset({"NotImplementedError", "AttributeError"})
OUTPUT_CHARS = 600


@dataclass(frozen=True, slots=True)
class Failure:
    status: Status
    reason: Reason
    message: str


def is_memory(error: Exception | str) -> bool:
    """Whether an error, or what is told of one, says that a device or the host has no memory left."""
    return any(words in str(error).lower() for words in _MEMORY_WORDS)


def failure_of(error: Mapping[str, Json], when: str) -> Failure:
    """What an exception inside the candidate's process means."""
    kind, text = str(error["type"]), error_text(error)
    origin = str(error["origin"])
    lowered = str(error["message"]).lower()
    if kind == "OutOfBoundsError":
        return Failure(Status.FAILED, Reason.CRASH, f"{when}: {text}. A mask or an index is wrong.")
    if kind == "NeedsDevice" or any(words in lowered for words in _DEVICE_WORDS):
        return Failure(Status.UNDECIDED, Reason.UNSUPPORTED, f"{when}: only a device can run this: {text}")
    if kind in ("MemoryError", "OutOfMemoryError") or any(words in lowered for words in _MEMORY_WORDS):
        return Failure(Status.FAILED, Reason.OUT_OF_MEMORY, f"{when}: {text}")
    if kind in ("OutOfResources",):
        return Failure(Status.FAILED, Reason.RESOURCES, f"{when}: {text}")
    is_gap = origin.endswith("interpreter.py") or "'InterpreterBuilder' object has no attribute" in str(
        error["message"]
    )
    if error["outer"] == "InterpreterError" and kind in _INTERPRETER_GAPS and is_gap:
        return Failure(Status.UNDECIDED, Reason.INTERPRETER_LIMIT, f"{when}: Triton's interpreter lacks this: {text}")
    if kind in ("CompilationError", "UnsupportedLanguageConstruct", "PTXASError") or "/triton/language/" in origin:
        return Failure(Status.FAILED, Reason.COMPILE, f"{when}: {text}")
    return Failure(Status.FAILED, Reason.EXCEPTION, f"{when}: {text}")


def error_text(error: Mapping[str, Json]) -> str:
    """`ValueError: ...` and the frames in the candidate's own file."""
    frames = error["frames"]
    lines = [f"{error['type']}: {error['message']}"]
    if isinstance(frames, Sequence) and frames:
        lines += ["in the candidate:", *(f"  {frame}" for frame in frames)]
    return "\n".join(lines)


def ended(status: int, when: str, output: str) -> Failure:
    """What the end of a candidate's process before its answer means; `status` is negative for a signal."""
    tail = f"; it printed: {output[-OUTPUT_CHARS:].strip()}" if output.strip() else ""
    if status == -signal.SIGXCPU:
        return Failure(Status.FAILED, Reason.TIMEOUT, f"the process used up its CPU time {when}{tail}")
    if status < 0:
        name = signal.Signals(-status).name
        text = f"the process died of {name} {when}{tail}"
        if -status == signal.SIGSEGV:
            text += " (a kernel read or wrote outside its tensors)"
        return Failure(Status.FAILED, Reason.CRASH, text)
    return Failure(
        Status.FAILED, Reason.CRASH, f"the process left with status {status} {when}, before its answer{tail}"
    )


def state_problem(wanted: Mapping[str, Sequence[int]], found: Mapping[str, Json]) -> str | None:
    """How a candidate's state_dict differs from the reference's, with both lists; None when it does not."""
    expected = {name: list(shape) for name, shape in wanted.items()}
    if expected == dict(found):
        return None
    missing = sorted(set(expected) - set(found))
    extra = sorted(set(found) - set(expected))
    parts = [f"missing {', '.join(missing)}"] if missing else []
    parts += [f"not in the reference: {', '.join(extra)}"] if extra else []
    parts += [
        f"{name} has shape {found[name]}, expected {expected[name]}"
        for name in sorted(set(expected) & set(found))
        if list(found[name]) != expected[name]
    ]

    def listed(names: Mapping[str, object]) -> str:
        return ", ".join(f"{name} {list(shape)}" for name, shape in sorted(names.items())) or "(none)"  # type: ignore[call-overload]

    return (
        f"state_dict of ModelNew differs: {'; '.join(parts)}. Reference: {listed(expected)}. "
        f"ModelNew: {listed(found)}. Keep the reference's parameter and submodule names, so that its weights load."
    )
