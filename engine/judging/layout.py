"""Where a plan's buffers lie in the arena: each between guard bytes, aligned to 16 bytes and no more, in as many sets
as calls are to be kept apart; what outlives a call lies once, before all sets."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from engine.judging.plan import Call, Life, Origin, Plan, Ref, tensors_of

GUARD_BYTES, WORD = 4096, 8
ALIGNMENT = 512
JITTER = 16
"""A buffer starts at a multiple of 512 bytes plus a random multiple of 16: no kernel may count on more."""

NAN_BYTE, GARBAGE_BYTE = 0xFF, 0x4B
"""What fresh memory holds. 0xFF repeated is NaN in every floating type and -1 in integers; 0x4B repeated is large and
finite (1.3e7 in fp32 and bf16, 14.6 in fp16). Guards hold the same byte."""

REUSE_ABOVE_BYTES = 8 << 30
"""Buffers of one call that never live at once share memory when a set would be larger than this."""

_IN_ARENA = frozenset({Origin.INPUT, Origin.STATE, Origin.EMPTY, Origin.LITERAL})


@dataclass(frozen=True, slots=True)
class Layout:
    """`offsets[set][buffer]` and `exports[set][output]` in bytes, -1 where not in the arena or not needed; `regions`:
    each set's start and end, guards included; `kept_end`: where the buffers that outlive a call end."""

    bytes: int
    kept_end: int
    regions: tuple[tuple[int, int], ...]
    offsets: tuple[tuple[int, ...], ...]
    exports: tuple[tuple[int, ...], ...]
    sizes: tuple[int, ...]
    export_sizes: tuple[int, ...]
    fresh: tuple[tuple[int, int], ...]
    """Each set's span of buffers that the candidate allocates, guards among them, nothing else."""
    kept_fresh: tuple[int, int]
    """The same of what outlives a call."""


def lay_out(plan: Plan, sets: int, seed: int | None) -> Layout:
    """A layout for `sets` calls at once; equal seeds give equal layouts. `seed` None: every buffer at a multiple of 512
    bytes, as PyTorch allocates: what lies across cache lines is slower, which a timing must not charge to a kernel."""
    draw = None if seed is None else random.Random(seed)
    sizes = tuple(buffer.bytes for buffer in plan.buffers)
    common = [-1] * len(plan.buffers)
    cursor = GUARD_BYTES
    kept_fresh = cursor
    for index in _of(plan, Life.KEPT):
        common[index], cursor = _place(cursor, sizes[index], draw)
        if plan.buffers[index].origin is not Origin.EMPTY:
            kept_fresh = cursor
    kept_end = cursor
    mine = _of(plan, Life.CALL)
    shared = _reused(plan, mine) if sum(sizes[i] for i in mine) > REUSE_ABOVE_BYTES else [[i] for i in mine]
    # What the candidate allocates comes last, so that one span holds all of it.
    shared.sort(key=lambda group: all(plan.buffers[index].origin is Origin.EMPTY for index in group))
    export_sizes = _export_sizes(plan)
    regions, offsets, exports, fresh = [], [], [], []
    for _ in range(sets):
        start, own = cursor, list(common)
        # The guard before the first buffer: the one behind the last set is compared with that set alone.
        cursor += GUARD_BYTES
        begin = cursor
        for group in shared:
            place, cursor = _place(cursor, max(sizes[i] for i in group), draw)
            if any(plan.buffers[index].origin is not Origin.EMPTY for index in group):
                begin = cursor
            for index in group:
                own[index] = place
        fresh.append((begin, cursor))
        places = []
        for size in export_sizes:
            place = -1
            if size is not None:
                place, cursor = _place(cursor, size, draw)
            places.append(place)
        regions.append((start, cursor))
        offsets.append(tuple(own))
        exports.append(tuple(places))
    taken = tuple(size or 0 for size in export_sizes)
    return Layout(
        bytes=cursor + GUARD_BYTES,
        kept_end=kept_end,
        regions=tuple(regions),
        offsets=tuple(offsets),
        exports=tuple(exports),
        sizes=sizes,
        export_sizes=taken,
        fresh=tuple(fresh),
        kept_fresh=(kept_fresh, kept_end),
    )


def _of(plan: Plan, life: Life) -> list[int]:
    """Buffers of one life in the arena, those that the candidate allocates last."""
    found = [index for index, buffer in enumerate(plan.buffers) if buffer.life is life and buffer.origin in _IN_ARENA]
    return sorted(found, key=lambda index: plan.buffers[index].origin is Origin.EMPTY)


def _export_sizes(plan: Plan) -> list[int | None]:
    """For each output position the most bytes that an operation's result has there in any call, None for none."""
    sizes: list[int | None] = [None] * max(len(call.outputs) for call in plan.calls)
    for call in plan.calls:
        for position, ref in enumerate(call.outputs):
            if plan.buffers[ref.buffer].origin is Origin.OP:
                sizes[position] = max(sizes[position] or 0, _bytes_of(ref))
    return sizes


