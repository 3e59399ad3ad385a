"""What a hostile process may write on its socket or into its files: garbage ends it, and reaches nobody behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
from pathlib import Path

import pytest

from engine.judging import sandbox
from engine.judging.children import Child, ChildEnded, ChildTimeout, new_scratch
from engine.judging.wire import MAX_DEPTH, MAX_LINE, Channel, ChannelClosed, read_raw
from tests.support.hostile import Scripted


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield Channel(ours, hostile=True), theirs


def nested(opening: str, closing: str, depth: int) -> bytes:
    return b'{"a": ' + (opening * depth + "1" + closing * depth).encode() + b"}"


GARBAGE = {
    "no-json": b"hello",
    "empty": b"",
    "cut": b'{"a": ',
    "list": b"[1]",
    "text": b'"a"',
    "null": b"null",
    "not-utf-8": b'{"a": "\xff"}',
    "utf-16": '{"a": 1}'.encode("utf-16"),
    "raw-surrogate": b'{"a": "\xed\xa0\x80"}',
    "nan": b'{"wall_s": NaN}',
    "infinity": b'{"wall_s": Infinity}',
    "minus-infinity": b'{"wall_s": [-Infinity]}',
    "beyond-a-double": b'{"wall_s": 1e999}',
    "beyond-64-bits": b'{"wall_s": 1' + b"0" * 400 + b"}",
    "too-long-for-int": b'{"wall_s": 1' + b"0" * 5000 + b"}",
    "deep-lists": nested("[", "]", 100_000),
    "deep-objects": nested('{"a":', "}", 100_000),
    "deep-in-turn": nested('[{"a":', "}]", 100_000),
    "just-too-deep": nested("[", "]", MAX_DEPTH + 1),
    "unpaired": b'{"a": ' + b"[" * 100_000,
    "deep-behind-quotes": b'{"a\\"": "\\\\", "b": ' + b"[" * 5000 + b"]" * 5000 + b"}",
}


@pytest.mark.parametrize("line", GARBAGE.values(), ids=GARBAGE)
def test_garbage_closes_the_channel(pair, line):
    channel, theirs = pair
    # Longer than a socket's buffer, some of them.
    sender = threading.Thread(target=theirs.sendall, args=(line + b"\n",))
    sender.start()
    with pytest.raises(ChannelClosed):
        channel.receive(10.0)
    sender.join()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        pytest.param(nested("[", "]", 50), json.loads(nested("[", "]", 50)), id="nested-within-bounds"),
        pytest.param(b'{"a": "' + b"[{" * 5000 + b'"}', {"a": "[{" * 5000}, id="brackets-in-a-text"),
        pytest.param(b'{"a": "\\"' + b"[" * 5000 + b'"}', {"a": '"' + "[" * 5000}, id="behind-an-escaped-quote"),
        pytest.param(b'{"a": "NaN 1e999 ' + b"9" * 99 + b'"}', {"a": "NaN 1e999 " + "9" * 99}, id="numbers-in-a-text"),
        pytest.param(b'{"a": [' + b"[]," * 5000 + b"[]]}", {"a": [[]] * 5001}, id="wide"),
        pytest.param(b'{"a": -9223372036854775808}', {"a": -(2**63)}, id="64-bits"),
        pytest.param(b'{"a": 1.797e308}', {"a": 1.797e308}, id="largest-double"),
        pytest.param(b'{"\\ud800": ["\\udc00x"]}', {"?": ["?x"]}, id="halves-of-surrogate-pairs"),
        pytest.param(b'{"a": "\\ud83d\\ude00"}', {"a": "\U0001f600"}, id="a-whole-surrogate-pair"),
    ],
)
def test_what_is_plain_json_arrives(pair, line, message):
    channel, theirs = pair
    theirs.sendall(line + b"\n")
    received = channel.receive(10.0)
    assert received == message
    json.dumps(received, ensure_ascii=False, allow_nan=False).encode()


def test_messages_arrive_one_by_one_whatever_their_pieces(pair):
    channel, theirs = pair
    for piece in (b'{"a"', b': 1}\n{"b": 2', b"}\n", b'{"c": 3}\n'):
        theirs.sendall(piece)
    assert [channel.receive(10.0) for _ in range(3)] == [{"a": 1}, {"b": 2}, {"c": 3}]


def test_the_judge_may_say_what_json_lacks():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        Channel(theirs).send({"fill": float("-inf")})
        assert Channel(ours).receive(10.0) == {"fill": float("-inf")}


def test_a_line_without_end_is_garbage(pair, monkeypatch):
    monkeypatch.setattr("engine.judging.wire.MAX_LINE", 1 << 16)
    assert MAX_LINE > 1 << 16
    channel, theirs = pair
    theirs.setblocking(False)
    with pytest.raises(ChannelClosed, match="above"):
        while True:
            theirs.send(b"x" * 4096)
            try:
                channel.receive(0.001)
            except TimeoutError:
                continue


def test_who_does_not_read_is_not_waited_for(pair):
    channel, _ = pair
    with pytest.raises(TimeoutError):
        channel.send({"text": "x" * (64 << 20)}, timeout_s=0.2)


def a_child(server, tmp_path, **changed):
    confinement = sandbox.Confinement(new_scratch(tmp_path), 20, 3 << 30, 256, 1 << 20, **{"gpu": False, **changed})
    return Child(server, "run", confinement)


@pytest.mark.parametrize("line", GARBAGE.values(), ids=GARBAGE)
def test_garbage_ends_the_child_and_nobody_else(tmp_path, line):
    server = Scripted(line + b"\n", None)
    with a_child(server, tmp_path) as child:
        child.start()
        with pytest.raises(ChildEnded):
            child.ask({"op": "load"}, 10.0)
    assert server.ended == 1
    assert not child.scratch.exists()


def test_a_child_that_answers_ahead_and_never_reads_is_timed_out(tmp_path):
    """Two answers to one message, so that the next message is sent to a process that reads no more."""
    server = Scripted(b'{"a": 1}\n{"a": 2}\n')
    with a_child(server, tmp_path) as child:
        child.start()
        assert child.ask({"op": "load"}, 10.0) == {"a": 1}
        with pytest.raises(ChildTimeout):
            child.ask({"op": "call", "program": "x" * (16 << 20)}, 0.3)


@pytest.mark.parametrize(
    ("status", "told"), [(0, 0), (7, 7), (-signal.SIGSEGV, -signal.SIGSEGV), (-40, 168), (-64, -64)]
)
def test_a_status_is_one_that_can_be_named(tmp_path, status, told):
    with a_child(Scripted(None, status=status), tmp_path) as child:
        child.start()
        with pytest.raises(ChildEnded) as caught:
            child.ask({"op": "load"}, 10.0)
    assert caught.value.status == told
    assert told >= 0 or signal.Signals(-told)


def spoil(scratch, how):
    log = scratch / "output.txt"
    log.write_text("said")
    if how == "link":
        log.unlink()
        log.symlink_to("/etc/passwd")
    elif how == "pipe":
        log.unlink()
        os.mkfifo(log)
    elif how == "folder":
        log.unlink()
        log.mkdir()
    elif how == "unreadable":
        log.chmod(0)
    elif how == "locked":
        scratch.chmod(0)
    elif how == "gone":
        log.unlink()


@pytest.mark.parametrize("how", ["plain", "link", "pipe", "folder", "unreadable", "locked", "gone"])
def test_what_a_child_printed_is_read_from_a_plain_file_only(tmp_path, how):
    with a_child(Scripted(), tmp_path) as child:
        spoil(child.scratch, how)
        told = child.output()
        child.scratch.chmod(0o700)
    # Root reads what it may not.
    assert told == "said" if how == "plain" else told in ("", "said")
    assert "root:" not in told


@pytest.mark.parametrize(
    ("changed", "layers", "broken", "missing"),
    [
        pytest.param({}, ("process_group",), True, None, id="best-effort"),
        pytest.param({"required": True}, sandbox.LAYERS, False, None, id="all-hold"),
        pytest.param({"required": True}, ("process_group",), False, "rlimits.*landlock", id="most-are-missing"),
        pytest.param({"required": True}, sandbox.LAYERS[:-1], False, "but landlock is", id="no-landlock"),
        pytest.param({"required": True}, sandbox.LAYERS, True, "but bubblewrap is", id="installed-and-broken"),
        pytest.param({"required": True, "gpu": True}, sandbox.LAYERS, True, None, id="a-gpu-stays-outside-of-it"),
    ],
)
def test_required_layers_are_asked_of_every_child(monkeypatch, tmp_path, changed, layers, broken, missing):
    from engine.errors import MissingError
    from engine.judging import children
    from engine.judging.bubblewrap import Bubblewrap

    offered = Bubblewrap("/usr/bin/bwrap", "not permitted" if broken else "")
    monkeypatch.setattr(children, "bubblewrap", lambda: offered)
    with a_child(Scripted(layers=layers), tmp_path, **changed) as child:
        if missing is None:
            child.start()
            assert child.layers == tuple(layers)
        else:
            with pytest.raises(MissingError, match=missing):
                child.start()


@pytest.mark.parametrize("name", ["link", "pipe", "folder", "absent", "longer", "shorter", "nul\0", "n" * 300])
def test_only_a_plain_file_of_the_right_size_is_read(tmp_path, name):
    path = tmp_path / name
    if name == "link":
        (tmp_path / "file").write_bytes(b"1234")
        path.symlink_to(tmp_path / "file")
    elif name == "pipe":
        os.mkfifo(path)
    elif name == "folder":
        path.mkdir()
    elif name in ("longer", "shorter"):
        path.write_bytes(b"12345" if name == "longer" else b"123")
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(ChannelClosed):
        read_raw(path, 4)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_file_is_read_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr("engine.judging.wire.PART_BYTES", 3)
    (tmp_path / "file").write_bytes(b"12345678")
    assert read_raw(tmp_path / "file", 8) == b"12345678"
    (tmp_path / "empty").touch()
    assert read_raw(tmp_path / "empty", 0) == b""
