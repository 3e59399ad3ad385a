"""How a command ends."""

from __future__ import annotations

import io
import os

import pytest

from engine.command import INTERRUPTED, exit_code, reader_left
from engine.errors import EngineError, MissingError


def raising(error):
    def work():
        raise error

    return work


def test_what_the_work_returns_is_the_code():
    assert exit_code(lambda: 3) == 3


@pytest.mark.parametrize(
    ("error", "code", "shown"),
    [
        (EngineError("broke"), 1, "it: broke\n"),
        (MissingError("no key", hint="set it"), 2, "it: no key\nset it\n"),
        (KeyboardInterrupt(), INTERRUPTED, ""),
    ],
)
def test_an_error_is_a_line_with_its_hint(capsys, error, code, shown):
    assert exit_code(raising(error), "it: ") == code
    assert capsys.readouterr().err == shown


def test_a_closed_pipe_is_no_error_and_nothing_more_is_said(monkeypatch):
    silent = io.StringIO()
    monkeypatch.setattr("sys.stderr", silent)
    assert exit_code(raising(BrokenPipeError())) == 0
    assert silent.closed


def test_a_bug_is_not_hidden():
    with pytest.raises(ZeroDivisionError):
        exit_code(raising(ZeroDivisionError()))


def test_a_stream_that_nobody_reads_is_silenced(tmp_path):
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as stream:  # noqa: PTH123 - a descriptor has no path
        assert reader_left(stream, "seen by nobody")
        assert not reader_left(stream, "gone")
    with (tmp_path / "log").open("w") as stream:
        assert not reader_left(stream, "read")
    assert (tmp_path / "log").read_text() == "read"
