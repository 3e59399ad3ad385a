"""The folder of one run: results/runs/<run_id>/ with sources, prompts and replies that people can read."""

from __future__ import annotations

from pathlib import Path

from engine.canonical import Json, canonical
from engine.errors import StoreFull
from engine.files import write_whole
from engine.records import Message, Reply, Slot


class RunFolder:
    """Paths and text files of one run; everything here but events.jsonl can be written again from it."""

    def __init__(self, results: Path, run_id: str) -> None:
        self.path = results / "runs" / run_id
        self.path.mkdir(parents=True, exist_ok=True)

    @property
    def events(self) -> Path:
        return self.path / "events.jsonl"

    def task(self, task_id: str) -> Path:
        return self.path / "tasks" / task_id

    def write_config(self, tree: Json) -> None:
        """The resolved configuration as JSON, which is YAML too."""
        _write(self.path / "config.yaml", canonical(tree) + "\n")

    def write_source(self, task_id: str, candidate_id: str, source: str) -> None:
        path = self.task(task_id) / "candidates" / f"{candidate_id}.py"
        if not path.exists() or path.stat().st_size == 0:  # a power cut leaves an empty one
            _write(path, source)

    def write_reference(self, task_id: str, source: str) -> None:
        write_whole(self.task(task_id) / "reference.py", source, derived=True)

    def write_best(self, task_id: str, source: str) -> Path:
        path = self.task(task_id) / "best.py"
        _write(path, source)
        return path

    def remove_best(self, task_id: str) -> None:
        """Take back a best kernel that turned out not to be one."""
        (self.task(task_id) / "best.py").unlink(missing_ok=True)

    def write_exchange(self, slot: Slot, messages: tuple[Message, ...], reply: Reply | None) -> None:
        """The prompt of a call as text, with `reply` the reply: <stage>.<role>.<attempt>.<sample>.{prompt,reply}.md."""
        stem = f"{slot.stage}.{slot.role}.{slot.attempt}.{slot.sample}"
        folder = self.task(slot.task_id) / "exchanges"
        if reply is None:
            prompt = "\n\n".join(f"<!-- {message.role} -->\n{message.content}" for message in messages)
            _write(folder / f"{stem}.prompt.md", prompt + "\n")
        else:
            _write(folder / f"{stem}.reply.md", reply.text + "\n")


def _write(path: Path, text: str) -> None:
    try:
        write_whole(path, text, derived=True)
    except OSError as error:
        hint = "free some space, then repeat the command: it continues"
        raise StoreFull(f"cannot write {path}: {error}", hint=hint) from error
