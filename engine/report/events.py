"""Events of a journal as reports read them: every field there, and only what holds of the tasks as they are now."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from engine.canonical import Json
from engine.journal import ENVELOPE, EVENTS
from engine.store.tables import TABLES

_PLAIN: Mapping[str, tuple[type, ...]] = {
    "VARCHAR": (str,),
    "BIGINT": (int,),
    "DOUBLE": (int, float),
    "BOOLEAN": (bool,),
}
_TYPES: Mapping[str, Mapping[str, tuple[type, ...]]] = {
    kind: {
        column.field: _PLAIN[column.type]
        for column in table.columns
        if column.type in _PLAIN and column.field not in ENVELOPE
    }
    for table in TABLES
    for kind in table.kinds
}
"""What each field of each kind of event holds beside null; a field of any form is not there."""

_TIMED: Mapping[str, str] = {"timing": "who", "ratio": "over"}
"""Events with times of a kernel, and the field that names what was timed."""


def with_every_field(events: Iterable[Json]) -> list[Json]:
    """Events of a journal that an older engine or another program wrote, with null for fields that have come since, and
    for values of another type, as in the database."""
    return [{**dict.fromkeys(EVENTS[e["kind"]]), **e, **_mistyped(e)} if e["kind"] in EVENTS else e for e in events]


def _mistyped(event: Json) -> dict[str, None]:
    types = _TYPES[event["kind"]]
    return {
        name: None
        for name, value in event.items()
        if value is not None and name in types and not isinstance(value, types[name])
    }


def present(events: Sequence[Json]) -> Iterator[Json]:
    """Without what was told of another text of an operator than that of its last start: its file was edited since; and
    without a kernel's times on another device than the run's last one, where it was timed there, too."""
    last = {event["task_id"]: event["task_hash"] for event in events if event["kind"] == "task_started"}
    elsewhere = _timed_elsewhere(events)
    now: dict[str, str] = {}
    for event in events:
        task_id = event["task_id"]
        if event["kind"] == "task_started":
            now[task_id] = event["task_hash"]
        if (task_id not in now or now[task_id] == last[task_id]) and event["seq"] not in elsewhere:
            yield event


def _timed_elsewhere(events: Sequence[Json]) -> set[int]:
    """Numbers of the events with times that a later device replaced."""
    devices = [event["device"] for event in events if event["kind"] == "environment"]
    if all(device == devices[-1] for device in devices):
        return set()
    here = True
    timed: dict[bool, dict[int, tuple[str, ...]]] = {True: {}, False: {}}
    for event in events:
        if event["kind"] == "environment":
            here = event["device"] == devices[-1]
        elif event["kind"] in _TIMED:
            what = (event["kind"], event["task_id"], event["candidate_id"], event[_TIMED[event["kind"]]])
            timed[here][event["seq"]] = what
    anew = set(timed[True].values())
    return {seq for seq, what in timed[False].items() if what in anew}
