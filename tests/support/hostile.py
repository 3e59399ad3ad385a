"""A stand-in for a fork server, whose children answer given bytes: what a process owned by a candidate might say."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Sequence

from engine.judging import sandbox
from engine.judging.wire import Channel


class Scripted:
    """Children that are confined by `layers`, read a message, then answer the next of `answers`; None ends them."""

    def __init__(self, *answers: bytes | None, layers: Sequence[str] = sandbox.LAYERS, status: int = -9) -> None:
        self.answers, self.layers, self.status = answers, layers, status
        self.ended = 0
        self._killed = threading.Event()
        self._player: threading.Thread | None = None

    def spawn(self, kind: str, confinement: sandbox.Confinement) -> tuple[int, Channel]:
        ours, theirs = socket.socketpair()
        self._player = threading.Thread(target=self._play, args=(theirs,))
        self._player.start()
        return 1, Channel(ours, hostile=True)

    def end(self, number: int) -> int:
        self.ended += 1
        self._killed.set()
        assert self._player is not None
        self._player.join()
        return self.status

    def _play(self, theirs: socket.socket) -> None:
        with theirs, contextlib.suppress(ConnectionError):
            theirs.sendall(json.dumps({"ready": True, "sandbox": list(self.layers)}).encode() + b"\n")
            for answer in self.answers:
                if not theirs.recv(1 << 20) or answer is None:
                    return
                theirs.sendall(answer)
            # It neither reads nor answers any more.
            self._killed.wait()
