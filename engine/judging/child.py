"""The candidate's side, shared by tracing and running: import, build, errors as data, and the command loop.

Everything here runs in the process that the candidate owns: what it answers is a claim, checked by the judge.
"""

from __future__ import annotations

import importlib.util
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from engine.canonical import Json
from engine.judging.wire import Channel, ChannelClosed

MODULE = "candidate"
TRACEBACK_LINES = 12

Handler = Callable[[Any, Json], Json]


def serve(channel: Channel, layers: tuple[str, ...], state: Any, handlers: Mapping[str, Handler]) -> None:
    """Answer commands until the judge hangs up; a candidate's exception becomes `{"error": ...}`."""
    channel.send({"ready": True, "sandbox": list(layers)})
    while True:
        try:
            message = channel.receive()
        except ChannelClosed:
            return
        try:
            answer = handlers[message["op"]](state, message)
        except BaseException as error:  # noqa: BLE001 - the boundary of the process: SystemExit of a candidate is data
            answer = {"error": describe(error)}
        channel.send(answer)


def import_candidate(source: str, folder: Path) -> ModuleType:
    """Write the source where inspect finds it (Triton reads kernels from their file) and import it."""
    path = folder / f"{MODULE}.py"
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(MODULE, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[MODULE] = module
    spec.loader.exec_module(module)
    return module


def build(module: ModuleType, init: Json) -> Any:
    """`ModelNew(*args, **kwargs)` in eval mode, from the judge's plain values."""
    if not hasattr(module, "ModelNew"):
        raise AttributeError("the module defines no class ModelNew")
    arguments, keywords = decode_plain(init["args"]), decode_plain(init["kwargs"])
    return module.ModelNew(*arguments, **keywords).eval()


def encode_plain(value: Any) -> Json:
    """Init inputs as JSON; TypeError for what is not plain (tensors, modules)."""
    if isinstance(value, tuple):
        return {"tuple": [encode_plain(item) for item in value]}
    if isinstance(value, list):
        return [encode_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {"map": {name: encode_plain(item) for name, item in value.items()}}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    import torch

    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    raise TypeError(f"get_init_inputs returns a {type(value).__name__}, expected plain values")


def decode_plain(value: Json) -> Any:
    """The inverse of `encode_plain`."""
    if isinstance(value, list):
        return [decode_plain(item) for item in value]
    if not isinstance(value, dict):
        return value
    ((key, content),) = value.items()
    if key == "tuple":
        return tuple(decode_plain(item) for item in content)
    if key == "dtype":
        import torch

        return getattr(torch, content)
    return {name: decode_plain(item) for name, item in content.items()}


def describe(error: BaseException) -> Json:
    """What a repair prompt needs of an exception: type, text, and the frames that lie in the candidate's file."""
    chain = [error]
    # `raise e from e` makes a ring.
    while (cause := chain[-1].__cause__) is not None and not any(cause is link for link in chain):
        chain.append(cause)
    frames = []
    for link in reversed(chain):
        for frame in traceback.extract_tb(link.__traceback__):
            if Path(frame.filename).name == f"{MODULE}.py":
                frames.append(f"line {frame.lineno}, in {frame.name}: {frame.line}")
        if frames:
            break
    root = chain[-1]
    innermost = traceback.extract_tb(root.__traceback__)[-1:] if root.__traceback__ else []
    return {
        "type": type(root).__name__,
        "message": _text_of(root)[:4000],
        "frames": frames[-TRACEBACK_LINES:],
        "origin": innermost[0].filename if innermost else "",
        "outer": type(error).__name__,
    }


def _text_of(error: BaseException) -> str:
    try:
        return str(error)
    except BaseException as other:  # noqa: BLE001 - the same boundary: the text is made by the candidate's __str__
        return f"(its text cannot be had: str() raises {type(other).__name__})"