def set_bytes(plan: Plan) -> int:
    """Bytes of one set, guards included."""
    layout = lay_out(plan, 1, 0)
    start, end = layout.regions[0]
    return end - start


def _place(cursor: int, size: int, draw: random.Random | None) -> tuple[int, int]:
    jitter = 0 if draw is None else JITTER * draw.randrange(ALIGNMENT // JITTER)
    start = -(-cursor // ALIGNMENT) * ALIGNMENT + jitter
    return start, -(-(start + size + GUARD_BYTES) // WORD) * WORD


def _bytes_of(ref: Ref) -> int:
    count = 1
    for extent in ref.shape:
        count *= extent
    return count * int(getattr(torch, ref.dtype).itemsize)


def _reused(plan: Plan, mine: Sequence[int]) -> list[list[int]]:
    """Groups of buffers that share a place: first fit by size over the steps between first and last use."""
    spans = _spans(plan.calls)
    last = max((len(call.steps) for call in plan.calls), default=0)
    groups: list[list[int]] = []
    free_at: list[tuple[int, int, int]] = []
    for index in sorted(mine, key=lambda i: spans.get(i, (0, last))[0]):
        begin, end = spans.get(index, (0, last))
        if plan.buffers[index].origin is not Origin.EMPTY:
            begin, end = 0, last
        size = plan.buffers[index].bytes
        fitting = [g for g, (until, low, high) in enumerate(free_at) if until < begin and low <= size <= high]
        if fitting:
            chosen = fitting[0]
            groups[chosen].append(index)
            free_at[chosen] = (end, *free_at[chosen][1:])
        else:
            groups.append([index])
            free_at.append((end, size // 2, size))
    return groups


def _spans(calls: Iterable[Call]) -> dict[int, tuple[int, int]]:
    """First and last step that uses each buffer. Outputs live to the end; of work on a side stream nothing here tells
    when it is done, or begun: what it uses lives throughout."""
    spans: dict[int, tuple[int, int]] = {}
    for call in calls:
        last = len(call.steps)
        for number, step in enumerate(call.steps):
            arguments = [argument for launch in step.launch for argument in launch.arguments]
            used = {argument.buffer for argument in arguments if argument.kind == "pointer"}
            if step.call is not None:
                used |= {ref.buffer for ref in tensors_of([step.call.arguments, step.call.keywords])}
            since, until = (number, number) if step.stream == 0 else (0, last)
            for buffer in used:
                begin, end = spans.get(buffer, (since, until))
                spans[buffer] = (min(begin, since), max(end, until))
        for ref in call.outputs:
            begin, end = spans.get(ref.buffer, (0, last))
            spans[ref.buffer] = (begin, max(end, last))
    return spans


class Guards:
    """The bytes around buffers, as 8-byte words and the bytes between a buffer's end and the next word."""

    def __init__(self, layout: Layout, memory: torch.Tensor) -> None:
        usable = layout.bytes // WORD * WORD
        self._bytes, self._words = memory[:usable], memory[:usable].view(torch.int64)
        kept = {(start, size) for start, size in zip(layout.offsets[0], layout.sizes, strict=True) if start >= 0}
        self._kept = self._index(kept, 0, layout.kept_end)
        self._sets = []
        for (low, high), row, exports in zip(layout.regions, layout.offsets, layout.exports, strict=True):
            places = [*zip(row, layout.sizes, strict=True), *zip(exports, layout.export_sizes, strict=True)]
            self._sets.append(self._index(set(places), low, high))

    def _index(self, places: set[tuple[int, int]], low: int, high: int) -> tuple[torch.Tensor, torch.Tensor]:
        inside = sorted(place for place in places if low <= place[0] < high)
        words, tails = _around(inside, low, high)
        return words.to(self._words.device), tails.to(self._words.device)

    def overwritten(self, number: int, byte: int, kept_byte: int) -> bool:
        """Whether a guard of set `number` differs from its fill, or one of the buffers that outlive calls."""
        return self._differs(self._sets[number], byte) or self._differs(self._kept, kept_byte)

    def _differs(self, guard: tuple[torch.Tensor, torch.Tensor], byte: int) -> bool:
        words, tails = guard
        word = int.from_bytes(bytes([byte]) * WORD, "little", signed=True)
        return bool((self._words[words] != word).any() | (self._bytes[tails] != byte).any())


def _around(taken: Sequence[tuple[int, int]], low: int, high: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices of the words in gaps between buffers that lie within GUARD_BYTES of one, and of the bytes between the
    end of a buffer and the first such word."""
    words = GUARD_BYTES // WORD
    parts, tails, end = [], list[int](), low
    for start, size in (*taken, (high, 0)):
        first, last = -(-end // WORD), start // WORD
        tails += range(end, min(WORD * first, start))
        if last - first > 2 * words:
            parts += [torch.arange(first, first + words), torch.arange(last - words, last)]
        elif last > first:
            parts.append(torch.arange(first, last))
        end = max(end, start + size)
    none = torch.empty(0, dtype=torch.int64)
    return torch.cat([none, *parts]), torch.tensor(tails, dtype=torch.int64)
