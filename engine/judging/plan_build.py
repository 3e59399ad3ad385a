"""From what was recorded of __init__ and three calls to a launch plan: what is kept, what repeats, and kernels' IR."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from engine.canonical import Json
from engine.judging.lowering import CompileFailed, Specialiser
from engine.judging.plan import Buffer, Call, HostCall, Kernel, Life, Origin, Plan, Ref, Step
from engine.judging.plan_recorder import INIT, Noted, PlanRecorder, Recording, Storage, buffers_of

CHANGES = "forward() keeps changing from call to call"
SLOW = "its kernels' IR was not made in time"


@dataclass(slots=True)
class _Local:
    """Buffers of one call, by first appearance, so that two calls on different memory compare equal."""

    storages: Sequence[Storage]
    phase: int
    numbers: dict[int, int] = field(default_factory=dict)
    forms: list[tuple[object, ...]] = field(default_factory=list)

    def __call__(self, index: int) -> int:
        storage = self.storages[index]
        if storage.phase != self.phase:
            return index
        if index not in self.numbers:
            self.numbers[index] = -1 - len(self.numbers)
            self.forms.append((storage.bytes, storage.dtype, storage.origin, storage.name, storage.data))
        return self.numbers[index]


def build(recorder: PlanRecorder, prelude: Sequence[Noted], calls: Sequence[Recording], deadline: float) -> Plan | None:
    """The plan, or None with the recorder's `reason` set. Raises CompileFailed when a kernel does not pass Triton's
    front end. `deadline` on time.monotonic()."""
    storages = recorder.storages
    whole = [_as_call([noted.step for noted in call.steps], call.outputs, call.tree) for call in calls]
    forms = [_form(call, storages, phase) for phase, call in enumerate(whole, INIT + 1)]
    if forms[1] != forms[2]:
        recorder.refuse(CHANGES)
    if recorder.reason is not None:
        return None
    first, steady = (None, whole[1]) if forms[0] == forms[1] else (whole[0], whole[1])
    emitted = [call for call in (first, steady) if call is not None]
    used = {index for call in emitted for index in _buffers(call)}
    opening = _live(prelude, used, storages)
    used.update(index for step in opening for index in buffers_of(step))
    kernels = _Kernels(recorder.specialiser, deadline)
    before = kernels.settled_call(_as_call(opening, (), None))
    emitted = [kernels.settled_call(call) for call in emitted]
    if kernels.late:
        recorder.refuse(SLOW)
        return None
    kept = {index for index in used if storages[index].phase == INIT}
    kept.update(index for index in _buffers(steady) if storages[index].phase == INIT + 1)
    order = sorted(used)
    numbers = {index: position for position, index in enumerate(order)}
    renamed = [_renamed(call, numbers.__getitem__) for call in [before, *emitted]]
    return Plan(
        buffers=tuple(_buffer(storages[index], index in kept) for index in order),
        kernels=tuple(kernels.made),
        prelude=renamed[0].steps,
        first=renamed[1] if first is not None else None,
        steady=renamed[-1],
    )


def _buffer(storage: Storage, kept: bool) -> Buffer:
    life = Life.KEPT if kept else Life.CALL
    return Buffer(storage.bytes, storage.dtype, storage.origin, life, storage.name, storage.data)


def _buffers(call: Call) -> Iterable[int]:
    for step in call.steps:
        yield from buffers_of(step)
    yield from (ref.buffer for ref in call.outputs)


def _form(call: Call, storages: Sequence[Storage], phase: int) -> tuple[object, ...]:
    local = _Local(storages, phase)
    return (_renamed(call, local), tuple(local.forms))


def _live(prelude: Sequence[Noted], used: set[int], storages: Sequence[Storage]) -> list[Step]:
    """The steps of __init__ that later ones depend on. What initialises parameters is none: the judge fills them."""
    live = {index for index in used if storages[index].origin is not Origin.STATE}
    kept: list[Step] = []
    for noted in reversed(prelude):
        is_order = noted.step.call is None and not noted.step.launch
        if is_order or noted.writes & live:
            if not is_order:
                live |= {index for index in noted.touched if storages[index].origin is not Origin.STATE}
            kept.append(_without_state(noted.step, storages))
    steps = kept[::-1]
    return steps if any(step.launch or step.call for step in steps) else []


def _without_state(step: Step, storages: Sequence[Storage]) -> Step:
    if step.call is None:
        return step
    results = tuple(
        None if index is None or storages[index].origin is Origin.STATE else index for index in step.call.results
    )
    layouts = tuple(ref if index is not None else None for ref, index in zip(step.call.layouts, results, strict=True))
    return dataclasses.replace(step, call=dataclasses.replace(step.call, results=results, layouts=layouts))


def _as_call(steps: Sequence[Step], outputs: tuple[Ref, ...], tree: Json) -> Call:
    return Call(tuple(_ordered(steps)), outputs, tree)


def _ordered(steps: Sequence[Step]) -> Iterable[Step]:
    """Streams numbered by first appearance, and waits in their plainest form: a mark is kept only where its stream has
    been given more work before somebody waits for it."""
    marks = {step.event: place for place, step in enumerate(steps) if step.event is not None}
    needed: dict[int, int] = {}
    plain: dict[int, int] = {}
    for place, step in enumerate(steps):
        if step.wait_event is None:
            continue
        mark = marks[step.wait_event]
        between = steps[mark + 1 : place]
        if any(other.stream == steps[mark].stream and other.event is None for other in between):
            needed.setdefault(step.wait_event, len(needed))
        else:
            plain[place] = steps[mark].stream
    streams: dict[int, int] = {0: 0}
    for place, step in enumerate(steps):
        if step.event is not None and step.event not in needed:
            continue
        source = steps[marks[step.wait_event]].stream if step.wait_event is not None else None
        if source == step.stream:
            continue
        number = streams.setdefault(step.stream, len(streams))
        if place in plain:
            yield Step(number, wait=streams.setdefault(plain[place], len(streams)))
        elif step.event is not None:
            yield Step(number, event=needed[step.event])
        elif step.wait_event is not None:
            yield Step(number, wait_event=needed[step.wait_event])
        else:
            yield dataclasses.replace(step, stream=number)


def _renamed(call: Call, number: Callable[[int], int]) -> Call:
    steps = tuple(_renamed_step(step, number) for step in call.steps)
    return Call(steps, tuple(_renamed_ref(ref, number) for ref in call.outputs), call.tree)


def _renamed_ref(ref: Ref, number: Callable[[int], int]) -> Ref:
    return dataclasses.replace(ref, buffer=number(ref.buffer))


def _renamed_step(step: Step, number: Callable[[int], int]) -> Step:
    launches = tuple(
        dataclasses.replace(
            launch,
            arguments=tuple(
                dataclasses.replace(argument, buffer=number(argument.buffer))
                if argument.kind == "pointer"
                else argument
                for argument in launch.arguments
            ),
        )
        for launch in step.launch
    )
    call = None
    if step.call is not None:
        call = HostCall(
            step.call.op,
            _renamed_tree(step.call.arguments, number),
            _renamed_tree(step.call.keywords, number),
            tuple(None if index is None else number(index) for index in step.call.results),
            tuple(None if ref is None else _renamed_ref(ref, number) for ref in step.call.layouts),
        )
    return dataclasses.replace(step, launch=launches, call=call)


def _renamed_tree(tree: Json, number: Callable[[int], int]) -> Json:
    if isinstance(tree, list):
        return [_renamed_tree(item, number) for item in tree]
    if isinstance(tree, dict):
        if "tensor" in tree:
            buffer, *rest = tree["tensor"]
            return {"tensor": [number(buffer), *rest]}
        return {name: _renamed_tree(item, number) for name, item in tree.items()}
    return tree


class _Kernels:
    """Kernels of the plan in order of use; equal IR with equal options is one kernel."""

    def __init__(self, specialiser: Specialiser, deadline: float) -> None:
        self.made: list[Kernel] = []
        self.late = False
        self._specialiser, self._deadline = specialiser, deadline
        self._places: dict[Kernel, int] = {}
        self._done: dict[int, int | CompileFailed] = {}

    def settled_call(self, call: Call) -> Call:
        return dataclasses.replace(call, steps=tuple(map(self.settled, call.steps)))

    def settled(self, step: Step) -> Step:
        """The step with final kernel indices. Autotune configurations that do not pass the front end are left out;
        CompileFailed when none does."""
        if not step.launch:
            return step
        launches = []
        failure: CompileFailed | None = None
        for launch in step.launch:
            place = self._place(launch.kernel)
            if isinstance(place, CompileFailed):
                failure = failure or place
            else:
                launches.append(dataclasses.replace(launch, kernel=place))
        if not launches:
            assert failure is not None
            raise failure
        return dataclasses.replace(step, launch=tuple(launches))

    def _place(self, index: int) -> int | CompileFailed:
        if index not in self._done:
            self._done[index] = self._lower(index)
        return self._done[index]

    def _lower(self, index: int) -> int | CompileFailed:
        self.late = self.late or time.monotonic() > self._deadline
        if self.late:
            return 0
        kernel = self._specialiser.lower(index)
        if isinstance(kernel, CompileFailed):
            return kernel
        if kernel not in self._places:
            self._places[kernel] = len(self.made)
            self.made.append(kernel)
        return self._places[kernel]
