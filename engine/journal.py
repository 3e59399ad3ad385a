"""The journal of a run: append-only JSON lines, the one truth from which tables, reports and displays are made.

Every kind, its fields and the table that takes it are listed in docs/journal.md.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import re
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from engine.canonical import Json, digest
from engine.errors import StoreError, StoreFull

VERSION = 1

Listener = Callable[[Json], None]

ENVELOPE = ("v", "run_id", "seq", "t", "kind", "task_id", "stage")
"""Fields of every event, in the order in which they are written."""

_TYPES: Mapping[str, tuple[type, ...]] = {
    "run_id": (str,),
    "seq": (int,),
    "t": (int, float),
    "kind": (str,),
    "task_id": (str, type(None)),
    "stage": (str, type(None)),
}

_SLOT = ("role", "attempt", "sample")

EVENTS: Mapping[str, tuple[str, ...]] = {
    "sweep_job": ("sweep_id", "job", "overrides"),
    "label": ("label",),
    "run_started": ("config_hash", "version", "backend", "category", "provider", "model", "thresholds"),
    "environment": ("device", "facts"),
    "task_started": (
        "name",
        "category",
        "named",
        "classified",
        "facts",
        "contract",
        "contract_origin",
        "task_hash",
        "licence",
    ),
    "classification": ("evaluations",),
    "baseline": ("who", "score_kind", "median_us", "lo_us", "hi_us", "n", "floor_us"),
    "stage_started": ("category", "parent_id", "audit"),
    "rule": (
        "rule",
        "rule_kind",
        "when",
        "outcome",
        "fired",
        "obeyed",
        "operands",
        "missing",
        "why",
        "candidate_id",
    ),
    "llm_call": (
        *_SLOT,
        "category",
        "request_hash",
        "model",
        "provider",
        "answered_by",
        "finish",
        "input_tokens",
        "output_tokens",
        "cached_tokens",
        "reasoning_tokens",
        "cost_usd",
        "latency_s",
        "attempts",
    ),
    "llm_failed": (*_SLOT, "failure", "message"),
    "reply_unusable": (*_SLOT, "problem", "message"),
    "advice_unreadable": (*_SLOT, "expected"),
    "prompt_drift": ("slot", "difference"),
    "step": ("step_kind", "step", "wall_s"),
    "candidate": (
        "candidate_id",
        "parent_id",
        *_SLOT,
        "proposer",
        "audit",
        "category",
        "source_hash",
    ),
    "verdict": (
        "candidate_id",
        "status",
        "reason",
        "mode",
        "precision_class",
        "error_ratio",
        "variant",
        "suite",
        "launches",
        "host_ops",
        "message",
        "seed",
        "wall_s",
        "gpu_s",
        "stages",
    ),
    "timing": ("candidate_id", "who", "score_kind", "median_us", "lo_us", "hi_us", "n", "floor_us", "below_floor"),
    "ratio": ("candidate_id", "over", "value", "lo", "hi", "n"),
    "metric": ("candidate_id", "metric", "value", "unit", "source", "confidence", "note", "contradiction"),
    "promotion": ("candidate_id", "incumbent_id", "promoted", "why", "ratio"),
    "stage_ended": (
        "category",
        "outcome",
        "why",
        "rule",
        "best_id",
        "speedup",
        "score_kind",
        "stage_gain",
        "failures",
        "candidates",
    ),
    "confirmation": (
        "candidate_id",
        "outcome",
        "status",
        "reason",
        "mode",
        "message",
        "error_ratio",
        "variant",
        "suite",
        "variants",
        "drops",
        "sanitizers",
        "ratios",
        "chosen",
        "remarks",
        "seed",
        "wall_s",
        "gpu_s",
    ),
    "task_ended": (
        "category",
        "outcome",
        "why",
        "best_id",
        "speedup",
        "speedup_lo",
        "speedup_hi",
        "speedup_fastest",
        "fastest",
        "headroom",
        "score_kind",
        "confirmed",
    ),
    "task_failed": ("error", "message"),
    "job_failed": ("error", "message"),
    "waiting": ("where",),
    "run_ended": ("outcome", "tasks", "failed", "wall_s"),
}
"""Required fields by kind. A field may be null, never absent; further fields are kept as they come."""

_STATES: Mapping[str, tuple[str, ...]] = {
    "run_started": (),
    "environment": (),
    "task_started": (),
    "classification": (),
    "baseline": ("who",),
    "stage_started": (),
    "stage_ended": (),
    "task_ended": (),
    "run_ended": (),
}
"""Events of which the last one holds: the fields that, beside task and stage, name what it is said of."""

Subject = tuple[Json, ...]

_END: Subject = ("run_ended", None, None)

_UNCLEAN = re.compile(rb"\\u|NaN|Infinity|\d[eE]\+?\d{3}")
"""What `_clean` may have to replace, in the text of a line."""


class Journal:
    """Appends events of one run; one process at a time.

    A run that is continued repeats its events: one whose content (all but seq and t) is in the file already, of the
    same text of its task, is not written again, but still handed to the listeners as it was stored. Of what is said
    again and again, such as how a task began, the last event must hold: after another one, as when a task was edited
    and edited back, it is written.
    """

    def __init__(self, path: Path, run_id: str, listeners: tuple[Listener, ...] = ()) -> None:
        self.path = path
        self.run_id = run_id
        self.listeners = listeners
        self.due: bool | None = None
        """Whether something was paid for since the last durable event; while it is False, what the memo or a recording
        gives need not be on disk before the end. None: nobody tells."""
        self._lock = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        # Unbuffered: what a full disk refused must not be tried again behind our back when the file is closed.
        self._file = path.open("ab", buffering=0)
        try:
            self._take_over()
        except BaseException:
            self._file.close()
            raise

    def _take_over(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            hint = "wait for the other process or end it, then repeat the command"
            raise StoreError(f"another process is writing {self.path}", hint=hint) from error
        whole, events = _load(self.path)
        self._file.truncate(whole)
        self._size = whole
        for event in events:
            if event["run_id"] != self.run_id:
                raise StoreError(f"{self.path}: expected events of run {self.run_id}, found run {event['run_id']}")
        self._known: dict[str, Json] = {}
        self._latest: dict[Subject, str] = {}
        self._texts: dict[str, Json] = {}
        for event in events:
            self._remember(self._identified(event), event)
        self._next = max((event["seq"] for event in events), default=-1) + 1

    def write(
        self,
        kind: str,
        *,
        task_id: str | None = None,
        stage: str | None = None,
        durable: bool = False,
        **fields: Json,
    ) -> Json:
        """Append one event and return it as stored. `durable`: on disk before this returns. Numbers that are not
        finite are stored as null. An unknown kind or a missing field is a ValueError."""
        if kind not in EVENTS:
            raise ValueError(f"unknown kind of event '{kind}', expected one of {', '.join(EVENTS)}")
        absent = [name for name in EVENTS[kind] if name not in fields]
        if absent:
            raise ValueError(f"event '{kind}' lacks the fields {', '.join(absent)}")
        head = {"v": VERSION, "run_id": self.run_id, "kind": kind, "task_id": task_id, "stage": stage}
        content = {**head, **{name: _clean(value) for name, value in fields.items()}}
        with self._lock:
            event = self._stored(content, durable)
        for listener in self.listeners:
            listener(event)
        return event

    def _remember(self, identity: str, event: Json) -> None:
        self._known[identity] = event
        subject = _subject(event)
        if subject is not None:
            self._latest[subject] = identity
        if event["kind"] == "task_started":
            self._texts[event["task_id"]] = event.get("task_hash")
            # A run that begins a task again has not ended, whatever its last end says.
            self._latest.pop(_END, None)

    def _identified(self, event: Mapping[str, Json]) -> str:
        # The same said of another text of a task is another event, or nobody could tell what the present one took.
        text = None if event["kind"] == "task_started" else self._texts.get(event["task_id"])
        return _identity(event, text)

    def _stored(self, content: dict[str, Json], durable: bool) -> Json:
        identity, subject = self._identified(content), _subject(content)
        if identity in self._known and (subject is None or self._latest.get(subject) == identity):
            return self._known[identity]
        numbered = {**content, "seq": self._next, "t": round(time.time(), 6)}
        event = {**{name: numbered[name] for name in ENVELOPE}, **numbered}
        line = json.dumps(event, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode() + b"\n"
        try:
            self._append(line)
            if durable and self.due is not False:
                os.fsync(self._file.fileno())
                self.due = None if self.due is None else False
        except OSError as error:
            # Half a line here would be in the middle of the file once there is space again.
            self._file.truncate(self._size)
            hint = "free some space, then repeat the command: it continues"
            raise StoreFull(f"cannot write {self.path}: {error}", hint=hint) from error
        self._size += len(line)
        self._remember(identity, event)
        self._next += 1
        return event

    def _append(self, line: bytes) -> None:
        rest = memoryview(line)
        while rest:
            rest = rest[self._file.write(rest) :]

    def close(self) -> None:
        """Bring everything to disk and let others write. Closing twice is harmless."""
        if not self._file.closed:
            os.fsync(self._file.fileno())
            self._file.close()


def read_events(path: Path) -> list[Json]:
    """All events of a journal, without a torn last line, cleaned as `Journal.write` cleans: another program may have
    written it. Raises StoreError where there is none or it is damaged."""
    if not path.exists():
        raise StoreError(f"no journal at {path}", hint="the run id is the folder's name below results/runs")
    return _load(path)[1]


def whole_lines(data: bytes) -> bytes:
    """`data` up to and including its last complete line: a writer that was killed leaves half a line."""
    return data[: data.rfind(b"\n") + 1]


def _load(path: Path) -> tuple[int, list[Json]]:
    """The events, and how many bytes of the file they take."""
    lines = whole_lines(path.read_bytes()).splitlines(keepends=True)
    events: list[Json] = []
    size = 0
    for number, line in enumerate(lines, start=1):
        try:
            event = _clean(json.loads(line)) if _UNCLEAN.search(line) else json.loads(line)
            known = _envelope(event)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            if number == len(lines):
                break  # a power cut can leave a last line of the right length and the wrong content
            raise StoreError(
                f"{path}, line {number}: expected an event, found {line[:80]!r}",
                hint="the journal was changed by hand; move its folder away to start the run anew",
            ) from error
        if known["v"] != VERSION:
            raise StoreError(f"{path}, line {number}: expected journal version {VERSION}, found {known['v']!r}")
        events.append(event)
        size += len(line)
    return size, events


def _envelope(event: Json) -> dict[str, Json]:
    """The fields that every event has; KeyError or TypeError where one is absent or of another type."""
    known = {name: event[name] for name in ENVELOPE}
    for name, types in _TYPES.items():
        if not isinstance(known[name], types) or isinstance(known[name], bool):
            raise TypeError(f"{name} is {known[name]!r}")
    return known


def _subject(event: Mapping[str, Json]) -> Subject | None:
    """Of what the event is said, where the last one holds."""
    kind = event["kind"]
    if kind not in _STATES:
        return None
    return (kind, event["task_id"], event["stage"], *(str(event.get(name)) for name in _STATES[kind]))


def _identity(event: Mapping[str, Json], text: str | None) -> str:
    # A run that continues may have to make a step again that nobody keeps, such as a profile without counters.
    said_once = ("seq", "t", "wall_s") if event["kind"] == "step" else ("seq", "t")
    return digest([text, {name: value for name, value in event.items() if name not in said_once}])


def _clean(tree: Json) -> Json:
    """What every reader of JSON accepts: no NaN or infinity, no lone surrogate, no NUL; keys are texts."""
    if isinstance(tree, float):
        return tree if math.isfinite(tree) else None
    if isinstance(tree, str):
        return tree.encode("utf-8", "replace").decode().replace("\0", "\ufffd")
    if isinstance(tree, Mapping):
        return {_clean(str(name)): _clean(value) for name, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [_clean(value) for value in tree]
    return tree
