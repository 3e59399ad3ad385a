"""CUDA streams and events as data: which work is put on which stream, and what waits for what.

Everything that orders work is one primitive: an event is recorded on a stream, and a stream waits for it. A wait of
the host makes all work that is issued later, on any stream, wait.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch


class Sink(Protocol):
    """Hears events in program order."""

    def recorded(self, stream: int, event: int) -> None: ...

    def waited(self, stream: int, event: int) -> None: ...


class Streams:
    """The streams of this process; 0 is the caller's. Without a sink nothing is noted."""

    def __init__(self) -> None:
        self.sink: Sink | None = None
        self.unsaid: str | None = None
        """What the program asked for that is no stream, event or wait."""
        self.current = Stream.__new__(Stream)
        self.current._number(self, 0)
        self.default = self.current
        self._streams = 1
        self._events = 0
        self._host: list[tuple[int, int]] = []
        self._host_seen: dict[int, int] = {}
        self._used: set[int] = {0}
        self._since = 0

    def begin_call(self) -> None:
        """A call of forward() starts: the caller's stream is current, and earlier events are over."""
        self.current = self.default
        self._host, self._host_seen, self._used = [], {}, {0}
        self._since = self._events

    def new_stream(self) -> int:
        self._streams += 1
        return self._streams - 1

    def issue(self) -> int:
        """The stream that gets a step now, after it has waited for all that the host has waited for."""
        stream = self.current.number
        self._used.add(stream)
        for event, origin in self._host[self._host_seen.setdefault(stream, 0) :]:
            if origin != stream and self.sink is not None:
                self.sink.waited(stream, event)
        self._host_seen[stream] = len(self._host)
        return stream

    def record(self, stream: int) -> int:
        event, self._events = self._events, self._events + 1
        if self.sink is not None:
            self.sink.recorded(stream, event)
        return event

    def wait(self, stream: int, event: int | None) -> None:
        if event is None or event < self._since or self.sink is None:
            return
        self._used.add(stream)
        self.sink.waited(stream, event)

    def host_waits(self, stream: int) -> None:
        if self.sink is not None and stream in self._used:
            self._host.append((self.record(stream), stream))

    def host_waits_for_all(self) -> None:
        for stream in sorted(self._used):
            self.host_waits(stream)


STREAMS: Streams


class Stream:
    """`torch.cuda.Stream`."""

    def __init__(self, device: Any = None, priority: int = 0, **_: Any) -> None:
        self._number(STREAMS, STREAMS.new_stream())

    def _number(self, streams: Streams, number: int) -> None:
        self._streams, self.number = streams, number
        self.cuda_stream = number
        self.stream_id = number
        self.device = torch.device("cuda", 0)

    def wait_stream(self, stream: Stream) -> None:
        if stream.number != self.number:
            self._streams.wait(self.number, self._streams.record(stream.number))

    def wait_event(self, event: Event) -> None:
        self._streams.wait(self.number, event.number)

    def record_event(self, event: Event | None = None) -> Event:
        event = Event() if event is None else event
        event.record(self)
        return event

    def synchronize(self) -> None:
        self._streams.host_waits(self.number)

    def query(self) -> bool:
        return True


class Event:
    """`torch.cuda.Event`."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.number: int | None = None
        self._stream = 0

    def record(self, stream: Stream | None = None) -> None:
        stream = STREAMS.current if stream is None else stream
        self.number, self._stream = STREAMS.record(stream.number), stream.number

    def wait(self, stream: Stream | None = None) -> None:
        (STREAMS.current if stream is None else stream).wait_event(self)

    def synchronize(self) -> None:
        if self.number is not None and STREAMS.sink is not None and self.number >= STREAMS._since:
            STREAMS._host.append((self.number, self._stream))

    def query(self) -> bool:
        return True

    def elapsed_time(self, end: Event) -> float:
        return 0.0


class StreamContext:
    """`torch.cuda.stream(s)`; None leaves the current one."""

    def __init__(self, stream: Stream | None) -> None:
        self.stream = stream

    def __enter__(self) -> None:
        self._before = STREAMS.current
        if self.stream is not None:
            STREAMS.current = self.stream

    def __exit__(self, *_: object) -> None:
        STREAMS.current = self._before


class NeedsDevice(NotImplementedError):
    """The program asks for what only a device has; honest programs may."""


def refuse_graph(*_: Any, **__: Any) -> None:
    """In place of `torch.cuda.CUDAGraph` and what makes one."""
    STREAMS.unsaid = "CUDA graph"
    raise NeedsDevice("a CUDA graph cannot be captured without a device")


def set_stream(stream: Stream | None) -> None:
    if stream is not None:
        STREAMS.current = stream


STREAMS = Streams()
