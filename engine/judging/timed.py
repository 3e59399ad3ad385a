"""A candidate's plan made ready for the clock: rotated sets with values of their own, captured as graphs. What the
timed replays computed is compared with the reference afterwards."""

from __future__ import annotations

import random
import secrets
from collections.abc import Mapping

import torch

from engine.canonical import Json
from engine.judging.device_memory import is_large
from engine.judging.inputs import derive_seed
from engine.judging.layout import set_bytes
from engine.judging.plan import Life
from engine.judging.reference import fill_parameters
from engine.judging.replayed import POISON, NotReplayable, ReplayedVariant
from engine.judging.runs import LARGE_OUTPUT_BYTES, Call, result_bytes

ROTATION_FACTOR = 3
LEAST_SETS = 2
MAX_SETS = 64
MEMORY_SHARE = 0.3
CHECKED = 3


def rotation(size: int, cache_bytes: int, free_bytes: int) -> int:
    """Sets of `size` bytes that together are at least 3x L2, and at least LEAST_SETS, as far as memory allows."""
    wanted = max(LEAST_SETS, -(-ROTATION_FACTOR * cache_bytes // max(size, 1)))
    allowed = int(MEMORY_SHARE * free_bytes // max(size, 1))
    return max(1, min(wanted, allowed, MAX_SETS))


class TimedReplay(ReplayedVariant):
    """One candidate at full size in an executor of its own."""

    def open(self, *, cold: bool) -> None:
        """Load the plan, fill every set, capture, and poison again what the candidate allocates: what is read later was
        written by timed replays. Before each sample that is done too, so that no replay can rest on an earlier one.
        `cold`: L2 is emptied too."""
        self._cold = cold
        self._sampled: list[int] = []
        self._load("")
        self._calls = [self._timed_call(number) for number in range(self.replay.sets)]
        self.fill_state(self._calls[0])
        self._fill_all()
        layout, sets = self.replay.layout, range(self.replay.sets)
        kept = [layout.kept_fresh] if layout.kept_fresh[0] < layout.kept_fresh[1] else []
        kept += self.replay.literals(Life.KEPT, 0)
        message = {
            "op": "graphs",
            "sets": list(sets),
            "fresh": [[list(span)] for span in layout.fresh],
            "restored": [[list(span) for span in (*kept, *self.replay.literals(Life.CALL, n))] for n in sets],
            "byte": POISON[self._calls[0].poison],
        }
        self.executor.ask(message, self._left())
        for number, call in enumerate(self._calls):
            self.replay.poison_fresh(number, POISON[call.poison])
        torch.cuda.synchronize()
        self._replayed()

    def swap(self, other: TimedReplay) -> None:
        """Exchange executors and open both again: the same kernel takes another time in another process and memory, by
        some percent at 10 µs, and two runs with the places exchanged cancel that."""
        self.executor, other.executor = other.executor, self.executor
        self.open(cold=self._cold)
        other.open(cold=other._cold)

    def ask(self, message: Json, timeout_s: float) -> Mapping[str, Json]:
        """A command to its executor; `time_block` is all that the clock needs."""
        return self.executor.ask({"cold": self._cold, **message}, timeout_s)

    def check(self) -> None:
        """Compare outputs of some sets that were replayed, of one where they are large; Stop when the timed calls
        computed something else than judged ones."""
        # A kernel may add to a literal: the run of replays for the second clock left there what many calls added.
        sets = self._replayed(anew=self._has_literals)
        if sets:
            self._sampled = random.Random(secrets.randbits(62)).sample(sets, min(len(sets), CHECKED))
        # What could not be compared for want of memory is first the next time.
        if not self._sampled:
            raise NotReplayable("no set was replayed while it was timed")
        while self._sampled:
            number = self._sampled[0]
            call = self._calls[number]
            result = self._expected(call)
            if result is not None:
                # The module is shared with other candidates of the task, and holds the parameters of whoever drew last.
                reference = self.reference
                fill_parameters(
                    reference.model, reference.params, reference.kept, reference.device, call.params_seed, call.suite
                )
                self._intact(number, POISON[call.poison], self._inputs(call), call)
                self._where[call.name] = ("steady", number)
                self._check(call, self._collect([call.name], call.suite)[call.name], result)
                if result_bytes(result) > LARGE_OUTPUT_BYTES:
                    self._sampled = []
            del self._sampled[:1]

    def spoil(self) -> None:
        """Its executor must serve nobody else."""
        self.executor.broken = True

    def _replayed(self, *, anew: bool = False) -> list[int]:
        """Sets replayed since this was last asked, `anew`: or now, once more; the others hold poison."""
        answer = self.executor.ask({"op": "replayed", "anew": anew}, self._left())
        return [int(number) for number in answer["sets"]]

    @property
    def _has_literals(self) -> bool:
        return bool(self.replay.literals(Life.CALL, 0))

    @property
    def is_large(self) -> bool:
        """Whether it needs a large part of the device's memory."""
        return is_large(set_bytes(self.compiled.plan))

    @property
    def cold_matters(self) -> bool:
        """Whether one set fits into L2, so that a warm time says something else; with literals of a call there is no
        warm time, for nothing renews them between its calls."""
        return not self._has_literals and set_bytes(self.compiled.plan) < _cache_bytes()

    def _layout_seed(self) -> int | None:
        return None

    def _sets(self) -> int:
        free, _ = torch.cuda.mem_get_info()
        return rotation(set_bytes(self.compiled.plan), _cache_bytes(), free)

    def _timed_call(self, number: int) -> Call:
        seed = derive_seed(self.found.seed, "timed", number)
        params = derive_seed(self.found.seed, "timed", "params")
        return Call(f"timed{number}", "nominal", seed, params, "garbage")

    def _fill_all(self) -> None:
        for number, call in enumerate(self._calls):
            self.replay.fill(number, POISON[call.poison])
            self.replay.write_inputs(number, self._inputs(call), first=False)
        torch.cuda.synchronize()


def _cache_bytes() -> int:
    return int(torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size)
