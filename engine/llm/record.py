"""Any provider, with every reply kept as a recording."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from engine.llm.files import ensure_folder
from engine.llm.recordings import Recording, save
from engine.llm.seam import Llm
from engine.records import Reply, Request


def today() -> str:
    return datetime.datetime.now(datetime.UTC).date().isoformat()


class RecordingLlm:
    """Passes requests to `llm` and saves the replies in `folder`, signed with `answered_by` where a reply is not."""

    def __init__(self, llm: Llm, folder: Path, answered_by: str, clock: Callable[[], str] = today) -> None:
        self.llm = llm
        self.folder = folder
        self.answered_by = answered_by
        self.clock = clock

    def check(self) -> None:
        self.llm.check()
        ensure_folder(self.folder, "llm.record")

    def complete(self, request: Request) -> Reply:
        reply = self.llm.complete(request)
        signed = replace(reply, answered_by=reply.answered_by or self.answered_by, date=reply.date or self.clock())
        save(self.folder, Recording(request, signed))
        return signed
