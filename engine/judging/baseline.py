"""Trusted process that times the reference, eager and compiled, under the same arithmetic as the candidate.

JSON lines: {"op": "open", ...} as `gpu_side.Open` -> {"settings": {...}, "sets": n}; {"op": "build", "who": name} ->
{"absent": null, or why}, name being eager, compile, eager_graph or compile_graph; {"op": "time_block", "who": name,
"ms": 5} -> {"times_us": [...]}; {"op": "count", "counters": [...], "limit": n} -> counters of one eager call
(`counting.count`). It never sees candidate code, and its inputs have values of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import ModuleType

import torch

from engine.canonical import Json
from engine.codec import decode
from engine.errors import EngineError
from engine.judging import counting, gpu_side
from engine.judging.gpu_clock import CallTimer
from engine.judging.gpu_graphs import GraphTimer


class Baselines:
    """One task's reference in its timed forms. A form that fails to build is absent with a note, never an error."""

    def __init__(self) -> None:
        self._timers: dict[str, CallTimer | GraphTimer] = {}
        self._task: ModuleType | None = None
        self._sets: list[list[Json]] = []

    def handle(self, message: Mapping[str, Json]) -> Json:
        request = {name: value for name, value in message.items() if name != "op"}
        if message["op"] == "open":
            return self._open(decode(gpu_side.Open, request, "request to the baseline"))
        if message["op"] == "build":
            return {"absent": self._build(request["who"])}
        if message["op"] == "count":
            counters, limit = request["counters"], request["limit"]
            return counting.count(self._eager(), counters, limit, None, cold=self._request.flush_l2)
        if message["op"] == "drop":
            del self._timers[request["who"]]
            torch.cuda.empty_cache()
            return {}
        timer = self._timers[request["who"]]
        cold = self._request.flush_l2
        times = timer.block(request["ms"], cold=cold) if isinstance(timer, GraphTimer) else timer.block(request["ms"])
        return {"times_us": times}

    def _open(self, request: gpu_side.Open) -> Json:
        gpu_side.apply_precision(request.precision)
        self._request = request
        self._task = gpu_side.load_module(request.task_source, "reference", request.folder)
        self._sets = gpu_side.input_sets(self._task, request.seed)
        return {"settings": gpu_side.settings_in_force(), "sets": len(self._sets)}

    def _opened(self) -> ModuleType:
        if self._task is None:
            raise EngineError("a command before a successful open")
        return self._task

    def _model(self, task: ModuleType) -> Callable[..., object]:
        return gpu_side.build_model(task, task, "Model", self._request.seed)

    def _eager(self) -> Callable[[], object]:
        return gpu_side.calls_of(self._model(self._opened()), self._sets)[0]

    def _build(self, who: str) -> str | None:
        task = self._opened()
        absent = None
        torch.cuda.empty_cache()
        try:
            mode, _, form = who.partition("_")
            model = self._model(task)
            if mode == "compile":
                model = torch.compile(model, dynamic=False)
            calls = gpu_side.calls_of(model, self._sets)
            if form == "graph":
                self._timers[who] = GraphTimer(calls)
            else:
                self._timers[who] = CallTimer(calls, flush_l2=self._request.flush_l2)
        except Exception as error:  # noqa: BLE001 - whatever the compiler raises means only that this form is absent
            absent = f"{type(error).__name__}: {error}"[: gpu_side.MESSAGE_CHARS]
        if absent is not None:
            # Only here: the exception held the tensors of what it ended.
            torch.cuda.empty_cache()
        return absent


def main() -> None:
    with torch.inference_mode():
        gpu_side.serve(Baselines().handle)


if __name__ == "__main__":
    main()
