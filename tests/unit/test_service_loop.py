"""The judge's own process between requests: lines as they come, and what it does while it waits."""

from __future__ import annotations

import gc
import os

import pytest

from engine.errors import WorkerError
from engine.judging import service
from engine.judging.service import SETTLING, Service


@pytest.fixture
def piped(monkeypatch):
    """Writes to what the service reads; closing it ends the lines."""
    reading, writing = os.pipe()
    before = os.dup(0)
    os.dup2(reading, 0)
    os.close(reading)
    monkeypatch.setattr(service, "IDLE_S", 0.01)
    yield writing
    os.dup2(before, 0)
    os.close(before)


def test_lines_come_whole_whatever_the_pieces(piped):
    os.write(piped, b'{"a": 1}\n{"b"')
    lines = service._lines()
    assert next(lines) == b'{"a": 1}'
    assert next(lines) is None
    os.write(piped, b": 2}\nrest")
    assert next(lines) == b'{"b": 2}'
    os.close(piped)
    assert list(lines) == []


class Waiting:
    """A service that answers once and whose looking around fails at first."""

    def __init__(self, piped, fault):
        self.piped, self.fault, self.looked, self.settled, self.closed = piped, fault, 0, 0, False

    def idle(self):
        self.looked += 1
        if self.looked == 1:
            raise self.fault
        if self.looked == 3:
            os.write(self.piped, b'{"op": "judge"}\n')
            os.close(self.piped)

    def handle_judge(self, message):
        return {"verdict": 1}

    handle_measure = handle_count = handle_cubins = handle_confirm = handle_judge

    def settle(self):
        self.settled += 1

    def close(self):
        self.closed = True


@pytest.mark.parametrize("fault", [WorkerError("lost"), RuntimeError("CUDA error")], ids=str)
def test_while_no_line_comes_it_looks_around_whatever_that_raises(piped, monkeypatch, capfd, fault):
    made = Waiting(piped, fault)
    monkeypatch.setattr(service, "Service", lambda opening: made)
    monkeypatch.setattr(service, "decode", lambda kind, tree, what: tree)
    os.write(piped, b'{"op": "open", "opening": {}}\n')
    before = os.dup(2)
    try:
        service.serve()
    finally:
        os.dup2(before, 2)
        os.close(before)
    assert made.looked == 3
    assert made.closed


@pytest.mark.parametrize("gpu", [True, False])
def test_what_the_first_requests_made_is_searched_for_garbage_no_more(monkeypatch, gpu):
    frozen = []
    monkeypatch.setattr(gc, "freeze", lambda: frozen.append(1))
    made = object.__new__(Service)
    made.gpu, made._answered = object() if gpu else None, 0
    for _ in range(2 * SETTLING):
        made.settle()
    assert len(frozen) == (SETTLING if gpu else 0)
