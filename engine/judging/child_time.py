"""Untrusted process that times one candidate: it runs the candidate's Python, so its numbers stay `unverified`.

A child of kind `time` of the fork server. JSON lines: {"op": "open", ...} as `gpu_side.Open` -> {"settings": {...},
"sets": n}; {"op": "time_block", "ms": 5} -> {"times_us": [...]}. A failing candidate answers {"error": text} or dies.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from engine.canonical import Json
from engine.codec import decode
from engine.errors import EngineError
from engine.judging import child, gpu_side
from engine.judging.gpu_clock import CallTimer
from engine.judging.wire import Channel


@dataclass(slots=True)
class _State:
    timer: CallTimer | None = None


def _open(state: _State, message: Json) -> Json:
    tree = {name: value for name, value in message.items() if name != "op"}
    request = decode(gpu_side.Open, tree, "request to the candidate's clock")
    if request.source is None:
        raise EngineError("expected a candidate's source, got null")
    gpu_side.apply_precision(request.precision)
    task = gpu_side.load_module(request.task_source, "reference", request.folder)
    candidate = gpu_side.load_module(request.source, child.MODULE, request.folder)
    sets = gpu_side.input_sets(task, request.seed)
    model = gpu_side.build_model(task, candidate, "ModelNew", request.seed)
    state.timer = CallTimer(gpu_side.calls_of(model, sets), flush_l2=request.flush_l2)
    return {"settings": gpu_side.settings_in_force(), "sets": len(sets)}


def _time_block(state: _State, message: Json) -> Json:
    if state.timer is None:
        raise EngineError("time_block before a successful open")
    return {"times_us": state.timer.block(message["ms"])}


def main(channel: Channel, layers: tuple[str, ...]) -> None:
    """Serve one candidate until the channel closes; called in a confined child of the fork server."""
    with torch.inference_mode():
        child.serve(channel, layers, _State(), {"open": _open, "time_block": _time_block})
