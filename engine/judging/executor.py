"""Replays launch plans: trusted code that never imports a candidate, holds no reference value and computes nothing of
its own. A child of kind `execute` of the fork server; the judge writes inputs and reads results in the shared arena.

Commands: `open` {device}; `reserve` {bytes} -> {token}; `load` {kernels} with cubins in base64; `plan` {plan, keys,
offsets, tf32}: where each set's buffers lie in the arena (-1: not there); `run` {part, set, traffic} one call; `choose`
{set, repeats} freezes autotuning; `export` {set, part, places} copies outputs that are not in the arena into it;
`graphs` {sets} captures; `time_block` {ms, cold} -> {times_us} of one call each; `wall_clock` {ms} -> {events_us,
wall_us} of a call over one run of replays; `replayed` {anew} -> {sets}: those since it was last asked, with `anew` each
once more first, renewed as before a sample; `count` {set, counters, limit, cold} -> {samples, launches, passes,
unknown}: hardware counters of each launch of the steady call; `forget`: free what the last plan made.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from engine.canonical import Json
from engine.codec import decode
from engine.errors import EngineError
from engine.judging import arena, counting, replaying
from engine.judging.gpu_graphs import GraphTimer
from engine.judging.images import Image
from engine.judging.plan import Plan
from engine.judging.wire import Channel, ChannelClosed

TRAFFIC_BYTES = 256 << 20
"""Written again and again beside a call, so that a race meets other timing than alone."""

MESSAGE_CHARS = 2000


@dataclass(slots=True)
class State:
    device: str = "cuda"
    arena: arena.Arena | None = None
    kernels: dict[str, replaying.LoadedKernel] = field(default_factory=dict)
    session: replaying.Session | None = None
    timer: GraphTimer | None = None
    traffic: torch.Tensor | None = None

    @property
    def ready(self) -> replaying.Session:
        if self.session is None:
            raise EngineError("a command to an executor that has no plan")
        return self.session


def _open(state: State, message: Json) -> Json:
    state.device = message["device"]
    if state.device != "cpu":
        torch.zeros(1, device=state.device)
        torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    return {}


def _reserve(state: State, message: Json) -> Json:
    """A new arena in place of the last, whose mapping the judge has closed."""
    _forget(state)
    if state.arena is not None:
        state.arena.close()
        state.arena = None
    state.arena = arena.create(state.device, message["bytes"])
    return {"token": state.arena.token}


def _forget(state: State, _: Json = None) -> Json:
    """Free what the last plan made, on the device too: what another candidate's host operations wrote is not to be read
    from freed memory."""
    state.timer = None
    if state.session is not None:
        state.session.end()
        state.session = None
    if state.device != "cpu":
        torch.cuda.empty_cache()
    return {}


def _load(state: State, message: Json) -> Json:
    for row in message["kernels"]:
        image = decode(Image, row, "compiled kernel")
        if image.key not in state.kernels:
            state.kernels[image.key] = replaying.load_image(image)
    return {}


def _plan(state: State, message: Json) -> Json:
    if state.arena is None:
        raise EngineError("a plan before an arena")
    _forget(state)
    # For host operations; kernels say for themselves what they do.
    torch.backends.cuda.matmul.allow_tf32 = message["tf32"]
    torch.backends.cudnn.allow_tf32 = message["tf32"]
    plan = decode(Plan, message["plan"], "plan")
    kernels = [state.kernels[key] if key is not None else None for key in message["keys"]]
    state.session = replaying.Session(plan, kernels, state.arena.bytes, message["offsets"], state.device)
    return {}


def _run(state: State, message: Json) -> Json:
    session = state.ready
    started = time.monotonic()
    if message["traffic"] and state.device != "cpu":
        _beside_traffic(state, lambda: session.run(message["part"], message["set"]))
    else:
        session.run(message["part"], message["set"])
    _synchronize(state)
    return {"wall_s": time.monotonic() - started}


def _beside_traffic(state: State, call: Callable[[], None]) -> None:
    if state.traffic is None:
        state.traffic = torch.empty(TRAFFIC_BYTES, dtype=torch.uint8, device=state.device)
    other = replaying.new_stream()
    with torch.cuda.stream(other):
        for value in range(8):
            state.traffic.fill_(value)
    call()


def _choose(state: State, message: Json) -> Json:
    """Time the choices of each autotuned launch and freeze the fastest, outside any clock that counts."""
    return {"choices": state.ready.choose(message["set"], message["repeats"])}


def _export(state: State, message: Json) -> Json:
    state.ready.export(message["part"], message["set"], message["places"])
    _synchronize(state)
    return {}


def _graphs(state: State, message: Json) -> Json:
    """Capture the steady call of each set. `fresh`: spans of bytes of each set that are filled with `byte` before each
    sample, and `restored`: spans that are put back to what they hold now, so that no replay finds what another left."""
    if state.arena is None:
        raise EngineError("graphs before an arena")
    state.timer = None
    memory = state.arena.bytes
    contents = {(start, end): memory[start:end].clone() for spans in message["restored"] for start, end in spans}

    def renewed(number: int) -> Callable[[], None]:
        spans = [memory[start:end] for start, end in message["fresh"][number]]
        kept = [(memory[start:end], contents[start, end]) for start, end in message["restored"][number]]

        def renew() -> None:
            for span in spans:
                span.fill_(message["byte"])
            for place, content in kept:
                place.copy_(content)

        return renew

    sets = message["sets"]
    state.timer = GraphTimer([_steady(state.ready, n) for n in sets], [renewed(n) for n in sets])
    return {"call_us": state.timer.call_us}


def _steady(session: replaying.Session, number: int) -> Callable[[], None]:
    return lambda: session.run("steady", number)


def _time_block(state: State, message: Json) -> Json:
    if state.timer is None:
        raise EngineError("time_block before graphs")
    return {"times_us": state.timer.block(message["ms"], cold=message["cold"])}


def _replayed(state: State, message: Json) -> Json:
    if state.timer is None:
        raise EngineError("replayed before graphs")
    if message["anew"]:
        state.timer.anew()
    return {"sets": state.timer.replayed()}


def _wall_clock(state: State, message: Json) -> Json:
    if state.timer is None:
        raise EngineError("wall_clock before graphs")
    events_us, wall_us = state.timer.by_wall_clock(message["ms"])
    return {"events_us": events_us, "wall_us": wall_us}


def _count(state: State, message: Json) -> Json:
    session, plan = state.ready, state.ready.plan
    names = [plan.kernels[step.launch[0].kernel].name for step in plan.steady.steps if step.launch]
    known = None if any(step.call is not None for step in plan.steady.steps) else names
    call, counters, limit = _steady(session, message["set"]), message["counters"], message["limit"]
    return counting.count(call, counters, limit, known, cold=message["cold"])


def _synchronize(state: State) -> None:
    if state.device != "cpu":
        torch.cuda.synchronize()


HANDLERS: Mapping[str, Callable[[State, Any], Json]] = {
    "open": _open,
    "reserve": _reserve,
    "load": _load,
    "plan": _plan,
    "run": _run,
    "choose": _choose,
    "export": _export,
    "graphs": _graphs,
    "time_block": _time_block,
    "wall_clock": _wall_clock,
    "replayed": _replayed,
    "count": _count,
    "forget": _forget,
}


def main(channel: Channel, layers: Sequence[str]) -> None:
    """Answer until the judge hangs up. After an error the judge ends this process: its context may be lost."""
    state = State()
    channel.send({"ready": True, "sandbox": list(layers)})
    with torch.no_grad():
        while True:
            try:
                message = channel.receive()
            except ChannelClosed:
                break
            try:
                answer = HANDLERS[message["op"]](state, message)
            except Exception as error:  # noqa: BLE001 - the process's outermost boundary: any fault is the answer
                text = f"{type(error).__name__}: {error}"[:MESSAGE_CHARS]
                answer = {"fault": {"type": type(error).__name__, "message": text}}
            channel.send(answer)
    if state.arena is not None and state.device == "cpu":
        state.arena.close()
